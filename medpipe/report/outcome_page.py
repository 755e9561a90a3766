"""The page of an evaluation: how well an outcome was predicted, and of whom.

It is made from the JSON of `medpipe.outcome.evaluation.evaluate` alone, as it may be read
back from a file, and trusts none of it: a field that is absent or of the wrong type is left
out. There is no identifier of a patient in that JSON, so there is none in the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpipe.errors import InputError
from medpipe.figures.outcome import (
    Bin,
    Curve,
    calibration_svg,
    decision_svg,
    distribution_svg,
    precision_recall_svg,
    roc_svg,
)
from medpipe.figures.outcome_forest import ForestRow, flow_svg, forest_svg
from medpipe.figures.outcome_frame import Facts
from medpipe.report.outcome_survival import (
    survival_counts,
    survival_figures,
    survival_sentences,
    survival_table,
)
from medpipe.report.outcome_tables import (
    BY_DEFINITION,
    checklist_rows,
    fold_table,
    group_rows,
    metric_table,
    percent_of,
    recalibration_table,
    short_interval,
    summary,
    test_rows,
    thresholds_text,
    tiles,
)
from medpipe.report.pages import render_page
from medpipe.report.records import as_dict, as_dicts, number, numbers

__all__ = ["evaluation_page"]

_NO_INTERVAL = "no interval: fewer than 20 cases, or 5 of a class"


def evaluation_page(evaluation: Mapping[str, Any]) -> str:
    """Return the page of an evaluation: HTML that stands alone and runs without scripts.

    Parameters
    ----------
    evaluation : mapping
        From `medpipe.outcome.evaluation.evaluate`, or its JSON read back.

    Raises
    ------
    InputError
        If it is no evaluation: no number of cases, or no model.
    """
    evaluation = dict(evaluation)
    models = as_dicts(evaluation.get("models"))
    if number(evaluation.get("n")) is None or not models:
        raise InputError("this is no evaluation of an outcome", expected="cases and models")
    study = as_dict(evaluation.get("study"))
    simulated = evaluation.get("simulated") is True
    title = str(study.get("title") or "Prediction of an outcome")
    page = render_page(
        "outcome.html",
        title=title,
        heading=title,
        source="",
        simulated=simulated,
        demonstration=study.get("demonstration") is True,
        outcome_name=str(study.get("outcome_name") or "the event"),
        counts=_counts(evaluation),
        level=percent_of(evaluation),
        tiles=tiles(evaluation),
        summary=[*summary(evaluation), *survival_sentences(evaluation)],
        metrics=metric_table(evaluation),
        forest=_markup(_model_forest(evaluation)),
        tests=test_rows(evaluation),
        test_forest=_markup(_test_forest(evaluation)),
        figures=_figures(evaluation),
        operating=as_dict(evaluation.get("operating_point")),
        confusions=_confusions(models),
        recalibration=recalibration_table(evaluation),
        groups=[
            (name, group_rows(rows), _markup(_group_forest(evaluation, rows, name)))
            for name, rows in (
                ("Sites", as_dicts(evaluation.get("sites"))),
                ("Subgroups", as_dicts(evaluation.get("subgroups"))),
            )
            if rows
        ],
        flow=_markup(_flow(evaluation)),
        folds=fold_table(evaluation),
        survival=survival_table(evaluation),
        survival_counts=survival_counts(evaluation),
        survival_figures=[
            {"name": name, "svg": _markup(svg)} for name, svg in survival_figures(evaluation)
        ],
        notes=_texts(evaluation.get("notes")),
        findings=_texts(study.get("findings")),
        facts=_study_facts(study),
        training=as_dict(study.get("training")),
        versions=sorted((str(k), str(v)) for k, v in as_dict(study.get("versions")).items()),
        resamples=as_dict(evaluation.get("resamples")),
        checklist=checklist_rows(evaluation),
        primary_label=_label(evaluation, str(evaluation.get("primary"))),
    )
    return page.decode()


def _texts(value: Any) -> list[str]:
    return [v for v in value if isinstance(v, str)] if isinstance(value, list) else []


def _markup(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704 - the figures escape every text


def _counts(evaluation: Mapping[str, Any]) -> str:
    n, events = (int(number(evaluation.get(k)) or 0) for k in ("n", "events"))
    return f"n = {n}, {events} event{'s' if events != 1 else ''}"


def _label(evaluation: Mapping[str, Any], name: str) -> str:
    for model in as_dicts(evaluation.get("models")):
        if model.get("name") == name:
            return str(model.get("label") or name)
    return name


def _facts(evaluation: Mapping[str, Any], interval: str, of: Mapping[str, Any]) -> Facts:
    n, events = (int(number(of.get(k)) or 0) for k in ("n", "events"))
    return Facts(n, events, interval, evaluation.get("simulated") is True)


def _shown(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models that rank patients, the primary one first."""
    models = [m for m in as_dicts(evaluation.get("models")) if as_dict(m.get("roc"))]
    return sorted(models, key=lambda m: m.get("name") != evaluation.get("primary"))


def _rank(evaluation: Mapping[str, Any], model: Mapping[str, Any]) -> int:
    """Return which colour a model has: the primary one the first."""
    names = [m.get("name") for m in _shown(evaluation)]
    return names.index(model.get("name")) if model.get("name") in names else len(names)


def _curve(
    evaluation: Mapping[str, Any], model: dict[str, Any], part: str, metric: str, first: bool
) -> Curve:
    data = as_dict(model.get(part))
    x, y = numbers(data.get("x")), numbers(data.get("y"))
    band = [numbers(data.get(k)) for k in ("band_x", "low", "high")] if first else [[], [], []]
    text = short_interval(as_dict(as_dict(model.get("metrics")).get(metric))) if metric else ""
    size = min(len(x), len(y))
    return Curve(
        str(model.get("label")), x[:size], y[:size], band[1], band[2],
        text, _rank(evaluation, model), band[0],
    )  # fmt: skip


def _curves(evaluation: Mapping[str, Any], part: str, metric: str) -> list[Curve]:
    made = [_curve(evaluation, m, part, metric, i == 0) for i, m in enumerate(_shown(evaluation))]
    return [c for c in made if len(c.x) > 1]


def _band(evaluation: Mapping[str, Any], curves: Sequence[Curve], what: str) -> str:
    if not curves or not len(curves[0].low):
        return _NO_INTERVAL
    level = percent_of(evaluation)
    named = f"; below: {what} with its interval" if what else ""
    return f"{level} band of {curves[0].name}: bootstrap of patients{named}"


def _figures(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return name and picture of each figure that there is."""
    shown = _shown(evaluation)
    primary = shown[0] if shown else {}
    roc = _curves(evaluation, "roc", "auroc")
    recall = _curves(evaluation, "precision_recall", "average_precision")
    benefit = _curves(evaluation, "net_benefit", "")
    everyone = as_dict(evaluation.get("treat_all"))
    all_x, all_y = numbers(everyone.get("x")), numbers(everyone.get("y"))
    made = [
        (
            "ROC curve",
            roc_svg(
                roc,
                _facts(evaluation, _band(evaluation, roc, "AUROC"), primary),
                point=_point(primary),
            ),
        ),
        (
            "Precision and recall",
            precision_recall_svg(
                recall,
                _facts(evaluation, _band(evaluation, recall, "average precision"), primary),
            ),
        ),
        (f"Calibration, {primary.get('label', '')}", _calibration(evaluation, primary)),
        (f"Probabilities by outcome, {primary.get('label', '')}", _spread(evaluation, primary)),
        (
            "Decision curve",
            decision_svg(
                benefit,
                Curve("everyone", all_x, all_y) if len(all_x) == len(all_y) else Curve("", [], []),
                _facts(evaluation, _band(evaluation, benefit, ""), primary),
            ),
        ),
    ]
    return [{"name": name, "svg": _markup(svg)} for name, svg in made if svg]


def _point(model: Mapping[str, Any]) -> tuple[float, float] | None:
    metrics = as_dict(model.get("metrics"))
    found = [number(as_dict(metrics.get(k)).get("value")) for k in ("specificity", "sensitivity")]
    return None if found[0] is None or found[1] is None else (1 - found[0], found[1])


def _histogram(model: Mapping[str, Any]) -> tuple[list[float], list[float], list[float]]:
    data = as_dict(model.get("distribution"))
    edges, above, below = (numbers(data.get(k)) for k in ("edges", "with_event", "without_event"))
    fits = len(edges) == len(above) + 1 == len(below) + 1
    return (edges, above, below) if fits else ([], [], [])


def _calibration(evaluation: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    data = as_dict(model.get("calibration"))
    bins = []
    for one in as_dicts(data.get("bins")):
        mean, observed = number(one.get("mean")), number(one.get("observed"))
        if mean is None or observed is None:
            continue
        low, high = number(one.get("low")), number(one.get("high"))
        bins.append(Bin(mean, observed, low, high, int(number(one.get("n")) or 0)))
    curves = {}
    for rank, key in enumerate(("smooth", "before")):
        part = as_dict(data.get(key))
        x, y = numbers(part.get("x")), numbers(part.get("y"))
        if len(x) == len(y) > 1:
            name = "smoothed" if key == "smooth" else "smoothed, before recalibration"
            curves[key] = Curve(name, x, y, rank=2 * rank)
    metrics = as_dict(model.get("metrics"))
    slope = short_interval(as_dict(metrics.get("calibration_slope")))
    intercept = short_interval(as_dict(metrics.get("calibration_intercept")))
    interval = f"slope {slope}, intercept {intercept}; whiskers: {percent_of(evaluation)}, Wilson"
    edges, above, below = _histogram(model)
    return calibration_svg(
        bins, _facts(evaluation, interval, model), smooth=curves.get("smooth"),
        before=curves.get("before"), edges=edges, with_event=above, without_event=below,
    )  # fmt: skip


def _spread(evaluation: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    edges, above, below = _histogram(model)
    if not edges:
        return ""
    share = short_interval(as_dict(evaluation.get("prevalence")))
    facts = _facts(evaluation, f"share of events {share}", model)
    return distribution_svg(edges, above, below, facts, thresholds=numbers(model.get("thresholds")))


def _forest_row(
    label: str, figure: Mapping[str, Any], of: Mapping[str, Any], rank: int
) -> ForestRow:
    n, events = (int(number(of.get(k)) or 0) for k in ("n", "events"))
    value, low, high = (number(figure.get(k)) for k in ("value", "low", "high"))
    why = BY_DEFINITION if figure.get("method") == BY_DEFINITION else "too few to say"
    return ForestRow(label, value, low, high, n, events, rank, why)


def _model_forest(evaluation: Mapping[str, Any]) -> str:
    rows = [
        _forest_row(str(m.get("label")), as_dict(as_dict(m.get("metrics")).get("auroc")), m,
                    _rank(evaluation, m))
        for m in as_dicts(evaluation.get("models"))
    ]  # fmt: skip
    facts = _facts(evaluation, f"{percent_of(evaluation)} intervals, DeLong", evaluation)
    return forest_svg(rows, facts, title="AUROC of the models", x_label="AUROC", reference=0.5)


def _test_forest(evaluation: Mapping[str, Any]) -> str:
    rows = []
    for test in as_dicts(evaluation.get("tests")):
        figure = {**test, "value": test.get("difference")}
        names = [_label(evaluation, str(test.get(k))) for k in ("a", "b")]
        # the names of the models stay whole: a line breaks at the minus
        label = " − ".join(name.replace(" ", "\u00a0") for name in names)
        rows.append(_forest_row(label, figure, test, 0))
    facts = _facts(evaluation, f"{percent_of(evaluation)} intervals, DeLong, paired", evaluation)
    title = "Differences of AUROC"
    return forest_svg(rows, facts, title=title, x_label="difference of AUROC", reference=0.0)


def _group_forest(evaluation: Mapping[str, Any], rows: list[dict[str, Any]], name: str) -> str:
    made = [_forest_row(str(r.get("label")), as_dict(r.get("auroc")), r, 0) for r in rows[:24]]
    label = _label(evaluation, str(evaluation.get("primary")))
    facts = _facts(evaluation, f"{label}, {percent_of(evaluation)} intervals, DeLong", evaluation)
    title = f"AUROC by {name.lower().removesuffix('s')}"
    return forest_svg(made, facts, title=title, x_label="AUROC", reference=0.5)


def _flow(evaluation: Mapping[str, Any]) -> str:
    flow = as_dict(evaluation.get("flow"))
    read = number(flow.get("read"))
    refused = [
        (str(r.get("reason")), int(number(r.get("n")) or 0)) for r in as_dicts(flow.get("refused"))
    ]
    n, events = (int(number(evaluation.get(k)) or 0) for k in ("n", "events"))
    patients = number(evaluation.get("patients"))
    return flow_svg(
        int(read) if read is not None else None, refused, n, events,
        patients=int(patients) if patients is not None else None,
        folds=len(as_dicts(evaluation.get("folds"))),
        simulated=evaluation.get("simulated") is True,
    )  # fmt: skip


def _confusions(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for model in models:
        counts = as_dict(model.get("confusion"))
        found = {k: number(counts.get(k)) for k in ("tp", "fp", "fn", "tn")}
        if None in found.values():
            continue
        whole = {k: int(v) for k, v in found.items() if v is not None}
        out.append({"label": str(model.get("label")), "threshold": thresholds_text(model), **whole})
    return out


def _study_facts(study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of the study, name and text."""
    names = {
        "outcome_name": "Outcome", "horizon": "Horizon", "population": "Population",
        "data": "Data", "input": "Input", "architecture": "Network",
        "recalibration": "Recalibration", "fold_kind": "Folds", "fold_digest": "Digest of folds",
        "covariates": "Covariates", "model": "Model", "intended_use": "Intended use",
    }  # fmt: skip
    out = []
    for key, name in names.items():
        value = study.get(key)
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        if value not in (None, ""):
            out.append((name, str(value)))
    return out
