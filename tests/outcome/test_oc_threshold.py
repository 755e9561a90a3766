"""Measures at a threshold: scikit-learn, counts, and every threshold tried."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as peer

from medpipe.errors import InputError, UsageError
from medpipe.outcome import metrics as m


def cohort(seed=0, n=90):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.35).astype(int)
    return y, np.clip(np.round(0.3 + 0.25 * y + 0.2 * rng.normal(size=n), 2), 0, 1)


PAIRS = [
    (m.sensitivity, functools.partial(peer.recall_score, pos_label=1)),
    (m.specificity, functools.partial(peer.recall_score, pos_label=0)),
    (m.ppv, functools.partial(peer.precision_score, pos_label=1)),
    (m.npv, functools.partial(peer.precision_score, pos_label=0)),
    (m.accuracy, peer.accuracy_score),
    (m.balanced_accuracy, peer.balanced_accuracy_score),
    (m.f1, peer.f1_score),
    (functools.partial(m.f1, label=0), functools.partial(peer.f1_score, pos_label=0)),
]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("threshold", [0.31, 0.5])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_measures_agree_with_scikit_learn(ours, theirs, threshold, weighted):
    y, p = cohort()
    weights = np.random.default_rng(2).random(y.size) if weighted else None
    expected = theirs(y, (p >= threshold).astype(int), sample_weight=weights)
    assert ours(y, p, threshold, weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("measure", "_"), PAIRS)
def test_rows_of_weights_are_cases_that_are_repeated(measure, _):
    y, p = cohort()
    rows = np.random.default_rng(1).integers(0, 3, (4, y.size))
    expected = [measure(np.repeat(y, row), np.repeat(p, row)) for row in rows]
    assert measure(y, p, weights=rows) == pytest.approx(expected, abs=1e-12)


def test_a_case_at_the_threshold_is_called():
    table = m.confusion([1, 1, 0, 0], [0.5, 0.4, 0.5, 0.4], 0.5)
    assert table == (1, 1, 1, 1)


def test_an_operating_point_has_wilson_intervals_and_counts():
    y, p = cohort()
    point = m.operating_point(y, p, 0.5, level=0.9)
    called = p >= 0.5
    tp, wrong = int((called & (y == 1)).sum()), int((called != (y == 1)).sum())
    found = stats.binomtest(tp, int(y.sum())).proportion_ci(0.9, method="wilson")
    figure = point["sensitivity"]
    assert (figure.low, figure.high) == pytest.approx((found.low, found.high), abs=1e-12)
    assert (figure.n, figure.events) == (y.sum(), y.sum())
    assert point["ppv"].n == called.sum()
    assert point["accuracy"].n == y.size
    assert point["f1_event"].value == pytest.approx(peer.f1_score(y, called), abs=1e-12)
    assert point["f1_other"].value == pytest.approx(peer.f1_score(1 - y, ~called), abs=1e-12)
    hits = stats.binomtest(tp, tp + wrong).proportion_ci(0.9, method="wilson")
    assert point["f1_event"].low == pytest.approx(2 * hits.low / (1 + hits.low), abs=1e-12)


def test_the_interval_of_f1_covers():
    rng = np.random.default_rng(3)
    y = rng.random((400, 120)) < 0.35
    called = np.where(y, rng.random(y.shape) < 0.8, rng.random(y.shape) < 0.25)
    precision = 0.35 * 0.8 / (0.35 * 0.8 + 0.65 * 0.25)
    truth = 2 * precision * 0.8 / (precision + 0.8)
    points = [m.operating_point(a, b, 1)["f1_event"] for a, b in zip(y, called, strict=True)]
    assert 0.92 <= np.mean([f.low <= truth <= f.high for f in points]) <= 0.98


def test_what_is_not_determined_says_why():
    point = m.operating_point([0, 0, 0], [0.1, 0.2, 0.3], 0.5)
    assert [k for k, v in point.items() if v.value is None] == ["sensitivity", "ppv", "f1_event"]
    assert point["ppv"].note == "no case reaches the threshold"
    assert point["specificity"].value == 1
    with pytest.raises(InputError, match="no case has the event"):
        m.sensitivity([0, 0], [0.1, 0.2])
    with pytest.raises(InputError, match="all cases reach"):
        m.npv([0, 1], [0.7, 0.8])
    with pytest.raises(UsageError, match="finite"):
        m.accuracy([0, 1], [0.7, 0.8], float("nan"))
    with pytest.raises(UsageError, match="class"):
        m.f1([0, 1], [0.7, 0.8], label=2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("aim", [0.0, 0.5, 0.8, 0.95, 1.0])
def test_chosen_thresholds_are_the_best_of_all(seed, aim):
    y, p = cohort(seed)
    all_of_them = [(t, m.sensitivity(y, p, t), m.specificity(y, p, t)) for t in np.unique(p)]
    expected = max(t for t, found, _ in all_of_them if found >= aim - 1e-12)
    assert m.threshold_at(y, p, sensitivity=aim) == expected
    enough = [t for t, _, spared in all_of_them if spared >= aim - 1e-12]
    chosen = m.threshold_at(y, p, specificity=aim)
    if enough:
        assert chosen == min(enough)
    else:
        assert not (p >= chosen).any()
    best = max(found + spared for _, found, spared in all_of_them)
    youden = m.threshold_at(y, p, youden=True)
    assert youden == min(t for t, a, b in all_of_them if a + b >= best - 1e-12)


def test_full_specificity_may_call_nobody():
    chosen = m.threshold_at([1, 0], [0.2, 0.9], specificity=1.0)
    assert chosen > 0.9
    assert m.specificity([1, 0], [0.2, 0.9], chosen) == 1


def test_an_aim_is_needed_and_one_only():
    y, p = cohort()
    for aims in ({}, {"youden": True, "sensitivity": 0.9}, {"sensitivity": 90}):
        with pytest.raises(UsageError, match="threshold"):
            m.threshold_at(y, p, **aims)
    with pytest.raises(InputError, match="same outcome"):
        m.threshold_at([1, 1], [0.1, 0.2], youden=True)
