"""A figure with its interval, as reports and JSON files carry it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from medpipe.errors import InputError, UsageError

__all__ = ["Interval", "PairedDifference", "check_level"]


def check_level(level: float) -> float:
    """Return the level of an interval.

    Raises
    ------
    UsageError
        If it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(
            "the level of an interval is a share", expected="0 < level < 1", got=f"{level:g}"
        )
    return float(level)


class _Figure:
    """A frozen record of numbers that are finite or None, with a JSON form."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():  # type: ignore[call-overload]
            if isinstance(value, str) or value is None:
                continue
            if not math.isfinite(value):
                raise UsageError(
                    f"{name} of a figure is not a finite number", hint="use None and a note"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: numbers, text and null."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def _from_dict(cls, record: Mapping[str, Any]) -> Any:
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(record) - known)
        if unknown or not {"n", "method"} <= set(record):
            raise InputError(
                f"this is no {cls.__name__.lower()}", expected=", ".join(sorted(known))
            )
        return cls(**record)


@dataclass(frozen=True)
class Interval(_Figure):
    """A figure, its interval and what it was computed from.

    Attributes
    ----------
    value : float or None
        None where the data do not determine it; `note` says why.
    low, high : float or None
        Ends of the interval, None where there is none.
    n : int
        Cases that the figure is computed from.
    events : int or None
        Cases of them with the event.
    method : str
        How the interval was made.
    level : float
        Its nominal coverage.
    se : float or None
        Standard error on the scale of `value`, where the method has one.
    note : str
        What a reader must know, or empty.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    events: int | None
    method: str
    level: float = 0.95
    se: float | None = None
    note: str = ""

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Interval:
        """Return what `to_dict` described.

        Raises
        ------
        InputError
            If the record is not one of an interval.
        """
        return cls._from_dict(record)

    def text(self, digits: int = 2) -> str:
        """Return ``"0.82 (0.66 to 0.98)"``, or that there is no figure."""
        if self.value is None:
            return "not estimable"
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f} (no interval)"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class PairedDifference(_Figure):
    """A difference of two figures of the same cases, with its test.

    Unpacks as ``difference, low, high, z, p``.

    Attributes
    ----------
    difference, low, high : float or None
        First minus second, and the interval of it.
    z, p : float or None
        Statistic and two-sided probability of one as large if there is no difference; None
        where the data do not determine them, `note` says why.
    """

    difference: float | None
    low: float | None
    high: float | None
    z: float | None
    p: float | None
    n: int
    events: int | None
    method: str
    level: float = 0.95
    se: float | None = None
    note: str = ""

    def __iter__(self) -> Iterator[float | None]:
        return iter((self.difference, self.low, self.high, self.z, self.p))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> PairedDifference:
        """Return what `to_dict` described.

        Raises
        ------
        InputError
            If the record is not one of a paired difference.
        """
        return cls._from_dict(record)
