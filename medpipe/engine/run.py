"""Run a workflow over many cases: plan, hand out, record, sum up."""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medpipe.engine.events import EventLog
from medpipe.engine.plan import CaseStatus, Planner, in_shard, jobs_of
from medpipe.engine.progress import NoProgress, Progress
from medpipe.engine.protocol import Event, Executor, Outcome, RunSpec
from medpipe.engine.provenance import (
    case_folder,
    environment,
    failed_record,
    read_case_record,
    remove_leftovers,
    workflow_label,
    write_case_record,
)
from medpipe.engine.store import Store, record_bytes
from medpipe.errors import MedpipeError, StoreError, UsageError
from medpipe.io.atomic import write_bytes_atomic
from medpipe.io.case import Case
from medpipe.io.digests import DigestCache, InputDigest
from medpipe.workflow.compiled import CompiledWorkflow

__all__ = ["Failure", "RunSummary", "run_workflow"]


_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True, slots=True)
class Failure:
    """One case that did not get through."""

    case_id: str
    status: str
    kind: str
    step: str | None
    message: str
    hint: str | None
    seconds: float
    peak_rss_bytes: int
    attempts: int
    what: str = ""


@dataclass(slots=True)
class RunSummary:
    """What became of a run.

    Attributes
    ----------
    failed : list of Failure
    total, done, cached : int
        Cases of this shard; those that were computed; those that had everything.
    interrupted : str or None
        Name of the signal that ended the run early.
    """

    failed: list[Failure] = field(default_factory=list)
    run_id: str = ""
    total: int = 0
    done: int = 0
    cached: int = 0
    seconds: float = 0.0
    interrupted: str | None = None

    @property
    def exit_code(self) -> int:
        """Return 0, 3 when some cases failed, 4 when all failed, 128 + n after signal n.

        2 when all failed because of a setting: then it is the command that is wrong.
        """
        if self.interrupted is not None:
            return 128 + signal.Signals[self.interrupted].value
        if not self.failed:
            return 0
        if self.done + self.cached:
            return 3
        return 2 if all(f.kind == UsageError.kind for f in self.failed) else 4

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, failures first."""
        return asdict(self) | {"exit_code": self.exit_code}


class _Stopped(BaseException):
    """A signal asked the run to end."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `_Stopped`, once; a second one is not needed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # a program that runs us in a thread keeps its own way to stop
        return

    def stop(number: int, _frame: Any) -> None:
        for name in before:
            signal.signal(name, signal.SIG_IGN)
        raise _Stopped(signal.Signals(number).name)

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _new_run_id() -> str:
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + secrets.token_hex(3)


def run_workflow(
    compiled: CompiledWorkflow,
    cases: Iterable[Case],
    out: Path,
    *,
    executor: Executor,
    device: str = "auto",
    seed: int = 0,
    timeout_s: float | None = None,
    memory_gb: float | None = None,
    retries: int = 1,
    shard: tuple[int, int] | None = None,
    debug: bool = False,
    progress: Progress | None = None,
) -> RunSummary:
    """Run a workflow over cases; what is in the store is not computed again.

    Parameters
    ----------
    compiled : CompiledWorkflow
    cases : iterable of Case
        Looked at twice when it is a collection, else listed first.
    out : Path
        The output folder; see docs/architecture.md for what is in it.
    executor : Executor
    device : {"auto", "cpu", "cuda", "cuda:N"}
    seed : int
        Seeds of steps are derived from it, the case id and the step id.
    timeout_s : float, optional
        Wall-clock seconds that one attempt at a case may take.
    memory_gb : float, optional
        Memory (10^9 bytes) that one worker may take.
    retries : int
        How often a case whose process died is tried again.
    shard : (int, int), optional
        ``(k, n)``: run the k-th of n parts.
    debug : bool
        Let workers print, texts of foreign exceptions included.
    progress : Progress, optional
        What to show; nothing by default.

    Returns
    -------
    RunSummary

    Raises
    ------
    StoreError
        If the output folder cannot be written at all.
    UsageError
        If a limit is none, or the name of the device is unknown.
    """
    _check_limits(timeout_s, memory_gb, retries)
    if not _DEVICE.fullmatch(device):
        raise UsageError("unknown device", expected="auto, cpu, cuda or cuda:N", got=device)
    cases = cases if isinstance(cases, Collection) else list(cases)
    spec = RunSpec(
        out=str(Path(out).absolute()),
        workflow=compiled.to_dict(),
        run_id=_new_run_id(),
        device=device,
        seed=seed,
        timeout_s=timeout_s,
        memory_gb=memory_gb,
        retries=retries,
        debug=debug,
    )
    with _stop_on_signals():
        run = _Run(compiled, spec, progress or NoProgress())
        try:
            return run.go(cases, executor, shard)
        except _Stopped as stop:  # before the first case, or after the last
            run.summary.interrupted = stop.name
            run.finish(executor, shard)
            return run.summary


def _check_limits(timeout_s: float | None, memory_gb: float | None, retries: int) -> None:
    """Refuse limits that no case could keep."""
    for name, value in (("the time limit", timeout_s), ("the memory limit", memory_gb)):
        if value is not None and not value > 0:
            raise UsageError(f"{name} of a case is not positive", got=f"{value:g}")
    if retries < 0:
        raise UsageError("a case cannot be retried less than never", got=str(retries))


class _Run:
    """The state of one run in the driver: counts, not cases."""

    def __init__(self, compiled: CompiledWorkflow, spec: RunSpec, progress: Progress) -> None:
        self.compiled, self.spec, self.progress = compiled, spec, progress
        self.out = Path(spec.out)
        self.folder = self.out / "runs" / spec.run_id
        self.label = workflow_label(compiled)
        self.summary = RunSummary(run_id=spec.run_id)
        self.started = time.time()

    def go(
        self, cases: Collection[Case], executor: Executor, shard: tuple[int, int] | None
    ) -> RunSummary:
        """Run everything and return the sum."""
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise StoreError(
                "the output folder cannot be written",
                got=f"{type(error).__name__}",
                hint="choose another folder, or check permissions and free space",
            ) from None
        Store(self.out).remove_leftovers()
        self._write_run("running", executor, shard)
        with (
            DigestCache(self.out / "digests.sqlite") as self.cache,
            EventLog(self.folder / "events.jsonl") as self.events,
            self.progress,
        ):
            try:
                self._run_cases(cases, executor, shard)
            except _Stopped as stop:
                self.summary.interrupted = stop.name
                self.events.write({"event": "interrupted", "signal": stop.name})
            finally:
                Store(self.out).flush()
                self.summary.seconds = round(time.time() - self.started, 3)
                self.events.write({"event": "run_finished", "seconds": self.summary.seconds})
        self.finish(executor, shard)
        return self.summary

    def finish(self, executor: Executor, shard: tuple[int, int] | None) -> None:
        """Clear up after workers that died and write how the run ended."""
        Store(self.out).remove_leftovers()
        if self.summary.interrupted:  # no record was written for the cases that were in work
            for folder in (self.out / "cases").glob("*/"):
                with contextlib.suppress(OSError):
                    remove_leftovers(folder)
        status = "interrupted" if self.summary.interrupted else "finished"
        self._write_run(status, executor, shard)

    def _run_cases(
        self, cases: Collection[Case], executor: Executor, shard: tuple[int, int] | None
    ) -> None:
        planner = Planner(self.compiled, self.out, self.cache, self.spec.seed)
        wanted = bytearray()  # one byte a case, so that 50,000 cases cost 50 kB
        for case in self._of_shard(cases, shard):
            wanted.append(planner.look(case)[0].status is not CaseStatus.CACHED)
        self.summary.total = len(wanted)
        self.summary.cached = wanted.count(0)
        self.events.write({"event": "planned", "cases": len(wanted), "cached": self.summary.cached})
        self.progress.start(len(wanted), self.summary.cached)
        again = self._of_shard(cases, shard)
        jobs = jobs_of(planner, again, map(bool, wanted), self._cached_meanwhile)
        outcomes = executor.run(jobs, self.spec, self._event)
        with contextlib.closing(outcomes):  # type: ignore[type-var]
            for outcome in outcomes:
                self._outcome(outcome)

    def _cached_meanwhile(self) -> None:
        """Count a case that another run on the same folder finished first."""
        self.summary.cached += 1

    @staticmethod
    def _of_shard(cases: Iterable[Case], shard: tuple[int, int] | None) -> Iterator[Case]:
        return (case for case in cases if in_shard(case.case_id, shard))

    def _event(self, event: Event) -> None:
        self.events.write(event)
        self.progress.event(event)

    def _outcome(self, outcome: Outcome) -> None:
        for event in outcome.events:
            self._event(event)
        self.cache.put(InputDigest.from_dict(d) for d in outcome.digests.values())
        error = outcome.error or {}
        if outcome.status != "done":
            self._failed(outcome)
        elif outcome.computed:
            self.summary.done += 1
        else:
            self.summary.cached += 1
        self.events.write(
            {
                "event": "case_finished",
                "case_id": outcome.case_id,
                "status": outcome.status,
                "computed": outcome.computed,
                "seconds": outcome.seconds,
                "peak_rss_bytes": outcome.peak_rss_bytes,
                "attempts": outcome.attempts,
                "step": error.get("step"),
                "message": error.get("message"),
            }
        )
        self.events.flush()
        self.progress.outcome(outcome)

    def _failed(self, outcome: Outcome) -> None:
        error = outcome.error or {}
        self.summary.failed.append(
            Failure(
                outcome.case_id,
                outcome.status,
                str(error.get("kind", "")),
                error.get("step"),
                str(error.get("message", "")),
                error.get("hint"),
                outcome.seconds,
                outcome.peak_rss_bytes,
                outcome.attempts,
                str(error.get("what") or ""),
            )
        )
        folder = case_folder(self.out, outcome.case_id)
        record = failed_record(self.spec, self.label, outcome)
        # The worker writes the record of a failure; it could not when it died, or was killed.
        if not _has_record(folder, self.spec.run_id):
            with contextlib.suppress(OSError, MedpipeError):  # on a full disk the sum still tells
                folder.mkdir(parents=True, exist_ok=True)
                write_case_record(folder, record)

    def _write_run(self, status: str, executor: Executor, shard: tuple[int, int] | None) -> None:
        record = {
            "schema": 1,
            "run_id": self.spec.run_id,
            "status": status,
            "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "workflow": self.label,
            "compiled": _without_paths(self.compiled),
            "seed": self.spec.seed,
            "device": self.spec.device,
            "executor": type(executor).__name__,
            "workers": executor.workers,
            "timeout_s": self.spec.timeout_s,
            "memory_gb": self.spec.memory_gb,
            "retries": self.spec.retries,
            "shard": None if shard is None else {"k": shard[0], "n": shard[1]},
            "environment": environment(),
            "summary": None if status == "running" else self.summary.to_dict(),
        }
        with contextlib.suppress(StoreError):  # as for the log
            write_bytes_atomic(self.folder / "run.json", record_bytes(record), durable=False)


def _has_record(folder: Path, run_id: str) -> bool:
    record = read_case_record(folder)
    return record is not None and record.get("run_id") == run_id


def _without_paths(compiled: CompiledWorkflow) -> dict[str, Any]:
    """Return a workflow as it is recorded: files by their digests, not by where they lie."""
    record = compiled.to_dict()
    for step in record["steps"]:
        del step["paths"]
    return record
