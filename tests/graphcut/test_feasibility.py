"""What hard limits leave to surfaces, and how a conflict is explained."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import torch
from surface_reference import edges, random_problem

from medpipe.errors import StepError, UsageError
from medpipe.graphcut import feasibility
from medpipe.graphcut.feasibility import feasible_limits
from medpipe.graphcut.surfaces import ConvexPrior, Separation, SurfaceProblem, optimal_surfaces


def solutions(problem):
    """Every choice of nodes that keeps the hard limits, (N, S·C)."""
    shape = problem.shape
    sites = [(s, *c) for s in range(shape[0]) for c in np.ndindex(*shape[1:-1])]
    present, data = problem.present().numpy(), problem.with_data().numpy()
    at, costs = problem.positions().numpy(), problem.costs.numpy()
    axes = [np.arange(shape[-1] if present[site] else 1) for site in sites]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(sites))
    keep = np.ones(len(index), dtype=bool)
    for i, site in enumerate(sites):
        if data[site]:
            keep &= np.isfinite(costs[site][index[:, i]])
    for (a, ca), (b, cb), _, least, most, _ in edges(problem):
        i, j = sites.index((a, *ca)), sites.index((b, *cb))
        x = at[(b, *cb)][index[:, j]] - at[(a, *ca)][index[:, i]]
        keep &= (x >= least - 1e-9) & (x <= most + 1e-9)
    return index[keep]


def test_limits_are_the_extremes_of_all_solutions():
    feasible = infeasible = 0
    for seed in range(1000, 1200):
        problem = random_problem(np.random.default_rng(seed))
        found = solutions(problem)
        if len(found) == 0:
            infeasible += 1
            with pytest.raises(StepError):
                feasible_limits(problem)
            continue
        feasible += 1
        limits = feasible_limits(problem)
        assert np.array_equal(limits.low.reshape(-1).numpy(), found.min(0)), seed
        assert np.array_equal(limits.high.reshape(-1).numpy(), found.max(0)), seed
    assert feasible > 100
    assert infeasible > 15


def test_only_limits_of_what_moved_are_applied_again(monkeypatch):
    """A pin spreads over 30 columns of one of four surfaces that nothing ties."""
    prior = ConvexPrior("linear", max_jump_mm=1.0)
    problem = SurfaceProblem(torch.zeros(4, 31, 1, 40), torch.arange(40.0), prior)
    pinned = torch.zeros(4, 31, 1, dtype=torch.int64)
    pinned[2, 0] = 39
    search, calls = feasibility._search, []
    monkeypatch.setattr(
        feasibility, "_search", lambda *a, **k: calls.append(a[1].numel()) or search(*a, **k)
    )
    limits = feasible_limits(problem, lowest=pinned, highest=torch.full_like(pinned, 39))
    assert limits.low[2, :, 0].tolist() == list(range(39, 8, -1))
    assert int(limits.low.sum()) == int(limits.low[2].sum())
    assert set(calls) == {31}  # one value per column, never all its nodes
    # 4 surfaces × 2 axes × 2 ends × 2 ways once, then the lower end of one surface
    assert len(calls) <= 4 * 8 + 4 * 31


def test_nodes_out_of_reach_are_left_out():
    """The top of the lower and the bottom of the upper surface cannot be reached."""
    costs = torch.zeros(2, 2, 2, 10)
    # the cheapest nodes are those that only look reachable
    costs[0, ..., 9] = -100
    costs[1, ..., 0] = -100
    problem = SurfaceProblem(costs, torch.arange(10.0), ConvexPrior(), Separation(3.0))
    limits = feasible_limits(problem)
    assert bool((limits.high[0] == 6).all())
    assert bool((limits.low[1] == 3).all())
    result = optimal_surfaces(problem)
    assert result.energy == 0
    assert bool((result.index[1] - result.index[0] >= 3).all())


def test_positions_that_come_from_float32_keep_a_limit():
    """0.1 mm spacing in float32 is no exact multiple; a limit of 0.3 mm means 3 nodes."""
    costs = torch.zeros(1, 2, 1, 400)
    costs[0, 0, 0, 300] = costs[0, 1, 0, 303] = -1
    position = torch.arange(400) * torch.tensor(0.1)
    problem = SurfaceProblem(costs, position, ConvexPrior(max_jump_mm=0.3))
    assert optimal_surfaces(problem).energy == -2


@pytest.mark.parametrize("node", range(10, 390, 41))
@pytest.mark.parametrize("jump", [3, -3])
def test_forced_nodes_at_a_limit_are_feasible(node, jump):
    """The rounding of positions must not make a limit that is just met a conflict."""
    costs = torch.full((1, 2, 1, 400), inf)
    costs[0, 0, 0, node] = costs[0, 1, 0, node + jump] = 0.0
    position = torch.arange(400) * torch.tensor(0.1)
    limits = feasible_limits(SurfaceProblem(costs, position, ConvexPrior(max_jump_mm=0.3)))
    assert limits.low.tolist() == limits.high.tolist() == [[[node], [node + jump]]]


def problem(costs=None, positions=None, prior=None, separation=(), **parts):
    costs = torch.zeros(2, 3, 2, 8) if costs is None else costs
    positions = torch.arange(8.0) if positions is None else positions
    return SurfaceProblem(costs, positions, prior or ConvexPrior(), separation, **parts)


def forbidden(*places):
    costs = torch.zeros(2, 3, 2, 8)
    for surface, x, y, nodes in places:
        costs[surface, x, y, nodes] = inf
    return costs


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"separation": Separation(4.0, 2.0)},
            ["separation of surfaces 0 and 1", "at least 4 mm", "at most 2 mm"],
        ),
        (
            {"separation": Separation(9.0)},
            ["column (0, 0)", "shorter than the separations", "9 mm or more", "got 7 mm"],
        ),
        (
            {
                "costs": torch.zeros(3, 3, 2, 8),
                "separation": [Separation(4.0), Separation(3.5)],
            },
            ["surfaces 0 to 2", "7.5 mm or more", "got 7 mm"],
        ),
        (
            {"costs": forbidden((0, 1, 1, slice(None)))},
            ["surface 0 may lie at no node", "column (1, 1)"],
        ),
        (
            {
                "costs": forbidden((0, 0, 0, slice(1, None)), (0, 2, 0, slice(0, 7))),
                "prior": ConvexPrior(max_jump_mm=2.0),
            },
            ["surface 0", "smoothness of surface 0 along axis 0 (at most 2 mm)", "at least"],
        ),
        (
            {
                "costs": forbidden((0, 0, 0, slice(0, 4)), (1, 1, 0, slice(5, None))),
                "prior": ConvexPrior(max_jump_mm=1.0),
                "separation": Separation(3.0),
            },
            ["separation of surfaces 0 and 1 (at least 3 mm)", "smoothness of surface", "1 mm"],
        ),
        (
            # on a ring every step must climb
            {"prior": ConvexPrior(max_jump_mm=0.5, expected_mm=1.0), "wrap": (0,)},
            ["smoothness of surface 0 along axis 0 (at least 0.5 mm)"],
        ),
    ],
)
def test_conflicts_are_explained_in_one_line(parts, words):
    with pytest.raises(StepError) as caught:
        optimal_surfaces(problem(**parts))
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_a_conflict_on_a_mesh_names_its_columns():
    costs = torch.zeros(1, 3, 8)
    costs[0, 2, :6] = inf
    costs[0, 0, 2:] = inf
    links = torch.tensor([[-1, 0, -1], [2, -1, -1]])
    prior = ConvexPrior(max_jump_mm=1.0)
    with pytest.raises(StepError, match=r"smoothness of surface 0 along links 1") as caught:
        optimal_surfaces(SurfaceProblem(costs, torch.arange(8.0), prior, links=links))
    assert "column (2)" in str(caught.value) or "column (0)" in str(caught.value)


def swapped(row):
    positions = torch.arange(8.0).repeat(3, 2, 1)
    positions[1, 0, row] = positions[1, 0, row - 1]
    return positions


def infinite(value, node=3):
    costs = torch.zeros(2, 3, 2, 8)
    costs[1, 2, 0, node] = value
    return costs


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"positions": swapped(4)}, ["do not increase", "column (1, 0)", "node 4", "3 mm"]),
        ({"positions": torch.arange(8.0).flip(0)}, ["do not increase"]),
        ({"positions": torch.full((8,), inf)}, ["NaN or infinite"]),
        ({"positions": torch.arange(7.0)}, ["positions_mm does not fit"]),
        ({"costs": infinite(float("nan"))}, ["surface 1", "column (2, 0)", "node 3", "NaN"]),
        ({"costs": infinite(-inf)}, ["-inf"]),
        ({"costs": torch.zeros(2, 3, 8)}, ["wrong shape"]),
        ({"costs": torch.zeros(2, 0, 2, 8)}, ["wrong shape"]),
        ({"region_costs": torch.zeros(2, 3, 2, 8)}, ["region_costs do not fit"]),
        ({"region_costs": torch.full((3, 3, 2, 8), inf)}, ["region_costs hold"]),
        ({"valid": torch.ones(2, 2, dtype=torch.bool)}, ["valid does not fit"]),
        ({"missing": "maybe"}, ["'bridge' or 'absent'"]),
        ({"wrap": (2,)}, ["wrap is wrong"]),
        ({"prior": [ConvexPrior()]}, ["number of priors"]),
        ({"prior": [ConvexPrior(), [ConvexPrior()]]}, ["wrong number of priors"]),
        ({"links": torch.zeros(1, 5, dtype=torch.int64)}, ["wrong shape"]),
    ],
)
def test_problems_that_are_malformed(parts, words):
    with pytest.raises(StepError) as caught:
        problem(**parts)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"separation": [Separation(), Separation()]}, "number of separations"),
        ({"separation": {(0, 2): Separation()}}, "do not exist"),
        ({"separation": {(1, 1): Separation()}}, "do not exist"),
        ({"separation": Separation(torch.zeros(5, 2))}, "wrong shape"),
        ({"separation": Separation(float("nan"))}, "NaN"),
        ({"prior": ConvexPrior("linear", torch.ones(4, 2))}, "wrong shape"),
    ],
)
def test_limits_that_are_malformed(parts, word):
    with pytest.raises(StepError, match=word):
        optimal_surfaces(problem(**parts))


def test_an_unknown_solver():
    with pytest.raises(UsageError, match="solver"):
        optimal_surfaces(problem(), solver="magic")
