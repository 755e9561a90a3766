"""Intervals by resampling patients: percentile and BCa."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from medpipe.errors import InputError, UsageError
from medpipe.stats.arrays import Floats, binary, group_numbers
from medpipe.stats.interval import Interval, check_level

__all__ = ["bootstrap", "resample_weights", "weight_blocks"]

BLOCK = 2_000_000
"""Weights held at once: 16 MB, and as much for each step of a statistic."""
PERCENTILE = "BCa is not determined: percentiles of the resamples"

Statistic = Callable[..., Any]


def weight_blocks(
    outcome: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n: int = 2000,
    seed: int = 0,
    stratified: bool = True,
) -> Iterator[Floats]:
    """Yield how often each case is in each resample, in blocks of rows (R, cases).

    Patients are drawn with replacement, as many as there are, with all their cases.

    Parameters
    ----------
    outcome : array (cases,)
        0 or 1.
    groups : array (cases,), optional
        Patients; each case is one by default.
    n, seed : int
        Resamples and their seed. The same seed gives the same resamples.
    stratified : bool
        Whether to draw patients with the event and without apart, so that their numbers
        stay.

    Raises
    ------
    InputError
        If the arrays cannot be used.
    UsageError
        For less than one resample.
    """
    if n < 1:
        raise UsageError("a bootstrap needs resamples", expected="1 or more", got=str(n))
    y = binary(outcome)
    patient = group_numbers(groups, y.size)
    strata = _strata(y, patient, stratified)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // y.size)
    for start in range(0, n, block):
        count = min(block, n - start)
        drawn = np.zeros((count, int(patient.max()) + 1))
        for members in strata:
            k = members.size
            draws = generator.integers(0, k, (count, k)) + k * np.arange(count)[:, None]
            drawn[:, members] = np.bincount(draws.ravel(), minlength=count * k).reshape(count, k)
        yield drawn[:, patient]


def resample_weights(
    outcome: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n: int = 2000,
    seed: int = 0,
    stratified: bool = True,
) -> Floats:
    """Return what `weight_blocks` yields as one array (n, cases)."""
    return np.concatenate(
        list(weight_blocks(outcome, groups, n=n, seed=seed, stratified=stratified))
    )


def _strata(
    outcome: Floats, patient: NDArray[np.int64], stratified: bool
) -> list[NDArray[np.int64]]:
    """Return the patients of each stratum; one has the event if a case of theirs has."""
    patients = int(patient.max()) + 1
    if not stratified:
        return [np.arange(patients)]
    event = np.zeros(patients)
    np.maximum.at(event, patient, outcome)
    return [members for v in (0, 1) if (members := np.flatnonzero(event == v)).size]


def bootstrap(
    outcome: ArrayLike,
    columns: ArrayLike | Sequence[ArrayLike],
    statistic: Statistic,
    *,
    groups: ArrayLike | None = None,
    n: int = 2000,
    seed: int = 0,
    method: str = "bca",
    stratified: bool = True,
    level: float = 0.95,
) -> Interval:
    """Return a statistic with its bootstrap interval; patients are resampled.

    Parameters
    ----------
    outcome : array (cases,)
        0 or 1.
    columns : array (cases, ...) or tuple of them
        What the statistic takes besides: a score, or two to be compared.
    statistic : callable
        ``statistic(outcome, *columns)`` returns a number. One with a parameter `weights`, as
        the measures of this package have, is called with the weights (R, cases) of many
        resamples and returns (R,), which is much faster. A resample for which it raises
        InputError or is NaN is left out, and counted in the note.
    groups : array (cases,), optional
        Patients; each case is one by default.
    n, seed : int
        Resamples and their seed.
    method : {"bca", "percentile"}
        BCa corrects bias and skewness; the acceleration is from leaving out each patient.
        Where it is not determined (all resamples on one side of the value, no spread when
        patients are left out, or one that leaves no value) the interval is the percentile
        one; `method` and `note` say so.
    stratified : bool
        Whether to keep the numbers of patients with the event and without.
    level : float
        Coverage.

    Returns
    -------
    Interval
        Without a value, and with a note, where the statistic of all cases is not determined;
        without ends where less than half of the resamples, or than two, determine it.

    Raises
    ------
    InputError
        If the outcome, the patients or lengths cannot be used.
    UsageError
        For another method, a level outside 0..1 or less than two resamples.

    References
    ----------
    Efron 1987, doi:10.1080/01621459.1987.10478410; for several samples DiCiccio and Efron
    1996, doi:10.1214/ss/1032280214.
    """
    check_level(level)
    if method not in ("bca", "percentile") or n < 2:
        raise UsageError("this is no bootstrap", expected="bca or percentile, 2 or more resamples")
    y = binary(outcome)
    data = _columns(columns, y.size)
    patient = group_numbers(groups, y.size)
    evaluate = _evaluator(y, data, statistic)
    events = int(y.sum())

    def without(value: float | None, note: str) -> Interval:
        return Interval(value, None, None, y.size, events, "bootstrap", level, None, note)

    try:
        value = float(statistic(y, *data))
    except InputError as e:
        return without(None, e.what)
    if not np.isfinite(value):
        return without(None, "the statistic of all cases is not a number")
    blocks = weight_blocks(y, groups, n=n, seed=seed, stratified=stratified)
    every = np.concatenate([evaluate(rows) for rows in blocks])
    kept = every[np.isfinite(every)]
    note = "" if kept.size == n else f"{n - kept.size} of {n} resamples do not determine it"
    if 2 * kept.size < n or kept.size < 2:
        return without(value, note)
    quantiles = None
    if method == "bca" and kept.min() < kept.max():
        strata = _strata(y, patient, stratified)
        quantiles = _bca_quantiles(value, kept, _jackknife(evaluate, patient, strata), level)
    kind = "percentile" if quantiles is None else "BCa"
    ends = quantiles or (0.5 - level / 2, 0.5 + level / 2)
    low, high = (float(q) for q in np.quantile(kept, ends))
    if low == high:
        note = "; ".join(filter(None, [note, "all resamples have the same value"]))
    elif quantiles is None and method == "bca":
        note = "; ".join(filter(None, [note, PERCENTILE]))
    name = f"bootstrap {kind}, {n} {'case' if groups is None else 'patient'} resamples"
    se = float(kept.std(ddof=1))
    return Interval(value, low, high, y.size, events, name, level, se, note)


def _columns(columns: Any, n: int) -> list[NDArray[Any]]:
    several = isinstance(columns, tuple | list) and len(columns) and np.ndim(columns[0]) > 0
    data = [np.asarray(c) for c in (columns if several else [columns])]
    for column in data:
        if column.shape[:1] != (n,):
            raise InputError(
                "a column has another length than the outcome",
                expected=f"{n}",
                got=f"shape {column.shape}",
            )
    return data


def _evaluator(
    y: Floats, data: list[NDArray[Any]], statistic: Statistic
) -> Callable[[Floats], Floats]:
    """Return what gives the statistic (R,) of rows of whole weights (R, cases)."""
    try:
        at_once = "weights" in inspect.signature(statistic).parameters
    except (TypeError, ValueError):  # some callables of C have none
        at_once = False

    def one(row: Floats) -> float:
        cases = np.repeat(np.arange(y.size), row.astype(np.int64))
        try:
            return float(statistic(y[cases], *(c[cases] for c in data)))
        except InputError:
            return float("nan")

    def rows_of(rows: Floats) -> Floats:
        if not at_once:
            return np.array([one(row) for row in rows])
        values = np.asarray(statistic(y, *data, weights=rows), np.float64)
        if values.shape != (len(rows),):
            raise UsageError(
                "a statistic with weights (R, n) returns one number for each row",
                got=f"shape {values.shape}",
            )
        return values

    return rows_of


def _jackknife(
    evaluate: Callable[[Floats], Floats],
    patient: NDArray[np.int64],
    strata: list[NDArray[np.int64]],
) -> list[Floats]:
    """Return, for each stratum, the statistic without each of its patients."""
    block = max(1, BLOCK // patient.size)
    found = []
    for members in strata:
        parts = [
            evaluate((patient != members[i : i + block, None]).astype(np.float64))
            for i in range(0, members.size, block)
        ]
        found.append(np.concatenate(parts))
    return found


def _bca_quantiles(
    value: float, resampled: Floats, jackknife: list[Floats], level: float
) -> tuple[float, float] | None:
    """Return the two quantiles of the resamples, or None where they are not determined."""
    # equal but for the order of summation is equal, and counts half
    rounding = 1e-12 * (1 + abs(value))
    below = ((resampled < value - rounding).mean() + (resampled <= value + rounding).mean()) / 2
    pushes = [(part.size - 1) * (part.mean() - part) for part in jackknife]
    square = sum(float((u**2).sum()) / u.size**2 for u in pushes)
    cube = sum(float((u**3).sum()) / u.size**3 for u in pushes)
    if not 0 < below < 1 or not square > 0 or not np.isfinite(cube):
        return None
    bias, skew = float(special.ndtri(below)), cube / square**1.5 / 6
    ends = []
    for tail in (0.5 - level / 2, 0.5 + level / 2):
        away = bias + float(special.ndtri(tail))
        if 1 - skew * away <= 0:
            return None
        ends.append(float(special.ndtr(bias + away / (1 - skew * away))))
    return ends[0], ends[1]
