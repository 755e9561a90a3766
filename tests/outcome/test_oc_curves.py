"""Curves against scikit-learn; net benefit by counting."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as peer

from medpipe.errors import InputError, UsageError
from medpipe.outcome import metrics as m


def cohort(seed=0, n=200):
    rng = np.random.default_rng(seed)
    p = np.round(rng.beta(1.5, 3, n), 2)
    return (rng.random(n) < p).astype(int), p


def test_the_roc_curve_agrees_with_scikit_learn():
    y, p = cohort()
    curve = m.roc_curve(y, p)
    for ours, theirs in zip(curve, peer.roc_curve(y, p, drop_intermediate=False), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    area = np.trapezoid(curve.sensitivity, curve.false_positive_rate)
    assert area == pytest.approx(m.auroc(y, p), abs=1e-12)


def test_the_precision_recall_curve_agrees_with_scikit_learn():
    y, p = cohort()
    precision, recall, threshold = peer.precision_recall_curve(y, p)
    curve = m.precision_recall_curve(y, p)
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1], atol=1e-12)
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1], atol=1e-12)
    np.testing.assert_allclose(curve.threshold, threshold[::-1], atol=1e-12)


def test_the_band_is_that_of_resampled_patients():
    y, p = cohort(1)
    rates = np.linspace(0, 1, 21)
    band = m.roc_band(y, p, n=300, seed=4, points=21)
    rows = m.resample_weights(y, n=300, seed=4).astype(int)
    found = []
    for row in rows:
        curve = m.roc_curve(np.repeat(y, row), np.repeat(p, row))
        near = curve.false_positive_rate[:, None] <= rates + 1e-12
        found.append((near * curve.sensitivity[:, None]).max(axis=0))
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(band.low, low, atol=1e-12)
    np.testing.assert_allclose(band.high, high, atol=1e-12)
    assert band.low[-1] == band.high[-1] == 1


def test_net_benefit_is_counted():
    y, p = cohort(2)
    for t in (0.0, 0.1, 0.25, 0.6):
        called = p >= t
        tp, fp = int((called & (y == 1)).sum()), int((called & (y == 0)).sum())
        expected = tp / y.size - fp / y.size * t / (1 - t)
        assert m.net_benefit(y, p, t)[0] == pytest.approx(expected, abs=1e-12)
        everyone = y.mean() - (1 - y.mean()) * t / (1 - t)
        assert m.net_benefit_all(y, t)[0] == pytest.approx(everyone, abs=1e-12)


def test_calling_everybody_is_worth_nothing_at_the_prevalence():
    y, _ = cohort(2)
    assert m.net_benefit_all(y, y.mean())[0] == pytest.approx(0, abs=1e-12)


def test_a_decision_curve_has_the_interval_of_resampled_patients():
    y, p = cohort(3)
    patient = np.arange(y.size) // 2
    curve = m.decision_curve(y, p, [0.1, 0.4], groups=patient, n=400, seed=1)
    rows = m.resample_weights(y, patient, n=400, seed=1, stratified=False).astype(int)
    found = [m.net_benefit(np.repeat(y, row), np.repeat(p, row), [0.1, 0.4]) for row in rows]
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(curve.low, low, atol=1e-12)
    np.testing.assert_allclose(curve.high, high, atol=1e-12)
    np.testing.assert_allclose(curve.net_benefit, m.net_benefit(y, p, [0.1, 0.4]))
    assert (curve.n, curve.events) == (y.size, y.sum())
    assert m.decision_curve(y, p, n=10).threshold.size == 99


def test_bad_input_of_curves_is_refused():
    with pytest.raises(InputError, match="same outcome"):
        m.roc_curve([1, 1], [0.1, 0.2])
    with pytest.raises(InputError, match="same outcome"):
        m.roc_band([1, 1], [0.1, 0.2])
    with pytest.raises(InputError, match="no case has the event"):
        m.precision_recall_curve([0, 0], [0.1, 0.2])
    with pytest.raises(InputError, match="outside"):
        m.net_benefit([0, 1], [1, 20], 0.5)
    for threshold in ([1.0], [-0.1], [], [np.nan]):
        with pytest.raises(UsageError, match="thresholds"):
            m.net_benefit([0, 1], [0.1, 0.2], threshold)
