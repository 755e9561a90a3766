"""Loops are cut where vessels touch, and the vessel between two forks stays whole."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch

from medpipe.centerline.extract import extract_centerline
from medpipe.centerline.loops import loops_of_voxels
from medpipe.centerline.metrics import compare_trees
from medpipe.centerline.settings import ExtractionSettings
from medpipe.centerline.topology import betti_numbers
from medpipe.phantoms.tube_shapes import ring, tree_of
from medpipe.phantoms.vessel_tree import vessel_tree


def line(*corners, step=0.5):
    """Points along straight lines through corners."""
    out = [np.asarray(corners[:1], float)]
    for a, b in pairwise(corners):
        n = int(np.linalg.norm(np.subtract(b, a)) / step)
        out.append(np.linspace(a, b, n + 1)[1:])
    return np.concatenate(out)


def ladder(side):
    """A trunk along z, a branch A along x, and a branch B that comes down to A.

    "tip": B ends at the wall of A. "pass": B runs past A, touching it from the side.
    """
    trunk = (line((-20, 0, -44), (-20, 0, -16)), 4.0, -1)
    more = (line((-20, 0, -15.5), (-20, 0, 24), step=0.5), 3.5, 0)
    a = (line((-19, 0, -15.5), (10, 0, -13), (40, 0, -11)), 2.5, 0)
    if side == "tip":
        b = line((-19, 0, 24.5), (0, 0, 20), (16, 0, 4), (20, 0, -8.4))
    else:
        b = line((-19, 0, 24.5), (0, 2, 22), (18, 4.2, 4), (20, 4.4, -12), (22, 4.5, -40))
    up = (line((-20, 0, 24.5), (-20, 0, 44)), 2.5, 1)
    return tree_of([trunk, more, a, (b, 2.0, 1), up], (96, 40, 104))


def extracted(tree, **settings):
    labels = torch.from_numpy(tree.mask.astype(np.uint8))
    chosen = ExtractionSettings(root_points_mm=(tuple(tree.points_mm[tree.root]),), **settings)
    return extract_centerline(labels, tree.affine, chosen)


@pytest.mark.parametrize("side", ["tip", "pass"])
def test_vessels_that_touch_are_parted_where_they_do(side):
    truth = ladder(side)
    assert betti_numbers(torch.from_numpy(truth.mask))[1] > 0
    tree = extracted(truth)
    row = compare_trees(truth, tree, voxel_mm=1.0)
    assert (row["leaves"], row["missed"], row["spurious"]) == (3, 0, 0)
    assert row["coverage"] > 0.97
    assert abs(row["length_ratio"] - 1) < 0.03  # of the way down B, not of the short cut
    assert row["loops"] == 0
    assert nx.is_arborescence(tree.graph)
    (finding,) = tree.facts["findings"]
    assert finding["check"] == "centerline.loops_cut"
    assert "1 of them where vessels seem to touch" in finding["message"]
    assert tree.facts["contacts_cut"] == 1


def test_the_other_way_keeps_the_loop_as_an_edge():
    tree = extracted(ladder("pass"), loops="keep")
    assert len(tree.closing) == 1


def test_a_ring_without_forks_is_cut_where_paths_meet():
    torus = ring()
    tree = extract_centerline(torch.from_numpy(torus.mask.astype(np.uint8)), torus.affine)
    gaps = np.linalg.norm(tree.positions_mm[tree.leaves] - tree.positions_mm[tree.roots], axis=1)
    assert gaps.max() > 30  # across the ring, whose radius is 18 mm


def test_a_ring_that_is_closed_has_no_other_ends():
    torus = ring()
    labels = torch.from_numpy(torus.mask.astype(np.uint8))
    tree = extract_centerline(labels, torus.affine, ExtractionSettings(loops="keep"))
    assert len(tree.closing) == 1
    assert sorted(tree.closing[0]) == tree.leaves.tolist()
    assert len(nx.cycle_basis(tree.graph.to_undirected())) == 1


def test_a_requested_end_stays_in_place():
    truth = ladder("pass")
    where = tuple(truth.points_mm[np.argmin(np.linalg.norm(truth.points_mm - (16, 4, 6), axis=1))])
    tree = extracted(truth, endpoint_points_mm=(where,))
    assert np.linalg.norm(tree.positions_mm - where, axis=1).min() < 2


@pytest.mark.parametrize("seed", range(3))
def test_trees_of_touching_vessels_stay_trees(seed):
    truth = vessel_tree(seed, shape=(128,) * 3, kind="kissing", root_radius_voxels=5.0, branches=35)
    tree = extracted(truth)
    assert nx.is_arborescence(tree.graph)
    steps = np.abs(tree.voxels[1:] - tree.voxels[tree.parents[1:]])
    assert steps.max() == 1
    assert loops_of_voxels(tree.voxels) == 0
    assert truth.mask[tuple(tree.voxels.T)].all()
