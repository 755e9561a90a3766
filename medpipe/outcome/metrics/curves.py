"""Points of the curves that a report draws: ROC with a band, and precision-recall."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medpipe.errors import InputError
from medpipe.outcome.metrics.bootstrap import weight_blocks
from medpipe.stats.arrays import Floats, binary, both_classes, column
from medpipe.stats.interval import check_level
from medpipe.stats.ranking import ONE_CLASS

__all__ = [
    "PrecisionRecallCurve",
    "RocBand",
    "RocCurve",
    "precision_recall_curve",
    "roc_band",
    "roc_curve",
]


class RocCurve(NamedTuple):
    """Points of the ROC curve, from (0, 0) to (1, 1).

    Attributes
    ----------
    false_positive_rate, sensitivity : array (T,)
    threshold : array (T,)
        Cases with this score or a higher one are called; the first is inf.
    """

    false_positive_rate: Floats
    sensitivity: Floats
    threshold: Floats


class PrecisionRecallCurve(NamedTuple):
    """Points of the precision-recall curve by falling threshold.

    Attributes
    ----------
    recall, precision, threshold : array (T,)
    """

    recall: Floats
    precision: Floats
    threshold: Floats


class RocBand(NamedTuple):
    """Pointwise interval of the sensitivity along the false-positive rate.

    Attributes
    ----------
    false_positive_rate, low, high : array (P,)
    """

    false_positive_rate: Floats
    low: Floats
    high: Floats


def roc_curve(outcome: ArrayLike, score: ArrayLike) -> RocCurve:
    """Return the ROC curve with a point for each distinct score.

    Raises
    ------
    InputError
        If the arrays cannot be used, or all cases have the same outcome.
    """
    events, others, threshold = _falling(outcome, score)
    if not events[-1] or not others[-1]:
        raise InputError(ONE_CLASS)
    return RocCurve(
        np.r_[0.0, others / others[-1]],
        np.r_[0.0, events / events[-1]],
        np.r_[np.inf, threshold],
    )


def precision_recall_curve(outcome: ArrayLike, score: ArrayLike) -> PrecisionRecallCurve:
    """Return the precision-recall curve with a point for each distinct score.

    Raises
    ------
    InputError
        If the arrays cannot be used, or no case has the event.
    """
    events, others, threshold = _falling(outcome, score)
    if not events[-1]:
        raise InputError("no case has the event: there is no precision")
    return PrecisionRecallCurve(events / events[-1], events / (events + others), threshold)


def _falling(outcome: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return events and others at or above each distinct score, falling, and the scores."""
    y = binary(outcome)
    s = column(score, y.size, "the score")
    order = np.argsort(-s, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(s[order]) != 0, True])
    events = y[order].cumsum()[last]
    return events, last + 1 - events, s[order][last]


def roc_band(
    outcome: ArrayLike,
    score: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    points: int = 101,
) -> RocBand:
    """Return the percentile interval of the sensitivity at each false-positive rate.

    Patients are resampled within the classes; the sensitivity of a resample is the largest
    at a false-positive rate no higher than asked.

    Parameters
    ----------
    outcome, score
        As in `roc_curve`.
    groups : array (n,), optional
        Patients.
    n, seed : int
        Resamples and their seed.
    points : int
        False-positive rates, from 0 to 1.

    Raises
    ------
    InputError
        As `roc_curve`.
    """
    check_level(level)
    y = binary(outcome)
    s = column(score, y.size, "the score")
    if not both_classes(y):
        raise InputError(ONE_CLASS)
    order = np.argsort(-s, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(s[order]) != 0, True])
    rates = np.linspace(0, 1, points)
    found = []
    for rows in weight_blocks(y, groups, n=n, seed=seed):
        events = (rows[:, order] * y[order]).cumsum(axis=1)[:, last]
        others = (rows[:, order] * (1 - y[order])).cumsum(axis=1)[:, last]
        for up, along in zip(events, others, strict=True):
            at = np.searchsorted(along / along[-1], rates + 1e-12, side="right")
            found.append(np.r_[0.0, up / up[-1]][at])
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return RocBand(rates, low, high)
