"""Writing files so that a reader never sees half of one.

Write to a temporary name in the same folder, flush, fsync, let the caller
verify, rename over the final name, fsync the folder. A process that dies in
between leaves the old file, or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medpipe.errors import StoreError
from medpipe.io.crashpoints import reach

__all__ = [
    "atomic_path",
    "canonical_json",
    "fsync_dir",
    "fsync_file",
    "sha256_file",
    "write_bytes_atomic",
    "write_json_atomic",
]

_CHUNK = 1 << 20


def fsync_file(path: Path) -> None:
    """Flush one file's content to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_dir(path: Path) -> None:
    """Flush a folder's entries to the disk, where the file system can."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(fd)
    finally:
        os.close(fd)


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the one UTF-8 JSON text that medpipe hashes: sorted keys, no blanks, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


@contextlib.contextmanager
def atomic_path(
    path: Path, *, verify: Callable[[Path], None] | None = None, durable: bool = True
) -> Iterator[Path]:
    """Give a temporary path to write to; on success it becomes `path`.

    Parameters
    ----------
    path : Path
        The final name. Its folder must exist.
    verify : callable, optional
        Called with the temporary path after it is on disk; raises to refuse.
    durable : bool
        Whether to fsync. False is for files that can be made again.

    Raises
    ------
    StoreError
        If the disk is full or the folder cannot be written.
    """
    # The suffix stays whole (".nii.gz") because writers choose the format by it.
    tmp = path.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield tmp
        if durable:
            fsync_file(tmp)
        reach("after_tmp_write")
        if verify is not None:
            verify(tmp)
        reach("before_rename")
        os.replace(tmp, path)
        if durable:
            fsync_dir(path.parent)
        reach("after_rename")
    except OSError as error:
        raise StoreError(
            "a file could not be written",
            got=f"{type(error).__name__} {os.strerror(error.errno or 0)}",
            hint="free disk space or check the folder's permissions, then run the same command",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            tmp.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `content` to `path` so that no reader sees half of it."""
    with atomic_path(path, durable=durable) as tmp:
        tmp.write_bytes(content)


def write_json_atomic(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as indented JSON to `path` so that no reader sees half of it."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes_atomic(path, (text + "\n").encode(), durable=durable)
