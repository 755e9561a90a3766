"""Run one case: what is stored is read, what is missing is computed, all is recorded."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medpipe.engine.faults import describe_fault
from medpipe.engine.limits import peak_rss_bytes, reset_peak_rss
from medpipe.engine.notices import notices_to
from medpipe.engine.protocol import Event, Job, Outcome, RunSpec
from medpipe.engine.provenance import case_folder, read_case_record, workflow_label
from medpipe.engine.publish import CaseRecorder, is_current
from medpipe.engine.schedule import Action, Schedule, StepSchedule, WorkflowOutline, step_seeds
from medpipe.engine.steps import StepRunner
from medpipe.engine.store import Store
from medpipe.engine.values import findings_of, load_values, save_values
from medpipe.errors import InputError
from medpipe.io.crashpoints import reach, set_case
from medpipe.io.digests import InputDigest, digest_input, fingerprint_input
from medpipe.workflow.compiled import CompiledStep, CompiledWorkflow

__all__ = ["CaseRunner", "qc_version"]


def qc_version(workflow: CompiledWorkflow) -> str | None:
    """Return the version of the pictures, None when the workflow draws none."""
    if not any(step.qc for step in workflow.steps):
        return None
    from medpipe.figures.qc import VERSION

    return VERSION


class CaseRunner:
    """Runs cases of one workflow, one after the other, in one process.

    Parameters
    ----------
    spec : RunSpec
    emit : callable
        Gets each event while it happens.
    """

    def __init__(self, spec: RunSpec, emit: Callable[[Event], None]) -> None:
        self.spec = spec
        self.workflow = CompiledWorkflow.from_dict(spec.workflow)
        self.outline = WorkflowOutline(self.workflow, qc_version(self.workflow))
        self.label = workflow_label(self.workflow)
        self.store = Store(Path(spec.out))
        self.steps = StepRunner(spec.device)
        self.emit = emit

    def run(self, job: Job) -> Outcome:
        """Run one case; an exception of a step becomes a ``failed`` outcome."""
        set_case(job.case_id)
        reset_peak_rss()
        reach("after_receive")
        attempt = _Attempt(self, job)
        error = None
        try:
            attempt.compute()
        except KeyboardInterrupt:
            raise
        except BaseException as fault:
            if self.spec.debug:
                traceback.print_exc(file=sys.stderr)
            error = describe_fault(fault, attempt.step)
        error = attempt.record(error)
        reach("before_reply")
        return Outcome(
            job.case_id,
            "failed" if error else "done",
            computed=attempt.computed,
            error=error,
            seconds=round(time.perf_counter() - attempt.started, 6),
            peak_rss_bytes=attempt.recorder.peak_rss_bytes or peak_rss_bytes(),
            attempts=job.attempt,
            digests={name: d.to_dict() for name, d in attempt.digests.items()},
        )


class _Attempt:
    """One attempt at one case."""

    def __init__(self, runner: CaseRunner, job: Job) -> None:
        self.runner, self.job = runner, job
        self.started = time.perf_counter()
        self.folder = case_folder(runner.spec.out, job.case_id)
        self.digests: dict[str, InputDigest] = {}
        self.seeds = step_seeds(runner.workflow, runner.spec.seed, job.case_id)
        self.schedule: Schedule | None = None
        self.recorder = CaseRecorder(runner, job, self.folder)
        self.data: dict[str, Any] = {}
        self.step: str | None = None
        self.computed = 0
        self.untouched = False

    def compute(self) -> None:
        """Make every result that is missing."""
        self._start()
        assert self.schedule is not None  # noqa: S101 - set by _start
        if self.schedule.complete:
            record = read_case_record(self.folder)
            self.untouched = record is not None and is_current(
                record, self.folder, self.runner.outline, self.schedule
            )
            if self.untouched:
                return
        _reset_gpu_peak()
        for step, todo in zip(self.runner.workflow.steps, self.schedule.steps, strict=True):
            self.step = step.id
            started = time.perf_counter()
            if todo.action is Action.RUN:
                self._run(step, todo)
            elif todo.load:
                self._load(todo, load_values(self.runner.store, todo.key, todo.load))
                reach("after_load")
            if todo.draw:
                self._draw(step, todo)
            self.data = {k: v for k, v in self.data.items() if k in todo.live}
            seconds = round(time.perf_counter() - started, 6)
            self.recorder.step_done(step, todo, seconds)
        self.step = None

    def _start(self) -> None:
        for name, spec in self.runner.workflow.inputs.items():
            path = self.job.inputs.get(name)
            if path is not None:
                try:
                    self.digests[name] = digest_input(
                        path, self.job.known.get(name), as_images=spec.as_images
                    )
                except InputError as error:
                    raise error.at(f"input {name}") from None
                self.data[name] = path
            elif not spec.optional:
                raise InputError(f'the case has no input "{name}"', hint="add it to the manifest")
        values = {n: d.digest for n, d in self.digests.items()}
        digests = {name: values.get(name) for name in self.runner.workflow.inputs}
        self.schedule = self.runner.outline.schedule(digests, self.seeds, self.runner.store.has)
        self.recorder.begin(self.schedule, self.digests, self.seeds)

    def _run(self, step: CompiledStep, todo: StepSchedule) -> None:
        runner = self.runner
        runner.emit({"event": "step_started", "case_id": self.job.case_id, "step": step.id})
        started = time.perf_counter()
        carried = [f for k in step.keys_read() for f in findings_of(self.data.get(k))]
        with runner.store.unfinished(todo.key) as unfinished:
            with notices_to(self._notice):
                seed = self.seeds.get(step.id)
                self.data = runner.steps.apply(step, todo, self.data, seed, unfinished.claim)
            self.computed += 1
            reach("after_step")
            for name in step.keys_written():
                self.recorder.add_findings(findings_of(self.data.get(name)))
            if runner.outline.keeps_object(step):
                self._save(step, todo, carried)
        seconds = round(time.perf_counter() - started, 6)
        runner.emit(
            {
                "event": "step_finished",
                "case_id": self.job.case_id,
                "step": step.id,
                "seconds": seconds,
            }
        )

    def _save(self, step: CompiledStep, todo: StepSchedule, findings: list[Any]) -> None:
        """Store what a step made, and go on with what was stored."""
        self._require_unchanged_inputs()
        store, reads = self.runner.store, self.recorder.reads_of(step)
        values = save_values(
            store, todo.key, step, self.data,
            reads=reads, findings=findings, missing=todo.missing,
        )  # fmt: skip
        self._load(todo, values)

    def _notice(self, text: str) -> None:
        case_id, step = self.job.case_id, self.step
        self.runner.emit({"event": "notice", "case_id": case_id, "step": step, "text": text})

    def _load(self, todo: StepSchedule, values: dict[str, Any]) -> None:
        for name in todo.load if todo.action is Action.REUSE else values:
            self.data[name] = self.runner.steps.to_device(values[name])

    def _draw(self, step: CompiledStep, todo: StepSchedule) -> None:
        from medpipe.engine.pictures import draw_picture

        self._require_unchanged_inputs()
        draw_picture(self.runner.store, step, str(todo.qc_key), self.data)

    def _require_unchanged_inputs(self) -> None:
        """Refuse to store a result under the digest of an input that changed while it was read."""
        for name, digest in self.digests.items():
            mark = fingerprint_input(
                str(self.job.inputs[name]), as_images=self.runner.workflow.inputs[name].as_images
            )
            if mark.value != digest.fingerprint:
                raise InputError(
                    "an input changed while the case was computed",
                    where=f"input {name}",
                    hint="wait until it is copied completely, then run the same command",
                )

    def record(self, error: dict[str, Any] | None) -> dict[str, Any] | None:
        """Write the record of the case and return its error, which may be one of writing."""
        if self.untouched:
            return error
        reach("before_record")
        try:
            self.recorder.write(error, time.perf_counter() - self.started)
        except Exception as fault:
            if self.runner.spec.debug:
                traceback.print_exc(file=sys.stderr)
            error = error or describe_fault(fault, None)
        reach("after_record")
        return error


def _reset_gpu_peak() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
