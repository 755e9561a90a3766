"""Exact minimum cuts on the CPU: highest-label pseudoflow on the implicit lattice.

The algorithm is Hochbaum's pseudoflow (Operations Research 56(4) 2008,
DOI 10.1287/opre.1080.0524) with highest labels. It keeps a forest in which only
roots carry excess or deficit. The tree of a root with excess (a *strong* tree)
looks for an arc with residual capacity to a node labelled one lower; the tree is
then hung there and its excess pushed towards the other root, splitting where an
arc is full. When no strong tree finds an arc any more, no excess can reach a
deficit: the cut is minimum.

There is no edge list. Residual capacities are one row per node with a slot per
arc, 8 bytes per node and pair of opposite arcs; see `medpipe.graphcut.residual`.
The kernel starts from any residual capacities and any excesses. That is what
makes warm starts and finishing what another solver began possible.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit

from medpipe.graphcut.problem import CutProblem
from medpipe.graphcut.residual import Residual, residual_of
from medpipe.jit import compiled

__all__ = ["run_pseudoflow", "sink_side", "solve_pseudoflow"]

FAR = 2**31 - 1
"""Label of a node that cannot reach a deficit."""
STALE = 24
"""Relabels per node after which distances are computed anew. Labels rise by one at a time,
which is slow where the nearest deficit was filled and the next one is far, as in a maze;
images and columns stay below it."""


def solve_pseudoflow(
    problem: CutProblem, *, wide: bool = False
) -> tuple[torch.Tensor, int, dict[str, Any]]:
    """Solve on the CPU without an edge list.

    Parameters
    ----------
    problem : CutProblem
        The problem.
    wide : bool
        Use residual capacities of 64 bits and an infinity above the sum of all finite
        capacities, so that no amount of flow can fill a hard constraint.

    Returns
    -------
    source_side : Tensor
        Bool, the largest source side among the minimum cuts.
    flow : int
        Value of the maximum flow.
    stats : dict
        Bits of a residual capacity, its bytes in all, and what the kernel counted.
    """
    state = residual_of(problem, wide=wide)
    stats = run_pseudoflow(state)
    side = torch.from_numpy(~sink_side(state)).reshape(problem.shape)
    return side.to(problem.device), state.flow(), stats


def run_pseudoflow(state: Residual) -> dict[str, Any]:
    """Move excess to deficits within `state` until none can move.

    Parameters
    ----------
    state : Residual
        Residual capacities and excesses, changed in place.

    Returns
    -------
    dict
        ``bits`` and ``residual_bytes``, and how often a tree was hung at a lower
        one (``merges``), a node relabelled (``relabels``), a full arc split a tree
        (``splits``), a tree given up (``gaps``), and arcs pushed along (``pushes``).
    """
    n = state.excess.size
    label, queue = np.empty(n, np.int32), np.empty(n, np.int32)
    _label(state.graph, state.excess, label, queue)
    # both stay untouched beyond the largest label, so they take no memory there
    count, bucket = np.zeros(n + 2, np.int32), np.zeros(n + 2, np.int32)
    counts = _solve(state.graph, state.excess, label, count, bucket, queue)
    names = ("merges", "relabels", "splits", "gaps", "pushes")
    return {
        "bits": 8 * state.capacity.itemsize,
        "residual_bytes": state.capacity.nbytes,
        **{name: int(value) for name, value in zip(names, counts, strict=True)},
    }


def sink_side(state: Residual) -> np.ndarray:
    """Return which nodes can still reach a deficit, bool (N,): the smallest sink side."""
    n = state.excess.size
    label, queue = np.empty(n, np.int32), np.empty(n, np.int32)
    _label(state.graph, state.excess, label, queue)
    return label != FAR


@njit(inline="always")
def _head(graph, p, a):  # type: ignore[no-untyped-def]
    """Return the node at the end of arc slot `a` of node `p`; -1 where there is none."""
    _, shift, row, table, depth = graph
    if row[a] < 0:
        return p + shift[a]
    column = p // depth
    there = table[row[a], column]
    if there < 0:
        return -1
    return there * depth + (p - column * depth) + shift[a]


@compiled
def _label(graph, excess, label, queue):  # type: ignore[no-untyped-def]
    """Set `label` to the number of residual arcs to the nearest deficit, FAR for none."""
    capacity = graph[0]
    n, slots = capacity.shape
    tail = 0
    for p in range(n):
        label[p] = FAR
        if excess[p] < 0:
            label[p] = 0
            queue[tail] = p
            tail += 1
    at = 0
    while at < tail:
        q = queue[at]
        at += 1
        for b in range(slots):
            p = _head(graph, q, b)
            # a slot that leaves the lattice may name a wrong node: its own slot back is empty
            if 0 <= p < n and label[p] == FAR and capacity[p, b ^ 1] > 0:
                label[p] = label[q] + 1
                queue[tail] = p
                tail += 1


@compiled
def _solve(graph, excess, label, count, bucket, scan):  # type: ignore[no-untyped-def]
    """Run the pseudoflow algorithm; see the module. `scan` is working memory."""
    n = excess.size
    current = np.zeros(n, dtype=np.int16)
    parent, child, after, before = _forest(n)
    forest = (parent, child, after, before)
    highest = _fill_buckets(excess, label, count, bucket, after)
    merges, relabels, splits, gaps, pushes = 0, 0, 0, 0, 0
    limit = STALE * n
    while True:
        if relabels > limit:
            # no node but a root holds flow, so the forest can grow again from single nodes
            _label(graph, excess, label, scan)
            parent[:], child[:], after[:], before[:] = -1, -1, -1, -1
            current[:], count[:], bucket[:] = 0, 0, 0
            highest = _fill_buckets(excess, label, count, bucket, after)
            limit = relabels + n
        while highest > 0 and bucket[highest] == 0:
            highest -= 1
        if highest == 0:
            return merges, relabels, splits, gaps, pushes
        root = bucket[highest] - 1
        bucket[highest] = after[root] + 1
        after[root] = -1
        if count[highest - 1] == 0:
            _lift(root, label, count, child, after, scan)
            gaps += 1
            continue
        node, lower, raised = _find(graph, root, label, count, forest, current, scan)
        relabels += raised
        if lower < 0:
            highest += 1
            _enlist(root, label, bucket, after)
            continue
        merges += 1
        _hang_tree(graph, node, lower, current[node], forest)
        end, was, moved, cut = _push(graph, root, excess, label, bucket, forest)
        pushes += moved
        splits += cut
        if excess[end] > 0 and was <= 0:
            if label[end] == 0:
                # the last deficit of this node is filled: a strong node is labelled 1 or more
                count[0] -= 1
                count[1] += 1
                label[end] = 1
                current[end] = 0
            _enlist(end, label, bucket, after)
            highest = max(highest, label[end])


@njit(inline="always")
def _forest(n):  # type: ignore[no-untyped-def]
    """Return parent slots and the links of the lists of children, all empty."""
    parent = np.full(n, -1, dtype=np.int16)
    child = np.full(n, -1, dtype=np.int32)
    after = np.full(n, -1, dtype=np.int32)
    before = np.full(n, -1, dtype=np.int32)
    return parent, child, after, before


@compiled
def _fill_buckets(excess, label, count, bucket, after):  # type: ignore[no-untyped-def]
    """Count the labels and list the strong nodes by label; return the highest of them."""
    highest = 0
    for p in range(excess.size):
        if label[p] == FAR:
            continue
        count[label[p]] += 1
        if excess[p] > 0:
            _enlist(p, label, bucket, after)
            highest = max(highest, label[p])
    return highest


@njit(inline="always")
def _enlist(root, label, bucket, after):  # type: ignore[no-untyped-def]
    """Put a strong root in the list of its label; 0 ends a list, so nodes count from 1."""
    after[root] = bucket[label[root]] - 1
    bucket[label[root]] = root + 1


@compiled
def _lift(root, label, count, child, after, scan):  # type: ignore[no-untyped-def]
    """Give a whole tree the label FAR: nothing lower is left that it could reach.

    The nodes still to visit form a list along `scan`.
    """
    scan[root] = -1
    top = root
    while top >= 0:
        node = top
        top = scan[node]
        count[label[node]] -= 1
        label[node] = FAR
        below = child[node]
        while below >= 0:
            scan[below] = top
            top = below
            below = after[below]


@compiled
def _find(graph, root, label, count, forest, current, scan):  # type: ignore[no-untyped-def]
    """Look through a strong tree for an arc to a node labelled one lower.

    Goes depth first over the nodes that have the label of the root, and raises
    the label of each that has no such arc and no such child left. Returns the node
    and the end of its arc, -1 for none, and how many labels were raised.
    """
    capacity = graph[0]
    parent, child, after, _ = forest
    level = label[root]
    raised = 0
    node = root
    scan[node] = child[node]
    while True:
        lower = _admissible(graph, capacity, node, level - 1, label, current)
        if lower >= 0:
            return node, lower, raised
        while True:
            following = scan[node]
            while following >= 0 and label[following] != level:
                following = after[following]
            if following >= 0:
                scan[node] = after[following]
                node = following
                scan[node] = child[node]
                break
            count[level] -= 1
            count[level + 1] += 1
            label[node] = level + 1
            current[node] = 0
            raised += 1
            if parent[node] < 0:
                return node, -1, raised
            node = _head(graph, node, parent[node])


@njit(inline="always")
def _admissible(graph, capacity, node, wanted, label, current):  # type: ignore[no-untyped-def]
    """Advance the current arc of `node` to one that ends at label `wanted`; return its end."""
    a = current[node]
    while a < capacity.shape[1]:
        if capacity[node, a] > 0:
            q = _head(graph, node, a)
            if label[q] == wanted:
                current[node] = a
                return q
        a += 1
    current[node] = a
    return -1


@compiled
def _hang_tree(graph, node, above, arc, forest):  # type: ignore[no-untyped-def]
    """Hang the tree of `node` at `above` through slot `arc` of `node`, its root reversed."""
    parent, child, after, before = forest
    while True:
        old_arc = parent[node]
        old_parent = -1
        if old_arc >= 0:
            old_parent = _head(graph, node, old_arc)
            _cut_off(node, old_parent, child, after, before)
        parent[node] = arc
        first = child[above]
        after[node] = first
        before[node] = -1
        if first >= 0:
            before[first] = node
        child[above] = node
        if old_arc < 0:
            return
        above = node
        arc = old_arc ^ 1
        node = old_parent


@njit(inline="always")
def _cut_off(p, q, child, after, before):  # type: ignore[no-untyped-def]
    """Take `p` out of the children of `q`."""
    if before[p] >= 0:
        after[before[p]] = after[p]
    else:
        child[q] = after[p]
    if after[p] >= 0:
        before[after[p]] = before[p]


@compiled
def _push(graph, node, excess, label, bucket, forest):  # type: ignore[no-untyped-def]
    """Push the excess of `node` towards its root, splitting the tree where an arc is full.

    Returns the node reached, what it had before, and the numbers of arcs and splits.
    """
    capacity = graph[0]
    parent, child, after, before = forest
    was = excess[node]
    pushes, splits = 0, 0
    while excess[node] > 0 and parent[node] >= 0:
        a = parent[node]
        q = _head(graph, node, a)
        was = excess[q]
        amount = min(np.int64(capacity[node, a]), excess[node])
        capacity[node, a] -= amount
        capacity[q, a ^ 1] += amount
        excess[q] += amount
        excess[node] -= amount
        pushes += 1
        if excess[node] > 0:
            splits += 1
            _cut_off(node, q, child, after, before)
            parent[node] = -1
            _enlist(node, label, bucket, after)
        node = q
    return node, was, pushes, splits
