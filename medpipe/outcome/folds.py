"""Folds of a cohort by patient, kept in a file that belongs to this cohort alone.

A patient is in one fold with all cases. Folds are stratified by outcome, or each is one
site. The file lists case ids; its hash covers case ids, patients and test sets, so that a
split cannot be used for other patients, or after patients were grouped otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, UsageError
from medpipe.io.atomic import canonical_json, write_json_atomic
from medpipe.outcome.cohort import Cohort
from medpipe.types import Finding, Severity

__all__ = ["Folds", "make_folds", "read_folds", "write_folds"]

Kind = Literal["stratified-group", "leave-one-site-out"]

_SCHEMA: Final = 1
_NAMED: Final = 5
"""At most so many cases are named in a message."""


@dataclass(frozen=True, eq=False)
class Folds:
    """Which cases are tested in which fold.

    Attributes
    ----------
    test : tuple of ndarray of int64
        Places of the cases in the cohort, ascending; each case is in one of them.
    digest : str
        sha256 over case ids, patients and test sets.
    kind : {"stratified-group", "leave-one-site-out"}
    names : tuple of str
        ``"1"``, ``"2"``, …, or the sites.
    seed : int
    findings : tuple of Finding
    """

    test: tuple[NDArray[np.int64], ...]
    digest: str
    kind: Kind = "stratified-group"
    names: tuple[str, ...] = ()
    seed: int = 0
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.test)

    @property
    def n_cases(self) -> int:
        """Number of cases in all test sets."""
        return sum(len(t) for t in self.test)

    @property
    def fold_of(self) -> NDArray[np.int64]:
        """The fold that tests each case, shape (n,)."""
        fold = np.full(self.n_cases, -1, np.int64)
        for k, test in enumerate(self.test):
            fold[test] = k
        return fold

    def train(self, fold: int) -> NDArray[np.int64]:
        """Return the cases that are not tested in a fold, ascending."""
        return np.flatnonzero(self.fold_of != fold)


def make_folds(cohort: Cohort, *, folds: int = 5, seed: int = 0, by_site: bool = False) -> Folds:
    """Split a cohort by patient; the same seed gives the same folds.

    Parameters
    ----------
    cohort : Cohort
    folds : int
        Number of folds; of no meaning with `by_site`.
    seed : int
    by_site : bool
        Whether each fold is one site.

    Raises
    ------
    UsageError
        If a fold would lack patients with or without the event, if a site is not known,
        or a patient has cases at two sites.
    """
    if by_site:
        return _by_site(cohort, seed)
    if folds < 2:
        raise UsageError("there are too few folds", expected="at least 2", got=str(folds))
    for number, what in _counts(cohort):
        if number < folds:
            raise UsageError(
                f"patients {what} the event are fewer than the folds",
                expected=f"at least {folds}",
                got=str(number),
                hint="make fewer folds" if number > 1 else None,
            )
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    split = splitter.split(np.zeros(len(cohort)), cohort.outcome, cohort.patient_codes)
    test = tuple(np.sort(t).astype(np.int64) for _, t in split)
    for t in test:
        if len(np.unique(cohort.outcome[t])) < 2:
            hint = "make fewer folds; some patients have many cases"
            raise UsageError("a fold has one outcome only", hint=hint)
    names = tuple(str(k + 1) for k in range(folds))
    return Folds(test, folds_digest(cohort, test), "stratified-group", names, seed)


def _counts(cohort: Cohort) -> tuple[tuple[int, str], tuple[int, str]]:
    events = cohort.n_events
    return (events, "with"), (cohort.n_patients - events, "without")


def _by_site(cohort: Cohort, seed: int) -> Folds:
    if cohort.sites is None or "" in cohort.sites:
        unknown = [c for c, s in zip(cohort.case_ids, cohort.sites or (), strict=False) if not s]
        raise UsageError(
            "folds by site need the site of every case",
            got=f"none for {_some(unknown)}" if unknown else "a table without sites",
        )
    sites = sorted(set(cohort.sites))
    if len(sites) < 2:
        raise UsageError("folds by site need two sites", got="one")
    first: dict[str, int] = {}
    moved = [
        cohort.case_ids[i]
        for i, patient in enumerate(cohort.patients)
        if cohort.sites[first.setdefault(patient, i)] != cohort.sites[i]
    ]
    if moved:
        hint = "leave out the cases of one site"
        raise UsageError("a patient has cases at two sites", where=_some(moved), hint=hint)
    of_case = np.array(cohort.sites)
    test = tuple(np.flatnonzero(of_case == site).astype(np.int64) for site in sites)
    for site, t in zip(sites, test, strict=True):
        if len(np.unique(np.delete(cohort.outcome, t))) < 2:
            raise UsageError(f"without site '{site}' only one outcome is left to train with")
    digest, findings = folds_digest(cohort, test), _one_outcome(cohort, test)
    return Folds(test, digest, "leave-one-site-out", tuple(sites), seed, findings)


def _one_outcome(cohort: Cohort, test: Sequence[NDArray[np.int64]]) -> tuple[Finding, ...]:
    """Tell sites that have one outcome only."""
    texts = [
        f"fold {k + 1} (a site of {len(t)} cases) has one outcome only"
        for k, t in enumerate(test)
        if len(np.unique(cohort.outcome[t])) < 2
    ]
    return tuple(Finding("folds.one_outcome", Severity.WARNING, text) for text in texts)


def _some(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return f"case{'s' if len(cases) > 1 else ''} {', '.join(cases[:_NAMED])}{more}"


def folds_digest(cohort: Cohort, test: Sequence[NDArray[np.int64]]) -> str:
    """Return the sha256 over case ids, patients and test sets; rows may be in any order."""
    rows = [
        [cohort.case_ids[i], cohort.patients[i], k] for k, cases in enumerate(test) for i in cases
    ]
    return hashlib.sha256(canonical_json(sorted(rows))).hexdigest()


def write_folds(path: Path, folds: Folds, cohort: Cohort) -> None:
    """Write the folds of a cohort as JSON: case ids by fold, and the hash.

    Raises
    ------
    UsageError
        If the folds are not of this cohort.
    StoreError
        If the file cannot be written.
    """
    if folds.n_cases != len(cohort) or folds_digest(cohort, folds.test) != folds.digest:
        raise UsageError("the folds are not of this cohort")
    record = {
        "schema": _SCHEMA,
        "kind": folds.kind,
        "seed": folds.seed,
        "digest": folds.digest,
        "folds": [
            {"name": name, "test": sorted(cohort.case_ids[i] for i in test)}
            for name, test in zip(folds.names, folds.test, strict=True)
        ],
    }
    write_json_atomic(Path(path), record)


def read_folds(path: Path, cohort: Cohort) -> Folds:
    """Read the folds that were written for this cohort; its rows may be in another order.

    Raises
    ------
    InputError
        If the file is no file of folds.
    UsageError
        If it belongs to another cohort, or was changed.
    """
    path = Path(path)
    record = _load(path)
    place = {case: i for i, case in enumerate(cohort.case_ids)}
    listed = [case for fold in record["folds"] for case in fold["test"]]
    unknown, missing = set(listed) - set(place), set(place) - set(listed)
    if unknown or missing:
        got = f"{len(unknown)} cases that are not in it, and {len(missing)} of it are missing"
        hint = "make new folds, or give the table that the file was made for"
        raise UsageError("the folds belong to another cohort", where=path.name, got=got, hint=hint)
    test = tuple(
        np.array(sorted(place[case] for case in fold["test"]), np.int64) for fold in record["folds"]
    )
    if len(listed) != len(place) or folds_digest(cohort, test) != record["digest"]:
        raise UsageError(
            "the folds were changed, or patients are grouped otherwise in this cohort",
            where=path.name,
            got=_in_two_folds(cohort, test),
            hint="restore the file, or delete it to make new folds",
        )
    names = tuple(fold["name"] for fold in record["folds"])
    findings = _one_outcome(cohort, test) if record["kind"] == "leave-one-site-out" else ()
    return Folds(test, record["digest"], record["kind"], names, record["seed"], findings)


def _in_two_folds(cohort: Cohort, test: Sequence[NDArray[np.int64]]) -> str | None:
    """Return the cases of patients that are in two folds, None where there is no such patient."""
    places: dict[str, list[tuple[int, int]]] = {}
    for k, cases in enumerate(test):
        for i in cases:
            places.setdefault(cohort.patients[i], []).append((int(i), k))
    torn = [p for p in places.values() if len({k for _, k in p}) > 1]
    if not torn:
        return None
    named = ", ".join(f"{cohort.case_ids[i]} (fold {k + 1})" for i, k in torn[0][:_NAMED])
    more = f", and {len(torn) - 1} patients more" if len(torn) > 1 else ""
    return f"the same patient in {named}{more}"


def _load(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except OSError:
        raise InputError("the file of folds cannot be read", where=path.name) from None
    except ValueError:
        record = None
    if not (isinstance(record, dict) and _sound(record)):
        raise InputError("this is no file of folds", where=path.name)
    return record


def _sound(record: dict[str, Any]) -> bool:
    folds = record.get("folds")
    return (
        record.get("schema") == _SCHEMA
        and record.get("kind") in ("stratified-group", "leave-one-site-out")
        and isinstance(record.get("seed"), int)
        and isinstance(record.get("digest"), str)
        and isinstance(folds, list)
        and all(
            isinstance(fold, dict)
            and isinstance(fold.get("name"), str)
            and isinstance(fold.get("test"), list)
            and all(isinstance(case, str) for case in fold["test"])
            for fold in folds
        )
    )
