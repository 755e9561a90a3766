"""Where a step keeps what it has done so far, until its result is stored."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Self

from medpipe import __version__
from medpipe.engine.owners import Owner
from medpipe.errors import StoreError

__all__ = ["Unfinished"]

_COPY = "-copy"
"""Ends the name of what is not all there yet."""


class Unfinished:
    """A folder for the checkpoints of one result, which outlives the process that writes it.

    Enter it around computing and storing: it is removed at the end, and kept if that fails.
    ``.unfinished/<version>-<key>/<host>-<pid>-<start>``: the key says what the result is made
    of, so what lies there continues nothing else; another version of medpipe begins anew.

    Parameters
    ----------
    store : Path
        Root of the store.
    key : str
        Of the result.
    owner : Owner
        This process.
    """

    def __init__(self, store: Path, key: str, owner: Owner) -> None:
        self.root = store / ".unfinished" / f"{__version__}-{key}"
        self._owner = owner
        self._own = self.root / owner.name
        self._claimed = False

    def claim(self) -> Path:
        """Return a folder of this process, with what another has left of the same result.

        What a dead process left is taken over. Of one that may live, on another machine, a
        copy is taken: both then do the same work, and neither disturbs the other.

        Raises
        ------
        StoreError
            If the disk is full or the folder cannot be written.
        """
        self._claimed = True
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not self._own.exists() and not self._take_over():
                self._own.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(
                "the folder of unfinished results cannot be written",
                got=f"{type(error).__name__}: {os.strerror(error.errno or 0)}",
                hint="free disk space or check the folder's permissions, then run the same command",
            ) from error
        return self._own

    def _take_over(self) -> bool:
        """Begin with the newest of the folders of others; return whether there was one."""
        for entry in sorted(os.scandir(self.root), key=_written, reverse=True):
            alive = self._owner.lives(entry.name)
            if alive or entry.name.endswith(_COPY):
                continue
            # another process may take it over in the same moment
            with contextlib.suppress(FileNotFoundError, shutil.Error):
                whole = entry.path
                if alive is None:
                    whole = shutil.copytree(entry.path, f"{self._own}{_COPY}")
                os.rename(whole, self._own)
                return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove it if the result is stored, or if nothing was done."""
        if not self._claimed:
            return
        with contextlib.suppress(OSError):
            if kind is None:
                self._remove_all()
            else:
                self._own.rmdir()
            self.root.rmdir()
            self.root.parent.rmdir()

    def _remove_all(self) -> None:
        """Remove what this process has kept, and what dead ones left of the same result."""
        for entry in list(os.scandir(self.root)):
            mine = entry.name.removesuffix(_COPY) == self._owner.name
            if mine or self._owner.left(entry):
                shutil.rmtree(entry.path, ignore_errors=True)


def _written(entry: os.DirEntry[str]) -> float:
    """Return when something was last put there; a folder that is gone comes last."""
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0
