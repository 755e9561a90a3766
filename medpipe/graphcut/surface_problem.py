"""The optimal-surface problem: costs on columns, priors between them, and their relations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import torch

from medpipe.errors import StepError
from medpipe.graphcut.convex import ConvexPrior, Value, per_column

__all__ = ["Relation", "Separation", "SurfaceProblem", "column_name", "relations_of"]

Priors = ConvexPrior | Sequence[ConvexPrior | Sequence[ConvexPrior]]


@dataclass(frozen=True, eq=False)
class Separation:
    """Distance in mm from a surface to one above it in the column.

    Parameters
    ----------
    min_mm, max_mm : float or Tensor
        Hard limits; a tensor holds one value per column. Negative minima let the
        surfaces cross.
    soft : ConvexPrior, optional
        Cost of the distance; its `expected_mm` is the distance that costs nothing.
    """

    min_mm: Value = 0.0
    max_mm: Value = inf
    soft: ConvexPrior | None = None


@dataclass(frozen=True, eq=False)
class SurfaceProblem:
    """Surfaces that cross every column once, at the least total cost.

    The energy is the sum of ``costs`` at the nodes where the surfaces lie, of the
    priors on the differences between neighbouring columns (next minus this, in mm),
    of the soft separations, and of ``region_costs``.

    Parameters
    ----------
    costs : Tensor
        (S, X, Y, K) on a grid of columns, (S, C, K) with `links`. +inf forbids a node.
    positions_mm : Tensor
        Strictly increasing positions of the nodes along the columns: (K,), (X, Y, K)
        or (S, X, Y, K); with links (K,), (C, K) or (S, C, K).
    priors : ConvexPrior or sequence
        Smoothness of all surfaces, or one entry per surface; an entry may be a pair
        for the two axes of the grid.
    separations : Separation, sequence or mapping
        One for all neighbouring surfaces, S − 1 of them (None: no relation), or a
        mapping from pairs (lower, upper) of surfaces.
    region_costs : Tensor, optional
        (S + 1, ...) costs of a node to lie in region r: above surface r − 1 and not
        above surface r, the node of the surface itself included in the region below.
        It presumes surfaces in order (`min_mm` of 0 or more).
    valid : Tensor, optional
        Bool, per column or per surface and column: False where there is no data.
    missing : {"bridge", "absent"}
        What a column without data is: free of data cost but still tied to its
        neighbours, so the surface bridges it; or not there at all, so that nothing
        is paid or limited across it and the result holds -1 and NaN.
    wrap : tuple of int
        Axes of the grid of columns (0 or 1) whose end is joined to their beginning.
    links : Tensor, optional
        int64 (J, C): neighbours of columns off a grid, -1 for none, every edge once,
        no column twice in a row (see `medpipe.graphcut.problem.CutProblem`).

    Raises
    ------
    StepError
        If shapes do not fit, positions do not increase, or costs are NaN or -inf.
    """

    costs: torch.Tensor
    positions_mm: torch.Tensor
    priors: Priors
    separations: (
        Separation | Sequence[Separation | None] | Mapping[tuple[int, int], Separation]
    ) = ()
    region_costs: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    missing: Literal["bridge", "absent"] = "bridge"
    wrap: tuple[int, ...] = ()
    links: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_positions(self)
        _check_costs(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the costs."""
        return tuple(self.costs.shape)

    def positions(self) -> torch.Tensor:
        """Return the positions in mm of every surface's nodes, float64, the shape of the costs."""
        positions = self.positions_mm.to(torch.float64)
        if self.missing == "absent" and self.valid is not None:
            # what is not there needs no position, but the arithmetic does
            rank = torch.arange(self.shape[-1], dtype=torch.float64, device=positions.device)
            positions = torch.where(self.with_data()[..., None], positions, rank)
        return positions.expand(self.shape)

    def with_data(self) -> torch.Tensor:
        """Return where a column has data, bool (S, columns)."""
        columns = self.shape[:-1]
        if self.valid is None:
            return torch.ones(columns, dtype=torch.bool, device=self.costs.device)
        return self.valid.to(torch.bool).expand(columns)

    def present(self) -> torch.Tensor:
        """Return where a surface exists, bool (S, columns)."""
        return torch.ones_like(self.with_data()) if self.missing == "bridge" else self.with_data()

    def node_costs(self) -> torch.Tensor:
        """Return the cost of a surface at a node, regions included, float64, up to `base_cost`."""
        costs = self.costs.to(torch.float64)
        if self.region_costs is not None:
            region = self.region_costs.to(torch.float64)
            costs = costs + torch.cumsum(region[:-1] - region[1:], -1)
        return torch.where(self.with_data()[..., None], costs, 0.0)

    def base_cost(self) -> float:
        """Return the region cost of columns that lie above all surfaces."""
        if self.region_costs is None:
            return 0.0
        top = self.region_costs[-1].to(torch.float64).sum(-1)
        return float(torch.where(self.with_data().all(0), top, 0.0).sum())

    def tolerance_mm(self) -> float:
        """Return by how much a hard limit may be missed: the rounding of positions."""
        positions = self.positions()
        return 1e-6 * max(1.0, float(positions.abs().max()))


@dataclass(frozen=True, eq=False)
class Relation:
    """Columns a and b tied by a prior on x = b − a and by hard limits of x, in mm.

    Parameters
    ----------
    label : str
        What it is, for messages.
    offset : tuple of int
        Offset from a to b in the lattice without its last axis.
    lower, upper : int
        Surfaces of a and b.
    prior : ConvexPrior, optional
        Soft cost of x, on columns.
    least_mm, most_mm : Tensor
        Hard limits of x, float64 (columns).
    exists : Tensor
        Bool (columns): where a has such a neighbour and both are there.
    row : Tensor, optional
        The row of links that leads from a to b.
    """

    label: str
    offset: tuple[int, ...]
    lower: int
    upper: int
    prior: ConvexPrior | None
    least_mm: torch.Tensor
    most_mm: torch.Tensor
    exists: torch.Tensor
    row: torch.Tensor | None = None

    @property
    def hard(self) -> bool:
        """Whether any pair has a hard limit."""
        finite = torch.isfinite(self.least_mm) | torch.isfinite(self.most_mm)
        return bool((finite & self.exists).any())

    def at_a(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values (S, columns, ...) of column a of each pair."""
        return values[self.lower]

    def at_b(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values (S, columns, ...) of column b, in the place of column a."""
        there = values[self.upper]
        if self.row is not None:
            return there.index_select(0, self.row.clamp_min(0))
        for axis, step in enumerate(self.offset[1:]):
            if step:
                there = torch.roll(there, -step, axis)
        return there

    def to_b(self, values: torch.Tensor, fill: float | bool = 0) -> torch.Tensor:
        """Bring values (columns, ...) from the place of a to b, `fill` where there is no pair."""
        exists = self.exists.reshape(self.exists.shape + (1,) * (values.ndim - self.exists.ndim))
        values = torch.where(exists, values, fill)
        if self.row is not None:
            moved = torch.full_like(values, fill)
            here = torch.nonzero(self.exists)[:, 0]
            moved[self.row[here]] = values[here]
            return moved
        for axis, step in enumerate(self.offset[1:]):
            if step:
                values = torch.roll(values, step, axis)
        return values


def relations_of(problem: SurfaceProblem) -> list[Relation]:
    """Return every relation between columns: smoothness of each surface, then separations."""
    found = []
    for surface in range(problem.shape[0]):
        found += _smoothness(problem, surface)
    for (lower, upper), separation in _separations(problem).items():
        found.append(_separation(problem, lower, upper, separation))
    return [r for r in found if r.prior is not None or r.hard]


def column_name(column: Sequence[int]) -> str:
    """Return how messages name a column."""
    return f"column ({', '.join(str(i) for i in column)})"


def _smoothness(problem: SurfaceProblem, surface: int) -> list[Relation]:
    columns = problem.shape[1:-1]
    present = problem.present()[surface]
    found = []
    if problem.links is not None:
        for j, row in enumerate(problem.links.to(present.device)):
            exists = (row >= 0) & present & present[row.clamp_min(0)]
            prior = _prior_of(problem, surface, 0).on_columns(j)
            label = f"the smoothness of surface {surface} along links {j}"
            found.append(_tie(problem, label, (0, j + 1), surface, surface, prior, exists, row))
        return found
    for axis, size in enumerate(columns):
        if size < 2:
            continue
        exists = present & torch.roll(present, -1, axis)
        if axis not in problem.wrap:
            exists.narrow(axis, size - 1, 1).fill_(False)
        offset = (0, *(int(i == axis) for i in range(len(columns))))
        label = f"the smoothness of surface {surface} along axis {axis}"
        prior = _prior_of(problem, surface, axis).on_columns()
        found.append(_tie(problem, label, offset, surface, surface, prior, exists, None))
    return found


def _prior_of(problem: SurfaceProblem, surface: int, axis: int) -> ConvexPrior:
    priors = problem.priors
    if isinstance(priors, ConvexPrior):
        return priors
    entry = priors[surface]
    return entry if isinstance(entry, ConvexPrior) else entry[axis]


def _tie(
    problem: SurfaceProblem,
    label: str,
    offset: tuple[int, ...],
    lower: int,
    upper: int,
    prior: ConvexPrior,
    exists: torch.Tensor,
    row: torch.Tensor | None,
) -> Relation:
    jump = inf if prior.max_jump_mm is None else prior.max_jump_mm
    expected = _on_columns(problem, prior.expected_mm)
    limit = _on_columns(problem, jump)
    if isinstance(prior.weight, torch.Tensor) or isinstance(prior.width_mm, torch.Tensor):
        weight, width = (_on_columns(problem, v) for v in (prior.weight, prior.width_mm))
        prior = replace(prior, weight=weight[..., None], width_mm=width[..., None])
    prior = replace(prior, expected_mm=expected[..., None])
    soft = None if prior.kind == "none" else prior
    return Relation(
        label, offset, lower, upper, soft, expected - limit, expected + limit, exists, row
    )


def _separations(problem: SurfaceProblem) -> dict[tuple[int, int], Separation]:
    surfaces = problem.shape[0]
    given = problem.separations
    if isinstance(given, Mapping):
        pairs = dict(given)
        bad = [p for p in pairs if not 0 <= p[0] < surfaces or not 0 <= p[1] < surfaces]
        bad += [p for p in pairs if p[0] == p[1]]
        if bad:
            raise StepError("a separation names surfaces that do not exist", got=str(bad[0]))
        return pairs
    if isinstance(given, Separation):
        given = [given] * (surfaces - 1)
    if given and len(given) != surfaces - 1:
        raise StepError(
            "the number of separations is wrong",
            expected=f"{surfaces - 1} for {surfaces} surfaces",
            got=str(len(given)),
        )
    return {(s, s + 1): separation for s, separation in enumerate(given) if separation is not None}


def _separation(
    problem: SurfaceProblem, lower: int, upper: int, separation: Separation
) -> Relation:
    columns = problem.shape[1:-1]
    present = problem.present()
    soft = None if separation.soft is None else separation.soft.on_columns()
    label = f"the separation of surfaces {lower} and {upper}"
    offset = (upper - lower, *(0 for _ in columns))
    exists = present[lower] & present[upper]
    bounds = [per_column(v) for v in (separation.min_mm, separation.max_mm)]
    least, most = (_on_columns(problem, v) for v in bounds)
    if bool(torch.isnan(least).any()) or bool(torch.isnan(most).any()):
        raise StepError(f"{label} has a limit that is NaN")
    if bool((least == inf).any()) or bool((most == -inf).any()):
        raise StepError(
            f"{label} has a limit that no position keeps",
            expected="min_mm below inf, max_mm above -inf",
            got=f"{float(least.max()):g} and {float(most.min()):g}",
        )
    if soft is not None:
        tie = _tie(problem, label, offset, lower, upper, soft, exists, None)
        least, most = torch.maximum(least, tie.least_mm), torch.minimum(most, tie.most_mm)
        soft = tie.prior
    return Relation(label, offset, lower, upper, soft, least, most, exists)


def _on_columns(problem: SurfaceProblem, value: Value) -> torch.Tensor:
    """Return a value per pair, float64 (columns)."""
    columns = problem.shape[1:-1]
    tensor = torch.as_tensor(value, dtype=torch.float64, device=problem.costs.device)
    if tensor.ndim:
        tensor = tensor[..., 0]
        if tensor.ndim > len(columns) or any(
            t not in (1, n) for t, n in zip(tensor.shape[::-1], columns[::-1], strict=False)
        ):
            raise StepError(
                "a value per column has a wrong shape",
                expected=str(tuple(columns)),
                got=str(tuple(tensor.shape)),
            )
    return tensor.expand(columns)


def _check_shapes(problem: SurfaceProblem) -> None:
    shape = problem.shape
    rank = 3 if problem.links is not None else 4
    if len(shape) != rank or 0 in shape:
        raise StepError(
            "the costs have a wrong shape",
            expected="(S, C, K) with links" if rank == 3 else "(S, X, Y, K), none of them 0",
            got=str(shape),
        )
    checks = [
        ("positions_mm", problem.positions_mm, shape),
        ("valid", problem.valid, shape[:-1]),
    ]
    for name, tensor, target in checks:
        fits = tensor is None or (
            tensor.ndim <= len(target)
            and all(a in (1, b) for a, b in zip(tensor.shape[::-1], target[::-1], strict=False))
            and (name == "valid" or tensor.shape[-1] == target[-1])
        )
        if not fits and tensor is not None:
            raise StepError(
                f"{name} does not fit the costs", expected=str(target), got=str(tuple(tensor.shape))
            )
    regions = problem.region_costs
    if regions is not None and tuple(regions.shape) != (shape[0] + 1, *shape[1:]):
        raise StepError(
            "region_costs do not fit the costs",
            expected=str((shape[0] + 1, *shape[1:])),
            got=str(tuple(regions.shape)),
        )
    if problem.missing not in ("bridge", "absent"):
        raise StepError(
            "missing is wrong", expected="'bridge' or 'absent'", got=str(problem.missing)
        )
    _check_grid(problem)


def _check_grid(problem: SurfaceProblem) -> None:
    shape, links = problem.shape, problem.links
    if any(axis not in (0, 1) for axis in problem.wrap) or (problem.wrap and links is not None):
        raise StepError(
            "wrap is wrong",
            expected="axes 0 or 1 of a grid of columns, none with links",
            got=str(problem.wrap),
        )
    if links is not None and (links.ndim != 2 or links.shape[1] != shape[1]):
        raise StepError(
            "the links do not fit the costs",
            expected=f"(J, {shape[1]})",
            got=str(tuple(links.shape)),
        )
    if not isinstance(problem.priors, ConvexPrior):
        if len(problem.priors) != shape[0]:
            raise StepError(
                "the number of priors is wrong",
                expected=f"one, or {shape[0]} for {shape[0]} surfaces",
                got=str(len(problem.priors)),
            )
        axes = len(shape) - 2
        for entry in problem.priors:
            if not isinstance(entry, ConvexPrior) and len(entry) != axes:
                raise StepError(
                    "a surface has a wrong number of priors",
                    expected=f"one, or {axes} for the axes of the grid",
                    got=str(len(entry)),
                )


def _check_positions(problem: SurfaceProblem) -> None:
    positions = problem.positions()
    if not bool(torch.isfinite(positions).all()):
        raise StepError("positions_mm hold NaN or infinite values")
    rises = positions.diff(dim=-1)
    bad = torch.nonzero(rises <= 0)
    if bad.numel():
        surface, *column, node = bad[0].tolist()
        here = positions[tuple(bad[0].tolist())]
        raise StepError(
            "the positions of a column do not increase",
            where=f"surface {surface} · {column_name(column)} · node {node + 1}",
            expected=f"more than {float(here):.6g} mm",
            got=f"{float(here + rises[tuple(bad[0].tolist())]):.6g} mm",
            hint="use a smaller displacement or leave out nodes",
        )


def _check_costs(problem: SurfaceProblem) -> None:
    data = problem.with_data()[..., None]
    for name, costs in (("costs", problem.costs), ("region_costs", problem.region_costs)):
        if costs is None:
            continue
        bad = torch.isnan(costs) | (costs == -torch.inf)
        if name == "region_costs":
            bad |= torch.isinf(costs)
        bad &= data if name == "costs" else data.any(0)
        if bool(bad.any()):
            surface, *column, node = torch.nonzero(bad)[0].tolist()
            what = "NaN or -inf" if name == "costs" else "values that are not finite"
            raise StepError(
                f"the {name} hold {what}",
                where=f"surface {surface} · {column_name(column)} · node {node}",
                hint="mark columns without data in `valid`",
            )
