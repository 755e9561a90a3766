"""Whether predicted times to an event mean what they say, and whether groups differ in them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from medpipe.errors import InputError
from medpipe.outcome.metrics._censoring import survival_rows, times, uncensored
from medpipe.outcome.metrics.calibration import calibration_slope
from medpipe.stats.arrays import (
    FloatOrRows,
    Floats,
    finish,
    group_numbers,
    probabilities,
    ratio,
    weight_rows,
)

__all__ = ["LogRank", "calibration_slope_at", "logrank", "observed_over_expected"]


class LogRank(NamedTuple):
    """A log-rank test.

    Attributes
    ----------
    statistic : float
    degrees : int
        Groups less one.
    p : float
    observed, expected : array (G,)
        Events of each group, and those that it would have if groups did not differ.
    """

    statistic: float
    degrees: int
    p: float
    observed: Floats
    expected: Floats


def observed_over_expected(
    event: ArrayLike,
    time_days: ArrayLike,
    survival: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    at_days: float,
) -> FloatOrRows:
    """Return the Kaplan-Meier share with the event by a time over the mean predicted one.

    1 is right on average; above 1 the event is more frequent than predicted.

    Parameters
    ----------
    event : array (n,)
        1 where the event was seen, 0 where the case was censored.
    time_days : array (n,)
        Time to the event or to censoring, 0 or more.
    survival : array (n,)
        Predicted probability of no event until `at_days`.
    weights : array (n,) or (R, n), optional
        Of cases, or of cases in each of R resamples.
    at_days : float
        The time.

    Raises
    ------
    InputError
        If the arrays cannot be used, or no event is expected.

    References
    ----------
    McLernon et al. 2023, doi:10.7326/M22-0844.
    """
    seen, time = times(event, time_days)
    risk = 1 - probabilities(survival, time.size, "the predicted share without the event")
    rows, single = weight_rows(weights, time.size)
    observed = 1 - survival_rows(seen, time, rows, np.array([float(at_days)]))[:, 0]
    expected = ratio(rows @ risk, rows.sum(axis=1))
    return finish(ratio(observed, expected), single, "no event is expected until this time")


def calibration_slope_at(
    event: ArrayLike,
    time_days: ArrayLike,
    survival: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    at_days: float,
) -> FloatOrRows:
    """Return the calibration slope of the probability of an event by a time.

    That of `medpipe.outcome.metrics.calibration.calibration_slope` among cases whose state at
    that time is known, each weighted by one over its probability of not being censored.

    Parameters
    ----------
    event, time_days, survival, weights, at_days
        As in `observed_over_expected`.

    Raises
    ------
    InputError
        If the arrays cannot be used, or there is no finite slope.
    """
    seen, time = times(event, time_days)
    risk = 1 - probabilities(survival, time.size, "the predicted share without the event")
    rows, single = weight_rows(weights, time.size)
    before, until = uncensored(seen, time, rows)
    early, late = (seen == 1) & (time <= at_days), time > at_days
    # the share not censored until the time is that of the last one that is not beyond it
    known = np.where(time <= at_days, until, 1.0).min(axis=1, keepdims=True)
    each = np.where(early, ratio(rows, before), 0.0) + np.where(late, ratio(rows, known), 0.0)
    each = np.where(rows > 0, each, 0.0)
    slopes = calibration_slope(early.astype(np.float64), risk, each)
    return finish(slopes, single, "one class or probability, or separated classes: no slope")


def logrank(
    event: ArrayLike,
    time_days: ArrayLike,
    groups: ArrayLike,
    patients: ArrayLike | None = None,
) -> LogRank:
    """Test whether groups differ in the time to the event.

    At each time with an event the events of a group are compared with its share of those at
    risk. The variance is the hypergeometric one; where `patients` are given it is that of the
    sums over the cases of each patient, which need not be independent.

    Parameters
    ----------
    event, time_days
        As in `observed_over_expected`.
    groups : array (n,)
        Two or more distinct values; ordered as they sort.
    patients : array (n,), optional

    Raises
    ------
    InputError
        If the arrays cannot be used, there is one group only, or no event can be compared.

    References
    ----------
    Mantel 1966, Cancer Chemotherapy Reports 50:163-170; for patients with several cases Lin
    and Wei 1989, doi:10.1080/01621459.1989.10478874.
    """
    seen, time = times(event, time_days)
    number = group_numbers(groups, time.size)
    members = np.eye(int(number.max()) + 1)[number]
    moments = np.unique(time[seen == 1])
    if members.shape[1] < 2 or not moments.size:
        raise InputError("no groups to compare", expected="two groups or more, and events")
    at_risk = (time >= moments[:, None]).astype(np.float64)
    dead = ((time == moments[:, None]) & (seen == 1)).astype(np.float64)
    of_group, n, d = at_risk @ members, at_risk.sum(axis=1), dead.sum(axis=1)
    share = of_group / n[:, None]
    observed, expected = (dead @ members).sum(axis=0), (d[:, None] * share).sum(axis=0)
    if patients is None:
        factor = d * ratio(n - d, n - 1)
        factor = np.where(n > 1, factor, 0.0)
        spread = np.diag(factor @ share) - share.T @ (factor[:, None] * share)
    else:
        # what each case adds to observed less expected
        hazard = at_risk * (d / n)[:, None]
        pushes = (dead - hazard).sum(axis=0)[:, None] * members - (dead - hazard).T @ share
        who = group_numbers(patients, time.size)
        sums = np.stack([np.bincount(who, push) for push in pushes.T])
        spread = sums @ sums.T
    statistic = _quadratic(observed - expected, spread)
    degrees = members.shape[1] - 1
    p = float(special.chdtrc(degrees, statistic))
    return LogRank(statistic, degrees, p, observed, expected)


def _quadratic(difference: Floats, spread: Floats) -> float:
    """Return d' V⁻¹ d without the last group, which follows from the others."""
    inner = spread[:-1, :-1]
    if np.linalg.matrix_rank(inner) < len(inner):
        raise InputError("groups are not at risk together: nothing can be compared")
    return float(difference[:-1] @ np.linalg.solve(inner, difference[:-1]))
