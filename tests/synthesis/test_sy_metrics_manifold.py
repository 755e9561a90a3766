"""Nearest-neighbour measures against loops and enumeration, with planted sets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sy_metric_sets import clouds

from medpipe.errors import InputError
from medpipe.synthesis.metrics import (
    expected_nearest,
    neighbour_scores,
    precision_recall,
    rms_distances,
)


def looped(real, made, k):
    def radius(points, p):
        return sorted(np.linalg.norm(q - p) for q in points)[k]

    real_radius = [radius(real, p) for p in real]
    made_radius = [radius(made, p) for p in made]
    inside = [[np.linalg.norm(r - m) <= real_radius[i] for m in made] for i, r in enumerate(real)]
    covers = [[np.linalg.norm(r - m) <= made_radius[j] for r in real] for j, m in enumerate(made)]
    return [
        np.mean([any(inside[i][j] for i in range(len(real))) for j in range(len(made))]),
        np.mean([any(covers[j][i] for j in range(len(made))) for i in range(len(real))]),
        sum(map(sum, inside)) / k / len(made),
        np.mean([any(row) for row in inside]),
    ]


@pytest.mark.parametrize("k", [1, 3])
def test_they_are_what_their_definitions_say(k):
    real, made = clouds(14, 0, d=3), clouds(11, 1, 0.6, 0.8, d=3)
    found = neighbour_scores(
        rms_distances(real, real), rms_distances(made, made), rms_distances(real, made), k
    )
    assert found == pytest.approx(looped(real, made, k))


def test_planted_sets():
    real = clouds(80, 0)
    alike = precision_recall(real, clouds(80, 1), splits=40)
    assert list(alike) == ["precision", "recall", "density", "coverage"]
    for found in alike.values():
        assert found.figure.low <= found.floor.value <= found.figure.high
    collapsed = precision_recall(real, np.repeat(clouds(4, 2), 20, axis=0), splits=40)
    assert collapsed["recall"].figure.high < collapsed["recall"].floor.low
    assert collapsed["coverage"].figure.high < collapsed["coverage"].floor.low
    noise = precision_recall(real, clouds(80, 3, sd=3.0), splits=40)
    assert noise["precision"].figure.high < noise["precision"].floor.low
    assert noise["density"].figure.high < noise["density"].floor.low
    assert all(0 <= f.figure.low <= f.figure.high for f in noise.values())


def test_too_few_cases_for_the_neighbours():
    with pytest.raises(InputError, match="12 or more in each set"):
        precision_recall(clouds(11, 0), clouds(40, 1))


def test_distances_of_near_copies_are_exact():
    first = torch.rand(3, 4, 5, 6) + 1e4
    second = first.flip(0).clone()
    second[0, 0, 0, 0] += 0.5
    found = rms_distances(first, second)
    step = float(second[0, 0, 0, 0] - first[2, 0, 0, 0])
    assert found[1, 1] == found[0, 2] == 0
    assert found[2, 0] == pytest.approx(step / np.sqrt(120), rel=1e-12)
    direct = (first.flatten(1)[:, None].double() - second.flatten(1)[None].double()).square()
    assert found == pytest.approx(direct.mean(dim=2).sqrt().numpy(), rel=1e-12)


def test_distances_in_pieces(monkeypatch):
    a, b = clouds(5, 0, d=97), clouds(4, 1, d=97)
    whole = rms_distances(a, b)
    monkeypatch.setattr("medpipe.synthesis.metrics.distances.HELD", 90)
    assert rms_distances(a, b) == pytest.approx(whole, rel=1e-12)
    with pytest.raises(InputError, match="expected 97 values, got 3"):
        rms_distances(a, b[:, :3])


@pytest.mark.parametrize("size", [1, 3, 6])
def test_the_nearest_of_subsets_is_the_mean_over_all_of_them(size):
    distances = np.random.default_rng(0).random((4, 6))
    expected = [
        np.mean([row[list(c)].min() for c in itertools.combinations(range(6), size)])
        for row in distances
    ]
    assert expected_nearest(distances, size) == pytest.approx(expected, rel=1e-12)
