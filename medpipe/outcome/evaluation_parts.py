"""The parts of an evaluation that are of one model: its figures and its curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError
from medpipe.outcome.metrics import benefit, calibration, curves, proper, threshold
from medpipe.outcome.metrics.bootstrap import bootstrap, weight_blocks
from medpipe.stats.arrays import finish, ratio
from medpipe.stats.interval import Interval
from medpipe.stats.ranking import auroc, average_precision, delong

__all__ = [
    "MIN_CASES",
    "MIN_EVENTS",
    "TOO_SMALL",
    "Resampling",
    "constant_in_folds",
    "curves_of",
    "holm",
    "metrics_of",
    "recalibrated_part",
    "rounded",
    "too_small",
    "treat_all",
    "without_interval",
]

MIN_CASES = 20
MIN_EVENTS = 5
"""A group with fewer cases, or fewer of either class, gets no interval."""
TOO_SMALL = f"fewer than {MIN_CASES} cases, or {MIN_EVENTS} of a class: too small for an interval"

WILSON = "no resample differs: interval of Wilson"
BY_DEFINITION = "by definition"
"""The method of a figure that no data could change."""

_THRESHOLDS = np.round(np.arange(0.01, 0.905, 0.01), 2)
_BINS = 20
_CASES_IN_BIN = 20
_POINTS = 101

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Resampling:
    """Who is resampled and how.

    Parameters
    ----------
    patients : array of int (n,)
        Number of each case's patient.
    repeated : bool
        Whether a patient has several cases.
    n, seed : int
    level : float
    """

    patients: Ints
    repeated: bool
    n: int
    seed: int
    level: float

    @property
    def clusters(self) -> Ints | None:
        """The patients where cases are not independent."""
        return self.patients if self.repeated else None

    def among(self, groups: Any) -> Resampling:
        """Return the same for other cases, by their patients."""
        patients = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
        repeated = int(patients.max()) + 1 < patients.size
        return Resampling(patients, repeated, self.n, self.seed, self.level)

    def of(self, kept: Any) -> Resampling:
        """Return the same for some of the cases."""
        patients = np.unique(self.patients[kept], return_inverse=True)[1].astype(np.int64)
        repeated = bool(patients.size) and int(patients.max()) + 1 < patients.size
        return Resampling(patients, repeated, self.n, self.seed, self.level)

    def interval(
        self,
        outcome: Ints,
        columns: Any,
        statistic: Callable[..., Any],
        *,
        stratified: bool = False,
        small: bool | None = None,
    ) -> Interval:
        """Return a statistic with its interval; too small a group gets none.

        What depends on how frequent the event is, is resampled without regard to it. `small`
        says that a group is, where the outcome alone does not.
        """
        if too_small(outcome) if small is None else small:
            return _alone(outcome, columns, statistic, self.level)
        return bootstrap(
            outcome, columns, statistic, groups=self.patients, n=self.n, seed=self.seed,
            stratified=stratified, level=self.level,
        )  # fmt: skip

    def area(self, outcome: Ints, score: Floats) -> Interval:
        """Return the AUROC with the interval of DeLong; too small a group gets none."""
        found = delong(outcome, score, self.level, groups=self.clusters)
        return without_interval(found) if too_small(outcome) else found


def too_small(outcome: Ints) -> bool:
    """Whether there are too few cases, with the event or without, for an interval."""
    events = int(outcome.sum())
    return outcome.size < MIN_CASES or min(events, outcome.size - events) < MIN_EVENTS


def _alone(outcome: Ints, columns: Any, statistic: Callable[..., Any], level: float) -> Interval:
    """Return a statistic without an interval; without a value where it has none."""
    counts, value, note = (outcome.size, int(outcome.sum())), None, TOO_SMALL
    try:
        given = columns if isinstance(columns, tuple) else (columns,)
        value = float(statistic(outcome, *given))
    except InputError as error:
        note = error.what
    return Interval(value, None, None, *counts, "none", level, None, note)


def without_interval(figure: Interval) -> Interval:
    """Return a figure whose group is too small for an interval."""
    note = figure.note if figure.value is None else TOO_SMALL
    return Interval(
        figure.value, None, None, figure.n, figure.events, "none", figure.level, None, note
    )


def constant_in_folds(probability: Floats, fold: Ints) -> bool:
    """Whether all cases of a fold have the same probability, in every fold."""
    return all(np.ptp(probability[fold == k]) < 1e-12 for k in np.unique(fold))


def metrics_of(
    outcome: Ints,
    probability: Floats,
    called: Floats,
    fold: Ints,
    how: Resampling,
    *,
    ranks: bool,
) -> dict[str, Interval]:
    """Return every figure of a model.

    Parameters
    ----------
    outcome, probability : array (n,)
    called : array (n,)
        1 for cases at or above the threshold of their fold.
    fold : array of int (n,)
    how : Resampling
    ranks : bool
        False for a model that gives all cases of a fold the same probability. Its folds
        differ by chance only, against the outcome: it is ranked as constant.
    """
    score = probability if ranks else np.zeros_like(probability)
    out = {
        "auroc": how.area(outcome, score),
        "auroc_within_folds": how.interval(outcome, (score, fold), _within_folds, stratified=True),
        "average_precision": how.interval(outcome, score, average_precision),
    }
    for name, statistic in _OF_PROBABILITY.items():
        out[name] = how.interval(outcome, probability, statistic)
    if not ranks:
        counts = len(outcome), int(outcome.sum())
        why = "all cases of a fold have the same probability"
        half = Interval(0.5, None, None, *counts, BY_DEFINITION, how.level, None, why)
        out |= {"auroc": half, "auroc_within_folds": half}
        none = Interval(None, None, None, *counts, "none", how.level, None, f"{why}: no slope")
        out["calibration_slope"] = none
    exact = threshold.operating_point(outcome, called, 0.5, how.level)
    for name, decision in _OF_DECISION.items():
        out[name] = how.interval(outcome, called, decision)
        same = out[name].low is not None and out[name].low == out[name].high
        if same and name in exact:  # no resample differs: that is no certainty
            cases = ", cases taken as independent" if how.repeated else ""
            out[name] = replace(exact[name], note=exact[name].note or f"{WILSON}{cases}")
        elif same:
            method = "none" if np.ptp(called) else BY_DEFINITION
            out[name] = replace(out[name], low=None, high=None, method=method)
    return out


def _within_folds(
    outcome: Floats, score: Floats, fold: Ints, weights: Any = None
) -> float | Floats:
    """Return the AUROC over the pairs of cases of the same fold."""
    rows = np.ones((1, outcome.size)) if weights is None else np.atleast_2d(weights)
    right = pairs = np.zeros(len(rows))
    for k in np.unique(fold):
        here = fold == k
        if len(np.unique(outcome[here])) < 2:
            continue
        count = (rows[:, here] @ outcome[here]) * (rows[:, here] @ (1 - outcome[here]))
        area = np.asarray(auroc(outcome[here], score[here], rows[:, here]))
        right = right + np.where(count > 0, np.nan_to_num(area) * count, 0.0)
        pairs = pairs + count
    return finish(ratio(right, pairs), weights is None, "every fold has one class only")


_OF_PROBABILITY: dict[str, Callable[..., Any]] = {
    "brier": proper.brier,
    "scaled_brier": proper.scaled_brier,
    "log_loss": proper.log_loss,
    "calibration_slope": calibration.calibration_slope,
    "calibration_intercept": calibration.calibration_intercept,
    "expected_calibration_error": calibration.expected_calibration_error,
}


def _other_f1(outcome: Any, called: Any, weights: Any = None) -> Any:
    return threshold.f1(outcome, called, 0.5, weights, label=0)


_OF_DECISION: dict[str, Callable[..., Any]] = {
    "sensitivity": threshold.sensitivity,
    "specificity": threshold.specificity,
    "ppv": threshold.ppv,
    "npv": threshold.npv,
    "accuracy": threshold.accuracy,
    "balanced_accuracy": threshold.balanced_accuracy,
    "f1_event": threshold.f1,
    "f1_other": _other_f1,
}


def recalibrated_part(
    outcome: Ints, before: Floats | None, how: Resampling
) -> dict[str, Interval] | None:
    """Return the figures of calibration before recalibration."""
    if before is None:
        return None
    before = np.asarray(before, float)
    return {name: how.interval(outcome, before, s) for name, s in _OF_PROBABILITY.items()}


def curves_of(
    outcome: Ints,
    probability: Floats,
    before: Floats | None,
    how: Resampling,
    *,
    ranks: bool,
    primary: bool,
) -> dict[str, Any]:
    """Return the curves of a model: x, y and, of the primary model, bands.

    Parameters
    ----------
    before : array (n,), optional
        Probabilities before recalibration.
    ranks, primary : bool
        A model that does not rank has no ROC; bands are of the primary model.
    """
    none: dict[str, Any] = {"roc": None, "precision_recall": None, "calibration": None}
    benefits = benefit.net_benefit(outcome, probability, _THRESHOLDS)
    edges = np.linspace(0, 1, _BINS + 1)
    counts = {
        name: np.histogram(probability[outcome == v], edges)[0]
        for name, v in (("with_event", 1), ("without_event", 0))
    }
    out = none | {
        "net_benefit": _curve(_THRESHOLDS, benefits),
        "distribution": {"edges": edges, **counts},
    }
    if not ranks:
        return out
    rates, found, _ = curves.roc_curve(outcome, probability)
    recall, precision, _ = curves.precision_recall_curve(outcome, probability)
    out["roc"] = _curve(rates, found)
    out["precision_recall"] = _curve(recall, precision)
    out["calibration"] = _calibration(outcome, probability, before, how)
    if primary and not too_small(outcome):
        options: dict[str, Any] = {
            "groups": how.patients, "n": how.n, "seed": how.seed, "level": how.level
        }  # fmt: skip
        out["roc"] |= _band(*curves.roc_band(outcome, probability, **options))
        out["precision_recall"] |= _band(*_recall_band(outcome, probability, how))
        decision = benefit.decision_curve(outcome, probability, _THRESHOLDS, **options)
        out["net_benefit"] |= _band(_THRESHOLDS, decision.low, decision.high)
    return out


def rounded(values: Any) -> list[float]:
    """Return numbers to six places, enough for a curve."""
    return np.round(np.asarray(values, float), 6).tolist()


def _curve(x: Any, y: Any) -> dict[str, Any]:
    return {"x": rounded(x), "y": rounded(y)}


def _band(x: Any, low: Any, high: Any) -> dict[str, Any]:
    return {"band_x": rounded(x), "low": rounded(low), "high": rounded(high)}


def _calibration(
    outcome: Ints, probability: Floats, before: Floats | None, how: Resampling
) -> dict[str, Any]:
    count = min(10, max(2, outcome.size // _CASES_IN_BIN))
    bins = calibration.calibration_curve(outcome, probability, count, how.level)
    small = bins.n < MIN_EVENTS
    rows = [
        {"mean": m, "observed": o, "low": None if s else low, "high": None if s else high,
         "n": int(n), "events": int(e)}
        for m, o, low, high, n, e, s in zip(*bins, small, strict=True)
    ]  # fmt: skip
    smooth = calibration.smooth_calibration(outcome, probability)
    out: dict[str, Any] = {"bins": rows, "smooth": _curve(smooth[0], smooth[1]), "before": None}
    if before is not None:
        smooth = calibration.smooth_calibration(outcome, np.asarray(before, float))
        out["before"] = _curve(smooth[0], smooth[1])
    return out


def _recall_band(outcome: Ints, score: Floats, how: Resampling) -> tuple[Floats, Floats, Floats]:
    """Return the percentile interval of the precision where the recall reaches a rate."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    rates = np.linspace(0, 1, _POINTS)[1:]
    found = []
    for rows in weight_blocks(outcome, how.patients, n=how.n, seed=how.seed, stratified=False):
        events = (rows[:, order] * outcome[order]).cumsum(axis=1)[:, last]
        called = rows[:, order].cumsum(axis=1)[:, last]
        for up, of in zip(events, called, strict=True):
            if up[-1] > 0:
                at = np.searchsorted(up / up[-1], rates - 1e-12)
                found.append(up[at] / of[at])
    if not found:
        return rates[:0], rates[:0], rates[:0]
    low, high = np.quantile(found, [0.5 - how.level / 2, 0.5 + how.level / 2], axis=0)
    return rates, low, high


def treat_all(outcome: Ints) -> dict[str, Any]:
    """Return the net benefit of acting on everyone."""
    return _curve(_THRESHOLDS, benefit.net_benefit_all(outcome, _THRESHOLDS))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return probabilities corrected for their number after Holm; None stays None.

    References
    ----------
    Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    known = sorted((value, i) for i, value in enumerate(p) if value is not None)
    out: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, value * (len(known) - rank)))
        out[i] = largest
    return out
