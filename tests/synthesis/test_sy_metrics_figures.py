"""Intervals of shares, medians and bootstraps, and halves, against exact probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.metrics import _figures as f
from medpipe.synthesis.metrics.floor import against_floor, draw_halves


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 7), (7, 7), (50, 60)])
def test_the_exact_share_is_that_of_scipy(successes, n):
    found = f.exact_share(successes, n, 0.9)
    expected = stats.binomtest(successes, n).proportion_ci(0.9, "exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_median_is_covered_as_often_as_stated_and_hardly_more(level):
    for n in range(2, 80):
        found = f.median_figure(np.arange(n, dtype=float), level)
        assert found.value == (n - 1) / 2
        if found.low is None:
            # even the smallest and the largest value cover too seldom
            assert 1 - 2 * 0.5**n < level
            continue
        rank = int(found.low) + 1
        assert found.high == n - rank
        assert 1 - 2 * stats.binom.cdf(rank - 1, n, 0.5) >= level
        assert 1 - 2 * stats.binom.cdf(rank, n, 0.5) < level


def test_a_bootstrap_without_spread_falls_back_and_says_so():
    same = f.bootstrapped((np.full(9, 2.0),), np.mean, resamples=50, seed=0, level=0.95)
    assert (same.value, same.low, same.high) == (2.0, 2.0, 2.0)
    assert "percentile" in same.method
    assert same.note


def test_a_bootstrap_covers_a_mean():
    inside = 0
    for seed in range(150):
        x = np.random.default_rng(seed).normal(3, 1, 40)
        found = f.bootstrapped((x,), np.mean, resamples=300, seed=seed, level=0.9)
        assert "BCa" in found.method
        inside += found.low <= 3 <= found.high
    assert 0.82 <= inside / 150 <= 0.97


def test_halves_do_not_share_a_case():
    halves = draw_halves(21, 12, 40, 0)
    assert halves.first.shape == halves.second.shape == halves.synthetic.shape == (40, 6)
    for a, b, m in zip(*halves, strict=True):
        assert len({*a, *b}) == 12
        assert len(set(m)) == 6
        assert max(*a, *b) < 21
        assert m.max() < 12
    assert (draw_halves(21, 12, 40, 0).first == halves.first).all()
    assert (draw_halves(21, 12, 40, 1).first != halves.first).any()


def test_the_interval_over_halves_covers_the_true_difference():
    inside, floors = 0, []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = np.concatenate([rng.normal(0, 1, 40), rng.normal(0.5, 2, 40)])
        (found,) = against_floor(
            lambda a, b, v=values: v[b].mean() - v[a].mean(),
            40,
            40,
            splits=100,
            seed=seed,
            level=0.9,
        )
        inside += found.figure.low <= 0.5 <= found.figure.high
        floors.append(found.floor.high)
    assert 0.84 <= inside / 200 <= 0.96
    # the range of a difference of two means of 20 real cases
    assert np.mean(floors) == pytest.approx(stats.norm.ppf(0.95) * np.sqrt(2 / 20), rel=0.1)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: f.flat(torch.zeros(5), "the values"), InputError, "shape"),
        (lambda: f.flat(torch.zeros(1, 5), "the values"), InputError, "2 or more"),
        (lambda: f.flat(torch.full((3, 5), torch.nan), "the values"), InputError, "missing"),
        (lambda: f.flat([["a"], ["b"]], "the values"), InputError, "numbers"),
        (lambda: f.pair_of(np.zeros((5, 3)), np.zeros((5, 4))), InputError, "one network"),
        (lambda: f.column([1.0, np.nan], "x"), InputError, "finite"),
        (lambda: f.column([1.0, 2.0], "x", 3), InputError, "expected 3, got 2"),
        (lambda: f.column(["a", "b"], "x"), InputError, "numbers"),
        (lambda: f.same_names({"a": 1}, {"b": 1}, "regions"), InputError, "same regions"),
        (lambda: draw_halves(3, 30, 10, 0), InputError, "too few cases"),
        (lambda: draw_halves(30, 30, 1, 0), UsageError, "splits"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
