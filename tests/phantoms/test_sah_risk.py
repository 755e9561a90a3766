"""The risk model against brute force, drawn outcomes and a fitted logistic regression."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from medpipe.errors import UsageError
from medpipe.phantoms.sah_risk import (
    COEFFICIENTS,
    SahRisk,
    ceilings,
    draw_covariates,
    draw_times,
    expected_auc,
    modified_fisher,
    sample_auc,
    solved_risk,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "simulated-sah.md"


@pytest.fixture(scope="module")
def cohort():
    return draw_covariates(100_000, np.random.default_rng(987))


def mann_whitney(outcome, score):
    """AUC by ranks, not through the code under test."""
    ranks = stats.rankdata(score)
    n1 = outcome.sum()
    return (ranks[outcome == 1].sum() - n1 * (n1 + 1) / 2) / (n1 * (len(outcome) - n1))


def test_fresh_patients_have_the_stated_prevalence_and_bayes_auc(cohort):
    p = solved_risk().probability(cohort)
    assert abs(p.mean() - 0.288) < 0.005
    assert abs(expected_auc(p) - 0.90) < 0.005
    outcome = (np.random.default_rng(1).random(p.size) < p).astype(int)
    assert abs(outcome.mean() - 0.288) < 0.005
    assert abs(mann_whitney(outcome, p) - 0.90) < 0.005
    assert sample_auc(outcome, p) == pytest.approx(mann_whitney(outcome, p), abs=1e-12)


def test_other_figures_can_be_asked_for(cohort):
    p = solved_risk(0.5, 0.75, n=50_000).probability(cohort)
    assert abs(p.mean() - 0.5) < 0.01
    assert abs(expected_auc(p) - 0.75) < 0.01
    with pytest.raises(UsageError, match="no risk model"):
        solved_risk(0.5, 1.0)


def test_expected_auc_is_that_of_all_pairs():
    rng = np.random.default_rng(3)
    p, s = rng.random(60), rng.integers(0, 9, 60)
    weight = p[:, None] * (1 - p)
    wins = (s[:, None] > s) + 0.5 * (s[:, None] == s)
    assert expected_auc(p, s) == pytest.approx((weight * wins).sum() / weight.sum(), abs=1e-12)
    assert sample_auc(np.ones(4), np.arange(4)) is None


def test_one_patient_by_hand():
    patient = {"sah_ml": 20, "ich_ml": 5, "ivh_ml": 3, "shift_mm": 4, "age_years": 70, "wfns": 4}
    terms = np.log(26 / 13) + 0.45 * np.log(4) + 0.2 * 4 + 0.25 * 1.2 + 0.3 * 3
    risk = SahRisk(-3.0, 1.5)
    assert risk.predictor(patient) == pytest.approx(-3 + 1.5 * terms)
    assert risk.probability(patient) == pytest.approx(1 / (1 + np.exp(3 - 1.5 * terms)))


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("clinical", ["age_decades", "wfns"]),
        ("imaging", ["log_blood", "log_ivh", "shift_mm"]),
        ("imaging_age", ["log_blood", "log_ivh", "shift_mm", "age_decades"]),
    ],
)
def test_a_fitted_classifier_comes_close_to_the_ceiling_and_not_above(cohort, name, columns):
    risk = solved_risk()
    p = risk.probability(cohort)
    outcome = np.random.default_rng(2).random(p.size) < p
    x = np.column_stack([SahRisk.terms(cohort)[c] for c in columns])
    half = p.size // 2
    fit = LogisticRegression().fit(x[:half], outcome[:half])
    reached = mann_whitney(outcome[half:].astype(int), fit.decision_function(x[half:]))
    ceiling = ceilings(risk, n=8_000)[name]
    assert reached - 0.008 < ceiling < reached + 0.012
    assert ceiling < 0.90


def test_covariates_are_plausible_and_linked(cohort):
    assert cohort["age_years"].mean() == pytest.approx(58, abs=0.5)
    assert cohort["age_years"].std() == pytest.approx(13, abs=0.6)
    assert cohort["sex"].mean() == pytest.approx(0.52, abs=0.01)
    share = np.bincount(cohort["wfns"].astype(int), minlength=6)[1:] / cohort["wfns"].size
    assert (share > 0.08).all()
    assert (share < 0.4).all()
    for name, least in (("sah_ml", 0.3), ("ivh_ml", 0.2), ("shift_mm", 0.1)):
        assert stats.spearmanr(cohort["wfns"], cohort[name])[0] > least
    assert abs(stats.spearmanr(cohort["age_years"], cohort["wfns"])[0]) < 0.02
    assert all(v.min() >= 0 for v in cohort.values())


def test_modified_fisher_follows_its_definition():
    thickness = [0, 0.6, 0.6, 3, 3, 0, 1.0]
    ivh_ml = [0, 0, 4, 0, 4, 4, 0.1]
    assert modified_fisher(thickness, ivh_ml).tolist() == [0, 1, 2, 3, 4, 2, 1]


def test_deaths_lie_within_ninety_days_and_come_sooner_at_high_risk():
    p = np.repeat([0.1, 0.9], 20_000)
    died = np.tile([0, 1], 20_000)
    days, event = draw_times(p, died, np.random.default_rng(0))
    assert (event == died).all()
    assert days[event == 1].max() <= 90
    assert days[event == 1].min() > 0
    assert days[event == 0].min() >= 90
    assert np.median(days[(p > 0.5) & (event == 1)]) < np.median(days[(p < 0.5) & (event == 1)])


def test_the_page_states_the_model_that_is_used():
    text = PAGE.read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d.]+) \|", text, re.M))
    assert {name: float(value) for name, value in rows.items()} == COEFFICIENTS
    risk = solved_risk()
    assert f"intercept {risk.intercept:.2f}" in text
    assert f"scale {risk.scale:.2f}" in text
    for name, value in ceilings(risk).items():
        assert f"{value:.2f}" in text, name
