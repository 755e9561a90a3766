"""Minimum cuts: every solver gives the same cut, with a flow that proves it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache

import cut_instances as make
import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.problem import (
    INFINITE,
    ArcFamily,
    CutProblem,
    quantise,
    tails_and_heads,
)
from medpipe.graphcut.solve import SOLVERS, min_cut
from medpipe.graphcut.surfaces import ConvexPrior, Separation, SurfaceProblem, optimal_surfaces


def loose(depth: int, size: int, seed: int) -> np.ndarray:
    """Positions (size, 1, depth) with gaps of 1 to 7, so that columns overlap anyhow."""
    return np.cumsum(np.random.default_rng(seed).integers(1, 8, (size, 1, depth)), -1)


INSTANCES: dict[str, Callable[[], CutProblem]] = {}
for kind, size, near, weight, seed in [
    ("regional", 12, 6, 60, 0),
    ("regional", 12, 6, 10, 1),
    ("regional", 9, 26, 20, 2),
    ("regional", 5, 26, 200, 3),
    ("seeds", 12, 6, 60, 0),
    ("seeds", 12, 6, 15, 1),
    ("seeds", 10, 26, 30, 2),
    ("smooth", 12, 6, 60, 0),
    ("smooth", 12, 6, 150, 1),
    ("smooth", 9, 26, 60, 2),
]:
    INSTANCES[f"grid-{kind}-{size}-{near}-{seed}"] = lambda a=(kind, size, near, weight, seed): (
        make.grid(*a)
    )
for size, margin, seed in [(12, 2, 0), (14, 3, 1), (16, 4, 2)]:
    INSTANCES[f"nested-{size}-{margin}"] = lambda a=(size, margin, seed): make.nested(*a)
for kind, wrap, seed in itertools.product(make.SMOOTH, ((), (1, 2)), (0, 1)):
    INSTANCES[f"columns-{kind}-{len(wrap)}-{seed}"] = lambda k=kind, s=seed, w=wrap: make.columns(
        k, (7, 6), 12 + 4 * s, 3 - s, s, w
    )
for seed in (0, 1, 2):
    INSTANCES[f"irregular-{seed}"] = lambda s=seed: make.irregular((6, 7), 14, 2, s)
    INSTANCES[f"loose-{seed}"] = lambda s=seed: make.irregular(
        (9, 1), 8, 2, s, psi=make.quadratic(1), jump=15, positions=loose(8, 9, s), reach=7
    )
    INSTANCES[f"ring-{seed}"] = lambda s=seed: make.ring(16, 20, s)
    INSTANCES[f"linked-ring-{seed}"] = lambda s=seed: make.ring(16, 20, s, linked=True)
INSTANCES["maze"] = lambda: make.maze(16, 2)
INSTANCES["maze-odd"] = lambda: make.maze(15, 3, 1)
INSTANCES["random-levels"] = lambda: make.random_levels(12, 12)
INSTANCES["random-levels-1"] = lambda: make.random_levels(6, 30, 1)


def tiny(seed: int) -> CutProblem:
    """Any arcs in any direction on 2 × 2 × 3 nodes, one axis in a ring of three or more."""
    rng = np.random.default_rng(seed)
    shape = (3, 2, 2)
    offsets = [(0, 0, 1), (0, 1, -1), (1, 0, 0), (1, 1, 1), (-1, 0, 1)]
    arcs = [
        ArcFamily(o, *(make.tensor(rng.integers(0, 9, shape)) for _ in range(2))) for o in offsets
    ]
    source, sink = (make.tensor(rng.integers(0, 12, shape)) for _ in range(2))
    wrap = (0,) if seed % 2 else ()
    return CutProblem(source, sink, arcs, wrap)


def truth(problem: CutProblem) -> tuple[int, torch.Tensor]:
    """Return flow and largest source side from networkx."""
    graph = networkx.DiGraph()
    graph.add_nodes_from(["s", "t"])

    def add(a, b, capacity):
        if capacity:
            old = graph.edges[a, b]["capacity"] if graph.has_edge(a, b) else 0
            graph.add_edge(a, b, capacity=old + int(capacity))

    for family in problem.arcs:
        full = [
            torch.as_tensor(c).expand(problem.shape).reshape(-1).tolist()
            for c in (family.forward, family.backward)
        ]
        index = torch.arange(problem.source.numel()).reshape(problem.shape)
        ends = tails_and_heads(problem, family.offset, index)
        for p, q in zip(*(v.reshape(-1).tolist() for v in ends), strict=True):
            add(p, q, full[0][p])
            add(q, p, full[1][p])
    for p, value in enumerate(problem.source.reshape(-1).tolist()):
        add("s", p, value)
    for p, value in enumerate(problem.sink.reshape(-1).tolist()):
        add(p, "t", value)
    residual = networkx.algorithms.flow.preflow_push(graph, "s", "t")
    left = networkx.DiGraph()
    left.add_nodes_from([*range(problem.source.numel()), "s", "t"])
    left.add_edges_from(
        (b, a) for a, b, d in residual.edges(data=True) if d["capacity"] > d["flow"]
    )
    reach = networkx.descendants(left, "t")
    side = torch.tensor([p not in reach for p in range(problem.source.numel())])
    return int(residual.graph["flow_value"]), side.reshape(problem.shape)


@pytest.fixture(scope="module")
def reference():
    """Flow and source side of an instance by the first solver, solved once."""
    known: dict[str, tuple[int, torch.Tensor]] = {}

    def get(name: str) -> tuple[int, torch.Tensor]:
        if name not in known:
            result = min_cut(INSTANCES[name](), "scipy")
            known[name] = (result.flow, result.source_side)
        return known[name]

    return get


def test_there_are_instances_of_every_kind():
    assert len(INSTANCES) >= 30


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s != "scipy"])
@pytest.mark.parametrize("name", INSTANCES)
def test_every_solver_gives_the_same_proved_cut(name, solver, reference):
    result = min_cut(INSTANCES[name](), solver)
    flow, side = reference(name)
    assert result.proved
    assert result.solver == solver
    assert result.flow == flow > 0
    assert torch.equal(result.source_side, side)
    assert 0 < int(side.sum()) < side.numel()  # the instance has something to decide


@pytest.mark.parametrize("solver", SOLVERS)
def test_agrees_with_networkx(solver):
    for problem in (
        make.grid("regional", 4, weight=40),
        make.nested(6, 1),
        make.columns("linear", (3, 3), 6, 2),
        make.irregular((4, 1), 6, 2, psi=make.quadratic(1), reach=5),
        make.ring(5, 6),
        make.ring(5, 6, linked=True),
        make.maze(6, 1),
        make.random_levels(4, 5),
        *map(tiny, range(6)),
    ):
        flow, side = truth(problem)
        result = min_cut(problem, solver)
        assert (result.flow, result.cut) == (flow, flow)
        assert torch.equal(result.source_side, side)


@lru_cache
def enumerated(seed: int) -> tuple[int, torch.Tensor]:
    """Least cost of all cuts of a tiny problem, and the union of the cuts that have it."""
    problem = tiny(seed)
    sides = np.array(list(itertools.product((False, True), repeat=12)))
    flat = [t.reshape(-1).numpy() for t in (problem.source, problem.sink)]
    costs = ~sides @ flat[0] + sides @ flat[1]
    index = torch.arange(12).reshape(problem.shape)
    for family in problem.arcs:
        ends = tails_and_heads(problem, family.offset, index)
        p, q = (v.reshape(-1).numpy() for v in ends)
        out, back = (c.reshape(-1).numpy()[p] for c in (family.forward, family.backward))
        costs += (sides[:, p] & ~sides[:, q]) @ out + (sides[:, q] & ~sides[:, p]) @ back
    largest = sides[costs == costs.min()].any(0)  # minimum cuts are closed under union
    return int(costs.min()), torch.from_numpy(largest).reshape(problem.shape)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_all_cuts_enumerated(solver, seed):
    cost, largest = enumerated(seed)
    result = min_cut(tiny(seed), solver)
    assert result.cut == result.flow == cost
    assert torch.equal(result.source_side, largest)


def surfaces_on_columns(kind: str, seed: int) -> tuple[CutProblem, tuple]:
    """Two surfaces on three columns of five nodes; the problem and the terms of its energy."""
    depth, width = 5, (3, 1)
    costs = make.layer_costs(2, width, depth, seed)
    if kind in make.SMOOTH:
        psi, jump = make.SMOOTH[kind]
        places = np.broadcast_to(np.arange(depth), (*width, depth))
        problem = make.columns(kind, width, depth, 2, seed)
    else:
        psi, jump = make.quadratic(1), (9 if kind == "loose" else 8)
        places = loose(depth, 3, seed) if kind == "loose" else make.jittered(width, depth, seed)
        problem = make.irregular(
            width, depth, 2, seed, psi=psi, jump=jump, positions=places, reach=depth - 1
        )
    return problem, (costs, places, psi, jump, make.limits(2, depth))


@lru_cache
def least_energy(kind: str, seed: int) -> float:
    """Least energy of all surfaces, by trying each."""
    _, terms = surfaces_on_columns(kind, seed)
    every = np.stack(np.meshgrid(*[np.arange(5)] * 6, indexing="ij"), -1).reshape(-1, 2, 3, 1)
    return float(make.energies(every, *terms).min())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [*make.SMOOTH, "irregular", "loose"])
def test_columns_have_the_energy_of_the_best_surfaces(kind, seed, solver):
    problem, terms = surfaces_on_columns(kind, seed)
    result = min_cut(problem, solver)
    found = result.source_side.sum(-1).numpy() - 1
    assert make.energies(found[None], *terms)[0] == least_energy(kind, seed)
    assert result.proved


def test_links_are_what_wrapping_is():
    wrapped, linked = make.ring(12, 14), make.ring(12, 14, linked=True)
    a, b = min_cut(wrapped), min_cut(linked)
    assert a.flow == b.flow
    assert torch.equal(a.source_side[:, :, 0], b.source_side)


@pytest.mark.real_data
def test_the_real_ring_has_closed_surfaces(real_data):
    result = min_cut(make.real_ring(real_data))
    depth = result.source_side.sum(-1)[..., 0] - 1
    assert result.proved
    assert int((depth - depth.roll(1, 1)).abs().max()) <= 3
    assert int((depth[1:] - depth[:-1]).min()) >= 8


# --- what is refused -----------------------------------------------------------------


def plain(**change):
    """Return the parts of a valid problem of 2 × 3 × 4 nodes, some of them changed."""
    ones = torch.ones(2, 3, 4, dtype=torch.int32)
    return {"source": ones, "sink": ones, "arcs": [ArcFamily((0, 0, 1), 1)]} | change


ONES = torch.ones(2, 3, 4, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": torch.ones(2, 0, 4, dtype=torch.int32)}, "lattice is empty"),
        ({"source": torch.tensor(1)}, "lattice is empty"),
        ({"sink": ONES[:1]}, "differ in shape"),
        ({"source": -ONES}, "source capacities are out of range"),
        ({"sink": ONES.long() * (INFINITE + 1)}, "sink capacities are out of range"),
        ({"source": ONES.float()}, "not integers"),
        ({"sink": ONES * 1j}, "not integers"),
        ({"arcs": [ArcFamily((0, 1), 1)]}, "unusable offset"),
        ({"arcs": [ArcFamily((0, 0, 0), 1)]}, "unusable offset"),
        ({"arcs": [ArcFamily((0, 0, 1), -1)]}, "out of range"),
        ({"arcs": [ArcFamily((0, 0, 1), 1, -1)]}, "out of range"),
        ({"arcs": [ArcFamily((0, 0, 1), ONES, ONES.double())]}, "not integers"),
        ({"arcs": [ArcFamily((0, 0, 1), ONES[None])]}, "wrong shape"),
        ({"arcs": [ArcFamily((0, 0, 1), ONES[:, :2])]}, "wrong shape"),
        ({"wrap": (2,)}, "runs along the columns"),
        ({"wrap": (-1,)}, "does not exist"),
        ({"links": torch.tensor([[1, 2]])}, "do not fit the lattice"),
        ({"links": torch.tensor([1, 2, 0])}, "do not fit the lattice"),
        ({"links": torch.tensor([[1, 1, 0]])}, "names a column twice"),
        ({"links": torch.tensor([[1, 3, 0]])}, "does not exist"),
    ],
)
def test_unusable_problems_are_refused(change, says):
    with pytest.raises(StepError, match=says):
        CutProblem(**plain(**change))


def test_an_unknown_solver_is_refused():
    with pytest.raises(UsageError, match=r"auto, .*scipy"):
        min_cut(CutProblem(**plain()), "magic")


@pytest.mark.parametrize("solver", SOLVERS)
def test_hard_constraints_that_contradict_are_named(solver):
    source, sink = torch.zeros(2, 2, 3, 4, dtype=torch.int32)
    source[0, 0, 0], sink[0, 0, 2] = INFINITE, INFINITE
    problem = CutProblem(source, sink, [ArcFamily((0, 0, 1), INFINITE)])
    with pytest.raises(StepError, match="no cut satisfies the hard constraints"):
        min_cut(problem, solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_voxel_seeded_as_both_is_named(solver):
    source, sink = torch.zeros(2, 1, 2, 3, dtype=torch.int32)
    source[0, 0, 1], sink[0, 0, 1] = INFINITE, INFINITE
    with pytest.raises(StepError, match="seeds"):
        min_cut(CutProblem(source, sink, []), solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_problem_without_arcs_is_decided_by_its_terminals(solver):
    source = torch.tensor([[[0, 5, 3, 2]]], dtype=torch.int32)
    sink = torch.tensor([[[4, 0, 3, 7]]], dtype=torch.int32)
    result = min_cut(CutProblem(source, sink, []), solver)
    assert result.flow == result.cut == 0 + 0 + 3 + 2
    assert result.source_side.tolist() == [[[False, True, True, False]]]  # equal: largest side


@pytest.mark.parametrize("solver", SOLVERS)
def test_solving_changes_nothing_in_the_problem(solver):
    problem = make.nested(8, 1)
    tensors = [problem.source, problem.sink, *(a.forward for a in problem.arcs)]
    before = [t.clone() if isinstance(t, torch.Tensor) else t for t in tensors]
    min_cut(problem, solver)
    for old, new in zip(before, tensors, strict=True):
        assert torch.equal(torch.as_tensor(old), torch.as_tensor(new))


# --- integers ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_quantise_refuses_what_is_no_cost(value):
    with pytest.raises(StepError, match="unaries hold NaN or -inf"):
        quantise(torch.tensor([1.0, value]), 0.1, what="unaries")


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf"), -float("inf")])
def test_quantise_refuses_a_step_that_is_no_cost_of_a_unit(step):
    with pytest.raises(StepError, match="not positive and finite"):
        quantise(torch.tensor([1.0]), step)


def test_quantise_refuses_what_does_not_fit():
    with pytest.raises(StepError, match="too large for exact integers"):
        quantise(torch.tensor([2.0**30]), 1.0)
    assert int(quantise(torch.tensor([2.0**30 - 1], dtype=torch.float64), 1.0).values) < INFINITE


@settings(deadline=None, max_examples=100)
@given(
    costs=st.lists(st.floats(-1e5, 1e5) | st.just(float("inf")), max_size=20),
    step=st.floats(1e-3, 1e3),
)
def test_quantise_loses_at_most_half_a_step(costs, step):
    real = torch.tensor(costs, dtype=torch.float64)
    done = quantise(real, step)
    hard = torch.isinf(real)
    assert done.values.dtype == torch.int32
    assert bool((done.values[hard] == INFINITE).all())
    error = (done.values[~hard].double() * done.step - real[~hard]).abs()
    assert done.largest_error <= step / 2 * (1 + 1e-9)
    assert bool((error <= done.largest_error + 1e-9 * step + 1e-12 * real[~hard].abs()).all())


# --- the builder of the package makes the same problems --------------------------------


@pytest.mark.parametrize("kind", [*make.SMOOTH, "irregular"])
@pytest.mark.parametrize("seed", range(2))
def test_optimal_surfaces_are_those_of_the_instances(kind, seed):
    width, depth = (6, 5), 14
    surfaces = 1 if kind == "irregular" else 2  # separations of instances are in nodes
    costs = torch.from_numpy(make.layer_costs(surfaces, width, depth, seed)).double()
    if kind == "irregular":
        places = torch.from_numpy(make.jittered(width, depth, seed)).double()
        prior, apart = ConvexPrior("linear", 1, max_jump_mm=16), ()
        problem = make.irregular(width, depth, 1, seed)
    else:
        places = torch.arange(depth).double()
        name, weight = {"linear": ("linear", 4), "quadratic": ("quadratic", 2)}.get(
            kind, ("none", 1)
        )
        prior = ConvexPrior(name, weight, max_jump_mm=make.SMOOTH[kind][1])
        apart = Separation(*make.limits(surfaces, depth))
        problem = make.columns(kind, width, depth, surfaces, seed)
    result = optimal_surfaces(SurfaceProblem(costs, places, prior, apart))
    assert result.proved
    assert torch.equal(result.index, min_cut(problem).source_side.sum(-1) - 1)
