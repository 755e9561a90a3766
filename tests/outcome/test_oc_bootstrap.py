"""The bootstrap against scipy, a direct BCa and true coverage."""

from __future__ import annotations

import functools
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from medpipe.errors import InputError, UsageError
from medpipe.outcome import metrics as m
from medpipe.outcome.metrics.bootstrap import bootstrap


def cohort(n=120, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    return y, 1 / (1 + np.exp(-rng.normal(size=n) - 1.2 * y + 1))


def direct_bca(y, score, patient, statistic, n, seed, level):
    """BCa of stratified patients, written out patient by patient."""
    rows = m.resample_weights(y, patient, n=n, seed=seed).astype(int)
    theta = statistic(y, score)
    drawn = np.array([statistic(np.repeat(y, r), np.repeat(score, r)) for r in rows])
    below = ((drawn < theta - 1e-12).sum() + (drawn <= theta + 1e-12).sum()) / (2 * n)
    bias = stats.norm.ppf(below)
    cubes = squares = 0.0
    for outcome in (0, 1):
        members = np.unique(patient[y == outcome])
        without = [statistic(y[patient != i], score[patient != i]) for i in members]
        pushes = (len(members) - 1) * (np.mean(without) - without)
        cubes += (pushes**3).sum() / len(members) ** 3
        squares += (pushes**2).sum() / len(members) ** 2
    skew = cubes / squares**1.5 / 6
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        away = bias + stats.norm.ppf(tail)
        ends.append(stats.norm.cdf(bias + away / (1 - skew * away)))
    return np.quantile(drawn, ends)


@pytest.mark.parametrize("measure", [m.auroc, m.brier, m.average_precision])
def test_bca_agrees_with_a_direct_one(measure):
    y, score = cohort()
    patient = np.arange(y.size) // 2
    y = y[patient * 2]
    figure = bootstrap(y, score, measure, groups=patient, n=300, seed=3, level=0.9)
    expected = direct_bca(y, score, patient, measure, 300, 3, 0.9)
    assert (figure.low, figure.high) == pytest.approx(tuple(expected), abs=1e-10)
    assert figure.method == "bootstrap BCa, 300 patient resamples"
    assert figure.value == measure(y, score)


def test_bca_of_two_strata_agrees_with_scipy_on_the_same_resamples():
    y, score = cohort(60)
    rows = m.resample_weights(y, n=500, seed=2)
    same = SimpleNamespace(bootstrap_distribution=m.auroc(y, score, rows))

    def area(a, b, axis):
        a, b = np.broadcast_arrays(a[..., :, None], b[..., None, :])
        return ((a > b) + 0.5 * (a == b)).mean(axis=(-1, -2))

    peer = stats.bootstrap(
        (score[y == 1], score[y == 0]),
        area,
        n_resamples=0,
        bootstrap_result=same,
        method="BCa",
        vectorized=True,
    ).confidence_interval
    figure = bootstrap(y, score, m.auroc, n=500, seed=2)
    # equal areas that differ by rounding are told apart by scipy: a quantile of 500 may move
    assert figure.low == pytest.approx(peer.low, abs=2e-3)
    assert figure.high == pytest.approx(peer.high, abs=2e-3)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_one_stratum_agrees_with_scipy_on_the_same_resamples(method):
    y, score = cohort(70)
    rows = m.resample_weights(y, n=400, seed=5, stratified=False)
    same = SimpleNamespace(bootstrap_distribution=rows @ score / 70)
    peer = stats.bootstrap(
        (score,), np.mean, n_resamples=0, bootstrap_result=same, method=method
    ).confidence_interval
    figure = bootstrap(
        y, score, lambda _, s: s.mean(), n=400, seed=5, stratified=False, method=method.lower()
    )
    assert (figure.low, figure.high) == pytest.approx((peer.low, peer.high), abs=1e-12)


def test_weights_and_a_loop_over_cases_give_the_same():
    y, score = cohort()
    patient = np.random.default_rng(0).integers(0, 50, y.size)

    def slow(y, score):
        return m.auroc(y, score)

    ours = bootstrap(y, score, m.auroc, groups=patient, n=200, seed=1)
    loop = bootstrap(y, score, slow, groups=patient, n=200, seed=1)
    assert (ours.low, ours.high, ours.se) == pytest.approx((loop.low, loop.high, loop.se))


def test_patients_are_drawn_whole_and_within_their_class():
    y, _ = cohort()
    patient = np.arange(y.size) // 3
    y = y[patient * 3]
    rows = m.resample_weights(y, patient, n=50, seed=0)
    assert (rows.reshape(50, -1, 3) == rows[:, ::3, None]).all()
    assert (rows @ y == y.sum()).all()
    assert (rows.sum(axis=1) == y.size).all()
    free = m.resample_weights(y, patient, n=50, seed=0, stratified=False)
    assert len(set(free @ y)) > 1
    assert (free.sum(axis=1) == y.size).all()
    np.testing.assert_array_equal(rows, m.resample_weights(y, patient, n=50, seed=0))
    assert (rows != m.resample_weights(y, patient, n=50, seed=1)).any()


def test_pieces_do_not_change_the_resamples(monkeypatch):
    y, score = cohort()
    whole = bootstrap(y, score, m.brier, n=100)
    # the package's name of this module is the function's too: reach it by its path
    monkeypatch.setattr("medpipe.outcome.metrics.bootstrap.BLOCK", 7 * y.size)
    rows = m.resample_weights(y, n=100)
    assert rows.shape == (100, y.size)
    pieces = bootstrap(y, score, m.brier, n=100)
    assert pieces.value == whole.value
    drawn = m.brier(y, score, rows)
    plain = bootstrap(y, score, m.brier, n=100, method="percentile")
    assert (plain.low, plain.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_bca_of_a_skewed_mean_covers_better_than_percentiles():
    rng = np.random.default_rng(4)
    hits = {"bca": 0, "percentile": 0}
    y = np.arange(25) % 2

    def mean(y, x, weights=None):
        rows = np.ones((1, y.size)) if weights is None else weights
        value = rows @ x / rows.sum(axis=1)
        return value if weights is not None else value[0]

    for seed in range(200):
        x = rng.exponential(size=25)
        for method in hits:
            figure = bootstrap(y, x, mean, n=300, seed=seed, method=method, stratified=False)
            hits[method] += figure.low <= 1 <= figure.high
    assert hits["bca"] > hits["percentile"]
    assert hits["bca"] / 200 > 0.88


def test_a_difference_of_two_scores_agrees_with_delong():
    y, a = cohort(300)
    b = a + 0.3 * np.random.default_rng(1).normal(size=300)

    def difference(y, a, b, weights=None):
        return m.auroc(y, a, weights) - m.auroc(y, b, weights)

    figure = bootstrap(y, (a, b), difference, n=1000)
    test = m.delong_test(y, a, b)
    assert figure.value == pytest.approx(test.difference, abs=1e-12)
    assert figure.se == pytest.approx(test.se, rel=0.1)


def test_partial_functions_keep_their_weights():
    y, score = cohort()
    found = functools.partial(m.sensitivity, threshold=0.4)
    figure = bootstrap(y, score, found, n=500, method="percentile")
    wilson = m.operating_point(y, score, 0.4)["sensitivity"]
    assert figure.value == wilson.value
    assert (figure.low, figure.high) == pytest.approx((wilson.low, wilson.high), abs=0.05)


def test_two_thousand_resamples_of_two_thousand_cases_take_seconds():
    y, score = cohort(2000)
    start = time.perf_counter()
    figure = bootstrap(y, score, m.auroc, n=2000)
    assert time.perf_counter() - start < 20
    assert figure.se == pytest.approx(m.delong(y, score).se, rel=0.1)


def test_what_is_not_determined_is_said_not_nan():
    figure = bootstrap([1, 1, 1], [0.1, 0.2, 0.3], m.auroc, n=10)
    assert (figure.value, figure.low) == (None, None)
    assert "same outcome" in figure.note
    figure = bootstrap([0, 0, 1, 1], [1, 2, 3, 4], m.auroc, n=20)
    assert (figure.value, figure.low, figure.high) == (1, 1, 1)
    assert "same value" in figure.note
    figure = bootstrap([0, 0, 1, 1], [1, 2, 3, 4], lambda y, s: float("nan"), n=20)
    assert (figure.value, "not a number" in figure.note) == (None, True)


def test_resamples_without_a_class_are_left_out_and_counted():
    y, score = np.r_[1, 1, np.zeros(10)], np.arange(12.0) % 5
    figure = bootstrap(y, score, m.auroc, n=400, stratified=False)
    alone = (m.resample_weights(y, n=400, stratified=False) @ y == 0).sum()
    assert figure.note == f"{alone} of 400 resamples do not determine it"
    assert figure.low < figure.high
    figure = bootstrap(y, score, lambda y, s: m.auroc(y, s), n=400, stratified=False)
    assert figure.note == f"{alone} of 400 resamples do not determine it"


def test_one_patient_of_a_class_gives_percentiles_and_says_so():
    y, score = np.r_[1, np.zeros(10)], np.arange(11.0) % 4
    figure = bootstrap(y, score, m.auroc, n=100)
    assert figure.method == "bootstrap percentile, 100 case resamples"
    assert figure.note == "BCa is not determined: percentiles of the resamples"
    assert figure.low < figure.high
    asked = bootstrap(y, score, m.auroc, n=100, method="percentile")
    assert (asked.low, asked.high, asked.note) == (figure.low, figure.high, "")


def test_a_value_outside_all_resamples_gives_percentiles_and_says_so():
    y, score = cohort(40)

    def farthest(y, s, weights=None):
        """0 for the whole cohort, the largest of the cases drawn elsewhere."""
        if weights is None:
            return 0.0
        return np.where(weights > 0, s, -np.inf).max(axis=1)

    figure = bootstrap(y, score, farthest, n=60)
    assert figure.method.startswith("bootstrap percentile")
    assert figure.note == "BCa is not determined: percentiles of the resamples"
    drawn = farthest(y, score, m.resample_weights(y, n=60))
    assert (figure.low, figure.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_one_resample_that_determines_it_is_no_interval():
    y, score = np.r_[1, np.zeros(11)], np.arange(12.0) % 5
    has_event = [
        (m.resample_weights(y, n=2, seed=seed, stratified=False) @ y > 0).sum()
        for seed in range(40)
    ]
    figure = bootstrap(y, score, m.auroc, n=2, seed=has_event.index(1), stratified=False)
    assert (figure.low, figure.high, figure.se) == (None, None, None)
    assert figure.note == "1 of 2 resamples do not determine it"


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ([1.0, 2.0], {}, InputError, "another length"),
        ([1.0, 2.0, 3.0], {"groups": [1, 2]}, InputError, "patients"),
        ([1.0, 2.0, 3.0], {"method": "t"}, UsageError, "no bootstrap"),
        ([1.0, 2.0, 3.0], {"n": 1}, UsageError, "no bootstrap"),
        ([1.0, 2.0, 3.0], {"level": 2}, UsageError, "level"),
    ],
)
def test_bad_input_is_refused(columns, options, error, message):
    with pytest.raises(error, match=message):
        bootstrap([0, 1, 1], columns, m.auroc, **options)


def test_a_statistic_that_ignores_rows_is_refused():
    with pytest.raises(UsageError, match="one number for each row"):
        bootstrap([0, 1, 1], [1.0, 2, 3], lambda y, s, weights=None: 0.5, n=5)
    with pytest.raises(UsageError, match="resamples"):
        m.resample_weights([0, 1], n=0)
