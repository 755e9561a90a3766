"""Run a test workflow in a process of its own, so that a test can kill it.

``python drive.py OUT INPUTS [name=value …]``; the cases are the files of INPUTS.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from medpipe.engine.pool.local import LocalExecutor
from medpipe.engine.run import run_workflow
from medpipe.io.case import Case
from medpipe.workflow.compiled import CompiledStep, CompiledWorkflow, InputSpec, SaveSpec


def _step(name: str, cls: str, source: str, target: str, file: str, **more: Any) -> CompiledStep:
    return CompiledStep(
        id=name,
        use=f"test.{name}",
        target=cls if ":" in cls else f"kill_steps:{cls}",
        version="1",
        inputs=(source,),
        outputs=(target,),
        save=(SaveSpec(target, file),) if file else (),
        **more,
    )


def table_workflow() -> CompiledWorkflow:
    """Two tables, each saved."""
    steps = (
        _step("count", "Countd", "text", "numbers", "numbers.json", makes="table"),
        _step("total", "Totald", "numbers", "sum", "sum.json", makes="table"),
    )
    return CompiledWorkflow("tables", "1", "", {"text": InputSpec("file")}, steps)


def image_workflow() -> CompiledWorkflow:
    """An image, read, changed and saved."""
    load = "medpipe.io.transforms:LoadVolumed"
    steps = (
        _step("load", load, "ct", "ct", "ct.nii.gz"),
        _step("shift", "Shiftd", "ct", "shifted", "shifted.nii.gz"),
    )
    return CompiledWorkflow("images", "1", "", {"ct": InputSpec()}, steps)


WORKFLOWS = {"tables": table_workflow, "images": image_workflow}


def main(out: str, inputs: str, *options: str) -> int:
    """Run and print the summary as JSON."""
    given = dict(option.split("=") for option in options)
    compiled = WORKFLOWS[given.get("workflow", "tables")]()
    (key,) = compiled.inputs
    cases = [
        Case(path.name.partition(".")[0], {key: str(path)})
        for path in sorted(Path(inputs).iterdir())
    ]
    if "file_limit" in given:
        limit = int(given["file_limit"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    summary = run_workflow(
        compiled,
        cases,
        Path(out),
        executor=LocalExecutor(int(given.get("workers", "2"))),
        device="cpu",
        timeout_s=float(given["timeout"]) if "timeout" in given else None,
        memory_gb=float(given["memory"]) if "memory" in given else None,
    )
    print(json.dumps(summary.to_dict()))
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
