"""Cells between neighbouring columns: volumes, orientation, triangles."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from medpipe.graphcut.columns.base import Columns

__all__ = ["cell_volumes", "first_crossing", "lattice_triangles"]

GAUSS = (0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5)
"""Two-point Gauss rule on [0, 1]: exact for the Jacobian, of degree 2 in each variable."""
CORNERS = (0.0, 1.0)
TRIANGLE = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))


def cell_volumes(columns: Columns) -> torch.Tensor:
    """Return the signed volumes of the cells; see `Columns.cell_volumes_mm3`."""
    points = columns.points_mm.to(torch.float64)
    if len(columns.shape) == 2:
        ends = _lattice_ends(points, columns.wrap)
        parts = [_hexahedron(ends, *uvw) / 8 for uvw in product(GAUSS, repeat=3)]
    else:
        vertices = [points[columns.triangles()[:, n]] for n in range(3)]
        parts = [_prism(vertices, 1 / 3, 1 / 3, t) / 4 for t in GAUSS]
    return torch.stack(parts).sum(0)


def first_crossing(columns: Columns) -> tuple[int, int] | None:
    """Return the flat column and the node of a cell that is folded, or None."""
    volumes = cell_volumes(columns)
    if volumes.numel() == 0:
        return None
    points = columns.points_mm.to(torch.float64)
    sign = torch.sign(volumes.median())
    least = torch.full_like(volumes, torch.inf)
    if len(columns.shape) == 2:
        ends = _lattice_ends(points, columns.wrap)
        for uvw in product(CORNERS, repeat=3):
            least = torch.minimum(least, sign * _hexahedron(ends, *uvw))
    else:
        vertices = [points[columns.triangles()[:, n]] for n in range(3)]
        for (r, s), t in product(TRIANGLE, CORNERS):
            least = torch.minimum(least, sign * _prism(vertices, r, s, t))
    # cells may have no volume (around the centre of a polar grid), but not turn over
    bad = torch.nonzero(least < -1e-9 * volumes.abs().median())
    if len(bad) == 0 and float(sign) != 0:
        return None
    where = [int(v) for v in bad[0]] if len(bad) else [0] * volumes.ndim
    if len(columns.shape) == 2:
        return where[0] * columns.shape[1] + where[1], where[2]
    return int(columns.triangles()[where[0], 0]), where[1]


def lattice_triangles(
    shape: tuple[int, ...], wrap: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """Return two triangles for each cell of a lattice of columns, int64 (F, 3)."""
    index = torch.arange(shape[0] * shape[1], device=device).reshape(shape)
    for axis in wrap:
        index = torch.cat([index, index.narrow(axis, 0, 1)], axis)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    return torch.stack(
        [torch.stack([a, b, c], -1).reshape(-1, 3), torch.stack([a, c, d], -1).reshape(-1, 3)], 1
    ).reshape(-1, 3)


def _lattice_ends(
    points: torch.Tensor, wrap: tuple[int, ...]
) -> dict[tuple[int, ...], torch.Tensor]:
    """Return the eight corners of all cells, each (X', Y', K - 1, 3)."""
    for axis in wrap:
        points = torch.cat([points, points.narrow(axis, 0, 1)], axis)
    sizes = points.shape[:3]
    out = {}
    for corner in product((0, 1), repeat=3):
        part = points
        for axis, start in enumerate(corner):
            part = part.narrow(axis, start, max(sizes[axis] - 1, 0))
        out[corner] = part
    return out


def _hexahedron(
    ends: dict[tuple[int, ...], torch.Tensor], u: float, v: float, w: float
) -> torch.Tensor:
    """Return the determinant of the Jacobian of the trilinear map at (u, v, w)."""
    at = (u, v, w)
    sides = []
    for axis in range(3):
        side = torch.zeros_like(ends[0, 0, 0])
        for corner, point in ends.items():
            weight = 1.0
            for other, bit in enumerate(corner):
                if other == axis:
                    weight *= 1 if bit else -1
                else:
                    weight *= at[other] if bit else 1 - at[other]
            if weight:
                side = side + weight * point
        sides.append(side)
    return _determinant(*sides)


def _prism(vertices: list[torch.Tensor], r: float, s: float, t: float) -> torch.Tensor:
    """Return the determinant of the Jacobian of the prisms over triangles at (r, s, t)."""
    a, b, c = vertices
    level = [(1 - t) * p[:, :-1] + t * p[:, 1:] for p in (a, b, c)]
    rise = [p[:, 1:] - p[:, :-1] for p in (a, b, c)]
    along = (1 - r - s) * rise[0] + r * rise[1] + s * rise[2]
    return _determinant(level[1] - level[0], level[2] - level[0], along)


def _determinant(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return (torch.linalg.cross(a, b) * c).sum(-1)
