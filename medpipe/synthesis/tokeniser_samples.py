"""Volumes that a tokeniser is trained with: checked, cut, moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.transforms.transform import Randomizable
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.tokeniser import join_labels

__all__ = ["Some", "TokeniserSamples", "check_intensities", "shared_out"]

LARGEST = 10.0
"""Intensities beyond this were not normalised."""


class TokeniserSamples(Dataset[Any], Randomizable):
    """Pairs of the same tensor (C, I, J, K): what goes in and what should come out.

    Parameters
    ----------
    samples : sequence of Tensor (C, I, J, K), or of pairs with labels (1, I, J, K)
    image_channels, label_classes : int
        See `medpipe.synthesis.TokeniserSettings`.
    patch : ints, optional
        Cut a box of this size out of each, anywhere; whole volumes are of one size.
    middle : bool
        Cut it out of the middle.
    shift : int
        Voxels by which a whole volume is moved at most along each axis.
    gain : float
        Intensities are multiplied by up to 1 ± this.
    """

    def __init__(
        self, samples: Sequence[Any], image_channels: int, label_classes: int,
        *, patch: Sequence[int] | None = None, middle: bool = False, shift: int = 0,
        gain: float = 0.0,
    ) -> None:  # fmt: skip
        self.samples = samples
        self.image_channels, self.label_classes = image_channels, label_classes
        self.patch, self.middle, self.shift, self.gain = patch, middle, shift, gain
        self.size: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        whole = self.volume(index)
        try:
            x = self._moved(whole) if self.patch is None else self._cut(whole)
        except InputError as error:
            raise error.at(self._name(index)) from None
        if self.gain:
            factor = 1 + self.gain * float(self.R.uniform(-1, 1))
            x = torch.cat([x[: self.image_channels] * factor, x[self.image_channels :]])
        return x, x

    def volume(self, index: int) -> Tensor:
        """Return a sample as the tokeniser reads it, whole.

        Raises
        ------
        InputError
            If it does not fit the settings or holds what is no intensity.
        """
        try:
            return self._checked(self.samples[index])
        except InputError as error:
            raise error.at(self._name(index)) from None

    def _name(self, index: int) -> str:
        order = self.samples.order if isinstance(self.samples, Some) else range(len(self))
        return f"sample {order[index]}"

    def _checked(self, sample: Any) -> Tensor:
        image, labels = sample if isinstance(sample, tuple | list) else (sample, None)
        x = torch.as_tensor(image).float()
        if x.ndim != 4 or x.shape[0] != self.image_channels or 0 in x.shape:
            raise InputError(
                "the volume has the wrong shape",
                expected=f"({self.image_channels}, I, J, K)",
                got=f"shape {tuple(x.shape)}",
            )
        check_intensities(x)
        if not self.label_classes:
            return x
        if labels is None:
            raise InputError(
                "the labels are missing",
                expected=f"a pair of a volume and its labels, of {self.label_classes} classes",
            )
        known = torch.as_tensor(labels)
        return join_labels(x, known[None] if known.ndim == 3 else known, self.label_classes)

    def _moved(self, x: Tensor) -> Tensor:
        """Return the volume moved, its edge repeated; all are of the size of the first."""
        size = tuple(x.shape[1:])
        self.size = self.size or size
        if size != self.size:
            raise InputError(
                "the volumes are not of one size",
                expected=str(self.size),
                got=str(size),
                hint="use crop_or_pad, or train with patches (patch_voxels)",
            )
        if not self.shift:
            return x
        s = self.shift
        starts = [int(self.R.randint(2 * s + 1)) for _ in size]
        return _box(functional.pad(x[None], (s,) * 6, mode="replicate")[0], starts, size)

    def _cut(self, x: Tensor) -> Tensor:
        size = cast(Sequence[int], self.patch)
        spare = [have - want for have, want in zip(x.shape[1:], size, strict=True)]
        if min(spare) < 0:
            raise InputError(
                "the volume is smaller than a patch", expected=f"{tuple(size)} or more",
                got=str(tuple(x.shape[1:])),
            )  # fmt: skip
        if self.middle:
            return _box(x, [n // 2 for n in spare], size)
        return _box(x, [int(self.R.randint(n + 1)) for n in spare], size)


def check_intensities(image: Tensor) -> None:
    """Raise InputError unless an image is finite and about 0 to 1."""
    most = float(image.abs().max())
    if most <= LARGEST:
        return
    raise InputError(
        "the intensities are not finite" if not np.isfinite(most) else
        "the intensities were not brought to a common scale",
        expected="about 0 to 1", got=None if not np.isfinite(most) else f"up to {most:.4g}",
        hint="normalize_intensity with percentiles does it",
    )  # fmt: skip


def shared_out(
    samples: Sequence[Any], validation: Sequence[Any] | None, share: float, seed: int
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the samples to train with and those to validate with.

    Raises
    ------
    UsageError
        If there are none to train with.
    """
    if not len(samples):
        raise UsageError("nothing to train with", expected="at least one volume")
    if validation is not None:
        return samples, validation
    held_out = min(round(share * len(samples)), len(samples) - 1)
    made = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(samples), generator=made).tolist()
    return Some(samples, order[held_out:]), Some(samples, sorted(order[:held_out]))


class Some(Sequence[Any]):
    """Some of the samples, in an order, taken when they are asked for."""

    def __init__(self, samples: Sequence[Any], order: list[int]) -> None:
        self.samples, self.order = samples, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[self.order[index]]


def _box(x: Tensor, starts: Sequence[int], size: Sequence[int]) -> Tensor:
    for axis, (start, length) in enumerate(zip(starts, size, strict=True), 1):
        x = x.narrow(axis, start, length)
    return x
