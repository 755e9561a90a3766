"""Ends of branches on their axis, not on the rim of a flat end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medpipe.centerline.endpoints import Growth
from medpipe.centerline.lumen import Lumen
from medpipe.geometry import spacing_mm, to_mm

__all__ = ["axis_end", "centred_ends", "terminal_paths"]

WIDE_VOXELS = 2.5
"""Branches of a smaller median radius end at their farthest voxel, near the axis anyway."""


def terminal_paths(growth: Growth) -> list[list[int]]:
    """Return the nodes of each branch that ends without another, from its tip inwards.

    The junction or root where the branch starts is included.
    """
    parents = growth.parents
    children = np.bincount(parents[parents >= 0], minlength=len(parents))
    out = []
    for leaf in np.flatnonzero((children == 0) & (parents >= 0)).tolist():
        path = [leaf]
        while parents[path[-1]] >= 0 and (len(path) == 1 or children[path[-1]] == 1):
            path.append(int(parents[path[-1]]))
        out.append(path)
    return out


def centred_ends(lumen: Lumen, growth: Growth) -> list[int]:
    """Return the voxel of each end; ends of wide branches are moved onto the axis."""
    asked = set(growth.asked.tolist())
    out = []
    for path in terminal_paths(growth):
        voxels = growth.voxels[path]
        wide = np.median(lumen.radius_mm(voxels)) >= WIDE_VOXELS * lumen.voxel_mm
        moves = wide and path[0] not in asked
        out.append(axis_end(lumen, voxels) if moves else int(voxels[0]))
    return out


def axis_end(lumen: Lumen, voxels: NDArray[np.int64]) -> int:
    """Return the voxel where the axis of an end leaves the structure.

    Parameters
    ----------
    voxels : int64 array (n,)
        From the tip inwards. Near the tip they may lead to its rim: the axis is the line
        through the last one within 1.5 radii of the tip and one two radii further in.
    """
    x, radius = lumen.positions_mm(voxels), lumen.radius_mm(voxels)
    near = np.flatnonzero(np.linalg.norm(x - x[0], axis=1) <= 1.5 * radius)
    last = len(voxels) - 1
    a = int(near[-1]) if near.size and near[-1] < last else last // 2
    arc = np.linalg.norm(np.diff(x[a:], axis=0), axis=1).cumsum()
    b = min(a + 1 + int(np.searchsorted(arc, 2 * radius[a])), last)
    way = x[a] - x[b]
    if not way.any():
        return int(voxels[0])
    way /= np.linalg.norm(way)
    reach = np.linalg.norm(x[a] - x[0]) + 1.5 * radius[a] + 2 * lumen.voxel_mm
    steps = np.arange(0, reach, spacing_mm(lumen.affine).min() / 4)
    ray = to_mm(np.linalg.inv(lumen.affine), x[a] + steps[:, None] * way)
    found = lumen.find(np.rint(ray).astype(np.int64))
    outside = np.flatnonzero(found < 0)
    end = int(found[outside[0] - 1] if outside.size else found[-1])
    astray = np.linalg.norm(lumen.positions_mm(end) - x[0]) > 2 * radius[a] + 2 * lumen.voxel_mm
    return int(voxels[0]) if astray else end
