"""Atomic writes: the old content or the new, never a part, whatever happens."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medpipe.errors import StoreError
from medpipe.io import crashpoints
from medpipe.io.atomic import (
    atomic_path,
    canonical_json,
    sha256_file,
    write_bytes_atomic,
    write_json_atomic,
)


def test_canonical_json_ignores_order_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": [1.0, "ü"]}) == canonical_json({"a": [1.0, "ü"], "b": 1})
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_bytes_atomic(target, b"old")

    def die_halfway(path: Path) -> None:
        path.write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), atomic_path(target) as tmp:
        die_halfway(tmp)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_refusing_check_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"

    def refuse(path: Path) -> None:
        assert path.read_bytes() == b"new"
        raise StoreError("not what was meant")

    with pytest.raises(StoreError), atomic_path(target, verify=refuse) as tmp:
        tmp.write_bytes(b"new")
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_name_keeps_the_whole_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "ct.nii.gz") as tmp:
        assert tmp.name.endswith("ct.nii.gz")
        tmp.write_bytes(b"x")


_CRASH = """
import sys
from pathlib import Path
from medpipe.io.atomic import write_json_atomic
write_json_atomic(Path(sys.argv[1]), {"state": "new"})
"""


@pytest.mark.parametrize(
    ("point", "state"),
    [("after_tmp_write", "old"), ("before_rename", "old"), ("after_rename", "new")],
)
def test_sigkill_leaves_old_or_new_never_half(tmp_path: Path, point: str, state: str) -> None:
    target = tmp_path / "a.json"
    write_json_atomic(target, {"state": "old"})
    done = subprocess.run(
        [sys.executable, "-c", _CRASH, str(target)],
        env=os.environ | {"MEDPIPE_CRASH_AT": point},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert json.loads(target.read_text()) == {"state": state}


def test_full_disk_is_one_clear_error_and_no_leftover(tmp_path: Path) -> None:
    script = f"""
import resource, signal
from pathlib import Path
from medpipe.io.atomic import write_bytes_atomic
from medpipe.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes_atomic(Path({str(tmp_path / "a.bin")!r}), b"x" * 100_000)
except StoreError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", script], capture_output=True, text=True, check=True
    )  # B: of a compiled module Python would keep the first 1000 bytes
    assert "could not be written" in done.stdout
    assert "free disk space" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_sha256_of_a_file_longer_than_one_chunk(tmp_path: Path) -> None:
    import hashlib

    content = os.urandom(3_000_001)
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_crash_points_fire_once_per_token_and_only_for_their_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, sig: killed.append(sig))
    monkeypatch.setenv("MEDPIPE_CRASH_AT", "before_rename:case7")
    monkeypatch.setenv("MEDPIPE_CRASH_ONCE", str(tmp_path / "token"))
    crashpoints.set_case("case6")
    crashpoints.reach("before_rename")
    crashpoints.set_case("case7")
    crashpoints.reach("after_rename")
    assert killed == []
    crashpoints.reach("before_rename")
    crashpoints.reach("before_rename")
    assert killed == [signal.SIGKILL]
    crashpoints.set_case("")
