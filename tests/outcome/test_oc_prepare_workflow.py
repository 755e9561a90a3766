"""The workflow from a DICOM folder to a prepared volume, without a step by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medpipe.engine.case import CaseRunner
from medpipe.engine.protocol import Job, RunSpec
from medpipe.geometry import affine_from_parts, to_mm
from medpipe.io.nifti import write_nifti
from medpipe.io.transforms import LoadVolume
from medpipe.outcome.transforms.prepare import CtCheck, HeadFrame, HeadGrid
from medpipe.phantoms.anatomy import HeadLabel, Subject
from medpipe.phantoms.head_ct import HeadCT
from medpipe.steps.spatial import Resample
from medpipe.types import Volume
from medpipe.workflow.plan import compile_workflow

SHAPE = (72, 80, 34)
SPACING = np.array([3.2, 3.2, 5.5])


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A turned head, and the same values without their offset."""
    folder = tmp_path_factory.mktemp("scans")
    subject = replace(Subject.from_seed(11), tilt_deg=(6.0, 5.0, -12.0))
    affine = affine_from_parts(np.eye(3), SPACING, (0, 0, -4) - (np.array(SHAPE) - 1) / 2 * SPACING)
    hu = HeadCT(11, subject=subject, edge_mm=2.0).sample(affine, SHAPE)[1].round()
    for name, offset in (("head", 0), ("shifted", 1024)):
        write_nifti(folder / f"{name}.nii.gz", Volume((hu + offset).astype(np.int16), affine))
    return folder


def test_a_batch(cases: Path) -> None:
    """One case is refused with its reason, the other goes on."""
    out = cases / "out"
    sets = ["grid.spacing_mm=4", "grid.size_voxels=[48, 60, 48]"]
    compiled = compile_workflow("outcome-prepare", sets)
    runner = CaseRunner(RunSpec(str(out), compiled.to_dict(), "r", device="cpu"), lambda _: None)
    status = {
        name: runner.run(Job(name, {"image": str(cases / f"{name}.nii.gz")})).status
        for name in ("head", "shifted")
    }
    assert status == {"head": "done", "shifted": "failed"}
    failed = json.loads((out / "cases" / "shifted" / "case.json").read_text())
    assert "shifted by about +1000" in failed["error"]["message"]
    assert failed["error"]["step"] == "check"
    prepared = nib.load(out / "cases" / "head" / "prepared.nii.gz")
    head = nib.load(out / "cases" / "head" / "head.nii.gz")
    assert prepared.get_data_dtype() == np.int16
    assert prepared.shape == head.shape == (48, 60, 48)
    assert nib.aff2axcodes(prepared.affine) == ("R", "A", "S")
    inside = np.asarray(head.dataobj) > 0
    values = np.asarray(prepared.dataobj)[inside]
    assert 20 < np.median(values) < 60
    # the matrix of the sidecar leads to the anatomy
    sidecar = json.loads((out / "cases" / "head" / "prepared.nii.gz.json").read_text())
    matrix = np.array(find(sidecar, "frame_to_input_ras_mm"))
    anatomy = HeadCT(11, subject=replace(Subject.from_seed(11), tilt_deg=(6.0, 5.0, -12.0)))
    index = np.argwhere(inside)
    labels = anatomy.labels(to_mm(matrix @ prepared.affine, index[::40]))
    assert ((labels > 0) & (labels < HeadLabel.TABLE)).mean() > 0.95


def find(record: object, name: str) -> object:
    """Return the first value of that name in nested tables."""
    if isinstance(record, dict):
        if name in record:
            return record[name]
        for value in record.values():
            found = find(value, name)
            if found is not None:
                return found
    return None


def test_the_grid_is_reached_by_one_interpolation() -> None:
    """Between loading and the grid no step makes new values."""
    steps = compile_workflow("outcome-prepare").steps
    assert [s.use for s in steps] == ["load_volume", "ct_check", "head_frame", "head_grid"]
    load = steps[0].params
    assert (load["gantry_tilt"], load["resample_grid"]) == ("keep", "slices")
    assert {(s.params["grid"]) for s in steps if s.use == "head_grid"} == {"paper"}


@pytest.mark.real_data
def test_a_real_tilted_series_agrees_with_its_reference(real_data: Path) -> None:
    """At the places that the matrix says, HU are those of a volume made by other software."""
    folder = real_data / "head_ct_ge_tilt_dicom"
    load = compile_workflow("outcome-prepare").steps[0].params
    names = ("variable_step", "gantry_tilt", "resample_grid")
    scan = LoadVolume(**{n: load[n] for n in names})(folder)
    framed = HeadFrame()(CtCheck()(scan))
    made = HeadGrid("compact")(framed)
    facts = made.meta["medpipe"]["source"]
    frame = facts["head_frame"]
    assert frame["aligned"]
    assert frame["level"]
    assert frame["symmetry"] > 0.9
    assert facts["ct_check"]["slices"] == 28
    checks = [f["check"] for f in made.meta["medpipe"]["findings"]]
    assert "outcome.contrast" not in checks

    reference = LoadVolume()(folder / "derived_GE_head_tilt_corrected_1mm_HU.nii.gz")
    matrix = np.array(frame["frame_to_input_ras_mm"])
    target = made.clone()
    target.affine = matrix @ np.array(made.affine.tolist())
    truth = Resample(fill=-1000.0)(reference, target)[0].numpy()
    ours = made[0].numpy()
    inside = (truth > -200) & (ours > -1000)
    assert inside.sum() * 2.5**3 / 1000 > 2000
    error = np.abs(ours - truth)[inside]
    assert np.median(error) <= 10
    brain = inside & (truth > 0) & (truth < 80)
    assert np.median((ours - truth)[brain]) == pytest.approx(0, abs=1)
    # the head is upright: mirror images agree
    hu = ours.clip(-200, 300)
    assert np.corrcoef(hu.ravel(), hu[::-1].ravel())[0, 1] > 0.9
