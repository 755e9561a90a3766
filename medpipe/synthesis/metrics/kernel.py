"""Kernel distance between features of real and synthetic cases (KID)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from medpipe.errors import UsageError
from medpipe.stats.interval import Interval, check_level
from medpipe.synthesis.metrics._figures import (
    Floats,
    bootstrapped,
    check_count,
    figure,
    pair_of,
    to_host,
)
from medpipe.synthesis.metrics.floor import WithFloor, draw_halves, floor_figure

__all__ = ["kid", "kid_subsets", "polynomial_mmd"]


def kid(
    real: torch.Tensor | ArrayLike,
    synthetic: torch.Tensor | ArrayLike,
    *,
    resamples: int = 1000,
    splits: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> WithFloor:
    """Return the kernel distance of all cases, with the floor of real halves.

    The squared maximum mean discrepancy of the kernel (x·y/d + 1)³, unbiased for any number
    of cases: it may be negative, and of two sets of one distribution its mean is 0. Values of
    different feature networks do not compare.

    Parameters
    ----------
    real, synthetic : Tensor or array, shape (n, d) and (m, d)
        Features of one network, of four or more cases each.
    resamples, splits, seed : int
        Bootstrap resamples of the interval, random halves of the floor, and their seed. A
        case that is drawn twice is never compared with itself.
    level : float
        Coverage. Where both sets are alike the interval is wider than that.

    Raises
    ------
    InputError
        If the features cannot be compared.
    UsageError
        For a level outside 0..1 or too few resamples or splits.

    References
    ----------
    Bińkowski et al. 2018, arXiv:1801.01401; Gretton et al. 2012 (JMLR 13:723).
    """
    check_level(level)
    a, b = pair_of(real, synthetic)
    n, m = len(a), len(b)
    kernel = _kernel_matrix(torch.cat([a, b]))

    def statistic(x: Any, y: Any, axis: int) -> Floats:
        return _mmd_of_counts(kernel, _counts(x, n + m), _counts(y, n + m))

    value = bootstrapped(
        (np.arange(n), np.arange(n, n + m)), statistic, resamples=resamples, seed=seed, level=level
    )
    halves = draw_halves(n, m, splits, seed)
    floors = _mmd_of_counts(kernel, _counts(halves.first, n + m), _counts(halves.second, n + m))
    return WithFloor(value, floor_figure(floors, halves.first.shape[1], level))


def kid_subsets(
    real: torch.Tensor | ArrayLike,
    synthetic: torch.Tensor | ArrayLike,
    *,
    size: int,
    subsets: int = 100,
    seed: int = 0,
) -> Interval:
    """Return the kernel distance as it is published: the mean over subsets of both sets.

    Parameters
    ----------
    real, synthetic
        As in `kid`.
    size, subsets, seed : int
        Cases of a subset (drawn without replacement), subsets, and their seed.

    Returns
    -------
    Interval
        Without ends: `se` is the standard deviation between the subsets, which is what is
        published beside the mean, and no error of it.

    Raises
    ------
    InputError
        If the features cannot be compared.
    UsageError
        If the subsets are larger than a set or there are less than two.
    """
    a, b = pair_of(real, synthetic)
    n, m = len(a), len(b)
    check_count(subsets, "subsets", 2)
    if not 2 <= size <= min(n, m):
        raise UsageError(
            "subsets do not fit both sets", expected=f"2 to {min(n, m)} cases", got=str(size)
        )
    kernel = _kernel_matrix(torch.cat([a, b]))
    generator = np.random.default_rng(seed)
    x = generator.permuted(np.tile(np.arange(n), (subsets, 1)), axis=1)[:, :size]
    y = generator.permuted(np.tile(np.arange(n, n + m), (subsets, 1)), axis=1)[:, :size]
    values = _mmd_of_counts(kernel, _counts(x, n + m), _counts(y, n + m))
    method = f"mean of {subsets} subsets of {size}; se is their standard deviation"
    return figure(values.mean(), n + m, method, se=values.std(ddof=1))


def polynomial_mmd(real: torch.Tensor | ArrayLike, synthetic: torch.Tensor | ArrayLike) -> float:
    """Return the unbiased squared discrepancy of `kid` alone.

    Raises
    ------
    InputError
        If the features cannot be compared.
    """
    a, b = pair_of(real, synthetic, least=2)
    n, m = len(a), len(b)
    kernel = _kernel_matrix(torch.cat([a, b]))
    x, y = np.arange(n)[None], np.arange(n, n + m)[None]
    return float(_mmd_of_counts(kernel, _counts(x, n + m), _counts(y, n + m))[0])


def _kernel_matrix(features: torch.Tensor) -> Floats:
    """Return (x·y/d + 1)³ of all pairs."""
    return to_host((features @ features.T / features.shape[1] + 1) ** 3)


def _counts(cases: Any, n: int) -> Floats:
    """Return how often each of n cases is in each row (..., n) of indices."""
    rows = np.asarray(cases, np.int64)
    flat = rows.reshape(-1, rows.shape[-1])
    places = (flat + n * np.arange(len(flat))[:, None]).ravel()
    counts = np.bincount(places, minlength=len(flat) * n).astype(np.float64)
    return counts.reshape(*rows.shape[:-1], n)


def _mmd_of_counts(kernel: Floats, x: Floats, y: Floats) -> Floats:
    """Return the unbiased discrepancy of cases counted in rows (..., n) of two sets.

    Pairs of one case with itself are left out, however often it was drawn.
    """
    diagonal = np.diagonal(kernel)

    def within(w: Floats) -> Floats:
        total = ((w @ kernel) * w).sum(axis=-1) - (w**2 * diagonal).sum(axis=-1)
        return total / (w.sum(axis=-1) ** 2 - (w**2).sum(axis=-1))

    between = ((x @ kernel) * y).sum(axis=-1) / (x.sum(axis=-1) * y.sum(axis=-1))
    return within(x) + within(y) - 2 * between
