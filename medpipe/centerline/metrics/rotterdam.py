"""Measures of the Rotterdam coronary centerline evaluation, for one vessel.

References
----------
Schaap et al. 2009, Medical Image Analysis 13(5), doi:10.1016/j.media.2009.06.003.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import UsageError
from medpipe.jit import compiled

__all__ = [
    "Correspondence",
    "RotterdamScores",
    "accuracy_score",
    "clip_at_start",
    "correspondence",
    "overlap_score",
    "resample_equidistant",
    "rotterdam_scores",
]

Array = NDArray[np.float64]

STEP_MM = 0.03
SKIP_MM = 5.0
RELEVANT_RADIUS_MM = 0.75
DISC_RADII = 2.0
PERFECT_OVERLAP = 0.9995

_MOST_CELLS = 1 << 30


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Connections between two curves, in order, from both starts to both ends.

    Parameters
    ----------
    reference, result : int64 array (K,)
        Points that are connected; from one connection to the next one of both advances by 1.
    length_mm : float64 array (K,)
    """

    reference: NDArray[np.int64]
    result: NDArray[np.int64]
    length_mm: Array


@dataclass(frozen=True)
class RotterdamScores:
    """Overlap and accuracy of one vessel.

    Parameters
    ----------
    ov : float
        Overlap: share of the points of both curves with a connection inside the vessel.
    of : float
        Overlap until the first error.
    ot : float
        Overlap of the clinically relevant part; NaN where no point of the reference has
        the relevant radius.
    ad_mm, ai_mm, at_mm : float
        Mean length of all connections, of those inside the vessel, and of those in the
        clinically relevant part; NaN where there are none.
    ad_score, ai_score, at_score : float or None
        Mean of `accuracy_score` over the same connections, where `observer_mm` is given.
    """

    ov: float
    of: float
    ot: float
    ad_mm: float
    ai_mm: float
    at_mm: float
    ad_score: float | None = None
    ai_score: float | None = None
    at_score: float | None = None


def rotterdam_scores(
    reference_mm: ArrayLike,
    radius_mm: ArrayLike,
    result_mm: ArrayLike,
    *,
    observer_mm: ArrayLike | None = None,
    step_mm: float = STEP_MM,
    skip_mm: float = SKIP_MM,
    relevant_radius_mm: float = RELEVANT_RADIUS_MM,
    clip: bool = True,
    past_end: bool = False,
) -> RotterdamScores:
    """Compare a curve with a reference as published.

    The result is clipped by a disc at the start of the reference, both are resampled, and
    their points are connected (`correspondence`). A connection is inside the vessel if it
    is no longer than the radius of the reference at its end.

    Parameters
    ----------
    reference_mm : array (M, 3)
        From the proximal to the distal end, two points or more.
    radius_mm : array (M,)
    result_mm : array (N, 3)
        In the same direction: a curve that runs against the reference scores as an error,
        as published. Fewer than one point scores 0.
    observer_mm : array (M,), optional
        Disagreement of observers at each point of the reference, for the scores.
    step_mm : float
        Distance between the points that are connected. A result equal to its reference has
        an ``ad_mm`` of about half of it, because only one curve advances at a time.
    skip_mm : float
        Errors this near to the start of the reference are no first error.
    relevant_radius_mm : float
        The clinically relevant part ends at the last point with this radius.
    clip : bool
        Whether to clip the result.
    past_end : bool
        Whether points of the result past the end of a reference that is relevant to its end
        count in ``ot`` and ``at_mm``. The text of the paper counts them, the program of the
        challenge does not.

    Raises
    ------
    UsageError
        If the arrays do not fit together, or the curves have too many points at this step.
    """
    reference, radius, observer = _reference(reference_mm, radius_mm, observer_mm)
    result = np.asarray(result_mm, np.float64).reshape(-1, 3)
    if not np.isfinite(result).all():
        raise UsageError("a point of the result is not finite")
    if clip:
        result = clip_at_start(result, reference, float(radius[0]))
    places, points = resample_equidistant(reference, step_mm)
    before = _along(reference)
    wide = np.interp(places, before, radius)
    agreed = None if observer is None else np.interp(places, before, observer)
    if not len(result):
        nothing = float("nan")
        ot = 0.0 if (wide >= relevant_radius_mm).any() else nothing
        scores = [None if agreed is None else nothing] * 3
        return RotterdamScores(0.0, 0.0, ot, nothing, nothing, nothing, *scores)
    _, found = resample_equidistant(result, step_mm)
    links = correspondence(points, found)
    relevant = _relevant(links, wide, relevant_radius_mm, past_end)
    return _scores(links, wide, relevant, agreed, places >= skip_mm)


def _relevant(
    links: Correspondence, radius: Array, least_mm: float, past_end: bool
) -> NDArray[np.bool_]:
    """Return which connections are in the clinically relevant part, (K,)."""
    wide = np.flatnonzero(radius >= least_mm)
    last = int(wide[-1]) if wide.size else -1
    relevant = links.reference <= last
    if last == len(radius) - 1 and not past_end:
        relevant[np.argmax(links.reference == last) + 1 :] = False
    return relevant


def _scores(
    links: Correspondence,
    radius: Array,
    relevant: NDArray[np.bool_],
    observer: Array | None,
    counts: NDArray[np.bool_],
) -> RotterdamScores:
    """Return all measures; `counts` are the points of the reference that can be a first error."""
    inside = links.length_mm <= radius[links.reference]
    hit_reference = np.zeros(len(radius), bool)
    hit_reference[links.reference[inside]] = True
    hit_result = np.zeros(links.result[-1] + 1, bool)
    hit_result[links.result[inside]] = True
    errors = np.flatnonzero(~hit_reference & counts)
    first_error = errors[0] if errors.size else len(radius)
    n_reference = links.reference[relevant].max(initial=-1) + 1
    n_result = links.result[relevant].max(initial=-1) + 1
    masks = {"ad": np.ones_like(inside), "ai": inside, "at": relevant}
    lengths = {f"{name}_mm": _mean(links.length_mm[m]) for name, m in masks.items()}
    scores: dict[str, float] = {}
    if observer is not None:
        each = accuracy_score(links.length_mm, observer[links.reference])
        scores = {f"{name}_score": _mean(each[m]) for name, m in masks.items()}
    return RotterdamScores(
        ov=_mean(np.concatenate([hit_reference, hit_result])),
        of=float(hit_reference[:first_error].sum()) / len(radius),
        ot=_mean(np.concatenate([hit_reference[:n_reference], hit_result[:n_result]])),
        **lengths,
        **scores,
    )


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")


def _reference(
    points: ArrayLike, radius: ArrayLike, observer: ArrayLike | None
) -> tuple[Array, Array, Array | None]:
    """Return the arrays of the reference, checked."""
    reference = np.asarray(points, np.float64).reshape(-1, 3)
    columns = [np.asarray(c, np.float64).reshape(-1) for c in (radius, observer) if c is not None]
    if len(reference) < 2 or not np.isfinite(reference).all():
        raise UsageError(
            "the reference is no curve",
            expected="two or more finite points",
            got=f"{len(reference)} points",
        )
    if any(len(column) != len(reference) for column in columns):
        raise UsageError("a value per point of the reference is missing")
    return reference, columns[0], columns[1] if len(columns) > 1 else None


def clip_at_start(result_mm: Array, reference_mm: Array, radius_mm: float) -> Array:
    """Return a curve from where it first crosses a disc at the start of the reference.

    The disc stands across the first step of the reference and has twice its radius there.
    A curve that does not cross it is returned whole.

    Parameters
    ----------
    result_mm, reference_mm : array (N, 3), (M, 3)
    radius_mm : float
        Of the reference at its start.
    """
    steps = reference_mm - reference_mm[0]
    moved = np.flatnonzero(steps.any(axis=1))
    if len(result_mm) < 2 or not moved.size:
        return result_mm
    height = (result_mm - reference_mm[0]) @ steps[moved[0]]
    before, after = height[:-1], height[1:]
    drop = np.where(before == after, 1.0, before - after)
    at = np.clip(before / drop, 0, 1)[:, None]
    cut = (1 - at) * result_mm[:-1] + at * result_mm[1:]
    near = np.linalg.norm(cut - reference_mm[0], axis=1) <= DISC_RADII * radius_mm
    crossings = np.flatnonzero((before * after <= 0) & near)
    if not crossings.size:
        return result_mm
    first = crossings[0]
    return np.concatenate([cut[first : first + 1], result_mm[first + 1 :]])


def resample_equidistant(points_mm: Array, step_mm: float) -> tuple[Array, Array]:
    """Return points every `step_mm` along a curve, and its last point.

    Parameters
    ----------
    points_mm : array (N, 3), one or more points
    step_mm : float

    Returns
    -------
    places_mm : array (K,)
        Distance from the start along the curve.
    points_mm : array (K, 3)

    Raises
    ------
    UsageError
        If the step is no length.
    """
    if not step_mm > 0:
        raise UsageError("the step along a curve is no length", got=f"{step_mm} mm")
    before = _along(points_mm)
    # a last step of rounding alone is none
    count = max(int(np.ceil(before[-1] / step_mm - 1e-6)), 0)
    places = np.append(np.arange(count) * step_mm, before[-1])
    return places, np.stack([np.interp(places, before, axis) for axis in points_mm.T], 1)


def _along(points: Array) -> Array:
    """Return the distance of each point from the start along the curve."""
    return np.append(0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))


def correspondence(reference_mm: Array, result_mm: Array) -> Correspondence:
    """Return the connections of two curves with the smallest sum of lengths.

    The first connection joins the starts and the last one the ends; from each to the next
    either the point of the reference or that of the result is the next one of its curve.
    Every point so has a connection. Found exactly by dynamic programming.

    Parameters
    ----------
    reference_mm, result_mm : array (M, 3), (N, 3), one or more points each

    Raises
    ------
    UsageError
        If M · N is above 2³⁰, which is a byte each.
    """
    cells = len(reference_mm) * len(result_mm)
    if not 0 < cells <= _MOST_CELLS:
        raise UsageError(
            "the curves cannot be connected point by point",
            expected=f"1 to {_MOST_CELLS} pairs of points",
            got=f"{len(reference_mm)} times {len(result_mm)} points",
            hint="take a larger step_mm",
        )
    a, b = (np.ascontiguousarray(c, np.float64) for c in (reference_mm, result_mm))
    reference, result = _connect(a, b)
    length = np.linalg.norm(a[reference] - b[result], axis=1)
    return Correspondence(reference, result, length)


@compiled
def _connect(a: Array, b: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fill the table of least sums row by row, then walk back through its choices."""
    m, n = len(a), len(b)
    by_result = np.zeros((m, n), np.uint8)
    least = np.full(n, np.inf)
    for i in range(m):
        left = np.inf
        for j in range(n):
            length = np.sqrt(
                (a[i, 0] - b[j, 0]) ** 2 + (a[i, 1] - b[j, 1]) ** 2 + (a[i, 2] - b[j, 2]) ** 2
            )
            above = least[j]
            if i == 0 and j == 0:
                left = length
            elif left < above:
                by_result[i, j] = 1
                left = left + length
            else:
                left = above + length
            least[j] = left
    count = m + n - 1
    reference, result = np.empty(count, np.int64), np.empty(count, np.int64)
    i, j = m - 1, n - 1
    for k in range(count - 1, -1, -1):
        reference[k], result[k] = i, j
        if by_result[i, j] == 1:
            j -= 1
        else:
            i -= 1
    return reference, result


def overlap_score(overlap: float, observer_overlap: float) -> float:
    """Return the score of an overlap: 100 perfect, 50 as good as observers agree.

    Parameters
    ----------
    overlap : float
        OV, OF or OT of the result; NaN (no relevant part) scores 100.
    observer_overlap : float
        The same of the observers, below 1 unless they agree wholly.
    """
    if np.isnan(overlap) or overlap >= PERFECT_OVERLAP:
        return 100.0
    if overlap <= observer_overlap:
        return 50.0 * overlap / observer_overlap if observer_overlap > 0 else 50.0
    return 50.0 + 50.0 * (overlap - observer_overlap) / (1.0 - observer_overlap)


def accuracy_score(length_mm: ArrayLike, observer_mm: ArrayLike) -> Array:
    """Return the score of each distance: 100 none, 50 as large as observers differ, then less.

    Parameters
    ----------
    length_mm, observer_mm : array (K,)
        Distances, and the disagreement of observers at the same places.
    """
    length, observer = np.broadcast_arrays(
        np.asarray(length_mm, np.float64), np.asarray(observer_mm, np.float64)
    )
    near = 100.0 - 50.0 * length / np.where(observer > 0, observer, 1.0)
    far = 50.0 * observer / np.where(length > 0, length, 1.0)
    score = np.where(length <= observer, near, far)
    return np.where((length < 1e-6) & (observer < 1e-6), 100.0, score)
