"""The part of an evaluation that is of times to the event, which may be censored."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from medpipe.errors import InputError
from medpipe.figures.svg import ticks
from medpipe.outcome.evaluation_parts import (
    MIN_CASES,
    MIN_EVENTS,
    Floats,
    Ints,
    Resampling,
    rounded,
)
from medpipe.outcome.metrics import survival, survival_calibration
from medpipe.outcome.metrics._censoring import survival_rows
from medpipe.outcome.metrics.bootstrap import weight_blocks
from medpipe.outcome.metrics.shares import wilson
from medpipe.outcome.predictions import SurvivalPredictions
from medpipe.stats.interval import Interval

__all__ = ["reference_survival", "survival_notes", "survival_part"]

GROUPS = ("low risk", "middle risk", "high risk")
"""Thirds of the cases by predicted risk."""
_CASES_IN_BIN = 20


def survival_part(given: SurvivalPredictions, how: Resampling) -> dict[str, Any]:
    """Return figures and curves of times to the event, up to the last time of the predictions.

    The risk of a case is 1 minus its predicted survival at that time, the horizon.
    """
    event, time = np.asarray(given.event, np.int64), np.asarray(given.time_days, float)
    table, at = np.asarray(given.survival, float), np.asarray(given.at_days, float)
    last = float(at[-1])
    part = how.among(np.arange(len(event)) if given.groups is None else given.groups)
    early = int(((event == 1) & (time <= last)).sum())
    reference = reference_survival(event, time, at, given.fold)
    seen = survival.kaplan_meier(event, time, how.level)
    return {
        "n": len(event),
        "patients": int(part.patients.max()) + 1,
        "events": int(event.sum()),
        "horizon_days": last,
        "events_by_horizon": early,
        "censored_before_horizon": int(((event == 0) & (time < last)).sum()),
        "follow_up_days": _follow_up(event, time),
        "reference": "the other folds" if given.fold is not None else "all cases",
        "figures": _figures(event, time, table, at, reference, part),
        "kaplan_meier": _curve(seen),
        "groups": _risk_groups(event, time, table, at, part),
        "calibration": _calibration(event, time, 1 - table[:, -1], last, part),
        "brier": _brier_curves(event, time, table, reference, at),
    }


def reference_survival(event: Ints, time: Floats, at: Floats, fold: Ints | None = None) -> Floats:
    """Return what is predicted without looking at a case (n, K): Kaplan-Meier's curve.

    That of the other folds; that of all cases where there are no folds.
    """
    where = np.zeros(len(event), np.int64) if fold is None else np.asarray(fold)
    out = np.empty((len(event), at.size))
    for k in np.unique(where):
        others = where != k if fold is not None and len(np.unique(where)) > 1 else where == k
        out[where == k] = survival.kaplan_meier(event[others], time[others]).at(at)
    return out


def survival_notes(given: SurvivalPredictions | None, outcome: Ints) -> list[str]:
    """Return where the outcome of a case does not follow from its time to the event."""
    if given is None or len(given.event) != len(outcome):
        return []
    event, time = np.asarray(given.event), np.asarray(given.time_days, float)
    last = float(np.asarray(given.at_days, float)[-1])
    out = []
    lost = int(((event == 0) & (time < last) & (outcome == 0)).sum())
    if lost:
        out.append(
            f"{lost} cases without the event were observed for less than {last:g} days: figures "
            "of classes take their outcome as it is given, those of times to the event do not."
        )
    other = int((((event == 1) & (time <= last)) != (outcome == 1)).sum())
    if other:
        out.append(
            f"In {other} cases the outcome is another than the event until {last:g} days says."
        )
    return out


def _figures(
    event: Ints, time: Floats, table: Floats, at: Floats, reference: Floats, part: Resampling
) -> dict[str, Interval]:
    """Return name and figure of each measure."""
    last, end = float(at[-1]), table[:, -1]
    early = int(((event == 1) & (time <= last)).sum())
    small = event.size < MIN_CASES or early < MIN_EVENTS

    def figure(columns: tuple[Floats, ...], statistic: Any, **fixed: Any) -> Interval:
        return part.interval(event, columns, partial(statistic, **fixed), small=small)

    at_last = {"at_days": last}
    out = {
        "Concordance (Uno, IPCW)": figure(
            (time, 1 - end), survival.concordance_ipcw, tau_days=last
        ),
        f"AUROC at {last:g} days (IPCW)": figure((time, 1 - end), survival.auroc_at, **at_last),
        f"Brier score at {last:g} days (IPCW)": figure((time, end), survival.brier_ipcw, **at_last),
    }
    if at.size > 1:
        span = f"{at[0]:g} to {last:g} days"
        several = {"at_days": at}
        out |= {
            f"Integrated Brier score, {span} (IPCW)": figure(
                (time, table), survival.integrated_brier, **several
            ),
            "The same of Kaplan-Meier for everyone": figure(
                (time, reference), survival.integrated_brier, **several
            ),
            "Scaled integrated Brier score, 0 = Kaplan-Meier": figure(
                (time, table, reference), survival.scaled_integrated_brier, **several
            ),
        }
    out[f"Observed / expected events by {last:g} days"] = figure(
        (time, end), survival_calibration.observed_over_expected, **at_last
    )
    out[f"Calibration slope at {last:g} days (IPCW)"] = figure(
        (time, end), survival_calibration.calibration_slope_at, **at_last
    )
    return out


def _follow_up(event: Ints, time: Floats) -> float | None:
    """Return the median time of observation by Kaplan-Meier of censoring, None if not reached."""
    curve = survival.kaplan_meier(1 - event, time)
    reached = np.flatnonzero(curve.survival <= 0.5)
    return float(curve.time_days[reached[0]]) if reached.size else None


def _curve(seen: survival.KaplanMeier) -> dict[str, Any]:
    return {
        "x": rounded(seen.time_days),
        "y": rounded(seen.survival),
        "low": rounded(seen.low),
        "high": rounded(seen.high),
    }


def _risk_groups(
    event: Ints, time: Floats, table: Floats, at: Floats, part: Resampling
) -> dict[str, Any]:
    """Return observed and mean predicted survival of thirds of the cases by predicted risk."""
    last, risk = float(at[-1]), 1 - table[:, -1]
    which = np.searchsorted(np.quantile(risk, [1 / 3, 2 / 3]), risk, side="left")
    marks = np.array(ticks(0.0, last, 5))
    rows = []
    for k in np.unique(which):
        kept = which == k
        rows.append(
            {
                "label": GROUPS[k],
                "n": int(kept.sum()),
                "events": int((event[kept] & (time[kept] <= last)).sum()),
                "risk": {"low": float(risk[kept].min()), "high": float(risk[kept].max())},
                "observed": _observed_curve(event[kept], time[kept], last, part.of(kept)),
                "predicted": {
                    "x": [0.0, *rounded(at)],
                    "y": [1.0, *rounded(table[kept].mean(axis=0))],
                },
                "at_risk": [int((time[kept] >= t).sum()) for t in marks],
            }
        )
    return {
        "marks_days": rounded(marks),
        "rows": rows,
        "test": _test(event, time, which, last, part),
    }


def _observed_curve(event: Ints, time: Floats, last: float, how: Resampling) -> dict[str, Any]:
    """Return Kaplan-Meier's curve to the horizon or to the last case seen, with its band."""
    curve = survival.kaplan_meier(event, time, how.level)
    kept = curve.time_days <= last
    x, y = curve.time_days[kept], curve.survival[kept]
    low, high = curve.low[kept], curve.high[kept]
    if how.repeated and x.size:
        blocks = weight_blocks(event, how.patients, n=how.n, seed=how.seed, stratified=False)
        rows = [survival_rows(event.astype(float), time, w, x) for w in blocks]
        tails = [0.5 - how.level / 2, 0.5 + how.level / 2]
        low, high = np.quantile(np.concatenate(rows), tails, axis=0)
    if event.size < MIN_CASES:
        low = high = low[:0]
    return {
        "x": rounded(x),
        "y": rounded(y),
        "low": rounded(low),
        "high": rounded(high),
        "until": min(last, float(time.max())),
    }


def _test(
    event: Ints, time: Floats, which: Ints, last: float, part: Resampling
) -> dict[str, Any] | None:
    """Return the log-rank test of the groups until the horizon, None where there is none."""
    early = (event == 1) & (time <= last)
    try:
        found = survival_calibration.logrank(
            early, np.minimum(time, last), which, part.patients if part.repeated else None
        )
    except InputError:
        return None
    small = event.size < MIN_CASES or early.sum() < MIN_EVENTS
    return {
        "statistic": None if small else found.statistic,
        "degrees": found.degrees,
        "p": None if small else found.p,
        "n": len(event),
        "events": int(early.sum()),
        "method": "log-rank, by patient" if part.repeated else "log-rank",
    }


def _calibration(
    event: Ints, time: Floats, risk: Floats, last: float, part: Resampling
) -> dict[str, Any]:
    """Return observed against predicted shares with the event by the horizon, in equal groups."""
    count = min(10, max(2, event.size // _CASES_IN_BIN))
    edges = np.unique(np.quantile(risk, np.linspace(0, 1, count + 1)[1:-1]))
    which = np.searchsorted(edges, risk, side="left")
    rows = [
        {
            "mean": float(risk[which == k].mean()),
            **_observed_share(event[which == k], time[which == k], last, part.of(which == k)),
        }
        for k in np.unique(which)
    ]
    return {"at_days": last, "bins": rows}


def _observed_share(event: Ints, time: Floats, last: float, how: Resampling) -> Mapping[str, Any]:
    """Return the Kaplan-Meier share with the event by a time and its interval."""
    curve = survival.kaplan_meier(event, time, how.level)
    before = np.flatnonzero(curve.time_days <= last)
    share = 1 - float(curve.at(last))
    out: dict[str, Any] = {
        "observed": share,
        "low": None,
        "high": None,
        "n": event.size,
        "events": int(before.size and curve.events[before].sum()),
    }
    if share < 1 and float(time.max()) < last:  # nobody was seen until then
        return out | {"observed": None}
    if event.size < MIN_EVENTS:
        return out
    if not before.size:
        there = int((time >= last).sum())
        high = float(wilson(0, there, how.level)[1]) if there else None
        return out | {"low": 0.0 if there else None, "high": high}
    return out | {
        "low": 1 - float(curve.high[before[-1]]),
        "high": 1 - float(curve.low[before[-1]]),
    }


def _brier_curves(
    event: Ints, time: Floats, table: Floats, reference: Floats, at: Floats
) -> dict[str, Any]:
    """Return the Brier score of the model and of the reference at each time."""
    scores = [
        [float(survival.brier_ipcw(event, time, values[:, k], at_days=t)) for k, t in enumerate(at)]
        for values in (table, reference)
    ]
    return {"x": rounded(at), "y": rounded(scores[0]), "reference": rounded(scores[1])}
