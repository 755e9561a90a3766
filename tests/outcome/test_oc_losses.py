"""Losses against sums written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from medpipe.errors import UsageError
from medpipe.outcome.losses import (
    bias_to_share,
    class_weights,
    cross_entropy_loss,
    discrete_survival_loss,
    focal_loss,
    life_table_logits,
    survival_curve,
    survival_targets,
)

WEIGHTS = (0.5, 2.0, 1.25)


def some(n=9, k=3):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, k, generator=generator) * 2
    return logits, torch.randint(0, k, (n,), generator=generator)


def written_out(logits, classes, weights, gamma):
    total = 0.0
    for row, k in zip(logits.tolist(), classes.tolist(), strict=True):
        p = math.exp(row[k]) / sum(math.exp(v) for v in row)
        total -= weights[k] * (1 - p) ** gamma * math.log(p)
    return total / len(logits)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_the_sum_written_out(weights):
    logits, classes = some()
    got = float(cross_entropy_loss(weights)(logits, classes))
    assert got == pytest.approx(written_out(logits, classes, weights or (1, 1, 1), 0), rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_is_the_sum_written_out(weights, gamma):
    logits, classes = some()
    got = float(focal_loss(gamma, weights)(logits, classes))
    truth = written_out(logits, classes, weights or (1, 1, 1), gamma)
    assert got == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy_loss(WEIGHTS), focal_loss(2.0, WEIGHTS)])
def test_the_mean_of_batches_is_that_of_all(loss):
    logits, classes = some(8)
    halves = [float(loss(logits[n : n + 4], classes[n : n + 4])) for n in (0, 4)]
    assert np.mean(halves) == pytest.approx(float(loss(logits, classes)), rel=1e-6)


def test_classes_weigh_the_same():
    classes = np.array([0] * 6 + [1] * 3 + [2])
    weights = np.array(class_weights(classes, 3))
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert weights[classes].mean() == pytest.approx(1)
    for k in range(3):
        assert weights[classes][classes == k].sum() == pytest.approx(10 / 3)
    with pytest.raises(UsageError, match=r"each of 3 classes, got 2 classes"):
        class_weights([0, 1], 3)


def likelihood(logits, survived, event):
    p = 1.0
    for j in range(survived):
        p *= 1 - 1 / (1 + math.exp(-logits[j]))
    return p / (1 + math.exp(-logits[survived])) if event else p


def test_the_survival_loss_is_the_product_written_out():
    generator = torch.Generator().manual_seed(1)
    targets = [(s, e) for s in range(5) for e in (0, 1) if s < 4 or not e]
    logits = torch.randn(len(targets), 4, generator=generator, dtype=torch.float64) * 2
    truth = [
        -math.log(likelihood(row, *t)) for row, t in zip(logits.tolist(), targets, strict=True)
    ]
    for n, target in enumerate(targets):
        got = float(discrete_survival_loss(logits[n : n + 1], torch.tensor([target])))
        assert got == pytest.approx(truth[n], rel=1e-12)
    got = float(discrete_survival_loss(logits, torch.tensor(targets)))
    assert got == pytest.approx(np.mean(truth), rel=1e-12)


def test_the_likelihoods_of_all_courses_add_up_to_one():
    logits = torch.tensor([[0.3, -1.0, 2.0, -0.2]], dtype=torch.float64)
    courses = [(s, 1) for s in range(4)] + [(4, 0)]
    each = [math.exp(-float(discrete_survival_loss(logits, torch.tensor([c])))) for c in courses]
    assert sum(each) == pytest.approx(1, rel=1e-12)
    # and what is left is the curve
    curve = survival_curve(logits)[0].tolist()
    assert curve == pytest.approx([1 - sum(each[: n + 1]) for n in range(4)], rel=1e-12)


def test_the_gradient_is_that_of_finite_differences_and_the_known_one():
    targets = torch.tensor([[0, 1], [2, 1], [3, 0], [1, 0], [2, 0]])
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: discrete_survival_loss(x, targets), logits)
    discrete_survival_loss(logits, targets).backward()
    hazard = torch.sigmoid(logits.detach())
    known = torch.zeros(5, 3, dtype=torch.float64)
    for n, (s, e) in enumerate(targets.tolist()):
        known[n, :s] = hazard[n, :s]
        if e:
            known[n, s] = hazard[n, s] - 1
    assert torch.allclose(logits.grad, known / 5, atol=1e-14)


def test_large_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = discrete_survival_loss(logits, torch.tensor([[1, 1], [2, 0]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_the_best_hazards_are_those_of_the_life_table():
    """With one set of hazards for all, the optimum is events over those at risk."""
    rng = np.random.default_rng(3)
    time = rng.exponential(30, 400)
    event = (rng.random(400) < 0.7).astype(int)
    targets = survival_targets(time, event, (10, 20, 40, 80))
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = discrete_survival_loss(logits.expand(400, 4), torch.from_numpy(targets))
        loss.backward()
        return loss

    optimizer.step(closure)
    for j in range(4):
        events = int(((targets[:, 0] == j) & (targets[:, 1] == 1)).sum())
        through = int((targets[:, 0] > j).sum())
        hazard = float(torch.sigmoid(logits.detach()[j]))
        assert hazard == pytest.approx(events / (events + through), rel=1e-5)
        start = float(torch.sigmoid(life_table_logits(torch.from_numpy(targets), 4)[j]))
        assert start == pytest.approx((events + 0.5) / (events + through + 1), rel=1e-6)


def test_a_bias_brings_the_mean_probability_to_a_share():
    logits = torch.tensor(np.random.default_rng(0).normal(-3, 4, 57))
    for share in (0.01, 0.288, 0.9):
        moved = logits + bias_to_share(logits, share)
        assert float(moved.sigmoid().mean()) == pytest.approx(share, abs=1e-12)
    same = torch.full((5,), 700.0)  # saturated
    assert float(bias_to_share(same, 0.5)) == pytest.approx(-700)


def test_times_become_intervals():
    ends = (3, 7, 30)
    table = {
        (0, 1): (0, 1), (3, 1): (0, 1), (3.1, 1): (1, 1), (7, 1): (1, 1), (30, 1): (2, 1),
        (31, 1): (3, 0), (0, 0): (0, 0), (1.4, 0): (0, 0), (1.5, 0): (1, 0), (3, 0): (1, 0),
        (4.9, 0): (1, 0), (5, 0): (2, 0), (18, 0): (2, 0), (18.5, 0): (3, 0), (99, 0): (3, 0),
    }  # fmt: skip
    time, event = zip(*table, strict=True)
    got = survival_targets(time, event, ends)
    assert [tuple(row) for row in got.tolist()] == list(table.values())


def test_wrong_times_are_refused():
    for time, event, ends in (
        ([1.0], [2], (3,)), ([-1.0], [0], (3,)), ([math.nan], [0], (3,)), ([1.0], [0], (3, 3)),
        ([1.0], [0], ()), ([1.0, 2.0], [0], (3,)), ([1.0], [0], (0, 3)),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            survival_targets(time, event, ends)


def test_curves_fall_and_stay_exact():
    logits = torch.tensor(list(itertools.product([-3.0, 0.0, 3.0], repeat=3)), dtype=torch.float64)
    curve = survival_curve(logits)
    truth = torch.cumprod(1 - torch.sigmoid(logits), -1)
    assert torch.allclose(curve, truth, rtol=1e-12)
