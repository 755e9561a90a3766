"""Cross-sections of tubes drawn from their equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial.transform import Rotation

from medpipe.centerline.sections import RAYS, area_radius, cross_sections, node_tangents
from medpipe.errors import StepError
from medpipe.geometry import affine_from_parts, center_mm, to_mm
from medpipe.phantoms.vessel_tree import small_tree


def grid_mm(affine, shape):
    return to_mm(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))


def oblique(spacing, seed):
    turn = Rotation.random(random_state=seed).as_matrix()
    return affine_from_parts(turn, spacing, [-50, 20, 300])


def across(points, center, direction):
    """Return the distance of points from a line."""
    rest = points - center
    return np.linalg.norm(rest - (rest @ direction)[..., None] * direction, axis=-1)


def unit(seed):
    v = np.random.default_rng(seed).normal(size=3)
    return v / np.linalg.norm(v)


def sections_of_tube(mask, affine, center, direction, radius, length, **more):
    points = center + np.linspace(-length / 2, length / 2, 21)[:, None] * direction
    tangents = np.broadcast_to(direction, points.shape)
    return cross_sections(mask, affine, points, tangents, np.full(21, radius), **more)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("radius", "tolerance"), [(1.6, 0.02), (3.0, 0.01), (7.0, 0.003)])
def test_the_radius_of_a_cylinder_in_any_direction(radius, tolerance, seed):
    affine, direction = oblique([1, 1, 1], seed), unit(seed + 10)
    shape = (48, 48, 48)
    center = center_mm(affine, shape) + 0.4 * unit(seed + 20)
    mask = torch.from_numpy(across(grid_mm(affine, shape), center, direction) <= radius)
    found = sections_of_tube(mask, affine, center, direction, radius, 18)
    assert (found.open_share == 0).all()
    assert found.equivalent_radius_mm.mean() == pytest.approx(radius, rel=tolerance)
    assert found.equivalent_radius_mm.std() < 0.1
    outline = found.contours_mm()
    assert outline.shape == (21, RAYS, 3)
    assert np.abs(across(outline, center, direction) - radius).max() < 0.8
    np.testing.assert_allclose((outline - found.centers_mm[:, None]) @ direction, 0, atol=1e-9)


def test_an_elliptic_tube_has_two_diameters():
    affine, shape = oblique([0.5, 0.5, 0.5], 1), (80, 80, 80)
    center, turn = center_mm(affine, shape), Rotation.random(random_state=5).as_matrix()
    local = (grid_mm(affine, shape) - center) @ turn
    mask = torch.from_numpy((local[..., 0] / 6) ** 2 + (local[..., 1] / 3) ** 2 <= 1)
    found = sections_of_tube(mask, affine, center, turn[:, 2], 3.0, 15)
    np.testing.assert_allclose(found.area_mm2, np.pi * 18, rtol=0.02)
    np.testing.assert_allclose(found.diameters_mm, [[6, 12]] * 21, rtol=0.05)


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 0, 1), (0.6, 0.0, 0.8), (0.36, 0.48, 0.8)])
def test_unequal_spacing(direction):
    affine, shape = np.diag([0.3, 0.3, 1.5, 1]), (120, 120, 24)
    center, direction = center_mm(affine, shape), np.array(direction)
    mask = torch.from_numpy(across(grid_mm(affine, shape), center, direction) <= 4)
    found = sections_of_tube(mask, affine, center, direction, 4, 12)
    assert found.equivalent_radius_mm.mean() == pytest.approx(4, rel=0.03)


def test_a_signed_distance_gives_the_exact_circle_and_keeps_its_unit_out():
    affine, shape = oblique([1, 1, 2], 3), (40, 40, 24)
    center, direction = center_mm(affine, shape), unit(4)
    distance = torch.from_numpy(3 - across(grid_mm(affine, shape), center, direction))
    found = sections_of_tube(distance, affine, center, direction, 3, 6)
    again = sections_of_tube(5 * distance.half(), affine, center, direction, 3, 6)
    np.testing.assert_allclose(found.equivalent_radius_mm, 3, rtol=0.03)
    np.testing.assert_allclose(again.area_mm2, found.area_mm2, rtol=0.01)


def test_a_sheared_grid():
    affine = np.eye(4)
    affine[1, 2] = 0.4
    shape = (48, 48, 48)
    center, direction = center_mm(affine, shape), unit(6)
    mask = torch.from_numpy(across(grid_mm(affine, shape), center, direction) <= 5)
    found = sections_of_tube(mask, affine, center, direction, 5, 10)
    np.testing.assert_allclose(found.equivalent_radius_mm, 5, rtol=0.03)


@pytest.mark.parametrize("gap", [1.5, 0.0, -0.5])
def test_another_tube_beside_is_left_out(gap):
    """Apart, touching, and overlapping by half a voxel; 6 + 6 voxels of radius."""
    shape, affine = (64, 48, 32), np.eye(4)
    points = grid_mm(affine, shape)
    direction, center = np.array([0.0, 0, 1]), np.array([20.0, 24, 16])
    mask = across(points, center, direction) <= 6
    mask |= across(points, center + np.array([12 + gap, 0, 0]), direction) <= 6
    found = sections_of_tube(torch.from_numpy(mask), affine, center, direction, 6, 20)
    np.testing.assert_allclose(found.equivalent_radius_mm, 6, rtol=0.03)
    assert (found.open_share > 0).all() == (gap <= 0)


def test_a_trunk_keeps_its_radius_where_a_branch_leaves():
    shape, affine = (72, 48, 48), np.eye(4)
    points, center = grid_mm(affine, shape), np.array([20.0, 24, 24])
    trunk = across(points, center, np.array([0.0, 0, 1])) <= 6
    branch = (across(points, center, np.array([1.0, 0, 0])) <= 3) & (points[..., 0] > 20)
    found = sections_of_tube(
        torch.from_numpy(trunk | branch), affine, center, np.array([0.0, 0, 1]), 6, 30
    )
    np.testing.assert_allclose(found.equivalent_radius_mm, 6, rtol=0.05)
    assert found.open_share[10] > 0.1
    assert found.open_share[[0, -1]].max() == 0


def test_no_section_where_the_plane_runs_along_the_tube_or_the_volume_ends():
    shape, affine = (48, 48, 96), np.eye(4)
    center = np.array([24.0, 24, 48])
    mask = across(grid_mm(affine, shape), center, np.array([0.0, 0, 1])) <= 4
    along = cross_sections(torch.from_numpy(mask), affine, [center], [[1, 0, 0]], [4])
    assert along.open_share[0] > 0  # open at both ends of the plane, bridged
    wide = torch.ones(shape, dtype=torch.bool)
    everywhere = cross_sections(wide, affine, [center], [[0, 0, 1]], [4])
    assert everywhere.open_share[0] == 1
    assert np.isnan(everywhere.area_mm2[0])
    cut = across(grid_mm(affine, shape), np.array([1.0, 24, 48]), np.array([0.0, 0, 1])) <= 4
    edge = cross_sections(torch.from_numpy(cut), affine, [[1.0, 24, 48]], [[0, 0, 1]], [4])
    assert np.isnan(edge.area_mm2[0])
    assert 0.3 < edge.open_share[0] < 0.5  # the border stands at -0.5: acos(1.5 / 4) / π


def test_a_point_beside_a_thin_tube_finds_it():
    shape, affine = (40, 40, 40), np.eye(4)
    direction, center = np.array([0.0, 0, 1]), np.array([20.0, 20, 20])
    mask = torch.from_numpy(across(grid_mm(affine, shape), center, direction) <= 2)
    off = cross_sections(mask, affine, [center + np.array([2.9, 0, 0])], [direction], [2])
    assert off.equivalent_radius_mm[0] == pytest.approx(2, rel=0.1)
    assert np.linalg.norm(off.centers_mm[0] - center) < 0.6
    far = cross_sections(mask, affine, [center + np.array([12, 0, 0])], [direction], [2])
    assert np.isnan(far.area_mm2[0])
    assert far.open_share[0] == 1


def test_labels_are_structures_of_their_own():
    shape, affine = (64, 40, 40), np.eye(4)
    points = grid_mm(affine, shape)
    labels = np.zeros(shape, np.int16)
    labels[points[..., 0] < 32] = 7
    labels[across(points, np.array([32.0, 20, 20]), np.array([0.0, 0, 1])) <= 5] = 3
    nodes = np.array([[32.0, 20, z] for z in range(8, 33)] + [[10.0, 20, 20]])
    parents = np.array([*range(-1, 24), -1])
    structures = np.array([3] * 25 + [7])
    found = area_radius(
        torch.from_numpy(labels), affine, nodes, parents, np.full(26, 5.0), structures
    )
    np.testing.assert_allclose(found[:25], 5, rtol=0.02)
    assert np.isnan(found[25])  # a node alone has no direction


def test_directions_follow_the_wider_child():
    nodes = np.array([[n, 0, 0] for n in range(6)] + [[5, n, 0] for n in range(1, 5)]
                     + [[n, 0, 0] for n in range(6, 11)], float)  # fmt: skip
    parents = np.array([-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 10, 11, 12, 13])
    radius = np.full(15, 1.0)
    radius[6:10] = 2.0
    wide_side = node_tangents(nodes, parents, radius)
    np.testing.assert_allclose(wide_side[5], np.array([1, 1, 0]) / np.sqrt(2))
    np.testing.assert_allclose(wide_side[0], [1, 0, 0])
    np.testing.assert_allclose(wide_side[9], [0, 1, 0])
    radius[10:] = 3.0
    np.testing.assert_allclose(node_tangents(nodes, parents, radius)[5], [1, 0, 0])


def test_many_points_in_chunks_are_as_points_alone():
    shape, affine = (96, 64, 64), oblique([0.7, 0.7, 1.0], 8)
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(rng.random(shape) > 0.1)
    points = to_mm(affine, rng.uniform(0, 1, (900, 3)) * (np.array(shape) - 1))
    tangents, radius = rng.normal(size=(900, 3)), rng.uniform(0.5, 9, 900)
    together = cross_sections(mask, affine, points, tangents, radius)
    for n in range(0, 900, 90):
        alone = cross_sections(
            mask, affine, points[n : n + 1], tangents[n : n + 1], radius[n : n + 1]
        )
        np.testing.assert_allclose(alone.rays_mm[0], together.rays_mm[n], atol=1e-3)


def test_odd_radii_and_wrong_input():
    shape, affine = (40, 40, 40), np.eye(4)
    mask = torch.from_numpy(across(grid_mm(affine, shape), 20.0, np.array([0.0, 0, 1])) <= 4)
    point, up = [[20.0, 20, 20]] * 4, [[0, 0, 1.0]] * 3 + [[0, 0, 0.0]]
    found = cross_sections(mask, affine, point, up, [np.inf, np.nan, 0.0, 4.0])
    assert found.equivalent_radius_mm[0] == pytest.approx(4, rel=0.05)
    assert np.isnan(found.equivalent_radius_mm[1:]).all()  # too small a window; no direction
    none = cross_sections(mask, affine, np.empty((0, 3)), np.empty((0, 3)), [])
    assert none.area_mm2.shape == (0,)
    for wrong in (
        lambda: cross_sections(mask[0], affine, point, up, [4] * 4),
        lambda: cross_sections(mask, affine, point, up[:2], [4] * 4),
        lambda: cross_sections(mask, affine, point, up, [4]),
    ):
        with pytest.raises(StepError):
            wrong()


@pytest.mark.gpu
def test_the_gpu_gives_the_same_sections():
    shape, affine = (48, 48, 48), oblique([1, 1, 1], 0)
    center, direction = center_mm(affine, shape), unit(1)
    mask = torch.from_numpy(across(grid_mm(affine, shape), center, direction) <= 5)
    host = sections_of_tube(mask, affine, center, direction, 5, 12)
    device = sections_of_tube(mask.cuda(), affine, center, direction, 5, 12)
    np.testing.assert_allclose(device.rays_mm, host.rays_mm, atol=1e-3)


def test_sections_outdo_the_inscribed_ball_where_the_wall_is_rough():
    """A tree with walls of 0.8 voxel of noise: the ball is too small, the area is not."""
    truth = small_tree(3, kind="very-rough")
    mask = torch.from_numpy(truth.mask)
    distance = distance_transform_edt(truth.mask, sampling=0.5)
    index = np.rint(to_mm(np.linalg.inv(truth.affine), truth.points_mm)).astype(int)
    inscribed = distance[tuple(index.T)]
    found = area_radius(
        mask, truth.affine, truth.points_mm, truth.parents, inscribed, np.ones(len(inscribed))
    )
    wide = truth.radius_mm > 1.5
    assert np.isfinite(found[wide]).mean() > 0.95
    bias = np.nanmedian((found / truth.radius_mm)[wide]) - 1
    assert abs(bias) < 0.05
    assert np.median((inscribed / truth.radius_mm)[wide]) - 1 < -0.15
