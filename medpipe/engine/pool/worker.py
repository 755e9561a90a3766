"""One worker process seen from the driver, and the rules for when it dies.

A worker runs one case at a time. It can end without an answer in many ways
(the kernel's out-of-memory killer, a crash in native code, `os._exit`); each
looks the same from here: its pipe ends. The case it had is tried again alone
in a fresh process, and if that dies too, the case is reported and the others
go on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from medpipe.engine.limits import peak_rss_bytes, rss_bytes
from medpipe.engine.protocol import Event, Job, OnEvent, Outcome, RunSpec, Slot
from medpipe.engine.wire import LineReader, send
from medpipe.errors import MedpipeError, ResourceError, WorkerDied

__all__ = ["Worker", "WorkerSeat", "run_supervised"]

POLL_S = 0.25
START_TIMEOUT_S = 300.0
_CREEP_FACTOR = 2.0
_CREEP_BYTES = 1 << 30
_CREEP_EVERY = 16
_CUDA_ERRORS = ("AcceleratorError", "RuntimeError")


class _Gone(Exception):  # noqa: N818 - not an error: it says what the pipe said
    """The process ended before it answered, or has to (`error` says why)."""

    def __init__(self, error: MedpipeError | None = None, status: str = "died") -> None:
        super().__init__()
        self.error = error
        self.status = status


def _environment(slot: Slot) -> dict[str, str]:
    """Return the environment of a worker: its share of the cores, its GPU."""
    env = dict(os.environ)
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    ):
        env[name] = str(slot.threads)
    # Threads that wait give their core away. Where the cores are shared with other workers
    # or programs, spinning for each other costs several times the work itself.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if slot.gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = slot.gpu
    return env


class Worker:
    """A child process that runs cases, one at a time.

    It is killed when the thread that made it ends (Linux), so keep that thread.

    Parameters
    ----------
    spec : RunSpec
    slot : Slot

    Attributes
    ----------
    step : str or None
        The step that the process reported last in its current case.
    peak_rss_bytes : int
        Largest resident memory seen from outside during its current case.
    """

    def __init__(self, spec: RunSpec, slot: Slot) -> None:
        self.spec = spec
        self.cases = 0
        self.step: str | None = None
        self.peak_rss_bytes = 0
        self._first_rss = 0
        jobs_read, self._jobs = os.pipe()
        self._replies, replies_write = os.pipe()
        self._reader = LineReader(self._replies)
        self._poller = select.poll()
        self._poller.register(self._replies, select.POLLIN)
        command = [sys.executable, "-P", "-m", "medpipe.engine.child"]
        command += [str(jobs_read), str(replies_write), str(os.getpid())]
        output = None if spec.debug else subprocess.DEVNULL
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command + (["debug"] if spec.debug else []),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(jobs_read, replies_write),
                env=_environment(slot),
                start_new_session=True,  # Ctrl-C reaches the driver alone
            )
        finally:
            os.close(jobs_read)
            os.close(replies_write)

    def start(self) -> None:
        """Wait until the process is ready for its first job; raise `_Gone` if it never is."""
        self._send(self.spec.to_dict())
        next(self._messages(time.monotonic() + START_TIMEOUT_S, _too_slow_to_start()))

    def run(self, job: Job, on_event: OnEvent) -> Outcome:
        """Run one case and return its outcome; raise `_Gone` when the process ends first."""
        self.step, self.peak_rss_bytes = None, 0
        self._send(job.to_dict())
        limit = self.spec.timeout_s
        deadline = None if limit is None else time.monotonic() + limit
        for message in self._messages(deadline, _too_slow(limit)):
            if "outcome" in message:
                break
            event: Event = message["event"]
            if event["event"] == "step_started":
                self.step = str(event["step"])
            on_event(event)
        self.cases += 1
        return Outcome.from_dict(message["outcome"])

    def is_worn(self) -> bool:
        """Tell whether the process has run enough cases or holds on to memory."""
        if self.cases >= self.spec.recycle_after:
            return True
        if self.cases % _CREEP_EVERY:
            return False
        now = rss_bytes(self.process.pid)
        self._first_rss = self._first_rss or now
        return now > self._first_rss * _CREEP_FACTOR + _CREEP_BYTES

    def _send(self, message: Any) -> None:
        try:
            send(self._jobs, message)
        except BrokenPipeError:
            raise _Gone from None

    def _messages(self, deadline: float | None, late: MedpipeError) -> Iterator[dict[str, Any]]:
        """Yield what the process says; raise `_Gone` when it ends or passes a limit."""
        next_look = time.monotonic() + POLL_S
        while True:
            try:
                while (message := self._reader.next()) is not None:
                    yield message
            except ValueError:  # what is no message cannot be trusted further
                raise _Gone from None
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise _Gone(late, "timeout")
            if now >= next_look:
                self._look()
                next_look = now + POLL_S
            wake = next_look if deadline is None else min(next_look, deadline)
            if self._poller.poll(1000 * max(0.0, wake - now)) and not self._reader.fill():
                raise _Gone

    def _look(self) -> None:
        """Measure the process from outside."""
        # A program that a step forked may hold the pipe open after the process itself ended.
        if self._reap() is not None:
            raise _Gone
        self.peak_rss_bytes = max(self.peak_rss_bytes, peak_rss_bytes(self.process.pid))
        limit = self.spec.memory_gb
        if limit is not None and rss_bytes(self.process.pid) > limit * 1e9:
            raise _Gone(_too_large(self.spec), "failed")

    def _reap(self) -> int | None:
        """Return the exit status of the process, None while it runs."""
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid == 0:
                return None
            self.process.returncode = os.waitstatus_to_exitcode(status)
            if self.peak_rss_bytes == 0:  # it ended before it was looked at
                unit = 1 if sys.platform == "darwin" else 1024
                self.peak_rss_bytes = usage.ru_maxrss * unit
        return self.process.returncode

    def kill(self) -> None:
        """Kill the process and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self, patience_s: float = 2.0) -> int:
        """Close the pipes, wait for the process, kill what is left; return its exit status.

        A negative status is the number of the signal that ended it.
        """
        if self._jobs >= 0:
            os.close(self._jobs)
            self._jobs = -1
        deadline = time.monotonic() + patience_s
        pause = 0.001
        while self._reap() is None:
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        self.kill()  # what a step started may have stayed behind
        if self._replies >= 0:
            os.close(self._replies)
            self._replies = -1
        return int(self.process.returncode)


class WorkerSeat:
    """Keeps the worker of one slot warm from case to case and replaces it when it is gone."""

    def __init__(self, spec: RunSpec, slot: Slot) -> None:
        self.spec, self.slot = spec, slot
        self._worker: Worker | None = None
        self._lock = threading.Lock()
        self._closed = False

    def take(self, *, fresh: bool = False) -> Worker:
        """Return a worker that is ready; `fresh` for one that ran nothing before."""
        worker = self._worker
        if worker is not None and (fresh or worker.is_worn()):
            self.drop()
            worker = None
        if worker is None:
            with self._lock:
                if self._closed:
                    raise _Gone
                worker = self._worker = Worker(self.spec, self.slot)
            worker.start()
        return worker

    @property
    def worker(self) -> Worker | None:
        """The current worker."""
        return self._worker

    def drop(self) -> int:
        """End the current worker; return its exit status, 0 when there is none."""
        with self._lock:
            worker, self._worker = self._worker, None
        return 0 if worker is None else worker.end()

    def kill(self) -> None:
        """Kill the current worker from any thread; no other one is started."""
        with self._lock:
            self._closed = True
            if self._worker is not None:
                self._worker.kill()


def run_supervised(job: Job, seat: WorkerSeat, on_event: OnEvent) -> Outcome:
    """Run one case in the worker of a seat and answer for it whatever happens.

    Parameters
    ----------
    job : Job
    seat : WorkerSeat
        Its worker is used, made when there is none, and replaced when it dies.
    on_event : callable
        Gets events while they happen.
    """
    started = time.monotonic()
    peak = 0
    for attempt in range(job.attempt, job.attempt + seat.spec.retries + 1):
        is_retry = attempt > job.attempt
        try:
            outcome = seat.take(fresh=is_retry).run(replace(job, attempt=attempt), on_event)
        except _Gone as gone:
            outcome = _obituary(job, seat, gone, attempt)
        else:
            if is_retry or _may_be_spoilt(outcome):  # a retry has its worker for itself
                seat.drop()
        peak = max(peak, outcome.peak_rss_bytes)
        if outcome.status != "died":
            break
        error = outcome.error or {}
        on_event(
            {
                "event": "worker_died",
                "case_id": job.case_id,
                "attempt": attempt,
                "step": error.get("step"),
                "signal": error.get("signal"),
            }
        )
    seconds = round(time.monotonic() - started, 6)
    return replace(outcome, seconds=seconds, peak_rss_bytes=peak)


def _may_be_spoilt(outcome: Outcome) -> bool:
    """Tell whether the next case could suffer from how this one failed.

    A process that ran out of memory may hold on to most of it, and after an
    error of a CUDA kernel every later call in the process fails.
    """
    error = outcome.error or {}
    return error.get("kind") == "resource" or error.get("type") in _CUDA_ERRORS


def _obituary(job: Job, seat: WorkerSeat, gone: _Gone, attempt: int) -> Outcome:
    """Say how the process of a case ended."""
    worker = seat.worker
    if gone.error is not None and worker is not None:
        worker.kill()
    status = seat.drop()
    step = worker.step if worker else None
    peak = worker.peak_rss_bytes if worker else 0
    error = gone.error or _death(status, step, peak)
    place = f"step {step}" if step else None
    record = (error.at(place) if place else error).to_dict()
    record |= {"step": step, "type": type(error).__name__, "frames": []}
    if gone.error is None and status < 0:
        record["signal"] = _signal_name(-status)
    return Outcome(job.case_id, gone.status, error=record, peak_rss_bytes=peak, attempts=attempt)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def _death(status: int, step: str | None, peak: int) -> WorkerDied:
    size = f" (largest size seen {peak / 1e9:.2f} GB)" if peak else ""
    if status < 0:
        name = _signal_name(-status)
        hint = (
            "if memory ran out, run fewer --workers or set --memory-gb"
            if name == "SIGKILL"
            else "run this case alone with --debug"
        )
        return WorkerDied(f"its process was ended by {name}{size}", hint=hint)
    if step is None:
        return WorkerDied(
            f"its process ended with status {status} before the first step{size}",
            hint="run `medpipe doctor`, or this case alone with --debug",
        )
    return WorkerDied(
        f"its process ended with status {status}{size}", hint="run this case alone with --debug"
    )


def _too_slow(timeout_s: float | None) -> ResourceError:
    return ResourceError(
        "the case took too long and its process was killed",
        expected=None if timeout_s is None else f"at most {timeout_s:g} s",
        hint="raise --timeout-min, or look at this case alone",
    )


def _too_slow_to_start() -> ResourceError:
    return ResourceError(
        "its process was not ready in time and was killed",
        expected=f"at most {START_TIMEOUT_S:g} s",
        hint="the machine or its disk may be overloaded: run the same command again",
    )


def _too_large(spec: RunSpec) -> ResourceError:
    return ResourceError(
        "the case took too much memory and its process was killed",
        expected=f"at most {spec.memory_gb:g} GB",
        hint="raise --memory-gb, run fewer --workers, or choose a coarser spacing",
    )
