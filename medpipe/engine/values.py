"""Values of a case to files of an object and back: NIfTI volumes, JSON tables, documents.

What is saved is read again at once and the value that was read travels on, so
that a case resumed from the store computes on the very same bits.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpipe.engine.store import Store
from medpipe.engine.tables import table_csv
from medpipe.errors import StepError, StoreError
from medpipe.types import Finding, Json, Severity
from medpipe.workflow.compiled import CompiledStep

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["findings_of", "load_values", "object_files", "save_values"]


def object_files(step: CompiledStep) -> dict[str, tuple[str, str | None]]:
    """Return what the object of a step holds: key → file name and dtype.

    A table is kept also when the workflow does not save it, because it goes
    into the record of the case.
    """
    files = {s.key: (s.file, s.dtype) for s in step.save}
    if step.makes == "table":
        for name in step.outputs:
            files.setdefault(name, (f"{name}.json", None))
    return files


def findings_of(value: Any) -> list[dict[str, Any]]:
    """Return the findings that a volume carries (JSON form), none for anything else."""
    return list(_facts(value).get("findings", []))


def _facts(value: Any) -> dict[str, Any]:
    meta = getattr(value, "meta", None)
    facts = meta.get("medpipe") if isinstance(meta, Mapping) else None
    return dict(facts) if isinstance(facts, Mapping) else {}


def save_values(
    store: Store,
    key: str,
    step: CompiledStep,
    data: Mapping[str, Any],
    *,
    reads: Mapping[str, Json],
    findings: Iterable[Mapping[str, Any]] = (),
    missing: Collection[str] = (),
) -> dict[str, Any]:
    """Make the object of a step and return its values as re-read.

    Parameters
    ----------
    store : Store
    key : str
        Content key of the step.
    step : CompiledStep
    data : dict
        The values of the case after the step.
    reads : dict
        Key that the step read → content key of its value.
    findings : list of dict
        What the inputs of the step carried; recorded with tables and documents,
        which carry none.
    missing : collection of str
        Keys that the step does not write, because this case lacks an optional input.

    Raises
    ------
    StoreError
        If a file could not be written or does not read back equal.
    StepError
        If a value is not of the kind that the step promised.
    """
    kept = {k: file for k, file in object_files(step).items() if k not in missing}
    reread: dict[str, Any] = {}

    def write(folder: Path) -> None:
        for name, (file, dtype) in kept.items():
            value = _value(data, name)
            if step.makes == "document":
                reread[name] = _write_document(folder / file, value)
            else:
                reread[name] = _write_value(folder, name, file, value, dtype)

    values = {}
    for name in dict.fromkeys((*step.outputs, *kept)):
        if name in data:
            facts = _facts(data[name])
            file = kept[name][0] if name in kept else None
            values[name] = {
                "makes": "table" if isinstance(data[name], dict) else step.makes,
                "file": _plain_name(name, file) if file is not None else None,
                "source": facts.get("source", {}),
                "findings": facts.get("findings", list(findings)),
            }
    record = {
        "step": {
            "id": step.id,
            "use": step.use,
            "version": step.version,
            "params": dict(step.params),
        },
        "reads": dict(reads),
        "values": values,
    }
    store.put(key, record, write)
    # Another process, or an earlier run, may have made it: then its values are the ones.
    return reread or load_values(store, key, list(kept))


def _value(data: Mapping[str, Any], name: str) -> Any:
    try:
        return data[name]
    except KeyError:
        raise StepError(f'the step made no value for the key "{name}"') from None


def _plain_name(name: str, file: str) -> str:
    """Return the file that a value is read from: a CSV is for people, JSON lies beside it."""
    return f"table-{name}.json" if file.endswith(".csv") else file


def _write_value(folder: Path, name: str, file: str, value: Any, dtype: str | None) -> Any:
    if isinstance(value, dict):
        if file.endswith(".csv"):
            (folder / file).write_text(table_csv(value), encoding="utf-8", newline="")
        return _write_table(folder / _plain_name(name, file), value)
    if not hasattr(value, "affine"):
        raise StepError(
            "only images, tables and documents can be saved",
            expected="a MetaTensor, a dict of JSON values, or bytes where makes is document",
            got=type(value).__name__,
        )
    from medpipe.io.nifti import write_nifti
    from medpipe.io.transforms import metatensor_from_volume, volume_from_metatensor

    volume = volume_from_metatensor(value)
    dtype = dtype or ("int16" if _holds_int16(volume.data) else None)
    return metatensor_from_volume(write_nifti(folder / file, volume, dtype=dtype))


def _holds_int16(data: NDArray[Any]) -> bool:
    """Tell whether int16 keeps every value: then it is the smaller file of the same image."""
    import numpy as np

    if data.dtype.kind != "f" or data.size == 0:
        return False
    low, high = data.min(), data.max()  # NaN fails the comparison
    return bool(low >= -32768 and high <= 32767 and np.array_equal(data, np.rint(data)))


def _write_table(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(table, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError):
        raise StepError(
            "a table holds something that is not JSON",
            expected="dicts with text keys, lists, text, finite numbers, true, false, null",
        ) from None
    return json.loads(_write_bytes(path, (text + "\n").encode()))


def _write_document(path: Path, value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise StepError(
            "the step did not make a document", expected="bytes", got=type(value).__name__
        )
    return _write_bytes(path, value)


def _write_bytes(path: Path, content: bytes) -> bytes:
    """Write a file and return its content as read back."""
    path.write_bytes(content)
    again = path.read_bytes()
    if again != content:
        raise StoreError("a written file reads back differently", hint="check the disk")
    return again


def load_values(store: Store, key: str, names: Iterable[str]) -> dict[str, Any]:
    """Read values of an object, after checking that its files are what was written.

    Raises
    ------
    StoreError
        If the object is damaged.
    """
    described: Mapping[str, Any] = store.record(key)["values"]
    return {name: _read_value(store, key, described[name]) for name in names}


def _read_value(store: Store, key: str, described: Mapping[str, Json]) -> Any:
    path = store.file(key, str(described["file"]))
    if described["makes"] == "table":
        return json.loads(path.read_bytes())
    if described["makes"] == "document":
        return path.read_bytes()
    import math

    from medpipe.io.nifti import read_nifti
    from medpipe.io.transforms import metatensor_from_volume

    # It is our own file and its hash is right, so limits for foreign files do not apply.
    volume = read_nifti(path, ndim=(3, 4), max_bytes=1 << 62, max_ratio=math.inf)
    volume.source = dict(described["source"])  # type: ignore[arg-type]
    volume.findings = [_finding(f) for f in described["findings"]]  # type: ignore[union-attr]
    return metatensor_from_volume(volume)


def _finding(record: Any) -> Finding:
    return Finding(**{**record, "severity": Severity[record["severity"].upper()]})
