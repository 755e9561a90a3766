"""Image planes in space → an even grid, by one linear interpolation.

A voxel between two slices gets the bilinear value of its foot point in each,
weighted by the distance along the normal. The foot points are the nearest
places that were measured; for a tilted stack this is where the common
alternative (blending along the tilted stacking direction) reaches further.
Values are taken from the stored slices themselves, whatever their steps and
shifts, so nothing is interpolated twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from medpipe.geometry import LPS_TO_RAS
from medpipe.io.dicom_geometry import Stack
from medpipe.types import Affine

__all__ = ["Grid", "fill_missing", "patient_grid", "resample_stack", "slice_grid"]

EDGE = 1e-6
"""Fraction of a pixel by which a point may lie outside through rounding."""

Array = NDArray[np.float64]
Planes = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Grid:
    """An even grid: affine index → RAS+ mm, and its shape (I, J, K)."""

    affine: Affine
    shape: tuple[int, int, int]


def _corners(stack: Stack, rows: int, cols: int) -> Array:
    """Return the corner pixels of all slices, LPS+ mm, shape (4K, 3)."""
    right = stack.row * stack.spacing[1] * (cols - 1)
    down = stack.col * stack.spacing[0] * (rows - 1)
    origins = stack.origins
    return np.concatenate([origins, origins + right, origins + down, origins + right + down])


def _box(points: Array, axes: Array, spacing: Array) -> Grid:
    """Return the grid along `axes` (columns, RAS+) that covers `points` (RAS+ mm)."""
    inside = points @ axes
    low, extent = inside.min(0), np.ptp(inside, axis=0)
    shape = np.ceil(extent / spacing - 1e-3).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = axes @ low
    return Grid(affine, (int(shape[0]), int(shape[1]), int(shape[2])))


def patient_grid(stack: Stack, rows: int, cols: int, spacing_mm: Array) -> Grid:
    """Return the RAS-aligned box around a stack; spacing in mm along R, A, S."""
    points = _corners(stack, rows, cols) @ LPS_TO_RAS[:3, :3]
    return _box(points, np.eye(3), spacing_mm)


def slice_grid(stack: Stack, rows: int, cols: int, spacing_mm: Array, upright: bool) -> Grid:
    """Return a grid that keeps the slices' own plane.

    Parameters
    ----------
    spacing_mm : ndarray, shape (3,)
        Along a row, along a column, along the normal.
    upright : bool
        Whether the third axis is the normal; else it leans as the stack does.
    """
    if upright:
        axes = LPS_TO_RAS[:3, :3] @ np.stack([stack.row, stack.col, stack.normal], 1)
        return _box(_corners(stack, rows, cols) @ LPS_TO_RAS[:3, :3], axes, spacing_mm)
    affine = stack.affine(float(spacing_mm[2]))
    affine[:3, :2] *= spacing_mm[:2] / (stack.spacing[1], stack.spacing[0])
    extent = ((cols - 1) * stack.spacing[1], (rows - 1) * stack.spacing[0], np.ptp(stack.along_mm))
    shape = np.ceil(np.array(extent) / spacing_mm - 1e-3).astype(int) + 1
    return Grid(affine, (int(shape[0]), int(shape[1]), int(shape[2])))


def _ramp(grid_lps: Array, direction: Array, k: int, shape: tuple[int, int, int]) -> Array:
    """Return direction · position for output slab `k`, shape (I, J); affine, so two ramps."""
    steps = direction @ grid_lps[:3, :3]
    start = direction @ grid_lps[:3, 3] + k * steps[2]
    return start + steps[0] * np.arange(shape[0])[:, None] + steps[1] * np.arange(shape[1])


def _taps(x: Array, count: int) -> tuple[NDArray[np.int64], Array, NDArray[np.bool_]]:
    """Return the lower neighbour, the upper one's share, and whether `x` is inside 0..count-1."""
    inside = (x >= -EDGE) & (x <= count - 1 + EDGE)
    x = np.clip(x, 0, count - 1)
    low = np.minimum(x.astype(np.int64), max(count - 2, 0))
    return low, x - low, inside


def _foot(
    planes: Planes, at: NDArray[np.int64], x: Array, y: Array
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return bilinear values at (slice, column, row) coordinates, and which lie inside."""
    count, rows, cols = planes.shape
    inside = (x >= -EDGE) & (x <= cols - 1 + EDGE) & (y >= -EDGE) & (y <= rows - 1 + EDGE)
    # one tall image: a row coordinate clipped to its slice never reaches into the next slice
    tall = planes.reshape(count * rows, cols)
    coordinates = np.stack([at * rows + np.clip(y, 0, rows - 1), np.clip(x, 0, cols - 1)])
    return map_coordinates(tall, coordinates, np.float32, order=1, mode="nearest"), inside


def _foot_by_rows(
    planes: Planes, at: NDArray[np.int64], x: Array, y: Array
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Do the same where x (I,) depends on the first axis only, and slice and y (J,) on the second.

    Whole rows of the slices are then blended, which is much faster; the usual
    tilted head CT is such a case.
    """
    _, rows, cols = planes.shape
    y0, fy, y_inside = _taps(y, rows)
    x0, fx, x_inside = _taps(x, cols)
    fy32, fx32 = fy.astype(np.float32)[:, None], fx.astype(np.float32)
    lines = (1 - fy32) * planes[at, y0] + fy32 * planes[at, np.minimum(y0 + 1, rows - 1)]
    value = (1 - fx32) * lines[:, x0] + fx32 * lines[:, np.minimum(x0 + 1, cols - 1)]
    return value.T, x_inside[:, None] & y_inside


def _slab(
    planes: Planes, stack: Stack, origins: _Origins, ramps: list[Array], fill: float
) -> Array:
    """Interpolate the points whose depth, column and row coordinates (mm) are given."""
    ramps, by_rows = _squeeze(ramps, origins)
    depth, across, down = ramps
    along = origins.along
    slack = 1e-6 * (along[-1] - along[0])
    good = (depth >= along[0] - slack) & (depth <= along[-1] + slack)
    below = np.clip(np.searchsorted(along, depth, "right") - 1, 0, len(along) - 2)
    weight = np.clip((depth - along[below]) / (along[below + 1] - along[below]), 0, 1)
    value: Any = 0.0
    for which, share in ((below, 1 - weight), (below + 1, weight)):
        y = (down - origins.top[which]) / stack.spacing[0]
        if by_rows:
            # the row origin is the same for all slices here
            x = (across[:, 0] - origins.left[0]) / stack.spacing[1]
            foot, inside = _foot_by_rows(planes, which[0], x, y[0])
        else:
            x = (across - origins.left[which]) / stack.spacing[1]
            foot, inside = _foot(planes, which, x, y)
        value = value + share.astype(np.float32) * foot
        good = good & (inside | (share <= EDGE))
    return np.where(good, value, np.float32(fill))


@dataclass(frozen=True, slots=True)
class _Origins:
    """Where each slice's first pixel lies along the normal, its rows and its columns, in mm."""

    along: Array
    left: Array
    top: Array


def _squeeze(ramps: list[Array], origins: _Origins) -> tuple[list[Array], bool]:
    """Drop axes along which a coordinate is constant, if the first moves along rows only."""
    depth, across, down = ramps
    if (
        np.ptp(depth[:, 0]) < 1e-9
        and np.ptp(down[:, 0]) < 1e-9
        and np.ptp(across[0]) < 1e-9
        and np.ptp(origins.left) < 1e-9
    ):
        return [depth[:1], across[:, :1], down[:1]], True
    return ramps, False


def resample_stack(
    planes: Planes,
    stack: Stack,
    grid: Grid,
    fill: float,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Interpolate a stack of parallel planes onto an even grid.

    Parameters
    ----------
    planes : ndarray, shape (K, rows, cols)
        Slices in the order of `stack`; K ≥ 2.
    stack : Stack
        Where they lie; steps and in-plane shifts may vary.
    grid : Grid
        The output grid.
    fill : float
        Value outside the slices.
    progress : callable, optional
        Called with (slabs done, slabs in all).

    Returns
    -------
    ndarray, shape (I, J, K'), float32
    """
    lps = LPS_TO_RAS @ grid.affine
    directions = (stack.normal, stack.row, stack.col)
    origins = _Origins(*(stack.origins @ d for d in directions))
    out = np.empty((grid.shape[2], *grid.shape[:2]), np.float32)
    for k in range(grid.shape[2]):
        ramps = [_ramp(lps, d, k, grid.shape) for d in directions]
        out[k] = _slab(planes, stack, origins, ramps, fill)
        if progress is not None:
            progress(k + 1, grid.shape[2])
    return out.transpose(1, 2, 0)


def fill_missing(planes: Planes, stack: Stack) -> NDArray[np.float32]:
    """Put linearly interpolated slices into the holes of an otherwise even stack.

    The slices that exist are copied unchanged; a new one is the blend of its
    two neighbours, pixel by pixel along the stacking direction.

    Parameters
    ----------
    planes : ndarray, shape (K, rows, cols)
    stack : Stack
        Of kind ``missing``.

    Returns
    -------
    ndarray, shape (K', rows, cols), float32
    """
    ranks = stack.ranks
    out = np.empty((int(ranks[-1]) + 1, *planes.shape[1:]), np.float32)
    out[ranks] = planes
    for hole in stack.missing:
        after = int(np.searchsorted(ranks, hole))
        a, b = int(ranks[after - 1]), int(ranks[after])
        share = (hole - a) / (b - a)
        out[hole] = (1 - share) * out[a] + share * out[b]
    return out
