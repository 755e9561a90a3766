"""Which steps run: compared with a brute-force search over small workflows."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from medpipe.engine.schedule import Action, Schedule, WorkflowOutline, step_seeds
from medpipe.workflow.compiled import CompiledStep, CompiledWorkflow, InputSpec, QcSpec, SaveSpec

DIGESTS = {"x": "0" * 64}


def make(steps: list[CompiledStep]) -> CompiledWorkflow:
    return CompiledWorkflow("w", "1", "", {"x": InputSpec()}, tuple(steps))


def chain_step(i: int, reads: str, saved: bool, qc: bool = False, out: str = "") -> CompiledStep:
    out = out or f"v{i}"
    return CompiledStep(
        id=f"s{i}",
        use=f"u{i}",
        target="m:C",
        version="1",
        inputs=(reads,),
        outputs=(out,),
        save=(SaveSpec(out, f"{out}.nii"),) if saved else (),
        qc=QcSpec(out) if qc else None,
    )


def simulate(workflow: CompiledWorkflow, run: set[int], stored: set[int]) -> bool:
    """Tell whether running just `run` makes every result, given the stored ones."""
    values: set[str] = {"x"}
    for i, step in enumerate(workflow.steps):
        if i in run:
            if not set(step.keys_read()) <= values:
                return False
            values |= set(step.keys_written())
        else:
            values -= set(step.keys_written())
            if i in stored:
                values |= {s.key for s in step.save}
            elif WorkflowOutline(workflow).keeps[i]:
                return False
    return True


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_fewest_steps(data: st.DataObject) -> None:
    """The schedule is possible, and no smaller set of steps would do."""
    n = data.draw(st.integers(1, 5))
    steps, keys = [], ["x"]
    for i in range(n):
        reads = data.draw(st.sampled_from(keys))
        steps.append(chain_step(i, reads, saved=data.draw(st.booleans())))
        keys.append(f"v{i}")
    workflow = make(steps)
    outline = WorkflowOutline(workflow)
    schedule = outline.schedule(DIGESTS, {}, lambda _: False)
    candidates = [i for i in range(n) if outline.keeps[i]]
    stored = {i for i in candidates if data.draw(st.booleans())}
    there = {schedule.steps[i].key for i in stored}
    schedule = outline.schedule(DIGESTS, {}, there.__contains__)
    run = {i for i, s in enumerate(schedule.steps) if s.action is Action.RUN}
    assert simulate(workflow, run, stored)
    for smaller in range(len(run)):
        for subset in itertools.combinations(range(n), smaller):
            assert not simulate(workflow, set(subset), stored)
    assert schedule.complete == (not run)


def plan(workflow: CompiledWorkflow, stored: set[str], qc: str | None = None) -> Schedule:
    """Schedule with the objects of the steps in `stored` (``"qc s0"`` for a picture) there."""
    outline = WorkflowOutline(workflow, qc)
    empty = outline.schedule(DIGESTS, {}, lambda _: False)
    there = {s.key for s, c in zip(empty.steps, workflow.steps, strict=True) if c.id in stored}
    there |= {
        str(s.qc_key)
        for s, c in zip(empty.steps, workflow.steps, strict=True)
        if f"qc {c.id}" in stored
    }
    return outline.schedule(DIGESTS, {}, there.__contains__)


def test_in_place_steps_run_again_from_the_last_stored_value() -> None:
    steps = [
        chain_step(0, "x", saved=True, out="a"),
        chain_step(1, "a", saved=False, out="a"),
        chain_step(2, "a", saved=True, out="b"),
    ]
    schedule = plan(make(steps), {"s0"})
    assert [s.action for s in schedule.steps] == [Action.REUSE, Action.RUN, Action.RUN]
    assert schedule.steps[0].load == ("a",)
    assert [set(s.live) for s in schedule.steps] == [{"a"}, {"a"}, set()]


def test_a_missing_picture_loads_the_stored_image_and_runs_nothing() -> None:
    steps = [chain_step(0, "x", saved=True, qc=True), chain_step(1, "v0", saved=True)]
    assert plan(make(steps), {"s0", "s1", "qc s0"}, "1").complete
    schedule = plan(make(steps), {"s0", "s1"}, "1")
    assert not schedule.complete
    assert [s.action for s in schedule.steps] == [Action.REUSE, Action.REUSE]
    assert schedule.steps[0].draw
    assert schedule.steps[0].load == ("v0",)
    assert schedule.steps[1].load == ()


def test_a_new_way_to_draw_changes_no_other_key() -> None:
    steps = [chain_step(0, "x", saved=True, qc=True)]
    one, two = plan(make(steps), set(), "1"), plan(make(steps), set(), "2")
    assert one.steps[0].key == two.steps[0].key
    assert one.steps[0].qc_key != two.steps[0].qc_key


def test_a_check_at_the_end_is_remembered() -> None:
    """A step whose result nothing reads leaves an object, so it does not run again."""
    workflow = make([chain_step(0, "x", saved=False), chain_step(1, "v0", saved=False)])
    assert WorkflowOutline(workflow).keeps == [False, True]
    assert plan(workflow, {"s1"}).complete
    assert [s.action for s in plan(workflow, set()).steps] == [Action.RUN, Action.RUN]


def test_steps_of_an_absent_input_are_left_out() -> None:
    steps = (
        chain_step(0, "x", saved=True),
        chain_step(1, "m", saved=True, qc=True),
        chain_step(2, "v1", saved=True),
    )
    inputs = {"x": InputSpec(), "m": InputSpec(optional=True)}
    workflow = CompiledWorkflow("w", "1", "", inputs, steps)
    outline = WorkflowOutline(workflow, "1")
    schedule = outline.schedule({**DIGESTS, "m": None}, {}, lambda _: False)
    assert [s.absent for s in schedule.steps] == [False, True, True]
    assert [s.action for s in schedule.steps] == [Action.RUN, Action.SKIP, Action.SKIP]


def test_nothing_is_drawn_of_a_key_that_is_absent() -> None:
    both = CompiledStep(
        "s", "u", "m:C", "1", ("x", "m"), ("x", "m"), save=(SaveSpec("m", "m.nii"),), qc=QcSpec("m")
    )
    inputs = {"x": InputSpec(), "m": InputSpec(optional=True)}
    outline = WorkflowOutline(CompiledWorkflow("w", "1", "", inputs, (both,)), "1")
    for digest, missing in (("d", set()), (None, {"m"})):
        (todo,) = outline.schedule({**DIGESTS, "m": digest}, {}, lambda _: False).steps
        assert (todo.absent, todo.missing, todo.draw) == (False, missing, not missing)


def test_seeds_belong_to_case_and_step() -> None:
    step = CompiledStep("s", "u", "m:C", "1", ("x",), ("y",), random=True)
    workflow = make([step])
    seeds = {(r, c): step_seeds(workflow, r, c)["s"] for r in (0, 1) for c in ("a", "b")}
    assert len(set(seeds.values())) == 4
    assert step_seeds(make([chain_step(0, "x", saved=True)]), 0, "a") == {}
