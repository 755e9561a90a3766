"""Building the HTML report of an output folder from the records in it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medpipe.errors import UsageError
from medpipe.io.atomic import write_bytes_atomic
from medpipe.report.case_page import case_page
from medpipe.report.cohort import CaseRow, Cohort
from medpipe.report.pages import render_page, template_digest
from medpipe.report.records import (
    as_dict,
    as_dicts,
    case_folders,
    load_case,
    page_name,
    read_runs,
    thumbnail,
)
from medpipe.report.text import duration, methods_text

__all__ = ["build_report"]

_SOURCE = re.compile(rb'name="medpipe-source" content="([0-9a-zA-Z-]*)"')


def build_report(out: Path, *, page_size: int = 50, interactive: bool = False) -> Path:
    """Build the report of an output folder and return the path of its first page.

    Writes ``index.html`` and ``report/``: one page for each case and, from the
    second on, pages of the cohort. Every page holds its pictures, opens from
    disk without a network and runs without scripts. Only records under `out`
    are read, none is trusted, and a page whose records have not changed is
    left as it is, so that building while a run goes on is cheap.

    Parameters
    ----------
    out : Path
        The output folder of a run, finished or not.
    page_size : int
        Cases on one page of the cohort.
    interactive : bool
        Whether case pages get sliders to step through the slices of a picture.

    Raises
    ------
    UsageError
        If `out` is no folder or `page_size` is not positive.
    StoreError
        If a page cannot be written.
    """
    out = Path(out)
    if page_size < 1:
        raise UsageError("wrong page size", expected="at least 1", got=str(page_size))
    if not out.is_dir():
        raise UsageError("there is no such output folder", where=out.name,
                         hint="give the folder that `medpipe run` wrote to")  # fmt: skip
    pages = out / "report" / "cases"
    pages.mkdir(parents=True, exist_ok=True)
    cohort, written = Cohort(), set()
    for folder in case_folders(out):
        case = load_case(folder, out)
        name = page_name(case.case_id)
        written.add(name)
        cohort.add(case, f"cases/{name}")
        source = f"{template_digest()}-{case.digest or case.status}-{int(interactive)}"
        if _source_of(pages / name) != source:
            page = case_page(case, out, source, interactive=interactive)
            write_bytes_atomic(pages / name, page, durable=False)
    cohort.finish()
    for old in pages.glob("*.html"):
        if old.name not in written:
            old.unlink(missing_ok=True)
    return _write_cohort(cohort, out, page_size)


def _source_of(page: Path) -> str | None:
    """Return what a page says that it was made from."""
    try:
        with open(page, "rb") as f:
            found = _SOURCE.search(f.read(2048))
    except OSError:
        return None
    return found[1].decode() if found else None


def _cohort_page_name(page: int) -> str:
    return f"page-{page:04d}.html"


def _write_cohort(cohort: Cohort, out: Path, page_size: int) -> Path:
    n_pages = max(1, math.ceil(len(cohort.rows) / page_size))
    runs = read_runs(out)
    kept = set()
    # The first page last: whoever opens index.html finds every page that it links to.
    for page in range(n_pages, 0, -1):
        rows = cohort.rows[(page - 1) * page_size : page * page_size]
        for row in rows:
            row.thumbnail = thumbnail(row.thumbnail_json)
        content = _cohort_page(cohort, rows, runs, page, n_pages)
        for row in rows:
            row.thumbnail = None
        path = out / "index.html" if page == 1 else out / "report" / _cohort_page_name(page)
        write_bytes_atomic(path, content, durable=False)
        kept.add(path.name)
    for path in (out / "report").glob("page-*.html"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
    return out / "index.html"


def _cohort_page(
    cohort: Cohort, rows: list[CaseRow], runs: list[Mapping[str, Any]], page: int, n_pages: int
) -> bytes:
    first = page == 1
    workflow = dict(cohort.workflows.most_common(1)[0][0]) if cohort.workflows else {}
    last = runs[-1] if runs else {}
    failures = cohort.failure_kinds() if first else []
    charts, constants = cohort.distributions("report/") if first else ([], [])
    compiled = as_dict(last.get("compiled"))
    versions = _versions(last)
    steps = cohort.steps or as_dicts(compiled.get("steps"))
    for step in steps:
        for name in ("id", "use", "version", "params"):
            step.setdefault(name, None)
    description = str(compiled.get("description") or compiled.get("summary") or "")
    return render_page(
        "cohort.html",
        title=workflow.get("name", "Report"),
        source="",
        heading=workflow.get("name", "Report"),
        summary_line=str(compiled.get("summary") or ""),
        running=last.get("status") == "running",
        page=page,
        n_pages=n_pages,
        pages=list(_page_links(page, n_pages)),
        prefix="report/" if first else "",
        tiles=_tiles(cohort),
        failures=failures,
        failures_left=len(cohort.failures) - len(failures),
        findings=cohort.finding_kinds() if first else [],
        rows=rows,
        columns=cohort.columns(rows),
        distributions=charts,
        constants=constants,
        step_times=cohort.step_times() if first else [],
        steps=steps,
        description=[p.strip("\n") for p in description.split("\n\n") if p.strip()],
        methods=methods_text(workflow, steps, cohort.count("done"), versions) if rows else "",
        versions=sorted(versions.items()),
    )


def _page_links(page: int, n_pages: int) -> Iterator[dict[str, Any]]:
    """Yield the first, the last and the near pages, with gaps between."""
    shown = sorted(
        {1, 2, n_pages - 1, n_pages, *range(page - 2, page + 3)} & {*range(1, n_pages + 1)}
    )
    before = 0
    for n in shown:
        if n > before + 1:
            yield {"n": None, "href": ""}
        yield {"n": n, "href": _cohort_page_name(n) if n > 1 else "../index.html"}
        before = n


def _versions(run: Mapping[str, Any]) -> dict[str, str]:
    environment = as_dict(run.get("environment"))
    packages = as_dict(environment.get("packages"))
    out = {str(k): str(v) for k, v in packages.items()}
    for name in ("python", "system"):
        if environment.get(name):
            out[name] = str(environment[name])
    return out


def _tiles(cohort: Cohort) -> list[tuple[str, str, str]]:
    """Return the summary numbers: name, value, and whether it is bad."""
    failed, pending = cohort.count("failed", "unreadable"), cohort.count("pending")
    seconds = sorted(r.seconds for r in cohort.rows if r.seconds is not None)
    tiles = [
        ("Cases", f"{len(cohort.rows):,}", ""),
        ("Done", f"{cohort.count('done'):,}", ""),
        ("Failed", f"{failed:,}", "bad" if failed else ""),
    ]
    if pending:
        tiles.append(("Not finished", f"{pending:,}", ""))
    tiles.append(("From the store", f"{cohort.n_reused_cases:,}", ""))
    if seconds:
        total = sum(seconds)
        tiles.append(("Computing time", duration(total), ""))
        tiles.append(("Median case", duration(seconds[len(seconds) // 2]), ""))
        if total > 0:
            rate = 3600 * len(seconds) / total
            tiles.append(("Per worker and hour", f"{rate:,.0f}", ""))
    return tiles
