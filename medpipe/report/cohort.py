"""The cohort as numbers: one small row for each case, and what they add up to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medpipe.figures.svg import share_bar_svg, strip_svg
from medpipe.report.records import SEVERITIES, Case, number, numbers
from medpipe.report.text import bytes_text

__all__ = ["CaseRow", "Cohort", "row_of"]

MAX_COLUMNS = 48
MAX_ROWS = 24
"""Rows of a table of which the cohort page takes numbers."""
_ORDER = {"failed": 0, "unreadable": 1, "done": 2, "pending": 3}
_DIGITS = re.compile(r"(\d+)")


@dataclass(slots=True)
class CaseRow:
    """What the cohort keeps of a case: no picture, no parameters."""

    case_id: str
    href: str
    status: str
    seconds: float | None
    peak: float | None
    severities: dict[str, int]
    repaired: int
    numbers: dict[str, float]
    thumbnail_json: Path | None
    thumbnail: dict[str, Any] | None = None

    def rank(self) -> tuple[Any, ...]:
        """Sort key: failures first, then by findings, then by name with numbers in order."""
        # split puts what it matched, the digits, at the odd places
        parts = _DIGITS.split(self.case_id)
        natural = [int(p) if i % 2 else p for i, p in enumerate(parts)]
        grave = (-self.severities["error"], -self.severities["warning"])
        return (_ORDER.get(self.status, 1), *grave, natural)


def row_of(case: Case, href: str) -> CaseRow:
    """Return the row of a case."""
    counts = Counter(f["severity"] for f in case.findings if not f["fixed"])
    picture = next((p for p in case.pictures if p.json_path), None)
    return CaseRow(
        case_id=case.case_id,
        href=href,
        status=case.status,
        seconds=case.facts.get("seconds"),
        peak=case.facts.get("peak_rss_bytes"),
        severities={s: counts.get(s, 0) for s in SEVERITIES},
        repaired=sum(f["fixed"] for f in case.findings),
        numbers=dict(list(_numbers(case))[:MAX_COLUMNS]),
        thumbnail_json=picture.json_path if picture else None,
    )


def _numbers(case: Case) -> Iterable[tuple[str, float]]:
    # rows that are counted, such as branches, are others in each case: only few go in
    groups = {name: _rows(table) for name, table in case.tables.items()}
    for name in sorted(groups, key=lambda n: groups[n]):
        if groups[name] <= MAX_ROWS:
            yield from _flat(str(name), case.tables[name], 3)
    for picture in case.pictures[:1]:
        for key, names in (("spacing_mm", "spacing {}, mm"), ("shape", "voxels along {}")):
            for axis, value in zip("ijk", numbers(picture.data.get(key)), strict=False):
                yield names.format(axis), value
        for key, label in (("mean", "mean value"), ("shear_deg", "shear, degrees")):
            measured = number(picture.data.get(key))
            if measured is not None:
                yield label, measured
    for picture in case.pictures:
        labels = picture.data.get("labels")
        for entry in labels if isinstance(labels, list) else []:
            ml = number(entry.get("ml")) if isinstance(entry, dict) else None
            if ml is not None:
                yield f"{picture.step}: {entry.get('name', '?')}, ml", ml


def _rows(table: Any) -> int:
    """Return how many groups of values a table holds."""
    values = table.values() if isinstance(table, Mapping) else ()
    return sum(isinstance(value, Mapping) for value in values)


def _flat(name: str, value: Any, depth: int) -> Iterable[tuple[str, float]]:
    """Yield the numbers in nested tables as ``table.row.column``."""
    found = number(value)
    if found is not None:
        yield name, found
    elif isinstance(value, Mapping) and depth:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner, depth - 1)
    elif isinstance(value, list) and depth:
        for rank, row in enumerate(value[:20]):
            label = row.get("label", row.get("name", rank)) if isinstance(row, Mapping) else rank
            yield from _flat(f"{name}.{label}", row, depth - 1)


@dataclass(slots=True)
class _Kind:
    """Cases that share a failure or a finding."""

    first: dict[str, Any]
    n: int = 0
    cases: list[CaseRow] = field(default_factory=list)

    def add(self, row: CaseRow, keep: int) -> None:
        self.n += 1
        if len(self.cases) < keep:
            self.cases.append(row)


class Cohort:
    """Adds cases up, one after the other; its size grows by a small row for each case."""

    def __init__(self) -> None:
        self.rows: list[CaseRow] = []
        self.failures: dict[tuple[Any, ...], _Kind] = {}
        self.findings: dict[tuple[str, str, str], _Kind] = {}
        self.step_seconds: dict[str, list[float]] = {}
        self.reused: Counter[str] = Counter()
        self.workflows: Counter[tuple[tuple[str, str], ...]] = Counter()
        self.steps: list[dict[str, Any]] = []
        self.n_reused_cases = 0

    def add(self, case: Case, href: str) -> None:
        """Add one case."""
        row = row_of(case, href)
        self.rows.append(row)
        self.workflows[tuple(sorted(case.workflow.items()))] += bool(case.workflow)
        if case.status in ("failed", "unreadable"):
            error = case.error or {"what": case.problem}
            key = tuple(str(error.get(k)) for k in ("type", "step", "what"))
            self.failures.setdefault(key, _Kind(error)).add(row, 24)
        seen = set()
        for finding in case.findings:
            # Numbers inside a message differ from case to case; the check is the kind.
            kind = (finding["severity"], finding["check"], _DIGITS.sub("#", finding["message"]))
            if kind not in seen:
                seen.add(kind)
                self.findings.setdefault(kind, _Kind(finding)).add(row, 4)
        self._add_steps(case)

    def _add_steps(self, case: Case) -> None:
        if case.status == "done" and len(case.steps) > len(self.steps):
            self.steps = case.steps
        for step in case.steps:
            name, seconds = str(step.get("id", "?")), number(step.get("seconds"))
            times = self.step_seconds.setdefault(name, [])
            if step.get("status") == "computed" and seconds is not None:
                times.append(seconds)
            elif step.get("status") in ("reused", "skipped"):
                self.reused[name] += 1
        statuses = {s.get("status") for s in case.steps}
        self.n_reused_cases += bool(statuses) and "computed" not in statuses

    def finish(self) -> None:
        """Bring the rows into the order of the pages."""
        self.rows.sort(key=CaseRow.rank)

    def count(self, *statuses: str) -> int:
        """Return the number of cases with one of these statuses."""
        return sum(r.status in statuses for r in self.rows)

    def columns(self, rows: Iterable[CaseRow], limit: int = 6) -> list[str]:
        """Return the names of the numbers that most of the rows have, in their first order."""
        counts = Counter(name for row in rows for name in row.numbers)
        named = [n for n in counts if not n.startswith(("spacing ", "voxels along", "shear"))]
        return sorted(named, key=lambda n: -counts[n])[:limit]

    def failure_kinds(self, limit: int = 60) -> list[dict[str, Any]]:
        """Return the kinds of failure, the most frequent first."""
        kinds = sorted(self.failures.values(), key=lambda k: -k.n)[:limit]
        names = (("Step", "step"), ("Where", "where"), ("Expected", "expected"),
                 ("Got", "got"), ("Signal", "signal"), ("Next", "hint"))  # fmt: skip
        out = []
        for kind in kinds:
            rows = [(label, str(kind.first[k])) for label, k in names if kind.first.get(k)]
            peak = max((r.peak or 0.0 for r in kind.cases), default=0.0)
            if peak:
                rows.append(("Peak memory", bytes_text(peak)))
            what = str(kind.first.get("what") or "failed without saying why")
            out.append({"what": what, "n": kind.n, "cases": kind.cases, "rows": rows})
        return out

    def finding_kinds(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the kinds of finding: gravest first, then most frequent."""
        kinds = sorted(
            self.findings.items(), key=lambda i: (SEVERITIES.index(i[0][0]), -i[1].n, i[0])
        )
        return [k.first | {"n": k.n, "cases": k.cases} for _, k in kinds[:limit]]

    def distributions(
        self, prefix: str
    ) -> tuple[list[dict[str, Any]], list[tuple[str, float, int]]]:
        """Return charts of the numbers that vary, and the numbers that do not."""
        from markupsafe import Markup

        columns: dict[str, dict[str, float]] = {}
        for row in self.rows:
            for name, value in row.numbers.items():
                if name in columns or len(columns) < MAX_COLUMNS:
                    columns.setdefault(name, {})[row.case_id] = value
        seconds = {r.case_id: r.seconds for r in self.rows if r.seconds and r.status == "done"}
        if seconds:
            columns["time of a case, s"] = seconds
        links = {r.case_id: prefix + r.href for r in self.rows}
        charts, constants = [], []
        for name, values in columns.items():
            label = f"Distribution of {name} over {len(values)} cases"
            chart = strip_svg(values, label=label, links=links)
            if chart:
                # strip_svg escapes every name that it writes.
                charts.append({"name": name, "n": len(values), "chart": Markup(chart)})  # noqa: S704
            elif len(values) > 1:
                constants.append((name, next(iter(values.values())), len(values)))
        return charts, constants

    def step_times(self) -> list[dict[str, Any]]:
        """Return how long each step took over the cases that computed it."""
        from markupsafe import Markup

        total = sum(sum(t) for t in self.step_seconds.values())
        out = []
        for name, times in self.step_seconds.items():
            ordered = sorted(times)
            share = sum(times) / total if total > 0 else 0.0
            bar = share_bar_svg(share, f"{100 * share:.0f} % of the time of all steps")

            def at(q: float, ordered: list[float] = ordered) -> float | None:
                return ordered[round(q * (len(ordered) - 1))] if ordered else None

            out.append(
                {
                    "id": name,
                    "computed": len(times),
                    "reused": self.reused[name],
                    "median": at(0.5),
                    "p90": at(0.9),
                    "longest": at(1.0),
                    "bar": Markup(bar),  # noqa: S704
                }
            )
        return out
