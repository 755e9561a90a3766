"""A case that dies, hangs, eats memory or prints names harms no other case."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from crash_lab import Lab

GOOD = {f"c{i}": f"text {i}" for i in range(8)}


@pytest.fixture(scope="module")
def summary_and_lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Lab]:
    """One run with every kind of bad case between the good ones."""
    lab = Lab(tmp_path_factory.mktemp("bad"))
    orders = ("kill", "forks", "segfault", "exit", "sys-exit", "hang", "eat", "leak", "print")
    lab.write_cases(GOOD | {f"bad-{order}": order for order in orders})
    return lab.run("out", "timeout=4", "memory=0.5"), lab


def failure(summary: dict[str, Any], case_id: str) -> dict[str, Any]:
    (found,) = [f for f in summary["failed"] if f["case_id"] == case_id]
    return found


def test_all_others_finish(summary_and_lab: tuple[dict[str, Any], Lab]) -> None:
    summary, lab = summary_and_lab
    assert summary["done"] == len(GOOD) + 1  # one only prints
    assert len(summary["failed"]) == 8
    assert summary["exit_code"] == 3
    for case_id in GOOD:
        assert lab.record("out", case_id)["status"] == "done"
    assert not lab.leftovers("out")


@pytest.mark.parametrize(
    ("order", "status", "attempts", "text"),
    [
        ("kill", "died", 2, "ended by SIGKILL"),
        # A process that it forked keeps the pipe open after its death.
        ("forks", "died", 2, "ended by SIGKILL"),
        ("segfault", "died", 2, "ended by SIGSEGV"),
        ("exit", "died", 2, "ended with status 7"),
        ("sys-exit", "failed", 1, "SystemExit was raised"),
        ("hang", "timeout", 1, "took too long and its process was killed; expected at most 4 s"),
        ("eat", "failed", 1, "not enough memory"),
        ("leak", "failed", 1, "ValueError was raised"),
    ],
)
def test_report(
    summary_and_lab: tuple[dict[str, Any], Lab], order: str, status: str, attempts: int, text: str
) -> None:
    summary, lab = summary_and_lab
    found = failure(summary, f"bad-{order}")
    assert (found["status"], found["attempts"]) == (status, attempts)
    assert found["step"] == "count"
    assert found["message"].startswith("step count: ")
    assert text in found["message"]
    assert found["hint"]
    assert found["peak_rss_bytes"] > 5e6
    record = lab.record("out", f"bad-{order}")
    assert record["status"] == "failed"
    assert record["error"]["step"] == "count"
    if order == "eat":
        assert 0.3e9 < found["peak_rss_bytes"] < 0.6e9


def test_each_death_is_tried_once_more_and_nothing_else_is(
    summary_and_lab: tuple[dict[str, Any], Lab],
) -> None:
    _, lab = summary_and_lab
    counts = lab.counts()
    deadly = {f"bad-{order} count" for order in ("kill", "forks", "segfault", "exit")}
    assert {line for line, n in counts.items() if n == 2} == deadly
    assert {n for line, n in counts.items() if line not in deadly} == {1}


def test_frames_without_texts(summary_and_lab: tuple[dict[str, Any], Lab]) -> None:
    """The frames say where the exception came from, and its text is nowhere."""
    summary, lab = summary_and_lab
    error = lab.record("out", "bad-leak")["error"]
    assert error["type"] == "ValueError"
    assert error["frames"][-1].startswith("kill_steps.py:")
    assert error["frames"][-1].endswith(" obey")
    written = [p.read_bytes() for p in (lab.root / "out").rglob("*") if p.is_file()]
    written += [gzip.decompress(w) for w in written if w[:2] == b"\x1f\x8b"]
    for content in [*written, summary["printed"]]:
        assert b"ZZCANARY" not in content
        assert b"19700101" not in content
        assert str(lab.inputs).encode() not in content


def test_a_rerun_tries_only_the_failed(summary_and_lab: tuple[dict[str, Any], Lab]) -> None:
    _, lab = summary_and_lab
    (lab.inputs / "bad-hang.txt").write_text("mended")
    for order in ("kill", "forks", "segfault", "exit", "sys-exit", "eat", "leak"):
        (lab.inputs / f"bad-{order}.txt").unlink()
    lab.counts()
    summary = lab.run("out")
    assert (summary["done"], summary["cached"], summary["exit_code"]) == (1, len(GOOD) + 1, 0)
    assert set(lab.counts()) == {"bad-hang count", "bad-hang total"}
    assert lab.record("out", "bad-hang")["error"] is None
