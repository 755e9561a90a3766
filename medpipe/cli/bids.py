"""`medpipe bids`: a workflow as a BIDS app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from medpipe.errors import UsageError

__all__ = ["bids"]


def bids(
    name: str,
    bids_dir: Path,
    out_dir: Path,
    level: Literal["participant", "group"],
    /,
    *,
    participant_label: list[str] | None = None,
    session_label: list[str] | None = None,
    suffix: str = "T1w",
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    workers: int | None = None,
    device: str = "auto",
    workflow_path: list[Path] | None = None,
    quiet: bool = False,
) -> int:
    """Run a workflow over a BIDS dataset and write a BIDS derivative.

    `participant` runs the chosen subjects and adds them to the derivative; `group` builds the
    cohort report over all that ran. OUT_DIR/.medpipe holds the run itself.

    Example: `medpipe bids nifti-check dataset/ derivatives/medpipe participant --suffix T1w`

    Parameters
    ----------
    name : str
        A workflow's name or file; it must take one input.
    bids_dir : Path
        The dataset.
    out_dir : Path
        The derivative dataset.
    level : {"participant", "group"}
        Level of analysis.
    participant_label : list of str, optional
        Subjects to run, with or without `sub-`; may be repeated (default: all).
    session_label : list of str, optional
        Sessions to run, with or without `ses-`; may be repeated (default: all).
    suffix : str
        Which images to take, e.g. T1w, T2w, FLAIR, ct. A workflow that takes a set of images
        gets the folder anat of each session instead.
    set_ : list of str, optional
        STEP.PARAMETER=VALUE, as for `medpipe run`.
    workers : int, optional
        Cases at the same time.
    device : str
        auto, cpu, cuda or cuda:N.
    workflow_path : list of Path, optional
        Folders searched for the workflow before all others; may be repeated.
    quiet : bool
        No progress bar.
    """
    run_folder = out_dir / ".medpipe"
    if level == "group":
        from medpipe.report.build import build_report

        if not run_folder.is_dir():
            raise UsageError(
                "no participant was run into this derivative",
                got=str(out_dir),
                hint="run the level participant first",
            )
        print(build_report(run_folder))
        return 0
    from medpipe.cli.output import console
    from medpipe.cli.run import run_and_report
    from medpipe.engine.pool.local import LocalExecutor
    from medpipe.engine.progress import choose_progress
    from medpipe.engine.run import run_workflow
    from medpipe.io.bids import bids_cases, bids_sessions, scan_bids
    from medpipe.io.bids_derivative import export_derivative
    from medpipe.workflow.plan import compile_workflow

    compiled = compile_workflow(name, overrides=set_ or (), workflow_paths=workflow_path or ())
    required = [key for key, spec in compiled.inputs.items() if not spec.optional]
    if len(required) != 1:
        raise UsageError(
            f"{compiled.name} takes {len(required)} inputs",
            expected="a workflow of one input",
            hint="write a manifest and use medpipe run",
        )
    chosen: dict[str, Any] = {
        "participant_label": participant_label,
        "session_label": session_label,
    }
    if compiled.inputs[required[0]].as_images:
        cases, left_out = bids_sessions(bids_dir, required[0], **chosen)
    else:
        cases, left_out = bids_cases(
            scan_bids(bids_dir), {required[0]: {"suffix": suffix}}, **chosen
        )
    for case_id, why in left_out.items():
        console(stderr=True).print(f"left out {case_id}: {why}", markup=False)
    if not cases:
        what = f"image with suffix {suffix}"
        hint: str | None = "see --suffix"
        if compiled.inputs[required[0]].as_images:
            what, hint = "session with a folder anat", None
        raise UsageError(f"no {what} to run on", hint=hint)
    summary = run_workflow(
        compiled,
        cases,
        run_folder,
        executor=LocalExecutor(workers),
        device=device,
        progress=choose_progress(quiet=quiet),
    )
    if summary.done + summary.cached:
        export_derivative(run_folder, out_dir)
    return run_and_report(summary, run_folder, no_report=False, json=False)
