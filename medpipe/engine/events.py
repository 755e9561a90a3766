"""The log of a run: one JSON object a line, in the order things happened."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import IO, Self

from medpipe.engine.protocol import Event

__all__ = ["EventLog"]


class EventLog:
    """Appends events to ``events.jsonl``.

    The log tells what happened and is not needed to resume, so a full disk
    stops the log and not the run: the cases report that themselves.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._started = time.time()
        self._file: IO[str] | None = None
        with contextlib.suppress(OSError):
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, event: Event) -> None:
        """Append one event with the seconds since the start of the run."""
        line = json.dumps({"t": round(time.time() - self._started, 3), **event})
        self._try(line + "\n")

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._try(None)

    def _try(self, text: str | None) -> None:
        if self._file is None:
            return
        try:
            if text is None:
                self._file.flush()
            else:
                self._file.write(text)
        except OSError:
            _close_quietly(self._file)
            self._file = None

    def close(self) -> None:
        """Close the file."""
        self.flush()
        if self._file is not None:
            _close_quietly(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_quietly(file: IO[str]) -> None:
    with contextlib.suppress(OSError):
        file.close()
