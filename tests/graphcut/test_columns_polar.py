"""Polar and cylindrical columns against circles, cylinders and tori."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.columns import cylindrical_columns, polar_columns
from medpipe.graphcut.columns.curve import resample_curve, rotation_minimising_frames


def oblique(spacing=(0.1, 0.16, 0.5)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix() * spacing
    affine[:3, 3] = (-11.0, 5.0, 40.0)
    return affine


def voxel_centres(affine, shape):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return torch.from_numpy(index @ affine[:3, :3].T + affine[:3, 3])


def crossing(columns, values):
    """Positions where samples that grow along the columns pass zero, (1, X, Y)."""
    k = (values >= 0).to(torch.int64).argmax(-1, keepdim=True)
    low, high = values.gather(-1, k - 1), values.gather(-1, k)
    before, after = (columns.positions_mm.gather(-1, n) for n in (k - 1, k))
    return (after - (after - before) * high / (high - low)).movedim(-1, 0)


def circle_setup():
    shape, affine = (80, 52, 3), oblique()
    voxels = np.array([[38.3, 25.2, 0], [39.8, 23.2, 1], [35.3, 26.2, 2]])
    centers = torch.from_numpy(voxels @ affine[:3, :3].T + affine[:3, 3])
    radius = torch.tensor([2.0, 2.5, 2.2]).double()
    distance = torch.linalg.vector_norm(voxel_centres(affine, shape) - centers, dim=-1)
    columns = polar_columns(
        shape, affine, inner_mm=0.5, outer_mm=3.4, node_mm=0.1, centers_mm=centers, angles=90
    )
    return shape, affine, centers, radius, distance, columns


def test_circles_in_oblique_slices_are_found_and_mapped_back():
    _, affine, centers, radius, distance, columns = circle_setup()
    values = columns.sample((distance - radius)[None], affine)
    position = crossing(columns, values)
    # linear interpolation of a distance in voxels of h errs by at most h²/(8 r) per axis
    limit = (0.1**2 + 0.16**2) / (8 * 1.9)
    assert float((position[0] - radius).abs().max()) < limit
    points = columns.points_at(radius.expand(1, 90, 3))[0]
    reached = torch.linalg.vector_norm(points - centers, dim=-1)
    torch.testing.assert_close(reached, radius.expand(90, 3), rtol=0, atol=1e-12)
    normal = torch.from_numpy(np.cross(affine[:3, 0], affine[:3, 1]))
    assert float(((points - centers) @ normal).abs().max()) < 1e-12


def test_angles_close_exactly():
    *_, centers, _, _, columns = circle_setup()
    assert columns.wrap == (0,)
    ring = columns.points_mm[:, 1, -1]
    chord = torch.linalg.vector_norm(ring - ring.roll(-1, 0), dim=-1)
    expected = 2 * float(columns.positions_mm[0, 0, -1]) * math.sin(math.pi / 90)
    torch.testing.assert_close(chord, torch.full_like(chord, expected))
    torch.testing.assert_close(ring.mean(0), centers[1])


def test_labels_of_circles_are_discs_without_a_seam():
    shape, affine, _, radius, distance, columns = circle_setup()
    inner = torch.full((90, 3), 1.0).double()
    labels = columns.labels(torch.stack([inner, radius.expand(90, 3)]), shape, affine)[0]
    expected = (distance > 1.0).to(torch.int16) + (distance > radius).to(torch.int16)
    clear = torch.minimum((distance - 1.0).abs(), (distance - radius).abs()) > 1e-9
    assert torch.equal(labels[clear], expected[clear])


def test_labels_of_an_ellipse_follow_it_between_the_rays():
    shape, affine = (80, 80, 1), np.diag([0.1, 0.1, 1.0, 1.0])
    columns = polar_columns(shape, affine, inner_mm=0.2, outer_mm=3.9, node_mm=0.1, angles=120)
    turn = torch.arange(120).double() * 2 * math.pi / 120
    a, b, tilt = 3.1, 1.7, 0.7  # tilted: the radius changes across the seam

    def ellipse(angle):
        return a * b / torch.hypot(b * torch.cos(angle - tilt), a * torch.sin(angle - tilt))

    radius = ellipse(turn)
    labels = columns.labels(radius[None, :, None], shape, affine)[0, ..., 0]
    x, y = voxel_centres(affine, shape)[..., 0, :2].unbind(-1)
    x, y = x - 3.95, y - 3.95
    r = torch.hypot(x, y)
    truth = ellipse(torch.atan2(y, x))
    clear = (r - truth).abs() > 0.006  # curvature of r(angle) over 3 degrees
    assert torch.equal(labels[clear] == 1, (r > truth)[clear])
    assert int((~clear).sum()) < 60


def test_a_centre_is_moved_into_every_slice():
    affine = oblique()
    columns = polar_columns(
        (20, 20, 4), affine, inner_mm=0, outer_mm=1, node_mm=0.5,
        centers_mm=torch.from_numpy(affine[:3, :3] @ [9.0, 8.0, 1.0] + affine[:3, 3]), angles=8,
    )  # fmt: skip
    voxel = (columns.points_mm[3, :, 0].numpy() - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    np.testing.assert_allclose(voxel, [[9, 8, z] for z in range(4)], atol=1e-9)
    columns.check_uncrossed()  # cells at the centre have no volume, but do not turn over


def test_rays_are_at_right_angles_on_a_sheared_grid():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 1] = 0.5
    columns = polar_columns((9, 9, 1), affine, inner_mm=1, outer_mm=3, node_mm=1, angles=4)
    rays = columns.points_mm[:, 0, 1] - columns.points_mm[:, 0, 0]
    expected = [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]]
    np.testing.assert_allclose(rays, expected, atol=1e-12)


def cylinder_through(direction, length=30.0):
    direction = np.asarray(direction, float) / np.linalg.norm(direction)
    return np.array([3.0, -4.0, 10.0]) + np.linspace(0, length, 7)[:, None] * direction, direction


def test_a_straight_cylinder_is_found_and_filled():
    line, direction = cylinder_through((1, 2, 2))
    columns = cylindrical_columns(
        line, inner_mm=1, outer_mm=6, node_mm=0.5, station_mm=1.5, angles=48
    )
    assert columns.shape == (48, 21)
    position = torch.full((1, 48, 21), 3.7).double()
    points = columns.points_at(position)[0].numpy() - line[0]
    along = points @ direction
    np.testing.assert_allclose(np.linalg.norm(points - along[..., None] * direction, axis=-1), 3.7)
    np.testing.assert_allclose(along, np.broadcast_to(np.arange(21) * 1.5, (48, 21)), atol=1e-9)
    # frames do not twist: every ray keeps its direction
    np.testing.assert_allclose(np.ptp(points - along[..., None] * direction, axis=1), 0, atol=1e-9)
    affine = np.diag([0.9, 0.8, 1.1, 1.0])
    affine[:3, 3] = (-4, -10, 4)
    shape = (26, 40, 30)
    labels = columns.labels(position, shape, affine, uncovered=5)[0]
    offset = voxel_centres(affine, shape).numpy() - line[0]
    u = offset @ direction
    r = np.linalg.norm(offset - u[..., None] * direction, axis=-1)
    between = (u > 0.01) & (u < 29.99)
    np.testing.assert_array_equal(labels[between & (r < 3.699)], 0)
    np.testing.assert_array_equal(labels[between & (r > 3.701) & (r < 6)], 1)
    assert (labels.numpy()[(u < -0.8) | (u > 30.8)] == 5).all()


def torus_columns(angles=40, station_mm=1.0, outer_mm=5.0, segments=40):
    turn = np.arange(segments) * 2 * np.pi / segments
    ring = np.stack([20 * np.cos(turn), 20 * np.sin(turn), np.zeros(segments)], -1)
    return cylindrical_columns(
        ring, inner_mm=1, outer_mm=outer_mm, node_mm=0.5, station_mm=station_mm, angles=angles,
        closed=True,
    )  # fmt: skip


def test_a_closed_curve_gives_a_torus_that_wraps_twice():
    columns = torus_columns()
    assert columns.wrap == (0, 1)
    assert columns.shape == (40, 126)
    points = columns.points_at(torch.full((1, 40, 126), 4.0).double())[0]
    tube = torch.hypot(torch.hypot(points[..., 0], points[..., 1]) - 20, points[..., 2])
    assert float((tube - 4).abs().max()) < 1e-3
    for axis in (0, 1):  # the step across the seam is no larger than any other
        gap = torch.linalg.vector_norm(points - points.roll(-1, axis), dim=-1)
        seam = gap.select(axis, -1)
        assert float(seam.max()) <= float(gap.max())
        assert float((seam - gap.narrow(axis, 3, 1).squeeze(axis)).abs().max()) < 0.05
    volume = float(columns.cell_volumes_mm3().sum().abs())
    assert volume == pytest.approx(2 * math.pi**2 * 20 * (5**2 - 1), rel=5e-3)


def test_frames_of_a_closed_curve_that_leaves_the_plane_meet():
    t = np.arange(300) * 2 * np.pi / 300
    r = 20 + 6 * np.cos(3 * t)
    knot = np.stack([r * np.cos(2 * t), r * np.sin(2 * t), 6 * np.sin(3 * t)], -1)
    stations, tangents, _ = resample_curve(knot, 0.5, True)
    first, second = rotation_minimising_frames(stations, tangents, True)
    for frame in (first, second):
        step = np.linalg.norm(frame - np.roll(frame, -1, 0), axis=1)
        assert step[-1] == pytest.approx((step[-2] + step[0]) / 2, rel=0.01)
    open_first, _ = rotation_minimising_frames(stations, tangents, False)
    assert np.linalg.norm(open_first[-1] - open_first[0]) > 10 * np.median(step)
    np.testing.assert_allclose((first * tangents).sum(1), 0, atol=1e-12)
    np.testing.assert_allclose((first * second).sum(1), 0, atol=1e-12)


def test_points_between_two_cross_sections_are_weighted_by_their_distance():
    columns = torus_columns()
    for station, share in ((17, 0.8), (125, 0.3)):
        here, after = columns.points_mm[9, station, 5], columns.points_mm[9, (station + 1) % 126, 5]
        place = columns.inverse.locate(((1 - share) * here + share * after)[None])
        found = torch.zeros(40 * 126).double()
        found.index_add_(0, place.columns[0], place.weights[0])
        found = found.reshape(40, 126).sum(0)
        assert float(found[station]) == pytest.approx(1 - share, abs=1e-9)
        assert float(found[(station + 1) % 126]) == pytest.approx(share, abs=1e-9)
        assert float(place.position_mm) == pytest.approx(3.5, abs=3e-3)


def test_labels_of_a_torus():
    columns = torus_columns()
    affine = np.diag([1.0, 1.0, 0.8, 1.0])
    affine[:3, 3] = (-26.2, -26.1, -6.3)
    shape = (53, 53, 17)
    position = torch.stack([torch.full((40, 126), r) for r in (2.5, 4.0)]).double()
    labels = columns.labels(position, shape, affine)[0]
    x, y, z = voxel_centres(affine, shape).unbind(-1)
    tube = torch.hypot(torch.hypot(x, y) - 20, z)
    clear = torch.minimum((tube - 2.5).abs(), (tube - 4).abs()) > 0.01
    expected = (tube > 2.5).to(torch.int16) + (tube > 4).to(torch.int16)
    assert torch.equal(labels[clear], expected[clear])


def test_frames_on_a_helix_do_not_twist():
    # on a helix of radius a and pitch 2πb the Frenet frame turns by the torsion
    # b / (a² + b²) per arc length; a rotation-minimising frame turns back by as much
    t = np.linspace(0, 6 * np.pi, 400)
    a, b = 10.0, 3.0
    helix = np.stack([a * np.cos(t), a * np.sin(t), b * t], -1)
    stations, tangents, step = resample_curve(helix, 2.0, False)
    length = 6 * np.pi * math.hypot(a, b)
    assert step * (len(stations) - 1) == pytest.approx(length, rel=1e-4)
    gaps = np.linalg.norm(np.diff(stations, axis=0), axis=1)
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-3)
    first, second = rotation_minimising_frames(stations, tangents, False)
    frenet = np.c_[-stations[:, :2], np.zeros(len(stations))]
    angle = np.unwrap(np.arctan2((frenet * second).sum(1), (frenet * first).sum(1)))
    expected = b / (a**2 + b**2) * length
    # of fourth order in the step: one reflection and a projection would err by 7e-6
    assert angle[-1] - angle[0] == pytest.approx(expected, abs=3e-6)


def test_columns_that_cross_in_a_bend_are_refused():
    with pytest.raises(StepError, match="crosses a neighbour"):
        torus_columns(outer_mm=22.0)


def test_wrong_requests_are_refused():
    line, _ = cylinder_through((0, 0, 1))
    common = {"inner_mm": 1, "outer_mm": 3, "node_mm": 0.5}
    with pytest.raises(UsageError, match="radii"):
        polar_columns((9, 9, 1), np.eye(4), inner_mm=2, outer_mm=2, node_mm=0.5)
    with pytest.raises(UsageError, match="rays"):
        polar_columns((9, 9, 1), np.eye(4), angles=2, **common)
    with pytest.raises(StepError, match="centres do not fit"):
        polar_columns((9, 9, 2), np.eye(4), centers_mm=torch.zeros(3, 3), **common)
    with pytest.raises(StepError, match="too few points"):
        cylindrical_columns(line[:1], station_mm=1, **common)
    with pytest.raises(StepError, match="repeat"):
        cylindrical_columns(line[[0, 0, 1]], station_mm=1, **common)
    with pytest.raises(UsageError, match="station_mm"):
        cylindrical_columns(line, station_mm=0, **common)
