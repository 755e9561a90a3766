"""Optimal surfaces against enumeration, dynamic programming and the limits they must keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from surface_reference import edges, enumerate_all, random_problem

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.surface_session import SurfaceSession
from medpipe.graphcut.surfaces import ConvexPrior, Separation, SurfaceProblem, optimal_surfaces


@pytest.mark.parametrize("block", range(16))
def test_random_problems_equal_enumeration(block):
    """Every kind of prior, separations, regions, missing columns, rings and meshes."""
    solved = 0
    for seed in range(25 * block, 25 * (block + 1)):
        problem = random_problem(np.random.default_rng(seed))
        best, winners = enumerate_all(problem)
        if not np.isfinite(best):
            with pytest.raises(StepError):
                optimal_surfaces(problem)
            continue
        result = optimal_surfaces(problem, solver="scipy" if seed % 5 == 0 else "auto")
        solved += 1
        assert result.energy == pytest.approx(best, abs=1e-9), seed
        assert result.bound == pytest.approx(best, abs=1e-9), seed
        assert result.proved, seed
        # among equally good surfaces the highest, wherever a surface is
        index = result.index.clamp_min(0).reshape(-1).numpy()
        assert np.array_equal(index, winners.max(0)), seed
    assert solved > 10


def line_problem(rng, columns, depth, prior, surfaces=1, **parts):
    positions = torch.from_numpy(np.cumsum(rng.uniform(0.2, 1.8, (columns, 1, depth)), -1))
    costs = torch.from_numpy(rng.normal(size=(surfaces, columns, 1, depth)))
    return SurfaceProblem(costs, positions, prior, **parts)


def chain_optimum(problem):
    """Least energy of surfaces on a line of columns, by dynamic programming over states."""
    surfaces, columns, _, depth = problem.shape
    at = problem.positions().numpy()[:, :, 0]
    costs = problem.costs.numpy()[:, :, 0]
    states = np.array(list(np.ndindex(*[depth] * surfaces)))
    prior = problem.priors
    best = None
    for x in range(columns):
        here = sum(costs[s, x, states[:, s]] for s in range(surfaces))
        for s in range(surfaces - 1):
            gap = at[s + 1, x, states[:, s + 1]] - at[s, x, states[:, s]]
            inside = (gap >= problem.separations.min_mm) & (gap <= problem.separations.max_mm)
            here = np.where(inside, here, np.inf)
        if best is not None:
            jump = sum(
                paid(prior, at[s, x, states[:, s]][:, None] - at[s, x - 1, states[:, s]])
                for s in range(surfaces)
            )
            here = here + (best + jump).min(1)
        best = here
    return best.min()


def paid(prior, difference):
    cost = prior(torch.from_numpy(difference)).numpy()
    if prior.max_jump_mm is None:
        return cost
    return np.where(np.abs(difference) <= prior.max_jump_mm, cost, np.inf)


@pytest.mark.parametrize(
    "prior",
    [
        ConvexPrior("linear", 0.8),
        ConvexPrior("quadratic", 0.3),
        ConvexPrior("huber", 0.6, 0.7, max_jump_mm=4.0),
        ConvexPrior("dead_zone", 1.1, 0.6),
        ConvexPrior("none", max_jump_mm=1.5),
    ],
    ids=lambda p: p.kind,
)
def test_a_long_line_equals_dynamic_programming(prior):
    problem = line_problem(np.random.default_rng(1), 70, 40, prior)
    truth = chain_optimum(problem)
    result = optimal_surfaces(problem)
    assert result.proved
    assert result.bound <= truth + 1e-9
    assert truth - 1e-9 <= result.energy <= truth + 2 * result.rounding + 1e-9
    assert result.rounding < 0.02 * abs(truth)


def test_two_surfaces_equal_dynamic_programming():
    problem = line_problem(
        np.random.default_rng(2),
        15,
        16,
        ConvexPrior("linear", 0.5),
        2,
        separations=Separation(1.0, 6.0),
    )
    result = optimal_surfaces(problem)
    truth = chain_optimum(problem)
    assert result.proved
    assert truth - 1e-9 <= result.energy <= truth + 2 * result.rounding + 1e-9


def test_hard_limits_hold_on_a_volume():
    rng = np.random.default_rng(4)
    shape = (3, 12, 10, 24)
    positions = torch.from_numpy(np.cumsum(rng.uniform(0.3, 1.2, shape[1:]), -1))
    prior = ConvexPrior("huber", 0.4, 0.5, max_jump_mm=2.0)
    problem = SurfaceProblem(
        torch.from_numpy(rng.normal(size=shape)),
        positions,
        prior,
        Separation(1.5, 7.0, ConvexPrior("quadratic", 0.1, expected_mm=4.0)),
        wrap=(0,),
    )
    result = optimal_surfaces(problem)
    assert result.proved
    at = result.position_mm.numpy()
    for a, b, _, least, most, _ in edges(problem):
        x = at[(b[0], *b[1])] - at[(a[0], *a[1])]
        assert least - 1e-6 <= x <= most + 1e-6


def test_a_flat_slope_is_followed():
    """An expected slope costs nothing: the surface climbs with it."""
    problem = SurfaceProblem(
        torch.zeros(1, 6, 1, 30), torch.arange(30.0), ConvexPrior("linear", expected_mm=3.0)
    )
    index = optimal_surfaces(problem).index[0, :, 0]
    assert index.diff().tolist() == [3] * 5


def test_irregular_positions_find_what_lies_between_nodes():
    """The same costs on true positions follow a plane that regular positions cannot see."""
    x = torch.arange(12, dtype=torch.float64)
    plane = 5.3 + 0.41 * x
    nodes = torch.arange(14, dtype=torch.float64)
    offset = (plane - plane.round()).reshape(12, 1, 1)
    positions = nodes + offset
    costs = (positions - plane.reshape(12, 1, 1)).abs()[None]
    problem = SurfaceProblem(costs, positions, ConvexPrior("quadratic", 4.0, expected_mm=0.41))
    found = optimal_surfaces(problem).position_mm[0, :, 0]
    assert torch.allclose(found, plane)


def test_a_column_without_data_is_bridged_or_absent():
    costs = torch.zeros(1, 5, 1, 9)
    costs[0, :, 0] = (torch.arange(9) - 4).abs()
    costs[0, 2, 0] = torch.nan
    valid = torch.tensor([True, True, False, True, True])[:, None]
    problem = SurfaceProblem(costs, torch.arange(9.0), ConvexPrior("linear"), valid=valid)
    assert optimal_surfaces(problem).index[0, :, 0].tolist() == [4] * 5
    absent = optimal_surfaces(replace(problem, missing="absent"))
    assert absent.index[0, :, 0].tolist() == [4, 4, -1, 4, 4]
    assert bool(torch.isnan(absent.position_mm[0, 2, 0]))


def test_absent_columns_need_no_positions():
    positions = torch.arange(5.0).repeat(3, 1, 1)
    positions[1] = torch.nan
    costs = torch.rand(1, 3, 1, 5)
    problem = SurfaceProblem(
        costs,
        positions,
        ConvexPrior("linear"),
        valid=~torch.isnan(positions[..., 0]),
        missing="absent",
    )
    assert optimal_surfaces(problem).index[0, 1, 0] == -1


def test_costs_are_not_changed():
    problem = random_problem(np.random.default_rng(3))
    before = problem.costs.clone()
    optimal_surfaces(problem)
    assert torch.equal(problem.costs, before)


def session_problem(seed=0):
    rng = np.random.default_rng(seed)
    shape = (2, 7, 5, 14)
    positions = torch.from_numpy(np.cumsum(rng.integers(1, 4, shape[1:]), -1)).double()
    costs = torch.from_numpy(rng.integers(-9, 10, shape)).double()
    prior = ConvexPrior("linear", 1.0, max_jump_mm=6.0)
    return SurfaceProblem(costs, positions, prior, Separation(2.0, 20.0), wrap=(1,))


def solved_anew(session, pins=()):
    """The edited problem with every pin as infinite costs, solved from nothing."""
    costs = session.problem.costs.clone()
    for surface, column, low, high in pins:
        node = torch.arange(costs.shape[-1])
        costs[(surface, *column)][(node < low) | (node > high)] = torch.inf
    return optimal_surfaces(replace(session.problem, costs=costs))


def test_a_session_solves_edits_as_if_anew():
    rng = np.random.default_rng(8)
    session = SurfaceSession(session_problem())
    first = session.solve()
    assert first.energy == solved_anew(session).energy
    pins = []
    for _ in range(6):
        column = (int(rng.integers(7)), int(rng.integers(5)))
        costs = torch.from_numpy(rng.integers(-30, 30, 14)).double()
        session.set_costs(int(rng.integers(2)), column, costs)
        result, anew = session.solve(), solved_anew(session)
        assert result.proved
        assert torch.equal(result.index, anew.index)
    at = float(session.problem.positions()[0, 3, 2, 5])
    session.pin(0, (3, 2), at, 0.5)
    pins.append((0, (3, 2), 5, 5))
    result, anew = session.solve(), solved_anew(session, pins)
    assert int(result.index[0, 3, 2]) == 5
    assert torch.equal(result.index, anew.index)
    assert result.energy == anew.energy == result.bound
    session.unpin(0, (3, 2))
    assert torch.equal(session.solve().index, solved_anew(session).index)


def test_a_pinned_surface_pays_what_lies_beyond_its_neighbour():
    """A pin at a node above the neighbour's last one: what that costs is in the bound."""
    positions = torch.arange(8.0) + torch.tensor([0.0, 3.0])[:, None, None]
    problem = SurfaceProblem(torch.zeros(1, 2, 1, 8), positions, ConvexPrior("linear"))
    session = SurfaceSession(problem)
    session.pin(0, (1, 0), 10.0, 0.1)
    result = session.solve()
    assert result.energy == result.bound == 3
    assert result.proved


def test_a_session_keeps_its_flow(monkeypatch):
    """After the first solution only differences are solved: no arcs are built again."""
    session = SurfaceSession(session_problem())
    session.solve()
    monkeypatch.setattr(
        "medpipe.graphcut.surface_session.IncrementalCut", lambda _: pytest.fail("built again")
    )
    session.attract(1, (2, 2), 12.0, strength=50.0, radius_columns=1.0)
    assert session.solve().proved


def test_a_session_takes_nodes_away():
    session = SurfaceSession(session_problem())
    session.solve()
    costs = session.problem.costs[0, 1, 1].clone()
    costs[4:9] = torch.inf
    session.set_costs(0, (1, 1), costs)
    assert torch.equal(session.solve().index, solved_anew(session).index)


def test_a_session_attracts_a_surface():
    problem = SurfaceProblem(torch.zeros(1, 9, 9, 12), torch.arange(12.0), ConvexPrior("linear"))
    session = SurfaceSession(problem, solver="scipy")
    session.attract(0, (4, 4), 3.0, strength=100.0, radius_columns=2.0)
    result = session.solve()
    assert int(result.index[0, 4, 4]) == 3
    assert result.energy == pytest.approx(optimal_surfaces(session.problem).energy)


def test_a_pin_that_conflicts_can_be_taken_back():
    session = SurfaceSession(session_problem())
    at = session.problem.positions()[0]
    session.pin(0, (3, 2), float(at[3, 2, 0]), 0.1)
    session.pin(0, (3, 3), float(at[3, 3, 9]), 0.1)
    with pytest.raises(StepError, match="a pin or costs of surface 0"):
        session.solve()
    session.unpin(0, (3, 3))
    assert int(session.solve().index[0, 3, 2]) == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pin(0, (1, 1), 500.0, 1.0), "no node lies near the pin"),
        (lambda s: s.pin(2, (1, 1), 5.0, 1.0), "no such surface or column"),
        (lambda s: s.set_costs(0, (1,), torch.zeros(14)), "no such surface or column"),
        (lambda s: s.set_costs(0, (1, 1), torch.zeros(3)), "number of costs"),
        (lambda s: s.attract(0, (1, 1), 5.0, strength=1.0, radius_mm=0.0), "radius"),
    ],
)
def test_edits_that_are_wrong(edit, message):
    with pytest.raises(UsageError, match=message):
        edit(SurfaceSession(session_problem()))
