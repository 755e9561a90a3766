"""Calibration at a time and the log-rank test, against loops, SciPy, and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from medpipe.errors import InputError
from medpipe.outcome import metrics as m


def cohort(n=120, seed=0, spread=1.0, whole_days=False, losing_days=90.0):
    """Exponential times with hazard exp(x) / 60 a day, lost at random."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, spread, n)
    death, end = rng.exponential(60 * np.exp(-x)), rng.exponential(losing_days, n)
    time = np.minimum(death, end)
    return (death <= end).astype(int), np.ceil(time) if whole_days else time, x


def truth(x, days):
    """Probability of no event until a day."""
    return np.exp(-days / 60 * np.exp(x))


def loop_logrank(event, time, group):
    """Observed, expected and their covariance, time by time, with all groups but the last."""
    names = sorted(set(group))
    difference = np.zeros(len(names))
    spread = np.zeros((len(names), len(names)))
    for t in sorted({t for t, e in zip(time, event, strict=True) if e}):
        at_risk = [sum(1 for a, g in zip(time, group, strict=True) if a >= t and g == k)
                   for k in names]  # fmt: skip
        dead = [sum(1 for a, e, g in zip(time, event, group, strict=True)
                    if a == t and e and g == k) for k in names]  # fmt: skip
        n, d = sum(at_risk), sum(dead)
        for i, a in enumerate(at_risk):
            difference[i] += dead[i] - d * a / n
            for j, b in enumerate(at_risk):
                if n > 1:
                    spread[i, j] += d * (n - d) / (n - 1) * a / n * ((i == j) - b / n)
    inner = difference[:-1]
    return float(inner @ np.linalg.inv(spread[:-1, :-1]) @ inner)


@pytest.mark.parametrize("whole_days", [True, False])
@pytest.mark.parametrize("groups", [2, 3])
def test_the_test_agrees_with_a_loop_over_times(groups, whole_days):
    event, time, _ = cohort(60, 3, whole_days=whole_days)
    group = np.random.default_rng(1).integers(0, groups, 60)
    found = m.logrank(event, time, group)
    assert found.statistic == pytest.approx(loop_logrank(event, time, group), rel=1e-10)
    assert found.degrees == groups - 1
    assert found.p == pytest.approx(stats.chi2.sf(found.statistic, groups - 1))
    assert found.observed.sum() == pytest.approx(event.sum())
    assert found.expected.sum() == pytest.approx(event.sum())


def test_the_test_of_two_groups_agrees_with_scipy():
    event, time, x = cohort(80, 5, whole_days=True)
    group = (x > 0).astype(int)
    samples = [
        stats.CensoredData(
            uncensored=time[(group == k) & (event == 1)], right=time[(group == k) & (event == 0)]
        )
        for k in (0, 1)
    ]
    peer = stats.logrank(*samples)
    found = m.logrank(event, time, group)
    assert found.statistic == pytest.approx(peer.statistic**2, rel=1e-9)
    assert found.p == pytest.approx(peer.pvalue, rel=1e-9)
    assert found.p < 1e-4


def test_groups_that_do_not_differ_are_told_apart_as_often_as_the_level_says():
    p = [m.logrank(*cohort(90, seed, spread=0.0)[:2], np.arange(90) % 3).p for seed in range(400)]
    assert stats.binomtest(int((np.array(p) < 0.05).sum()), 400, 0.05).pvalue > 0.01
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_copies_of_patients_do_not_make_a_difference():
    event, time, x = cohort(70, 2)
    group, patient = (x > 0.3).astype(int), np.arange(70)
    alone = m.logrank(event, time, group, patient)
    both = [np.tile(a, 2) for a in (event, time, group, patient)]
    assert m.logrank(*both[:3]).statistic > 1.8 * m.logrank(event, time, group).statistic
    assert m.logrank(*both[:3], both[3]).statistic == pytest.approx(alone.statistic)
    # without copies it is near the test of independent cases, and right under no difference
    assert alone.statistic == pytest.approx(m.logrank(event, time, group).statistic, rel=0.35)
    p = [
        m.logrank(*cohort(120, s, spread=0.0)[:2], np.arange(120) % 2, np.arange(120)).p
        for s in range(300)
    ]
    assert stats.binomtest(int((np.array(p) < 0.05).sum()), 300, 0.05).pvalue > 0.01


@pytest.mark.parametrize(
    ("event", "group", "match"),
    [
        ([1, 1, 0, 1], [0, 0, 0, 0], "no groups"),
        ([0, 0, 0, 0], [0, 1, 0, 1], "no groups"),
        ([1, 1, 0, 1], [0, 1], "another length"),
        ([1, 0, 0, 0], [1, 0, 0, 0], "not at risk together"),
    ],
)
def test_what_cannot_be_compared_is_refused(event, group, match):
    time = [5, 1, 2, 3] if match == "not at risk together" else [1, 2, 3, 4]
    with pytest.raises(InputError, match=match):
        m.logrank(event, time, group)


def test_the_share_at_a_time_is_that_of_the_curve():
    event, time, _ = cohort(whole_days=True)
    curve = m.kaplan_meier(event, time)
    for t in (0.0, 10.0, 33.3, 60.0):
        assert m.survival_at(event, time, at_days=t) == pytest.approx(float(curve.at(t)), abs=1e-12)
    assert m.survival_at(np.ones(4), [1.0, 2, 3, 4], at_days=2.5) == 0.5


def test_without_censoring_they_are_the_plain_measures():
    _, time, x = cohort(losing_days=1e9)
    event, days = np.ones(120, int), 30.0
    survival = truth(x, days)
    ratio = (time <= days).mean() / (1 - survival).mean()
    assert m.observed_over_expected(event, time, survival, at_days=days) == pytest.approx(ratio)
    plain = m.calibration_slope(time <= days, 1 - survival)
    assert m.calibration_slope_at(event, time, survival, at_days=days) == pytest.approx(plain)


def test_censoring_by_hand():
    # at risk 4, 3 and 1 at the events of days 1, 2 and 4: 3/4 · 2/3 = 1/2 after day 2
    event, time = [1, 1, 0, 1], [1, 2, 3, 4]
    found = m.observed_over_expected(event, time, [0.2, 0.6, 0.8, 0.8], at_days=3)
    assert found == pytest.approx(0.5 / 0.4)


def test_true_probabilities_are_calibrated_in_spite_of_censoring():
    event, time, x = cohort(20_000, 1, losing_days=60.0)
    days = 40.0
    survival = truth(x, days)
    assert ((event == 0) & (time <= days)).mean() > 0.2
    assert m.observed_over_expected(event, time, survival, at_days=days) == pytest.approx(
        1, abs=0.03
    )
    assert m.calibration_slope_at(event, time, survival, at_days=days) == pytest.approx(1, abs=0.05)
    extreme = 1 - special.expit(2 * special.logit(1 - survival))
    slope = m.calibration_slope_at(event, time, extreme, at_days=days)
    assert slope == pytest.approx(0.5, abs=0.03)
    # to leave those lost out is wrong: their loss hides who lived
    known = (event == 1) | (time > days)
    assert (event[known] & (time[known] <= days)).mean() / (1 - survival[known]).mean() > 1.1


def test_rows_of_weights_are_cases_that_are_repeated():
    event, time, x = cohort(whole_days=True)
    survival = truth(x, 30.0)
    rows = np.random.default_rng(2).integers(0, 3, (5, 120))
    for measure in (m.observed_over_expected, m.calibration_slope_at):
        found = measure(event, time, survival, rows, at_days=30.0)
        for row, value in zip(rows, found, strict=True):
            repeated = [np.repeat(a, row) for a in (event, time, survival)]
            assert value == pytest.approx(measure(*repeated, at_days=30.0), abs=1e-9)
    found = m.survival_at(event, time, rows, at_days=30.0)
    for row, value in zip(rows, found, strict=True):
        once = m.survival_at(np.repeat(event, row), np.repeat(time, row), at_days=30.0)
        assert value == pytest.approx(once, abs=1e-12)


def test_the_scaled_score_is_one_less_the_ratio():
    event, time, x = cohort(whole_days=True)
    at = np.array([10.0, 20, 40])
    table = np.stack([truth(x, t) for t in at], 1)
    other = np.tile(m.kaplan_meier(event, time).at(at), (120, 1))
    scores = [m.integrated_brier(event, time, t, at_days=at) for t in (table, other)]
    found = m.scaled_integrated_brier(event, time, table, other, at_days=at)
    assert found == pytest.approx(1 - scores[0] / scores[1], abs=1e-12)
    assert 0 < found < 1
    assert m.scaled_integrated_brier(event, time, other, other, at_days=at) == 0
    perfect = (np.asarray(time)[:, None] > at).astype(float)
    everyone = np.ones(120, int)
    assert m.scaled_integrated_brier(everyone, time, perfect, other, at_days=at) == 1
    rows = np.random.default_rng(2).integers(0, 3, (3, 120))
    found = m.scaled_integrated_brier(event, time, table, other, rows, at_days=at)
    for row, value in zip(rows, found, strict=True):
        repeated = [np.repeat(a, row, axis=0) for a in (event, time, table, other)]
        assert value == pytest.approx(m.scaled_integrated_brier(*repeated, at_days=at), abs=1e-12)


@pytest.mark.parametrize("losing_days", [1e9, 60.0])
def test_the_concordance_of_exponential_times_is_that_of_the_formula(losing_days):
    """Of hazards a, b the first is first, before tau: a / (a + b) (1 - exp(-(a + b) tau))."""
    tau = 45.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    a, b = np.exp(nodes)[:, None] / 60, np.exp(nodes)[None] / 60
    first = weights[:, None] * weights[None] * a / (a + b) * -np.expm1(-(a + b) * tau)
    order = (nodes[:, None] > nodes[None]) + 0.5 * (nodes[:, None] == nodes[None])
    exact = (first * order).sum() / first.sum()
    found = [
        m.concordance_ipcw(*cohort(1500, seed, losing_days=losing_days), tau_days=tau)
        for seed in range(6)
    ]
    assert np.mean(found) == pytest.approx(exact, abs=0.01)
