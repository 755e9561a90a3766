"""Shares without the event and without censoring, for many rows of weights at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import InputError
from medpipe.stats.arrays import Floats, binary, column

__all__ = ["survival_rows", "times", "uncensored"]


def times(event: ArrayLike, time_days: ArrayLike) -> tuple[Floats, Floats]:
    """Return events (0 or 1) and times as float64 (n,).

    Raises
    ------
    InputError
        If they cannot be used, or a time is negative.
    """
    seen = binary(event, "the event")
    time = column(time_days, seen.size, "the time")
    if time.min() < 0:
        raise InputError("times are negative", got=f"{int((time < 0).sum())} of them")
    return seen, time


def survival_rows(seen: Floats, time: Floats, rows: Floats, at: Floats) -> Floats:
    """Return Kaplan-Meier shares (R, K) without the event at times (K,), by rows of weights."""
    order, starts = _distinct(time)
    ordered = rows[:, order]
    everyone = np.add.reduceat(ordered, starts, axis=1)
    dead = np.add.reduceat(ordered * seen[order], starts, axis=1)
    at_risk = everyone.sum(axis=1, keepdims=True) - everyone.cumsum(axis=1) + everyone
    factor = 1 - np.divide(dead, at_risk, out=np.zeros_like(dead), where=dead > 0)
    through = np.concatenate([np.ones((len(rows), 1)), factor.cumprod(axis=1)], axis=1)
    return through[:, np.searchsorted(time[order][starts], at, side="right")]


def uncensored(seen: Floats, time: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Return the shares (R, n) that are not censored before and until the time of each case."""
    order, starts = _distinct(time)
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


def _distinct(time: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rising order, and where each distinct time starts in it."""
    order = np.argsort(time, kind="stable")
    return order, np.flatnonzero(np.r_[True, np.diff(time[order]) > 0])
