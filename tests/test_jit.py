"""Machine code on disk: it is never that of something else, and its loss is no error."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import itertools
import logging
import os
import sys
import threading
from pathlib import Path

import pytest
from numba.core.caching import IndexDataCacheFile

from medpipe import jit

NUMBER = itertools.count()
SOURCE = "def value(x):\n    return x + {}\n"


@pytest.fixture(autouse=True)
def beside_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what was said, and keep machine code in ``__pycache__`` of the module."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", "")
    monkeypatch.setattr(jit, "_TURN", jit._Turn())


def function(folder: Path, added: int = 1):
    """Return a function as a new process would have it, from a file in `folder`."""
    path = folder / "kernel.py"
    path.write_text(SOURCE.format(added))
    os.utime(path, (0, next(NUMBER)))
    spec = importlib.util.spec_from_file_location("kernel", path)
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return jit.compiled(module.value)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "__pycache__").glob("*.nb?"))


def hits(made) -> int:
    return sum(made.stats.cache_hits.values())


def test_what_one_process_compiled_the_next_one_reads(tmp_path: Path) -> None:
    first = function(tmp_path)
    assert (first(1), first(1.5), hits(first)) == (2, 2.5, 0)
    assert [f.suffix for f in files(tmp_path)] == [".nbc", ".nbc"]  # one per type, no index
    again = function(tmp_path)
    assert (again(1), again(1.5), hits(again)) == (2, 2.5, 2)
    changed = function(tmp_path, added=5)
    assert (changed(1), hits(changed)) == (6, 0)


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("written", [0, 1])
def test_a_disk_that_fails_leaves_neither_an_error_nor_old_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int, written: int
) -> None:
    """Also where the first of several files could still be written."""
    assert function(tmp_path, added=1)(1) == 2
    write, count = IndexDataCacheFile._open_for_write, itertools.count()

    def fail(self, path):
        if next(count) >= written:
            raise OSError(fault, os.strerror(fault))
        return write(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(IndexDataCacheFile, "_open_for_write", fail)
        assert function(tmp_path, added=2)(1) == 3
    assert function(tmp_path, added=2)(1) == 3


def test_a_folder_that_cannot_be_made_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    made = function(tmp_path)
    assert (made(1), files(tmp_path)) == (2, [])


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"half"])
def test_a_damaged_file_is_made_again(tmp_path: Path, content: bytes) -> None:
    function(tmp_path)(1)
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    assert function(tmp_path)(1) == 2
    assert hits(again := function(tmp_path)) == 0
    assert (again(1), hits(again)) == (2, 1)


def held(folder: Path) -> int:
    """Return a lock as another process that compiles would hold it."""
    (folder / "__pycache__").mkdir(exist_ok=True)
    lock = os.open(folder / "__pycache__" / ".compiling", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def test_a_process_waits_for_one_that_compiles_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    function(tmp_path)(1)
    (file,) = files(tmp_path)
    aside = file.rename(tmp_path / "aside")
    lock = held(tmp_path)
    made, results = function(tmp_path), []
    jit._TURN._told = False
    with caplog.at_level(logging.INFO, logger="medpipe.notice"):
        thread = threading.Thread(target=lambda: results.append(made(1)), daemon=True)
        thread.start()
        for _ in range(300):
            if caplog.messages:
                break
            thread.join(0.1)
        assert len(caplog.messages) == 1
        assert "compiling" in caplog.messages[0]
        assert not results
        aside.rename(file)
        os.close(lock)
        thread.join(30)
    assert (results, hits(made)) == ([2], 1)


def test_a_process_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "PATIENCE_S", 0.2)
    lock = held(tmp_path)
    made = function(tmp_path)
    assert (made(1), hits(made)) == (2, 0)
    os.close(lock)
