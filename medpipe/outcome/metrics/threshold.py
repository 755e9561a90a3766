"""Measures of a decision: call a case where its probability reaches a threshold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medpipe.errors import InputError, UsageError
from medpipe.outcome.metrics.shares import proportion
from medpipe.stats.arrays import (
    FloatOrRows,
    Floats,
    binary,
    both_classes,
    column,
    finish,
    ratio,
    weight_rows,
)
from medpipe.stats.interval import Interval

__all__ = [
    "Confusion",
    "accuracy",
    "balanced_accuracy",
    "confusion",
    "f1",
    "npv",
    "operating_point",
    "ppv",
    "sensitivity",
    "specificity",
    "threshold_at",
]

NO_EVENT = "no case has the event"
ALL_EVENTS = "all cases have the event"
NONE_CALLED = "no case reaches the threshold"
ALL_CALLED = "all cases reach the threshold"
NO_F1 = "no case is of this class or called so"


class Confusion(NamedTuple):
    """Cases by outcome and call; of resamples each is an array (R,)."""

    true_positive: FloatOrRows
    false_negative: FloatOrRows
    false_positive: FloatOrRows
    true_negative: FloatOrRows


def _confusion(
    outcome: ArrayLike, score: ArrayLike, threshold: float, weights: ArrayLike | None
) -> tuple[Confusion, bool]:
    y = binary(outcome)
    called = column(score, y.size, "the score") >= threshold
    if not np.isfinite(threshold):
        raise UsageError("a threshold is a finite number", got=f"{threshold}")
    rows, single = weight_rows(weights, y.size)
    tp, positive, events = rows @ (called * y), rows @ called.astype(float), rows @ y
    fn, fp = events - tp, positive - tp
    return Confusion(tp, fn, fp, rows.sum(axis=1) - tp - fn - fp), single


def confusion(
    outcome: ArrayLike,
    score: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> Confusion:
    """Return the table of outcome and call.

    Parameters
    ----------
    outcome : array (n,)
        0 or 1.
    score : array (n,)
        Probability of 1, or any score on the scale of the threshold.
    threshold : float
        A case is called where its score is this or higher.
    weights : array (n,) or (R, n), optional
        Of cases, or of cases in each of R resamples.

    Raises
    ------
    InputError
        If the arrays cannot be used.
    UsageError
        For a threshold that is not finite.
    """
    table, single = _confusion(outcome, score, threshold, weights)
    return Confusion(*(float(c[0]) for c in table)) if single else table


def sensitivity(
    outcome: ArrayLike,
    score: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> FloatOrRows:
    """Return the share of cases with the event that are called (see `confusion`).

    Raises
    ------
    InputError
        If no case has the event.
    """
    t, single = _confusion(outcome, score, threshold, weights)
    share = ratio(t.true_positive, t.true_positive + t.false_negative)
    return finish(share, single, NO_EVENT)


def specificity(
    outcome: ArrayLike,
    score: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> FloatOrRows:
    """Return the share of cases without the event that are not called (see `confusion`).

    Raises
    ------
    InputError
        If all cases have the event.
    """
    t, single = _confusion(outcome, score, threshold, weights)
    share = ratio(t.true_negative, t.true_negative + t.false_positive)
    return finish(share, single, ALL_EVENTS)


def ppv(
    outcome: ArrayLike,
    score: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> FloatOrRows:
    """Return the share of called cases that have the event (see `confusion`).

    Raises
    ------
    InputError
        If no case is called.
    """
    t, single = _confusion(outcome, score, threshold, weights)
    share = ratio(t.true_positive, t.true_positive + t.false_positive)
    return finish(share, single, NONE_CALLED)


def npv(
    outcome: ArrayLike,
    score: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> FloatOrRows:
    """Return the share of cases not called that do not have the event (see `confusion`).

    Raises
    ------
    InputError
        If all cases are called.
    """
    t, single = _confusion(outcome, score, threshold, weights)
    share = ratio(t.true_negative, t.true_negative + t.false_negative)
    return finish(share, single, ALL_CALLED)


def accuracy(
    outcome: ArrayLike,
    score: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> FloatOrRows:
    """Return the share of cases called rightly (see `confusion`)."""
    t, single = _confusion(outcome, score, threshold, weights)
    share = ratio(t.true_positive + t.true_negative, np.sum(t, axis=0))
    return finish(share, single, "all weights are 0")


def balanced_accuracy(
    outcome: ArrayLike,
    score: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> FloatOrRows:
    """Return the mean of sensitivity and specificity (see `confusion`).

    Raises
    ------
    InputError
        If all cases have the same outcome.
    """
    t, single = _confusion(outcome, score, threshold, weights)
    found = ratio(t.true_positive, t.true_positive + t.false_negative)
    spared = ratio(t.true_negative, t.true_negative + t.false_positive)
    return finish((found + spared) / 2, single, "all cases have the same outcome")


def f1(
    outcome: ArrayLike,
    score: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
    *,
    label: int = 1,
) -> FloatOrRows:
    """Return the F1 score of one class (see `confusion`).

    Parameters
    ----------
    label : {1, 0}
        The class whose precision and recall are taken.

    Raises
    ------
    InputError
        If no case is or was called this class.
    UsageError
        For another class.
    """
    if label not in (0, 1):
        raise UsageError("unknown class", expected="0 or 1", got=repr(label))
    t, single = _confusion(outcome, score, threshold, weights)
    right = t.true_positive if label else t.true_negative
    wrong = t.false_positive + t.false_negative
    return finish(ratio(2 * right, 2 * right + wrong), single, NO_F1)


def operating_point(
    outcome: ArrayLike, score: ArrayLike, threshold: float, level: float = 0.95
) -> dict[str, Interval]:
    """Return all measures at a threshold with their intervals.

    The intervals are Wilson's, which take cases as independent; of several cases for a
    patient use `medpipe.outcome.metrics.bootstrap.bootstrap`. That of F1 is Wilson's for the
    share of hits among the cases that are of the class or called so, turned into F1.

    Parameters
    ----------
    outcome, score, threshold
        As in `confusion`.
    level : float
        Coverage of the intervals.

    Returns
    -------
    dict
        "sensitivity", "specificity", "ppv", "npv", "accuracy", "f1_event" and "f1_other";
        `n` of each is the number of cases that it is a share of. One that is not determined
        has no value, and a note.

    Raises
    ------
    InputError, UsageError
        As `confusion`.
    """
    tp, fn, fp, tn = (round(c) for c in confusion(outcome, score, threshold))
    events = tp + fn

    def share(part: int, whole: int, empty: str) -> Interval:
        return proportion(part, whole, events=events, level=level, empty=empty)

    return {
        "sensitivity": share(tp, events, NO_EVENT),
        "specificity": share(tn, tn + fp, ALL_EVENTS),
        "ppv": share(tp, tp + fp, NONE_CALLED),
        "npv": share(tn, tn + fn, ALL_CALLED),
        "accuracy": share(tp + tn, tp + fn + fp + tn, ""),
        "f1_event": _f1_of_hits(share(tp, tp + fp + fn, NO_F1)),
        "f1_other": _f1_of_hits(share(tn, tn + fp + fn, NO_F1)),
    }


def _f1_of_hits(hits: Interval) -> Interval:
    """Return F1 of the share of hits J: 2 J / (1 + J), which rises with it."""
    if hits.value is None or hits.low is None or hits.high is None:
        return hits
    value, low, high = (2 * j / (1 + j) for j in (hits.value, hits.low, hits.high))
    method = "Wilson of the share of hits"
    return Interval(value, low, high, hits.n, hits.events, method, hits.level)


def threshold_at(
    outcome: ArrayLike,
    score: ArrayLike,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
    youden: bool = False,
) -> float:
    """Choose the threshold with a stated sensitivity or specificity, or Youden's.

    Choose it on other cases than those it is judged on.

    Parameters
    ----------
    outcome, score
        As in `confusion`.
    sensitivity : float, optional
        The highest score of a case at which the sensitivity is at least this.
    specificity : float, optional
        The lowest score of a case at which the specificity is at least this; just above the
        highest score if it takes calling nobody.
    youden : bool
        The score of a case with the largest sum of both; of several the lowest.

    Raises
    ------
    InputError
        If the arrays cannot be used, or all cases have the same outcome.
    UsageError
        Unless exactly one of the three is asked for, within 0..1.

    References
    ----------
    Youden 1950, doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3.
    """
    if (sensitivity is not None) + (specificity is not None) + bool(youden) != 1:
        raise UsageError("a threshold needs one aim", expected="sensitivity, specificity or youden")
    for aim in (sensitivity, specificity):
        if aim is not None and not 0 <= aim <= 1:
            raise UsageError("the aim of a threshold is a share", got=f"{aim:g}")
    y = binary(outcome)
    s = column(score, y.size, "the score")
    if not both_classes(y):
        raise InputError("all cases have the same outcome: no threshold can be chosen")
    choices = np.unique(s)
    found = _share_at_least(s[y == 1], choices)
    spared = 1 - _share_at_least(s[y == 0], choices)
    # shares are sums of 1/n: an aim of 0.9 is met by 9 of 10
    if sensitivity is not None:
        return float(choices[found >= sensitivity - 1e-12][-1])
    if specificity is not None:
        enough = choices[spared >= specificity - 1e-12]
        return float(enough[0]) if enough.size else float(np.nextafter(choices[-1], np.inf))
    return float(choices[np.argmax(np.round(found + spared, 12))])


def _share_at_least(values: Floats, choices: Floats) -> Floats:
    """Return the share of values that reach each choice."""
    return 1 - np.searchsorted(np.sort(values), choices) / values.size
