"""Smoothing of trees against closed forms and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from medpipe.centerline.smoothing import smooth_positions
from medpipe.errors import StepError, UsageError


def random_tree(seed, n=300):
    """Return positions and parents of a random forest of two trees."""
    rng = np.random.default_rng(seed)
    parents = [-1] + [int(rng.integers(max(0, i - 4), i)) for i in range(1, n)]
    parents += [-1] + [n + int(rng.integers(max(0, i - 2), i)) for i in range(1, 50)]
    return rng.normal(size=(n + 50, 3)) * [3, 4, 5], np.array(parents)


def chain(n):
    return np.arange(-1, n - 1)


def test_one_round_is_the_mean_with_both_neighbours():
    points = np.array([[0, 0, 0], [1, 3, 0], [2, 0, 6.0]])
    out = smooth_positions(points, chain(3), 1)
    np.testing.assert_allclose(out, [[0, 0, 0], [1, 1, 2], [2, 0, 6]])


def test_a_junction_is_the_mean_with_all_its_neighbours():
    points = np.array([[0, 0, 0], [1, 1, 0], [4, 0, 0], [0, 8, 4.0]])
    out = smooth_positions(points, [-1, 0, 1, 1], 1)
    np.testing.assert_allclose(out, [[0, 0, 0], [5 / 4, 9 / 4, 1], [4, 0, 0], [0, 8, 4]])


@pytest.mark.parametrize(("wave", "rounds"), [(3, 1), (3, 20), (39, 3), (20, 7)])
def test_a_wave_decays_as_its_eigenvalue(wave, rounds):
    """With fixed ends sin(π w n / N) is an eigenvector of a chain, (1 + 2 cos θ) / 3."""
    n = 41
    theta = np.pi * wave / (n - 1)
    points = np.zeros((n, 3))
    points[:, 0] = np.arange(n)
    points[:, 1] = np.sin(theta * np.arange(n))
    out = smooth_positions(points, chain(n), rounds)
    expected = ((1 + 2 * np.cos(theta)) / 3) ** rounds * points[:, 1]
    np.testing.assert_allclose(out[:, 1], expected, atol=1e-12)
    np.testing.assert_allclose(out[:, 0], points[:, 0], atol=1e-12)


def test_an_impulse_becomes_a_gaussian_of_the_stated_width():
    n, rounds = 201, 20
    points = np.zeros((n, 3))
    points[100, 2] = 1.0
    out = smooth_positions(points, chain(n), rounds)[:, 2]
    offset = np.arange(n) - 100
    assert out.sum() == pytest.approx(1)
    assert (out * offset**2).sum() == pytest.approx(2 * rounds / 3)


@pytest.mark.parametrize("seed", range(4))
def test_roots_and_leaves_stay_and_nodes_stay_in_the_hull(seed):
    points, parents = random_tree(seed)
    out = smooth_positions(points, parents, 20)
    children = np.bincount(parents[parents >= 0], minlength=len(parents))
    fixed = (parents < 0) | (children == 0)
    np.testing.assert_array_equal(out[fixed], points[fixed])
    assert np.abs(out - points)[~fixed].max() > 0.5
    for part in (slice(0, 300), slice(300, 350)):
        hull = ConvexHull(points[part])
        assert (out[part] @ hull.equations[:, :3].T + hull.equations[:, 3]).max() < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_smoothing_commutes_with_every_affine_map(seed):
    rng = np.random.default_rng(seed)
    points, parents = random_tree(seed)
    turn = Rotation.random(random_state=seed).as_matrix()
    for linear in (turn, turn @ np.diag([0.3, 0.3, 3.0]), rng.normal(size=(3, 3))):
        shift = rng.normal(size=3) * 100
        np.testing.assert_allclose(
            smooth_positions(points @ linear.T + shift, parents),
            smooth_positions(points, parents) @ linear.T + shift,
            atol=1e-9,
        )


def test_a_straight_line_is_unchanged_and_the_numbering_does_not_matter():
    line = np.outer(np.arange(30), [0.3, -0.2, 1.0])
    np.testing.assert_allclose(smooth_positions(line, chain(30)), line, atol=1e-12)
    points, parents = random_tree(7)
    order = np.random.default_rng(0).permutation(len(parents))
    rank = np.argsort(order)
    renamed = np.where(parents[order] < 0, -1, rank[parents[order]])
    np.testing.assert_allclose(
        smooth_positions(points[order], renamed), smooth_positions(points, parents)[order]
    )


def voxel_path(curve):
    """Return the voxels that a dense curve passes, without needless corners."""
    voxels = np.rint(curve).astype(int)
    voxels = voxels[np.append(True, (np.diff(voxels, axis=0) != 0).any(axis=1))]
    path, n = [voxels[0]], 0
    while n < len(voxels) - 1:
        n += 1
        while n + 1 < len(voxels) and np.abs(voxels[n + 1] - path[-1]).max() <= 1:
            n += 1
        path.append(voxels[n])
    return np.array(path, float)


def test_twenty_rounds_bring_the_length_of_a_voxel_path_to_the_truth():
    """Arcs of radius 60 voxels, the bend of a vessel, in random directions."""
    rng = np.random.default_rng(1)
    ratios = []
    for seed in range(30):
        turn = Rotation.random(random_state=seed).as_matrix()
        angle = np.linspace(0, 2, 6000)
        arc = np.stack([60 * np.cos(angle), 60 * np.sin(angle), 20 * angle], 1) @ turn.T
        true = np.linalg.norm(np.diff(arc, axis=0), axis=1).sum()
        raw = voxel_path(arc + rng.uniform(0, 1, 3))
        smooth = smooth_positions(raw, chain(len(raw)))
        ratios.append(
            [np.linalg.norm(np.diff(p, axis=0), axis=1).sum() / true for p in (raw, smooth)]
        )
    raw_ratio, smooth_ratio = np.mean(ratios, axis=0)
    assert 1.07 < raw_ratio < 1.11
    assert 0.99 < smooth_ratio < 1.005
    assert 0.98 < np.min(ratios, axis=0)[1] < np.max(ratios, axis=0)[1] < 1.02


def test_small_and_wrong_input():
    alone = np.array([[1.0, 2, 3]])
    np.testing.assert_array_equal(smooth_positions(alone, [-1]), alone)
    pair = np.array([[1.0, 2, 3], [2, 2, 3]])
    np.testing.assert_array_equal(smooth_positions(pair, [-1, 0]), pair)
    given = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_array_equal(smooth_positions(given, chain(9), 0), given)
    with pytest.raises(UsageError, match="negative"):
        smooth_positions(pair, [-1, 0], -1)
    with pytest.raises(StepError, match="do not fit"):
        smooth_positions(pair, [-1, 0, 1])
