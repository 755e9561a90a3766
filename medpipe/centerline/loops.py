"""Loops of a structure: a tree cuts them, an edge more for each closes them again."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from medpipe.centerline.assemble import step_lengths_mm
from medpipe.centerline.endpoints import Growth
from medpipe.centerline.lumen import Floats, Lumen, Paths
from medpipe.jit import compiled

__all__ = ["close_loops", "loops_of_voxels"]

Longs = NDArray[np.int64]

SHORTEST = (2 * np.pi, 4.0)
"""A loop that is closed is at least so many radii, and voxels, long: a ring without a hole."""
ALIKE = 0.9
"""Of the meetings with nearly the longest way round, the cheapest closes a loop."""


def loops_of_voxels(voxels: Longs) -> int:
    """Return the loops of a 26-connected set of voxels (n, 3) without cavities.

    One minus the Euler number of the union of closed cubes.
    """
    corners = np.unique(voxels, axis=0).astype(np.int64) * 2
    low = corners.min(axis=0) - 1
    size = corners.max(axis=0) - low + 2
    euler = 0
    for kind in product((False, True), repeat=3):
        # a cell is named by its middle, on a grid of half voxels
        shifts = np.array(list(product(*[(0,) if full else (-1, 1) for full in kind])))
        cells = (corners[:, None] + shifts).reshape(-1, 3) - low
        flat = (cells[:, 0] * size[1] + cells[:, 1]) * size[2] + cells[:, 2]
        euler += len(np.unique(flat)) * (-1) ** sum(kind)
    return 1 - euler


def close_loops(
    lumen: Lumen, paths: Paths, members: Longs, growth: Growth, count: int
) -> tuple[Growth, Longs]:
    """Return the tree with branches that meet where loops were cut, and the edges there.

    Where the paths on the two sides of a hole meet, both are followed back to the tree.
    They become branches of it; the edge joins their ends, which are neighbouring voxels.

    Parameters
    ----------
    lumen : Lumen
    paths : Paths
    members : int64 array (M,)
        Voxels of the component.
    growth : Growth
        Its tree.
    count : int
        Loops of the component: as many are closed at most, the longest first.

    Returns
    -------
    Growth
        With nodes added at its end.
    int64 array (E, 2)
        Nodes.

    Notes
    -----
    Loops shorter than 2π radii plus 4 voxels, such as pores of a rough mask, and ways
    between trees of different roots are not closed.
    """
    steps = step_lengths_mm(lumen, growth)
    shortest = SHORTEST[0] * lumen.radius_mm(growth.voxels) + SHORTEST[1] * lumen.voxel_mm
    pairs, ends, price = _meetings_of(lumen, paths, members, growth, (steps, shortest))
    way, least = _ways(growth.parents, steps, ends), shortest[ends].max(axis=1)
    child = np.flatnonzero(growth.parents >= 0)
    links = [(int(c), int(growth.parents[c]), float(steps[c])) for c in child]
    size = len(growth.parents)
    closing: list[tuple[int, int]] = []
    while len(closing) < count and (way >= least).any():
        long = np.flatnonzero((way >= least) & (way >= ALIKE * way[way >= least].max()))
        best = int(long[np.argmin(price[long])])
        grown = _with_branches(lumen, paths, growth, (pairs[best], ends[best]), float(least[best]))
        way[best] = 0.0
        if grown is None:
            continue
        growth, edge, across = grown
        closing.append(edge)
        a, b = (int(e) for e in ends[best])
        links.append((a, b, across))
        way = np.minimum(way, _detours(links, size, ends, (a, b), across))
    return growth, np.array(closing, np.int64).reshape(-1, 2)


def _meetings_of(
    lumen: Lumen, paths: Paths, members: Longs, growth: Growth, lengths: tuple[Floats, Floats]
) -> tuple[Longs, Longs, Floats]:
    """Return neighbouring voxels whose paths reach far nodes: voxels, nodes, cost.

    `lengths` are those of the step to each node, and of the shortest loop there. Of the
    neighbours whose paths reach the same two nodes only the cheapest are returned.
    """
    node, _ = lumen.marks
    node[growth.voxels] = np.arange(len(growth.voxels))
    order = members[np.argsort(paths.total[members], kind="stable")]
    reached = np.full(len(lumen.voxels), -1, np.int32)
    pairs = _meet(
        order, lumen.neighbours, paths.predecessor, paths.source, node, reached,
        growth.parents, *lengths,
    )  # fmt: skip
    node[growth.voxels] = -1
    ends = reached[pairs].astype(np.int64)
    both = ends.min(axis=1) * len(growth.voxels) + ends.max(axis=1)
    price = paths.total[pairs].sum(axis=1)
    order = np.lexsort((price, both))  # stable: of equal ones that of the cheaper voxel
    first = np.ones(len(order), bool)
    first[1:] = np.diff(both[order]) != 0
    chosen = order[first]
    return pairs[chosen], reached[pairs[chosen]].astype(np.int64), price[chosen]


@compiled
def _meet(  # type: ignore[no-untyped-def]
    order, neighbours, predecessor, source, node, reached, parents, steps, shortest
):
    """Fill the node that each voxel's path reaches; return neighbours with far ones."""
    for v in order:
        if node[v] >= 0:
            reached[v] = node[v]
        elif predecessor[v] >= 0:
            reached[v] = reached[predecessor[v]]
    far = np.zeros((len(order), 13), np.bool_)
    count = 0
    for n in range(len(order)):
        v = order[n]
        for e in range(13):
            u = neighbours[v, e]
            if u < 0 or source[u] != source[v] or source[v] < 0 or reached[u] == reached[v]:
                continue
            a, b = reached[u], reached[v]
            least = max(shortest[a], shortest[b])
            way = 0.0
            while a != b and way < least:  # a parent has a lower number than its children
                if a > b:
                    way += steps[a]
                    a = parents[a]
                else:
                    way += steps[b]
                    b = parents[b]
            far[n, e] = way >= least
            count += far[n, e]
    pairs = np.empty((count, 2), np.int64)
    count = 0
    for n in range(len(order)):
        for e in range(13):
            if far[n, e]:
                pairs[count, 0], pairs[count, 1] = order[n], neighbours[order[n], e]
                count += 1
    return pairs


@compiled
def _ways(parents, steps, ends):  # type: ignore[no-untyped-def]
    """Return the length of the way through the tree between pairs of nodes, (m,)."""
    out = np.zeros(ends.shape[0])
    for m in range(ends.shape[0]):
        a, b = ends[m, 0], ends[m, 1]
        while a != b:  # a parent has a lower number than its children
            if a > b:
                out[m] += steps[a]
                a = parents[a]
            else:
                out[m] += steps[b]
                b = parents[b]
    return out


def _detours(
    links: list[tuple[int, int, float]],
    size: int,
    ends: Longs,
    new: tuple[int, int],
    across: float,
) -> Floats:
    """Return the length of the way between pairs of nodes across the new edge."""
    rows, columns, lengths = zip(*links, strict=True)
    graph = sparse.coo_array((lengths, (rows, columns)), shape=(size, size)).tocsr()
    far = csgraph.dijkstra(graph, directed=False, indices=list(new))
    one = far[0, ends[:, 0]] + far[1, ends[:, 1]]
    two = far[1, ends[:, 0]] + far[0, ends[:, 1]]
    across_it: Floats = np.minimum(one, two) + across
    return across_it


def _with_branches(
    lumen: Lumen, paths: Paths, growth: Growth, meeting: tuple[Longs, Longs], least_mm: float
) -> tuple[Growth, tuple[int, int], float] | None:
    """Return the tree with the paths from two neighbours, their nodes, and what they add.

    `meeting` holds the neighbours and the nodes that their paths reach. What they add is
    the length between the nodes of the tree that they leave, in mm. None where the two
    paths are one, or leave the tree at nodes less than `least_mm` apart.
    """
    steps = step_lengths_mm(lumen, growth)
    node = {int(v): n for n, v in enumerate(growth.voxels)}
    voxels, parents = growth.voxels.tolist(), growth.parents.tolist()
    ends = []
    added: list[int] = []
    starts = []
    pair, reached = (m.tolist() for m in meeting)
    for voxel, own, other in zip(pair, reached, reversed(reached), strict=True):
        beside = np.array([_near(growth.parents, steps, e, least_mm / 2) for e in (own, other)])
        across = set(growth.voxels[beside[1] & ~beside[0]].tolist())
        free = int(np.ceil(least_mm / (4 * lumen.voxel_mm)))
        chain, parent = _way_back(voxel, lumen, paths, node, (across, free))
        if set(chain) & set(added):
            return None
        starts.append(parent)
        for v in reversed(chain):
            voxels.append(v)
            parents.append(parent)
            parent = len(voxels) - 1
        added += chain
        ends.append(parent)
    a, b = ends
    between = _ways(growth.parents, steps, np.array([starts]))[0]
    if a == b or parents[a] == b or parents[b] == a or between < least_mm:
        return None
    grown = replace(growth, voxels=np.array(voxels), parents=np.array(parents))
    new = step_lengths_mm(lumen, grown)[len(growth.voxels) :]
    gap = np.diff(lumen.positions_mm(meeting[0]), axis=0)
    return grown, (a, b), float(new.sum() + np.linalg.norm(gap))


@compiled
def _near(parents, steps, node, reach):  # type: ignore[no-untyped-def]
    """Return which nodes the tree joins to one by a way shorter than `reach`, bool (n,)."""
    n = len(parents)
    way = np.full(n, np.inf)
    way[node] = 0.0
    at = node
    while parents[at] >= 0:
        way[parents[at]] = way[at] + steps[at]
        at = parents[at]
    for child in range(n):  # a parent has a lower number than its children
        if parents[child] >= 0:
            way[child] = min(way[child], way[parents[child]] + steps[child])
    return way < reach


def _way_back(
    voxel: int,
    lumen: Lumen,
    paths: Paths,
    node: dict[int, int],
    across: tuple[set[int], int],
) -> tuple[list[int], int]:
    """Return the voxels of a path to where it touches the tree, and that node.

    `across` holds voxels of the tree on the other side of the meeting, and how many voxels
    of the path do not count as touching them.
    """
    chain: list[int] = []
    while voxel not in node:
        chain.append(voxel)
        beyond = across[0] if len(chain) <= across[1] else set()
        touched = [
            (0.5 * (paths.cost[u] + paths.cost[voxel]) * lumen.steps_mm[e], u)
            for e, u in enumerate(lumen.neighbours[voxel].tolist())
            if u in node and u not in beyond and paths.source[u] == paths.source[voxel]
        ]
        if touched:
            return chain, node[min(touched)[1]]
        voxel = int(paths.predecessor[voxel])
    return chain, node[voxel]
