"""From what has grown to a tree: short branches pruned, nodes in order."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medpipe.centerline.endpoints import Growth
from medpipe.centerline.lumen import Floats, Lumen

__all__ = ["prune", "step_lengths_mm", "without_shortcuts"]

SHORTCUT = 4
"""Lines that are so many voxels away from a node do not come back to it."""


def step_lengths_mm(lumen: Lumen, growth: Growth) -> Floats:
    """Return the distance of each node from its parent, voxel to voxel, 0 at roots, (n,)."""
    x = lumen.positions_mm(growth.voxels)
    step = np.linalg.norm(x - x[np.maximum(growth.parents, 0)], axis=1)
    return np.where(growth.parents < 0, 0.0, step)


def prune(
    lumen: Lumen, growth: Growth, *, radii: float, more_mm: float, slim: float = np.inf
) -> Growth:
    """Return the tree without short branches that end without another.

    Parameters
    ----------
    lumen : Lumen
    growth : Growth
        Its requested ends stay; of the ends that were found those are kept that remain.
    radii, more_mm : float
        A branch goes if it is shorter, from voxel to voxel, than `radii` times the radius
        where it leaves plus `more_mm`.
    slim : float
        Only branches go whose median radius is below this share of the radius there.

    Notes
    -----
    The shortest branch goes first. Where only one branch is then left of two, it becomes
    one with the branch it continues and counts from where that one leaves. The last
    branch of a root stays.
    """
    parents, n = growth.parents, len(growth.parents)
    children = np.bincount(parents[parents >= 0], minlength=n)
    asked = np.zeros(n, bool)
    asked[growth.asked] = True
    radius = lumen.radius_mm(growth.voxels)
    least = radii * radius + more_mm
    length = step_lengths_mm(lumen, growth)
    alive = np.ones(n, bool)

    def terminal(leaf: int) -> tuple[float, int, int]:
        """Return length of the branch that ends at a leaf, the leaf, and where it leaves."""
        total, at = 0.0, leaf
        while True:
            total += length[at]
            at = int(parents[at])
            if children[at] > 1 or parents[at] < 0:
                return total, leaf, at

    leaves = np.flatnonzero((children == 0) & (parents >= 0) & ~asked)
    heap = [terminal(leaf) for leaf in leaves.tolist()]
    heapq.heapify(heap)
    while heap:
        total, leaf, start = heapq.heappop(heap)
        if children[start] == 1 and parents[start] >= 0:  # goes further up by now
            heapq.heappush(heap, terminal(leaf))
            continue
        path = _path(leaf, start, parents)
        stays = total >= least[start] or np.median(radius[path]) >= slim * radius[start]
        if children[start] == 1 or stays or asked[path].any():
            continue
        alive[path] = False
        children[start] -= 1
    return _keep(growth, alive)


def without_shortcuts(lumen: Lumen, growth: Growth) -> Growth:
    """Return the tree without nodes between two of a line that are neighbouring voxels.

    Paths of least cost have none; lines put together from pieces of paths may.
    """
    parents, n = growth.parents.copy(), len(growth.parents)
    voxels = lumen.voxels[growth.voxels].astype(np.int64)
    children = np.bincount(parents[parents >= 0], minlength=n)
    fixed = (children != 1) | (parents < 0)
    fixed[growth.asked] = True
    alive = np.ones(n, bool)
    for node in range(n - 1, -1, -1):  # children have higher numbers than their parents
        if not alive[node] or parents[node] < 0:
            continue
        at = best = int(parents[node])
        while not fixed[at] and (at := int(parents[at])) >= 0:
            gap = int(np.abs(voxels[at] - voxels[node]).max())
            if gap > SHORTCUT:
                break
            best = at if gap == 1 else best
        at = int(parents[node])
        while at != best:
            alive[at], at = False, int(parents[at])
        parents[node] = best
    return _keep(replace(growth, parents=parents), alive)


def _path(leaf: int, start: int, parents: NDArray[np.int64]) -> list[int]:
    """Return the nodes from a leaf to below where its branch leaves."""
    path = []
    while leaf != start:
        path.append(leaf)
        leaf = int(parents[leaf])
    return path


def _keep(growth: Growth, alive: NDArray[np.bool_]) -> Growth:
    """Return the nodes that are alive, numbered anew; their parents must be alive as well."""
    number = np.cumsum(alive) - 1
    above = growth.parents[alive]
    return Growth(
        voxels=growth.voxels[alive],
        parents=np.where(above < 0, -1, number[above]),
        asked=number[growth.asked],
        found=number[growth.found[alive[growth.found]]],
    )
