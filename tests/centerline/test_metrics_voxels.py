"""Cycles, loops and removable voxels of small masks, by hand and against networkx."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.morphology import skeletonize

from medpipe.centerline.metrics.voxel_facts import (
    graph_cycles,
    lee_skeleton,
    loops,
    removable_voxels,
)
from medpipe.errors import StepError


def mask_of(*voxels, shape=(7, 7, 7)):
    mask = torch.zeros(shape, dtype=torch.bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def ring(n=5):
    """The border of a square in one slice."""
    mask = torch.zeros((n + 2, n + 2, 3), dtype=torch.bool)
    mask[1:-1, 1:-1, 1] = True
    mask[2:-2, 2:-2, 1] = False
    return mask


def test_three_voxels_that_touch_are_a_cycle_but_no_loop():
    # 3 edges − 3 voxels + 1 component
    mask = mask_of((1, 1, 1), (2, 1, 1), (1, 2, 1))
    assert (graph_cycles(mask), loops(mask)) == (1, 0)


def test_a_straight_line_has_none():
    mask = mask_of(*[(k, 3, 3) for k in range(7)])
    assert (graph_cycles(mask), loops(mask), removable_voxels(mask)) == (0, 0, 0)


def test_a_diagonal_has_none_and_can_lose_nothing():
    mask = mask_of(*[(k, k, k) for k in range(7)])
    assert (graph_cycles(mask), loops(mask), removable_voxels(mask)) == (0, 0, 0)


def test_a_square_ring_by_hand():
    # 16 voxels of a ring of 5 x 5: 16 edges along it and 4 across its corners
    # 20 − 16 + 1 = 5 cycles, one loop, and the 4 corners can go
    assert int(ring().sum()) == 16
    assert (graph_cycles(ring()), loops(ring()), removable_voxels(ring())) == (5, 1, 4)


def test_a_block_by_hand():
    # 2 x 2 x 2: all 28 pairs touch, 28 − 8 + 1 = 21
    mask = torch.ones((2, 2, 2), dtype=torch.bool)
    assert (graph_cycles(mask), loops(mask)) == (21, 0)


def test_a_thick_bar_by_hand():
    # 3 x 3 x 7 voxels thin to those of their axis, of which the ends retract by one
    mask = torch.zeros((5, 5, 9), dtype=torch.bool)
    mask[1:4, 1:4, 1:8] = True
    skeleton = torch.nonzero(lee_skeleton(mask)).tolist()
    assert skeleton == [[2, 2, k] for k in range(2, 7)]
    assert removable_voxels(mask) == 63 - 5


def test_nothing_and_one_voxel():
    assert graph_cycles(torch.zeros((3, 3, 3))) == loops(torch.zeros((3, 3, 3))) == 0
    assert removable_voxels(torch.zeros((3, 3, 3))) == 0
    one = mask_of((0, 0, 0))
    assert (graph_cycles(one), loops(one), removable_voxels(one)) == (0, 0, 0)


@given(st.integers(0, 10**6), st.floats(0.05, 0.6))
def test_networkx_counts_the_same_cycles(seed, share):
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(1, 6, 3))) < share
    voxels = np.argwhere(mask)
    graph = nx.Graph()
    graph.add_nodes_from(range(len(voxels)))
    gap = np.abs(voxels[:, None] - voxels[None]).max(axis=2) if len(voxels) else np.empty((0, 0))
    graph.add_edges_from(np.argwhere(gap == 1).tolist())
    assert graph_cycles(mask) == len(nx.cycle_basis(graph))


@given(st.integers(0, 10**6))
def test_the_skeleton_of_a_crop_is_that_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((14, 13, 12), bool)
    low = rng.integers(0, 6, 3)
    box = tuple(slice(a, a + 6) for a in low)
    mask[box] = rng.random((6, 6, 6)) < 0.7
    found = lee_skeleton(torch.from_numpy(mask))
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found.numpy(), skeletonize(mask, method="lee") != 0)


def test_a_block_of_two_is_lost():
    mask = mask_of(*np.ndindex(2, 2, 2))
    assert int(lee_skeleton(mask).sum()) == 0


def test_numbers_are_masks_and_slices_are_not():
    assert loops(ring().to(torch.int16) * 7) == 1
    with pytest.raises(StepError, match="axes"):
        loops(torch.ones((3, 3)))
