"""How a tree grows: what it covers, where it touches, and which ends it finds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from medpipe.centerline.endpoints import grow
from medpipe.centerline.prepare import structures_of


def prepared(mask, affine=None):
    structure = structures_of(torch.as_tensor(mask).to(torch.uint8), np.eye(4) if affine is None
                              else affine)[0]  # fmt: skip
    cost = 1 / structure.depth_mm.double() ** 2
    return structure, cost


def plate(seed):
    """A connected random blob, 16 x 14 x 12."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(16, 14, 12)), 1.2)
    labels, _ = ndimage.label(noise > np.quantile(noise, 0.6), np.ones((3, 3, 3)))
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1


@pytest.mark.parametrize("shear", [0.0, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_every_voxel_is_covered_and_no_end_was(seed, shear):
    affine = np.diag([1.0, 0.6, 1.7, 1.0])
    affine[1, 2] = shear
    structure, cost = prepared(plate(seed), affine)
    lumen, root = structure.lumen, 0
    paths, shortest = structure.paths([root], cost), structure.paths([root], None)
    ball = (1.2, 0.9)
    members = np.arange(len(lumen.voxels))
    out = grow(lumen, paths, members, [root], distance_mm=shortest.total, ball_mm=ball)
    x = lumen.positions_mm(members)
    reach = ball[0] * lumen.depth_mm[out.voxels] + ball[1]
    gap = np.linalg.norm(x[:, None] - lumen.positions_mm(out.voxels)[None], axis=-1)
    covered = gap <= reach * (1 + 1e-9)
    assert covered.any(axis=1).all()
    # brute force: the farthest voxel that no node before it covers
    start = 1
    for end in out.found.tolist():
        free = ~covered[:, :start].any(axis=1)
        assert shortest.total[out.voxels[end]] == shortest.total[free].max()
        start = end + 1


@pytest.mark.parametrize("seed", range(4))
def test_paths_touch_the_tree_once_and_themselves_never(seed):
    structure, cost = prepared(plate(seed))
    lumen = structure.lumen
    paths, shortest = structure.paths([0], cost), structure.paths([0], None)
    members = np.arange(len(lumen.voxels))
    out = grow(lumen, paths, members, [0], distance_mm=shortest.total, ball_mm=(0.5, 1.0))
    index = lumen.voxels[out.voxels]
    near = np.abs(index[:, None] - index[None]).max(axis=-1) == 1
    starts = [0, *(out.found + 1).tolist()]
    for begin, end in pairwise(starts[1:]):
        inner = near[begin:end, begin:end]
        assert inner.sum() == 2 * (end - begin - 1)  # a chain without chords
        assert not near[begin + 1 : end, :begin].any()  # only its first node touches the tree
        touched = np.flatnonzero(near[begin, :begin])
        step = np.linalg.norm(index[touched] - index[begin], axis=1)
        price = 0.5 * step * (paths.cost[out.voxels[touched]] + paths.cost[out.voxels[begin]])
        best = touched[np.lexsort((out.voxels[touched], price))[0]]
        assert out.parents[begin] == best


def test_requested_ends_alone_and_marks_left_clean():
    structure, cost = prepared(plate(1))
    lumen = structure.lumen
    paths = structure.paths([0], cost)
    asked = [50, 300, 50]
    out = grow(lumen, paths, np.arange(len(lumen.voxels)), [0], asked=asked)
    assert set(out.voxels[out.asked].tolist()) == {50, 300}
    assert len(out.found) == 0
    assert (lumen.marks[0] == -1).all()
    assert (lumen.marks[1] == -1).all()
