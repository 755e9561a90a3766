"""Ranking: scikit-learn, all pairs one by one, and simulated coverage."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as peer

from medpipe.errors import InputError, UsageError
from medpipe.outcome.metrics import auroc, average_precision, delong, delong_test


def cohort(n=150, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    score = rng.normal(size=n) + y
    return y, np.round(score, 1) if ties else score


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(auroc, peer.roc_auc_score), (average_precision, peer.average_precision_score)],
)
def test_areas_agree_with_scikit_learn(ours, theirs, seed, ties, weighted):
    y, score = cohort(seed=seed, ties=ties)
    weights = np.random.default_rng(seed).random(y.size) if weighted else None
    expected = theirs(y, score, sample_weight=weights)
    assert ours(y, score, weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("measure", [auroc, average_precision])
def test_rows_of_weights_are_cases_that_are_repeated(measure):
    y, score = cohort()
    rows = np.random.default_rng(1).integers(0, 4, (6, y.size)).astype(float)
    rows[5, y == 1] = 0
    found = measure(y, score, rows)
    for row, value in zip(rows[:5], found[:5], strict=True):
        times = row.astype(int)
        repeated = measure(np.repeat(y, times), np.repeat(score, times))
        assert value == pytest.approx(repeated, abs=1e-12)
    assert np.isnan(found[5])


def kernel(a, b):
    return float(a > b) + 0.5 * float(a == b)


def brute_covariance(y, scores):
    """Areas and DeLong's covariance from every pair of cases, one by one."""
    events, others = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    v10 = np.array(
        [[np.mean([kernel(s[i], s[j]) for j in others]) for i in events] for s in scores]
    )
    v01 = np.array(
        [[np.mean([kernel(s[i], s[j]) for i in events]) for j in others] for s in scores]
    )
    return v10.mean(axis=1), np.cov(v10) / len(events) + np.cov(v01) / len(others)


@pytest.mark.parametrize("seed", range(4))
def test_delong_agrees_with_all_pairs(seed):
    y, a = cohort(60, seed)
    b = np.round(a + np.random.default_rng(seed + 9).normal(size=60), 1)
    area, covariance = brute_covariance(y, [a, b])
    z = stats.norm.ppf(0.975)
    figure = delong(y, a, transform="identity")
    assert figure.value == pytest.approx(area[0], abs=1e-12)
    assert figure.se == pytest.approx(covariance[0, 0] ** 0.5, abs=1e-12)
    assert figure.low == pytest.approx(area[0] - z * figure.se, abs=1e-12)
    assert figure.high == pytest.approx(min(area[0] + z * figure.se, 1), abs=1e-12)
    test = delong_test(y, a, b)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    difference = area[0] - area[1]
    assert test.difference == pytest.approx(difference, abs=1e-12)
    assert test.z == pytest.approx(difference / variance**0.5, rel=1e-9)
    assert test.p == pytest.approx(2 * stats.norm.sf(abs(test.z)), rel=1e-9)
    assert test.high - test.low == pytest.approx(2 * z * variance**0.5, rel=1e-9)


def test_delong_of_four_cases_by_hand():
    # components of the events 1/2 and 1, of the others 1 and 1/2: variances 1/8 and 1/8,
    # each of 2 cases
    figure = delong([1, 1, 0, 0], [2, 4, 1, 3], transform="identity")
    assert figure.value == 0.75
    assert figure.se**2 == pytest.approx(1 / 8 / 2 + 1 / 8 / 2, abs=1e-15)


def test_delong_of_many_cases_is_the_closed_form_of_two_exponentials():
    # events ~ Exp(mean 3), others ~ Exp(1): area A = 3/4, Q1 = A / (2 - A), Q2 = 2 A^2 / (1 + A)
    rng = np.random.default_rng(0)
    m = n = 20_000
    y = np.r_[np.ones(m), np.zeros(n)]
    score = np.r_[rng.exponential(3, m), rng.exponential(1, n)]
    area = 0.75
    variance = (area / (2 - area) - area**2) / m + (2 * area**2 / (1 + area) - area**2) / n
    figure = delong(y, score)
    assert figure.se**2 == pytest.approx(variance, rel=0.03)
    assert figure.value == pytest.approx(area, abs=4 * variance**0.5)


@pytest.mark.parametrize("transform", ["logit", "identity"])
def test_the_interval_covers_the_true_area(transform):
    rng = np.random.default_rng(5)
    truth, hits, times = stats.norm.cdf(1.2 / 2**0.5), 0, 300
    y = np.r_[np.ones(30), np.zeros(70)]
    for _ in range(times):
        figure = delong(y, rng.normal(size=100) + 1.2 * y, transform=transform)
        hits += figure.low <= truth <= figure.high
    assert 0.91 <= hits / times <= 0.98


def test_the_test_keeps_its_level_and_finds_a_difference():
    rng = np.random.default_rng(6)
    y = np.r_[np.ones(30), np.zeros(70)]
    same, better = [], []
    for _ in range(150):
        base = rng.normal(size=100) * 0.7 + y
        a, b = base + rng.normal(size=100) * 0.7, base + rng.normal(size=100) * 0.7
        same.append(delong_test(y, a, b).p < 0.05)
        better.append(delong_test(y, a + 0.8 * y, b).p < 0.05)
    assert np.mean(same) <= 0.1
    assert np.mean(better) > 0.5


def test_patients_with_several_cases_widen_the_interval_as_they_should():
    y, score = cohort(80, ties=False)
    three = np.repeat(np.arange(80), 3)
    once = delong(y, score)
    naive = delong(y[three], score[three])
    clustered = delong(y[three], score[three], groups=three)
    assert naive.se < 0.65 * once.se
    # repeated cases say nothing new: the variance is that of the patients
    assert clustered.se == pytest.approx(once.se, rel=1e-9)
    a, b = score, np.random.default_rng(3).normal(size=80)
    test = delong_test(y[three], a[three], b[three], groups=three)
    assert test.z == pytest.approx(delong_test(y, a, b).z, rel=1e-9)


def test_patients_with_cases_of_both_classes_agree_with_a_bootstrap_of_patients():
    rng = np.random.default_rng(8)
    patient = np.repeat(np.arange(120), 2)
    level = rng.normal(size=120)[patient]
    y = np.tile([0, 1], 120)
    score = level + 0.5 * y + 0.5 * rng.normal(size=240)
    times = np.stack([np.bincount(rng.integers(0, 120, 120), minlength=120) for _ in range(1500)])
    drawn = auroc(y, score, times[:, patient])
    assert delong(y, score, groups=patient).se == pytest.approx(np.std(drawn), rel=0.08)
    assert delong(y, score).se > 1.2 * np.std(drawn)


def newcombe_by_grid(value, m, n):
    z = stats.norm.ppf(0.975)
    grid = np.linspace(0, 1, 200_001)
    spare = (m + n) / 2 - 1
    q = 1 + spare * (1 - grid) / (2 - grid) + spare * grid / (1 + grid)
    inside = grid[(value - grid) ** 2 <= z**2 * grid * (1 - grid) * q / (m * n)]
    return inside.min(), inside.max()


@pytest.mark.parametrize(
    ("y", "score"),
    [
        ([0] * 12 + [1] * 5, list(range(17))),
        ([1] * 5 + [0] * 12, list(range(17))),
        ([0, 0, 0, 1, 0], [1, 2, 3, 3.5, 4]),
    ],
)
def test_where_the_variance_is_0_the_interval_still_has_a_width(y, score):
    figure = delong(y, score)
    m = sum(y)
    expected = newcombe_by_grid(figure.value, m, len(y) - m)
    assert (figure.low, figure.high) == pytest.approx(expected, abs=1e-5)
    assert figure.method == "Newcombe"
    assert "variance" in figure.note
    assert figure.low < figure.high


def test_one_class_and_constant_scores_are_said_not_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = delong([1, 1, 1], [0.1, 0.2, 0.3])
        assert (figure.value, figure.n, figure.events) == (None, 3, 3)
        assert "same outcome" in figure.note
        assert list(delong_test([0, 0], [1, 2], [2, 1])) == [None] * 5
        figure = delong([1, 0, 1, 0], [0.3] * 4)
        assert (figure.value, figure.low, figure.high) == (0.5, 0.5, 0.5)
        assert "same for all" in figure.note
    with pytest.raises(InputError, match="same outcome"):
        auroc([1, 1], [1, 2])
    with pytest.raises(InputError, match="no case has the event"):
        average_precision([0, 0], [1, 2])


def test_scores_that_rank_alike_have_no_difference():
    y, a = cohort()
    assert list(delong_test(y, a, 2 * a + 1)) == [0.0, 0.0, 0.0, 0.0, 1.0]
    test = delong_test([0, 0, 1, 1], [1, 2, 3, 4], [1, 1, 1, 1])
    assert list(test) == [0.5, None, None, None, None]
    assert "variance" in test.note
    test = delong_test([0, 0, 1], [1, 3, 2], [1, 2, 3])
    assert list(test) == [-0.5, None, None, None, None]
    assert "one patient" in test.note


@pytest.mark.parametrize(
    ("y", "score", "message"),
    [
        ([0, 1, 2], [1, 2, 3], "not binary"),
        ([0, 1, np.nan], [1, 2, 3], "missing or infinite"),
        ([0, 1, 1], [1, np.nan, 3], "missing or infinite"),
        ([0, 1, 1], [1, np.inf, 3], "missing or infinite"),
        ([0, 1, 1], [1, 2], "another length"),
        ([0, 1], ["low", "high"], "no numbers"),
        ([], [], "one row of numbers"),
        ([[0, 1]], [[1, 2]], "one row of numbers"),
    ],
)
@pytest.mark.parametrize("measure", [auroc, average_precision, delong])
def test_bad_arrays_are_refused_in_one_line(measure, y, score, message):
    with pytest.raises(InputError, match=message) as e:
        measure(y, score)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("weights", [[1, 2], [1, -1, 1], [1, np.nan, 1]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(InputError, match="weights"):
        auroc([0, 1, 1], [1, 2, 3], weights)


def test_bad_options_are_refused():
    y, score = cohort()
    with pytest.raises(UsageError, match="level"):
        delong(y, score, 95)
    with pytest.raises(UsageError, match="transform"):
        delong(y, score, transform="probit")
    with pytest.raises(InputError, match="patients have another length"):
        delong(y, score, groups=[1, 2])
