"""Documents: bytes that a step makes, saved as they are, read back, shown in the record."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from engine_toys import Recorderd, step

from medpipe.engine.case import CaseRunner
from medpipe.engine.protocol import Job, Outcome, RunSpec
from medpipe.engine.store import Store
from medpipe.engine.values import load_values, save_values
from medpipe.errors import StepError, StoreError
from medpipe.workflow.compiled import CompiledStep, CompiledWorkflow, InputSpec, SaveSpec

KEY = "ab" * 32
CONTENT = b"<VTKFile>\r\n\x00\xff</VTKFile>\n"


class Documentd(Recorderd):
    """Make bytes from the input's text, or something else when asked to."""

    def __init__(self, keys: list[str], good: bool = True) -> None:
        super().__init__(keys)
        self.good = good

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        Recorderd.calls.append("document")
        text = Path(data[self.keys[0]]).read_text()
        return data | {self.keys[0]: CONTENT + text.encode() if self.good else {"no": "bytes"}}


class Lengthd(Recorderd):
    """Measure the document of another key."""

    def __init__(self, keys: list[str], document: str) -> None:
        super().__init__(keys)
        self.document = document

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        Recorderd.calls.append("length")
        assert isinstance(data[self.document], bytes)
        return data | {self.keys[0]: {"bytes": len(data[self.document])}}


def document(**more: Any) -> CompiledStep:
    save = (SaveSpec("mesh", "mesh.vtp"),) if more.pop("save", True) else ()
    cls = "test_engine_documents:Documentd"
    return step("mesh", "x", "mesh", cls, makes="document", save=save, **more)


def length() -> CompiledStep:
    cls = "test_engine_documents:Lengthd"
    return step("length", "x", "n", cls, makes="table", reads={"document": "mesh"})


class Bench:
    def __init__(self, root: Path) -> None:
        self.out = root / "out"
        self.input = root / "x.txt"
        self.input.write_text("text")
        self.folder = self.out / "cases" / "c1"

    def run(self, *steps: CompiledStep) -> Outcome:
        workflow = CompiledWorkflow("w", "1", "", {"x": InputSpec("file")}, steps)
        spec = RunSpec(str(self.out), workflow.to_dict(), "r", device="cpu")
        return CaseRunner(spec, lambda event: None).run(Job("c1", {"x": str(self.input)}))

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / "case.json").read_bytes())
        return record


@pytest.fixture
def bench(tmp_path: Path, recorder: type[Recorderd]) -> Bench:
    return Bench(tmp_path)


def test_a_document_is_published_with_its_digest_and_a_sidecar(bench: Bench) -> None:
    assert bench.run(document(), length()).status == "done"
    content = (bench.folder / "mesh.vtp").read_bytes()
    assert content == CONTENT + b"text"
    record = bench.record()
    (output,) = record["outputs"]
    assert output["file"] == "mesh.vtp"
    assert output["makes"] == "document"
    assert output["sha256"] == hashlib.sha256(content).hexdigest()
    assert output["bytes"] == len(content)
    assert record["tables"] == {"n": {"bytes": len(content)}}
    sidecar = json.loads((bench.folder / "mesh.vtp.json").read_bytes())
    assert sidecar["output"] == output
    assert set(os.listdir(bench.folder)) == {"case.json", "mesh.vtp", "mesh.vtp.json"}


def test_a_stored_document_is_read_again_by_a_later_step(bench: Bench) -> None:
    bench.run(document())
    assert bench.run(document(), length()).computed == 1
    assert Recorderd.calls == ["document", "length"]
    assert bench.record()["tables"] == {"n": {"bytes": len(CONTENT) + 4}}
    assert bench.run(document(), length()).computed == 0


def test_a_document_that_is_not_saved_still_travels(bench: Bench) -> None:
    assert bench.run(document(save=False), length()).status == "done"
    assert bench.record()["outputs"] == []
    assert bench.record()["tables"] == {"n": {"bytes": len(CONTENT) + 4}}


def test_a_step_that_makes_no_bytes_fails_in_one_line(bench: Bench) -> None:
    outcome = bench.run(document(params={"good": False}))
    assert outcome.status == "failed"
    message = bench.record()["error"]["message"]
    assert "the step did not make a document; expected bytes, got dict" in message
    assert not (bench.folder / "mesh.vtp").exists()


def test_bytes_of_a_step_that_makes_a_volume_are_refused(tmp_path: Path) -> None:
    volume = step("v", "x", "v", save=(SaveSpec("v", "v.nii.gz"),))
    with pytest.raises(StepError, match="only images, tables and documents can be saved"):
        save_values(Store(tmp_path), KEY, volume, {"v": b"bytes"}, reads={})


def test_findings_of_the_inputs_stay_with_the_document(tmp_path: Path) -> None:
    finding = {"check": "c", "severity": "info", "message": "m"}
    store = Store(tmp_path)
    values = save_values(store, KEY, document(), {"mesh": CONTENT}, reads={}, findings=[finding])
    assert values == {"mesh": CONTENT} == load_values(store, KEY, ["mesh"])
    described = store.record(KEY)["values"]["mesh"]
    assert described == {
        "makes": "document",
        "file": "mesh.vtp",
        "source": {},
        "findings": [finding],
    }


def test_a_damaged_document_is_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save_values(store, KEY, document(), {"mesh": CONTENT}, reads={})
    path = store.folder(KEY) / "mesh.vtp"
    path.chmod(0o644)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(StoreError, match="damaged"):
        load_values(store, KEY, ["mesh"])
