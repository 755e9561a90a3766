"""What the page of an evaluation says of times to the event, from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medpipe.figures.outcome import Bin, calibration_svg
from medpipe.figures.outcome_frame import Facts
from medpipe.figures.outcome_survival import RiskGroup, brier_svg, survival_svg
from medpipe.report.outcome_tables import (
    NONE,
    interval_text,
    p_text,
    percent_of,
    short_interval,
)
from medpipe.report.records import as_dict, as_dicts, number, numbers

__all__ = ["survival_counts", "survival_figures", "survival_sentences", "survival_table"]

_CONCORDANCE = "Concordance (Uno, IPCW)"


def survival_table(evaluation: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Return name and figure (value, interval and note) of each measure."""
    figures = as_dict(as_dict(evaluation.get("survival")).get("figures"))
    return [(str(key), interval_text(as_dict(f), 3)) for key, f in figures.items()]


def survival_counts(evaluation: Mapping[str, Any]) -> str:
    """Return whose times they are, how many events came until when, and who was lost."""
    part = as_dict(evaluation.get("survival"))
    n, early, lost = (
        _whole(part, k) for k in ("n", "events_by_horizon", "censored_before_horizon")
    )
    last = number(part.get("horizon_days"))
    if n is None or early is None or last is None:
        return ""
    text = f"n = {n}, {early} event{'s' if early != 1 else ''} by {last:g} days"
    if lost is not None:
        text += f", {lost} censored before"
    median = number(part.get("follow_up_days"))
    return text + (f"; median follow-up {median:.0f} days" if median is not None else "")


def survival_sentences(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what was found, in sentences that claim no more than the intervals allow."""
    part = as_dict(evaluation.get("survival"))
    figure = as_dict(as_dict(part.get("figures")).get(_CONCORDANCE))
    low, high = number(figure.get("low")), number(figure.get("high"))
    n, early = _whole(part, "n"), _whole(part, "events_by_horizon")
    if low is None or high is None or n is None or early is None:
        return []
    data = "simulated cases" if evaluation.get("simulated") is True else "cases"
    text = f"Time to the event: concordance {short_interval(figure)}, {n} {data}, {early} events"
    if low <= 0.5 <= high:
        text += "; the interval contains 0.5, so it is not shown to be better than chance"
    return [f"{text}."]


def survival_figures(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name and picture of each figure that there is."""
    part = as_dict(evaluation.get("survival"))
    made = [
        ("Survival of risk groups", _groups(evaluation, part)),
        ("Calibration at the horizon", _calibration(evaluation, part)),
        ("Brier score along time", _brier(evaluation, part)),
    ]
    return [(name, svg) for name, svg in made if svg]


def _whole(record: Mapping[str, Any], key: str) -> int | None:
    value = number(record.get(key))
    return None if value is None else int(value)


def _facts(evaluation: Mapping[str, Any], part: Mapping[str, Any], interval: str) -> Facts:
    n, events = (_whole(part, k) or 0 for k in ("n", "events_by_horizon"))
    return Facts(n, events, interval, evaluation.get("simulated") is True)


def _groups(evaluation: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    groups = as_dict(part.get("groups"))
    horizon = number(part.get("horizon_days"))
    rows = [r for r in map(_group, as_dicts(groups.get("rows"))) if r is not None]
    if horizon is None or not rows:
        return ""
    test = as_dict(groups.get("test"))
    said = "no test: too few events"
    if number(test.get("p")) is not None:
        said = f"{test.get('method')}: p {_equal(test['p'])} ({len(rows)} groups)"
    there = any(len(row.low) for row in rows)
    band = f"bands: {percent_of(evaluation)}" if there else "no bands: groups of fewer than 20"
    facts = _facts(evaluation, part, f"thirds of out-of-fold risk; {said}; {band}")
    marks = numbers(groups.get("marks_days"))
    return survival_svg(rows, facts, marks=marks, horizon=horizon)


def _group(row: Mapping[str, Any]) -> RiskGroup | None:
    seen, said = as_dict(row.get("observed")), as_dict(row.get("predicted"))
    until = number(seen.get("until"))
    x, y, low, high = (numbers(seen.get(k)) for k in ("x", "y", "low", "high"))
    if until is None or len(x) != len(y):
        return None
    return RiskGroup(
        str(row.get("label")), _whole(row, "n") or 0, _whole(row, "events") or 0, x, y, until,
        low, high, numbers(said.get("x")), numbers(said.get("y")),
        [int(v) for v in numbers(row.get("at_risk"))],
    )  # fmt: skip


def _equal(value: Any) -> str:
    text = p_text(value)
    return text if text.startswith("<") else f"= {text}"


def _calibration(evaluation: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    data = as_dict(part.get("calibration"))
    last = number(data.get("at_days"))
    bins = []
    for one in as_dicts(data.get("bins")):
        mean, observed = number(one.get("mean")), number(one.get("observed"))
        if mean is not None and observed is not None:
            low, high = number(one.get("low")), number(one.get("high"))
            bins.append(Bin(mean, observed, low, high, _whole(one, "n") or 0))
    if last is None:
        return ""
    figures = as_dict(part.get("figures"))
    ratio, slope = (
        short_interval(as_dict(figures.get(name)))
        for name in (f"Observed / expected events by {last:g} days",
                     f"Calibration slope at {last:g} days (IPCW)")
    )  # fmt: skip
    interval = (
        f"observed / expected {ratio or NONE}, slope {slope or NONE}; seen: Kaplan-Meier at "
        f"{last:g} days; whiskers: {percent_of(evaluation)}"
    )
    return calibration_svg(bins, _facts(evaluation, part, interval))


def _brier(evaluation: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    data = as_dict(part.get("brier"))
    days, model, reference = (numbers(data.get(k)) for k in ("x", "y", "reference"))
    figures = as_dict(part.get("figures"))
    name = "Scaled integrated Brier score, 0 = Kaplan-Meier"
    scaled = short_interval(as_dict(figures.get(name)), 3)
    by = f"Kaplan-Meier of {part.get('reference') or 'all cases'}"
    facts = _facts(evaluation, part, f"scaled integrated score {scaled or NONE}; {by}")
    return brier_svg(days, model, reference, facts)
