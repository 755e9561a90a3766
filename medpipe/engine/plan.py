"""What a run would do, without doing it: no input is read and no step is imported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from medpipe.engine.case import qc_version
from medpipe.engine.protocol import Job
from medpipe.engine.provenance import case_folder, read_case_record
from medpipe.engine.publish import is_current
from medpipe.engine.schedule import Action, WorkflowOutline, step_seeds
from medpipe.engine.store import Store
from medpipe.errors import InputError, UsageError
from medpipe.io.case import Case
from medpipe.io.digests import DigestCache, InputDigest, fingerprint_input
from medpipe.workflow.compiled import CompiledWorkflow

__all__ = ["CasePlan", "CaseStatus", "Planner", "RunPlan", "in_shard", "plan_run"]


class CaseStatus(StrEnum):
    """What is known about one case before the run.

    ``CACHED``: every result exists and is shown. ``PENDING``: something is
    missing. ``UNKNOWN``: the inputs were never read, or changed since.
    """

    CACHED = "cached"
    PENDING = "pending"
    UNKNOWN = "unknown"


def in_shard(case_id: str, shard: tuple[int, int] | None) -> bool:
    """Tell whether a case belongs to shard ``(k, n)``, k = 1 … n.

    The case id alone decides, so every job of an array agrees without talking.
    """
    if shard is None:
        return True
    k, n = shard
    if not 1 <= k <= n:
        raise UsageError("no such shard", expected="k/n with 1 <= k <= n", got=f"{k}/{n}")
    return int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8], "big") % n == k - 1


@dataclass(frozen=True, slots=True)
class CasePlan:
    """What a run would do for one case.

    Attributes
    ----------
    case_id : str
    status : CaseStatus
    steps : tuple of str
        Ids of the steps that would run; all of them when the status is unknown.
    input_bytes : int
        Size of the inputs, 0 when they cannot be seen.
    """

    case_id: str
    status: CaseStatus
    steps: tuple[str, ...] = ()
    input_bytes: int = 0


@dataclass(slots=True)
class RunPlan:
    """What a run would do.

    Attributes
    ----------
    cases : list of CasePlan
        Those of the shard.
    other_shards : int
        Number of cases that belong to other shards.
    disk_bytes : int
        Rough size of what would be written: the size of the inputs once for
        every image that is saved.
    """

    cases: list[CasePlan] = field(default_factory=list)
    other_shards: int = 0
    disk_bytes: int = 0

    def count(self, status: CaseStatus) -> int:
        """Return the number of cases with a status."""
        return sum(case.status == status for case in self.cases)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "counts": {s.value: self.count(s) for s in CaseStatus},
            "other_shards": self.other_shards,
            "disk_bytes": self.disk_bytes,
            "cases": [
                {"case_id": c.case_id, "status": c.status.value, "steps": list(c.steps)}
                for c in self.cases
            ],
        }


class Planner:
    """Looks at one case after the other.

    Parameters
    ----------
    workflow : CompiledWorkflow
    out : Path
        The output folder, which may be absent; it is not touched.
    cache : DigestCache
    seed : int
        Seed of the run.
    """

    def __init__(
        self, workflow: CompiledWorkflow, out: Path, cache: DigestCache, seed: int = 0
    ) -> None:
        self.workflow, self.out, self.cache, self.seed = workflow, Path(out), cache, seed
        self.outline = WorkflowOutline(workflow, qc_version(workflow))
        self.store = Store(self.out)
        self._all_steps = tuple(s.id for s in workflow.steps)

    def look(self, case: Case) -> tuple[CasePlan, dict[str, InputDigest]]:
        """Return the plan of one case and the digests of its inputs that are known."""
        digests: dict[str, str | None] = {}
        known: dict[str, InputDigest] = {}
        size, complete = 0, True
        for name, spec in self.workflow.inputs.items():
            path = case.inputs.get(name)
            digests[name] = None
            if path is None:
                complete = complete and spec.optional
                continue
            try:
                mark = fingerprint_input(path, as_images=spec.as_images)
            except InputError:  # the worker reports it, as a failure of this case alone
                complete = False
                continue
            size += mark.bytes
            found = self.cache.get(mark.value)
            if found is None:
                complete = False
                continue
            known[name], digests[name] = found, found.digest
        if not complete:
            return CasePlan(case.case_id, CaseStatus.UNKNOWN, self._all_steps, size), known
        return self._compare(case.case_id, digests, size), known

    def _compare(self, case_id: str, digests: dict[str, str | None], size: int) -> CasePlan:
        """Compare what a case needs with what the store has."""
        seeds = step_seeds(self.workflow, self.seed, case_id)
        schedule = self.outline.schedule(digests, seeds, self.store.has)
        if schedule.complete:
            folder = case_folder(self.out, case_id)
            record = read_case_record(folder)
            if record is not None and is_current(record, folder, self.outline, schedule):
                return CasePlan(case_id, CaseStatus.CACHED, (), size)
        pairs = zip(self._all_steps, schedule.steps, strict=True)
        steps = tuple(name for name, todo in pairs if todo.action is Action.RUN)
        return CasePlan(case_id, CaseStatus.PENDING, steps, size)


def jobs_of(
    planner: Planner,
    cases: Iterable[Case],
    wanted: Iterator[bool] | None = None,
    on_cached: Callable[[], None] = lambda: None,
) -> Iterator[Job]:
    """Yield the jobs of the cases that are not cached, one at a time.

    Parameters
    ----------
    planner : Planner
    cases : iterable of Case
    wanted : iterator of bool, optional
        For each case whether it has to run, from an earlier look.
    on_cached : callable, optional
        Called for each wanted case that another run finished since that look.
    """
    for case in cases:
        if wanted is not None and not next(wanted):
            continue
        plan, known = planner.look(case)
        if plan.status is CaseStatus.CACHED:
            on_cached()
        else:
            yield Job(case.case_id, dict(case.inputs), {n: d.to_dict() for n, d in known.items()})


def plan_run(
    workflow: CompiledWorkflow,
    cases: Iterable[Case],
    out: Path,
    *,
    seed: int = 0,
    shard: tuple[int, int] | None = None,
) -> RunPlan:
    """Return what `medpipe.engine.run.run_workflow` would do, without touching the disk.

    Parameters
    ----------
    workflow : CompiledWorkflow
    cases : iterable of Case
    out : Path
        The output folder, which may be absent.
    seed : int
        Seed of the run.
    shard : (int, int), optional
        ``(k, n)``: the k-th of n parts.
    """
    plan = RunPlan()
    images = max(1, sum(len(s.save) for s in workflow.steps if s.makes in ("volume", "labels")))
    with DigestCache(Path(out) / "digests.sqlite", create=False) as cache:
        planner = Planner(workflow, out, cache, seed)
        for case in cases:
            if not in_shard(case.case_id, shard):
                plan.other_shards += 1
                continue
            looked, _ = planner.look(case)
            plan.cases.append(looked)
            if looked.status is not CaseStatus.CACHED:
                plan.disk_bytes += looked.input_bytes * images
    return plan
