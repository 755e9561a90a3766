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
from medpipe.outcome.interval import check_level
from medpipe.outcome.metrics._arrays import (
    FloatOrRows,
    Floats,
    binary,
    column,
    finish,
    probabilities,
    ratio,
    weight_rows,
)
from medpipe.outcome.metrics.ranking import auroc

__all__ = [
    "KaplanMeier",
    "auroc_at",
    "brier_ipcw",
    "concordance_ipcw",
    "integrated_brier",
    "kaplan_meier",
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
    seen, time = _times(event, time_days)
    times = np.unique(time[seen == 1])
    at_risk = time.size - np.searchsorted(np.sort(time), times).astype(np.float64)
    dead = np.sort(time[seen == 1])
    count = np.searchsorted(dead, times, side="right") - np.searchsorted(dead, times)
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
    return KaplanMeier(times, at_risk, events, survival, low, high, time.size)


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
    seen, time = _times(event, time_days)
    score = column(risk, time.size, "the risk")
    rows, single = weight_rows(weights, time.size)
    first = (seen == 1) & (time < (np.inf if tau_days is None else tau_days))
    later = (time[first, None] < time).astype(np.float64)
    gap = score[first, None] - score
    right = later * ((gap > 0) + 0.5 * (gap == 0))
    before, _ = _uncensored(seen, time, rows)
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
    seen, time = _times(event, time_days)
    rows, single = weight_rows(weights, time.size)
    before, _ = _uncensored(seen, time, rows)
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
    seen, time = _times(event, time_days)
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
    seen, time = _times(event, time_days)
    at = np.atleast_1d(np.asarray(at_days, np.float64))
    if at.size < 2 or not (np.diff(at) > 0).all():
        raise UsageError("times to integrate over", expected="two or more that rise")
    table = np.asarray(survival, np.float64)
    if table.shape != (time.size, at.size):
        raise InputError(
            "predicted shares are a table of cases and times",
            expected=f"({time.size}, {at.size})",
            got=f"{table.shape}",
        )
    probabilities(table.ravel(), None, "the predicted share without the event")
    rows, single = weight_rows(weights, time.size)
    value = np.trapezoid(_brier_rows(seen, time, table, rows, at), at, axis=1)
    return finish(value / (at[-1] - at[0]), single, "all weights are 0")


def _times(event: ArrayLike, time_days: ArrayLike) -> tuple[Floats, Floats]:
    seen = binary(event, "the event")
    time = column(time_days, seen.size, "the time")
    if time.min() < 0:
        raise InputError("times are negative", got=f"{int((time < 0).sum())} of them")
    return seen, time


def _uncensored(seen: Floats, time: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Return the shares (R, n) that are not censored before and until the time of each case."""
    order = np.argsort(time, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(time[order]) > 0])
    ordered = rows[:, order]
    everyone = np.add.reduceat(ordered, starts, axis=1)
    censored = np.add.reduceat(ordered * (1 - seen[order]), starts, axis=1)
    later = everyone.sum(axis=1, keepdims=True) - everyone.cumsum(axis=1)
    # events come first: who may be censored is who remains after them
    at_risk = later + censored
    factor = 1 - np.divide(censored, at_risk, out=np.zeros_like(later), where=censored > 0)
    until = factor.cumprod(axis=1)
    before = np.concatenate([np.ones((len(rows), 1)), until[:, :-1]], axis=1)
    which = np.empty(time.size, np.int64)
    which[order] = np.searchsorted(starts, np.arange(time.size), side="right") - 1
    return before[:, which], until[:, which]


def _brier_rows(seen: Floats, time: Floats, table: Floats, rows: Floats, at: Floats) -> Floats:
    """Return the score (R, K) of shares (n, K) at times (K,)."""
    before, until = _uncensored(seen, time, rows)
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
