"""The parts of an evaluation that are of groups of cases and of folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medpipe.outcome.evaluation_parts import (
    Floats,
    Ints,
    Resampling,
    too_small,
    without_interval,
)
from medpipe.outcome.metrics import proper
from medpipe.outcome.metrics.shares import proportion
from medpipe.stats.interval import Interval

__all__ = ["fold_rows", "share_of_events", "site_rows", "subgroup_rows"]


def share_of_events(outcome: Ints, how: Resampling) -> Interval:
    """Return the share of events: Wilson's interval, or by patient where one has several cases."""
    if how.repeated and not too_small(outcome):
        return how.interval(outcome, outcome, _mean)
    events = int(outcome.sum())
    return proportion(events, outcome.size, events=events, level=how.level)


def _row(label: str, outcome: Ints, probability: Floats, how: Resampling, kept: Any) -> dict:
    y, p, part = outcome[kept], probability[kept], how.of(kept)
    observed = share_of_events(y, part)
    return {
        "label": label,
        "n": y.size,
        "patients": int(part.patients.max()) + 1,
        "events": int(y.sum()),
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
