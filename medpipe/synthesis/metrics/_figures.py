"""What the measures share: arrays that are checked, figures with their intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from medpipe.errors import InputError, UsageError
from medpipe.stats.interval import Interval, check_level

__all__ = [
    "Floats",
    "bootstrapped",
    "check_count",
    "column",
    "exact_share",
    "features_of",
    "figure",
    "flat",
    "median_figure",
    "pair_of",
    "same_names",
    "symmetric",
    "to_host",
]

Floats = NDArray[np.float64]
RESAMPLED = 4_000_000
"""Values that one batch of resamples holds: 32 MB."""


def to_host(values: torch.Tensor) -> Floats:
    """Return a tensor as a float64 array of the host."""
    return values.detach().to("cpu", torch.float64).numpy()


def flat(values: torch.Tensor | ArrayLike, name: str, least: int = 2) -> torch.Tensor:
    """Return one row for each case (n, d), as a view where that is possible.

    Raises
    ------
    InputError
        If there are less than `least` cases, no values, or some are not finite.
    """
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} are no numbers") from None
    if tensor.is_complex() or tensor.ndim < 2 or tensor.shape[1:].numel() == 0:
        raise InputError(
            f"{name} need one row of real numbers for each case",
            expected="shape (n, ...)",
            got=f"shape {tuple(tensor.shape)}",
        )
    if len(tensor) < least:
        raise InputError(
            f"{name} have too few cases", expected=f"{least} or more", got=str(len(tensor))
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name} have values that are missing or infinite")
    return tensor.flatten(1)


def features_of(values: torch.Tensor | ArrayLike, name: str, least: int = 2) -> torch.Tensor:
    """Return features as float64 (n, d) on their device (see `flat`)."""
    return flat(values, name, least).to(torch.float64)


def pair_of(
    real: torch.Tensor | ArrayLike, synthetic: torch.Tensor | ArrayLike, least: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features of both sets, of one width and on one device.

    Raises
    ------
    InputError
        As `features_of`, or if their widths differ.
    """
    a = features_of(real, "the real features", least)
    b = features_of(synthetic, "the synthetic features", least).to(a.device)
    if a.shape[1] != b.shape[1]:
        raise InputError(
            "both sets need features of one network",
            expected=f"{a.shape[1]} for each case",
            got=str(b.shape[1]),
        )
    return a, b


def column(values: Any, name: str, n: int | None = None, least: int = 2) -> Floats:
    """Return finite numbers as float64 (n,).

    Raises
    ------
    InputError
        If there are less than `least`, another count than `n`, or some are not finite.
    """
    try:
        array = to_host(values) if isinstance(values, torch.Tensor) else np.asarray(values, float)
    except (TypeError, ValueError):
        raise InputError(f"{name} has values that are no numbers") from None
    if array.ndim != 1 or not np.isfinite(array).all():
        raise InputError(
            f"{name} is one row of finite numbers", got=f"shape {array.shape} or missing values"
        )
    if array.size < least or (n is not None and array.size != n):
        wanted = f"{least} or more" if n is None else str(n)
        raise InputError(f"{name} has another count", expected=wanted, got=str(array.size))
    return array


def same_names(first: Mapping[str, Any], second: Mapping[str, Any], what: str) -> list[str]:
    """Return the names of two tables, in the order of the first.

    Raises
    ------
    InputError
        If they differ, or there are none.
    """
    if not first or set(first) != set(second):
        raise InputError(
            f"both sets need the same {what}",
            expected=", ".join(sorted(first)) or "one or more",
            got=", ".join(sorted(second)) or "none",
        )
    return list(first)


def check_count(value: int, what: str, least: int = 1) -> int:
    """Return a count.

    Raises
    ------
    UsageError
        If it is below `least`.
    """
    if value < least:
        raise UsageError(f"too few {what}", expected=f"{least} or more", got=str(value))
    return int(value)


def figure(
    value: float | None,
    n: int,
    method: str,
    *,
    low: float | None = None,
    high: float | None = None,
    level: float = 0.95,
    se: float | None = None,
    note: str = "",
) -> Interval:
    """Return a figure; numbers that are not finite become None."""

    def number(x: float | None) -> float | None:
        return float(x) if x is not None and np.isfinite(x) else None

    ends = (number(low), number(high))
    return Interval(number(value), *ends, n, None, method, level, number(se), note)


def symmetric(
    value: float,
    se: float,
    n: int,
    method: str,
    *,
    level: float,
    df: float = np.inf,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    note: str = "",
) -> Interval:
    """Return a figure with the interval of Student's t, or of the normal, cut at `bounds`."""
    half = float(stats.t.ppf(0.5 + check_level(level) / 2, df)) * se
    low, high = max(value - half, bounds[0]), min(value + half, bounds[1])
    return figure(value, n, method, low=low, high=high, level=level, se=se, note=note)


def bootstrapped(
    samples: Sequence[NDArray[Any]],
    statistic: Callable[..., Any],
    *,
    resamples: int,
    seed: int,
    level: float,
    paired: bool = False,
    method: str = "BCa",
) -> Interval:
    """Return a statistic with its bootstrap interval.

    Parameters
    ----------
    samples : sequence of arrays
        Resampled apart, or together if `paired`.
    statistic : callable
        ``statistic(*samples, axis=-1)`` of samples (..., n) returns (...).
    method : {"BCa", "percentile"}
        Where BCa is not determined the interval is that of percentiles, and `method` of the
        figure says so.

    References
    ----------
    Efron 1987, doi:10.1080/01621459.1987.10478410.
    """
    check_level(level)
    check_count(resamples, "resamples", 2)
    n = samples[0].size if paired else sum(s.size for s in samples)
    value = float(statistic(*samples, axis=-1))
    with warnings.catch_warnings():
        # samples without spread: what follows deals with them
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        done = stats.bootstrap(
            samples,
            statistic,
            n_resamples=resamples,
            batch=max(1, RESAMPLED // n),
            vectorized=True,
            paired=paired,
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        )
    low, high = done.confidence_interval
    drawn = done.bootstrap_distribution
    kept = drawn[np.isfinite(drawn)]
    if not (np.isfinite(low) and np.isfinite(high)) and kept.size:
        method = "percentile"
        low, high = np.quantile(kept, (0.5 - level / 2, 0.5 + level / 2))
    note = "all resamples have the same value" if kept.size and low == high else ""
    se = float(kept.std(ddof=1)) if kept.size > 1 else None
    name = f"bootstrap {method}, {resamples} resamples"
    return figure(value, n, name, low=low, high=high, level=level, se=se, note=note)


def ratio_of_medians(x: Floats, y: Floats, *, resamples: int, seed: int, level: float) -> Interval:
    """Return the median of one sample over that of another, with its bootstrap interval."""

    def ratio(a: Floats, b: Floats, axis: int) -> Any:
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level}
    return bootstrapped((x, y), ratio, method="percentile", **options)


def exact_share(successes: int, n: int, level: float) -> Interval:
    """Return a share with the exact interval.

    References
    ----------
    Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    tail = 0.5 - check_level(level) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, n - successes + 1, tail))
    high = (
        1.0 if successes == n else float(special.betaincinv(successes + 1, n - successes, 1 - tail))
    )
    return figure(successes / n, n, "Clopper-Pearson", low=low, high=high, level=level)


def median_figure(values: Floats, level: float) -> Interval:
    """Return a median with the interval between two order statistics.

    It covers at least as often as stated, whatever the distribution; with too few values for
    that (below 6 at 95 %) there is none.
    """
    ordered, n = np.sort(values), values.size
    rank = int(stats.binom.ppf(0.5 - check_level(level) / 2, n, 0.5))
    # the value of that rank is a bound if fewer than `rank` below it are as rare as stated
    while rank > 0 and stats.binom.cdf(rank - 1, n, 0.5) > 0.5 - level / 2:
        rank -= 1
    middle = float(np.median(ordered))
    if rank == 0:
        return figure(middle, n, "order statistics", level=level, note="too few for an interval")
    low, high = ordered[rank - 1], ordered[n - rank]
    return figure(middle, n, "order statistics", low=low, high=high, level=level)
