"""The gate against copies with sets that must fail it, and shares against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from sy_metric_sets import blobs, clouds

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.metrics import membership_auc, nll_gap, rms_distances
from medpipe.synthesis.metrics.privacy import _closer, privacy

OPTIONS = {"resamples": 300}


@pytest.fixture(scope="module")
def real():
    volumes = blobs(60, 0, texture=0.5)
    return volumes[:40], volumes[40:]


def copies(train, n, seed=1):
    noise = torch.randn((n, *train.shape[1:]), generator=torch.Generator().manual_seed(seed))
    # 2 % of the range of values
    return train[:n] + 0.02 * noise


def test_a_copier_is_caught(real):
    train, held_out = real
    found = privacy(copies(train, 30), train, held_out, **OPTIONS)
    assert found.verdict == "copies"
    assert found.ratio.high < 0.5
    assert found.to_train.figure.value == pytest.approx(0.02, rel=0.02)
    assert [(c[0], c[1]) for c in found.copied] == [(i, i) for i in range(30)]
    assert found.authentic.figure.value == 0
    assert found.authentic.floor.value > 0.2
    assert found.smallest < 0.5 * found.smallest_real
    record = found.to_dict()
    assert record["copied"][0][:2] == [0, 0]
    assert "copies:" in record["rule"]


def test_new_cases_pass(real):
    train, held_out = real
    found = privacy(blobs(30, 5, texture=0.5), train, held_out, **OPTIONS)
    assert found.verdict == "no copies found"
    assert found.ratio.low < 1 < found.ratio.high
    assert found.copied == ()
    assert found.closer.floor.low < found.closer.figure.value < found.closer.floor.high
    assert found.closer.floor.value == pytest.approx(0.5, abs=0.05)
    assert found.to_train_equal.value == pytest.approx(found.to_held_out.value, rel=0.1)


def test_one_copy_among_many_is_named(real):
    train, held_out = real
    made = blobs(30, 6, texture=0.5)
    made[17] = copies(train, 40)[23]
    found = privacy(made, train, held_out, **OPTIONS)
    assert found.ratio.low > 0.5
    assert found.verdict == "copies"
    assert [(c[0], c[1]) for c in found.copied] == [(17, 23)]


def test_the_share_closer_to_train_says_little_of_a_set_that_is_built_from_it():
    # means of two training cases: no copies, and closer to the training set all the same
    train, held_out = clouds(40, 0, d=30), clouds(30, 1, d=30)
    found = privacy((train[:30] + train[5:35]) / 2, train, held_out, **OPTIONS)
    assert found.closer.figure.value > found.closer.floor.high
    assert found.verdict == "no copies found"


def test_few_cases_leave_it_undecided():
    train, held_out = clouds(9, 0, d=3), clouds(4, 1, d=3)
    near = train[:3] + np.random.default_rng(2).normal(0, 0.35, (3, 3))
    found = privacy(near, train, held_out, **OPTIONS)
    assert found.copied == ()
    assert found.ratio.low < 0.5 < found.ratio.high
    assert found.verdict == "undecided"


@pytest.mark.parametrize(("train", "held"), [(7, 3), (3, 6), (4, 4)])
def test_closer_is_the_mean_over_all_subsets(train, held):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, (5, train)) * 1.0, rng.integers(0, 9, (5, held)) * 1.0
    k = min(train, held)
    expected = []
    for row, other in zip(first, second, strict=True):
        pairs = itertools.product(itertools.combinations(row, k), itertools.combinations(other, k))
        values = [(min(a) < min(b)) + (min(a) == min(b)) / 2 for a, b in pairs]
        expected.append(np.mean(values))
    assert _closer(first, second) == pytest.approx(expected, rel=1e-9)


def test_the_real_sets_must_not_share_a_patient(real):
    train, held_out = real
    with pytest.raises(InputError, match="two real cases are the same"):
        privacy(blobs(5, 1, texture=0.5), train, torch.cat([held_out[:3], train[:1]]))
    with pytest.raises(UsageError, match="limit"):
        privacy(blobs(5, 1, texture=0.5), train, held_out, limit=1.0)


def test_membership_of_a_copier_and_of_an_honest_generator(real):
    train, held_out = real

    def auc(made):
        return membership_auc(
            -rms_distances(train, made).min(axis=1), -rms_distances(held_out, made).min(axis=1)
        )

    assert auc(copies(train, 40)).low > 0.8
    honest = auc(blobs(30, 7, texture=0.5))
    assert honest.low < 0.5 < honest.high
    assert (honest.n, honest.events) == (60, 40)


def test_the_area_is_the_share_of_pairs():
    members, others = clouds(15, 0, 1.0, d=1)[:, 0], clouds(11, 1, d=1)[:, 0]
    found = membership_auc(members, others)
    assert found.value == pytest.approx((members[:, None] > others).mean())


def test_the_gap_of_likelihoods_is_the_paired_test():
    rng = np.random.default_rng(0)
    free = rng.normal(4.3, 0.2, 30)
    conditional = free + rng.normal(0.1, 0.1, 30)
    found = nll_gap(conditional, free)
    peer = stats.ttest_rel(conditional, free)
    ends = peer.confidence_interval(0.95)
    assert (found.z, found.p) == pytest.approx((peer.statistic, peer.pvalue))
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert nll_gap(free + 0.5, free + 0.25).difference == pytest.approx(0.25)
    same = nll_gap(free, free)
    assert (same.difference, same.p) == (0.0, None)
    assert same.note
