"""Dilation and erosion by a ball in millimetres, exact on anisotropic grids.

A voxel belongs to the dilation if a voxel of the mask lies within the radius,
centre to centre. The squared Euclidean distance is separable, so its minimum
is taken axis by axis (Saito and Toriwaki 1994, doi 10.1016/0031-3203(94)90133-3),
within a window of the radius: a few dozen element-wise passes on the device of
the mask, no distance map of the whole volume.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

__all__ = ["close_ball", "dilate_ball", "erode_ball", "open_ball"]

TIE = 1e-5
"""Relative tolerance of the radius: a voxel exactly on the sphere is inside."""

Spacing = tuple[float, float, float]


def _reach(radius_mm: float, spacing: Spacing) -> list[int]:
    """Return how many voxels the ball reaches along each axis."""
    return [int(np.floor(radius_mm * (1 + TIE) / s)) for s in spacing]


def _box(mask: torch.Tensor) -> list[tuple[int, int]] | None:
    """Return the bounding box of a mask as ranges per axis, or None if it is empty."""
    # the greatest byte along the first axes is found many times faster than `any`
    seen = mask.view(torch.uint8)
    across = seen.amax(0)
    box = []
    for hits in (seen.amax(1).amax(1), across.amax(1), across.amax(0)):
        hit = torch.nonzero(hits).flatten()
        if hit.numel() == 0:
            return None
        box.append((int(hit[0]), int(hit[-1]) + 1))
    return box


def _squares(
    radius_mm: float, spacing: Spacing, reach: list[int]
) -> tuple[list[list[float]], float, torch.dtype]:
    """Return squared distances by axis and shift, the greatest that is within, and a dtype.

    On a grid with one spacing they are whole numbers of voxels, and small: in bytes the
    passes move a quarter of what they move in floats.
    """
    if max(spacing) - min(spacing) < TIE / 100 * min(spacing):
        limit = int((radius_mm * (1 + TIE) / spacing[0]) ** 2)
        # a value just beyond the limit stands for infinity; a square may still be added to it
        if 2 * limit + 1 <= torch.iinfo(torch.uint8).max:
            return [[s * s for s in range(r + 1)] for r in reach], limit, torch.uint8
    costs = [[(s * x) ** 2 for s in range(r + 1)] for r, x in zip(reach, spacing, strict=True)]
    return costs, (radius_mm * (1 + TIE)) ** 2, torch.float32


def _near(mask: torch.Tensor, radius_mm: float, spacing: Spacing) -> torch.Tensor:
    """Return where a voxel of `mask` (I, J, K) lies within the radius."""
    reach = _reach(radius_mm, spacing)
    costs, limit, dtype = _squares(radius_mm, spacing, reach)
    far = limit + 1 if dtype == torch.uint8 else float("inf")
    d = torch.full(mask.shape, far, dtype=dtype, device=mask.device).masked_fill_(mask, 0)
    # the coarsest axis last: its passes are the fewest and see the whole volume anyway
    for axis in range(3):
        if reach[axis] == 0 or mask.shape[axis] == 1:
            continue
        out = d.clone()
        for shift in range(1, min(reach[axis], mask.shape[axis] - 1) + 1):
            length = mask.shape[axis] - shift
            moved = d + costs[axis][shift]
            low, high = out.narrow(axis, 0, length), out.narrow(axis, shift, length)
            torch.minimum(low, moved.narrow(axis, shift, length), out=low)
            torch.minimum(high, moved.narrow(axis, 0, length), out=high)
        d = out
    return d <= limit


def dilate_ball(mask: torch.Tensor, radius_mm: float, spacing: Spacing) -> torch.Tensor:
    """Return the bool mask (I, J, K) grown by a ball, `spacing` in mm per axis."""
    box = _box(mask)
    if box is None:
        return mask.clone()
    reach = _reach(radius_mm, spacing)
    view = tuple(
        slice(max(a - r, 0), min(b + r, n))
        for (a, b), r, n in zip(box, reach, mask.shape, strict=True)
    )
    out = torch.zeros_like(mask)
    out[view] = _near(mask[view], radius_mm, spacing)
    return out


def erode_ball(mask: torch.Tensor, radius_mm: float, spacing: Spacing) -> torch.Tensor:
    """Return the bool mask (I, J, K) shrunk by a ball.

    What lies outside the image is unknown and erodes nothing, so a head that
    the scan cuts off at the neck is not shortened.
    """
    box = _box(mask)
    if box is None:
        return mask.clone()
    # one voxel of background around the box is all that can erode it
    view = tuple(slice(max(a - 1, 0), b + 1) for a, b in box)
    out = torch.zeros_like(mask)
    out[view] = mask[view] & ~_near(~mask[view], radius_mm, spacing)
    return out


def open_ball(mask: torch.Tensor, radius_mm: float, spacing: Spacing) -> torch.Tensor:
    """Return the bool mask (I, J, K) without what no ball fits in."""
    return dilate_ball(erode_ball(mask, radius_mm, spacing), radius_mm, spacing)


def close_ball(mask: torch.Tensor, radius_mm: float, spacing: Spacing) -> torch.Tensor:
    """Return the bool mask (I, J, K) with what no ball outside it fits in.

    The image is padded for the way out and back, so that nothing is bridged to
    its border.
    """
    pad = [r + 1 for r in _reach(radius_mm, spacing)]
    ends = [p for r in reversed(pad) for p in (r, r)]
    wide = functional.pad(mask, ends)
    closed = erode_ball(dilate_ball(wide, radius_mm, spacing), radius_mm, spacing)
    return closed[tuple(slice(p, p + n) for p, n in zip(pad, mask.shape, strict=True))].clone()
