"""`medpipe run`: a workflow over one case or fifty thousand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from medpipe.cli.output import console, print_json
from medpipe.errors import UsageError
from medpipe.report.text import bytes_text, duration

if TYPE_CHECKING:
    from medpipe.engine.protocol import Executor
    from medpipe.engine.run import RunSummary

__all__ = ["parse_shard", "run", "run_and_report"]

_SHOWN_FAILURES = 20
_MACHINE = Group("Machine", sort_key=1)
_CLUSTER = Group("Cluster", sort_key=2)


def run(
    name: str,
    cases: Path,
    out: Path,
    /,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    case_id: str | None = None,
    seed: int = 0,
    no_report: bool = False,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
    workflow_path: list[Path] | None = None,
    workers: Annotated[int | None, Parameter(group=_MACHINE)] = None,
    device: Annotated[str, Parameter(group=_MACHINE)] = "auto",
    gpus: Annotated[str | None, Parameter(group=_MACHINE)] = None,
    per_gpu: Annotated[int, Parameter(group=_MACHINE)] = 1,
    memory_gb: Annotated[float | None, Parameter(group=_MACHINE)] = None,
    timeout_min: Annotated[float, Parameter(group=_MACHINE)] = 120,
    retries: Annotated[int, Parameter(group=_MACHINE)] = 1,
    shard: Annotated[str | None, Parameter(group=_CLUSTER)] = None,
    executor: Annotated[Literal["local", "dask"], Parameter(group=_CLUSTER)] = "local",
    scheduler: Annotated[str | None, Parameter(group=_CLUSTER)] = None,
    cluster: Annotated[Literal["slurm", "pbs"] | None, Parameter(group=_CLUSTER)] = None,
    queue: Annotated[str | None, Parameter(group=_CLUSTER)] = None,
    walltime: Annotated[str | None, Parameter(group=_CLUSTER)] = None,
) -> int:
    """Run a workflow over a manifest, a file or a folder; then build the report.

    To resume after a crash, a full disk or a change of a parameter, run the same
    command again: what is stored is not computed twice. A case that fails or
    dies never takes another with it.

    Examples:

        medpipe run dicom-import patient/ct/ out/
        medpipe run head-ct-prepare cases.csv out/ --workers 4 --set resample.spacing_mm=0.5
        medpipe run head-ct-prepare cases.csv out/ --gpus 0,1 --shard 2/8

    Exit code 0 if all cases are done, 2 if the command, a setting, the manifest or
    the workflow is wrong, 3 if some cases failed, 4 if all did.

    Parameters
    ----------
    name : str
        A workflow's name or file; see `medpipe ls`.
    cases : Path
        A manifest (.csv, .parquet), a NIfTI or DICOM file, a DICOM folder, or a folder of NIfTI
        files: each a case, or all one case if the workflow takes a set of weighted images.
    out : Path
        The folder for results and report; it may hold earlier runs.
    set_ : list of str, optional
        STEP.PARAMETER=VALUE, as listed by `medpipe show NAME`; may be repeated.
    case_id : str, optional
        Name of a single case (default case0001); never taken from file names, which may name
        patients.
    seed : int
        Seed of every random step.
    no_report : bool
        Leave the HTML report out; `medpipe report OUT` builds it later.
    quiet : bool
        No progress bar.
    json : bool
        Print the summary as JSON for a program.
    debug : bool
        Show what the workers print, with full error texts. These may hold patient data.
    workflow_path : list of Path, optional
        Folders searched for the workflow before all others; may be repeated.
    workers : int, optional
        Cases at the same time (default: one per GPU slot, or one per two cores).
    device : str
        auto, cpu, cuda or cuda:N.
    gpus : str, optional
        GPUs to use, e.g. 0,1; each worker sees one of them alone.
    per_gpu : int
        Workers that share one GPU.
    memory_gb : float, optional
        Memory one worker may take (default: its share of nine tenths of the machine's); a case
        that needs more fails with a clear message.
    timeout_min : float
        Minutes one case may take; 0 for no limit.
    retries : int
        How often a case whose process died is tried again, alone.
    shard : str, optional
        K/N: run the K-th of N parts, for job arrays. All parts may share OUT.
    executor : {"local", "dask"}
        Where cases run: processes of this machine, or a Dask cluster.
    scheduler : str, optional
        Address of a running Dask scheduler, e.g. tcp://node1:8786.
    cluster : {"slurm", "pbs"}, optional
        Start Dask workers as jobs of this scheduler.
    queue : str, optional
        Queue or partition of those jobs.
    walltime : str, optional
        Time limit of those jobs, e.g. 04:00:00.
    """
    from medpipe.cli.cases import find_cases, require_apart
    from medpipe.workflow.plan import compile_workflow

    compiled = compile_workflow(name, overrides=set_ or (), workflow_paths=workflow_path or ())
    found = find_cases(cases, compiled, case_id=case_id)
    kind = executor if scheduler is None and cluster is None else "dask"
    chosen = _executor(
        kind,
        workers=workers,
        gpus=_gpu_list(gpus),
        per_gpu=per_gpu,
        scheduler=scheduler,
        cluster=cluster,
        queue=queue,
        walltime=walltime,
        memory_gb=memory_gb,
    )
    part = parse_shard(shard)
    require_apart(out, cases, found)
    from medpipe.engine.progress import choose_progress
    from medpipe.engine.run import run_workflow

    summary = run_workflow(
        compiled,
        found,
        out,
        executor=chosen,
        # Who names GPUs must not get the CPU without a word.
        device="cuda" if gpus and device == "auto" else device,
        seed=seed,
        timeout_s=60 * timeout_min or None,
        memory_gb=memory_gb or (_share_of_memory_gb(chosen.workers) if kind == "local" else None),
        retries=retries,
        shard=part,
        debug=debug,
        progress=choose_progress(quiet=quiet or json),
    )
    return run_and_report(summary, out, no_report=no_report, json=json)


def run_and_report(summary: RunSummary, out: Path, *, no_report: bool, json: bool) -> int:
    """Build the report, say what happened, return the exit code."""
    page = None
    if not no_report:
        from medpipe.report.build import build_report

        page = build_report(out)
    if json:
        print_json(summary.to_dict() | {"report": None if page is None else str(page)})
    else:
        _print_summary(summary, page)
    return summary.exit_code


def _print_summary(summary: RunSummary, page: Path | None) -> None:
    out = console()
    for failure in summary.failed[:_SHOWN_FAILURES]:
        out.print(f"[bold red]{failure.status}[/] ", end="")
        text = f"case {failure.case_id} · {failure.message}"
        memory = bytes_text(failure.peak_rss_bytes)
        out.print(f"{text} [peak memory {memory}]", markup=False, soft_wrap=True)
    if len(summary.failed) > _SHOWN_FAILURES:
        rest = len(summary.failed) - _SHOWN_FAILURES
        out.print(f"… and {rest} more; the report lists all of them first")
    if summary.interrupted:
        out.print(f"interrupted by {summary.interrupted}; run the same command again to resume")
    out.print(
        f"{summary.total} case{'' if summary.total == 1 else 's'}: "
        f"{summary.done} computed, {summary.cached} already there, "
        f"{len(summary.failed)} failed, in {duration(summary.seconds)}"
    )
    if page is not None:
        out.print(f"report: {page}", soft_wrap=True)


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Return ``(k, n)`` of ``"k/n"``."""
    if text is None:
        return None
    k, slash, n = text.partition("/")
    if not (slash and k.isdigit() and n.isdigit() and 1 <= int(k) <= int(n)):
        raise UsageError(
            "--shard is not understood", expected="K/N with 1 ≤ K ≤ N, e.g. 2/8", got=text
        )
    return int(k), int(n)


def _share_of_memory_gb(workers: int) -> float | None:
    """Return what each worker of this machine may take without taking it from another."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # not every system says
        return None
    return round(0.9 * total / workers / 1e9, 2)


def _gpu_list(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise UsageError("--gpus is not understood", expected="numbers such as 0,1", got=text)
    return [int(part) for part in parts]


def _executor(
    kind: str,
    *,
    workers: int | None,
    gpus: list[int] | None,
    per_gpu: int,
    scheduler: str | None,
    cluster: Literal["slurm", "pbs"] | None,
    queue: str | None,
    walltime: str | None,
    memory_gb: float | None,
) -> Executor:
    if kind == "local":
        from medpipe.engine.pool.local import LocalExecutor

        return LocalExecutor(workers, gpus=gpus, per_gpu=per_gpu)
    from medpipe.engine.dask import DaskExecutor, JobOptions

    if cluster is None:
        return DaskExecutor(scheduler, workers=workers, gpus=gpus, per_gpu=per_gpu)
    # The Dask worker itself takes some memory beside the case.
    memory = None if memory_gb is None else memory_gb + 1
    asked = {"queue": queue, "walltime": walltime, "memory_gb": memory}
    given = {name: value for name, value in asked.items() if value is not None}
    job = JobOptions(gpus=len(gpus or ()), **given)  # type: ignore[arg-type]
    return DaskExecutor(scheduler, cluster=cluster, workers=workers, job=job)
