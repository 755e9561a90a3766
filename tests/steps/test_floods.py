"""Components, holes and balls of masks against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medpipe.steps import _floods
from medpipe.steps._balls import dilate_ball, erode_ball
from medpipe.steps._components import fill_holes, keep_largest, touching
from medpipe.steps._floods import flood, holes_filled, largest_components


def masks():
    """Lumps with holes, from sparse to nearly full, and what is empty or full."""
    rng = np.random.default_rng(0)
    for threshold in (-0.3, -0.05, 0.0, 0.05, 0.3):
        noise = ndimage.gaussian_filter(rng.normal(size=(23, 19, 17)), 1.2)
        yield torch.from_numpy(noise / noise.std() > threshold)
    yield torch.zeros(5, 6, 7, dtype=torch.bool)
    yield torch.ones(5, 6, 7, dtype=torch.bool)


MASKS = list(masks())


@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
def test_sweeps_find_what_labels_find(mask):
    for axis in (None, 0, 1, 2):
        assert torch.equal(holes_filled(mask, axis), fill_holes(mask, axis))
    for n in (1, 3):
        assert torch.equal(largest_components(mask, n), keep_largest(mask, n=n))
    seed = torch.zeros_like(mask)
    seed[2:4, 2:4, 2:4] = True
    assert torch.equal(flood(mask, seed, range(3)), touching(mask, seed))


def test_of_equal_components_the_first_is_kept():
    mask = torch.zeros(9, 4, 4, dtype=torch.bool)
    for start in (6, 3, 0):
        mask[start : start + 2, 1:3, 1:3] = True
    assert torch.equal(largest_components(mask), keep_largest(mask))
    assert bool(largest_components(mask)[:2].any())


def test_a_path_with_more_bends_than_sweeps_is_left_to_labels(monkeypatch):
    """A staircase: each sweep goes around a few bends alone."""
    mask = torch.zeros(40, 40, 3, dtype=torch.bool)
    for n in range(39):
        mask[n, n : n + 2, 1] = True
    mask = mask.flip(1)  # against the order of the axes
    seed = torch.zeros_like(mask)
    seed[0, 39, 1] = True
    assert torch.equal(flood(mask, seed, range(3)), mask)
    monkeypatch.setattr(_floods, "MOST_SWEEPS", 1)
    assert flood(mask, seed, range(3)) is None
    assert largest_components(mask) is None
    assert holes_filled(~mask) is None


@pytest.mark.gpu
@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
def test_a_gpu_finds_the_same(mask):
    there = mask.cuda()
    for axis in (None, 2):
        assert torch.equal(fill_holes(there, axis).cpu(), fill_holes(mask, axis))
    assert torch.equal(keep_largest(there).cpu(), keep_largest(mask))
    assert torch.equal(touching(there, there.roll(1, 0)).cpu(), touching(mask, mask.roll(1, 0)))


@pytest.mark.parametrize("radius_voxels", [1.0, 2.5, 8.0, 11.2, 11.4, 14.0])
@pytest.mark.parametrize("spacing", [1.0, 2.0, 0.7])
def test_balls_of_one_spacing_are_exact(radius_voxels, spacing):
    """Against the distance of scipy; 11.3 voxels is where bytes end."""
    rng = np.random.default_rng(1)
    seeds = rng.random((31, 29, 27)) > 0.9995
    seeds[15, 14, 13] = True
    distance = ndimage.distance_transform_edt(~seeds)
    step = (spacing, spacing, spacing)
    mask = torch.from_numpy(seeds)
    want = torch.from_numpy(distance <= radius_voxels * (1 + 1e-6))
    assert torch.equal(dilate_ball(mask, radius_voxels * spacing, step), want)
    assert torch.equal(erode_ball(~mask, radius_voxels * spacing, step), ~want)
