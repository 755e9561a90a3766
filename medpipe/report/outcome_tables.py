"""Rows of the tables of an evaluation, from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medpipe.report.records import as_dict, as_dicts, number, numbers

__all__ = [
    "BY_DEFINITION",
    "METRICS",
    "NONE",
    "checklist_rows",
    "fold_table",
    "group_rows",
    "interval_text",
    "metric_table",
    "p_text",
    "percent_of",
    "recalibration_table",
    "short_interval",
    "summary",
    "test_rows",
    "thresholds_text",
    "tiles",
]

METRICS = (
    ("auroc", "AUROC", "ranking"),
    ("auroc_within_folds", "AUROC within folds", "ranking"),
    ("average_precision", "AUPRC, average precision", "ranking"),
    ("brier", "Brier score", "probability"),
    ("scaled_brier", "scaled Brier score", "probability"),
    ("log_loss", "log loss", "probability"),
    ("calibration_slope", "calibration slope", "probability"),
    ("calibration_intercept", "calibration intercept", "probability"),
    ("expected_calibration_error", "expected calibration error", "probability"),
    ("sensitivity", "sensitivity", "threshold"),
    ("specificity", "specificity", "threshold"),
    ("ppv", "positive predictive value", "threshold"),
    ("npv", "negative predictive value", "threshold"),
    ("accuracy", "accuracy", "threshold"),
    ("balanced_accuracy", "balanced accuracy", "threshold"),
    ("f1_event", "F1, event", "threshold"),
    ("f1_other", "F1, no event", "threshold"),
)
"""Key, name and kind of each metric, in the order of the table."""

_DIGITS = {"brier": 3, "scaled_brier": 3, "log_loss": 3, "expected_calibration_error": 3}
_STATES = {"filled": "filled", "partly": "partly", "open": "open"}
NONE = "–"
"""What stands for a figure that there is not."""
BY_DEFINITION = "by definition"
"""The method of a figure that no data could change."""


def interval_text(figure: Mapping[str, Any], digits: int = 2) -> dict[str, str]:
    """Return value, interval and note of a figure as text."""
    value, low, high = (number(figure.get(k)) for k in ("value", "low", "high"))
    note = str(figure.get("note") or "")
    if value is None:
        return {"value": NONE, "between": "not estimable" if figure else "", "note": note}
    if figure.get("method") in (BY_DEFINITION, "none"):
        note = ""  # said by what stands for the interval
    between = BY_DEFINITION if figure.get("method") == BY_DEFINITION else "no interval"
    if low is not None and high is not None:
        between = f"{_signed(low, digits)} to {_signed(high, digits)}"
    return {"value": _signed(value, digits), "between": between, "note": note}


def _signed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def short_interval(figure: Mapping[str, Any], digits: int = 2) -> str:
    """Return ``"0.82 (0.66 to 0.98)"``."""
    text = interval_text(figure, digits)
    return text["value"] if not text["between"] else f"{text['value']} ({text['between']})"


def p_text(value: Any) -> str:
    """Return a probability as papers print it: ``"0.034"``, ``"< 0.001"``."""
    p = number(value)
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent_of(evaluation: Mapping[str, Any]) -> str:
    """Return the level of the intervals: ``"95 %"``."""
    return f"{100 * (number(evaluation.get('level')) or 0.95):g} %"


def metric_table(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns (models) and the rows (metrics) of the comparison."""
    models = as_dicts(evaluation.get("models"))
    rows = []
    for key, name, kind in METRICS:
        figures = [as_dict(as_dict(m.get("metrics")).get(key)) for m in models]
        if not any(figures):
            continue
        cells = [interval_text(f, _DIGITS.get(key, 2)) for f in figures]
        rows.append({"name": name, "kind": kind, "cells": cells})
    columns = []
    for m in models:
        n, events = (int(number(m.get(k)) or 0) for k in ("n", "events"))
        columns.append({"label": str(m.get("label")), "n": n, "events": events})
    return {"columns": columns, "rows": rows}


def _metric(evaluation: Mapping[str, Any], name: Any, key: str) -> dict[str, Any]:
    for model in as_dicts(evaluation.get("models")):
        if model.get("name") == name:
            return as_dict(as_dict(model.get("metrics")).get(key))
    return {}


def _label(evaluation: Mapping[str, Any], name: Any) -> str:
    for model in as_dicts(evaluation.get("models")):
        if model.get("name") == name:
            return str(model.get("label") or name)
    return str(name)


def tiles(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the first numbers of the page: name, value, what stands below it."""
    n, events = (int(number(evaluation.get(k)) or 0) for k in ("n", "events"))
    mark = ", simulated" if evaluation.get("simulated") is True else ""
    share = as_dict(evaluation.get("prevalence"))
    percent = [number(share.get(k)) for k in ("value", "low", "high")]
    between = ""
    if None not in percent:
        value, low, high = (100 * p for p in percent if p is not None)
        between = f"{value:.1f} % ({low:.1f} to {high:.1f})"
    patients = number(evaluation.get("patients"))
    whose = "" if patients in (None, n) else f"of {patients:g} patients"
    out = [
        {"name": f"Cases{mark}", "value": f"{n:,}", "below": whose},
        {"name": f"Events{mark}", "value": f"{events:,}", "below": between},
    ]
    primary = evaluation.get("primary")
    for key, name in (
        ("auroc", "AUROC"),
        ("calibration_slope", "Calibration slope"),
        ("sensitivity", "Sensitivity"),
        ("specificity", "Specificity"),
        ("scaled_brier", "Scaled Brier"),
    ):
        figure = _metric(evaluation, primary, key)
        if figure:
            text = interval_text(figure)
            out.append({"name": f"{name}{mark}", "value": text["value"], "below": text["between"]})
    figures = as_dict(as_dict(evaluation.get("survival")).get("figures"))
    for name, figure in list(figures.items())[:1]:
        text = interval_text(as_dict(figure))
        out.append({"name": f"{name}{mark}", "value": text["value"], "below": text["between"]})
    return out


def summary(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what was found, in sentences that claim no more than the intervals allow."""
    n, events = (int(number(evaluation.get(k)) or 0) for k in ("n", "events"))
    data = "simulated cases" if evaluation.get("simulated") is True else "cases"
    out = []
    for model in as_dicts(evaluation.get("models")):
        figure = as_dict(as_dict(model.get("metrics")).get("auroc"))
        low, high = number(figure.get("low")), number(figure.get("high"))
        if number(figure.get("value")) is None or low is None or high is None or low == high:
            continue
        text = f"{model.get('label')}: AUROC {short_interval(figure)}, {n} {data}, {events} events"
        if low <= 0.5 <= high:
            text += "; the interval contains 0.5, so it is not shown to be better than chance"
        out.append(f"{text}.")
    for test in as_dicts(evaluation.get("tests")):
        out += _test_sentence(evaluation, test)
    slope = _metric(evaluation, evaluation.get("primary"), "calibration_slope")
    low, high = number(slope.get("low")), number(slope.get("high"))
    if low is not None and high is not None:
        label = _label(evaluation, evaluation.get("primary"))
        out.append(f"{label}: calibration slope {short_interval(slope)}, {_spread(low, high)}.")
    return out


def _spread(low: float, high: float) -> str:
    """Return what the interval of a calibration slope says of the spread of probabilities."""
    if low <= 0 and high < 1:
        return "the event is not shown to be more frequent where its probability is higher"
    if high < 1:
        return "the probabilities are too extreme"
    if low > 1:
        return "the probabilities are too moderate"
    if high - low > 1:
        return "too few cases to tell whether the probabilities are too extreme or too moderate"
    return "no sign that probabilities are too extreme or too moderate"


def _test_sentence(evaluation: Mapping[str, Any], test: Mapping[str, Any]) -> list[str]:
    p = number(test.get("p_holm"))
    difference = number(test.get("difference"))
    if p is None or difference is None:
        return []
    a, b = (_label(evaluation, test.get(k)) for k in ("a", "b"))
    figure = interval_text({**test, "value": difference})
    found = (
        f"difference of AUROC {figure['value']} ({figure['between']}), p {_equal(p)} after "
        "Holm's correction"
    )
    if p >= 0.05:
        low, high = number(test.get("low")), number(test.get("high"))
        alone = low is not None and high is not None and not low <= 0 <= high
        why = "; the interval is of this comparison alone, of several" if alone else ""
        return [f"{a} against {b}: {found}{why}; no difference is shown."]
    if difference > 0:
        return [f"{a} ranks better than {b}: {found}."]
    turned = {"difference": -difference, **{k: _less(test.get(v)) for k, v in _TURNED}}
    return _test_sentence(evaluation, {**test, **turned, "a": test.get("b"), "b": test.get("a")})


_TURNED = (("low", "high"), ("high", "low"))


def _less(value: Any) -> float | None:
    found = number(value)
    return None if found is None else -found


def _equal(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def test_rows(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of the DeLong tests."""
    out = []
    for test in as_dicts(evaluation.get("tests")):
        figure = interval_text({**test, "value": test.get("difference")})
        z = number(test.get("z"))
        out.append(
            {
                "a": _label(evaluation, test.get("a")),
                "b": _label(evaluation, test.get("b")),
                "difference": figure["value"],
                "between": figure["between"],
                "z": NONE if z is None else _signed(z, 2),
                "p": p_text(test.get("p")),
                "p_holm": p_text(test.get("p_holm")),
                "note": str(test.get("note") or ""),
            }
        )
    return out


def recalibration_table(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return figures of calibration before and after recalibration."""
    names = {key: name for key, name, _ in METRICS}
    out = []
    for model in as_dicts(evaluation.get("models")):
        before, after = as_dict(model.get("before")), as_dict(model.get("metrics"))
        for key in before:
            if key not in names:
                continue
            digits = _DIGITS.get(key, 2)
            out.append(
                {
                    "label": str(model.get("label")),
                    "name": names[key],
                    "before": short_interval(as_dict(before[key]), digits),
                    "after": short_interval(as_dict(after.get(key)), digits),
                }
            )
    return out


def group_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of sites or subgroups."""
    out = []
    for row in rows:
        n, events = (int(number(row.get(k)) or 0) for k in ("n", "events"))
        out.append(
            {
                "variable": str(row.get("variable") or ""),
                "label": str(row.get("label")),
                "n": n,
                "events": events,
                "small": row.get("too_small") is True,
                "auroc": short_interval(as_dict(row.get("auroc"))),
                "brier": short_interval(as_dict(row.get("brier")), 3),
                "predicted": short_interval(as_dict(row.get("predicted"))),
                "observed": short_interval(as_dict(row.get("observed"))),
            }
        )
    return out


def fold_table(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the folds."""
    out = []
    for row in as_dicts(evaluation.get("folds")):
        counts = {k: number(row.get(k)) for k in ("fold", "n", "patients", "events")}
        threshold = number(row.get("threshold"))
        out.append(
            {k: NONE if v is None else f"{int(v)}" for k, v in counts.items()}
            | {
                "auroc": short_interval(as_dict(row.get("auroc"))),
                "small": row.get("too_small") is True,
                "threshold": NONE if threshold is None else f"{threshold:.3f}",
                "site": str(row.get("site") or ""),
            }
        )
    return out


def checklist_rows(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the items of the checklist."""
    keys = ("number", "section", "topic", "asks", "answer")
    return [
        {k: str(item.get(k) or "") for k in keys}
        | {"state": _STATES.get(str(item.get("state")), "open")}
        for item in as_dicts(evaluation.get("checklist"))
    ]


def thresholds_text(model: Mapping[str, Any]) -> str:
    """Return the threshold of a model, or the range of those of the folds."""
    found = numbers(model.get("thresholds"))
    if not found:
        return ""
    low, high = min(found), max(found)
    return f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"
