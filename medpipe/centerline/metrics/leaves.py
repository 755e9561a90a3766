"""Tips and junctions of a tree against those of a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from medpipe.centerline.metrics.line_graph import LineGraph
from medpipe.errors import UsageError

__all__ = ["LeafMatch", "bifurcation_errors_mm", "match_leaves", "match_points"]

TOLERANCE_RADII = 2.0
TOLERANCE_VOXELS = 4.0


@dataclass(frozen=True, eq=False)
class LeafMatch:
    """Which leaf of a result is which leaf of the reference; all are point numbers.

    Parameters
    ----------
    pairs : int64 array (P, 2)
        Reference and result.
    distance_mm : float64 array (P,)
    missed : int64 array
        Leaves of the reference that no leaf of the result is near.
    spurious : int64 array
        Leaves of the result that are none of the reference.
    """

    pairs: NDArray[np.int64]
    distance_mm: NDArray[np.float64]
    missed: NDArray[np.int64]
    spurious: NDArray[np.int64]


def match_points(
    reference_mm: ArrayLike, result_mm: ArrayLike, tolerance_mm: ArrayLike
) -> NDArray[np.int64]:
    """Return the best pairs of points (P, 2), each point in one pair at most.

    As many pairs as can be, and of all such choices the one with the smallest sum of
    distances (linear assignment).

    Parameters
    ----------
    reference_mm, result_mm : array (A, 3), (B, 3)
    tolerance_mm : array (A,) or float
        How far the point of a pair may be from its reference; the limit is inside.
    """
    reference = np.asarray(reference_mm, np.float64).reshape(-1, 3)
    result = np.asarray(result_mm, np.float64).reshape(-1, 3)
    distance = cdist(reference, result)
    limit = np.broadcast_to(np.asarray(tolerance_mm, np.float64), (len(reference),))
    allowed = distance <= limit[:, None]
    # a pair more outweighs any distances; scaled, so that small distances are not lost
    scale = float(distance[allowed].max(initial=0)) or 1.0
    prize = min(distance.shape) + 1.0
    cost = np.where(allowed, np.minimum(distance, scale) / scale - prize, 0.0)
    rows, columns = linear_sum_assignment(cost)
    kept = allowed[rows, columns]
    return np.stack([rows[kept], columns[kept]], 1).astype(np.int64)


def match_leaves(
    reference: Any,
    result: Any,
    *,
    voxel_mm: float,
    tolerance_radii: float = TOLERANCE_RADII,
    tolerance_voxels: float = TOLERANCE_VOXELS,
) -> LeafMatch:
    """Match the leaves of a result to those of a reference.

    A leaf is a tip that is no root. Two match if they are no farther apart than the larger
    of `tolerance_radii` radii of the reference there and `tolerance_voxels` voxels.

    Parameters
    ----------
    reference, result : LineGraph or tree
        See `LineGraph.of`. A reference without radii has the tolerance in voxels alone.
    voxel_mm : float
        Edge of a voxel of the image that the result was made from.

    Raises
    ------
    UsageError
        If `voxel_mm` is no length.
    """
    if not voxel_mm > 0:
        raise UsageError("the edge of a voxel is no length", got=f"{voxel_mm} mm")
    a, b = LineGraph.of(reference), LineGraph.of(result)
    radius = np.zeros(len(a.points_mm)) if a.radius_mm is None else a.radius_mm
    tolerance = np.maximum(tolerance_radii * radius[a.leaves], tolerance_voxels * voxel_mm)
    pairs = match_points(a.points_mm[a.leaves], b.points_mm[b.leaves], tolerance)
    nodes = np.stack([a.leaves[pairs[:, 0]], b.leaves[pairs[:, 1]]], 1)
    gap = a.points_mm[nodes[:, 0]] - b.points_mm[nodes[:, 1]]
    return LeafMatch(
        pairs=nodes,
        distance_mm=np.linalg.norm(gap, axis=1),
        missed=np.setdiff1d(a.leaves, nodes[:, 0]),
        spurious=np.setdiff1d(b.leaves, nodes[:, 1]),
    )


def bifurcation_errors_mm(reference: Any, result: Any) -> NDArray[np.float64]:
    """Return the distance of each junction of a reference to the nearest one of a result.

    Parameters
    ----------
    reference, result : LineGraph or tree
        See `LineGraph.of`.

    Returns
    -------
    array (J,)
        In the order of the junctions of the reference; inf where the result has none.
    """
    a, b = LineGraph.of(reference), LineGraph.of(result)
    if not len(b.junctions) or not len(a.junctions):
        return np.full(len(a.junctions), np.inf)
    found, _ = cKDTree(b.points_mm[b.junctions]).query(a.points_mm[a.junctions])
    return found
