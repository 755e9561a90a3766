"""What a patient is like, as numbers that a network is told.

A continuous condition is equalised: its value becomes the share of the trained patients
below it, from -1 to 1, so that a network sees every part of the range equally often. A
category becomes one number for each of its values. What is not known is marked as absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import InputError, UsageError
from medpipe.types import Json

__all__ = ["Condition", "ConditionKind", "Conditions"]

ConditionKind = Literal["continuous", "binary", "category", "augmentation"]

KNOTS = 257
"""Points at which the distribution of a continuous condition is kept."""


@dataclass(frozen=True)
class Condition:
    """One thing that is known of a patient, or that was done to the image in training.

    Parameters
    ----------
    name : str
    kind : {"continuous", "binary", "category", "augmentation"}
        An augmentation is a number that says how an image was changed in training, such as
        a shift in voxels.
    unit : str
        Empty where there is none.
    low, high : float, optional
        The trained range of a number.
    values : tuple
        Those of a binary condition or a category.
    quantiles, levels : tuple of float
        The distribution of a number: ascending values, and what each becomes.
    neutral : float, optional
        What a row without this condition means; None: it is not known.
    """

    name: str
    kind: ConditionKind
    unit: str = ""
    low: float | None = None
    high: float | None = None
    values: tuple[str | float | int | bool, ...] = ()
    quantiles: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()
    neutral: float | None = None

    @property
    def columns(self) -> int:
        """How many numbers it becomes."""
        return len(self.values) if self.kind == "category" else 1

    def encode(self, value: Any) -> list[float]:
        """Return the numbers that a value becomes.

        Raises
        ------
        UsageError
            If the value is not one that was trained.
        """
        if self.values:
            return self._of_class(value)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self._outside("a number", value) from None
        if self.low is None or self.high is None or not self.low <= number <= self.high:
            raise self._outside(f"{self.low:g} to {self.high:g} {self.unit}".rstrip(), value)
        return [float(np.interp(number, self.quantiles, self.levels))]

    def _of_class(self, value: Any) -> list[float]:
        if value not in self.values:
            raise self._outside(" or ".join(str(v) for v in self.values), value)
        place = self.values.index(value)
        if self.kind == "binary":
            return [2.0 * place - 1.0]
        return [1.0 if i == place else -1.0 for i in range(len(self.values))]

    def _outside(self, expected: str, value: Any) -> UsageError:
        return UsageError(
            "a condition is outside what the model was trained on",
            where=f"condition {self.name}",
            expected=expected,
            got=str(value),
            hint="choose a value of the trained range, or leave the condition out",
        )


@dataclass(frozen=True)
class Conditions:
    """The conditions of a model, in the order of its columns.

    Parameters
    ----------
    items : tuple of Condition
    """

    items: tuple[Condition, ...] = field(default=())

    @classmethod
    def fit(
        cls,
        table: Mapping[str, ArrayLike],
        kinds: Mapping[str, ConditionKind],
        *,
        units: Mapping[str, str] | None = None,
        neutral: Mapping[str, float] | None = None,
    ) -> Conditions:
        """Learn ranges, values and distributions from the patients to train with.

        Parameters
        ----------
        table : mapping of str to array
            One value per patient; None, NaN and empty text are missing.
        kinds : mapping of str to str
            The conditions to learn, of the kinds that `Condition` names.
        units : mapping, optional
            By name.
        neutral : mapping, optional
            What a missing value means, by name; 0 for an augmentation that is not named.

        Raises
        ------
        UsageError
            If a column is missing or cannot be of its kind.
        """
        units, neutral = units or {}, neutral or {}
        found = []
        for name, kind in kinds.items():
            if name not in table:
                raise UsageError(
                    "the table lacks a condition", expected=name, got=", ".join(table) or "none"
                )
            if kind not in get_args(ConditionKind):
                raise _wrong(name, " or ".join(get_args(ConditionKind)), kind)
            column = np.asarray(table[name], dtype=object)
            values = [v for v in map(_plain, column) if not _is_missing(v)]
            facts = _classes if kind in ("binary", "category") else _numbers
            means = neutral.get(name, 0.0 if kind == "augmentation" else None)
            if kind == "augmentation":
                values.append(means)  # so that it lies in the range
            found.append(
                Condition(
                    name, kind, units.get(name, ""), neutral=means, **facts(name, kind, values)
                )
            )
        return cls(tuple(found))

    @property
    def first_columns(self) -> dict[str, int]:
        """The first column of each condition, by name."""
        ends = accumulate((c.columns for c in self.items), initial=0)
        return dict(zip((c.name for c in self.items), ends, strict=False))

    @property
    def columns(self) -> int:
        """How many numbers a patient becomes."""
        return sum(c.columns for c in self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every condition."""
        return tuple(c.name for c in self.items)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the numbers of patients and whether each is known.

        Parameters
        ----------
        rows : sequence of mapping
            A value by name; what is left out takes its neutral value or is unknown.

        Returns
        -------
        values : Tensor
            float32 (B, C), from -1 to 1; 0 where unknown.
        present : Tensor
            bool (B, C).

        Raises
        ------
        UsageError
            If a name is no condition, or a value was not trained.
        """
        values = np.zeros((len(rows), self.columns), np.float32)
        present = np.zeros(values.shape, bool)
        for r, row in enumerate(rows):
            self._check_names(row)
            first = 0
            for condition in self.items:
                value = _plain(row.get(condition.name))
                value = condition.neutral if _is_missing(value) else value
                last = first + condition.columns
                if value is not None:
                    values[r, first:last] = condition.encode(value)
                    present[r, first:last] = True
                first = last
        return torch.from_numpy(values), torch.from_numpy(present)

    def _check_names(self, row: Mapping[str, Any]) -> None:
        unknown = [name for name in row if name not in self.names]
        if unknown:
            raise UsageError(
                "the model has no such condition",
                expected=", ".join(self.names) or "none",
                got=", ".join(unknown),
            )

    def to_json(self) -> dict[str, Json]:
        """Return the conditions as JSON values."""
        return {"conditions": [_listed(asdict(c)) for c in self.items]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Conditions:
        """Return the conditions that `to_json` wrote; InputError for anything else."""
        try:
            return cls(tuple(Condition(**_tupled(c)) for c in record["conditions"]))
        except (KeyError, TypeError):
            raise InputError("the conditions of the model cannot be read") from None


def _listed(record: dict[str, Any]) -> dict[str, Json]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}


def _tupled(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    """Return a number of numpy as one of Python."""
    return value.tolist() if isinstance(value, np.generic) else value


def _wrong(name: str, expected: str, got: str) -> UsageError:
    return UsageError(
        "a condition cannot be learned", where=f"condition {name}", expected=expected, got=got
    )


def _classes(name: str, kind: str, values: list[Any]) -> dict[str, Any]:
    """Return the values of a binary condition or a category, sorted."""
    distinct = sorted(set(values), key=lambda v: (isinstance(v, str), v))
    if len(distinct) < 2 or (kind == "binary" and len(distinct) > 2):
        expected = "two values" if kind == "binary" else "two values or more"
        raise _wrong(name, expected, str(len(distinct)))
    return {"values": tuple(distinct)}


def _numbers(name: str, kind: str, values: list[Any]) -> dict[str, Any]:
    """Return range and distribution of a number."""
    try:
        x = np.array([float(v) for v in values])
    except (TypeError, ValueError):
        raise _wrong(name, "numbers", "text") from None
    distinct, counts = np.unique(x, return_counts=True)
    if len(distinct) < 2 or not np.isfinite(x).all():
        raise _wrong(name, "two finite values or more", str(len(distinct)))
    if kind == "augmentation":  # drawn by the trainer, so the range is all there is to know
        distinct, levels = distinct[[0, -1]], np.array([-1.0, 1.0])
    else:
        distinct, levels = _equalised(distinct, counts)
    return {
        "low": float(x.min()),
        "high": float(x.max()),
        "quantiles": tuple(distinct.tolist()),
        "levels": tuple(levels.tolist()),
    }


def _equalised(
    distinct: NDArray[np.float64], counts: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return values and, for each, its mean rank from -1 to 1; thinned evenly if many."""
    before = np.cumsum(counts) - counts
    levels = 2 * (before + (counts - 1) / 2) / (counts.sum() - 1) - 1
    kept = np.unique(np.linspace(0, len(distinct) - 1, KNOTS).round().astype(int))
    return distinct[kept], levels[kept]
