"""`medpipe ls`: what can be run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medpipe.cli.output import print_json, print_table

__all__ = ["ls"]


def ls(
    what: Literal["workflows", "steps"] = "workflows",
    /,
    *,
    json: bool = False,
    workflow_path: list[Path] | None = None,
) -> int:
    """List the named workflows, or the steps they are made of.

    Examples: `medpipe ls`, `medpipe ls steps`, `medpipe ls --json`.

    Parameters
    ----------
    what : {"workflows", "steps"}
        What to list.
    json : bool
        Print JSON for a program.
    workflow_path : list of Path, optional
        Folders searched before all others; may be repeated.
    """
    if what == "steps":
        return _steps(json)
    from medpipe.workflow.find import list_workflows

    found = list_workflows(workflow_paths=workflow_path or ())
    if json:
        print_json([info.to_dict() for info in found])
        return 0
    print_table(
        ("workflow", "version", "inputs", "what it does"),
        [(w.name, w.version, ", ".join(w.inputs), w.problem or w.summary) for w in found],
    )
    print("\nmedpipe show NAME explains one; medpipe run NAME CASES OUT runs it.")
    return 0


def _steps(json: bool) -> int:
    from medpipe.workflow.describe import describe_step
    from medpipe.workflow.registry import step_names

    steps = [describe_step(name) for name in step_names()]
    if json:
        print_json([step.to_dict() for step in steps])
        return 0
    print_table(
        ("step", "version", "makes", "what it does"),
        [(s.name, s.version, s.makes, s.summary) for s in steps],
    )
    print("\nmedpipe show STEP lists a step's parameters.")
    return 0
