"""Proper scores of a probability: Brier, scaled Brier and log loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from medpipe.stats.arrays import (
    FloatOrRows,
    Floats,
    binary,
    finish,
    probabilities,
    ratio,
    weight_rows,
)

__all__ = ["brier", "log_loss", "scaled_brier"]

NO_WEIGHT = "all weights are 0"


def brier(
    outcome: ArrayLike, probability: ArrayLike, weights: ArrayLike | None = None
) -> FloatOrRows:
    """Return the mean square of probability minus outcome; 0 is perfect.

    Parameters
    ----------
    outcome : array (n,)
        0 or 1.
    probability : array (n,)
        Of outcome 1.
    weights : array (n,) or (R, n), optional
        Of cases, or of cases in each of R resamples.

    Returns
    -------
    float or array (R,)

    Raises
    ------
    InputError
        If the arrays cannot be used.
    """
    y, p, rows, single = _arrays(outcome, probability, weights)
    return finish(_mean((p - y) ** 2, rows), single, NO_WEIGHT)


def scaled_brier(
    outcome: ArrayLike, probability: ArrayLike, weights: ArrayLike | None = None
) -> FloatOrRows:
    """Return 1 minus the Brier score over that of the prevalence of the same cases.

    1 is perfect, 0 is no better than the prevalence, below 0 is worse.

    Parameters
    ----------
    outcome, probability, weights
        As in `brier`.

    Raises
    ------
    InputError
        If the arrays cannot be used, or all cases have the same outcome.
    """
    y, p, rows, single = _arrays(outcome, probability, weights)
    prevalence = _mean(y, rows)
    reference = prevalence * (1 - prevalence)
    share = ratio(_mean((p - y) ** 2, rows), np.where(reference > 1e-15, reference, 0.0))
    return finish(1 - share, single, "all cases have the same outcome: nothing to compare with")


def log_loss(
    outcome: ArrayLike, probability: ArrayLike, weights: ArrayLike | None = None
) -> FloatOrRows:
    """Return the mean negative logarithm of the probability given to what happened.

    A probability of exactly 0 or 1 is moved inside by 2.2e-16 (the spacing of float64 at 1),
    so that one wrong certainty costs 36 and not everything.

    Parameters
    ----------
    outcome, probability, weights
        As in `brier`.

    Raises
    ------
    InputError
        If the arrays cannot be used.
    """
    y, p, rows, single = _arrays(outcome, probability, weights)
    eps = np.finfo(np.float64).eps
    given = np.where(y == 1, p, 1 - p)
    return finish(_mean(-np.log(np.clip(given, eps, 1 - eps)), rows), single, NO_WEIGHT)


def _arrays(
    outcome: ArrayLike, probability: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats, bool]:
    y = binary(outcome)
    p = probabilities(probability, y.size)
    rows, single = weight_rows(weights, y.size)
    return y, p, rows, single


def _mean(values: Floats, rows: Floats) -> Floats:
    return ratio(rows @ values, rows.sum(axis=1))
