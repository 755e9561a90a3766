"""Affine algebra and what makes an affine usable.

Everything here is float64 numpy on (4, 4) matrices from voxel index to RAS+
millimetres. No image is touched.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.types import Affine

__all__ = [
    "LPS_TO_RAS",
    "affine_from_parts",
    "affine_problem",
    "axis_codes",
    "center_mm",
    "corners_mm",
    "is_sheared",
    "same_grid",
    "shear_angle_deg",
    "spacing_mm",
    "to_mm",
]

LPS_TO_RAS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM patient coordinates (LPS+) to RAS+, and back: its own inverse."""

MIN_SPACING_MM = 1e-3
MAX_SPACING_MM = 1e3


def spacing_mm(affine: ArrayLike) -> NDArray[np.float64]:
    """Return the distance in mm between neighbouring voxel centres, per axis, shape (3,)."""
    return np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)


def affine_from_parts(directions: ArrayLike, spacing: ArrayLike, origin: ArrayLike) -> Affine:
    """Build an affine from direction columns (3, 3), spacing in mm (3,) and origin in mm (3,)."""
    out = np.eye(4)
    out[:3, :3] = np.asarray(directions, float) * np.asarray(spacing, float)
    out[:3, 3] = origin
    return out


def to_mm(affine: ArrayLike, index: ArrayLike) -> NDArray[np.float64]:
    """Return the RAS+ mm position of voxel indices, shape (..., 3)."""
    a = np.asarray(affine, float)
    return np.asarray(index, float) @ a[:3, :3].T + a[:3, 3]


def corners_mm(affine: ArrayLike, shape: ArrayLike) -> NDArray[np.float64]:
    """Return the mm positions of the eight corner voxel centres, shape (8, 3)."""
    top = np.asarray(shape, float)[:3] - 1
    index = np.stack(np.meshgrid(*[(0.0, t) for t in top], indexing="ij"), -1).reshape(-1, 3)
    return to_mm(affine, index)


def center_mm(affine: ArrayLike, shape: ArrayLike) -> NDArray[np.float64]:
    """Return the mm position of the middle of the grid, shape (3,)."""
    return to_mm(affine, (np.asarray(shape, float)[:3] - 1) / 2)


def affine_problem(affine: ArrayLike) -> str | None:
    """Say what makes an affine unusable, or return None for a usable one.

    An affine is usable if it is finite, its last row is 0 0 0 1, its spacings
    lie between 0.001 and 1000 mm and its axes are not nearly coplanar.
    """
    a = np.asarray(affine, float)
    if a.shape != (4, 4):
        return f"the affine has shape {a.shape}, not (4, 4)"
    if not np.isfinite(a).all():
        return "the affine holds NaN or infinity"
    if not np.allclose(a[3], (0, 0, 0, 1)):
        return "the affine's last row is not 0 0 0 1"
    step = spacing_mm(a)
    if (step == 0).any():
        return "the affine is singular: an axis has zero spacing"
    if (step < MIN_SPACING_MM).any() or (step > MAX_SPACING_MM).any():
        text = " × ".join(f"{s:g}" for s in step)
        return f"the voxel spacing {text} mm is outside {MIN_SPACING_MM:g}..{MAX_SPACING_MM:g} mm"
    if abs(np.linalg.det(a[:3, :3] / step)) < 1e-3:
        return "the affine is singular: its axes lie in one plane"
    return None


def shear_angle_deg(affine: ArrayLike) -> float:
    """Return how far the axes are from orthogonal: the largest deviation from 90°, in degrees."""
    unit = np.asarray(affine, float)[:3, :3] / spacing_mm(affine)
    cosines = np.abs([unit[:, i] @ unit[:, j] for i, j in ((0, 1), (0, 2), (1, 2))])
    return float(np.degrees(np.arcsin(np.clip(cosines, 0, 1).max())))


def is_sheared(affine: ArrayLike, tol_deg: float = 0.05) -> bool:
    """Return whether the axes deviate from orthogonal by more than `tol_deg` degrees."""
    return shear_angle_deg(affine) > tol_deg


def axis_codes(affine: ArrayLike) -> str:
    """Return the direction each voxel axis points to, e.g. ``"RAS"`` or ``"LPS"``.

    The assignment maximises the total alignment over the six permutations, so
    it is right up to 45° and never names one world axis twice.
    """
    unit = np.asarray(affine, float)[:3, :3] / spacing_mm(affine)
    best = max(permutations(range(3)), key=lambda p: sum(abs(unit[w, v]) for v, w in enumerate(p)))
    names = (("L", "R"), ("P", "A"), ("I", "S"))
    return "".join(names[w][int(unit[w, v] > 0)] for v, w in enumerate(best))


def same_grid(
    affine_a: ArrayLike,
    shape_a: ArrayLike,
    affine_b: ArrayLike,
    shape_b: ArrayLike,
    tol_mm: float = 1e-2,
) -> bool:
    """Return whether two grids have the same shape and corner positions within `tol_mm`."""
    a, b = np.asarray(shape_a)[:3], np.asarray(shape_b)[:3]
    if not np.array_equal(a, b):
        return False
    return bool(np.abs(corners_mm(affine_a, a) - corners_mm(affine_b, b)).max() <= tol_mm)
