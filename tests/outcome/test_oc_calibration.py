"""Calibration: scikit-learn, scipy, direct sums and lines fitted one by one."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import optimize, special, stats
from sklearn.calibration import calibration_curve as peer_curve
from sklearn.linear_model import LogisticRegression

from medpipe.errors import InputError, UsageError
from medpipe.outcome import metrics as m
from medpipe.outcome.metrics.bootstrap import bootstrap


def cohort(n=219, slope=0.6, shift=0.4, seed=0):
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1, 1.3, n)
    y = (rng.random(n) < special.expit(shift + slope * logit)).astype(int)
    return y, special.expit(logit)


def peer_fit(y, p, weights=None):
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-14, max_iter=500)
    model.fit(special.logit(p)[:, None], y, sample_weight=weights)
    return model.coef_[0, 0], model.intercept_[0]


@pytest.mark.parametrize("seed", range(4))
def test_the_slope_agrees_with_scikit_learn(seed):
    y, p = cohort(seed=seed)
    slope, intercept = peer_fit(y, p)
    line = m.calibration_slope_intercept(y, p)
    assert line.slope.value == pytest.approx(slope, abs=1e-9)
    assert m.calibration_slope(y, p) == pytest.approx(slope, abs=1e-9)
    # Wald's interval by the inverse of the information
    design = np.stack([np.ones(y.size), special.logit(p)], axis=1)
    mean = special.expit(intercept + slope * special.logit(p))
    se = np.linalg.inv((design.T * (mean * (1 - mean))) @ design)[1, 1] ** 0.5
    assert line.slope.se == pytest.approx(se, rel=1e-7)
    assert line.slope.high - line.slope.low == pytest.approx(2 * stats.norm.ppf(0.975) * se)


@pytest.mark.parametrize("seed", range(4))
def test_the_intercept_is_where_the_mean_is_right(seed):
    y, p = cohort(seed=seed)
    logit = special.logit(p)
    expected = optimize.brentq(
        lambda a: (special.expit(a + logit) - y).sum(), -5, 5, xtol=1e-14, rtol=1e-14
    )
    figure = m.calibration_slope_intercept(y, p, level=0.9).intercept
    assert figure.value == pytest.approx(expected, abs=1e-9)
    assert m.calibration_intercept(y, p) == pytest.approx(expected, abs=1e-9)
    mean = special.expit(expected + logit)
    half = stats.norm.ppf(0.95) * (mean * (1 - mean)).sum() ** -0.5
    assert figure.high - expected == pytest.approx(half, rel=1e-7)


def test_weights_and_rows_of_them_agree_with_scikit_learn():
    y, p = cohort()
    rows = np.random.default_rng(1).integers(0, 4, (5, y.size)).astype(float)
    rows[4, y == 1] = 0
    found = m.calibration_slope(y, p, rows)
    expected = [peer_fit(y, p, row)[0] for row in rows[:4]]
    assert found[:4] == pytest.approx(expected, abs=1e-8)
    assert np.isnan(found[4])
    assert np.isnan(m.calibration_intercept(y, p, rows)).tolist() == [False] * 4 + [True]


def test_the_intervals_cover():
    hits = np.zeros(2)
    for seed in range(100):
        figure = m.calibration_slope_intercept(*cohort(150, 0.8, 0.0, seed)).slope
        hits[0] += figure.low <= 0.8 <= figure.high
        figure = m.calibration_slope_intercept(*cohort(150, 1.0, 0.5, seed)).intercept
        hits[1] += figure.low <= 0.5 <= figure.high
    assert (hits / 100 > 0.9).all()


@pytest.mark.parametrize("shift", [-8, 8])
def test_probabilities_far_from_the_outcomes_still_converge(shift):
    # Newton's whole steps leave for infinity here
    rng = np.random.default_rng(0)
    logit = np.clip(rng.normal(shift, 4, (40, 25)), -13, 13)
    y = (rng.random((40, 25)) < 0.5).astype(int)
    y[:, 0], y[:, 1] = 0, 1

    def gap(a, outcome, x):
        return (special.expit(a + x) - outcome).sum()

    for outcome, x in zip(y, logit, strict=True):
        expected = optimize.brentq(gap, -40, 40, args=(outcome, x), xtol=1e-13)
        found = m.calibration_intercept(outcome, special.expit(x))
        assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("y", "p", "note"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], "separated"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9], "separated"),
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9], "separated"),
        ([0, 1, 0, 1], [0.3] * 4, "the same"),
    ],
)
def test_a_slope_that_is_not_finite_is_said(y, p, note):
    line = m.calibration_slope_intercept(y, p)
    assert line.slope.value is None
    assert note in line.slope.note
    assert line.intercept.value is not None
    with pytest.raises(InputError, match="no slope"):
        m.calibration_slope(y, p)


def test_one_class_and_certain_probabilities_are_said():
    line = m.calibration_slope_intercept([1, 1], [0.2, 0.3])
    assert line.slope.value is None
    assert "same outcome" in line.intercept.note
    with pytest.raises(InputError, match="same outcome"):
        m.calibration_intercept([1, 1], [0.2, 0.3])
    line = m.calibration_slope_intercept([0, 1, 0, 1], [0.0, 1.0, 0.6, 0.4])
    assert "2 probabilities were moved" in line.slope.note
    with pytest.raises(InputError, match="outside"):
        m.calibration_slope_intercept([0, 1], [0.1, 2])


@pytest.mark.parametrize("digits", [1, 6])
def test_the_curve_agrees_with_scikit_learn_and_wilson(digits):
    y, p = cohort()
    p = np.round(p, digits)
    curve = m.calibration_curve(y, p, 8)
    observed, mean = peer_curve(y, p, n_bins=8, strategy="quantile")
    np.testing.assert_allclose(curve.observed, observed, atol=1e-12)
    np.testing.assert_allclose(curve.probability, mean, atol=1e-12)
    assert curve.n.sum() == y.size
    assert curve.events.sum() == y.sum()
    for k, n, low, high in zip(curve.events, curve.n, curve.low, curve.high, strict=True):
        peer = stats.binomtest(int(k), int(n)).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((peer.low, peer.high), abs=1e-12)


def test_the_error_is_the_mean_gap_of_the_curve():
    y, p = cohort()
    curve = m.calibration_curve(y, p, 8)
    expected = (curve.n * np.abs(curve.observed - curve.probability)).sum() / y.size
    assert m.expected_calibration_error(y, p, bins=8) == pytest.approx(expected, abs=1e-12)
    assert m.expected_calibration_error([0, 1, 0, 0], [0.25] * 4) == 0
    figure = bootstrap(y, p, m.expected_calibration_error, n=200)
    assert figure.low <= figure.value <= figure.high


def test_the_error_of_perfect_probabilities_is_what_the_docstring_says():
    errors = [m.expected_calibration_error(*cohort(400, 1, 0, seed)) for seed in range(30)]
    _, p = cohort(4000, 1, 0)
    expected = 0.8 * np.sqrt(p * (1 - p)).mean() * (10 / 400) ** 0.5
    assert np.mean(errors) == pytest.approx(expected, rel=0.15)


def test_the_smooth_curve_is_a_weighted_line_at_each_point():
    y, p = cohort(80)
    points = np.linspace(0.05, 0.8, 9)
    curve = m.smooth_calibration(y, p, points, span=0.6)
    for at, found, cases in zip(points, curve.observed, curve.n, strict=True):
        away = np.abs(p - at)
        reach = np.sort(away)[47] * (1 + 1e-6)
        weights = np.where(away < reach, (1 - (away / reach) ** 3) ** 3, 0)
        line = np.polyfit(p - at, y, 1, w=np.sqrt(weights))
        assert found == pytest.approx(np.clip(line[1], 0, 1), abs=1e-9)
        unit = [np.polyfit(p - at, row, 1, w=np.sqrt(weights))[1] for row in np.eye(80)]
        assert cases == pytest.approx(1 / np.sum(np.square(unit)), rel=1e-8)
    assert (curve.low <= curve.observed).all()
    assert (curve.observed <= curve.high).all()
    assert m.smooth_calibration(y, p).probability.size == 101


def test_the_smooth_curve_finds_the_true_one_and_its_index():
    y, p = cohort(1500, 0.5, 0.3, 5)
    truth = special.expit(0.3 + 0.5 * special.logit(p))
    assert m.integrated_calibration_index(y, p) == pytest.approx(np.abs(truth - p).mean(), abs=0.03)
    points = np.quantile(p, np.linspace(0.1, 0.9, 9))
    curve = m.smooth_calibration(y, p, points, span=0.3)
    expected = special.expit(0.3 + 0.5 * special.logit(points))
    np.testing.assert_allclose(curve.observed, expected, atol=0.08)


def test_the_smooth_curve_of_one_probability_is_the_prevalence():
    curve = m.smooth_calibration([0, 1, 0, 1], [0.3] * 4)
    np.testing.assert_allclose(curve.observed, 0.5)
    np.testing.assert_allclose(curve.n, 4)
    assert m.integrated_calibration_index([0, 1, 0, 1], [0.3] * 4) == pytest.approx(0.2)
    with pytest.raises(UsageError, match="span"):
        m.smooth_calibration([0, 1], [0.3, 0.4], span=2)
    with pytest.raises(UsageError, match="bins"):
        m.calibration_curve([0, 1], [0.3, 0.4], 0)


def test_resampled_slopes_of_a_large_cohort_take_seconds():
    y, p = cohort(2000)
    start = time.perf_counter()
    figure = bootstrap(y, p, m.calibration_slope, n=200, method="percentile")
    assert time.perf_counter() - start < 20
    wald = m.calibration_slope_intercept(y, p).slope
    assert figure.se == pytest.approx(wald.se, rel=0.25)
