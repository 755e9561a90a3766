"""Survival measures against sums over pairs, closed forms, and truth without censoring."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medpipe.errors import InputError, UsageError
from medpipe.outcome import metrics as m
from medpipe.outcome.metrics.bootstrap import bootstrap


def cohort(n=80, seed=0, whole_days=True, censored=True):
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=n), 1)
    death = rng.exponential(60 * np.exp(-risk))
    end = rng.exponential(90, n) if censored else np.full(n, np.inf)
    time = np.minimum(death, end)
    time = np.ceil(time) if whole_days else time
    return (death <= end).astype(int), time, risk


def censoring_share(event, time, t, before):
    """Share not censored until t (or before it), day by day."""
    share = 1.0
    for day in sorted(set(time)):
        if day > t or (before and day == t):
            break
        gone = sum(1 for e, x in zip(event, time, strict=True) if x == day and not e)
        dead = sum(1 for e, x in zip(event, time, strict=True) if x == day and e)
        at_risk = sum(1 for x in time if x >= day) - dead
        if gone:
            share *= 1 - gone / at_risk
    return share


def brute_concordance(event, time, risk, tau=np.inf):
    above = below = 0.0
    for i in range(len(time)):
        if not event[i] or time[i] >= tau:
            continue
        weight = censoring_share(event, time, time[i], before=True) ** -2
        for j in range(len(time)):
            if time[i] < time[j]:
                below += weight
                above += weight * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
    return above / below


def brute_auroc(event, time, risk, t):
    above = below = 0.0
    for i in range(len(time)):
        if not event[i] or time[i] > t:
            continue
        weight = 1 / censoring_share(event, time, time[i], before=True)
        for j in range(len(time)):
            if time[j] > t:
                below += weight
                above += weight * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
    return above / below


def brute_brier(event, time, survival, t):
    total = 0.0
    for e, x, s in zip(event, time, survival, strict=True):
        if x <= t and e:
            total += s**2 / censoring_share(event, time, x, before=True)
        elif x > t:
            total += (1 - s) ** 2 / censoring_share(event, time, t, before=False)
    return total / len(time)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("whole_days", [True, False])
def test_measures_agree_with_their_definitions(seed, whole_days):
    event, time, risk = cohort(45, seed, whole_days)
    survival = np.random.default_rng(seed).random(45)
    assert 0.2 < event.mean() < 0.9
    assert m.concordance_ipcw(event, time, risk) == pytest.approx(
        brute_concordance(event, time, risk), abs=1e-12
    )
    assert m.concordance_ipcw(event, time, risk, tau_days=40) == pytest.approx(
        brute_concordance(event, time, risk, 40), abs=1e-12
    )
    for t in (15.0, 40.0):
        ours = m.auroc_at(event, time, risk, at_days=t)
        assert ours == pytest.approx(brute_auroc(event, time, risk, t), abs=1e-12)
        ours = m.brier_ipcw(event, time, survival, at_days=t)
        assert ours == pytest.approx(brute_brier(event, time, survival, t), abs=1e-12)


def test_without_censoring_they_are_the_plain_measures():
    event, time, risk = cohort(censored=False, whole_days=False)
    rng = np.random.default_rng(0)
    risk = rng.normal(size=80)  # without ties Harrell's share is Kendall's tau
    tau = stats.kendalltau(-time, risk).statistic
    assert m.concordance_ipcw(event, time, risk) == pytest.approx((tau + 1) / 2, abs=1e-12)
    t = float(np.median(time))
    assert m.auroc_at(event, time, risk, at_days=t) == pytest.approx(
        m.auroc(time <= t, risk), abs=1e-12
    )
    survival = rng.random(80)
    assert m.brier_ipcw(event, time, survival, at_days=t) == pytest.approx(
        m.brier(time > t, survival), abs=1e-12
    )
    curve = m.kaplan_meier(event, time)
    assert curve.at(t) == pytest.approx((time > t).mean(), abs=1e-12)


def test_weights_undo_the_censoring():
    # the same deaths with half of the cases lost: the weighted measures stay where they were
    rng = np.random.default_rng(3)
    n = 6000
    risk = rng.normal(size=n)
    death = rng.exponential(60 * np.exp(-risk))
    end = rng.exponential(60, n)
    survival = np.exp(-40 / 60 * np.exp(risk))
    event, time = death <= end, np.minimum(death, end)
    assert event.mean() < 0.6
    truth = m.brier(death > 40, survival)
    assert m.brier_ipcw(event, time, survival, at_days=40) == pytest.approx(truth, abs=0.01)
    truth = m.auroc(death <= 40, risk)
    assert m.auroc_at(event, time, risk, at_days=40) == pytest.approx(truth, abs=0.015)


def test_kaplan_meier_by_hand():
    curve = m.kaplan_meier([1, 0, 1, 1, 0], [2, 3, 3, 5, 8])
    np.testing.assert_array_equal(curve.time_days, [2, 3, 5])
    np.testing.assert_array_equal(curve.at_risk, [5, 4, 2])
    np.testing.assert_allclose(curve.survival, [0.8, 0.6, 0.3])
    np.testing.assert_allclose(curve.at([0, 1.9, 2, 4, 5, 99]), [1, 1, 0.8, 0.6, 0.3, 0.3])
    greenwood = 1 / (5 * 4) + 1 / (4 * 3)
    half = stats.norm.ppf(0.975) * greenwood**0.5 / abs(np.log(0.6))
    assert curve.low[1] == pytest.approx(0.6 ** np.exp(half))
    assert curve.high[1] == pytest.approx(0.6 ** np.exp(-half))


def test_kaplan_meier_agrees_with_scipy():
    event, time, _ = cohort(200)
    data = stats.CensoredData(uncensored=time[event == 1], right=time[event == 0])
    peer = stats.ecdf(data).sf
    at = np.unique(time[event == 1])
    np.testing.assert_allclose(m.kaplan_meier(event, time).at(at), peer.evaluate(at), atol=1e-12)
    bounds = peer.confidence_interval(0.95, method="log-log")
    curve = m.kaplan_meier(event, time)
    inside = curve.survival > 0
    np.testing.assert_allclose(
        curve.low[inside], bounds.low.evaluate(at)[inside], atol=1e-12, equal_nan=False
    )
    np.testing.assert_allclose(
        curve.high[inside], bounds.high.evaluate(at)[inside], atol=1e-12, equal_nan=False
    )


def test_the_end_of_the_curve_has_no_nan():
    curve = m.kaplan_meier([1, 1, 1], [1, 2, 3])
    np.testing.assert_allclose(curve.survival, [2 / 3, 1 / 3, 0], atol=1e-15)
    assert (curve.low[-1], curve.high[-1]) == (0, curve.high[-2])
    assert m.kaplan_meier([0, 0], [1, 2]).at(5) == 1
    assert m.kaplan_meier([1], [1]).high.tolist() == [1]


def test_the_integral_is_that_of_trapezoids_and_exact_for_a_constant():
    event, time, _ = cohort()
    at = np.array([5.0, 10, 30])
    table = np.random.default_rng(0).random((80, 3))
    scores = [m.brier_ipcw(event, time, table[:, k], at_days=t) for k, t in enumerate(at)]
    expected = ((scores[0] + scores[1]) / 2 * 5 + (scores[1] + scores[2]) / 2 * 20) / 25
    assert m.integrated_brier(event, time, table, at_days=at) == pytest.approx(expected, abs=1e-12)
    event, time = np.ones(4), np.full(4, 100.0)
    constant = m.integrated_brier(event, time, np.full((4, 3), 0.8), at_days=at)
    assert constant == pytest.approx(0.04, abs=1e-12)


def test_rows_of_weights_are_cases_that_are_repeated():
    event, time, risk = cohort()
    survival = np.random.default_rng(1).random((80, 2))
    rows = np.random.default_rng(2).integers(0, 3, (5, 80))
    measures = [
        lambda e, t, r, s, w=None: m.concordance_ipcw(e, t, r, w),
        lambda e, t, r, s, w=None: m.auroc_at(e, t, r, w, at_days=30),
        lambda e, t, r, s, w=None: m.brier_ipcw(e, t, s[:, 0], w, at_days=30),
        lambda e, t, r, s, w=None: m.integrated_brier(e, t, s, w, at_days=[10, 30]),
    ]
    for measure in measures:
        found = measure(event, time, risk, survival, rows)
        for row, value in zip(rows, found, strict=True):
            repeated = [np.repeat(a, row, axis=0) for a in (event, time, risk, survival)]
            assert value == pytest.approx(measure(*repeated), abs=1e-12)


def test_the_bootstrap_gives_the_spread_of_new_cohorts():
    found = [m.concordance_ipcw(*cohort(200, seed, False)) for seed in range(150)]
    event, time, risk = cohort(200, 999, False)
    figure = bootstrap(event, (time, risk), m.concordance_ipcw, n=300)
    assert figure.se == pytest.approx(np.std(found), rel=0.3)
    assert figure.low < figure.value < figure.high


def test_what_is_not_determined_is_said():
    with pytest.raises(InputError, match="no event comes before"):
        m.concordance_ipcw([0, 0], [1, 2], [1, 2])
    with pytest.raises(InputError, match="no event until"):
        m.auroc_at([0, 1], [1, 5], [1, 2], at_days=3)
    rows = m.concordance_ipcw([1, 0], [1, 2], [2, 1], [[1, 1], [0, 2]])
    assert rows[0] == 1
    assert np.isnan(rows[1])


@pytest.mark.parametrize(
    ("event", "time", "risk", "message"),
    [
        ([0, 2], [1, 2], [1, 2], "event is not binary"),
        ([0, 1], [1, -2], [1, 2], "negative"),
        ([0, 1], [1, np.nan], [1, 2], "missing"),
        ([0, 1], [1, 2, 3], [1, 2], "another length"),
        ([0, 1], [1, 2], [1, 2, 3], "another length"),
    ],
)
def test_bad_input_is_refused(event, time, risk, message):
    with pytest.raises(InputError, match=message):
        m.concordance_ipcw(event, time, risk)


def test_bad_tables_are_refused():
    with pytest.raises(UsageError, match="rise"):
        m.integrated_brier([0, 1], [1, 2], [[0.1, 0.2]] * 2, at_days=[2, 1])
    with pytest.raises(InputError, match="table"):
        m.integrated_brier([0, 1], [1, 2], [[0.1, 0.2]], at_days=[1, 2])
    with pytest.raises(InputError, match="outside"):
        m.integrated_brier([0, 1], [1, 2], [[0.1, 20]] * 2, at_days=[1, 2])
