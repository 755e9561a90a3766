"""Curves and trees as one thing that metrics can compare: points joined by straight lines.

A reference may be a phantom, a file of another program or a tree of medpipe; a result may
even hold cycles, as a skeleton by thinning does. All are points in mm with edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, dijkstra

from medpipe.errors import UsageError

__all__ = ["LineGraph", "Samples"]

_BACKWARD = 13
"""Of the 27 offsets of a neighbourhood, those before the centre."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Points along lines.

    Parameters
    ----------
    points_mm : float64 array (S, 3)
    weights_mm : float64 array (S,)
        Length of the piece of line that each point stands for, 1 for points without lines.
    radius_mm : float64 array (S,) or None
        Linear along each edge.
    """

    points_mm: NDArray[np.float64]
    weights_mm: NDArray[np.float64]
    radius_mm: NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class LineGraph:
    """Points in mm joined by straight lines; may be empty.

    Parameters
    ----------
    points_mm : float64 array (N, 3)
    edges : int64 array (E, 2)
        An edge given twice is one, and one from a point to itself is none.
    roots : int64 array (R,), optional
        Where paths begin.
    radius_mm : float64 array (N,), optional
        Of the tube around each point.

    Raises
    ------
    UsageError
        If the arrays do not fit together.
    """

    points_mm: NDArray[np.float64]
    edges: NDArray[np.int64]
    roots: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    radius_mm: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "points_mm": np.asarray(self.points_mm, np.float64).reshape(-1, 3),
            "edges": np.asarray(self.edges, np.int64).reshape(-1, 2),
            "roots": np.asarray(self.roots, np.int64).reshape(-1),
        }
        if self.radius_mm is not None:
            values["radius_mm"] = np.asarray(self.radius_mm, np.float64).reshape(-1)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        n = len(self.points_mm)
        named = np.concatenate([self.edges.reshape(-1), self.roots])
        if named.size and (named.min() < 0 or named.max() >= n):
            raise UsageError("an edge or root names a point that is not there")
        if not np.isfinite(self.points_mm).all():
            raise UsageError("a point of a centerline is not finite")
        if self.radius_mm is not None and len(self.radius_mm) != n:
            raise UsageError(
                "a centerline needs one radius per point",
                expected=f"{n} radii",
                got=str(len(self.radius_mm)),
            )
        pairs = np.sort(self.edges, axis=1)
        _, first = np.unique(pairs, axis=0, return_index=True)
        first = np.sort(first[pairs[first, 0] != pairs[first, 1]])
        object.__setattr__(self, "edges", self.edges[first])

    @classmethod
    def of_parents(
        cls,
        points_mm: ArrayLike,
        parents: ArrayLike,
        radius_mm: ArrayLike | None = None,
        closing: ArrayLike = (),
    ) -> LineGraph:
        """Return a tree given by the parent of each point, -1 at roots, in any order.

        `closing` holds edges (E, 2) that close loops.
        """
        above = np.asarray(parents, np.int64).reshape(-1)
        child = np.flatnonzero(above >= 0)
        extra = np.asarray(closing, np.int64).reshape(-1, 2)
        return cls(
            points_mm=np.asarray(points_mm, np.float64),
            edges=np.concatenate([np.stack([above[child], child], 1), extra]),
            roots=np.flatnonzero(above < 0),
            radius_mm=None if radius_mm is None else np.asarray(radius_mm, np.float64),
        )

    @classmethod
    def of(cls, tree: Any) -> LineGraph:
        """Return a `CenterlineTree`, or whatever has ``points_mm``, ``parents``, ``radius_mm``.

        That is what `medpipe.phantoms.vessel_tree` and `read_swc` return.
        """
        if isinstance(tree, cls):
            return tree
        points = getattr(tree, "positions_mm", None)
        return cls.of_parents(
            tree.points_mm if points is None else points,
            tree.parents,
            getattr(tree, "radius_mm", None),
            getattr(tree, "closing", ()),
        )

    @classmethod
    def of_lines(
        cls,
        points_mm: ArrayLike,
        lines: Sequence[NDArray[np.int64]],
        radius_mm: ArrayLike | None = None,
    ) -> LineGraph:
        """Return polylines, each a row of points; the first points of all are roots."""
        pairs = [np.stack([line[:-1], line[1:]], 1) for line in lines]
        firsts = [line[0] for line in lines]
        return cls(
            points_mm=np.asarray(points_mm, np.float64),
            edges=np.concatenate([np.empty((0, 2), np.int64), *pairs]),
            roots=np.unique(np.array(firsts, np.int64)),
            radius_mm=None if radius_mm is None else np.asarray(radius_mm, np.float64),
        )

    @classmethod
    def of_voxels(cls, voxels: ArrayLike, affine: ArrayLike, roots_mm: ArrayLike = ()) -> LineGraph:
        """Return voxels (N, 3) of a skeleton, joined where they are 26-neighbours.

        The voxel nearest to each of `roots_mm` (R, 3) is a root. Three voxels that touch
        each other are a cycle of this graph, as they are at the junctions of a thinning.
        """
        index = np.asarray(voxels, np.int64).reshape(-1, 3)
        matrix = np.asarray(affine, np.float64)
        points = index @ matrix[:3, :3].T + matrix[:3, 3]
        wanted = np.asarray(roots_mm, np.float64).reshape(-1, 3)
        gaps = np.linalg.norm(wanted[:, None] - points[None], axis=2)
        roots = np.unique(gaps.argmin(axis=1)) if len(points) else np.empty(0, np.int64)
        return cls(points, _touching(index), roots)

    @cached_property
    def lengths_mm(self) -> NDArray[np.float64]:
        """Length of each edge, (E,)."""
        a, b = self.points_mm[self.edges[:, 0]], self.points_mm[self.edges[:, 1]]
        return np.linalg.norm(b - a, axis=1)

    @cached_property
    def degree(self) -> NDArray[np.int64]:
        """Number of edges at each point, (N,)."""
        return np.bincount(self.edges.reshape(-1), minlength=len(self.points_mm))

    @cached_property
    def leaves(self) -> NDArray[np.int64]:
        """Points at the end of one edge that are no roots, (L,)."""
        return np.setdiff1d(np.flatnonzero(self.degree == 1), self.roots)

    @cached_property
    def junctions(self) -> NDArray[np.int64]:
        """Points where three or more lines meet, or two at a root, (J,)."""
        needed = np.full(len(self.points_mm), 3)
        needed[self.roots] = 2
        return np.flatnonzero(self.degree >= needed)

    @cached_property
    def cycles(self) -> int:
        """Number of independent cycles: edges − points + components."""
        n = len(self.points_mm)
        if n == 0:
            return 0
        pieces, _ = connected_components(self._matrix(np.ones(len(self.edges))), directed=False)
        return len(self.edges) - n + int(pieces)

    @cached_property
    def from_root_mm(self) -> NDArray[np.float64]:
        """Length of the shortest way to the next root, inf where there is none, (N,)."""
        return self._ways[0]

    @cached_property
    def root_of(self) -> NDArray[np.int64]:
        """Root that the shortest way leads to, -1 where there is none, (N,)."""
        return self._ways[1]

    @cached_property
    def _ways(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        n = len(self.points_mm)
        if not len(self.roots):
            return np.full(n, np.inf), np.full(n, -1)
        matrix = self._matrix(np.maximum(self.lengths_mm, np.finfo(float).tiny))
        length, _, root = dijkstra(
            matrix,
            directed=False,
            indices=self.roots,
            min_only=True,
            return_predecessors=True,
        )
        return length, np.where(np.isfinite(length), root, -1).astype(np.int64)

    def _matrix(self, weights: NDArray[np.float64]) -> Any:
        n = len(self.points_mm)
        return coo_array((weights, tuple(self.edges.T)), shape=(n, n)).tocsr()

    @cached_property
    def segments(self) -> NDArray[np.int64]:
        """Edges, and each point without an edge joined to itself, (E + P, 2)."""
        alone = np.flatnonzero(self.degree == 0)
        return np.concatenate([self.edges, np.stack([alone, alone], 1)])

    def samples(self, step_mm: float, *, ends: bool = False) -> Samples:
        """Return points on the lines that are at most `step_mm` apart.

        Each edge is cut into equal pieces with a point in the middle of each. With `ends`
        the points of the graph follow, with the weight 0.
        """
        if not step_mm > 0:
            raise UsageError("the step along a line is no length", got=f"{step_mm} mm")
        length = np.zeros(len(self.segments))
        length[: len(self.edges)] = self.lengths_mm
        pieces = np.maximum(np.ceil(length / step_mm), 1).astype(np.int64)
        edge = np.repeat(np.arange(len(pieces)), pieces)
        piece = np.arange(len(edge)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        weights = (length / pieces)[edge] if length.any() else np.ones(len(edge))
        at = (piece + 0.5) / pieces[edge]
        (a, b), n = self.segments[edge].T, len(self.points_mm) if ends else 0
        points = (1 - at)[:, None] * self.points_mm[a] + at[:, None] * self.points_mm[b]
        radius = self.radius_mm
        if radius is not None:
            radius = np.append((1 - at) * radius[a] + at * radius[b], radius[:n])
        return Samples(
            np.concatenate([points, self.points_mm[:n]]), np.append(weights, np.zeros(n)), radius
        )


def _touching(voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs of rows that are 26-neighbours, (E, 2)."""
    if not len(voxels):
        return np.empty((0, 2), np.int64)
    inside = voxels - voxels.min(axis=0) + 1
    shape = inside.max(axis=0) + 2
    key = np.ravel_multi_index(tuple(inside.T), tuple(shape))
    order = np.argsort(key)
    offsets = np.indices((3, 3, 3)).reshape(3, -1).T[:_BACKWARD] - 1
    pairs = []
    for step in offsets @ np.array([shape[1] * shape[2], shape[2], 1]):
        place = np.searchsorted(key, key + step, sorter=order).clip(max=len(key) - 1)
        hit = key[order[place]] == key + step
        pairs.append(np.stack([order[place[hit]], np.flatnonzero(hit)], 1))
    return np.concatenate(pairs)
