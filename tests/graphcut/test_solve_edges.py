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
