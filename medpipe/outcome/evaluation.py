"""How well an outcome was predicted: every figure with its interval, as plain JSON.

Only predictions of patients whom a model was not trained with are evaluated; what makes
them sees to that (`medpipe.outcome.crossval`). Thresholds are chosen inside folds: that of a
fold from other patients than those it is applied to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, UsageError
from medpipe.outcome.checklist import fill_checklist
from medpipe.outcome.evaluation_groups import (
    fold_rows,
    share_of_events,
    site_rows,
    subgroup_rows,
)
from medpipe.outcome.evaluation_parts import (
    TOO_SMALL,
    Resampling,
    constant_in_folds,
    curves_of,
    holm,
    metrics_of,
    recalibrated_part,
    too_small,
    treat_all,
)
from medpipe.outcome.evaluation_survival import survival_notes, survival_part
from medpipe.outcome.metrics.threshold import confusion
from medpipe.outcome.predictions import (
    LABELS,
    OperatingPoint,
    Predictions,
    SurvivalPredictions,
    cross_fitted_thresholds,
)
from medpipe.stats.interval import check_level
from medpipe.stats.ranking import delong_test

__all__ = [
    "LABELS",
    "OperatingPoint",
    "Predictions",
    "SurvivalPredictions",
    "cross_fitted_thresholds",
    "evaluate",
    "plain",
]

SCHEMA = 1


def evaluate(
    predictions: Predictions,
    *,
    primary: str = "ct",
    rule: OperatingPoint | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    flow: Mapping[str, Any] | None = None,
    study: Mapping[str, Any] | None = None,
    survival: SurvivalPredictions | None = None,
) -> dict[str, Any]:
    """Evaluate out-of-fold predictions.

    Parameters
    ----------
    predictions : Predictions
    primary : str
        The model that curves, groups and folds are of; the last one if it is not there.
    rule : OperatingPoint, optional
        For models without thresholds; Youden's by default.
    level : float
        Coverage of every interval.
    resamples, seed : int
        Of the bootstrap, which draws whole patients.
    flow : mapping, optional
        ``read``, the number of cases of the manifest, and ``refused``, a mapping of reason
        to number of cases. Reasons go into the report: no case ids.
    study : mapping, optional
        What else a report says; all optional: title, outcome_name, horizon, population,
        data, dates, input, architecture, training (mapping), recalibration, fold_kind,
        fold_digest, covariates (list), missing (mapping of covariate to number), versions
        (mapping), model, licence, intended_use, code, demonstration (bool), findings (list),
        and authors (mapping of TRIPOD+AI item to text).
    survival : SurvivalPredictions, optional
        Of the time to the event, where that was predicted.

    Returns
    -------
    dict
        JSON without NaN: null where a figure is not determined, with a note that says why.

    Raises
    ------
    InputError, UsageError
        If the predictions cannot be used.
    """
    check_level(level)
    p = _ordered(predictions)
    y = np.asarray(p.outcome, np.int64)
    n, events = len(y), int(y.sum())
    names = list(p.probability)
    primary = primary if primary in names else names[-1]
    patients, repeated = _patients(p, n)
    how = Resampling(patients, repeated, resamples, seed, level)
    chosen = {name: _thresholds(p, name, rule or OperatingPoint(youden=True)) for name in names}
    models = [_model(p, name, chosen[name], how, name == primary) for name in names]
    ranking = [m["name"] for m in models if m["roc"]]
    out: dict[str, Any] = {
        "schema": SCHEMA,
        "simulated": bool(p.simulated),
        "n": n,
        "events": events,
        "patients": int(patients.max()) + 1,
        "prevalence": share_of_events(y, how),
        "primary": primary,
        "level": level,
        "resamples": {"n": resamples, "seed": seed, "unit": "patient", "method": "BCa"},
        "operating_point": _rule_text(p, rule or OperatingPoint(youden=True)),
        "models": models,
        "tests": _tests(p, ranking, how),
        "treat_all": treat_all(y),
        "sites": site_rows(y, p.probability[primary], p.sites, how),
        "subgroups": subgroup_rows(y, p.probability[primary], p.covariates, how),
        "folds": fold_rows(y, p.probability[primary], p.folds, chosen[primary], how, p.fold_names),
        "flow": _flow(flow, n, events),
        "survival": survival_part(survival, how) if survival else None,
        "notes": [*_notes(p, y, repeated), *survival_notes(survival, y)],
        "study": dict(study or {}),
    }
    out = plain(out)
    out["checklist"] = fill_checklist(out)
    return out


def _ordered(p: Predictions) -> Predictions:
    names = [k for k in LABELS if k in p.probability]
    names += [k for k in p.probability if k not in LABELS]
    return replace(p, probability={k: np.asarray(p.probability[k], float) for k in names})


def _patients(p: Predictions, n: int) -> tuple[NDArray[np.int64], bool]:
    """Return the number of each case's patient, and whether one has several cases."""
    if p.groups is None:
        return np.arange(n), False
    numbers = np.unique(np.asarray(p.groups), return_inverse=True)[1].astype(np.int64)
    return numbers, int(numbers.max()) + 1 < n


def _thresholds(p: Predictions, name: str, rule: OperatingPoint) -> list[float]:
    """Return the threshold of each fold for a model."""
    count = p.fold_count()
    given = [float(t) for t in p.thresholds.get(name, ())]
    if given:
        if len(given) not in (1, count):
            raise InputError(
                f"thresholds of {name}", expected=f"1 or {count}, one for each fold",
                got=str(len(given)),
            )  # fmt: skip
        return given if len(given) == count else given * count
    if count < 2 or constant_in_folds(p.probability[name], p.folds):
        return [0.5] * count
    if _one_class_beside(p):
        return [0.5] * count
    return cross_fitted_thresholds(p.outcome, p.probability[name], p.folds, rule)


def _one_class_beside(p: Predictions) -> bool:
    """Whether all cases beside some fold have the same outcome: there is no choosing there."""
    y = np.asarray(p.outcome)
    return any(len(np.unique(y[p.folds != k])) < 2 for k in np.unique(p.folds))


def _rule_text(p: Predictions, rule: OperatingPoint) -> dict[str, str]:
    if p.thresholds:
        text, chosen = p.operating_point or "as given", "chosen inside folds"
        if set(p.thresholds) != set(p.probability):
            chosen += f"; for models without a given threshold: {rule.text()}, chosen for each "
            chosen += "fold on the out-of-fold predictions of the other folds"
    elif p.fold_count() > 1 and not _one_class_beside(p):
        text = rule.text()
        chosen = "chosen for each fold on the out-of-fold predictions of the other folds"
    else:
        text, chosen = "a probability of 0.5", "fixed beforehand"
    if any(constant_in_folds(v, p.folds) for v in p.probability.values()):
        chosen += "; a model that gives all cases of a fold the same probability is cut at 0.5"
    return {"rule": text, "chosen": chosen}


def _model(
    p: Predictions, name: str, thresholds: list[float], how: Resampling, primary: bool
) -> dict[str, Any]:
    y, probability = np.asarray(p.outcome, np.int64), p.probability[name]
    called = (probability >= np.asarray(thresholds)[p.folds]).astype(float)
    ranks = not constant_in_folds(probability, p.folds)
    before = p.uncalibrated.get(name)
    table = confusion(y, called)
    counts = zip(("tp", "fn", "fp", "tn"), table, strict=True)
    return {
        "name": name,
        "label": LABELS.get(name, name),
        "n": len(y),
        "events": int(y.sum()),
        "metrics": metrics_of(y, probability, called, p.folds, how, ranks=ranks),
        "thresholds": thresholds,
        "confusion": {k: round(float(v)) for k, v in counts},
        "before": recalibrated_part(y, before, how),
        **curves_of(y, probability, before, how, ranks=ranks, primary=primary),
    }


def _tests(p: Predictions, names: Sequence[str], how: Resampling) -> list[dict[str, Any]]:
    """Compare each two models that rank patients; later ones against earlier ones."""
    rows = []
    for i, b in enumerate(names):
        for a in names[i + 1 :]:
            test = delong_test(
                p.outcome, p.probability[a], p.probability[b], how.level, groups=how.clusters
            )
            if too_small(np.asarray(p.outcome)):
                test = replace(test, low=None, high=None, z=None, p=None, se=None, note=TOO_SMALL)
            rows.append({"a": a, "b": b, **test.to_dict()})
    for row, corrected in zip(rows, holm([r["p"] for r in rows]), strict=True):
        row["p_holm"] = corrected
    return rows


def _flow(flow: Mapping[str, Any] | None, n: int, events: int) -> dict[str, Any]:
    given = flow or {}
    counts = {str(k): int(v) for k, v in (given.get("refused") or {}).items()}
    read, lost = given.get("read"), sum(counts.values())
    if read is not None and int(read) - lost != n:
        raise UsageError(
            "the flow of cases does not add up",
            expected=f"read minus refused = {n} analysed",
            got=f"{read} minus {lost}",
        )
    refused = [{"reason": reason, "n": count} for reason, count in counts.items()]
    return {"read": read, "refused": refused, "analysed": n, "events": events}


def _notes(p: Predictions, y: NDArray[np.int64], repeated: bool) -> list[str]:
    out = []
    fewer = int(min(y.sum(), (1 - y).sum()))
    if too_small(y):
        out.append(
            "There are fewer than 20 cases, or 5 of a class: no interval is given, and no figure "
            "says how well others would be predicted."
        )
    elif fewer < 100:
        out.append(
            f"The smaller class has {fewer} cases; fewer than 100 leave calibration and "
            "thresholds uncertain, as the intervals show."
        )
    if p.fold_count() > 1:
        out.append(
            "Probabilities of all folds are ranked together; the AUROC within folds compares "
            "only cases of the same model."
        )
    if repeated:
        out.append(
            "Some patients have several cases: intervals and tests are by patient; only the "
            "whiskers of calibration take cases as independent."
        )
    return out


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: no array, no NaN, no infinity.

    Raises
    ------
    UsageError
        For a value that JSON has no form for.
    """
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str):
        return value
    raise UsageError("a fact of the study is no JSON", expected="text, numbers, lists, mappings")
