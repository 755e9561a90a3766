"""Components, loops and cavities of masks.

Foreground voxels touch by faces, edges and corners (26), background voxels by faces (6):
the topology of the union of closed cubes. What is counted is exact, on the list of
foreground voxels; no array of the size of the image is made.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.centerline.graph import OFFSETS, ForegroundGraph, foreground_graph
from medpipe.jit import compiled

__all__ = ["betti_numbers", "components", "loops_per_component"]

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


def betti_numbers(mask: torch.Tensor) -> tuple[int, int, int]:
    """Return the numbers of components, loops and cavities of a mask.

    Parameters
    ----------
    mask : Tensor
        bool (I, J, K), or numbers that are above 0 in the foreground; what lies outside
        the array is background.

    Raises
    ------
    StepError
        If `mask` has not three axes.
    """
    graph = foreground_graph(mask > 0, np.eye(4))
    component = components(graph)
    betti = _betti(graph, component)
    return len(betti), int(betti[:, 1].sum()), int(betti[:, 2].sum())


def components(graph: ForegroundGraph) -> torch.Tensor:
    """Return the component of each voxel, int32 (N,): 0, 1, … by their lowest voxel."""
    found = _components(_host(graph.neighbours))
    return torch.from_numpy(found).to(graph.neighbours.device)


def loops_per_component(graph: ForegroundGraph, component: torch.Tensor) -> list[int]:
    """Return the number of independent loops of each component.

    Parameters
    ----------
    graph : ForegroundGraph
    component : Tensor
        int (N,), what `components` returns.

    Notes
    -----
    Components and cavities less the Euler number, which is counted over the corners,
    edges, faces and cubes of the voxels. Each structure counts by itself: a voxel of
    another one is background for it.
    """
    return [int(loops) for loops in _betti(graph, component)[:, 1]]


def _host(values: torch.Tensor) -> Any:
    """Return a tensor as a contiguous numpy array of the host."""
    return values.contiguous().cpu().numpy()


def _betti(graph: ForegroundGraph, component: torch.Tensor) -> Longs:
    """Return components (1), loops and cavities of each component, (C, 3)."""
    names = _host(component).astype(np.int32)
    count = int(names.max()) + 1 if names.size else 0
    euler = _euler(_host(graph.neighbours), names, _owned_cells(), count)
    voxels, structures = _host(graph.voxels), _host(graph.structures)
    cavities = np.zeros(count, np.int64)
    for value in np.unique(structures):
        chosen = structures == value
        part = voxels[chosen]
        low = part.min(0) - 1
        size = part.max(0) - low + 2
        walls = _cavities(part - low, *(int(s) for s in size))
        cavities += np.bincount(names[chosen][walls], minlength=count)
    ones = np.ones(count, np.int64)
    return np.stack([ones, 1 + cavities - euler, cavities], axis=1)


@cache
def _owned_cells() -> NDArray[np.int8]:
    """Return what a voxel adds to the Euler number, by which of its 13 lower neighbours exist.

    A corner, edge or face belongs to the lowest of the voxels that share it.
    """
    exists = (np.arange(1 << 13)[:, None] >> np.arange(13)) & 1 > 0
    total = np.zeros(1 << 13, np.int8)
    for cell in product((-1, 0, 1), repeat=3):
        sharing = [
            n
            for n, offset in enumerate(OFFSETS[:13])
            if all(o in (0, c) for o, c in zip(offset, cell, strict=True))
        ]
        sign = 1 if cell.count(0) % 2 == 0 else -1
        total[~exists[:, sharing].any(1)] += sign
    return total


@compiled
def _euler(neighbours: Ints, component: Ints, owned: NDArray[np.int8], count: int) -> Longs:
    """Return the Euler number of each component."""
    euler = np.zeros(count, np.int64)
    for v in range(neighbours.shape[0]):
        code = 0
        for o in range(13):
            if neighbours[v, o] >= 0:
                code |= 1 << o
        euler[component[v]] += owned[code]
    return euler


@compiled
def _components(neighbours: Ints) -> Ints:
    """Return the component of each voxel by searches from the lowest voxel that has none."""
    n = neighbours.shape[0]
    component = np.full(n, -1, np.int32)
    stack = np.empty(n, np.int32)
    count = 0
    for seed in range(n):
        if component[seed] >= 0:
            continue
        component[seed] = count
        stack[0] = seed
        size = 1
        while size > 0:
            size -= 1
            v = stack[size]
            for o in range(26):
                u = neighbours[v, o]
                if u >= 0 and component[u] < 0:
                    component[u] = count
                    stack[size] = u
                    size += 1
        count += 1
    return component


@compiled
def _cavities(voxels: Ints, rows: int, columns: int, depth: int) -> Longs:
    """Return for each cavity a voxel of the component around it.

    The background is a list of runs along K, joined where they touch. Its first voxel is
    one of the outside, as there is a margin around `voxels`. What comes before the first
    voxel of a cavity belongs to the component that encloses it.
    """
    n = voxels.shape[0]
    room = n + rows * columns
    first, last = np.empty(room, np.int32), np.empty(room, np.int32)
    before = np.full(room, -1, np.int64)
    begin = np.empty(rows * columns + 1, np.int64)
    runs = a = 0
    for line in range(rows * columns):
        begin[line] = runs
        k, wall = 0, -1
        while a < n and voxels[a, 0] * columns + voxels[a, 1] == line:
            if voxels[a, 2] > k:
                first[runs], last[runs], before[runs] = k, voxels[a, 2] - 1, wall
                runs += 1
            k, wall = voxels[a, 2] + 1, a
            a += 1
        first[runs], last[runs], before[runs] = k, depth - 1, wall
        runs += 1
    begin[rows * columns] = runs
    parent = np.arange(runs)
    for line in range(rows * columns):
        if line % columns > 0:
            _join(parent, first, last, begin, line, line - 1)
        if line >= columns:
            _join(parent, first, last, begin, line, line - columns)
    # the first run of a set is its root, since the lower root is kept
    roots = np.flatnonzero(parent[:runs] == np.arange(runs))
    return before[roots[1:]]


@compiled
def _join(parent: Longs, first: Ints, last: Ints, begin: Longs, line: int, other: int) -> None:
    """Join the runs of two neighbouring lines that share a place."""
    a, b = begin[line], begin[other]
    while a < begin[line + 1] and b < begin[other + 1]:
        if first[a] <= last[b] and first[b] <= last[a]:
            x, y = _root(parent, a), _root(parent, b)
            parent[max(x, y)] = min(x, y)
        if last[a] < last[b]:
            a += 1
        else:
            b += 1


@compiled
def _root(parent: Longs, run: int) -> int:
    """Return the root of a run and shorten the way to it."""
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run
