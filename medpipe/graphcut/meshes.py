"""Triangle meshes from surfaces on a grid of columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medpipe.errors import StepError

__all__ = ["mesh_area_mm2", "surface_mesh", "triangle_areas_mm2", "vertex_areas_mm2"]


def surface_mesh(
    points_mm: torch.Tensor,
    wrap: Sequence[bool] = (False, False),
    valid: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the triangle mesh of a surface that has one point on each column.

    Every cell of four neighbouring columns is cut along its shorter diagonal. All
    triangles are turned the same way: their normal is d(point)/dx × d(point)/dy.
    Where one corner of a cell is missing, the triangle of the other three stays.

    Parameters
    ----------
    points_mm : Tensor, shape (X, Y, 3)
        Where the surface meets each column.
    wrap : (bool, bool)
        Axes whose last column is a neighbour of the first.
    valid : Tensor of bool, shape (X, Y), optional
        Columns that have a point; by default those whose point is finite.

    Returns
    -------
    vertices : Tensor, shape (N, 3)
        ``points_mm[valid]``: what is known for each column fits when indexed the same.
    triangles : Tensor of int64, shape (T, 3)
        Indices of vertices.

    Raises
    ------
    StepError
        If the shapes do not fit, an axis is too short for a mesh or a point that
        should be there is not finite.
    """
    keep = _kept(points_mm, valid)
    for axis in (0, 1):
        least = 3 if wrap[axis] else 2
        if points_mm.shape[axis] < least:
            raise StepError(
                "the surface has too few columns for a mesh",
                where=f"axis {axis}",
                expected=f"{least} or more",
                got=str(points_mm.shape[axis]),
            )
    number = torch.cumsum(keep.reshape(-1), 0).reshape(keep.shape) - 1
    return points_mm[keep], number.reshape(-1)[_grid_triangles(points_mm, wrap, keep)]


def _kept(points_mm: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Return which columns have a point, shape (X, Y)."""
    if points_mm.ndim != 3 or points_mm.shape[-1] != 3:
        raise StepError(
            "the points of a surface have the wrong shape",
            expected="(X, Y, 3)",
            got=str(tuple(points_mm.shape)),
        )
    finite = torch.isfinite(points_mm).all(dim=-1)
    if valid is None:
        return finite
    if valid.shape != finite.shape or valid.dtype != torch.bool:
        raise StepError(
            "the mask of columns does not fit the surface",
            expected=f"bool {tuple(finite.shape)}",
            got=f"{str(valid.dtype).removeprefix('torch.')} {tuple(valid.shape)}",
        )
    if bool((valid & ~finite).any()):
        raise StepError("a point of the surface is not finite", hint="leave its column out")
    return valid


def _grid_triangles(
    points_mm: torch.Tensor, wrap: Sequence[bool], keep: torch.Tensor
) -> torch.Tensor:
    """Return the triangles as flat indices of columns, shape (T, 3)."""
    x, y = keep.shape
    index = torch.arange(x * y, device=keep.device).reshape(x, y)
    cut = (slice(None) if wrap[0] else slice(-1), slice(None) if wrap[1] else slice(-1))
    a, b, c, d = (
        torch.roll(index, shift, (0, 1))[cut].reshape(-1)
        for shift in ((0, 0), (-1, 0), (-1, -1), (0, -1))
    )
    flat, there = points_mm.reshape(-1, 3).to(torch.float64), keep.reshape(-1)
    shorter = (flat[b] - flat[d]).square().sum(-1) < (flat[a] - flat[c]).square().sum(-1)
    # A diagonal needs both its ends; a cell without one corner has one diagonal left.
    across = torch.where(there[a] & there[c], shorter & there[b] & there[d], there[b] & there[d])
    first = torch.where(across[:, None], torch.stack([a, b, d], 1), torch.stack([a, b, c], 1))
    second = torch.where(across[:, None], torch.stack([b, c, d], 1), torch.stack([a, c, d], 1))
    triangles = torch.stack([first, second], 1).reshape(-1, 3)
    return triangles[there[triangles].all(dim=1)]


def triangle_areas_mm2(vertices: torch.Tensor, triangles: torch.Tensor) -> torch.Tensor:
    """Return the area of each triangle (T,) from vertices (N, 3) in mm and triangles (T, 3)."""
    a, b, c = vertices.to(torch.float64)[triangles].unbind(dim=1)
    return torch.linalg.vector_norm(torch.linalg.cross(b - a, c - a), dim=1) / 2


def mesh_area_mm2(vertices: torch.Tensor, triangles: torch.Tensor) -> float:
    """Return the area of a mesh of vertices (N, 3) in mm and triangles (T, 3)."""
    return float(triangle_areas_mm2(vertices, triangles).sum())


def vertex_areas_mm2(vertices: torch.Tensor, triangles: torch.Tensor) -> torch.Tensor:
    """Return the area that belongs to each vertex (N,): a third of the triangles around it."""
    shares = (triangle_areas_mm2(vertices, triangles) / 3).repeat_interleave(3)
    areas = torch.zeros(len(vertices), dtype=torch.float64, device=vertices.device)
    return areas.index_add_(0, triangles.reshape(-1), shares)
