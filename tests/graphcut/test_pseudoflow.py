"""The CPU solver: equal to a general solver on random lattices, exact warm starts, wide sums."""

from __future__ import annotations

import pytest
import torch
from cut_instances import maze

from medpipe.errors import StepError
from medpipe.graphcut.incremental import IncrementalCut
from medpipe.graphcut.problem import INFINITE, ArcFamily, CutProblem, cut_value
from medpipe.graphcut.pseudoflow import solve_pseudoflow
from medpipe.graphcut.residual import residual_of
from medpipe.graphcut.solve import min_cut


def random_problem(seed: int) -> CutProblem:
    """Return a small lattice with random axes, wraps, links, offsets and infinite arcs."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=g))

    axes = draw(1, 5)
    shape = tuple(draw(1, 6) for _ in range(axes))
    wrap = tuple(axis for axis in range(axes - 1) if draw(0, 5) < 2)
    links = None
    if axes == 3 and draw(0, 2):
        wrap, columns = (), shape[1]
        rows = [torch.randperm(columns, generator=g) for _ in range(2)]
        gone = [torch.rand(columns, generator=g) < 0.3 for _ in rows]
        links = torch.stack([torch.where(x, -1, r) for x, r in zip(gone, rows, strict=True)])
    arcs = []
    for _ in range(draw(1, 7)):
        offset = [draw(-2, 3) for _ in range(axes)]
        if links is not None:
            offset[1] = draw(0, 3)
        if not any(offset):
            continue
        forward = torch.randint(0, 9, shape, generator=g)
        forward[torch.rand(shape, generator=g) < 0.1] = INFINITE
        backward = torch.randint(0, 9, shape, generator=g) if draw(0, 2) else 0
        arcs.append(ArcFamily(tuple(offset), forward, backward))
    terminals = [torch.randint(0, 30, shape, generator=g) for _ in range(2)]
    return CutProblem(*terminals, arcs, wrap, links)


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_the_cut_of_random_lattices_is_that_of_a_general_solver(first):
    for seed in range(first, first + 50):
        problem = random_problem(seed)
        ours, other = min_cut(problem, "pseudoflow"), min_cut(problem, "ortools")
        assert ours.flow == ours.cut == other.flow, seed
        assert torch.equal(ours.source_side, other.source_side), seed


def test_64_bits_give_the_cut_of_32():
    for seed in range(40):
        problem = random_problem(seed)
        narrow, wide = (solve_pseudoflow(problem, wide=w) for w in (False, True))
        assert torch.equal(narrow[0], wide[0])
        assert narrow[1] == wide[1]
        assert (narrow[2]["bits"], wide[2]["bits"]) == (32, 64)


def test_flow_beyond_32_bits_does_not_fill_a_hard_constraint():
    source = torch.tensor([INFINITE * 6 // 10] * 5 + [0] * 3)
    sink = torch.tensor([0] * 5 + [INFINITE * 3 // 4] * 3)
    # all the flow of the first five nodes passes the arc from the fifth to the sixth
    problem = CutProblem(source, sink, [ArcFamily((1,), INFINITE)])
    result = min_cut(problem)
    assert result.stats["bits"] == 64
    assert result.flow == result.cut == int(sink.sum())
    assert bool(result.source_side.all())


def test_contradicting_seeds_are_an_error():
    seeds = torch.tensor([INFINITE, 0, 0]), torch.tensor([0, 0, INFINITE])
    with pytest.raises(StepError, match="hard constraints"):
        min_cut(CutProblem(*seeds, [ArcFamily((1,), INFINITE)]))
    both = torch.tensor([INFINITE])
    with pytest.raises(StepError, match="hard constraints"):
        min_cut(CutProblem(both, both, []))


def test_opposite_and_repeated_offsets_share_a_pair_of_slots():
    shape = (3, 4)
    zero = torch.zeros(shape, dtype=torch.int64)
    arcs = [ArcFamily((1, 0), 2, 3), ArcFamily((-1, 0), 5), ArcFamily((1, 0), 7)]
    state = residual_of(CutProblem(zero, zero, arcs))
    assert state.capacity.shape == (12, 2)
    grid = state.capacity.reshape(3, 4, 2)
    assert (grid[:2, :, 0] == 9).all()
    assert (grid[1:, :, 1] == 8).all()
    assert (grid[2, :, 0] == 0).all()
    assert (grid[0, :, 1] == 0).all()


@pytest.mark.parametrize("seed", range(25))
def test_a_warm_start_gives_the_cut_of_a_fresh_one(seed):
    problem = random_problem(seed)
    g = torch.Generator().manual_seed(1000 + seed)
    session = IncrementalCut(problem)
    session.solve()
    for _ in range(4):
        now = session.problem
        deltas = []
        for capacity in (now.source, now.sink):
            new = torch.where(
                torch.rand(now.shape, generator=g) < 0.3,
                torch.randint(0, 60, now.shape, generator=g),
                capacity,
            )
            deltas.append(new - capacity)
        session.change(*deltas)
        warm, fresh = session.solve(), min_cut(session.problem, "ortools")
        assert warm.flow == warm.cut == fresh.flow
        assert torch.equal(warm.source_side, fresh.source_side)


def test_a_warm_start_pushes_less_than_a_fresh_one():
    g = torch.Generator().manual_seed(0)
    shape = (20, 20, 20)
    terminals = [torch.randint(0, 40, shape, generator=g) for _ in range(2)]
    arcs = [ArcFamily(o, 15, 15) for o in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    session = IncrementalCut(CutProblem(*terminals, arcs))
    first = session.solve().stats["pushes"]
    delta = torch.zeros(shape, dtype=torch.int64)
    delta[9:11, 9:11, 9:11] = 500
    session.change(delta, torch.zeros_like(delta))
    again = session.solve()
    assert again.stats["pushes"] < first / 5
    assert again.flow == min_cut(session.problem, "ortools").flow


def test_a_change_must_leave_capacities_in_range():
    session = IncrementalCut(random_problem(3))
    change = torch.full(session.problem.shape, -100)
    with pytest.raises(StepError, match="out of range"):
        session.change(change, torch.zeros_like(change))


def test_the_reported_cut_is_the_sum_of_what_it_severs():
    problem = random_problem(7)
    result = min_cut(problem)
    assert result.proved
    assert cut_value(problem, result.source_side) == result.cut
    worse = result.source_side.clone().reshape(-1)
    for node in range(worse.numel()):
        worse[node] = ~worse[node]
        try:
            value = cut_value(problem, worse.reshape(problem.shape))
        except StepError:
            value = INFINITE
        assert value >= result.cut
        worse[node] = ~worse[node]


def test_capacities_do_not_depend_on_how_many_nodes_are_put_in_order_at_once(monkeypatch):
    for seed in range(60):
        problem = random_problem(seed)
        whole = residual_of(problem).capacity
        monkeypatch.setattr("medpipe.graphcut.residual.SLAB", 1 + seed % 9)
        assert (residual_of(problem).capacity == whole).all(), seed
        monkeypatch.undo()


def test_distances_are_computed_anew_where_the_next_deficit_is_far():
    for seed in range(3):
        problem = maze(64, 3, seed)
        result, other = (min_cut(problem, solver) for solver in ("pseudoflow", "ortools"))
        assert result.proved
        assert result.flow == other.flow
        assert torch.equal(result.source_side, other.source_side)
        assert result.stats["relabels"] < 60 * problem.source.numel()
