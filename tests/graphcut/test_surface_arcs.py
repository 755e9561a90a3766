"""Arc families of irregular columns: the weights, their rounding and their limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from surface_reference import SOFT, lopsided
from test_convex import TABLE, A, B

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.convex import ConvexPrior, arc_weights
from medpipe.graphcut.problem import INFINITE, cut_value
from medpipe.graphcut.surface_graph import build_graph, energy_of
from medpipe.graphcut.surfaces import Separation, SurfaceProblem


def two_columns(prior, a=A, b=B, **parts):
    positions = torch.from_numpy(np.array([a, b], dtype=float))[:, None]
    costs = parts.pop("costs", torch.zeros(1, 2, 1, len(a), dtype=torch.float64))
    return SurfaceProblem(costs, positions, prior, **parts)


def arcs_between(graph, depth):
    """Capacities from column a to column b and back, (K, K) each, from the families."""
    there = torch.zeros(depth, depth, dtype=torch.int64)
    back = torch.zeros(depth, depth, dtype=torch.int64)
    for family in graph.cut.arcs:
        if family.offset[:3] != (0, 1, 0):
            continue
        for k in range(depth):
            j = k + family.offset[3]
            for side, target in ((family.forward, there), (family.backward, back)):
                if 0 <= j < depth and isinstance(side, torch.Tensor):
                    target[k, j] = side[0, 0, 0, k]
    return there, back.T


def test_the_arcs_of_the_paper_on_the_lattice():
    graph = build_graph(two_columns(ConvexPrior("linear")), step=1.0)
    there, back = arcs_between(graph, 6)
    for (i, j), (forward, backward) in TABLE.items():
        if i > 0:
            assert (int(there[i, j]), int(back[j, i])) == (forward, backward)
    # the lowest node is always below the surface: its arcs are source capacities
    assert graph.cut.source[0, 1, 0].tolist() == [INFINITE, 2, 1, 0, 0, 0]
    assert graph.cut.sink[0, 0, 0].tolist() == [0, 0, 0, 0, 0, 2]
    assert int(there.sum() + back.sum()) == sum(f + b for f, b in TABLE.values()) - 3
    assert graph.rounding == 0


@pytest.mark.parametrize("kind", SOFT)
def test_families_hold_the_dense_weights(kind):
    rng = np.random.default_rng(5)
    a, b = np.cumsum(rng.integers(1, 6, (2, 9)), -1)
    prior = ConvexPrior(kind, 2.0, 1.0, function=lopsided if kind == "custom" else None)
    there, back = arcs_between(build_graph(two_columns(prior, a, b), step=1.0), 9)
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    expected = arc_weights(prior, a, b, direction=-1)[0]
    expected_back = arc_weights(prior, b, a, direction=1)[0]
    assert torch.equal(there[1:].double(), expected[1:])
    assert torch.equal(back[1:].double(), expected_back[1:])


def test_regular_columns_and_a_linear_prior_need_one_family():
    position = torch.arange(10.0)
    problem = SurfaceProblem(torch.zeros(1, 3, 3, 10), position, ConvexPrior("linear"))
    offsets = [f.offset for f in build_graph(problem, step=1.0).cut.arcs]
    assert offsets == [(0, 0, 0, -1), (0, 0, 1, 0), (0, 1, 0, 0)]


def test_a_hard_limit_bounds_the_families():
    position = torch.arange(30.0)
    prior = ConvexPrior("quadratic", max_jump_mm=2.0)
    problem = SurfaceProblem(torch.zeros(1, 2, 1, 30), position, prior)
    diagonals = [f.offset[3] for f in build_graph(problem, step=1.0).cut.arcs if f.offset[1]]
    assert diagonals == [-2, -1, 0, 1, 2]


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("step", [None, 0.01, 0.37])
def test_rounding_is_bounded(kind, step):
    """The cut of any surfaces is their real energy within the slack that is stated."""
    rng = np.random.default_rng(11)
    shape = (2, 3, 2, 7)
    positions = torch.from_numpy(np.cumsum(rng.uniform(0.1, 1.0, shape), -1))
    prior = ConvexPrior(
        kind, 0.731, 0.29, expected_mm=0.1, function=lopsided if kind == "custom" else None
    )
    separation = Separation(-9.0, soft=prior)
    costs = torch.from_numpy(rng.normal(size=shape))
    problem = SurfaceProblem(costs, positions, prior, separation, wrap=(0,))
    graph = build_graph(problem, step)
    off = []
    for _ in range(30):
        index = torch.from_numpy(rng.integers(0, 7, shape[:-1]))
        side = torch.arange(7) <= index[..., None]
        value = (cut_value(graph.cut, side) + graph.constant) * graph.step
        off.append(abs(value - energy_of(problem, graph.relations, index)))
    assert max(off) <= graph.rounding + 1e-9
    assert max(off) > 0
    if step is None:
        assert graph.rounding < 0.05


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("limit", [None, 2.0])
def test_the_bound_on_rounding_is_that_of_the_worst_pair(kind, limit):
    """Two columns, every pair of nodes: never above the bound, and it is reached."""
    reached = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        a, b = np.cumsum(rng.uniform(0.1, 1.0, (2, 8)), -1) + rng.uniform(-2, 2, (2, 1))
        function = lopsided if kind == "custom" else None
        prior = ConvexPrior(kind, 0.731, 0.29, limit, 0.2, function)
        problem = two_columns(prior, a, b, costs=torch.zeros(1, 2, 1, 8))
        graph = build_graph(problem, 0.01)
        worst = 0.0
        for k, m in np.ndindex(8, 8):
            if limit is not None and abs(b[m] - a[k] - 0.2) > limit:
                continue
            index = torch.tensor([k, m])[None, :, None]
            outside = (index < graph.limits.low) | (index > graph.limits.high)
            if bool(outside.any()):
                continue
            side = torch.arange(8) <= index[..., None]
            value = (cut_value(graph.cut, side) + graph.constant) * graph.step
            worst = max(worst, abs(value - energy_of(problem, graph.relations, index)))
        assert worst <= graph.rounding + 1e-9
        reached.append(worst / graph.rounding if graph.rounding else 1.0)
    straight = kind in ("linear", "dead_zone", "huber", "custom")
    assert np.mean(reached) > (0.4 if straight else 0.999)


def test_arcs_are_never_negative():
    """Sums are rounded, not arcs: sums that end in one half stay level."""
    rng = np.random.default_rng(2)
    a, b = np.cumsum(rng.integers(1, 4, (2, 40)), -1) * 0.1
    for kind in ("linear", "quadratic", "huber"):
        prior = ConvexPrior(kind, 0.5, 0.3)
        graph = build_graph(two_columns(prior, a, b), step=0.1)
        there, back = arcs_between(graph, 40)
        assert int(there.min()) >= 0
        assert int(back.min()) >= 0
        if kind == "linear":
            # no stray arcs where the prior is straight: intervals that overlap, no others
            real = arc_weights(prior, torch.from_numpy(a), torch.from_numpy(b))[0]
            assert int(there[1:][real[1:] < 1e-9].max()) == 0


def test_the_default_step_keeps_whole_costs():
    costs = torch.zeros(1, 2, 1, 6)
    costs[0, 0, 0, 3] = 40000
    graph = build_graph(two_columns(ConvexPrior("linear"), costs=costs))
    assert graph.rounding == 0
    assert graph.step <= 1.0


def test_the_default_step_bounds_the_integers():
    costs = 1e12 * torch.rand(1, 2, 1, 6, dtype=torch.float64)
    graph = build_graph(two_columns(ConvexPrior("quadratic", 1e9), costs=costs))
    finite = [t[t < INFINITE] for t in (graph.cut.source, graph.cut.sink)]
    assert max(int(t.max()) for t in finite) < 2**28


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_that_is_wrong(step):
    with pytest.raises(UsageError, match="step"):
        build_graph(two_columns(ConvexPrior("linear")), step)


def test_a_step_that_is_too_small():
    with pytest.raises(StepError, match="too large for exact integers"):
        build_graph(two_columns(ConvexPrior("linear", 1e6)), step=1e-6)


def test_a_function_that_is_not_convex_is_refused():
    prior = ConvexPrior("custom", function=lambda x: x.abs().sqrt())
    with pytest.raises(StepError, match="not convex"):
        build_graph(two_columns(prior))
