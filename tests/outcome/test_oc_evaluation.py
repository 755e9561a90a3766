"""An evaluation agrees with other libraries and with what was put into the data."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from medpipe.errors import InputError, UsageError
from medpipe.outcome.evaluation import (
    OperatingPoint,
    Predictions,
    SurvivalPredictions,
    cross_fitted_thresholds,
    evaluate,
)
from medpipe.outcome.evaluation_parts import holm
from medpipe.outcome.metrics.ranking import delong_test

N = 219


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def predictions(seed: int = 3, n: int = N, shuffle: bool = False, **changes: Any) -> Predictions:
    """A cohort with a known linear predictor, seen with noise by CT and more by clinic."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-1.2, 1.6, n)
    y = (rng.random(n) < sigmoid(truth)).astype(int)
    if shuffle:
        rng.shuffle(y)
    fold = np.arange(n) % 5
    ct = truth + rng.normal(0, 1.0, n)
    clinical = 0.6 * (truth + rng.normal(0, 2.0, n)) - 0.4
    prevalence = np.array([y[fold != k].mean() for k in range(5)])[fold]
    given: dict[str, Any] = {
        "outcome": y,
        "probability": {
            "ct": sigmoid(0.75 * ct - 0.2),
            "prevalence": prevalence,
            "clinical": sigmoid(clinical),
            "ct_clinical": sigmoid(0.6 * ct + 0.3 * clinical),
        },
        "groups": [f"PATIENT-{i:04d}" for i in range(n)],
        "fold": fold,
        "uncalibrated": {"ct": sigmoid(3 * ct + 1)},
        "sites": np.where(np.arange(n) < 9, "small", np.where(rng.random(n) < 0.5, "A", "B")),
        "covariates": {
            "age_years": np.where(np.arange(n) < 3, np.nan, rng.normal(58, 13, n)),
            "sex": (rng.random(n) < 0.48).astype(float),
        },
        "simulated": True,
    }
    return Predictions(**(given | changes))


@pytest.fixture(scope="module")
def cohort() -> Predictions:
    return predictions()


@pytest.fixture(scope="module")
def result(cohort: Predictions) -> dict[str, Any]:
    flow = {"read": N + 3, "refused": {"no whole head": 2, "MR given as CT": 1}}
    return evaluate(cohort, resamples=300, flow=flow, study={"outcome_name": "death"})


def model(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(m for m in result["models"] if m["name"] == name)


def test_figures_are_those_of_scikit_learn(cohort: Predictions, result: dict[str, Any]) -> None:
    y = cohort.outcome
    for name in ("clinical", "ct", "ct_clinical"):
        found, p = model(result, name), cohort.probability[name]
        called = p >= np.array(found["thresholds"])[cohort.folds]
        wanted = {
            "auroc": sk.roc_auc_score(y, p),
            "average_precision": sk.average_precision_score(y, p),
            "brier": sk.brier_score_loss(y, p),
            "scaled_brier": sk.d2_brier_score(y, p),
            "log_loss": sk.log_loss(y, p),
            "sensitivity": sk.recall_score(y, called),
            "specificity": sk.recall_score(1 - y, ~called),
            "ppv": sk.precision_score(y, called),
            "npv": sk.precision_score(1 - y, ~called),
            "accuracy": sk.accuracy_score(y, called),
            "balanced_accuracy": sk.balanced_accuracy_score(y, called),
            "f1_event": sk.f1_score(y, called),
            "f1_other": sk.f1_score(y, called, pos_label=0),
        }
        for key, value in wanted.items():
            figure = found["metrics"][key]
            assert figure["value"] == pytest.approx(value, abs=1e-9), key
            assert figure["low"] < value < figure["high"], key
            assert (figure["n"], figure["events"]) == (N, y.sum())
        tn, fp, fn, tp = sk.confusion_matrix(y, called).ravel()
        assert found["confusion"] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}


def test_it_is_json_without_nan_and_without_patients(result: dict[str, Any]) -> None:
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text) == result
    assert "PATIENT" not in text
    assert (result["n"], result["patients"], result["simulated"]) == (N, N, True)
    assert [m["name"] for m in result["models"]] == ["prevalence", "clinical", "ct", "ct_clinical"]
    assert result["prevalence"]["value"] == pytest.approx(result["events"] / N)


def test_prevalence_is_not_ranked_by_the_chance_of_its_folds(
    cohort: Predictions, result: dict[str, Any]
) -> None:
    # pooled over folds, the training prevalence runs against the outcome
    assert sk.roc_auc_score(cohort.outcome, cohort.probability["prevalence"]) < 0.49
    found = model(result, "prevalence")
    assert found["metrics"]["auroc"]["value"] == 0.5
    assert found["metrics"]["auroc"]["low"] is None
    assert found["metrics"]["calibration_slope"]["value"] is None
    assert found["metrics"]["calibration_slope"]["note"]
    assert found["roc"] is None
    # called by nobody: right as often as nothing happens, with a width all the same
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(1 - cohort.outcome.mean())
    assert found["metrics"]["sensitivity"]["low"] == 0.0 < found["metrics"]["sensitivity"]["high"]
    assert {t["a"] for t in result["tests"]} | {t["b"] for t in result["tests"]} == {
        "clinical", "ct", "ct_clinical",
    }  # fmt: skip


def test_the_area_within_folds_is_that_of_pairs_of_the_same_fold(
    cohort: Predictions, result: dict[str, Any]
) -> None:
    y, p, fold = cohort.outcome, cohort.probability["ct"], cohort.folds
    right = total = 0.0
    for i, j in product(np.flatnonzero(y == 1), np.flatnonzero(y == 0)):
        if fold[i] == fold[j]:
            total += 1
            right += (p[i] > p[j]) + 0.5 * (p[i] == p[j])
    found = model(result, "ct")["metrics"]["auroc_within_folds"]
    assert found["value"] == pytest.approx(right / total, abs=1e-12)
    assert found["low"] < found["value"] < found["high"]


def test_a_threshold_does_not_see_the_fold_that_it_is_judged_on(cohort: Predictions) -> None:
    y, p, fold = np.asarray(cohort.outcome), cohort.probability["ct"], cohort.folds
    rule = OperatingPoint(sensitivity=0.9)
    before = cross_fitted_thresholds(y, p, fold, rule)
    turned = np.where(fold == 2, 1 - y, y)
    after = cross_fitted_thresholds(turned, p, fold, rule)
    assert after[2] == before[2]
    assert any(a != b for a, b in zip(after, before, strict=True))
    for k, t in enumerate(before):
        others = (fold != k) & (y == 1)
        assert (p[others] >= t).mean() >= 0.9
    with pytest.raises(UsageError, match="same cases"):
        cross_fitted_thresholds(y, p, np.zeros(N, int), rule)


def test_given_thresholds_are_used_and_said(cohort: Predictions) -> None:
    given = predictions(
        thresholds={"ct": [0.2, 0.3, 0.4, 0.5, 0.6]}, operating_point="specificity of at least 0.9"
    )
    found = evaluate(given, resamples=2)
    p, y = given.probability["ct"], given.outcome
    called = p >= np.array([0.2, 0.3, 0.4, 0.5, 0.6])[given.folds]
    assert model(found, "ct")["confusion"]["tp"] == (called & (y == 1)).sum()
    assert found["operating_point"]["rule"] == "specificity of at least 0.9"
    assert [f["threshold"] for f in found["folds"]] == [0.2, 0.3, 0.4, 0.5, 0.6]
    with pytest.raises(InputError, match="one for each fold"):
        evaluate(predictions(thresholds={"ct": [0.2, 0.3]}), resamples=2)


def test_models_are_tested_in_pairs_with_holms_correction(
    cohort: Predictions, result: dict[str, Any]
) -> None:
    assert [(t["a"], t["b"]) for t in result["tests"]] == [
        ("ct", "clinical"), ("ct_clinical", "clinical"), ("ct_clinical", "ct"),
    ]  # fmt: skip
    p = cohort.probability
    test = delong_test(cohort.outcome, p["ct"], p["clinical"])
    assert result["tests"][0]["p"] == test.p
    assert result["tests"][0]["difference"] == pytest.approx(
        sk.roc_auc_score(cohort.outcome, p["ct"]) - sk.roc_auc_score(cohort.outcome, p["clinical"])
    )
    assert [t["p_holm"] for t in result["tests"]] == holm([t["p"] for t in result["tests"]])


def test_holm() -> None:
    # by hand: 3 × 0.01, then 2 × 0.04 = 0.08, which 1 × 0.03 and its like may not go below
    assert holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]


def test_small_groups_get_no_interval(result: dict[str, Any]) -> None:
    rows = {r["label"]: r for r in [*result["sites"], *result["subgroups"]]}
    assert set(rows) == {
        "A", "B", "small", "age below 50", "age 50 to 64", "age 65 or more", "age not known",
        "female", "male",
    }  # fmt: skip
    assert sum(rows[k]["n"] for k in ("A", "B", "small")) == N
    assert sum(rows[k]["n"] for k in ("female", "male")) == N
    for label in ("small", "age not known"):
        assert rows[label]["too_small"]
        for key in ("auroc", "brier", "predicted", "observed"):
            assert rows[label][key]["low"] is None
    assert not rows["A"]["too_small"]
    for key in ("auroc", "brier", "predicted", "observed"):
        assert rows["A"][key]["low"] < rows["A"][key]["value"] < rows["A"][key]["high"]


def test_folds_and_flow_add_up(cohort: Predictions, result: dict[str, Any]) -> None:
    assert sum(f["n"] for f in result["folds"]) == N
    assert sum(f["events"] for f in result["folds"]) == result["events"]
    assert result["flow"]["read"] == N + 3
    assert {r["reason"]: r["n"] for r in result["flow"]["refused"]} == {
        "no whole head": 2, "MR given as CT": 1,
    }  # fmt: skip
    with pytest.raises(UsageError, match="add up"):
        evaluate(cohort, resamples=2, flow={"read": N + 1, "refused": {}})


def test_recalibration_is_shown_before_and_after(result: dict[str, Any]) -> None:
    found = model(result, "ct")
    assert found["before"]["calibration_slope"]["high"] < 0.6
    assert found["metrics"]["calibration_slope"]["value"] > 0.7
    assert found["before"]["brier"]["value"] > found["metrics"]["brier"]["value"]
    assert found["calibration"]["before"]["x"]
    assert model(result, "clinical")["before"] is None


def test_curves_hold_all_cases(cohort: Predictions, result: dict[str, Any]) -> None:
    found, y = model(result, "ct"), cohort.outcome
    roc = found["roc"]
    area = np.trapezoid(roc["y"], roc["x"])
    assert area == pytest.approx(found["metrics"]["auroc"]["value"], abs=1e-5)
    assert sum(b["n"] for b in found["calibration"]["bins"]) == N
    assert sum(found["distribution"]["with_event"]) == y.sum()
    assert sum(found["distribution"]["without_event"]) == (1 - y).sum()
    for part in ("roc", "precision_recall", "net_benefit"):
        low, high = np.array(found[part]["low"]), np.array(found[part]["high"])
        assert (low <= high).all()
        assert len(low) == len(found[part]["band_x"])
        assert "low" not in (model(result, "clinical")[part] or {})


def test_the_band_of_precision_is_that_of_single_resamples(cohort: Predictions) -> None:
    from medpipe.outcome.metrics.bootstrap import resample_weights

    few = evaluate(cohort, resamples=40)
    band = model(few, "ct")["precision_recall"]
    y, p = cohort.outcome, cohort.probability["ct"]
    weights = resample_weights(y, np.arange(N), n=40, seed=0, stratified=False)
    at = band["band_x"].index(0.5)
    seen = []
    for row in weights.astype(int):
        cases = np.repeat(np.arange(N), row)
        precision, recall, _ = sk.precision_recall_curve(y[cases], p[cases])
        # scikit-learn goes from high recall to low: the last that reaches it
        seen.append(precision[np.flatnonzero(recall >= 0.5 - 1e-12)[-1]])
    low, high = np.quantile(seen, [0.025, 0.975])
    assert (band["low"][at], band["high"][at]) == pytest.approx((low, high), abs=1e-6)


def test_net_benefit_by_hand(cohort: Predictions, result: dict[str, Any]) -> None:
    y, p = cohort.outcome, cohort.probability["ct"]
    curve = model(result, "ct")["net_benefit"]
    called = p >= 0.25
    wanted = ((called & (y == 1)).sum() - (called & (y == 0)).sum() / 3) / N
    assert curve["y"][curve["x"].index(0.25)] == pytest.approx(wanted, abs=1e-6)
    everyone = result["treat_all"]
    wanted = (y.sum() - (1 - y).sum() / 3) / N
    assert everyone["y"][everyone["x"].index(0.25)] == pytest.approx(wanted, abs=1e-6)


def test_copies_of_patients_do_not_narrow_intervals() -> None:
    one = predictions(n=120)
    twice = {k: np.tile(v, 2) for k, v in one.probability.items()}
    tiled = Predictions(
        np.tile(one.outcome, 2),
        twice,
        groups=list(one.groups or ()) * 2,
        fold=np.tile(one.folds, 2),
    )
    single, double = (evaluate(p, resamples=300) for p in (one, tiled))
    assert (double["n"], double["patients"]) == (240, 120)
    for key in ("auroc", "brier", "sensitivity"):
        a, b = (model(r, "ct")["metrics"][key] for r in (single, double))
        assert a["value"] == pytest.approx(b["value"])
        assert b["high"] - b["low"] == pytest.approx(a["high"] - a["low"], rel=0.02)
    p = [t["p"] for t in double["tests"]]
    assert p == pytest.approx([t["p"] for t in single["tests"]], rel=0.1, abs=1e-6)
    assert any("several cases" in note for note in double["notes"])


def test_shuffled_outcomes_are_not_predicted() -> None:
    found = evaluate(predictions(seed=8, shuffle=True), resamples=2)
    for name in ("clinical", "ct", "ct_clinical"):
        area = model(found, name)["metrics"]["auroc"]
        assert area["low"] < 0.5 < area["high"]


def test_times_to_the_event() -> None:
    rng = np.random.default_rng(1)
    n, at = 80, np.array([30.0, 60.0, 90.0])
    risk = rng.normal(0, 1, n)
    time = rng.exponential(60 * np.exp(-risk))
    table = np.exp(-np.exp(risk)[:, None] * at / 60)
    event = np.ones(n, int)
    event[:6] = 0
    time[:6] = 200.0  # censored after the last time: no weight but 1
    given = SurvivalPredictions(event, time, table, at)
    found = evaluate(predictions(), resamples=50, survival=given)["survival"]
    right = total = 0.0
    for i, j in product(range(n), range(n)):
        if event[i] and time[i] < 90 and time[i] < time[j]:
            total += 1
            right += risk[i] > risk[j]
    c = found["figures"]["Concordance (Uno, IPCW)"]
    assert c["value"] == pytest.approx(right / total, abs=1e-12)
    assert c["low"] < c["value"] < c["high"]
    brier = found["figures"]["Brier score at 90 days (IPCW)"]
    assert brier["value"] == pytest.approx((((time > 90) - table[:, -1]) ** 2).mean(), abs=1e-12)
    assert (found["n"], found["events"]) == (n, 74)


def test_few_cases_have_figures_without_intervals() -> None:
    rng = np.random.default_rng(0)
    y = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    ct = np.clip(0.3 * y + 0.6 * rng.random(12), 0, 1)
    few = Predictions(y, {"ct": ct, "clinical": rng.random(12)}, fold=y)
    found = evaluate(few, resamples=50)
    json.dumps(found, allow_nan=False)
    metrics = model(found, "ct")["metrics"]
    assert metrics["auroc"]["value"] == pytest.approx(sk.roc_auc_score(y, few.probability["ct"]))
    assert {m["low"] for m in metrics.values()} == {None}
    assert all(m["note"] for m in metrics.values())
    assert "low" not in model(found, "ct")["roc"]
    (test,) = found["tests"]
    assert test["difference"] is not None
    assert (test["low"], test["p"], test["p_holm"]) == (None, None, None)
    # beside each fold there is one class only: no threshold can be chosen there
    assert model(found, "ct")["thresholds"] == [0.5, 0.5]
    assert found["operating_point"]["rule"] == "a probability of 0.5"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"outcome": np.arange(N) % 3}, "not binary"),
        ({"outcome": np.zeros(N, int)}, "same outcome"),
        ({"probability": {}}, "no prediction"),
        ({"probability": {"ct": np.full(N, 1.5)}}, "outside 0..1"),
        ({"probability": {"ct": np.full(N, np.nan)}}, "missing"),
        ({"probability": {"ct": np.full(N - 1, 0.5)}}, "another length"),
        ({"groups": ["a"]}, "another length"),
        ({"fold": np.full(N, -1)}, "in no fold"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        predictions(**change)
    assert "PATIENT" not in str(caught.value)


def test_a_fact_that_is_no_json_is_refused(cohort: Predictions) -> None:
    with pytest.raises(UsageError, match="JSON"):
        evaluate(cohort, resamples=2, study={"code": object()})
