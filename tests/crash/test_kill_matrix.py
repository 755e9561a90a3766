"""Kill anything at any time, run the same command again: the same store, byte for byte."""

from __future__ import annotations

import json
import shutil
import signal
from typing import Any

import drive
import nibabel
import numpy as np
import pytest
from crash_lab import Lab, kill_driver

from medpipe.io.crashpoints import POINTS

N = 40
CASES = {f"c{i:02d}": f"text {i}" for i in range(N)}
VICTIM = "c17"
AFFINE = np.diag([0.5, 0.5, 2.0, 1.0])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The store of a run that nothing interrupted."""
    lab = Lab(tmp_path_factory.mktemp("reference"))
    lab.write_cases(CASES)
    summary = lab.run("out")
    assert (summary["done"], summary["failed"]) == (N, [])
    assert set(lab.counts().values()) == {1}
    tree = lab.tree("out")
    assert len(tree) == N * 4  # two objects a case, each a table and its description
    return tree


def assert_whole(lab: Lab, reference: dict[str, str], out: str = "out") -> None:
    """Check that every case is done, shown and stored as in the uninterrupted run."""
    assert lab.tree(out) == reference
    assert not lab.leftovers(out)
    for case_id, text in CASES.items():
        record = lab.record(out, case_id)
        assert record["status"] == "done"
        assert record["tables"]["sum"]["total"] == 2 * len(text)
        for output in record["outputs"]:
            path = lab.root / out / "cases" / case_id / output["file"]
            assert path.stat().st_size == output["bytes"]


@pytest.mark.parametrize("point", [p for p in POINTS if p != "after_load"])
def test_worker_killed(lab: Lab, reference: dict[str, str], point: str) -> None:
    lab.write_cases(CASES)
    token = lab.root / "token"
    crash = {"MEDPIPE_CRASH_AT": f"{point}:{VICTIM}", "MEDPIPE_CRASH_ONCE": str(token)}
    summary = lab.run("out", **crash)
    assert token.exists()  # the point was reached
    assert summary["failed"] == []
    assert summary["done"] + summary["cached"] == N
    assert_whole(lab, reference)
    counts = lab.counts()
    twice = {line for line, n in counts.items() if n > 1}
    assert twice <= {f"{VICTIM} count", f"{VICTIM} total"}
    assert max(counts.values()) <= 2
    events = next((lab.root / "out").glob("runs/*/events.jsonl")).read_text()
    deaths = [json.loads(e) for e in events.splitlines() if "worker_died" in e]
    assert [(d["case_id"], d["signal"]) for d in deaths] == [(VICTIM, "SIGKILL")]

    again = lab.run("out")
    assert (again["cached"], again["done"]) == (N, 0)
    assert not lab.counts()
    assert lab.tree("out") == reference


def test_worker_killed_while_it_resumes(lab: Lab, reference: dict[str, str]) -> None:
    """The second table is missing, so the first one is loaded; kill right after that."""
    lab.write_cases(CASES)
    lab.run("out")
    lab.counts()
    for output in lab.record("out", VICTIM)["outputs"]:
        if output["step"] == "total":
            key = output["object"]
            shutil.rmtree(lab.root / "out" / "store" / key[:2] / key)
    token = lab.root / "token"
    crash = {"MEDPIPE_CRASH_AT": f"after_load:{VICTIM}", "MEDPIPE_CRASH_ONCE": str(token)}
    summary = lab.run("out", **crash)
    assert token.exists()
    assert (summary["cached"], summary["done"], summary["failed"]) == (N - 1, 1, [])
    assert lab.counts() == {f"{VICTIM} total": 1}
    assert_whole(lab, reference)


@pytest.mark.parametrize("lines", [1, 17, 40, 66, 79])
def test_driver_killed(lab: Lab, reference: dict[str, str], lines: int) -> None:
    lab.write_cases(CASES)
    process = lab.start("out")
    lab.wait_for_lines(lines)
    kill_driver(process)
    before = lab.counts()
    stored = lab.tree("out")
    whole = {p: h for p, h in stored.items() if not p.startswith(".tmp")}
    assert whole.items() <= reference.items()

    summary = lab.run("out")
    assert summary["failed"] == []
    assert summary["total"] == N
    assert_whole(lab, reference)
    counts = before + lab.counts()
    assert len(counts) == 2 * N
    # Two workers died in the middle of one step each.
    assert sum(n - 1 for n in counts.values()) <= 2


def test_driver_killed_while_its_workers_are_busy(lab: Lab) -> None:
    """Nobody is left computing, although no worker looks at its pipe."""
    lab.write_cases({"a": "hang", "b": "hang"})
    process = lab.start("out")
    lab.wait_for_lines(2)
    kill_driver(process)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_driver_told_to_stop(lab: Lab, reference: dict[str, str], number: int, status: int) -> None:
    lab.write_cases(CASES)
    process = lab.start("out")
    lab.wait_for_lines(20)
    kill_driver(process, number)
    assert process.returncode == status
    run = json.loads(next((lab.root / "out").glob("runs/*/run.json")).read_text())
    assert run["status"] == "interrupted"
    assert run["summary"]["interrupted"] == signal.Signals(number).name
    assert not lab.leftovers("out")
    assert lab.run("out")["failed"] == []
    assert_whole(lab, reference)


@pytest.mark.parametrize("limit", [20, 300, 900])
def test_disk_full(lab: Lab, reference: dict[str, str], limit: int) -> None:
    """No file may grow beyond `limit` bytes; every write beyond it fails as on a full disk."""
    lab.write_cases(CASES)
    # Python would keep the first part of a module that it compiles under the limit
    summary = lab.run("out", f"file_limit={limit}", PYTHONDONTWRITEBYTECODE="1")
    assert len(summary["failed"]) == N
    assert summary["exit_code"] == 4
    assert "could not be written" in summary["failed"][0]["message"]
    stored = lab.tree("out") if (lab.root / "out" / "store").exists() else {}
    assert stored.items() <= reference.items()
    assert not lab.leftovers("out")
    lab.counts()

    assert lab.run("out")["failed"] == []
    assert_whole(lab, reference)


def write_volumes(lab: Lab) -> dict[str, Any]:
    """Write four NIfTI files; return name → voxels."""
    lab.inputs.mkdir()
    rng = np.random.default_rng(0)
    truth = {}
    for i in range(4):
        data = rng.integers(-1000, 1000, (24, 20, 18)).astype(np.int16)
        data[0, 0, 0] = 1000 + i
        truth[f"v{i}"] = data
        nibabel.save(nibabel.Nifti1Image(data, AFFINE), lab.inputs / f"v{i}.nii.gz")
    return truth


@pytest.mark.usefixtures("cases_here")  # of the run that nothing interrupts, not of drivers
def test_volumes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with images: read, saved, changed, saved; the victim is killed while it saves."""
    truth = write_volumes(lab)
    monkeypatch.setenv("KILL_TALLY", str(lab.tally))
    assert drive.main(str(lab.root / "plain"), str(lab.inputs), "workflow=images") == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["done"], plain["failed"]) == (4, [])
    lab.counts()
    crash = {"MEDPIPE_CRASH_AT": "before_rename:v1", "MEDPIPE_CRASH_ONCE": str(lab.root / "token")}
    summary = lab.run("out", "workflow=images", "workers=1", **crash)
    assert (lab.root / "token").exists()
    assert (summary["done"], summary["failed"]) == (4, [])
    assert lab.tree("out") == lab.tree("plain")
    assert not lab.leftovers("out")
    assert all(n == 1 for line, n in lab.counts().items() if "image1001" not in line)
    for name, data in truth.items():
        saved = nibabel.load(lab.root / "out" / "cases" / name / "shifted.nii.gz")
        np.testing.assert_array_equal(np.asarray(saved.dataobj), data + 1.0)
        np.testing.assert_array_equal(saved.affine, AFFINE)
