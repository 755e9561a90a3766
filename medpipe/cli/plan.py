"""`medpipe plan`: what a run would do, without doing it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from medpipe.cli.output import print_json, print_table
from medpipe.report.text import bytes_text

__all__ = ["plan"]


def plan(
    name: str,
    cases: Path,
    out: Path,
    /,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    seed: int = 0,
    shard: str | None = None,
    json: bool = False,
    workflow_path: list[Path] | None = None,
) -> int:
    """Say which cases are done, which would run and what they would need; touch nothing.

    No input is read: a case whose input was never seen counts as new.

    Parameters
    ----------
    name : str
        A workflow's name or file; see `medpipe ls`.
    cases : Path
        What `medpipe run` takes: a manifest, a file or a folder.
    out : Path
        The output folder; it need not exist.
    set_ : list of str, optional
        STEP.PARAMETER=VALUE, as for `medpipe run`.
    seed : int
        As for `medpipe run`.
    shard : str, optional
        K/N, as for `medpipe run`.
    json : bool
        Print JSON for a program, with every case.
    workflow_path : list of Path, optional
        Folders searched for the workflow before all others; may be repeated.
    """
    from medpipe.cli.cases import find_cases, require_apart
    from medpipe.cli.run import parse_shard
    from medpipe.engine.plan import CaseStatus, plan_run
    from medpipe.workflow.plan import compile_workflow

    compiled = compile_workflow(name, overrides=set_ or (), workflow_paths=workflow_path or ())
    found = find_cases(cases, compiled)
    require_apart(out, cases, found)
    planned = plan_run(compiled, found, out, seed=seed, shard=parse_shard(shard))
    if json:
        print_json({"workflow": compiled.name, "out": str(out), **planned.to_dict()})
        return 0
    runs = Counter(step for case in planned.cases for step in case.steps)
    print_table(
        ("step", "use", "would run for"),
        [(step.id, step.use, f"{runs[step.id]} cases") for step in compiled.steps],
        title=f"{compiled.name} {compiled.version}, {len(planned.cases)} cases",
    )
    print(
        f"\n{planned.count(CaseStatus.CACHED)} cases are done, "
        f"{planned.count(CaseStatus.PENDING)} need some steps, "
        f"{planned.count(CaseStatus.UNKNOWN)} are new"
        + (f", {planned.other_shards} belong to other shards" if planned.other_shards else "")
        + f"; about {bytes_text(planned.disk_bytes)} would be written."
    )
    return 0
