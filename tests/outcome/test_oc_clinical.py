"""Clinical models and late fusion against closed forms, Newton's method and known truths."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit

from medpipe.errors import InputError, UsageError
from medpipe.outcome.clinical import (
    PENALTIES,
    clinical_model,
    fit_clinical,
    late_fusion,
    nested_logits,
)
from medpipe.outcome.clinical_model import CT_LOGIT, ClinicalModel
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.folds import Folds, make_folds


def auc(outcome, score) -> float:
    """Share of pairs in order, ties as half: the definition."""
    a, b = score[outcome == 1][:, None], score[outcome == 0][None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def newton(x, y, inverse_penalty, weights=None):
    """Penalised logistic regression by Newton's method: coefficients and covariance."""
    weights = np.ones(len(y)) if weights is None else weights
    full = np.column_stack([np.ones(len(y)), x])
    ridge = np.diag([0.0, *[1.0 / inverse_penalty] * x.shape[1]])
    beta = np.zeros(full.shape[1])
    for _ in range(60):
        p = expit(full @ beta)
        hessian = (full * (weights * p * (1 - p))[:, None]).T @ full + ridge
        beta = beta - np.linalg.solve(hessian, full.T @ (weights * (p - y)) + ridge @ beta)
    return beta, np.linalg.inv(hessian)


def simulate(n: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Covariates, outcome and true logit: 0.7 per 10 years and 0.5 per WFNS grade."""
    rng = np.random.default_rng(seed)
    age = np.clip(rng.normal(58, 13, n), 18, 95)
    wfns = rng.integers(1, 6, n).astype(float)
    noise = rng.normal(0, 1, n)
    logit = -2.2 + 0.07 * (age - 58) + 0.5 * (wfns - 2)
    y = (rng.random(n) < expit(logit)).astype(np.int64)
    return {"age_years": age, "wfns": wfns, "lactate": noise}, y, logit


def cohort_of(columns, outcome, patients=None) -> Cohort:
    n = len(outcome)
    ids = tuple(f"c{i}" for i in range(n))
    return Cohort(ids, tuple(patients or (f"p{i}" for i in range(n))), outcome, dict(columns))


@pytest.mark.parametrize("inverse_penalty", [0.01, 1.0, 1e4])
def test_coefficients_and_errors_are_those_of_newton(inverse_penalty):
    columns, y, _ = simulate(219, 3)
    model = fit_clinical(columns, y, inverse_penalty=inverse_penalty)
    raw = np.stack([columns[n] for n in model.names], axis=1)
    x = (raw - raw.mean(0)) / raw.std(0)
    np.testing.assert_allclose(model.design(columns), x, atol=1e-12)
    beta, cov = newton(x, y, inverse_penalty)
    np.testing.assert_allclose(model.intercept, beta[0], atol=1e-6)
    np.testing.assert_allclose([t.coefficient for t in model.terms], beta[1:], atol=1e-6)
    np.testing.assert_allclose([t.error for t in model.terms], np.sqrt(np.diag(cov))[1:], atol=1e-6)
    np.testing.assert_allclose(model.probability(columns), expit(beta[0] + x @ beta[1:]), atol=1e-6)


def test_the_odds_ratio_of_a_table_of_four_is_the_closed_form():
    # 2 × 2: exposed 30 of 50 with the event, not exposed 20 of 100
    x = np.repeat([1.0, 1.0, 0.0, 0.0], [30, 20, 20, 80])
    y = np.repeat([1, 0, 1, 0], [30, 20, 20, 80])
    (row,) = fit_clinical({"ivh": x}, y, inverse_penalty=1e8).odds_ratios()
    ratio = (30 / 20) / (20 / 80)
    error = np.sqrt(1 / 30 + 1 / 20 + 1 / 20 + 1 / 80)  # Woolf's interval
    assert row["odds_ratio"] == pytest.approx(ratio, rel=1e-5)
    assert row["low"] == pytest.approx(ratio * np.exp(-1.959964 * error), rel=1e-5)
    assert row["high"] == pytest.approx(ratio * np.exp(1.959964 * error), rel=1e-5)
    assert (row["name"], row["step"], row["unit"], row["kind"]) == ("ivh", 1.0, "", "value")


def test_odds_ratios_are_for_the_stated_step():
    columns, y, _ = simulate(4000, 0)
    model = fit_clinical(columns, y)
    rows = model.odds_ratios()
    assert [(r["name"], r["step"], r["unit"]) for r in rows] == [
        ("age_years", 10.0, "years"),
        ("wfns", 1.0, ""),
        ("lactate", 1.0, ""),
    ]
    at = {name: np.array([50.0, 60.0]) if "age" in name else np.ones(2) for name in columns}
    assert rows[0]["odds_ratio"] == pytest.approx(np.exp(np.diff(model.logit(at))[0]))
    for row, truth in zip(rows, (0.7, 0.5, 0.0), strict=True):
        error = np.log(row["high"] / row["low"]) / (2 * 1.959964)
        assert error < 0.06
        assert abs(np.log(row["odds_ratio"]) - truth) < 4 * error


def test_intervals_cover_the_truth_as_often_as_they_say():
    covered = []
    for seed in range(120):
        columns, y, _ = simulate(219, 1000 + seed)
        rows = fit_clinical(columns, y).odds_ratios()
        covered += [
            r["low"] < np.exp(t) < r["high"] for r, t in zip(rows, (0.7, 0.5, 0), strict=True)
        ]
    # 360 intervals of 95 %: 3.5 standard errors are 4 points
    assert abs(np.mean(covered) - 0.95) < 0.04


def test_missing_values_become_the_median_and_are_marked():
    rng = np.random.default_rng(2)
    value = rng.normal(10, 3, 300)
    gone = rng.random(300) < 0.3
    y = (rng.random(300) < np.where(gone, 0.7, 0.3)).astype(np.int64)
    model = fit_clinical({"lactate": np.where(gone, np.nan, value)}, y)
    assert [(t.name, t.kind) for t in model.terms] == [("lactate", "value"), ("lactate", "missing")]
    filled = np.where(gone, np.median(value[~gone]), value)
    x = np.stack([filled, gone.astype(float)], axis=1)
    beta, _ = newton((x - x.mean(0)) / x.std(0), y, 1.0)
    np.testing.assert_allclose([t.coefficient for t in model.terms], beta[1:], atol=1e-6)
    row = model.odds_ratios()[1]
    assert row["kind"] == "missing"
    assert row["low"] < (0.7 / 0.3) / (0.3 / 0.7) < row["high"]
    # a new patient without the value
    one = model.logit({"lactate": np.array([np.nan])})
    other = model.logit({"lactate": np.array([np.median(value[~gone])])})
    assert one > other


def test_a_value_missing_for_the_first_time_is_the_median():
    columns, y, _ = simulate(100, 4)
    model = fit_clinical(columns, y)
    new = {name: np.array([np.nan]) for name in columns}
    middle = {name: np.array([np.median(v)]) for name, v in columns.items()}
    assert model.logit(new) == pytest.approx(model.logit(middle))


def test_a_patient_counts_once_however_many_cases():
    columns, y, _ = simulate(150, 5)
    times = np.random.default_rng(0).integers(1, 5, 150)
    patients = np.repeat(np.arange(150), times)
    repeated = {name: np.repeat(v, times) for name, v in columns.items()}
    model = fit_clinical(repeated, np.repeat(y, times), patients=patients)
    raw = np.stack(list(repeated.values()), axis=1)
    x = (raw - raw.mean(0)) / raw.std(0)
    first = np.unique(patients, return_index=True)[1]
    beta, cov = newton(x[first], y, 1.0)  # one row per patient
    np.testing.assert_allclose([t.coefficient for t in model.terms], beta[1:], atol=1e-6)
    np.testing.assert_allclose([t.error for t in model.terms], np.sqrt(np.diag(cov))[1:], atol=1e-6)
    assert (model.cases, model.patients, model.events) == (times.sum(), 150, y.sum())


def test_predictions_are_out_of_fold():
    columns, y, _ = simulate(120, 6)
    columns["lactate"][::5] = np.nan
    cohort = cohort_of(columns, y)
    folds = make_folds(cohort, folds=4, seed=1)
    got = clinical_model(cohort, folds)
    for k, test in enumerate(folds.test):
        train = folds.train(k)
        alone = fit_clinical({n: v[train] for n, v in columns.items()}, y[train])
        assert alone.to_dict() == got.models[k].to_dict()
        np.testing.assert_array_equal(
            got.logit[test], alone.logit({n: v[test] for n, v in columns.items()})
        )
    # nothing of a test case enters what predicts it: not its outcome, not its values
    worse = {n: v.copy() for n, v in columns.items()}
    test = folds.test[2]
    worse["lactate"][test] = 1e6
    flipped = y.copy()
    flipped[test] = 1 - flipped[test]
    again = clinical_model(cohort_of(worse, flipped), folds)
    assert again.models[2].to_dict() == got.models[2].to_dict()
    assert again.models[1].to_dict() != got.models[1].to_dict()


@pytest.mark.parametrize("inverse_penalty", [1.0, None])
def test_a_simulated_cohort_reaches_the_auc_of_its_model(inverse_penalty):
    columns, y, truth = simulate(1000, 7)
    cohort = cohort_of(columns, y)
    folds = make_folds(cohort, folds=5 if inverse_penalty else 2)
    got = clinical_model(cohort, folds, inverse_penalty=inverse_penalty)
    assert auc(y, got.logit) == pytest.approx(auc(y, truth), abs=0.01)
    assert np.mean(got.probability) == pytest.approx(y.mean(), abs=0.01)
    # the variance of a linear predictor is the number of coefficients over the information
    p = expit(truth)
    expected = np.sqrt(4 / (np.mean(p * (1 - p)) * len(folds.train(0))))
    assert np.sqrt(np.mean((got.logit - truth) ** 2)) < 1.6 * expected


def test_shuffled_outcomes_give_no_skill():
    scores = []
    for seed in range(6):
        columns, y, _ = simulate(219, 8)
        cohort = cohort_of(columns, np.random.default_rng(seed).permutation(y))
        scores.append(auc(cohort.outcome, clinical_model(cohort, make_folds(cohort)).logit))
    assert np.mean(scores) == pytest.approx(0.5, abs=0.07)


def test_the_penalty_is_strong_for_noise_and_weak_for_a_signal():
    rng = np.random.default_rng(9)
    noise = {f"x{i}": rng.normal(size=120) for i in range(8)}
    y = (rng.random(120) < 0.4).astype(np.int64)
    strong = fit_clinical(noise, y, inverse_penalty=None)
    assert strong.inverse_penalty <= 0.1
    columns, outcome, _ = simulate(600, 9)
    weak = fit_clinical(columns, outcome, inverse_penalty=None)
    assert weak.inverse_penalty >= 0.1
    assert {strong.inverse_penalty, weak.inverse_penalty} <= set(PENALTIES)
    assert strong.penalty_chosen
    assert strong.to_dict() == fit_clinical(noise, y, inverse_penalty=None).to_dict()


def test_few_events_are_told():
    columns, y, _ = simulate(219, 10)
    columns |= {f"x{i}": np.random.default_rng(i).normal(size=219) for i in range(5)}
    cohort = cohort_of(columns, y)
    got = clinical_model(cohort, make_folds(cohort))
    smallest = min(m.events for m in got.models)
    (finding,) = got.findings
    assert finding.check == "clinical.few_events"
    assert f"{smallest} patients of the rarer outcome for 8 coefficients" in finding.message
    assert f"{smallest / 8:.1f} events per parameter, below 10" in finding.message
    assert clinical_model(cohort, make_folds(cohort), covariates=["wfns"]).findings == ()
    assert got.to_dict()["events_per_parameter"] == smallest / 8


def test_a_column_without_information_is_left_out_and_told():
    columns, y, _ = simulate(200, 11)
    cohort = cohort_of(columns | {"ivh": np.ones(200)}, y)
    got = clinical_model(cohort, make_folds(cohort), covariates=["wfns", "ivh"])
    assert got.model.names == ("wfns",)
    assert [f.check for f in got.findings] == ["clinical.constant"]
    with pytest.raises(UsageError, match="no covariate varies"):
        clinical_model(cohort, make_folds(cohort), covariates=["ivh"])


@pytest.mark.parametrize("inverse_penalty", [1e-3, 1.0, 1e6])
def test_outcomes_that_a_covariate_separates_are_fitted_by_the_penalty(inverse_penalty):
    y = np.repeat([0, 1], 30)
    model = fit_clinical({"gcs": y.astype(float)}, y, inverse_penalty=inverse_penalty)
    (row,) = model.odds_ratios()
    assert np.isfinite([row["low"], row["high"]]).all()
    assert auc(y, model.logit({"gcs": y.astype(float)})) == 1.0


@pytest.mark.parametrize("inverse_penalty", [1e-3, 1.0, 1e6])
def test_the_same_covariate_twice_has_half_the_coefficient(inverse_penalty):
    columns, y, _ = simulate(150, 21)
    twice = {"a": columns["wfns"], "b": columns["wfns"].copy()}
    a, b = fit_clinical(twice, y, inverse_penalty=inverse_penalty).terms
    (one,) = fit_clinical({"a": columns["wfns"]}, y, inverse_penalty=2 * inverse_penalty).terms
    assert a.coefficient == pytest.approx(b.coefficient, abs=1e-6)
    assert a.coefficient + b.coefficient == pytest.approx(one.coefficient, abs=1e-6)


def test_what_cannot_be_fitted_is_refused():
    columns, y, _ = simulate(60, 12)
    cohort = cohort_of(columns, y)
    folds = make_folds(cohort, folds=3)
    with pytest.raises(UsageError, match="no such covariate; got gcs"):
        clinical_model(cohort, folds, covariates=["gcs"])
    with pytest.raises(UsageError, match="needs a covariate"):
        clinical_model(cohort_of({}, y), folds)
    with pytest.raises(UsageError, match="one outcome only"):
        fit_clinical(columns, np.zeros(60, np.int64))
    with pytest.raises(UsageError, match="inverse penalty"):
        fit_clinical(columns, y, inverse_penalty=0.0)
    with pytest.raises(UsageError, match="infinite"):
        fit_clinical(columns | {"wfns": np.full(60, np.inf)}, y)
    with pytest.raises(UsageError, match="not of this cohort"):
        clinical_model(cohort.select(range(50)), folds)
    few = {"wfns": np.arange(4.0)}
    with pytest.raises(UsageError, match="too few patients to choose"):
        fit_clinical(few, np.array([0, 0, 0, 1]), inverse_penalty=None)


class Network:
    """Stands for a network: an exact memory of what it saw, a weak guess otherwise."""

    def __init__(self, outcome, signal, memory: float) -> None:
        self.outcome, self.signal, self.memory = outcome, signal, memory
        self.calls: list[tuple[set[int], set[int]]] = []

    def __call__(self, train, cases):
        self.calls.append((set(train.tolist()), set(cases.tolist())))
        seen = np.isin(cases, train)
        known = np.where(self.outcome[cases] == 1, self.memory, -self.memory)
        return np.where(seen, known, self.signal[cases])


def test_nested_logits_come_from_networks_that_saw_neither_case_nor_test_set():
    columns, y, _ = simulate(60, 13)
    cohort = cohort_of(columns, y)
    folds = make_folds(cohort, folds=5)
    fold = folds.fold_of
    network = Network(y, np.arange(60.0), 1e3)
    rows = nested_logits(folds, network)
    assert len(network.calls) == 5 + 10
    assert all(not train & cases and len(train | cases) == 60 for train, cases in network.calls)
    np.testing.assert_array_equal(rows, np.tile(np.arange(60.0), (5, 1)))

    def who(train, cases):  # the answer says which folds the network was trained with
        return np.full(len(cases), float(sum(2 ** int(k) for k in np.unique(fold[train]))))

    rows = nested_logits(folds, who)
    for k in range(5):
        for i in range(60):
            assert rows[k, i] == 31 - sum(2**j for j in {k, int(fold[i])})
    with pytest.raises(UsageError, match="three folds"):
        nested_logits(make_folds(cohort, folds=2), network)
    with pytest.raises(UsageError, match="wrong shape"):
        nested_logits(folds, lambda train, cases: np.zeros(3))


def test_a_network_that_only_remembers_lends_a_fusion_no_skill():
    """Stacking without nesting would trust it; a signal in covariates must survive."""
    columns, y, _ = simulate(400, 14)
    rng = np.random.default_rng(0)
    network = Network(y, rng.normal(size=400), 5.0)
    cohort = cohort_of(columns, y)
    folds = make_folds(cohort)
    fused = late_fusion(cohort, folds, nested_logits(folds, network))
    alone = clinical_model(cohort, folds)
    assert auc(y, fused.logit) == pytest.approx(auc(y, alone.logit), abs=0.01)
    bare = late_fusion(cohort, folds, nested_logits(folds, network), covariates=[])
    assert auc(y, bare.logit) == pytest.approx(0.5, abs=0.1)
    # what a leak would do: the networks of the training rows have seen those cases
    leaking = np.tile(np.where(y == 1, 5.0, -5.0), (5, 1))
    leaking[folds.fold_of, np.arange(400)] = network.signal
    assert auc(y, late_fusion(cohort, folds, leaking).logit) < auc(y, alone.logit) - 0.1


def test_a_fusion_finds_the_known_weights_and_beats_its_parts():
    rng = np.random.default_rng(15)
    n = 1500
    ct, age = rng.normal(0, 1.5, n), rng.normal(58, 13, n)
    truth = -1.2 + 0.9 * ct + 0.06 * (age - 58)
    y = (rng.random(n) < expit(truth)).astype(np.int64)
    cohort = cohort_of({"age_years": age}, y)
    folds = make_folds(cohort)
    logits = nested_logits(folds, Network(y, ct, 5.0))
    fused = late_fusion(cohort, folds, logits)
    assert auc(y, fused.logit) == pytest.approx(auc(y, truth), abs=0.01)
    assert auc(y, fused.logit) > max(auc(y, ct), auc(y, age)) + 0.03
    rows = {r["name"]: r for r in fused.model.odds_ratios()}
    assert rows[CT_LOGIT]["low"] < np.exp(0.9) < rows[CT_LOGIT]["high"]
    assert rows["age_years"]["low"] < np.exp(0.6) < rows["age_years"]["high"]
    # the model for new patients learns from the logits of the plain cross-validation
    direct = fit_clinical({CT_LOGIT: ct, "age_years": age}, y)
    assert direct.to_dict() == fused.model.to_dict()


def test_where_logits_lack_the_covariates_are_weighted_with_all_cases_first():
    inverse_penalty = 5.0
    columns, y, truth = simulate(300, 16)
    columns["wfns"][::9] = np.nan
    ct = truth + np.random.default_rng(2).normal(0, 1, 300)
    cohort = cohort_of(columns, y)
    folds = make_folds(cohort)
    rows = np.tile(ct, (5, 1))
    kept = np.random.default_rng(1).random((5, 300)) < 0.3
    rows[~kept & (folds.fold_of != np.arange(5)[:, None])] = np.nan
    got = late_fusion(cohort, folds, rows, inverse_penalty=inverse_penalty)
    for k, test in enumerate(folds.test):
        train = folds.train(k)
        known = np.flatnonzero(kept[k][train])
        part = cohort.select(train)
        inner = clinical_model(part, make_folds(part), inverse_penalty=inverse_penalty)
        x = np.stack([ct[train], inner.logit], axis=1)[known]
        (a, b, c), _ = newton((x - x.mean(0)) / x.std(0), y[train][known], inverse_penalty)
        alone = inner.model.logit({n: v[test] for n, v in columns.items()})
        want = a + b * (ct[test] - x[:, 0].mean()) / x[:, 0].std()
        want += c * (alone - x[:, 1].mean()) / x[:, 1].std()
        np.testing.assert_allclose(got.logit[test], want, atol=1e-6)
        assert got.models[k].names == (CT_LOGIT, *columns)
    counts = [(int(y[(m := kept[k] & (folds.fold_of != k))].sum()), int(m.sum())) for k in range(5)]
    events, patients = min(counts)
    assert f"with {patients} patients ({events} events)" in got.findings[-1].message
    assert late_fusion(cohort, folds, np.tile(ct, (5, 1)), covariates=["wfns"]).findings == ()
    # without covariates only the cases with a logit count
    bare = late_fusion(cohort, folds, rows, covariates=[], inverse_penalty=inverse_penalty)
    used = np.flatnonzero(kept[1] & (folds.fold_of != 1))
    direct = fit_clinical({CT_LOGIT: ct[used]}, y[used], inverse_penalty=inverse_penalty)
    assert direct.to_dict() == bare.models[1].to_dict()


def test_logits_of_the_wrong_form_are_refused():
    columns, y, truth = simulate(60, 17)
    cohort = cohort_of(columns, y)
    folds: Folds = make_folds(cohort, folds=3)
    rows = np.tile(truth, (3, 1))
    with pytest.raises(UsageError, match="row of logits for each fold"):
        late_fusion(cohort, folds, truth)
    without = rows.copy()
    without[0, folds.test[0][0]] = np.nan
    for bad in (without, np.where(rows == rows[1, 2], np.inf, rows)):
        with pytest.raises(UsageError, match="infinite, or a test case has none"):
            late_fusion(cohort, folds, bad)
    with pytest.raises(UsageError, match="network's own"):
        late_fusion(cohort_of({CT_LOGIT: truth}, y), folds, rows)


def test_json_gives_the_same_model_without_scikit_learn(tmp_path):
    columns, y, _ = simulate(150, 18)
    columns["wfns"][::7] = np.nan
    model = fit_clinical(columns, y)
    text = json.dumps(model.to_dict())
    back = ClinicalModel.from_dict(json.loads(text))
    assert back.to_dict() == model.to_dict()
    np.testing.assert_array_equal(back.logit(columns), model.logit(columns))
    (tmp_path / "model.json").write_text(text)
    code = (
        "import json, sys, numpy as np; from medpipe.outcome.clinical_model import ClinicalModel;"
        f"m = ClinicalModel.from_dict(json.load(open({str(tmp_path / 'model.json')!r})));"
        "print(float(m.logit({'age_years': [60.0], 'wfns': [np.nan], 'lactate': [0.0]})[0]));"
        "assert 'sklearn' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    one = {"age_years": np.array([60.0]), "wfns": np.array([np.nan]), "lactate": np.zeros(1)}
    assert float(done.stdout) == pytest.approx(float(model.logit(one)[0]), abs=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"terms": None},
        {"terms": [{}]},
        {"intercept": float("nan")},
        {"intercept": "1"},
        {"inverse_penalty": True},
        {"cases": None},
        {"terms": "scale"},
        {"terms": "kind"},
    ],
)
def test_a_damaged_record_is_refused(change):
    columns, y, _ = simulate(80, 19)
    record = fit_clinical(columns, y).to_dict()
    if change.get("terms") in ("scale", "kind"):
        record["terms"][0][change["terms"]] = 0.0
    else:
        record |= change
    with pytest.raises(InputError, match="no clinical model"):
        ClinicalModel.from_dict(record)


def test_prediction_needs_the_covariates_of_the_model():
    columns, y, _ = simulate(80, 20)
    model = fit_clinical(columns, y)
    with pytest.raises(UsageError, match="needs more covariates; got age_years, lactate"):
        model.logit({"wfns": np.ones(2)})
    risk = [
        float(model.probability({"age_years": [age], "wfns": [3.0], "lactate": [0.0]})[0])
        for age in (40.0, 60.0, 80.0)
    ]
    assert all(a < b for a, b in pairwise(risk))
