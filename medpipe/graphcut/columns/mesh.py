"""Columns along the normals of a mesh."""

from __future__ import annotations

import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.columns.base import Columns
from medpipe.graphcut.columns.graph import check_faces, links_of
from medpipe.graphcut.columns.voxelise import is_closed

__all__ = ["mesh_columns", "signed_nodes", "vertex_normals"]


def vertex_normals(vertices_mm: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Return unit normals (V, 3) at the vertices, weighted by the angles of the triangles.

    They point outwards on a closed mesh, whatever the order of its vertices, and
    else to the side from which the triangles are counter-clockwise. Weights by
    angle do not depend on how a face is cut into triangles (Thürmer and Wüthrich
    1998, doi 10.1080/10867651.1998.10487487).

    Raises
    ------
    StepError
        If a triangle has no area or a vertex no triangle.
    """
    vertices = vertices_mm.to(torch.float64)
    corners = vertices[faces]
    sides = corners.roll(-1, 1) - corners
    normal = torch.linalg.cross(sides[:, 0], sides[:, 1])
    area = torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
    if bool((area == 0).any()):
        raise StepError("a triangle of the mesh has no area")
    if is_closed(faces):
        volume = (torch.linalg.cross(corners[:, 0], corners[:, 1]) * corners[:, 2]).sum()
        normal = normal * torch.sign(volume)
    unit = sides / torch.linalg.vector_norm(sides, dim=-1, keepdim=True)
    cosine = -(unit * unit.roll(1, 1)).sum(-1)
    angle = torch.acos(cosine.clamp(-1, 1))
    out = torch.zeros_like(vertices)
    for n in range(3):
        out.index_add_(0, faces[:, n], angle[:, n, None] * normal / area)
    length = torch.linalg.vector_norm(out, dim=-1, keepdim=True)
    if bool((length < 1e-12).any()):
        raise StepError("a vertex of the mesh has no triangle or no normal")
    return out / length


def signed_nodes(
    inside_mm: float, outside_mm: float, node_mm: float, device: torch.device
) -> torch.Tensor:
    """Return multiples of `node_mm` from -`inside_mm` to `outside_mm`, float64 (K,)."""
    if not node_mm > 0 or inside_mm < 0 or outside_mm < 0:
        raise UsageError(
            "the reach of the columns is wrong", expected="distances >= 0 and node_mm above 0"
        )
    first, last = int(inside_mm / node_mm + 1e-9), int(outside_mm / node_mm + 1e-9)
    if first + last < 1:
        raise UsageError("the columns are shorter than one node spacing")
    return torch.arange(-first, last + 1, dtype=torch.float64, device=device) * node_mm


def mesh_columns(
    vertices_mm: torch.Tensor,
    faces: torch.Tensor,
    *,
    inside_mm: float,
    outside_mm: float,
    node_mm: float,
    dtype: torch.dtype = torch.float64,
) -> Columns:
    """Return columns along the normals of a mesh.

    Parameters
    ----------
    vertices_mm : Tensor, shape (V, 3)
        RAS+ mm; their device is the one of the columns.
    faces : Tensor, int64 (F, 3)
        Triangles of one consistent orientation.
    inside_mm, outside_mm : float
        How far the columns reach to either side.
    node_mm : float
        Spacing of the nodes.

    Returns
    -------
    Columns
        Columns (V,) with links and triangles; positions are signed distances from
        the mesh, negative inside.

    Raises
    ------
    StepError
        If the mesh is unusable or neighbouring columns cross.
    """
    check_faces(faces, len(vertices_mm))
    nodes = signed_nodes(inside_mm, outside_mm, node_mm, vertices_mm.device)
    normals = vertex_normals(vertices_mm, faces)
    points = vertices_mm.to(torch.float64)[:, None] + normals[:, None] * nodes[:, None]
    return Columns(
        points.to(dtype),
        nodes.expand(points.shape[:-1]),
        links=links_of(faces, len(vertices_mm)),
        faces=faces,
    ).check_uncrossed()
