"""Who made a result, from what, with which versions: records beside the results.

Nothing here is part of a key, and nothing here is read to compute. Records
hold the case id and no other name: no path, no host, no user.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import medpipe
from medpipe.engine.limits import process_start
from medpipe.engine.protocol import Outcome, RunSpec
from medpipe.engine.store import record_bytes
from medpipe.errors import StoreError
from medpipe.io.atomic import write_bytes_atomic
from medpipe.io.case import CASE_ID

__all__ = [
    "CASE_SCHEMA",
    "case_folder",
    "environment",
    "failed_record",
    "files_of",
    "make_case_folder",
    "read_case_record",
    "remove_leftovers",
    "workflow_label",
    "write_case_record",
]

CASE_SCHEMA = 1
_PACKAGES = (
    "medpipe", "monai", "nibabel", "numpy", "pydicom", "python-gdcm", "scikit-image", "scipy",
    "SimpleITK", "torch",
)  # fmt: skip


@cache
def environment() -> dict[str, Any]:
    """Return versions of Python, the system and the packages, without importing them."""
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    packages["medpipe"] = medpipe.__version__
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
    }


def workflow_label(workflow: Any) -> dict[str, str]:
    """Return name, version and digest of a `CompiledWorkflow`."""
    return {"name": workflow.name, "version": workflow.version, "digest": workflow.digest()}


def case_folder(out: Path | str, case_id: str) -> Path:
    """Return the folder of a case; its id was checked when the manifest was read."""
    if not CASE_ID.match(case_id):
        raise ValueError("not a case id")
    return Path(out) / "cases" / case_id


def make_case_folder(folder: Path) -> None:
    """Make the folder of a case, unless it is there.

    Raises
    ------
    StoreError
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            "the folder of the case cannot be made",
            got=f"{type(error).__name__}: {os.strerror(error.errno or 0)}",
            hint="free disk space or check the folder's permissions, then run the same command",
        ) from error


def read_case_record(folder: Path) -> dict[str, Any] | None:
    """Return ``case.json``, None when it is absent or not whole."""
    try:
        record = json.loads((folder / "case.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("schema") != CASE_SCHEMA:
        return None
    return record


def files_of(record: Mapping[str, Any]) -> set[str]:
    """Return the names of the files that a case record lays claim to in its folder."""
    names = {"case.json"}
    for output in record.get("outputs", ()):
        names |= {output["file"], f"{output['file']}.json"}
    for picture in record.get("qc", ()):
        names |= {picture["png"], picture["json"]}
    return names


def write_case_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``case.json`` and remove the files of the record it replaces that it has not.

    Files that no record names (a user's own) are left alone.
    """
    before = read_case_record(folder)
    # It can be made again from the store, so the disk need not be waited for.
    write_bytes_atomic(folder / "case.json", record_bytes(record), durable=False)
    stale = files_of(before) - files_of(record) if before else set()
    for name in stale:
        if Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes were writing in the folder of a case."""
    for name in os.listdir(folder):
        if name.startswith(".tmp-") and _is_leftover(name):
            (folder / name).unlink(missing_ok=True)


def _is_leftover(name: str) -> bool:
    """Tell whether ``.tmp-<pid>-…`` belongs to no living process.

    Another run on the same output folder may be writing the same case.
    """
    pid = name.split("-")[1]
    return not pid.isdigit() or process_start(int(pid)) is None


def failed_record(spec: RunSpec, workflow: Mapping[str, str], outcome: Outcome) -> dict[str, Any]:
    """Return the record of a case whose process could not write one itself."""
    return {
        "schema": CASE_SCHEMA,
        "case_id": outcome.case_id,
        "workflow": dict(workflow),
        "status": "failed",
        "run_id": spec.run_id,
        "seconds": outcome.seconds,
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "peak_gpu_bytes": None,
        "device": spec.device,
        "attempts": outcome.attempts,
        "seed": spec.seed,
        "inputs": {},
        "steps": [],
        "outputs": [],
        "qc": [],
        "findings": [],
        "tables": {},
        "error": dict(outcome.error or {}),
    }
