"""Decoding in slabs with the result of decoding at once: no seams, no blending.

`halo_decode` shares a volume among processes, which fetch rims from each other at every
convolution. `decode_slabs` takes the slabs of one device in turns. There the statistics of
group normalisation, which are of the whole volume, are found one layer after the other: the
slabs are computed up to the first such layer, its statistics pooled, then up to the second,
and so on. Rims are computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn

from medpipe.errors import UsageError
from medpipe.synthesis.parallel.exchange import Exchange, Traffic, group_size
from medpipe.synthesis.parallel.modules import check_leaf, normalised, split_module, twin_of
from medpipe.synthesis.parallel.moments import pooled, sums_of
from medpipe.synthesis.parallel.slabs import (
    choose_axis,
    cut_evenly,
    path_reach,
    slab_bounds,
)

__all__ = ["blocks_of", "decode_slabs", "halo_decode", "run_slabs"]


def halo_decode(
    decoder: nn.Module,
    latent: Tensor,
    group: Any = None,
    *,
    axis: int | None = None,
    gather: bool = True,
    traffic: Traffic | None = None,
) -> Tensor:
    """Decode a latent in all processes of a group, each a slab of it.

    Parameters
    ----------
    decoder : torch.nn.Module
        For example `LatentAutoencoder.decoder`.
    latent : Tensor (B, C, h, w, d)
        The same in every process, on the device of the process.
    group : torch.distributed.ProcessGroup, optional
        All processes by default.
    axis : int, optional
        Spatial axis that is cut; the longest by default.
    gather : bool
        Whether every process gets the whole volume; else each gets its own slab.
    traffic : Traffic, optional
        Bytes that this process sends are added to it.

    Returns
    -------
    Tensor (B, C', ...)

    Raises
    ------
    UsageError
        If there are more processes than cells along the axis, or a layer cannot be computed
        in slabs.
    """
    axis = choose_axis(latent.shape[2:], axis)
    shares = cut_evenly(latent.shape[axis + 2], group_size(group))
    exchange = Exchange(group, shares, axis, traffic=traffic)
    start, stop = slab_bounds(shares)[exchange.rank]
    with torch.no_grad():
        slab = split_module(decoder, exchange)(latent.narrow(axis + 2, start, stop - start))
        return exchange.join(slab) if gather else slab


def decode_slabs(
    decoder: nn.Module,
    latent: Tensor,
    *,
    slabs: int = 8,
    axis: int | None = None,
    levels: int = 1,
    storage: str | torch.device | None = None,
) -> Tensor:
    """Decode a latent on one device in little memory.

    The coarse part of the decoder runs at once; the blocks of the `levels` finest resolutions
    run slab by slab. The peak is then about that of the coarse part, or of one slab.

    Parameters
    ----------
    decoder : torch.nn.Module
        Blocks in a row: an `nn.Sequential`, or a module with `blocks`, as MONAI's decoders.
    latent : Tensor (B, C, h, w, d)
    slabs : int
        Turns to take.
    axis : int, optional
        Spatial axis that is cut; the longest by default.
    levels : int
        Resolutions that are computed in slabs; blocks with attention, and those before them,
        never are.
    storage : device, optional
        Where to keep what lies between two blocks: about a third more arithmetic than
        decoding at once, two volumes of features there. By default nothing is kept, and
        each normalisation begins anew: about four times the arithmetic, with two residual
        blocks at a resolution.

    Returns
    -------
    Tensor (B, C', ...)
        That of `decoder` to rounding, on the device of `latent`.

    Raises
    ------
    UsageError
        If a layer cannot be computed in slabs, or there are more slabs than cells.
    """
    blocks = blocks_of(decoder)
    axis = choose_axis(latent.shape[2:], axis)
    first = _first_fine(blocks, levels)
    with torch.no_grad():
        x = latent
        for block in blocks[:first]:
            x = block(x)
        return run_slabs(blocks[first:], x, slabs=slabs, axis=axis, storage=storage)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the blocks that a module calls one after the other.

    Raises
    ------
    UsageError
        If the module does not say.
    """
    blocks = module if isinstance(module, nn.Sequential) else getattr(module, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise UsageError(
            "the decoder cannot be taken apart", expected="blocks in a row",
            hint="give LatentAutoencoder.decoder, or an nn.Sequential",
        )  # fmt: skip
    return list(blocks)


def _leaves(blocks: Sequence[nn.Module]) -> Iterator[nn.Module]:
    for block in blocks:
        for _, part in block.named_modules(remove_duplicate=False):
            if next(part.children(), None) is None:
                yield part


def _first_fine(blocks: Sequence[nn.Module], levels: int) -> int:
    """Return the first block that runs in slabs."""
    if levels < 1:
        raise UsageError("levels is wrong", expected="1 or more", got=str(levels))
    attention, up = 0, []
    for n, block in enumerate(blocks):
        if any(isinstance(p, SABlock | CrossAttentionBlock) for p in block.modules()):
            attention = n + 1
        if any(
            isinstance(p, nn.Upsample) or getattr(p, "transposed", False) for p in block.modules()
        ):
            up.append(n)
    return max(attention, up[-levels] if levels <= len(up) else 0)


def run_slabs(
    blocks: Sequence[nn.Module],
    x: Tensor,
    *,
    slabs: int,
    axis: int,
    storage: str | torch.device | None = None,
) -> Tensor:
    """Run blocks one after the other, slab by slab.

    Parameters
    ----------
    blocks : sequence of torch.nn.Module
        Without attention.
    x : Tensor (B, C, ...)
        Its length along `axis` is a multiple of the stride of the blocks.
    slabs, axis, storage
        See `decode_slabs`.

    Returns
    -------
    Tensor
        That of the blocks, on the device of `x`.
    """
    if storage is None:
        return _stage(blocks, x, slabs, axis, x.device, x.device)
    out = x
    for n, block in enumerate(blocks):
        kept = torch.device(storage) if n < len(blocks) - 1 else x.device
        out = _stage([block], out, slabs, axis, x.device, kept)
    return out


class _Reached(Exception):  # noqa: N818 - not an error: a slab is as far as it can go
    """The first normalisation whose statistics are not known yet, and those of this slab."""

    def __init__(self, sums: Tensor) -> None:
        super().__init__()
        self.sums = sums


class _Ledger:
    """Statistics of the normalisations of a stage, in the order in which they are met."""

    def __init__(self) -> None:
        self.known: list[tuple[Tensor, Tensor]] = []
        self.met = 0

    def begin(self, length: int, before: int, after: int, dim: int) -> None:
        """Begin a slab of `length` cells, rims included."""
        self.met, self.length, self.dim = 0, length, dim
        self.before, self.after = before, after

    def core(self, x: Tensor) -> Tensor:
        """Return features without the rims, whatever the resolution."""
        size = x.shape[self.dim]
        before, after = (size * rim // self.length for rim in (self.before, self.after))
        return x.narrow(self.dim, before, size - before - after)


class _LedgerNorm(nn.Module):
    """Group normalisation with statistics of the ledger."""

    def __init__(self, norm: nn.GroupNorm, ledger: _Ledger) -> None:
        super().__init__()
        self.norm, self.ledger = norm, ledger

    def forward(self, x: Tensor) -> Tensor:
        ledger = self.ledger
        if ledger.met == len(ledger.known):
            raise _Reached(sums_of(ledger.core(x), self.norm.num_groups))
        ledger.met += 1
        return normalised(x, self.norm, *ledger.known[ledger.met - 1])


def _stage(
    blocks: Sequence[nn.Module], x: Tensor, slabs: int, axis: int, device: torch.device,
    kept: torch.device,
) -> Tensor:  # fmt: skip
    """Run blocks slab by slab on `device`; the result goes to `kept`."""
    ledger, dim = _Ledger(), axis + 2

    def replaced(part: nn.Module) -> nn.Module | None:
        if isinstance(part, nn.GroupNorm):
            return _LedgerNorm(part, ledger)
        if getattr(part, "transposed", None) is None and not hasattr(part, "pad"):
            check_leaf(part, axis)
        return None

    reach = path_reach(list(_leaves(blocks)), axis)
    run = nn.Sequential(*[twin_of(block, replaced) for block in blocks])
    stride = max(1, math.ceil(1 / reach.scale))
    if x.shape[dim] % stride:
        raise UsageError(
            "the length does not fit the stride", expected=f"a multiple of {stride}",
            got=str(x.shape[dim]),
        )  # fmt: skip
    rims = [stride * math.ceil(r / stride) for r in (reach.before, reach.after)]
    bounds = slab_bounds(cut_evenly(x.shape[dim] // stride, slabs), stride)

    def compute(start: int, stop: int) -> Tensor:
        first, last = max(0, start - rims[0]), min(x.shape[dim], stop + rims[1])
        ledger.begin(last - first, start - first, last - stop, dim)
        return ledger.core(run(x.narrow(dim, first, last - first).to(device)))

    whole: Tensor | None = None
    while True:
        parts = []
        for start, stop in bounds:
            try:
                made = compute(start, stop)
            except _Reached as reached:
                parts.append(reached.sums)
                continue
            if whole is None:
                shape = list(made.shape)
                shape[dim] = int(x.shape[dim] * reach.scale)
                whole = made.new_empty(shape, device=kept)
            whole.narrow(dim, int(start * reach.scale), made.shape[dim]).copy_(made)
        if whole is not None:
            return whole
        ledger.known.append(pooled(parts))
