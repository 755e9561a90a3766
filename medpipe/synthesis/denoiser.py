"""The network that denoises latents, told of the patient by conditions.

MONAI's `DiffusionModelUNet` inside. A condition is a number between about -1 and 1, or
absent; what is absent has an embedding of its own, so that one network is conditional and
unconditional, which guidance needs (Ho and Salimans, arXiv 2207.12598).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional

from medpipe.errors import UsageError
from medpipe.synthesis.autoencoder import LatentAutoencoder
from medpipe.synthesis.cubes import folded, unfolded
from medpipe.synthesis.model_file import network_bytes, read_network
from medpipe.types import Json

__all__ = ["ConditionTokens", "Denoiser", "DenoiserSettings", "expected_latents"]

MODEL = "latent-denoiser"
FREQUENCIES = 4
"""Of the waves that a condition is spread over."""


@dataclass(frozen=True)
class DenoiserSettings:
    """The shape of a denoiser and what it predicts.

    Parameters
    ----------
    latent_channels : int
    channels : tuple of int
        From the full resolution of the latent down; each but the first halves it.
    residual_blocks : int
        At each resolution.
    attention : tuple of bool
        Which resolutions have attention.
    head_channels : int
        Channels of a head of attention.
    groups : int
        Of group normalisation; divides every number of channels, and is smaller: a group of
        one channel would take out what time and conditions add to it.
    conditions : int
        How many numbers the denoiser is told.
    conditioning : {"cross-attention", "embedding"}
        How: as tokens that features attend to, or added to the embedding of time.
    condition_width : int
        Of a token.
    objective : {"flow", "velocity", "noise"}
        What it predicts: the straight way from noise to latent (rectified flow, Liu et al.,
        arXiv 2209.03003), or of a diffusion the velocity (Salimans and Ho, arXiv 2202.00512)
        or the noise (Ho et al., arXiv 2006.11239).
    grid : tuple of int, optional
        Spatial shape of the latents, where each place has a mean and a spread of its own
        (anatomy at the same place in every volume): the network then works with what is left
        when these, and what is linear in the conditions, are taken out. It need not learn
        where it is, nor what regression knows.
    patch_cells : int
        Cells along each edge of the cubes that the network sees as one, in more channels.
    directions : int
        At most so many principal directions are kept of what is left of the latents; needs a
        grid. With few patients they know better than a network what goes together far apart.
    begin : float
        Share of the noise, above 0 to 1, with which drawing begins: below 1 a flow begins
        with a latent from the Gaussian of the directions, to which so much noise was added
        (Meng et al., arXiv 2108.01073, begin with a picture).
    """

    latent_channels: int = 3
    channels: tuple[int, ...] = (32, 64, 64)
    residual_blocks: int = 1
    attention: tuple[bool, ...] = (False, True, True)
    head_channels: int = 16
    groups: int = 16
    conditions: int = 0
    conditioning: Literal["cross-attention", "embedding"] = "cross-attention"
    condition_width: int = 64
    objective: Literal["flow", "velocity", "noise"] = "flow"
    grid: tuple[int, ...] | None = None
    patch_cells: int = 1
    directions: int = 0
    begin: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(int(c) for c in self.channels))
        object.__setattr__(self, "attention", tuple(bool(a) for a in self.attention))
        if not self.channels or any(
            c <= self.groups or c % self.groups or c % self.head_channels for c in self.channels
        ):
            raise UsageError(
                "channels is wrong",
                expected=f"multiples of groups ({self.groups}), larger than that, and of "
                f"head_channels ({self.head_channels})",
                got=str(list(self.channels)),
            )
        if len(self.attention) != len(self.channels):
            raise UsageError("attention is wrong", expected="a mark for each of channels")
        if self.conditioning not in ("cross-attention", "embedding"):
            raise UsageError("unknown conditioning", expected="cross-attention or embedding")
        if self.objective not in ("flow", "velocity", "noise"):
            raise UsageError("unknown objective", expected="flow, velocity or noise")
        if min(self.latent_channels, self.residual_blocks, self.condition_width) < 1:
            raise UsageError("the denoiser has no channels or blocks", expected="1 or more")
        if self.grid is not None:
            object.__setattr__(self, "grid", tuple(int(n) for n in self.grid))
            if len(self.grid) != 3 or min(self.grid) < 1:
                raise UsageError("grid is wrong", expected="three extents, or none")
        if self.conditions < 0 or self.patch_cells < 1:
            raise UsageError(
                "conditions or patch_cells is wrong",
                expected="0 conditions or more, patches of 1 cell or more",
            )
        if self.directions < 0 or (self.directions and self.grid is None):
            raise UsageError("directions is wrong", expected="0, or more with a grid")
        if not 0 < self.begin <= 1 or (
            self.begin < 1 and not (self.directions and self.objective == "flow")
        ):
            raise UsageError(
                "begin is wrong", expected="1, or above 0 for a flow with directions",
                got=f"{self.begin:g}",
            )  # fmt: skip

    @property
    def stride(self) -> int:
        """Cells along an axis for one of the coarsest resolution."""
        return self.patch_cells * 2 ** (len(self.channels) - 1)


class ConditionTokens(nn.Module):
    """Conditions as tokens: one for each, whether it is known or not.

    Parameters
    ----------
    conditions, width : int
    """

    def __init__(self, conditions: int, width: int) -> None:
        super().__init__()
        self.name = nn.Parameter(torch.randn(conditions, width))
        self.absent = nn.Parameter(torch.randn(conditions, width))
        self.value = nn.Sequential(
            nn.Linear(1 + 2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, told: Tensor) -> Tensor:
        """Return tokens (B, conditions, width) of values and marks (B, conditions, 2)."""
        value, known = told[..., 0], told[..., 1:] > 0.5
        powers = torch.arange(FREQUENCIES, device=told.device, dtype=told.dtype)
        waves = value[..., None] * (math.pi / 2) * 2.0**powers
        spread = torch.cat([value[..., None], waves.sin(), waves.cos()], -1)
        return torch.where(known, self.name + self.value(spread), self.absent)


class _ConditionSum(nn.Module):
    """Conditions as an addition to the embedding of time."""

    def __init__(self, conditions: int, width: int, out: int) -> None:
        super().__init__()
        self.tokens = ConditionTokens(conditions, width)
        self.out = nn.Linear(conditions * width, out)

    def forward(self, told: Tensor) -> Tensor:
        """Return (B, out) of values and marks (B, conditions, 2)."""
        return self.out(self.tokens(told).flatten(1))


def expected_latents(center: Tensor, slopes: Tensor, values: Tensor, present: Tensor) -> Tensor:
    """Return what `Denoiser.expected` returns, from its tensors."""
    known = torch.where(present, values, torch.zeros_like(values)).to(center)
    return center + torch.tensordot(known, slopes, 1)


class Denoiser(nn.Module):
    """Predicts from a noisy latent, its time and conditions what the objective says.

    Parameters
    ----------
    settings : DenoiserSettings
        With a grid, latents go in and come out as ``(latent - expected(...)) / spread``.

    Attributes
    ----------
    autoencoder : str
        `LatentAutoencoder.digest` of what made the latents it was trained on; empty if that
        is not known.
    facts : dict
        JSON about the training.
    center, spread : Tensor (latent_channels, *grid)
        Mean and standard deviation of each number of a latent, where settings have a grid.
    slopes : Tensor (conditions, latent_channels, *grid)
        By how much the mean changes with each condition.
    directions : Tensor (directions, latent_channels, *grid)
        Principal directions of what is left, as long as its standard deviation along them.
    """

    center: Tensor
    spread: Tensor
    slopes: Tensor
    directions: Tensor

    def __init__(self, settings: DenoiserSettings) -> None:
        super().__init__()
        self.settings = settings
        self.autoencoder = ""
        self.facts: dict[str, Json] = {}
        s = settings
        crossed = s.conditions > 0 and s.conditioning == "cross-attention"
        self.tokens = ConditionTokens(s.conditions, s.condition_width) if crossed else None
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=s.latent_channels * s.patch_cells**3,
            out_channels=s.latent_channels * s.patch_cells**3,
            num_res_blocks=s.residual_blocks,
            channels=s.channels,
            attention_levels=s.attention,
            norm_num_groups=s.groups,
            num_head_channels=s.head_channels,
            with_conditioning=crossed,
            cross_attention_dim=s.condition_width if crossed else None,
            num_class_embeds=1 if s.conditions > 0 and not crossed else None,
            use_flash_attention=True,
        )
        if s.conditions > 0 and not crossed:
            # what MONAI adds to the embedding of time; it hands on what it is given as classes
            self.unet.class_embedding = _ConditionSum(
                s.conditions, s.condition_width, 4 * s.channels[0]
            )

        if s.grid is not None:
            shape = (s.latent_channels, *s.grid)
            self.register_buffer("center", torch.zeros(shape))
            self.register_buffer("spread", torch.ones(shape))
            self.register_buffer("slopes", torch.zeros(s.conditions, *shape))
            if s.directions:
                self.register_buffer("directions", torch.zeros(s.directions, *shape))

    @property
    def stride(self) -> int:
        """Cells along an axis for one of the coarsest resolution."""
        return self.settings.stride

    def expected(self, values: Tensor, present: Tensor) -> Tensor:
        """Return the mean of latents (B, C, h, w, d) with conditions, where there is a grid.

        Parameters
        ----------
        values, present : Tensor (B, conditions)
            What is not present does not count.
        """
        return expected_latents(self.center, self.slopes, values, present)

    def forward(
        self, latent: Tensor, time: Tensor, values: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the prediction.

        Parameters
        ----------
        latent : Tensor (B, latent_channels, h, w, d)
            Of any size: the network sees zeros up to a multiple of its stride.
        time : Tensor (B,)
            From 0 (a latent) to 1000 (noise).
        values : Tensor (B, conditions), optional
        present : bool Tensor (B, conditions), optional
            By default all values are known, or none where there are no values.

        Raises
        ------
        UsageError
            If the latent or the conditions are not those of this denoiser.
        """
        s = self.settings
        if latent.ndim != 5 or latent.shape[1] != s.latent_channels:
            raise UsageError(
                "the latent has the wrong shape",
                expected=f"(batch, {s.latent_channels}, h, w, d)",
                got=str(tuple(latent.shape)),
            )
        told = self._told(latent, values, present)
        ends = [(-n) % self.stride for n in reversed(latent.shape[2:])]
        padded = functional.pad(latent, [p for end in ends for p in (0, end)])
        context = None if self.tokens is None else self.tokens(told)
        classes = told if s.conditions > 0 and self.tokens is None else None
        cubes = folded(padded, s.patch_cells)
        out = self.unet(cubes, time, context=context, class_labels=classes)
        out = unfolded(out, s.patch_cells)
        for n, length in enumerate(latent.shape[2:]):
            out = out.narrow(n + 2, 0, length)
        return out

    def _told(self, latent: Tensor, values: Tensor | None, present: Tensor | None) -> Tensor:
        """Return values and marks (B, conditions, 2); 0 where a value is absent."""
        shape = (len(latent), self.settings.conditions)
        if values is None:
            return latent.new_zeros(*shape, 2)
        if values.shape != shape or (present is not None and present.shape != shape):
            raise UsageError(
                "the conditions are not those of the denoiser", expected=str(shape),
                got=str(tuple(values.shape)),
            )  # fmt: skip
        known = torch.ones_like(values, dtype=torch.bool) if present is None else present
        clean = torch.where(known, values, torch.zeros_like(values))
        return torch.stack([clean, known.to(values.dtype)], -1).to(latent)

    def check_autoencoder(self, autoencoder: LatentAutoencoder) -> None:
        """Check that latents of this denoiser can be decoded by `autoencoder`.

        Raises
        ------
        UsageError
            If it was trained on latents of another one.
        """
        if self.autoencoder and self.autoencoder != autoencoder.digest():
            raise UsageError(
                "the denoiser was trained on latents of another autoencoder",
                expected=self.autoencoder,
                got=autoencoder.digest(),
                hint="give the two that were trained one after the other",
            )

    def to_bytes(self, *, half: bool = False, autoencoder: str | None = None) -> bytes:
        """Return weights (in half precision), settings and facts as a safetensors file.

        `autoencoder` replaces the digest of the one that it belongs to.
        """
        belongs = self.autoencoder if autoencoder is None else autoencoder
        return network_bytes(
            self, MODEL, self.settings, half=half, rounded=("directions",), autoencoder=belongs,
            facts=self.facts,
        )  # fmt: skip

    @classmethod
    def read(cls, name_or_path: str | Path) -> Denoiser:
        """Return the denoiser of a file that holds what `to_bytes` made, on the CPU.

        Raises
        ------
        UsageError
            If there is no such file.
        InputError
            If it holds something else.
        """
        return cls._from(name_or_path)

    @classmethod
    def from_bytes(cls, content: bytes) -> Denoiser:
        """Return what `to_bytes` returned; see `read`."""
        return cls._from(content)

    @classmethod
    def _from(cls, source: str | Path | bytes) -> Denoiser:
        def make(said: dict[str, Any]) -> Denoiser:
            made = cls(DenoiserSettings(**said["settings"]))
            made.autoencoder = str(said["autoencoder"])
            made.facts = dict(said["facts"])
            return made

        return read_network(source, MODEL, "a denoiser of latents", make)
