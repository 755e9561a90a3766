"""Convex priors and the arc weights of columns that are not sampled regularly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.convex import ConvexPrior, arc_weights

# Table 1 of Shah, Abràmoff and Wu: two columns of six nodes and the linear prior
A = [4.0, 16.0, 21.0, 25.0, 34.0, 52.0]
B = [1.0, 3.0, 12.0, 28.0, 37.0, 50.0]
TABLE = {
    (0, 1): (2, 0),
    (0, 2): (1, 0),
    (1, 2): (8, 8),
    (1, 3): (4, 4),
    (2, 3): (5, 5),
    (3, 3): (4, 4),
    (4, 3): (3, 3),
    (4, 4): (6, 6),
    (5, 4): (3, 3),
    (5, 5): (13, 13),
}

KINDS = {
    "none": lambda y: 0 * y,
    "linear": lambda y: 2 * y,
    "quadratic": lambda y: 2 * y**2,
    "dead_zone": lambda y: 2 * np.maximum(y - 0.5, 0),
    "dead_zone_quadratic": lambda y: 2 * np.maximum(y - 0.5, 0) ** 2,
    "huber": lambda y: 2 * np.where(y <= 0.5, y**2, y - 0.25),
}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_arcs_of_the_paper():
    a, b = tensor(A), tensor(B)
    there, to_sink = arc_weights(ConvexPrior("linear"), a, b)
    back, back_to_sink = arc_weights(ConvexPrior("linear"), b, a)
    expected = torch.zeros(6, 6, dtype=torch.float64)
    expected_back = torch.zeros(6, 6, dtype=torch.float64)
    for (i, j), (forward, backward) in TABLE.items():
        expected[i, j], expected_back[j, i] = forward, backward
    assert torch.equal(there, expected)
    assert torch.equal(back, expected_back)
    assert torch.equal(to_sink, tensor([0.0, 0, 0, 0, 0, 2]))
    assert torch.equal(back_to_sink, torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_cost_of_a_difference(kind):
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    prior = ConvexPrior(kind, weight=2.0, width_mm=0.5, expected_mm=0.7)
    np.testing.assert_allclose(prior(x), KINDS[kind](np.abs(x.numpy() - 0.7)), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_not_negative_and_sum_to_the_cost(kind):
    rng = torch.Generator().manual_seed(3)
    a = torch.rand(7, 9, generator=rng, dtype=torch.float64).cumsum(-1)
    b = torch.rand(7, 8, generator=rng, dtype=torch.float64).cumsum(-1) + 0.4
    prior = ConvexPrior(kind, weight=2.0, width_mm=0.5)
    weights, to_sink = arc_weights(prior, a, b)
    assert float(weights.min()) > -1e-12
    assert float(to_sink.min()) > -1e-12
    for k in range(9):
        for m in range(8):
            cut = weights[:, : k + 1, m + 1 :].sum((1, 2)) + to_sink[:, : k + 1].sum(1)
            difference = (a[:, k] - b[:, m]).numpy()
            paid = np.where(difference > 0, KINDS[kind](np.abs(difference)), 0)
            np.testing.assert_allclose(cut, paid, atol=1e-10)


@pytest.mark.parametrize("kind", ["linear", "quadratic", "dead_zone", "huber"])
def test_regular_spacing_gives_second_differences(kind):
    position = torch.arange(8, dtype=torch.float64)
    prior = ConvexPrior(kind, width_mm=2.0)
    weights, _ = arc_weights(prior, position, position)
    psi = prior(torch.arange(10, dtype=torch.float64))
    for k in range(1, 8):
        for j in range(1, 8):
            d = k - j
            expected = 0.0 if d < 0 else psi[1] if d == 0 else psi[d + 1] - 2 * psi[d] + psi[d - 1]
            assert float(weights[k, j]) == pytest.approx(float(expected), abs=1e-12)


def test_both_sides_of_an_asymmetric_prior():
    def steeper_above(x):
        return torch.where(x > 0, 5 * x, -x)

    prior = ConvexPrior("custom", function=steeper_above)
    a, b = tensor([0.0, 4.0]), tensor([0.0, 1.0])
    assert float(arc_weights(prior, a, b, direction=1)[1][1]) == 5 * 3
    assert float(arc_weights(prior, a, b, direction=-1)[1][1]) == 3


def test_a_weight_for_every_pair_of_columns():
    prior = ConvexPrior("linear", weight=tensor([1.0, 3.0])).on_columns()
    assert torch.equal(prior(torch.ones(2, 4)), tensor([[1.0] * 4, [3.0] * 4]))
    rows = ConvexPrior("linear", weight=tensor([[1.0, 3.0], [7.0, 9.0]])).on_columns(1)
    assert torch.equal(rows(torch.ones(2, 1)), tensor([[7.0], [9.0]]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.abs().sqrt(), "not convex"),
        (lambda x: torch.minimum(x.abs(), torch.ones_like(x)), "not convex"),
        (lambda x: -x.abs(), "negative"),
        (lambda x: torch.where(x.abs() > 1, torch.inf, x.abs()), "not finite"),
    ],
)
def test_functions_that_are_no_convex_prior(function, message):
    with pytest.raises(StepError, match=message):
        ConvexPrior("custom", function=function).check_convex(3.0)


def test_a_convex_function_is_accepted():
    ConvexPrior("custom", function=lambda x: torch.cosh(x) - 1).check_convex(5.0)


def test_a_function_must_be_zero_at_zero():
    with pytest.raises(StepError, match="not 0"):
        ConvexPrior("custom", function=lambda x: x.abs() + 1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"kind": "cubic"}, "unknown"),
        ({"kind": "linear", "weight": -1.0}, "weight of a prior"),
        ({"kind": "linear", "weight": float("nan")}, "weight of a prior"),
        ({"kind": "linear", "weight": tensor([1.0, -2.0])}, "got -2"),
        ({"kind": "linear", "max_jump_mm": -0.1}, "max_jump_mm"),
        ({"kind": "huber", "width_mm": float("inf")}, "width_mm"),
        ({"kind": "linear", "expected_mm": float("inf")}, "expected_mm"),
        ({"kind": "custom"}, "function"),
        ({"kind": "linear", "function": torch.abs}, "function"),
    ],
)
def test_parameters_that_are_wrong(parts, message):
    with pytest.raises(UsageError, match=message):
        ConvexPrior(**parts)
