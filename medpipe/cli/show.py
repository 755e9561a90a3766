"""`medpipe show`: what a workflow does, step by step, or what a step takes."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpipe.cli.output import print_json, print_table
from medpipe.errors import UsageError

if TYPE_CHECKING:
    from medpipe.workflow.compiled import CompiledWorkflow
    from medpipe.workflow.describe import StepInfo

__all__ = ["show"]

_WIDTH = 96


def show(
    name: str,
    /,
    *,
    json: bool = False,
    workflow_path: list[Path] | None = None,
) -> int:
    """Explain one workflow or one step.

    Examples: `medpipe show dicom-import`, `medpipe show load_volume`.

    Parameters
    ----------
    name : str
        A workflow's name or file (see `medpipe ls`), or a step's name (see `medpipe ls steps`).
    json : bool
        Print JSON for a program.
    workflow_path : list of Path, optional
        Folders searched before all others; may be repeated.
    """
    from medpipe.workflow.registry import step_names

    if name in step_names():
        from medpipe.workflow.describe import describe_step

        step = describe_step(name)
        print_json(step.to_dict()) if json else _show_step(step)
        return 0
    from medpipe.workflow.plan import compile_workflow

    try:
        workflow = compile_workflow(name, workflow_paths=workflow_path or ())
    except UsageError as error:
        near = difflib.get_close_matches(name, step_names(), n=1)
        meant = f'did you mean the step "{near[0]}"?' if near else error.hint
        there = "medpipe ls and medpipe ls steps list what there is"
        error.hint = f"{meant}; {there}" if meant else there
        raise
    print_json(workflow.to_dict()) if json else _show_workflow(workflow)
    return 0


def _show_workflow(workflow: CompiledWorkflow) -> None:
    print(f"{workflow.name} {workflow.version}: {workflow.summary}\n")
    if workflow.description:
        print(textwrap.indent(workflow.description.strip(), "  ") + "\n")
    print_table(
        ("input", "kind", ""),
        [
            (name, spec.kind + (" (optional)" if spec.optional else ""), spec.help)
            for name, spec in workflow.inputs.items()
        ],
    )
    print()
    print_table(
        ("step", "use", "reads → writes", "saves", "parameters (--set STEP.PARAMETER=VALUE)"),
        [
            (
                step.id,
                step.use,
                f"{', '.join(step.keys_read())} → {', '.join(step.keys_written())}",
                ", ".join(save.file for save in step.save),
                _values(step.params),
            )
            for step in workflow.steps
        ],
    )
    required = [name for name, spec in workflow.inputs.items() if not spec.optional]
    if len(required) == 1:
        print(f"\nmedpipe run {workflow.name} {required[0].upper()} OUT")
    if len(workflow.inputs) > 1:
        columns = ", ".join(workflow.inputs)
        print(f"\nmedpipe run {workflow.name} CASES.csv OUT    (columns case_id, {columns})")


def _show_step(step: StepInfo) -> None:
    print(f"{step.name} {step.version}: {step.summary}")
    kind = f"{step.makes} ({step.suffix})" if step.suffix else step.makes
    print(f"makes {kind}; in a notebook: {step.target.replace(':', '.')}\n")
    if not step.parameters:
        print("no parameters")
        return
    print_table(
        ("parameter", "type", "default", ""),
        [
            (
                parameter.name,
                str(parameter.annotation),
                "required" if parameter.required else _value(parameter.default),
                parameter.help.replace("``", ""),
            )
            for parameter in step.parameters
        ],
    )


def _values(parameters: Mapping[str, Any]) -> str:
    return textwrap.shorten(
        ", ".join(f"{name}={_value(value)}" for name, value in parameters.items()),
        width=4 * _WIDTH,
        placeholder=" …",
    )


def _value(value: Any) -> str:
    """Return a value as it is written in a workflow file or after ``--set``."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)
