"""The kernel distance against loops and closed forms, with planted sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sy_metric_sets import clouds

from medpipe.errors import UsageError
from medpipe.synthesis.metrics import kid, kid_subsets, polynomial_mmd
from medpipe.synthesis.metrics.kernel import _counts, _mmd_of_counts


def looped(x, y):
    """The unbiased discrepancy, pair by pair."""

    def mean(a, b, same):
        values = [
            (float(p @ q) / len(p) + 1) ** 3
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_it_is_the_sum_over_pairs():
    x, y = clouds(7, 0), clouds(9, 1, 0.4, 1.3)
    expected = looped(x, y)
    assert polynomial_mmd(x, y) == pytest.approx(expected, rel=1e-12)
    assert polynomial_mmd(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected)
    assert kid(x, y, resamples=20, splits=5).figure.value == pytest.approx(expected, rel=1e-12)
    # floats of half the width are taken up before they are multiplied
    narrow = polynomial_mmd(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    assert narrow == pytest.approx(expected, abs=1e-5)


def test_a_case_drawn_twice_is_not_compared_with_itself():
    x, y = clouds(5, 0), clouds(4, 1)
    both = np.concatenate([x, y])
    kernel = (both @ both.T / 6 + 1) ** 3
    drawn, other = [0, 0, 3, 4, 4], [5, 5, 7, 8]

    def mean(a, b):
        return np.mean([kernel[i, j] for i in a for j in b if i != j])

    expected = mean(drawn, drawn) + mean(other, other) - 2 * mean(drawn, other)
    found = _mmd_of_counts(kernel, _counts(drawn, 9), _counts(other, 9))
    assert found == pytest.approx(expected, rel=1e-12)


def test_its_mean_is_the_closed_form_of_two_normal_distributions():
    # with one feature the kernel is a polynomial: only the first three moments enter
    shift, sd = 0.5, 1.2
    moments = np.array([shift, shift**2 + sd**2, shift**3 + 3 * shift * sd**2])
    expected = (np.array([3, 3, 1]) * (moments - [0, 1, 0]) ** 2).sum()
    found = [
        polynomial_mmd(clouds(30, seed, d=1), clouds(30, 9000 + seed, shift, sd, d=1))
        for seed in range(600)
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(expected, abs=4 * error)
    assert error < expected / 15
    alike = [polynomial_mmd(clouds(12, s), clouds(12, 9000 + s)) for s in range(300)]
    assert abs(np.mean(alike)) < 4 * np.std(alike) / np.sqrt(300)


def test_the_interval_covers_and_the_floor_is_around_zero():
    d, shift = 4, 0.6
    # sum over the moments of products of features, by a large sample
    truth = polynomial_mmd(clouds(3000, 1, d=d), clouds(3000, 2, shift, d=d))
    inside, floors = 0, []
    for seed in range(50):
        found = kid(
            clouds(50, seed, d=d), clouds(50, 500 + seed, shift, d=d), resamples=200, splits=40
        )
        inside += found.figure.low <= truth <= found.figure.high
        floors.append(found.floor)
    assert inside >= 43
    assert abs(np.mean([f.value for f in floors])) < 0.01
    assert all(f.low < 0 < f.high for f in floors)


def test_a_collapsed_set_is_above_the_floor_and_a_copier_is_not():
    real = clouds(60, 0)
    collapsed = np.repeat(clouds(3, 1), 20, axis=0)
    assert kid(real, collapsed, splits=50).figure.value > kid(real, collapsed).floor.high
    copier = real + np.random.default_rng(2).normal(0, 0.02, real.shape)
    found = kid(real, copier, splits=50)
    # what the kernel distance cannot see: `privacy` must
    assert found.figure.value < found.floor.high


def test_published_subsets():
    x, y = clouds(40, 0), clouds(50, 1, 0.3)
    found = kid_subsets(x, y, size=20, subsets=400)
    assert found.value == pytest.approx(
        polynomial_mmd(x, y), abs=4 * found.se / np.sqrt(400) + 0.01
    )
    assert found.low is None
    assert found.high is None
    with pytest.raises(UsageError, match="2 to 40"):
        kid_subsets(x, y, size=41)
