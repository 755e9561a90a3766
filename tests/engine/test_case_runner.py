"""One case: what is computed, reused, copied, recorded, and how failures are told."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from engine_toys import Recorderd, step

from medpipe.engine.case import CaseRunner
from medpipe.engine.protocol import Event, Job, Outcome, RunSpec
from medpipe.workflow.compiled import CompiledStep, CompiledWorkflow, InputSpec, QcSpec, SaveSpec

LOAD = "medpipe.io.transforms:LoadVolumed"


class Bench:
    """Runs cases of a workflow in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[Event] = []

    def run(self, steps: list[CompiledStep], case_id: str = "c1", **spec: Any) -> Outcome:
        inputs = {"x": InputSpec("file"), "m": InputSpec(optional=True)}
        workflow = CompiledWorkflow("w", "1", "", inputs, tuple(steps))
        runner = CaseRunner(
            RunSpec(str(self.root / "out"), workflow.to_dict(), "r", device="cpu", **spec),
            self.events.append,
        )
        return runner.run(Job(case_id, {"x": str(self.root / "x.txt"), "m": None}))

    def record(self, case_id: str = "c1") -> dict[str, Any]:
        path = self.root / "out" / "cases" / case_id / "case.json"
        record: dict[str, Any] = json.loads(path.read_bytes())
        return record

    def files(self, case_id: str = "c1") -> set[str]:
        return set(os.listdir(self.root / "out" / "cases" / case_id))


@pytest.fixture
def bench(tmp_path: Path, recorder: type[Recorderd]) -> Bench:
    (tmp_path / "x.txt").write_text("1.5")
    return Bench(tmp_path)


def table(name: str, source: str, target: str, file: str = "", **more: Any) -> CompiledStep:
    save = (SaveSpec(target, file),) if file else ()
    return step(name, source, target, makes="table", save=save, **more)


def test_reuse_and_record(bench: Bench, recorder: type[Recorderd]) -> None:
    steps = [table("a", "x", "t"), table("b", "t", "u", "u.csv", params={"add": 2.0})]
    assert (bench.run(steps).status, recorder.calls) == ("done", ["t", "u"])
    record = bench.record()
    assert record["tables"] == {"t": {"value": 1.5}, "u": {"value": 3.5}}
    assert [s["status"] for s in record["steps"]] == ["computed", "computed"]
    assert bench.files() == {"case.json", "u.csv", "u.csv.json"}
    folder = bench.root / "out" / "cases" / "c1"
    assert (folder / "u.csv").read_text() == "value\n3.5\n"
    sidecar = json.loads((folder / "u.csv.json").read_bytes())
    assert sidecar["output"]["object"] == record["steps"][1]["key"]
    assert sidecar["environment"]["packages"]["numpy"] == np.__version__
    assert [s["id"] for s in sidecar["steps"]] == ["a", "b"]
    described = json.loads(
        next(
            (bench.root / "out" / "store").rglob(f"{record['steps'][1]['key']}/object.json")
        ).read_bytes()
    )
    assert described["reads"] == {"t": f"{record['steps'][0]['key']}/t"}
    assert described["step"]["params"] == {"add": 2.0}

    before = (folder / "case.json").stat()
    assert bench.run(steps).computed == 0
    assert (folder / "case.json").stat() == before  # nothing was touched
    assert recorder.calls == ["t", "u"]

    changed = [steps[0], table("b", "t", "u", "u.csv", params={"add": 3.0})]
    assert bench.run(changed).computed == 1
    assert recorder.calls == ["t", "u", "u"]
    assert bench.record()["tables"]["u"] == {"value": 4.5}
    assert [s["status"] for s in bench.record()["steps"]] == ["reused", "computed"]


def test_a_step_that_was_interrupted_goes_on_where_it_was(bench: Bench) -> None:
    steps = [table("a", "x", "t", "t.json", cls="Continuingd")]
    unfinished = bench.root / "out" / "store" / ".unfinished"
    for done in (1, 2):
        assert bench.run(steps).status == "failed"
        assert next(unfinished.glob("*/*/count")).read_text() == str(done)
    assert bench.run(steps).status == "done"
    assert bench.record()["tables"] == {"t": {"value": 3}}
    assert not unfinished.exists()


def test_a_lost_record_is_made_again_without_computing(
    bench: Bench, recorder: type[Recorderd]
) -> None:
    steps = [table("a", "x", "t", "t.json")]
    bench.run(steps)
    tables = bench.record()["tables"]
    shutil.rmtree(bench.root / "out" / "cases")
    outcome = bench.run(steps)
    assert (outcome.status, outcome.computed, recorder.calls) == ("done", 0, ["t"])
    assert bench.record()["tables"] == tables
    assert bench.files() == {"case.json", "t.json", "t.json.json"}


@pytest.mark.parametrize(("saved", "file"), [("", "t.json"), ("t.csv", "t.csv")])
def test_a_damaged_result_is_not_shown(bench: Bench, saved: str, file: str) -> None:
    steps = [table("a", "x", "t", saved)]
    bench.run(steps)
    (path,) = (bench.root / "out" / "store").glob(f"*/*/{file}")
    path.chmod(0o644)
    path.write_text('{"value": 9.5}')
    shutil.rmtree(bench.root / "out" / "cases")
    outcome = bench.run(steps)
    assert outcome.error is not None
    assert "a stored result is damaged" in outcome.error["message"]
    shutil.rmtree(path.parent)  # as the hint says
    assert bench.run(steps).status == "done"
    assert bench.record()["tables"] == {"t": {"value": 1.5}}


def test_a_folder_that_cannot_be_made_is_named(bench: Bench) -> None:
    (bench.root / "out" / "cases").mkdir(parents=True)
    (bench.root / "out" / "cases" / "c1").write_text("a file in its place")
    outcome = bench.run([table("a", "x", "t", "t.json")])
    assert outcome.error is not None
    assert "the folder of the case cannot be made" in outcome.error["message"]
    assert str(bench.root) not in json.dumps(outcome.error)


def test_stale_files_go_and_the_users_own_stay(bench: Bench) -> None:
    bench.run([table("a", "x", "t", "old.json")])
    folder = bench.root / "out" / "cases" / "c1"
    (folder / "notes.txt").write_text("mine")
    (folder / ".tmp-99999999-abc-case.json").write_text("half")
    bench.run([table("a", "x", "t", "new.json")])
    assert bench.files() == {"case.json", "new.json", "new.json.json", "notes.txt"}


def test_only_the_leftovers_of_dead_processes_go(bench: Bench) -> None:
    """Two runs may write the same case at the same time."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = bench.root / "out" / "cases" / "c1"
    folder.mkdir(parents=True)
    for pid in (os.getpid(), dead.pid):
        (folder / f".tmp-{pid}-0123abcd-t.json").write_text("half")
    bench.run([table("a", "x", "t", "t.json")])
    assert {n for n in bench.files() if n.startswith(".")} == {
        f".tmp-{os.getpid()}-0123abcd-t.json"
    }


def test_changed_input_is_computed_anew(bench: Bench) -> None:
    steps = [table("a", "x", "t")]
    bench.run(steps)
    (bench.root / "x.txt").write_text("2.5")
    assert bench.run(steps).computed == 1
    assert bench.record()["tables"]["t"] == {"value": 2.5}


def test_an_input_that_changes_meanwhile_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Recorderd.__call__

    def touch(self: Recorderd, data: dict[str, Any]) -> dict[str, Any]:
        (bench.root / "x.txt").write_text("9.25")
        return call(self, data)

    monkeypatch.setattr(Recorderd, "__call__", touch)
    outcome = bench.run([table("a", "x", "t", "t.json")])
    assert outcome.error is not None
    assert "changed while the case was computed" in outcome.error["message"]
    assert not list((bench.root / "out" / "store").rglob("object.json"))


def test_random_steps_repeat_for_a_case_and_differ_between_cases(bench: Bench) -> None:
    steps = [table("r", "x", "t", cls="Randomd", random=True)]
    drawn = []
    for case_id, seed in (("c1", 0), ("c2", 0), ("c1", 7)):
        bench.run(steps, case_id, seed=seed)
        drawn.append(bench.record(case_id)["tables"]["t"])
    shutil.rmtree(bench.root / "out")
    bench.run(steps, "c2")
    bench.run(steps, "c1")
    assert bench.record("c1")["tables"]["t"] == drawn[0]
    for generator in ("own", "numpy", "python"):
        assert len({d[generator] for d in drawn}) == 3


@pytest.mark.parametrize(
    ("what", "kind", "name", "text"),
    [
        ("ValueError", "step", "ValueError", "ValueError was raised"),
        ("MemoryError", "resource", "MemoryError", "not enough memory"),
        ("torch memory", "resource", "RuntimeError", "not enough memory"),
        ("wrapped", "input", "InputError", "z = 12 mm: a slice is missing"),
    ],
)
def test_failures(bench: Bench, what: str, kind: str, name: str, text: str) -> None:
    steps = [
        table("a", "x", "t", "t.json"),
        table("boom", "t", "u", cls="Breakingd", params={"what": what}),
    ]
    outcome = bench.run(steps)
    assert outcome.status == "failed"
    error = bench.record()["error"]
    assert error == outcome.error
    assert (error["kind"], error["step"]) == (kind, "boom")
    assert error["message"].startswith("step boom")
    assert text in error["message"]
    assert any(f.startswith("engine_toys.py:") for f in error["frames"])
    assert "ZZCANARY" not in json.dumps(bench.record())
    if name != "RuntimeError":
        assert error["type"] == name
    # What came before is kept and shown.
    assert bench.record()["outputs"][0]["file"] == "t.json"


def test_the_part_of_a_step_whose_optional_input_is_absent_is_left_out(
    bench: Bench, recorder: type[Recorderd]
) -> None:
    saves = (SaveSpec("t", "t.json"), SaveSpec("n", "n.json"))
    both = replace(table("a", "x", "t"), inputs=("x", "m"), outputs=("t", "n"), save=saves)
    after = replace(table("b", "t", "u"), inputs=("t", "n"), outputs=("u", "o"))
    for params in ({"add": 0.0}, {"add": 1.0}):  # the second time `a` is read from the store
        outcome = bench.run([both, replace(after, params=params)])
        assert (outcome.status, outcome.error) == ("done", None)
    assert bench.run([both, replace(after, params=params)]).computed == 0
    assert recorder.calls == ["t", "u", "u"]
    assert bench.record()["tables"] == {"t": {"value": 1.5}, "u": {"value": 2.5}}
    assert bench.files() == {"case.json", "t.json", "t.json.json"}


def test_missing_input_and_missing_read(bench: Bench) -> None:
    (bench.root / "x.txt").unlink()
    outcome = bench.run([table("a", "x", "t")])
    assert outcome.error is not None
    assert outcome.error["message"].startswith("input x: an input cannot be opened")
    assert str(bench.root) not in json.dumps(bench.record())
    (bench.root / "x.txt").write_text("1")
    outcome = bench.run([table("a", "x", "t", params={"mask": "m"}, reads={"mask": "m"})])
    assert outcome.error is not None
    assert 'reads "m", which this case does not have' in outcome.error["message"]


def test_a_read_that_the_step_calls_optional_may_be_absent(
    bench: Bench, recorder: type[Recorderd], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "optional_reads", ("mask",), raising=False)
    masked = table("a", "x", "t", "t.json", params={"mask": "m"}, reads={"mask": "m"})
    assert bench.run([masked]).status == "done"
    assert bench.record()["tables"] == {"t": {"value": 1.5}}
    assert bench.run([masked]).computed == 0


@pytest.fixture
def image(bench: Bench) -> Bench:
    """The input is an image of float32 values."""
    data = np.random.default_rng(1).normal(0, 300, (12, 11, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([2 / 3, 0.7, 3.1, 1])), bench.root / "i.nii")
    (bench.root / "x.txt").unlink()
    os.rename(bench.root / "i.nii", bench.root / "x.txt")
    return bench


def image_steps() -> list[CompiledStep]:
    return [
        step("load", "x", "ct", LOAD, save=(SaveSpec("ct", "ct.nii.gz", "float32"),)),
        step("shift", "ct", "moved", params={"add": 0.25}, save=(SaveSpec("moved", "m.nii"),)),
    ]


def saved(bench: Bench, name: str) -> Any:
    path = bench.root / "out" / "cases" / "c1" / name
    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]


def test_images_resume_on_identical_bits(image: Bench) -> None:
    """The first result is kept and the second made again, from the file instead of from memory."""
    (image.root / "x.txt").rename(image.root / "x.nii")
    (image.root / "x.txt").symlink_to(image.root / "x.nii")
    steps = image_steps()
    outcome = image.run(steps)
    assert outcome.status == "done", outcome.error
    whole = saved(image, "m.nii")
    np.testing.assert_array_equal(whole, saved(image, "ct.nii.gz") + np.float32(0.25))
    key = image.record()["steps"][1]["key"]
    stored = image.root / "out" / "store" / key[:2] / key
    before = {p.name: p.read_bytes() for p in stored.iterdir()}
    shutil.rmtree(stored)
    outcome = image.run(steps)
    assert (outcome.status, outcome.computed) == ("done", 1)
    assert [s["status"] for s in image.record()["steps"]] == ["reused", "computed"]
    assert {p.name: p.read_bytes() for p in stored.iterdir()} == before


def test_a_step_that_works_in_place_does_not_change_what_others_read(image: Bench) -> None:
    """`ct` is read twice; the first reader adds to it in place."""
    (image.root / "x.txt").rename(image.root / "x.nii")
    (image.root / "x.txt").symlink_to(image.root / "x.nii")
    steps = [
        step("load", "x", "ct", LOAD),
        step("one", "ct", "a", params={"add": 100.0}, save=(SaveSpec("a", "a.nii"),)),
        step("two", "ct", "b", params={"add": 1.0}, save=(SaveSpec("b", "b.nii"),)),
    ]
    outcome = image.run(steps)
    assert outcome.status == "done", outcome.error
    np.testing.assert_allclose(saved(image, "a.nii") - saved(image, "b.nii"), 99.0, atol=1e-3)


def test_pictures(image: Bench) -> None:
    (image.root / "x.txt").rename(image.root / "x.nii")
    (image.root / "x.txt").symlink_to(image.root / "x.nii")
    steps = [
        step("load", "x", "ct", LOAD, save=(SaveSpec("ct", "ct.nii"),), qc=QcSpec("ct")),
    ]
    outcome = image.run(steps)
    assert outcome.status == "done", outcome.error
    (picture,) = image.record()["qc"]
    assert picture["png"] == "qc-load-ct.png"
    png = image.root / "out" / "cases" / "c1" / "qc-load-ct.png"
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG")
    key = picture["object"]
    shutil.rmtree(image.root / "out" / "store" / key[:2] / key)
    outcome = image.run(steps)
    assert (outcome.status, outcome.computed) == ("done", 0)  # drawn again from the stored image
    assert png.read_bytes() == content


def test_no_picture_of_an_input_that_changed_meanwhile(
    image: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key says that it shows what was there before."""
    (image.root / "x.txt").rename(image.root / "x.nii")
    (image.root / "x.txt").symlink_to(image.root / "x.nii")
    call = Recorderd.__call__

    def touch(self: Recorderd, data: dict[str, Any]) -> dict[str, Any]:
        os.utime(image.root / "x.nii", (1, 1))
        return call(self, data)

    monkeypatch.setattr(Recorderd, "__call__", touch)
    steps = [step("load", "x", "ct", LOAD), step("one", "ct", "a", qc=QcSpec("a"))]
    outcome = image.run(steps)
    assert outcome.error is not None
    assert "changed while the case was computed" in outcome.error["message"]
    assert not list((image.root / "out").rglob("object.json"))


def test_seconds_are_those_of_the_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Recorderd.__call__

    def slow(self: Recorderd, data: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.2)
        return call(self, data)

    monkeypatch.setattr(Recorderd, "__call__", slow)
    outcome = bench.run([table("a", "x", "t")])
    assert bench.record()["steps"][0]["seconds"] >= 0.2
    assert outcome.seconds >= 0.2
    assert [e["event"] for e in bench.events] == ["step_started", "step_finished"]


def test_what_a_step_says_while_it_works_is_an_event(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, logger = Recorderd.__call__, logging.getLogger("medpipe.notice")

    def talk(self: Recorderd, data: dict[str, Any]) -> dict[str, Any]:
        logger.info("compiling %s", "code")
        logging.getLogger("other").warning("not ours")
        return call(self, data)

    monkeypatch.setattr(Recorderd, "__call__", talk)
    bench.run([table("a", "x", "t")])
    logger.info("nobody listens")
    assert [e["event"] for e in bench.events] == ["step_started", "notice", "step_finished"]
    assert bench.events[1] == {
        "event": "notice",
        "case_id": bench.events[0]["case_id"],
        "step": "a",
        "text": "compiling code",
    }


def test_a_file_parameter_reaches_the_step_as_a_path_and_is_checked(
    bench: Bench, recorder: type[Recorderd]
) -> None:
    model = bench.root / "model.bin"
    model.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    files = {
        "params": {"mask": f"sha256:{digest}"},
        "files": {"mask": digest},
        "paths": {"mask": str(model)},
    }
    assert bench.run([table("a", "x", "t", **files)]).status == "done"
    assert recorder.masks[-1] == str(model)
    assert str(bench.root) not in json.dumps(bench.record())
    model.write_bytes(b"other")
    outcome = bench.run([table("a", "x", "t", version="2", **files)])
    assert outcome.error is not None
    assert "changed after the run was planned" in outcome.error["message"]
