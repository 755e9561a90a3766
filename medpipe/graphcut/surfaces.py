"""Optimal surfaces: the best positions of several surfaces on columns, proved.

Li, Wu, Chen and Sonka (DOI 10.1109/TPAMI.2006.19) for the graph, Shah, Abràmoff
and Wu (DOI 10.1016/j.media.2019.02.004) for convex priors on irregular positions,
Haeker and others (DOI 10.1007/978-3-540-73273-0_50) for region costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpipe.graphcut.convex import ConvexPrior, arc_weights
from medpipe.graphcut.problem import CutResult
from medpipe.graphcut.solve import Solver, min_cut
from medpipe.graphcut.surface_graph import SurfaceGraph, build_graph, energy_of
from medpipe.graphcut.surface_problem import Separation, SurfaceProblem

__all__ = [
    "ConvexPrior",
    "Separation",
    "SurfaceProblem",
    "SurfaceResult",
    "arc_weights",
    "optimal_surfaces",
    "read_cut",
]


@dataclass(frozen=True, eq=False)
class SurfaceResult:
    """Surfaces of least energy.

    Parameters
    ----------
    index : Tensor
        int64 (S, columns): the node each surface takes; -1 where it is absent. Among
        equally good surfaces these are the highest.
    position_mm : Tensor
        float64 (S, columns); NaN where a surface is absent.
    energy : float
        Computed anew in float64 from the real costs.
    bound : float
        No surfaces that keep the hard limits have less energy than this. It is the
        optimum of the integer problem less `rounding`.
    rounding : float
        The largest difference that rounding to integers can make, in units of cost.
    step : float
        Cost of one unit of the integer problem.
    proved : bool
        Whether flow equals cut and the energy agrees with the cut within `rounding`.
    cut : CutResult
        The minimum cut.
    """

    index: torch.Tensor
    position_mm: torch.Tensor
    energy: float
    bound: float
    rounding: float
    step: float
    proved: bool
    cut: CutResult


def optimal_surfaces(
    problem: SurfaceProblem, *, step: float | None = None, solver: Solver = "auto"
) -> SurfaceResult:
    """Return the surfaces of least energy, by one minimum cut.

    Parameters
    ----------
    problem : SurfaceProblem
        Costs, positions, priors and limits.
    step : float, optional
        Cost of one unit of the integer problem; by default a power of two small
        enough for 2^16 units per node, which keeps whole costs exactly.
    solver : str
        See `medpipe.graphcut.solve.min_cut`.

    Returns
    -------
    SurfaceResult
        The surfaces and the proof.

    Raises
    ------
    StepError
        If limits conflict (the message names them), a prior is not convex, or the
        integers get too large.
    UsageError
        If the step or the solver is wrong.

    Notes
    -----
    A prior that is not linear at large distances joins every node to all those below
    it in the neighbouring column. Give it `max_jump_mm` on long columns.
    """
    graph = build_graph(problem, step)
    return read_cut(problem, graph, min_cut(graph.cut, solver))


def read_cut(problem: SurfaceProblem, graph: SurfaceGraph, cut: CutResult) -> SurfaceResult:
    """Return the surfaces that a cut describes.

    Parameters
    ----------
    problem : SurfaceProblem
        The problem.
    graph : SurfaceGraph
        Its cut problem.
    cut : CutResult
        A minimum cut of it.
    """
    index = cut.source_side.sum(-1) - 1
    energy = energy_of(problem, graph.relations, index)
    units = cut.cut + graph.constant
    value = units * graph.step + problem.base_cost()
    # float64 sums of real costs carry noise of their own
    noise = 1e-9 * max(1.0, abs(energy), abs(value))
    proved = cut.proved and abs(energy - value) <= graph.rounding + noise
    present = problem.present()
    at = problem.positions().gather(-1, index.clamp_min(0)[..., None])[..., 0]
    return SurfaceResult(
        torch.where(present, index, -1),
        torch.where(present, at, torch.nan),
        energy,
        value - graph.rounding,
        graph.rounding,
        graph.step,
        proved,
        cut,
    )
