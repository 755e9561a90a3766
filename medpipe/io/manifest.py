"""Manifests: a table with one row per case, checked whole before anything runs.

A row has a ``case_id``, one column per input of the workflow, and whatever
else the study knows. Every problem of a file is found in one reading and
reported with its line; a problem is described, never quoted, since a cell may
name a patient. The format is described in ``data_manifests/README.md``.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medpipe.errors import UsageError
from medpipe.io.atomic import atomic_path
from medpipe.io.case import Case
from medpipe.io.manifest_cells import (
    SHA256,
    case_id_problem,
    escape,
    id_problem,
    path_problem,
    spreadsheet_error,
    starts_formula,
    unescape,
)
from medpipe.io.manifest_columns import DIGEST_SUFFIX, Columns, path_columns
from medpipe.io.manifest_paths import PathRules
from medpipe.io.manifest_rows import Problems, open_rows
from medpipe.types import Finding, Severity

__all__ = ["Manifest", "load_manifest", "read_manifest", "write_manifest"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that was read without a problem.

    Attributes
    ----------
    cases : list of Case
        In the order of the file; paths are absolute.
    inputs : tuple of str
        The columns that were taken as inputs.
    findings : list of Finding
        What was tolerated: a byte-order mark, blank rows.
    """

    cases: list[Case]
    inputs: tuple[str, ...]
    findings: list[Finding] = field(default_factory=list)


def read_manifest(
    path: str | os.PathLike[str],
    *,
    inputs: Collection[str] | None = None,
    optional: Collection[str] = (),
    check_files: bool = True,
    verify_sha256: bool = False,
    allow_outside: bool = False,
) -> list[Case]:
    """Return the cases of a manifest; see `load_manifest`."""
    return load_manifest(
        path,
        inputs=inputs,
        optional=optional,
        check_files=check_files,
        verify_sha256=verify_sha256,
        allow_outside=allow_outside,
    ).cases


def load_manifest(
    path: str | os.PathLike[str],
    *,
    inputs: Collection[str] | None = None,
    optional: Collection[str] = (),
    check_files: bool = True,
    verify_sha256: bool = False,
    allow_outside: bool = False,
) -> Manifest:
    """Read a manifest and check all of it.

    Parameters
    ----------
    path : path
        A ``.csv`` file (UTF-8, commas) or a ``.parquet`` file.
    inputs : collection of str, optional
        Names of the workflow's inputs; each must be a column. By default
        every column is taken whose cells all look like paths, or all exist.
    optional : collection of str
        Inputs that may be absent, as a column or in a row.
    check_files : bool
        Whether each input must exist and be readable.
    verify_sha256 : bool
        Whether to compare each input with its ``<input>_sha256`` column.
    allow_outside : bool
        Whether relative paths may lead out of the manifest's folder.

    Raises
    ------
    ManifestError
        With every problem of the file, in the order of its lines.
    """
    path = Path(path)
    problems = Problems(path.name)
    source = open_rows(path, problems)
    columns = Columns.of(source.header, inputs, optional, problems)
    problems.raise_any()
    if inputs is None:
        columns.inputs = path_columns(source.rows(False), columns, path.parent, check_files)
        columns.check_digests(problems)
        columns.optional = frozenset(columns.inputs)
    reader = _RowReader(
        columns, problems, PathRules(path.parent, allow_outside), check_files, verify_sha256
    )
    cases = reader.read(source.rows(True))
    problems.raise_any()
    if reader.blank:
        text = f"{reader.blank} rows without any value were left out"
        source.findings.append(Finding("manifest.blank_rows", Severity.INFO, text))
    return Manifest(cases, tuple(columns.inputs), source.findings)


@dataclass(slots=True)
class _RowReader:
    """Turns rows into cases; what is wrong goes to `problems`."""

    columns: Columns
    problems: Problems
    paths: PathRules
    check_files: bool
    verify_sha256: bool
    blank: int = 0

    def read(self, rows: Iterable[tuple[int, list[str]]]) -> list[Case]:
        columns, problems = self.columns, self.problems
        width, others = len(columns.names), columns.others()
        digests = {name: columns.digest_of(name) for name in columns.inputs}
        seen: dict[str, int] = {}
        case_ids, patient_ids = _Padding("case_id"), _Padding("patient_id")
        cases = []
        for line, row in rows:
            if not any(row):
                self.blank += 1
                continue
            if len(row) != width:
                hint = "put a cell that holds a comma in quotes" if len(row) > width else None
                problems.add(f"the row has {len(row)} cells, the header {width}", line, hint)
                continue
            case_id = row[columns.case_id]
            trouble = case_id_problem(case_id)
            if trouble:
                problems.add(trouble[0], line, trouble[1])
            else:
                first = seen.setdefault(case_id.lower(), line)
                if first != line:
                    text = f"case_id '{case_id}' is already used in line {first}"
                    problems.add(text, line, "ids differ by more than upper and lower case")
                case_ids.see(case_id, line)
            patient_id = self._patient_id(row, line, patient_ids)
            inputs = {
                name: self._input(name, row[i], row, digests[name], line)
                for name, i in columns.inputs.items()
            }
            covariates = {name: self._covariate(row[i], i, line) for name, i in others}
            cases.append(Case(case_id, inputs, patient_id, covariates))
        case_ids.report(problems)
        patient_ids.report(problems)
        if not cases and not problems:
            problems.add("there is no case below the header", None)
        return cases

    def _patient_id(self, row: list[str], line: int, padding: _Padding) -> str | None:
        if self.columns.patient_id is None or not row[self.columns.patient_id]:
            return None
        text = unescape(row[self.columns.patient_id])
        if text is row[self.columns.patient_id]:
            trouble = id_problem(text)
            if trouble:
                self.problems.add(f"patient_id {trouble[0]}", line, trouble[1])
        padding.see(text, line)
        return text

    def _covariate(self, cell: str, column: int, line: int) -> str:
        if cell and cell[0] in "=+-@\t\r#'":
            if spreadsheet_error(cell):
                text = f"column {column + 1} holds an error value of a spreadsheet"
                self.problems.add(text, line, "repair the formula, export again")
            elif starts_formula(cell):
                text = f"column {column + 1} starts with = + - or @"
                hint = "a spreadsheet would run it; put an apostrophe in front if it is text"
                self.problems.add(text, line, hint)
            return unescape(cell)
        return cell

    def _input(
        self, name: str, cell: str, row: list[str], digest: int | None, line: int
    ) -> str | None:
        expected = row[digest].lower() if digest is not None else ""
        if expected and not SHA256.match(expected):
            self.problems.add(f"'{name}{DIGEST_SUFFIX}' is not 64 hexadecimal digits", line)
            expected = ""
        if not cell:
            if name not in self.columns.optional:
                self.problems.add(f"input '{name}' is empty", line, "every case needs it")
            elif expected:
                self.problems.add(f"input '{name}' is empty, but its digest is not", line)
            return None
        path, trouble = self._path(cell, expected)
        if trouble:
            self.problems.add(f"input '{name}' {trouble[0]}", line, trouble[1])
        return path

    def _path(self, cell: str, expected: str) -> tuple[str | None, tuple[str, str | None] | None]:
        trouble = path_problem(cell)
        if trouble:
            return None, trouble
        path = self.paths.resolve(cell)
        if not isinstance(path, str):
            return None, path
        if self.check_files or self.verify_sha256:
            trouble = self.paths.check(path, cell)
        if trouble is None and expected and self.verify_sha256:
            trouble = _compare_digest(path, expected)
        return path, trouble


def _compare_digest(path: str, expected: str) -> tuple[str, str | None] | None:
    from medpipe.io.digests import digest_input

    if digest_input(path).digest == expected:
        return None
    return "is not the one the manifest was made for", "its sha256 differs; copy the input again"


@dataclass(slots=True)
class _Padding:
    """Finds ids that lost the zeros in front: ``12`` among ``0011`` and ``0013``."""

    column: str
    widths: Counter[int] = field(default_factory=Counter)
    bare: list[tuple[int, int]] = field(default_factory=list)

    def see(self, text: str, line: int) -> None:
        if not (text.isdigit() and text.isascii()):
            return
        if text[0] == "0" and len(text) > 1:
            self.widths[len(text)] += 1
        else:
            self.bare.append((line, len(text)))

    def report(self, problems: Problems) -> None:
        if not self.widths:
            return
        width = self.widths.most_common(1)[0][0]
        text = f"{self.column} seems to have lost its zeros in front; others have {width} digits"
        for line, length in self.bare:
            if length < width:
                problems.add(text, line, "format the column as text, enter the ids again")


def write_manifest(path: str | os.PathLike[str], cases: Sequence[Case]) -> None:
    """Write cases as a CSV file that `read_manifest` reads back.

    Inputs below the manifest's folder are written relative to it, others as
    absolute paths. Cells that a spreadsheet would run get an apostrophe in
    front, which `read_manifest` removes.

    Raises
    ------
    UsageError
        If a case id is invalid or used twice, or a covariate is named like another column.
    StoreError
        If the file cannot be written; an older one stays as it was.
    """
    path = Path(path)
    _check_case_ids(cases)
    inputs = list(dict.fromkeys(name for case in cases for name in case.inputs))
    covariates = list(dict.fromkeys(name for case in cases for name in case.covariates))
    with_patient = any(case.patient_id is not None for case in cases)
    header = ["case_id", *(["patient_id"] if with_patient else []), *inputs, *covariates]
    if len({name.casefold() for name in header}) != len(header):
        raise UsageError("two columns of the manifest would have the same name")
    folder = os.path.abspath(path.parent)
    with atomic_path(path) as tmp, open(tmp, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(header)
        for case in cases:
            row = [case.case_id]
            if with_patient:
                row.append(escape(case.patient_id or ""))
            row += [_relative(case.inputs.get(name), folder) for name in inputs]
            row += [escape(_text(case.covariates.get(name))) for name in covariates]
            writer.writerow(row)


def _check_case_ids(cases: Sequence[Case]) -> None:
    seen = set()
    for number, case in enumerate(cases, start=1):
        trouble = case_id_problem(case.case_id)
        if trouble:
            raise UsageError(trouble[0], where=f"case {number} of {len(cases)}", hint=trouble[1])
        if case.case_id.lower() in seen:
            raise UsageError("case_id is used twice", where=f"case {case.case_id}")
        seen.add(case.case_id.lower())


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _relative(path: str | None, folder: str) -> str:
    if path is None:
        return ""
    full = os.path.abspath(path)
    if not full.startswith(folder.rstrip("/") + "/"):
        return full
    relative = full[len(folder.rstrip("/")) + 1 :]
    return relative if path_problem(relative) is None else f"./{relative}"
