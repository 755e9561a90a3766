"""Minimum s-t cut problems on a lattice: arcs as dense tensors, no edge list.

A problem has nodes on a dense lattice and a few *arc families*. A family is an
offset and one capacity per node: the arc from every node to the node at that
offset. Every graph of this package is of this kind (voxel neighbourhoods, nested
objects, columns of optimal surfaces), and the residual capacities of a solver are
then plain tensors.

Capacities are integers, because equality of flow and cut is a proof only then.
`quantise` turns real costs into integers and says what was lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch

from medpipe.errors import StepError

__all__ = [
    "INFINITE",
    "ArcFamily",
    "CutProblem",
    "CutResult",
    "Quantised",
    "cut_value",
    "finite_part",
    "finite_total",
    "quantise",
]

INFINITE = 2**30
"""Capacity of an arc that must not be cut; every finite capacity is below it."""

Capacity = torch.Tensor | int


@dataclass(frozen=True)
class ArcFamily:
    """The arcs from every node to the node at `offset`, and back.

    Parameters
    ----------
    offset : tuple of int
        One entry per axis of the lattice. On a lattice with `links` the entry of
        the column axis is a link: 0 for the same column, j > 0 for `links[j - 1]`.
    forward : Tensor or int
        Capacity from each node to its neighbour, integers in [0, INFINITE],
        broadcastable to the shape of the problem. Entries whose head lies outside
        the lattice are ignored.
    backward : Tensor or int
        Capacity from that neighbour back to each node, stored at the tail of the
        forward arc.
    """

    offset: tuple[int, ...]
    forward: Capacity
    backward: Capacity = 0


@dataclass(frozen=True)
class CutProblem:
    """A minimum s-t cut problem on a lattice.

    The cut is a set S of nodes (the source side). It costs ``sink`` of every node
    in S, ``source`` of every node outside, and the capacity of every arc that
    leaves S.

    Parameters
    ----------
    source, sink : Tensor
        Capacities from the source and to the sink, shape (..., K), integers in
        [0, INFINITE]. The last axis runs along the columns.
    arcs : sequence of ArcFamily
        The arcs between nodes.
    wrap : tuple of int
        Axes whose end is joined to their beginning (never the last axis).
    links : Tensor, optional
        Neighbours of columns that do not lie on a grid, int64 (J, C) with -1 for
        none; the problem then has shape (S, C, K). In one row no column occurs
        twice, so that flow can be pushed along a whole family at once.
    """

    source: torch.Tensor
    sink: torch.Tensor
    arcs: Sequence[ArcFamily]
    wrap: tuple[int, ...] = ()
    links: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the lattice."""
        return tuple(self.source.shape)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.source.device

    def __post_init__(self) -> None:
        _check_problem(self)


@dataclass(frozen=True)
class CutResult:
    """A minimum cut with its proof.

    Parameters
    ----------
    source_side : Tensor
        Bool, the shape of the problem: the largest source side among all minimum
        cuts. It is unique, so every solver returns the same.
    flow : int
        Value of the maximum flow the solver found.
    cut : int
        Cost of the cut, computed anew from the capacities of the problem.
    solver : str
        Name of the solver.
    stats : dict
        What the solver counted (JSON values).
    """

    source_side: torch.Tensor
    flow: int
    cut: int
    solver: str
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def proved(self) -> bool:
        """Whether flow and cut are equal: no cut is then cheaper."""
        return self.flow == self.cut


@dataclass(frozen=True)
class Quantised:
    """Integer costs: `values` times `step` is the real cost, within half a `step`."""

    values: torch.Tensor
    step: float
    largest_error: float


def quantise(costs: torch.Tensor, step: float, *, what: str = "costs") -> Quantised:
    """Round real costs to multiples of `step`.

    Parameters
    ----------
    costs : Tensor
        Finite costs of any sign; +inf becomes INFINITE.
    step : float
        Cost of one unit, finite and above 0.
    what : str
        Name used in errors.

    Returns
    -------
    Quantised
        int32 values, the step, and the largest rounding error that occurred.

    Raises
    ------
    StepError
        If the step is not positive and finite, a cost is NaN or -inf, or its integer
        would not be below INFINITE.
    """
    if not 0 < step < math.inf:
        raise StepError(
            "the quantisation step is not positive and finite", expected="> 0", got=f"{step:g}"
        )
    if bool(torch.isnan(costs).any()) or bool((costs == -torch.inf).any()):
        raise StepError(
            f"the {what} hold NaN or -inf", hint="fill or mask these places before the cut"
        )
    hard = torch.isinf(costs)
    scaled = torch.where(hard, 0.0, costs.to(torch.float64) / step)
    rounded = torch.round(scaled)
    top = float(rounded.abs().max()) if rounded.numel() else 0.0
    if top >= INFINITE:
        raise StepError(
            f"the {what} are too large for exact integers",
            expected=f"|cost| / step below {INFINITE}",
            got=f"{top:.3g}",
            hint="use a larger quantisation step or smaller weights",
        )
    error = float((rounded - scaled).abs().max()) * step if rounded.numel() else 0.0
    values = torch.where(hard, INFINITE, rounded.to(torch.int32))
    return Quantised(values.to(torch.int32), float(step), error)


def finite_part(capacity: torch.Tensor) -> torch.Tensor:
    """Return capacities with 0 in the place of INFINITE."""
    if capacity.dtype == torch.bool or torch.iinfo(capacity.dtype).max < INFINITE:
        # such a type cannot even be compared with INFINITE
        return capacity
    return torch.where(capacity < INFINITE, capacity, 0)


def finite_total(problem: CutProblem) -> int:
    """Return the sum of all finite capacities: no arc ever carries more flow than that."""
    parts = [problem.source, problem.sink]
    for family in problem.arcs:
        parts += [torch.as_tensor(c) for c in (family.forward, family.backward)]
    nodes = problem.source.numel()
    return sum(int(finite_part(p).sum(dtype=torch.int64)) * (nodes // p.numel()) for p in parts)


def tails_and_heads(
    problem: CutProblem, offset: tuple[int, ...], values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `values` (shape of the problem) at the tails and at the heads of a family.

    Both have one entry per arc, in the same order; they are views where the lattice
    allows it.
    """
    tail, head = values, values
    for axis, step in enumerate(offset):
        if problem.links is not None and axis == 1:
            if step:
                row = problem.links[step - 1].to(values.device)
                here = torch.nonzero(row >= 0)[:, 0]
                tail, head = tail.index_select(1, here), head.index_select(1, row[here])
        elif axis in problem.wrap:
            head = torch.roll(head, -step, axis) if step else head
        else:
            size = max(values.shape[axis] - abs(step), 0)
            start = min(abs(step), values.shape[axis] - size)
            tail = tail.narrow(axis, start if step < 0 else 0, size)
            head = head.narrow(axis, start if step > 0 else 0, size)
    return tail, head


def cut_value(problem: CutProblem, source_side: torch.Tensor) -> int:
    """Return the cost of a cut in exact integers.

    Parameters
    ----------
    problem : CutProblem
        The problem; its tensors are not changed.
    source_side : Tensor
        Bool, the shape of the problem.

    Raises
    ------
    StepError
        If the cut has another size than the problem, or severs an arc or terminal of
        capacity INFINITE: the constraints of the problem contradict each other.
    """
    if source_side.numel() != problem.source.numel():
        raise StepError(
            "the source side does not fit the problem",
            expected=str(problem.shape),
            got=str(tuple(source_side.shape)),
        )
    side = source_side.reshape(problem.shape)
    parts = [problem.sink[side], problem.source[~side]]
    for family in problem.arcs:
        tail, head = tails_and_heads(problem, family.offset, side)
        for capacity, severed in (
            (family.forward, tail & ~head),
            (family.backward, head & ~tail),
        ):
            full = torch.as_tensor(capacity, device=side.device).expand(problem.shape)
            parts.append(tails_and_heads(problem, family.offset, full)[0][severed])
    if any(p.numel() and int(p.max()) >= INFINITE for p in parts):
        raise StepError(
            "no cut satisfies the hard constraints",
            hint="look for seeds, limits or distances that contradict each other",
        )
    return sum(int(p.sum(dtype=torch.int64)) for p in parts)


def _check_problem(problem: CutProblem) -> None:
    for name in ("source", "sink"):
        if not isinstance(getattr(problem, name), torch.Tensor):
            raise StepError(
                f"the {name} capacities are no tensor",
                expected="a tensor of integers",
                got=type(getattr(problem, name)).__name__,
            )
    shape = problem.shape
    if len(shape) < 1 or 0 in shape:
        raise StepError("the lattice is empty", got=f"shape {shape}")
    if problem.sink.shape != problem.source.shape:
        raise StepError(
            "source and sink differ in shape",
            expected=str(shape),
            got=str(tuple(problem.sink.shape)),
        )
    if any(axis < 0 or axis >= len(shape) - 1 for axis in problem.wrap):
        raise StepError(
            "an axis that wraps around does not exist or runs along the columns",
            expected=f"axes in 0..{len(shape) - 2}",
            got=str(problem.wrap),
        )
    _check_links(problem)
    _check_capacity(problem.source, shape, "source capacities")
    _check_capacity(problem.sink, shape, "sink capacities")
    for family in problem.arcs:
        where = f"capacities at offset {family.offset}"
        whole = all(isinstance(step, Integral) for step in family.offset)
        if not whole or len(family.offset) != len(shape) or not any(family.offset):
            raise StepError(
                "an arc family has an unusable offset",
                expected=f"{len(shape)} integers, not all 0",
                got=str(family.offset),
            )
        if problem.links is not None and not 0 <= family.offset[1] <= len(problem.links):
            raise StepError(
                "an arc family names a link that does not exist",
                expected=f"0 to {len(problem.links)}",
                got=str(family.offset[1]),
            )
        _check_capacity(family.forward, shape, where)
        _check_capacity(family.backward, shape, where)


def _check_links(problem: CutProblem) -> None:
    links = problem.links
    if links is None:
        return
    if len(problem.shape) != 3 or links.ndim != 2 or links.shape[1] != problem.shape[1]:
        raise StepError(
            "the links do not fit the lattice",
            expected=f"shape (J, {problem.shape[1]}) on a lattice (S, C, K)",
            got=f"{tuple(links.shape)} on {problem.shape}",
        )
    for row in links:
        heads = row[row >= 0]
        if heads.numel() != torch.unique(heads).numel() or int(row.max()) >= problem.shape[1]:
            raise StepError(
                "a row of links names a column twice or one that does not exist",
                hint="colour the edges of the mesh, one colour a row",
            )


def _check_capacity(capacity: Capacity, shape: tuple[int, ...], what: str) -> None:
    if isinstance(capacity, int):
        low = high = capacity
    elif not isinstance(capacity, torch.Tensor):
        raise StepError(
            f"the {what} are not integers",
            expected="a tensor of integers or one integer",
            got=type(capacity).__name__,
            hint="use quantise()",
        )
    else:
        if capacity.is_floating_point() or capacity.is_complex():
            raise StepError(f"the {what} are not integers", hint="use quantise()")
        sizes = zip(capacity.shape[::-1], shape[::-1], strict=False)
        if capacity.ndim > len(shape) or any(a not in (1, b) for a, b in sizes):
            raise StepError(
                f"the {what} have a wrong shape",
                expected=str(shape),
                got=str(tuple(capacity.shape)),
            )
        low, high = int(capacity.min()), int(capacity.max())
    if low < 0 or high > INFINITE:
        raise StepError(
            f"the {what} are out of range",
            expected=f"integers from 0 to {INFINITE}",
            got=f"{low} to {high}",
        )
