"""Residual capacities of a minimum cut problem, as the CPU solver keeps them.

A lattice of N nodes with F pairs of opposite arcs has the capacities (N, 2F): slot
``2f`` of a node is the arc along the offset of pair f, slot ``2f + 1`` the arc
against it. The reverse of slot ``a`` of a node is slot ``a ^ 1`` of the node where
it ends. A slot that leaves the lattice is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medpipe.errors import StepError
from medpipe.graphcut.problem import INFINITE, Capacity, CutProblem, finite_total
from medpipe.jit import compiled

__all__ = ["Residual", "residual_of"]

SLAB = 2**18
"""Nodes whose capacities are put in order at once."""

LARGEST = 2**62
"""No sum of flows of a problem may reach this: 64 bits hold what two of them make."""

Array = npt.NDArray[Any]

_MOST_PAIRS = 2**14 - 1
"""The solver counts the slots of a node in 16 bits."""


@dataclass
class Residual:
    """What is left of the capacities, and where flow waits.

    Parameters
    ----------
    capacity : ndarray
        Residual capacities (N, 2F), int32 or int64.
    excess : ndarray
        int64 (N,): flow that waits at a node, below 0 what a node can still take.
    base : int
        Flow from the source straight to the sink, through one node.
    shift, row, table, depth
        The lattice: slot a of node p ends at ``p + shift[a]`` where ``row[a]`` is -1,
        else at that place of the column that ``table[row[a]]`` (columns) names;
        `depth` is the number of nodes of a column.
    infinite : int
        The capacity that stands for INFINITE.
    """

    capacity: Array
    excess: Array
    base: int
    shift: Array
    row: Array
    table: Array
    depth: int
    infinite: int

    def __post_init__(self) -> None:
        self.total = int(self.excess[self.excess > 0].sum())

    @property
    def graph(self) -> tuple[Array, Array, Array, Array, int]:
        """The lattice in the form of the kernels."""
        return self.capacity, self.shift, self.row, self.table, self.depth

    def may_overfill(self, problem: CutProblem) -> bool:
        """Return whether so much flow could come together that an infinite arc were filled."""
        return finite_total(problem) >= self.infinite

    def can_take(self, problem: CutProblem) -> bool:
        """Return whether all that the terminals of `problem` send or take fits 64 bits."""
        return (_hard(problem) + 1) * self.infinite < LARGEST

    def flow(self) -> int:
        """Return the flow from source to sink once no excess can reach a deficit."""
        return self.base + self.total - int(self.excess[self.excess > 0].sum())

    def change_terminals(self, old: CutProblem, new: CutProblem) -> None:
        """Keep the flow and put the terminals of `new` in the place of those of `old`."""
        before, after = (_balance(problem, self.infinite) for problem in (old, new))
        self.excess += after[0] - before[0]
        self.base, self.total = after[1], int(after[0][after[0] > 0].sum())


class _Slots:
    """Numbers the pairs of opposite arcs of a problem."""

    def __init__(self, problem: CutProblem) -> None:
        self.problem = problem
        self.pairs: dict[tuple[int, ...], int] = {}
        for family in problem.arcs:
            if self._opposite(family.offset) not in self.pairs:
                self.pairs.setdefault(family.offset, len(self.pairs))

    def _opposite(self, offset: tuple[int, ...]) -> tuple[int, ...]:
        # the way back along a link of a mesh has no offset of its own
        linked = self.problem.links is not None and offset[1] != 0
        return offset if linked else tuple(-step for step in offset)

    def of(self, offset: tuple[int, ...]) -> tuple[int, int]:
        """Return the slots along and against `offset`."""
        if offset in self.pairs:
            first = 2 * self.pairs[offset]
            return first, first + 1
        first = 2 * self.pairs[self._opposite(offset)]
        return first + 1, first


def residual_of(problem: CutProblem, *, wide: bool = False) -> Residual:
    """Return the residual capacities before any flow.

    Parameters
    ----------
    problem : CutProblem
        The problem; its tensors may be on any device.
    wide : bool
        Use 64 bits and an infinity above the sum of all finite capacities.

    Raises
    ------
    StepError
        If the lattice has more than 2^31 - 2 nodes or 2^14 - 1 pairs of arcs, or with
        `wide` if flows could pass 64 bits.
    """
    shape, depth = problem.shape, problem.shape[-1]
    nodes = prod(shape)
    if nodes > 2**31 - 2:
        raise StepError("the lattice is too large", expected="below 2^31 nodes", got=str(nodes))
    slots = _Slots(problem)
    if len(slots.pairs) > _MOST_PAIRS:
        raise StepError(
            "a node has too many arcs",
            expected=f"at most {_MOST_PAIRS} pairs of offsets",
            got=str(len(slots.pairs)),
            hint="use smaller distances or a largest jump",
        )
    infinite = _wide_infinity(problem) if wide else INFINITE - 1
    capacity = np.empty((nodes, 2 * len(slots.pairs)), np.int64 if wide else np.int32)
    layer = nodes // shape[0]
    # slot by slot is how capacities come, node by node how they are kept: a slab at a
    # time, so that neither order walks through all of the memory again and again
    thick = shape[0] if 0 in problem.wrap else max(SLAB // layer, 1)
    for first in range(0, shape[0], thick):
        last = min(first + thick, shape[0])
        slab = np.zeros((capacity.shape[1], last - first, *shape[1:]), capacity.dtype)
        for family in problem.arcs:
            along, against = slots.of(family.offset)
            tails, heads = _slices(problem, family.offset)
            for slot, place, value in (
                (along, tails, family.forward),
                (against, heads, family.backward),
            ):
                _add(problem, slab[slot], first, place, tails[1], value, infinite)
        rows = capacity[first * layer : last * layer]
        _transpose(slab.reshape(capacity.shape[1], rows.shape[0]), rows)
    excess, base = _balance(problem, infinite)
    return Residual(capacity, excess, base, *_lattice(problem, slots), depth, infinite)


def _balance(problem: CutProblem, infinite: int) -> tuple[Array, int]:
    """Return source minus sink capacity per node, and the flow that passes both."""
    source, sink = (_terminal(x, infinite) for x in (problem.source, problem.sink))
    return source - sink, int(np.minimum(source, sink).sum())


def _terminal(value: torch.Tensor, infinite: int) -> Array:
    """Return terminal capacities as int64 (N,), the infinite ones at `infinite`."""
    flat = value.reshape(-1).to(torch.int64).cpu().numpy()
    return np.where(flat >= INFINITE, infinite, flat)


def _wide_infinity(problem: CutProblem) -> int:
    """Return one more than all finite capacities together."""
    total = 1 + finite_total(problem)
    # every infinite terminal sends or takes this much, and all finite ones together less
    limit = LARGEST // (_hard(problem) + 1)
    if total >= limit:
        raise StepError(
            "the capacities are too large for 64 bits",
            expected=f"a sum below {limit}",
            got=str(total),
            hint="use a larger quantisation step",
        )
    return total


def _hard(problem: CutProblem) -> int:
    """Return the number of infinite terminals."""
    return sum(int((x >= INFINITE).sum()) for x in (problem.source, problem.sink))


@compiled
def _transpose(slab: Array, rows: Array) -> None:
    """Copy `slab` (slots, nodes) to `rows` (nodes, slots), some nodes at a time."""
    slots, nodes = slab.shape
    for start in range(0, nodes, 64):
        for slot in range(slots):
            for node in range(start, min(start + 64, nodes)):
                rows[node, slot] = slab[slot, node]


def _add(
    problem: CutProblem,
    slab: Array,
    first: int,
    place: tuple[Any, ...],
    tails: tuple[Any, ...],
    value: Capacity,
    infinite: int,
) -> None:
    """Add the capacity given at the tails of a family to a slab of one slot.

    The slab begins at `first` along axis 0; `place` says where in the lattice the
    capacity belongs.
    """
    if isinstance(value, int) and value == 0:
        return
    full = torch.as_tensor(value).expand(problem.shape).cpu().numpy()
    rolls, where = place
    for axis, step in rolls:
        full = np.roll(full, step, axis)
    if 0 not in problem.wrap:
        low = max(where[0].start, first)
        high = min(where[0].stop, first + slab.shape[0])
        if low >= high:
            return
        back = tails[0].start - where[0].start
        tails = (slice(low + back, high + back), *tails[1:])
        where = (slice(low - first, high - first), *where[1:])
    # in the type of the slab first: `infinite` need not fit that of the problem
    amount = full[tails].astype(slab.dtype, copy=False)
    amount = np.where(amount >= INFINITE, infinite, amount)
    slab[where] = np.minimum(slab[where] + amount, infinite)


def _slices(
    problem: CutProblem, offset: tuple[int, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return (rolls, index) of the tails and of the heads of a family.

    What stands at the tails is rolled and then indexed with the tails' index; it
    belongs where the other index of the pair says.
    """
    tails: list[Any] = []
    heads: list[Any] = []
    rolls: list[tuple[int, int]] = []
    for axis, (step, size) in enumerate(zip(offset, problem.shape, strict=True)):
        if problem.links is not None and axis == 1 and step:
            row = problem.links[step - 1].cpu().numpy()
            tails.append(np.flatnonzero(row >= 0))
            heads.append(row[row >= 0])
        elif axis in problem.wrap:
            tails.append(slice(None))
            heads.append(slice(None))
            rolls.append((axis, step))
        else:
            tails.append(slice(max(0, -step), max(size - max(0, step), 0)))
            heads.append(slice(max(0, step), max(size - max(0, -step), 0)))
    return ((), tuple(tails)), (tuple(rolls), tuple(heads))


def _lattice(problem: CutProblem, slots: _Slots) -> tuple[Array, Array, Array]:
    """Return `shift`, `row` and `table` of `Residual`."""
    shape = problem.shape
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    shift = np.zeros(2 * len(slots.pairs), np.int64)
    row = np.full(2 * len(slots.pairs), -1, np.int32)
    rows: dict[tuple[Any, ...], int] = {}
    tables: list[Array] = []
    for offset, pair in slots.pairs.items():
        for slot, sign in ((2 * pair, 1), (2 * pair + 1, -1)):
            lateral = offset[:-1]
            linked = problem.links is not None and lateral[1] != 0
            if not linked and not any(lateral[axis] for axis in problem.wrap):
                shift[slot] = sign * sum(a * b for a, b in zip(offset, strides, strict=True))
                continue
            shift[slot] = sign * offset[-1]
            if (lateral, sign) not in rows:
                rows[lateral, sign] = len(tables)
                tables.append(_columns(problem, lateral, sign))
            row[slot] = rows[lateral, sign]
    table = np.stack(tables) if tables else np.full((1, 1), -1, np.int32)
    return shift, row, table.astype(np.int32)


def _columns(problem: CutProblem, lateral: tuple[int, ...], sign: int) -> Array:
    """Return for each column the one at `lateral` (against it for sign -1), -1 for none."""
    shape = problem.shape[:-1]
    column = np.arange(prod(shape)).reshape(shape)
    (_, tails), (rolls, heads) = _slices(problem, (*lateral, 0))
    ends = column
    for axis, step in rolls:
        ends = np.roll(ends, -step, axis)
    found = np.full(shape, -1)
    found[tails[:-1]] = ends[heads[:-1]]
    if sign > 0:
        return found.reshape(-1)
    back = np.full(column.size, -1)
    there = found.reshape(-1)
    back[there[there >= 0]] = np.flatnonzero(there >= 0)
    return back
