"""Cross-validation of a cohort: networks, clinical model and fusion, judged on other patients.

Every number that is kept for a case comes from a model that saw neither the case nor another
case of its patient; recalibration and thresholds of a fold are chosen within its training part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medpipe.errors import InputError, UsageError
from medpipe.io.atomic import canonical_json, sha256_file, write_bytes_atomic
from medpipe.outcome.clinical import ClinicalPrediction, clinical_model, late_fusion, nested_logits
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.ensemble import event_logit, predict_volumes
from medpipe.outcome.folds import Folds, make_folds
from medpipe.outcome.leaks import check_leaks
from medpipe.outcome.metrics.threshold import threshold_at
from medpipe.outcome.network import OutcomeNetworkSettings
from medpipe.outcome.predictions import OperatingPoint, Predictions, SurvivalPredictions
from medpipe.outcome.recalibrate import Recalibration, fit_recalibration
from medpipe.outcome.samples import Picture, inner_split
from medpipe.outcome.side_by_side import devices_of, train_side_by_side
from medpipe.outcome.training import FoldModel, OutcomeTraining, read_fold_model, train_fold
from medpipe.train.settings import Progress
from medpipe.types import Finding, Severity

__all__ = ["CrossSettings", "CrossValidation", "FoldProgress", "check_shares", "cross_validate"]

Floats = NDArray[np.float64]
FoldProgress = Callable[[str, Progress], None]
"""Told which network is trained, and where its training is."""


@dataclass(frozen=True)
class CrossSettings:
    """How a cohort is cross-validated.

    Parameters
    ----------
    training : OutcomeTraining
        Also the number of folds and the seed of the split.
    network : OutcomeNetworkSettings, optional
        By default a DenseNet-121 with the outputs that the loss needs.
    by_site : bool
        Whether each fold is one site.
    recalibration : {"platt", "temperature", "isotonic", "none"}
        Fitted on training cases that a fold's network was not trained with.
    nested : bool
        Whether those are all training cases, each by a network that saw neither it nor
        the test set: K (K - 1) / 2 networks more. Otherwise they are the cases that the
        network of the fold was validated with.
    covariates : tuple of str, optional
        Of the clinical model and the fusion; by default all of the cohort.
    inverse_penalty : float, optional
        See `medpipe.outcome.clinical.clinical_model`.
    rule : OperatingPoint
        How thresholds are chosen.
    """

    training: OutcomeTraining = field(default_factory=OutcomeTraining)
    network: OutcomeNetworkSettings | None = None
    by_site: bool = False
    recalibration: Literal["platt", "temperature", "isotonic", "none"] = "platt"
    nested: bool = False
    covariates: tuple[str, ...] | None = None
    inverse_penalty: float | None = 1.0
    rule: OperatingPoint = field(default_factory=lambda: OperatingPoint(youden=True))


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What a cross-validation leaves.

    Attributes
    ----------
    cohort : Cohort
    folds : Folds
    settings : CrossSettings
    models : tuple of FoldModel
        One per fold: the ensemble for new patients.
    logits : ndarray of float64, shape (number of folds, n)
        Row k holds log odds by networks that did not see the test set of fold k: of its
        test cases and of training cases that they did not see either, NaN elsewhere.
    probability, uncalibrated : dict of ndarray of float64, shape (n,)
        Of the event, by model, each case by models that did not see its patient.
    thresholds : dict of list of float
        Of each fold.
    clinical, fusion : ClinicalPrediction or None
        None where the cohort has no covariates.
    final : Recalibration or None
        For the ensemble, fitted on all log odds of test cases.
    findings : tuple of Finding
    hazards : ndarray of float64, shape (n, T), or None
        With the loss of survival: the probability of the event in each interval of time if
        it did not come before, of each case by the network of the fold that tests it.
    """

    cohort: Cohort
    folds: Folds
    settings: CrossSettings
    models: tuple[FoldModel, ...]
    logits: Floats
    probability: dict[str, Floats]
    uncalibrated: dict[str, Floats]
    thresholds: dict[str, list[float]]
    clinical: ClinicalPrediction | None
    fusion: ClinicalPrediction | None
    final: Recalibration | None
    findings: tuple[Finding, ...]
    hazards: Floats | None = None

    @property
    def tested(self) -> Floats:
        """Log odds of each case by the network of the fold that tests it, (n,)."""
        return self.logits[self.folds.fold_of, np.arange(len(self.cohort))]

    def predictions(self, *, simulated: bool = False) -> Predictions:
        """Return what `medpipe.outcome.evaluation.evaluate` judges."""
        known = self.cohort.covariates
        return Predictions(
            outcome=self.cohort.outcome,
            probability=self.probability,
            groups=self.cohort.patient_codes,
            fold=self.folds.fold_of,
            uncalibrated=self.uncalibrated,
            thresholds=self.thresholds,
            operating_point=self.settings.rule.text(),
            sites=self.cohort.sites,
            covariates={name: known[name] for name in ("age_years", "sex") if name in known},
            fold_names=self.folds.names,
            simulated=simulated,
        )

    def survival_predictions(self) -> SurvivalPredictions | None:
        """Return predicted times to the event, out of fold; None without the loss of survival."""
        event, time = self.cohort.event, self.cohort.time_days
        if self.hazards is None or event is None or time is None:
            return None
        return SurvivalPredictions(
            event=event,
            time_days=time,
            survival=np.cumprod(1 - self.hazards, axis=1, dtype=np.float64),
            at_days=np.array(self.settings.training.interval_days),
            groups=self.cohort.patient_codes,
            fold=self.folds.fold_of,
        )


def cross_validate(
    cohort: Cohort,
    volumes: Mapping[str, Picture],
    settings: CrossSettings | None = None,
    *,
    folds: Folds | None = None,
    folder: str | Path | None = None,
    study_digests: Mapping[str, str | None] | None = None,
    pixel_digests: Mapping[str, str | None] | None = None,
    encoder: str | Path | None = None,
    device: str = "auto",
    progress: FoldProgress | None = None,
    workers: int = 0,
    at_once: int = 1,
) -> CrossValidation:
    """Train and judge networks and their comparators on a cohort.

    Parameters
    ----------
    cohort : Cohort
    volumes : mapping of case id to path or array
        Prepared volumes, see `medpipe.outcome.samples.Volumes`.
    settings : CrossSettings, optional
    folds : Folds, optional
        Of this cohort; made by the settings where none are given.
    folder : path, optional
        Keeps the network of each fold; one that is there is not trained again, one that
        was interrupted goes on.
    study_digests, pixel_digests : mapping, optional
        See `medpipe.outcome.leaks.check_leaks`.
    encoder, device, workers
        See `medpipe.outcome.training.train_fold`.
    progress : callable, optional
        Told the name of the network (``"fold 2 of 5"``) and its progress.
    at_once : int
        Networks that are trained at the same time, each in a process of its own: with
        ``"auto"`` or ``"cuda"`` on all GPUs in turn. More than one need a `folder`.

    Raises
    ------
    UsageError
        If a volume is absent, folds cannot be made, or a test case is known from training.
    InputError
        If a volume cannot be used.
    ResourceError
        If a process beside this one ended without a word.
    """
    chosen = settings or CrossSettings()
    absent = [case for case in cohort.case_ids if case not in volumes]
    if absent:
        raise UsageError("a case has no prepared volume", got=", ".join(absent[:5]))
    training = chosen.training
    split = folds or make_folds(
        cohort, folds=training.folds, seed=training.seed, by_site=chosen.by_site
    )
    leaks = check_leaks(cohort, split, study_digests=study_digests, pixel_digests=pixel_digests)
    check_shares(chosen)
    trainer = _Trainer(
        cohort, volumes, chosen, Path(folder) if folder else None,
        {"encoder": encoder, "device": device, "workers": workers}, progress,
    )  # fmt: skip
    devices = devices_of(device, at_once)
    if len(devices) > 1:
        trainer.ahead(split, devices)
    models, logits, hazards = trainer.folds(split)
    if chosen.nested:
        nested = nested_logits(split, trainer.between)
        logits = np.where(split.fold_of == np.arange(len(split))[:, None], logits, nested)
    return replace(_judged(cohort, split, chosen, models, logits, leaks), hazards=hazards)


def check_shares(settings: CrossSettings) -> None:
    """Raise UsageError unless cases are left to recalibrate and to choose thresholds with."""
    if settings.training.validation_share == 0 and not settings.nested:
        raise UsageError(
            "nothing is left to recalibrate and to choose thresholds with",
            expected="a validation_share above 0, or nested networks",
        )


@dataclass(frozen=True, eq=False)
class _Trainer:
    """Trains networks with cases of a cohort and asks them about others."""

    cohort: Cohort
    volumes: Mapping[str, Picture]
    settings: CrossSettings
    folder: Path | None
    options: dict[str, Any]
    progress: FoldProgress | None
    made: dict[bytes, FoldModel] = field(default_factory=dict)

    def ahead(self, split: Folds, devices: Sequence[str]) -> None:
        """Train what the folder does not hold yet, a network on each device."""
        if self.folder is None:
            raise UsageError("networks that are trained side by side need a folder")
        jobs = [(split.train(k), *_named(k, split)) for k in range(len(split))]
        if self.settings.nested:
            known = {cases.tobytes() for cases, _, _ in jobs}

            def note(cases: NDArray[np.int64], others: NDArray[np.int64]) -> Floats:
                if cases.tobytes() not in known:
                    jobs.append((cases, *_nested(cases)))
                return np.zeros(len(others))

            nested_logits(split, note)
        train_side_by_side(replace(self, progress=None).train_on, jobs, devices, self.progress)

    def train_on(
        self, job: tuple[NDArray[np.int64], str, str], device: str, progress: FoldProgress
    ) -> None:
        """Train one network on a device, and keep it in the folder."""
        there = replace(self, options=self.options | {"device": device}, progress=progress)
        there.trained(*job)

    def folds(self, split: Folds) -> tuple[tuple[FoldModel, ...], Floats, Floats | None]:
        """Return the network of each fold, log odds of cases that it did not see, and hazards."""
        logits = np.full((len(split), len(self.cohort)), np.nan)
        models, hazards = [], []
        for k, test in enumerate(split.test):
            model, held = self.trained(split.train(k), *_named(k, split))
            asked = np.concatenate([test, held])
            said = self.said(model, asked)
            logits[k, asked] = self.event_logits(said)
            hazards.append(_host(said[: len(test)].double().sigmoid()))
            models.append(model)
            self.made[split.train(k).tobytes()] = model
        if self.settings.training.loss != "survival":
            return tuple(models), logits, None
        ordered = np.concatenate(hazards)[np.argsort(np.concatenate(split.test))]
        return tuple(models), logits, ordered

    def between(self, train: NDArray[np.int64], asked: NDArray[np.int64]) -> Floats:
        """Return what a network that learns from some cases says of others."""
        known = self.made.get(train.tobytes())
        if known is None:
            known, _ = self.trained(train, *_nested(train))
        return self.event_logits(self.said(known, asked))

    def trained(
        self, cases: NDArray[np.int64], stem: str, name: str
    ) -> tuple[FoldModel, NDArray[np.int64]]:
        """Return a network of some cases, and which of them validated."""
        settings = self.settings.training
        patients = [self.cohort.patients[i] for i in cases]
        outcome = self._targets(cases)
        _, held = inner_split(outcome, patients, settings.validation_share, settings.seed)
        stored = None if self.folder is None else self.folder / f"{stem}.safetensors"
        run = self._digest(cases)
        model = _stored(stored, run)
        if model is None:
            told = self.progress
            model = train_fold(
                [self.volumes[self.cohort.case_ids[i]] for i in cases],
                outcome,
                settings,
                network_settings=self.settings.network,
                patients=patients,
                names=[self.cohort.case_ids[i] for i in cases],
                time_days=None if self.cohort.time_days is None else self.cohort.time_days[cases],
                checkpoint=None if stored is None else stored.with_suffix(".pt"),
                progress=None if told is None else lambda at: told(name, at),
                **self.options,
            )
            if stored is not None:
                write_bytes_atomic(stored, model.to_bytes({"run": run}))
                for left in stored.parent.glob(f"{stem}.*"):
                    if left != stored:
                        left.unlink()
        return model, cases[held]

    def said(self, model: FoldModel, cases: NDArray[np.int64]) -> Tensor:
        """Return what a network gives for cases, (number of them, outputs)."""
        settings = self.settings.training
        ids = [self.cohort.case_ids[i] for i in cases]
        logits = predict_volumes(
            [model], [self.volumes[i] for i in ids], preset=settings.preset,
            spatial_dims=model.network.settings.spatial_dims, size=model.size_voxels,
            tta=settings.tta_flips, batch_size=settings.batch_size, names=ids,
            device=next(model.network.parameters()).device,
        )  # fmt: skip
        return logits[0]

    def event_logits(self, outputs: Tensor) -> Floats:
        """Return the log odds of the event (n,)."""
        return _host(event_logit(outputs, survival=self.settings.training.loss == "survival"))

    def _targets(self, cases: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.settings.training.loss != "survival":
            return self.cohort.outcome[cases]
        if self.cohort.event is None:
            raise UsageError("survival needs the columns of time and event")
        return self.cohort.event[cases]

    def _digest(self, cases: NDArray[np.int64]) -> str:
        """Return what a stored network must have been trained with."""
        network, encoder = self.settings.network, self.options["encoder"]
        of_what: dict[str, Any] = {
            "cases": [self.cohort.case_ids[i] for i in cases],
            "outcome": self._targets(cases).tolist(),
            "training": json.loads(self.settings.training.to_json()),
            "network": None if network is None else json.loads(json.dumps(asdict(network))),
        }
        if encoder is not None:
            of_what["encoder"] = sha256_file(Path(encoder))
        if self.settings.training.loss == "survival" and self.cohort.time_days is not None:
            of_what["time_days"] = self.cohort.time_days[cases].tolist()
        return hashlib.sha256(canonical_json(of_what)).hexdigest()


def _named(k: int, split: Folds) -> tuple[str, str]:
    """Return the file and the name of the network of a fold."""
    return f"fold{k + 1}", f"fold {k + 1} of {len(split)}"


def _nested(cases: NDArray[np.int64]) -> tuple[str, str]:
    """Return the file and the name of a network that leaves two folds out."""
    key = hashlib.sha256(cases.tobytes()).hexdigest()[:12]
    return f"nested-{key}", f"nested network {key[:4]}"


def _stored(file: Path | None, run: str) -> FoldModel | None:
    """Return the network in a file, None where there is none or another run made it."""
    if file is None or not file.is_file():
        return None
    try:
        model = read_fold_model(file)
    except InputError:
        return None  # damaged: trained again
    if model.facts.get("run") != run:
        raise UsageError(
            "the folder holds networks of another training",
            where=file.name,
            expected="the same cases, outcomes and settings",
            hint="give another folder, or the settings of the run to continue",
        )
    return model


def _judged(
    cohort: Cohort,
    folds: Folds,
    settings: CrossSettings,
    models: Sequence[FoldModel],
    logits: Floats,
    findings: Sequence[Finding],
) -> CrossValidation:
    """Return probabilities and thresholds of all models."""
    n, y = len(cohort), cohort.outcome
    raw = logits[folds.fold_of, np.arange(n)]
    prevalence, calibrated = np.empty(n), np.empty(n)
    thresholds: list[float] = []
    turned: list[Finding] = []
    for k, test in enumerate(folds.test):
        train = folds.train(k)
        prevalence[test] = y[train].mean()
        known = train[np.isfinite(logits[k, train])]
        learned = _recalibration(settings, y[known], logits[k, known])
        calibrated[test] = _probability(learned, raw[test])
        turned += _turned(learned, f"of fold {folds.names[k]}")
        inner = _probability(learned, logits[k, known])
        thresholds.append(threshold_at(y[known], inner, **asdict(settings.rule)))
    probability = {"prevalence": prevalence}
    clinical = fusion = None
    if cohort.covariates:
        how: dict[str, Any] = {
            "covariates": settings.covariates,
            "inverse_penalty": settings.inverse_penalty,
            "seed": settings.training.seed,
        }
        clinical = clinical_model(cohort, folds, **how)
        fusion = late_fusion(cohort, folds, logits, **how)
        probability["clinical"] = clinical.probability
    probability["ct"] = calibrated
    if fusion is not None:
        probability["ct_clinical"] = fusion.probability
    more = [f for part in (clinical, fusion) if part is not None for f in part.findings]
    final = _recalibration(settings, y, raw)
    more += [*turned, *_turned(final, "of the model for new patients")]
    return CrossValidation(
        cohort, folds, settings, tuple(models), logits, probability,
        {} if settings.recalibration == "none" else {"ct": _probability(None, raw)},
        {"ct": thresholds}, clinical, fusion, final,
        (*cohort.findings, *folds.findings, *findings, *dict.fromkeys(more)),
    )  # fmt: skip


def _recalibration(
    settings: CrossSettings, outcome: NDArray[np.int64], logit: Floats
) -> Recalibration | None:
    if settings.recalibration == "none":
        return None
    return fit_recalibration(settings.recalibration, outcome, logit)


def _turned(learned: Recalibration | None, of_what: str) -> list[Finding]:
    """Return a finding where a recalibration ranks patients the other way round."""
    low, high = _probability(learned, np.array([-1.0, 1.0]))
    if low <= high:
        return []
    text = f"the recalibration {of_what} turns the order of the log odds round: too few events"
    return [Finding("recalibration.turned", Severity.WARNING, text)]


def _host(values: Tensor) -> Floats:
    """Return a number for each case on the host, where evaluation is."""
    return np.asarray(values.double().cpu().numpy())


def _probability(learned: Recalibration | None, logit: Floats) -> Floats:
    if learned is not None:
        return np.asarray(learned.apply(logit))
    from scipy.special import expit

    return np.asarray(expit(logit))
