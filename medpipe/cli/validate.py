"""`medpipe validate`: every problem of a manifest or a workflow file, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medpipe.cli.output import print_json
from medpipe.errors import MedpipeError

__all__ = ["validate"]


def validate(
    file: Path,
    /,
    *,
    workflow: str | None = None,
    verify_sha256: bool = False,
    json: bool = False,
    workflow_path: list[Path] | None = None,
) -> int:
    """Check a manifest (.csv, .parquet) or a workflow (.toml) and list every problem.

    Examples: `medpipe validate cases.csv --workflow head-ct-prepare`, `medpipe validate my.toml`.
    Exit code 0 if it can be used, 2 if not.

    Parameters
    ----------
    file : Path
        The manifest or workflow file.
    workflow : str, optional
        The workflow that a manifest is meant for: its inputs must be columns.
    verify_sha256 : bool
        Compare every input with the manifest's `<input>_sha256` columns.
    json : bool
        Print JSON for a program.
    workflow_path : list of Path, optional
        Folders searched before all others; may be repeated.
    """
    try:
        summary, text = _check(file, workflow, verify_sha256, workflow_path or [])
    except MedpipeError as error:
        if json:
            print_json(error.to_dict())
        raise
    print_json(summary) if json else print(text)
    return 0


def _check(
    file: Path, workflow: str | None, verify_sha256: bool, workflow_path: list[Path]
) -> tuple[dict[str, Any], str]:
    """Return what a sound file holds, for programs and for people."""
    if file.suffix == ".toml":
        from medpipe.workflow.plan import compile_workflow

        compiled = compile_workflow(file)
        steps = len(compiled.steps)
        summary = {"workflow": compiled.name, "steps": steps}
        return summary, f"{file}: a sound workflow of {steps} steps"
    from medpipe.io.manifest import load_manifest

    inputs: list[str] | None = None
    optional: list[str] = []
    if workflow is not None:
        from medpipe.workflow.plan import compile_workflow

        specs = compile_workflow(workflow, workflow_paths=workflow_path).inputs
        inputs = list(specs)
        optional = [name for name, spec in specs.items() if spec.optional]
    manifest = load_manifest(file, inputs=inputs, optional=optional, verify_sha256=verify_sha256)
    cases = manifest.cases
    patients = {case.patient_id for case in cases if case.patient_id}
    names = sorted({name for case in cases for name in case.inputs})
    summary = {
        "cases": len(cases),
        "patients": len(patients),
        "inputs": names,
        "findings": [finding.to_dict() for finding in manifest.findings],
    }
    text = f"{file}: {len(cases)} sound cases"
    text += f" of {len(patients)} patients" if patients else ""
    text += f"; inputs {', '.join(names)}"
    for finding in manifest.findings:
        text += f"\n{finding.severity.name.lower()}: {finding.message}"
    return summary, text
