"""Times to an event with censoring: Kaplan-Meier and measures weighted by its inverse.

A case whose event is seen stands for all that were censored before: its weight is one over
the probability of not being censored until then (IPCW). That probability is the Kaplan-Meier
curve of censoring among the same cases, where events come before censorings of the same day.
So a case with the event at time t has the weight 1 / G(t-), and one seen beyond t has 1 / G(t).

All functions take `event` (1: the event was seen; 0: censored) first, then `time_days`, so
that they can be given to `medpipe.outcome.metrics.bootstrap.bootstrap`:
``bootstrap(event, (time_days, risk), concordance_ipcw, groups=patients)``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from medpipe.errors import InputError, UsageError
from medpipe.outcome.metrics._censoring import survival_rows, times, uncensored
from medpipe.stats.arrays import (
    FloatOrRows,
    Floats,
    column,
    finish,
    probabilities,
    ratio,
    weight_rows,
)
from medpipe.stats.interval import check_level
from medpipe.stats.ranking import auroc

__all__ = [
    "KaplanMeier",
    "auroc_at",
    "brier_ipcw",
    "concordance_ipcw",
    "integrated_brier",
    "kaplan_meier",
    "scaled_integrated_brier",
    "survival_at",
]


class KaplanMeier(NamedTuple):
    """Share without the event along time; it holds from each time to the next.

    Attributes
    ----------
    time_days, at_risk, events, survival, low, high : array (K,)
        For each time at which an event was seen.
    n : int
        Cases.
    """

    time_days: Floats
    at_risk: Floats
    events: Floats
    survival: Floats
    low: Floats
    high: Floats
    n: int

    def at(self, time_days: ArrayLike) -> Floats:
        """Return the share without the event at times; NaN nowhere, the last share after all."""
        steps = np.r_[1.0, self.survival]
        return steps[np.searchsorted(self.time_days, time_days, side="right")]


def kaplan_meier(event: ArrayLike, time_days: ArrayLike, level: float = 0.95) -> KaplanMeier:
    """Return the Kaplan-Meier curve with Greenwood's variance on the log-log scale.

    Parameters
    ----------
    event : array (n,)
        1 where the event was seen, 0 where the case was censored.
    time_days : array (n,)
        Time to the event or to censoring, 0 or more.
    level : float
        Coverage at each time. Where the share is 0 the interval is from 0 to that of the
        time before.

    Raises
    ------
    InputError
        If the arrays cannot be used.

    References
    ----------
    Kaplan and Meier 1958, doi:10.1080/01621459.1958.10501452.
    """
    z = float(special.ndtri(0.5 + check_level(level) / 2))
    seen, time = times(event, time_days)
    moments = np.unique(time[seen == 1])
    at_risk = time.size - np.searchsorted(np.sort(time), moments).astype(np.float64)
    dead = np.sort(time[seen == 1])
    count = np.searchsorted(dead, moments, side="right") - np.searchsorted(dead, moments)
    events = count.astype(np.float64)
    survival: Floats = np.asarray(np.cumprod(1 - events / at_risk), np.float64)
    last = survival <= 0
    left = np.where(last, 1.0, at_risk - events)
    greenwood = np.cumsum(np.where(last, 0.0, events / (at_risk * left)))
    inside = np.where(last, 0.5, survival)
    half = z * np.sqrt(greenwood) / np.abs(np.log(inside))
    low, high = inside ** np.exp(half), inside ** np.exp(-half)
    if last.any():
        low[-1], high[-1] = 0.0, high[-2] if high.size > 1 else 1.0
    return KaplanMeier(moments, at_risk, events, survival, low, high, time.size)


def concordance_ipcw(
    event: ArrayLike,
    time_days: ArrayLike,
    risk: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    tau_days: float | None = None,
) -> FloatOrRows:
    """Return Uno's concordance: the share of pairs in which the earlier event has more risk.

    Pairs whose earlier time is an event count with the square of its weight; equal risks
    count half, pairs of equal times do not count.

    Parameters
    ----------
    event, time_days : array (n,)
        As in `kaplan_meier`.
    risk : array (n,)
        Higher for an earlier event; any scale.
    weights : array (n,) or (R, n), optional
        Of cases, or of cases in each of R resamples; the censoring is estimated anew in each.
    tau_days : float, optional
        Events at this time and later do not count, for few are at risk late.

    Raises
    ------
    InputError
        If the arrays cannot be used or there is no pair to compare.

    References
    ----------
    Uno et al. 2011, doi:10.1002/sim.4154.
    """
    seen, time = times(event, time_days)
    score = column(risk, time.size, "the risk")
    rows, single = weight_rows(weights, time.size)
    first = (seen == 1) & (time < (np.inf if tau_days is None else tau_days))
    later = (time[first, None] < time).astype(np.float64)
    gap = score[first, None] - score
    right = later * ((gap > 0) + 0.5 * (gap == 0))
    before, _ = uncensored(seen, time, rows)
    weight = ratio(rows[:, first], before[:, first] ** 2)
    # a case without weight in a resample may lie where all of it is censored
    weight = np.where(rows[:, first] > 0, weight, 0.0)
    above = (weight * (rows @ right.T)).sum(axis=1)
    below = (weight * (rows @ later.T)).sum(axis=1)
    return finish(ratio(above, below), single, "no event comes before the time of another case")


def auroc_at(
    event: ArrayLike,
    time_days: ArrayLike,
    risk: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    at_days: float,
) -> FloatOrRows:
    """Return how well the risk separates cases with the event by a time from those without.

    The cumulative/dynamic area under the curve: events until `at_days`, by their weights,
    against all seen beyond it.

    Parameters
    ----------
    event, time_days, risk, weights
        As in `concordance_ipcw`.
    at_days : float
        The time.

    Raises
    ------
    InputError
        If the arrays cannot be used, or no event is seen until then or no case beyond.

    References
    ----------
    Uno et al. 2007, doi:10.1198/016214507000000149.
    """
    seen, time = times(event, time_days)
    rows, single = weight_rows(weights, time.size)
    before, _ = uncensored(seen, time, rows)
    early, late = (seen == 1) & (time <= at_days), time > at_days
    each = np.where(early & (rows > 0), ratio(rows, before), 0.0) + rows * late
    value = auroc(early.astype(np.float64), risk, each)
    return finish(value, single, "no event until this time, or no case seen beyond it")


def brier_ipcw(
    event: ArrayLike,
    time_days: ArrayLike,
    survival: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    at_days: float,
) -> FloatOrRows:
    """Return the Brier score of predicted shares without the event at a time.

    Parameters
    ----------
    event, time_days, weights
        As in `concordance_ipcw`.
    survival : array (n,)
        Predicted probability of no event until `at_days`.
    at_days : float
        The time.

    Raises
    ------
    InputError
        If the arrays cannot be used.

    References
    ----------
    Graf et al. 1999,
    doi:10.1002/(SICI)1097-0258(19990915/30)18:17/18<2529::AID-SIM274>3.0.CO;2-5.
    """
    seen, time = times(event, time_days)
    predicted = probabilities(survival, time.size, "the predicted share without the event")
    rows, single = weight_rows(weights, time.size)
    value = _brier_rows(seen, time, predicted[:, None], rows, np.array([float(at_days)]))
    return finish(value[:, 0], single, "all weights are 0")


def integrated_brier(
    event: ArrayLike,
    time_days: ArrayLike,
    survival: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    at_days: ArrayLike,
) -> FloatOrRows:
    """Return the mean of `brier_ipcw` from the first to the last time (trapezoids).

    Parameters
    ----------
    event, time_days, weights
        As in `concordance_ipcw`.
    survival : array (n, K)
        Predicted probability of no event until each time.
    at_days : array (K,)
        At least two rising times.

    Raises
    ------
    InputError
        If the arrays cannot be used.
    UsageError
        If the times do not rise.
    """
    seen, time = times(event, time_days)
    at = _rising(at_days)
    table = _table(survival, time.size, at)
    rows, single = weight_rows(weights, time.size)
    return finish(_integrated(seen, time, table, rows, at), single, "all weights are 0")


def scaled_integrated_brier(
    event: ArrayLike,
    time_days: ArrayLike,
    survival: ArrayLike,
    reference: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    at_days: ArrayLike,
) -> FloatOrRows:
    """Return 1 minus the integrated Brier score over that of a reference.

    0 is no better than the reference, 1 is perfect; below 0 is worse. With Kaplan-Meier's
    curve for everyone as the reference it is the index of prediction accuracy.

    Parameters
    ----------
    event, time_days, weights
        As in `concordance_ipcw`.
    survival, reference : array (n, K)
        Predicted probability of no event until each time, and that of the reference.
    at_days : array (K,)
        At least two rising times.

    Raises
    ------
    InputError, UsageError
        As `integrated_brier`.

    References
    ----------
    Kattan and Gerds 2018, doi:10.1186/s41512-018-0029-2.
    """
    seen, time = times(event, time_days)
    at = _rising(at_days)
    ours, other = _table(survival, time.size, at), _table(reference, time.size, at)
    rows, single = weight_rows(weights, time.size)
    above = _integrated(seen, time, ours, rows, at)
    value = 1 - ratio(above, _integrated(seen, time, other, rows, at))
    return finish(value, single, "the reference makes no error")


def survival_at(
    event: ArrayLike,
    time_days: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    at_days: float,
) -> FloatOrRows:
    """Return the Kaplan-Meier share without the event at a time.

    Parameters
    ----------
    event, time_days, weights
        As in `concordance_ipcw`.
    at_days : float
        The time.

    Raises
    ------
    InputError
        If the arrays cannot be used.
    """
    seen, time = times(event, time_days)
    rows, single = weight_rows(weights, time.size)
    value = survival_rows(seen, time, rows, np.array([float(at_days)]))
    return finish(value[:, 0], single, "all weights are 0")


def _rising(at_days: ArrayLike) -> Floats:
    at = np.atleast_1d(np.asarray(at_days, np.float64))
    if at.size < 2 or not (np.diff(at) > 0).all():
        raise UsageError("times to integrate over", expected="two or more that rise")
    return at


def _table(survival: ArrayLike, n: int, at: Floats) -> Floats:
    """Return predicted shares (n, K)."""
    table = np.asarray(survival, np.float64)
    if table.shape != (n, at.size):
        raise InputError(
            "predicted shares are a table of cases and times",
            expected=f"({n}, {at.size})",
            got=f"{table.shape}",
        )
    probabilities(table.ravel(), None, "the predicted share without the event")
    return table


def _integrated(seen: Floats, time: Floats, table: Floats, rows: Floats, at: Floats) -> Floats:
    area = np.trapezoid(_brier_rows(seen, time, table, rows, at), at, axis=1)
    return area / (at[-1] - at[0])


def _brier_rows(seen: Floats, time: Floats, table: Floats, rows: Floats, at: Floats) -> Floats:
    """Return the score (R, K) of shares (n, K) at times (K,)."""
    before, until = uncensored(seen, time, rows)
    weight = np.where(rows > 0, ratio(rows, before), 0.0) * seen
    total = rows.sum(axis=1)
    found = np.empty((len(rows), at.size))
    for k, t in enumerate(at):
        dead = np.where(time <= t, table[:, k] ** 2, 0.0)
        alive = np.where(time > t, (1 - table[:, k]) ** 2, 0.0)
        # the share not censored until t is that of the last time that is not beyond it
        known = np.where(time <= t, until, 1.0).min(axis=1)
        lives = rows @ alive
        found[:, k] = weight @ dead + np.where(lives > 0, ratio(lives, known), 0.0)
    return ratio(found, np.broadcast_to(total[:, None], found.shape))
