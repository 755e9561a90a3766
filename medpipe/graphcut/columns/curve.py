"""Curves given as points: equal steps along them and frames that do not twist."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from medpipe.errors import StepError

__all__ = ["resample_curve", "rotation_minimising_frames"]

Array = NDArray[np.float64]
FINE = 32  # points per segment for the table of arc length


def resample_curve(points_mm: Array, step_mm: float, closed: bool) -> tuple[Array, Array, float]:
    """Return stations at equal arc length on a smooth curve through points.

    Parameters
    ----------
    points_mm : ndarray, shape (P, 3)
        Points in order, two or more (three if closed, the first not repeated).
    step_mm : float
        Wanted distance of the stations; the nearest that divides the length is used.
    closed : bool
        Whether the last point is followed by the first.

    Returns
    -------
    stations, tangents : ndarray, shape (N, 3)
        Points in mm and unit tangents.
    step_mm : float
        Arc length between stations.

    Raises
    ------
    StepError
        If there are too few points, or two in a row are the same.
    """
    points = np.asarray(points_mm, float)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) < (3 if closed else 2):
        raise StepError(
            "the centre line has too few points",
            expected="(P, 3) in mm, P of 2 or more (3 if closed)",
            got=str(points.shape),
        )
    if closed:
        points = np.concatenate([points, points[:1]])
    chord = np.linalg.norm(np.diff(points, axis=0), axis=1)
    if not np.isfinite(points).all() or (chord == 0).any():
        raise StepError("the centre line has points that repeat or are not finite")
    knots = np.concatenate([[0.0], np.cumsum(chord)])
    spline = CubicSpline(knots, points, bc_type="periodic" if closed else "not-a-knot")
    fine = np.interp(np.arange((len(points) - 1) * FINE + 1) / FINE, np.arange(len(points)), knots)
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(spline(fine), axis=0), axis=1))])
    steps = max(round(float(arc[-1]) / step_mm), 3 if closed else 1)
    length = np.arange(steps if closed else steps + 1) * (arc[-1] / steps)
    where = np.interp(length, arc, fine)
    tangents = spline(where, 1)
    return (
        spline(where),
        tangents / np.linalg.norm(tangents, axis=1, keepdims=True),
        float(arc[-1] / steps),
    )


def rotation_minimising_frames(
    stations: Array, tangents: Array, closed: bool
) -> tuple[Array, Array]:
    """Return two unit vectors across the curve at each station, both (N, 3).

    Double reflection (Wang et al. 2008, doi 10.1145/1330511.1330513). On a closed
    curve the angle by which the last frame misses the first is spread evenly.
    """
    start = np.eye(3)[np.abs(tangents[0]).argmin()]
    normal = start - (start @ tangents[0]) * tangents[0]
    normals = [normal / np.linalg.norm(normal)]
    ends = np.concatenate([stations, stations[:1]]), np.concatenate([tangents, tangents[:1]])
    for n in range(len(stations) if closed else len(stations) - 1):
        normals.append(_reflect_twice(ends[0][n : n + 2], ends[1][n : n + 2], normals[-1]))
    across = np.array(normals[: len(stations)])
    second = np.cross(tangents, across)
    if closed:
        miss = np.arctan2(normals[-1] @ second[0], normals[-1] @ across[0])
        turn = -miss * np.arange(len(stations))[:, None] / len(stations)
        across, second = (
            np.cos(turn) * across + np.sin(turn) * second,
            np.cos(turn) * second - np.sin(turn) * across,
        )
    return across, second


def _reflect_twice(points: Array, tangents: Array, normal: Array) -> Array:
    """Return the normal carried from the first of two stations to the second."""
    step = points[1] - points[0]
    mirror = 2 / (step @ step)
    carried = normal - mirror * (step @ normal) * step
    tangent = tangents[0] - mirror * (step @ tangents[0]) * step
    rest = tangents[1] - tangent
    square = rest @ rest
    if square > 1e-24:
        carried = carried - 2 / square * (rest @ carried) * rest
    carried = carried - (carried @ tangents[1]) * tangents[1]
    return carried / np.linalg.norm(carried)
