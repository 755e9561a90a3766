"""Columns: sampling, points at positions, order, volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.columns import Columns


def oblique(spacing=(0.4, 0.7, 1.3), origin=(-11.0, 5.0, 40.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 70), degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def world(affine, voxels):
    return torch.from_numpy(np.asarray(voxels, float) @ affine[:3, :3].T + affine[:3, 3])


def random_columns(seed=0, shape=(4, 3, 6)):
    rng = np.random.default_rng(seed)
    voxels = rng.uniform(1, 7, (*shape, 3))
    return voxels, Columns(world(oblique(), voxels))


def test_linear_sampling_agrees_with_scipy_on_an_oblique_grid():
    voxels, columns = random_columns()
    image = np.random.default_rng(1).normal(size=(9, 10, 11))
    values = columns.sample(torch.from_numpy(image)[None], oblique())
    expected = map_coordinates(image, voxels.reshape(-1, 3).T, order=1).reshape(voxels.shape[:-1])
    np.testing.assert_allclose(values, expected, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_voxel_centres_are_sampled_exactly_even_beside_nan(dtype):
    affine = oblique(origin=(-211.0, 95.0, 740.0))
    index = np.stack(np.meshgrid(*map(np.arange, (5, 4, 3)), indexing="ij"), -1)
    columns = Columns(world(affine, index).to(dtype))
    image = torch.randn(1, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    image[0, 2, 2, 1] = torch.nan
    for mode in ("linear", "nearest"):
        values = columns.sample(image, affine, mode)
        assert torch.equal(torch.nan_to_num(values, 99), torch.nan_to_num(image[0], 99))


def test_a_neighbour_of_weight_zero_is_not_read():
    points = torch.tensor([[[1.0, 2.0, 0.5], [0.5, 2.0, 1.0]]]).double()
    image = torch.full((1, 4, 4, 4), torch.nan)
    image[0, 1, 2, 0], image[0, 1, 2, 1], image[0, 0, 2, 1] = 1, 3, 8
    assert Columns(points).sample(image, np.eye(4)).tolist() == [[2, 5.5]]


def test_half_a_voxel_outside_is_the_edge_and_beyond_is_outside():
    z = torch.tensor([-0.6, -0.4, 0.0, 2.4, 2.6], dtype=torch.float64)
    points = torch.stack([torch.zeros(5), torch.zeros(5), z], -1)[None].to(torch.float64)
    image = torch.tensor([5.0, 6.0, 7.0]).reshape(1, 1, 1, 3)
    values = Columns(points).sample(image, np.eye(4), outside=-1)
    assert values.tolist() == [[-1, 5, 5, 7, -1]]
    assert torch.isnan(Columns(points).sample(image, np.eye(4))[0, 0])


def test_integers_stay_integers_in_nearest_mode_and_have_no_nan():
    _, columns = random_columns()
    labels = torch.arange(9 * 10 * 11, dtype=torch.int32).reshape(1, 9, 10, 11)
    assert columns.sample(labels, oblique(), "nearest").dtype == torch.int32
    with pytest.raises(StepError, match="which has no NaN"):
        columns.sample(labels[..., :3], oblique(), "nearest")


def test_positions_default_to_arc_length():
    corner = torch.tensor([[[0.0, 0, 0], [3, 4, 0], [3, 4, 12]]])
    columns = Columns(corner)
    assert columns.positions_mm.tolist() == [[0, 5, 17]]
    assert columns.spacing_mm.tolist() == [[5, 12]]


def test_points_at_is_linear_between_nodes_and_continues_the_ends():
    corner = torch.tensor([[[0.0, 0, 0], [3, 4, 0], [3, 4, 12]]], dtype=torch.float64)
    columns = Columns(corner)
    position = torch.tensor([[-5.0], [0.0], [2.5], [5.0], [8.0], [17.0], [20.0], [torch.nan]])
    points = columns.points_at(position)
    expected = [[-3, -4, 0], [0, 0, 0], [1.5, 2, 0], [3, 4, 0], [3, 4, 3], [3, 4, 12], [3, 4, 15]]
    np.testing.assert_allclose(points[:-1, 0], expected, atol=1e-12)
    assert torch.isnan(points[-1]).all()
    with pytest.raises(StepError, match="column 0: a position lies outside"):
        columns.points_at(torch.tensor([[30.0]]))


def test_moved_nodes_lie_at_their_new_positions():
    _, columns = random_columns()
    shifted = columns.positions_mm.clone()
    shifted[..., 1:-1] += 0.2 * shifted.diff(dim=-1)[..., 1:]
    moved = columns.moved(shifted)
    assert torch.equal(moved.positions_mm, shifted)
    between = 0.8 * columns.points_mm[..., 1:-1, :] + 0.2 * columns.points_mm[..., 2:, :]
    torch.testing.assert_close(moved.points_mm[..., 1:-1, :], between)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions_mm": torch.tensor([0.0, 2.0, 2.0])}, r"column \(0, 0\): .* do not increase"),
        ({"wrap": (2,)}, "wraps around does not exist"),
        ({"links": torch.zeros((1, 4), dtype=torch.int64)}, "links do not fit"),
        ({"points_mm": torch.zeros(2, 2, 3, 2)}, "wrong shape or type"),
        ({"points_mm": torch.full((2, 2, 3, 3), torch.nan)}, "NaN or infinite"),
        ({"points_mm": torch.zeros(2, 2, 1, 3)}, "two nodes or more"),
    ],
)
def test_unusable_columns_are_refused(change, message):
    points = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(StepError, match=message):
        Columns(**{"points_mm": points} | change)


def test_wrong_images_affines_and_modes_are_refused():
    _, columns = random_columns()
    with pytest.raises(StepError, match="image to sample has wrong axes"):
        columns.sample(torch.zeros(2, 3, 3, 3), np.eye(4))
    with pytest.raises(StepError, match="singular"):
        columns.sample(torch.zeros(1, 3, 3, 3), np.zeros((4, 4)) + np.diag([0, 0, 0, 1]))
    with pytest.raises(UsageError, match="unknown mode"):
        columns.sample(torch.zeros(1, 3, 3, 3), np.eye(4), "cubic")
    with pytest.raises(StepError, match="do not fit the columns"):
        columns.points_at(torch.zeros(2, 3, 4))


def test_cell_volumes_integrate_a_bent_map_exactly():
    # (u, v, w) → (u + v w / 5, v, w (1 + u / 4)): Jacobian 1 + u/4 - v w / 20, which a
    # trilinear cell represents without error
    u, v, w = torch.meshgrid(*[torch.linspace(0, n, n + 1).double() for n in (3, 2, 4)],
                             indexing="ij")  # fmt: skip
    columns = Columns(torch.stack([u + v * w / 5, v, w * (1 + u / 4)], -1))
    volume = columns.cell_volumes_mm3()
    assert volume.shape == (3, 2, 4)
    expected = 3 * 2 * 4 * (1 + 1.5 / 4) - 3 * 2 * 8 / 20
    assert float(volume.sum()) == pytest.approx(expected, rel=1e-12)


def test_crossing_columns_are_named():
    u, v, w = torch.meshgrid(*[torch.arange(n).double() for n in (4, 4, 5)], indexing="ij")
    points = torch.stack([u, v, w], -1)
    assert Columns(points).check_uncrossed() is not None
    points[2, 1, 3:, 0] -= 1.5  # beyond column (1, 1)
    with pytest.raises(StepError, match=r"column \(\d, \d\) crosses a neighbour near node"):
        Columns(points).check_uncrossed()


def test_triangles_of_a_wrapped_lattice_are_closed():
    points = torch.randn(5, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    plain, ring, torus = (Columns(points, wrap=w).triangles() for w in ((), (0,), (0, 1)))
    assert [len(t) for t in (plain, ring, torus)] == [2 * 4 * 2, 2 * 5 * 2, 2 * 5 * 3]
    edges = np.sort(np.concatenate([torus[:, [0, 1]], torus[:, [1, 2]], torus[:, [2, 0]]]), 1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
