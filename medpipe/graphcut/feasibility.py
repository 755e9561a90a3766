"""Which nodes hard limits leave to surfaces, and which limits conflict where none is left.

Every hard limit says that one surface position follows from another: b lies at
least at f(a), or a at most at g(b), with f and g non-decreasing. The lowest and
highest positions that satisfy all limits at once are then found by propagating
intervals until nothing changes (the Bellman–Ford argument on difference
constraints). The lowest positions together are themselves a solution, so an empty
interval is the only way in which limits can conflict.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

import torch

from medpipe.errors import StepError
from medpipe.graphcut.surface_problem import Relation, SurfaceProblem, column_name, relations_of

__all__ = ["Limits", "feasible_limits", "first_at_least"]


@dataclass(frozen=True, eq=False)
class Limits:
    """The lowest and highest node that each surface can take, int64 (S, columns)."""

    low: torch.Tensor
    high: torch.Tensor


def first_at_least(positions: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the first node at or above `value` (columns, V), K where there is none."""
    return torch.searchsorted(positions.contiguous(), value.contiguous())


def feasible_limits(
    problem: SurfaceProblem,
    relations: list[Relation] | None = None,
    *,
    lowest: torch.Tensor | None = None,
    highest: torch.Tensor | None = None,
) -> Limits:
    """Return the nodes that the hard limits leave to every surface.

    Parameters
    ----------
    problem : SurfaceProblem
        The problem; infinite costs forbid nodes.
    relations : list of Relation, optional
        Its relations, where they are known already.
    lowest, highest : Tensor, optional
        Further limits, int64 (S, columns): pinned surfaces.

    Returns
    -------
    Limits
        The tightest intervals. Absent surfaces have 0 and 0.

    Raises
    ------
    StepError
        If limits conflict; the message names the surface, the column and the limits.
    """
    relations = relations_of(problem) if relations is None else relations
    hard = [r for r in relations if r.hard]
    for relation in hard:
        _check_relation(problem, relation)
    _check_heights(problem, hard)
    state = _Propagation(problem, hard, lowest, highest)
    while state.sweep():
        pass
    return Limits(state.low, state.high)


class _Propagation:
    """Intervals of nodes, and for each end the limit that set it last."""

    def __init__(
        self,
        problem: SurfaceProblem,
        relations: list[Relation],
        lowest: torch.Tensor | None,
        highest: torch.Tensor | None,
    ) -> None:
        self.problem, self.relations = problem, relations
        self.positions = problem.positions()
        self.nodes = [_nodes(surface) for surface in self.positions]
        self.tolerance = problem.tolerance_mm()
        depth = problem.shape[-1]
        present = problem.present()
        allowed = ~torch.isinf(problem.node_costs()) | ~present[..., None]
        node = torch.arange(depth, device=allowed.device)
        # the next and the previous node that may be taken, by a running extremum
        after = torch.where(allowed, node, depth)
        self.next = after.flip(-1).cummin(-1).values.flip(-1)
        self.previous = torch.where(allowed, node, -1).cummax(-1).values
        self.low = torch.zeros_like(self.next[..., 0])
        self.high = torch.full_like(self.low, depth - 1)
        self.low = self.low if lowest is None else torch.maximum(self.low, lowest)
        self.high = self.high if highest is None else torch.minimum(self.high, highest)
        self.present = present
        self.low = torch.where(present, self._up(self.low, self.next), 0)
        self.high = torch.where(present, self._down(self.high, self.previous), 0)
        self.pinned_low = self.low.clone() if lowest is not None else None
        self.pinned_high = self.high.clone() if highest is not None else None
        # the limit that set each end: the number of a relation, -1 for the column itself
        self.low_cause = torch.full_like(self.low, -1)
        self.high_cause = torch.full_like(self.low, -1)
        self.check()
        self.low_mm, self.high_mm = _at(self.positions, self.low), _at(self.positions, self.high)
        # when an end of a surface moved last, and when each limit saw it last
        self.clock = 0
        self.moved = {(e, s): 0 for e in ("low", "high") for s in range(len(self.nodes))}
        self.seen: dict[tuple[str, int, bool], int] = {}

    def sweep(self) -> bool:
        """Apply every limit once, both ways; return whether anything moved."""
        moved = False
        for number, relation in enumerate(self.relations):
            for end in ("low", "high"):
                for toward_b in (True, False):
                    source = relation.lower if toward_b else relation.upper
                    if self.moved[end, source] > self.seen.get((end, number, toward_b), -1):
                        self.seen[end, number, toward_b] = self.clock
                        moved |= self._apply(end, relation, number, toward_b)
        return moved

    @staticmethod
    def _up(low: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        depth = following.shape[-1]
        inside = _at(following, low.clamp_max(depth - 1))
        return torch.where(low < depth, inside, depth)

    @staticmethod
    def _down(high: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        return torch.where(high >= 0, _at(previous, high.clamp_min(0)), -1)

    def _apply(self, end: str, relation: Relation, number: int, toward_b: bool) -> bool:
        """Move an end of b by that of a, or of a by that of b; return whether it moved."""
        low = end == "low"
        surface = relation.upper if toward_b else relation.lower
        bound = self._bound(low, relation, toward_b)
        nodes = self.nodes[surface]
        current = getattr(self, end)[surface]
        if low:
            found = torch.maximum(current, _search(nodes, bound, right=False))
            found = self._up(found, self.next[surface])
        else:
            found = torch.minimum(current, _search(nodes, bound, right=True) - 1)
            found = self._down(found, self.previous[surface])
        found = torch.where(self.present[surface], found, 0)
        changed = found != current
        if not bool(changed.any()):
            return False
        getattr(self, end)[surface] = found
        getattr(self, f"{end}_cause")[surface][changed] = 2 * number + int(toward_b)
        self.check()
        getattr(self, f"{end}_mm")[surface] = _at(self.positions[surface], found)
        self.clock += 1
        self.moved[end, surface] = self.clock
        return True

    def _bound(self, low: bool, relation: Relation, toward_b: bool) -> torch.Tensor:
        """Return how far in mm the other column lets the end of each column be."""
        ends = self.low_mm if low else self.high_mm
        slack = -self.tolerance if low else self.tolerance
        none = -inf if low else inf
        if toward_b:
            limit = relation.least_mm if low else relation.most_mm
            return relation.to_b(relation.at_a(ends) + limit + slack, none)
        limit = -(relation.most_mm if low else relation.least_mm)
        return torch.where(relation.exists, relation.at_b(ends) + limit + slack, none)

    def check(self) -> None:
        """Raise where an interval is empty, with the limits that emptied it."""
        depth = self.positions.shape[-1]
        empty = (self.low > self.high) | (self.low >= depth) | (self.high < 0)
        if not bool(empty.any()):
            return
        surface, *column = torch.nonzero(empty)[0].tolist()
        at = (surface, *column)
        if int(self.low_cause[at]) < 0 and int(self.high_cause[at]) < 0:
            raise StepError(
                f"surface {surface} may lie at no node",
                where=column_name(column),
                expected="a node of finite cost inside the pins",
                hint="allow a node or mark the column in `valid`",
            )
        raise StepError(
            f"the hard limits leave no position to surface {surface}",
            where=column_name(column),
            got=f"{self._end_text(at, 'low')}, {self._end_text(at, 'high')}",
            hint="widen one of these limits",
        )

    def _end_text(self, at: tuple[int, ...], end: str) -> str:
        """Return where an end lies in mm and the chain of limits that put it there."""
        low = end == "low"
        node = int(getattr(self, end)[at])
        depth = self.positions.shape[-1]
        if 0 <= node < depth:
            place = (
                f"{'at least' if low else 'at most'} {float(self.positions[(*at, node)]):.6g} mm"
            )
        else:
            place = f"{'above' if low else 'below'} all {depth} nodes"
        return f"{place} by {' and '.join(self._reasons(at, end))}"

    def _reasons(self, at: tuple[int, ...], end: str) -> list[str]:
        reasons: list[str] = []
        causes = getattr(self, f"{end}_cause")
        pinned = self.pinned_low if end == "low" else self.pinned_high
        seen = set()
        while int(causes[at]) >= 0 and at not in seen:
            seen.add(at)
            number, toward_b = divmod(int(causes[at]), 2)
            relation = self.relations[number]
            there = at
            at = _origin(relation, at, bool(toward_b))
            # the lower end moves towards b by the least distance, towards a by the most
            least = bool(toward_b) == (end == "low")
            where = at if toward_b else there
            limit = float((relation.least_mm if least else relation.most_mm)[where[1:]])
            text = f"{relation.label} ({'at least' if least else 'at most'} {limit:.6g} mm)"
            if text not in reasons:
                reasons.append(text)
        if at in seen:
            return reasons
        if pinned is not None and int(pinned[at]) != self._free_end(at, end):
            root = f"a pin or costs of surface {at[0]} in {column_name(at[1:])}"
        elif end == "low":
            root = f"the first usable node of surface {at[0]} in {column_name(at[1:])}"
        else:
            root = f"the last usable node of surface {at[0]} in {column_name(at[1:])}"
        return [*reasons, root]

    def _free_end(self, at: tuple[int, ...], end: str) -> int:
        table = self.next if end == "low" else self.previous
        return int(table[at][0 if end == "low" else -1])


def _origin(relation: Relation, at: tuple[int, ...], toward_b: bool) -> tuple[int, ...]:
    """Return the other column of the pair that set the end of column `at`."""
    surface = relation.lower if toward_b else relation.upper
    if relation.row is not None:
        if not toward_b:
            return (surface, int(relation.row[at[1]]))
        return (surface, int(torch.nonzero(relation.row == at[1])[0, 0]))
    sign = -1 if toward_b else 1
    sizes = relation.exists.shape
    steps = relation.offset[1:]
    column = [(i + sign * s) % n for i, s, n in zip(at[1:], steps, sizes, strict=True)]
    return (surface, *column)


def _nodes(positions: torch.Tensor) -> torch.Tensor:
    """Return the nodes of one surface, (K,) where those of all columns are the same."""
    if all(step == 0 for step in positions.stride()[:-1]):
        return positions[(0,) * (positions.ndim - 1)].contiguous()
    return positions.contiguous()


def _search(nodes: torch.Tensor, value: torch.Tensor, *, right: bool) -> torch.Tensor:
    """Return how many nodes of each column lie below `value` (columns), `right`: or at it."""
    if nodes.ndim == 1:
        return torch.searchsorted(nodes, value.contiguous(), right=right)
    return torch.searchsorted(nodes, value[..., None].contiguous(), right=right)[..., 0]


def _at(positions: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
    return positions.gather(-1, node[..., None])[..., 0]


def _check_relation(problem: SurfaceProblem, relation: Relation) -> None:
    """Raise if the limits of one pair contradict each other."""
    bad = torch.nonzero((relation.least_mm > relation.most_mm) & relation.exists)
    if bad.numel():
        column = tuple(bad[0].tolist())
        raise StepError(
            f"the limits of {relation.label} contradict each other",
            where=column_name(column),
            expected="the minimum not above the maximum",
            got=f"at least {float(relation.least_mm[column]):.6g} mm and "
            f"at most {float(relation.most_mm[column]):.6g} mm",
        )


def _check_heights(problem: SurfaceProblem, relations: list[Relation]) -> None:
    """Raise if a column is shorter than the separations of its surfaces together."""
    positions = problem.positions()
    tolerance = problem.tolerance_mm()
    low, high = positions[..., 0], positions[..., -1]
    stacks = [r for r in relations if r.upper == r.lower + 1 and not any(r.offset[1:])]
    for first in stacks:
        need = torch.zeros_like(low[0])
        upper = first.lower
        exists = torch.ones_like(first.exists)
        for relation in sorted(stacks, key=lambda r: r.lower):
            if relation.lower != upper:
                continue
            need, upper = need + relation.least_mm, relation.upper
            exists = exists & relation.exists
            height = high[upper] - low[first.lower]
            short = torch.nonzero((need > height + tolerance) & exists)
            if short.numel() and isfinite(float(need[tuple(short[0].tolist())])):
                column = tuple(short[0].tolist())
                raise StepError(
                    f"the column is shorter than the separations of surfaces "
                    f"{first.lower} to {upper} need",
                    where=column_name(column),
                    expected=f"{float(need[column]):.6g} mm or more",
                    got=f"{float(height[column]):.6g} mm",
                    hint="lower the minimum distances or make the columns longer",
                )
