"""Masks on cubic voxels, the grid on which the network was trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from medpipe.errors import StepError

__all__ = ["cubic_index", "cubic_mask"]

SAME_SPACING = 0.02
"""Voxels whose edges differ by less than this share count as cubes."""

LONGEST = 4096
"""Most voxels along an axis of the cubic grid."""


def cubic_mask(mask: Tensor, spacing_mm: ArrayLike) -> Tensor:
    """Return a mask on cubes of its smallest spacing; one of cubes as it is.

    Parameters
    ----------
    mask : bool Tensor (I, J, K)
    spacing_mm : three float

    Returns
    -------
    bool Tensor
        What is half inside is inside. It covers the same box, so that its voxels are
        cubes to half a voxel in the whole length of an axis.

    Raises
    ------
    StepError
        If an axis would become longer than `LONGEST`.
    """
    spacing = np.asarray(spacing_mm, float)
    step = float(spacing.min())
    if float(spacing.max()) <= (1 + SAME_SPACING) * step:
        return mask
    size = [round(n * float(s) / step) for n, s in zip(mask.shape, spacing, strict=True)]
    if max(size) > LONGEST:
        raise StepError(
            "the voxels are too long for the learned maps",
            expected=f"at most {LONGEST} cubes along an axis",
            got=str(max(size)),
            hint="resample the mask first",
        )
    cubes = functional.interpolate(
        mask[None, None].float(), size=size, mode="trilinear", align_corners=False
    )
    return cubes[0, 0] >= 0.5


def cubic_index(
    index: ArrayLike, shape: Sequence[int], cubes: Sequence[int]
) -> NDArray[np.float64]:
    """Return where points (N, 3), in voxels of a mask, lie in voxels of its cubic form.

    Parameters
    ----------
    index : array (N, 3)
    shape, cubes : three int
        Voxels of the mask and of what `cubic_mask` returned.
    """
    ratio = np.asarray(cubes, float) / np.asarray(shape, float)
    return (np.asarray(index, float) + 0.5) * ratio - 0.5
