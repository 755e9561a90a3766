"""Components and holes of masks by sweeps along the axes, for masks that lie on a GPU.

A sweep carries what is known of a voxel to the end of its run, the voxels of the mask in a
row without a gap, by one cumulative maximum. So the number of sweeps is that of the bends of
a path through the mask, not its length: 5 to 20 in the masks of a head. On a CPU the labels
of scipy, voxel by voxel, take less time (`medpipe.steps._components`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["flood", "holes_filled", "largest_components", "suits"]

MOST_SWEEPS = 100
MOST_VOXELS = 2**24
"""Runs and labels take about 80 bytes per voxel here."""


def suits(mask: torch.Tensor) -> bool:
    """Whether a bool mask lies on a GPU and is small enough for sweeps."""
    return mask.is_cuda and mask.dtype == torch.bool and mask.numel() <= MOST_VOXELS


def _places(mask: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the index 0, 1, ... along an axis, int32, in the shape of broadcasting."""
    shape = [1] * mask.ndim
    shape[axis] = mask.shape[axis]
    return torch.arange(mask.shape[axis], dtype=torch.int32, device=mask.device).view(shape)


def _last(where: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the place of the last True so far along an axis, -1 before the first."""
    return torch.where(where, _places(where, axis), -1).cummax(axis).values


def flood(mask: torch.Tensor, seed: torch.Tensor, axes: Sequence[int]) -> torch.Tensor | None:
    """Return the voxels of a mask that steps along `axes` reach from a seed.

    Parameters
    ----------
    mask, seed : bool Tensors (I, J, K)
        Of the seed only what lies in the mask counts.
    axes : sequence of int

    Returns
    -------
    bool Tensor (I, J, K), or None if `MOST_SWEEPS` were not enough.
    """
    reached = mask & seed
    gaps = [(_last(~mask, a), _last(~mask.flip(a), a)) for a in axes]
    count = reached.sum()
    for _ in range(MOST_SWEEPS):
        for a, (before, behind) in zip(axes, gaps, strict=True):
            reached = mask & (_last(reached, a) > before)
            reached = mask & (_last(reached.flip(a), a) > behind).flip(a)
        now = reached.sum()
        if bool(now == count):
            return reached
        count = now
    return None


def holes_filled(mask: torch.Tensor, axis: int | None = None) -> torch.Tensor | None:
    """Return a mask with the background that no border reaches filled; see `fill_holes`.

    None if `MOST_SWEEPS` were not enough.
    """
    axes = [a for a in range(3) if a != axis]
    border = torch.zeros_like(mask)
    for a in axes:
        border.select(a, 0).fill_(True)
        border.select(a, -1).fill_(True)
    background = flood(~mask, border, axes)
    return None if background is None else ~background


def largest_components(mask: torch.Tensor, n: int = 1) -> torch.Tensor | None:
    """Return the `n` largest components of a mask (I, J, K), voxels touching by faces.

    Of components of equal size the first in the order of the voxels is kept. None if
    `MOST_SWEEPS` were not enough.
    """
    size = mask.numel()
    order = torch.arange(size, 0, -1, device=mask.device).view(mask.shape)
    # of a component its first voxel: the greatest number; gaps before a run keep runs apart
    label = torch.where(mask, order, 0)
    runs = [[(~m).cumsum(a) * (size + 1) for m in (mask, mask.flip(a))] for a in range(3)]
    for _ in range(MOST_SWEEPS):
        start = label
        for a, (before, behind) in enumerate(runs):
            label = (label + before).cummax(a).values - before
            label = ((label.flip(a) + behind).cummax(a).values - behind).flip(a)
        if torch.equal(label, start):
            break
    else:
        return None
    found, counts = torch.unique(label[mask], return_counts=True)
    if len(found) <= n:
        return mask.clone()
    largest = torch.topk(counts * (size + 1) + found, n).indices
    return mask & torch.isin(label, found[largest])
