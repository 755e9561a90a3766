"""How well a score ranks cases with the event above those without."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from medpipe.errors import UsageError
from medpipe.stats.arrays import (
    FloatOrRows,
    Floats,
    binary,
    both_classes,
    column,
    finish,
    group_numbers,
    ratio,
    weight_rows,
)
from medpipe.stats.interval import Interval, PairedDifference, check_level

__all__ = ["auroc", "average_precision", "delong", "delong_test"]

ONE_CLASS = "all cases have the same outcome: nothing can be ranked"


def auroc(outcome: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None) -> FloatOrRows:
    """Return the area under the receiver operating characteristic curve.

    The probability that a case with the event has the higher score, equal scores counted
    half.

    Parameters
    ----------
    outcome : array (n,)
        0 or 1.
    score : array (n,)
        Higher for 1; any scale.
    weights : array (n,) or (R, n), optional
        Of cases, or of cases in each of R resamples.

    Returns
    -------
    float or array (R,)
        NaN in a row where one class has no weight.

    Raises
    ------
    InputError
        If the arrays cannot be used, or all cases have the same outcome.
    """
    y, s, rows, single = _arrays(outcome, score, weights)
    order, starts = _ties(s)
    ordered = rows[:, order]
    events = np.add.reduceat(ordered * y[order], starts, axis=1)
    others = np.add.reduceat(ordered * (1 - y[order]), starts, axis=1)
    below = others.cumsum(axis=1) - others / 2
    pairs = events.sum(axis=1) * others.sum(axis=1)
    return finish(ratio((events * below).sum(axis=1), pairs), single, ONE_CLASS)


def average_precision(
    outcome: ArrayLike, score: ArrayLike, weights: ArrayLike | None = None
) -> FloatOrRows:
    """Return the area under the precision-recall curve as the average precision.

    The sum over thresholds of precision times the step of recall, without interpolation.
    A score without information has the prevalence.

    Parameters
    ----------
    outcome, score, weights
        As in `auroc`.

    Raises
    ------
    InputError
        If the arrays cannot be used, or no case has the event.
    """
    y, s, rows, single = _arrays(outcome, score, weights)
    order, starts = _ties(-s)
    ordered = rows[:, order]
    events = np.add.reduceat(ordered * y[order], starts, axis=1)
    called = np.add.reduceat(ordered, starts, axis=1).cumsum(axis=1)
    found = events.cumsum(axis=1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    value = ratio((events * precision).sum(axis=1), found[:, -1])
    return finish(value, single, "no case has the event: there is no precision")


def _arrays(
    outcome: ArrayLike, score: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats, bool]:
    y = binary(outcome)
    s = column(score, y.size, "the score")
    rows, single = weight_rows(weights, y.size)
    return y, s, rows, single


def _ties(score: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the ascending order, and where each distinct score starts in it."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    return order, np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def delong(
    outcome: ArrayLike,
    score: ArrayLike,
    level: float = 0.95,
    *,
    transform: str = "logit",
    groups: ArrayLike | None = None,
) -> Interval:
    """Return the area under the curve with the interval of DeLong.

    Midranks instead of all pairs. Where the variance is 0 or not determined (all cases with
    the event above all others; only one case of a class), the interval is Newcombe's
    inversion of the Hanley-McNeil variance, which has a width there too; `method` says so.

    Parameters
    ----------
    outcome, score
        As in `auroc`.
    level : float
        Coverage of the interval.
    transform : {"logit", "identity"}
        Scale on which the interval is symmetric. "identity" is as published, cut at 0 and
        1; "logit" stays inside and covers better at high areas.
    groups : array (n,), optional
        Patients; cases of one patient need not be independent (Obuchowski).

    Returns
    -------
    Interval
        Without a value if all cases have the same outcome. A constant score has 0.5 to 0.5
        and a note.

    Raises
    ------
    InputError
        If the arrays cannot be used.
    UsageError
        For another transform, or a level outside 0..1.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595; Sun and Xu 2014,
    doi:10.1109/LSP.2014.2337313; Obuchowski 1997, doi:10.2307/2533958; Newcombe 2006,
    doi:10.1002/sim.2324.
    """
    check_level(level)
    if transform not in ("logit", "identity"):
        raise UsageError("unknown transform", expected="logit or identity", got=repr(transform))
    y, s, _, _ = _arrays(outcome, score, None)
    n, events = y.size, int(y.sum())
    if not both_classes(y):
        return Interval(None, None, None, n, events, "DeLong", level, None, ONE_CLASS)
    area, covariance = _structure(y, s[None], group_numbers(groups, n))
    value = float(area[0])
    if s.min() == s.max():
        note = "the score is the same for all cases"
        return Interval(value, value, value, n, events, "DeLong", level, 0.0, note)
    variance = 0.0 if covariance is None else float(covariance[0, 0])
    if variance < 1e-15:
        low, high = _newcombe(value, events, n - events, level)
        note = "the variance of DeLong is 0 or not determined"
        return Interval(value, low, high, n, events, "Newcombe", level, None, note)
    se = variance**0.5
    low, high = _symmetric(value, se, level, transform)
    clustered = "" if groups is None else ", clustered by patient"
    method = f"DeLong, {transform}{clustered}"
    return Interval(value, low, high, n, events, method, level, se)


def delong_test(
    outcome: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    level: float = 0.95,
    *,
    groups: ArrayLike | None = None,
) -> PairedDifference:
    """Compare the areas under the curves of two scores of the same cases.

    Parameters
    ----------
    outcome : array (n,)
        0 or 1.
    a, b : array (n,)
        The scores.
    level : float
        Coverage of the interval of the difference.
    groups : array (n,), optional
        As in `delong`.

    Returns
    -------
    PairedDifference
        Area of `a` minus area of `b`. Scores that rank alike have 0, z = 0 and p = 1; where
        the variance of a difference is 0, there is neither interval nor p, and a note.

    Raises
    ------
    InputError
        If the arrays cannot be used.
    UsageError
        For a level outside 0..1.
    """
    check_level(level)
    y = binary(outcome)
    n, events = y.size, int(y.sum())
    scores = np.stack([column(a, n, "the first score"), column(b, n, "the second score")])

    def without(difference: float | None, note: str) -> PairedDifference:
        nothing = (None, None, None, None)
        return PairedDifference(difference, *nothing, n, events, "DeLong", level, None, note)

    if not both_classes(y):
        return without(None, ONE_CLASS)
    area, covariance = _structure(y, scores, group_numbers(groups, n))
    difference = float(area[0] - area[1])
    if covariance is None:
        return without(difference, "only one patient of a class")
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance < 1e-15:
        if abs(difference) < 1e-12:
            note = "both scores rank alike"
            return PairedDifference(0.0, 0.0, 0.0, 0.0, 1.0, n, events, "DeLong", level, 0.0, note)
        return without(difference, "the variance of DeLong is 0")
    se = variance**0.5
    z = difference / se
    half = float(special.ndtri(0.5 + level / 2)) * se
    p = float(2 * special.ndtr(-abs(z)))
    low, high = max(difference - half, -1.0), min(difference + half, 1.0)
    return PairedDifference(difference, low, high, z, p, n, events, "DeLong", level, se)


def _structure(
    outcome: Floats, scores: Floats, groups: NDArray[np.int64]
) -> tuple[Floats, Floats | None]:
    """Return areas (K,) and their covariance (K, K) of scores (K, n).

    None for the covariance if a class has only one patient. The structural component of a
    case is the share of the other class that it is on the right side of; its deviations are
    summed over the cases of a patient.
    """
    event = outcome == 1
    m, n = int(event.sum()), int((~event).sum())
    everywhere = _midranks(scores)
    of_events = (everywhere[:, event] - _midranks(scores[:, event])) / n
    of_others = 1 - (everywhere[:, ~event] - _midranks(scores[:, ~event])) / m
    area = of_events.mean(axis=1)
    patients = int(groups.max()) + 1
    a = _group_sums(of_events - area[:, None], groups[event], patients)
    b = _group_sums(of_others - area[:, None], groups[~event], patients)
    ia, ib = len(np.unique(groups[event])), len(np.unique(groups[~event]))
    if min(ia, ib) < 2:
        return area, None
    mixed = a @ b.T
    covariance = (
        ia / (ia - 1) * (a @ a.T) / m**2
        + ib / (ib - 1) * (b @ b.T) / n**2
        + patients / (patients - 1) * (mixed + mixed.T) / (m * n)
    )
    return area, covariance


def _midranks(scores: Floats) -> Floats:
    """Return ranks from 1 in each row (K, n), the mean of them where scores are equal."""
    rows = []
    for row in scores:
        _, which, count = np.unique(row, return_inverse=True, return_counts=True)
        rows.append((count.cumsum() - (count - 1) / 2)[which])
    return np.stack(rows)


def _group_sums(values: Floats, groups: NDArray[np.int64], count: int) -> Floats:
    """Return sums (K, count) of values (K, n) over the cases of each patient."""
    return np.stack([np.bincount(groups, row, minlength=count) for row in values])


def _symmetric(value: float, se: float, level: float, transform: str) -> tuple[float, float]:
    z = float(special.ndtri(0.5 + level / 2))
    if transform == "identity" or not 0 < value < 1:
        return max(value - z * se, 0.0), min(value + z * se, 1.0)
    centre, half = special.logit(value), z * se / (value * (1 - value))
    return float(special.expit(centre - half)), float(special.expit(centre + half))


def _newcombe(value: float, m: int, n: int, level: float) -> tuple[float, float]:
    """Return the areas from which `value` is just as far as the level allows."""
    z = float(special.ndtri(0.5 + level / 2))
    spare = (m + n) / 2 - 1

    def gap(area: float) -> float:
        inner = 1 + spare * (1 - area) / (2 - area) + spare * area / (1 + area)
        return (value - area) ** 2 - z**2 * area * (1 - area) * inner / (m * n)

    # at 0 and 1 the variance is 0, so the gap is not negative there
    low = 0.0 if value == 0 else float(optimize.brentq(gap, 0.0, value - value * 1e-12))
    above = value + (1 - value) * 1e-12
    high = 1.0 if value == 1 else float(optimize.brentq(gap, above, 1.0))
    return low, high
