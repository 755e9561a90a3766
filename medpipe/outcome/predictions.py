"""Predictions of one cohort by several models, as they are evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import InputError, UsageError
from medpipe.outcome.metrics._censoring import times
from medpipe.outcome.metrics.threshold import threshold_at
from medpipe.stats.arrays import binary, both_classes, probabilities

__all__ = [
    "LABELS",
    "OperatingPoint",
    "Predictions",
    "SurvivalPredictions",
    "cross_fitted_thresholds",
]

LABELS = {
    "prevalence": "Prevalence alone",
    "clinical": "Clinical alone",
    "ct": "CT alone",
    "ct_clinical": "CT + clinical",
}
"""The models that a report compares, in its order; others follow under their own names."""


@dataclass(frozen=True)
class OperatingPoint:
    """The rule that a threshold is chosen by; exactly one of the three.

    Parameters
    ----------
    sensitivity, specificity : float, optional
        At least this.
    youden : bool
        The largest sum of both.
    """

    sensitivity: float | None = None
    specificity: float | None = None
    youden: bool = False

    def text(self) -> str:
        """Return the rule in words."""
        if self.youden:
            return "the largest sum of sensitivity and specificity (Youden)"
        name = "specificity" if self.sensitivity is None else "sensitivity"
        aim = self.specificity if self.sensitivity is None else self.sensitivity
        return f"{name} of at least {aim:g}"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Out-of-fold probabilities of one cohort by several models.

    Parameters
    ----------
    outcome : array of int (n,)
        1 is the event.
    probability : mapping of name to array (n,)
        Of the event, by model: "prevalence", "clinical", "ct", "ct_clinical" (see `LABELS`)
        or names of your own; as they are given to a user, after any recalibration.
    groups : sequence (n,), optional
        The patient of each case, a pseudonym; it is used to count and to resample, and is
        never part of the result. Each case is a patient by default.
    fold : array of int (n,), optional
        The fold that tested each case, from 0.
    uncalibrated : mapping of name to array (n,)
        Out-of-fold probabilities before recalibration, of those models that have it.
    thresholds : mapping of name to sequence of float
        Of each fold in order (or one for all), chosen inside the fold. A model without any
        gets them by `cross_fitted_thresholds`.
    operating_point : str
        The rule that `thresholds` were chosen by, in words.
    sites : sequence of str (n,), optional
    covariates : mapping of name to array of float (n,)
        ``age_years`` and ``sex`` (0 female, 1 male) make subgroups; NaN is missing.
    fold_names : sequence of str
        Such as the sites that are left out.
    simulated : bool
        Whether the data are simulated.

    Raises
    ------
    InputError
        If lengths differ, the outcome is not binary or has one class, or a probability is
        missing or outside 0..1.
    """

    outcome: NDArray[np.int64]
    probability: Mapping[str, NDArray[np.float64]]
    groups: Sequence[Any] | NDArray[Any] | None = None
    fold: NDArray[np.int64] | None = None
    uncalibrated: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    thresholds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    operating_point: str = ""
    sites: Sequence[str] | None = None
    covariates: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    fold_names: Sequence[str] = ()
    simulated: bool = False

    def __post_init__(self) -> None:
        y = binary(self.outcome)
        if not both_classes(y):
            raise InputError("all cases have the same outcome", hint="nothing can be evaluated")
        if not self.probability:
            raise InputError("there is no prediction", expected="one model or more")
        for k, p in self.probability.items():
            probabilities(p, y.size, f"the probability of {k}")
        for k, p in self.uncalibrated.items():
            probabilities(p, y.size, f"the uncalibrated probability of {k}")
        others = {"groups": self.groups, "fold": self.fold, "sites": self.sites}
        for k, values in (
            others | {f"covariate {k}": v for k, v in self.covariates.items()}
        ).items():
            if values is not None and len(values) != y.size:
                raise InputError(
                    f"{k} has another length than the outcome",
                    expected=f"{y.size}",
                    got=f"{len(values)}",
                )
        if self.fold is not None and np.min(self.fold) < 0:
            raise InputError("a case was tested in no fold", expected="a fold for every case")

    @property
    def folds(self) -> NDArray[np.int64]:
        """The fold of each case (n,); all in one where none are given."""
        return np.zeros(len(self.outcome), np.int64) if self.fold is None else np.asarray(self.fold)

    def fold_count(self) -> int:
        """Return the number of folds."""
        return int(self.folds.max()) + 1


@dataclass(frozen=True, eq=False)
class SurvivalPredictions:
    """Out-of-fold predictions of the time to the event.

    Parameters
    ----------
    event : array of int (n,)
        1 where the event was seen, 0 where the case was censored.
    time_days : array (n,)
        To the event or to censoring.
    survival : array (n, K)
        Predicted probability of no event until each of `at_days`; it does not rise.
    at_days : array (K,)
        Rising, above 0; the last is the horizon.
    groups : sequence (n,), optional
        Patients; each case is one by default.
    fold : array of int (n,), optional
        The fold that tested each case, from 0: the reference of a case is then the
        Kaplan-Meier curve of the other folds.

    Raises
    ------
    InputError
        If lengths differ, or an event, a time or a probability cannot be used.
    """

    event: NDArray[np.int64]
    time_days: NDArray[np.float64]
    survival: NDArray[np.float64]
    at_days: NDArray[np.float64]
    groups: Sequence[Any] | NDArray[Any] | None = None
    fold: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        _, time = times(self.event, self.time_days)
        at, table = np.asarray(self.at_days, float), np.asarray(self.survival, float)
        if at.ndim != 1 or not at.size or not (np.diff(at, prepend=0.0) > 0).all():
            raise InputError("times of predictions", expected="one or more above 0 that rise")
        if table.shape != (time.size, at.size):
            raise InputError(
                "predicted shares are a table of cases and times",
                expected=f"({time.size}, {at.size})",
                got=f"{table.shape}",
            )
        probabilities(table.ravel(), None, "the predicted share without the event")
        rises = int((np.diff(table, axis=1) > 1e-9).any(axis=1).sum())
        if rises:
            raise InputError(
                "a predicted share without the event rises with time", got=f"in {rises} cases"
            )
        for name, values in (("groups", self.groups), ("fold", self.fold)):
            if values is not None and len(values) != time.size:
                raise InputError(
                    f"{name} has another length than the events",
                    expected=f"{time.size}",
                    got=f"{len(values)}",
                )


def cross_fitted_thresholds(
    outcome: ArrayLike, probability: ArrayLike, fold: ArrayLike, rule: OperatingPoint
) -> list[float]:
    """Return the threshold of each fold, chosen on the out-of-fold predictions of the others.

    Parameters
    ----------
    outcome, probability, fold : array (n,)
    rule : OperatingPoint

    Raises
    ------
    UsageError
        If there is only one fold: a threshold would be judged on its own cases.
    InputError
        If the other folds have one class only.
    """
    y, p, k = np.asarray(outcome), np.asarray(probability, float), np.asarray(fold)
    count = int(k.max()) + 1
    if count < 2:
        raise UsageError(
            "a threshold cannot be chosen and judged on the same cases",
            expected="folds, or thresholds that were chosen elsewhere",
        )
    return [
        threshold_at(
            y[k != i], p[k != i], sensitivity=rule.sensitivity, specificity=rule.specificity,
            youden=rule.youden,
        )
        for i in range(count)
    ]  # fmt: skip
