"""Straightened images of scenes drawn from their equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from medpipe.centerline.straighten import straighten
from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_from_parts, to_mm


def grid_mm(affine, shape):
    return to_mm(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))


HELIX = np.linspace(0, 9, 250)
AFFINES = {
    "cubic": (np.diag([1.0, 1, 1, 1]), (64, 64, 64)),
    "oblique": (
        affine_from_parts(Rotation.random(random_state=2).as_matrix(), [1, 1, 1], [9, -30, 5]),
        (110, 110, 110),
    ),
    "unequal": (np.diag([0.6, 0.8, 2.0, 1]), (110, 80, 32)),
    "mirrored": (np.diag([-0.8, 1.0, 1.0, 1]), (80, 64, 64)),
}


def helix_in(affine, shape):
    """Return a helix of radius 14 mm around the middle of the grid."""
    curve = np.stack([14 * np.cos(HELIX), 14 * np.sin(HELIX), 3 * (HELIX - 4.5)], -1)
    return curve + to_mm(affine, (np.array(shape) - 1) / 2)


def test_a_straight_curve_along_an_axis_is_the_image_itself():
    image = torch.rand(2, 9, 11, 20, generator=torch.Generator().manual_seed(0))
    points = np.array([[4.0, 5, 3], [4, 5, 15]])
    out = straighten(image, np.eye(4), points, width_mm=6, step_mm=1, start=[1, 0, 0])
    assert out.data.shape == (2, 7, 7, 13)
    # the second normal is tangent × first: +y
    torch.testing.assert_close(out.data, image[:, 1:8, 2:9, 3:16], atol=1e-5, rtol=0)
    np.testing.assert_allclose(
        out.affine, [[1, 0, 0, -3], [0, 1, 0, -3], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    assert (out.bend_radius_mm > 1e6).all()


@pytest.mark.parametrize("name", AFFINES)
def test_a_linear_image_is_sampled_at_the_positions_told(name):
    """Trilinear interpolation keeps linear functions, so every voxel is known exactly."""
    affine, shape = AFFINES[name]
    slope = np.array([1.0, -2.0, 0.5])
    image = torch.from_numpy(grid_mm(affine, shape) @ slope + 7)[None]
    out = straighten(image, affine, helix_in(affine, shape), width_mm=9, step_mm=0.7, pixel_mm=0.5)
    positions = out.positions_mm()
    np.testing.assert_allclose(out.data[0], positions @ slope + 7, atol=1e-8)
    index = np.stack(np.meshgrid(*map(np.arange, out.data.shape[1:]), indexing="ij"), -1)
    np.testing.assert_allclose(out.to_ras_mm(to_mm(out.affine, index)), positions, atol=1e-9)


@pytest.mark.parametrize("name", AFFINES)
def test_a_helical_tube_becomes_a_straight_tube_in_the_middle(name):
    affine, shape = AFFINES[name]
    fine = helix_in(affine, shape)
    distance = cKDTree(np.concatenate([fine, (fine[1:] + fine[:-1]) / 2])).query(
        grid_mm(affine, shape)
    )[0]
    image = torch.from_numpy(np.clip(4.5 - distance, 0, 1))[None]
    out = straighten(image, affine, fine, width_mm=16, step_mm=0.5)
    tube = out.data[0, :, :, 12:-12].numpy()
    area = (tube > 0.5).sum(axis=(0, 1)) * 0.25
    np.testing.assert_allclose(np.sqrt(area / np.pi), 4, rtol=0.05)
    offset = np.arange(tube.shape[0]) - tube.shape[0] // 2
    weight = tube.sum(axis=(0, 1))
    for moment in (tube.sum(axis=1), tube.sum(axis=0)):
        assert np.abs(offset @ moment / weight).max() < 0.5  # pixels
    speed = np.hypot(14, 3)
    assert out.data.shape[-1] == int(9 * speed / 0.5) + 1
    np.testing.assert_allclose(out.bend_radius_mm[12:-12], speed**2 / 14, rtol=1e-3)


def test_a_ramp_along_the_curve_becomes_a_ramp_along_the_axis():
    affine, shape = AFFINES["cubic"]
    fine = helix_in(affine, shape)
    _, nearest = cKDTree(fine).query(grid_mm(affine, shape))
    image = torch.from_numpy(HELIX[nearest] * np.hypot(14, 3))[None]
    out = straighten(image, affine, fine, width_mm=4, step_mm=1)
    inner = out.data[0, 1:-1, 1:-1, 3:-3].numpy()
    np.testing.assert_allclose(
        inner, np.broadcast_to(np.arange(3, out.data.shape[-1] - 3), inner.shape), atol=0.6
    )


def test_what_runs_beside_the_curve_stays_on_its_side():
    """A second helix, carried along by the same frames, is a straight line."""
    affine, shape = AFFINES["cubic"]
    fine = helix_in(affine, shape)
    plain = straighten(torch.zeros(1, 2, 2, 2), affine, fine, width_mm=1, step_mm=0.1)
    beside = plain.points_mm + 5 * plain.frames[:, 1]
    near = torch.from_numpy(cKDTree(beside).query(grid_mm(affine, shape))[0] < 1.5)
    out = straighten(near[None].float(), affine, fine, width_mm=16, step_mm=0.5)
    seen = out.data[0, :, :, 6:-6].numpy()
    offset = 0.5 * (np.arange(seen.shape[0]) - seen.shape[0] // 2)
    weight = seen.sum(axis=(0, 1))
    np.testing.assert_allclose(offset @ seen.sum(axis=1) / weight, 5, atol=0.5)
    np.testing.assert_allclose(offset @ seen.sum(axis=0) / weight, 0, atol=0.5)


def test_labels_outside_and_channels():
    affine, shape = np.eye(4), (12, 12, 30)
    labels = torch.zeros((1, *shape), dtype=torch.int16)
    labels[:, :6] = 300
    points = np.array([[5.6, 6, 2], [5.6, 6, 27]])
    out = straighten(labels, affine, points, width_mm=20, step_mm=1, mode="nearest", fill=-1,
                     start=[1, 0, 0])  # fmt: skip
    assert out.data.dtype == torch.int16
    assert set(out.data.unique().tolist()) == {-1, 0, 300}
    middle = out.data[0, :, 10, 5].tolist()
    # voxel boxes reach half a voxel beyond the centres, from -0.5 to 11.5
    assert middle == [-1] * 4 + [300] * 6 + [0] * 6 + [-1] * 5
    away = straighten(labels, affine, points + 500, width_mm=4, step_mm=1, fill=9)
    assert away.data.dtype == torch.float32
    assert (away.data == 9).all()


def test_many_planes_in_parts_are_as_all_at_once(monkeypatch):
    affine, shape = AFFINES["unequal"]
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    curve = helix_in(affine, shape)
    whole = straighten(image, affine, curve, width_mm=6, step_mm=0.5, mode="cubic")
    monkeypatch.setattr("medpipe.centerline.straighten._SLAB_VOXELS", 1000)
    parts = straighten(image, affine, curve, width_mm=6, step_mm=0.5, mode="cubic")
    torch.testing.assert_close(parts.data, whole.data)


def test_planes_along_the_curve():
    image = torch.zeros(1, 21, 21, 12)
    image[0, 14, 10] = 1.0  # +4 along the first normal
    image[0, 10, 16] = 2.0  # +6 along the second
    points = np.array([[10.0, 10, 0], [10, 10, 11]])
    out = straighten(image, np.eye(4), points, width_mm=20, step_mm=1, start=[1, 0, 0])
    first, second = out.longitudinal(0), out.longitudinal(90)
    assert first.shape == (1, 21, 12)
    for plane, row, value in ((first, 14, 1.0), (second, 16, 2.0)):
        expected = torch.zeros(1, 21, 12)
        expected[:, row] = value
        torch.testing.assert_close(plane, expected, atol=1e-4, rtol=0)
    slab = out.longitudinal(0, slab_mm=12)[0, :, 5]
    assert slab[14] == pytest.approx(1, abs=1e-4)
    assert slab[10] == pytest.approx(2, abs=1e-4)
    mean = out.longitudinal(0, slab_mm=12, projection="mean")[0, :, 5]
    assert mean[10] == pytest.approx(2 / 13, abs=1e-4)
    assert out.longitudinal(0, 12, "min").abs().max() < 1e-4
    with pytest.raises(UsageError, match="projection"):
        out.longitudinal(0, 12, "median")
    with pytest.raises(UsageError, match="slab"):
        out.longitudinal(0, -1)


def test_wrong_arguments():
    image, line = torch.zeros(1, 4, 4, 4), np.array([[0.0, 0, 0], [3, 3, 3]])
    for more in ({"width_mm": 0}, {"step_mm": -1}, {"pixel_mm": 0}, {"mode": "spline"}):
        settings = {"width_mm": 4, "step_mm": 1} | more
        with pytest.raises(UsageError):
            straighten(image, np.eye(4), line, **settings)
    with pytest.raises(StepError, match="axes"):
        straighten(image[0], np.eye(4), line, width_mm=4, step_mm=1)
    with pytest.raises(StepError, match="two different"):
        straighten(image, np.eye(4), line[:1], width_mm=4, step_mm=1)


@pytest.mark.gpu
def test_the_gpu_gives_the_same_image():
    affine, shape = AFFINES["unequal"]
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    curve = helix_in(affine, shape)
    host = straighten(image, affine, curve, width_mm=6, step_mm=0.5)
    device = straighten(image.cuda(), affine, curve, width_mm=6, step_mm=0.5)
    assert device.data.is_cuda
    torch.testing.assert_close(device.data.cpu(), host.data, atol=1e-4, rtol=0)
