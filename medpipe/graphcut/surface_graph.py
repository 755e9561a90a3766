"""The minimum-cut problem of optimal surfaces, and the reading of its cut.

The closure form of Li, Wu, Chen and Sonka (DOI 10.1109/TPAMI.2006.19) on real
positions: nodes at or below a surface are on the source side, every node carries
the rise of the cost from the node below, and infinite arcs lead down each column.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite, log2

import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.feasibility import Limits, feasible_limits
from medpipe.graphcut.problem import INFINITE, CutProblem
from medpipe.graphcut.surface_arcs import Arcs, add_relation, halves, heaviest
from medpipe.graphcut.surface_problem import Relation, SurfaceProblem, relations_of

__all__ = ["SurfaceGraph", "Terminals", "build_graph", "energy_of", "terminals_of"]

_NODE_UNITS = 2**16
_SUM_UNITS = 2**27


@dataclass(frozen=True, eq=False)
class Terminals:
    """Source and sink capacities of a problem, int64, and what every cut pays."""

    source: torch.Tensor
    sink: torch.Tensor
    constant: int
    rounding: float


@dataclass(frozen=True, eq=False)
class SurfaceGraph:
    """A surface problem as a cut problem.

    Parameters
    ----------
    cut : CutProblem
        The cut problem; its cost plus `constant` is the energy in units of `step`.
    constant : int
        What every cut pays besides.
    step : float
        Cost of one unit.
    rounding : float
        The largest difference, in units of cost, between the integers times `step`
        and the real energy, over all feasible surfaces.
    arcs : Arcs
        Arcs and the terminals that belong to them, without those of the costs.
    limits : Limits
        The nodes that surfaces can take.
    relations : list of Relation
        The tied columns.
    """

    cut: CutProblem
    constant: int
    step: float
    rounding: float
    arcs: Arcs
    limits: Limits
    relations: list[Relation]


def build_graph(
    problem: SurfaceProblem, step: float | None = None, limits: Limits | None = None
) -> SurfaceGraph:
    """Return the cut problem of a surface problem.

    Parameters
    ----------
    problem : SurfaceProblem
        The problem.
    step : float, optional
        Cost of one unit. By default the smallest power of two for which no node
        holds more than 2^16 units and no sum more than 2^27; whole costs are then
        kept exactly.
    limits : Limits, optional
        The feasible limits, where they are known already.

    Raises
    ------
    UsageError
        If the step is not positive.
    StepError
        If the hard limits conflict, the prior is not convex or integers get too large.
    """
    relations = relations_of(problem)
    limits = feasible_limits(problem, relations) if limits is None else limits
    positions, tolerance = problem.positions(), problem.tolerance_mm()
    step = _step(problem, relations, limits, step)
    zeros = torch.zeros(problem.shape, dtype=torch.int64, device=problem.costs.device)
    arcs = Arcs(problem.shape, zeros, zeros.clone())
    _add_columns(arcs, problem)
    for relation in relations:
        add_relation(arcs, relation, positions, limits, step, tolerance)
    ends = terminals_of(problem, arcs, limits, step)
    cut = CutProblem(
        ends.source.to(torch.int32),
        ends.sink.to(torch.int32),
        arcs.arc_families(),
        tuple(axis + 1 for axis in problem.wrap),
        None if problem.links is None else problem.links.to(torch.int64),
    )
    rounding = arcs.rounding + ends.rounding
    return SurfaceGraph(cut, ends.constant, step, rounding, arcs, limits, relations)


def terminals_of(problem: SurfaceProblem, arcs: Arcs, limits: Limits, step: float) -> Terminals:
    """Return the terminals that the costs and the limits of a problem need on given arcs.

    Parameters
    ----------
    problem : SurfaceProblem
        The problem.
    arcs : Arcs
        Its arcs; they may be built for wider limits.
    limits : Limits
        The nodes that surfaces can take now.
    step : float
        Cost of one unit.

    Raises
    ------
    StepError
        If a capacity is too large for exact integers.
    """
    costs = _filled_costs(problem) / step
    units = torch.round(costs)
    present = problem.present()
    error = torch.where(present, (units - costs).abs().amax(-1), 0.0)
    units = units.to(torch.int64)
    rise = units.diff(dim=-1, prepend=torch.zeros_like(units[..., :1]))
    rise = torch.where(present[..., None], rise, 0)
    node = torch.arange(problem.shape[-1], device=rise.device)
    inside = node <= limits.low[..., None]
    outside = node > limits.high[..., None]
    # the surface lies at the lowest node or above: what is paid there is paid by every cut
    constant = int(torch.where(inside, rise, 0).sum()) + arcs.constant
    net = torch.where(inside, 0, rise) + arcs.sink - arcs.source
    free = ~inside & ~outside
    # a node outside the source side pays `source`: all of it, unless it is inside
    constant += int(torch.where(inside, arcs.sink, 0).sum())
    constant += int(torch.where(inside, 0, arcs.source).sum())
    constant += int(torch.where(free, net.clamp_max(0), 0).sum())
    source = torch.where(inside, INFINITE, torch.where(free, (-net).clamp_min(0), 0))
    sink = torch.where(outside, INFINITE, torch.where(free, net.clamp_min(0), 0))
    if int(torch.where(free, net.abs(), 0).max()) >= INFINITE:
        raise StepError(
            "the costs are too large for exact integers",
            expected=f"capacities below {INFINITE} units",
            hint="use a larger quantisation step or smaller weights",
        )
    return Terminals(source, sink, constant, float(error.sum()) * step)


def energy_of(problem: SurfaceProblem, relations: list[Relation], index: torch.Tensor) -> float:
    """Return the energy of surfaces from the real costs, in float64.

    Parameters
    ----------
    problem : SurfaceProblem
        The problem.
    relations : list of Relation
        Its relations.
    index : Tensor
        Node of every surface, int64 (S, columns); absent surfaces hold anything.
    """
    present = problem.present()
    node = index.clamp_min(0)[..., None]
    at = problem.positions().gather(-1, node)[..., 0]
    data = problem.node_costs().gather(-1, node)[..., 0]
    total = torch.where(present, data, 0.0).sum() + problem.base_cost()
    for relation in relations:
        if relation.prior is None:
            continue
        difference = relation.at_b(at) - relation.at_a(at)
        cost = relation.prior(difference[..., None])[..., 0]
        total = total + torch.where(relation.exists, cost, 0.0).sum()
    return float(total)


def _filled_costs(problem: SurfaceProblem) -> torch.Tensor:
    """Return the costs of nodes, with finite ones where a node is forbidden anyway."""
    costs = problem.node_costs()
    finite = torch.isfinite(costs)
    lowest = torch.where(finite, costs, torch.inf).amin(-1, keepdim=True)
    lowest = torch.where(torch.isfinite(lowest), lowest, 0.0)
    return torch.where(finite, costs, lowest)


def _add_columns(arcs: Arcs, problem: SurfaceProblem) -> None:
    """Add the arcs along the columns: down always, up where a node is forbidden."""
    down = (*(0 for _ in problem.shape[:-1]), -1)
    forbidden = torch.isinf(problem.node_costs()) & problem.present()[..., None]
    below = torch.zeros_like(forbidden)
    below[..., 1:] = forbidden[..., :-1]
    for surface in range(problem.shape[0]):
        everywhere = torch.full_like(arcs.source[surface], INFINITE)
        arcs.add(down, surface, 0, everywhere)
        if bool(below[surface].any()):
            arcs.add(down, surface, 1, torch.where(below[surface], INFINITE, 0).to(torch.int64))


def _step(
    problem: SurfaceProblem, relations: list[Relation], limits: Limits, step: float | None
) -> float:
    """Return the given step if its integers fit, or choose one."""
    if step is not None and not (step > 0 and isfinite(step)):
        raise UsageError(
            "the quantisation step is wrong", expected="finite and above 0", got=f"{step:g}"
        )
    costs = _filled_costs(problem)
    steepest = float(costs.diff(dim=-1).abs().max()) if costs.shape[-1] > 1 else 0.0
    spread = float((costs.amax(-1) - costs.amin(-1)).max())
    positions, tolerance = problem.positions(), problem.tolerance_mm()
    pull = sum(
        heaviest(half) for r in relations for half in halves(r, positions, limits, tolerance)
    )
    if not isfinite(pull):
        raise StepError("a prior is not finite on the distances that occur")
    total = max(spread, pull)
    if step is None:
        finest = max(steepest, 0.0 if steepest else pull) / _NODE_UNITS
        finest = max(finest, total / _SUM_UNITS)
        return 2.0 ** ceil(log2(finest)) if finest > 0 else 1.0
    if total / step >= INFINITE / 2:
        raise StepError(
            "the costs are too large for exact integers",
            expected=f"a quantisation step of {2 * total / INFINITE:.3g} or more",
            got=f"{step:g}",
        )
    return float(step)
