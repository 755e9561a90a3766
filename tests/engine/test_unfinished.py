"""Checkpoints of a result: taken over from the dead, copied from who may live, then removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medpipe.engine import unfinished
from medpipe.engine.owners import Owner
from medpipe.engine.store import Store
from medpipe.errors import StoreError

KEY = "ab" * 32
LEAVE = (
    "import sys; from pathlib import Path; from medpipe.engine.store import Store\n"
    "folder = Store(Path(sys.argv[1])).unfinished(sys.argv[2]).claim()\n"
    "(folder / 'half').write_text(sys.argv[3]); print(folder.name, flush=True); input()"
)


def start(tmp_path: Path, text: str) -> tuple[subprocess.Popen[str], str]:
    """Start a process that keeps something, and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVE, str(tmp_path), KEY, text],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process, name = start(tmp_path, "0.25")
    yield process, name
    process.kill()
    process.communicate()


def fail(store: Store, text: str = "") -> None:
    """Keep a text, if any, and fail."""
    with store.unfinished(KEY) as mine:
        folder = mine.claim()
        if text:
            (folder / "half").write_text(text)
        raise ZeroDivisionError


def kept(tmp_path: Path) -> dict[str, str]:
    """Return what is kept, by owner."""
    folders = (tmp_path / "store" / ".unfinished").glob("*/*")
    return {f.name: (f / "half").read_text() if (f / "half").exists() else "" for f in folders}


def test_what_a_dead_process_left_is_taken_over(tmp_path, other):
    process, name = other
    process.kill()
    process.communicate()
    with Store(tmp_path).unfinished(KEY) as mine:
        folder = mine.claim()
        assert (folder / "half").read_text() == "0.25"
        assert kept(tmp_path) == {folder.name: "0.25"}
        assert folder.name != name
        # asked again, it is the same
        assert mine.claim() == folder
    assert list((tmp_path / "store").iterdir()) == []


def test_what_a_process_that_lives_here_keeps_is_left_alone(tmp_path, other):
    with Store(tmp_path).unfinished(KEY) as mine:
        assert not list(mine.claim().iterdir())
        assert len(kept(tmp_path)) == 2
    assert kept(tmp_path) == {other[1]: "0.25"}


def test_of_another_machine_a_copy_is_taken(tmp_path, other):
    process, name = other
    process.kill()
    process.communicate()
    root = next((tmp_path / "store" / ".unfinished").iterdir())
    foreign = "0" * 12 + name[12:]
    (root / name).rename(root / foreign)
    with Store(tmp_path).unfinished(KEY) as mine:
        folder = mine.claim()
        (folder / "half").write_text("0.5")
        assert kept(tmp_path) == {foreign: "0.25", folder.name: "0.5"}
    # it may live: its folder goes by age alone
    assert kept(tmp_path) == {foreign: "0.25"}
    os.utime(root / foreign, (0, 0))
    with Store(tmp_path).unfinished(KEY) as mine:
        mine.claim()
    assert kept(tmp_path) == {}


def test_the_newest_is_continued(tmp_path):
    for text in ("0.25", "0.75"):
        process, _ = start(tmp_path, text)
        # the second begins anew, as the first lives
        names = kept(tmp_path)
        if text == "0.25":
            first = process
    for each in (first, process):
        each.kill()
        each.communicate()
    assert sorted(names.values()) == ["0.25", "0.75"]
    older = next(n for n, text in names.items() if text == "0.75")
    root = next((tmp_path / "store" / ".unfinished").iterdir())
    os.utime(root / older, (1, 1))
    with Store(tmp_path).unfinished(KEY) as mine:
        assert (mine.claim() / "half").read_text() == "0.25"
    assert kept(tmp_path) == {}


def test_a_failure_keeps_what_was_done_and_no_empty_folder(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fail(store, "0.5")
    with store.unfinished(KEY) as mine:
        assert (mine.claim() / "half").read_text() == "0.5"
    with pytest.raises(ZeroDivisionError):
        fail(store)
    assert list((tmp_path / "store").iterdir()) == []


def test_nothing_is_made_for_who_keeps_nothing(tmp_path):
    with Store(tmp_path).unfinished(KEY):
        pass
    assert not (tmp_path / "store").exists()


def test_another_version_begins_anew(tmp_path, monkeypatch):
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fail(store, "0.5")
    monkeypatch.setattr(unfinished, "__version__", "9.9")
    with store.unfinished(KEY) as mine:
        assert not list(mine.claim().iterdir())
    assert list(kept(tmp_path).values()) == ["0.5"]


def test_a_folder_that_is_taken_in_the_same_moment_is_begun_anew(tmp_path, other, monkeypatch):
    process, _ = other
    process.kill()
    process.communicate()
    renamed = os.rename

    def late(source: str, target: str) -> None:
        """Another process takes it first."""
        shutil.rmtree(source)
        renamed(source, target)

    monkeypatch.setattr(unfinished.os, "rename", late)
    with Store(tmp_path).unfinished(KEY) as mine:
        assert not list(mine.claim().iterdir())


def test_half_a_copy_is_not_continued(tmp_path, other):
    process, name = other
    process.kill()
    process.communicate()
    root = next((tmp_path / "store" / ".unfinished").iterdir())
    (root / name).rename(root / f"{name}-copy")
    with Store(tmp_path).unfinished(KEY) as mine:
        assert not list(mine.claim().iterdir())
    assert kept(tmp_path) == {}


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".unfinished").write_text("")
    with pytest.raises(StoreError, match=r"unfinished results.*got NotADirectory|FileExists"):
        Store(tmp_path).unfinished(KEY).claim()


def test_owners_know_themselves():
    mine = Owner()
    assert mine.lives(mine.name)
    assert mine.lives(f"{mine.name}-more")
    assert mine.lives("0" * 12 + mine.name[12:]) is None
    assert mine.lives("nobody") is None
