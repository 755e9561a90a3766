"""General maximum-flow solvers on an edge list: SciPy always, OR-tools where installed.

They are the independent check of the solvers of this package, and a way out on
machines without numba. Both need every arc in memory.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch

from medpipe.errors import ResourceError, StepError
from medpipe.graphcut.problem import INFINITE, CutProblem, tails_and_heads

__all__ = ["has_ortools", "solve_ortools", "solve_scipy"]


def has_ortools() -> bool:
    """Return whether OR-tools is installed."""
    return importlib.util.find_spec("ortools") is not None


def _edges(problem: CutProblem) -> tuple[Any, Any, Any, Any]:
    """Return tails, heads, forward and backward capacities with s = N and t = N + 1."""
    n = problem.source.numel()
    tails, heads, forward, backward = [], [], [], []
    index = torch.arange(n).reshape(problem.shape)
    for family in problem.arcs:
        ends = tails_and_heads(problem, family.offset, index)
        tail, head = (x.reshape(-1).numpy() for x in ends)
        caps = [_values(problem, c)[tail] for c in (family.forward, family.backward)]
        keep = (caps[0] > 0) | (caps[1] > 0)
        tails.append(tail[keep])
        heads.append(head[keep])
        forward.append(caps[0][keep])
        backward.append(caps[1][keep])
    for terminal, name in ((n, problem.source), (n + 1, problem.sink)):
        value = _values(problem, name)
        node = np.flatnonzero(value)
        at = np.full(node.size, terminal)
        tails.append(at if terminal == n else node)
        heads.append(node if terminal == n else at)
        forward.append(value[node])
        backward.append(np.zeros_like(value[node]))
    return tuple(np.concatenate(x) for x in (tails, heads, forward, backward))  # type: ignore[return-value]


def _values(problem: CutProblem, capacity: torch.Tensor | int) -> Any:
    full = torch.as_tensor(capacity).expand(problem.shape).reshape(-1)
    return full.to(torch.int64).cpu().numpy()


def solve_ortools(problem: CutProblem) -> tuple[torch.Tensor, int, dict[str, Any]]:
    """Solve with the push-relabel of OR-tools.

    Returns
    -------
    source_side : Tensor
        Bool, the largest source side among the minimum cuts.
    flow : int
        Value of the maximum flow.
    stats : dict
        Number of edges.

    Raises
    ------
    ResourceError
        If OR-tools is not installed.
    """
    if not has_ortools():
        raise ResourceError("OR-tools is not installed", hint="pip install ortools")
    from ortools.graph.python import max_flow

    n = problem.source.numel()
    tails, heads, forward, backward = _edges(problem)
    flow = max_flow.SimpleMaxFlow()
    flow.add_arcs_with_capacity(tails, heads, forward)
    back = backward > 0
    flow.add_arcs_with_capacity(heads[back], tails[back], backward[back])
    # both terminals must exist even where no arc touches them
    flow.add_arcs_with_capacity(np.array([n, n]), np.array([n + 1, n + 1]), np.array([0, 0]))
    if flow.solve(n, n + 1) != flow.OPTIMAL:
        raise StepError(
            "the total capacity is too large for OR-tools", hint="use a larger quantisation step"
        )
    side = np.ones(n + 2, dtype=bool)
    side[flow.get_sink_side_min_cut()] = False
    edges = int(tails.size)
    return _side(problem, side[:n]), int(flow.optimal_flow()), {"edges": edges}


def solve_scipy(problem: CutProblem) -> tuple[torch.Tensor, int, dict[str, Any]]:
    """Solve with the Dinic algorithm of SciPy (32-bit capacities and flow).

    Returns
    -------
    source_side : Tensor
        Bool, the largest source side among the minimum cuts.
    flow : int
        Value of the maximum flow.
    stats : dict
        Number of edges.

    Raises
    ------
    StepError
        If the total capacity does not fit 32 bits.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    n = problem.source.numel()
    tails, heads, forward, backward = _edges(problem)
    source = _values(problem, problem.source)
    total = int(source[source < INFINITE].sum())
    if total >= 2**31:
        raise StepError(
            "the total capacity is too large for SciPy",
            expected="source capacities below 2^31 in sum",
            got=f"{total:.3g}",
            hint="use a larger quantisation step or another solver",
        )
    rows, columns = np.concatenate([tails, heads]), np.concatenate([heads, tails])
    values = np.concatenate([forward, backward])
    graph = coo_matrix((values, (rows, columns)), shape=(n + 2, n + 2)).tocsr()
    graph.data = np.minimum(graph.data, 2**31 - 1)
    graph = graph.astype(np.int32)
    result = maximum_flow(graph, n, n + 1)
    residual = (graph - result.flow).tocsr()
    residual.eliminate_zeros()
    reaches_sink = breadth_first_order(residual.T.tocsr(), n + 1, return_predecessors=False)
    side = np.ones(n + 2, dtype=bool)
    side[reaches_sink] = False
    return _side(problem, side[:n]), int(result.flow_value), {"edges": int(tails.size)}


def _side(problem: CutProblem, side: Any) -> torch.Tensor:
    return torch.from_numpy(side).reshape(problem.shape).to(problem.device)
