"""The local executor: worker processes of this machine, each with its own GPU slot."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from medpipe.engine.pool.worker import WorkerSeat, run_supervised
from medpipe.engine.protocol import Event, Job, OnEvent, Outcome, RunSpec, Slot
from medpipe.errors import UsageError

__all__ = ["LocalExecutor", "available_cores"]

_Message: TypeAlias = Event | Outcome | BaseException


def available_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_name(index: int) -> str:
    """Return what CUDA_VISIBLE_DEVICES must hold for one of the visible devices."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return str(index)
    visible = [name for name in names.split(",") if name.strip()]
    if not visible:  # as a scheduler sets it for a job without GPUs
        raise UsageError(
            "no GPU is visible",
            got="an empty CUDA_VISIBLE_DEVICES",
            hint="unset it, ask the scheduler for a GPU, or use --device cpu",
        )
    if not 0 <= index < len(visible):
        raise UsageError("no such GPU", expected=f"an index below {len(visible)}", got=str(index))
    return visible[index]


class LocalExecutor:
    """Runs cases in worker processes of this machine.

    Parameters
    ----------
    workers : int, optional
        Default: one per GPU slot, or one per two cores without GPUs.
    gpus : list of int, optional
        Devices to use, counted among those that are visible (a scheduler may
        have set CUDA_VISIBLE_DEVICES). Each worker sees one of them alone.
        None leaves the variable as it is; an empty list hides every GPU.
    per_gpu : int
        Workers that share one GPU.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        gpus: Sequence[int] | None = None,
        per_gpu: int = 1,
    ) -> None:
        seats = len(gpus) * per_gpu if gpus else None
        if workers is None:
            workers = seats or max(1, available_cores() // 2)
        if workers < 1 or per_gpu < 1:
            raise UsageError("a run needs at least one worker", got=f"{workers}")
        if seats is not None and workers > seats:
            raise UsageError(
                "more workers than GPU slots",
                expected=f"at most {seats}",
                got=f"{workers}",
                hint="raise --per-gpu if the GPU's memory holds several cases",
            )
        self._workers = workers
        threads = max(1, available_cores() // workers)
        names = [_gpu_name(g) for g in gpus or () for _ in range(per_gpu)]
        hidden = "" if gpus is not None else None
        self.slots = [Slot(i, threads, names[i] if names else hidden) for i in range(workers)]

    @property
    def workers(self) -> int:
        """Number of cases that run at the same time."""
        return self._workers

    def run(
        self, jobs: Iterable[Job], spec: RunSpec, on_event: OnEvent | None = None
    ) -> Iterator[Outcome]:
        """Run every job and yield one outcome for each, in the order they end.

        Workers start with the first job, one thread of the driver stands
        behind each; events and outcomes come back to the caller's thread.
        """
        inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        outbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        seats = [WorkerSeat(spec, slot) for slot in self.slots]
        threads: list[threading.Thread] = []
        waiting = iter(jobs)
        in_flight = 0
        try:
            while True:
                while in_flight < self._workers and (job := next(waiting, None)) is not None:
                    if len(threads) < min(in_flight + 1, self._workers):
                        arguments = (seats[len(threads)], outbox, inbox)
                        threads.append(threading.Thread(target=_serve, args=arguments, daemon=True))
                        threads[-1].start()
                    outbox.put(job)
                    in_flight += 1
                if in_flight == 0:
                    return
                message = inbox.get()
                if isinstance(message, BaseException):
                    raise message
                if isinstance(message, Outcome):
                    in_flight -= 1
                    yield message
                elif on_event is not None:
                    on_event(message)
        finally:
            for _ in threads:
                outbox.put(None)
            if in_flight:
                for seat in seats:
                    seat.kill()
            for thread in threads:
                thread.join()


def _serve(
    seat: WorkerSeat, jobs: queue.SimpleQueue[Job | None], replies: queue.SimpleQueue[_Message]
) -> None:
    """Run jobs in the worker of one seat until None comes."""
    try:
        while (job := jobs.get()) is not None:
            replies.put(run_supervised(job, seat, replies.put))
    except BaseException as error:
        replies.put(error)
    finally:
        seat.drop()
