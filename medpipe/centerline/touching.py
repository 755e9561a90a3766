"""Loops cut where vessels touch, so that a vessel between two others stays whole.

Where a vessel lies against another one with its tip or side, paths reach it from both
ends and meet somewhere along it: it would end there twice. Here the vessel between two
forks is joined and cut at one of them. Where it runs straight on past a fork, what comes
from above is another vessel that touches it. Else it is cut where it turns the sharper
from the line that leads to the fork: daughters leave a mother at a moderate angle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medpipe.centerline.endpoints import Growth
from medpipe.centerline.loops import close_loops, loops_of_voxels
from medpipe.centerline.lumen import Floats, Lumen, Paths

__all__ = ["cut_contacts"]

Longs = NDArray[np.int64]

ARM = (1.5, 4.0)
"""A line's direction is taken over so many radii, or voxels where that is more."""
STRAIGHT_DEG = 65.0
"""A line that turns by less than this runs on; daughters of a fork part by more."""
STUB = (1.2, 4.0)
"""A side of a line shorter than so many radii and voxels is no branch."""


@dataclass(frozen=True)
class _Cut:
    """An edge to cut at a fork: the one above it, or the one to a child in the vessel."""

    fork: int
    child: int
    above: bool
    order: tuple[int, float]


def cut_contacts(
    lumen: Lumen, paths: Paths, members: Longs, growth: Growth, count: int
) -> tuple[Growth, int]:
    """Return the tree with loops cut at contacts of vessels, and how many were.

    Parameters
    ----------
    lumen : Lumen
    paths : Paths
        From the roots.
    members : int64 array (M,)
        Voxels of the component.
    growth : Growth
        Its pruned tree.
    count : int
        Loops of the component.

    Notes
    -----
    A loop stays cut where the paths meet if it does not hang between two forks, is too
    short to be closed by `close_loops`, or if its voxels would touch where it is cut.
    """
    closed, edges = close_loops(lumen, paths, members, growth, count)
    tree = _Tree(lumen, closed, len(growth.voxels))
    done = 0
    for a, b in edges.tolist():
        done += any(tree.swap(a, b, cut) for cut in tree.cuts(a, b))
    return (tree.growth(), done) if done else (growth, 0)


class _Tree:
    """A growth whose edges change."""

    def __init__(self, lumen: Lumen, closed: Growth, own: int) -> None:
        self.lumen, self.closed = lumen, closed
        self.at = lumen.positions_mm(closed.voxels)
        self.radius = lumen.radius_mm(closed.voxels)
        self.parents = closed.parents.copy()
        self.alive = np.arange(len(self.parents)) < own
        self.joined: set[int] = set()
        self.tips: list[int] = []
        self.loops = loops_of_voxels(self._voxels(self.alive))

    def _voxels(self, alive: NDArray[np.bool_]) -> Longs:
        return self.lumen.voxels[self.closed.voxels[alive]].astype(np.int64)

    def children(self, node: int) -> list[int]:
        """Return the children of a node that are part of the tree."""
        return [int(c) for c in np.flatnonzero((self.parents == node) & self.alive)]

    def way_up(self, node: int) -> list[int]:
        """Return the nodes from one to its root."""
        out = [node]
        while self.parents[out[-1]] >= 0:
            out.append(int(self.parents[out[-1]]))
        return out

    def cuts(self, a: int, b: int) -> list[_Cut]:
        """Return where the loop through two nodes may be cut instead, the better first."""
        before = self.alive.copy()
        found: list[_Cut] = []
        for end in (a, b):
            self.alive[self.way_up(end)] = True
        for node in (a, b):
            child, fork = node, int(self.parents[node])
            while fork >= 0 and not self._is_fork(fork, child):
                child, fork = fork, int(self.parents[fork])
            if fork < 0 or self.parents[fork] < 0:
                found = []
                break
            found += self._cuts_at(fork, child)
        self.alive = before
        if not found or found[0].fork == found[-1].fork:
            return []
        return sorted(found, key=lambda cut: cut.order)

    def _cuts_at(self, fork: int, child: int) -> list[_Cut]:
        above = int(self.parents[fork])
        arm, line = self._arm(fork, child), self._arm(fork, above)
        others = [c for c in self.children(fork) if c != child and not self._is_stub(fork, c)]
        past = min(_bend_deg(arm, self._arm(fork, c)) for c in others)
        turn = _bend_deg(line, arm)
        cuts = [_Cut(fork, child, False, (1, -turn))]
        if past <= STRAIGHT_DEG and past < turn:
            cuts.append(_Cut(fork, fork, True, (0, past)))
        return cuts

    def _is_fork(self, node: int, child: int) -> bool:
        """Say whether a node has a child besides one that is more than a stub."""
        others = [c for c in self.children(node) if c != child]
        return any(not self._is_stub(node, c) for c in others)

    def _is_stub(self, start: int, first: int) -> bool:
        least = STUB[0] * self.radius[start] + STUB[1] * self.lumen.voxel_mm
        at, length = first, float(np.linalg.norm(self.at[first] - self.at[start]))
        while length < least:
            below = self.children(at)
            if len(below) != 1:
                return not below
            length += float(np.linalg.norm(self.at[below[0]] - self.at[at]))
            at = below[0]
        return False

    def _arm(self, start: int, first: int) -> Floats:
        """Return the direction of the line that leaves a node by its neighbour `first`."""
        reach = max(ARM[0] * self.radius[start], ARM[1] * self.lumen.voxel_mm)
        before, at, length = start, first, 0.0
        while True:
            length += float(np.linalg.norm(self.at[at] - self.at[before]))
            if length >= reach:
                break
            if self.parents[before] == at:  # upwards
                onward = int(self.parents[at])
            else:
                below = self.children(at)
                onward = below[0] if len(below) == 1 else -1
            if onward < 0:
                break
            before, at = at, onward
        arm: Floats = self.at[at] - self.at[start]
        return arm

    def swap(self, a: int, b: int, cut: _Cut) -> bool:
        """Cut an edge and join two nodes; say whether that was done.

        What of the vessel that is cut off lies inside the other one goes.
        """
        up_a, up_b = self.way_up(a), self.way_up(b)
        if (cut.child in up_a) == (cut.child in up_b):
            return False  # another loop has been cut on this way
        inner, outer = (a, b) if cut.child in up_a else (b, a)
        parents, alive = self.parents.copy(), self.alive.copy()
        alive[up_a], alive[up_b] = True, True
        turned = self.way_up(inner)
        turned = turned[: turned.index(cut.child) + 1]
        for below, above in zip(turned[1:], turned, strict=False):
            parents[below] = above
        parents[inner] = outer
        loose = self.way_up(cut.fork)[1:] if cut.above else [*reversed(turned[1:])]
        reach = max(self.radius[cut.fork], 2 * self.lumen.voxel_mm)
        tip = -1
        for node in loose:
            others = alive[parents == node].any() or parents[node] < 0
            tip = -1 if others else node
            if tip < 0 or np.linalg.norm(self.at[node] - self.at[cut.fork]) > reach:
                break
            alive[node] = False
        if not alive[self.closed.asked].all():
            return False
        if loops_of_voxels(self._voxels(alive)) > self.loops:
            return False
        self.parents, self.alive = parents, alive
        self.joined |= {a, b}
        self.tips += [tip] * (tip >= 0 and bool(alive[tip]))
        return True

    def growth(self) -> Growth:
        """Return the tree in an order with parents first."""
        depth = np.zeros(len(self.parents), np.int64)
        for n in np.flatnonzero(self.alive).tolist():
            way = []
            while self.parents[n] >= 0 and depth[n] == 0:
                way.append(n)
                n = int(self.parents[n])
            for m in reversed(way):
                depth[m] = depth[self.parents[m]] + 1
        kept = np.flatnonzero(self.alive)
        kept = kept[np.argsort(depth[kept], kind="stable")]
        number = np.full(len(self.parents), -1)
        number[kept] = np.arange(len(kept))
        above = self.parents[kept]
        ends = {*self.closed.found.tolist(), *self.tips} - self.joined
        found = np.array(sorted(ends), np.int64)
        found = found[self.alive[found]]
        has_child = np.bincount(self.parents[kept][above >= 0], minlength=len(self.parents)) > 0
        return Growth(
            voxels=self.closed.voxels[kept],
            parents=np.where(above < 0, -1, number[above]),
            asked=number[self.closed.asked],
            found=number[found[~has_child[found]]],
        )


def _bend_deg(one: Floats, other: Floats) -> float:
    """Return by how much a line turns that comes along one arm and leaves by another."""
    size = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    cosine = -float(one @ other) / max(size, 1e-12)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
