"""What of a study can be refused before a network is trained: that takes seconds, not hours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.errors import UsageError
from medpipe.outcome.clinical import clinical_model
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.crossval import CrossSettings, check_shares
from medpipe.outcome.folds import Folds, make_folds, read_folds
from medpipe.outcome.leaks import check_leaks
from medpipe.outcome.network import outcome_network
from medpipe.outcome.samples import inner_split

__all__ = ["plan_study"]


def plan_study(
    cohort: Cohort,
    settings: CrossSettings | None = None,
    *,
    file: Path | None = None,
    study_digests: Mapping[str, str | None] | None = None,
    pixel_digests: Mapping[str, str | None] | None = None,
) -> Folds:
    """Return the folds of a study that can be trained and judged; nothing is written.

    Parameters
    ----------
    cohort : Cohort
    settings : CrossSettings, optional
    file : Path, optional
        Folds to use again, if they are there.
    study_digests, pixel_digests : mapping, optional
        See `medpipe.outcome.leaks.check_leaks`.

    Raises
    ------
    UsageError
        If folds cannot be made or are of other settings, if a test case is known from
        training, if a fold leaves too few patients to train, to validate and to recalibrate
        with, or if the settings do not fit each other or the cohort.
    InputError
        If `file` is no file of folds.
    """
    chosen = settings or CrossSettings()
    _check_settings(cohort, chosen)
    training = chosen.training
    if file is not None and file.is_file():
        folds = read_folds(file, cohort)
        _check_kind(folds, chosen, file.name)
    else:
        folds = make_folds(cohort, folds=training.folds, seed=training.seed, by_site=chosen.by_site)
    if chosen.nested and len(folds) < 3:
        raise UsageError("nested networks need three folds", got=str(len(folds)))
    check_leaks(cohort, folds, study_digests=study_digests, pixel_digests=pixel_digests)
    for name, cases in _training_parts(folds, chosen.nested):
        try:
            _check_part(cohort, cases, chosen)
        except UsageError as error:
            raise error.at(f"training without {name}") from None
    if cohort.covariates:  # quick, and refuses what cannot be learned from
        clinical_model(
            cohort, folds, covariates=chosen.covariates,
            inverse_penalty=chosen.inverse_penalty, seed=training.seed,
        )  # fmt: skip
    return folds


def _check_settings(cohort: Cohort, settings: CrossSettings) -> None:
    training = settings.training
    check_shares(settings)
    if training.loss == "survival":
        if cohort.event is None or cohort.time_days is None:
            raise UsageError(
                "the survival loss needs the time to the event",
                expected="a column of days and one that says whether the event ended them",
                hint="name both, for example --time time_days --event event",
            )
        last = training.interval_days[-1]
        if not ((cohort.event == 1) & (cohort.time_days <= last)).any():
            raise UsageError("no event lies within the intervals of time", expected=f"{last:g} d")
    if training.size_voxels is not None:
        with torch.device("meta"):  # no weights are drawn
            network = outcome_network(settings.network)
        if min(network.last_voxels(training.size_voxels)) < 1:
            raise UsageError(
                "the volumes are too small for the network",
                expected=f"{network.least_voxels} voxels or more along each axis",
                got=" × ".join(map(str, training.size_voxels)),
            )


def _check_kind(folds: Folds, settings: CrossSettings, name: str) -> None:
    kind = "leave-one-site-out" if settings.by_site else "stratified-group"
    wanted = "folds by site" if settings.by_site else f"{settings.training.folds} folds by patient"
    if folds.kind == kind and (settings.by_site or len(folds) == settings.training.folds):
        return
    found = "by site" if folds.kind == "leave-one-site-out" else "by patient"
    raise UsageError(
        "the folder holds folds of other settings",
        where=name,
        expected=wanted,
        got=f"{len(folds)} folds {found}",
        hint="give another folder, or the settings of the study to continue",
    )


def _training_parts(folds: Folds, nested: bool) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield what networks are trained with: all but one fold, of nested ones all but two."""
    for number in (1, 2)[: 2 if nested else 1]:
        for left_out in combinations(range(len(folds)), number):
            said = " and ".join(f"fold {folds.names[k]}" for k in left_out)
            yield said, np.flatnonzero(~np.isin(folds.fold_of, left_out))


def _check_part(cohort: Cohort, cases: NDArray[np.int64], settings: CrossSettings) -> None:
    """Refuse cases that no network can be trained with, validated and recalibrated."""
    training, outcome = settings.training, cohort.outcome[cases]
    targets = outcome
    if training.loss == "survival" and cohort.event is not None:
        targets = cohort.event[cases]
    patients = [cohort.patients[i] for i in cases]
    trains, held = inner_split(targets, patients, training.validation_share, training.seed)
    if not targets[trains].any():
        raise UsageError("no event is left to train with")
    judged = outcome if settings.nested else outcome[held]
    if len(np.unique(judged)) < 2:
        raise UsageError(
            "too few patients are left to train and to validate with",
            expected="two or more with the event, and without",
            got=f"{_patients(cohort, cases, 1)} and {_patients(cohort, cases, 0)}",
            hint="make fewer folds, or nested ones",
        )


def _patients(cohort: Cohort, cases: NDArray[np.int64], outcome: int) -> int:
    return len({cohort.patients[i] for i in cases if cohort.outcome[i] == outcome})
