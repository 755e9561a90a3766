"""Where trees start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpipe.centerline.extract import ExtractionSettings, extract_centerline
from medpipe.centerline.prepare import structures_of
from medpipe.centerline.roots import contact_roots, deepest_voxel
from medpipe.phantoms.vessel_tree import vessel_tree

EYE = np.eye(4)


def tapering(flip):
    """A tube along z from radius 5 to 2 with a flat wide end, and a side branch."""
    i, j, k = np.meshgrid(*map(np.arange, (31, 31, 70)), indexing="ij")
    mask = ((i - 15) ** 2 + (j - 15) ** 2 <= (5 - 3 * (k - 6) / 56) ** 2) & (k >= 6) & (k < 62)
    mask |= ((j - 15) ** 2 + (k - 40) ** 2 <= 3) & (i >= 15) & (i < 28)
    return np.flip(mask, axis=2).copy() if flip else mask


@pytest.mark.parametrize("kind", ["clean", "very-rough"])
def test_the_root_of_random_trees_is_the_root(kind):
    right = 0
    for seed in range(8):
        truth = vessel_tree(seed, shape=(80,) * 3, kind=kind, root_radius_voxels=5, branches=15)
        tree = extract_centerline(torch.from_numpy(truth.mask), truth.affine)
        gap = np.linalg.norm(tree.positions_mm[tree.roots] - truth.points_mm[truth.root], axis=1)
        right += int(gap.min() <= 2 * truth.radius_mm[truth.root])
    assert right >= 7


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rule", ["auto", "widest"])
def test_the_root_is_the_middle_of_the_wide_end(flip, rule):
    mask = tapering(flip)
    tree = extract_centerline(torch.from_numpy(mask), EYE, ExtractionSettings(root=rule))
    root = tree.voxels[tree.roots[0]]
    assert root[2] == (63 if flip else 6)
    assert np.abs(root[:2] - 15).max() <= 1  # not on the rim
    assert tree.facts["roots"] == {rule: 1}


@pytest.mark.parametrize(
    ("rule", "axis", "sign"),
    [("superior", 2, 1), ("inferior", 2, -1), ("right", 0, 1), ("left", 0, -1),
     ("anterior", 1, 1), ("posterior", 1, -1)],
)  # fmt: skip
def test_a_direction_of_the_patient_chooses_the_end(rule, axis, sign):
    line = np.moveaxis(np.zeros((11, 11, 50), bool), 2, axis)
    tube = [slice(3, 8)] * 3
    tube[axis] = slice(5, 45)
    line[tuple(tube)] = True
    flipped = np.diag([*np.where(np.arange(3) == axis, -1.0, 1.0), 1.0])
    for affine in (EYE, flipped):
        tree = extract_centerline(torch.from_numpy(line), affine, ExtractionSettings(root=rule))
        root, leaf = tree.positions_mm[tree.roots[0]], tree.positions_mm[tree.leaves[0]]
        assert sign * (root[axis] - leaf[axis]) > 30


def test_the_root_of_each_part_of_a_contact_is_its_middle():
    mask = torch.zeros(20, 20, 20, dtype=torch.uint8)
    mask[2:18, 2:18, 5:8] = 1
    lumen = structures_of(mask, EYE)[0].lumen
    touching = np.zeros(len(lumen.voxels), bool)
    plane = lumen.voxels + lumen.origin
    touching |= (abs(plane - (5, 5, 5)) <= (1, 1, 0)).all(axis=1)
    touching |= (abs(plane - (14, 12, 5)) <= (2, 1, 0)).all(axis=1)
    roots = contact_roots(lumen, touching)
    assert plane[roots].tolist() == [[5, 5, 5], [14, 12, 5]]
    assert contact_roots(lumen, np.zeros_like(touching)) == []


def test_the_deepest_voxel_does_not_depend_on_how_the_array_is_stored():
    mask = torch.zeros(12, 12, 30, dtype=torch.uint8)
    mask[3:8, 3:8, 3:27] = 1  # many voxels are equally deep
    one = structures_of(mask, EYE)[0].lumen
    affine = np.diag([1.0, 1.0, -1.0, 1.0])
    affine[2, 3] = 29
    other = structures_of(mask.flip(2), affine)[0].lumen
    a = one.positions_mm(deepest_voxel(one, np.arange(len(one.voxels))))
    b = other.positions_mm(deepest_voxel(other, np.arange(len(other.voxels))))
    np.testing.assert_allclose(a, b)
