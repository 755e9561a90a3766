"""The items of TRIPOD+AI, filled with what a run knows of itself.

The items are named here in short words of our own; what each one asks in full is in the
statement: Collins et al. 2024, BMJ 385:e078378, doi:10.1136/bmj-2023-078378. What a run
cannot know is left to the authors and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["OPEN", "ChecklistItem", "fill_checklist"]

OPEN = "to be completed by the authors"
"""What stands where a run cannot know the answer."""

_ITEMS = (
    ("1", "Title", "Title", "development or evaluation of a model, for whom, which outcome"),
    ("2", "Abstract", "Abstract", "structured, after TRIPOD+AI for abstracts"),
    ("3a", "Introduction", "Background", "clinical setting, reason, models there are"),
    ("3b", "Introduction", "Background", "target population, use in care, users"),
    ("3c", "Introduction", "Background", "known health inequalities between groups"),
    ("4", "Introduction", "Objectives", "development, evaluation or both"),
    ("5a", "Methods", "Data", "sources, why these, how representative"),
    ("5b", "Methods", "Data", "dates of inclusion and of follow-up"),
    ("6a", "Methods", "Participants", "setting, number and place of centres"),
    ("6b", "Methods", "Participants", "who was eligible"),
    ("6c", "Methods", "Participants", "treatments, and how they were handled"),
    ("7", "Methods", "Data preparation", "processing and checks of quality, alike in all groups"),
    ("8a", "Methods", "Outcome", "definition, horizon, how assessed, alike in all groups"),
    ("8b", "Methods", "Outcome", "who assessed it, where that needs judgement"),
    ("8c", "Methods", "Outcome", "blinding of the assessment"),
    ("9a", "Methods", "Predictors", "how they were chosen before modelling"),
    ("9b", "Methods", "Predictors", "definition, how and when measured"),
    ("9c", "Methods", "Predictors", "who assessed them, where that needs judgement"),
    ("10", "Methods", "Sample size", "how it came about, whether it is enough"),
    ("11", "Methods", "Missing data", "how they were handled"),
    ("12a", "Methods", "Analysis", "how data were split for development and evaluation"),
    ("12b", "Methods", "Analysis", "form and scaling of predictors"),
    ("12c", "Methods", "Analysis", "type of model, steps of building, internal validation"),
    ("12d", "Methods", "Analysis", "differences between clusters such as hospitals"),
    ("12e", "Methods", "Analysis", "measures and plots of performance, comparisons"),
    ("12f", "Methods", "Analysis", "updating of the model, such as recalibration"),
    ("12g", "Methods", "Analysis", "how predictions were computed"),
    ("13", "Methods", "Class imbalance", "whether and how handled, recalibration after it"),
    ("14", "Methods", "Fairness", "what was done for it and why"),
    ("15", "Methods", "Model output", "probability or class, how thresholds were chosen"),
    ("16", "Methods", "Training and evaluation", "differences between the two sets of data"),
    ("17", "Methods", "Ethics", "committee, consent or waiver"),
    ("18a", "Open science", "Funding", "source, and role of the funders"),
    ("18b", "Open science", "Interests", "of all authors"),
    ("18c", "Open science", "Protocol", "where it is, or that there is none"),
    ("18d", "Open science", "Registration", "register and number, or that there is none"),
    ("18e", "Open science", "Data", "whether and how they can be had"),
    ("18f", "Open science", "Code", "whether and how it can be had"),
    ("19", "Patients and public", "Involvement", "in which part of the study, or none"),
    ("20a", "Results", "Participants", "flow, with and without the outcome, follow-up"),
    ("20b", "Results", "Participants", "characteristics, missing values, by group and source"),
    ("20c", "Results", "Participants", "predictors in evaluation against development"),
    ("21", "Results", "Development", "participants and events in each analysis"),
    ("22", "Results", "Specification", "the whole model, so that others can predict"),
    ("23a", "Results", "Performance", "with intervals, in subgroups, with plots"),
    ("23b", "Results", "Performance", "differences between clusters, where examined"),
    ("24", "Results", "Updating", "the updated model and its performance"),
    ("25", "Discussion", "Interpretation", "in view of objectives, fairness, earlier studies"),
    ("26", "Discussion", "Limitations", "sample, size, overfitting, missing data"),
    ("27a", "Discussion", "Use", "inputs that are poor or absent when the model is used"),
    ("27b", "Discussion", "Use", "what users must do and know"),
    ("27c", "Discussion", "Use", "next steps of research"),
)


@dataclass(frozen=True)
class ChecklistItem:
    """One item: number, section, topic, what it asks, how far it is filled, the answer.

    `state` is ``"filled"``, ``"partly"`` (the authors add to it) or ``"open"``.
    """

    number: str
    section: str
    topic: str
    asks: str
    state: str
    answer: str


def fill_checklist(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the items of TRIPOD+AI with the answers that an evaluation holds.

    Parameters
    ----------
    evaluation : mapping
        As from `medpipe.outcome.evaluation.evaluate`. Its ``study`` may have ``authors``, a
        mapping of item number to text, which then is the answer.

    Returns
    -------
    list of dict
        `ChecklistItem` as JSON, all items in the order of the statement.
    """
    study = _mapping(evaluation.get("study"))
    authors = _mapping(study.get("authors"))
    out = []
    for number, section, topic, asks in _ITEMS:
        state, answer = "open", OPEN
        found = _FILL[number](evaluation, study) if number in _FILL else None
        if found:
            state = "filled" if number in _WHOLE else "partly"
            answer = found
        if isinstance(authors.get(number), str) and authors[number].strip():
            state, answer = "filled", " ".join(authors[number].split())
        out.append(asdict(ChecklistItem(number, section, topic, asks, state, answer)))
    return out


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _said(*names: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]:
    """Return a filler that joins texts of the study."""

    def fill(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
        found = [str(study[name]) for name in names if study.get(name)]
        return "; ".join(found) or None

    return fill


def _listed(values: Any) -> str:
    """Return names and values of a mapping, or a list, as text."""
    if isinstance(values, Mapping):
        return ", ".join(f"{k} {v}" for k, v in values.items() if v is not None)
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values or "")


def _title(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    data = "simulated patients" if evaluation.get("simulated") else "patients"
    return (
        f"development and internal validation, {evaluation.get('n')} {data}, outcome: "
        f"{study.get('outcome_name') or 'the event'}"
    )


def _data(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    said = str(study.get("data") or "")
    simulated = "simulated data: no statement on patients follows" * bool(
        evaluation.get("simulated")
    )
    return "; ".join(t for t in (simulated, said) if t) or None


def _sites(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    sites = evaluation.get("sites") or []
    return f"{len(sites)} sites in the data" if sites else None


def _preparation(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    flow = _mapping(evaluation.get("flow"))
    parts = [str(study["input"])] if study.get("input") else []
    if flow.get("refused"):
        count = sum(r.get("n", 0) for r in flow["refused"])
        parts.append(f"{count} of {flow.get('read')} cases were refused by the checks")
    return "; ".join(parts) or None


def _sample_size(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    return f"{evaluation.get('n')} cases with {evaluation.get('events')} events, as given"


def _missing(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    missing = study.get("missing")
    if not isinstance(missing, Mapping):
        return None
    counts = {k: v for k, v in missing.items() if v}
    text = f"missing values: {_listed(counts)}" if counts else "no value of a covariate is missing"
    return f"{text}; imputed inside the training part of each fold" if counts else text


def _split(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    folds = evaluation.get("folds") or []
    if not folds:
        return None
    kind = str(study.get("fold_kind") or "stratified by outcome, grouped by patient")
    digest = f", digest {str(study['fold_digest'])[:16]}" if study.get("fold_digest") else ""
    return (
        f"{len(folds)} folds, {kind}{digest}; every prediction is of a patient whom the model "
        "was not trained with"
    )


def _model(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    parts = [str(study["architecture"])] if study.get("architecture") else []
    if study.get("training"):
        parts.append(_listed(study["training"]))
    if not parts:
        return None
    return "; ".join([*parts, "validated by cross-validation"])


def _clusters(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    return "figures by site, with intervals" if evaluation.get("sites") else None


def _measures(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    names = [m.get("label") for m in evaluation.get("models") or [] if isinstance(m, Mapping)]
    return (
        "AUROC, AUPRC, Brier and scaled Brier score, calibration slope and intercept, "
        "sensitivity, specificity, predictive values and F1 of each class at a stated "
        "threshold, net benefit; ROC, precision-recall, calibration and decision curves; "
        f"compared: {_listed(names)}; DeLong tests with Holm's correction"
    )


def _recalibration(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    if not study.get("recalibration"):
        return None
    if str(study["recalibration"]).startswith("none"):
        return "none"
    return f"recalibration: {study['recalibration']}, fitted inside folds"


def _computed(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    text = "out-of-fold probability of the model of each fold, from its files, by medpipe"
    versions = _listed(study.get("versions"))
    return f"{text} ({versions})" if versions else text


def _imbalance(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    loss = _mapping(study.get("training")).get("loss")
    return f"loss: {loss}" if loss else None


def _fairness(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    rows = evaluation.get("subgroups") or []
    names = dict.fromkeys(str(r.get("variable")) for r in rows)
    return f"figures in subgroups of {_listed(list(names))}" if names else None


def _output(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    rule = _mapping(evaluation.get("operating_point")).get("rule")
    text = "probability of the event"
    return f"{text}; class at a threshold, {rule}" if rule else text


def _same_data(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    return "the same cohort, by cross-validation: there is no external evaluation"


def _flow(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    flow = _mapping(evaluation.get("flow"))
    n, events = evaluation.get("n"), evaluation.get("events")
    read = f"{flow['read']} cases read, " if flow.get("read") is not None else ""
    return f"{read}{n} analysed, {events} with the event and {n - events} without"  # type: ignore[operator]


def _development(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    folds = evaluation.get("folds") or []
    counts = ", ".join(f"{f.get('n')} ({f.get('events')})" for f in folds)
    return f"cases (events) of the folds: {counts}" if folds else None


def _specification(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    return f"model bundle {study['model']}" if study.get("model") else None


def _performance(evaluation: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    for model in evaluation.get("models") or []:
        if model.get("name") != evaluation.get("primary"):
            continue
        area = _mapping(_mapping(model.get("metrics")).get("auroc"))
        if area.get("value") is None:
            return None
        simulated = "simulated data, " if evaluation.get("simulated") else ""
        ends = area.get("low"), area.get("high")
        between = "no interval" if None in ends else f"{ends[0]:.2f} to {ends[1]:.2f}"
        return (
            f"{model.get('label')}: AUROC {area['value']:.2f} ({between}), {simulated}"
            f"n = {area.get('n')}, {area.get('events')} events; the rest is in the report"
        )
    return None


_FILL: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]] = {
    "1": _title,
    "3b": _said("intended_use"),
    "4": lambda evaluation, study: "development, with internal validation",
    "5a": _data,
    "5b": _said("dates"),
    "6a": _sites,
    "6b": _said("population"),
    "7": _preparation,
    "8a": _said("outcome_name", "horizon"),
    "9b": lambda evaluation, study: _listed(study.get("covariates")) or None,
    "10": _sample_size,
    "11": _missing,
    "12a": _split,
    "12b": _said("input"),
    "12c": _model,
    "12d": _clusters,
    "12e": _measures,
    "12f": _recalibration,
    "12g": _computed,
    "13": _imbalance,
    "14": _fairness,
    "15": _output,
    "16": _same_data,
    "18f": _said("code"),
    "20a": _flow,
    "21": _development,
    "22": _specification,
    "23a": _performance,
    "23b": _clusters,
    "24": _recalibration,
    "27a": lambda evaluation, study: (
        "a volume that is no head CT, is cut off, or has too few slices is refused or flagged"
    ),
}
_WHOLE = {"4", "11", "12a", "12c", "12d", "12e", "12f", "12g", "15", "21", "23a", "23b", "24"}
"""Items that a run can answer by itself; the authors add to the others."""
