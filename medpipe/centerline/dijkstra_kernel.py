"""Dijkstra's algorithm on the table of neighbours, compiled for the host.

The weights are computed where they are needed, so nothing the size of the edges is made;
the queue is a heap of four children that holds each voxel once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medpipe.jit import compiled

__all__ = ["dijkstra"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

NEVER, DONE = -1, -2
"""Places in the queue of voxels that were never in it, and that left it."""


@compiled
def dijkstra(
    neighbours: Ints, steps_mm: Floats, cost: Floats, sources: NDArray[np.int64]
) -> tuple[Floats, Ints, Ints]:
    """Return distance, predecessor and source of each voxel.

    The predecessor is the first neighbour in the table that is nearer and gives exactly
    the distance; -1 at sources, unreached voxels and voxels where no neighbour is nearer
    because the step is lost in the rounding of the sum.
    """
    n = neighbours.shape[0]
    distance = np.full(n, np.inf)
    predecessor = np.full(n, -1, np.int32)
    source = np.full(n, -1, np.int32)
    queue = np.empty(n, np.int32)
    place = np.full(n, NEVER, np.int32)
    size = 0
    for s in range(sources.size):
        v = sources[s]
        if source[v] == -1:
            distance[v], source[v] = 0.0, s
            size = _rise(queue, place, distance, size, v)
    while size > 0:
        v = queue[0]
        size = _pop(queue, place, distance, size)
        here, half = distance[v], cost[v]
        for o in range(26):
            u = neighbours[v, o]
            if u < 0:
                continue
            through = 0.5 * (half + cost[u]) * steps_mm[o]
            if distance[u] < here:
                # this voxel is final, and so is what leads to it
                if predecessor[v] < 0 and source[v] < 0 and distance[u] + through == here:
                    predecessor[v] = u
            elif here + through < distance[u]:
                distance[u] = here + through
                size = _rise(queue, place, distance, size, u)
        if predecessor[v] >= 0:
            source[v] = source[predecessor[v]]
    return distance, predecessor, source


@compiled
def _rise(queue: Ints, place: Ints, distance: Floats, size: int, voxel: int) -> int:
    """Put a voxel into the queue, or move it forward; return the size of the queue."""
    at = place[voxel]
    if at == NEVER:
        at = size
        size += 1
    key = distance[voxel]
    while at > 0:
        up = (at - 1) >> 2
        if distance[queue[up]] <= key:
            break
        queue[at] = queue[up]
        place[queue[at]] = at
        at = up
    queue[at] = voxel
    place[voxel] = at
    return size


@compiled
def _pop(queue: Ints, place: Ints, distance: Floats, size: int) -> int:
    """Take the first voxel out of the queue; return the size of the queue."""
    place[queue[0]] = DONE
    size -= 1
    if size == 0:
        return 0
    voxel = queue[size]
    key = distance[voxel]
    at = 0
    while True:
        child = 4 * at + 1
        if child >= size:
            break
        best = child
        for c in range(child + 1, min(child + 4, size)):
            if distance[queue[c]] < distance[queue[best]]:
                best = c
        if distance[queue[best]] >= key:
            break
        queue[at] = queue[best]
        place[queue[at]] = at
        at = best
    queue[at] = voxel
    place[voxel] = at
    return size
