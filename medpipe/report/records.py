"""Reading the records of a run without trusting them.

A report is built from what is on the disk: while a run goes on, after a
crash, or after someone edited a file. A field that is absent or of the wrong
type becomes None, a record that cannot be read becomes a case that says so.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medpipe.report.drawings import is_drawing

__all__ = [
    "Case",
    "Picture",
    "as_dict",
    "as_dicts",
    "case_folders",
    "load_case",
    "number",
    "numbers",
    "page_name",
    "read_runs",
    "thumbnail",
]

MAX_JSON_BYTES = 32 << 20
SEVERITIES = ("error", "warning", "info")
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


@dataclass(slots=True)
class Picture:
    """One quality control picture of a case: where its files are and what its numbers say."""

    step: str
    png: Path | None
    json_path: Path | None
    problem: str | None
    data: dict[str, Any] = field(default_factory=dict)

    def png_base64(self) -> str | None:
        """Return the PNG for a data address, or None if it is absent or no PNG."""
        try:
            content = self.png.read_bytes() if self.png else b""
        except OSError:
            return None
        return base64.b64encode(content).decode() if content[:4] == b"\x89PNG" else None


@dataclass(slots=True)
class Case:
    """The record of one case; `problem` says why it could not be read."""

    case_id: str
    folder: Path
    status: str
    digest: str
    problem: str | None = None
    finished: str | None = None
    workflow: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None


def as_dict(value: Any) -> dict[str, Any]:
    """Return a mapping, empty if the value is none."""
    return value if isinstance(value, dict) else {}


def as_dicts(value: Any) -> list[dict[str, Any]]:
    """Return the mappings of a list, empty if the value is none."""
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def number(value: Any) -> float | None:
    """Return a finite number as float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def numbers(value: Any) -> list[float]:
    """Return a list of finite numbers, empty unless all are."""
    if not isinstance(value, list):
        return []
    out = [number(v) for v in value]
    return [v for v in out if v is not None] if None not in out else []


def page_name(case_id: str) -> str:
    """Return the file name of a case's page: its id where that is safe, else a hash."""
    if _SAFE.fullmatch(case_id):
        return f"{case_id}.html"
    return f"case-{hashlib.sha256(case_id.encode('utf-8', 'replace')).hexdigest()[:16]}.html"


def case_folders(out: Path) -> Iterator[Path]:
    """Yield the folders under ``cases/`` in the order of their names."""
    try:
        with os.scandir(out / "cases") as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return
    for name in names:
        yield out / "cases" / name


def read_json(path: Path) -> tuple[Any, str | None]:
    """Return a file's JSON value and None, or None and what is wrong with it."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return None, "larger than 32 MiB"
        return json.loads(path.read_bytes()), None
    except FileNotFoundError:
        return None, "absent"
    except OSError:
        return None, "not readable"
    except (ValueError, RecursionError):
        return None, "not whole"


def load_case(folder: Path, out: Path) -> Case:
    """Read one case folder."""
    record, problem = read_json(folder / "case.json")
    if problem is None and not isinstance(record, dict):
        problem = "not a record"
    if problem:
        status = "pending" if problem == "absent" else "unreadable"
        what = f"the record case.json is {problem}"
        return Case(folder.name, folder, status, "", problem=what)
    stamp = _stamp(folder / "case.json")
    pictures = [_picture(q, folder, out) for q in as_dicts(record.get("qc"))]
    outputs = [_output(o, folder) for o in as_dicts(record.get("outputs"))]
    shown = [f for p in pictures for f in (p.png, p.json_path)]
    shown += [folder / str(o["file"]) for o in outputs if o["link"] and is_drawing(o)]
    status = record.get("status")
    error = as_dict(record.get("error")) or None
    facts = ("seconds", "peak_rss_bytes", "peak_gpu_bytes", "attempts", "seed")
    return Case(
        case_id=folder.name,
        folder=folder,
        status=status if status in ("done", "failed") else "unreadable",
        digest=_digest(record, [_stamp(f) for f in shown]),
        problem=None if status in ("done", "failed") else "the record has no known status",
        finished=_time_text(stamp[1]) if stamp else None,
        workflow={k: str(v) for k, v in as_dict(record.get("workflow")).items()},
        facts={name: number(record.get(name)) for name in facts}
        | {name: _text(record.get(name)) for name in ("device", "run_id")},
        inputs=[{"name": str(k), **as_dict(v)} for k, v in as_dict(record.get("inputs")).items()],
        steps=as_dicts(record.get("steps")),
        outputs=outputs,
        pictures=pictures,
        findings=_findings(record, pictures),
        tables=as_dict(record.get("tables")),
        error=error,
    )


def _time_text(nanoseconds: int) -> str:
    when = datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC)
    return when.strftime("%Y-%m-%d %H:%M UTC")


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """Return size and time of a file, None if it is absent, which it may become at any time."""
    try:
        stat = path.stat() if path else None
    except OSError:
        return None
    return (stat.st_size, stat.st_mtime_ns) if stat else None


def _digest(record: Any, stamps: list[tuple[int, int] | None]) -> str:
    """Return a digest that changes when anything that the case's page shows changes."""
    return hashlib.sha256(json.dumps([record, stamps]).encode()).hexdigest()


def _inside(folder: Path, name: Any) -> Path | None:
    """Return a plain file of the folder, None for a path that leads elsewhere or to nothing."""
    if not isinstance(name, str) or not name or "\0" in name or Path(name).name != name:
        return None
    path = folder / name
    try:
        return path if path.is_file() else None
    except OSError:
        return None


def _in_store(out: Path, key: Any, name: str) -> Path | None:
    if not isinstance(key, str) or not re.fullmatch(r"[0-9a-f]{16,64}", key):
        return None
    return _inside(out / "store" / key[:2] / key, name)


def _picture(record: dict[str, Any], folder: Path, out: Path) -> Picture:
    step, key = str(record.get("step", "?")), record.get("object")
    png = _inside(folder, record.get("png")) or _in_store(out, key, "picture.png")
    path = _inside(folder, record.get("json")) or _in_store(out, key, "picture.json")
    data, problem = read_json(path) if path else (None, "absent")
    problem = None if problem is None else f"the numbers of this picture are {problem}"
    return Picture(step, png, path, problem, as_dict(data))


def _output(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = _inside(folder, record.get("file"))
    link = f"../../cases/{quote(folder.name)}/{quote(path.name)}" if path else None
    return record | {"link": link}


def _findings(record: dict[str, Any], pictures: list[Picture]) -> list[dict[str, Any]]:
    """Return the findings of the record and the flags of its pictures, the gravest first."""
    out = []
    for finding in as_dicts(record.get("findings")):
        out.append(_finding(finding, None))
    for picture in pictures:
        out += [_finding(flag, picture.step) for flag in as_dicts(picture.data.get("flags"))]
    return sorted(out, key=lambda f: SEVERITIES.index(f["severity"]))


def _finding(record: dict[str, Any], step: str | None) -> dict[str, Any]:
    severity = str(record.get("severity", "info")).lower()
    return {
        "check": str(record.get("check", "")),
        "severity": severity if severity in SEVERITIES else "info",
        "message": str(record.get("message", "")),
        "fix": _text(record.get("fix")),
        "fixed": record.get("fixed") is True,
        "step": step,
    }


def thumbnail(picture_json: Path | None) -> dict[str, Any] | None:
    """Return the small JPEG that a picture's numbers carry, checked, or None."""
    if picture_json is None:
        return None
    data, problem = read_json(picture_json)
    small = as_dict(as_dict(data).get("thumbnail")) if problem is None else {}
    width, height = number(small.get("width")), number(small.get("height"))
    try:
        content = base64.b64decode(str(small.get("base64", "")), validate=True)
    except (binascii.Error, ValueError):
        return None
    if content[:3] != b"\xff\xd8\xff" or not width or not height or len(content) > 200_000:
        return None
    return {
        "base64": base64.b64encode(content).decode(),
        "width": int(width),
        "height": int(height),
    }


def read_runs(out: Path) -> list[Mapping[str, Any]]:
    """Return the records ``runs/*/run.json`` that can be read, the newest last."""
    found: list[Mapping[str, Any]] = []
    try:
        folders = sorted(p for p in (out / "runs").iterdir() if p.is_dir())
    except OSError:
        return []
    for folder in folders:
        record, problem = read_json(folder / "run.json")
        if problem is None and isinstance(record, dict):
            found.append({"run_id": folder.name, **record})
    return found
