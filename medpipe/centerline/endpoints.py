"""Where branches end, and the paths from there to the tree.

As in TEASAR (Sato et al. 2000, doi 10.1109/PCCGA.2000.883951), the farthest voxel that no
branch covers is the end of the next branch; a branch covers balls around its voxels. A
path is followed from its end and stops as soon as it touches the tree, so that no two
branches run side by side; of its voxels those are kept that need no other to touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from medpipe.centerline.lumen import Floats, Lumen, Paths
from medpipe.jit import compiled

__all__ = ["Growth", "grow"]


@dataclass(frozen=True, eq=False)
class Growth:
    """The tree of one component as it grew.

    Parameters
    ----------
    voxels : int64 array (n,)
        Numbers of its voxels in the lumen.
    parents : int64 array (n,)
        -1 at roots; a parent comes before its children.
    asked : int64 array (A,)
        Nodes at the requested ends.
    found : int64 array (F,)
        Nodes at the ends that were found.
    """

    voxels: NDArray[np.int64]
    parents: NDArray[np.int64]
    asked: NDArray[np.int64]
    found: NDArray[np.int64]


def grow(
    lumen: Lumen,
    paths: Paths,
    members: NDArray[np.int64],
    roots: Sequence[int],
    *,
    asked: Sequence[int] = (),
    distance_mm: Floats | None = None,
    ball_mm: tuple[float, float] = (1.5, 3.0),
) -> Growth:
    """Return the tree of the cheapest paths from the ends of one component to its roots.

    Parameters
    ----------
    lumen : Lumen
    paths : Paths
        From these roots.
    members : int64 array (M,)
        Voxels of the component, ascending.
    roots : ints
        Voxels.
    asked : ints, optional
        Voxels that the tree must reach; the one farthest from its root comes first.
    distance_mm : float64 array (N,), optional
        Geodesic distance of each voxel; the farthest voxel that is not covered is the next
        end, until all are covered. By default the tree reaches the requested ends only.
    ball_mm : (float, float)
        A voxel of the tree covers a ball of the first times its depth plus the second.

    Notes
    -----
    Of several voxels of the tree that a path touches, its parent is the one with the
    cheapest step, then the one with the lowest number.
    """
    given = np.array(sorted(set(asked), key=lambda v: (-paths.total[v], v)), np.int64)
    order = np.empty(0, np.int64)
    if distance_mm is not None:
        order = members[np.argsort(-distance_mm[members], kind="stable")]
    low = lumen.voxels[members].min(axis=0).astype(np.int64)
    size = lumen.voxels[members].max(axis=0).astype(np.int64) - low + 1
    metric = lumen.affine[:3, :3].T @ lumen.affine[:3, :3]
    covered = np.zeros(int(size.prod()) if order.size else 1, np.bool_)
    node, place = lumen.marks
    voxel, parent, ends, count = _grow(
        lumen.voxels, lumen.neighbours, lumen.steps_mm, lumen.depth_mm, *ball_mm,
        paths.predecessor, paths.source, paths.cost,
        np.array(roots, np.int64), given, order, covered, low, size, metric,
        np.sqrt(np.diag(np.linalg.inv(metric))), node, place, len(members),
    )  # fmt: skip
    node[voxel[:count]] = -1
    return Growth(voxel[:count], parent[:count], ends[: len(given)], ends[len(given) :])


@njit(inline="always")
def _cover(v, reach, voxels, covered, low, size, metric, extent):  # type: ignore[no-untyped-def]
    """Mark the ball of radius `reach` around voxel `v` as covered, row by row."""
    i0, j0, k0 = voxels[v, 0] - low[0], voxels[v, 1] - low[1], voxels[v, 2] - low[2]
    r = reach * (1 + 1e-9)
    ri, rj = int(r * extent[0]), int(r * extent[1])
    for i in range(max(0, i0 - ri), min(size[0] - 1, i0 + ri) + 1):
        for j in range(max(0, j0 - rj), min(size[1] - 1, j0 + rj) + 1):
            di, dj = float(i - i0), float(j - j0)
            # |offset|² <= r² is a quadratic inequality in the step along the row
            half = metric[0, 2] * di + metric[1, 2] * dj
            rest = metric[0, 0] * di * di + 2 * metric[0, 1] * di * dj + metric[1, 1] * dj * dj
            inside = half * half - metric[2, 2] * (rest - r * r)
            if inside < 0:
                continue
            width = np.sqrt(inside)
            first = k0 + int(np.ceil((-half - width) / metric[2, 2]))
            last = k0 + int(np.floor((-half + width) / metric[2, 2]))
            row = (i * size[1] + j) * size[2]
            for k in range(max(0, first), min(size[2] - 1, last) + 1):
                covered[row + k] = True


@njit(inline="always")
def _touched(v, neighbours, steps, cost, source, node):  # type: ignore[no-untyped-def]
    """Return the node of the tree that voxel `v` touches best, -1 for none."""
    best, price, lowest = -1, np.inf, -1
    for e in range(26):
        u = neighbours[v, e]
        if u >= 0 and node[u] >= 0 and source[u] == source[v]:
            weight = 0.5 * (cost[u] + cost[v]) * steps[e]
            if weight < price or (weight == price and u < lowest):
                best, price, lowest = node[u], weight, u
    return best


@njit(inline="always")
def _chain(  # type: ignore[no-untyped-def]
    v, chain, neighbours, steps, predecessor, cost, source, node, place
):
    """Fill `chain` from voxel `v` to where it touches the tree; return its length and that node.

    A chain bends towards the middle and may touch itself past a voxel; that one is left out.
    """
    length, parent = 0, node[v]
    while parent < 0:
        chain[length] = v
        place[v] = length
        length += 1
        parent = _touched(v, neighbours, steps, cost, source, node)
        v = predecessor[v]
    kept, at = 0, 0
    while at < length:
        v = chain[at]
        chain[kept] = v
        kept += 1
        ahead = at + 1
        for e in range(26):
            u = neighbours[v, e]
            if u >= 0 and place[u] > ahead:
                ahead = place[u]
        for n in range(at, min(ahead, length)):
            if n > at:
                place[chain[n]] = -1
        place[v] = -1
        at = ahead
    return kept, parent


@compiled
def _grow(  # type: ignore[no-untyped-def]
    voxels, neighbours, steps, depth, scale, more, predecessor, source, cost,
    roots, given, order, covered, low, size, metric, extent, node, place, most,
):  # fmt: skip
    """Return voxel and parent of each node, the ends and the number of nodes."""
    voxel = np.empty(most, np.int64)
    parents = np.empty(most, np.int64)
    ends = np.empty(most, np.int64)
    chain = np.empty(most, np.int64)
    count, n_ends = 0, 0
    automatic = order.size > 0
    for v in roots:
        voxel[count], parents[count], node[v] = v, -1, count
        count += 1
        if automatic:
            reach = scale * depth[v] + more
            _cover(v, reach, voxels, covered, low, size, metric, extent)
    for number in range(given.size + order.size):
        if number < given.size:
            v = given[number]
        else:
            v = order[number - given.size]
            at = (voxels[v, 0] - low[0]) * size[1] + voxels[v, 1] - low[1]
            if covered[at * size[2] + voxels[v, 2] - low[2]] or source[v] < 0:
                continue
        length, parent = _chain(v, chain, neighbours, steps, predecessor, cost, source, node, place)
        for n in range(length - 1, -1, -1):
            u = chain[n]
            voxel[count], parents[count], node[u] = u, parent, count
            parent = count
            count += 1
            if automatic:
                reach = scale * depth[u] + more
                _cover(u, reach, voxels, covered, low, size, metric, extent)
        ends[n_ends] = node[v]
        n_ends += 1
    return voxel, parents, ends[:n_ends], count
