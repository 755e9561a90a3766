"""A volume as a small grid of codes, and back: a VQ-VAE made of MONAI's blocks.

The published network (Tudosiu et al., arXiv 2209.03177) is a preset. Unlike MONAI's
`VQVAE`, which drops voxels of sizes that the stride does not divide, sizes are padded and
cropped back, and the codebook is `medpipe.synthesis.quantiser.Codebook`. Labels can be
further channels: one-hot in, logits out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from monai.networks.nets.vqvae import Decoder, Encoder, VQVAEResidualUnit
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from medpipe.errors import InputError, StepError, UsageError
from medpipe.synthesis.memory import enough_memory
from medpipe.synthesis.quantiser import Codebook

__all__ = [
    "PRESETS",
    "Reconstruction",
    "Tokeniser",
    "TokeniserSettings",
    "join_labels",
    "memory_named",
    "split_labels",
]

PRESETS: dict[str, dict[str, Any]] = {
    "synthanatomy": {
        "widths": (128, 128, 128, 256),
        "residual_units": 3,
        "codes": 2048,
        "code_width": 32,
    },
    "small": {"widths": (32, 64, 64), "residual_units": 2, "codes": 256, "code_width": 32},
    "hippocampus": {
        "label_classes": 3,
        "widths": (16, 64),
        "residual_units": 1,
        "codes": 256,
        "code_width": 8,
        "decay_steps": 400,
    },
}
"""Settings by name: the published network; one for two CPU cores; image and labels at 4 x.

The last learns in minutes on one core, since what is half as fine as the voxels has few
channels.
"""


BRANCH = 0.2
"""Size of weights that begin small, as a share of the others."""


@dataclass(frozen=True)
class TokeniserSettings:
    """The network of a tokeniser.

    Parameters
    ----------
    image_channels : int
        Channels of intensities, about 0 to 1.
    label_classes : int
        Classes of a label map, background included, as further channels; 0 for none.
    widths : tuple of int
        Channels of the levels; each halves the resolution.
    residual_units : int
        Residual units of a level.
    codes, code_width : int
        Vectors in the codebook, and how long they are.
    commitment : float
        Weight of the distance between encoder and codebook.
    decay, final_decay, decay_steps, restart_after, seed
        See `medpipe.synthesis.quantiser.Codebook`.
    dropout : float
        Within residual units.
    """

    image_channels: int = 1
    label_classes: int = 0
    widths: tuple[int, ...] = (32, 64, 64)
    residual_units: int = 2
    codes: int = 256
    code_width: int = 32
    commitment: float = 0.25
    decay: float = 0.5
    final_decay: float = 0.99
    decay_steps: int = 1000
    restart_after: float = 50.0
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        if not 1 <= len(self.widths) <= 6 or min(self.widths) < 1:
            raise UsageError("widths are wrong", expected="channels of 1 to 6 levels")
        if self.image_channels < 1 or self.label_classes < 0 or self.label_classes == 1:
            raise UsageError(
                "the channels of a tokeniser are wrong",
                expected="one of intensities or more; no label classes, or two or more",
            )
        if self.residual_units < 0 or self.commitment < 0 or not 0 <= self.dropout < 1:
            raise UsageError(
                "the settings of a tokeniser are wrong",
                expected="residual_units and commitment of 0 or more, dropout from 0 to below 1",
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TokeniserSettings:
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
    def channels(self) -> int:
        """Channels of what goes in and comes out."""
        return self.image_channels + self.label_classes

    @property
    def levels(self) -> int:
        """How often the resolution is halved."""
        return len(self.widths)

    @property
    def stride(self) -> int:
        """Voxels along each edge of the cube that a code stands for."""
        return 2**self.levels


class Reconstruction(NamedTuple):
    """What a tokeniser makes of a batch of volumes.

    Attributes
    ----------
    values : Tensor (B, C, I, J, K)
        Intensities, then logits of the labels.
    commitment : Tensor
        Mean squared distance of the encoder to the codes, times its weight; a scalar.
    codes : Tensor of int64 (B, h, w, d)
    perplexity : Tensor
        Of the codes of the batch, a scalar.
    """

    values: Tensor
    commitment: Tensor
    codes: Tensor
    perplexity: Tensor


class Tokeniser(nn.Module):
    """Volumes to codes and codes to volumes.

    Parameters
    ----------
    settings : TokeniserSettings
    recompute : bool
        Whether training computes what is inside the network twice instead of keeping it:
        less than half the memory for a third more time.
    """

    def __init__(self, settings: TokeniserSettings, *, recompute: bool = False) -> None:
        super().__init__()
        self.settings, self.recompute = settings, recompute
        shared: dict[str, Any] = {
            "spatial_dims": 3,
            "channels": settings.widths,
            "num_res_layers": settings.residual_units,
            "num_res_channels": settings.widths,
            "dropout": settings.dropout,
            "act": "RELU",
        }
        self.encoder = Encoder(
            in_channels=settings.channels, out_channels=settings.code_width,
            downsample_parameters=((2, 4, 1, 1),) * settings.levels, **shared,
        )  # fmt: skip
        self.decoder = Decoder(
            in_channels=settings.code_width, out_channels=settings.channels,
            upsample_parameters=((2, 4, 1, 1, 0),) * settings.levels, output_act=None, **shared,
        )  # fmt: skip
        self.codebook = Codebook(
            settings.codes, settings.code_width, decay=settings.decay,
            final_decay=settings.final_decay, decay_steps=settings.decay_steps,
            restart_after=settings.restart_after, seed=settings.seed,
        )  # fmt: skip
        _keep_variance(self.encoder)
        _keep_variance(self.decoder, last=BRANCH)

    @property
    def stride(self) -> int:
        """Voxels along each edge of the cube that a code stands for."""
        return self.settings.stride

    def grid(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the grid (h, w, d) of the codes of a volume (I, J, K)."""
        h, w, d = (-(-int(n) // self.stride) for n in shape)
        return h, w, d

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (B, h, w, d) int64 of volumes (B, C, I, J, K).

        Raises
        ------
        StepError
            If the volumes have other channels.
        ResourceError
            If they do not fit in memory.
        """
        with memory_named(x.shape[2:]):
            return self.codebook.nearest(self._features(x))

    def decode(self, codes: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Return the volumes (B, C, I, J, K) of codes (B, h, w, d).

        Parameters
        ----------
        codes : Tensor of int64
        shape : ints, optional
            (I, J, K) that was encoded; by default the whole grid times the stride.

        Raises
        ------
        StepError
            If the shape has another grid, or a code is not in the codebook.
        ResourceError
            If they do not fit in memory.
        """
        self._check_codes(codes, shape)
        grid = codes.shape[1:]
        full = tuple(int(n) * self.stride for n in grid)
        with memory_named(full):
            return _cropped(self._blocks(self.decoder, self.codebook.embed(codes)), shape or full)

    def forward(self, x: Tensor) -> Reconstruction:
        """Encode and decode volumes (B, C, I, J, K); in training the codebook follows them."""
        with memory_named(x.shape[2:]):
            made = self.codebook(self._features(x))
            values = _cropped(self._blocks(self.decoder, made.values), x.shape[2:])
        commitment = self.settings.commitment * made.commitment
        return Reconstruction(values, commitment, made.codes, made.perplexity)

    def load_monai(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a `monai.networks.nets.VQVAE` of the same settings.

        Raises
        ------
        InputError
            If they are of another network.
        """
        quantiser = "quantizer.quantizer."
        names = {"embedding.weight": "vectors", "ema_cluster_size": "counts", "ema_w": "sums"}
        own = self.state_dict()
        taken = {n: v for n, v in state.items() if n.split(".")[0] in ("encoder", "decoder")}
        try:
            for theirs, mine in names.items():
                taken[f"codebook.{mine}"] = state[quantiser + theirs]
            taken["codebook.idle"] = torch.zeros_like(own["codebook.idle"])
            taken["codebook.steps"] = torch.ones_like(own["codebook.steps"])
            self.load_state_dict(taken)
        except (KeyError, RuntimeError):
            raise InputError(
                "the weights are not those of such a VQVAE of MONAI",
                expected="its state dict, with the widths, codes and channels of these settings",
            ) from None

    def _features(self, x: Tensor) -> Tensor:
        """Return what is quantised (B, D, h, w, d), of volumes repeated to the stride."""
        if x.ndim != 5 or x.shape[1] != self.settings.channels:
            raise StepError(
                "the tokeniser does not read these volumes",
                expected=f"(batch, {self.settings.channels}, I, J, K)",
                got=f"shape {tuple(x.shape)}",
            )
        missing = [-n % self.stride for n in x.shape[2:]]
        if any(missing):
            padding = [side for n in reversed(missing) for side in (0, n)]
            x = functional.pad(x, padding, mode="replicate")
        return self._blocks(self.encoder, x)

    def _blocks(self, network: Any, x: Tensor) -> Tensor:
        for block in network.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def _check_codes(self, codes: Tensor, shape: Sequence[int] | None) -> None:
        grid = tuple(codes.shape[1:])
        if codes.ndim != 4 or 0 in codes.shape or codes.is_floating_point():
            raise StepError(
                "these are no codes",
                expected="integers (batch, h, w, d)",
                got=f"{tuple(codes.shape)}",
            )
        if shape is not None and self.grid(shape) != grid:
            raise StepError(
                "the grid of the codes is wrong",
                expected=f"{self.grid(shape)} for a volume of {tuple(shape)}",
                got=str(grid),
            )
        least, most = int(codes.min()), int(codes.max())
        if least < 0 or most >= len(self.codebook):
            raise StepError(
                "a code is not in the codebook",
                expected=f"0 to {len(self.codebook) - 1}",
                got=str(least if least < 0 else most),
                hint="decode with the tokeniser that made the codes",
            )


def join_labels(image: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return what a tokeniser of image and labels reads.

    Parameters
    ----------
    image : Tensor (..., C, I, J, K)
    labels : Tensor (..., 1, I, J, K)
        Whole numbers from 0 to `classes` - 1.
    classes : int

    Returns
    -------
    Tensor (..., C + classes, I, J, K)

    Raises
    ------
    InputError
        If a label is none of these, or the two differ in shape.
    """
    if labels.shape[-4] != 1 or labels.shape[-3:] != image.shape[-3:]:
        raise InputError(
            "image and labels do not fit",
            expected=f"labels (1, I, J, K) as large as the image, {tuple(image.shape[-3:])}",
            got=f"shape {tuple(labels.shape)}",
        )
    whole = labels.long()
    known = (whole == labels) & (whole >= 0) & (whole < classes)
    if not bool(known.all()):
        raise InputError(
            "a label is wrong", expected=f"whole numbers from 0 to {classes - 1}",
            hint="map the labels to these, or give the tokeniser more classes",
        )  # fmt: skip
    channels = functional.one_hot(whole.squeeze(-4), classes).movedim(-1, -4)
    return torch.cat([image, channels.to(image.dtype)], -4)


def split_labels(values: Tensor, image_channels: int) -> tuple[Tensor, Tensor | None]:
    """Return the image (..., C, I, J, K) and the labels (..., 1, I, J, K) uint8 of volumes.

    The labels are those of the highest channel, None where there are no such channels.
    """
    image, rest = values.split([image_channels, values.shape[-4] - image_channels], -4)
    if rest.shape[-4] == 0:
        return image, None
    return image, rest.argmax(-4, keepdim=True).to(torch.uint8)


def _keep_variance(network: Any, last: float = 1.0) -> None:
    """Draw weights so that what differs between volumes survives the way through a network.

    With the usual weights of convolutions every layer shrinks its input, and there is no
    normalisation to undo it: what reaches the codebook is small, and most of it comes from the
    padding. Here they follow He et al. (arXiv 1502.01852); residual units begin as little
    more than what they are added to and the last layer of a decoder begins small, in the
    manner of Zhang et al. (arXiv 1901.09321).
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]
    for layer in layers:
        inputs = layer.in_channels * math.prod(layer.kernel_size)
        if isinstance(layer, nn.ConvTranspose3d):
            inputs //= math.prod(layer.stride)  # that reach a voxel
        nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / max(1, inputs)))
        nn.init.zeros_(cast(Tensor, layer.bias))
    with torch.no_grad():
        for unit in network.blocks:
            if isinstance(unit, VQVAEResidualUnit):
                unit.conv2.conv.weight.mul_(BRANCH)
        layers[-1].weight.mul_(last)


def _cropped(values: Tensor, shape: Sequence[int]) -> Tensor:
    i, j, k = shape
    return values[..., :i, :j, :k]


def memory_named(shape: Sequence[int]) -> AbstractContextManager[None]:
    """Say in one line that a volume does not fit in memory."""
    return enough_memory(
        "take fewer volumes at a time, patches, a coarser spacing or recompute",
        what="not enough memory for the tokeniser",
        got=f"a volume of {' x '.join(str(int(n)) for n in shape)} voxels",
    )
