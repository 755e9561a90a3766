"""A twin of a network that computes one slab of its volume and shares its weights.

Convolutions fetch a rim from the neighbours, group normalisation pools its moments, attention
gathers keys and values. All other layers must work voxel by voxel (or token by token), and
what holds layers must only call them, add, and concatenate channels: that is so for MONAI's
`DiffusionModelUNet`, `AutoencoderKL` and `VQVAE`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from monai.networks.blocks.activation import GEGLU
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.autoencoderkl import AEKLDownsample
from torch import Tensor, nn
from torch.nn import functional

from medpipe.errors import UsageError
from medpipe.synthesis.parallel.exchange import Exchange
from medpipe.synthesis.parallel.moments import sums_of
from medpipe.synthesis.parallel.slabs import layer_reach, pooling, upsampling

__all__ = ["check_leaf", "normalised", "split_module", "twin_of"]

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
LOCAL = (
    nn.Linear, nn.Embedding, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.SiLU, nn.ReLU,
    nn.LeakyReLU, nn.PReLU, nn.GELU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Softplus, GEGLU,
)  # fmt: skip
"""Layers that compute each voxel or token by itself."""


def twin_of(module: nn.Module, replaced: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Return a module of the same structure and the same parameters, some parts replaced.

    Parameters
    ----------
    module : torch.nn.Module
        Left as it is.
    replaced : callable
        Of a part to what stands for it, or None to look at the parts of it in turn.
    """
    made: dict[int, nn.Module] = {}

    def twin(part: nn.Module) -> nn.Module:
        if id(part) not in made:
            other = replaced(part)
            if other is None:
                other = copy.copy(part)
                other.__dict__["_modules"] = {
                    name: None if child is None else twin(child)
                    for name, child in part._modules.items()
                }
            made[id(part)] = other
        return made[id(part)]

    return twin(module)


def split_module(module: nn.Module, exchange: Exchange) -> nn.Module:
    """Return a twin of `module` that maps slabs to slabs.

    Parameters
    ----------
    module : torch.nn.Module
        Of 2-D or 3-D convolutions. In training mode batch normalisation and dropout would
        differ between the processes: use `eval`.
    exchange : Exchange
        Of this process. Without a process group the twin computes what the module computes.

    Raises
    ------
    UsageError
        If a layer cannot be computed in slabs.
    """
    count = 0

    def replaced(part: nn.Module) -> nn.Module | None:
        nonlocal count
        count += 1
        if isinstance(part, AEKLDownsample):
            return _SlabDownsample(part, exchange, count)
        if isinstance(part, CONVOLUTIONS):
            return _SlabConv(part, exchange, count)
        if isinstance(part, TRANSPOSED):
            return _SlabTransposed(part, exchange, count)
        if isinstance(part, nn.GroupNorm):
            return _SlabNorm(part, exchange, count)
        if isinstance(part, SABlock | CrossAttentionBlock):
            return _SlabAttention(part, exchange, count)
        check_leaf(part, exchange.axis)
        return None

    return twin_of(module, replaced)


def check_leaf(part: nn.Module, axis: int) -> None:
    """Check that a layer needs nothing from outside a slab.

    Raises
    ------
    UsageError
        If it does, or is not known.
    """
    if next(part.children(), None) is not None or isinstance(part, LOCAL):
        return
    if isinstance(part, nn.Upsample):
        upsampling(part, axis)
    elif isinstance(part, nn.AvgPool2d | nn.AvgPool3d):
        pooling(part, axis)
    elif isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
        if part.training or part.running_mean is None:
            raise _unsuitable(part, "statistics of the training; call eval()")
    elif not (isinstance(part, nn.LayerNorm) and len(part.normalized_shape) == 1):
        raise _unsuitable(part, "a layer of MONAI's autoencoders and denoisers")


def _unsuitable(part: nn.Module, expected: str) -> UsageError:
    return UsageError(
        "a layer cannot be computed in slabs", where=type(part).__name__, expected=expected
    )


def normalised(x: Tensor, norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> Tensor:
    """Return group normalisation with the mean and variance (B, groups) that are given."""
    each = norm.num_channels // norm.num_groups
    rate = torch.rsqrt(variance + norm.eps).repeat_interleave(each, 1)
    shift = -mean.repeat_interleave(each, 1) * rate
    if norm.affine:
        rate, shift = rate * norm.weight, shift * norm.weight + norm.bias
    shape = (*rate.shape, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.to(x.dtype).reshape(shape), x, rate.to(x.dtype).reshape(shape))


def _without(values: Any, axis: int) -> tuple[int, ...]:
    """Return padding that is 0 along `axis`."""
    return tuple(0 if n == axis else int(v) for n, v in enumerate(values))


class _SlabConv(nn.Module):
    """A convolution whose slab is extended by cells of the neighbours."""

    def __init__(self, conv: Any, exchange: Exchange, key: int) -> None:
        super().__init__()
        self.conv, self.exchange, self.key = conv, exchange, key
        self.reach = layer_reach(conv, exchange.axis)

    def forward(self, x: Tensor) -> Tensor:
        conv, reach = self.conv, self.reach
        if not (reach.before or reach.after):
            return conv(x)
        wide = self.exchange.halo(self.key, x, reach.before, reach.after)
        return _convolve(conv, wide, _without(conv.padding, self.exchange.axis))


def _convolve(conv: Any, x: Tensor, padding: tuple[int, ...]) -> Tensor:
    apply: Any = functional.conv3d if isinstance(conv, nn.Conv3d) else functional.conv2d
    return apply(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)


class _SlabDownsample(nn.Module):
    """MONAI's `AEKLDownsample`: one cell of padding, above alone."""

    def __init__(self, block: Any, exchange: Exchange, key: int) -> None:
        super().__init__()
        self.conv, self.exchange, self.key = block.conv.conv, exchange, key
        self.pad = block.pad.pad[1]
        layer_reach(self.conv, exchange.axis, padded=self.pad)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.exchange.halo(self.key, x, 0, self.pad)
        pads = [0, self.pad] * (x.ndim - 2)
        pads[-1 - 2 * self.exchange.axis] = 0  # of the last axis first
        return _convolve(self.conv, functional.pad(wide, pads), tuple(self.conv.padding))


class _SlabTransposed(nn.Module):
    """A transposed convolution: what the neighbours' cells add is computed here, and cut."""

    def __init__(self, conv: Any, exchange: Exchange, key: int) -> None:
        super().__init__()
        self.conv, self.exchange, self.key = conv, exchange, key
        self.reach = layer_reach(conv, exchange.axis)

    def forward(self, x: Tensor) -> Tensor:
        conv, reach, axis = self.conv, self.reach, self.exchange.axis
        wide = x
        if reach.before or reach.after:
            wide = self.exchange.halo(self.key, x, reach.before, reach.after)
        apply: Any = (
            functional.conv_transpose3d
            if isinstance(conv, nn.ConvTranspose3d)
            else functional.conv_transpose2d
        )
        made = apply(
            wide, conv.weight, conv.bias, conv.stride, _without(conv.padding, axis),
            _without(conv.output_padding, axis), conv.groups, conv.dilation,
        )  # fmt: skip
        stride, dim = int(conv.stride[axis]), self.exchange.dim
        start = reach.before * stride + int(conv.padding[axis])
        return made.narrow(dim, start, stride * x.shape[dim])


class _SlabNorm(nn.Module):
    """Group normalisation over all slabs."""

    def __init__(self, norm: nn.GroupNorm, exchange: Exchange, key: int) -> None:
        super().__init__()
        self.norm, self.exchange, self.key = norm, exchange, key

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.exchange.moments(self.key, sums_of(x, self.norm.num_groups))
        return normalised(x, self.norm, mean, variance)


class _SlabAttention(nn.Module):
    """MONAI's attention blocks: one's own queries, keys and values of all slabs."""

    def __init__(self, block: Any, exchange: Exchange, key: int) -> None:
        super().__init__()
        if block.causal or block.save_attn or block.rel_positional_embedding is not None:
            raise _unsuitable(block, "plain attention")
        if block.training and block.dropout_rate:
            raise _unsuitable(block, "no dropout; call eval()")
        self.block, self.exchange, self.key = block, exchange, key

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        block = self.block
        if getattr(block, "use_combined_linear", False):
            q, k, v = block.qkv(x).chunk(3, -1)
        else:
            source = x if context is None else context
            q, k, v = block.to_q(x), block.to_k(source), block.to_v(source)
        if context is None:
            k, v = self.exchange.gather(self.key, torch.cat([k, v], -1), 1).chunk(2, -1)
        q, k, v = (self._heads(t) for t in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, scale=block.scale)
        return block.out_proj(out.to(x.dtype).transpose(1, 2).flatten(2))

    def _heads(self, tokens: Tensor) -> Tensor:
        block = self.block
        split = tokens.unflatten(-1, (block.num_heads, -1)).transpose(1, 2)
        return split if block.attention_dtype is None else split.to(block.attention_dtype)
