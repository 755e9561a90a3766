"""Meshes of surfaces on columns: area, orientation, rims, missing columns."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from medpipe.errors import StepError
from medpipe.graphcut.meshes import (
    mesh_area_mm2,
    surface_mesh,
    triangle_areas_mm2,
    vertex_areas_mm2,
)


def plane(x: int, y: int, tilt: float = 0.0) -> torch.Tensor:
    """A plane z = tilt * x with columns 0.5 mm and 2 mm apart."""
    i, j = torch.meshgrid(
        torch.arange(x, dtype=torch.float64) * 0.5,
        torch.arange(y, dtype=torch.float64) * 2.0,
        indexing="ij",
    )
    return torch.stack([i, j, tilt * i], dim=-1)


def cylinder(around: int, along: int, radius: float, length: float) -> torch.Tensor:
    angle = torch.arange(around, dtype=torch.float64) * (2 * math.pi / around)
    z = torch.linspace(0, length, along, dtype=torch.float64)
    ring = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return torch.cat(
        [ring[:, None].expand(-1, along, -1), z[None, :, None].expand(around, -1, -1)], dim=-1
    )


def edges(triangles: torch.Tensor) -> Counter[tuple[int, int]]:
    """Count the directed edges of triangles."""
    found: Counter[tuple[int, int]] = Counter()
    for a, b, c in triangles.tolist():
        found.update([(a, b), (b, c), (c, a)])
    return found


def normals(vertices: torch.Tensor, triangles: torch.Tensor) -> torch.Tensor:
    a, b, c = vertices[triangles].unbind(dim=1)
    return torch.linalg.cross(b - a, c - a)


@pytest.mark.parametrize("tilt", [0.0, 0.75])
def test_a_plane_has_its_area_and_one_side_up(tilt: float) -> None:
    vertices, triangles = surface_mesh(plane(7, 5, tilt))
    assert triangles.shape == (6 * 4 * 2, 3)
    assert mesh_area_mm2(vertices, triangles) == pytest.approx(3.0 * 8.0 * math.hypot(1, tilt))
    up = normals(vertices, triangles)
    assert (up[:, 2] > 0).all()
    torch.testing.assert_close(up[:, 0], -tilt * up[:, 2])
    areas = vertex_areas_mm2(vertices, triangles)
    assert float(areas.sum()) == pytest.approx(24 * math.hypot(1, tilt))


def test_a_cylinder_closes_when_it_wraps() -> None:
    around, along = 24, 6
    points = cylinder(around, along, 3.0, 10.0)
    vertices, triangles = surface_mesh(points, wrap=(True, False))
    polygon = around * 2 * 3.0 * math.sin(math.pi / around) * 10.0
    assert mesh_area_mm2(vertices, triangles) == pytest.approx(polygon, rel=1e-12)
    found = edges(triangles)
    assert set(found.values()) == {1}  # each edge once in each direction: one orientation
    rim = [edge for edge in found if edge[::-1] not in found]
    assert len(rim) == 2 * around  # open at the two ends only
    centres = vertices[triangles].mean(dim=1)
    outward = (normals(vertices, triangles)[:, :2] * centres[:, :2]).sum(dim=1)
    assert (outward > 0).all()
    _, opened = surface_mesh(points)
    assert len(triangles) - len(opened) == 2 * (along - 1)


def test_a_torus_has_no_rim() -> None:
    ring = cylinder(12, 9, 1.0, 8.0)
    turn = torch.arange(9, dtype=torch.float64) * (2 * math.pi / 9)
    radius = 4 + ring[..., 0]
    points = torch.stack([radius * turn.cos(), radius * turn.sin(), ring[..., 1]], dim=-1)
    vertices, triangles = surface_mesh(points, wrap=(True, True))
    found = edges(triangles)
    assert all(edge[::-1] in found for edge in found)
    assert len(vertices) - len(found) // 2 + len(triangles) == 0  # Euler characteristic


def test_the_shorter_diagonal_is_taken() -> None:
    points = plane(2, 2)
    points[1, 1] += torch.tensor([3.0, 3.0, 0.0])
    vertices, triangles = surface_mesh(points)
    assert {frozenset(t) for t in triangles.tolist()} == {
        frozenset({0, 2, 1}),
        frozenset({2, 3, 1}),
    }
    assert triangle_areas_mm2(vertices, triangles)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_missing_corner_leaves_the_other_triangle(corner: tuple[int, int]) -> None:
    points = plane(2, 2)
    points[corner] = torch.nan
    vertices, triangles = surface_mesh(points)
    assert (len(vertices), len(triangles)) == (3, 1)
    assert mesh_area_mm2(vertices, triangles) == pytest.approx(0.5)
    assert normals(vertices, triangles)[0, 2] > 0


def test_vertices_are_the_valid_points_in_order() -> None:
    points = plane(6, 5, 0.3)
    valid = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) > 0.3
    vertices, triangles = surface_mesh(points, valid=valid)
    assert torch.equal(vertices, points[valid])
    corners = valid[:-1, :-1].int() + valid[1:, :-1] + valid[:-1, 1:] + valid[1:, 1:]
    assert len(triangles) == int((corners - 2).clamp_min(0).sum())
    assert (triangle_areas_mm2(vertices, triangles) > 0).all()
    assert max(edges(triangles).values()) == 1


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (plane(1, 5), {}, "axis 0: the surface has too few columns for a mesh; expected 2 or more"),
        (plane(3, 2), {"wrap": (False, True)}, "axis 1: .* expected 3 or more, got 2"),
        (plane(3, 2)[..., :2], {}, r"expected \(X, Y, 3\), got \(3, 2, 2\)"),
        (plane(3, 2), {"valid": torch.ones(2, 2, dtype=torch.bool)}, "mask of columns does not"),
        (plane(3, 2), {"valid": torch.ones(3, 2)}, "got float32"),
        (plane(3, 2) / 0, {"valid": torch.ones(3, 2, dtype=torch.bool)}, "is not finite"),
    ],
)
def test_wrong_surfaces_are_refused(points: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(StepError, match=message):
        surface_mesh(points, **options)
