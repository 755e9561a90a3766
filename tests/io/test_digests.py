"""Digests say what is in an input, the cache saves reading it, and nothing names it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

import medpipe.io.digests as digests
from medpipe.errors import InputError
from medpipe.io.digests import DigestCache, digest_input, fingerprint_input


def settle(path: Path) -> None:
    """Make files look an hour old."""
    then = time.time() - 3600
    for each in [path, *path.rglob("*")]:
        os.utime(each, (then, then))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"abc")
    found = digest_input(path)
    assert (found.digest, found.kind, found.files, found.bytes) == (sha(b"abc"), "nifti", 1, 3)
    assert not found.settled
    settle(path)
    assert digest_input(path).settled


def test_folder_does_not_depend_on_names(tmp_path: Path) -> None:
    for name, files in {"p": {"1": b"a", "sub/2": b"b"}, "q": {"x/y": b"a", "0": b"b"}}.items():
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(content)
    p, q = digest_input(tmp_path / "p"), digest_input(tmp_path / "q")
    assert p.digest == q.digest == sha("".join(sorted((sha(b"a"), sha(b"b")))).encode())
    assert p.fingerprint != q.fingerprint
    assert (p.kind, p.files, p.bytes) == ("dicom", 2, 2)
    (tmp_path / "p" / "1").write_bytes(b"c")
    assert digest_input(tmp_path / "p").digest != q.digest


def test_known_digest_is_used_only_for_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"abc")
    settle(path)
    known = digest_input(path).to_dict()
    with monkeypatch.context() as patch:
        patch.setattr(digests, "sha256_file", lambda _: pytest.fail("it was read"))
        assert digest_input(path, known).digest == sha(b"abc")
    path.write_bytes(b"xyz")
    assert digest_input(path, known).digest == sha(b"xyz")


def test_cache(tmp_path: Path) -> None:
    path = tmp_path / "PATIENT_NAME.nii"
    path.write_bytes(b"abc")
    fresh = digest_input(path)
    settle(path)
    found = digest_input(path)
    file = tmp_path / "digests.sqlite"
    with DigestCache(file) as cache:
        cache.put([fresh, found])
    with DigestCache(file, create=False) as cache:
        assert cache.get(fingerprint_input(path).value) == found
        assert cache.get(fresh.fingerprint) is None  # it could still have changed
    assert b"PATIENT" not in file.read_bytes()


def test_cache_that_cannot_be_used_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "digests.sqlite"
    with DigestCache(file, create=False) as cache:
        assert cache.get("0") is None
    assert not file.exists()
    file.write_bytes(b"no database at all" * 100)
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    settle(path)
    found = digest_input(path)
    with DigestCache(file) as cache:  # made anew
        cache.put([found])
    with DigestCache(file) as cache:
        assert cache.get(found.fingerprint) == found
        locked = sqlite3.connect(file)
        locked.execute("BEGIN EXCLUSIVE")
        cache._db.execute("PRAGMA busy_timeout = 10")  # type: ignore[union-attr]
        assert cache.get(found.fingerprint) is None
        cache.put([found])
        cache.flush()
        locked.close()


def test_what_is_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("absent_NAME", "fifo"):
        with pytest.raises(InputError) as caught:
            digest_input(tmp_path / name)
        assert "NAME" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no file"):
        digest_input(tmp_path / "empty")
