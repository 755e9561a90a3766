"""Bad input of a study, by the command: who is named, who goes on, what is left behind.

====================================  ======================================================
input                                 where it is tested
====================================  ======================================================
one class only                        here by the command; `test_oc_cohort`, `test_oc_folds`
fewer events than folds               here by the command; `test_oc_cohort`, `test_oc_folds`
too few events to validate            here by the command
missing outcome                       here by the command; every spelling: `test_oc_cohort`
outcome not binary                    here by the command; every spelling: `test_oc_cohort`
one patient, two outcomes             here by the command; `test_oc_cohort`
no head CT, MR, corrupt series        here in a batch; each limit: `test_oc_checks`
contrast medium                       here in a batch; found in voxels: `test_oc_checks`
every case is bad                     here by the command
a patient, study or CT in two folds   `test_oc_train_command`, `test_oc_leaks`
wrong covariates, times, sites        `test_oc_cohort`, `test_oc_train_command`
prepared volumes on another grid      `test_oc_samples`, `test_oc_training`
====================================  ======================================================
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from medpipe.io.nifti import write_nifti
from medpipe.outcome import crossval
from medpipe.phantoms.pelvis_ct import pelvis_ct
from medpipe.types import Volume


def errors(done) -> list[str]:
    """Return the errors of a refused command."""
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error ")]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {i: {"outcome": "0"} for i in range(10)},
            "error cases.csv: every outcome is 0; a model needs both. Next: check the coding: 1"
            " is the event, 0 is its absence",
        ),
        (
            {4: {"outcome": ""}},
            "error cases.csv:6: 'outcome' is missing. Next: every case needs it",
        ),
        (
            {5: {"outcome": "died"}},
            "error cases.csv:7: 'outcome' is not 0 or 1. Next: write 1 for the event and 0 for"
            " its absence",
        ),
        (
            {1: {"outcome": "0"}},
            "error cases.csv:3: the patient of line 2 has another 'outcome' here. Next: correct"
            " one of the two, or the patient",
        ),
    ],
    ids=["one class", "missing", "not binary", "contradicting"],
)
def test_a_wrong_outcome_is_told_with_its_row(head_study, tmp_path, change, told):
    rows = [row | change.get(i, {}) for i, row in enumerate(head_study.rows)]
    done = head_study.train(tmp_path, rows)
    assert (done.returncode, errors(done)) == (2, [told])
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]


@pytest.mark.parametrize(
    ("dead", "told"),
    [
        (1, "error cases.csv: 1 patients with the event are fewer than the 2 folds"),
        (
            2,
            "error training without fold 1: too few patients are left to train and to validate"
            " with; expected two or more with the event, and without, got 1 and ",
        ),
    ],
)
def test_too_few_events_are_told_before_anything_is_prepared(head_study, tmp_path, dead, told):
    names = sorted({row["patient_id"] for row in head_study.rows})[-dead:]
    rows = [row | {"outcome": str(int(row["patient_id"] in names))} for row in head_study.rows]
    done = head_study.train(tmp_path, rows)
    (error,) = errors(done)
    assert error.startswith(told)
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]


def bad_cases(spare: dict[str, str], folder: Path) -> list[dict[str, str]]:
    """Return rows of a CT with contrast medium and of four images that are no head CT."""
    rows = [spare | {"case_id": "contrast", "image": str(folder / "contrast")}]
    for k, name in enumerate(("contrast", "mr", "corrupt")):
        shutil.copytree(spare["image"], folder / name)
        for path in (folder / name).iterdir():
            ds = dcmread(path)
            ds.StudyInstanceUID = f"1.2.3.{k}"
            if name == "contrast":
                ds.ContrastBolusAgent = "Iodine"
            if name == "mr":
                ds.Modality = "MR"
            ds.save_as(path)
    damaged = sorted((folder / "corrupt").iterdir())[5]
    damaged.write_bytes(damaged.read_bytes()[:-200])
    pelvis = pelvis_ct(3, shape=(64, 48, 28), spacing_mm=(6.0, 6.0, 7.0)).volume
    hu = np.rint(pelvis.data).astype(np.int16)
    write_nifti(folder / "pelvis.nii.gz", Volume(hu, pelvis.affine))
    images = {"pelvis": "pelvis.nii.gz", "mr": "mr", "corrupt": "corrupt"}
    for k, (case, image) in enumerate(images.items()):
        row = {"case_id": case, "patient_id": f"Q{k}", "image": str(folder / image)}
        rows.append(spare | row)
    return rows


def test_in_a_batch_bad_cases_are_named_and_left_out_and_the_others_go_on(head_study, tmp_path):
    head_study.prepared_in(tmp_path)
    bad = bad_cases(head_study.spare, tmp_path)
    done = head_study.train(tmp_path, [*bad, *head_study.rows])
    assert done.returncode == 3, done.stderr
    told = done.stderr.splitlines()
    left = {line.split(" · ")[0]: line for line in told if line.startswith("left out: ")}
    assert set(left) == {f"left out: case {name}" for name in ("pelvis", "mr", "corrupt")}
    assert "shows no head" in left["left out: case pelvis"]
    assert "the image is no CT; expected modality CT, got MR" in left["left out: case mr"]
    assert "load" in left["left out: case corrupt"]
    assert "11 of 14 cases prepared; pictures: OUT/prepared/index.html" in told
    found = "noticed: case contrast · ct_check: the header names a contrast medium"
    assert found in told
    out = tmp_path / "OUT"
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert (evaluation["n"], evaluation["flow"]["read"]) == (11, 14)
    refused = {row["reason"]: row["n"] for row in evaluation["flow"]["refused"]}
    assert refused == {
        "check: the image is no CT": 1,
        "check: the image shows no head": 1,
        "load: a slice cannot be read: its pixel data is truncated: … of … bytes": 1,
    }
    assert "ct_check: the header names a contrast medium" in evaluation["study"]["findings"]
    with (out / "predictions.csv").open(newline="") as file:
        cases = {row["case_id"] for row in csv.DictReader(file)}
    assert cases == {"contrast", *(row["case_id"] for row in head_study.rows)}
    # a NIfTI file knows no study, but it was left out: all others were compared
    assert "could not be compared" not in done.stderr
    assert (out / "index.html").is_file()


def test_a_study_of_bad_cases_alone_ends_without_a_model(head_study, tmp_path, monkeypatch):
    monkeypatch.setattr(crossval, "train_fold", None)
    write_nifti(tmp_path / "few.nii.gz", Volume(np.zeros((12, 12, 9), np.int16), np.eye(4)))
    image = str(tmp_path / "few.nii.gz")
    done = head_study.train(tmp_path, [row | {"image": image} for row in head_study.rows])
    assert done.returncode == 4
    assert errors(done) == ["error no case could be prepared. Next: see OUT/prepared/index.html"]
    assert done.stderr.count("left out: case ") == 10
    assert [path.name for path in (tmp_path / "OUT").iterdir()] == ["prepared"]
