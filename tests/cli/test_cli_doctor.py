"""`medpipe doctor`: a sound store passes, one changed byte does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medpipe.cli.main import invoke
from medpipe.engine.store import Store

KEYS = ["ab" + "0" * 62, "cd" + "1" * 62]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    store = Store(tmp_path)
    for key in KEYS:
        store.put(
            key, {"step": {}, "values": {}}, lambda folder: (folder / "a.json").write_bytes(b"{}")
        )
    return tmp_path


def _checks(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(capsys.readouterr().out)}


def test_a_sound_store_passes(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor", str(out), "--json"]) == 0
    checks = _checks(capsys)
    assert checks["store"]["detail"] == "2 objects sound, 0 damaged"
    assert checks["torch"]["state"] == "ok"


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "no description"])
def test_damage_is_found(damage: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Store(out).folder(KEYS[1])
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)
    file = folder / "a.json"
    if damage == "changed":
        file.write_bytes(b"[]")
    elif damage == "cut":
        file.write_bytes(b"")
    elif damage == "gone":
        file.unlink()
    else:
        (folder / "object.json").write_bytes(b"{")
    assert invoke(["doctor", str(out), "--json"]) == 3
    checks = _checks(capsys)
    assert checks["store"]["detail"] == "1 objects sound, 1 damaged"
    assert checks[f"object {KEYS[1][:12]}"]["state"] == "bad"


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor"]) == 0
    assert "nibabel" in capsys.readouterr().out
