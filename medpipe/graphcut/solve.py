"""One call for every minimum cut: the solver is chosen, the result is proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.general import solve_ortools, solve_scipy
from medpipe.graphcut.problem import INFINITE, CutProblem, CutResult, cut_value, finite_total
from medpipe.graphcut.pseudoflow import solve_pseudoflow
from medpipe.graphcut.stencil import solve_stencil

__all__ = ["Solver", "min_cut"]

Solver = Literal["auto", "pseudoflow", "stencil", "ortools", "scipy"]

Solve = Callable[[CutProblem], tuple[torch.Tensor, int, dict[str, Any]]]

SOLVERS: dict[str, Solve] = {
    "pseudoflow": solve_pseudoflow,
    "stencil": solve_stencil,
    "ortools": solve_ortools,
    "scipy": solve_scipy,
}


def min_cut(problem: CutProblem, solver: Solver = "auto") -> CutResult:
    """Return a minimum cut and the maximum flow that proves it.

    Parameters
    ----------
    problem : CutProblem
        The problem. It is not changed.
    solver : {"auto", "pseudoflow", "stencil", "ortools", "scipy"}
        ``"auto"`` takes ``"stencil"`` (torch, GPU) for tensors on a GPU and
        ``"pseudoflow"`` (numba) on the CPU.

    Returns
    -------
    CutResult
        The largest source side among all minimum cuts, on the device of the
        problem. It does not depend on the solver. Where sums of finite capacities reach
        INFINITE and 32 bits do not do, it is that of ``"pseudoflow"`` with 64 bits.

    Raises
    ------
    StepError
        If the hard constraints contradict each other, or flows could pass 64 bits.
    UsageError
        If the solver is unknown.
    """
    name = _choose(problem) if solver == "auto" else solver
    if name not in SOLVERS:
        raise UsageError(
            "the solver is unknown", expected=", ".join(["auto", *SOLVERS]), got=str(solver)
        )
    side, flow, stats = SOLVERS[name](problem)
    cut: int | None = None
    try:
        cut = cut_value(problem, side)
    except StepError:
        if not _may_overfill(problem):
            raise
    if cut is None or (cut != flow and _may_overfill(problem)):
        # so much flow came together that it filled an arc of infinite capacity
        side, flow, stats = solve_pseudoflow(problem, wide=True)
        name, cut = "pseudoflow", cut_value(problem, side)
    return CutResult(side, flow, cut, name, stats)


def _choose(problem: CutProblem) -> str:
    return "stencil" if problem.device.type == "cuda" else "pseudoflow"


def _may_overfill(problem: CutProblem) -> bool:
    """Return whether flow of finite capacities could fill what stands for an infinite one."""
    return finite_total(problem) >= INFINITE - 1
