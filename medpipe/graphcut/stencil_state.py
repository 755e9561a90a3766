"""A minimum cut problem as flat tensors: what the stencil solver works on.

Every arc is one of a few *slots* of its tail. Slots come in pairs: slot ``a ^ 1`` of
the node where slot ``a`` ends is the arc back. Most slots are a fixed distance in
memory; where an axis wraps around or the columns form a mesh, a table names the
column where they end. Slots whose end would leave the lattice have capacity 0, and
their end is then any node, such that the ends of one slot are always a permutation
of the nodes. Flow can so be pushed along a slot everywhere at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch

from medpipe.errors import StepError
from medpipe.graphcut.problem import INFINITE, ArcFamily, Capacity, CutProblem, finite_part

__all__ = ["FAR", "LARGEST", "Lattice", "StencilState", "stencil_state"]

FAR = 2**30
"""Label of a node that cannot reach the sink."""

LARGEST = INFINITE - 1
"""Residual capacity that stands for infinity: two opposite ones together fit int32."""


@dataclass(frozen=True)
class Lattice:
    """Where the arcs end.

    Parameters
    ----------
    nodes : int
        Number of nodes N.
    depth : int
        Nodes of a column.
    shift : tuple of int
        Per slot the distance in memory, or along the column where `row` is not -1.
    row : tuple of int
        Per slot the row of `table` that names the column at its end, -1 for none.
    table : Tensor
        Permutations of the columns, int64 (R, columns).
    """

    nodes: int
    depth: int
    shift: tuple[int, ...]
    row: tuple[int, ...]
    table: torch.Tensor

    @property
    def slots(self) -> int:
        """Number of slots of a node."""
        return len(self.shift)

    def heads(self, index: torch.Tensor, slot: int) -> torch.Tensor:
        """Return the nodes where `slot` of the nodes `index` ends, int64."""
        if self.row[slot] < 0:
            return (index + self.shift[slot]) % self.nodes
        column = torch.div(index, self.depth, rounding_mode="floor")
        k = (index - column * self.depth + self.shift[slot]) % self.depth
        return self.table[self.row[slot]][column] * self.depth + k

    def pull(self, values: torch.Tensor, slot: int) -> torch.Tensor:
        """Return for every node the value at the end of `slot`, shape (N,)."""
        if self.row[slot] < 0:
            return torch.roll(values, -self.shift[slot])
        there = values.view(-1, self.depth)[self.table[self.row[slot]]]
        return torch.roll(there, -self.shift[slot], 1).view(-1)


@dataclass
class StencilState:
    """A preflow: flow that has left the source and has not all arrived.

    Parameters
    ----------
    lattice : Lattice
        Where the arcs end.
    capacity : Tensor
        Residual capacities, int32 (2F, N).
    excess : Tensor
        Flow that waits at each node, int64 (N,), never negative.
    room : Tensor
        What is left of the capacity to the sink, int32 (N,).
    label : Tensor
        Lower bound of the number of residual arcs to the sink, int32 (N,); FAR where
        the sink cannot be reached.
    base : int
        Flow from the source straight to the sink, through one node.
    """

    lattice: Lattice
    capacity: torch.Tensor
    excess: torch.Tensor
    room: torch.Tensor
    label: torch.Tensor
    base: int

    def __post_init__(self) -> None:
        self._all_room = int(self.room.sum(dtype=torch.int64))

    def flow(self) -> int:
        """Return the flow that has arrived at the sink."""
        return self.base + self._all_room - int(self.room.sum(dtype=torch.int64))

    def active(self) -> torch.Tensor:
        """Return which nodes hold flow that may still reach the sink, bool (N,)."""
        return (self.excess > 0) & (self.label < FAR)


@dataclass
class _Pair:
    """Two opposite slots and the families whose arcs they hold."""

    shift: int
    columns: torch.Tensor | None
    top: tuple[int, int] = (0, 0)
    families: list[tuple[ArcFamily, bool]] = field(default_factory=list)

    def direction(self, shift: int, columns: torch.Tensor | None) -> bool | None:
        """Return whether a family runs against this pair; None if it is another pair."""
        if columns is None or self.columns is None:
            same = columns is None and self.columns is None and abs(shift) == abs(self.shift)
            return (shift != self.shift) if same else None
        if shift == self.shift and torch.equal(columns, self.columns):
            return False
        if shift == -self.shift and torch.equal(_inverse(columns), self.columns):
            return True
        return None


def stencil_state(problem: CutProblem) -> StencilState:
    """Return the residual capacities before any flow, on the device of the problem.

    Raises
    ------
    StepError
        If the lattice has 2^30 nodes or more.
    """
    nodes, depth = problem.source.numel(), problem.shape[-1]
    if nodes >= FAR:
        raise StepError("the lattice is too large", expected="below 2^30 nodes", got=str(nodes))
    pairs = _pairs(problem)
    lattice = _lattice(pairs, nodes, depth, problem.device)
    capacity = torch.zeros(
        (max(2 * len(pairs), 1), nodes), dtype=torch.int32, device=problem.device
    )
    for f, pair in enumerate(pairs):
        for family, against in pair.families:
            along, back = (2 * f + 1, 2 * f) if against else (2 * f, 2 * f + 1)
            tails = _tails(problem, family.offset)
            _add(capacity[along], _at_tails(problem, family.forward, tails))
            values = _at_tails(problem, family.backward, tails)
            if values is not None:
                _add(capacity[back], lattice.pull(values, back))
    source, sink = (x.reshape(-1).to(torch.int64) for x in (problem.source, problem.sink))
    through = torch.minimum(source, sink)
    label = torch.full((nodes,), FAR, dtype=torch.int32, device=problem.device)
    room = (sink - through).to(torch.int32)
    return StencilState(lattice, capacity, source - through, room, label, int(through.sum()))


def _pairs(problem: CutProblem) -> list[_Pair]:
    """Return the pairs of slots that hold all arcs, families that coincide merged."""
    pairs: list[_Pair] = []
    for family in problem.arcs:
        shift, columns = _step(problem, family.offset)
        top = (_finite_top(family.forward), _finite_top(family.backward))
        limit = problem.shape[-1] if columns is not None else problem.source.numel()
        if top == (-1, -1) or abs(shift) >= limit or (columns is None and shift == 0):
            continue
        for pair in pairs:
            against = pair.direction(shift, columns)
            if against is None:
                continue
            first, second = top[::-1] if against else top
            total = (pair.top[0] + max(first, 0), pair.top[1] + max(second, 0))
            # sums of finite capacities must stay below infinity
            if max(total) < LARGEST:
                pair.top = total
                pair.families.append((family, against))
                break
        else:
            pairs.append(_Pair(shift, columns, (max(top[0], 0), max(top[1], 0)), [(family, False)]))
    return pairs


def _finite_top(capacity: Capacity) -> int:
    """Return the largest finite capacity, 0 if all others are infinite, -1 if all are 0."""
    if isinstance(capacity, int):
        return -1 if capacity == 0 else capacity % INFINITE
    if not bool(capacity.any()):
        return -1
    return int(finite_part(capacity).max())


def _step(problem: CutProblem, offset: tuple[int, ...]) -> tuple[int, torch.Tensor | None]:
    """Return the distance in memory, or that along the column and the map of columns."""
    shape = problem.shape
    linked = problem.links is not None and offset[1] != 0
    if linked or any(offset[axis] for axis in problem.wrap):
        return offset[-1], _columns(problem, offset)
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return sum(step * stride for step, stride in zip(offset, strides, strict=True)), None


def _columns(problem: CutProblem, offset: tuple[int, ...]) -> torch.Tensor:
    """Return for each column the one a family leads to, -1 for none, int64 (columns,)."""
    lateral = problem.shape[:-1]
    there = torch.zeros(lateral, dtype=torch.int64, device=problem.device)
    inside = torch.ones(lateral, dtype=torch.bool, device=problem.device)
    for axis, size in enumerate(lateral):
        along = [1] * len(lateral)
        along[axis] = size
        if problem.links is not None and axis == 1 and offset[1]:
            place = problem.links[offset[1] - 1].to(problem.device, torch.int64)
        else:
            place = torch.arange(size, device=problem.device) + offset[axis]
            if axis in problem.wrap:
                place = place % size
        good = (place >= 0) & (place < size)
        inside = inside & good.view(along)
        there = there * size + torch.where(good, place, 0).view(along)
    return torch.where(inside, there, -1).reshape(-1)


def _tails(problem: CutProblem, offset: tuple[int, ...]) -> torch.Tensor:
    """Return which nodes have an arc of a family, bool (columns, K)."""
    depth = problem.shape[-1]
    k = torch.arange(depth, device=problem.device) + offset[-1]
    return (_columns(problem, offset) >= 0)[:, None] & ((k >= 0) & (k < depth))


def _at_tails(problem: CutProblem, capacity: Capacity, tails: torch.Tensor) -> torch.Tensor | None:
    """Return a capacity per node, int32 (N,), 0 where there is no arc; None if all are 0."""
    if isinstance(capacity, int) and capacity == 0:
        return None
    full = torch.as_tensor(capacity, device=problem.device).expand(problem.shape)
    values = full.reshape(tails.shape).to(torch.int32).clamp(max=LARGEST)
    return torch.where(tails, values, 0).reshape(-1)


def _add(slot: torch.Tensor, values: torch.Tensor | None) -> None:
    """Add capacities to a slot; two of at most LARGEST fit int32."""
    if values is not None:
        slot.add_(values).clamp_(max=LARGEST)


def _inverse(columns: torch.Tensor) -> torch.Tensor:
    """Return the inverse of a partial map of columns, -1 where it is not defined."""
    back = torch.full_like(columns, -1)
    here = torch.nonzero(columns >= 0)[:, 0]
    back[columns[here]] = here
    return back


def _permutation(columns: torch.Tensor) -> torch.Tensor:
    """Complete a partial map of columns; the arcs so added have capacity 0."""
    full = columns.clone()
    full[columns < 0] = torch.nonzero(_inverse(columns) < 0)[:, 0]
    return full


def _lattice(pairs: list[_Pair], nodes: int, depth: int, device: torch.device) -> Lattice:
    shift: list[int] = []
    row: list[int] = []
    table: list[torch.Tensor] = []
    for pair in pairs:
        shift += [pair.shift, -pair.shift]
        if pair.columns is None:
            row += [-1, -1]
            continue
        there = _permutation(pair.columns)
        row += [len(table), len(table) + 1]
        table += [there, _inverse(there)]
    # kernels need a table even where no slot uses it
    full = torch.stack(table) if table else torch.zeros((1, 1), dtype=torch.int64, device=device)
    return Lattice(nodes, depth, tuple(shift), tuple(row), full)
