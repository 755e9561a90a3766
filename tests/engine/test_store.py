"""Objects are whole or absent, written once, and damage is noticed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medpipe.engine.store import Store
from medpipe.errors import StoreError

KEY = "ab" * 32


def put(store: Store, content: bytes = b"hello", key: str = KEY) -> None:
    store.put(key, {"values": {}}, lambda folder: (folder / "a.bin").write_bytes(content) and None)


def test_written_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.has(KEY)
    put(store)
    put(store, b"other")
    assert store.has(KEY)
    path = store.file(KEY, "a.bin")
    assert path == tmp_path / "store" / "ab" / KEY / "a.bin"
    assert path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o222 == 0
    assert store.record(KEY)["files"]["a.bin"]["bytes"] == 5
    assert os.listdir(tmp_path / "store" / ".tmp") == []


def test_same_bytes_in_another_folder(tmp_path: Path) -> None:
    for name in "pq":
        put(Store(tmp_path / name))
    p, q = ((tmp_path / n / "store" / "ab" / KEY / "object.json").read_bytes() for n in "pq")
    assert p == q


def test_the_second_of_two_writers_throws_its_copy_away(tmp_path: Path) -> None:
    """Another process makes the object while this one is writing."""
    store, other = Store(tmp_path), Store(tmp_path)

    def write(folder: Path) -> None:
        (folder / "a.bin").write_bytes(b"mine")
        put(other, b"theirs")

    store.put(KEY, {"values": {}}, write)
    assert store.file(KEY, "a.bin").read_bytes() == b"theirs"
    assert os.listdir(tmp_path / "store" / ".tmp") == []


def test_remains_of_a_power_cut_are_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.folder(KEY).mkdir(parents=True)
    (store.folder(KEY) / "a.bin").write_bytes(b"")
    assert not store.has(KEY)
    put(store)
    assert store.file(KEY, "a.bin").read_bytes() == b"hello"


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "a.bin").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/NAME^PATIENT")

    with pytest.raises(StoreError, match=r"could not be written.*No space left") as caught:
        Store(tmp_path).put(KEY, {"values": {}}, write)
    assert "NAME" not in str(caught.value)
    assert not Store(tmp_path).has(KEY)
    assert os.listdir(tmp_path / "store" / ".tmp") == []


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store)
    path = store.folder(KEY) / "a.bin"
    path.chmod(0o644)
    path.write_bytes(b"hellO")
    with pytest.raises(StoreError, match="damaged"):
        store.file(KEY, "a.bin")
    path.unlink()
    with pytest.raises(StoreError, match="damaged"):
        store.file(KEY, "a.bin")


def test_a_description_that_is_not_ours_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store)
    path = store.folder(KEY) / "object.json"
    for content in ("{}", "[1]", "{"):
        path.chmod(0o644)
        path.write_text(content)
        with pytest.raises(StoreError, match="damaged"):
            store.file(KEY, "a.bin")


def test_strangers_in_the_store_do_not_end_a_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.flush()  # nothing is there yet
    put(store)
    (tmp_path / "store" / ".DS_Store").write_bytes(b"")
    store.flush()


def test_a_file_that_is_gone_is_told_as_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store)
    (store.folder(KEY) / "a.bin").unlink()
    with pytest.raises(StoreError, match="damaged: a file is gone"):
        store.publish(KEY, "a.bin", tmp_path / "case.bin")


def test_publish_links_replaces_and_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    put(store)
    put(store, b"second", "cd" * 32)
    target = tmp_path / "case.bin"
    for _ in range(2):  # the second time it is there already
        store.publish(KEY, "a.bin", target)
        assert target.samefile(store.folder(KEY) / "a.bin")
    store.publish("cd" * 32, "a.bin", target)
    assert target.read_bytes() == b"second"

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    store.publish(KEY, "a.bin", target)
    assert target.read_bytes() == b"hello"
    assert target.stat().st_nlink == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case.bin", "store"]


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from medpipe.engine.store import Store\n"
        "with Store(Path(sys.argv[1]))._scratch() as tmp:\n"
        "    (tmp / 'half').write_bytes(b'x'); print(tmp.name, flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    folder = tmp_path / "store" / ".tmp"
    host, pid, start, unique = name.split("-")
    # The same pid, but a process that started at another time: pids are used again.
    (folder / f"{host}-{pid}-{int(start) - 1}-{unique}").mkdir()
    foreign = folder / f"{'0' * 12}-1-1-{unique}"
    foreign.mkdir()
    store = Store(tmp_path)
    assert store.remove_leftovers() == 1
    assert {p.name for p in folder.iterdir()} == {name, foreign.name}
    process.kill()
    process.communicate()
    os.utime(foreign, (0, 0))
    assert store.remove_leftovers() == 2
    assert not list(folder.iterdir())
