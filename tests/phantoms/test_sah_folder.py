"""`medpipe data simulate-sah`: files that agree with each other and with the truth."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from medpipe.cli.main import invoke
from medpipe.errors import UsageError
from medpipe.io.dicom_series import read_dicom_series
from medpipe.io.manifest import load_manifest
from medpipe.io.nifti import read_nifti
from medpipe.phantoms import sah_folder
from medpipe.phantoms.sah import SahScan
from medpipe.phantoms.sah_folder import SahCohort, write_sah_cohort
from medpipe.phantoms.sah_risk import SahRisk

COARSE = SahScan((4.0, 4.0, 4.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sah")
    options = ["--patients", "1", "--twice", "1", "--format", "both", "--labels", "--seed", "3"]
    code = invoke(["data", "simulate-sah", str(root / "c"), *options, "--spacing", "4", "4", "4"])
    assert code == 0
    return root / "c"


def test_the_manifest_names_every_image_and_what_a_study_knows(folder):
    manifest = load_manifest(folder / "cases.csv", inputs=["image"])
    assert [c.case_id for c in manifest.cases] == ["sah0001", "sah0001b"]
    assert [c.patient_id for c in manifest.cases] == ["P0001", "P0001"]
    for case in manifest.cases:
        assert Path(case.inputs["image"]).is_dir()
        known = case.covariates
        assert known["outcome"] in ("0", "1")
        assert known["event"] == known["outcome"]
        assert (float(known["time_days"]) <= 90) == (known["outcome"] == "1")
        assert known["site"] == "A"
        assert known["sex"] in ("F", "M")
        assert 1 <= int(known["wfns"]) <= 5
        assert 0 <= int(known["modified_fisher"]) <= 4
    first, second = (c.covariates for c in manifest.cases[:2])
    assert first["outcome"] == second["outcome"]
    assert first["time_days"] == second["time_days"]


def test_series_and_nifti_hold_the_same_voxels_in_the_same_place(folder):
    for case in ("sah0001", "sah0001b"):
        nifti = read_nifti(folder / "images" / case / "ct.nii.gz")
        series = read_dicom_series(folder / "images" / case / "dicom")
        # the same axes, whichever way they run
        flip = np.sign(np.diag(series.affine)[:3]) != np.sign(np.diag(nifti.affine)[:3])
        data = np.flip(series.data, np.flatnonzero(flip).tolist())
        np.testing.assert_array_equal(np.maximum(nifti.data, -1024), data)
        corner = series.affine @ [*np.where(flip, np.array(data.shape) - 1, 0), 1]
        np.testing.assert_allclose(corner[:3], nifti.affine[:3, 3], atol=1e-3)
    labels = read_nifti(folder / "images" / "sah0001" / "labels.nii.gz")
    assert labels.data.shape == nifti.data.shape
    assert labels.data.max() <= 7


def test_the_truth_explains_the_outcome(folder):
    truth = json.loads((folder / "truth.json").read_text())
    assert truth["simulated"] is True
    model = truth["model"]
    assert model["prevalence"] == 0.288
    assert model["bayes_auc"] == 0.9
    assert set(model["auc_ceilings"]) == {"clinical", "imaging", "imaging_age"}
    risk = SahRisk(model["intercept"], model["scale"])
    for facts in truth["cases"].values():
        ml, known = facts["blood_ml"], facts["covariates"]
        assert known["sah_ml"] == pytest.approx(ml["cisterns"] + ml["sulci"])
        assert known["shift_mm"] == pytest.approx(facts["shift_mm"])
        if facts["repeat"] == 0:
            assert facts["probability"] == pytest.approx(float(risk.probability(known)))
    a, b = truth["cases"]["sah0001"], truth["cases"]["sah0001b"]
    assert a["probability"] == b["probability"]
    assert truth["sample"]["patients"] == 1


def fake_patient(seed, drawn, **_):
    """A patient without an image, to count outcomes of many."""
    covariates = {name: float(value[0]) for name, value in drawn.items()}
    facts = {"covariates": covariates, "modified_fisher": 3}
    return type("Case", (), {"facts": facts})()


def test_outcomes_of_many_patients_have_the_stated_prevalence_and_auc(monkeypatch, tmp_path):
    monkeypatch.setattr(sah_folder, "simulate_patient", fake_patient)
    monkeypatch.setattr(sah_folder, "_write_case", lambda *_: tmp_path / "x.nii.gz")
    write_sah_cohort(tmp_path, SahCohort(2000, seed=1))
    truth = json.loads((tmp_path / "truth.json").read_text())["sample"]
    assert truth["events"] / 2000 == pytest.approx(0.288, abs=0.031)  # 3 standard errors
    assert truth["auc_of_true_probability"] == pytest.approx(0.90, abs=0.023)


def test_a_number_of_deaths_is_kept_and_takes_the_first_patients_there_are(monkeypatch, tmp_path):
    def written(root, cohort, made, case_id, patient):
        (root / "images" / case_id).mkdir(parents=True)
        return root / "images" / case_id / "ct.nii.gz"

    monkeypatch.setattr(sah_folder, "simulate_patient", fake_patient)
    monkeypatch.setattr(sah_folder, "_write_case", written)
    every = write_sah_cohort(tmp_path / "all", SahCohort(200, seed=1))
    kept = write_sah_cohort(tmp_path / "kept", SahCohort(100, seed=1, deaths=40))
    for outcome, number in ((1, 40), (0, 60)):
        ids = [c.case_id for c in every if c.covariates["outcome"] == outcome]
        assert [c.case_id for c in kept if c.covariates["outcome"] == outcome] == ids[:number]
    images = {p.name for p in (tmp_path / "kept/images").iterdir()}
    assert images == {c.case_id for c in kept}  # nobody is left over
    assert json.loads((tmp_path / "kept/truth.json").read_text())["sample"]["deaths_wanted"] == 40


def digest(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for path in files:
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return len(files), total.hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_another_cohort_and_process(folder, tmp_path):
    cohort = SahCohort(2, seed=3, format="both", scan=COARSE, labels=True)
    write_sah_cohort(tmp_path, cohort, workers=2)
    assert digest(tmp_path / "images" / "sah0001") == digest(folder / "images" / "sah0001")


def test_a_tilted_series_is_read_back_leaning(tmp_path):
    scan = SahScan((4.0, 4.0, 8.0), tilt_deg=12.0)
    cohort = SahCohort(1, seed=5, format="dicom", scan=scan)
    (case,) = write_sah_cohort(tmp_path, cohort)
    volume = read_dicom_series(case.inputs["image"])
    step = volume.affine[:3, :3]
    lean = np.degrees(np.arctan2(step[2, 1], step[1, 1]))
    assert abs(lean) % 180 == pytest.approx(12.0, abs=0.01) or abs(lean) == pytest.approx(
        168.0, abs=0.01
    )
    assert np.abs(step[:, 2]) == pytest.approx((0, 0, 8), abs=1e-6)
    assert (volume.data > 300).sum() * 0.128 > 300  # ml of bone: the head is there


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"patients": 0}, "no such cohort"),
        ({"patients": 2, "twice": 3}, "no such cohort"),
        ({"patients": 2, "sites": 9}, "unknown sites"),
        ({"patients": 2, "deaths": 3}, "no such number of deaths"),
        ({"patients": 2, "deaths": 1, "twice": 1}, "no such number of deaths"),
        ({"patients": 2, "format": "png"}, "unknown format"),
        ({"patients": 2, "format": "both", "scan": SahScan(tilt_deg=5)}, "tilted gantry"),
    ],
)
def test_impossible_cohorts_are_refused(settings, says):
    with pytest.raises(UsageError, match=says):
        SahCohort(**settings)


def test_a_folder_with_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    assert invoke(["data", "simulate-sah", str(tmp_path), "--patients", "1"]) != 0
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]
