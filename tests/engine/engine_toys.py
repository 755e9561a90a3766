"""Small workflows whose steps need no files of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from medpipe.workflow.compiled import CompiledStep


class Recorderd:
    """Adds a number to tables and images and remembers every call."""

    calls: list[str] = []  # noqa: RUF012 - shared on purpose
    masks: list[str | None] = []  # noqa: RUF012

    def __init__(self, keys: list[str], add: float = 0.0, mask: str | None = None) -> None:
        self.keys, self.add = keys, add
        Recorderd.masks.append(mask)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        out = dict(data)
        for key in self.keys:
            Recorderd.calls.append(key)
            value = out[key]
            if isinstance(value, str):
                value = {"value": float(Path(value).read_text())}
            if isinstance(value, dict):
                out[key] = {"value": value["value"] + self.add}
            else:
                value += self.add  # in place, as some transforms do
                out[key] = value
        return out


class Randomd(Recorderd):
    """Adds random numbers of its own generator and of the global ones."""

    def set_random_state(self, seed: int) -> None:
        import numpy

        self.own = numpy.random.default_rng(seed)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        import random

        import numpy

        out = dict(data)
        for key in self.keys:
            out[key] = {
                "own": float(self.own.random()),
                "numpy": float(numpy.random.rand()),  # noqa: NPY002
                "python": random.random(),
            }
        return out


class Breakingd(Recorderd):
    """Raises what its parameter says."""

    def __init__(self, keys: list[str], what: str = "ValueError") -> None:
        super().__init__(keys)
        self.what = what

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        if self.what == "torch memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        if self.what == "wrapped":
            from medpipe.errors import InputError

            try:
                raise InputError("a slice is missing", where="z = 12 mm", hint="mend it")
            except InputError as error:
                raise RuntimeError("applying transform <ZZCANARY>") from error
        raise {"ValueError": ValueError, "MemoryError": MemoryError}[self.what]("ZZCANARY")


class Continuingd(Recorderd):
    """Counts to three, fails after each number, and goes on where it was."""

    def set_checkpoints(self, folder: Path) -> None:
        self.file = folder / "count"

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        done = int(self.file.read_text()) if self.file.exists() else 0
        if done < 2:
            self.file.write_text(str(done + 1))
            raise ValueError
        return data | {key: {"value": done + 1} for key in self.keys}


class Pidd(Recorderd):
    """Gives the id of its process; fails when the text says so."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        text = Path(data["t"]).read_text()
        if text == "memory":
            raise MemoryError
        if text == "value":
            raise ValueError
        return data | {"t": {"pid": os.getpid()}}


def step(name: str, source: str, target: str, cls: str = "Recorderd", **more: Any) -> CompiledStep:
    """Return a compiled step of this module."""
    return CompiledStep(
        id=name,
        use=f"toy.{name}",
        target=cls if ":" in cls else f"engine_toys:{cls}",
        version=more.pop("version", "1"),
        inputs=(source,),
        outputs=(target,),
        **more,
    )
