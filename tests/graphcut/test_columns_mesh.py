"""Star, mesh and field-line columns against spheres and known fields."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull, Delaunay
from scipy.spatial.transform import Rotation

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.columns import (
    Columns,
    NearestMap,
    field_columns,
    field_of_image,
    icosphere,
    mesh_columns,
    star_columns,
    vertex_normals,
)
from medpipe.graphcut.columns.graph import edges_of, links_of
from medpipe.graphcut.columns.voxelise import is_closed, voxelise
from medpipe.graphcut.problem import ArcFamily, CutProblem

CENTER = (4.0, -7.0, 12.0)


def oblique(spacing=(0.5, 0.7, 0.9), origin=(0.0, 0.0, 0.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def voxel_centres(affine, shape):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return torch.from_numpy(index @ affine[:3, :3].T + affine[:3, 3])


def grid_around(point, shape=(36, 30, 24), spacing=(0.5, 0.7, 0.9)):
    """An oblique grid whose middle is near a point but on no symmetry of it."""
    affine = oblique(spacing)
    affine[:3, 3] = np.asarray(point) - affine[:3, :3] @ (np.array(shape) / 2 - 0.63)
    return shape, affine


@pytest.mark.parametrize("level", [0, 1, 3])
def test_the_icosphere_is_a_closed_convex_mesh_of_unit_vectors(level):
    vertices, faces = icosphere(level)
    assert vertices.shape == (10 * 4**level + 2, 3)
    assert faces.shape == (20 * 4**level, 3)
    length = torch.linalg.vector_norm(vertices, dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length))
    assert is_closed(faces)
    assert len(vertices) - len(edges_of(faces)) + len(faces) == 2
    hull = ConvexHull(vertices.numpy())
    a, b, c = vertices[faces].unbind(1)
    volume = (torch.linalg.cross(a, b) * c).sum(-1) / 6
    assert float(volume.min()) > 0  # counter-clockwise from outside
    # all vertices on the hull, and the mesh is that hull
    assert len(hull.vertices) == len(vertices)
    assert float(volume.sum()) == pytest.approx(hull.volume, rel=1e-9)


def test_links_hold_every_edge_once_and_every_row_is_injective():
    vertices, faces = icosphere(3)
    links = links_of(faces, len(vertices))
    row, tail = torch.nonzero(links >= 0).unbind(-1)
    pairs = torch.stack([tail, links[row, tail]], -1).sort(-1).values
    assert torch.equal(torch.unique(pairs, dim=0), edges_of(faces))
    assert len(pairs) == len(edges_of(faces)) == 3 * len(vertices) - 6
    assert len(links) <= 5
    capacity = torch.ones(1, len(vertices), 2, dtype=torch.int32)
    arcs = [ArcFamily((0, j + 1, 0), 1, 1) for j in range(len(links))]
    CutProblem(capacity, capacity, arcs, links=links)  # checks the rows itself


def test_a_sphere_is_found_and_mapped_back():
    shape, affine = grid_around(CENTER)
    radius = torch.linalg.vector_norm(
        voxel_centres(affine, shape) - torch.tensor(CENTER).double(), dim=-1
    )
    columns = star_columns(CENTER, inner_mm=2, outer_mm=8, node_mm=0.5, subdivisions=3)
    values = columns.sample((radius - 5.3)[None], affine)
    k = (values >= 0).to(torch.int64).argmax(-1, keepdim=True)
    low, high = values.gather(-1, k - 1), values.gather(-1, k)
    position = (columns.positions_mm.gather(-1, k) - 0.5 * high / (high - low))[:, 0]
    limit = (0.5**2 + 0.7**2 + 0.9**2) / (8 * 5)  # linear interpolation of the distance
    assert 0 < float((position - 5.3).abs().max()) < limit
    points = columns.points_at(torch.full((2, 642), 5.3, dtype=torch.float64))
    reached = torch.linalg.vector_norm(points[1] - torch.tensor(CENTER).double(), dim=-1)
    torch.testing.assert_close(reached, torch.full_like(reached, 5.3), rtol=0, atol=1e-12)


def test_cells_of_a_star_fill_the_shell():
    columns = star_columns(CENTER, inner_mm=2, outer_mm=8, node_mm=0.5, subdivisions=3)
    _, faces = icosphere(3)
    a, b, c = icosphere(3)[0][faces].unbind(1)
    solid = float((torch.linalg.cross(a, b) * c).sum() / 6)
    assert float(columns.cell_volumes_mm3().sum()) == pytest.approx(solid * (8**3 - 2**3), rel=1e-9)
    columns.check_uncrossed()


@pytest.mark.parametrize("level", [0, 1, 4])
def test_points_are_located_in_the_triangle_that_holds_their_direction(level):
    columns = star_columns(CENTER, inner_mm=1, outer_mm=2, node_mm=1, subdivisions=level)
    directions, faces = icosphere(level)
    offset = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)).double()
    place = columns.inverse.locate(offset + torch.tensor(CENTER).double())
    torch.testing.assert_close(place.position_mm, torch.linalg.vector_norm(offset, dim=-1))
    rows = torch.cat([faces, place.columns]).sort(-1).values
    assert len(torch.unique(rows, dim=0)) == len(faces)  # each is a triangle of the mesh
    inside = (place.weights[..., None] * directions[place.columns]).sum(1)
    inside = inside / torch.linalg.vector_norm(inside, dim=-1, keepdim=True)
    torch.testing.assert_close(inside, offset / place.position_mm[:, None], rtol=0, atol=1e-12)


def test_the_centre_of_a_star_is_inside():
    columns = star_columns((1, 1, 1), inner_mm=1, outer_mm=4, node_mm=1, subdivisions=1)
    labels = columns.labels(torch.full((1, 42), 1.5), (3, 3, 3), np.eye(4))[0]
    assert int(labels[1, 1, 1]) == 0
    assert int((labels == 0).sum()) == 19  # all but the corners, √3 mm away
    assert torch.isnan(columns.positions_mm).sum() == 0
    missing = torch.full((1, 42), 1.5)
    missing[0, 0] = torch.nan
    some = columns.labels(missing, (3, 3, 3), np.eye(4), uncovered=5)[0]
    assert 0 < int((some == 5).sum()) < 27


def bumpy(directions):
    """A smooth star-shaped radius in mm."""
    x, y, z = directions.unbind(-1)
    return 5 + 1.2 * x * y - 0.8 * z * z + 0.7 * torch.sin(2 * x)


def test_star_labels_follow_the_radius_between_the_columns():
    shape, affine = grid_around(CENTER)
    columns = star_columns(CENTER, inner_mm=1, outer_mm=8, node_mm=0.5, subdivisions=4)
    directions, _ = icosphere(4)
    position = torch.stack([bumpy(directions) - 2, bumpy(directions)])
    labels = columns.labels(position, shape, affine)[0]
    offset = voxel_centres(affine, shape) - torch.tensor(CENTER).double()
    r = torch.linalg.vector_norm(offset, dim=-1)
    truth = bumpy(offset / r[..., None])
    clear = torch.minimum((r - truth).abs(), (r - truth + 2).abs()) > 0.01
    assert int((~clear).sum()) < 0.01 * clear.numel()
    expected = (r > truth - 2).to(torch.int16) + (r > truth).to(torch.int16)
    assert torch.equal(labels[clear], expected[clear])


def test_winding_and_radius_give_the_same_labels():
    shape, affine = grid_around(CENTER)
    star = star_columns(CENTER, inner_mm=1, outer_mm=8, node_mm=0.5, subdivisions=4)
    directions, _ = icosphere(4)
    position = torch.stack([bumpy(directions) - 2, bumpy(directions)])
    plain = Columns(star.points_mm, star.positions_mm, links=star.links, faces=star.faces)
    a, b = star.labels(position, shape, affine), plain.labels(position, shape, affine)
    # flat facets lie a little inside the curved ones
    assert float((a != b).float().mean()) < 2e-3
    assert set(a.unique().tolist()) == {0, 1, 2}


def test_voxelising_agrees_with_half_spaces_of_the_hull():
    rng = np.random.default_rng(5)
    points = rng.uniform(1, 11, (40, 3))
    hull = ConvexHull(points)
    centre = points[hull.vertices].mean(0)
    faces = hull.simplices.copy()
    a, b, c = points[faces].transpose(1, 0, 2)
    inward = (np.cross(b - a, c - a) * (a - centre)).sum(1) < 0
    faces[inward] = faces[inward][:, [0, 2, 1]]
    inside = voxelise(torch.from_numpy(points), torch.from_numpy(faces).long(), (13, 12, 12))
    index = np.stack(np.meshgrid(*map(np.arange, (13, 12, 12)), indexing="ij"), -1)
    expected = Delaunay(points[hull.vertices]).find_simplex(index) >= 0
    np.testing.assert_array_equal(inside, expected)


def test_voxelising_a_box_on_the_grid_leaves_no_holes():
    # rays through vertices, edges and diagonals; faces of the box lie on voxel centres
    corners = torch.tensor([[x, y, z] for x in (1, 5) for y in (2, 6) for z in (0.5, 3.5)]).double()
    hull = ConvexHull(corners.numpy())
    faces = torch.from_numpy(hull.simplices).long()
    a, b, c = corners[faces].unbind(1)
    out = (torch.linalg.cross(b - a, c - a) * (a - corners.mean(0))).sum(-1) > 0
    faces = torch.where(out[:, None], faces, faces[:, [0, 2, 1]])
    inside = voxelise(corners, faces, (8, 8, 8))
    assert bool(inside[2:5, 3:6, 1:4].all())
    inside[1:6, 2:7, 1:4] = False
    assert not bool(inside.any())


@pytest.mark.parametrize("seed", range(6))
def test_rays_through_the_vertices_of_an_octahedron(seed):
    corners = torch.tensor(
        [[7, 4, 4], [1, 4, 4], [4, 7, 4], [4, 1, 4], [4, 4, 7.2], [4, 4, 0.8]]
    ).double()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    corners = corners[order]
    hull = ConvexHull(corners.numpy())
    faces = torch.from_numpy(hull.simplices).long()
    a, b, c = corners[faces].unbind(1)
    out = (torch.linalg.cross(b - a, c - a) * (a - 4)).sum(-1) > 0
    faces = torch.where(out[:, None], faces, faces[:, [0, 2, 1]])
    inside = voxelise(corners, faces, (9, 9, 9))
    x, y, z = voxel_centres(np.eye(4), (9, 9, 9)).sub(4).abs().unbind(-1)
    level = x / 3 + y / 3 + z / 3.2
    clear = (level - 1).abs() > 1e-3
    assert torch.equal(inside[clear], (level < 1)[clear])


def test_normals_at_the_corners_of_a_box_do_not_depend_on_its_diagonals():
    corners = torch.tensor([[x, y, z] for x in (-3, 3) for y in (-1, 1) for z in (-2, 2)]).double()
    hull = ConvexHull(corners.numpy())
    faces = torch.from_numpy(hull.simplices).long()
    a, b, c = corners[faces].unbind(1)
    out = (torch.linalg.cross(b - a, c - a) * a).sum(-1) > 0
    faces = torch.where(out[:, None], faces, faces[:, [0, 2, 1]])
    expected = torch.sign(corners) / math.sqrt(3)
    torch.testing.assert_close(vertex_normals(corners, faces), expected)


def ellipsoid(level=3, axes=(6.0, 4.0, 3.0)):
    directions, faces = icosphere(level)
    return directions * torch.tensor(axes).double() + torch.tensor(CENTER).double(), faces


def test_mesh_normals_are_those_of_the_ellipsoid_whatever_the_orientation():
    vertices, faces = ellipsoid(4)
    offset = (vertices - torch.tensor(CENTER).double()) / torch.tensor([6.0, 4, 3]).double() ** 2
    expected = offset / torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
    for order in ([0, 1, 2], [0, 2, 1]):
        cosine = (vertex_normals(vertices, faces[:, order]) * expected).sum(-1)
        assert math.degrees(math.acos(float(cosine.min()))) < 1.0


def test_mesh_columns_on_a_sphere_reach_other_spheres():
    directions, faces = icosphere(3)
    vertices = 5 * directions + torch.tensor(CENTER).double()
    columns = mesh_columns(vertices, faces, inside_mm=2, outside_mm=1.5, node_mm=0.25)
    assert columns.nodes == 15
    assert float(columns.positions_mm[0, 0]) == -2
    points = columns.points_at(torch.tensor([[-1.1], [0.0], [0.6]]).double().expand(3, 642))
    reached = torch.linalg.vector_norm(points - torch.tensor(CENTER).double(), dim=-1)
    expected = torch.tensor([[3.9], [5.0], [5.6]]).double().expand(3, 642)
    torch.testing.assert_close(reached, expected, rtol=0, atol=2e-3)
    shape, affine = grid_around(CENTER)
    labels = columns.labels(torch.full((1, 642), 0.6).double(), shape, affine)[0]
    r = torch.linalg.vector_norm(
        voxel_centres(affine, shape) - torch.tensor(CENTER).double(), dim=-1
    )
    assert bool((labels[r < 5.6 * 0.985] == 0).all())  # the facets of the mesh dip to 0.987
    assert bool((labels[r > 5.605] == 1).all())


def test_normals_that_cross_are_refused():
    vertices, faces = ellipsoid()
    with pytest.raises(StepError, match="crosses a neighbour near node 0"):
        mesh_columns(vertices, faces, inside_mm=3, outside_mm=1, node_mm=0.5)


def disc(rings=6, points=24):
    """An open disc of radius 6 mm in the plane z = 0."""
    r = torch.arange(1, rings + 1).double()
    turn = torch.arange(points).double() * 2 * math.pi / points
    ring = torch.stack([r[:, None] * torch.cos(turn), r[:, None] * torch.sin(turn)], -1)
    flat = torch.cat([torch.zeros(1, 2).double(), ring.reshape(-1, 2)])
    faces = torch.from_numpy(Delaunay(flat.numpy()).simplices).long()
    a, b, c = flat[faces].unbind(1)
    up = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0] > 0
    faces = torch.where(up[:, None], faces, faces[:, [0, 2, 1]])
    return torch.nn.functional.pad(flat, (0, 1)), faces


def test_an_open_mesh_is_filled_by_the_nearest_column():
    vertices, faces = disc()
    columns = mesh_columns(vertices, faces, inside_mm=2, outside_mm=2, node_mm=0.5)
    affine = np.diag([0.5, 0.5, 0.25, 1.0])
    affine[:3, 3] = (-8, -8, -3)
    shape = (33, 33, 25)
    labels = columns.labels(torch.full((1, 145), 0.6).double(), shape, affine, uncovered=9)[0]
    x, y, z = voxel_centres(affine, shape).unbind(-1)
    over = torch.hypot(x, y) < 5.5
    assert bool((labels[over & (z > 0.61) & (z < 2.2)] == 1).all())
    assert bool((labels[over & (z < 0.59) & (z > -2.2)] == 0).all())
    assert bool((labels[(torch.hypot(x, y) > 7.7) | (z.abs() > 2.3)] == 9).all())


def test_the_nearest_column_is_that_of_brute_force():
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(30, 4, 3, generator=generator).double()
    queries = torch.randn(200, 3, generator=generator).double()
    place = NearestMap(Columns(points), reach_mm=100).locate(queries)
    nearest = torch.cdist(queries, points.reshape(-1, 3)).argmin(-1) // 4
    assert torch.equal(place.columns[:, 0], nearest)


def whirl(points):
    """Field lines from a sphere: outwards and turning about z with the height."""
    x, y, z = points.unbind(-1)
    return torch.stack([x - 0.5 * y, y + 0.5 * x, z], -1)


def test_field_lines_are_logarithmic_spirals():
    directions, faces = icosphere(2)
    seeds = 4 * directions
    columns = field_columns(
        seeds, whirl, inside_mm=1, outside_mm=3, node_mm=0.5, faces=faces, substeps=4
    )
    assert torch.equal(columns.points_mm[:, 2], seeds)
    # along a line all lengths grow as exp(t) and x, y turn by t / 2
    grown = torch.linalg.vector_norm(columns.points_mm, dim=-1) / 4
    t = grown.log()
    turned = torch.atan2(columns.points_mm[..., 1], columns.points_mm[..., 0])
    start = torch.atan2(seeds[:, 1], seeds[:, 0])[:, None]
    off_axis = directions[:, :2].norm(dim=-1) > 0.1
    miss = torch.remainder(turned - start - t / 2 + math.pi, 2 * math.pi) - math.pi
    assert float(miss[off_axis].abs().max()) < 1e-6
    # arc length to exp(t): |dp/dt| = |p| sqrt(1 + sin² / 4), constant angle to the axis
    sine = directions[:, :2].norm(dim=-1)
    arc = 4 * torch.sqrt(1 + sine[:, None] ** 2 / 4) * (grown - 1)
    torch.testing.assert_close(arc, columns.positions_mm, rtol=0, atol=1e-6)


def test_field_lines_stay_apart_where_normals_cross():
    # field of the ellipsoid's own level sets: the lines bend and never meet
    axes = torch.tensor([6.0, 4.0, 3.0]).double()
    directions, faces = icosphere(3)
    vertices = directions * axes
    with pytest.raises(StepError, match="crosses"):
        mesh_columns(vertices, faces, inside_mm=2.5, outside_mm=0, node_mm=0.25)
    columns = field_columns(
        vertices, lambda p: p / axes**2, inside_mm=2.5, outside_mm=0, node_mm=0.25, faces=faces
    )
    volume = columns.cell_volumes_mm3()
    assert float(volume.min()) > 0
    edges = edges_of(faces)
    gap = columns.points_mm[edges[:, 0]] - columns.points_mm[edges[:, 1]]
    assert float(torch.linalg.vector_norm(gap, dim=-1).min()) > 0.05
    # closed form: x_i(t) = x_i exp(-t / a_i²), so the quotient of logarithms is fixed
    first, last = columns.points_mm[:, -1], columns.points_mm[:, 0]
    away = (directions.abs() > 0.05).all(-1)
    rate = torch.log(last[away] / first[away]) * axes**2
    torch.testing.assert_close(rate, rate.mean(-1, keepdim=True).expand_as(rate), rtol=1e-4, atol=0)


@pytest.mark.parametrize("frame", ["image", "world"])
def test_a_field_on_an_oblique_grid_is_turned_into_the_world(frame):
    shape, affine = grid_around(CENTER)
    world = voxel_centres(affine, shape) - torch.tensor(CENTER).double()  # radial
    vectors = world.movedim(-1, 0)
    if frame == "image":
        axes = torch.from_numpy(affine[:3, :3] / (0.5, 0.7, 0.9))
        vectors = torch.einsum("cw,cijk->wijk", axes, vectors)
    directions, faces = icosphere(2)
    columns = field_columns(
        4 * directions + torch.tensor(CENTER).double(),
        field_of_image(vectors, affine, frame),
        inside_mm=2, outside_mm=2, node_mm=0.5, faces=faces,
    )  # fmt: skip
    radius = columns.positions_mm[..., None] + 4
    expected = radius * directions[:, None] + torch.tensor(CENTER).double()
    torch.testing.assert_close(columns.points_mm, expected, rtol=0, atol=1e-9)


def test_field_lines_from_a_lattice_wrap():
    turn = torch.arange(24).double() * 2 * math.pi / 24
    ring = torch.stack([3 * torch.cos(turn), 3 * torch.sin(turn), 0 * turn], -1)
    seeds = ring[:, None] + torch.tensor([[0.0, 0, z] for z in range(4)]).double()
    columns = field_columns(
        seeds, lambda p: p * torch.tensor([1.0, 1.0, 0.0]), inside_mm=1, outside_mm=1,
        node_mm=0.5, wrap=(0,),
    )  # fmt: skip
    assert columns.shape == (24, 4)
    radius = torch.linalg.vector_norm(columns.points_mm[..., :2], dim=-1)
    torch.testing.assert_close(radius, 3 + columns.positions_mm)


def test_lines_that_end_and_fields_that_jump_are_refused():
    directions, faces = icosphere(2)
    shape, affine = grid_around((0, 0, 0))
    radial = field_of_image(voxel_centres(affine, shape).movedim(-1, 0), affine, "world")
    with pytest.raises(StepError, match=r"column \d+: a field line ends"):
        field_columns(5 * directions, radial, inside_mm=0, outside_mm=30, node_mm=1, faces=faces)
    with pytest.raises(StepError, match="crosses"):  # all lines towards the plane x = 0 and back
        field_columns(
            directions, lambda p: torch.stack([-torch.sign(p[..., 0]) - 0.3, 0 * p[..., 1],
                                               0 * p[..., 2]], -1),
            inside_mm=0, outside_mm=3, node_mm=0.5, faces=faces,
        )  # fmt: skip
    with pytest.raises(UsageError, match="need faces"):
        field_columns(directions, whirl, inside_mm=1, outside_mm=1, node_mm=0.5)


def test_wrong_meshes_are_refused():
    vertices, faces = ellipsoid(1)
    common = {"inside_mm": 1, "outside_mm": 1, "node_mm": 0.5}
    with pytest.raises(StepError, match="does not exist"):
        mesh_columns(vertices[:-1], faces, **common)
    with pytest.raises(StepError, match="wrong shape or type"):
        mesh_columns(vertices, faces.int(), **common)
    with pytest.raises(StepError, match="no area"):
        mesh_columns(vertices, torch.cat([faces, torch.tensor([[0, 0, 1]])]), **common)
    with pytest.raises(StepError, match="no triangle"):
        mesh_columns(torch.cat([vertices, vertices[:1]]), faces, **common)
    with pytest.raises(UsageError, match="reach"):
        mesh_columns(vertices, faces, inside_mm=-1, outside_mm=1, node_mm=0.5)
    with pytest.raises(UsageError, match="inner_mm above 0"):
        star_columns(CENTER, inner_mm=0, outer_mm=3, node_mm=0.5)
    with pytest.raises(UsageError, match="subdivisions"):
        icosphere(20)
