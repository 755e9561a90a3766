"""Recalibration against scikit-learn, likelihoods, and without scikit-learn."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from scipy import optimize, special
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression

from medpipe.errors import InputError, UsageError
from medpipe.outcome import metrics as m
from medpipe.outcome.recalibrate import (
    Isotonic,
    Platt,
    Temperature,
    fit_recalibration,
    recalibration_from_dict,
    recalibration_from_json,
)

KINDS = ["platt", "isotonic", "temperature"]


def cohort(n=219, seed=0, slope=0.5, shift=-0.6, digits=2):
    rng = np.random.default_rng(seed)
    logit = np.round(rng.normal(0, 2, n), digits)
    return (rng.random(n) < special.expit(shift + slope * logit)).astype(int), logit


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weighted", [True, False])
def test_platt_agrees_with_scikit_learn(seed, weighted):
    y, logit = cohort(seed=seed)
    weights = np.random.default_rng(seed).random(y.size) if weighted else None
    peer = _SigmoidCalibration().fit(logit, y, sample_weight=weights)
    ours = Platt.fit(y, logit, weights)
    assert ours.apply(logit) == pytest.approx(peer.predict(logit), abs=1e-4)


def test_platt_has_the_largest_likelihood_of_its_targets():
    y, logit = cohort()
    events, others = y.sum(), (1 - y).sum()
    target = np.where(y == 1, (events + 1) / (events + 2), 1 / (others + 2))
    ours = Platt.fit(y, logit)
    gap = target - ours.apply(logit)
    assert [gap.sum(), gap @ logit] == pytest.approx([0, 0], abs=1e-8)


@pytest.mark.parametrize("digits", [0, 1, 6])
@pytest.mark.parametrize("weighted", [True, False])
def test_isotonic_agrees_with_scikit_learn(digits, weighted):
    y, logit = cohort(digits=digits)
    weights = np.random.default_rng(1).random(y.size) if weighted else None
    peer = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    peer.fit(logit, y, sample_weight=weights)
    points = np.linspace(-9, 9, 301)
    ours = Isotonic.fit(y, logit, weights)
    np.testing.assert_allclose(ours.apply(points), peer.predict(points), atol=1e-9)
    assert len(ours.logits) <= len(peer.X_thresholds_)


@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_has_the_largest_likelihood(seed):
    y, logit = cohort(seed=seed, shift=0.0)
    ours = Temperature.fit(y, logit)
    best = optimize.minimize_scalar(
        lambda t: m.log_loss(y, special.expit(logit / t)),
        bounds=(0.1, 15),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert ours.temperature == pytest.approx(best.x, abs=1e-5)
    assert ours.temperature == pytest.approx(2, abs=0.9)


def test_a_temperature_ends_at_its_range():
    assert Temperature.fit([0, 1], [-1, 1]).temperature == 0.05
    assert Temperature.fit([0, 1], [1, -1]).temperature == 20
    assert Temperature.fit([0, 1, 0], [0, 0, 0]).temperature == 20


def test_recalibration_mends_new_cases():
    y, logit = cohort(3000, 1)
    new_y, new_logit = cohort(3000, 2)
    before = m.calibration_slope_intercept(new_y, special.expit(new_logit))
    assert before.slope.value == pytest.approx(0.5, abs=0.1)
    for kind in ("platt", "isotonic"):
        p = fit_recalibration(kind, y, logit).apply(new_logit)
        error = m.expected_calibration_error(new_y, p)
        assert error < 0.03
        assert error < 0.3 * m.expected_calibration_error(new_y, special.expit(new_logit))
    after = m.calibration_slope_intercept(new_y, Platt.fit(y, logit).apply(new_logit))
    # the spread of both cohorts: 1.4 times the standard error of one
    assert after.slope.value == pytest.approx(1, abs=3.5 * 1.4 * after.slope.se)
    assert after.intercept.value == pytest.approx(0, abs=3.5 * 1.4 * after.intercept.se)


@pytest.mark.parametrize("kind", KINDS)
def test_json_gives_the_same_probabilities_bit_by_bit(kind):
    y, logit = cohort()
    ours = fit_recalibration(kind, y, logit)
    again = recalibration_from_json(ours.to_json())
    assert again == ours
    np.testing.assert_array_equal(again.apply(logit), ours.apply(logit))
    assert recalibration_from_dict(json.loads(json.dumps(ours.to_dict()))) == ours
    assert (ours.n, ours.events) == (y.size, y.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_rise_and_keep_the_shape(kind):
    y, logit = cohort()
    ours = fit_recalibration(kind, y, logit)
    p = ours.apply(np.linspace(-30, 30, 61))
    assert (np.diff(p) >= 0).all()
    assert ((p >= 0) & (p <= 1)).all()
    assert ours.apply(np.zeros((2, 3))).shape == (2, 3)
    assert np.ndim(ours.apply(0.3)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_interval_holds_the_truth_as_often_as_it_says(kind):
    at, truth = np.array([-2.0, 0.5, 2.0]), special.expit(0.5 * np.array([-2.0, 0.5, 2.0]))
    hits = 0.0
    for seed in range(120):
        ours = fit_recalibration(kind, *cohort(400, seed, 0.5, 0.0))
        low, high = ours.interval(at)
        p = ours.apply(at)
        assert (low <= p + 1e-12).all()
        assert (p <= high + 1e-12).all()
        hits += ((low <= truth) & (truth <= high)).mean()
    # pooled levels are chosen by the outcomes: those of the isotonic map are too sure
    assert hits / 120 > (0.75 if kind == "isotonic" else 0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_separated_and_constant_predictions_stay_finite(kind):
    y = np.r_[np.zeros(10), np.ones(5)]
    p = fit_recalibration(kind, y, y * 2 - 1).apply([-1.0, 0.0, 1.0])
    assert (np.diff(p) > 0).all()
    constant = fit_recalibration(kind, y, np.full(15, 0.0))
    low, high = constant.interval(0.0)
    assert low <= constant.apply(0.0) <= high
    if kind == "platt":
        # the mean of Platt's targets: 10 of 1 / 12 and 5 of 6 / 7
        assert constant.apply(3.0) == pytest.approx((10 / 12 + 5 * 6 / 7) / 15)
    if kind == "isotonic":
        assert constant.apply(3.0) == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("y", "logit", "message"),
    [
        ([1, 1], [0.1, 0.2], "same outcome"),
        ([0, 1], [0.1, np.nan], "missing"),
        ([0, 1], [0.1, np.inf], "infinite"),
        ([0, 1, 1], [0.1, 0.2], "another length"),
        ([0, 3], [0.1, 0.2], "not binary"),
    ],
)
def test_bad_input_is_refused(kind, y, logit, message):
    with pytest.raises(InputError, match=message):
        fit_recalibration(kind, y, logit)


def test_weights_that_leave_one_class_are_refused():
    with pytest.raises(InputError, match="same outcome"):
        Platt.fit([0, 1, 1], [1, 2, 3], [0, 1, 1])
    with pytest.raises(UsageError, match="unknown recalibration"):
        fit_recalibration("beta", [0, 1], [1, 2])
    with pytest.raises(InputError, match="log odds"):
        Platt.fit(*cohort()).apply([np.nan])


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "pickle"},
        {"slope": None},
        {"slope": float("nan")},
        {"slope": "1"},
        {"more": 1},
        {"covariance": [1, 2]},
        {"covariance": 1.0},
    ],
)
def test_records_of_something_else_are_refused(change):
    record = Platt.fit(*cohort()).to_dict()
    with pytest.raises(InputError, match="recalibration"):
        recalibration_from_dict(record | change)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{'kind': 1}"])
def test_other_text_is_refused(text):
    with pytest.raises(InputError, match="recalibration"):
        recalibration_from_json(text)


def test_knots_that_cannot_be_are_refused():
    record = Isotonic.fit(*cohort()).to_dict()
    for change in ({"logits": record["logits"][::-1]}, {"cases": [1.0]}, {"logits": []}):
        with pytest.raises(InputError, match="knots"):
            recalibration_from_dict(record | change)
    record = Temperature.fit(*cohort()).to_dict()
    with pytest.raises(InputError, match="temperature"):
        recalibration_from_dict(record | {"temperature": 0})


def test_nothing_here_imports_scikit_learn_torch_or_monai():
    y, logit = cohort(40)
    record = Isotonic.fit(y, logit).to_json()
    code = f"""
        import importlib, pkgutil, sys
        from medpipe.outcome import metrics, recalibrate
        for info in pkgutil.iter_modules(metrics.__path__):
            importlib.import_module(f"medpipe.outcome.metrics.{{info.name}}")
        for name in metrics.__all__:
            assert callable(getattr(metrics, name)), name
        assert 0 <= recalibrate.recalibration_from_json('''{record}''').apply(0.2) <= 1
        recalibrate.Isotonic.fit([0, 1, 0], [1, 2, 3])
        unwanted = {{"sklearn", "ignite", "monai", "torch", "pandas", "scipy.stats"}}
        assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
