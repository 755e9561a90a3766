"""The latent autoencoder: volumes to a smaller grid of a few channels, and back.

MONAI's `AutoencoderKL` inside. The encoder gives a mean and a standard deviation for each
number of the latent; both are kept, and the noise is drawn anew whenever a latent is used:
a latent stored with its noise makes that noise part of what a denoiser has to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from medpipe.errors import UsageError
from medpipe.synthesis.cubes import folded, unfolded
from medpipe.synthesis.memory import enough_memory
from medpipe.synthesis.model_file import network_bytes, network_digest, read_network
from medpipe.synthesis.parallel.decode import decode_slabs, run_slabs
from medpipe.synthesis.parallel.slabs import choose_axis
from medpipe.types import Json

__all__ = ["AutoencoderSettings", "LatentAutoencoder"]

MODEL = "latent-autoencoder"


@dataclass(frozen=True)
class AutoencoderSettings:
    """The shape of a latent autoencoder.

    Parameters
    ----------
    image_channels, latent_channels : int
    channels : tuple of int
        From the finest resolution down; each but the first halves the resolution.
    residual_blocks : int
        At each resolution.
    groups : int
        Of group normalisation; divides every number of channels.
    attention : tuple of bool, optional
        Which resolutions have attention; by default none. Fine ones need much memory.
    middle_attention : bool
        Whether the coarsest resolution has attention between two residual blocks.
    label_classes : int
        Classes of a label map, background included, as channels behind those of the image:
        one-hot in, logits out; 0 for none.
    patch_voxels : int
        The voxels of cubes with this edge become channels of the finest resolution. 2 costs
        an eighth of the memory there, and a fraction of the time.
    transposed : bool
        Whether resolutions are doubled by transposed convolutions, which cost an eighth of
        a convolution after copying each voxel.
    """

    image_channels: int = 1
    latent_channels: int = 3
    channels: tuple[int, ...] = (32, 64, 64)
    residual_blocks: int = 1
    groups: int = 16
    attention: tuple[bool, ...] = ()
    middle_attention: bool = False
    label_classes: int = 0
    patch_voxels: int = 1
    transposed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(int(c) for c in self.channels))
        marks = tuple(bool(a) for a in self.attention) or (False,) * len(self.channels)
        object.__setattr__(self, "attention", marks)
        if not self.channels or any(c < 1 or c % self.groups for c in self.channels):
            raise UsageError(
                "channels is wrong", expected=f"multiples of groups ({self.groups})",
                got=str(list(self.channels)),
            )  # fmt: skip
        if len(self.attention) != len(self.channels):
            raise UsageError("attention is wrong", expected="a mark for each of channels")
        if min(self.image_channels, self.latent_channels, self.residual_blocks) < 1:
            raise UsageError("the autoencoder has no channels or blocks", expected="1 or more")
        if self.label_classes < 0 or self.label_classes == 1 or self.patch_voxels < 1:
            raise UsageError(
                "label_classes or patch_voxels is wrong",
                expected="no label classes, or two or more; patches of 1 voxel or more",
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> AutoencoderSettings:
        """Return the settings of a preset with changes.

        Raises
        ------
        UsageError
            If there is no such preset.
        """
        if name not in PRESETS:
            raise UsageError("no such preset", expected=" | ".join(PRESETS), got=repr(name)[:40])
        return cls(**(PRESETS[name] | changes))

    @property
    def volume_channels(self) -> int:
        """Channels of what goes in and comes out."""
        return self.image_channels + self.label_classes

    @property
    def stride(self) -> int:
        """Voxels along an axis for one cell of the latent."""
        return self.patch_voxels * 2 ** (len(self.channels) - 1)


PRESETS: dict[str, dict[str, Any]] = {
    # in a few minutes on one thread
    "small": {
        "latent_channels": 4, "channels": (16, 48), "groups": 8, "patch_voxels": 2,
        "transposed": True,
    },
    "hippocampus": {
        "latent_channels": 24, "channels": (24, 64, 96), "groups": 8, "patch_voxels": 2,
        "transposed": True,
    },
    # of the latent diffusion model of the brain (Pinaya et al., arXiv 2209.07162)
    "brain-ldm": {
        "latent_channels": 3, "channels": (64, 128, 128, 128), "residual_blocks": 2, "groups": 32,
    },
}  # fmt: skip


class LatentAutoencoder(nn.Module):
    """Volumes to latents and back.

    Latents are scaled: after `measure_scale` each channel has mean 0 and variance 1 over the
    volumes it was measured on, noise included, which is what a denoiser expects.

    Parameters
    ----------
    settings : AutoencoderSettings

    Attributes
    ----------
    shift, scale : Tensor (latent_channels,)
        A latent is ``(raw - shift) * scale``.
    facts : dict
        JSON about the training.
    """

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.facts: dict[str, Json] = {}
        self.net = AutoencoderKL(
            spatial_dims=3,
            in_channels=settings.volume_channels * settings.patch_voxels**3,
            out_channels=settings.volume_channels * settings.patch_voxels**3,
            latent_channels=settings.latent_channels,
            channels=settings.channels,
            num_res_blocks=settings.residual_blocks,
            attention_levels=settings.attention,
            norm_num_groups=settings.groups,
            with_encoder_nonlocal_attn=settings.middle_attention,
            with_decoder_nonlocal_attn=settings.middle_attention,
            use_flash_attention=True,
            use_convtranspose=settings.transposed,
        )
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(settings.latent_channels))
        self.register_buffer("scale", torch.ones(settings.latent_channels))

    @property
    def stride(self) -> int:
        """Voxels along an axis for one cell of the latent."""
        return self.settings.stride

    @property
    def decoder(self) -> nn.Sequential:
        """What decodes a raw latent, as blocks in a row, for `medpipe.synthesis.parallel`."""
        return nn.Sequential(self.net.post_quant_conv, *self.net.decoder.blocks)

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape of the latent of a volume of this shape."""
        return tuple(-(-n // self.stride) for n in shape)

    def encode(self, x: Tensor, *, slabs: int | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latent of a volume.

        Parameters
        ----------
        x : Tensor (B, C, I, J, K)
            Image and, behind it, one-hot labels if there are any. Of any size: what the
            stride does not divide is continued with its last voxel.
        slabs : int, optional
            Compute the full resolution in so many turns, in less memory; the same result.
            Without gradients.

        Returns
        -------
        mean, sigma : Tensor (B, latent_channels, h, w, d)
            Scaled. A latent is ``mean + sigma * noise``.

        Raises
        ------
        UsageError
            If `x` does not have the channels of the autoencoder.
        ResourceError
            If the memory of the device does not suffice.
        """
        _check(x, self.settings.volume_channels, "volume")
        ends = [(-n) % self.stride for n in reversed(x.shape[2:])]
        pads = [p for end in ends for p in (0, end)]
        padded = functional.pad(x, pads, mode="replicate") if any(pads) else x
        with enough_memory("encode in slabs (or in more of them), or on a larger device"):
            hidden = self._encoded(folded(padded, self.settings.patch_voxels), slabs)
            mean = self.net.quant_conv_mu(hidden)
            logs = self.net.quant_conv_log_sigma(hidden).clamp(-30.0, 20.0)
        return (mean - _wide(self.shift)) * _wide(self.scale), (logs / 2).exp() * _wide(self.scale)

    def _encoded(self, x: Tensor, slabs: int | None) -> Tensor:
        if slabs is None:
            return self.net.encoder(x)
        blocks = list(self.net.encoder.blocks)
        plain = self.settings.residual_blocks + 2  # the first convolution and the halving
        halved = len(self.settings.channels) > 1
        head = plain if halved and not self.settings.attention[0] else 1
        with torch.no_grad():
            x = run_slabs(blocks[:head], x, slabs=slabs, axis=choose_axis(x.shape[2:], None))
            for block in blocks[head:]:
                x = block(x)
        return x

    def decode(
        self, latent: Tensor, shape: Sequence[int] | None = None, *, slabs: int | None = None,
        **how: Any,
    ) -> Tensor:  # fmt: skip
        """Return the volume of a latent: image and, behind it, logits of labels.

        Parameters
        ----------
        latent : Tensor (B, latent_channels, h, w, d)
            Scaled.
        shape : sequence of int, optional
            Spatial shape to cut the volume to: that of the volume that was encoded.
        slabs : int, optional
            Decode in so many turns, in less memory; the same result. Without gradients.
        **how
            See `medpipe.synthesis.parallel.decode.decode_slabs`.

        Raises
        ------
        UsageError
            If the latent does not have the channels of the autoencoder, or its grid is not
            that of `shape`.
        ResourceError
            If the memory of the device does not suffice.
        """
        _check(latent, self.settings.latent_channels, "latent")
        if shape is not None and self.grid(shape) != tuple(latent.shape[2:]):
            raise UsageError(
                "the latent is not one of such a volume", expected=f"a grid of {self.grid(shape)}",
                got=str(tuple(latent.shape[2:])),
            )  # fmt: skip
        with enough_memory("decode in slabs (or in more of them), or with halo_decode"):
            raw = self.raw(latent)
            out = (
                self.net.decode(raw)
                if slabs is None
                else decode_slabs(self.decoder, raw, slabs=slabs, **how)
            )
            out = unfolded(out, self.settings.patch_voxels)
        for n, length in enumerate(shape or ()):
            out = out.narrow(n + 2, 0, length)
        return out

    def raw(self, latent: Tensor) -> Tensor:
        """Return what `decoder` reads, from a scaled latent."""
        return latent / _wide(self.scale) + _wide(self.shift)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return `values` (the reconstruction), raw `mean` and `sigma`, for training.

        While training, the latent is drawn from its distribution; else it is the mean.
        """
        mean, sigma = self.encode(x)
        latent = mean + sigma * torch.randn_like(sigma) if self.training else mean
        values = self.decode(latent, x.shape[2:])
        scale, shift = _wide(self.scale), _wide(self.shift)
        return {"values": values, "mean": mean / scale + shift, "sigma": sigma / scale}

    @torch.no_grad()
    def measure_scale(self, samples: Dataset[Any] | Sequence[Tensor]) -> None:
        """Set `shift` and `scale` so that latents of `samples` have mean 0 and variance 1.

        The variance is that of the means plus the mean square of the standard deviations:
        exact, with no noise drawn.

        Parameters
        ----------
        samples : sequence of Tensor (C, I, J, K)
        """
        self.shift.zero_()
        self.scale.fill_(1.0)
        count, first, second = 0, self.shift.double(), self.shift.double()
        for n in range(len(cast(Sequence[Any], samples))):
            mean, sigma = self.encode(samples[n][None].to(self.scale))
            count += mean[0, 0].numel()
            first = first + mean.double().sum((0, 2, 3, 4))
            second = second + (mean.double() ** 2 + sigma.double() ** 2).sum((0, 2, 3, 4))
        if count == 0:
            raise UsageError("nothing to measure latents of", expected="at least one sample")
        self.shift.copy_(first / count)
        self.scale.copy_((second / count - (first / count) ** 2).clamp_min(1e-12).rsqrt())

    def digest(self) -> str:
        """Return what tells these weights from others."""
        return network_digest(self)[:16]

    def to_bytes(self, *, half: bool = False) -> bytes:
        """Return weights (in half precision), settings and facts as a safetensors file."""
        return network_bytes(self, MODEL, self.settings, half=half, facts=self.facts)

    @classmethod
    def read(cls, name_or_path: str | Path) -> LatentAutoencoder:
        """Return the autoencoder of a file that holds what `to_bytes` made, on the CPU.

        Raises
        ------
        UsageError
            If there is no such file.
        InputError
            If it holds something else.
        """
        return cls._from(name_or_path)

    @classmethod
    def from_bytes(cls, content: bytes) -> LatentAutoencoder:
        """Return what `to_bytes` returned; see `read`."""
        return cls._from(content)

    @classmethod
    def _from(cls, source: str | Path | bytes) -> LatentAutoencoder:
        def make(said: dict[str, Any]) -> LatentAutoencoder:
            made = cls(AutoencoderSettings(**said["settings"]))
            made.facts = dict(said["facts"])
            return made

        return read_network(source, MODEL, "a latent autoencoder", make)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _check(x: Tensor, channels: int, what: str) -> None:
    if x.ndim != 5 or x.shape[1] != channels:
        raise UsageError(
            f"the {what} has the wrong shape",
            expected=f"(batch, {channels}, I, J, K)",
            got=str(tuple(x.shape)),
        )
