"""What a run shows while it works: a bar with the time left, counts and current steps."""

from __future__ import annotations

import sys
from typing import Protocol, Self

from medpipe.engine.protocol import Event, Outcome

__all__ = ["BarProgress", "NoProgress", "Progress", "choose_progress"]

_SHOWN = 4


class Progress(Protocol):
    """What `run_workflow` tells about."""

    def start(self, total: int, cached: int) -> None:
        """Begin with the number of cases and of those that need nothing."""

    def event(self, event: Event) -> None:
        """Something happened in a case."""

    def outcome(self, outcome: Outcome) -> None:
        """A case ended."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class NoProgress:
    """Shows nothing."""

    def start(self, total: int, cached: int) -> None:
        """Do nothing."""

    def event(self, event: Event) -> None:
        """Do nothing."""

    def outcome(self, outcome: Outcome) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class BarProgress:
    """A bar on the terminal (stderr)."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("cases", total=None, note="")
        self._now: dict[str, str] = {}
        self._counts = {"done": 0, "failed": 0, "cached": 0}
        self._told: set[str] = set()

    def start(self, total: int, cached: int) -> None:
        """Begin; cases that need nothing are not part of the bar, so the time left is right."""
        self._counts["cached"] = cached
        self._bar.update(self._task, total=total - cached)
        self._note()

    def event(self, event: Event) -> None:
        """Remember which step a case is in; show a notice once, whichever case it comes from."""
        if event["event"] == "step_started":
            self._now[str(event["case_id"])] = str(event["step"])
            self._note()
        elif event["event"] == "notice" and event["text"] not in self._told:
            self._told.add(str(event["text"]))
            self._bar.console.print(event["text"], highlight=False, markup=False)

    def outcome(self, outcome: Outcome) -> None:
        """Count a case."""
        self._now.pop(outcome.case_id, None)
        failed = outcome.status != "done"
        self._counts["failed" if failed else "done" if outcome.computed else "cached"] += 1
        self._bar.advance(self._task)
        self._note()

    def _note(self) -> None:
        counts = " ".join(f"{n} {name}" for name, n in self._counts.items() if n)
        steps = [f"{case}:{step}" for case, step in list(self._now.items())[:_SHOWN]]
        more = ["…"] if len(self._now) > _SHOWN else []
        self._bar.update(self._task, note="  ".join([counts, *steps, *more]))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def choose_progress(*, quiet: bool = False) -> Progress:
    """Return a bar when a person watches, else nothing."""
    return NoProgress() if quiet or not sys.stderr.isatty() else BarProgress()
