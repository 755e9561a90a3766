"""Simple tubes and trees to test with: what a centerline must find is plain to see.

Every function returns a `VesselTree` on a cubic grid whose middle is the origin; lengths are
in mm and voxels are 1 mm unless `spacing_mm` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import UsageError
from medpipe.phantoms.tubes import centred_affine
from medpipe.phantoms.vessel_tree import VesselTree

__all__ = [
    "diagonal_line",
    "helix",
    "ring",
    "straight_tube",
    "tree_of",
    "trifurcation",
    "two_trees",
    "y_shape",
]

Array = NDArray[np.float64]
Spacing = tuple[float, float, float]
UNIT: Spacing = (1.0, 1.0, 1.0)


def tree_of(
    branches: Sequence[tuple[ArrayLike, ArrayLike, int]],
    shape: tuple[int, int, int],
    spacing_mm: Spacing = UNIT,
    *,
    closed: bool = False,
) -> VesselTree:
    """Return a tree with its mask from curves.

    Parameters
    ----------
    branches : sequence of (points_mm, radius_mm, mother)
        Points (M, 3), radius of all or of each, and the number of an earlier branch whose
        last point the curve goes on from; -1 starts a tree. The point shared with the
        mother is not repeated.
    shape : three int
        Voxels along each axis.
    spacing_mm : three float
        Voxel size.
    closed : bool
        Whether the last point is joined to the first one.

    Raises
    ------
    UsageError
        If a mother comes after her daughter.
    """
    points, radius, parents, branch = [], [], [], []
    last: list[int] = []
    count = 0
    for number, (curve, thickness, mother) in enumerate(branches):
        if mother >= number:
            raise UsageError("a branch must come after the one it leaves", got=str(mother))
        nodes = np.asarray(curve, float)
        above = np.arange(count - 1, count + len(nodes) - 1)
        above[0] = -1 if mother < 0 else last[mother]
        points.append(nodes)
        radius.append(np.broadcast_to(np.asarray(thickness, float), len(nodes)))
        parents.append(above)
        branch.append(np.full(len(nodes), number))
        count += len(nodes)
        last.append(count - 1)
    tree = VesselTree(
        np.concatenate(points),
        np.concatenate(radius),
        np.concatenate(parents).astype(np.int64),
        np.concatenate(branch).astype(np.int64),
        np.zeros(shape, bool),
        centred_affine(shape, spacing_mm),
        closing=np.array([[0, count - 1]] if closed else [], np.int64).reshape(-1, 2),
    )
    np.less_equal(tree.distance_mm(0.0)[0], 0, out=tree.mask)
    return tree


def straight_tube(
    length_mm: float = 40.0,
    radius_mm: float = 4.0,
    *,
    direction: ArrayLike = (0.0, 0.0, 1.0),
    size: int = 64,
    spacing_mm: Spacing = UNIT,
) -> VesselTree:
    """Return a tube with round ends through the origin; `length_mm` is that of its axis."""
    along = np.asarray(direction, float)
    half = along / np.linalg.norm(along) * length_mm / 2
    return tree_of([(_line(-half, half), radius_mm, -1)], (size,) * 3, spacing_mm)


def helix(
    coil_mm: float = 16.0,
    pitch_mm: float = 20.0,
    turns: float = 2.0,
    radius_mm: float = 3.0,
    *,
    size: int = 64,
    spacing_mm: Spacing = UNIT,
) -> VesselTree:
    """Return a coiled tube about z: curvature R / (R² + c²), torsion c / (R² + c²), c = p / 2π."""
    turn = np.linspace(0, 2 * np.pi * turns, int(96 * turns) + 1)
    rise = pitch_mm * (turn / (2 * np.pi) - turns / 2)
    points = np.stack([coil_mm * np.cos(turn), coil_mm * np.sin(turn), rise], 1)
    return tree_of([(points, radius_mm, -1)], (size,) * 3, spacing_mm)


def ring(
    ring_mm: float = 18.0, radius_mm: float = 3.0, *, size: int = 64, spacing_mm: Spacing = UNIT
) -> VesselTree:
    """Return a torus about z: one loop, no end."""
    turn = np.arange(128) * (2 * np.pi / 128)
    points = ring_mm * np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)
    return tree_of([(points, radius_mm, -1)], (size,) * 3, spacing_mm, closed=True)


def y_shape(
    radius_mm: float = 4.0,
    arm_mm: float = 24.0,
    angle_deg: float = 75.0,
    *,
    size: int = 64,
    spacing_mm: Spacing = UNIT,
) -> VesselTree:
    """Return a trunk along z that splits at the origin into two equal arms in the plane y = 0."""
    return _star(radius_mm, arm_mm, np.radians(angle_deg / 2), 2, size, spacing_mm)


def trifurcation(
    radius_mm: float = 4.0,
    arm_mm: float = 24.0,
    angle_deg: float = 45.0,
    *,
    size: int = 64,
    spacing_mm: Spacing = UNIT,
) -> VesselTree:
    """Return a trunk along z that splits at the origin into three arms, `angle_deg` from z."""
    return _star(radius_mm, arm_mm, np.radians(angle_deg), 3, size, spacing_mm)


def two_trees(
    radius_mm: float = 3.0, gap_mm: float = 6.0, *, size: int = 64, spacing_mm: Spacing = UNIT
) -> VesselTree:
    """Return two parallel tubes along z with `gap_mm` between their walls; two roots."""
    shift = np.array([radius_mm + gap_mm / 2, 0.0, 0.0])
    up = np.array([0.0, 0.0, 18.0])
    lines = [_line(s * shift - up, s * shift + up) for s in (-1, 1)]
    return tree_of([(line, radius_mm, -1) for line in lines], (size,) * 3, spacing_mm)


def diagonal_line(voxels: int = 20, *, size: int = 32, spacing_mm: Spacing = UNIT) -> VesselTree:
    """Return a line one voxel thin along the diagonal of the grid: joined at corners alone."""
    spacing = np.asarray(spacing_mm, float)
    first = (size - voxels) // 2
    index = first + np.arange(voxels)
    points = (index[:, None] - (size - 1) / 2) * spacing
    # the balls' centres are voxel centres and no other voxel centre is as near
    return tree_of([(points, 0.45 * spacing.min(), -1)], (size,) * 3, spacing_mm)


def _star(
    radius: float, arm: float, angle: float, arms: int, size: int, spacing: Spacing
) -> VesselTree:
    up = np.array([0.0, 0.0, 1.0])
    daughter = radius / np.cbrt(arms)
    branches: list[tuple[ArrayLike, ArrayLike, int]] = [(_line(-arm * up, 0 * up), radius, -1)]
    for n in range(arms):
        turn = 2 * np.pi * n / arms
        aside = np.array([np.cos(turn), np.sin(turn), 0.0]) * np.sin(angle)
        tip = arm * (aside + np.cos(angle) * up)
        branches.append((_line(0 * up, tip)[1:], daughter, 0))
    return tree_of(branches, (size,) * 3, spacing)


def _line(a: Array, b: Array) -> Array:
    """Return points from `a` to `b`, half a millimetre apart or less."""
    count = int(np.ceil(np.linalg.norm(b - a) / 0.5)) + 1
    return np.linspace(a, b, count)
