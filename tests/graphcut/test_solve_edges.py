"""Minimum cuts at the limits of the integers: sums that fill an infinite arc, narrow types."""

import pytest
import torch

from medpipe.errors import StepError
from medpipe.graphcut.incremental import IncrementalCut
from medpipe.graphcut.problem import INFINITE, ArcFamily, CutProblem, finite_total
from medpipe.graphcut.solve import min_cut

HALF = INFINITE // 2
SOLVERS = ("pseudoflow", "stencil", "ortools", "scipy")
tensor = torch.tensor


def chain(source, sink):
    """Nodes in a row, each tied to the next one by an arc that must not be cut."""
    return CutProblem(tensor(source), tensor(sink), [ArcFamily((1,), INFINITE)])


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_seed_is_kept_even_when_that_costs_more_than_an_infinite_arc(solver):
    result = min_cut(chain([INFINITE, 0, 0, 0, 0], [0, HALF, HALF, HALF, HALF]), solver)
    assert bool(result.source_side.all())
    assert result.flow == result.cut == 4 * HALF


@pytest.mark.parametrize("solver", SOLVERS)
def test_several_seeds_may_fill_one_arc_together(solver):
    result = min_cut(chain([INFINITE, INFINITE, 0, 0, 0], [0, 0, HALF, HALF, HALF]), solver)
    assert bool(result.source_side.all())
    assert result.flow == result.cut == 3 * HALF


@pytest.mark.parametrize("solver", SOLVERS)
def test_parallel_arcs_may_carry_more_than_an_infinite_one(solver):
    most = INFINITE - 2
    families = [ArcFamily((1,), most), ArcFamily((1,), most)]
    result = min_cut(CutProblem(tensor([INFINITE, 0]), tensor([0, INFINITE]), families), solver)
    assert result.source_side.tolist() == [True, False]
    assert result.flow == result.cut == 2 * most


def test_a_merged_pair_of_large_finite_arcs_is_not_taken_for_an_infinite_one():
    # the two arcs together bear 2^31 - 4; held at 2^30 - 1 they would look like the best cut
    most = INFINITE - 2
    families = [ArcFamily((1, 0), most), ArcFamily((1, 0), most)]
    source = tensor([[most, most], [0, 0]])
    sink = tensor([[0, 0], [most, most]])
    across = ArcFamily((0, 1), INFINITE, INFINITE)
    result = min_cut(CutProblem(source, sink, [*families, across]))
    assert result.proved
    assert result.flow == 2 * most


@pytest.mark.parametrize("value", [True, False])
def test_hard_seeds_that_contradict_are_refused_however_large_the_sums(value):
    large = HALF if value else 1
    problem = chain([INFINITE, 0, 0, 0, 0], [0, large, large, large, INFINITE])
    for solver in SOLVERS:
        with pytest.raises(StepError, match="hard constraints"):
            min_cut(problem, solver)


def test_a_warm_start_keeps_seeds_that_cost_more_than_an_infinite_arc():
    session = IncrementalCut(chain([5, 0, 0, 0, 0], [0, 1, 1, 1, 1]))
    assert session.solve().flow == 4
    seed, price = tensor([INFINITE - 5, 0, 0, 0, 0]), tensor([0, HALF, HALF, HALF, HALF])
    session.change(seed, price)
    result = session.solve()
    assert bool(result.source_side.all())
    assert result.flow == result.cut == 4 * (HALF + 1)
    # dearer again than the infinity that was enough before
    session.change(torch.zeros_like(seed), tensor([INFINITE - 1, 0, 0, 0, 0]))
    assert session.solve().flow == 4 * (HALF + 1) + INFINITE - 1
    session.change(-seed, -price)
    result, fresh = session.solve(), min_cut(session.problem, "ortools")
    assert result.proved
    assert torch.equal(result.source_side, fresh.source_side)


def test_a_warm_start_outlives_a_contradiction():
    session = IncrementalCut(chain([0, 3, 0], [1, 0, 1]))
    first = session.solve()
    hard = tensor([INFINITE, 0, 0]), tensor([0, 0, INFINITE - 1])
    session.change(*hard)
    with pytest.raises(StepError, match="hard constraints"):
        session.solve()
    session.change(-hard[0], -hard[1])
    again = session.solve()
    assert again.flow == first.flow == again.cut
    assert torch.equal(again.source_side, first.source_side)


def wide_session(nodes, families, price):
    """Return a session that had to begin anew with 64 bits: a seed costs 8 times `price`."""
    source, sink = torch.zeros(2, nodes, dtype=torch.int64)
    source[0], sink[1:9] = INFINITE, price
    arcs = [ArcFamily((1,), INFINITE), *[ArcFamily((2,), INFINITE - 1)] * families]
    session = IncrementalCut(CutProblem(source, sink, arcs))
    assert session.solve().stats["bits"] == 64
    return session


def test_hard_terminals_that_would_pass_64_bits_are_refused_and_nothing_is_changed():
    # the sum of finite capacities times the number of seeds is beyond 2^64
    session = wide_session(8192, 600, HALF)
    before = session.problem
    seeds = torch.full((8192,), INFINITE) - before.source
    with pytest.raises(StepError, match="too large for 64 bits") as error:
        session.change(seeds, torch.zeros_like(seeds))
    assert "\n" not in str(error.value)
    assert session.problem is before
    few = seeds.clone()
    few[9:] = 0
    session.change(few, torch.zeros_like(few))
    assert session.solve().flow == 8 * HALF


def test_an_infinity_too_large_for_new_hard_terminals_is_made_smaller(monkeypatch):
    session = wide_session(64, 0, HALF)
    monkeypatch.setattr("medpipe.graphcut.residual.LARGEST", 30 * INFINITE)
    seeds = torch.zeros(64, dtype=torch.int64)
    seeds[1:20] = INFINITE
    cheaper = torch.where(session.problem.sink > 0, 1 - HALF, 0)
    session.change(seeds, cheaper)
    result = session.solve()
    assert result.flow == result.cut == 8
    assert session._state.infinite == 9


def test_a_change_in_fractions_is_refused():
    session = IncrementalCut(chain([5, 0], [0, 1]))
    with pytest.raises(StepError, match="integers"):
        session.change(tensor([0.5, 0.0]), tensor([0, 0]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_capacities_may_be_of_any_whole_type(solver, dtype):
    source, sink = tensor([1, 0]).to(dtype), tensor([0, 1]).to(dtype)
    between = tensor([1, 1]).to(dtype)
    problem = CutProblem(source, sink, [ArcFamily((1,), between)])
    assert finite_total(problem) == 4
    assert min_cut(problem, solver).flow == 1


@pytest.mark.parametrize("link", [-1, 2])
def test_a_family_along_a_link_that_does_not_exist_is_refused(link):
    terminals = tensor([[[1], [0]]]), tensor([[[0], [1]]])
    with pytest.raises(StepError, match="names a link that does not exist"):
        CutProblem(*terminals, [ArcFamily((0, link, 0), 4)], links=tensor([[1, -1]]))


def test_solving_changes_no_capacity():
    arcs = torch.full((3,), INFINITE, dtype=torch.int32)
    problem = CutProblem(tensor([4, 0, 0]), tensor([0, 0, 3]), [ArcFamily((1,), arcs)])
    for solver in SOLVERS:
        min_cut(problem, solver)
    assert arcs.tolist() == [INFINITE] * 3


def test_more_arcs_than_the_solver_can_count_are_refused():
    depth = 2**14 + 1
    zero = torch.zeros(1, depth, dtype=torch.int32)
    families = [ArcFamily((0, d), 1) for d in range(1, depth)]
    with pytest.raises(StepError, match="too many arcs"):
        min_cut(CutProblem(zero, zero, families))
