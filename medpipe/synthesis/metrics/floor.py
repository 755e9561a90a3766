"""A figure of a synthetic set beside what real cases reach against real cases.

Both are computed in one way and with one number of cases: the real cases are split at random
into halves A and B, and the synthetic ones give M, all of k cases. The figure compares A with
M, the floor A with B, and both are taken over many splits. Measures whose value depends on the
number of cases (the Fréchet distance, recall, the distance between distributions of a volume)
say nothing without this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError
from medpipe.stats.interval import Interval
from medpipe.synthesis.metrics._figures import Floats, check_count, figure, symmetric

__all__ = ["Halves", "WithFloor", "against_floor", "draw_halves", "floor_figure"]

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class WithFloor:
    """A figure of a synthetic set, and the same of real cases against real cases.

    Attributes
    ----------
    figure : Interval
    floor : Interval
        Mean of random halves of the real cases; `low` and `high` are the range in which the
        stated share of them falls.
    """

    figure: Interval
    floor: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"figure": self.figure.to_dict(), "floor": self.floor.to_dict()}


class Halves(NamedTuple):
    """Cases of each split, three arrays (splits, k): two halves of the real, one synthetic."""

    first: Indices
    second: Indices
    synthetic: Indices


def draw_halves(n_real: int, n_synthetic: int, splits: int, seed: int, least: int = 2) -> Halves:
    """Draw disjoint halves of the real cases and as many synthetic ones, `splits` times.

    Parameters
    ----------
    n_real, n_synthetic : int
        Cases; k is half of the smaller number.
    least : int
        Smallest k that the measure can do with.

    Raises
    ------
    InputError
        If there are too few cases.
    UsageError
        For less than two splits.
    """
    check_count(splits, "splits", 2)
    k = min(n_real, n_synthetic) // 2
    if k < least:
        raise InputError(
            "too few cases to compare halves of them",
            expected=f"{2 * least} or more in each set",
            got=f"{n_real} real, {n_synthetic} synthetic",
        )
    generator = np.random.default_rng(seed)
    real = generator.permuted(np.tile(np.arange(n_real), (splits, 1)), axis=1)
    made = generator.permuted(np.tile(np.arange(n_synthetic), (splits, 1)), axis=1)
    return Halves(real[:, :k], real[:, k : 2 * k], made[:, :k])


def floor_figure(values: Floats, k: int, level: float) -> Interval:
    """Return the mean of real halves (splits,) and the range that holds `level` of them."""
    low, high = np.quantile(values, (0.5 - level / 2, 0.5 + level / 2))
    method = f"range of {values.size} random halves of {k}"
    return figure(values.mean(), 2 * k, method, low=low, high=high, level=level)


def against_floor(
    statistic: Callable[[Indices, Indices], Any],
    n_real: int,
    n_synthetic: int,
    *,
    splits: int,
    seed: int,
    level: float,
    least: int = 2,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> list[WithFloor]:
    """Return figures and their floors over random halves.

    The interval of a figure is normal. The spread of halves drawn without replacement is the
    standard error of all cases where both sets are equally large; of a larger set only part
    is used at a time, and the interval is then too wide rather than too narrow.

    Parameters
    ----------
    statistic : callable
        ``statistic(a, b)`` compares cases `a` with cases `b` of both sets together, the real
        ones first, and returns a number or an array of S numbers.
    bounds : tuple of float
        Where the intervals of the figures are cut.

    Returns
    -------
    list of WithFloor
        One for each number.

    Raises
    ------
    InputError, UsageError
        As `draw_halves`.

    References
    ----------
    Shao and Wu 1989, doi:10.1214/aos/1176347263 (leaving out half of the cases).
    """
    halves = draw_halves(n_real, n_synthetic, splits, seed, least)
    k = halves.first.shape[1]
    figures = [
        statistic(a, n_real + m) for a, m in zip(halves.first, halves.synthetic, strict=True)
    ]
    floors = [statistic(a, b) for a, b in zip(halves.first, halves.second, strict=True)]
    method = f"mean of {splits} random halves of {k}, normal interval"
    out = []
    for made, real in zip(_columns(figures), _columns(floors), strict=True):
        spread = float(made.std(ddof=1))
        value = symmetric(
            float(made.mean()), spread, n_real + n_synthetic, method, level=level, bounds=bounds
        )
        out.append(WithFloor(value, floor_figure(real, k, level)))
    return out


def _columns(values: list[Any]) -> Floats:
    """Return the numbers of each statistic (S, splits)."""
    array = np.asarray(values, dtype=np.float64)
    return array.reshape(len(array), -1).T
