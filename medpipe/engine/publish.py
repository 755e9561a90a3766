"""The folder of a case: its record, links to its results, and their sidecars."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpipe.engine.limits import peak_rss_bytes
from medpipe.engine.pictures import PICTURE_JSON, PICTURE_PNG
from medpipe.engine.protocol import Job
from medpipe.engine.provenance import (
    CASE_SCHEMA,
    environment,
    files_of,
    make_case_folder,
    write_case_record,
)
from medpipe.engine.schedule import Action, Schedule, StepSchedule, WorkflowOutline
from medpipe.engine.store import record_bytes
from medpipe.engine.values import object_files
from medpipe.io.atomic import write_bytes_atomic
from medpipe.io.digests import InputDigest
from medpipe.types import Json
from medpipe.workflow.compiled import CompiledStep

if TYPE_CHECKING:
    from medpipe.engine.case import CaseRunner

__all__ = ["CaseRecorder", "is_current"]

_STATUS = {Action.RUN: "computed", Action.REUSE: "reused", Action.SKIP: "skipped"}


def is_current(
    record: Mapping[str, Any], folder: Path, outline: WorkflowOutline, schedule: Schedule
) -> bool:
    """Tell whether a case folder shows exactly what a complete schedule asks for."""
    if record.get("status") != "done" or record["workflow"]["digest"] != outline.digest:
        return False
    steps = outline.workflow.steps
    wanted = {
        todo.key
        for s, todo in zip(steps, schedule.steps, strict=True)
        if not todo.absent and any(save.key not in todo.missing for save in s.save)
    }
    wanted |= {todo.qc_key for todo in schedule.steps if todo.qc_key and not todo.absent}
    shown = {o["object"] for o in record["outputs"]} | {q["object"] for q in record["qc"]}
    keys = [s["key"] for s in record["steps"]]
    if wanted != shown or keys != [todo.key for todo in schedule.steps]:
        return False
    prefix = str(folder)
    return all(os.path.exists(f"{prefix}/{name}") for name in files_of(record))


class CaseRecorder:
    """Collects what happens to one case and writes it down at its end."""

    def __init__(self, runner: CaseRunner, job: Job, folder: Path) -> None:
        self.runner, self.job, self.folder = runner, job, folder
        self.schedule: Schedule | None = None
        self.seeds: Mapping[str, int] = {}
        self.inputs: dict[str, InputDigest] = {}
        self.peak_rss_bytes = 0
        self.done: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self._bound: dict[str, Json] = {}
        self._sources: dict[str, Json] = {}

    def begin(
        self, schedule: Schedule, inputs: Mapping[str, InputDigest], seeds: Mapping[str, int]
    ) -> None:
        """Note what the case is made from."""
        self.seeds = seeds
        self.schedule = schedule
        self.inputs = dict(inputs)
        self._bound = {name: digest.digest for name, digest in inputs.items()}

    def reads_of(self, step: CompiledStep) -> dict[str, Json]:
        """Return the content keys of what a step reads, before it writes."""
        return {name: self._bound.get(name) for name in step.keys_read()}

    def add_findings(self, findings: Iterable[dict[str, Any]]) -> None:
        """Note findings, each once."""
        self.findings += [f for f in findings if f not in self.findings]

    def step_done(self, step: CompiledStep, todo: StepSchedule, seconds: float) -> None:
        """Note that a step was run, reused or skipped."""
        has_object = todo.action is not Action.SKIP and self.runner.outline.keeps_object(step)
        self.done.append(
            {
                "id": step.id,
                "use": step.use,
                "version": step.version,
                "params": dict(step.params),
                "key": todo.key,
                "status": _STATUS[todo.action],
                "seconds": seconds,
                "out": list(step.keys_written()),
                "object": has_object,
            }
        )
        for name in step.keys_written():
            self._bound[name] = f"{todo.key}/{name}"

    def write(self, error: Mapping[str, Any] | None, seconds: float) -> None:
        """Put the results into the folder of the case and write its record.

        Raises
        ------
        StoreError
            If the folder cannot be written.
        """
        self.peak_rss_bytes = peak_rss_bytes()
        make_case_folder(self.folder)
        outputs, pictures, tables = self._publish()
        spec = self.runner.spec
        record = {
            "schema": CASE_SCHEMA,
            "case_id": self.job.case_id,
            "workflow": self.runner.label,
            "status": "failed" if error else "done",
            "run_id": spec.run_id,
            "seconds": round(seconds, 6),
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_gpu_bytes": _peak_gpu_bytes(),
            "device": self._device(),
            "attempts": self.job.attempt,
            "seed": spec.seed,
            "inputs": {name: _input_record(d) for name, d in self.inputs.items()},
            "steps": self.done,
            "outputs": outputs,
            "qc": pictures,
            "findings": self.findings,
            "tables": tables,
            "error": dict(error) if error else None,
        }
        for output in outputs:
            self._write_sidecar(output, record)
        write_case_record(self.folder, record)

    def _device(self) -> str:
        if (device := self.runner.steps.device) == "cpu":
            return device
        import torch

        from medpipe.device import describe_device

        return describe_device(torch.device(device))

    def _publish(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
        """Link the results of the steps that were done; return outputs, pictures and tables."""
        store = self.runner.store
        outputs: list[dict[str, Any]] = []
        pictures: list[dict[str, Any]] = []
        tables: dict[str, Any] = {}
        steps = self.runner.workflow.steps[: len(self.done)]
        plan = self.schedule.steps if self.schedule else []
        for step, todo, done in zip(steps, plan, self.done, strict=False):
            was_stored = todo.action is Action.REUSE
            if done["object"]:
                described = store.record(todo.key)
                for value in described["values"].values():
                    self.add_findings(value["findings"])
                for name, entry in described["values"].items():
                    if entry["makes"] == "table" and entry["file"]:
                        path = store.file(todo.key, entry["file"])
                        tables[name] = json.loads(path.read_bytes())
                kept = object_files(step)
                for save in [s for s in step.save if s.key not in todo.missing]:
                    store.publish(todo.key, save.file, self.folder / save.file, check=was_stored)
                    self._sources[save.file] = described["values"][save.key]["source"]
                    outputs.append(
                        {
                            "step": step.id,
                            "file": save.file,
                            "object": todo.key,
                            **described["files"][kept[save.key][0]],
                            "makes": described["values"][save.key]["makes"],
                        }
                    )
            if todo.qc_key and not todo.absent and step.qc and store.has(todo.qc_key):
                stem = f"qc-{step.id}-{step.qc.key}"
                store.publish(todo.qc_key, PICTURE_PNG, self.folder / f"{stem}.png")
                store.publish(todo.qc_key, PICTURE_JSON, self.folder / f"{stem}.json")
                pictures.append(
                    {
                        "step": step.id,
                        "object": todo.qc_key,
                        "png": f"{stem}.png",
                        "json": f"{stem}.json",
                    }
                )
        return outputs, pictures, tables

    def _write_sidecar(self, output: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Write the provenance of one output, unless the run that computed it did."""
        path = self.folder / f"{output['file']}.json"
        if self._was_reused(output["object"]) and _object_of(path) == output["object"]:
            return
        position = [s["id"] for s in record["steps"]].index(output["step"])
        chain = [s | {"seed": self.seeds.get(s["id"])} for s in record["steps"][: position + 1]]
        shared = ("case_id", "run_id", "workflow", "inputs", "device", "seed", "findings")
        source = self._sources[output["file"]]
        own = source.get("sidecar") if isinstance(source, dict) else None
        sidecar = {
            **(self._bids_fields(own, output, position) if isinstance(own, dict) else {}),
            "schema": CASE_SCHEMA,
            "output": dict(output),
            "source": source,
            **{name: record[name] for name in shared},
            "steps": chain,
            "peak_rss_bytes": record["peak_rss_bytes"],
            "peak_gpu_bytes": record["peak_gpu_bytes"],
            "environment": environment(),
        }
        write_bytes_atomic(path, record_bytes(sidecar), durable=False)

    def _bids_fields(
        self, own: Mapping[str, Json], output: Mapping[str, Json], position: int
    ) -> dict[str, Json]:
        """Return the fields of BIDS that a step gave its result, and what it was made from."""
        steps = self.runner.workflow.steps[: position + 1]
        key = next(s.key for s in steps[-1].save if s.file == output["file"])
        names = _inputs_behind(steps, key) & self.inputs.keys()
        case_id = self.job.case_id
        return {**own, "Sources": [f"bids:inputs:{case_id}/{name}" for name in sorted(names)]}

    def _was_reused(self, key: str) -> bool:
        return any(s["key"] == key and s["status"] == "reused" for s in self.done)


def _inputs_behind(steps: Sequence[CompiledStep], key: str) -> set[str]:
    """Return the keys that no step wrote and the value of `key` after `steps` was made from."""
    behind: dict[str, set[str]] = {}
    for step in steps:
        read = {name for k in step.keys_read() for name in behind.get(k, {k})}
        behind |= dict.fromkeys(step.keys_written(), read)
    return behind.get(key, {key})


def _input_record(digest: InputDigest) -> dict[str, Json]:
    return {
        "kind": digest.kind,
        "digest": digest.digest,
        "files": digest.files,
        "bytes": digest.bytes,
    }


def _object_of(sidecar: Path) -> str | None:
    try:
        return json.loads(sidecar.read_bytes())["output"]["object"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _peak_gpu_bytes() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    return int(torch.cuda.max_memory_allocated())
