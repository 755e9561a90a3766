"""The table of utility against scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.metrics import utility_table


def simulated(seed, gain, seeds=4, cases=25):
    """Dice of two ways to train: gains vary with the seed and with the case."""
    rng = np.random.default_rng(seed)
    case = rng.normal(0.85, 0.05, (1, cases))
    base = case + rng.normal(0, 0.01, (seeds, 1)) + rng.normal(0, 0.01, (seeds, cases))
    change = rng.normal(gain, 0.01, (seeds, 1)) + rng.normal(0, 0.02, (1, cases))
    return {"real": base, "both": base + change + rng.normal(0, 0.01, (seeds, cases))}


def test_one_score_for_each_seed_is_the_paired_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.85, 0.01, (2, 5))
    rows = utility_table({"a": a, "b": b}, "a")
    assert rows[0].difference is None
    peer = stats.ttest_rel(b, a)
    ends = peer.confidence_interval(0.95)
    found = rows[1].difference
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert rows[1].mean.value == pytest.approx(b.mean())
    assert rows[1].to_dict()["difference"]["n"] == 5


def test_the_interval_counts_seeds_and_cases():
    inside = by_cases = 0
    for seed in range(150):
        scores = simulated(seed, 0.012)
        row = utility_table(scores, "real")[1]
        assert row.difference.low <= row.difference.value <= row.difference.high
        inside += row.difference.low <= 0.012 <= row.difference.high
        gap = (scores["both"] - scores["real"]).mean(axis=0)
        low, high = stats.t.interval(0.95, gap.size - 1, gap.mean(), stats.sem(gap))
        by_cases += low <= 0.012 <= high
    # cases alone are too sure of themselves
    assert 0.92 <= inside / 150 <= 0.99
    assert by_cases / 150 < 0.88


def test_a_gain_is_found_and_none_is_not():
    assert utility_table(simulated(0, 0.06), "real")[1].difference.low > 0
    none = utility_table(simulated(1, 0.0), "real")[1].difference
    assert none.low < 0 < none.high


def test_scores_without_spread():
    rows = utility_table({"a": np.full((3, 4), 0.8), "b": np.full((3, 4), 0.9)}, "a")
    assert rows[1].difference.value == pytest.approx(0.1)
    assert rows[0].mean.note


@pytest.mark.parametrize(
    ("scores", "reference", "error", "text"),
    [
        ({"a": [0.8, 0.9]}, "a", InputError, "three seeds"),
        ({"a": [0.8, 0.9, np.nan]}, "a", InputError, "finite"),
        ({"a": ["x", "y", "z"]}, "a", InputError, "no numbers"),
        ({"a": np.ones((3, 2)), "b": np.ones((3, 4))}, "a", InputError, "other seeds or cases"),
        ({"a": [0.8, 0.9, 0.7]}, "b", UsageError, "none of the rows"),
    ],
)
def test_tables_that_cannot_be_compared(scores, reference, error, text):
    with pytest.raises(error, match=text):
        utility_table(scores, reference)
