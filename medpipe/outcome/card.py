"""The card of a model in Markdown: what it is for, what it was made of, how good it is.

After Mitchell et al. 2019, doi:10.1145/3287560.3287596. Every figure has n and an interval.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medpipe.outcome.checklist import OPEN

__all__ = ["model_card"]

_FIGURES = (
    ("auroc", "AUROC", 2),
    ("average_precision", "AUPRC, average precision", 2),
    ("brier", "Brier score", 3),
    ("scaled_brier", "scaled Brier score", 3),
    ("calibration_slope", "calibration slope", 2),
    ("calibration_intercept", "calibration intercept", 2),
    ("sensitivity", "sensitivity", 2),
    ("specificity", "specificity", 2),
    ("ppv", "positive predictive value", 2),
    ("npv", "negative predictive value", 2),
    ("f1_event", "F1, event", 2),
    ("f1_other", "F1, no event", 2),
)
_MARKUP = re.compile(r"([\\`*_\[\]<>|~&])")


def model_card(evaluation: Mapping[str, Any]) -> str:
    """Return the card of the model that an evaluation is of.

    Parameters
    ----------
    evaluation : mapping
        From `medpipe.outcome.evaluation.evaluate`.

    Returns
    -------
    str
        Markdown. What the run cannot know is "to be completed by the authors".
    """
    study = evaluation.get("study") or {}
    title = _text(study.get("model") or study.get("title") or "Prediction of an outcome")
    parts = [f"# {title}", ""]
    if study.get("demonstration"):
        parts += ["> **Demonstration, not for clinical use.**", ""]
    if evaluation.get("simulated"):
        parts += ["> **Simulated data.** The figures below are of simulated patients.", ""]
    for name, lines in (
        ("Model", _model(study)),
        ("Intended use", [_text(study.get("intended_use") or OPEN)]),
        ("Not for", _not_for(evaluation)),
        ("Training and evaluation data", _data(evaluation, study)),
        ("Performance", _performance(evaluation)),
        ("Groups", _groups(evaluation)),
        ("Limits", _limits(evaluation)),
        ("Ethics", [_text((study.get("authors") or {}).get("17") or OPEN)]),
    ):
        if lines:
            parts += [f"## {name}", "", *lines, ""]
    return "\n".join(parts).rstrip() + "\n"


def _text(value: Any) -> str:
    """Return text as Markdown that shows it as it is, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(str(value).split()))


def _listed(rows: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {_text(value)}" for name, value in rows.items() if value not in (None, "")]


def _model(study: Mapping[str, Any]) -> list[str]:
    training = study.get("training") or {}
    versions = study.get("versions") or {}
    return _listed(
        {
            "Network": study.get("architecture"),
            "Input": study.get("input"),
            "Output": "probability of the event, between 0 and 1",
            "Outcome": study.get("outcome_name"),
            "Training": ", ".join(f"{k} {v}" for k, v in training.items()),
            "Recalibration": study.get("recalibration"),
            "Licence": study.get("licence") or OPEN,
            "Software": ", ".join(f"{k} {v}" for k, v in versions.items()),
        }
    )


def _not_for(evaluation: Mapping[str, Any]) -> list[str]:
    out = [
        "- Decisions on patients: this is no medical device.",
        "- Images other than those of the kind it was trained with.",
    ]
    if evaluation.get("simulated"):
        out.append("- Any statement on real patients: the data are simulated.")
    return out


def _data(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> list[str]:
    share = _figure(evaluation.get("prevalence") or {}, 2)
    flow = evaluation.get("flow") or {}
    refused = "; ".join(f"{r['n']}: {r['reason']}" for r in flow.get("refused") or [])
    return _listed(
        {
            "Data": study.get("data") or ("simulated" if evaluation.get("simulated") else OPEN),
            "Cases": f"n = {evaluation.get('n')} of {evaluation.get('patients')} patients",
            "Events": f"{evaluation.get('events')}, share {share}",
            "Left out": refused,
            "Population": study.get("population") or OPEN,
            "Validation": f"{len(evaluation.get('folds') or [])} folds by patient; every "
            "prediction is of a patient whom the model was not trained with",
        }
    )


def _figure(figure: Mapping[str, Any], digits: int) -> str:
    value, low, high = (figure.get(k) for k in ("value", "low", "high"))
    if value is None:
        return "not estimable"
    if low is None or high is None:
        return f"{_number(value, digits)} (no interval)"
    return f"{_number(value, digits)} ({_number(low, digits)} to {_number(high, digits)})"


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def _heading(evaluation: Mapping[str, Any]) -> str:
    simulated = ", simulated data" if evaluation.get("simulated") else ""
    level = 100 * float(evaluation.get("level") or 0.95)
    return (
        f"Out-of-fold predictions, n = {evaluation.get('n')}, {evaluation.get('events')} "
        f"events{simulated}; in brackets: {level:g} % intervals."
    )


def _performance(evaluation: Mapping[str, Any]) -> list[str]:
    models = evaluation.get("models") or []
    if not models:
        return []
    out = [_heading(evaluation), ""]
    out.append("| | " + " | ".join(_text(m.get("label")) for m in models) + " |")
    out.append("|---" * (len(models) + 1) + "|")
    for key, name, digits in _FIGURES:
        cells = [_figure((m.get("metrics") or {}).get(key) or {}, digits) for m in models]
        out.append(f"| {name} | " + " | ".join(cells) + " |")
    times = (evaluation.get("survival") or {}).get("figures") or {}
    if times:
        out += ["", "Times to the event, from the CT alone:", ""]
        out += [f"- {_text(name)}: {_figure(figure, 2)}" for name, figure in times.items()]
    point = evaluation.get("operating_point") or {}
    if point.get("rule"):
        out += ["", f"Operating point: {_text(point['rule'])}; {_text(point.get('chosen'))}."]
    return out


def _groups(evaluation: Mapping[str, Any]) -> list[str]:
    rows = [*(evaluation.get("sites") or []), *(evaluation.get("subgroups") or [])]
    if not rows:
        return []
    out = [_heading(evaluation), "", "| Group | n | Events | AUROC |", "|---|---|---|---|"]
    for row in rows:
        area = _figure(row.get("auroc") or {}, 2)
        small = ", too small for an interval" if row.get("too_small") else ""
        out.append(f"| {_text(row.get('label'))} | {row['n']} | {row['events']} | {area}{small} |")
    return out


def _limits(evaluation: Mapping[str, Any]) -> list[str]:
    out = ["- Evaluated by cross-validation in one cohort; there is no external evaluation."]
    out += [f"- {_text(note)}" for note in evaluation.get("notes") or []]
    return out
