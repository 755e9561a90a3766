"""The GPU solver in its torch form, and its Triton kernels: equal to the truth and to each other.

`test_min_cut` solves instances of every kind with this solver too.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import cut_instances as make
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpipe.errors import StepError
from medpipe.graphcut import stencil, stencil_torch
from medpipe.graphcut.problem import INFINITE, ArcFamily, CutProblem, cut_value
from medpipe.graphcut.solve import min_cut
from medpipe.graphcut.stencil import residual_state, solve_stencil
from medpipe.graphcut.stencil_state import stencil_state

INSTANCES = {
    "plane, 4 neighbours": lambda: lattice((24, 31), 4, seed=1),
    "plane, 8 neighbours": lambda: lattice((24, 31), 8, seed=2),
    "plane, torus in one axis": lambda: lattice((24, 31), 4, seed=3, wrap=(0,)),
    "grid, regional": lambda: make.grid("regional", 14),
    "grid, 26 neighbours": lambda: make.grid("regional", 10, neighbours=26, weight=20),
    "grid, seeds": lambda: make.grid("seeds", 20, seed=1),
    "grid, strong links": lambda: make.grid("smooth", 14, weight=200),
    "two objects": lambda: make.nested(14, 2),
    "two objects, apart": lambda: make.nested(12, 1, seed=3),
    "columns, linear": lambda: make.columns("linear", (7, 8), 16),
    "columns, linear, one surface": lambda: make.columns("linear", (9, 7), 12, 1),
    "columns, hard": lambda: make.columns("hard", (7, 8), 16),
    "columns, quadratic": lambda: make.columns("quadratic", (6, 7), 14),
    "columns, tube": lambda: make.columns("linear", (9, 5), 14, wrap=(1,)),
    "columns, torus": lambda: make.columns("hard", (6, 5), 12, wrap=(1, 2)),
    "irregular, linear": lambda: make.irregular((6, 6), 12),
    "irregular, quadratic": lambda: make.irregular((5, 4), 10, 2, psi=make.quadratic(1), reach=9),
    "ring": lambda: make.ring(24, 20),
    "ring of links": lambda: make.ring(24, 20, linked=True),
    "random links": lambda: make.random_levels(12, 12),
    "maze": lambda: make.maze(16, 2),
    "two mazes": lambda: make.maze(12, 3, seed=5),
}


def lattice(
    shape: tuple[int, ...], neighbours: int, seed: int, wrap: tuple[int, ...] = ()
) -> CutProblem:
    """Return a plane with random terminals and links to 4 or 8 neighbours."""
    g = torch.Generator().manual_seed(seed)
    offsets = [(0, 1), (1, 0), (1, 1), (1, -1)][: neighbours // 2]
    arcs = [
        ArcFamily(o, *(torch.randint(0, 40, shape, generator=g) for _ in range(2))) for o in offsets
    ]
    source, sink = (torch.randint(0, 60, shape, generator=g) for _ in range(2))
    return CutProblem(source, sink, arcs, wrap)


# --- the truth -----------------------------------------------------------------------


def arcs_of(problem: CutProblem) -> list[tuple[int, int, int]]:
    """Return (tail, head, capacity) of all arcs, from the definition, node by node."""
    shape = problem.shape
    nodes = list(itertools.product(*map(range, shape)))
    number = {node: i for i, node in enumerate(nodes)}
    arcs = []
    for family in problem.arcs:
        full = [
            torch.as_tensor(c).expand(shape).reshape(-1).tolist()
            for c in (family.forward, family.backward)
        ]
        for node in nodes:
            head = []
            for axis, (place, step) in enumerate(zip(node, family.offset, strict=True)):
                if problem.links is not None and axis == 1 and step:
                    head.append(int(problem.links[step - 1][place]))
                elif axis in problem.wrap:
                    head.append((place + step) % shape[axis])
                else:
                    head.append(place + step)
            there = number.get(tuple(head))
            if there is not None:
                here = number[node]
                arcs += [(here, there, full[0][here]), (there, here, full[1][here])]
    return arcs


def every_cut(problem: CutProblem) -> tuple[int, torch.Tensor]:
    """Return the lowest cost of all cuts and the union of the cuts that have it."""
    n = problem.source.numel()
    side = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1 == 1
    cost = (side * problem.sink.reshape(-1)).sum(1) + (~side * problem.source.reshape(-1)).sum(1)
    for tail, head, capacity in arcs_of(problem):
        cost += capacity * (side[:, tail] & ~side[:, head])
    best = int(cost.min())
    return best, side[cost == best].any(0).reshape(problem.shape)


@st.composite
def small_problems(draw: st.DrawFn) -> CutProblem:
    """Lattices of at most 10 nodes with wraps, links, repeated offsets and infinite arcs."""
    shape = draw(
        st.sampled_from(
            [(1,), (6,), (3, 3), (2, 5), (5, 2), (1, 4), (2, 2, 2), (1, 3, 3), (2, 3, 1), (2, 1, 4)]
        )
    )
    n = torch.Size(shape).numel()
    wrap: tuple[int, ...] = ()
    links = None
    if len(shape) == 3 and draw(st.booleans()):
        columns = shape[1]
        rows = draw(st.lists(st.permutations(range(columns)), min_size=2, max_size=2))
        gone = draw(st.lists(st.booleans(), min_size=2 * columns, max_size=2 * columns))
        full = torch.tensor(rows)
        links = torch.where(torch.tensor(gone).view_as(full), -1, full)
    elif len(shape) > 1:
        wrap = tuple(a for a in range(len(shape) - 1) if draw(st.booleans()))
    value = st.sampled_from([0, 0, 1, 2, 3, 5, 8, 13, INFINITE])

    def capacity() -> torch.Tensor:
        return torch.tensor(draw(st.lists(value, min_size=n, max_size=n))).view(shape)

    arcs = []
    for _ in range(draw(st.integers(0, 5))):
        offset = [draw(st.integers(-2, 2)) for _ in shape]
        if links is not None:
            offset[1] = draw(st.integers(0, 2))
        if any(offset):
            backward = capacity() if draw(st.booleans()) else draw(value)
            arcs.append(ArcFamily(tuple(offset), capacity(), backward))
    terminal = st.lists(st.integers(0, 20), min_size=n, max_size=n)
    source, sink = (torch.tensor(draw(terminal)).view(shape) for _ in range(2))
    return CutProblem(source, sink, arcs, wrap, links)


@settings(deadline=None, max_examples=300)
@given(problem=small_problems(), period=st.integers(1, 6), steps=st.sampled_from([1, 3, 2000]))
def test_the_cut_is_the_best_of_all(problem, period, steps):
    best, largest = every_cut(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stencil, "STEPS_HOST", steps)
        side, flow, _ = solve_stencil(problem, period=period)
    assert flow == best
    assert torch.equal(side, largest)


@pytest.mark.parametrize("name", INSTANCES)
def test_flow_and_source_side_are_those_of_another_solver(name):
    problem = INSTANCES[name]()
    other = min_cut(problem, "ortools")
    side, flow, stats = solve_stencil(problem, hand_over=False)
    assert stats["handed_over"] == 0
    assert flow == other.flow == cut_value(problem, side)
    assert torch.equal(side, other.source_side)
    assert 0 < int(side.sum()) < side.numel()


# --- the hand-over -------------------------------------------------------------------


@pytest.mark.parametrize("steps", [5, 40, 80])
@pytest.mark.parametrize("name", INSTANCES)
def test_the_solver_of_the_host_goes_on_from_any_state(name, steps, monkeypatch):
    problem = INSTANCES[name]()
    other = min_cut(problem, "ortools")
    monkeypatch.setattr(stencil, "STEPS_HOST", steps)
    side, flow, _ = solve_stencil(problem, period=4)
    assert flow == other.flow
    assert torch.equal(side, other.source_side)


def test_a_long_maze_is_handed_over():
    problem = make.maze(80, 2)
    side, flow, stats = solve_stencil(problem)
    assert stats["handed_over"] > 0
    assert stats["levels"] + stats["sweeps"] < 2 * stencil.STEPS_HOST
    other = min_cut(problem, "ortools")
    assert flow == other.flow == cut_value(problem, side) > 0
    assert torch.equal(side, other.source_side)


def test_what_is_handed_over_leaves_out_what_is_cut_off():
    # flow of the first two nodes can never pass the empty arc after them
    source, sink = torch.tensor([9, 9, 0, 9, 0]), torch.tensor([0, 0, 0, 0, 5])
    problem = CutProblem(source, sink, [ArcFamily((1,), torch.tensor([7, 0, 7, 7, 0]))])
    state = stencil_state(problem)
    stencil_torch.relabel(state, 100)
    imbalance, residuals = residual_state(state)
    assert imbalance.tolist() == [0, 0, 0, 9, -5]
    assert residuals.tolist() == [[7, 0], [0, 0], [7, 0], [7, 0], [0, 0]]
    assert residuals.dtype == torch.int32
    assert imbalance.dtype == torch.int64


def test_without_hand_over_too_few_rounds_are_an_error():
    with pytest.raises(StepError, match="not finished"):
        solve_stencil(make.maze(16, 1), period=1, max_rounds=3, hand_over=False)


# --- integers, order, batches ----------------------------------------------------------


def test_sums_of_finite_capacities_do_not_become_infinite_or_overflow():
    most = INFINITE - 1
    source, sink = torch.tensor([most, most, 0, 0]), torch.tensor([0, 0, most, most])
    cross = [ArcFamily((2,), most, most)] * 3 + [ArcFamily((1,), INFINITE, INFINITE)]
    problem = CutProblem(source, sink, cross)
    state = stencil_state(problem)
    assert state.lattice.slots == 8  # the three could not be merged
    _, flow, _ = solve_stencil(problem)
    assert flow == 2 * most


def test_opposite_infinite_arcs_stay_within_32_bits():
    source = torch.tensor([INFINITE - 1, 0, 0])
    sink = torch.tensor([0, 0, INFINITE - 1])
    problem = CutProblem(source, sink, [ArcFamily((1,), INFINITE, INFINITE)])
    side, flow, _ = solve_stencil(problem)
    assert flow == INFINITE - 1
    assert bool(side.all())


def test_opposite_and_repeated_families_share_their_slots():
    zero = torch.zeros(3, 4, dtype=torch.int64)
    arcs = [
        ArcFamily((1, 0), 2, 3),
        ArcFamily((-1, 0), 5),
        ArcFamily((1, 0), 7),
        ArcFamily((0, 1), 0, 0),
    ]
    for wrap, last, first in (((), 0, 0), ((0,), 9, 8)):
        state = stencil_state(CutProblem(zero, zero, arcs, wrap))
        ahead, back = state.capacity.view(2, 3, 4)
        assert bool((ahead[:2] == 9).all())
        assert bool((back[1:] == 8).all())
        assert bool((ahead[2] == last).all())
        assert bool((back[0] == first).all())


def test_families_that_leave_the_lattice_take_no_slot():
    ones = torch.ones(2, 3, dtype=torch.int64)
    arcs = [ArcFamily((2, 0), 5), ArcFamily((1, -3), 5), ArcFamily((0, 1), 0)]
    assert stencil_state(CutProblem(ones, ones, arcs)).lattice.slots == 0
    side, flow, _ = solve_stencil(CutProblem(ones, ones, arcs))
    assert flow == 6
    assert bool(side.all())


@pytest.mark.parametrize("wrap", [(), (1,)])
def test_a_batch_gives_each_problem_its_own_cut(wrap):
    alone = [make.columns("linear", (5, 4), 10, 2, seed, wrap) for seed in range(3)]
    stacked = CutProblem(
        torch.stack([p.source for p in alone]),
        torch.stack([p.sink for p in alone]),
        [ArcFamily((0, *a.offset), a.forward, a.backward) for a in alone[0].arcs],
        tuple(axis + 1 for axis in wrap),
    )
    side, flow, _ = solve_stencil(stacked)
    each = [solve_stencil(p) for p in alone]
    assert flow == sum(f for _, f, _ in each)
    for together, (by_itself, _, _) in zip(side, each, strict=True):
        assert torch.equal(together, by_itself)


def test_the_same_run_twice_takes_the_same_way():
    problem = INSTANCES["columns, tube"]()
    states = [stencil_state(problem) for _ in range(2)]
    for state in states:
        stencil_torch.relabel(state, 1000)
        stencil_torch.sweeps(state, 7)
    for name in ("capacity", "excess", "room", "label"):
        assert torch.equal(getattr(states[0], name), getattr(states[1], name))


def test_a_sweep_keeps_all_flow_and_every_label_valid():
    problem = INSTANCES["columns, quadratic"]()
    state = stencil_state(problem)
    lattice_ = state.lattice
    pairs = [
        state.capacity[slot] + lattice_.pull(state.capacity[slot ^ 1], slot)
        for slot in range(lattice_.slots)
    ]
    total = int(state.excess.sum()) + state.flow()
    stencil_torch.relabel(state, 1000)
    for _ in range(10):
        stencil_torch.sweeps(state, 1)
        assert int(state.excess.sum()) + state.flow() == total
        assert int(state.capacity.min()) >= 0
        assert int(state.room.min()) >= 0
        for slot, pair in enumerate(pairs):
            back = lattice_.pull(state.capacity[slot ^ 1], slot)
            assert torch.equal(state.capacity[slot] + back, pair)
            free = state.capacity[slot] > 0
            lower = lattice_.pull(state.label, slot)[free]
            assert bool((state.label[free] <= lower + 1).all())


# --- kernels -------------------------------------------------------------------------


KERNELS = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
import test_stencil as here
from medpipe.graphcut import stencil_torch, stencil_triton
from medpipe.graphcut.stencil import solve_stencil
from medpipe.graphcut.stencil_state import stencil_state

stencil_triton.BLOCK = 32
stencil_triton.LEVELS_A_CHECK = 8
torch.set_num_threads(1)
for problem in here.kernel_problems():
    a, b = stencil_state(problem), stencil_state(problem)
    for turn in range(2):
        assert stencil_torch.relabel(a, 1000)[1] and stencil_triton.relabel(b, 1000)[1]
        assert torch.equal(a.label, b.label)
        assert turn or bool(a.active().any())
        stencil_torch.sweeps(a, 3)
        stencil_triton.sweeps(b, 3)
        for name in ("capacity", "excess", "room", "label"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
side, flow, stats = solve_stencil(problem, period=8)
assert stats["kernel"] == "triton"
best, largest = here.every_cut(problem)
assert flow == best and torch.equal(side, largest)
print("same bits")
"""


def kernel_problems() -> list[CutProblem]:
    """Return lattices of flat slots, wrapped ones and links, some of more than one block."""
    tiny = CutProblem(
        torch.tensor([9, 0, 4, 0, 9, 0, 0, 0]),
        torch.tensor([0, 0, 0, 7, 0, 0, 0, 8]),
        [ArcFamily((1,), 5, 2), ArcFamily((3,), 4)],
    )
    return [
        lattice((7, 9), 4, seed=4),
        make.columns("hard", (4, 2), 6, 1, wrap=(1,)),
        make.ring(5, 7, 2, linked=True),
        tiny,
    ]


def test_triton_kernels_do_what_torch_does_to_the_bit():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KERNELS, str(Path(__file__).parent)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "same bits", done.stderr[-2000:]


def test_where_kernels_cannot_run_torch_is_taken():
    pytest.importorskip("triton")
    # kernels take no tensors of the host unless they are interpreted
    assert not stencil._triton_works(torch.device("cpu"))
    assert solve_stencil(make.maze(4, 1))[2]["kernel"] == "torch"


@pytest.mark.gpu
@pytest.mark.parametrize("name", INSTANCES)
def test_the_gpu_gives_the_same(name):
    problem = INSTANCES[name]()
    result, other = min_cut(on_gpu(problem)), min_cut(problem, "pseudoflow")
    assert result.solver == "stencil"
    assert result.source_side.is_cuda
    assert result.flow == result.cut == other.flow
    assert torch.equal(result.source_side.cpu(), other.source_side)


@pytest.mark.gpu
def test_kernels_on_the_gpu_do_what_torch_does_to_the_bit():
    pytest.importorskip("triton")
    from medpipe.graphcut import stencil_triton

    for problem in kernel_problems():
        states = stencil_state(problem), stencil_state(on_gpu(problem))
        for _ in range(3):
            stencil_torch.relabel(states[0], 1000)
            stencil_torch.sweeps(states[0], 3)
            stencil_triton.relabel(states[1], 1000)
            stencil_triton.sweeps(states[1], 3)
            for name in ("capacity", "excess", "room", "label"):
                assert torch.equal(getattr(states[0], name), getattr(states[1], name).cpu())


def on_gpu(problem: CutProblem) -> CutProblem:
    """Return a problem with all its tensors on the GPU."""
    return CutProblem(
        problem.source.cuda(),
        problem.sink.cuda(),
        [ArcFamily(a.offset, cuda(a.forward), cuda(a.backward)) for a in problem.arcs],
        problem.wrap,
        None if problem.links is None else problem.links.cuda(),
    )


def cuda(capacity: torch.Tensor | int) -> torch.Tensor | int:
    """Return a capacity on the GPU."""
    return capacity.cuda() if isinstance(capacity, torch.Tensor) else capacity
