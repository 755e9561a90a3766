"""Exact distances from points to lines."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from medpipe.centerline.metrics.line_graph import LineGraph

__all__ = ["distance_to_lines_mm", "weighted_percentile"]

Array = NDArray[np.float64]

_FIRST = 8
"""Pieces of line that are tried for every point at first."""


def distance_to_lines_mm(points_mm: ArrayLike, graph: LineGraph) -> Array:
    """Return the distance of each point (Q, 3) to the nearest point of all lines, exact.

    Points without a line count as lines of no length. Without any it is inf.
    """
    points = np.asarray(points_mm, np.float64).reshape(-1, 3)
    if not len(graph.points_mm) or not len(points):
        return np.full(len(points), np.inf)
    starts, ends = _pieces(graph)
    reach = np.linalg.norm(ends - starts, axis=1).max() / 2
    middles = cKDTree((starts + ends) / 2)
    best = np.full(len(points), np.inf)
    open_points = np.arange(len(points))
    tried = min(_FIRST, len(starts))
    while True:
        gap, piece = middles.query(points[open_points], k=np.arange(1, tried + 1))
        found = _to_segments(points[open_points, None], starts[piece], ends[piece]).min(axis=1)
        best[open_points] = found
        # no piece comes nearer than its middle less half the longest piece
        open_points = open_points[gap[:, -1] < found + reach]
        if tried == len(starts) or not len(open_points):
            return best
        tried = min(4 * tried, len(starts))


def _pieces(graph: LineGraph) -> tuple[Array, Array]:
    """Return both ends of pieces of all lines, none longer than the mean of the edges."""
    a, b = (graph.points_mm[side] for side in graph.segments.T)
    length = np.linalg.norm(b - a, axis=1)
    longest = length.sum() / len(length)
    parts = np.ones(len(length), np.int64)
    if longest > 0:
        parts = np.maximum(np.ceil(length / longest), 1).astype(np.int64)
    edge = np.repeat(np.arange(len(parts)), parts)
    part = np.arange(len(edge)) - np.repeat(np.cumsum(parts) - parts, parts)
    step = ((b - a) / parts[:, None])[edge]
    return a[edge] + part[:, None] * step, a[edge] + (part + 1)[:, None] * step


def _to_segments(points: Array, starts: Array, ends: Array) -> Array:
    """Return distances of points (Q, 1, 3) to segments (Q, K, 3), (Q, K)."""
    along = ends - starts
    square = (along * along).sum(axis=-1)
    at = ((points - starts) * along).sum(axis=-1) / np.where(square > 0, square, 1)
    nearest = starts + np.clip(at, 0, 1)[..., None] * along
    return np.linalg.norm(points - nearest, axis=-1)


def weighted_percentile(values: ArrayLike, weights: ArrayLike, percent: float) -> float:
    """Return the smallest value that `percent` of the weight does not exceed; NaN without any."""
    v, w = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    if not v.size or not w.sum() > 0:
        return float("nan")
    order = np.argsort(v, kind="stable")
    share = np.cumsum(w[order])
    place = np.searchsorted(share, percent / 100 * share[-1] * (1 - 1e-12))
    return float(v[order][min(place, v.size - 1)])
