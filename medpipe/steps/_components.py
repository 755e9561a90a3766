"""Connected components and holes.

This is the one place of the mask steps that works on the host: labelling of
components is done by scipy, because torch has none. What crosses is one byte
per voxel. Masks on a GPU stay there if they are small enough and voxels touch
by faces alone (`medpipe.steps._floods`); the result is the same.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medpipe.steps import _floods

__all__ = ["fill_holes", "keep_largest", "label_components", "touching"]


def _host(mask: torch.Tensor) -> NDArray[np.bool_]:
    """Return a bool tensor as a numpy array on the host."""
    return mask.detach().to("cpu", torch.bool).numpy()


def label_components(mask: torch.Tensor, connectivity: int) -> tuple[NDArray[np.int32], int]:
    """Return component numbers 1..n of a mask (I, J, K), 0 outside, and n."""
    structure = ndimage.generate_binary_structure(3, connectivity)
    return ndimage.label(_host(mask), structure)


def keep_largest(mask: torch.Tensor, connectivity: int = 1, n: int = 1) -> torch.Tensor:
    """Return the `n` largest components of a bool mask (I, J, K).

    Parameters
    ----------
    connectivity : {1, 2, 3}
        Voxels touch by faces, also by edges, or also by corners.

    Notes
    -----
    Of components of equal size the first in the order of the voxels is kept.
    """
    if connectivity == 1 and _floods.suits(mask):
        swept = _floods.largest_components(mask, n)
        if swept is not None:
            return swept
    labels, count = label_components(mask, connectivity)
    if count <= n:
        return mask.clone()
    size = np.bincount(labels.ravel(), minlength=count + 1)
    size[0] = 0
    keep = np.zeros(count + 1, bool)
    keep[np.argsort(-size, kind="stable")[:n]] = True
    return torch.from_numpy(keep[labels]).to(mask.device)


def fill_holes(mask: torch.Tensor, axis: int | None = None) -> torch.Tensor:
    """Return a bool mask (I, J, K) with the background that no border reaches filled.

    Parameters
    ----------
    axis : int, optional
        Fill slice by slice across this axis, so that a hole that is open
        towards the first or last slice is filled as well.
    """
    if _floods.suits(mask):
        swept = _floods.holes_filled(mask, axis)
        if swept is not None:
            return swept
    background = ~_host(mask)
    structure = ndimage.generate_binary_structure(3, 1)
    if axis is not None:
        across = [slice(None)] * 3
        for side in (0, 2):
            across[axis] = slice(side, side + 1)
            structure[tuple(across)] = False
    labels, count = ndimage.label(background, structure)
    is_open = np.zeros(count + 1, bool)
    for a in range(3):
        if a != axis:
            for end in (0, -1):
                is_open[np.unique(labels.take(end, a))] = True
    is_open[0] = False
    return torch.from_numpy(~is_open[labels]).to(mask.device)


def touching(mask: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Return the components (by faces) of a bool mask (I, J, K) that `seed` overlaps."""
    if _floods.suits(mask):
        swept = _floods.flood(mask, seed, range(3))
        if swept is not None:
            return swept
    labels, count = label_components(mask, 1)
    hit = np.zeros(count + 1, bool)
    hit[np.unique(labels[_host(seed)])] = True
    hit[0] = False
    return torch.from_numpy(hit[labels]).to(mask.device)
