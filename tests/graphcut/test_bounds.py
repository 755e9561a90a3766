"""Bounds of surface energies: never above the optimum, tight where the priors are convex."""

from __future__ import annotations

import itertools
import math

import cut_instances as make
import numpy as np
import pytest
import torch

from medpipe.errors import StepError
from medpipe.graphcut.bounds import (
    limited,
    min_marginal_interval,
    surface_bound,
    surface_energy,
)
from medpipe.graphcut.solve import min_cut

PSI = {
    "linear": lambda d: 4 * d.abs(),
    "quadratic": lambda d: 2 * d**2,
    "hard": torch.zeros_like,
}
"""The costs of `cut_instances.SMOOTH`, on tensors."""


def of_instance(kind: str, width: tuple[int, int], depth: int, surfaces: int, seed: int):
    """Costs, positions, smoothness and separation of a regular instance."""
    costs = torch.from_numpy(make.layer_costs(surfaces, width, depth, seed)).double()
    jump = make.SMOOTH[kind][1]
    return (
        costs,
        torch.arange(depth).double(),
        limited(-jump, jump, PSI[kind]),
        limited(*make.limits(surfaces, depth)),
    )


def every_energy(shape, terms, wrap=()) -> torch.Tensor:
    """Energies of all surfaces of a tiny problem, shape (K,) * columns."""
    *columns, depth = shape
    count = math.prod(columns)
    flat = [
        surface_energy(torch.tensor(index).reshape(columns), *terms, wrap=wrap)
        for index in itertools.product(range(depth), repeat=count)
    ]
    return torch.stack(flat).reshape((depth,) * count)


def true_marginals(energies: torch.Tensor, shape) -> torch.Tensor:
    """Least energy with one position held, by looking at all."""
    n = energies.ndim
    held = [energies.amin([a for a in range(n) if a != i]) for i in range(n)]
    return torch.stack(held).reshape(shape)


@pytest.mark.parametrize("kind", PSI)
@pytest.mark.parametrize("seed", range(3))
def test_a_row_of_columns_is_exact_after_one_iteration(kind, seed):
    terms = of_instance(kind, (5, 1), 5, 1, seed)
    shape = tuple(terms[0].shape)
    energies = every_energy(shape, terms)
    found = surface_bound(*terms, iterations=1)
    assert found.bound == pytest.approx(float(energies.min()))
    assert found.energy == pytest.approx(found.bound)
    torch.testing.assert_close(found.min_marginals, true_marginals(energies, shape))
    assert torch.equal(found.labels, found.min_marginals.argmin(-1))


def test_one_column_is_its_costs():
    costs = torch.tensor([3.0, 1.0, 2.0]).reshape(1, 1, 1, 3)
    found = surface_bound(costs, torch.arange(3.0), torch.abs)
    assert (found.bound, found.energy, found.labels.tolist()) == (1.0, 1.0, [[[1]]])
    assert torch.equal(found.min_marginals, costs.double())


def test_a_chain_through_surfaces_with_its_own_terms_is_exact():
    generator = torch.Generator().manual_seed(3)
    costs = torch.rand(3, 1, 1, 6, generator=generator, dtype=torch.float64)
    costs[1, 0, 0, 2] = torch.inf
    positions = torch.rand(3, 1, 1, 6, generator=generator, dtype=torch.float64).cumsum(-1)
    apart = [limited(0.2, 2.0), limited(-0.5, 3.0, lambda d: (d - 1) ** 2)]
    terms = (costs, positions, PSI["linear"], apart)
    energies = every_energy(costs.shape, terms)
    found = surface_bound(*terms, iterations=1)
    torch.testing.assert_close(found.min_marginals, true_marginals(energies, costs.shape))
    assert found.gap == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_min_marginals_are_bounded_on_a_loop_of_any_costs(seed):
    """Two by three columns, irregular, with a pairwise cost that is not convex."""
    generator = torch.Generator().manual_seed(seed)
    costs = 3 * torch.rand(1, 2, 3, 4, generator=generator, dtype=torch.float64)
    positions = torch.rand(1, 2, 3, 4, generator=generator, dtype=torch.float64).cumsum(-1)
    truncated = (lambda d: (2 * d.abs()).clamp(max=1.0),)
    terms = (costs, positions, truncated)
    energies = every_energy(costs.shape, terms)
    exact = true_marginals(energies, costs.shape)
    found = surface_bound(*terms, iterations=60, tolerance=0)
    assert found.bound <= float(energies.min()) + 1e-9
    assert bool((found.min_marginals <= exact + 1e-9).all())
    assert bool((found.min_marginals >= found.history[-1] - 0.5).all())
    assert found.energy >= float(energies.min()) - 1e-9
    assert bool((found.history.diff() >= -1e-9).all())


@pytest.mark.parametrize(
    ("kind", "width", "depth", "surfaces", "seed"),
    [("linear", (8, 7), 12, 2, 0), ("quadratic", (7, 8), 12, 2, 1), ("hard", (6, 6), 10, 2, 2)],
)
def test_the_bound_rises_to_the_energy_of_the_minimum_cut(kind, width, depth, surfaces, seed):
    terms = of_instance(kind, width, depth, surfaces, seed)
    cut = min_cut(make.columns(kind, width, depth, surfaces, seed))
    least = float(surface_energy(cut.source_side.sum(-1) - 1, *terms))
    found = surface_bound(*terms, iterations=300, tolerance=1e-3)
    assert bool((found.history.diff() >= -1e-9 * abs(least)).all())
    assert found.bound <= least + 1e-6
    # costs are integers, so a bound within 1 proves the optimum
    assert math.ceil(found.bound - 1e-6) == least
    assert least <= found.energy
    assert kind == "hard" or found.history[0] < found.bound  # that one is tight at once


def test_irregular_columns_reach_the_minimum_cut():
    width, depth = (6, 5), 10
    costs = torch.from_numpy(make.layer_costs(1, width, depth, 4)).double()
    positions = torch.from_numpy(make.jittered(width, depth, 4)).double()
    terms = (costs, positions, limited(-16, 16, torch.abs))
    cut = min_cut(make.irregular(width, depth, 1, 4))
    least = float(surface_energy(cut.source_side.sum(-1) - 1, *terms))
    found = surface_bound(*terms, iterations=200, tolerance=1e-3)
    assert math.ceil(found.bound - 1e-6) == least
    assert found.bound <= least + 1e-6


def test_a_ring_is_bounded_by_what_closes_it():
    terms = of_instance("linear", (4, 1), 4, 1, 7)
    energies = every_energy(terms[0].shape, terms, wrap=(1,))
    found = surface_bound(*terms, wrap=(1,), iterations=200)
    assert found.bound == pytest.approx(float(energies.min()), abs=1e-3)
    assert float(surface_energy(found.labels, *terms, wrap=(1,))) == pytest.approx(found.energy)


def test_an_asymmetric_cost_is_taken_next_minus_this_around_a_ring():
    generator = torch.Generator().manual_seed(0)
    costs = torch.rand(1, 3, 1, 4, generator=generator, dtype=torch.float64)
    uphill = limited(-9, 9, lambda d: torch.where(d > 0, 3 * d, -0.2 * d))
    terms = (costs, torch.arange(4.0), uphill)
    by_hand = [
        sum(float(costs[0, x, 0, k[x]]) for x in range(3))
        + sum(float(uphill(torch.tensor(float(k[(x + 1) % 3] - k[x])))) for x in range(3))
        for k in itertools.product(range(4), repeat=3)
    ]
    found = surface_bound(*terms, wrap=(1,), iterations=200)
    assert found.bound <= min(by_hand) + 1e-9
    assert found.energy == pytest.approx(min(by_hand))


@pytest.mark.parametrize("rough", [False, True])
def test_the_energy_is_that_of_the_definition(rough):
    depth, width = 7, (4, 3)
    index = np.random.default_rng(5).integers(0, depth, (20, 2, *width))
    costs = make.layer_costs(2, width, depth, 5)
    places = make.jittered(width, depth, 5)
    jump = 100 if rough else 8
    truth = make.energies(index, costs, places, make.quadratic(3), jump, (-depth, depth))
    apart = limited(-math.inf, math.inf)
    terms = (
        torch.from_numpy(costs),
        torch.from_numpy(places),
        limited(-jump, jump, lambda d: 3 * d**2),
        apart,
    )
    found = [float(surface_energy(torch.from_numpy(i), *terms)) for i in index]
    assert found == truth.tolist()
    assert rough == bool(np.isfinite(truth).all())


def test_the_interval_of_a_parabola_is_that_of_a_gaussian():
    """Energy (z - m)^2 / 2 s^2 at temperature 1 is a Gaussian: 95% within 1.96 s."""
    rng = np.random.default_rng(0)
    uneven = np.sort(np.concatenate([np.linspace(0, 20, 400), rng.uniform(0, 20, 600)]))
    z = torch.from_numpy(uneven)
    spread_mm = torch.tensor([0.5, 1.0]).reshape(1, 2, 1, 1)
    energy = 7 + (z - 10.0) ** 2 / (2 * spread_mm**2)
    low, high = min_marginal_interval(energy, z, 1.0)
    torch.testing.assert_close(
        (high - low).flatten(), 2 * 1.95996 * spread_mm.flatten().double(), rtol=1e-3, atol=0
    )
    torch.testing.assert_close((high + low) / 2, torch.full_like(low, 10.0), rtol=0, atol=1e-3)
    wide = min_marginal_interval(energy, z, 4.0)  # twice the standard deviation
    torch.testing.assert_close(
        (wide[1] - wide[0]) / (high - low), torch.full_like(low, 2), rtol=1e-3, atol=0
    )


def test_a_clear_layer_is_narrower_than_a_faint_one():
    k = torch.arange(30.0)
    costs = torch.stack([-strength * torch.exp(-((k - 12) ** 2) / 4) for strength in (20.0, 2.0)])
    found = [surface_bound(c.expand(1, 6, 5, 30), 0.1 * k, torch.abs, iterations=20) for c in costs]
    widths = []
    for one in found:
        low, high = min_marginal_interval(one.min_marginals, 0.1 * k, 1.0)
        assert bool(((low < 1.2) & (high > 1.2)).all())
        widths.append(float((high - low).mean()))
    assert widths[0] < 0.5 * widths[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"costs": torch.zeros(3, 4)}, "do not lie on columns"),
        ({"costs": torch.full((1, 2, 2, 3), float("nan"))}, "NaN or -inf"),
        ({"costs": torch.full((1, 2, 2, 3), -float("inf"))}, "NaN or -inf"),
        ({"costs": torch.full((1, 2, 2, 3), float("inf"))}, "no surfaces keep the hard limits"),
        ({"positions_mm": torch.arange(4.0)}, "positions do not fit"),
        ({"smoothness": limited(5, 6)}, "no surfaces keep the hard limits"),
        ({"smoothness": [torch.abs] * 2}, "smoothness terms"),
        ({"wrap": (0,)}, "close to a ring"),
    ],
)
def test_unusable_input_is_refused(change, says):
    parts = {
        "costs": torch.zeros(1, 2, 2, 3),
        "positions_mm": torch.arange(3.0),
        "smoothness": torch.abs,
    }
    with pytest.raises(StepError, match=says):
        surface_bound(**(parts | change))


@pytest.mark.parametrize(("temperature", "mass"), [(0.0, 0.5), (-1.0, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_an_interval_that_is_not_defined_is_refused(temperature, mass):
    with pytest.raises(StepError, match="not defined"):
        min_marginal_interval(torch.zeros(1, 1, 1, 3), torch.arange(3.0), temperature, mass=mass)
