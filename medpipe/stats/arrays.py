"""What every measure asks of its arrays, and how rows of weights travel.

A measure is called with `weights` None or (n,) and returns a float, or with weights (R, n),
one row for each resample, and returns an array (R,) with NaN where a resample does not
determine it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import InputError

__all__ = [
    "FloatOrRows",
    "Floats",
    "binary",
    "both_classes",
    "column",
    "finish",
    "group_numbers",
    "probabilities",
    "ratio",
    "weight_rows",
]

Floats = NDArray[np.float64]
FloatOrRows = Any
"""A float, or an array (R,) for weights of R resamples."""


def binary(outcome: ArrayLike, name: str = "the outcome") -> Floats:
    """Return 0/1 values as float64 (n,).

    Raises
    ------
    InputError
        If they are empty, not one-dimensional, missing or not 0/1.
    """
    values = column(outcome, None, name)
    bad = (values != 0) & (values != 1)
    if bad.any():
        raise InputError(
            f"{name} is not binary", expected="0 or 1", got=f"{int(bad.sum())} other values"
        )
    return values


def column(values: ArrayLike, n: int | None, name: str) -> Floats:
    """Return finite numbers as float64 (n,).

    Raises
    ------
    InputError
        If there are none, another count than `n`, or some are not finite.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} has values that are no numbers") from None
    if array.ndim != 1 or not array.size:
        raise InputError(f"{name} is one row of numbers", got=f"shape {array.shape}")
    if n is not None and array.size != n:
        raise InputError(
            f"{name} has another length than the outcome", expected=f"{n}", got=f"{array.size}"
        )
    bad = ~np.isfinite(array)
    if bad.any():
        raise InputError(
            f"{name} has values that are missing or infinite", got=f"{int(bad.sum())} of them"
        )
    return array


def probabilities(values: ArrayLike, n: int | None, name: str = "the probability") -> Floats:
    """Return numbers between 0 and 1 as float64 (n,).

    Raises
    ------
    InputError
        As `column`, or if some are outside 0..1.
    """
    array = column(values, n, name)
    if array.min() < 0 or array.max() > 1:
        raise InputError(
            f"{name} is outside 0..1",
            got=f"{array.min():g} to {array.max():g}",
            hint="give probabilities, not logits or percent",
        )
    return array


def weight_rows(weights: ArrayLike | None, n: int) -> tuple[Floats, bool]:
    """Return weights as rows (R, n), and whether there was only one.

    Raises
    ------
    InputError
        If their length is not `n` or some are negative or not finite.
    """
    if weights is None:
        return np.ones((1, n)), True
    array = np.asarray(weights, dtype=np.float64)
    if array.ndim not in (1, 2) or array.shape[-1] != n:
        raise InputError(
            "the weights have another length than the outcome",
            expected=f"{n}",
            got=f"shape {array.shape}",
        )
    if not np.isfinite(array).all() or (array < 0).any():
        raise InputError("weights are negative or not finite")
    return np.atleast_2d(array), array.ndim == 1


def ratio(above: Floats, below: Floats) -> Floats:
    """Return the quotient, NaN where the divisor is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.divide(above, below, out=np.full(shape, np.nan), where=below > 0)


def finish(values: Floats, single: bool, why_not: str) -> FloatOrRows:
    """Return the only value as a float, or all.

    Raises
    ------
    InputError
        `why_not`, if the only value is NaN.
    """
    if not single:
        return values
    if np.isnan(values[0]):
        raise InputError(why_not)
    return float(values[0])


def both_classes(outcome: Floats) -> bool:
    """Return whether there are cases with the event and without."""
    return bool(outcome.min() == 0 and outcome.max() == 1)


def group_numbers(groups: ArrayLike | None, n: int) -> NDArray[np.int64]:
    """Return the number of each case's patient, 0 to the number of patients - 1.

    Raises
    ------
    InputError
        If there are not `n` of them.
    """
    if groups is None:
        return np.arange(n, dtype=np.int64)
    array = np.asarray(groups)
    if array.shape != (n,):
        raise InputError(
            "the patients have another length than the outcome",
            expected=f"{n}",
            got=f"shape {array.shape}",
        )
    return np.unique(array, return_inverse=True)[1].astype(np.int64)
