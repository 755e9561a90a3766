"""Loops of a mask: cut, told, and closed again on request."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medpipe.centerline.extract import ExtractionSettings, extract_centerline
from medpipe.centerline.loops import loops_of_voxels
from medpipe.centerline.topology import betti_numbers

KEEP = ExtractionSettings(loops="keep")


def grid(*shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(float)


def torus(shape, center, ring, tube):
    x, y, z = np.moveaxis(grid(*shape) - center, -1, 0)
    return (np.hypot(x, y) - ring) ** 2 + z**2 <= tube**2


@given(st.integers(0, 1000))
def test_loops_of_voxels_agree_with_betti_numbers(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((5, 6, 7)) < 0.25
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    for value in range(1, labels.max() + 1):
        part = labels == value
        _, loops, cavities = betti_numbers(torch.from_numpy(part))
        assert loops_of_voxels(np.argwhere(part)) == loops - cavities


def test_a_ring_is_cut_once_and_told():
    mask = torus((44, 44, 12), (21.5, 21.5, 5.5), 15, 3)
    tree = extract_centerline(torch.from_numpy(mask), np.eye(4))
    assert len(tree.roots) == 1
    assert tree.facts["loops_found"] == 1
    assert tree.facts["loops_kept"] == 0
    assert loops_of_voxels(tree.voxels) == 0
    assert "centerline.loops_cut" in [f["check"] for f in tree.facts["findings"]]


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 0.5, 0.5), (1, 1, 1.5)])
def test_a_ring_is_closed_by_one_edge_between_neighbours(spacing):
    mask = torus((44, 44, 12), (21.5, 21.5, 5.5), 15, 3)
    tree = extract_centerline(torch.from_numpy(mask), np.diag([*spacing, 1.0]), KEEP)
    assert tree.facts["loops_kept"] == len(tree.closing) == 1
    a, b = tree.closing[0]
    assert np.abs(tree.voxels[a] - tree.voxels[b]).max() == 1
    loop = nx.cycle_basis(tree.graph.to_undirected())
    assert len(loop) == 1
    points = tree.voxels[loop[0]]
    # the cycle goes once around the middle of the tube
    radius = np.hypot(*(points[:, :2] - 21.5).T)
    assert np.abs(radius - 15).max() < 2
    angles = np.sort(np.arctan2(*(points[:, :2] - 21.5).T))
    assert np.diff(angles).max() < 0.3
    assert mask[tuple(tree.voxels.T)].all()


def test_two_rings_on_a_tube_are_closed_by_two_edges():
    shape = (100, 44, 12)
    mask = torus(shape, (21.5, 21.5, 5.5), 14, 3) | torus(shape, (77.5, 21.5, 5.5), 14, 3)
    x = grid(*shape)
    mask |= ((x[..., 1] - 21.5) ** 2 + (x[..., 2] - 5.5) ** 2 <= 9) & (abs(x[..., 0] - 49.5) < 16)
    tree = extract_centerline(torch.from_numpy(mask), np.eye(4), KEEP)
    loops = nx.cycle_basis(tree.graph.to_undirected())
    assert len(loops) == len(tree.closing) == tree.facts["loops_found"] == 2
    middles = sorted(tree.voxels[loop][:, 0].mean() for loop in loops)
    np.testing.assert_allclose(middles, [21.5, 77.5], atol=4)


def test_a_pore_of_the_wall_is_no_loop_of_the_tree():
    x = grid(60, 15, 15)
    mask = (x[..., 1] - 7) ** 2 + (x[..., 2] - 7) ** 2 <= 16
    mask[0] = mask[-1] = False
    mask[30, 7, :] = False  # a hole of one voxel right through
    tree = extract_centerline(torch.from_numpy(mask), np.eye(4), KEEP)
    assert tree.facts["loops_found"] == 1
    assert len(tree.closing) == 0


def test_without_loops_nothing_is_closed():
    x = grid(40, 30, 12)
    mask = abs(x[..., 2] - 5) <= 1
    mask &= (abs(x[..., 1] - 15) <= 1) | ((abs(x[..., 0] - x[..., 1]) <= 2) & (x[..., 1] > 15))
    plain = extract_centerline(torch.from_numpy(mask), np.eye(4))
    kept = extract_centerline(torch.from_numpy(mask), np.eye(4), KEEP)
    assert len(kept.closing) == 0
    np.testing.assert_array_equal(kept.voxels, plain.voxels)
