"""A bar for each stage of a long command; lines where no person watches."""

from __future__ import annotations

from typing import Any

from medpipe.cli.output import console

__all__ = ["StageBar"]


class StageBar:
    """Shows one stage after the other on stderr, each with its time.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    """

    def __init__(self, quiet: bool) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.screen = console(stderr=True)
        self.lines = not quiet and not self.screen.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[beside]}"), TimeElapsedColumn(),
            TimeRemainingColumn(compact=True), console=self.screen,
            disable=quiet or not self.screen.is_terminal,
        )  # fmt: skip
        self.task: Any = None
        self.at: Any = None

    def __enter__(self) -> StageBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.bar.stop()

    def stage(self, name: str) -> None:
        """Begin a stage; the one before has ended."""
        self._end()
        self.task, self.at = self.bar.add_task(name, total=None, beside=""), None
        if self.lines:
            self.screen.print(name, markup=False, soft_wrap=True)

    def training(self, at: Any) -> None:
        """Show how far a training of this stage is: a `medpipe.train.Progress`."""
        self.at = at
        self.bar.update(
            self.task, total=at.iterations, completed=at.iteration, beside=f"loss {at.loss:.3f}"
        )

    def _end(self) -> None:
        if self.task is None:
            return
        done = 1 if self.at is None else self.at.iteration
        self.bar.update(self.task, total=done, completed=done)
        if self.at is not None and self.lines:
            said = f"  {done} of {self.at.iterations} iterations, loss {self.at.loss:.3f}, "
            self.screen.print(f"{said}{self.at.seconds:.0f} s", markup=False, soft_wrap=True)
        self.task = None
