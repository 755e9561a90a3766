"""Regional volumes against scipy, with a set that is too large and one that collapsed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from medpipe.errors import InputError
from medpipe.synthesis.metrics import label_volumes, regional_volumes


def tables(n=90, m=70, scale=1.0, spread=1.0):
    rng = np.random.default_rng(0)
    names = {"anterior": (1700, 300), "posterior": (1550, 220)}
    real = {k: rng.normal(a, s, n) for k, (a, s) in names.items()}
    made = {k: rng.normal(scale * a, spread * s, m) for k, (a, s) in names.items()}
    return real, made


def test_the_tests_are_those_of_scipy():
    real, made = tables(scale=1.03)
    found = regional_volumes(real, made, resamples=100, splits=20)
    assert [r.region for r in found] == ["anterior", "posterior"]
    for row in found:
        a, b = real[row.region], made[row.region]
        peer = stats.ttest_ind(b, a, equal_var=False)
        ends = peer.confidence_interval(0.95)
        assert (row.t, row.p) == pytest.approx((peer.statistic, peer.pvalue))
        assert row.p_bonferroni == pytest.approx(min(1, 2 * peer.pvalue))
        assert (row.difference.low, row.difference.high) == pytest.approx((ends.low, ends.high))
        mean = stats.t.interval(0.95, a.size - 1, a.mean(), stats.sem(a))
        assert (row.real_mean.low, row.real_mean.high) == pytest.approx(mean)
        assert row.percent.value == pytest.approx(100 * (b.mean() / a.mean() - 1))
        assert row.percent.low < row.percent.value < row.percent.high
        assert row.synthetic_sd.value == pytest.approx(b.std(ddof=1))
        assert row.real_sd.low < row.real_sd.value < row.real_sd.high


def test_the_effect_of_hedges_and_the_percent_cover_their_true_values():
    effect = percent = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        real, made = {"r": rng.normal(100, 20, 25)}, {"r": rng.normal(110, 20, 25)}
        (row,) = regional_volumes(real, made, resamples=2, splits=2)
        effect += row.effect.low <= 0.5 <= row.effect.high
        percent += row.percent.low <= 10 <= row.percent.high
    assert effect >= 34
    assert percent >= 34


def test_the_distance_is_that_of_scipy_and_has_a_floor():
    from medpipe.synthesis.metrics.regions import _wasserstein

    values = np.random.default_rng(1).normal(0, 1, 60)
    x, y = np.arange(25), np.arange(30, 55)
    expected = stats.wasserstein_distance(values[x], values[y])
    assert _wasserstein(values, x, y) == pytest.approx(expected)
    alike = regional_volumes(*tables(), resamples=10, splits=40)
    for row in alike:
        assert row.wasserstein.floor.low <= row.wasserstein.figure.value
        assert row.wasserstein.figure.value <= row.wasserstein.floor.high
        assert row.percent.low < 0 < row.percent.high


def test_inflated_and_collapsed_sets_are_seen():
    for row in regional_volumes(*tables(scale=1.2), resamples=100, splits=40):
        assert 5 < row.percent.low < 20 < row.percent.high < 30
        assert row.p_bonferroni < 0.001
        assert row.wasserstein.figure.low > row.wasserstein.floor.high
        assert row.effect.low > 0.5
    for row in regional_volumes(*tables(spread=0.2), resamples=100, splits=40):
        assert row.sd_ratio.high < 0.4
        assert row.percent.low < 0 < row.percent.high
        assert row.to_dict()["sd_ratio"]["value"] == row.sd_ratio.value


def test_volumes_of_labels():
    labels = torch.zeros(2, 4, 5, 6, dtype=torch.uint8)
    labels[0, :2, :3, 0] = 1
    labels[1, 0, 0, :4] = 2
    labels[1, 3, 3, 3] = 1
    found = label_volumes(labels, (1.0, 2.0, 0.5), {"one": 1, "both": [1, 2], "none": 9})
    assert found["one"].tolist() == [6, 1]
    assert found["both"].tolist() == [6, 5]
    assert found["none"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("real", "made", "text"),
    [
        ({"a": [1, 2, 3, 4]}, {"b": [1, 2, 3, 4]}, "same regions"),
        ({"a": [1, 2, 3]}, {"a": [1, 2, 3, 4]}, "4 or more"),
        ({"a": [1, 2, 3, -4]}, {"a": [1, 2, 3, 4]}, "no sizes"),
        ({"a": [2, 2, 2, 2]}, {"a": [1, 2, 3, 4]}, "one volume"),
    ],
)
def test_tables_that_cannot_be_compared(real, made, text):
    with pytest.raises(InputError, match=text):
        regional_volumes(real, made)


@pytest.mark.parametrize(
    ("labels", "spacing", "text"),
    [
        (torch.zeros(2, 3, 3, 3), (1, 1, 1), "no label maps"),
        (torch.zeros(2, 3, 3, 3, dtype=torch.int16), (1, 1), "spacing"),
        (torch.zeros(2, 3, 3, 3, dtype=torch.int16) - 1, (1, 1, 1), "below 0"),
    ],
)
def test_label_maps_that_cannot_be_measured(labels, spacing, text):
    with pytest.raises(InputError, match=text):
        label_volumes(labels, spacing, {"a": 1})
