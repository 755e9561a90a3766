"""Contrast weights in closed form, noise estimates, and the area that a cut measures."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.links import (
    contrast_links,
    difference_sigma,
    direction_weights,
    neighbour_offsets,
)
from medpipe.graphcut.voxels import pair


def surface_cost(mask, links):
    """What the links of a flat image charge for the surface of a mask."""
    total = 0.0
    for offset, weights in links:
        tail, head = pair(mask, offset)
        total += float(pair(weights, offset)[0][tail ^ head].sum())
    return total


def grid_mm(shape, spacing):
    axes = [(torch.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).to(torch.float64)


@pytest.mark.parametrize("neighbours", [6, 18, 26])
def test_each_pair_of_neighbours_occurs_once(neighbours):
    offsets = neighbour_offsets(neighbours)
    both = {*offsets, *[tuple(-v for v in o) for o in offsets]}
    reach = {6: 1, 18: 2, 26: 3}[neighbours]
    expected = {o for o in product((-1, 0, 1), repeat=3) if 0 < sum(abs(v) for v in o) <= reach}
    assert len(offsets) == neighbours // 2
    assert both == expected


def test_a_weight_is_the_formula_of_boykov_and_jolly():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(0, 10, (4, 3, 5)))
    spacing, weight, sigma = (0.7, 1.1, 3.0), 2.5, 8.0
    links = dict(contrast_links(image, spacing, 26, weight, sigma))
    seen = 0
    for offset, full in links.items():
        length = math.sqrt(sum((v * s) ** 2 for v, s in zip(offset, spacing, strict=True)))
        for p in product(range(4), range(3), range(5)):
            q = tuple(int(v) for v in np.add(p, offset))
            if all(0 <= v < n for v, n in zip(q, image.shape, strict=True)):
                difference = float(image[p] - image[q])
                expected = weight * math.exp(-(difference**2) / (2 * sigma**2)) / length
                assert float(full[p]) == pytest.approx(expected, rel=1e-12)
                seen += 1
            else:
                assert full[p] == 0
    assert seen == 3 * 3 * 5 + 4 * 2 * 5 + 4 * 3 * 4 + 2 * (
        3 * 2 * 5 + 3 * 3 * 4 + 4 * 2 * 4
    ) + 4 * (3 * 2 * 4)


def test_sigma_is_the_noise_of_a_difference_whatever_the_edges():
    generator = torch.Generator().manual_seed(0)
    shape = (40, 40, 40)
    at = grid_mm(shape, (1, 1, 1))
    ball = (at**2).sum(0).sqrt() < 12
    image = 500.0 * ball + 7.0 * torch.randn(shape, generator=generator)
    assert difference_sigma(image) == pytest.approx(7 * math.sqrt(2), rel=0.03)
    # a mask leaves out what is louder
    louder = torch.where(at[0] > 0, image, image * 20)
    assert difference_sigma(louder, at[0] > 0) == pytest.approx(7 * math.sqrt(2), rel=0.03)
    # clipped air over most of the image does not make the noise vanish
    clipped = torch.where(at[0] > 8, image, torch.tensor(0.0))
    assert difference_sigma(clipped) == pytest.approx(7 * math.sqrt(2), rel=0.1)
    assert difference_sigma(torch.zeros(shape)) == 1.0


def test_the_default_sigma_is_the_estimated_one():
    image = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(1))
    default = contrast_links(image, (1, 1, 1), 6)
    given = contrast_links(image, (1, 1, 1), 6, sigma=difference_sigma(image))
    for (_, one), (_, two) in zip(default, given, strict=True):
        assert torch.equal(one, two)


def test_integers_do_not_wrap():
    image = torch.tensor([0, 200], dtype=torch.uint8)[:, None, None]
    (_, weights), *_ = [
        link for link in contrast_links(image, (1, 1, 1), 6, sigma=100.0) if link[0] == (1, 0, 0)
    ]
    assert float(weights[0, 0, 0]) == pytest.approx(math.exp(-2))


def fibonacci_directions(count):
    k = np.arange(count) + 0.5
    z = 1 - 2 * k / count
    angle = np.pi * (1 + 5**0.5) * k
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], 1)


@pytest.mark.parametrize(
    ("spacing", "neighbours", "low", "high"),
    [
        ((1.0, 1.0, 1.0), 26, 0.93, 1.025),
        ((0.5, 0.5, 0.5), 18, 0.87, 1.035),
        ((2.0, 2.0, 2.0), 6, 0.57, 1.16),
        ((1.0, 1.0, 2.0), 26, 0.87, 1.10),
        ((0.8, 1.0, 1.3), 26, 0.89, 1.08),
    ],
)
def test_planes_of_all_directions_cost_their_area(spacing, neighbours, low, high):
    # a link of offset e is severed by |n · e| / V of the unit area of a plane with normal n
    edges = np.array(neighbour_offsets(neighbours)) * spacing
    factors = direction_weights(spacing, neighbours, "euclidean")
    area = np.abs(fibonacci_directions(5000) @ edges.T) @ factors / np.prod(spacing)
    assert area.mean() == pytest.approx(1, abs=0.002)
    assert low < area.min()
    assert area.max() < high


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.8, 1.2)])
def test_the_cut_around_a_sphere_costs_its_area(spacing):
    radius = 15.0
    shape = tuple(int(2 * radius / s) + 6 for s in spacing)
    ball = (grid_mm(shape, spacing) ** 2).sum(0).sqrt() < radius
    links = contrast_links(torch.zeros(shape), spacing, 26, 2.0, metric="euclidean")
    assert surface_cost(ball, links) / 2 == pytest.approx(4 * math.pi * radius**2, rel=0.02)


def test_the_cut_along_a_plane_costs_its_area():
    spacing, shape = (1.0, 1.0, 1.5), (48, 48, 48)
    at = grid_mm(shape, spacing)
    links = contrast_links(torch.zeros(shape), spacing, 26, metric="euclidean")
    inner = 10
    for normal in ((0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (0.3, 0.5, 0.81)):
        n = torch.tensor(normal, dtype=torch.float64)
        n = n / n.norm()
        half = torch.einsum("i,ixyz->xyz", n, at) < 0.3
        # count the links that begin in a box around the centre only: no edge effects
        cost = 0.0
        for offset, weights in links:
            tail, head = pair(half, offset)
            cut = torch.zeros(shape, dtype=torch.bool)
            pair(cut, offset)[0].copy_(tail ^ head)
            cost += float(weights[cut & (at[0].abs() < inner) & (at[1].abs() < inner)].sum())
        area = (2 * inner) ** 2 / float(n[2])
        assert cost == pytest.approx(area, rel=0.08)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"neighbours": 8}, UsageError),
        ({"weight": -1.0}, UsageError),
        ({"weight": math.inf}, UsageError),
        ({"sigma": 0.0}, UsageError),
        ({"sigma": math.nan}, UsageError),
        ({"metric": "taxi"}, UsageError),
        ({"spacing_mm": (1.0, 1.0)}, UsageError),
        ({"spacing_mm": (1.0, 1.0, -1.0)}, UsageError),
        ({"image": torch.tensor([[[1.0, math.nan]]])}, StepError),
        ({"image": torch.zeros(3, 3)}, StepError),
    ],
)
def test_unusable_parameters_are_refused_in_one_line(change, error):
    arguments = {"image": torch.zeros(3, 3, 3), "spacing_mm": (1.0, 1.0, 1.0)} | change
    with pytest.raises(error) as raised:
        contrast_links(**arguments)
    assert "\n" not in str(raised.value)
