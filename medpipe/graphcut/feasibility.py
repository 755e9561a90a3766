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
from math import isfinite

import torch

from medpipe.errors import StepError
from medpipe.graphcut.surface_problem import Relation, SurfaceProblem, column_name, relations_of

__all__ = ["Limits", "feasible_limits", "first_at_least", "last_at_most"]


@dataclass(frozen=True, eq=False)
class Limits:
    """The lowest and highest node that each surface can take, int64 (S, columns)."""

    low: torch.Tensor
    high: torch.Tensor


def first_at_least(positions: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the first node at or above `value` (columns, V), K where there is none."""
    return torch.searchsorted(positions.contiguous(), value.contiguous())


def last_at_most(positions: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the last node at or below `value` (columns, V), -1 where there is none."""
    return torch.searchsorted(positions.contiguous(), value.contiguous(), right=True) - 1


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
        self.low = torch.where(present, self._up(self.low), 0)
        self.high = torch.where(present, self._down(self.high), 0)
        self.pinned_low = self.low if lowest is not None else None
        self.pinned_high = self.high if highest is not None else None
        # the limit that set each end: the number of a relation, -1 for the column itself
        self.low_cause = torch.full_like(self.low, -1)
        self.high_cause = torch.full_like(self.low, -1)
        self.check()

    def sweep(self) -> bool:
        """Apply every limit once, both ways; return whether anything moved."""
        moved = False
        for number, relation in enumerate(self.relations):
            moved |= self._raise(relation, number, toward_b=True)
            moved |= self._raise(relation, number, toward_b=False)
            moved |= self._lower(relation, number, toward_b=True)
            moved |= self._lower(relation, number, toward_b=False)
        return moved

    def _up(self, low: torch.Tensor) -> torch.Tensor:
        depth = self.next.shape[-1]
        inside = self.next.gather(-1, low.clamp_max(depth - 1)[..., None])[..., 0]
        return torch.where(low < depth, inside, depth)

    def _down(self, high: torch.Tensor) -> torch.Tensor:
        inside = self.previous.gather(-1, high.clamp_min(0)[..., None])[..., 0]
        return torch.where(high >= 0, inside, -1)

    def _raise(self, relation: Relation, number: int, toward_b: bool) -> bool:
        """Raise the lower ends of b from those of a, or of a from those of b."""
        here, there = _ends(relation, self.positions, toward_b)
        low = _ends(relation, self.low, toward_b)[0]
        limit = relation.least_mm if toward_b else -relation.most_mm
        least = _at(here, low) + limit - self.tolerance
        found = first_at_least(there, least[..., None])[..., 0]
        return self._set("low", relation, number, toward_b, found)

    def _lower(self, relation: Relation, number: int, toward_b: bool) -> bool:
        """Lower the upper ends of b from those of a, or of a from those of b."""
        here, there = _ends(relation, self.positions, toward_b)
        high = _ends(relation, self.high, toward_b)[0]
        limit = relation.most_mm if toward_b else -relation.least_mm
        most = _at(here, high) + limit + self.tolerance
        found = last_at_most(there, most[..., None])[..., 0]
        return self._set("high", relation, number, toward_b, found)

    def _set(
        self, end: str, relation: Relation, number: int, toward_b: bool, found: torch.Tensor
    ) -> bool:
        surface = relation.upper if toward_b else relation.lower
        current = getattr(self, end)
        low = end == "low"
        neutral = 0 if low else current.new_tensor(self.positions.shape[-1] - 1)
        if toward_b:
            found = relation.to_b(found, int(neutral))
        else:
            found = torch.where(relation.exists, found, neutral)
        proposal = current.clone()
        old = current[surface]
        proposal[surface] = torch.maximum(old, found) if low else torch.minimum(old, found)
        proposal = self._up(proposal) if low else self._down(proposal)
        present = self.problem.present()
        proposal = torch.where(present, proposal, 0)
        changed = proposal != current
        if not bool(changed.any()):
            return False
        setattr(self, end, proposal)
        cause = getattr(self, f"{end}_cause")
        cause[changed] = 2 * number + int(toward_b)
        self.check()
        return True

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


def _ends(
    relation: Relation, values: torch.Tensor, toward_b: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = relation.at_a(values), relation.at_b(values)
    return (a, b) if toward_b else (b, a)


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
