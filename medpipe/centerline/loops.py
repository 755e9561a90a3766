"""Loops of a structure: a tree cuts them, an edge more for each closes them again."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

__all__ = ["loops_of_voxels"]


def loops_of_voxels(voxels: NDArray[np.int64]) -> int:
    """Return the loops of a 26-connected set of voxels (n, 3) without cavities.

    One minus the Euler number of the union of closed cubes.
    """
    corners = np.unique(voxels, axis=0).astype(np.int64) * 2
    low = corners.min(axis=0) - 1
    size = corners.max(axis=0) - low + 2
    euler = 0
    for kind in product((False, True), repeat=3):
        # a cell is named by its middle, on a grid of half voxels
        shifts = np.array(list(product(*[(0,) if full else (-1, 1) for full in kind])))
        cells = (corners[:, None] + shifts).reshape(-1, 3) - low
        flat = (cells[:, 0] * size[1] + cells[:, 1]) * size[2] + cells[:, 2]
        euler += len(np.unique(flat)) * (-1) ** sum(kind)
    return 1 - euler
