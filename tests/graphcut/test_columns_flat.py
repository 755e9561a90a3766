"""Flat and flattened columns against planes and the image itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.columns import flat_columns, flattened_columns
from medpipe.graphcut.columns.fill import _locate_all

SHAPE = (5, 6, 7)


def oblique(spacing=(0.4, 0.7, 1.3)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix() * spacing
    affine[:3, 3] = (-11.0, 5.0, 40.0)
    return affine


def voxel_centres(affine, shape):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_nodes_are_the_voxel_centres(axis, reverse):
    affine = oblique()
    columns = flat_columns(SHAPE, affine, axis=axis, reverse=reverse)
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    expected = image[0].movedim(axis, -1)
    values = columns.sample(image, affine)
    assert torch.equal(values, expected.flip(-1) if reverse else expected)
    step = (0.4, 0.7, 1.3)[axis]
    np.testing.assert_allclose(columns.spacing_mm, step, rtol=1e-12)
    np.testing.assert_allclose(columns.positions_mm.diff(dim=-1), step, rtol=1e-12)


def test_a_cell_has_the_volume_of_a_voxel():
    volume = flat_columns(SHAPE, oblique()).cell_volumes_mm3()
    np.testing.assert_allclose(volume, 0.4 * 0.7 * 1.3, rtol=1e-12)


def test_a_tilted_plane_is_found_and_mapped_back():
    # distance to a plane in mm, zero somewhere inside every column
    affine = oblique()
    normal = np.array([0.2, -0.1, 1.0]) / np.linalg.norm([0.2, -0.1, 1.0])
    normal = affine[:3, :3] / (0.4, 0.7, 1.3) @ normal
    middle = voxel_centres(affine, SHAPE).mean((0, 1, 2))
    image = torch.from_numpy((voxel_centres(affine, SHAPE) - middle) @ normal)[None]
    columns = flat_columns(SHAPE, affine, node_mm=0.5)
    assert columns.nodes == 16
    values = columns.sample(image, affine)
    k = (values >= 0).to(torch.int64).argmax(-1, keepdim=True)
    low, high = values.gather(-1, k - 1), values.gather(-1, k)
    position = columns.positions_mm.gather(-1, k) - 0.5 * high / (high - low)
    points = columns.points_at(position.movedim(-1, 0))
    np.testing.assert_allclose((points[0].numpy() - middle) @ normal, 0, atol=1e-9)
    lateral = np.linalg.inv(affine[:3, :3]) @ (points[0, 3, 4].numpy() - affine[:3, 3])
    np.testing.assert_allclose(lateral[:2], (3, 4), atol=1e-9)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_count_the_surfaces_before_a_voxel(axis, reverse):
    affine = oblique()
    columns = flat_columns(SHAPE, affine, axis=axis, reverse=reverse)
    generator = torch.Generator().manual_seed(axis)
    index = torch.randint(0, columns.nodes, (3, *columns.shape), generator=generator).sort(0).values
    position = columns.positions_mm.expand(3, *columns.positions_mm.shape).gather(
        -1, index[..., None]
    )[..., 0]
    labels = columns.labels(position, SHAPE, affine)
    assert labels.shape == (1, *SHAPE)
    expected = np.zeros((*columns.shape, columns.nodes), int)
    for s, x, y in np.ndindex(*index.shape):
        expected[x, y, index[s, x, y] + 1 :] += 1
    expected = expected[..., ::-1] if reverse else expected
    np.testing.assert_array_equal(labels[0], np.moveaxis(expected, -1, axis))


def test_a_voxel_on_a_surface_lies_before_it_whatever_the_rounding():
    affine = np.diag([1.0, 1.0, 0.1, 1.0])
    columns = flat_columns((1, 1, 9), affine)
    position = torch.tensor([[[0.3]]]).double()  # the voxel is at 3 · 0.1 > 0.3
    assert float(columns.positions_mm[0, 0, 3]) > 0.3
    assert columns.labels(position, (1, 1, 9), affine).flatten().tolist() == [0] * 4 + [1] * 5


def test_labels_by_locating_every_voxel_are_the_same():
    affine = oblique()
    reference = 3 + torch.rand(5, 6, generator=torch.Generator().manual_seed(0)).double()
    columns = flattened_columns(SHAPE, affine, reference, before_mm=3, beyond_mm=4)
    position = torch.stack([torch.full((5, 6), -1.01), torch.full((5, 6), 1.7)]).double()
    direct = columns.labels(position, SHAPE, affine)[0]
    located = _locate_all(columns.inverse, position, SHAPE, affine, 2)
    assert torch.equal(direct, located)
    assert set(direct.unique().tolist()) == {0, 1, 2}


def test_labels_on_a_finer_grid_follow_the_plane():
    shape, affine = (9, 9, 9), np.diag([1.0, 1.0, 1.0, 1.0])
    columns = flat_columns(shape, affine)
    x = torch.arange(9.0).double()
    position = (2 + 0.3 * x[:, None] + 0.2 * x)[None]
    fine = np.diag([0.5, 0.25, 0.5, 1.0])
    labels = columns.labels(position, (17, 33, 17), fine)[0]
    i, j, k = np.meshgrid(np.arange(17) * 0.5, np.arange(33) * 0.25, np.arange(17) * 0.5,
                          indexing="ij")  # fmt: skip
    np.testing.assert_array_equal(labels, (k > 2 + 0.3 * i + 0.2 * j + 1e-9))


def test_missing_columns_and_voxels_beside_the_lattice_are_uncovered():
    columns = flat_columns((3, 3, 3), np.eye(4))
    position = torch.ones(1, 3, 3).double()
    position[0, 1, 1] = torch.nan
    labels = columns.labels(position, (3, 3, 3), np.eye(4), uncovered=-1)[0]
    assert (labels[1, 1] == -1).all()
    assert int((labels == -1).sum()) == 3
    shifted = np.eye(4)
    shifted[0, 3] = 1.0
    labels = columns.labels(position, (3, 3, 3), shifted, uncovered=7)[0]
    assert (labels[2] == 7).all()
    assert (labels[0, 1] == 7).all()  # the missing column
    assert labels[1].tolist() == [[0, 0, 1]] * 3


def test_a_reference_surface_becomes_flat():
    affine = oblique((1.0, 1.0, 0.5))
    shape = (6, 5, 40)
    depth = 8 + 0.4 * torch.arange(6.0)[:, None] + torch.sin(torch.arange(5.0))
    z = torch.arange(40.0) * 0.5
    image = (z - depth[..., None])[None].double()  # zero at the reference
    columns = flattened_columns(
        shape, affine, depth.double(), before_mm=3, beyond_mm=2, node_mm=0.25
    )
    assert columns.nodes == 21
    values = columns.sample(image, affine)
    expected = torch.linspace(-3, 2, 21).double().expand(6, 5, 21)
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(columns.positions_mm, expected)
    on_reference = columns.points_at(torch.zeros(1, 6, 5).double())[0]
    voxel = (on_reference.numpy() - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    np.testing.assert_allclose(voxel[..., 2] * 0.5, depth, atol=1e-6)


def test_whole_voxels_leave_nothing_to_interpolate():
    depth = 3 + torch.rand(4, 4, generator=torch.Generator().manual_seed(3)).double()
    image = torch.randn(1, 4, 4, 9, generator=torch.Generator().manual_seed(4))
    columns = flattened_columns(
        (4, 4, 9), np.eye(4), depth, before_mm=2, beyond_mm=2, whole_voxels=True
    )
    first = depth.round().long() - 2
    expected = image[0].gather(-1, first[..., None] + torch.arange(5))
    assert torch.equal(columns.sample(image, np.eye(4)), expected)


def test_wrong_requests_are_refused():
    with pytest.raises(UsageError, match="axis of the columns"):
        flat_columns((3, 3, 3), np.eye(4), axis=3)
    with pytest.raises(StepError, match="too small"):
        flat_columns((3, 3, 1), np.eye(4))
    with pytest.raises(UsageError, match="node_mm"):
        flat_columns((3, 3, 3), np.eye(4), node_mm=-1)
    with pytest.raises(StepError, match="reference surface"):
        flattened_columns((3, 3, 3), np.eye(4), torch.zeros(2, 3), before_mm=1, beyond_mm=1)
    with pytest.raises(UsageError, match="shorter than one"):
        flattened_columns((3, 3, 3), np.eye(4), torch.zeros(3, 3), before_mm=0, beyond_mm=0.5)
