"""The local executor keeps its contract with real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from engine_toys import step

from medpipe.engine.pool.local import LocalExecutor
from medpipe.engine.protocol import Event, Job, RunSpec
from medpipe.workflow.compiled import CompiledWorkflow, InputSpec

WORKFLOW = CompiledWorkflow(
    "w", "1", "", {"x": InputSpec("file")}, (step("a", "x", "t", makes="table"),)
)


def _workers() -> list[psutil.Process]:
    """Return the worker processes of this process; other tests may have left other children."""
    return [
        child for child in psutil.Process().children() if "medpipe.engine.child" in child.cmdline()
    ]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return RunSpec(str(tmp_path / "out"), WORKFLOW.to_dict(), "r", device="cpu", recycle_after=5)


def jobs(folder: Path, n: int, asked: list[int]) -> Iterator[Job]:
    for i in range(n):
        path = folder / f"{i}.txt"
        path.write_text(str(i))
        asked.append(i)
        yield Job(f"c{i}", {"x": str(path)})


def test_lazy_complete_and_recycled(tmp_path: Path, spec: RunSpec) -> None:
    asked: list[int] = []
    events: list[Event] = []
    done: list[str] = []
    for outcome in LocalExecutor(2).run(jobs(tmp_path, 24, asked), spec, events.append):
        done.append(outcome.case_id)
        assert outcome.status == "done"
        assert len(asked) - len(done) <= 2
    assert sorted(done) == sorted(f"c{i}" for i in range(24))
    started = [e["case_id"] for e in events if e["event"] == "step_started"]
    assert sorted(map(str, started)) == sorted(done)
    assert not _workers()


def test_closing_kills_the_workers(tmp_path: Path, spec: RunSpec) -> None:
    asked: list[int] = []
    outcomes = LocalExecutor(2).run(jobs(tmp_path, 100, asked), spec)
    next(outcomes)
    assert len(_workers()) == 2
    outcomes.close()  # type: ignore[attr-defined]
    assert not _workers()
    assert len(asked) <= 4


def test_no_jobs_start_no_process(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medpipe.engine.pool.local.WorkerSeat.take", lambda *_: pytest.fail("!"))
    assert list(LocalExecutor(2).run(iter(()), spec)) == []


def test_an_error_of_the_caller_reaches_the_caller(tmp_path: Path, spec: RunSpec) -> None:
    """A generator of jobs that raises ends the run, workers included."""

    def broken() -> Iterator[Job]:
        yield from jobs(tmp_path, 3, [])
        raise KeyError("x")

    with pytest.raises(KeyError):
        list(LocalExecutor(2).run(broken(), spec))
    assert not _workers()


def test_a_worker_that_ran_out_of_memory_is_replaced(tmp_path: Path, spec: RunSpec) -> None:
    """After any other failure it stays warm."""
    steps = (step("p", "x", "t", cls="Pidd", makes="table"),)
    workflow = CompiledWorkflow("w", "1", "", {"x": InputSpec("file")}, steps)
    texts = ["a", "value", "b", "memory", "c"]
    jobs = []
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
        jobs.append(Job(text, {"x": str(tmp_path / f"{i}.txt")}))
    spec = replace(spec, workflow=workflow.to_dict(), recycle_after=100)
    outcomes = list(LocalExecutor(1).run(jobs, spec))
    assert [o.status for o in outcomes] == ["done", "failed", "done", "failed", "done"]
    pids = {}
    for name in "abc":
        record = json.loads((tmp_path / "out" / "cases" / name / "case.json").read_bytes())
        pids[name] = record["tables"]["t"]["pid"]
    assert pids["a"] == pids["b"] != pids["c"]


def test_a_worker_that_never_gets_ready_is_given_up(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a run without a time limit for cases."""
    monkeypatch.setattr("medpipe.engine.pool.worker.START_TIMEOUT_S", 0.0)
    (outcome,) = LocalExecutor(1).run(jobs(tmp_path, 1, []), replace(spec, timeout_s=None))
    assert outcome.status == "timeout"
    assert outcome.error is not None
    assert "was not ready in time" in outcome.error["message"]
    assert not _workers()


def test_a_signal_without_a_name_is_told_by_its_number(tmp_path: Path, spec: RunSpec) -> None:
    (tmp_path / "signal_steps.py").write_text(
        "import os, signal\n"
        "class Endd:\n"
        "    def __init__(self, keys): pass\n"
        "    def __call__(self, data): os.kill(os.getpid(), signal.SIGRTMIN + 3)\n"
    )
    steps = (step("e", "x", "t", cls="signal_steps:Endd", makes="table"),)
    workflow = CompiledWorkflow("w", "1", "", {"x": InputSpec("file")}, steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        spec = replace(spec, workflow=workflow.to_dict(), retries=0)
        (outcome,) = LocalExecutor(1).run(jobs(tmp_path, 1, []), spec)
    assert outcome.status == "died"
    assert outcome.error is not None
    assert outcome.error["signal"] == "signal 37"
