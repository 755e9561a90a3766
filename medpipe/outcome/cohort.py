"""A cohort: one row per case with its patient, outcome, covariates, site and image.

`read_cohort` reads a manifest whose further columns hold the outcome and what else
is known. Every problem of the file is found in one reading and told with its line;
cells are never quoted. `docs/reference/outcome-cohort.md` describes the table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import ManifestError, UsageError
from medpipe.io.manifest import load_manifest
from medpipe.io.manifest_rows import Problems
from medpipe.outcome.cohort_rows import CohortColumns, CohortRows, read_rows
from medpipe.types import Finding, Severity

__all__ = ["Cohort", "read_cohort"]

MANY_MISSING = 0.5
"""From this share of missing values on, a covariate is a warning."""


@dataclass(frozen=True, eq=False, repr=False)
class Cohort:
    """Cases in the order of the table.

    Attributes
    ----------
    case_ids : tuple of str
    patients : tuple of str
        Pseudonyms, one per case. They group cases and are never printed.
    outcome : ndarray of int64, shape (n,)
        1 is the event.
    covariates : dict of ndarray of float64, shape (n,)
        NaN is a missing value; sex is 0 for female and 1 for male.
    sites : tuple of str or None
        An empty text where it is not known.
    images : dict
        Case id → path of the image.
    time_days : ndarray of float64, shape (n,), or None
        Days from the CT to the event, or to the last time without it.
    event : ndarray of int64, shape (n,), or None
        1 where `time_days` ends with the event, 0 where it is censored.
    findings : tuple of Finding
        What was tolerated.
    """

    case_ids: tuple[str, ...]
    patients: tuple[str, ...]
    outcome: NDArray[np.int64]
    covariates: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    sites: tuple[str, ...] | None = None
    images: dict[str, Path] = field(default_factory=dict)
    time_days: NDArray[np.float64] | None = None
    event: NDArray[np.int64] | None = None
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.case_ids)
        lengths = [len(self.patients), *(len(v) for v in self.covariates.values())]
        given = (self.outcome, self.sites, self.time_days, self.event)
        lengths += [len(v) for v in given if v is not None]
        if any(length != n for length in lengths):
            raise UsageError("the columns of a cohort differ in length", expected=f"{n} values")
        if len(set(self.case_ids)) != n:
            raise UsageError("a case of the cohort is there twice")
        if not np.isin(self.outcome, (0, 1)).all():
            raise UsageError("an outcome is not 0 or 1")
        first: dict[str, int] = {}
        for i, patient in enumerate(self.patients):
            j = first.setdefault(patient, i)
            if self.outcome[i] != self.outcome[j]:
                cases = f"cases {self.case_ids[j]} and {self.case_ids[i]}"
                raise UsageError("one patient has two outcomes", where=cases)

    def __repr__(self) -> str:
        return f"Cohort({len(self)} cases, {self.n_patients} patients, {self.n_events} events)"

    def __len__(self) -> int:
        return len(self.case_ids)

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return len(set(self.patients))

    @property
    def n_events(self) -> int:
        """Number of patients with the event."""
        return len({p for p, y in zip(self.patients, self.outcome, strict=True) if y})

    @property
    def patient_codes(self) -> NDArray[np.int64]:
        """A number for each case, the same for the cases of one patient, shape (n,)."""
        codes: dict[str, int] = {}
        return np.array([codes.setdefault(p, len(codes)) for p in self.patients], np.int64)

    def select(self, cases: Sequence[int] | NDArray[np.int64]) -> Cohort:
        """Return the cohort of some cases, given by their places, in that order."""
        rows = np.asarray(cases, np.int64)
        ids = tuple(self.case_ids[i] for i in rows)
        return Cohort(
            case_ids=ids,
            patients=tuple(self.patients[i] for i in rows),
            outcome=self.outcome[rows],
            covariates={name: values[rows] for name, values in self.covariates.items()},
            sites=None if self.sites is None else tuple(self.sites[i] for i in rows),
            images={c: self.images[c] for c in ids if c in self.images},
            time_days=None if self.time_days is None else self.time_days[rows],
            event=None if self.event is None else self.event[rows],
            findings=self.findings,
        )


def read_cohort(
    manifest: str | os.PathLike[str],
    *,
    outcome: str = "outcome",
    patient: str = "patient_id",
    covariates: Sequence[str] | None = None,
    site: str | None = "site",
    time: str | None = None,
    event: str | None = None,
    image: str | None = "image",
    folds: int | None = None,
    check_files: bool = True,
    allow_outside: bool = False,
) -> Cohort:
    """Read a cohort and check all of it.

    Parameters
    ----------
    manifest : path
        A CSV (UTF-8, commas) or Parquet file with one row per case.
    outcome, patient, site, time, event : str
        Names of columns. Without a column `patient` every case counts as a patient,
        which is a warning. A column `site` is used when it is there.
    covariates : sequence of str, optional
        Columns to use; all must be there. One that is not in
        `medpipe.outcome.covariates.COVARIATES` may hold any number. By default those
        columns are used that are known, and a column that is not known is refused.
    image : str, optional
        Column with the images; None for a table without.
    folds : int, optional
        The number of folds that will be made; as many patients with and without
        the event must be there.
    check_files : bool
        Whether each image must exist and be readable.
    allow_outside : bool
        Whether relative paths may lead out of the manifest's folder.

    Raises
    ------
    ManifestError
        With every problem of the file, in the order of its lines.
    UsageError
        If the names of the columns contradict each other.
    """
    path = Path(manifest)
    wanted = CohortColumns(
        outcome,
        patient,
        None if covariates is None else tuple(covariates),
        site,
        time,
        event,
        image,
    )
    wanted.check()
    problems = Problems(path.name)
    cases, findings = [], []
    try:
        read = load_manifest(
            path,
            inputs=[image] if image is not None else [],
            check_files=check_files,
            allow_outside=allow_outside,
        )
        cases, findings = read.cases, read.findings
    except ManifestError as error:  # the outcome is checked all the same, and told with the rest
        for p in error.problems:
            problems.add(p.what, p.line, p.hint)
    rows = read_rows(path, wanted, problems)
    _check_classes(rows, folds, problems)
    problems.raise_any()
    images = {c.case_id: Path(str(c.inputs[image])) for c in cases} if image else {}
    return _cohort(rows, images, [*findings, *rows.findings])


def _check_classes(rows: CohortRows, folds: int | None, problems: Problems) -> None:
    """Add what is wrong with the outcomes as a whole, once each of them is clear."""
    if rows.unclear or not rows.outcome:
        return
    by_patient = dict(zip(rows.patients, rows.outcome, strict=True))
    events = sum(by_patient.values())
    others = len(by_patient) - events
    if not events or not others:
        only = "1" if events else "0"
        text = f"every outcome is {only}; a model needs both"
        problems.add(text, None, "check the coding: 1 is the event, 0 is its absence")
        return
    for number, what in ((events, "with the event"), (others, "without the event")):
        if folds is not None and number < folds:
            text = f"{number} patients {what} are fewer than the {folds} folds"
            problems.add(text, None, f"use at most {number} folds" if number > 1 else None)


def _cohort(rows: CohortRows, images: Mapping[str, Path], findings: list[Finding]) -> Cohort:
    columns = {name: np.array(values) for name, values in rows.covariates.items()}
    n = len(rows.case_ids)
    for name, values in list(columns.items()):
        missing = int(np.isnan(values).sum())
        if missing == n:
            del columns[name]
            text = f"'{name}' has no value and is left out"
            findings.append(Finding("cohort.no_value", Severity.WARNING, text))
        elif missing >= MANY_MISSING * n:
            text = f"'{name}' is missing in {missing} of {n} cases"
            findings.append(Finding("cohort.missing", Severity.WARNING, text))
    return Cohort(
        case_ids=tuple(rows.case_ids),
        patients=tuple(rows.patients),
        outcome=np.array(rows.outcome, np.int64),
        covariates=columns,
        sites=None if rows.sites is None else tuple(rows.sites),
        images=dict(images),
        time_days=None if rows.time_days is None else np.array(rows.time_days, np.float64),
        event=None if rows.event is None else np.array(rows.event, np.int64),
        findings=tuple(findings),
    )
