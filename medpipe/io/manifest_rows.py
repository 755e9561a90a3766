"""From the bytes of a manifest to numbered rows of text."""

from __future__ import annotations

import csv
import io
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from medpipe.errors import ManifestError, Problem, UsageError
from medpipe.types import Finding, Severity

__all__ = ["MAX_BYTES", "MAX_PROBLEMS", "Problems", "Source", "open_rows"]

MAX_BYTES: Final = 1 << 30
"""A larger manifest is refused before it is read: 1 GiB, some ten million rows."""

MAX_PROBLEMS: Final = 200
"""More problems than this are counted, not listed."""

_AS_CSV: Final = "save it as 'CSV UTF-8 (comma delimited)'"

Row = tuple[int, list[str]]


class Problems:
    """Collects what is wrong with one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.count = 0
        self._kept: list[Problem] = []

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, what: str, line: int | None = None, hint: str | None = None) -> None:
        """Add a problem of `line`, or of the whole file."""
        self.count += 1
        if self.count <= MAX_PROBLEMS:
            self._kept.append(Problem(what, line=line, hint=hint))

    def raise_any(self) -> None:
        """Raise a ManifestError with everything that was added, by line."""
        if not self.count:
            return
        kept = sorted(self._kept, key=lambda p: p.line or 0)
        if self.count > MAX_PROBLEMS:
            kept.append(Problem(f"and {self.count - MAX_PROBLEMS} more problems"))
        raise ManifestError(self.file, kept)


@dataclass(slots=True)
class Source:
    """A table whose rows can be gone through more than once.

    Attributes
    ----------
    rows : callable
        Gives an iterator of (line, cells) below the header; its argument is
        whether to report rows that cannot be read.
    """

    header: list[str]
    rows: Callable[[bool], Iterator[Row]]
    findings: list[Finding] = field(default_factory=list)


def open_rows(path: Path, problems: Problems) -> Source:
    """Open a CSV or Parquet file as rows of text.

    Raises
    ------
    ManifestError
        If it is missing, too large, or not a table in one of the two formats.
    """
    try:
        state = path.stat()
    except OSError:
        problems.add("the manifest does not exist or may not be read")
        problems.raise_any()
        raise
    if not stat.S_ISREG(state.st_mode):
        problems.add("the manifest is not a file")
    elif state.st_size > MAX_BYTES:
        problems.add(f"the manifest has more than {MAX_BYTES >> 20} MiB", None, "split it")
    problems.raise_any()
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet(path, problems)
    try:
        raw = path.read_bytes()
    except OSError:
        problems.add("the manifest may not be read", None, "check its permissions")
        problems.raise_any()
        raise
    return _csv(raw, problems)


def _csv(raw: bytes, problems: Problems) -> Source:
    text, findings = _decode(raw, problems)
    problems.raise_any()
    _, header = next(_numbered(text, problems), (1, []))
    problems.raise_any()
    _check_separator(header, text, problems)
    problems.raise_any()

    def below(report: bool) -> Iterator[Row]:
        rows = _numbered(text, problems if report else None)
        next(rows)
        return rows

    return Source(header, below, findings)


def _decode(raw: bytes, problems: Problems) -> tuple[str, list[Finding]]:
    findings: list[Finding] = []
    if raw[:4] == b"PK\x03\x04" or raw[:4] == b"\xd0\xcf\x11\xe0":
        problems.add("the manifest is a spreadsheet, not a CSV file", None, _AS_CSV)
        return "", findings
    if raw[:2] == b"\x1f\x8b":
        problems.add("the manifest is compressed", None, "unpack it")
        return "", findings
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or raw[:4096].count(0) > len(raw[:4096]) // 4:
        problems.add("the manifest is UTF-16 text", None, _AS_CSV)
        return "", findings
    if raw[:3] == b"\xef\xbb\xbf":
        raw = raw[3:]
        text = "the file begins with a byte-order mark, which was left out"
        findings.append(Finding("manifest.bom", Severity.INFO, text))
    for number, content in enumerate(raw.splitlines() if b"\0" in raw else (), start=1):
        if b"\0" in content:
            problems.add("there is a NUL byte in the line", number, "export the file again")
    try:
        return raw.decode("utf-8"), findings
    except UnicodeDecodeError as error:
        line = len(raw[: error.start + 1].splitlines())
        problems.add("the manifest is not UTF-8 text", line, _AS_CSV)
        return "", findings


def _numbered(text: str, problems: Problems | None) -> Iterator[Row]:
    """Yield (first line, cells); lines are those of the file, breaks within quotes included."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error:
            if problems is not None:
                hint = "put quotes around the whole cell, and write a quote within it twice"
                problems.add("the quotes of the row do not match, or a cell is huge", line, hint)
            return


def _check_separator(header: list[str], text: str, problems: Problems) -> None:
    if not text.strip():
        problems.add("the manifest is empty", None, "the first line names the columns")
    elif not any(header):
        problems.add("the first line is blank", 1, "the first line names the columns")
    elif len(header) < 3 and header[0].lower().startswith("sep="):
        problems.add("the first line is for a spreadsheet alone", 1, "delete the line sep=")
    elif len(header) == 1:
        for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if mark in header[0]:
                problems.add(f"columns are separated by {name}, not commas", 1, _AS_CSV)
                return


def _parquet(path: Path, problems: Problems) -> Source:
    """Read a Parquet file; the line of a row is its number, the header is line 1."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(
            "Parquet manifests need pyarrow", hint="pip install 'medpipe[parquet]', or use CSV"
        ) from None
    try:
        table = pq.read_table(path, memory_map=False)
    except (pa.ArrowException, OSError, ValueError):
        problems.add("the file is not a Parquet table that can be read")
        problems.raise_any()
        raise
    for number, column in enumerate(table.schema, start=1):
        kind = column.type
        if column.name == "case_id" and pa.types.is_floating(kind):
            problems.add("case_id holds numbers with decimals", 1, "convert it to text")
        plain = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (plain or text or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            problems.add(f"column {number} is neither text nor a number", 1, "convert it to text")
    problems.raise_any()

    def rows(_report: bool) -> Iterator[Row]:
        line = 1
        for batch in table.to_batches(max_chunksize=65536):
            columns = [[_cell(v) for v in column.to_pylist()] for column in batch.columns]
            for cells in zip(*columns, strict=True):
                line += 1
                yield line, list(cells)

    return Source(list(table.schema.names), rows)


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
