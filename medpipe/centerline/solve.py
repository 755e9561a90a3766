"""Shortest paths through the foreground, the same bits on every device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from medpipe.centerline.dijkstra_kernel import dijkstra
from medpipe.centerline.graph import ForegroundGraph
from medpipe.errors import StepError, UsageError
from medpipe.steps._base import check_choice

__all__ = ["ShortestPaths", "shortest_paths"]

Method = Literal["auto", "dijkstra", "bellman-ford"]

DEVICE_VOXELS = 50_000
"""Voxels from which a device solves for itself; an estimate, not measured on one."""
SWEEPS = 32
"""Sweeps between two looks at whether anything changed: each look waits for the device."""
CHUNK_VOXELS = 1 << 21
"""Voxels whose 26 candidates are held at a time: 436 MB."""


@dataclass(frozen=True, eq=False)
class ShortestPaths:
    """Where each voxel is reached from.

    Parameters
    ----------
    distance : Tensor
        float64 (N,), inf where no source leads.
    predecessor : Tensor
        int32 (N,), the voxel before on the way from the source, -1 at sources and where
        no source leads.
    source : Tensor
        int32 (N,), which of the sources, -1 where none leads.
    """

    distance: torch.Tensor
    predecessor: torch.Tensor
    source: torch.Tensor


def shortest_paths(
    graph: ForegroundGraph,
    cost: torch.Tensor | None,
    sources: torch.Tensor,
    *,
    method: Method = "auto",
) -> ShortestPaths:
    """Return the cheapest way from the nearest of several sources to every voxel.

    A step from u to v costs ½ (c_u + c_v) times its length in mm, summed from the source
    on in float64. Such sums grow with each step, so their least values do not depend on
    the order in which they are found. Of the neighbours that give exactly this value and
    are nearer, the predecessor is the one of the lowest index, and a source that is named
    twice counts as the first: both methods give the same bits.

    Parameters
    ----------
    graph : ForegroundGraph
    cost : Tensor, optional
        (N,) positive and finite, for each voxel; None is 1 (distances are lengths in mm).
    sources : Tensor
        Integers (S,), numbers of voxels.
    method : {"auto", "dijkstra", "bellman-ford"}
        ``"dijkstra"`` works on the host, ``"bellman-ford"`` in torch on the device of the
        graph. ``"auto"`` is ``"bellman-ford"`` for large graphs that are on a device.

    Returns
    -------
    ShortestPaths
        On the device of the graph.

    Raises
    ------
    StepError
        If the costs are not positive and finite or span too wide a range for float64,
        or a source is no voxel of the graph.
    UsageError
        If the method is unknown or there is no source.
    """
    check_choice("method", method, ("auto", "dijkstra", "bellman-ford"))
    count, device = graph.neighbours.shape[0], graph.neighbours.device
    values = _checked_cost(cost, count, device)
    starts = _checked_sources(sources, count, device)
    if method == "auto":
        on_device = device.type != "cpu" and count >= DEVICE_VOXELS
        method = "bellman-ford" if on_device else "dijkstra"
    if method == "dijkstra":
        found = dijkstra(*(_host(t) for t in (graph.neighbours, graph.steps_mm, values, starts)))
        distance, predecessor, source = (torch.from_numpy(f).to(device) for f in found)
    else:
        distance, predecessor, source = _bellman_ford(graph, values, starts)
    if bool((torch.isfinite(distance) & (source < 0)).any()):
        raise StepError(
            "the costs span too wide a range",
            expected="steps that change a sum in float64",
            hint="give the costs a lower bound",
        )
    return ShortestPaths(distance, predecessor, source)


def _checked_cost(cost: torch.Tensor | None, count: int, device: torch.device) -> torch.Tensor:
    if cost is None:
        return torch.ones(count, dtype=torch.float64, device=device)
    if tuple(cost.shape) != (count,):
        raise StepError("the costs do not fit the voxels", expected=f"shape ({count},)")
    values = cost.detach().to(device, torch.float64)
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise StepError("a cost is wrong", expected="positive and finite numbers")
    return values


def _checked_sources(sources: torch.Tensor, count: int, device: torch.device) -> torch.Tensor:
    if sources.ndim != 1 or not sources.numel() or sources.is_floating_point():
        raise UsageError("the sources are wrong", expected="at least one voxel number, shape (S,)")
    starts = sources.detach().to(device, torch.int64)
    if not bool(((starts >= 0) & (starts < count)).all()):
        raise StepError("a source is no voxel of the graph", expected=f"numbers below {count}")
    return starts


def _host(values: torch.Tensor) -> Any:
    """Return a tensor as a contiguous numpy array of the host."""
    return values.contiguous().cpu().numpy()


def _bellman_ford(
    graph: ForegroundGraph, cost: torch.Tensor, sources: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return distance, predecessor and source by sweeps over all voxels at once."""
    count, device = cost.numel(), cost.device
    distance = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
    distance[sources] = 0
    parts = list(_weighted(graph, cost))
    room = torch.empty(max(p[1].numel() for p in parts), dtype=torch.float64, device=device)

    def candidates(near: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = room[: near.numel()]
        torch.index_select(distance, 0, near, out=out)
        return out.view(weight.shape)

    before = distance.clone()
    while True:
        for sweep in range(SWEEPS):
            if sweep == SWEEPS - 1:
                before.copy_(distance)
            for rows, near, weight in parts:
                best = candidates(near, weight).add_(weight).amin(1)
                torch.minimum(distance[rows], best, out=distance[rows])
        if torch.equal(before, distance):
            break
    predecessor = torch.full((count,), -1, dtype=torch.int32, device=device)
    order = torch.arange(26, device=device)
    for rows, near, weight in parts:
        there, here = candidates(near, weight), distance[rows, None]
        leads = (there < here) & (there + weight == here) & torch.isfinite(here)
        first = torch.where(leads, order, 26).amin(1)
        chosen = near.view(-1, 26).gather(1, first.clamp_max(25)[:, None])[:, 0]
        predecessor[rows] = torch.where(first < 26, chosen, -1)
    predecessor[sources] = -1
    return distance, predecessor, _sources_of(predecessor, sources)


def _weighted(
    graph: ForegroundGraph, cost: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Yield rows, their neighbours (n × 26,) and the weights (n, 26), inf where none is."""
    for first in range(0, cost.numel(), CHUNK_VOXELS):
        rows = slice(first, min(first + CHUNK_VOXELS, cost.numel()))
        table = graph.neighbours[rows]
        near = table.clamp_min(0).view(-1)
        weight = cost.index_select(0, near).view(-1, 26)
        weight.add_(cost[rows, None]).mul_(0.5).mul_(graph.steps_mm)
        yield rows, near, weight.masked_fill_(table < 0, torch.inf)


def _sources_of(predecessor: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Return which source each voxel hangs on, by following predecessors in doubling steps."""
    count, device = predecessor.numel(), predecessor.device
    own = torch.arange(count, device=device)
    ancestor = torch.where(predecessor < 0, own, predecessor.to(torch.int64))
    for _ in range(count.bit_length()):
        ancestor = ancestor[ancestor]
    names = torch.arange(sources.numel(), dtype=torch.int32, device=device)
    source = torch.full((count,), sources.numel(), dtype=torch.int32, device=device)
    # a voxel that is named twice is the first of its sources
    source.scatter_reduce_(0, sources, names, "amin")
    found = source[ancestor]
    return torch.where(found == sources.numel(), -1, found)
