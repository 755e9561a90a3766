"""Tubes of known curve and radius on a voxel grid, exact to the voxel centre.

A tube is the union of the balls along a curve, radii linear between its nodes. The signed
distance to such a segment has a closed form, so nothing here is supersampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import UsageError
from medpipe.geometry import affine_from_parts
from medpipe.jit import compiled
from medpipe.types import Affine

__all__ = ["centred_affine", "tube", "tube_distance"]

Field = NDArray[np.float32]


def centred_affine(shape: Sequence[int], spacing_mm: Sequence[float]) -> Affine:
    """Return the RAS affine of a grid whose middle is the origin."""
    spacing = np.asarray(spacing_mm, float)
    return affine_from_parts(np.eye(3), spacing, -(np.asarray(shape) - 1) / 2 * spacing)


def tube(
    points_mm: ArrayLike,
    radius_mm: ArrayLike,
    shape: Sequence[int],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    parents: ArrayLike | None = None,
) -> NDArray[np.bool_]:
    """Return the voxels whose centre lies in the union of balls along a curve.

    Parameters
    ----------
    points_mm : array, shape (M, 3)
        Nodes in RAS mm; the middle of the grid is the origin (`centred_affine`).
    radius_mm : float or array of shape (M,)
        Radius at the nodes, linear between them.
    shape : three int
        Voxels along each axis.
    spacing_mm : three float
        Voxel size.
    parents : array of int, shape (M,), optional
        The node each node is joined to, -1 for none. By default the one before it.

    Returns
    -------
    ndarray of bool, shape (I, J, K)

    Raises
    ------
    UsageError
        If the arrays do not fit each other.
    """
    affine = centred_affine(shape, spacing_mm)
    field, _ = tube_distance(points_mm, radius_mm, affine, shape, parents=parents, reach_mm=0)
    return field <= 0


def tube_distance(
    points_mm: ArrayLike,
    radius_mm: ArrayLike,
    affine: Affine,
    shape: Sequence[int],
    *,
    parents: ArrayLike | None = None,
    reach_mm: float,
    owners: bool = False,
) -> tuple[Field, NDArray[np.int32] | None]:
    """Return the signed distance in mm of each voxel centre to a tube.

    Parameters
    ----------
    points_mm : array, shape (M, 3)
        Nodes in the world of `affine`.
    radius_mm : float or array of shape (M,)
        Radius at the nodes.
    affine : ndarray, shape (4, 4)
        Of the grid; its axes must be those of the world.
    shape : three int
        Voxels along each axis.
    parents : array of int, shape (M,), optional
        As for `tube`.
    reach_mm : float
        Distances are known up to here; beyond, the value is infinite.
    owners : bool
        Whether to return the nearest node's number too.

    Returns
    -------
    distance : ndarray of float32, shape (I, J, K)
        Negative inside. Exact outside; inside, the depth below the surface of the
        nearest segment's own tube (a bound where several overlap).
    owner : ndarray of int32, shape (I, J, K), or None
        The outer node of the nearest segment, -1 beyond the reach.

    Raises
    ------
    UsageError
        If the arrays do not fit each other or the affine is not axis-aligned.
    """
    points = np.asarray(points_mm, float)
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise UsageError("no points of a curve", expected="shape (M, 3)", got=str(points.shape))
    radius = np.broadcast_to(np.asarray(radius_mm, float), len(points))
    up = np.arange(-1, len(points) - 1) if parents is None else np.asarray(parents, np.int64)
    if len(shape) != 3 or up.shape != (len(points),):
        raise UsageError("the parents do not fit the points", got=str(up.shape))
    matrix = np.asarray(affine, float)[:3, :3]
    spacing = np.diag(matrix)
    if (matrix != np.diag(spacing)).any() or (spacing <= 0).any():
        raise UsageError("tubes are drawn on grids along the axes of the world")
    start = np.where(up < 0, np.arange(len(points)), up)
    # a root alone is a ball; one with children is part of their segments
    child = np.flatnonzero((up >= 0) | (np.bincount(start, minlength=len(up)) == 1))
    local = points - np.asarray(affine, float)[:3, 3]
    field = np.full(tuple(shape), np.inf, np.float32)
    owner = np.full(tuple(shape) if owners else (0, 0, 0), -1, np.int32)
    a, b, ra, rb = local[start[child]], local[child], radius[start[child]], radius[child]
    _sweep(field, owner, child, a, b, ra, rb, spacing, float(reach_mm))
    return field, owner if owners else None


@compiled
def _sweep(field, owner, child, a, b, ra, rb, spacing, reach):  # type: ignore[no-untyped-def]
    """Take the least signed distance to every segment, each in the box it reaches."""
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    for s in range(len(child)):
        for axis in range(3):
            bottom = min(a[s, axis] - ra[s], b[s, axis] - rb[s]) - reach
            top = max(a[s, axis] + ra[s], b[s, axis] + rb[s]) + reach
            low[axis] = max(0, int(np.ceil(bottom / spacing[axis])))
            high[axis] = min(field.shape[axis] - 1, int(np.floor(top / spacing[axis])))
        dx, dy, dz = b[s, 0] - a[s, 0], b[s, 1] - a[s, 1], b[s, 2] - a[s, 2]
        length = np.sqrt(dx * dx + dy * dy + dz * dz)
        for i in range(low[0], high[0] + 1):
            for j in range(low[1], high[1] + 1):
                for k in range(low[2], high[2] + 1):
                    x = i * spacing[0] - a[s, 0]
                    y = j * spacing[1] - a[s, 1]
                    z = k * spacing[2] - a[s, 2]
                    square = x * x + y * y + z * z
                    if length > abs(ra[s] - rb[s]):
                        along = (x * dx + y * dy + z * dz) / length
                        across = np.sqrt(max(square - along * along, 0.0))
                        # the nearest ball lies behind the foot of the perpendicular
                        # where the tube narrows
                        slope = (ra[s] - rb[s]) / length
                        h = (along - across * slope / np.sqrt(1 - slope * slope)) / length
                        h = min(max(h, 0.0), 1.0)
                        off = along - h * length
                        value = np.sqrt(across * across + off * off) - ra[s] - h * (rb[s] - ra[s])
                    elif ra[s] >= rb[s]:  # one ball holds the other
                        value = np.sqrt(square) - ra[s]
                    else:
                        ux, uy, uz = x - dx, y - dy, z - dz
                        value = np.sqrt(ux * ux + uy * uy + uz * uz) - rb[s]
                    if value <= reach and value < field[i, j, k]:
                        field[i, j, k] = value
                        if owner.size:
                            owner[i, j, k] = child[s]
