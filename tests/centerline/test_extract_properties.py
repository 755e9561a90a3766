"""What every extracted tree keeps, over random masks, random trees and moved grids."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medpipe.centerline.extract import ExtractionSettings, extract_centerline
from medpipe.centerline.loops import loops_of_voxels
from medpipe.geometry import to_mm

WHOLE = np.ones((3, 3, 3))
FREE = (2, 6, 7, 9)
"""Seeds of random walks that close no loop."""
SPACINGS = ((1.0, 1.0, 1.0), (0.3, 0.3, 3.0), (0.5, 0.7, 0.9))


@st.composite
def blobs(draw):
    """Smoothed noise above a threshold: pores, handles, cavities, several components."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    shape = [draw(st.integers(8, 14)) for _ in range(3)]
    noise = ndimage.gaussian_filter(rng.normal(size=shape), draw(st.sampled_from((0.6, 1.0, 1.5))))
    mask = noise > np.quantile(noise, draw(st.sampled_from((0.5, 0.7, 0.85))))
    return mask, np.diag([*draw(st.sampled_from(SPACINGS)), 1.0])


def walks(seed, shape=(40, 40, 40), branches=5):
    """Random walks that start on each other, drawn with balls of radius 1 to 3."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    mask = np.zeros(shape, bool)
    places = [np.array(shape) / 2]
    for _ in range(branches):
        x, way = places[rng.integers(len(places))], rng.normal(size=3)
        radius = rng.uniform(1.0, 3.0)
        for _ in range(25):
            way = way / np.linalg.norm(way) + 0.3 * rng.normal(size=3)
            x = np.clip(x + way / np.linalg.norm(way), 4, np.array(shape) - 5)
            places.append(x)
            mask |= ((grid - x) ** 2).sum(-1) <= radius**2
    return mask


def check_forest(tree, mask, components):
    """Assert what holds for every forest."""
    assert mask[tuple(tree.voxels.T)].all()
    assert len(np.unique(tree.voxels, axis=0)) == len(tree)
    assert len(tree.roots) == components
    child = np.flatnonzero(tree.parents >= 0)
    assert len(child) == len(tree) - components
    step = np.abs(tree.voxels[child] - tree.voxels[tree.parents[child]])
    assert (step.max(axis=1) == 1).all()
    graph = tree.graph
    for part in nx.weakly_connected_components(graph):
        assert nx.is_arborescence(graph.subgraph(part))
    distance = tree.distance_mm
    assert (distance[tree.parents[child]] < distance[child]).all()
    depth = ndimage.distance_transform_edt(mask, sampling=np.diag(tree.affine)[:3])
    own = depth[tuple(tree.voxels.T)]
    assert (tree.radius_mm >= own - 1e-5).all()


@given(blobs())
@settings(max_examples=40)
def test_random_masks_give_one_tree_for_each_component(case):
    mask, affine = case
    labels, count = ndimage.label(mask, WHOLE)
    tree = extract_centerline(
        torch.from_numpy(mask), affine, ExtractionSettings(min_component_voxels=1)
    )
    check_forest(tree, mask, count)
    own = labels[tuple(tree.voxels.T)]
    assert len(np.unique(own[tree.roots])) == count
    child = np.flatnonzero(tree.parents >= 0)
    assert (own[child] == own[tree.parents[child]]).all()


@example(4).via("loops were cut with a voxel too many in the line")
@example(55).via("loops were cut with a voxel too many in the line")
@example(70).via("loops were cut with a voxel too many in the line")
@given(st.integers(0, 500))
@settings(max_examples=10)
def test_trees_of_random_walks_are_thin_and_without_loops(seed):
    from skimage.morphology import skeletonize

    mask = walks(seed)
    tree = extract_centerline(torch.from_numpy(mask), np.eye(4))
    check_forest(tree, mask, 1)
    told = [f for f in tree.facts["findings"] if f["check"] == "centerline.voxel_loops"]
    loops = loops_of_voxels(tree.voxels)
    assert (loops > 0) == bool(told)
    # a chain has no voxel that could go; where branches meet one or two could
    image = np.zeros(mask.shape, bool)
    image[tuple(tree.voxels.T)] = True
    removed = image & ~skeletonize(image)
    assert removed.sum() <= 3 * len(tree.junctions) + 2
    near = ndimage.binary_dilation(
        _image(mask.shape, tree.voxels[tree.junctions]), WHOLE, iterations=2
    )
    ends = _image(mask.shape, tree.voxels[[*tree.leaves, *tree.roots]])
    assert not (removed & ~near & ~ends).any()


def _image(shape, voxels):
    out = np.zeros(shape, bool)
    out[tuple(voxels.T)] = True
    return out


@given(blobs(), st.data())
@settings(max_examples=40)
def test_requested_ends_are_reached_and_are_the_only_ones(case, data):
    mask, affine = case
    labels, _ = ndimage.label(mask, WHOLE)
    inside = np.argwhere(labels == 1)
    picked = data.draw(st.lists(st.integers(0, len(inside) - 1), min_size=1, max_size=4))
    points = to_mm(affine, inside[picked])
    tree = extract_centerline(
        torch.from_numpy(mask), affine,
        ExtractionSettings(endpoints="given", endpoint_points_mm=tuple(map(tuple, points))),
    )  # fmt: skip
    nodes = {tuple(v) for v in tree.voxels.tolist()}
    asked = {tuple(v) for v in inside[picked].tolist()}
    assert asked <= nodes
    assert {tuple(v) for v in tree.voxels[tree.leaves].tolist()} <= asked
    assert len(tree.roots) == 1


@pytest.mark.parametrize("seed", range(4))
def test_padding_and_moving_the_grid_changes_nothing(seed):
    mask = walks(seed)
    plain = extract_centerline(torch.from_numpy(mask), np.eye(4))
    moved = np.eye(4)
    moved[:3, 3] = -7, -3, -11
    padded = np.pad(mask, ((7, 2), (3, 0), (11, 5)))
    other = extract_centerline(torch.from_numpy(padded), moved)
    np.testing.assert_array_equal(other.parents, plain.parents)
    np.testing.assert_allclose(other.positions_mm, plain.positions_mm, atol=1e-9)
    np.testing.assert_array_equal(other.radius_mm, plain.radius_mm)
    low, high = np.argwhere(mask).min(0) - 1, np.argwhere(mask).max(0) + 2
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    cropped = extract_centerline(torch.from_numpy(mask[box].copy()), np.eye(4))
    np.testing.assert_array_equal(cropped.voxels + low, plain.voxels)


def both_ways(mask, axes):
    """Trees of a mask and of the same mask with axes in another order and one flipped."""
    turned = np.flip(mask.transpose(axes), axis=1).copy()
    affine = np.zeros((4, 4))
    for new, old in enumerate(axes):
        affine[old, new] = -1.0 if new == 1 else 1.0
    affine[axes[1], 3] = turned.shape[1] - 1
    affine[3, 3] = 1
    plain = extract_centerline(torch.from_numpy(mask), np.eye(4))
    return plain, extract_centerline(torch.from_numpy(turned), affine)


@pytest.mark.parametrize("seed", FREE)
@pytest.mark.parametrize("axes", [(2, 1, 0), (1, 2, 0)])
def test_flipped_and_permuted_arrays_give_the_same_tree_to_a_voxel(seed, axes):
    plain, other = both_ways(walks(seed), axes)
    # ends and paths of equal length are told apart by the order of the voxels
    assert plain.facts["loops_found"] == 0
    assert len(other.leaves) == len(plain.leaves)
    a, b = plain.positions_mm, other.positions_mm
    gap = np.linalg.norm(a[:, None] - b[None], axis=2)
    assert np.quantile(gap.min(axis=1), 0.95) <= 1.0
    assert np.quantile(gap.min(axis=0), 0.95) <= 1.0
    assert np.linalg.norm(a[plain.roots] - b[other.roots], axis=1).max() <= 1.5


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_flipped_arrays_with_loops_are_cut_in_as_many_places(seed):
    plain, other = both_ways(walks(seed), (2, 1, 0))
    # of ways round a loop that are alike either may be cut
    assert plain.facts["loops_found"] == other.facts["loops_found"] > 0
    assert abs(len(other.leaves) - len(plain.leaves)) <= plain.facts["loops_found"]
    a, b = plain.positions_mm, other.positions_mm
    gap = np.linalg.norm(a[:, None] - b[None], axis=2)
    assert max(np.median(gap.min(axis=1)), np.median(gap.min(axis=0))) <= 0.5
    assert np.linalg.norm(a[plain.roots] - b[other.roots], axis=1).max() <= 1.5


@pytest.mark.parametrize("factor", [0.25, 2.0])
def test_lengths_grow_with_the_spacing(factor):
    mask = walks(3)
    plain = extract_centerline(torch.from_numpy(mask), np.diag([1, 1, 1, 1.0]))
    scaled = extract_centerline(torch.from_numpy(mask), np.diag([factor] * 3 + [1.0]))
    np.testing.assert_array_equal(scaled.voxels, plain.voxels)
    np.testing.assert_allclose(scaled.lengths_mm, factor * plain.lengths_mm, rtol=1e-9)
    np.testing.assert_allclose(scaled.radius_mm, factor * plain.radius_mm, rtol=1e-6)


def test_the_same_mask_gives_the_same_bytes():
    mask = torch.from_numpy(walks(5))
    assert (
        extract_centerline(mask, np.eye(4)).to_json()
        == extract_centerline(mask.clone(), np.eye(4)).to_json()
    )
