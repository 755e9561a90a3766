"""Maps from log odds to calibrated probabilities: Platt, isotonic and temperature.

Fitted on predictions of cases that the network was not trained on. Applying one needs numpy
and its JSON form alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from medpipe.errors import InputError, UsageError
from medpipe.outcome.metrics._logistic import fit_logistic
from medpipe.outcome.metrics.shares import wilson
from medpipe.stats.arrays import Floats, binary, both_classes, column, weight_rows
from medpipe.stats.interval import check_level

__all__ = [
    "Isotonic",
    "Platt",
    "Recalibration",
    "Temperature",
    "fit_recalibration",
    "recalibration_from_dict",
    "recalibration_from_json",
]


class Recalibration(Protocol):
    """What every recalibration can do."""

    def apply(self, logit: ArrayLike) -> Floats:
        """Return probabilities in the shape of the log odds."""

    def interval(self, logit: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
        """Return both ends of the interval of the calibrated probabilities."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""

    def to_json(self) -> str:
        """Return the JSON form as text."""


class _Map:
    """JSON form of a frozen recalibration."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: `recalibration_from_dict` reads it."""
        record = asdict(self)  # type: ignore[call-overload]
        return {"kind": self.kind} | {
            k: list(v) if isinstance(v, tuple) else v for k, v in record.items()
        }

    def to_json(self) -> str:
        """Return the JSON form as text: `recalibration_from_json` reads it."""
        return json.dumps(self.to_dict(), allow_nan=False)


@dataclass(frozen=True)
class Platt(_Map):
    """Logistic recalibration: the probability is that of ``intercept + slope * logit``.

    Attributes
    ----------
    intercept, slope : float
    covariance : tuple of 3 floats
        Of the intercept, of both, of the slope.
    n, events : int
        What it was fitted on.

    References
    ----------
    Platt 1999, Probabilistic outputs for support vector machines, in Advances in Large
    Margin Classifiers.
    """

    kind: ClassVar[str] = "platt"
    intercept: float
    slope: float
    covariance: tuple[float, float, float]
    n: int
    events: int

    @classmethod
    def fit(cls, outcome: ArrayLike, logit: ArrayLike, weights: ArrayLike | None = None) -> Platt:
        """Fit with Platt's targets, which keep the slope finite where classes are separated.

        They are (events + 1) / (events + 2) and 1 / (others + 2) instead of 1 and 0.

        Parameters
        ----------
        outcome : array (n,)
            0 or 1.
        logit : array (n,)
            Log odds of outcome 1.
        weights : array (n,), optional
            Of cases.

        Returns
        -------
        Platt
            With slope 0 if all log odds are the same.

        Raises
        ------
        InputError
            If the arrays cannot be used, or all cases have the same outcome.
        """
        y, x, row = _arrays(outcome, logit, weights)
        events, others = float(row[0] @ y), float(row[0] @ (1 - y))
        target = np.where(y == 1, (events + 1) / (events + 2), 1 / (others + 2))
        constant = x.min() == x.max()
        design = np.stack([np.ones_like(x), x], axis=1)
        beta, spread = fit_logistic(target, design[:, :1] if constant else design, row)
        if constant:
            cells = (float(spread[0, 0, 0]), 0.0, 0.0)
            return cls(float(beta[0, 0]), 0.0, cells, y.size, int(y.sum()))
        cells = (float(spread[0, 0, 0]), float(spread[0, 0, 1]), float(spread[0, 1, 1]))
        return cls(float(beta[0, 0]), float(beta[0, 1]), cells, y.size, int(y.sum()))

    def apply(self, logit: ArrayLike) -> Floats:
        """Return probabilities in the shape of the log odds.

        Raises
        ------
        InputError
            If a value is not finite.
        """
        return special.expit(self.intercept + self.slope * _logits(logit))

    def interval(self, logit: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
        """Return both ends of the Wald interval of the probabilities.

        It holds the uncertainty of this fit alone, not that of the log odds.
        """
        z = float(special.ndtri(0.5 + check_level(level) / 2))
        x = _logits(logit)
        a, ab, b = self.covariance
        half = z * np.sqrt(np.maximum(a + 2 * ab * x + b * x**2, 0.0))
        eta = self.intercept + self.slope * x
        return special.expit(eta - half), special.expit(eta + half)


@dataclass(frozen=True)
class Temperature(_Map):
    """Division of the log odds by one number; the order and 0.5 stay.

    Attributes
    ----------
    temperature : float
        Above 1 makes probabilities less extreme; from 0.05 to 20.
    se : float or None
        Standard error of 1 / temperature; None where it is at an end of its range.
    n, events : int
        What it was fitted on.

    References
    ----------
    Guo et al. 2017, arXiv:1706.04599.
    """

    kind: ClassVar[str] = "temperature"
    RANGE: ClassVar[tuple[float, float]] = (0.05, 20.0)
    temperature: float
    se: float | None
    n: int
    events: int

    @classmethod
    def fit(
        cls, outcome: ArrayLike, logit: ArrayLike, weights: ArrayLike | None = None
    ) -> Temperature:
        """Fit by the largest likelihood.

        Log odds that have all cases on the right side give 0.05, those that are no better
        than none give 20: ends of the range.

        Parameters
        ----------
        outcome, logit, weights
            As in `Platt.fit`.

        Raises
        ------
        InputError
            If the arrays cannot be used, or all cases have the same outcome.
        """
        y, x, row = _arrays(outcome, logit, weights)

        def slope(sharpness: float) -> float:
            return float(row[0] @ (x * (y - special.expit(sharpness * x))))

        ends = 1 / cls.RANGE[1], 1 / cls.RANGE[0]
        if slope(ends[0]) <= 0:
            return cls(cls.RANGE[1], None, y.size, int(y.sum()))
        if slope(ends[1]) >= 0:
            return cls(cls.RANGE[0], None, y.size, int(y.sum()))
        sharpness = float(optimize.brentq(slope, *ends, xtol=1e-14, rtol=1e-14))
        mean = special.expit(sharpness * x)
        information = float(row[0] @ (x**2 * mean * (1 - mean)))
        return cls(1 / sharpness, information**-0.5, y.size, int(y.sum()))

    def apply(self, logit: ArrayLike) -> Floats:
        """Return probabilities in the shape of the log odds.

        Raises
        ------
        InputError
            If a value is not finite.
        """
        return special.expit(_logits(logit) / self.temperature)

    def interval(self, logit: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
        """Return both ends of the Wald interval of the probabilities.

        It holds the uncertainty of this fit alone, not that of the log odds; without a
        standard error both ends are the probability.
        """
        z = float(special.ndtri(0.5 + check_level(level) / 2))
        x = _logits(logit)
        half = z * (self.se or 0.0) * np.abs(x)
        return special.expit(x / self.temperature - half), special.expit(
            x / self.temperature + half
        )


@dataclass(frozen=True)
class Isotonic(_Map):
    """The rising map that is nearest to the outcomes, linear between its knots.

    It may give 0 and 1, and needs many cases (about 1,000): with few it repeats them.

    Attributes
    ----------
    logits, probabilities : tuple of floats (K,)
        Knots; before the first and after the last the map is constant.
    cases : tuple of floats (K,)
        Weight of the cases in the level of each knot.
    n, events : int
        What it was fitted on.

    References
    ----------
    Zadrozny and Elkan 2002, doi:10.1145/775047.775151.
    """

    kind: ClassVar[str] = "isotonic"
    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    cases: tuple[float, ...]
    n: int
    events: int

    def __post_init__(self) -> None:
        for name in ("logits", "probabilities", "cases"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))

    @classmethod
    def fit(
        cls, outcome: ArrayLike, logit: ArrayLike, weights: ArrayLike | None = None
    ) -> Isotonic:
        """Fit by pooling adjacent violators.

        Parameters
        ----------
        outcome, logit, weights
            As in `Platt.fit`.

        Raises
        ------
        InputError
            If the arrays cannot be used, or all cases have the same outcome.
        """
        y, x, row = _arrays(outcome, logit, weights)
        used = row[0] > 0
        knots, which = np.unique(x[used], return_inverse=True)
        cases = np.bincount(which, row[0][used])
        shares = np.bincount(which, (row[0] * y)[used]) / cases
        levels = optimize.isotonic_regression(shares, weights=cases)
        pooled = np.repeat(np.add.reduceat(cases, levels.blocks[:-1]), np.diff(levels.blocks))
        level = np.clip(levels.x, 0.0, 1.0)
        # inside a level only its two ends are needed
        keep = np.ones(level.size, bool)
        keep[1:-1] = (level[1:-1] != level[:-2]) | (level[1:-1] != level[2:])
        parts = [tuple(part[keep].tolist()) for part in (knots, level, pooled)]
        return cls(parts[0], parts[1], parts[2], y.size, int(y.sum()))

    def apply(self, logit: ArrayLike) -> Floats:
        """Return probabilities in the shape of the log odds.

        Raises
        ------
        InputError
            If a value is not finite.
        """
        return np.interp(_logits(logit), self.logits, self.probabilities)

    def interval(self, logit: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
        """Return both ends of the interval of the probabilities.

        Wilson's of the cases of each level, linear between knots. It holds the uncertainty
        of this fit alone, not that of the log odds, and is no interval that keeps its
        coverage: the fit chose the levels by the same outcomes, and where a step was put is
        not part of it. At a step it is degenerate: a level of one case reaches from about 0
        to 0.8 or from 0.2 to 1, and log odds between two levels get a mixture of both. Use
        `Platt` where the interval is to be read.
        """
        x = _logits(logit)
        share, cases = np.array(self.probabilities), np.array(self.cases)
        low, high = wilson(share * cases, cases, level)
        return np.interp(x, self.logits, low), np.interp(x, self.logits, high)


_KINDS: dict[str, type[Platt] | type[Isotonic] | type[Temperature]] = {
    cls.kind: cls for cls in (Platt, Isotonic, Temperature)
}


_SEVERAL = {"covariance", "logits", "probabilities", "cases"}


def fit_recalibration(
    kind: str, outcome: ArrayLike, logit: ArrayLike, weights: ArrayLike | None = None
) -> Recalibration:
    """Fit "platt", "isotonic" or "temperature".

    Raises
    ------
    UsageError
        For another kind.
    InputError
        If the arrays cannot be used, or all cases have the same outcome.
    """
    if kind not in _KINDS:
        raise UsageError("unknown recalibration", expected=", ".join(_KINDS), got=repr(kind))
    return _KINDS[kind].fit(outcome, logit, weights)


def recalibration_from_dict(record: Mapping[str, Any]) -> Recalibration:
    """Return the recalibration that `to_dict` described.

    Raises
    ------
    InputError
        If the record is not one of a recalibration.
    """
    cls = _KINDS.get(str(record.get("kind")))
    parts = {k: v for k, v in record.items() if k != "kind"}
    if cls is None or set(parts) != {f.name for f in fields(cls)}:
        raise InputError("this is no recalibration", expected=", ".join(_KINDS))
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in parts.items()}
    _check_numbers(lists)
    return cls(**lists)


def _check_numbers(parts: Mapping[str, Any]) -> None:
    """Refuse what would later give NaN or another length than the other parts."""
    for name, value in parts.items():
        if value is None and name == "se":
            continue
        several = isinstance(value, tuple)
        values = value if several else (value,)
        number = all(isinstance(v, int | float) and np.isfinite(v) for v in values)
        right = number and several == (name in _SEVERAL)
        if not right or (name == "temperature" and value <= 0):
            raise InputError(f"{name} of a recalibration is not usable")
    lengths = {len(parts[k]) for k in ("logits", "probabilities", "cases") if k in parts}
    rises = np.diff(parts.get("logits", (0.0,)))
    if len(lengths) > 1 or 0 in lengths or (rises <= 0).any():
        raise InputError("knots of a recalibration do not rise or have several lengths")
    if len(parts.get("covariance", (0, 0, 0))) != 3:
        raise InputError("covariance of a recalibration is not usable", expected="3 numbers")


def recalibration_from_json(text: str) -> Recalibration:
    """Return the recalibration that `to_json` described.

    Raises
    ------
    InputError
        If the text is not JSON of a recalibration.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        raise InputError("this is no JSON of a recalibration") from None
    if not isinstance(record, dict):
        raise InputError("this is no recalibration", expected=", ".join(_KINDS))
    return recalibration_from_dict(record)


def _arrays(
    outcome: ArrayLike, logit: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    y = binary(outcome)
    x = column(logit, y.size, "the log odds")
    row, single = weight_rows(weights, y.size)
    used = row[0] > 0
    if not single or not used.any() or not both_classes(y[used]):
        raise InputError("all cases have the same outcome: nothing to recalibrate with")
    return y, x, row


def _logits(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    if not np.isfinite(x).all():
        raise InputError("log odds are missing or infinite", hint="clip probabilities of 0 and 1")
    return x
