"""A cohort from prepared volumes to evaluation, predictions and a model for new patients."""

from __future__ import annotations

import csv
import importlib.metadata
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medpipe.errors import UsageError
from medpipe.io.atomic import write_bytes_atomic, write_json_atomic
from medpipe.outcome.bundle import write_bundle
from medpipe.outcome.card import model_card
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.crossval import CrossSettings, CrossValidation, FoldProgress, cross_validate
from medpipe.outcome.evaluation import evaluate
from medpipe.outcome.folds import write_folds
from medpipe.outcome.leaks import volume_digest
from medpipe.outcome.model_facts import OutcomeFacts
from medpipe.outcome.plan import plan_study
from medpipe.outcome.predict import calibration_groups
from medpipe.outcome.prepare import GridSettings

__all__ = ["FOLDS", "StudyFacts", "StudyResult", "outcome_facts", "train_study"]

FOLDS, NETWORKS, MODEL = "folds.json", "networks", "model"
EVALUATION, PREDICTIONS, CLINICAL = "evaluation.json", "predictions.csv", "clinical.json"
_VERSIONS = ("medpipe", "torch", "monai", "scikit-learn", "numpy")


@dataclass(frozen=True)
class StudyFacts:
    """What a study is of, for its report and its model.

    Parameters
    ----------
    name : str
        Of the model.
    outcome_name : str
        What the probability is of, such as ``"death within 3 months"``.
    simulated, demonstration : bool
        Said wherever a figure or a probability stands.
    """

    name: str = "outcome"
    outcome_name: str = "the event"
    simulated: bool = False
    demonstration: bool = False


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a study leaves: the cross-validation, its evaluation, the digest of the model."""

    crossed: CrossValidation
    evaluation: dict[str, Any]
    model_digest: str


def train_study(
    cohort: Cohort,
    volumes: Mapping[str, Path],
    out: Path,
    settings: CrossSettings | None = None,
    *,
    grid: GridSettings,
    facts: StudyFacts | None = None,
    refused: Mapping[str, int] | None = None,
    noticed: Sequence[str] = (),
    study_digests: Mapping[str, str | None] | None = None,
    encoder: Path | None = None,
    device: str = "auto",
    at_once: int = 1,
    progress: FoldProgress | None = None,
    stage: Callable[[str], None] | None = None,
    resamples: int = 2000,
) -> StudyResult:
    """Cross-validate a cohort and write what a reader and a user need.

    Nothing is written before it is clear that nothing of a test set is known from training.

    Parameters
    ----------
    cohort : Cohort
    volumes : mapping of case id to path
        Prepared volumes, all on `grid`.
    out : Path
        Gets ``folds.json``, ``networks/``, ``evaluation.json``, ``predictions.csv`` (out of
        fold, by case id) and ``model/``, a MONAI bundle. Folds and networks that are there
        are used again.
    settings : CrossSettings, optional
    grid : GridSettings
        Of the prepared volumes; the model says it.
    facts : StudyFacts, optional
    refused : mapping of reason to number of cases, optional
        What was left out before, for the flow of patients.
    noticed : sequence of str
        Sentences about the cases for the report; they name none.
    study_digests : mapping of case id to str or None, optional
        See `medpipe.outcome.leaks.study_digest`.
    encoder, device, at_once, progress
        See `medpipe.outcome.crossval.cross_validate`.
    stage : callable, optional
        Told what is done when no network is trained, such as ``"evaluation"``.
    resamples : int
        Of the bootstrap.

    Raises
    ------
    UsageError
        See `medpipe.outcome.plan.plan_study` and `cross_validate`.
    InputError, StoreError
        If a volume cannot be used or a file not be written.
    """
    chosen, said = settings or CrossSettings(), facts or StudyFacts()
    tell = stage or (lambda _: None)
    if len(volumes) == 0:
        raise UsageError("no case could be prepared")
    tell("comparing volumes")
    pixel_digests = {case: volume_digest(Path(path)) for case, path in volumes.items()}
    folds = plan_study(
        cohort, chosen, file=out / FOLDS, study_digests=study_digests, pixel_digests=pixel_digests
    )
    (out / NETWORKS).mkdir(parents=True, exist_ok=True)
    if not (out / FOLDS).is_file():
        write_folds(out / FOLDS, folds, cohort)
    crossed = cross_validate(
        cohort,
        volumes,
        chosen,
        folds=folds,
        folder=out / NETWORKS,
        study_digests=study_digests,
        pixel_digests=pixel_digests,
        encoder=encoder,
        device=device,
        at_once=at_once,
        progress=progress,
    )
    tell("evaluation")
    refusals = dict(refused or {})
    evaluation = evaluate(
        crossed.predictions(simulated=said.simulated),
        rule=chosen.rule,
        resamples=resamples,
        flow={"read": len(cohort) + sum(refusals.values()), "refused": refusals},
        study=_study(crossed, grid, said, noticed),
        survival=crossed.survival_predictions(),
    )
    write_json_atomic(out / EVALUATION, evaluation)
    write_bytes_atomic(out / PREDICTIONS, _table(crossed))
    if crossed.clinical is not None and crossed.fusion is not None:
        models = {"clinical": crossed.clinical.to_dict(), "ct_clinical": crossed.fusion.to_dict()}
        write_json_atomic(out / CLINICAL, models)
    tell("the model")
    digest = write_bundle(
        out / MODEL,
        [model.network for model in crossed.models],
        outcome_facts(crossed, grid, said),
        card=model_card(evaluation),
    )
    return StudyResult(crossed, evaluation, digest)


def outcome_facts(
    crossed: CrossValidation, grid: GridSettings, facts: StudyFacts | None = None
) -> OutcomeFacts:
    """Return what the model of a cross-validation must know and say."""
    said = facts or StudyFacts()
    training = crossed.settings.training
    ct = crossed.probability["ct"]
    rule = crossed.settings.rule
    survival = training.loss == "survival"
    return OutcomeFacts(
        name=said.name,
        outcome=said.outcome_name,
        network=asdict(crossed.models[0].network.settings),
        preset=training.preset,
        spacing_mm=grid.spacing_mm,
        size_voxels=grid.size_voxels,
        top_margin_mm=grid.top_margin_mm,
        recalibration=None if crossed.final is None else crossed.final.to_dict(),
        threshold=float(np.median(crossed.thresholds["ct"])),
        threshold_rule=f"median over folds; in each: {rule.text()}",
        calibration=calibration_groups(crossed.cohort.outcome, ct),
        tta=[list(axes) for axes in training.tta_flips] or False,
        interval_ends_days=training.interval_days if survival else (),
        simulated=said.simulated,
        demonstration=said.demonstration,
        training={
            "n": len(crossed.cohort),
            "patients": crossed.cohort.n_patients,
            "events": crossed.cohort.n_events,
            "folds": len(crossed.folds),
            "fold_digest": crossed.folds.digest,
        },
    )


def _study(
    crossed: CrossValidation, grid: GridSettings, said: StudyFacts, noticed: Sequence[str]
) -> dict[str, Any]:
    """Return what the report says of the study besides figures."""
    cohort, settings = crossed.cohort, crossed.settings
    training, network = settings.training, crossed.models[0].network.settings
    size, step = (" × ".join(f"{v:g}" for v in t) for t in (grid.size_voxels, grid.spacing_mm))
    ends = ", ".join(f"{end:g}" for end in training.interval_days)
    return {
        "title": f"Prediction of {said.outcome_name}",
        "model": said.name,
        "outcome_name": said.outcome_name,
        "demonstration": said.demonstration,
        "input": f"non-contrast head CT, {size} voxels of {step} mm, channels “{training.preset}”",
        "architecture": f"{network.architecture}, {network.spatial_dims}-D, "
        f"{len(crossed.models)} networks",
        "training": {
            "loss": training.loss,
            "iterations": training.iterations,
            "batch_size": training.batch_size,
            "learning_rate": training.learning_rate,
            "weight_decay": training.weight_decay,
            "mirrored_copies": bool(training.tta_flips),
            "validation_share": training.validation_share,
            "iterations_done": ", ".join(str(model.iterations) for model in crossed.models),
            "seed": training.seed,
            **({"intervals_end_days": ends} if training.loss == "survival" else {}),
        },
        "recalibration": "none"
        if settings.recalibration == "none"
        else settings.recalibration
        + (", on all training cases (nested)" if settings.nested else ", on validating cases"),
        "fold_kind": crossed.folds.kind,
        "fold_digest": crossed.folds.digest,
        "covariates": list(
            cohort.covariates if settings.covariates is None else settings.covariates
        ),
        "missing": {
            name: int(np.isnan(values).sum()) for name, values in cohort.covariates.items()
        },
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        "findings": [*noticed, *(f.message for f in crossed.findings)],
    }


def _table(crossed: CrossValidation) -> bytes:
    """Return a row per case: its fold, outcome and out-of-fold probabilities.

    Of times to the event also the probability of none until the end of each interval, as
    the network gives it.
    """
    names, times = list(crossed.probability), crossed.survival_predictions()
    ends = [] if times is None else [f"s_{end:g}d" for end in times.at_days]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    header = ["case_id", "fold", "outcome", "ct_logit", *(f"p_{name}" for name in names)]
    rows.writerow([*header, *ends])
    fold, logit = crossed.folds.fold_of, crossed.tested
    for i, case in enumerate(crossed.cohort.case_ids):
        values = [logit[i], *(crossed.probability[name][i] for name in names)]
        values += [] if times is None else list(times.survival[i])
        place = crossed.folds.names[fold[i]]
        rows.writerow([case, place, crossed.cohort.outcome[i], *(f"{v:.6f}" for v in values)])
    return text.getvalue().encode()
