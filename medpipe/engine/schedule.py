"""Which steps of one case must run, and which results are read from the store.

The same answer is needed twice: by the driver, which must not load torch to
find out that nothing is left to do, and by the worker. It follows from keys
alone: going from the last step to the first, a step runs when its result is
missing or when something after it needs a value that the store does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from medpipe.seeds import derive_seed
from medpipe.workflow.compiled import CompiledStep, CompiledWorkflow, qc_key, step_keys

__all__ = ["Action", "Schedule", "StepSchedule", "WorkflowOutline", "step_seeds"]


class Action(StrEnum):
    """What happens to one step of one case."""

    RUN = "run"
    REUSE = "reuse"
    SKIP = "skip"


@dataclass(slots=True)
class StepSchedule:
    """What happens to one step of one case.

    Attributes
    ----------
    key : str
        Content key of its result.
    action : Action
        ``REUSE``: its result is in the store. ``SKIP``: nothing needs it, or
        its optional inputs are absent.
    load : tuple of str
        Keys whose values are read from the store after this step.
    qc_key : str or None
        Content key of its picture.
    draw : bool
        Whether the picture must be drawn.
    absent : bool
        Whether the step has no input in this case.
    missing : frozenset of str
        Keys that the step would write, had the case all of its optional inputs.
    live : frozenset of str
        Keys that something later needs; all others may leave the memory.
    """

    key: str
    action: Action = Action.SKIP
    load: tuple[str, ...] = ()
    qc_key: str | None = None
    draw: bool = False
    absent: bool = False
    missing: frozenset[str] = frozenset()
    live: frozenset[str] = field(default_factory=frozenset)


@dataclass(slots=True)
class Schedule:
    """What happens to every step of one case."""

    steps: list[StepSchedule]

    @property
    def complete(self) -> bool:
        """Whether the store holds every result and picture of the case."""
        return not any(s.draw or s.action is Action.RUN for s in self.steps)


def step_seeds(workflow: CompiledWorkflow, run_seed: int, case_id: str) -> dict[str, int]:
    """Return the seed of every random step of one case."""
    return {s.id: derive_seed(run_seed, case_id, s.id) for s in workflow.steps if s.random}


class WorkflowOutline:
    """What can be known about a workflow before any case.

    Parameters
    ----------
    workflow : CompiledWorkflow
    qc_version : str, optional
        Version of the pictures; None means that no pictures are drawn.
    """

    def __init__(self, workflow: CompiledWorkflow, qc_version: str | None = None) -> None:
        self.workflow = workflow
        self.qc_version = qc_version
        self.digest = workflow.digest()
        self.keeps = self._find_keepers()
        self._keepers = {s.id for s, keeps in zip(workflow.steps, self.keeps, strict=True) if keeps}

    def keeps_object(self, step: CompiledStep) -> bool:
        """Tell whether a step leaves an object in the store."""
        return step.id in self._keepers

    def _find_keepers(self) -> list[bool]:
        """Tell which steps leave an object in the store.

        Those that save a file, those that make a table (it goes into the case
        record), and those whose result nothing reads: a check at the end of a
        workflow is remembered to have passed.
        """
        keeps = []
        wanted: set[str] = set()
        for step in reversed(self.workflow.steps):
            written = set(step.keys_written())
            is_leaf = not written & wanted and step.qc is None
            keeps.append(bool(step.save) or step.makes == "table" or is_leaf)
            wanted = (wanted - written) | set(step.keys_read())
        return keeps[::-1]

    @staticmethod
    def loadable(step: CompiledStep) -> frozenset[str]:
        """Return the keys whose values the object of a step holds."""
        saved = {s.key for s in step.save}
        if step.makes == "table":
            saved |= set(step.outputs)
        return frozenset(saved)

    def _qc_keys(self, keys: list[str], digests: Mapping[str, str | None]) -> list[str | None]:
        bound: dict[str, str | None] = dict(digests)
        result: list[str | None] = []
        for step, key in zip(self.workflow.steps, keys, strict=True):
            for name in step.keys_written():
                bound[name] = f"{key}/{name}"
            if step.qc is None or self.qc_version is None:
                result.append(None)
            else:
                overlay = bound.get(step.qc.overlay) if step.qc.overlay else None
                result.append(qc_key(step, key, overlay, self.qc_version))
        return result

    def _mark_absent(self, plan: list[StepSchedule], digests: Mapping[str, str | None]) -> None:
        """Note which steps have none of their inputs, and which keys the others do not write."""
        present = {name for name, digest in digests.items() if digest is not None}
        for step, todo in zip(self.workflow.steps, plan, strict=True):
            todo.absent = not any(name in present for name in step.inputs)
            for source, target in zip(step.inputs, step.outputs, strict=True):
                if source not in present:
                    present.discard(target)
                else:
                    present.add(target)
            if not todo.absent:
                present |= set(step.writes.values())
            todo.missing = frozenset(step.keys_written()) - present
            if step.qc is not None and step.qc.key not in present:
                todo.qc_key = None

    def schedule(
        self,
        digests: Mapping[str, str | None],
        seeds: Mapping[str, int],
        has: Callable[[str], bool],
    ) -> Schedule:
        """Return what happens to one case.

        Parameters
        ----------
        digests : dict
            Input name → content digest, None when the input is absent.
        seeds : dict
            From `step_seeds`.
        has : callable
            Tells whether the store holds the object of a key.
        """
        workflow = self.workflow
        keys = step_keys(workflow, digests, seeds)
        pictures = self._qc_keys(keys, digests)
        plan = [StepSchedule(key, qc_key=qc) for key, qc in zip(keys, pictures, strict=True)]
        self._mark_absent(plan, digests)
        needed: set[str] = set()
        for i in range(len(plan) - 1, -1, -1):
            step, todo = workflow.steps[i], plan[i]
            todo.live = frozenset(needed)
            if todo.absent:
                needed -= set(step.outputs)
                continue
            if step.qc is not None and todo.qc_key is not None and not has(todo.qc_key):
                todo.draw = True
                needed |= {step.qc.key} | ({step.qc.overlay} if step.qc.overlay else set())
            wanted = (needed & set(step.keys_written())) - todo.missing
            exists = self.keeps[i] and has(todo.key)
            loadable = self.loadable(step) if exists else frozenset()
            if (self.keeps[i] and not exists) or wanted - loadable:
                todo.action = Action.RUN
                needed = (needed - set(step.keys_written())) | set(step.keys_read())
            elif exists:
                todo.action = Action.REUSE
                needed -= wanted | todo.missing
            # Also after running again: the values that travel on are the stored ones.
            todo.load = tuple(sorted(wanted & loadable))
        return Schedule(plan)
