"""Whether probabilities mean what they say: slope, intercept, curves and errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from medpipe.errors import UsageError
from medpipe.outcome.metrics._logistic import fit_logistic, overlapping
from medpipe.outcome.metrics.shares import wilson
from medpipe.stats.arrays import (
    FloatOrRows,
    Floats,
    binary,
    both_classes,
    finish,
    probabilities,
    ratio,
    weight_rows,
)
from medpipe.stats.interval import Interval, check_level

__all__ = [
    "CalibrationCurve",
    "CalibrationLine",
    "calibration_curve",
    "calibration_intercept",
    "calibration_slope",
    "calibration_slope_intercept",
    "expected_calibration_error",
    "integrated_calibration_index",
    "smooth_calibration",
    "to_logit",
]

NEAREST = 1e-6
ONE_CLASS = "all cases have the same outcome: calibration is not determined"
CONSTANT = "all probabilities are the same: there is no slope"
SEPARATED = "events and others are separated by the probability: no finite slope"


class CalibrationLine(NamedTuple):
    """Slope of the recalibration, and intercept where the slope is held at 1."""

    slope: Interval
    intercept: Interval


class CalibrationCurve(NamedTuple):
    """Observed shares of the event against probabilities.

    Attributes
    ----------
    probability, observed, low, high : array (B,)
        Mean probability and share of the event of each bin, or probabilities and the smooth
        share there, with the interval of the share.
    n, events : array (B,)
        Cases and events in each bin; of a smooth curve the effective number of cases and of
        events behind each point.
    """

    probability: Floats
    observed: Floats
    low: Floats
    high: Floats
    n: Floats
    events: Floats


def to_logit(probability: ArrayLike) -> Floats:
    """Return log odds; probabilities are first moved to 1e-6 .. 1 - 1e-6."""
    return special.logit(np.clip(np.asarray(probability, np.float64), NEAREST, 1 - NEAREST))


def calibration_slope_intercept(
    outcome: ArrayLike, probability: ArrayLike, level: float = 0.95
) -> CalibrationLine:
    """Return calibration slope and calibration-in-the-large with Wald intervals.

    The slope is the coefficient of the log odds in a logistic regression of the outcome on
    them (1: spread right; below 1: too extreme). The intercept is that of the regression
    with the slope held at 1 (0: right on average; above 0: the event is more frequent than
    predicted).

    Parameters
    ----------
    outcome : array (n,)
        0 or 1.
    probability : array (n,)
        Of outcome 1. Probabilities nearer than 1e-6 to 0 or 1 are moved there, with a note.
    level : float
        Coverage of the intervals.

    Returns
    -------
    CalibrationLine
        A figure without a value and with a note where it is not determined: one class only,
        one probability only (slope), or classes that do not overlap (slope).

    Raises
    ------
    InputError
        If the arrays cannot be used.

    References
    ----------
    Cox 1958, doi:10.1093/biomet/45.3-4.562; Van Calster et al. 2019,
    doi:10.1186/s12916-019-1466-7.
    """
    z = float(special.ndtri(0.5 + check_level(level) / 2))
    y = binary(outcome)
    p = probabilities(probability, y.size)
    x = to_logit(p)
    moved = int(((p < NEAREST) | (p > 1 - NEAREST)).sum())
    note = f"{moved} probabilities were moved to 1e-6 from 0 or 1" if moved else ""

    def figure(value: float, variance: float) -> Interval:
        half = z * variance**0.5
        ends = (value - half, value + half)
        return Interval(value, *ends, y.size, int(y.sum()), "Wald", level, variance**0.5, note)

    def none(why: str) -> Interval:
        return Interval(None, None, None, y.size, int(y.sum()), "Wald", level, None, why)

    if not both_classes(y):
        return CalibrationLine(none(ONE_CLASS), none(ONE_CLASS))
    ones = np.ones((1, y.size))
    beta, covariance = fit_logistic(y, ones.T, ones, x)
    intercept = figure(float(beta[0, 0]), float(covariance[0, 0, 0]))
    if x.min() == x.max():
        return CalibrationLine(none(CONSTANT), intercept)
    if not overlapping(y, x, ones)[0]:
        return CalibrationLine(none(SEPARATED), intercept)
    beta, covariance = fit_logistic(y, np.stack([ones[0], x], axis=1), ones)
    return CalibrationLine(figure(float(beta[0, 1]), float(covariance[0, 1, 1])), intercept)


def calibration_slope(
    outcome: ArrayLike, probability: ArrayLike, weights: ArrayLike | None = None
) -> FloatOrRows:
    """Return the calibration slope, see `calibration_slope_intercept`.

    Parameters
    ----------
    weights : array (n,) or (R, n), optional
        Of cases, or of cases in each of R resamples; NaN in a row that has no finite slope.

    Raises
    ------
    InputError
        If the arrays cannot be used or there is no finite slope.
    """
    y, x, rows, single = _logits(outcome, probability, weights)
    usable = overlapping(y, x, rows)
    values = np.full(len(rows), np.nan)
    if usable.any():
        design = np.stack([np.ones_like(x), x], axis=1)
        values[usable] = fit_logistic(y, design, rows[usable])[0][:, 1]
    return finish(values, single, "one class or probability, or separated classes: no slope")


def calibration_intercept(
    outcome: ArrayLike, probability: ArrayLike, weights: ArrayLike | None = None
) -> FloatOrRows:
    """Return calibration-in-the-large (slope held at 1), see `calibration_slope_intercept`.

    Parameters
    ----------
    weights : array (n,) or (R, n), optional
        As in `calibration_slope`.

    Raises
    ------
    InputError
        If the arrays cannot be used or all cases have the same outcome.
    """
    y, x, rows, single = _logits(outcome, probability, weights)
    usable = (rows @ y > 0) & (rows @ (1 - y) > 0)
    values = np.full(len(rows), np.nan)
    if usable.any():
        design = np.ones((x.size, 1))
        values[usable] = fit_logistic(y, design, rows[usable], x)[0][:, 0]
    return finish(values, single, ONE_CLASS)


def _logits(
    outcome: ArrayLike, probability: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats, bool]:
    y = binary(outcome)
    x = to_logit(probabilities(probability, y.size))
    rows, single = weight_rows(weights, y.size)
    return y, x, rows, single


def calibration_curve(
    outcome: ArrayLike, probability: ArrayLike, bins: int = 10, level: float = 0.95
) -> CalibrationCurve:
    """Return the share of the event in bins of equally many cases, with Wilson intervals.

    Parameters
    ----------
    outcome, probability
        As in `calibration_slope_intercept`.
    bins : int
        Quantiles of the probability; equal probabilities share a bin, so there may be fewer.

    Raises
    ------
    InputError
        If the arrays cannot be used.
    UsageError
        For less than one bin.
    """
    y = binary(outcome)
    p = probabilities(probability, y.size)
    which = _bins(p, bins)
    n = np.bincount(which).astype(np.float64)
    events = np.bincount(which, y).astype(np.float64)
    low, high = wilson(events, n, level)
    return CalibrationCurve(np.bincount(which, p) / n, events / n, low, high, n, events)


def _bins(probability: Floats, bins: int) -> NDArray[np.int64]:
    """Return the bin of each case, 0 to the number of bins that are not empty - 1."""
    if bins < 1:
        raise UsageError("a curve needs bins", expected="1 or more", got=str(bins))
    inner = np.quantile(probability, np.linspace(0, 1, bins + 1))[1:-1]
    which = np.searchsorted(inner, probability)
    return np.unique(which, return_inverse=True)[1].astype(np.int64)


def expected_calibration_error(
    outcome: ArrayLike,
    probability: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    bins: int = 10,
) -> FloatOrRows:
    """Return the mean distance of probability and share of the event over adaptive bins.

    Bins of equally many cases, as in `calibration_curve`; in resamples they stay those of
    all cases. Few cases make it too large: perfect probabilities have about
    0.8 sqrt(p (1 - p) bins / n), not 0.

    Parameters
    ----------
    outcome, probability
        As in `calibration_slope_intercept`.
    weights : array (n,) or (R, n), optional
        Of cases, or of cases in each of R resamples.

    References
    ----------
    Nixon et al. 2019, arXiv:1904.01685.
    """
    y = binary(outcome)
    p = probabilities(probability, y.size)
    rows, single = weight_rows(weights, y.size)
    which = _bins(p, bins)
    gaps = np.zeros((y.size, int(which.max()) + 1))
    gaps[np.arange(y.size), which] = p - y
    total = np.abs(rows @ gaps).sum(axis=1)
    return finish(ratio(total, rows.sum(axis=1)), single, "all weights are 0")


def smooth_calibration(
    outcome: ArrayLike,
    probability: ArrayLike,
    at: ArrayLike | None = None,
    *,
    span: float = 0.75,
    level: float = 0.95,
) -> CalibrationCurve:
    """Return the share of the event as a smooth function of the probability (loess).

    At each point a line through the nearest `span` of the cases, with tricube weights. The
    interval is Wilson's with the effective number of cases behind the point.

    Parameters
    ----------
    outcome, probability
        As in `calibration_slope_intercept`.
    at : array (B,), optional
        Probabilities to smooth at; 101 from the smallest to the largest that occurs.
    span : float
        Share of the cases that a line is fitted to.
    level : float
        Coverage at each point.

    Raises
    ------
    InputError
        If the arrays cannot be used.
    UsageError
        For a span outside 0..1.

    References
    ----------
    Cleveland 1979, doi:10.1080/01621459.1979.10481038.
    """
    y = binary(outcome)
    p = probabilities(probability, y.size)
    points = (
        np.linspace(p.min(), p.max(), 101)
        if at is None
        else probabilities(at, None, "the points of the curve")
    )
    observed, cases = _loess(y, p, points, span)
    low, high = wilson(observed * cases, cases, level)
    return CalibrationCurve(points, observed, low, high, cases, observed * cases)


def integrated_calibration_index(
    outcome: ArrayLike, probability: ArrayLike, *, span: float = 0.75
) -> float:
    """Return the mean distance of the probabilities from the smooth curve.

    Raises
    ------
    InputError, UsageError
        As `smooth_calibration`.

    References
    ----------
    Austin and Steyerberg 2019, doi:10.1002/sim.8281.
    """
    y = binary(outcome)
    p = probabilities(probability, y.size)
    return float(np.abs(_loess(y, p, p, span)[0] - p).mean())


def _loess(y: Floats, p: Floats, points: Floats, span: float) -> tuple[Floats, Floats]:
    """Return the smooth share of the event at points (B,), and effective cases (B,)."""
    if not 0 < span <= 1:
        raise UsageError("the span of a curve is a share of the cases", got=f"{span:g}")
    near = min(max(int(np.ceil(span * p.size)), 3), p.size)
    # blocks keep the table of points by cases small
    block = max(1, 2_000_000 // p.size)
    parts = [_lines(y, p, points[i : i + block], near) for i in range(0, points.size, block)]
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def _lines(y: Floats, p: Floats, points: Floats, near: int) -> tuple[Floats, Floats]:
    away = p - points[:, None]
    reach = np.partition(np.abs(away), near - 1, axis=1)[:, near - 1 : near]
    # the farthest of the near cases keeps a weight, and ties at a point are not divided by 0
    share = np.abs(away) / np.maximum(reach * (1 + 1e-6), 1e-12)
    weights = np.where(share < 1, (1 - np.minimum(share, 1) ** 3) ** 3, 0.0)
    moments = [(weights * away**k).sum(axis=1, keepdims=True) for k in range(3)]
    spread = moments[0] * moments[2] - moments[1] ** 2
    flat = spread <= 1e-12 * moments[0] * np.maximum(moments[2], 1e-12)
    line = weights * (moments[2] - moments[1] * away) / np.where(flat, 1.0, spread)
    smoother = np.where(flat, weights / moments[0], line)
    observed = np.clip(smoother @ y, 0.0, 1.0)
    return observed, 1 / (smoother**2).sum(axis=1)
