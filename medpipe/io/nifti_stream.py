"""Opening one file safely and reading exact numbers of bytes from it, gzip or not.

Only the standard library is used. A NIfTI file is refused here for what it is
as a file (a pipe, a folder, cut short, damaged, too large once decompressed);
what its header claims is checked in `medpipe.io.checks`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medpipe.errors import InputError

__all__ = ["GZIP_MAGIC", "ByteStream", "open_regular"]

GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_IN = 1 << 17
_CHUNK_OUT = 1 << 20
_MAX_EMPTY_MEMBERS = 1000

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def _refuse_kind(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    got = next((name for test, name in _KINDS if test(mode)), "something else")
    raise InputError(
        "the input is not a regular file",
        expected="a file or a link to one",
        got=got,
        hint="give the path of the image file itself",
    )


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turn the operating system's refusals into errors that quote no path."""
    try:
        yield
    except OSError as error:
        raise InputError(
            "the input file cannot be opened or read",
            got=os.strerror(error.errno) if error.errno else type(error).__name__,
            hint="check that the path exists, where its links lead and that it is readable",
        ) from error
    except ValueError as error:  # a NUL character in the path
        raise InputError(
            "the path of the input cannot be used", got="a NUL character in it"
        ) from error


@contextlib.contextmanager
def open_regular(path: Path | str) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a regular file, or a link to one, without ever blocking.

    Pipes, devices, sockets and folders are refused before they are opened. The
    open file is examined once more, so that exchanging it in between is seen,
    and again at the end, so that a file that changes while it is read is refused.

    Yields
    ------
    file : binary file
    status : os.stat_result
        Status of the open file; its `st_size` is the size in bytes.

    Raises
    ------
    InputError
        If it is not a regular file, cannot be opened, or changed meanwhile.
    """
    with _os_errors():
        _refuse_kind(os.stat(path).st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    # Unbuffered: reads are large, and readinto() then fills the array directly.
    with os.fdopen(fd, "rb", buffering=0) as file:
        before = os.fstat(fd)
        _refuse_kind(before.st_mode)
        yield file, before
        after = os.fstat(fd)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InputError(
                "the input file changed while it was read",
                hint="wait until it has been copied completely, then run the same command",
            )


def _damaged(got: str) -> InputError:
    return InputError(
        "the gzip data are damaged",
        got=got,
        hint="copy the file again from its source; `gzip -t` shows the damage",
    )


class ByteStream:
    """Exact sequential reads from a plain or gzip-compressed file.

    Gzip files of several members are read as one, zero padding after the last
    member is allowed, anything else behind it is refused. Checksums are
    verified by zlib when `at_end` reaches the end.

    Parameters
    ----------
    file : raw binary file at position 0
    size : int
        Size of the file in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        with _os_errors():
            head = file.read(2)
            file.seek(0)
        self.is_gzip = head == GZIP_MAGIC
        self._inflate = zlib.decompressobj(wbits=31) if self.is_gzip else None
        self._pending = b""
        self._member_bytes = 0
        self._empty_members = 0

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer only at the end of the stream."""
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readinto(self, view: memoryview) -> int:
        """Fill `view` from the stream; return how much of it was filled."""
        done = 0
        while done < len(view):
            step = self._inflate_into(view[done:]) if self.is_gzip else self._copy_into(view[done:])
            if step == 0:
                break
            done += step
        return done

    def at_end(self) -> bool:
        """Return whether nothing is left; at a true end the checksum was verified."""
        return self.readinto(memoryview(bytearray(1))) == 0

    def _copy_into(self, view: memoryview) -> int:
        with _os_errors():
            return self._file.readinto(view) or 0  # type: ignore[attr-defined]

    def _feed(self) -> bytes:
        if self._pending:
            chunk, self._pending = self._pending, b""
            return chunk
        with _os_errors():
            return self._file.read(_CHUNK_IN)

    def _inflate_into(self, view: memoryview) -> int:
        while self._inflate is not None:
            chunk = self._feed()
            if not chunk:
                raise _damaged("the file ends before its gzip data do: it is truncated")
            try:
                out = self._inflate.decompress(chunk, min(len(view), _CHUNK_OUT))
            except zlib.error as error:
                raise _damaged("a wrong checksum or an impossible code") from error
            self._pending = self._inflate.unconsumed_tail
            self._member_bytes += len(out)
            if self._inflate.eof:
                self._pending = self._inflate.unused_data
                self._next_member()
            if out:
                view[: len(out)] = out
                return len(out)
        return 0

    def _next_member(self) -> None:
        """Start the member that follows, or end the stream where none does."""
        self._empty_members += self._member_bytes == 0
        self._member_bytes = 0
        if self._empty_members > _MAX_EMPTY_MEMBERS:
            raise _damaged("thousands of empty gzip members")
        self._inflate = None
        while chunk := self._pending or self._feed():
            self._pending = b""
            rest = chunk.lstrip(b"\0")
            if not rest:
                continue
            if len(rest) < 2:  # the magic may straddle two reads
                rest += self._feed()
            if not rest.startswith(GZIP_MAGIC):
                raise _damaged("other bytes after the end of the gzip data")
            self._pending = rest
            self._inflate = zlib.decompressobj(wbits=31)
            return
