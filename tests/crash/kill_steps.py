"""Steps for the tests of the engine; most of them need no torch. Found through PYTHONPATH."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def note(case: str, step: str) -> None:
    """Append one line to the tally, whole also when two processes write at once."""
    fd = os.open(os.environ["KILL_TALLY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{case} {step}\n".encode())
    os.close(fd)


class _Step:
    def __init__(self, keys: list[str], allow_missing_keys: bool = False) -> None:
        self.keys = keys

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        out = dict(data)
        for key in self.keys:
            out[key] = self.one(out[key])
        return out

    def one(self, value: Any) -> Any:
        raise NotImplementedError


class Countd(_Step):
    """Path of a text file → its name and length; texts that are orders are obeyed."""

    def one(self, value: str) -> dict[str, Any]:
        text = Path(value).read_text()
        case = Path(value).stem
        note(case, "count")
        obey(text)
        return {"case": case, "letters": len(text)}


class Totald(_Step):
    """The table of `Countd` → a second table."""

    def one(self, value: dict[str, Any]) -> dict[str, Any]:
        note(value["case"], "total")
        return {"case": value["case"], "total": 2 * value["letters"]}


class Shiftd(_Step):
    """An image → the same image plus one (needs torch)."""

    def one(self, value: Any) -> Any:
        note(f"image{float(value.max()):.0f}", "shift")
        return value + 1.0


class Drawd(_Step):
    """A table → the same with random numbers of every generator a step may use."""

    random = True

    def set_random_state(self, seed: int) -> None:
        self.seed = seed

    def one(self, value: dict[str, Any]) -> dict[str, Any]:
        import random

        import numpy as np

        return value | {
            "own": self.seed,
            "python": random.random(),
            "numpy": float(np.random.rand()),  # noqa: NPY002 - what libraries do
        }


def obey(text: str) -> None:
    """Do what a text says if it is an order."""
    order = text.strip()
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "segfault":
        ctypes.string_at(0)
    elif order == "exit":
        os._exit(7)
    elif order == "sys-exit":
        raise SystemExit(7)
    elif order == "hang":
        time.sleep(600)
    elif order == "forks":
        if os.fork() == 0:
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "eat":
        hoard = []
        while True:
            hoard.append(b"x" * (16 << 20))
    elif order == "leak":
        raise ValueError("ZZCANARY^NAME born 19700101")
    elif order == "print":
        print("ZZCANARY^NAME", flush=True)
    elif order == "slow":
        time.sleep(0.5)
