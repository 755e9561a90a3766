"""A logistic regression on clinical covariates, as numbers: it predicts without scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, UsageError
from medpipe.outcome.covariates import covariate

__all__ = ["CT_LOGIT", "ClinicalModel", "Term"]

CT_LOGIT: Final = "ct_logit"
"""The covariate of a late fusion that is the logit of the network."""

_SCHEMA: Final = 1
_Z95: Final = 1.959963984540054
# exp of a larger number is of no use as an odds ratio, and would overflow
_LARGEST: Final = 700.0


@dataclass(frozen=True, slots=True)
class Term:
    """One column of the design.

    Attributes
    ----------
    name : str
        Name of the covariate.
    kind : {"value", "missing"}
        Its value, missing ones being the median, or 1 where it is missing.
    median, mean, scale : float
        Of the training cases; the column is ``(value - mean) / scale``.
    coefficient, error : float
        Log odds per `scale`, and its standard error.
    """

    name: str
    kind: Literal["value", "missing"]
    median: float
    mean: float
    scale: float
    coefficient: float = 0.0
    error: float = 0.0

    def column(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standardised column for values with NaN where missing, shape (n,)."""
        missing = np.isnan(values)
        raw = missing.astype(float) if self.kind == "missing" else values
        if self.kind == "value":
            raw = np.where(missing, self.median, values)
        return (raw - self.mean) / self.scale


@dataclass(frozen=True, eq=False)
class ClinicalModel:
    """What was fitted.

    Attributes
    ----------
    terms : tuple of Term
    intercept : float
    inverse_penalty : float
        C of scikit-learn: the variance of the normal prior of a standardised coefficient.
    penalty_chosen : bool
        Whether it was chosen by cross-validation within the training cases.
    cases, patients, events : int
        Training cases, their patients, and patients with the event.
    """

    terms: tuple[Term, ...]
    intercept: float
    inverse_penalty: float
    penalty_chosen: bool
    cases: int
    patients: int
    events: int

    @property
    def names(self) -> tuple[str, ...]:
        """The covariates that the model needs; missing values may be NaN."""
        return tuple(dict.fromkeys(term.name for term in self.terms))

    @property
    def events_per_parameter(self) -> float:
        """Patients of the rarer outcome per coefficient, the intercept not counted."""
        return min(self.events, self.patients - self.events) / max(len(self.terms), 1)

    def design(self, covariates: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the standardised columns, shape (n, number of terms).

        Raises
        ------
        UsageError
            If a covariate of the model is not given, or a value is infinite.
        """
        absent = [name for name in self.names if name not in covariates]
        if absent:
            hint = "give NaN where a value is not known"
            raise UsageError("the model needs more covariates", got=", ".join(absent), hint=hint)
        values = {name: np.asarray(covariates[name], np.float64) for name in self.names}
        if any(np.isinf(v).any() for v in values.values()):
            raise UsageError("a covariate is infinite")
        return np.stack([term.column(values[term.name]) for term in self.terms], axis=1)

    def logit(self, covariates: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the log odds of the event, shape (n,); see `design`."""
        weights = np.array([term.coefficient for term in self.terms])
        return self.intercept + self.design(covariates) @ weights

    def probability(self, covariates: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the probability of the event, shape (n,); see `design`."""
        from scipy.special import expit

        return expit(self.logit(covariates))

    def odds_ratios(self) -> list[dict[str, Any]]:
        """Return an odds ratio with its 95 % interval per term.

        The interval is the one of the penalised likelihood (Laplace's approximation): the
        penalty is a normal prior of variance `inverse_penalty` on each standardised
        coefficient. It does not know of a penalty that was chosen by cross-validation.

        Returns
        -------
        list of dict
            ``name``, ``kind``, ``step`` and ``unit`` (the difference the ratio is for),
            ``odds_ratio``, ``low``, ``high``.
        """
        rows = []
        for term in self.terms:
            rule = covariate(term.name)
            step = rule.step if term.kind == "value" else 1.0
            middle, half = (
                term.coefficient * step / term.scale,
                _Z95 * term.error * step / term.scale,
            )
            ratios = [
                math.exp(min(max(v, -_LARGEST), _LARGEST))
                for v in (middle, middle - half, middle + half)
            ]
            row = {"name": term.name, "kind": term.kind, "step": step, "unit": rule.unit}
            rows.append(row | dict(zip(("odds_ratio", "low", "high"), ratios, strict=True)))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, from which `from_dict` makes the same model."""
        return {
            "schema": _SCHEMA,
            "terms": [asdict(term) for term in self.terms],
            "intercept": self.intercept,
            "inverse_penalty": self.inverse_penalty,
            "penalty_chosen": self.penalty_chosen,
            "cases": self.cases,
            "patients": self.patients,
            "events": self.events,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ClinicalModel:
        """Rebuild what `to_dict` described.

        Raises
        ------
        InputError
            If the record is not of that form, or a number in it is not finite.
        """
        try:
            if record["schema"] != _SCHEMA:
                raise ValueError("another schema")
            model = cls(
                tuple(_term(term) for term in record["terms"]),
                _finite(record["intercept"]),
                _finite(record["inverse_penalty"]),
                bool(record["penalty_chosen"]),
                int(record["cases"]),
                int(record["patients"]),
                int(record["events"]),
            )
        except (KeyError, TypeError, ValueError):
            raise InputError("this is no clinical model", expected="what to_dict made") from None
        return model


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("not a finite number")
    return float(value)


def _term(record: Mapping[str, Any]) -> Term:
    name, kind = record["name"], record["kind"]
    numbers = ("median", "mean", "scale", "coefficient", "error")
    term = Term(name, kind, *(_finite(record[n]) for n in numbers))
    if not isinstance(name, str) or kind not in ("value", "missing") or term.scale <= 0:
        raise ValueError("not a term")
    return term
