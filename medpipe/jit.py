"""Compiled functions, kept on disk where a folder for them can be written.

The machine code lies beside the module, else in the user's cache folder (or in
``NUMBA_CACHE_DIR``). numba writes an index that names a file before it writes that
file, and counts files from 1: a process that is killed between the two, a full disk,
or two processes at once can leave the code of another version or type under the name
of this one. Here the name of a file is a digest of all that it depends on, so there is
no index and no such time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

try:
    import fcntl
except ImportError:  # where the system has none, processes do not wait for each other
    fcntl = None  # type: ignore[assignment]

__all__ = ["compiled", "compiled_fastmath"]

Function = TypeVar("Function", bound=Callable[..., Any])

PATIENCE_S = 120.0
"""How long a process waits for another that compiles the same, before it does so itself."""

_NOTICE = logging.getLogger("medpipe.notice")


def compiled(function: Function) -> Function:
    """Compile `function` with numba, without the interpreter lock.

    Only the first process that calls it waits for the compiler; others that call it
    meanwhile wait for that one. Where the machine code cannot be kept or read again,
    for whatever reason, every process compiles for itself.
    """
    return _kept(njit(nogil=True)(function), function)


def compiled_fastmath(function: Function) -> Function:
    """Compile as `compiled` does; sums may be taken in another order."""
    return _kept(njit(nogil=True, fastmath=True)(function), function)


def _kept(made: Any, function: Function) -> Function:
    """Give a compiled function its files."""
    # none where no folder can be written, or numba is told not to compile
    with contextlib.suppress(RuntimeError, OSError):
        made._cache = _DiskCache(function)
    return made


class _DiskCache(FunctionCache):
    """Machine code of one function on disk; what goes wrong there is never an error."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the machine code, or None: numba then compiles and calls `save_overload`."""
        found = self._read(sig, target_context)
        if found is None:
            _TURN.take(self, self._cache_path)
            found = self._read(sig, target_context)  # another process may have made it
            if found is not None:
                _TURN.give(self)
            else:
                _TURN.tell()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the machine code if that is possible."""
        try:
            super().save_overload(sig, data)
        except Exception:  # noqa: S110 - a full disk, a folder that may not be written any more
            pass
        finally:
            _TURN.give(self)

    def _read(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file is as good as none
            return None


class _Files(IndexDataCacheFile):
    """A file for every set of types, source and processor."""

    def save(self, key: Any, data: Any) -> None:
        """Write a file; another process sees all of it or nothing."""
        self._save_data(self._name(key), data)

    def load(self, key: Any) -> Any:
        """Return what the file holds, None where there is none."""
        try:
            return self._load_data(self._name(key))
        except FileNotFoundError:
            return None

    def _name(self, key: Any) -> str:
        text = repr((self._version, self._source_stamp, key))
        name = self._data_name(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16))
        return str(name)


class _Turn:
    """Lets one process of a machine compile at a time.

    numba compiles in one thread at a time, and a function with all that it calls: the
    turn belongs to the outermost function from the time it is missed until it is kept.
    """

    def __init__(self) -> None:
        self._owner: _DiskCache | None = None
        self._lock: int | None = None
        self._told = False

    def take(self, owner: _DiskCache, folder: str) -> None:
        """Wait for the turn; without one where the file system has no locks."""
        if fcntl is None or self._owner is not None:
            return
        self._owner = owner
        with contextlib.suppress(OSError):
            self._lock = os.open(os.path.join(folder, ".compiling"), os.O_RDWR | os.O_CREAT, 0o600)
            end = time.monotonic() + PATIENCE_S
            while time.monotonic() < end:
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    self.tell()
                    time.sleep(0.1)

    def give(self, owner: _DiskCache) -> None:
        """End the turn if it is that of `owner`; the system ends those of dead processes."""
        if self._owner is not owner:
            return
        if self._lock is not None:
            os.close(self._lock)
        self._owner = self._lock = None

    def tell(self) -> None:
        """Say once why nothing seems to happen."""
        if not self._told:
            self._told = True
            _NOTICE.info("compiling machine code; this happens once and may take a minute")


_TURN = _Turn()
