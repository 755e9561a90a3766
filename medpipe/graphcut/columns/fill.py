"""Label volumes from surface positions along columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from medpipe.graphcut.columns.inverse import InverseMap, Location
from medpipe.graphcut.columns.nearest import NearestMap
from medpipe.graphcut.columns.sampling import to_voxels
from medpipe.graphcut.columns.voxelise import is_closed, voxelise
from medpipe.types import Affine

if TYPE_CHECKING:
    from medpipe.graphcut.columns.base import Columns

__all__ = ["fill_labels"]

CHUNK = 2**19  # voxels at a time; a locator holds some 60 numbers for each
TOL_MM = 1e-6  # a voxel this close behind a surface lies on it


def fill_labels(
    columns: Columns,
    position_mm: torch.Tensor,
    shape: tuple[int, int, int],
    affine: Affine,
    uncovered: int,
) -> torch.Tensor:
    """Return the region of every voxel, int16 (I, J, K); see `Columns.labels`."""
    if columns.inverse is None:
        if columns.faces is not None and is_closed(columns.faces):
            return _inside_closed(columns, position_mm, shape, affine)
        return _locate_all(NearestMap(columns), position_mm, shape, affine, uncovered)
    direct = columns.inverse.direct(shape, affine)
    if direct is None:
        return _locate_all(columns.inverse, position_mm, shape, affine, uncovered)
    labels = torch.zeros_like(direct.position_mm, dtype=torch.int16)
    for surface in position_mm:
        labels += surface[..., None] < direct.position_mm - TOL_MM
    labels.masked_fill_(torch.isnan(position_mm).any(0)[..., None], uncovered)
    return labels.movedim(-1, direct.axis).contiguous()


def _locate_all(
    inverse: InverseMap,
    position_mm: torch.Tensor,
    shape: tuple[int, int, int],
    affine: Affine,
    uncovered: int,
) -> torch.Tensor:
    """Return the regions by locating every voxel among the columns."""
    device = position_mm.device
    surfaces = position_mm.flatten(1)
    matrix = torch.from_numpy(np.asarray(affine, float)).to(device)
    count = shape[0] * shape[1] * shape[2]
    out = torch.empty(count, dtype=torch.int16, device=device)
    for start in range(0, count, CHUNK):
        flat = torch.arange(start, min(start + CHUNK, count), device=device)
        index = torch.stack(
            [flat // (shape[1] * shape[2]), flat // shape[2] % shape[1], flat % shape[2]], -1
        )
        points = index.to(torch.float64) @ matrix[:3, :3].T + matrix[:3, 3]
        out[start : start + CHUNK] = _regions_of(inverse, points, surfaces, uncovered)
    return out.reshape(shape)


def _regions_of(
    inverse: InverseMap, points: torch.Tensor, surfaces: torch.Tensor, uncovered: int
) -> torch.Tensor:
    """Return the regions of points; those clearly before or beyond all surfaces at once."""
    quick = inverse.quick_position(points)
    if quick is None or bool(torch.isnan(surfaces).any()):
        return _regions(inverse.locate(points), surfaces, uncovered)
    labels = torch.where(quick > surfaces.max(), len(surfaces), 0).to(torch.int16)
    between = (quick >= surfaces.min() - TOL_MM) & (quick <= surfaces.max() + TOL_MM)
    near = torch.nonzero(between)[:, 0]
    if len(near):
        labels[near] = _regions(inverse.locate(points[near]), surfaces, uncovered)
    return labels


def _regions(place: Location, surfaces: torch.Tensor, uncovered: int) -> torch.Tensor:
    """Return the number of surfaces before each located point."""
    labels = torch.zeros_like(place.position_mm, dtype=torch.int16)
    missing = torch.isnan(place.position_mm)
    for surface in surfaces:
        values = surface[place.columns]
        # a missing column beside the one through the point has weight 0
        height = torch.where(place.weights == 0, 0, place.weights * values).sum(-1)
        labels += height < place.position_mm - TOL_MM
        missing |= torch.isnan(height)
    return labels.masked_fill_(missing, uncovered)


def _inside_closed(
    columns: Columns, position_mm: torch.Tensor, shape: tuple[int, int, int], affine: Affine
) -> torch.Tensor:
    """Return the regions of nested closed surfaces by their winding numbers."""
    faces = columns.triangles()
    labels = torch.zeros(shape, dtype=torch.int16, device=position_mm.device)
    for points in columns.points_at(position_mm):
        labels += ~voxelise(to_voxels(points, affine), faces, shape)
    return labels
