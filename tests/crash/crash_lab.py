"""A folder with inputs, a driver process, and what it left behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent


@dataclass
class Lab:
    """Inputs, an output folder and ways to run, kill and look."""

    root: Path

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"

    @property
    def tally(self) -> Path:
        return self.root / "tally"

    def write_cases(self, texts: dict[str, str]) -> None:
        """Write one text file for each case."""
        self.inputs.mkdir(exist_ok=True)
        for name, text in texts.items():
            (self.inputs / f"{name}.txt").write_text(text)

    def start(self, out: str, *options: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a driver."""
        path = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
        return subprocess.Popen(
            [sys.executable, HERE / "drive.py", self.root / out, self.inputs, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "KILL_TALLY": str(self.tally)} | env,
        )

    def run(self, out: str, *options: str, **env: str) -> dict[str, Any]:
        """Run a driver to its end and return its summary."""
        with self.start(out, *options, **env) as process:
            stdout, stderr = process.communicate(timeout=120)
        assert stdout, stderr.decode()
        summary: dict[str, Any] = json.loads(stdout)
        assert process.returncode == summary["exit_code"]
        summary["printed"] = stdout + stderr
        return summary

    def counts(self) -> Counter[str]:
        """Return how often each step of each case was begun, and forget it."""
        text = self.tally.read_text() if self.tally.exists() else ""
        self.tally.unlink(missing_ok=True)
        return Counter(text.splitlines())

    def wait_for_lines(self, n: int) -> None:
        """Wait until `n` steps were begun."""
        wait_until(lambda: self.tally.exists() and self.tally.read_text().count("\n") >= n)

    def tree(self, out: str) -> dict[str, str]:
        """Return name → hash of every file in the store."""
        root = self.root / out / "store"
        return {
            str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(root.rglob("*"))
            if p.is_file()
        }

    def leftovers(self, out: str) -> list[Path]:
        """Return temporary files and folders that are still there."""
        root = self.root / out
        return [*root.glob("store/.tmp/*"), *root.glob("cases/*/.tmp-*")]

    def record(self, out: str, case_id: str) -> dict[str, Any]:
        """Return the record of a case."""
        record: dict[str, Any] = json.loads(
            (self.root / out / "cases" / case_id / "case.json").read_bytes()
        )
        return record


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a condition holds; fail when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def kill_driver(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal to a driver and check that its workers end with it."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate(timeout=30)
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert len(gone) == len(children)
