"""A small segmenter that measures what was generated, and whose features compare it.

It is trained with real pairs of image and labels alone and never sees a generator: what it
finds in a synthetic image does not depend on the labels that were generated with the image.
How well it does on real cases that it has not seen is the ceiling of what it can say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from monai.losses.dice import DiceLoss
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets.unet import UNet
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from medpipe.errors import InputError, MedpipeError, UsageError
from medpipe.models import load_weights, pack_weights, unpack_weights
from medpipe.synthesis.model_file import plain_json
from medpipe.synthesis.tokeniser import memory_named
from medpipe.synthesis.tokeniser_samples import TokeniserSamples, check_intensities, shared_out
from medpipe.train import LoopSettings, train
from medpipe.train.settings import Tell
from medpipe.types import Json

__all__ = ["Segmenter", "SegmenterModel", "SegmenterSettings", "train_segmenter"]

KIND = "synthesis-segmenter"
GROUPS = 4
"""Groups of channels that are normalised together."""
BATCH = 8
"""Volumes that are looked at together where a set is measured."""


@dataclass(frozen=True)
class SegmenterSettings:
    """The network of a segmenter.

    Parameters
    ----------
    classes : int
        Labels, background included.
    image_channels : int
        Channels of intensities, about 0 to 1.
    widths : tuple of int
        Channels of the levels, multiples of 4; each halves the resolution of the one before.
    residual_units : int
        Of each level.
    dropout : float
    """

    classes: int = 3
    image_channels: int = 1
    widths: tuple[int, ...] = (16, 32, 64)
    residual_units: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(int(w) for w in self.widths))
        if self.classes < 2 or self.image_channels < 1:
            raise UsageError(
                "a segmenter has nothing to tell apart",
                expected="2 classes or more (background is one), 1 image channel or more",
            )
        if not 2 <= len(self.widths) <= 6 or any(w < 1 or w % GROUPS for w in self.widths):
            raise UsageError("widths are wrong", expected=f"2 to 6 multiples of {GROUPS}")
        if self.residual_units < 0 or not 0 <= self.dropout < 1:
            raise UsageError(
                "the settings of a segmenter are wrong",
                expected="residual_units of 0 or more, dropout from 0 to below 1",
            )

    @property
    def stride(self) -> int:
        """Voxels along each edge that become one on the coarsest level."""
        return int(2 ** (len(self.widths) - 1))


class Segmenter(nn.Module):
    """A U-Net of MONAI, for volumes of any size.

    Channels are normalised in groups: instances would take out of the features what tells
    the size of a structure, and batches depend on what else is in them.

    References
    ----------
    Çiçek et al. 2016, doi:10.1007/978-3-319-46723-8_49; Kerfoot et al. 2019,
    doi:10.1007/978-3-030-12029-0_40.
    """

    def __init__(self, settings: SegmenterSettings) -> None:
        super().__init__()
        self.settings = settings
        # a head of its own: classes are too few channels to be normalised in groups
        self.unet = UNet(
            3, settings.image_channels, settings.widths[0], settings.widths,
            [2] * (len(settings.widths) - 1), num_res_units=settings.residual_units,
            norm=("group", {"num_groups": GROUPS}), dropout=settings.dropout,
        )  # fmt: skip
        self.head = nn.Sequential(nn.PReLU(), nn.Conv3d(settings.widths[0], settings.classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes, I, J, K) of volumes (B, C, I, J, K)."""
        padded = self._padded(x)
        i, j, k = x.shape[2:]
        return self.head(self.unet(padded))[:, :, :i, :j, :k]

    def embed(self, x: Tensor) -> Tensor:
        """Return features (B, 2 F): mean and standard deviation of the coarsest maps."""
        x = self._padded(x)
        level: Any = self.unet.model
        while isinstance(level, nn.Sequential) and isinstance(level[1], SkipConnection):
            x, level = level[0](x), level[1].submodule
        maps = level(x).flatten(2)
        return torch.cat([maps.mean(2), maps.var(2, correction=0).clamp(min=0).sqrt()], 1)

    def _padded(self, x: Tensor) -> Tensor:
        s = self.settings
        if x.ndim != 5 or x.shape[1] != s.image_channels or 0 in x.shape:
            raise InputError(
                "the volumes have the wrong shape",
                expected=f"(B, {s.image_channels}, I, J, K)",
                got=f"shape {tuple(x.shape)}",
            )
        pad = [(-n) % s.stride for n in reversed(x.shape[2:])]
        if not any(pad):
            return x
        return functional.pad(x, [v for p in pad for v in (0, p)], mode="replicate")


@dataclass(frozen=True, eq=False)
class SegmenterModel:
    """A trained segmenter and what is known of it.

    Attributes
    ----------
    network : Segmenter
    history : list of dict
        A row for each validation (see `medpipe.train.TrainResult`).
    best_iteration, iterations : int
    facts : dict of JSON values
        ``trained`` and ``validated`` cases; ``best_dice`` of the validation.
    """

    network: Segmenter
    history: list[dict[str, Json]]
    best_iteration: int
    iterations: int
    facts: dict[str, Json] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the features are called in reports: network, training cases and digest."""
        widths = "-".join(str(w) for w in self.network.settings.widths)
        trained = self.facts.get("trained", "?")
        return f"segmenter {widths}, trained with {trained} real cases, {self.digest[:12]}"

    @property
    def digest(self) -> str:
        """SHA-256 of weights and header."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def features(self, images: Tensor, batch: int = BATCH) -> Tensor:
        """Return features (n, F) of volumes (n, I, J, K) or (n, C, I, J, K).

        Raises
        ------
        InputError
            If the volumes do not fit the network or were not normalised.
        """
        return self._asked(images, batch, labels=False)

    def labels(self, images: Tensor, batch: int = BATCH) -> Tensor:
        """Return labels int64 (n, I, J, K) of volumes (n, I, J, K) or (n, C, I, J, K).

        Raises
        ------
        InputError
            If the volumes do not fit the network or were not normalised.
        """
        return self._asked(images, batch, labels=True)

    def _asked(self, images: Tensor, batch: int, *, labels: bool) -> Tensor:
        volumes = images[:, None] if images.ndim == 4 else images
        if not len(volumes):
            raise InputError("there are no volumes to look at")
        where = next(self.network.parameters()).device
        was, out = self.network.training, []
        self.network.eval()
        with torch.no_grad(), memory_named(tuple(volumes.shape[2:])):
            for start in range(0, len(volumes), batch):
                part = volumes[start : start + batch].to(where, torch.float32)
                check_intensities(part)
                found = self.network(part).argmax(1) if labels else self.network.embed(part)
                out.append(found.to(images.device))
        self.network.train(was)
        return torch.cat(out)

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file; its header is JSON."""
        metadata: Any = {
            "model": KIND,
            "settings": asdict(self.network.settings),
            "history": self.history,
            "best_iteration": self.best_iteration,
            "iterations": self.iterations,
            "facts": self.facts,
        }
        return pack_weights(self.network.state_dict(), plain_json(metadata))

    @classmethod
    def read(cls, name_or_path: str | Path) -> SegmenterModel:
        """Return what `to_bytes` wrote, on the CPU.

        Raises
        ------
        UsageError
            If there is no such model or file.
        InputError
            If it is something else.
        """
        return cls._made(*load_weights(name_or_path), where=Path(name_or_path).name)

    @classmethod
    def from_bytes(cls, content: bytes) -> SegmenterModel:
        """Return what `to_bytes` returned.

        Raises
        ------
        InputError
            If it is something else.
        """
        return cls._made(*unpack_weights(content), where=None)

    @classmethod
    def _made(
        cls, tensors: dict[str, Tensor], header: dict[str, Json], where: str | None
    ) -> SegmenterModel:
        said = cast(dict[str, Any], dict(header))
        try:
            if said["model"] != KIND:
                raise ValueError
            network = Segmenter(SegmenterSettings(**said["settings"]))
            network.load_state_dict(tensors)
            rest = (said[k] for k in ("history", "best_iteration", "iterations", "facts"))
            return cls(network.eval(), *rest)
        except (KeyError, TypeError, ValueError, RuntimeError, MedpipeError):
            raise InputError(
                "the model is no segmenter of synthesis", where=where,
                hint="use a file written by train_segmenter",
            ) from None  # fmt: skip


def train_segmenter(
    samples: Sequence[Any], settings: SegmenterSettings, loop: LoopSettings | None = None, *,
    validation: Sequence[Any] | None = None, validation_share: float = 0.1,
    shift_voxels: int = 2, gain: float = 0.1, noise: float = 0.02,
    device: str | torch.device = "auto", checkpoint: str | Path | None = None,
    progress: Tell | None = None,
) -> SegmenterModel:  # fmt: skip
    """Train a segmenter with real pairs.

    The loss is the sum of the unweighted cross entropy and the Dice loss: weights of rare
    classes make volumes too large.

    Parameters
    ----------
    samples : sequence of pairs
        Image (C, I, J, K), about 0 to 1, and labels (1, I, J, K), all of one size.
    settings : SegmenterSettings
    loop : LoopSettings, optional
        The weights with the largest Dice of the validation are kept, whatever it says of
        ``higher_is_better``.
    validation : sequence of pairs, optional
        Real cases to choose the weights by; by default a share of the samples.
    validation_share : float
        0 keeps the last weights with the smallest loss.
    shift_voxels : int
        Samples are moved by up to this along each axis.
    gain, noise : float
        Intensities are multiplied by up to 1 ± `gain`; noise of up to this standard
        deviation is added.
    device, checkpoint, progress
        See `medpipe.train.train`.

    Returns
    -------
    SegmenterModel

    Raises
    ------
    UsageError
        If there are no samples, or the checkpoint is of another run.
    InputError
        If a sample cannot be used; its number is named.
    ResourceError, StepError, StoreError
        If a batch does not fit in memory; see `medpipe.train.train`.
    """
    loop = loop or LoopSettings()
    trains, validates = shared_out(samples, validation, validation_share, loop.seed)
    pairs = _Pairs(trains, settings, shift=shift_voxels, gain=gain, noise=noise)
    measured = _Pairs(validates, settings) if len(validates) else None
    size = tuple(pairs[0][0].shape[1:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(loop.seed)
        network = Segmenter(settings)
    loop = LoopSettings(**(asdict(loop) | {"higher_is_better": measured is not None}))
    bound = asdict(settings) | {"shift": shift_voxels, "gain": gain, "noise": noise}
    with memory_named(size):
        result = train(
            network, _Overlap(), pairs, loop, validation=measured,
            metric=None if measured is None else _mean_dice,
            device=device, checkpoint=checkpoint, progress=progress,
            bound_to=plain_json({**bound, "samples": len(trains)}),
        )  # fmt: skip
    facts: dict[str, Json] = {"trained": len(trains), "validated": len(validates)}
    if measured is not None:
        facts["best_dice"] = result.best_metric
    return SegmenterModel(
        network.eval(), result.history, result.best_iteration, result.iterations, facts
    )


class _Pairs(Dataset[Any]):
    """Images, and labels as one channel for each class."""

    def __init__(
        self, samples: Sequence[Any], settings: SegmenterSettings, *, shift: int = 0,
        gain: float = 0.0, noise: float = 0.0,
    ) -> None:  # fmt: skip
        self.channels, self.noise = settings.image_channels, noise
        # the loop seeds what is called transform for every sample
        self.transform = TokeniserSamples(
            samples, settings.image_channels, settings.classes, shift=shift, gain=gain
        )

    def __len__(self) -> int:
        return len(self.transform)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, _ = self.transform[index]
        image, labels = x[: self.channels], x[self.channels :]
        if self.noise:
            spread = self.noise * float(self.transform.R.uniform())
            field = self.transform.R.standard_normal(tuple(image.shape))
            image = image + spread * torch.from_numpy(field).to(image)
        return image, labels


class _Overlap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(softmax=True, include_background=False, smooth_nr=1.0, smooth_dr=1.0)

    def forward(self, said: Tensor, wanted: Tensor) -> Tensor:
        said = said.float()
        return functional.cross_entropy(said, wanted.argmax(1)) + self.dice(said, wanted)


def _mean_dice(said: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean Dice of all labels but the background; 1 where a label is in neither.

    Parameters
    ----------
    said, wanted : Tensor, shape (B, classes, I, J, K)
        Logits, and one channel for each class.
    """
    found = functional.one_hot(said.argmax(1), said.shape[1]).movedim(-1, 1)[:, 1:].float()
    truth = wanted[:, 1:].float()
    shared = (found * truth).sum((2, 3, 4))
    both = found.sum((2, 3, 4)) + truth.sum((2, 3, 4))
    return torch.where(both > 0, 2 * shared / both.clamp(min=1), 1.0).mean()
