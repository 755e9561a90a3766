"""Sequential tree-reweighted message passing on columns of nodes (TRW-S).

Kolmogorov, IEEE PAMI 28(10) 2006, DOI 10.1109/TPAMI.2006.200. Nodes of one level
(equal sum of indices) do not touch, and levels are visited in order. One message
is kept for each edge: towards the later end after a pass forth, towards the earlier
end after a pass back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["ColumnLattice", "PairwiseCost", "pass_back", "pass_forth"]

PairwiseCost = Callable[[torch.Tensor], torch.Tensor]
"""Cost of a difference in position (mm), elementwise; +inf forbids it."""

_CHUNK = 2**25  # numbers held at once by one minimisation over pairs of positions


@dataclass(frozen=True)
class _Family:
    """Edges of one direction: each node has at most one above it and one below it."""

    axis: int
    wrapped: bool
    above: torch.Tensor  # (N,) node at the other end that comes later, -1 for none
    below: torch.Tensor  # (N,) node at the other end that comes earlier, -1 for none


@dataclass(frozen=True)
class _Step:
    """The nodes of one level and, for each family, which of them have an edge."""

    nodes: torch.Tensor
    up: list[torch.Tensor]  # rows of `nodes` with a node above
    down: list[torch.Tensor]


class ColumnLattice:
    """Columns as nodes of a graph, in levels that are independent within themselves."""

    def __init__(
        self,
        positions: torch.Tensor,
        smoothness: Sequence[PairwiseCost],
        separation: Sequence[PairwiseCost],
        wrap: tuple[int, ...],
    ) -> None:
        self.shape = tuple(positions.shape)
        self.smoothness, self.separation = smoothness, separation
        self.depth = self.shape[-1]
        self.positions = positions.reshape(-1, self.depth)
        self.families = _families(self.shape, wrap, positions.device)
        self.steps = _steps(self.shape, self.families, positions.device)
        # chains through a node: the larger of its neighbours before and after it
        ends = [self.positions.new_zeros(self.positions.shape[0]) for _ in range(2)]
        for family in self.families:
            ends[0] += family.above >= 0
            ends[1] += family.below >= 0
        self.gamma = 1 / torch.maximum(*ends).clamp(min=1)
        self.alike = bool((self.positions == self.positions[0]).all())
        self.known: dict[tuple[int, int], torch.Tensor] = {}
        self.bands: dict[tuple[int, int, bool], tuple[int, torch.Tensor] | None] = {}

    def pair_cost(self, f: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Cost (n, K, K) of the edges of family `f` between nodes `low` and `high`."""
        terms = self.smoothness if self.families[f].axis else self.separation
        surface = low // (self.shape[1] * self.shape[2])
        shape = (low.numel(), self.depth, self.depth)
        if self.alike:
            tables = torch.cat([self._table(f, term, low[:1], high[:1]) for term in terms])
            return tables[:1].expand(shape) if self._same(terms) else tables[surface]
        if self._same(terms):
            return self._costs(f, terms[0], low, high)
        cost = self.positions.new_empty(shape)
        for s, term in enumerate(terms):
            rows = surface == s
            cost[rows] = self._costs(f, term, low[rows], high[rows])
        return cost

    @staticmethod
    def _same(terms: Sequence[PairwiseCost]) -> bool:
        return all(term is terms[0] for term in terms)

    def _table(
        self, f: int, term: PairwiseCost, low: torch.Tensor, high: torch.Tensor
    ) -> torch.Tensor:
        """Cost (1, K, K) of columns that are all alike, computed once."""
        key = (f, id(term))
        if key not in self.known:
            self.known[key] = self._costs(f, term, low, high)
        return self.known[key]

    def _costs(
        self, f: int, term: PairwiseCost, low: torch.Tensor, high: torch.Tensor
    ) -> torch.Tensor:
        a, b = self.positions[low][:, :, None], self.positions[high][:, None, :]
        # differences are next minus this; where a ring closes, the last comes before the first
        return term(a - b if self.families[f].wrapped else b - a).to(torch.float64)

    def message(
        self, f: int, values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, upward: bool
    ) -> torch.Tensor:
        """Minimise values + pair cost over the positions of the sender: (n, K)."""
        terms = self.smoothness if self.families[f].axis else self.separation
        if self.alike and self._same(terms):
            band = self._band(f, terms[0], low, high, upward)
            if band is not None:
                return _minimum_in_band(values, *band)
        rows = max(_CHUNK // self.depth**2, 1)
        parts = []
        for start in range(0, values.shape[0], rows):
            part = slice(start, start + rows)
            cost = self.pair_cost(f, low[part], high[part])
            given = values[part]
            total = cost + (given[:, :, None] if upward else given[:, None, :])
            parts.append(total.amin(1 if upward else 2))
        return torch.cat(parts)

    def _band(
        self, f: int, term: PairwiseCost, low: torch.Tensor, high: torch.Tensor, upward: bool
    ) -> tuple[int, torch.Tensor] | None:
        """Return the first allowed step from receiver to sender and the costs (K, steps).

        None where most steps are allowed: all pairs are then as quick.
        """
        key = (f, id(term), upward)
        if key not in self.bands:
            table = self._table(f, term, low[:1], high[:1])[0]
            table = table.T if upward else table  # (receiver, sender)
            k = torch.arange(self.depth, device=table.device)
            steps = (k[None, :] - k[:, None])[torch.isfinite(table)]
            self.bands[key] = None
            if steps.numel() and int(steps.max() - steps.min()) < self.depth // 2:
                first, last = int(steps.min()), int(steps.max())
                sender = k[:, None] + torch.arange(first, last + 1, device=table.device)
                inside = (sender >= 0) & (sender < self.depth)
                cost = table.gather(1, sender.clamp(0, self.depth - 1))
                self.bands[key] = (first, torch.where(inside, cost, torch.inf))
        return self.bands[key]


def pass_forth(
    lattice: ColumnLattice, theta: torch.Tensor, messages: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pass messages upward; return the bound and labels chosen on the way (N,)."""
    bound = theta.new_zeros(())
    labels = torch.zeros(theta.shape[0], dtype=torch.int64, device=theta.device)
    for step in lattice.steps:
        nodes = step.nodes
        belief = theta[nodes]
        choice = theta[nodes]
        for f, family in enumerate(lattice.families):
            belief = belief + messages[f][nodes] + messages[f][family.below[nodes]]
            choice = choice + messages[f][nodes]
            rows = step.down[f]
            if rows.numel():
                high = nodes[rows]
                low = family.below[high]
                cost = lattice.pair_cost(f, low, high)
                picked = labels[low][:, None, None].expand(-1, 1, lattice.depth)
                choice = choice.index_add(0, rows, cost.gather(1, picked)[:, 0])
        labels[nodes] = choice.argmin(1)
        least = belief.amin(1, keepdim=True)
        bound = bound + least.sum()
        belief = lattice.gamma[nodes, None] * (belief - least)
        for f, family in enumerate(lattice.families):
            rows = step.up[f]
            if rows.numel():
                low = nodes[rows]
                sent = _minus(belief[rows], messages[f][low])
                new = lattice.message(f, sent, low, family.above[low], upward=True)
                bound = bound + _store(messages[f], low, new)
    return bound, labels


def pass_back(
    lattice: ColumnLattice,
    theta: torch.Tensor,
    messages: list[torch.Tensor],
    marginals: torch.Tensor,
) -> torch.Tensor:
    """Pass messages downward, write the beliefs to `marginals` and return the bound."""
    bound = theta.new_zeros(())
    for step in reversed(lattice.steps):
        nodes = step.nodes
        belief = theta[nodes]
        for f, family in enumerate(lattice.families):
            belief = belief + messages[f][nodes] + messages[f][family.below[nodes]]
        least = belief.amin(1, keepdim=True)
        bound = bound + least.sum()
        belief = belief - least
        marginals[nodes] = belief
        belief = lattice.gamma[nodes, None] * belief
        for f, family in enumerate(lattice.families):
            rows = step.down[f]
            if rows.numel():
                high = nodes[rows]
                low = family.below[high]
                sent = _minus(belief[rows], messages[f][low])
                new = lattice.message(f, sent, low, high, upward=False)
                bound = bound + _store(messages[f], low, new)
    return bound


def _minimum_in_band(values: torch.Tensor, first: int, cost: torch.Tensor) -> torch.Tensor:
    """Minimise over senders `first`, first + 1, ... from each receiver: (n, K)."""
    depth, steps = cost.shape
    left, right = max(-first, 0), max(first + steps - 1, 0)
    padded = torch.nn.functional.pad(values, (left, right), value=torch.inf)
    windows = padded[:, first + left : first + left + depth + steps - 1].unfold(1, steps, 1)
    return (windows + cost).amin(2)


def _minus(belief: torch.Tensor, message: torch.Tensor) -> torch.Tensor:
    """Subtract; a forbidden position (inf - inf) stays forbidden."""
    return torch.nan_to_num_(belief - message, nan=torch.inf, posinf=torch.inf)


def _store(messages: torch.Tensor, low: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Write messages with minimum 0; return the sum of what was taken off."""
    least = new.amin(1, keepdim=True)
    messages[low] = new - torch.where(torch.isinf(least), 0.0, least)
    return least.sum()


def _families(shape: tuple[int, ...], wrap: tuple[int, ...], device: torch.device) -> list[_Family]:
    index = torch.arange(shape[0] * shape[1] * shape[2], device=device).reshape(shape[:3])
    none = torch.full_like(index, -1)
    families = []
    for axis, n in enumerate(shape[:3]):
        if n == 1:
            continue
        above, below = none.clone(), none.clone()
        above.narrow(axis, 0, n - 1).copy_(index.narrow(axis, 1, n - 1))
        below.narrow(axis, 1, n - 1).copy_(index.narrow(axis, 0, n - 1))
        families.append(_Family(axis, False, above.reshape(-1), below.reshape(-1)))
        if axis in wrap:
            above, below = none.clone(), none.clone()
            above.narrow(axis, 0, 1).copy_(index.narrow(axis, n - 1, 1))
            below.narrow(axis, n - 1, 1).copy_(index.narrow(axis, 0, 1))
            families.append(_Family(axis, True, above.reshape(-1), below.reshape(-1)))
    return families


def _steps(shape: tuple[int, ...], families: list[_Family], device: torch.device) -> list[_Step]:
    ranges = [torch.arange(n, device=device) for n in shape[:3]]
    level = (
        ranges[0][:, None, None] + ranges[1][None, :, None] + ranges[2][None, None, :]
    ).reshape(-1)
    order = torch.argsort(level, stable=True)
    sizes = torch.bincount(level).tolist()
    steps = []
    for nodes in torch.split(order, sizes):
        up = [torch.nonzero(f.above[nodes] >= 0)[:, 0] for f in families]
        down = [torch.nonzero(f.below[nodes] >= 0)[:, 0] for f in families]
        steps.append(_Step(nodes, up, down))
    return steps
