"""Where the trees start.

The voxel farthest from another is seldom the root: in a tree it is the end of a thin
branch. The rules here look for the end of the trunk, and put the root on its axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from medpipe.centerline.assemble import prune
from medpipe.centerline.endpoints import Growth
from medpipe.centerline.lumen import Floats, Lumen
from medpipe.centerline.settings import ROOT_AXES, Point, RootRule
from medpipe.centerline.tips import axis_end, terminal_paths
from medpipe.errors import StepError
from medpipe.geometry import to_mm

__all__ = ["contact_roots", "deepest_voxel", "rule_root", "snap_points"]

WIDE = 0.5
"""An end counts as one of the trunk if it is this share of the widest end."""
BUMP = (4.0, 0.7)
"""A branch shorter than 4 radii of the one that it leaves, and less than 0.7 times as wide,
is a bump of a trunk, as a recess of the larynx or a leak; it is no end."""


def deepest_voxel(lumen: Lumen, members: NDArray[np.int64]) -> int:
    """Return the voxel with the largest depth; of several the first of `_by_place`."""
    depth = lumen.depth_mm[members]
    top = members[depth == depth.max()]
    return int(top[_by_place(lumen.positions_mm(top))[0]])


def _by_place(positions_mm: Floats) -> NDArray[np.int64]:
    """Return the order from superior to inferior, then anterior to posterior, right to left.

    Unlike the numbers of voxels it is the same however the array is stored.
    """
    x, y, z = -positions_mm.T.round(6)
    return np.lexsort((x, y, z))


def snap_points(
    lumens: Sequence[Lumen], points_mm: Sequence[Point], snap_mm: float, role: str
) -> list[tuple[int, int]]:
    """Return the lumen and the voxel nearest to each point.

    Raises
    ------
    StepError
        If a point is farther than `snap_mm` from all; it is named by its number, from 1.
    """
    out = []
    for number, point in enumerate(points_mm, start=1):
        nearest = (np.inf, -1, -1)
        for which, lumen in enumerate(lumens):
            gap = np.linalg.norm(to_mm(lumen.affine, lumen.voxels) - np.array(point), axis=1)
            voxel = int(gap.argmin())
            nearest = min(nearest, (float(gap[voxel]), which, voxel))
        if nearest[0] > snap_mm:
            raise StepError(
                f"{role} {number} lies {nearest[0]:.1f} mm outside the mask",
                expected=f"a point within {snap_mm:g} mm of it, in RAS+ mm",
                hint="check the signs of x and y (LPS points have both the other way round), "
                "or set a larger snap_mm",
            )
        out.append(nearest[1:])
    return out


def contact_roots(lumen: Lumen, touching: NDArray[np.bool_]) -> list[int]:
    """Return one root per connected part of the voxels that touch the ostium.

    Parameters
    ----------
    lumen : Lumen
    touching : bool array (N,)
        Voxels next to the ostium.

    Returns
    -------
    list of int
        The voxel nearest to the middle of each part, ascending.
    """
    members = np.flatnonzero(touching)
    if not members.size:
        return []
    number = np.full(len(touching), -1)
    number[members] = np.arange(len(members))
    near = lumen.neighbours[members]
    row, column = np.nonzero((near >= 0) & touching[np.maximum(near, 0)])
    ends = number[near[row, column]]
    links = sparse.coo_array((np.ones(len(row)), (row, ends)), shape=(len(members),) * 2)
    count, part = csgraph.connected_components(links.tocsr(), directed=False)
    roots = []
    for p in range(count):
        own = members[part == p]
        x = lumen.positions_mm(own)
        gap = np.linalg.norm(x - x.mean(axis=0), axis=1).round(6)
        best = own[gap == gap.min()]
        roots.append(int(best[_by_place(lumen.positions_mm(best))[0]]))
    return sorted(roots)


@dataclass(frozen=True, eq=False)
class _End:
    """An end of the tree: its nodes from the tip inwards, and how wide it is."""

    path: NDArray[np.int64]
    width_mm: float


def rule_root(lumen: Lumen, growth: Growth, rule: RootRule) -> int:
    """Return the voxel of the root of one component.

    Parameters
    ----------
    lumen : Lumen
    growth : Growth
        A pruned tree of the component that starts at its deepest voxel.
    rule : str
        See `ExtractionSettings.root`.

    Notes
    -----
    The width of an end is the median radius of its branch, without what lies in the ball
    of the junction where it leaves; of a branch with two ends each has its half. The root
    is where the axis of that end leaves the structure: the farthest voxel of a wide end
    lies on its rim.
    """
    growth = prune(lumen, growth, radii=BUMP[0], more_mm=0.0, slim=BUMP[1])
    ends = _ends(lumen, growth)
    if not ends:
        return int(growth.voxels[0])
    widths = np.array([e.width_mm for e in ends])
    tips = lumen.positions_mm(growth.voxels[[e.path[0] for e in ends]])
    if rule in ROOT_AXES:
        score = np.where(widths >= WIDE * widths.max(), tips @ ROOT_AXES[rule], -np.inf)
    else:
        score = widths
    score = score.round(6)
    best = np.flatnonzero(score == score.max())
    chosen = best[_by_place(tips[best])[0]]
    return axis_end(lumen, growth.voxels[ends[chosen].path])


def _ends(lumen: Lumen, growth: Growth) -> list[_End]:
    """Return the ends of a tree; its first node is one if a single branch leaves it."""
    parents = growth.parents
    children = np.bincount(parents[parents >= 0], minlength=len(parents))
    below = np.full(len(parents), -1)
    below[parents[1:]] = np.arange(1, len(parents))
    radius = lumen.radius_mm(growth.voxels)
    out = []
    for path in terminal_paths(growth):
        out.append(_end(lumen, growth, path, radius, free=children[path[-1]] == 1))
    if children[0] == 1:
        path = [0]
        while children[path[-1]] == 1:
            path.append(int(below[path[-1]]))
        out.append(_end(lumen, growth, path, radius, free=children[path[-1]] == 0))
    return out


def _end(lumen: Lumen, growth: Growth, path: list[int], radius: Floats, *, free: bool) -> _End:
    """Measure an end; `free` says that its path stops at another end, not at a junction."""
    nodes = np.array(path)
    x = lumen.positions_mm(growth.voxels[nodes])
    arc = np.concatenate([[0.0], np.linalg.norm(np.diff(x, axis=0), axis=1).cumsum()])
    own = arc <= arc[-1] / 2 if free else arc[-1] - arc > radius[nodes[-1]]
    # an end within the ball of its junction is a bump of the wall
    return _End(nodes, float(np.median(radius[nodes[own]])) if own.any() else 0.0)
