"""The parts of an evaluation that are of groups of cases, of folds, and of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from medpipe.outcome.evaluation_parts import (
    Floats,
    Ints,
    Resampling,
    rounded,
    too_small,
    without_interval,
)
from medpipe.outcome.metrics import proper, survival
from medpipe.outcome.metrics.shares import proportion

__all__ = [
    "SurvivalPredictions",
    "fold_rows",
    "site_rows",
    "subgroup_rows",
    "survival_part",
]


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
        Predicted probability of no event until each of `at_days`.
    at_days : array (K,)
        Rising.
    groups : sequence (n,), optional
        Patients; each case is one by default.
    """

    event: Ints
    time_days: Floats
    survival: Floats
    at_days: Floats
    groups: Sequence[Any] | None = None


def survival_part(given: SurvivalPredictions, how: Resampling) -> dict[str, Any]:
    """Return the figures of times to the event: concordance and Brier scores, by IPCW.

    The concordance is of the risk, 1 minus the predicted survival at the last time, of events
    before that time.
    """
    event, time = np.asarray(given.event, np.int64), np.asarray(given.time_days, float)
    table, at = np.asarray(given.survival, float), np.asarray(given.at_days, float)
    last = float(at[-1])
    part = how.among(np.arange(len(event)) if given.groups is None else given.groups)
    risk = 1 - table[:, -1]
    seen = survival.kaplan_meier(event, time, how.level)
    figures = {
        "Concordance (Uno, IPCW)": part.interval(
            event, (time, risk), partial(survival.concordance_ipcw, tau_days=last)
        ),
        f"AUROC at {last:g} days (IPCW)": part.interval(
            event, (time, risk), partial(survival.auroc_at, at_days=last)
        ),
        f"Brier score at {last:g} days (IPCW)": part.interval(
            event, (time, table[:, -1]), partial(survival.brier_ipcw, at_days=last)
        ),
    }
    if at.size > 1:
        figures[f"Integrated Brier score, {at[0]:g} to {last:g} days (IPCW)"] = part.interval(
            event, (time, table), partial(survival.integrated_brier, at_days=at)
        )
    return {
        "n": len(event),
        "events": int(event.sum()),
        "figures": figures,
        "kaplan_meier": {
            "x": rounded(seen.time_days),
            "y": rounded(seen.survival),
            "low": rounded(seen.low),
            "high": rounded(seen.high),
        },
    }


def _row(label: str, outcome: Ints, probability: Floats, how: Resampling, kept: Any) -> dict:
    y, p, part = outcome[kept], probability[kept], how.of(kept)
    events = int(y.sum())
    observed = proportion(events, y.size, events=events, level=how.level)
    return {
        "label": label,
        "n": y.size,
        "patients": int(part.patients.max()) + 1,
        "events": events,
        "too_small": too_small(y),
        "auroc": part.area(y, p),
        "brier": part.interval(y, p, proper.brier),
        "predicted": part.interval(y, p, _mean),
        "observed": without_interval(observed) if too_small(y) else observed,
    }


def _mean(outcome: Any, probability: Any, weights: Any = None) -> Any:
    if weights is None:
        return float(np.mean(probability))
    rows = np.asarray(weights)
    return rows @ probability / rows.sum(axis=1)


def site_rows(
    outcome: Ints, probability: Floats, sites: Sequence[str] | None, how: Resampling
) -> list[dict[str, Any]]:
    """Return the figures of each site."""
    if sites is None:
        return []
    names = np.asarray([str(s) for s in sites])
    return [
        _row(str(s) or "not given", outcome, probability, how, names == s) for s in np.unique(names)
    ]


_AGES = (
    (-np.inf, 50.0, "age below 50"),
    (50.0, 65.0, "age 50 to 64"),
    (65.0, np.inf, "age 65 or more"),
)
_SEXES = ((0.0, "female"), (1.0, "male"))


def subgroup_rows(
    outcome: Ints, probability: Floats, covariates: Mapping[str, Floats], how: Resampling
) -> list[dict[str, Any]]:
    """Return the figures by age and sex, where they are given; unknown values are a group."""
    groups: list[tuple[str, str, Any]] = []
    if "age_years" in covariates:
        age = np.asarray(covariates["age_years"], float)
        groups += [("age", label, (age >= low) & (age < high)) for low, high, label in _AGES]
        groups.append(("age", "age not known", np.isnan(age)))
    if "sex" in covariates:
        sex = np.asarray(covariates["sex"], float)
        groups += [("sex", label, sex == value) for value, label in _SEXES]
        groups.append(("sex", "sex not known", np.isnan(sex)))
    return [
        {"variable": variable, **_row(label, outcome, probability, how, kept)}
        for variable, label, kept in groups
        if kept.any()
    ]


def fold_rows(
    outcome: Ints,
    probability: Floats,
    fold: Ints,
    thresholds: Sequence[float],
    how: Resampling,
    names: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return counts, AUROC and threshold of each fold; empty where there is one only."""
    rows = []
    if fold.max() < 1:
        return []
    for k in np.unique(fold).tolist():
        y, p, part = outcome[fold == k], probability[fold == k], how.of(fold == k)
        name = str(names[k]) if k < len(names) else str(k + 1)
        rows.append(
            {
                "fold": k + 1,
                "site": "" if name == str(k + 1) else name,
                "n": y.size,
                "patients": int(part.patients.max()) + 1,
                "events": int(y.sum()),
                "too_small": too_small(y),
                "auroc": part.area(y, p),
                "threshold": thresholds[k],
            }
        )
    return rows
