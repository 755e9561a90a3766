"""Logistic regression with one or two coefficients, for many rows of weights at once."""

from __future__ import annotations

import numpy as np

from medpipe.stats.arrays import Floats

__all__ = ["fit_logistic", "overlapping"]

STEPS = 60
HALVINGS = 30
TOLERANCE = 1e-11


def overlapping(outcome: Floats, x: Floats, rows: Floats) -> Floats:
    """Return which rows of weights have a finite slope of the outcome on x, bool (R,).

    The largest likelihood has one if both classes are there and neither lies wholly on one
    side of the other (Albert and Anderson 1984, doi:10.1093/biomet/71.1.1).
    """
    events, others = (rows > 0) & (outcome == 1), (rows > 0) & (outcome == 0)
    low_event = np.where(events, x, np.inf).min(axis=1)
    high_event = np.where(events, x, -np.inf).max(axis=1)
    low_other = np.where(others, x, np.inf).min(axis=1)
    high_other = np.where(others, x, -np.inf).max(axis=1)
    both = events.any(axis=1) & others.any(axis=1)
    return both & ~((low_event >= high_other) | (high_event <= low_other))


def fit_logistic(
    target: Floats, design: Floats, rows: Floats, offset: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """Return coefficients (R, K) of the largest likelihood and their covariance (R, K, K).

    Newton's method with halved steps. The caller sees to it that the largest likelihood has
    finite coefficients in each row.

    Parameters
    ----------
    target : array (n,)
        Between 0 and 1.
    design : array (n, K)
    rows : array (R, n)
        Weights.
    offset : array (n,) or float
        Part of the linear predictor that is given.
    """
    count, k = len(rows), design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(-1, k * k)
    beta = np.zeros((count, k))
    value, mean = _likelihood(target, beta @ design.T + offset, rows)
    for _ in range(STEPS):
        gradient = (rows * (target - mean)) @ design
        step = np.einsum("rij,rj->ri", _inverse(rows, mean, products, k), gradient)
        size = np.ones(count)
        for _ in range(HALVINGS):
            trial = beta + size[:, None] * step
            new, new_mean = _likelihood(target, trial @ design.T + offset, rows)
            # rounding must not keep a row from its last step
            worse = new < value - 1e-12 * (1 + np.abs(value))
            if not worse.any():
                break
            size[worse] /= 2
        moved = np.abs(trial - beta).max(initial=0.0)
        beta, value, mean = trial, new, new_mean
        if moved <= TOLERANCE * (1 + np.abs(beta).max(initial=0.0)):
            break
    return beta, _inverse(rows, mean, products, k)


def _likelihood(target: Floats, eta: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Return log likelihoods (R,) and means (R, n) of linear predictors (R, n)."""
    small = np.exp(-np.abs(eta))
    mean = np.where(eta >= 0, 1.0, small) / (1 + small)
    each = target * eta - np.maximum(eta, 0) - np.log1p(small)
    return (rows * each).sum(axis=1), mean


def _inverse(rows: Floats, mean: Floats, products: Floats, k: int) -> Floats:
    """Return the inverse of the information (R, K, K)."""
    information = (rows * mean * (1 - mean)) @ products
    square = information.reshape(-1, k, k)
    return np.linalg.pinv(square, hermitian=True).astype(np.float64, copy=False)
