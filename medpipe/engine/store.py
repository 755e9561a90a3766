"""The store: results under the hash of everything that made them, written once.

An object is a folder ``store/ab/abcd…/`` with ``object.json`` and its files.
It is written under ``store/.tmp``, flushed, verified and renamed, so it is
there whole or not at all, and two processes that make the same object need no
lock: the second one throws its copy away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medpipe.engine.owners import Owner
from medpipe.engine.unfinished import Unfinished
from medpipe.errors import MedpipeError, StoreError
from medpipe.io.atomic import fsync_dir, fsync_file, sha256_file
from medpipe.io.crashpoints import reach

__all__ = ["OBJECT_SCHEMA", "Store", "record_bytes"]

OBJECT_SCHEMA = 1
_ENCODER = json.JSONEncoder(sort_keys=True, allow_nan=False, ensure_ascii=False)


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """Return a record as JSON with one line for each of its entries.

    It can be read and compared by eye, and is ten times as fast to make as
    indented JSON, which Python's C encoder does not write.
    """
    lines = [f'"{name}": {_ENCODER.encode(record[name])}' for name in sorted(record)]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


class Store:
    """The results of an output folder.

    Parameters
    ----------
    out : Path
        The output folder; ``out/store`` is made when the first object is.
    """

    def __init__(self, out: Path) -> None:
        self.root = Path(out) / "store"
        self._prefix = str(self.root)
        self._tmp = self.root / ".tmp"
        self._owner = Owner()

    def folder(self, key: str) -> Path:
        """Return the folder of an object, which may not be there."""
        return self.root / key[:2] / key

    def has(self, key: str) -> bool:
        """Tell whether an object is there; if so, it is whole."""
        return os.path.exists(f"{self._prefix}/{key[:2]}/{key}/object.json")

    def record(self, key: str) -> dict[str, Any]:
        """Return the content of ``object.json``.

        Raises
        ------
        StoreError
            If the object is absent or damaged.
        """
        try:
            record = json.loads((self.folder(key) / "object.json").read_bytes())
        except (OSError, ValueError):
            record = None
        if not isinstance(record, dict) or not {"files", "values"} <= record.keys():
            raise _damaged(key, "its description cannot be read")
        return record

    def file(self, key: str, name: str) -> Path:
        """Return the path of one file of an object after checking its content.

        Raises
        ------
        StoreError
            If it is not, byte for byte, what was written.
        """
        path = self.folder(key) / name
        entry = self.record(key)["files"].get(name)
        try:
            intact = entry is not None and sha256_file(path) == entry["sha256"]
        except OSError:
            intact = False
        if not intact:
            raise _damaged(key, "a file differs from what was written")
        return path

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Hash every file of every object; yield each key with what is wrong, or None."""
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]/*")):
            problem = None
            try:
                for name in self.record(folder.name)["files"]:
                    self.file(folder.name, name)
            except MedpipeError as error:
                problem = error.what
            yield folder.name, problem

    def put(self, key: str, record: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        """Make an object, unless another process made it in the meantime.

        Parameters
        ----------
        key : str
        record : dict
            Content of ``object.json``; ``schema``, ``key`` and ``files`` are added.
        write : callable
            Writes and verifies the files of the object in the folder it is given.

        Raises
        ------
        StoreError
            If the disk is full or the folder cannot be written.
        """
        if self.has(key):
            return
        with self._scratch() as tmp:
            reach("before_write")
            write(tmp)
            files = {}
            for path in sorted(tmp.iterdir()):
                files[path.name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            content = {"schema": OBJECT_SCHEMA, "key": key, "files": files, **record}
            (tmp / "object.json").write_bytes(record_bytes(content))
            reach("after_tmp_write")
            for path in tmp.iterdir():
                path.chmod(0o444)
                fsync_file(path)
            fsync_dir(tmp)
            self._settle(tmp, key)

    def unfinished(self, key: str) -> Unfinished:
        """Return where the step that makes an object may keep what it has done so far."""
        return Unfinished(self.root, key, self._owner)

    def _settle(self, tmp: Path, key: str) -> None:
        """Give a finished folder its final name, unless that is taken."""
        final = self.folder(key)
        final.parent.mkdir(exist_ok=True)
        reach("before_rename")
        try:
            os.rename(tmp, final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if not self.has(key):  # what a power cut left of an object
                os.rename(final, tmp.with_name(f"{tmp.name}-broken"))
                os.rename(tmp, final)
                shutil.rmtree(tmp.with_name(f"{tmp.name}-broken"), ignore_errors=True)
        reach("after_rename")

    def flush(self) -> None:
        """Make sure that no finished object can be lost to a power cut any more.

        The content of an object is on disk before it gets its name; the name
        alone may wait for this, at the end of a run, because what is lost
        until then is computed again.
        """
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.root):
                # What a file manager left there, or the folder of another user, is not ours.
                with contextlib.suppress(OSError):
                    fsync_dir(Path(entry.path))
            fsync_dir(self.root)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Give a folder below ``.tmp`` whose name says which process it belongs to."""
        tmp = self._tmp / f"{self._owner.name}-{uuid.uuid4().hex[:12]}"
        try:
            tmp.mkdir(parents=True)
            yield tmp
        except OSError as error:
            raise StoreError(
                "a result could not be written",
                got=f"{type(error).__name__}: {os.strerror(error.errno or 0)}",
                hint="free disk space or check the folder's permissions, then run the same command",
            ) from error
        finally:
            shutil.rmtree(tmp, ignore_errors=True)

    def remove_leftovers(self) -> int:
        """Remove what dead processes left under ``.tmp``; return how many folders."""
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(self._tmp)):
                if self._owner.left(entry):
                    shutil.rmtree(entry.path, ignore_errors=True)
                    removed += 1
        return removed

    def publish(self, key: str, name: str, target: Path, *, check: bool = False) -> None:
        """Put a file of an object at `target`, as a hard link where possible.

        With `check`, for an object of an earlier run, its content is compared
        first with what was written.

        Raises
        ------
        StoreError
            If the object is damaged, or the folder cannot be written.
        """
        source = self.folder(key) / name
        tmp = target.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}-{target.name}")
        try:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samefile(source, target):
                    return
            if check:
                self.file(key, name)
            try:
                os.link(source, tmp)
            except FileNotFoundError:
                if not source.exists():
                    raise _damaged(key, "a file is gone") from None
                raise
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, tmp)
                tmp.chmod(0o444)
            os.replace(tmp, target)
        except OSError as error:
            raise StoreError(
                "a result could not be put into the folder of its case",
                got=f"{type(error).__name__}: {os.strerror(error.errno or 0)}",
                hint="free disk space or check the folder's permissions, then run the same command",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                tmp.unlink(missing_ok=True)


def _damaged(key: str, what: str) -> MedpipeError:
    return StoreError(
        f"a stored result is damaged: {what}",
        where=f"store/{key[:2]}/{key[:12]}…",
        hint="delete that folder and run the same command; check the disk",
    )
