"""Shares of cases with the interval of Wilson."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from medpipe.stats.interval import Interval, check_level

__all__ = ["proportion", "wilson"]


def wilson(successes: Any, n: Any, level: float = 0.95) -> tuple[Any, Any]:
    """Return both ends of the score interval of a share.

    Parameters
    ----------
    successes, n : float or array
        Cases that count, and all cases; `n` above 0, and need not be whole (an effective
        number of cases).
    level : float
        Coverage.

    References
    ----------
    Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    square = float(special.ndtri(0.5 + check_level(level) / 2)) ** 2
    share = successes / n
    centre = (share + square / (2 * n)) / (1 + square / n)
    spread = np.sqrt(square * (share * (1 - share) + square / (4 * n)) / n) / (1 + square / n)
    low = np.where(share <= 0, 0.0, np.maximum(centre - spread, 0.0))
    high = np.where(share >= 1, 1.0, np.minimum(centre + spread, 1.0))
    return low, high


def proportion(
    successes: int, n: int, *, events: int | None, level: float = 0.95, empty: str = ""
) -> Interval:
    """Return the share `successes / n` with its interval; `empty` is the note where n is 0."""
    check_level(level)
    if n == 0:
        return Interval(None, None, None, 0, events, "Wilson", level, None, empty)
    low, high = wilson(successes, n, level)
    return Interval(successes / n, float(low), float(high), n, events, "Wilson", level)
