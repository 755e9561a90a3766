"""Decision curves: net benefit against calling all cases or none."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medpipe.errors import UsageError
from medpipe.outcome.metrics.bootstrap import weight_blocks
from medpipe.stats.arrays import Floats, binary, probabilities, weight_rows
from medpipe.stats.interval import check_level

__all__ = ["DecisionCurve", "decision_curve", "net_benefit", "net_benefit_all"]


class DecisionCurve(NamedTuple):
    """Net benefit along the threshold; that of calling nobody is 0 everywhere.

    Attributes
    ----------
    threshold, net_benefit, low, high, all_called : array (T,)
        The interval is of `net_benefit`; `all_called` is the benefit of calling everybody.
    n, events : int
    """

    threshold: Floats
    net_benefit: Floats
    low: Floats
    high: Floats
    all_called: Floats
    n: int
    events: int


def net_benefit(
    outcome: ArrayLike,
    probability: ArrayLike,
    thresholds: ArrayLike,
    weights: ArrayLike | None = None,
) -> Floats:
    """Return the net benefit of calling cases whose probability reaches a threshold.

    True positives less false positives at the odds of the threshold, per case.

    Parameters
    ----------
    outcome : array (n,)
        0 or 1.
    probability : array (n,)
        Of outcome 1.
    thresholds : array (T,) or float
        From 0 to below 1.
    weights : array (n,) or (R, n), optional
        Of cases, or of cases in each of R resamples.

    Returns
    -------
    array (T,) or (R, T)

    Raises
    ------
    InputError
        If the arrays cannot be used.
    UsageError
        For a threshold outside 0 to below 1.

    References
    ----------
    Vickers and Elkin 2006, doi:10.1177/0272989X06295361.
    """
    y = binary(outcome)
    p = probabilities(probability, y.size)
    t = _thresholds(thresholds)
    rows, single = weight_rows(weights, y.size)
    value = (p[:, None] >= t) * np.where(y[:, None] == 1, 1.0, -t / (1 - t))
    benefit = rows @ value / rows.sum(axis=1, keepdims=True)
    return benefit[0] if single else benefit


def net_benefit_all(outcome: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Return the net benefit of calling every case, (T,); of calling none it is 0.

    Raises
    ------
    InputError, UsageError
        As `net_benefit`.
    """
    y = binary(outcome)
    return net_benefit(y, np.ones(y.size), thresholds)


def _thresholds(thresholds: ArrayLike) -> Floats:
    t = np.atleast_1d(np.asarray(thresholds, np.float64))
    if not t.size or not ((t >= 0) & (t < 1)).all():
        raise UsageError("thresholds of a decision curve", expected="from 0 to below 1")
    return t


def decision_curve(
    outcome: ArrayLike,
    probability: ArrayLike,
    thresholds: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> DecisionCurve:
    """Return the net benefit along thresholds with a percentile interval.

    Patients are resampled without regard to the outcome, as the benefit depends on its
    frequency.

    Parameters
    ----------
    outcome, probability
        As in `net_benefit`.
    thresholds : array (T,), optional
        0.01 to 0.99 by default.
    groups : array (n,), optional
        Patients.
    n, seed : int
        Resamples and their seed.
    level : float
        Coverage at each threshold.

    Raises
    ------
    InputError, UsageError
        As `net_benefit`.
    """
    check_level(level)
    y = binary(outcome)
    t = np.linspace(0.01, 0.99, 99) if thresholds is None else _thresholds(thresholds)
    blocks = weight_blocks(y, groups, n=n, seed=seed, stratified=False)
    found = np.concatenate([net_benefit(y, probability, t, rows) for rows in blocks])
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    value, everyone = net_benefit(y, probability, t), net_benefit_all(y, t)
    return DecisionCurve(t, value, low, high, everyone, y.size, int(y.sum()))
