"""How thick the layers between surfaces are, and what to say of it in numbers.

Two definitions. *Along the columns*: the distance of the two points of a column,
as retinal layers are reported. *Nearest*: the mean of the distances from each of
the two points to the other surface, which does not depend on how the columns
stand; for a layer tilted by an angle it is the cosine of it times the other
(Fischl and Dale, PNAS 97 (2000) 11050, measure the cortex this way).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.meshes import surface_mesh
from medpipe.graphcut.sectors import Sectors
from medpipe.steps._base import quantiles
from medpipe.types import Json

__all__ = ["column_thickness_mm", "nearest_thickness_mm", "thickness_table"]

UNITS = {"um": 1000.0, "mm": 1.0}
PERCENTS = {"p5": 5.0, "median": 50.0, "p95": 95.0}

_NEAREST = 4  # vertices whose triangles are tried; more matters only on very skewed grids
_CHUNK = 8192


def column_thickness_mm(positions_mm: torch.Tensor) -> torch.Tensor:
    """Return the thickness of the layers along the columns.

    Parameters
    ----------
    positions_mm : Tensor, shape (S, X, Y) or (S, C)
        Position of each surface on each column, growing with the surface; NaN where
        a surface has none.

    Returns
    -------
    Tensor, shape (S - 1, X, Y) or (S - 1, C)
        Layer s lies between surfaces s and s + 1; NaN where either has no position.

    Raises
    ------
    StepError
        If there are fewer than two surfaces or two of them cross.
    """
    if positions_mm.ndim < 2 or len(positions_mm) < 2:
        raise StepError(
            "a thickness needs two surfaces",
            expected="positions (S, X, Y) with S of 2 or more",
            got=f"shape {tuple(positions_mm.shape)}",
        )
    thickness = positions_mm.diff(dim=0)
    for layer, crossed in enumerate((thickness < 0).flatten(1).sum(1).tolist()):
        if crossed:
            raise StepError(
                "two surfaces cross",
                where=f"surfaces {layer} and {layer + 1}",
                expected="positions that grow from surface to surface",
                got=f"{crossed} columns with the opposite order",
            )
    return thickness


def nearest_thickness_mm(
    upper_mm: torch.Tensor,
    lower_mm: torch.Tensor,
    *,
    wrap: Sequence[bool] = (False, False),
    valid: torch.Tensor | None = None,
    faces: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the thickness between two surfaces by nearest points, the same either way round.

    Parameters
    ----------
    upper_mm, lower_mm : Tensor, shape (X, Y, 3), or (C, 3) with `faces`
        The points of the two surfaces on each column.
    wrap : (bool, bool)
        Axes whose last column is a neighbour of the first.
    valid : Tensor of bool, shape (X, Y) or (C,), optional
        Columns to use, as far as both points are finite; by default all.
    faces : Tensor of int64, shape (F, 3), optional
        Triangles of columns that do not lie on a grid.

    Returns
    -------
    Tensor, shape (X, Y) or (C,), float64
        Mean of the distance from the upper point to the lower surface and from the
        lower point to the upper surface; NaN at columns that are left out.

    Notes
    -----
    The nearest point is looked for on the triangles around the four nearest points
    of the other surface (on a single row of columns, on the segments of its line).
    Close to the rim of an open surface the other surface may end before the true
    foot point does; the distance is then to the rim.
    """
    _check_shapes(upper_mm, lower_mm, valid, on_grid=faces is None)
    upper_mm, lower_mm = upper_mm.to(torch.float64), lower_mm.to(torch.float64)
    finite = torch.isfinite(upper_mm + lower_mm).all(dim=-1)
    valid = finite if valid is None else valid & finite
    out = torch.full(valid.shape, torch.nan, dtype=torch.float64, device=upper_mm.device)
    if bool(valid.any()):
        down = _distances(upper_mm[valid], *_pieces(lower_mm, wrap, valid, faces))
        up = _distances(lower_mm[valid], *_pieces(upper_mm, wrap, valid, faces))
        out[valid] = (down + up) / 2
    return out


def _check_shapes(
    upper_mm: torch.Tensor, lower_mm: torch.Tensor, valid: torch.Tensor | None, *, on_grid: bool
) -> None:
    if upper_mm.ndim != (3 if on_grid else 2) or upper_mm.shape[-1] != 3:
        raise StepError(
            "the points of the surfaces have the wrong shape",
            expected="(X, Y, 3), or (C, 3) with faces",
            got=str(tuple(upper_mm.shape)),
        )
    columns = upper_mm.shape[:-1]
    for other in (lower_mm.shape[:-1], columns if valid is None else valid.shape):
        if other != columns:
            raise StepError(
                "the surfaces and their mask are on different columns",
                expected=str(tuple(columns)),
                got=str(tuple(other)),
            )


def _distances(
    points: torch.Tensor, vertices: torch.Tensor, triangles: torch.Tensor
) -> torch.Tensor:
    """Return the distance of points (N, 3) to a mesh."""
    distance, index = _nearest_vertices(vertices, points)
    best = distance[:, 0]
    if not len(triangles):
        return best
    around = _around(triangles, len(vertices))
    for start in range(0, len(points), _CHUNK):
        part = slice(start, start + _CHUNK)
        tried = around[index[part]].flatten(1)
        corners = vertices[triangles[tried.clamp_min(0)]]
        squares = _squared_distance(points[part, None], corners.unbind(dim=2))
        squares = squares.masked_fill(tried < 0, torch.inf)
        best[part] = torch.minimum(best[part], squares.amin(dim=1).sqrt())
    return best


def _pieces(
    surface: torch.Tensor,
    wrap: Sequence[bool],
    valid: torch.Tensor,
    faces: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vertices and triangles; a single row gives its segments as flat triangles."""
    if faces is not None:
        number = torch.cumsum(valid, 0) - 1
        return surface[valid], number[faces[valid[faces].all(dim=1)]]
    if min(surface.shape[:2]) > 1:
        return surface_mesh(surface, wrap, valid)
    row, there = surface.reshape(-1, 3), valid.reshape(-1)
    closed = wrap[0] if surface.shape[0] > 1 else wrap[1]
    here = torch.arange(len(row), device=row.device)
    after = here.roll(-1)
    if not closed:
        here, after = here[:-1], after[:-1]
    both = there[here] & there[after]
    number = torch.cumsum(there, 0) - 1
    here, after = number[here[both]], number[after[both]]
    return row[there], torch.stack([here, after, after], 1)


def _around(triangles: torch.Tensor, n_vertices: int) -> torch.Tensor:
    """Return the triangles around each vertex, -1 where there are fewer: (N, most)."""
    vertex = triangles.reshape(-1)
    count = torch.bincount(vertex, minlength=n_vertices)
    order = torch.argsort(vertex, stable=True)
    rank = torch.arange(len(vertex), device=vertex.device)
    rank = rank - (torch.cumsum(count, 0) - count)[vertex[order]]
    table = torch.full((n_vertices, int(count.max())), -1, dtype=torch.int64, device=vertex.device)
    table[vertex[order], rank] = order // 3
    return table


def _nearest_vertices(
    vertices: torch.Tensor, points: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distance and index of the nearest vertices of each point, each (N, k)."""

    def host(values: torch.Tensor) -> NDArray[np.float64]:
        return values.cpu().numpy()

    k = min(_NEAREST, len(vertices))
    distance, index = cKDTree(host(vertices)).query(host(points), k=list(range(1, k + 1)))
    device = points.device
    return torch.from_numpy(distance).to(device), torch.from_numpy(index).long().to(device)


def _squared_distance(points: torch.Tensor, corners: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the squared distance of points to triangles, which may be flat.

    It is the least of the distances to the three sides and, where the foot of the
    perpendicular lies inside, to the plane.
    """
    a, b, c = corners
    least = _to_segment(points, a, b)
    for start, end in ((b, c), (c, a)):
        least = torch.minimum(least, _to_segment(points, start, end))
    ab, ac, ap = b - a, c - a, points - a
    d11, d12, d22 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
    d1, d2 = (ap * ab).sum(-1), (ap * ac).sum(-1)
    twice = d11 * d22 - d12 * d12  # square of twice the area
    v, w = d22 * d1 - d12 * d2, d11 * d2 - d12 * d1
    inside = (twice > 0) & (v >= 0) & (w >= 0) & (v + w <= twice)
    safe = torch.where(inside, twice, 1.0)
    off = ap - (v / safe)[..., None] * ab - (w / safe)[..., None] * ac
    plane = off.square().sum(-1).masked_fill(~inside, torch.inf)
    return torch.minimum(least, plane)


def _to_segment(points: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of points to segments."""
    along, to = end - start, points - start
    length = along.square().sum(-1)
    t = ((to * along).sum(-1) / torch.where(length > 0, length, 1.0)).clamp(0, 1)
    return (to - t[..., None] * along).square().sum(-1)


def thickness_table(
    thickness_mm: torch.Tensor,
    names: Sequence[str],
    *,
    unit: str = "um",
    area_mm2: float | torch.Tensor | None = None,
    sectors: Sectors | None = None,
) -> dict[str, Json]:
    """Return statistics of layers as a table: a row for each layer and, below, its sectors.

    Parameters
    ----------
    thickness_mm : Tensor, shape (L, X, Y) or (L, C)
        NaN where a layer has no thickness.
    names : sequence of str
        One for each layer.
    unit : {"um", "mm"}
        Unit of the thickness; it ends the names of the columns.
    area_mm2 : float or Tensor, shape (X, Y) or (C,), optional
        Area that each column stands for; without it there is no area and no volume
        (a single B-scan has none).
    sectors : Sectors, optional
        Parts of the columns to have rows of their own, called ``layer/sector``.

    Returns
    -------
    dict
        Row name → ``columns``, ``mean_um``, ``sd_um`` (n − 1), ``median_um``,
        ``p5_um``, ``p95_um``, ``min_um``, ``max_um``, ``area_mm2``, ``volume_mm3``.
    """
    if unit not in UNITS:
        raise UsageError("unknown unit", expected=" | ".join(UNITS), got=repr(unit)[:20])
    if thickness_mm.ndim < 2 or len(names) != len(thickness_mm) or len(set(names)) < len(names):
        raise StepError(
            "the names do not fit the layers",
            expected=f"{len(thickness_mm)} different names for thicknesses (L, X, Y) or (L, C)",
            got=f"{len(set(names))} different names, shape {tuple(thickness_mm.shape)}",
        )
    shape = thickness_mm.shape[1:]
    if sectors is not None and sectors.index.shape != shape:
        raise StepError(
            "the sectors are on other columns",
            expected=str(tuple(shape)),
            got=str(tuple(sectors.index.shape)),
        )
    area = None
    if area_mm2 is not None:
        area = torch.as_tensor(area_mm2, dtype=torch.float64, device=thickness_mm.device)
        area = area.broadcast_to(shape)
    table: dict[str, Json] = {}
    parts: Mapping[str, torch.Tensor] = sectors.masks() if sectors is not None else {}
    for name, layer in zip(names, thickness_mm.to(torch.float64), strict=True):
        table[name] = _row(layer, torch.isfinite(layer), area, unit)
        for part, mask in parts.items():
            table[f"{name}/{part}"] = _row(layer, torch.isfinite(layer) & mask, area, unit)
    return table


def _row(
    layer: torch.Tensor, mask: torch.Tensor, area: torch.Tensor | None, unit: str
) -> dict[str, Json]:
    """Return the statistics of one layer over some columns."""
    values = layer[mask] * UNITS[unit]
    n = values.numel()
    names = [f"{s}_{unit}" for s in ("mean", "sd", "median", "p5", "p95", "min", "max")]
    row: dict[str, Json] = {"columns": n} | dict.fromkeys(names)
    if n:
        row[f"mean_{unit}"] = float(values.mean())
        row[f"sd_{unit}"] = float(values.std()) if n > 1 else None
        row[f"min_{unit}"], row[f"max_{unit}"] = float(values.min()), float(values.max())
        found = quantiles(values, list(PERCENTS.values()))
        row |= {f"{s}_{unit}": v for s, v in zip(PERCENTS, found, strict=True)}
    if area is not None:
        row["area_mm2"] = float(area[mask].sum())
        row["volume_mm3"] = float((area * layer)[mask].sum())
    return row
