"""Proper scores against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as peer

from medpipe.errors import InputError
from medpipe.outcome.metrics import brier, log_loss, scaled_brier


def cohort(seed=0, n=120):
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(n), 2)
    return (rng.random(n) < p).astype(int), p


PAIRS = [
    (brier, peer.brier_score_loss),
    (scaled_brier, peer.d2_brier_score),
    (log_loss, peer.log_loss),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_scores_agree_with_scikit_learn(ours, theirs, weighted, seed):
    y, p = cohort(seed)
    weights = np.random.default_rng(seed).random(y.size) if weighted else None
    assert ours(y, p, weights) == pytest.approx(theirs(y, p, sample_weight=weights), abs=1e-12)


def test_certainty_costs_as_in_scikit_learn():
    y, p = [0, 1, 1, 0], [0.0, 1.0, 0.0, 1.0]
    assert log_loss(y, p) == pytest.approx(peer.log_loss(y, p), abs=1e-9)
    assert log_loss([0, 1], [0.0, 1.0]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("measure", [brier, scaled_brier, log_loss])
def test_rows_of_weights_are_cases_that_are_repeated(measure):
    y, p = cohort()
    rows = np.random.default_rng(1).integers(0, 3, (4, y.size))
    expected = [measure(np.repeat(y, row), np.repeat(p, row)) for row in rows]
    assert measure(y, p, rows) == pytest.approx(expected, abs=1e-12)


def test_the_prevalence_has_the_scaled_score_0():
    y = np.array([1, 0, 0, 1, 0])
    assert scaled_brier(y, np.full(5, 0.4)) == pytest.approx(0, abs=1e-15)
    assert scaled_brier(y, y) == 1
    assert brier(y, np.full(5, 0.4)) == pytest.approx(0.24)


def test_one_class_has_no_scaled_score():
    with pytest.raises(InputError, match="same outcome"):
        scaled_brier([1, 1], [0.2, 0.3])
    assert brier([1, 1], [0.5, 0.5]) == 0.25
    assert np.isnan(scaled_brier([1, 0], [0.2, 0.3], [[1.0, 0.0], [1.0, 1.0]])).tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize("measure", [brier, scaled_brier, log_loss])
@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([0.1, 1.2], "outside 0..1"),
        ([-3.0, 2.0], "outside 0..1"),
        ([0.1, np.nan], "missing"),
        ([0.1], "another length"),
    ],
)
def test_what_is_no_probability_is_refused(measure, p, message):
    with pytest.raises(InputError, match=message):
        measure([0, 1], p)
