"""What happens inside a Dask worker: its one case runs in a child process of our own.

The Dask worker itself never runs a step. A case that dies takes its child
with it and nothing else, exactly as with the local executor. No function here
raises: Dask would log the arguments of the task, and these hold paths.
"""

from __future__ import annotations

import os
import queue
import threading
from dataclasses import replace
from typing import Any

from medpipe import __version__
from medpipe.engine.pool.local import LocalExecutor
from medpipe.engine.pool.worker import WorkerSeat, run_supervised
from medpipe.engine.protocol import Event, Job, Outcome, RunSpec, Slot
from medpipe.errors import MedpipeError, WorkerDied

__all__ = ["probe", "run_case", "stop_run"]

_SERVERS: dict[tuple[str, str], _CaseServer] = {}
_LOCK = threading.Lock()


class _CaseServer:
    """A thread with a warm child process behind it.

    The child is killed when the thread that started it ends, and the threads
    of a Dask worker come and go: hence a thread of its own.
    """

    def __init__(self, spec: RunSpec, slot: Slot) -> None:
        self.seat = WorkerSeat(spec, slot)
        self._jobs: queue.SimpleQueue[tuple[Job, queue.SimpleQueue[Outcome]] | None]
        self._jobs = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while (message := self._jobs.get()) is not None:
            job, reply = message
            events: list[Event] = []
            try:
                outcome = run_supervised(job, self.seat, events.append)
            except BaseException as error:
                outcome = _unable(job, error)
            reply.put(replace(outcome, events=[*outcome.events, *events]))
        self.seat.drop()

    def run(self, job: Job) -> Outcome:
        """Run one case and wait for its outcome."""
        reply: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._jobs.put((job, reply))
        return reply.get()

    def stop(self) -> None:
        """Kill the child, and end the thread."""
        self.seat.kill()
        self._jobs.put(None)


def _unable(job: Job, error: BaseException) -> Outcome:
    """Return the outcome of a case whose child process could not even be started."""
    if not isinstance(error, MedpipeError):
        error = WorkerDied(
            "the Dask worker could not start a process for the case",
            got=type(error).__name__,
            hint="run `medpipe doctor` on that machine",
        )
    record = error.to_dict() | {"step": None, "type": type(error).__name__, "frames": []}
    return Outcome(job.case_id, "died", error=record, attempts=job.attempt)


def _server(spec: RunSpec, threads: int, gpus: list[int] | None) -> _CaseServer:
    key = (spec.run_id, repr(gpus))
    with _LOCK:
        server = _SERVERS.get(key)
        if server is None:
            # The index counts among the devices that the batch system gave to this worker.
            slot = LocalExecutor(1, gpus=gpus).slots[0]
            server = _SERVERS[key] = _CaseServer(spec, replace(slot, threads=threads))
        return server


def run_case(
    job: dict[str, Any], spec: dict[str, Any], threads: int, gpus: list[int] | None
) -> dict[str, Any]:
    """Run one case in the child process of this Dask worker.

    Parameters
    ----------
    job, spec : dict
        `Job.to_dict()` and `RunSpec.to_dict()`.
    threads : int
        Threads that the child may use.
    gpus : list of int or None
        The one device to use, counted among those this worker sees; an empty
        list hides them; None leaves them as they are.

    Returns
    -------
    dict
        `Outcome.to_dict()` with the events of the case: about a kilobyte. The
        results are in the store.
    """
    one = Job.from_dict(job)
    try:
        outcome = _server(RunSpec.from_dict(spec), threads, gpus).run(one)
    except BaseException as error:
        outcome = _unable(one, error)
    return outcome.to_dict()


def stop_run(run_id: str) -> None:
    """Kill the children that this worker has for a run."""
    with _LOCK:
        for key in [key for key in _SERVERS if key[0] == run_id]:
            _SERVERS.pop(key).stop()


def probe(out: str) -> dict[str, Any]:
    """Say whether this worker can take cases."""
    return {"version": __version__, "sees_out": os.path.isdir(out)}
