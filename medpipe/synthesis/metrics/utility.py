"""What synthetic cases are good for: Dice of segmenters trained with and without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from medpipe.errors import InputError, UsageError
from medpipe.stats.interval import Interval, check_level
from medpipe.synthesis.metrics._figures import Floats, figure

__all__ = ["UtilityRow", "utility_table"]


@dataclass(frozen=True)
class UtilityRow:
    """One way to train.

    Attributes
    ----------
    name : str
    mean : Interval
        Mean score.
    difference : Interval or None
        Mean score minus that of the reference, paired by seed and case; None for the
        reference itself.
    seeds : int
    """

    name: str
    mean: Interval
    difference: Interval | None
    seeds: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        difference = None if self.difference is None else self.difference.to_dict()
        return {
            "name": self.name,
            "mean": self.mean.to_dict(),
            "difference": difference,
            "seeds": self.seeds,
        }


def utility_table(
    scores: Mapping[str, ArrayLike], reference: str, level: float = 0.95
) -> list[UtilityRow]:
    """Compare ways to train by the scores of what they give on the same test cases.

    Both what a seed gives and which cases are tested is chance: a mean over seeds and cases
    varies with both, and the interval counts both: its half width is the root of the sum of
    their squared parts, each with the quantile of t of its own number.

    Parameters
    ----------
    scores : mapping of name to array (seeds, cases), or (seeds,)
        Dice of each test case after training with each seed, in one order of seeds and cases
        in all arrays; or the mean of all cases for each seed, and then the interval is that
        of other seeds on the same cases. Three seeds or more.
    reference : str
        Name of what the others are compared with.
    level : float
        Coverage.

    Returns
    -------
    list of UtilityRow
        In the order of `scores`.

    Raises
    ------
    InputError
        If the arrays differ in shape, have missing values or less than three seeds.
    UsageError
        For an unknown reference or a level outside 0..1.

    References
    ----------
    Howe 1974, doi:10.1080/01621459.1974.10480202 (intervals of sums of two means).
    """
    check_level(level)
    if reference not in scores:
        raise UsageError(
            "the reference is none of the rows", expected=", ".join(scores), got=reference
        )
    tables = {name: _table(values, name) for name, values in scores.items()}
    base = tables[reference]
    rows = []
    for name, table in tables.items():
        if table.shape != base.shape:
            raise InputError(
                f"{name} has other seeds or cases than {reference}",
                expected=str(base.shape),
                got=str(table.shape),
            )
        mean = _crossed_mean(table, level)
        difference = None if name == reference else _crossed_mean(table - base, level)
        rows.append(UtilityRow(name, mean, difference, len(table)))
    return rows


def _table(values: ArrayLike, name: str) -> Floats:
    try:
        table = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"the scores of {name} are no numbers") from None
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.shape[0] < 3 or not table.size or not np.isfinite(table).all():
        raise InputError(
            f"the scores of {name} cannot be used",
            expected="finite numbers (seeds, cases), three seeds or more",
            got=f"shape {np.shape(values)}",
        )
    return table


def _crossed_mean(table: Floats, level: float) -> Interval:
    """Return the mean of (seeds, cases) with the interval of two crossed random effects."""
    seeds, cases = table.shape
    mean = float(table.mean())
    if np.ptp(table) == 0:
        note = "the same for all seeds and cases"
        method = f"{seeds} seeds"
        return figure(mean, table.size, method, low=mean, high=mean, level=level, note=note)
    squares, df = _mean_squares(table)
    method = f"t over {seeds} seeds" + (f" and {cases} cases, crossed" if cases > 1 else "")
    half = float(np.sqrt(_crossed_sum(squares * stats.t.ppf(0.5 + level / 2, df) ** 2)))
    se = float(np.sqrt(_crossed_sum(squares)))
    low, high = mean - half, mean + half
    return figure(mean, table.size, method, low=low, high=high, level=level, se=se)


def _mean_squares(table: Floats) -> tuple[Floats, Floats]:
    """Return the parts of the variance of the mean by seed, by case and of the rest.

    Each is a mean square over the number of scores; with its degrees of freedom.
    """
    seeds, cases = table.shape
    by_seed = table.mean(axis=1, keepdims=True)
    if cases == 1:
        return np.array([by_seed.var(ddof=1) / seeds]), np.array([seeds - 1.0])
    by_case = table.mean(axis=0, keepdims=True)
    rest = table - by_seed - by_case + table.mean()
    df = np.array([seeds - 1.0, cases - 1.0, (seeds - 1.0) * (cases - 1.0)])
    sums = np.array(
        [cases * (seeds - 1) * by_seed.var(ddof=1), seeds * (cases - 1) * by_case.var(ddof=1), 0.0]
    )
    sums[2] = (rest**2).sum()
    return sums / df / table.size, df


def _crossed_sum(parts: Floats) -> float:
    """Return seeds + cases - rest, at least the larger of the first two.

    Seeds and cases both count the chance of single runs, which must count once.
    """
    if parts.size == 1:
        return float(parts[0])
    return max(float(parts[0] + parts[1] - parts[2]), float(parts[:2].max()))
