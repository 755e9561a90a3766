"""The workflow outcome-predict, from files to pages, without what training needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from oc_toy_models import FACTS, members, written

from medpipe.errors import WorkflowError
from medpipe.models import MODELS, PackagedModel
from medpipe.outcome.bundle import read_bundle, write_bundle
from medpipe.phantoms.anatomy import Subject
from medpipe.phantoms.head_ct import HeadCT
from medpipe.workflow.compiled import step_keys
from medpipe.workflow.plan import compile_workflow

REPOSITORY = Path(__file__).resolve().parents[2]
NOTICE = "demonstration, not for clinical use"


def keys_of(*overrides: str) -> dict[str, str]:
    compiled = compile_workflow("outcome-predict", list(overrides))
    keys = step_keys(compiled, dict.fromkeys(compiled.inputs, "0"), {})
    return dict(zip([step.id for step in compiled.steps], keys, strict=True))


def test_a_scan_is_prepared_as_for_training() -> None:
    """The steps before the grid are those of outcome-prepare, down to their keys."""
    prepare, predict = (
        [replace(s, save=(), qc=None) for s in compile_workflow(n).steps[:4]]
        for n in ("outcome-prepare", "outcome-predict")
    )
    assert [s.id for s in predict] == ["load", "check", "frame", "grid"]
    assert prepare[:3] == predict[:3]
    assert [s.use for s in (prepare[3], predict[3])] == ["head_grid", "model_grid"]


def test_the_digest_of_a_model_is_part_of_the_keys(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    compiled = compile_workflow("outcome-predict", [f"predict.model={folder}"])
    step = next(s for s in compiled.steps if s.id == "predict")
    digest = read_bundle(folder).digest
    assert dict(step.files) == {"model": digest}
    assert step.params["model"] == f"sha256:{digest}"
    assert read_bundle(str(step.arguments()["model"])).digest == digest
    sets = [f"{step}.model={folder}" for step in ("grid", "predict", "saliency")]
    one = keys_of(*sets)
    write_bundle(folder, [*members(1), members(3)[2]], FACTS)
    two = keys_of(*sets)
    changed = {name for name in one if one[name] != two[name]}
    assert changed == {"grid", "predict", "row", "saliency", "page"}


def test_a_packaged_model_is_named_and_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    default = "sah-mortality-demo"
    keys = []
    for digest in ("a" * 64, "b" * 64, None):
        monkeypatch.delitem(MODELS, default, raising=False)
        if digest:
            monkeypatch.setitem(MODELS, default, PackagedModel("x.safetensors", digest))
        compiled = compile_workflow("outcome-predict")
        step = next(s for s in compiled.steps if s.id == "saliency")
        assert dict(step.files) == ({"model": digest} if digest else {})
        assert step.arguments()["model"] == default
        keys.append(keys_of()["saliency"])
    assert len(set(keys)) == 3


def test_a_folder_that_is_no_model_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="is not a regular file"):
        compile_workflow("outcome-predict", [f"predict.model={tmp_path}"])
    with pytest.raises(WorkflowError, match="there is no file"):
        compile_workflow("outcome-predict", [f"predict.model={tmp_path / 'absent'}"])


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("sklearn", "ignite"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run two cases, a head and a block of nothing, with scikit-learn and ignite blocked."""
    root = tmp_path_factory.mktemp("run")
    (root / "blocked").mkdir()
    (root / "blocked" / "sitecustomize.py").write_text(BLOCKED)
    subject = replace(Subject.from_seed(5), tilt_deg=(8.0, -5.0, 14.0))
    affine = np.diag([-4.0, 4.0, 6.0, 1.0])
    affine[:3, 3] = (120.0, -125.0, -90.0)
    hu = HeadCT(5, subject=subject, edge_mm=2.0).sample(affine, (60, 64, 32))[1]
    nib.save(nib.Nifti1Image(np.round(hu).astype(np.int16), affine), root / "head.nii.gz")
    block = np.full((40, 40, 30), -1000, np.int16)
    nib.save(nib.Nifti1Image(block, affine), root / "block.nii.gz")
    (root / "cases.csv").write_text("case_id,image\none,head.nii.gz\ntwo,block.nii.gz\n")
    folder = written(root / "model")
    sets = [
        f"grid.model={folder}",
        f"predict.model={folder}",
        f"saliency.model={folder}",
        "saliency.sanity_stages=1",
        "frame.method=none",
    ]
    command = [sys.executable, "-m", "medpipe", "run", "outcome-predict", str(root / "cases.csv"),
               str(root / "out"), "--workers", "1"]  # fmt: skip
    for one in sets:
        command += ["--set", one]
    paths = [str(root / "blocked"), str(REPOSITORY), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    check = (
        "import importlib.util as u\ntry:\n u.find_spec('sklearn')\nexcept ImportError: print('no')"
    )
    said = subprocess.run(
        [sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "no"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (root / "out" / "cases" / "one" / "case.json").is_file(), done.stderr + done.stdout
    return root / "out" / "cases", folder


def test_a_head_becomes_a_prediction_with_its_map_and_page(run: tuple[Path, Path]) -> None:
    cases, folder = run
    case = cases / "one"
    record = json.loads((case / "case.json").read_text())
    assert record["status"] == "done", record["error"]
    prediction = json.loads((case / "prediction.json").read_text())
    assert 0 < prediction["low"] <= prediction["probability"] <= prediction["high"] < 1
    assert prediction["model"]["digest"] == read_bundle(folder).digest
    ct, saliency = (nib.load(case / f"{name}.nii.gz") for name in ("ct", "saliency"))
    head = nib.load(cases.parents[1] / "head.nii.gz")
    assert np.allclose(ct.affine, head.affine, atol=1e-4)
    assert np.array_equal(ct.affine, saliency.affine)
    assert ct.shape == saliency.shape == head.shape
    assert np.array_equal(np.asarray(ct.dataobj), np.asarray(head.dataobj))
    assert saliency.get_data_dtype() == np.float32
    values = saliency.get_fdata()
    assert values.min() >= 0
    assert values.max() <= 1
    facts = json.loads((case / "saliency.nii.gz.json").read_text())
    text = json.dumps(facts)
    assert "randomised_weights" in text
    assert "energy_share" in text


def test_every_output_says_that_it_is_a_demonstration(run: tuple[Path, Path]) -> None:
    case = run[0] / "one"
    for file in ("prediction.json", "prediction.csv", "page.svg", "saliency.nii.gz.json"):
        assert NOTICE in (case / file).read_text().replace("Demonstration", "demonstration"), file
    record = json.loads((case / "case.json").read_text())
    assert any(NOTICE in f["message"] for f in record["findings"])
    assert NOTICE in record["tables"]["row"]["notice"]
    picture = next(q for q in record["qc"] if q["step"] == "saliency")
    shown = json.loads((case / picture["json"]).read_text())
    assert "not for clinical use" in shown["window_name"]


def test_in_batch_a_bad_case_does_not_stop_the_others(run: tuple[Path, Path]) -> None:
    record = json.loads((run[0] / "two" / "case.json").read_text())
    assert record["status"] == "failed"
    assert record["error"]["step"] in ("check", "load")
    assert "\n" not in record["error"]["message"]
