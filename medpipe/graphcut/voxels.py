"""What the energies on voxels share: pairs of neighbours, checks of image and spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from medpipe.errors import StepError, UsageError

__all__ = ["Offset", "Spacing", "check_spacing", "finite_image", "pair"]

Offset = tuple[int, int, int]
Spacing = tuple[float, float, float]


def pair(volume: torch.Tensor, offset: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return views of (X, Y, Z) at the voxels p and at p + `offset`, where both exist."""
    tail = head = volume
    for axis, step in enumerate(offset):
        size = max(volume.shape[axis] - abs(step), 0)
        spare = volume.shape[axis] - size
        tail = tail.narrow(axis, spare if step < 0 else 0, size)
        head = head.narrow(axis, spare if step > 0 else 0, size)
    return tail, head


def check_spacing(spacing_mm: Sequence[float]) -> Spacing:
    """Return the spacing as three floats; UsageError unless all are finite and above 0."""
    values = [float(s) for s in spacing_mm]
    if len(values) != 3 or not all(0 < s < math.inf for s in values):
        raise UsageError(
            "spacing_mm is wrong", expected="three positive numbers", got=str(values)[:40]
        )
    return values[0], values[1], values[2]


def finite_image(image: torch.Tensor) -> torch.Tensor:
    """Return the image as floats; StepError if a value is not finite."""
    x = image if image.is_floating_point() else image.to(torch.float32)
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise StepError(
            "the image holds values that are not finite",
            got=f"{bad} voxels",
            hint="fill or mask these places first",
        )
    return x
