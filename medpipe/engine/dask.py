"""The dask executor: hands out cases to Dask workers, on one machine or on a cluster.

Dask is used as a distributor alone. A task is one case, sent to one named
worker; there it runs in a child process as with the local executor and
answers with a record of about a kilobyte, while results go to the store on
the shared file system. No more cases are out than there are workers, so a
worker that is lost is charged to its one case, which is sent out again.
"""

from __future__ import annotations

import contextlib
import queue
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from medpipe import __version__
from medpipe.engine.dask_cluster import JobOptions, connected, require_dask
from medpipe.engine.dask_worker import probe, run_case, stop_run
from medpipe.engine.pool.local import available_cores
from medpipe.engine.protocol import Job, OnEvent, Outcome, RunSpec
from medpipe.errors import ResourceError, UsageError, WorkerDied

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DaskExecutor", "JobOptions"]

POLL_S: Final = 0.5
FETCH_S: Final = 2.0
RESULT_TIMEOUT_S: Final = 60.0
"""A result is a kilobyte; when it does not come within this time, its worker counts as lost."""


class DaskExecutor:
    """Runs cases on the workers of a Dask scheduler.

    Parameters
    ----------
    scheduler : str, optional
        Address of a scheduler that runs already, with its workers, such as
        ``"tcp://head:8786"`` or ``"tls://head:8786"``.
    cluster : {"slurm", "pbs"}, optional
        Start a scheduler here, and workers as jobs of a batch system. Without
        either, workers are started on this machine.
    workers : int, optional
        Workers or jobs to start. Default: one per two cores here, four jobs
        on a batch system. With an address: as many as there are.
    gpus : list of int, optional
        For workers that share a machine with several GPUs: devices of each
        machine, counted among those a worker sees. Each case sees one of
        them. None leaves CUDA_VISIBLE_DEVICES as the batch system set it.
    per_gpu : int
        Workers that share one GPU.
    job : JobOptions, optional
        What a job asks for.
    start_timeout_s : float, optional
        How long to wait for a first worker. Default: a minute, and without
        end on a batch system, where jobs wait in a queue.

    Raises
    ------
    UsageError
        If the extra is not installed or an argument is wrong.
    """

    def __init__(
        self,
        scheduler: str | None = None,
        *,
        cluster: Literal["slurm", "pbs"] | None = None,
        workers: int | None = None,
        gpus: Sequence[int] | None = None,
        per_gpu: int = 1,
        job: JobOptions | None = None,
        start_timeout_s: float | None = None,
    ) -> None:
        if scheduler is not None and (cluster is not None or "://" not in scheduler):
            raise UsageError(
                "the Dask scheduler is given by its address alone",
                expected="an address such as tcp://head:8786, and no --cluster",
            )
        if (workers is not None and workers < 1) or per_gpu < 1:
            raise UsageError("a run needs at least one worker", got=f"{workers}")
        if cluster is not None and gpus is not None:
            raise UsageError("GPUs of a job are part of its options", hint="set JobOptions.gpus")
        require_dask(jobqueue=cluster is not None)
        self.scheduler = scheduler or cluster or "local"
        self.job = job or JobOptions()
        self.seats = [g for g in gpus for _ in range(per_gpu)] if gpus is not None else None
        self._wanted = workers or (4 if cluster else max(1, available_cores() // 2))
        self._start_timeout_s = start_timeout_s
        if start_timeout_s is None and cluster is None:
            self._start_timeout_s = 60.0

    @property
    def workers(self) -> int:
        """Number of workers asked for, or of those the given scheduler has now."""
        if "://" not in self.scheduler:
            return self._wanted
        with connected(self.scheduler, 0, self.job) as client:
            return len(_worker_info(client))

    def run(
        self, jobs: Iterable[Job], spec: RunSpec, on_event: OnEvent | None = None
    ) -> Iterator[Outcome]:
        """Run every job and yield one outcome for each, in the order they end.

        Raises
        ------
        UsageError
            If no worker comes up, or none can be used.
        ResourceError
            If the scheduler is lost during the run.
        """
        with connected(self.scheduler, self._wanted, self.job) as client:
            dispatch = _Dispatch(client, spec, self.seats, on_event, self._start_timeout_s)
            try:
                yield from dispatch.go(iter(jobs))
            finally:
                dispatch.stop()


def _worker_info(client: Client) -> dict[str, dict[str, Any]]:
    """Return what the scheduler knows of each worker, by address."""
    try:
        return dict(client.scheduler_info(n_workers=-1)["workers"])
    except (OSError, TimeoutError, RuntimeError):
        raise _scheduler_lost() from None


def _scheduler_lost() -> ResourceError:
    return ResourceError(
        "the connection to the Dask scheduler was lost",
        hint="start it again, then run the same command: finished cases are kept",
    )


@dataclass(slots=True)
class _Seat:
    """A Dask worker that takes cases."""

    address: str
    host: str
    threads: int
    gpus: list[int] | None
    resources: dict[str, float] | None
    job: Job | None = None
    future: Future | None = None


@dataclass(slots=True)
class _Dispatch:
    """The state of one run: which worker has which case."""

    client: Client
    spec: RunSpec
    gpus: list[int] | None
    on_event: OnEvent | None
    start_timeout_s: float | None
    seats: dict[str, _Seat] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    again: deque[Job] = field(default_factory=deque)
    losses: dict[str, int] = field(default_factory=dict)
    done: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    looked: float = 0.0

    def go(self, jobs: Iterator[Job]) -> Iterator[Outcome]:
        """Hand out jobs as workers are free; yield outcomes as they come."""
        started = time.monotonic()
        exhausted = False
        while True:
            yield from self._look()
            for seat in [s for s in self.seats.values() if s.job is None]:
                job = self.again.popleft() if self.again else None
                if job is None and not exhausted:
                    job = next(jobs, None)
                    exhausted = job is None
                if job is not None:
                    self._send(seat, job)
            busy = any(seat.job for seat in self.seats.values())
            if not busy and exhausted and not self.again:
                return
            if not self.seats:
                self._check_start(time.monotonic() - started)
            with contextlib.suppress(queue.Empty):
                yield from self._finished(self.done.get(timeout=POLL_S))

    def _look(self) -> Iterator[Outcome]:
        """Take in new workers and notice those that are gone."""
        if time.monotonic() - self.looked < POLL_S:
            return
        if self.client.status != "running":
            raise _scheduler_lost()
        info = _worker_info(self.client)
        self.looked = time.monotonic()
        for address in set(self.seats) - set(info):
            seat = self.seats.pop(address)
            if seat.job is not None:
                yield from self._lost(seat)
        for address in sorted(set(info) - set(self.seats) - set(self.refused)):
            self._admit(address, info[address])

    def _admit(self, address: str, info: dict[str, Any]) -> None:
        host = str(info.get("host", ""))
        gpus = None
        if self.gpus is not None:
            free = list(self.gpus)
            for seat in self.seats.values():
                for taken in seat.gpus or () if seat.host == host else ():
                    free.remove(taken)
            if self.gpus and not free:
                return  # more workers on the machine than GPU slots
            gpus = free[:1]
        answer = self.client.run(probe, self.spec.out, workers=[address], on_error="return")
        if isinstance(answer.get(address), OSError):
            return  # it went away, or is not up yet: the next look tells
        reason = _refusal(answer.get(address))
        if reason is not None:
            self.refused[address] = reason
            self._tell({"event": "worker_refused", "reason": reason})
            return
        shared = (info.get("resources") or {}).get("GPU")
        resources = {"GPU": 1.0} if shared else None
        threads = int(info.get("nthreads", 1))
        self.seats[address] = _Seat(address, host, threads, gpus, resources)

    def _check_start(self, waited_s: float) -> None:
        if self.refused and len(self.refused) >= len(_worker_info(self.client)):
            raise UsageError("no Dask worker can be used", got=next(iter(self.refused.values())))
        if self.start_timeout_s is not None and waited_s > self.start_timeout_s:
            raise UsageError(
                "no Dask worker has come up",
                got=f"none after {self.start_timeout_s:g} s",
                hint="start workers with `dask worker <address>`",
            )

    def _send(self, seat: _Seat, job: Job) -> None:
        # The key is random: Dask shows keys in logs and on its dashboard.
        future = self.client.submit(
            run_case,
            job.to_dict(),
            self.spec.to_dict(),
            seat.threads,
            seat.gpus,
            key=f"medpipe-{uuid.uuid4().hex}",
            workers=[seat.address],
            allow_other_workers=False,
            resources=seat.resources,
            pure=False,
            retries=0,
        )
        seat.job, seat.future = job, future
        address = seat.address
        future.add_done_callback(lambda _: self.done.put(address))

    def _finished(self, address: str) -> Iterator[Outcome]:
        """Take the answer of a worker, or notice that there will be none."""
        seat = self.seats.get(address)
        if seat is None or seat.future is None or not seat.future.done():
            return  # an echo of a case that was given up
        record = self._fetch(seat.future, address)
        if record is not None:
            seat.job = seat.future = None
            yield Outcome.from_dict(record)
            return
        del self.seats[address]
        yield from self._lost(seat)

    def _fetch(self, future: Future, address: str) -> dict[str, Any] | None:
        """Return the answer of a worker, None when it was lost before or with its answer."""
        deadline = time.monotonic() + RESULT_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                return future.result(timeout=FETCH_S)
            except TimeoutError:
                if address not in _worker_info(self.client):
                    return None
            except Exception:  # `run_case` never raises: the worker ended, or was told to
                return None
        return None

    def _lost(self, seat: _Seat) -> Iterator[Outcome]:
        """Send the case of a lost worker out again, or give it up."""
        job, future = seat.job, seat.future
        assert job is not None  # noqa: S101 - asked by the caller
        if future is not None:
            with contextlib.suppress(Exception):
                future.cancel(force=True)
        seat.job = seat.future = None
        self.losses[job.case_id] = self.losses.get(job.case_id, 0) + 1
        self._tell(
            {
                "event": "worker_died",
                "case_id": job.case_id,
                "attempt": job.attempt,
                "step": None,
                "signal": None,
            }
        )
        if self.losses[job.case_id] <= self.spec.retries:
            self.again.append(replace(job, attempt=job.attempt + 1))
            return
        error = WorkerDied(
            "the Dask worker that ran it was lost",
            got=f"{self.losses[job.case_id]} workers lost",
            hint="see the log of the job: memory, wall time; or run this case alone",
        )
        record = error.to_dict() | {"step": None, "type": "WorkerDied", "frames": []}
        yield Outcome(job.case_id, "died", error=record, attempts=job.attempt)

    def _tell(self, event: dict[str, Any]) -> None:
        if self.on_event is not None:
            self.on_event(event)

    def stop(self) -> None:
        """Kill every child process that the run has on the workers."""
        for seat in self.seats.values():
            if seat.future is not None:
                with contextlib.suppress(Exception):
                    seat.future.cancel(force=True)
        if self.seats and self.client.status == "running":
            with contextlib.suppress(Exception):
                present = set(_worker_info(self.client)) & set(self.seats)
                self.client.run(
                    stop_run, self.spec.run_id, workers=sorted(present), on_error="ignore"
                )


def _refusal(answer: Any) -> str | None:
    """Return why a worker that was probed cannot take cases."""
    if not isinstance(answer, dict):
        return "medpipe cannot be imported on a worker"
    if answer["version"] != __version__:
        return f"a worker has medpipe {answer['version']}, this machine has {__version__}"
    if not answer["sees_out"]:
        return "a worker does not see the output folder; it must be on a shared file system"
    return None
