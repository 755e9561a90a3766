"""The event log, the progress bar, tables as CSV, limits."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medpipe.engine.events import EventLog
from medpipe.engine.limits import process_start
from medpipe.engine.progress import BarProgress, NoProgress, choose_progress
from medpipe.engine.protocol import Outcome
from medpipe.engine.tables import table_csv


def test_event_log(tmp_path: Path) -> None:
    with EventLog(tmp_path / "e.jsonl") as log:
        log.write({"event": "a", "n": 1})
        log.write({"event": "b"})
    lines = [json.loads(x) for x in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [x["event"] for x in lines] == ["a", "b"]
    assert lines[0]["n"] == 1
    assert 0 <= lines[0]["t"] <= lines[1]["t"] < 60


def test_a_full_disk_stops_the_log_and_nothing_else() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with EventLog(Path("/dev/full")) as log:
        for _ in range(10_000):
            log.write({"event": "x" * 10})
        log.flush()
        log.write({"event": "after"})


def test_a_log_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:  # a folder is in its place
        log.write({"event": "planned"})
        log.flush()


def test_progress_counts() -> None:
    bar = BarProgress()
    with bar:
        bar.start(total=5, cached=1)
        bar.event({"event": "step_started", "case_id": "c1", "step": "load"})
        (task,) = bar._bar.tasks
        assert (task.total, task.fields["note"]) == (4, "1 cached  c1:load")
        bar.outcome(Outcome("c1", "done", computed=2))
        bar.outcome(Outcome("c2", "died"))
        bar.outcome(Outcome("c3", "done", computed=0))
        assert task.completed == 3
        assert task.fields["note"] == "1 done 1 failed 2 cached"
    assert isinstance(choose_progress(quiet=True), NoProgress)


def read(table: dict[str, object]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table_csv(table))))


def test_a_notice_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    with BarProgress() as bar:
        bar.start(total=2, cached=0)
        for case in ("c1", "c2"):
            bar.event({"event": "notice", "case_id": case, "step": "cut", "text": "compiling [x]"})
    assert capsys.readouterr().err.count("compiling [x]") == 1


def test_tables_as_csv() -> None:
    labels = {"1": {"ml": 2.5, "box": [1, 2]}, "2": {"ml": None, "mean": {"hu": 40}}}
    assert read(labels) == [  # type: ignore[arg-type]
        {"name": "1", "ml": "2.5", "box": "[1, 2]", "mean.hu": ""},
        {"name": "2", "ml": "", "box": "", "mean.hu": "40"},
    ]
    assert read({"a": 1, "b": {"c": -2.5}}) == [{"a": "1", "b.c": "-2.5"}]
    assert read({"a": "=cmd|x"}) == [{"a": "'=cmd|x"}]


def test_start_of_a_process_tells_processes_apart() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(process.pid)
    assert start is not None
    assert start == process_start(process.pid)
    if sys.platform == "linux":
        assert start >= (process_start(os.getpid()) or 0)
    process.communicate(b"\n")
    assert process_start(process.pid) is None
