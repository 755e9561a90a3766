"""A small network whose features compare volumes, trained on the volumes themselves.

Nothing is downloaded: it learns to name the labels where there are any, else to fill in
parts of the image that were taken out. Random features are no substitute: interpolation
blur outweighs anatomy in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from monai.transforms.transform import Randomizable
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from medpipe.errors import InputError, UsageError
from medpipe.models import load_weights, pack_weights
from medpipe.synthesis.model_file import plain_json
from medpipe.synthesis.tokeniser import join_labels
from medpipe.train import LoopSettings, train
from medpipe.train.settings import Tell

__all__ = ["FeatureNetwork", "read_features", "train_features"]

KIND = "features"
HIDDEN = 0.5
"""Share of the blocks of an image that are taken out."""
BLOCK = 4
"""Voxels along each edge of such a block."""


class FeatureNetwork(nn.Module):
    """Feature maps of volumes at falling resolution.

    Parameters
    ----------
    image_channels : int
    widths : tuple of int
        Channels of the levels; each halves the resolution.
    """

    def __init__(self, image_channels: int = 1, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.image_channels, self.widths = image_channels, tuple(int(w) for w in widths)
        levels, before = [], image_channels
        for width in self.widths:
            levels.append(
                nn.Sequential(
                    nn.Conv3d(before, width, 3, padding=1),
                    nn.ReLU(),
                    nn.Conv3d(width, width, 3, stride=2, padding=1),
                    nn.ReLU(),
                )
            )
            before = width
        self.levels = nn.ModuleList(levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return maps (B, F, ...) of volumes (B, C, I, J, K), a list from fine to coarse."""
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps

    def embed(self, x: Tensor) -> Tensor:
        """Return one vector (B, F) for each volume: the mean of the coarsest map."""
        return self(x)[-1].mean((2, 3, 4))

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file."""
        metadata: Any = {
            "model": KIND,
            "image_channels": self.image_channels,
            "widths": list(self.widths),
        }
        return pack_weights(self.state_dict(), plain_json(metadata))


def read_features(name_or_path: str | Path) -> FeatureNetwork:
    """Return what `FeatureNetwork.to_bytes` wrote, on the CPU, ready to be asked.

    Raises
    ------
    UsageError
        If there is no such model or file.
    InputError
        If it is something else.
    """
    tensors, header = load_weights(name_or_path)
    said = cast(dict[str, Any], header)
    try:
        if said["model"] != KIND:
            raise ValueError
        network = FeatureNetwork(int(said["image_channels"]), said["widths"])
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise InputError(
            "the model is not one of features",
            where=Path(name_or_path).name,
            hint="use a file written by train_features",
        ) from None
    return network.eval()


def train_features(
    samples: Sequence[Any], *, label_classes: int = 0, widths: Sequence[int] = (16, 32, 64),
    settings: LoopSettings | None = None, device: str | torch.device = "auto",
    checkpoint: str | Path | None = None, progress: Tell | None = None,
) -> FeatureNetwork:  # fmt: skip
    """Train a network of features on volumes of one size.

    Parameters
    ----------
    samples : sequence of Tensor (C, I, J, K), or of pairs with labels (1, I, J, K)
        Intensities about 0 to 1.
    label_classes : int
        Classes of the labels that it learns to name; 0 fills in parts of the image.
    widths : sequence of int
        See `FeatureNetwork`.
    settings : LoopSettings, optional
    device, checkpoint, progress
        See `medpipe.train.train`.

    Raises
    ------
    UsageError
        If there are no samples, or no labels where classes are given.
    """
    data = _Puzzles(samples, label_classes)
    settings = settings or LoopSettings()
    channels = int(data.pair(0)[0].shape[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = _Reader(FeatureNetwork(channels, widths), label_classes or channels)
    loss = _named if label_classes else _filled
    train(
        network, loss, data, settings, device=device, checkpoint=checkpoint, progress=progress,
        bound_to={"label_classes": label_classes, "widths": list(widths), "samples": len(data)},
    )  # fmt: skip
    return network.features.eval()


class _Reader(nn.Module):
    """Features, and a plain way up from each level to what they are trained to say."""

    def __init__(self, features: FeatureNetwork, outputs: int) -> None:
        super().__init__()
        self.features = features
        self.heads = nn.ModuleList(nn.Conv3d(width, outputs, 1) for width in features.widths)

    def forward(self, x: Tensor) -> Tensor:
        size: Any = x.shape[2:]
        said = [head(m) for head, m in zip(self.heads, self.features(x), strict=True)]
        up = [functional.interpolate(s, size, mode="trilinear", align_corners=False) for s in said]
        return torch.stack(up).sum(0)


class _Puzzles(Dataset[Any], Randomizable):
    """Images with labels, or images with blocks taken out and what they were."""

    def __init__(self, samples: Sequence[Any], label_classes: int) -> None:
        self.samples, self.label_classes = samples, label_classes

    def __len__(self) -> int:
        return len(self.samples)

    def pair(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Return image and labels of a sample."""
        if not len(self.samples):
            raise UsageError("nothing to train with", expected="at least one sample")
        sample = self.samples[index]
        image, labels = sample if isinstance(sample, tuple | list) else (sample, None)
        known = None if labels is None else torch.as_tensor(labels)
        return torch.as_tensor(image).float(), known

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.pair(index)
        if self.label_classes:
            if labels is None:
                raise UsageError("there are no labels", expected="pairs of image and labels")
            joined = join_labels(image, labels, self.label_classes)
            return image, joined[image.shape[0] :]
        coarse = [-(-n // BLOCK) for n in image.shape[1:]]
        kept = torch.from_numpy(self.R.random(coarse) >= HIDDEN)
        for axis, size in enumerate(image.shape[1:]):
            kept = kept.repeat_interleave(BLOCK, axis).narrow(axis, 0, size)
        return torch.where(kept, image, image.mean()), image


def _named(said: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(said.float(), wanted.argmax(1))


def _filled(made: Tensor, wanted: Tensor) -> Tensor:
    return functional.mse_loss(made.float(), wanted)
