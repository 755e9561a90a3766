"""Training patches: their truth is that of the generated trees, their places are the hard ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpipe.centerline.examples import (
    FIRST_SEED,
    TreePatches,
    patch,
    training_tree,
    tree_sample,
)
from medpipe.phantoms.tubes import centred_affine, tube
from medpipe.phantoms.vessel_tree import VesselTree

SMALL = (96, 96, 96)


def straight(radius=6.0):
    """A straight tube along the first axis with a tip at each end, the first the root."""
    shape, spacing = (48, 33, 33), (0.5, 0.5, 0.5)
    points = np.stack([np.linspace(-6, 6, 49), np.zeros(49), np.zeros(49)], 1)
    affine = centred_affine(shape, spacing)
    mask = tube(points, radius * 0.5, shape, spacing)
    parents = np.arange(-1, 48)
    return VesselTree(points, np.full(49, radius * 0.5), parents, np.zeros(49, int), mask, affine)


def test_q_of_a_straight_tube_is_the_share_of_the_radius():
    sample = tree_sample(straight())
    across = np.linalg.norm(sample.voxels[:, 1:] - 16, axis=1)
    middle = np.abs(sample.voxels[:, 0] - 23.5) < 6
    # distances run between voxel centres: the background begins up to a voxel behind the wall
    q = sample.q[middle]
    assert (q <= across[middle] / 6.0 + 1e-6).all()
    assert (q >= across[middle] / 7.5 - 1e-6).all()
    assert q[across[middle] == 0].max() == 0
    exact = across[middle] / (across[middle] + sample.depth[middle])
    assert np.allclose(q, exact, atol=1e-5)
    assert np.abs(sample.tips - [35.5, 16, 16]).max() <= 0.5
    assert np.abs(sample.roots - [11.5, 16, 16]).max() <= 0.5
    assert sample.tip_radius.tolist() == pytest.approx([6.0])
    assert len(sample.touches) == 0


def test_a_patch_is_a_window_of_the_volume():
    sample = tree_sample(straight())
    inputs, targets = patch(sample, np.array([-3, -7, -8]), 56)
    mask = torch.from_numpy(straight().mask)
    inner = inputs[0, 3 : 3 + 48, 7 : 7 + 33, 8 : 8 + 33]
    assert torch.equal(inner > 0, mask)
    assert inputs[0].sum() == mask.sum()
    assert ((inputs[1] > 0) == (inputs[0] > 0)).all()
    assert ((targets[0] < 1) == (inputs[0] > 0)).all()
    tip, root = (tuple(p[0] + [3, 7, 8]) for p in (sample.tips, sample.roots))
    assert targets[1][tip] == 1 == targets[2][root]
    assert targets[1][root] < 1e-6


def test_touching_vessels_are_found_and_kin_is_not_taken_for_them():
    bars = np.linspace(-8, 8, 65)
    zeros = np.zeros(65)
    first = np.stack([bars, zeros, zeros], 1)
    for gap, touching in ((0.5, True), (3.0, False)):
        second = np.stack([zeros, bars, zeros + (4 + gap) * 0.5], 1)
        points = np.concatenate([first, second])
        parents = np.concatenate([np.arange(-1, 64), [-1], np.arange(65, 129)])
        branch = np.repeat([0, 1], 65)
        # they cross at right angles and belong to a mother that is far away
        mask = tube(points, 1.0, (48, 48, 24), (0.5, 0.5, 0.5), parents=parents)
        far = VesselTree(
            np.concatenate([points, [[0, 0, -5], [0, 0, -5.2]]]), np.full(132, 1.0),
            np.concatenate([parents, [-1, 130]]), np.concatenate([branch, [2, 3]]), mask,
            centred_affine((48, 48, 24), (0.5, 0.5, 0.5)),
        )  # fmt: skip
        far.__dict__["branch_parents"] = np.array([2, 3, -1, -1])
        found = tree_sample(far).touches
        assert (len(found) > 0) == touching
        if touching:
            assert np.linalg.norm(found - [23.5, 23.5, 13.75], axis=1).max() < 8


def test_trees_for_training_are_apart_from_those_for_measuring():
    seeds = [training_tree(n, SMALL).facts["seed"] for n in range(6)]
    assert min(seeds) >= FIRST_SEED == 1000
    kinds = [training_tree(n, SMALL).facts["kind"] for n in range(6)]
    assert set(kinds) == {"clean", "rough", "very-rough", "kissing"}


def test_patches_are_what_the_seed_says_and_turn():
    data = TreePatches(2, size=32, shape=SMALL)
    data.set_random_state(seed=3)
    first = [data[n] for n in range(4)]
    data.set_random_state(seed=3)
    again = [data[n] for n in range(4)]
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
        assert a.shape == (2, 32, 32, 32)
        assert b.shape == (3, 32, 32, 32)
        assert torch.isfinite(a).all()
        assert torch.isfinite(b).all()
        # what turned has turned together
        assert ((b[0] < 1) == (a[0] > 0)).all()
    data.set_random_state(seed=4)
    assert not torch.equal(data[0][0], first[0][0])


def test_a_third_of_the_patches_show_tips():
    data = TreePatches(2, per_tree=12, size=32, shape=SMALL)
    data.set_random_state(seed=0)
    tips = [float(data[n][1][1].max()) == 1 for n in (0, 1, 6, 7, 12, 13, 18, 19)]
    assert all(tips)
