"""From the rows of a manifest to the columns of a cohort; what is wrong is told by line."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path

from medpipe.errors import ManifestError, UsageError
from medpipe.io.manifest_cells import id_problem, unescape
from medpipe.io.manifest_columns import DIGEST_SUFFIX
from medpipe.io.manifest_rows import Problems, open_rows
from medpipe.outcome.covariates import (
    ACQUISITION,
    COVARIATES,
    LATER,
    MISSING,
    covariate,
    meant_covariate,
    parse_covariate,
    parse_number,
)
from medpipe.types import Finding, Severity

__all__ = ["CohortColumns", "CohortRows", "read_rows"]

_ZERO_ONE = "write 1 for the event and 0 for its absence"


@dataclass(frozen=True, slots=True)
class CohortColumns:
    """Which columns were asked for; see `medpipe.outcome.cohort.read_cohort`."""

    outcome: str
    patient: str
    covariates: tuple[str, ...] | None
    site: str | None
    time: str | None
    event: str | None
    image: str | None

    def check(self) -> None:
        """Refuse names that contradict each other.

        Raises
        ------
        UsageError
            If a column is used for two things, or a time has no event.
        """
        if (self.time is None) != (self.event is None):
            raise UsageError("a time needs an event and an event a time", hint="name both columns")
        names = [*self.named(), *(self.covariates or ())]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError("a column is used for two things", got=", ".join(twice))
        later = sorted(LATER.intersection(self.covariates or ()))
        if later:
            raise UsageError(
                "a covariate is known only after the CT",
                got=", ".join(later),
                hint="a model may use what is known when it predicts",
            )

    def named(self) -> list[str]:
        """Return the columns with a meaning of their own."""
        names = (self.outcome, self.patient, self.site, self.time, self.event, self.image)
        return ["case_id", *(name for name in names if name is not None)]


@dataclass(slots=True)
class CohortRows:
    """The columns of a cohort, in the order of the file.

    `unclear` says that an outcome is missing or contradicted, so that counts mean nothing.
    """

    case_ids: list[str] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    outcome: list[int] = field(default_factory=list)
    covariates: dict[str, list[float]] = field(default_factory=dict)
    sites: list[str] | None = None
    time_days: list[float] | None = None
    event: list[int] | None = None
    findings: list[Finding] = field(default_factory=list)
    unclear: bool = False


def read_rows(path: Path, wanted: CohortColumns, problems: Problems) -> CohortRows:
    """Read outcome, patient, covariates and site of every row.

    Parameters
    ----------
    path : Path
    wanted : CohortColumns
    problems : Problems
        Takes what is wrong. Rows that are no rows at all are left to
        `medpipe.io.manifest.load_manifest`, which tells them.
    """
    rows = CohortRows()
    try:
        source = open_rows(path, Problems(path.name))
    except ManifestError:
        rows.unclear = True
        return rows
    index: dict[str, int] = {}
    for i, name in enumerate(source.header):
        index.setdefault(name, i)
    if "case_id" not in index:  # without a header nothing can be told from the first row
        rows.unclear = True
        return rows
    names = _check_header(wanted, index, rows, problems)
    reader = _Reader(wanted, index, names, rows, problems)
    for line, cells in source.rows(False):
        if any(cells) and len(cells) == len(source.header):
            reader.read(line, cells)
    reader.finish()
    return rows


def _check_header(
    wanted: CohortColumns, index: dict[str, int], rows: CohortRows, problems: Problems
) -> list[str]:
    """Return the covariates to read; add columns that are missing or not known."""
    spare = [name for name in index if name not in wanted.named()]
    required = [wanted.outcome, wanted.time, wanted.event, *(wanted.covariates or ())]
    if wanted.patient != "patient_id":
        required.append(wanted.patient)
    if wanted.site not in (None, "site"):
        required.append(wanted.site)
    for name in required:
        if name is not None and name not in index:
            close = difflib.get_close_matches(name, spare, 1)
            hint = f"did you mean '{name}' where it says '{close[0]}'?" if close else None
            problems.add(f"there is no column '{name}'", 1, hint)
    if wanted.patient not in index:
        text = "there is no column 'patient_id'; every case counts as a patient of its own"
        rows.findings.append(Finding("cohort.no_patients", Severity.WARNING, text))
    if wanted.covariates is not None:
        return [name for name in wanted.covariates if name in index]
    left = {*LATER, *ACQUISITION, f"{wanted.image}{DIGEST_SUFFIX}", "patient_id", "site"}
    for name in spare:
        if name in COVARIATES or name in left or not (name.strip() and name.isprintable()):
            continue  # a name that is none is told with the cases
        meant = meant_covariate(name)
        hint = f"rename it to '{meant}'" if meant else "ask for it by name, or delete the column"
        problems.add(f"column {index[name] + 1} ('{name}') is no known covariate", 1, hint)
    return [name for name in spare if name in COVARIATES]


class _Reader:
    """Takes rows apart; a value that cannot be read is told and leaves a placeholder."""

    def __init__(
        self,
        wanted: CohortColumns,
        index: dict[str, int],
        names: list[str],
        rows: CohortRows,
        problems: Problems,
    ) -> None:
        self.wanted, self.index, self.rows, self.problems = wanted, index, rows, problems
        self.rules = [(covariate(name), index[name]) for name in names]
        rows.covariates = {name: [] for name in names}
        rows.sites = [] if wanted.site in index else None
        timed = wanted.time in index and wanted.event in index
        rows.time_days, rows.event = ([], []) if timed else (None, None)
        self.no_site = 0
        self.lines: dict[str, tuple[int, int | None, int | None]] = {}
        self.spelled: dict[tuple[str, str], tuple[str, int]] = {}

    def read(self, line: int, cells: list[str]) -> None:
        """Add one row."""
        rows, index, wanted = self.rows, self.index, self.wanted
        case_id = cells[index["case_id"]]
        rows.case_ids.append(case_id)
        outcome = self._zero_one(wanted.outcome, cells, line)
        rows.outcome.append(outcome or 0)
        rows.unclear |= outcome is None
        event = None
        if rows.time_days is not None and rows.event is not None:
            rows.time_days.append(self._time(cells, line))
            event = self._zero_one(str(wanted.event), cells, line)
            rows.event.append(event or 0)
        rows.patients.append(self._patient(case_id, cells, line, outcome, event))
        if rows.sites is not None:
            rows.sites.append(self._site(cells, line))
        for rule, i in self.rules:
            value = parse_covariate(cells[i], rule)
            if isinstance(value, tuple):
                self.problems.add(value[0], line, value[1])
                value = math.nan
            rows.covariates[rule.name].append(value)

    def finish(self) -> None:
        """Add what only the whole table shows."""
        if self.no_site:
            text = f"the site of {self.no_site} cases is not known"
            self.rows.findings.append(Finding("cohort.no_site", Severity.WARNING, text))

    def _zero_one(self, name: str, cells: list[str], line: int) -> int | None:
        if name not in self.index:
            return None
        try:
            value = parse_number(cells[self.index[name]])
        except ValueError:
            value = math.inf
        if value is None:
            self.problems.add(f"'{name}' is missing", line, "every case needs it")
            return None
        if value not in (0.0, 1.0):
            self.problems.add(f"'{name}' is not 0 or 1", line, _ZERO_ONE)
            return None
        return int(value)

    def _time(self, cells: list[str], line: int) -> float:
        name = str(self.wanted.time)
        try:
            value = parse_number(cells[self.index[name]])
        except ValueError:
            self.problems.add(f"'{name}' is not a number", line, "write it in days")
            return math.nan
        if value is None:
            self.problems.add(f"'{name}' is missing", line, "every case needs it")
            return math.nan
        if value <= 0:
            hint = "count days from the CT; write 0.5 for an event on its day"
            self.problems.add(f"'{name}' is not above 0", line, hint)
        return value

    def _patient(
        self, case_id: str, cells: list[str], line: int, outcome: int | None, event: int | None
    ) -> str:
        name = self.wanted.patient
        if name not in self.index:
            return case_id
        patient = unescape(cells[self.index[name]])
        if not patient.strip() or patient.strip().lower() in MISSING:
            self.problems.add(f"'{name}' is missing", line, "give every case its patient, or none")
            return f"\0{line}"
        trouble = id_problem(patient) if name != "patient_id" and patient else None
        if trouble:
            self.problems.add(f"'{name}' {trouble[0]}", line, trouble[1])
        patient = self._one_spelling(name, patient, line)
        first, was, had = self.lines.setdefault(patient, (line, outcome, event))
        self._agrees(self.wanted.outcome, line, first, outcome, was)
        self._agrees(str(self.wanted.event), line, first, event, had)
        return patient

    def _agrees(self, name: str, line: int, first: int, now: int | None, then: int | None) -> None:
        if now is not None and then is not None and now != then:
            text = f"the patient of line {first} has another '{name}' here"
            self.problems.add(text, line, "correct one of the two, or the patient")
            self.rows.unclear = True

    def _site(self, cells: list[str], line: int) -> str:
        name = str(self.wanted.site)
        site = unescape(cells[self.index[name]]).strip()
        if site.lower() in MISSING:
            self.no_site += 1
            return ""
        return self._one_spelling(name, site, line)

    def _one_spelling(self, column: str, text: str, line: int) -> str:
        """Return `text` without blanks around it; tell one that differs in its case alone."""
        text = text.strip()
        spelled, first = self.spelled.setdefault((column, text.casefold()), (text, line))
        if spelled != text:
            what = f"'{column}' is the one of line {first} but for upper and lower case"
            self.problems.add(what, line, "write both the same, or tell them apart")
        return spelled
