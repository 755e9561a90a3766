"""Space curves: even spacing, tangents, curvature, torsion, frames that do not twist.

A curve is an interpolating cubic spline through points over the length of their chords.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline

from medpipe.errors import StepError, UsageError

__all__ = [
    "SpaceCurve",
    "bishop_frames",
    "curvature_per_mm",
    "resample",
    "soam_rad_per_mm",
    "tangents",
    "torsion_per_mm",
    "tortuosity",
]

Array = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_SAME_MM = 1e-6
_STRAIGHT_PER_MM = 1e-6
"""Curvature below which a curve is straight and has no torsion."""


@dataclass(frozen=True, eq=False)
class SpaceCurve:
    """A cubic spline through points, and places on it by their distance along it.

    Parameters
    ----------
    points_mm : float64 array (P, 3)
        At least two; points that repeat the one before (1 nm) are dropped.

    Raises
    ------
    StepError
        If there are fewer than two different points or one is not finite.
    """

    points_mm: Array

    def __post_init__(self) -> None:
        points = np.asarray(self.points_mm, np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise StepError("the points of a curve are wrong", expected="finite points (P, 3)")
        new = np.append(True, np.linalg.norm(np.diff(points, axis=0), axis=1) > _SAME_MM)
        if new.sum() < 2:
            raise StepError("a curve needs two different points")
        object.__setattr__(self, "points_mm", points[new])

    @cached_property
    def knots(self) -> Array:
        """Parameter of each point: the length of the chords up to it, (P,)."""
        return np.append(0.0, np.linalg.norm(np.diff(self.points_mm, axis=0), axis=1).cumsum())

    @cached_property
    def spline(self) -> CubicSpline:
        """Position over the parameter; a parabola through three points, a line through two."""
        return CubicSpline(self.knots, self.points_mm)

    @cached_property
    def arc_mm(self) -> Array:
        """Distance along the curve of each point, (P,)."""
        return np.append(0.0, self._length(self.knots[:-1], self.knots[1:]).cumsum())

    @property
    def length_mm(self) -> float:
        """Length of the curve."""
        return float(self.arc_mm[-1])

    def _length(self, start: Array, end: Array) -> Array:
        """Return the length between parameters of the same piece, by Gauss's rule."""
        half = (end - start) / 2
        at = (start + half)[..., None] + half[..., None] * _NODES
        return half * (np.linalg.norm(self.spline(at, 1), axis=-1) @ _WEIGHTS)

    def parameter(self, arc_mm: ArrayLike) -> Array:
        """Return the parameter at distances (S,) along the curve."""
        target = np.clip(np.asarray(arc_mm, np.float64), 0.0, self.length_mm)
        piece = np.searchsorted(self.arc_mm, target, side="right") - 1
        piece = np.clip(piece, 0, len(self.knots) - 2)
        start, end = self.knots[piece], self.knots[piece + 1]
        rest = target - self.arc_mm[piece]
        t = start + (end - start) * rest / (self.arc_mm[piece + 1] - self.arc_mm[piece])
        for _ in range(6):  # Newton; the speed of a chord-length spline is near 1
            speed = np.maximum(np.linalg.norm(self.spline(t, 1), axis=-1), 0.1)
            t = np.clip(t - (self._length(start, t) - rest) / speed, start, end)
        return t

    def at(self, arc_mm: ArrayLike) -> Array:
        """Return the positions (S, 3) at distances along the curve."""
        return self.spline(self.parameter(arc_mm))

    def even_arc_mm(self, step_mm: float) -> Array:
        """Return distances from 0 to the end, evenly spaced by about `step_mm`.

        Raises
        ------
        UsageError
            If the step is not a positive number.
        """
        if not 0 < step_mm < np.inf:
            raise UsageError("the step along a curve is wrong", expected="above 0 mm")
        count = max(1, int(np.rint(self.length_mm / step_mm)))
        return np.linspace(0.0, self.length_mm, count + 1)

    def tangents(self, arc_mm: ArrayLike) -> Array:
        """Return unit tangents (S, 3) at distances along the curve."""
        velocity = self.spline(self.parameter(arc_mm), 1)
        return velocity / np.linalg.norm(velocity, axis=-1, keepdims=True)

    def curvature_per_mm(self, arc_mm: ArrayLike) -> Array:
        """Return the curvature (S,) at distances along the curve, 1 / radius of the bend."""
        t = self.parameter(arc_mm)
        velocity, bend = self.spline(t, 1), self.spline(t, 2)
        speed = np.linalg.norm(velocity, axis=-1)
        return np.linalg.norm(np.cross(velocity, bend), axis=-1) / speed**3

    def torsion_per_mm(self, arc_mm: ArrayLike) -> Array:
        """Return the torsion (S,), positive where the curve turns like a right-handed screw.

        NaN where the curve is straight. The third derivative of a cubic spline jumps at
        its points; that of a spline through its second derivatives is taken instead.
        """
        t = self.parameter(arc_mm)
        velocity, bend = self.spline(t, 1), self.spline(t, 2)
        third = CubicSpline(self.knots, self.spline(self.knots, 2))(t, 1)
        normal = np.cross(velocity, bend)
        size = (normal**2).sum(axis=-1)
        straight = np.sqrt(size) < _STRAIGHT_PER_MM
        return np.where(
            straight, np.nan, (normal * third).sum(axis=-1) / np.where(straight, 1.0, size)
        )


def resample(points_mm: ArrayLike, step_mm: float) -> Array:
    """Return points (S, 3) on the curve through `points_mm`, evenly spaced along it.

    The ends are kept: the spacing is the one next to `step_mm` that divides the length.
    """
    curve = SpaceCurve(np.asarray(points_mm, np.float64))
    return curve.at(curve.even_arc_mm(step_mm))


def tangents(points_mm: ArrayLike) -> Array:
    """Return the unit tangents (P, 3) of the curve through the points, at the points."""
    curve = _through(points_mm)
    return curve.tangents(curve.arc_mm)


def curvature_per_mm(points_mm: ArrayLike) -> Array:
    """Return the curvature (P,) of the curve through the points, at the points."""
    curve = _through(points_mm)
    return curve.curvature_per_mm(curve.arc_mm)


def torsion_per_mm(points_mm: ArrayLike) -> Array:
    """Return the torsion (P,) of the curve through the points, NaN where it is straight."""
    curve = _through(points_mm)
    return curve.torsion_per_mm(curve.arc_mm)


def _through(points_mm: ArrayLike) -> SpaceCurve:
    """Return the curve through points that all differ from the one before."""
    points = np.asarray(points_mm, np.float64)
    curve = SpaceCurve(points)
    if len(curve.points_mm) != len(points):
        raise StepError("a point of a curve repeats the one before")
    return curve


def bishop_frames(
    points_mm: ArrayLike, directions: ArrayLike | None = None, start: ArrayLike | None = None
) -> Array:
    """Return frames along a curve that do not turn about its tangent.

    Double reflection (Wang et al. 2008, doi 10.1145/1330511.1330513); the error of the
    angle falls with the fourth power of the step.

    Parameters
    ----------
    points_mm : array (P, 3)
    directions : array (P, 3), optional
        Unit tangents at the points; by default those of the spline through them.
    start : array (3,), optional
        Direction of the first normal, made perpendicular to the first tangent. By
        default the world axis that is most perpendicular to it (the first of equals).

    Returns
    -------
    float64 array (P, 3, 3)
        Rows: tangent, first normal, second normal = tangent × first normal.

    Raises
    ------
    StepError
        If `start` is parallel to the first tangent.
    """
    points = np.asarray(points_mm, np.float64)
    along = tangents(points) if directions is None else np.asarray(directions, np.float64)
    first = np.eye(3)[np.abs(along[0]).round(9).argmin()] if start is None else np.array(start)
    normal = first - (first @ along[0]) * along[0]
    size = float(np.linalg.norm(normal))
    if not size > 1e-9:
        raise StepError("the first normal of a frame is parallel to the curve")
    turns = _double_reflections(points, along)
    normals = np.empty_like(points)
    normals[0] = normal / size
    for n, turn in enumerate(turns):
        normals[n + 1] = turn @ normals[n]
    # rounding adds up over thousands of products
    normals -= (normals * along).sum(axis=1, keepdims=True) * along
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.stack([along, normals, np.cross(along, normals)], axis=1)


def _double_reflections(points: Array, along: Array) -> Array:
    """Return the rotations (P - 1, 3, 3) from the frame of each point to that of the next."""
    mirror = _reflections(np.diff(points, axis=0))
    seen = np.einsum("nij,nj->ni", mirror, along[:-1])
    return _reflections(along[1:] - seen) @ mirror


def _reflections(normals: Array) -> Array:
    """Return the reflections at planes with these normals, the identity for a normal of 0."""
    size = (normals**2).sum(axis=1)[:, None, None]
    outer = normals[:, :, None] * normals[:, None, :]
    return np.eye(3) - 2 * outer / np.where(size > 0, size, 1.0)


def tortuosity(points_mm: ArrayLike) -> float | None:
    """Return the length of a polyline over that of its chord, minus 1; None for a closed one."""
    points = np.asarray(points_mm, np.float64)
    length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    chord = np.linalg.norm(points[-1] - points[0])
    return None if chord <= 1e-9 * length or length == 0 else float(length / chord - 1)


def soam_rad_per_mm(points_mm: ArrayLike) -> float | None:
    """Return the sum-of-angles metric of a polyline, in radians per mm.

    Bullitt et al. 2003 (doi 10.1109/TMI.2003.816964): at each inner step the angle in
    the plane (between steps) and the angle of torsion (between the planes of successive
    pairs of steps, 0 to 90°, so that an inflection counts none) make one angle
    √(IP² + TP²); their sum is divided by the length. On a fine helix it is
    √(curvature² + torsion²). It grows with the noise of the points: give it evenly
    spaced points of a smooth curve.

    Returns
    -------
    float or None
        None for fewer than four points.
    """
    steps = np.diff(np.asarray(points_mm, np.float64), axis=0)
    length = np.linalg.norm(steps, axis=1)
    if len(steps) < 3 or not (length > 0).all():
        return None
    unit = steps / length[:, None]
    normal = np.cross(unit[:-1], unit[1:])
    size = np.linalg.norm(normal, axis=1)
    in_plane = np.arctan2(size, (unit[:-1] * unit[1:]).sum(axis=1))[:-1]
    cross = np.linalg.norm(np.cross(normal[:-1], normal[1:]), axis=1)
    torsion = np.arctan2(cross, np.abs((normal[:-1] * normal[1:]).sum(axis=1)))
    # two steps in line lie in no plane
    torsion[np.minimum(size[:-1], size[1:]) < 1e-9] = 0.0
    return float(np.hypot(in_plane, torsion).sum() / length.sum())
