"""Agreement with conditions against scipy, with shuffled conditions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medpipe.errors import InputError
from medpipe.synthesis.metrics import agreement_table, condition_agreement


def pairs(n=60, seed=0, slope=0.8, scatter=100.0):
    rng = np.random.default_rng(seed)
    requested = rng.uniform(1000, 2200, n)
    return requested, 300 + slope * requested + rng.normal(0, scatter, n)


def test_the_figures_are_those_of_scipy():
    x, y = pairs()
    found = condition_agreement(x, y, resamples=200)
    peer = stats.pearsonr(x, y)
    ends = peer.confidence_interval(0.95)
    pearson = found.pearson
    assert (pearson.value, pearson.low, pearson.high) == pytest.approx(
        (peer.statistic, ends.low, ends.high)
    )
    assert found.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.spearman.low < found.spearman.value < found.spearman.high
    line = stats.linregress(x, y)
    half = stats.t.ppf(0.975, 58) * line.stderr
    assert found.slope.value == pytest.approx(line.slope)
    assert found.slope.high - found.slope.low == pytest.approx(2 * half)
    assert found.error.value == pytest.approx(np.abs(y - x).mean())
    assert found.error.low < found.error.value < found.error.high
    assert found.bias.value == pytest.approx((y - x).mean())


def test_the_interval_of_spearman_covers():
    rho = 0.7
    # rank correlation of a normal pair with this correlation
    truth, inside = 6 / np.pi * np.arcsin(rho / 2), 0
    for seed in range(150):
        x, e = np.random.default_rng(seed).normal(size=(2, 60))
        y = rho * x + np.sqrt(1 - rho**2) * e
        found = condition_agreement(x, y, resamples=2).spearman
        inside += found.low <= truth <= found.high
    assert 0.90 <= inside / 150 <= 0.99


def test_shuffled_conditions_do_not_agree_and_the_ceiling_does():
    x, y = pairs(scatter=150)
    shuffled = np.random.default_rng(1).permutation(x)
    found = agreement_table((shuffled, y), {"reconstruction": (x, y)}, resamples=100)
    assert list(found) == ["synthetic", "reconstruction"]
    assert found["synthetic"].pearson.low < 0 < found["synthetic"].pearson.high
    assert found["synthetic"].slope.low < 0 < found["synthetic"].slope.high
    assert found["reconstruction"].pearson.low > 0.8
    assert found["reconstruction"].error.high < found["synthetic"].error.low
    record = found["synthetic"].to_dict()
    assert record["pearson"]["n"] == 60


def test_a_collapsed_set_has_no_correlation():
    x, _ = pairs()
    found = condition_agreement(x, np.full(60, 1500.0), resamples=50)
    assert found.pearson.value is None
    assert "same" in found.pearson.note
    assert found.slope.value == 0
    exact = condition_agreement(x, x, resamples=50)
    assert exact.pearson.value == exact.spearman.value == pytest.approx(1)
    assert exact.error.value == 0


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        ([1, 1, 1, 1], [1, 2, 3, 4], "all requests are the same"),
        ([1, 2, 3], [1, 2, 3], "4 or more"),
        ([1, 2, 3, 4], [1, 2, 3], "expected 4, got 3"),
        ([1, 2, 3, np.nan], [1, 2, 3, 4], "finite"),
    ],
)
def test_arrays_that_cannot_be_compared(x, y, text):
    with pytest.raises(InputError, match=text):
        condition_agreement(x, y)


def test_a_ceiling_may_not_hide_the_row():
    with pytest.raises(InputError, match="ceiling"):
        agreement_table(pairs(), {"synthetic": pairs()})
