"""Optimal surfaces that a reader corrects: local edits, solved again from the last flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import torch

from medpipe.errors import UsageError
from medpipe.graphcut.feasibility import Limits, feasible_limits
from medpipe.graphcut.incremental import IncrementalCut
from medpipe.graphcut.solve import Solver, min_cut
from medpipe.graphcut.surface_graph import SurfaceGraph, build_graph, terminals_of
from medpipe.graphcut.surface_problem import SurfaceProblem, column_name
from medpipe.graphcut.surfaces import SurfaceResult, read_cut

__all__ = ["SurfaceSession"]


class SurfaceSession:
    """A surface problem that is edited and solved again.

    Edits of finite costs and pins change only what single nodes pay, so the flow of
    the last solution stays valid and only the difference is solved (on the CPU).
    Results are those of `medpipe.graphcut.surfaces.optimal_surfaces` on the edited
    problem with the step of the session.

    Parameters
    ----------
    problem : SurfaceProblem
        The problem to begin with. It is not changed.
    step : float, optional
        Cost of one unit, kept for the whole session.
    solver : str
        ``"auto"`` keeps the flow between solutions on the CPU; any other name solves
        anew each time with that solver.

    Raises
    ------
    StepError
        If the problem cannot be solved: see `optimal_surfaces`.
    """

    def __init__(
        self, problem: SurfaceProblem, *, step: float | None = None, solver: Solver = "auto"
    ) -> None:
        # whole costs become real ones: edits may be fractions or forbid a node
        self.problem = replace(problem, costs=problem.costs.to(torch.float64))
        self.solver = solver
        self._graph = build_graph(self.problem, step)
        self._forbidden = torch.isinf(self.problem.costs)
        self._pins: dict[tuple[int, ...], tuple[int, int]] = {}
        self._cut: IncrementalCut | None = None

    def set_costs(self, surface: int, column: Sequence[int], costs: torch.Tensor) -> None:
        """Replace the costs of one surface in one column.

        Parameters
        ----------
        surface : int
            The surface.
        column : sequence of int
            Where the column is, (x, y) or (c,).
        costs : Tensor
            One per node; +inf forbids a node.

        Raises
        ------
        UsageError
            If there is no such column or the number of costs is wrong.
        StepError
            If a cost is NaN or -inf.
        """
        at = self._place(surface, column)
        if tuple(costs.shape) != self.problem.shape[-1:]:
            raise UsageError(
                "the number of costs is wrong",
                expected=str(self.problem.shape[-1]),
                got=str(tuple(costs.shape)),
            )
        edited = self.problem.costs.clone()
        edited[at] = costs.to(edited)
        self.problem = replace(self.problem, costs=edited)

    def attract(
        self,
        surface: int,
        column: Sequence[int],
        position_mm: float,
        *,
        strength: float,
        radius_columns: float = 0.0,
        radius_mm: float = 1.0,
    ) -> None:
        """Lower the costs of one surface around a point.

        Parameters
        ----------
        surface : int
            The surface.
        column : sequence of int
            Column of the point.
        position_mm : float
            Position of the point along the column.
        strength : float
            Cost taken from a node at the point; a Gaussian of the distance elsewhere.
        radius_columns : float
            Standard deviation over the grid of columns, in columns, 0 for this column
            only. Meshes have no grid: only 0 is allowed.
        radius_mm : float
            Standard deviation along the columns, in mm.

        Raises
        ------
        UsageError
            If there is no such column, or a number is out of range or not finite.
        """
        at = self._place(surface, column)
        if (
            not radius_mm > 0
            or not radius_columns >= 0
            or (radius_columns and self.problem.links is not None)
        ):
            raise UsageError(
                "a radius is wrong",
                expected="radius_mm above 0, radius_columns 0 or more on grids",
                got=f"{radius_mm:g} and {radius_columns:g}",
            )
        if not isfinite(position_mm) or not isfinite(strength):
            raise UsageError(
                "the point is wrong",
                where=f"surface {surface} · {column_name(at[1:])}",
                expected="a finite position and strength",
                got=f"{position_mm:g} mm and {strength:g}",
            )
        positions = self.problem.positions()[surface]
        along = torch.exp(-0.5 * ((positions - position_mm) / radius_mm).square())
        weight = along * self._across(at[1:], radius_columns)[..., None]
        edited = self.problem.costs.clone()
        edited[surface] -= (strength * weight).to(edited.dtype)
        self.problem = replace(self.problem, costs=edited)

    def pin(
        self, surface: int, column: Sequence[int], position_mm: float, tolerance_mm: float
    ) -> None:
        """Make a surface pass within `tolerance_mm` of a point; it replaces an older pin there.

        Raises
        ------
        UsageError
            If there is no such column, the position is not finite, or no node lies that near.
        """
        at = self._place(surface, column)
        if not isfinite(position_mm) or not tolerance_mm >= 0:
            raise UsageError(
                "the pin is wrong",
                where=f"surface {surface} · {column_name(at[1:])}",
                expected="a finite position and a tolerance of 0 mm or more",
                got=f"{position_mm:g} mm within {tolerance_mm:g} mm",
            )
        away = (self.problem.positions()[at] - position_mm).abs()
        near = torch.nonzero(away <= tolerance_mm + self.problem.tolerance_mm())
        if not near.numel():
            raise UsageError(
                "no node lies near the pin",
                where=f"surface {surface} · {column_name(at[1:])}",
                expected=f"a tolerance of {float(away.min()):.4g} mm or more",
                got=f"{tolerance_mm:g} mm",
            )
        self._pins[at] = (int(near.min()), int(near.max()))

    def unpin(self, surface: int, column: Sequence[int]) -> None:
        """Take a pin back; nothing happens where there is none."""
        self._pins.pop(self._place(surface, column), None)

    def solve(self) -> SurfaceResult:
        """Return the optimal surfaces of the problem as edited.

        Raises
        ------
        StepError
            If pins and limits conflict. The session stays as it is: take a pin back and
            solve again.
        """
        limits = self._limits()
        if not torch.equal(torch.isinf(self.problem.costs), self._forbidden):
            # a node that is newly forbidden or allowed changes arcs, not only terminals
            self._graph = build_graph(self.problem, self._graph.step)
            self._forbidden = torch.isinf(self.problem.costs)
            self._cut = None
        graph = self._with_terminals(limits)
        if self.solver != "auto" or graph.cut.device.type != "cpu":
            return read_cut(self.problem, graph, min_cut(graph.cut, self.solver))
        if self._cut is None:
            self._cut = IncrementalCut(graph.cut)
        else:
            old = self._cut.problem
            self._cut.change(
                graph.cut.source.to(torch.int64) - old.source,
                graph.cut.sink.to(torch.int64) - old.sink,
            )
        return read_cut(self.problem, graph, self._cut.solve())

    def _with_terminals(self, limits: Limits) -> SurfaceGraph:
        base = self._graph
        ends = terminals_of(self.problem, base.arcs, limits, base.step)
        cut = replace(base.cut, source=ends.source.to(torch.int32), sink=ends.sink.to(torch.int32))
        rounding = base.arcs.rounding + ends.rounding
        return replace(base, cut=cut, constant=ends.constant, rounding=rounding)

    def _limits(self) -> Limits:
        shape = self.problem.shape
        lowest = torch.zeros(shape[:-1], dtype=torch.int64, device=self.problem.costs.device)
        highest = torch.full_like(lowest, shape[-1] - 1)
        for at, (low, high) in self._pins.items():
            lowest[at], highest[at] = low, high
        return feasible_limits(self.problem, self._graph.relations, lowest=lowest, highest=highest)

    def _across(self, column: tuple[int, ...], radius: float) -> torch.Tensor:
        """Return the Gaussian of the distance to a column, in columns, around wrapped axes."""
        sizes = self.problem.shape[1:-1]
        squared = torch.zeros(sizes, dtype=torch.float64, device=self.problem.costs.device)
        for axis, (size, here) in enumerate(zip(sizes, column, strict=True)):
            away = (torch.arange(size, device=squared.device) - here).abs()
            if axis in self.problem.wrap:
                away = torch.minimum(away, size - away)
            shape = [1] * len(sizes)
            shape[axis] = size
            squared = squared + away.reshape(shape).square()
        if radius == 0:
            return (squared == 0).to(torch.float64)
        return torch.exp(-0.5 * squared / radius**2)

    def _place(self, surface: int, column: Sequence[int]) -> tuple[int, ...]:
        at = (int(surface), *(int(i) for i in column))
        sizes = self.problem.shape[:-1]
        if len(at) != len(sizes) or any(not 0 <= i < n for i, n in zip(at, sizes, strict=False)):
            raise UsageError(
                "there is no such surface or column",
                expected=f"indices below {sizes}",
                got=str(at),
            )
        return at
