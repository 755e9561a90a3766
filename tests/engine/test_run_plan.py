"""Planning, shards, the sum of a run, and the lazy handing out of jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_toys import Recorderd, step

from medpipe.engine.case import CaseRunner
from medpipe.engine.plan import CaseStatus, in_shard, plan_run
from medpipe.engine.pool.local import LocalExecutor
from medpipe.engine.protocol import Event, Job, OnEvent, Outcome, RunSpec
from medpipe.engine.run import Failure, RunSummary, run_workflow
from medpipe.errors import UsageError
from medpipe.io.case import Case
from medpipe.workflow.compiled import CompiledWorkflow, InputSpec, SaveSpec

STEPS = (
    step("a", "x", "t", makes="table", save=(SaveSpec("t", "t.json"),)),
    step("b", "t", "u", makes="table", params={"add": 1.0}),
)
WORKFLOW = CompiledWorkflow("w", "1", "", {"x": InputSpec("file")}, STEPS)


class InProcess:
    """Runs cases here, one at a time, and counts how many jobs it has taken."""

    workers = 1

    def __init__(self, after: Callable[[int], None] = lambda _: None) -> None:
        self.taken: list[str] = []
        self.after = after

    def run(
        self, jobs: Iterable[Job], spec: RunSpec, on_event: OnEvent | None = None
    ) -> Iterator[Outcome]:
        runner = CaseRunner(spec, on_event or (lambda _: None))
        for job in jobs:
            self.taken.append(job.case_id)
            yield runner.run(job)
            self.after(len(self.taken))


@pytest.fixture
def cases(tmp_path: Path, recorder: type[Recorderd]) -> list[Case]:
    """Twenty files that were written an hour ago."""
    found = []
    for i in range(20):
        path = tmp_path / f"{i}.txt"
        path.write_text(str(i))
        os.utime(path, (time.time() - 3600,) * 2)
        found.append(Case(f"c{i:02d}", {"x": str(path)}, f"PATIENT{i}", {"name": "ZZCANARY"}))
    return found


def statuses(cases: list[Case], out: Path, workflow: CompiledWorkflow = WORKFLOW) -> list[str]:
    return [c.status.value for c in plan_run(workflow, cases, out).cases]


def test_plan_before_during_and_after(cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = plan_run(WORKFLOW, cases, out)
    assert {c.status for c in before.cases} == {CaseStatus.UNKNOWN}
    assert before.cases[0].steps == ("a", "b")
    assert before.disk_bytes == sum(len(str(i)) for i in range(20))
    assert not out.exists()  # planning touches nothing

    summary = run_workflow(WORKFLOW, cases[:5], out, executor=InProcess())
    assert (summary.total, summary.done, summary.cached, summary.exit_code) == (5, 5, 0, 0)
    assert statuses(cases, out) == ["cached"] * 5 + ["unknown"] * 15

    other = CompiledWorkflow("w", "2", "", WORKFLOW.inputs, (STEPS[0], step("b2", "t", "v")))
    plan = plan_run(other, cases[:5], out)
    assert [c.steps for c in plan.cases] == [("b2",)] * 5

    os.remove(out / "cases" / "c01" / "t.json")  # shown no more
    Path(str(cases[2].inputs["x"])).write_text("9")  # another input
    os.remove(str(cases[3].inputs["x"]))
    assert statuses(cases[:5], out) == ["cached", "pending", "unknown", "unknown", "cached"]
    summary = run_workflow(WORKFLOW, cases[:5], out, executor=InProcess())
    assert (summary.done, summary.cached, summary.exit_code) == (1, 3, 3)
    (failure,) = summary.failed
    assert (failure.case_id, failure.step) == ("c03", None)
    assert "cannot be opened" in failure.message
    assert (out / "cases" / "c01" / "t.json").exists()


def test_nothing_to_do_starts_nothing(cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_workflow(WORKFLOW, cases, out, executor=InProcess())
    executor = InProcess()
    summary = run_workflow(WORKFLOW, cases, out, executor=executor)
    assert (summary.cached, executor.taken) == (20, [])
    # No module that takes long is loaded to find that out.
    code = (
        "import sys, json; from pathlib import Path; from medpipe.engine.plan import plan_run;"
        "from medpipe.engine.run import run_workflow; from medpipe.io.case import Case;"
        "from medpipe.engine.pool.local import LocalExecutor;"
        "from medpipe.workflow.compiled import CompiledWorkflow;"
        "w = CompiledWorkflow.from_dict(json.loads(sys.argv[1]));"
        "cases = [Case(f'c{i:02d}', {'x': f'{sys.argv[3]}/{i}.txt'}) for i in range(20)];"
        "s = run_workflow(w, cases, Path(sys.argv[2]), executor=LocalExecutor(2));"
        "assert s.cached == 20, s;"
        "assert not {'torch', 'monai', 'nibabel', 'pydicom'} & set(sys.modules)"
    )
    arguments = [json.dumps(WORKFLOW.to_dict()), out, tmp_path]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)


def test_shards_are_a_partition(cases: list[Case], tmp_path: Path) -> None:
    parts = [{c.case_id for c in cases if in_shard(c.case_id, (k, 3))} for k in (1, 2, 3)]
    assert sorted(set.union(*parts)) == [c.case_id for c in cases]
    assert sum(map(len, parts)) == len(cases)
    assert all(parts)
    plan = plan_run(WORKFLOW, cases, tmp_path / "out", shard=(2, 3))
    assert {c.case_id for c in plan.cases} == parts[1]
    assert plan.other_shards == 20 - len(parts[1])
    executor = InProcess()
    run_workflow(WORKFLOW, cases, tmp_path / "out", executor=executor, shard=(2, 3))
    assert set(executor.taken) == parts[1]
    with pytest.raises(UsageError, match="no such shard"):
        in_shard("c", (4, 3))


def test_cases_are_asked_for_when_they_are_needed(cases: list[Case], tmp_path: Path) -> None:
    """The driver never holds more cases than are in flight."""
    asked: list[str] = []

    class Lazy(Collection[Case]):
        def __len__(self) -> int:
            return len(cases)

        def __iter__(self) -> Iterator[Case]:
            for case in cases:
                asked.append(case.case_id)
                yield case

        def __contains__(self, case: object) -> bool:
            return case in cases

    ahead: list[int] = []
    executor = InProcess(lambda n: ahead.append(len(asked) - len(cases) - n))
    summary = run_workflow(WORKFLOW, Lazy(), tmp_path / "out", executor=executor)
    assert summary.done == 20
    assert ahead == [0] * 20


def test_records_of_a_run(cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = run_workflow(WORKFLOW, cases[:3], out, executor=InProcess(), seed=5)
    folder = out / "runs" / summary.run_id
    run = json.loads((folder / "run.json").read_bytes())
    assert (run["status"], run["seed"], run["summary"]["done"]) == ("finished", 5, 3)
    assert run["workflow"]["digest"] == WORKFLOW.digest()
    assert next(iter(summary.to_dict())) == "failed"
    events: list[Event] = [
        json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()
    ]
    assert [e["event"] for e in events].count("step_started") == 6
    assert [e["case_id"] for e in events if e["event"] == "case_finished"] == ["c00", "c01", "c02"]
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (b"ZZCANARY", b"PATIENT", str(tmp_path).encode()):
                assert secret not in content, path


def test_exit_codes(cases: list[Case], tmp_path: Path) -> None:
    boom = CompiledWorkflow(
        "boom", "1", "", WORKFLOW.inputs, (step("boom", "x", "t", cls="Breakingd"),)
    )
    summary = run_workflow(boom, cases[:3], tmp_path / "out", executor=InProcess())
    assert (len(summary.failed), summary.exit_code) == (3, 4)
    assert summary.to_dict()["exit_code"] == 4
    wrong = Failure("c1", "failed", "usage", "fit", "a setting is wrong", None, 0.1, 0, 1)
    assert RunSummary([wrong], total=1).exit_code == 2
    assert RunSummary([wrong, replace(wrong, kind="input")], total=2).exit_code == 4
    assert RunSummary([wrong], total=2, done=1).exit_code == 3
    assert RunSummary(interrupted="SIGTERM").exit_code == 143
    assert run_workflow(boom, [], tmp_path / "out", executor=InProcess()).exit_code == 0


@pytest.mark.parametrize(
    "limit", [{"retries": -1}, {"timeout_s": -60.0}, {"memory_gb": -1.0}, {"device": "gpu"}]
)
def test_options_that_cannot_be_meant_are_refused(tmp_path: Path, limit: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run_workflow(WORKFLOW, [], tmp_path / "out", executor=InProcess(), **limit)
    assert not (tmp_path / "out").exists()


def test_cases_that_another_run_finishes_meanwhile_are_counted(
    cases: list[Case], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def other(taken: int) -> None:
        if taken == 1:
            run_workflow(WORKFLOW, cases[1:], out, executor=InProcess())

    executor = InProcess(after=other)
    summary = run_workflow(WORKFLOW, cases, out, executor=executor)
    assert executor.taken == ["c00"]
    assert (summary.total, summary.done, summary.cached, summary.failed) == (20, 1, 19, [])


@pytest.mark.parametrize("moment", ["remove_leftovers", "flush"])
def test_a_signal_outside_the_cases_is_an_interruption_too(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The second ctrl-C, sent with the first, changes nothing."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(f"medpipe.engine.run.Store.{moment}", interrupt)
    summary = run_workflow(WORKFLOW, cases[:2], tmp_path / "out", executor=InProcess())
    assert (summary.interrupted, summary.exit_code) == ("SIGINT", 130)
    (record,) = (tmp_path / "out" / "runs").glob("*/run.json")
    assert json.loads(record.read_bytes())["status"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker sees one GPU, of those that are visible."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    executor = LocalExecutor(gpus=[0, 3], per_gpu=2)
    assert [s.gpu for s in executor.slots] == ["0", "0", "3", "3"]
    assert [s.gpu for s in LocalExecutor(2, gpus=[]).slots] == ["", ""]
    assert [s.gpu for s in LocalExecutor(1).slots] == [None]
    with pytest.raises(UsageError, match="more workers than GPU slots"):
        LocalExecutor(3, gpus=[0])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    assert [s.gpu for s in LocalExecutor(gpus=[1, 0]).slots] == ["GPU-abc", "5"]
    with pytest.raises(UsageError, match="no such GPU"):
        LocalExecutor(gpus=[2])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a job without GPUs takes none from others
    with pytest.raises(UsageError, match="no GPU is visible"):
        LocalExecutor(gpus=[0])
    assert [s.gpu for s in LocalExecutor(1, gpus=[]).slots] == [""]


def test_the_environment_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has its GPU and its share of the cores in its environment from the start."""
    (tmp_path / "look_steps.py").write_text(
        "import os\n"
        "class Lookd:\n"
        "    def __init__(self, keys): self.keys = keys\n"
        "    def __call__(self, data):\n"
        "        names = ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS', 'OMP_WAIT_POLICY')\n"
        "        return {**data, 't': {n: os.environ.get(n) for n in names}}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    (tmp_path / "x.txt").write_text("1")
    look = step("look", "x", "t", cls="look_steps:Lookd", makes="table")
    workflow = CompiledWorkflow("w", "1", "", {"x": InputSpec("file")}, (look,))
    executor = LocalExecutor(1, gpus=[7])
    case = Case("c1", {"x": str(tmp_path / "x.txt")})
    summary = run_workflow(workflow, [case], tmp_path / "out", executor=executor, device="cpu")
    assert summary.exit_code == 0, summary
    record = json.loads((tmp_path / "out" / "cases" / "c1" / "case.json").read_bytes())
    assert record["tables"]["t"] == {
        "CUDA_VISIBLE_DEVICES": "7",
        "OMP_NUM_THREADS": str(executor.slots[0].threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # workers that wait leave their cores to the others
    }
