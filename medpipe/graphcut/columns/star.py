"""Columns from a centre in all directions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.columns.base import Columns
from medpipe.graphcut.columns.graph import links_of
from medpipe.graphcut.columns.inverse import InverseMap, Location
from medpipe.graphcut.columns.radii import radial_nodes

__all__ = ["icosphere", "star_columns"]

MAX_SUBDIVISIONS = 8  # 655 362 directions
CHILD_ACROSS = (2, 0, 1)
"""Child of a triangle that lies across each edge of its middle child, opposite corner n."""


@lru_cache(maxsize=4)
def _levels(subdivisions: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return unit vertices and the triangles of all levels; children of f are 4 f .. 4 f + 3."""
    golden = (1 + 5**0.5) / 2
    corners = [(s, t * golden) for s in (-1, 1) for t in (-1, 1)]
    turned = [np.roll((0.0, a, b), n) for n in range(3) for a, b in corners]
    vertices = torch.from_numpy(np.array(turned))
    vertices = vertices / torch.linalg.vector_norm(vertices, dim=-1, keepdim=True)
    faces = [_icosahedron_faces(vertices)]
    for _ in range(subdivisions):
        vertices, finer = _subdivide(vertices, faces[-1])
        faces.append(finer)
    return vertices, tuple(faces)


def _icosahedron_faces(vertices: torch.Tensor) -> torch.Tensor:
    """Return the 20 triples of mutual neighbours, counter-clockwise from outside."""
    distance = torch.cdist(vertices, vertices)
    edge = float(distance[distance > 1e-9].min())
    near = (distance - edge).abs() < 1e-6
    triples = torch.combinations(torch.arange(12), 3)
    a, b, c = triples.T
    faces = triples[near[a, b] & near[b, c] & near[a, c]]
    p, q, r = (vertices[faces[:, n]] for n in range(3))
    outward = (torch.linalg.cross(p, q) * r).sum(-1) > 0
    return torch.where(outward[:, None], faces, faces[:, [0, 2, 1]])


def _subdivide(vertices: torch.Tensor, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split every triangle into four, with the new vertices on the unit sphere."""
    pairs = torch.stack([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]], 1)
    edges, place = torch.unique(
        pairs.sort(dim=-1).values.reshape(-1, 2), dim=0, return_inverse=True
    )
    middle = vertices[edges].sum(1)
    middle = middle / torch.linalg.vector_norm(middle, dim=-1, keepdim=True)
    ab, bc, ca = (place.reshape(-1, 3) + len(vertices)).unbind(-1)
    a, b, c = faces.unbind(-1)
    children = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    finer = torch.stack([torch.stack(child, -1) for child in children], 1)
    return torch.cat([vertices, middle]), finer.reshape(-1, 3)


def icosphere(
    subdivisions: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return nearly even directions on the sphere and the triangles between them.

    Parameters
    ----------
    subdivisions : int
        How often each of the 20 faces of an icosahedron is split into four.

    Returns
    -------
    directions : Tensor, float64 (10 · 4^n + 2, 3)
        Unit vectors.
    faces : Tensor, int64 (20 · 4^n, 3)
        Counter-clockwise seen from outside.
    """
    if not 0 <= subdivisions <= MAX_SUBDIVISIONS:
        raise UsageError("the number of subdivisions is wrong", expected=f"0..{MAX_SUBDIVISIONS}")
    vertices, faces = _levels(subdivisions)
    return vertices.to(device).clone(), faces[-1].to(device).clone()


@dataclass(frozen=True)
class StarMap(InverseMap):
    """Place of a point by the triangle of directions it lies in and its radius."""

    center_mm: torch.Tensor
    subdivisions: int

    def locate(self, points_mm: torch.Tensor) -> Location:
        """Return the place of points (N, 3) among the columns.

        The triangle is found from the 20 faces of the icosahedron down through
        their four children each: a direction is in the middle child, or across the
        edge for whose opposite corner its coefficient is negative.
        """
        vertices, levels = _levels(self.subdivisions)
        vertices = vertices.to(points_mm.device)
        offset = points_mm - self.center_mm
        radius = torch.linalg.vector_norm(offset, dim=-1)
        # the centre lies in no triangle; any will do
        direction = torch.where(radius[:, None] == 0, vertices[0], offset)
        faces = levels[0].to(points_mm.device)
        duals = _duals(vertices[faces])
        inside = (direction @ duals.reshape(-1, 3).T).reshape(-1, len(faces), 3).amin(-1)
        face = inside.argmax(-1)
        child = torch.tensor(CHILD_ACROSS, device=face.device)
        for level in levels[1:]:
            middle = _duals(vertices[level[3::4].to(face.device)])
            part = (middle[face] @ direction[..., None])[..., 0]
            least = part.min(-1)
            face = face * 4 + torch.where(least.values < 0, child[least.indices], 3)
        columns = levels[-1].to(face.device)[face]
        weights = (_duals(vertices[columns]) @ direction[..., None])[..., 0].clamp_min(0)
        return Location(columns, weights / weights.sum(-1, keepdim=True), radius)

    def quick_position(self, points_mm: torch.Tensor) -> torch.Tensor | None:
        """Return the radius of points (N, 3)."""
        return torch.linalg.vector_norm(points_mm - self.center_mm, dim=-1)


def _duals(corners: torch.Tensor) -> torch.Tensor:
    """Return the rows (..., 3, 3) that give the coefficients of a vector in three corners."""
    a, b, c = corners.unbind(-2)
    volume = (torch.linalg.cross(a, b) * c).sum(-1)[..., None, None]
    parts = [torch.linalg.cross(p, q) for p, q in ((b, c), (c, a), (a, b))]
    return torch.stack(parts, -2) / volume


def star_columns(
    center_mm: ArrayLike,
    *,
    inner_mm: float,
    outer_mm: float,
    node_mm: float,
    subdivisions: int = 4,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Columns:
    """Return rays from a centre through the vertices of an icosphere.

    Parameters
    ----------
    center_mm : array_like, shape (3,)
        RAS+ mm.
    inner_mm, outer_mm, node_mm : float
        First radius (above 0), largest radius and spacing of the nodes.
    subdivisions : int
        4 gives 2562 columns about 4° apart; one more is four times as many.
    dtype, device
        Of the points.

    Returns
    -------
    Columns
        Columns (C,) with links and triangles; positions are radii.
    """
    center = torch.tensor(np.asarray(center_mm, float), device=device)
    if tuple(center.shape) != (3,) or not bool(torch.isfinite(center).all()):
        raise StepError("the centre is unusable", expected="three finite numbers in mm")
    if inner_mm <= 0:
        raise UsageError("the first radius is wrong", expected="inner_mm above 0")
    radii = radial_nodes(inner_mm, outer_mm, node_mm, device)
    directions, faces = icosphere(subdivisions, device)
    points = center + directions[:, None] * radii[:, None]
    return Columns(
        points.to(dtype),
        radii.expand(points.shape[:-1]),
        links=links_of(faces, len(directions)),
        faces=faces,
        inverse=StarMap(center, subdivisions),
    )
