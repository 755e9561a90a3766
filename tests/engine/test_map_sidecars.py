"""The fields of BIDS that a step gives a map reach its sidecar and the derivative."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from engine_toys import step

from medpipe.engine.case import CaseRunner
from medpipe.engine.protocol import Job, RunSpec
from medpipe.io.bids_derivative import export_derivative
from medpipe.workflow.compiled import CompiledWorkflow, InputSpec, SaveSpec

FIELDS = {"Units": "s", "EstimationAlgorithm": "closed form", "output": "not mine to set"}


class Mapd:
    """Puts fields for the sidecar into the source of an image."""

    def __init__(self, keys: list[str], b1: str | None = None) -> None:
        self.keys = keys

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        out = dict(data)
        for key in self.keys:
            image = out[key].clone()
            source = {**image.meta["medpipe"]["source"], "sidecar": FIELDS}
            image.meta["medpipe"] = {**image.meta["medpipe"], "source": source}
            out[key] = image
        return out


def workflow() -> CompiledWorkflow:
    inputs = {
        "images": InputSpec("images"),
        "b1": InputSpec(optional=True),
        "extra": InputSpec(optional=True),
    }
    load = "medpipe.io.transforms:LoadVolumed"
    own = "test_map_sidecars:Mapd"
    steps = (
        step("load", "images", "images", "medpipe.io.weighted:LoadWeightedd"),
        step("loadb1", "b1", "b1", load),
        step("loadextra", "extra", "other", load, save=(SaveSpec("other", "extra.nii.gz"),)),
        step(
            "fit",
            "images",
            "maps",
            own,
            reads={"b1": "b1"},
            params={"b1": "b1"},
            save=(SaveSpec("maps", "T1map.nii.gz"),),
        ),
        step("error", "maps", "err", own, save=(SaveSpec("err", "T1map-error.nii.gz"),)),
    )
    return CompiledWorkflow("qmri-x", "1", "", inputs, steps)


def write(path: Path, value: float) -> str:
    nibabel.save(nibabel.Nifti1Image(np.full((3, 3, 3), value, np.float32), np.eye(4)), path)
    return str(path)


def run(root: Path, case_id: str) -> dict[str, Any]:
    secret = root / "MUSTERMANN"
    secret.mkdir(exist_ok=True)
    (secret / "x.json").write_text('{"EchoTime": 0.5}')
    inputs = {
        "images": write(secret / "x.nii", 1.5),
        "b1": write(secret / "b1.nii", 0.5),
        "extra": write(secret / "extra.nii", 2.5),
    }
    spec = RunSpec(str(root / "out"), workflow().to_dict(), "r", device="cpu")
    outcome = CaseRunner(spec, lambda event: None).run(Job(case_id, dict(inputs)))
    assert outcome.status == "done", outcome.error
    folder = root / "out" / "cases" / case_id
    return {p.name: json.loads(p.read_text()) for p in folder.glob("*.nii.gz.json")}


def test_fields_and_sources_are_in_the_sidecar_of_the_map_alone(tmp_path: Path) -> None:
    sidecars = run(tmp_path, "sub-01")
    found = sidecars["T1map.nii.gz.json"]
    assert found["Units"] == "s"
    assert found["EstimationAlgorithm"] == "closed form"
    assert found["output"]["file"] == "T1map.nii.gz"
    assert found["Sources"] == ["bids:inputs:sub-01/b1", "bids:inputs:sub-01/images"]
    # the error was made from the map, which was made from both
    assert sidecars["T1map-error.nii.gz.json"]["Sources"] == found["Sources"]
    assert "Sources" not in sidecars["extra.nii.gz.json"]
    assert "MUSTERMANN" not in json.dumps(sidecars)
    # a run that finds everything in the store writes the same
    assert run(tmp_path, "sub-01") == sidecars


def test_maps_keep_their_suffix_in_the_derivative(tmp_path: Path) -> None:
    for case_id in ("sub-01", "sub-02_ses-a_run-1_T1w", "p_3"):
        run(tmp_path, case_id)
    target = tmp_path / "derived"
    export_derivative(tmp_path / "out", target, source="../..")
    names = {
        path.relative_to(target).as_posix().removesuffix(".nii.gz")
        for path in target.rglob("*.nii.gz")
    }
    assert names == {
        "sub-01/anat/sub-01_desc-qmrix_T1map",
        "sub-01/anat/sub-01_desc-qmrixError_T1map",
        "sub-01/anat/sub-01_desc-qmrix_extra",
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_desc-qmrix_T1map",
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_desc-qmrixError_T1map",
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_desc-qmrix_T1w",
        "sub-p3/anat/sub-p3_desc-qmrix_T1map",
        "sub-p3/anat/sub-p3_desc-qmrixError_T1map",
        "sub-p3/anat/sub-p3_desc-qmrix_extra",
    }
    sidecar = json.loads((target / "sub-01/anat/sub-01_desc-qmrixError_T1map.json").read_text())
    assert (sidecar["Units"], sidecar["output"]["file"]) == ("s", "T1map-error.nii.gz")
    description = json.loads((target / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"inputs": "../.."}
