"""Arc families of optimal surfaces on irregular columns, in exact integers.

The weights g(k, j) of `medpipe.graphcut.convex` are made diagonal by diagonal: on
d = j − k they form one arc family of the lattice, and only diagonals with a weight
above 0 are kept. Nodes a surface cannot take are left out beforehand: arcs from
the lowest node that remains become source capacities, arcs beyond the highest one
sink capacities.

Rounding keeps what makes the construction exact. Not the arcs are rounded but
their sums C(k, m) = Σ g(k, j > m), which do not rise with m, so their differences
stay non-negative and still telescope. A pair of columns is then off by at most
half a unit per node between the two surfaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from medpipe.errors import StepError
from medpipe.graphcut.convex import ConvexPrior, Value
from medpipe.graphcut.feasibility import Limits, first_at_least
from medpipe.graphcut.problem import INFINITE, ArcFamily
from medpipe.graphcut.surface_problem import Relation

__all__ = ["Arcs", "Half", "add_relation", "halves", "heaviest"]

_BORDER = 0.5 + 1e-6
"""Where rounding turns up: a hair before one half, so that noise of the float
arithmetic does not round equal sums on two diagonals apart."""


@dataclass
class Arcs:
    """Capacities while they are gathered, in integers.

    Parameters
    ----------
    shape : tuple of int
        The lattice (S, columns, K).
    source, sink : Tensor
        int64 of that shape.
    families : dict
        Forward and backward capacities, int32 of that shape, by offset.
    constant : int
        What every cut pays.
    rounding : float
        By how much units · step can differ from the real cost of any surfaces.
    """

    shape: tuple[int, ...]
    source: torch.Tensor
    sink: torch.Tensor
    families: dict[tuple[int, ...], list[torch.Tensor | None]] = field(default_factory=dict)
    constant: int = 0
    rounding: float = 0.0

    def add(self, offset: tuple[int, ...], surface: int, side: int, values: torch.Tensor) -> None:
        """Add capacities at the nodes of one surface; `side` 0 is forward, 1 backward."""
        pair = self.families.setdefault(offset, [None, None])
        held = pair[side]
        if held is None:
            held = torch.zeros(self.shape, dtype=torch.int32, device=values.device)
            pair[side] = held
        total = held[surface].to(torch.int64) + values
        held[surface] = total.clamp_max(INFINITE).to(torch.int32)

    def arc_families(self) -> list[ArcFamily]:
        """Return the families in the order of their offsets."""
        return [
            ArcFamily(offset, *(0 if side is None else side for side in pair))
            for offset, pair in sorted(self.families.items())
        ]


@dataclass(frozen=True, eq=False)
class Half:
    """One direction of a relation: what is paid, and forbidden, when `tail` lies above `head`.

    Parameters
    ----------
    tail, head : Tensor
        Positions in mm (columns, K), the head in the place of the tail's column.
    tail_limits, head_limits : tuple of Tensor
        Lowest and highest node (columns).
    prior : ConvexPrior, optional
        The cost F(tail + shift − head).
    direction : {1, -1}
        The side of the prior that is paid.
    shift_mm : float or Tensor
        The expected difference, on columns.
    highest_mm : Tensor
        Hard limit of tail − head (columns), the tolerance included.
    exists : Tensor
        Bool (columns).
    """

    tail: torch.Tensor
    head: torch.Tensor
    tail_limits: tuple[torch.Tensor, torch.Tensor]
    head_limits: tuple[torch.Tensor, torch.Tensor]
    prior: ConvexPrior | None
    direction: int
    shift_mm: Value
    highest_mm: torch.Tensor
    exists: torch.Tensor

    def bound(self) -> torch.Tensor:
        """Return the first node of the head that every node of the tail allows (columns, K)."""
        least = self.tail - self.highest_mm[..., None]
        return first_at_least(self.head, least)

    def cost(self, shift: int) -> torch.Tensor:
        """Return F at tail node k and head node k + `shift`, 0 where either is left out."""
        depth = self.tail.shape[-1]
        node = torch.arange(depth, device=self.tail.device)
        low, high = self.tail_limits[0][..., None], self.head_limits[1][..., None]
        inside = (node >= low) & (node + shift >= 0) & (node + shift <= high)
        return torch.where(inside, self._rise(self.tail, _move(self.head, -shift)), 0.0)

    def cost_between(self, tail: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Return F between given nodes of the two columns (columns, V)."""
        return self._rise(self.tail.gather(-1, tail), self.head.gather(-1, head))

    def _rise(self, tail: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        if self.prior is None:
            return torch.zeros_like(tail + head)
        return self.prior.rise(tail + self.shift_mm - head, self.direction)


def halves(
    relation: Relation, positions: torch.Tensor, limits: Limits, tolerance_mm: float
) -> tuple[Half, Half]:
    """Return the two directions of a relation: a above b, and b above a."""
    a, b = relation.at_a(positions), relation.at_b(positions)
    at_a = (relation.at_a(limits.low), relation.at_a(limits.high))
    at_b = (relation.at_b(limits.low), relation.at_b(limits.high))
    prior = relation.prior
    shift: Value = 0.0 if prior is None else prior.expected_mm
    up, down = tolerance_mm - relation.least_mm, tolerance_mm + relation.most_mm
    return (
        Half(a, b, at_a, at_b, prior, -1, shift, up, relation.exists),
        Half(b, a, at_b, at_a, prior, 1, -shift, down, relation.exists),
    )


def heaviest(half: Half) -> float:
    """Return the largest sum of weights that can leave or enter a node through one half."""
    if half.prior is None:
        return 0.0
    low, high = half.tail_limits
    depth = half.tail.shape[-1]
    head = torch.maximum(half.bound(), half.head_limits[0][..., None]).clamp_max(depth - 1)
    node = torch.arange(depth, device=head.device)
    cost = half.cost_between(node.expand_as(head), head)
    before = half.cost_between(_before(node).expand_as(head), head)
    used = (node >= low[..., None]) & (node <= high[..., None]) & half.exists[..., None]
    fall = torch.where(node > low[..., None], cost - before, cost)
    return float(torch.where(used, fall, 0.0).max())


def add_relation(
    arcs: Arcs,
    relation: Relation,
    positions: torch.Tensor,
    limits: Limits,
    step: float,
    tolerance_mm: float,
) -> None:
    """Add the arcs of one relation, soft and hard.

    Parameters
    ----------
    arcs : Arcs
        Where they are added.
    relation : Relation
        The tied columns.
    positions : Tensor
        Positions in mm, float64 (S, columns, K).
    limits : Limits
        The nodes that surfaces can take.
    step : float
        Cost of one unit.
    tolerance_mm : float
        By how much a hard limit may be missed.

    Raises
    ------
    StepError
        If the prior is not convex on the distances that occur.
    """
    if relation.prior is not None and relation.prior.kind == "custom":
        reach = positions.max() - positions.min()
        expected = torch.as_tensor(relation.prior.expected_mm, dtype=torch.float64)
        relation.prior.check_convex(float(reach) + float(expected.abs().max()))
    errors = []
    for side, half in enumerate(halves(relation, positions, limits, tolerance_mm)):
        error = _base_error(half, step)
        for diagonal, capacity in _diagonals(half, step, error):
            if side == 0:
                arcs.add((*relation.offset, diagonal), relation.lower, 0, capacity)
            else:
                # kept at the tail of the forward arc: node k = j + diagonal of column a
                moved = _move(capacity, diagonal)
                arcs.add((*relation.offset, -diagonal), relation.lower, 1, moved)
        _add_terminals(arcs, relation, half, side, step)
        errors.append(error)
    # of the two directions only one is paid
    worst = torch.where(relation.exists, torch.maximum(*errors), 0.0)
    arcs.rounding += float(worst.sum()) * step


def _diagonals(half: Half, step: float, error: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (j − k, capacity at node k) of the arcs between nodes that remain.

    The largest rounding error of any two nodes, in units, goes to `error` (columns).
    """
    depth = half.tail.shape[-1]
    node = torch.arange(depth, device=half.tail.device)
    low, high = (x[..., None] for x in half.tail_limits)
    row = (node > low) & (node <= high) & half.exists[..., None]
    bound = half.bound()
    least = torch.maximum(bound, half.head_limits[0][..., None])
    hard = row & (bound > half.head_limits[0][..., None])
    # an arc that follows from the one of the node below is left out
    follows = torch.cat([torch.zeros_like(hard[..., :1]), bound.diff(dim=-1) == 0], -1)
    jumps = torch.where(hard & ~follows, bound - node, depth)
    wanted = {int(d) for d in torch.unique(jumps) if int(d) < depth}
    first, last = _span(half, row, least)
    sums = _Sums(half, step, least, error)
    after = sums.at(last)
    for d in range(max([last, *wanted]), min([first, *wanted]) - 1, -1):
        capacity = torch.zeros_like(bound)
        if first <= d <= last:
            before = sums.at(d - 1)
            at = node + d
            keep = row & (at > least) & (at <= half.head_limits[1][..., None])
            capacity = torch.where(keep, before - after, 0)
            _check_sign(capacity)
            capacity.clamp_min_(0)
            after = before
        if d in wanted:
            capacity = torch.where(jumps == d, INFINITE, capacity)
        if bool(capacity.any()):
            yield d, capacity
    if bool((row & (least < node + first - 1)).any()):
        sums.add_straight(row)


class _Sums:
    """The rounded sums C(k, m) of a half, diagonal by diagonal downwards, and their errors.

    The cost of nodes k and m is the sum of C(k', m) over k' ≤ k, so its error is that of
    nodes k − 1 and m, one diagonal further up, and the one of C(k, m).
    """

    def __init__(self, half: Half, step: float, least: torch.Tensor, error: torch.Tensor) -> None:
        self.half, self.step, self.least, self.error = half, step, least, error
        self.off = torch.zeros_like(half.tail)
        low, high = (x[..., None] for x in half.tail_limits)
        self.node = torch.arange(half.tail.shape[-1], device=low.device)
        self.inside = (self.node >= low) & (self.node <= high)

    def at(self, shift: int) -> torch.Tensor:
        """Return C(k, k + `shift`) in units, int64."""
        if self.half.prior is None:
            return torch.zeros_like(self.least)
        below = self.half.cost(shift + 1)
        real = (self.half.cost(shift) - _move(below, 1)) / self.step
        units = torch.floor(real + _BORDER)
        self.off = _move(self.off, 1) + (units - real)
        allowed = self.inside & (self.node + shift >= self.least)
        off = torch.where(allowed, self.off.abs(), 0.0).amax(-1)
        torch.maximum(self.error, off, out=self.error)
        return units.to(torch.int64)

    def add_straight(self, row: torch.Tensor) -> None:
        """Add the error of nodes further apart than the diagonals go: the straight part.

        There C(k, m) is the same for every m, so errors add up along k alone.
        """
        if self.half.prior is None:
            return
        head = self.least.clamp_max(self.node.shape[0] - 1)
        cost = self.half.cost_between(self.node.expand_as(head), head)
        real = (cost - self.half.cost_between(_before(self.node).expand_as(head), head)) / self.step
        off = torch.where(row, torch.floor(real + _BORDER) - real, 0.0).cumsum(-1)
        self.error += off.amax(-1).clamp_min(0) - off.amin(-1).clamp_max(0)


def _span(half: Half, row: torch.Tensor, least: torch.Tensor) -> tuple[int, int]:
    """Return the first and last diagonal that can hold a soft arc; first > last for none."""
    depth = half.tail.shape[-1]
    if half.prior is None:
        return 0, -1
    node = torch.arange(depth, device=half.tail.device)
    shifted = half.tail + half.shift_mm
    top = first_at_least(half.head, shifted - half.prior.free_mm)
    top = torch.minimum(top, half.head_limits[1][..., None])
    bottom = least + 1
    linear_from = half.prior.linear_from_mm
    if linear_from is not None:
        # nothing bends where the node below is already on the straight part
        below = torch.cat([shifted[..., :1], shifted[..., :-1]], -1) - linear_from
        bottom = torch.maximum(bottom, first_at_least(half.head, below))
    # the lowest node of the tail pays as well, though its arcs are source capacities
    paying = row | ((node == half.tail_limits[0][..., None]) & half.exists[..., None])
    last = int(torch.where(paying, top - node, -depth).max())
    first = int(torch.where(row & (bottom <= top), bottom - node, last + 1).min())
    return first, last


def _base_error(half: Half, step: float) -> torch.Tensor:
    """Return the largest rounding error of the cost from the tail's lowest node (columns).

    Its arcs are source capacities, so it need not lie on any diagonal that is made.
    """
    if half.prior is None:
        return torch.zeros_like(half.tail[..., 0])
    low = half.tail_limits[0][..., None]
    head_low, head_high = (x[..., None] for x in half.head_limits)
    node = torch.arange(half.tail.shape[-1], device=low.device).expand(half.tail.shape)
    base = half.cost_between(low.expand(half.tail.shape), node) / step
    off = (torch.floor(base + _BORDER) - base).abs()
    least = torch.maximum(half.bound().gather(-1, low), head_low)
    return torch.where((node >= least) & (node <= head_high), off, 0.0).amax(-1)


def _add_terminals(arcs: Arcs, relation: Relation, half: Half, side: int, step: float) -> None:
    """Add what the lowest node of the tail sends, and what goes beyond the head's highest."""
    if half.prior is None:
        return
    depth = half.tail.shape[-1]
    node = torch.arange(depth, device=half.tail.device)
    low, high = (x[..., None] for x in half.tail_limits)
    head_low, head_high = (x[..., None] for x in half.head_limits)
    exists = half.exists[..., None]
    # beyond the head's highest node
    top = head_high.expand_as(half.tail)
    before = _before(node).expand_as(top)
    real = half.cost_between(node.expand_as(top), top) - half.cost_between(before, top)
    real = real / step
    fall = torch.where((node > low) & (node <= high) & exists, torch.floor(real + _BORDER), 0.0)
    # from the tail's lowest node
    base = half.cost_between(low.expand_as(top), node.expand_as(top)) / step
    units = torch.where((node >= head_low) & (node <= head_high), torch.floor(base + _BORDER), 0.0)
    start = -units.diff(dim=-1, prepend=units[..., :1])
    start = torch.where((node > head_low) & (node <= head_high) & exists, start, 0.0)
    arcs.constant += int(torch.where(exists, units.gather(-1, head_high), 0.0).sum())
    _check_sign(start)
    fall, start = fall.to(torch.int64), start.clamp_min(0).to(torch.int64)
    if side == 0:
        arcs.sink[relation.lower] += fall
        arcs.source[relation.upper] += relation.to_b(start)
    else:
        arcs.sink[relation.upper] += relation.to_b(fall)
        arcs.source[relation.lower] += start


def _check_sign(capacity: torch.Tensor) -> None:
    """Raise for weights below 0 by more than noise: only a custom prior can have them."""
    lowest = int(capacity.min())
    if lowest < -1:
        raise StepError(
            "the prior is not convex on the distances that occur",
            expected="arc weights of 0 or more",
            got=f"{lowest} units",
            hint="only convex priors can be solved exactly",
        )


def _before(node: torch.Tensor) -> torch.Tensor:
    return (node - 1).clamp_min(0)


def _move(values: torch.Tensor, by: int) -> torch.Tensor:
    """Return values moved along the nodes: entry k is entry k − `by`, 0 beyond the ends."""
    depth = values.shape[-1]
    if abs(by) >= depth:
        return torch.zeros_like(values)
    moved = torch.zeros_like(values)
    if by >= 0:
        moved[..., by:] = values[..., : depth - by]
    else:
        moved[..., :by] = values[..., -by:]
    return moved
