"""Digests of input files and folders, remembered so that they are not read twice.

A digest says what is in an input: the sha256 of a file, or the sha256 of the
sorted sha256s of the files of a folder, so names and order do not matter. In a
set of weighted images they do: a name says which sidecar belongs to which
image, so there the names below the folder are part of the digest. A
fingerprint says cheaply whether an input changed: a sha256 over paths, sizes,
modification times and inodes. The cache maps one to the other and holds no
path in clear.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from medpipe.errors import InputError
from medpipe.io.atomic import sha256_file

__all__ = [
    "DigestCache",
    "Fingerprint",
    "InputDigest",
    "digest_input",
    "fingerprint_input",
    "sidecar_path",
]

RACY_NS = 2_000_000_000
"""A file that changed this shortly before it was hashed may change again within one tick of the
file system's clock, so its digest is not remembered (as git does with its index)."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the file system says about an input, without reading it."""

    value: str
    kind: str
    files: int
    bytes: int
    newest_ns: int


@dataclass(frozen=True, slots=True)
class InputDigest:
    """What is in an input.

    Attributes
    ----------
    fingerprint, digest : str
        Hex sha256.
    kind : {"dicom", "nifti", "file", "images"}
        A folder is taken for DICOM, unless the workflow takes it as a set of images.
    files, bytes : int
        Number of regular files and their total size.
    settled : bool
        Whether the digest may be remembered (see `RACY_NS`).
    """

    fingerprint: str
    digest: str
    kind: str
    files: int
    bytes: int
    settled: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> InputDigest:
        """Rebuild what `to_dict` described."""
        return cls(**record)


def _regular_files(folder: str) -> list[tuple[str, os.stat_result]]:
    """Return path and stat of every regular file below `folder`, sorted by path."""
    found, stack = [], [folder]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                    continue
                with contextlib.suppress(OSError):  # a dangling link has no content
                    info = entry.stat()
                    if stat.S_ISREG(info.st_mode):
                        found.append((entry.path, info))
    return sorted(found, key=lambda item: item[0])


def sidecar_path(path: str | os.PathLike[str]) -> str | None:
    """Return where the JSON sidecar of a NIfTI file would lie, None for another file."""
    text = os.fspath(path)
    suffix = next((s for s in (".nii.gz", ".nii") if text.lower().endswith(s)), None)
    return None if suffix is None else text[: -len(suffix)] + ".json"


def _members(path: str, as_images: bool) -> tuple[str, list[tuple[str, os.stat_result]]]:
    """Return the kind of an input and its files."""
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            return "images" if as_images else "dicom", _regular_files(path)
    except OSError as error:
        raise InputError(
            "an input cannot be opened",
            got=os.strerror(error.errno or 0),
            hint="check the path in the manifest and the permissions",
        ) from None
    if not stat.S_ISREG(info.st_mode):
        raise InputError("an input is not a file", expected="a regular file or a folder")
    sidecar = sidecar_path(path)
    if as_images:
        members = [(path, info)]
        with contextlib.suppress(OSError):  # a missing sidecar is for the reader to report
            if sidecar is not None and stat.S_ISREG((beside := os.stat(sidecar)).st_mode):
                members.append((sidecar, beside))
        return "images", members
    return "file" if sidecar is None else "nifti", [(path, info)]


def _fingerprint(kind: str, members: list[tuple[str, os.stat_result]]) -> Fingerprint:
    hasher = hashlib.sha256(b"images\0" if kind == "images" else b"")
    total, newest = 0, 0
    for path, info in members:
        line = f"{path}\0{info.st_size}\0{info.st_mtime_ns}\0{info.st_ino}\n"
        hasher.update(line.encode("utf-8", "surrogateescape"))
        total += info.st_size
        newest = max(newest, info.st_mtime_ns)
    return Fingerprint(hasher.hexdigest(), kind, len(members), total, newest)


def fingerprint_input(path: str | os.PathLike[str], *, as_images: bool = False) -> Fingerprint:
    """Return what the file system says about a file or folder, without reading it.

    Parameters
    ----------
    path : path
    as_images : bool
        Whether it is a set of weighted images; see `digest_input`.

    Raises
    ------
    InputError
        If it does not exist or is neither a regular file nor a folder.
    """
    return _fingerprint(*_members(os.path.abspath(path), as_images))


def _images_digest(path: str, members: list[str], digests: list[str]) -> str:
    """Return the digest of a set: each file's place in the folder and its content.

    Of a lone file the name does not matter, only which of the two is the sidecar.
    """
    folder = len(os.path.join(path, ""))
    names = (
        [member[folder:] for member in members]
        if os.path.isdir(path)
        else ["image", "sidecar"][: len(members)]
    )
    lines = (f"{name}\0{digest}\n" for name, digest in zip(names, digests, strict=True))
    text = "images\n" + "".join(sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def digest_input(
    path: str | os.PathLike[str],
    known: Mapping[str, Any] | None = None,
    *,
    as_images: bool = False,
) -> InputDigest:
    """Return the digest of a file or folder.

    Parameters
    ----------
    path : path
    known : dict, optional
        An earlier `InputDigest.to_dict()`, returned without reading when the
        fingerprint is still the same.
    as_images : bool
        Whether it is a set of weighted images: then the names of the files below
        a folder count, and so does the sidecar beside a NIfTI file.

    Raises
    ------
    InputError
        If the input cannot be read, or is a folder without a file.
    """
    path = os.path.abspath(path)
    kind, members = _members(path, as_images)
    if not members:
        raise InputError("the input folder holds no file", hint="check the path in the manifest")
    mark = _fingerprint(kind, members)
    if known is not None and known.get("fingerprint") == mark.value:
        return InputDigest.from_dict(known)
    started_ns = time.time_ns()
    try:
        digests = [sha256_file(Path(member)) for member, _ in members]
    except OSError as error:
        raise InputError("an input cannot be read", got=os.strerror(error.errno or 0)) from None
    digest = digests[0]
    if kind == "dicom":
        digest = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    elif kind == "images":
        digest = _images_digest(path, [member for member, _ in members], digests)
    settled = mark.newest_ns < started_ns - RACY_NS
    return InputDigest(mark.value, digest, kind, mark.files, mark.bytes, settled)


class DigestCache:
    """Fingerprint → digest, in one sqlite file that only the driver writes.

    It is a cache: when it is absent, locked by another run or damaged, digests
    are computed again and nothing else happens.

    Parameters
    ----------
    path : Path
    create : bool
        False never touches the disk when the file is absent.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._db: sqlite3.Connection | None = None
        self._pending: list[tuple[str, str, str, int, int]] = []
        if not create and not path.exists():
            return
        self._db = self._open(path)
        if self._db is None and create:
            path.unlink(missing_ok=True)
            self._db = self._open(path)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection | None:
        try:
            db = sqlite3.connect(path, timeout=5.0)
            db.execute(
                "CREATE TABLE IF NOT EXISTS digests (fingerprint TEXT PRIMARY KEY,"
                " digest TEXT, kind TEXT, files INTEGER, bytes INTEGER) WITHOUT ROWID"
            )
        except sqlite3.OperationalError:  # locked or read-only: leave the file alone
            return sqlite3.connect(":memory:")
        except sqlite3.DatabaseError:
            return None
        return db

    def get(self, fingerprint: str) -> InputDigest | None:
        """Return the digest remembered for a fingerprint, or None."""
        if self._db is None:
            return None
        try:
            row = self._db.execute(
                "SELECT digest, kind, files, bytes FROM digests WHERE fingerprint = ?",
                (fingerprint,),
            ).fetchone()
        except sqlite3.Error:
            return None
        return InputDigest(fingerprint, *row) if row else None

    def put(self, digests: Iterable[InputDigest]) -> None:
        """Remember digests; they reach the disk in batches."""
        self._pending += [
            (d.fingerprint, d.digest, d.kind, d.files, d.bytes) for d in digests if d.settled
        ]
        if len(self._pending) >= 500:
            self.flush()

    def flush(self) -> None:
        """Write what `put` collected."""
        rows, self._pending = self._pending, []
        if self._db is None or not rows:
            return
        with contextlib.suppress(sqlite3.Error), self._db:
            self._db.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Write what is left and close the file."""
        self.flush()
        if self._db is not None:
            self._db.close()
            self._db = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
