"""Does a synthetic case have what was asked of it: requested against measured conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from medpipe.errors import InputError
from medpipe.stats.interval import Interval, check_level
from medpipe.synthesis.metrics._figures import Floats, bootstrapped, column, figure, symmetric

__all__ = ["Agreement", "agreement_table", "condition_agreement"]

FEWEST = 4
"""Cases below which a correlation has no interval."""


@dataclass(frozen=True)
class Agreement:
    """Requested and measured values of one condition.

    Attributes
    ----------
    pearson, spearman : Interval
        Without a value where all measured values are the same.
    slope : Interval
        Of the line of measured on requested values; 1 if changes are followed in full.
    error : Interval
        Mean absolute difference, in the unit of the condition.
    bias : Interval
        Mean of measured minus requested.
    """

    pearson: Interval
    spearman: Interval
    slope: Interval
    error: Interval
    bias: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def condition_agreement(
    requested: ArrayLike,
    measured: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Agreement:
    """Compare what was requested with what an independent measurement of the case finds.

    Parameters
    ----------
    requested, measured : array (n,)
        Four cases or more, in one unit.
    resamples, seed : int
        Bootstrap of the mean absolute difference.
    level : float
        Coverage.

    Raises
    ------
    InputError
        If the arrays cannot be used or all requests are the same.
    UsageError
        For a level outside 0..1 or too few resamples.

    References
    ----------
    Fisher 1921 (Metron 1:3); Bonett and Wright 2000, doi:10.1007/BF02294183.
    """
    check_level(level)
    x = column(requested, "the requested condition", least=FEWEST)
    y = column(measured, "the measured condition", x.size, least=FEWEST)
    if x.min() == x.max():
        raise InputError("all requests are the same: there is no agreement to measure")
    gap = y - x
    error = bootstrapped((np.abs(gap),), np.mean, resamples=resamples, seed=seed, level=level)
    spread = float(gap.std(ddof=1)) / x.size**0.5
    bias = symmetric(float(gap.mean()), spread, x.size, "Student's t", level=level, df=x.size - 1)
    rank_x, rank_y = stats.rankdata(x), stats.rankdata(y)
    return Agreement(
        pearson=_correlation(x, y, "Pearson, Fisher's z", level, rank=False),
        spearman=_correlation(rank_x, rank_y, "Spearman, Bonett and Wright", level, rank=True),
        slope=_slope(x, y, level),
        error=error,
        bias=bias,
    )


def agreement_table(
    synthetic: tuple[ArrayLike, ArrayLike],
    ceilings: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Agreement]:
    """Return the agreement of a condition beside what could be reached at most.

    Parameters
    ----------
    synthetic : pair of arrays (n,)
        Requested and measured.
    ceilings : mapping of name to pair of arrays
        For example the true and the measured values of real cases (the error of the
        measurement alone), or of cases that went through the tokeniser and back.
    resamples, seed, level
        As in `condition_agreement`.

    Returns
    -------
    dict
        "synthetic" first, then the ceilings.

    Raises
    ------
    InputError, UsageError
        As `condition_agreement`.
    """
    if "synthetic" in ceilings:
        raise InputError("a ceiling has the name of the synthetic row", hint="call it otherwise")
    rows = {"synthetic": synthetic, **ceilings}
    return {
        name: condition_agreement(x, y, resamples=resamples, seed=seed, level=level)
        for name, (x, y) in rows.items()
    }


def _correlation(x: Floats, y: Floats, method: str, level: float, *, rank: bool) -> Interval:
    n = x.size
    if y.min() == y.max():
        return figure(None, n, method, level=level, note="all measured values are the same")
    away_x, away_y = x - x.mean(), y - y.mean()
    r = float(away_x @ away_y / np.sqrt((away_x @ away_x) * (away_y @ away_y)))
    r = min(max(r, -1.0), 1.0)
    if abs(r) > 1 - 1e-12:
        return figure(r, n, method, low=r, high=r, level=level, note="without any scatter")
    se = float(np.sqrt((1 + (r**2 / 2 if rank else 0.0)) / (n - 3)))
    half = float(stats.norm.ppf(0.5 + level / 2)) * se
    low, high = (float(np.tanh(np.arctanh(r) + s * half)) for s in (-1, 1))
    return figure(r, n, method, low=low, high=high, level=level)


def _slope(x: Floats, y: Floats, level: float) -> Interval:
    away = x - x.mean()
    square, df = float(away @ away), x.size - 2
    off = y - y.mean()
    slope = float(away @ off) / square
    rest = off - slope * away
    se = float(np.sqrt(rest @ rest / df / square))
    return symmetric(slope, se, x.size, "least squares", level=level, df=df)
