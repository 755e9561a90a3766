"""Columns along an axis of an image, straight or shifted by a reference surface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_problem, same_grid, spacing_mm
from medpipe.graphcut.columns.base import Columns
from medpipe.graphcut.columns.inverse import Direct, InverseMap, Location, bilinear, neighbours
from medpipe.graphcut.columns.sampling import to_voxels
from medpipe.types import Affine

__all__ = ["flat_columns", "flattened_columns"]


@dataclass(frozen=True)
class FlatMap(InverseMap):
    """Place of a point among columns along one axis of a grid.

    `shift_mm` (X, Y) is the depth of position 0 of each column, and `reverse` counts
    depth from the last voxel.
    """

    shape: tuple[int, int, int]
    affine: Affine
    axis: int
    reverse: bool
    shift_mm: torch.Tensor

    def locate(self, points_mm: torch.Tensor) -> Location:
        """Return the place of points (N, 3) among the columns."""
        voxels = to_voxels(points_mm, self.affine)
        a, b = _lateral(self.axis)
        rows, row_weights, inside = neighbours(voxels[:, a], self.shape[a], False)
        cols, col_weights, beside = neighbours(voxels[:, b], self.shape[b], False)
        columns, weights = bilinear(rows, row_weights, cols, col_weights, self.shape[b])
        shift = (self.shift_mm.reshape(-1)[columns] * weights).sum(-1)
        position = self._depth(voxels[:, self.axis]) - shift
        return Location(columns, weights, position.masked_fill(~(inside & beside), torch.nan))

    def direct(self, shape: tuple[int, int, int], affine: Affine) -> Direct | None:
        """Return the positions of all voxels if the grid is the one of the columns."""
        if not same_grid(self.affine, self.shape, affine, shape, tol_mm=1e-6):
            return None
        index = torch.arange(shape[self.axis], dtype=torch.float64, device=self.shift_mm.device)
        return Direct(self._depth(index) - self.shift_mm[..., None], self.axis)

    def _depth(self, voxel: torch.Tensor) -> torch.Tensor:
        step = float(spacing_mm(self.affine)[self.axis])
        return (self.shape[self.axis] - 1 - voxel if self.reverse else voxel) * step


def flat_columns(
    shape: Sequence[int],
    affine: Affine,
    *,
    axis: int = 2,
    node_mm: float | None = None,
    reverse: bool = False,
    wrap: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Columns:
    """Return one column through every voxel of a face of an image.

    Parameters
    ----------
    shape, affine
        Grid of the image, voxel index to RAS+ mm.
    axis : int
        Axis of the image that the columns run along; the two others, in their
        order, are the lattice.
    node_mm : float, optional
        Spacing of the nodes; default: the voxel spacing, nodes at voxel centres.
    reverse : bool
        Run from the last voxel of the axis to the first.
    wrap : tuple of int
        Lattice axes whose end is joined to their beginning (0 for a ring scan).
    dtype, device
        Of the points.

    Returns
    -------
    Columns
        Position 0 is the centre of the first voxel.
    """
    size, step = _check_grid(shape, affine, axis)
    spacing = step if node_mm is None else _check_positive("node_mm", node_mm)
    depth_mm = (size[axis] - 1) * step
    count = size[axis] if node_mm is None else int(np.floor(depth_mm / spacing + 1e-9)) + 1
    where = torch.arange(count, dtype=torch.float64, device=device) * spacing
    a, b = _lateral(axis)
    shift = torch.zeros((size[a], size[b]), dtype=torch.float64, device=device)
    inverse = FlatMap(size, np.asarray(affine, float), axis, reverse, shift)
    return _along_axis(inverse, where, wrap, dtype)


def flattened_columns(
    shape: Sequence[int],
    affine: Affine,
    reference_mm: torch.Tensor,
    *,
    before_mm: float,
    beyond_mm: float,
    axis: int = 2,
    node_mm: float | None = None,
    reverse: bool = False,
    whole_voxels: bool = False,
    wrap: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
) -> Columns:
    """Return columns along an axis, shifted so that a reference surface is flat.

    Smoothness then acts on distances from the reference, as in retinal OCT where
    the layers follow the pigment epithelium.

    Parameters
    ----------
    shape, affine, axis, node_mm, reverse, wrap, dtype
        As in `flat_columns`.
    reference_mm : Tensor, shape (X, Y)
        Depth of the reference in mm from the centre of the first voxel of the column
        (what `flat_columns` calls a position). Its device is the one of the columns.
    before_mm, beyond_mm : float
        How far the columns reach to either side of the reference.
    whole_voxels : bool
        Round the reference to voxel centres, so that sampling interpolates nothing.

    Returns
    -------
    Columns
        Positions are distances from the (rounded) reference, negative before it.
        Nodes may lie outside the image.
    """
    size, step = _check_grid(shape, affine, axis)
    spacing = step if node_mm is None else _check_positive("node_mm", node_mm)
    a, b = _lateral(axis)
    reference = reference_mm.to(torch.float64)
    if tuple(reference.shape) != (size[a], size[b]) or not bool(torch.isfinite(reference).all()):
        raise StepError(
            "the reference surface is unusable",
            expected=f"finite depths, shape {(size[a], size[b])}",
            got=f"shape {tuple(reference.shape)}",
        )
    if before_mm < 0 or beyond_mm < 0 or before_mm + beyond_mm < spacing:
        raise UsageError("the columns are shorter than one node spacing")
    if whole_voxels:
        reference = (reference / step).round() * step
    first, last = np.floor(before_mm / spacing + 1e-9), np.floor(beyond_mm / spacing + 1e-9)
    where = torch.arange(-int(first), int(last) + 1, dtype=torch.float64, device=reference.device)
    inverse = FlatMap(size, np.asarray(affine, float), axis, reverse, reference)
    return _along_axis(inverse, where * spacing, wrap, dtype)


def _along_axis(
    inverse: FlatMap, where_mm: torch.Tensor, wrap: tuple[int, ...], dtype: torch.dtype
) -> Columns:
    """Return the columns of a map, with nodes at positions `where_mm` (K,)."""
    a, b = _lateral(inverse.axis)
    shift, device = inverse.shift_mm, where_mm.device
    matrix = torch.from_numpy(inverse.affine).to(device)
    voxel = (where_mm + shift[..., None]) / float(spacing_mm(inverse.affine)[inverse.axis])
    if inverse.reverse:
        voxel = inverse.shape[inverse.axis] - 1 - voxel
    rows = torch.arange(inverse.shape[a], dtype=torch.float64, device=device)
    cols = torch.arange(inverse.shape[b], dtype=torch.float64, device=device)
    face = rows[:, None, None] * matrix[:3, a] + cols[:, None] * matrix[:3, b] + matrix[:3, 3]
    points = face[:, :, None] + voxel[..., None] * matrix[:3, inverse.axis]
    return Columns(points.to(dtype), where_mm.expand(voxel.shape), wrap=wrap, inverse=inverse)


def _lateral(axis: int) -> tuple[int, int]:
    a, b = (n for n in range(3) if n != axis)
    return a, b


def _check_grid(
    shape: Sequence[int], affine: Affine, axis: int
) -> tuple[tuple[int, int, int], float]:
    """Return the shape as three integers and the voxel spacing along the axis in mm."""
    if axis not in (0, 1, 2):
        raise UsageError("the axis of the columns does not exist", expected="0, 1 or 2")
    if len(shape) != 3 or min(shape) < 1 or shape[axis] < 2:
        raise StepError(
            "the image is too small for columns",
            expected="three axes, two voxels or more along the columns",
            got=str(tuple(shape)),
        )
    problem = affine_problem(affine)
    if problem:
        raise StepError(problem, expected="a finite, invertible affine in mm")
    return (int(shape[0]), int(shape[1]), int(shape[2])), float(spacing_mm(affine)[axis])


def _check_positive(name: str, value: float) -> float:
    if not (np.isfinite(value) and value > 0):
        raise UsageError(f"{name} is wrong", expected="a positive number", got=f"{value:g}")
    return float(value)
