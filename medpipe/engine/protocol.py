"""What crosses the border between the driver and the processes that run cases.

Everything here is plain JSON, so that it travels over a pipe, a scheduler or
a file. An executor takes jobs lazily and gives outcomes in any order:

>>> for outcome in executor.run(jobs, spec, on_event=events.append):  # doctest: +SKIP
...     record(outcome)

Contract of `Executor.run`
- it pulls a job only when a worker is free, so the driver's memory does not
  grow with the number of cases;
- exactly one outcome per job, whatever happens to the process that ran it;
- at most one case in flight per worker process, so that a dead process is
  charged to its case and to no other;
- a case whose process died is tried again `spec.retries` times, each time in
  a fresh process that ran nothing before, and then reported as ``died``;
- closing the iterator kills every process it started.

`medpipe.engine.pool.worker.run_supervised` does all of this for a single job
and is what an executor on a remote machine calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeAlias

from medpipe.types import Json

__all__ = ["Event", "Executor", "Job", "OnEvent", "Outcome", "RunSpec", "Slot"]

Event: TypeAlias = dict[str, Json]
"""``{"event": name, "case_id": ..., ...}``, e.g. ``step_started`` with ``step``."""

OnEvent: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What is the same for every case of a run; sent once to each worker.

    Attributes
    ----------
    out : str
        Absolute path of the output folder, the same on every machine.
    workflow : dict
        `CompiledWorkflow.to_dict()`.
    run_id : str
        Name of the folder under ``runs/``.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        As for `medpipe.device.choose_device`, inside the worker.
    seed : int
        Seed of the run; those of the steps are derived from it.
    timeout_s : float or None
        Wall-clock seconds one attempt at a case may take.
    memory_gb : float or None
        Memory (10^9 bytes) one worker may take.
    retries : int
        How often a case whose process died is tried again.
    recycle_after : int
        A worker is replaced after this many cases.
    debug : bool
        Let workers print, with texts of foreign exceptions, which may hold patient data.
    """

    out: str
    workflow: Mapping[str, Any]
    run_id: str
    device: str = "auto"
    seed: int = 0
    timeout_s: float | None = None
    memory_gb: float | None = None
    retries: int = 1
    recycle_after: int = 1000
    debug: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> RunSpec:
        """Rebuild what `to_dict` described."""
        return cls(**record)


@dataclass(frozen=True, slots=True)
class Job:
    """One case to run.

    Attributes
    ----------
    case_id : str
    inputs : dict
        Input name → absolute path, None when an optional input is absent.
    known : dict
        Input name → `medpipe.io.digests.InputDigest.to_dict()` where the driver has it; used
        when the files are still the ones it was made from.
    attempt : int
        1 for the first attempt.
    """

    case_id: str
    inputs: Mapping[str, str | None]
    known: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    attempt: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Job:
        """Rebuild what `to_dict` described."""
        return cls(**record)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job.

    Attributes
    ----------
    status : {"done", "failed", "died", "timeout"}
        ``failed``: a step raised. ``died``: the process ended without an
        answer, also on retry. ``timeout``: it was killed after ``timeout_s``.
    computed : int
        Number of steps that were run; 0 for a ``done`` case whose results all existed.
    error : dict or None
        `MedpipeError.to_dict()` with ``step``, ``type`` and ``frames``.
    seconds : float
        Wall-clock time of all attempts.
    peak_rss_bytes : int
        Largest resident memory of the process while it ran this case.
    attempts : int
    digests : dict
        Input name → `InputDigest.to_dict()`, for the driver's cache.
    events : list of dict
        Events that were not delivered through ``on_event`` while they happened.
    """

    case_id: str
    status: str
    computed: int = 0
    error: Mapping[str, Any] | None = None
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    attempts: int = 1
    digests: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Outcome:
        """Rebuild what `to_dict` described."""
        return cls(**record)


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one worker: its number, its share of the cores, its GPU.

    Attributes
    ----------
    index : int
    threads : int
        Threads that torch, OpenMP and BLAS may use.
    gpu : str or None
        Value of CUDA_VISIBLE_DEVICES; ``""`` hides every GPU, None leaves it as it is.
    """

    index: int = 0
    threads: int = 1
    gpu: str | None = None


class Executor(Protocol):
    """Runs jobs somewhere; see the contract at the top of this module."""

    @property
    def workers(self) -> int:
        """Number of cases that run at the same time."""

    def run(
        self, jobs: Iterable[Job], spec: RunSpec, on_event: OnEvent | None = None
    ) -> Iterator[Outcome]:
        """Run every job and yield one outcome for each, in the order they end."""
