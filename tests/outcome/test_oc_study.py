"""A study from prepared volumes to files, and the command that trains one."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medpipe.errors import UsageError
from medpipe.io.nifti import write_nifti
from medpipe.outcome.bundle import read_bundle
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.crossval import CrossSettings
from medpipe.outcome.network import OutcomeNetworkSettings
from medpipe.outcome.prepare import GridSettings
from medpipe.outcome.recalibrate import recalibration_from_dict
from medpipe.outcome.study import StudyFacts, train_study
from medpipe.outcome.training import OutcomeTraining
from medpipe.types import Volume

GRID = GridSettings((10.0, 10.0, 10.0), (16, 16, 16))
SETTINGS = CrossSettings(
    training=OutcomeTraining(
        iterations=4, batch_size=8, validate_every=2, validation_share=0.3, augmentation=None,
        folds=2, size_voxels=(16, 16, 16), spacing_mm=(10.0, 10.0, 10.0),
    ),
    network=OutcomeNetworkSettings(architecture="small"),
)  # fmt: skip
FACTS = StudyFacts("toy", "death within 3 months", simulated=True, demonstration=True)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(1)
    outcome = np.tile([0, 0, 1], 8)
    ids = tuple(f"c{i:02d}" for i in range(len(outcome)))
    volumes = {}
    for case, y in zip(ids, outcome, strict=True):
        hu = rng.normal(30 + 15 * y, 10, (16, 16, 16)).round().astype(np.int16)
        volumes[case] = folder / f"{case}.nii.gz"
        write_nifti(volumes[case], Volume(hu, GRID.affine()))
    age = 55 + 8 * outcome + rng.normal(0, 9, len(ids))
    return Cohort(ids, tuple(f"p{i}" for i in ids), outcome, {"age_years": age}), volumes


def test_a_study_leaves_a_report_and_a_model(cohort, tmp_path):
    table, volumes = cohort
    done = train_study(
        table, volumes, tmp_path, SETTINGS, grid=GRID, facts=FACTS, device="cpu", resamples=50,
        refused={"check: could not be prepared": 3},
    )  # fmt: skip
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert (evaluation["n"], evaluation["events"]) == (24, 8)
    assert evaluation["simulated"] is True
    assert evaluation["flow"]["read"] == 27
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [r["case_id"] for r in rows] == list(table.case_ids)
    np.testing.assert_allclose(
        [float(r["p_ct"]) for r in rows], done.crossed.probability["ct"], atol=1e-6
    )
    bundle = read_bundle(tmp_path / "model")
    assert bundle.digest == done.model_digest
    assert len(bundle.members) == 2
    facts = bundle.facts
    assert (facts.name, facts.outcome) == ("toy", "death within 3 months")
    assert facts.spacing_mm == GRID.spacing_mm
    assert "demonstration" in facts.notice
    # the map for new patients is that of all log odds out of fold
    learned = recalibration_from_dict(facts.recalibration)
    want = done.crossed.final.apply(done.crossed.tested)
    np.testing.assert_allclose(learned.apply(done.crossed.tested), want)
    assert "Simulated data" in (tmp_path / "model" / "docs" / "README.md").read_text()
    again = train_study(
        table, volumes, tmp_path, SETTINGS, grid=GRID, facts=FACTS, device="cpu", resamples=50,
        refused={"check: could not be prepared": 3},
    )  # fmt: skip
    assert again.model_digest == done.model_digest
    assert again.evaluation == done.evaluation


def test_folds_of_another_cohort_are_refused(cohort, tmp_path):
    table, volumes = cohort
    train_study(table, volumes, tmp_path, SETTINGS, grid=GRID, device="cpu", resamples=20)
    fewer = table.select(range(21))
    with pytest.raises(UsageError, match="fold"):
        train_study(fewer, volumes, tmp_path, SETTINGS, grid=GRID, device="cpu", resamples=20)


def medpipe(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medpipe", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_wrong_table_is_said_with_its_rows(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    text = "case_id,image,outcome\na,a.nii.gz,1\nb,a.nii.gz,\nc,a.nii.gz,maybe\n"
    (tmp_path / "cases.csv").write_text(text)
    done = medpipe("outcome-train", "cases.csv", "OUT", folder=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 2
    assert "3" in said
    assert "4" in said
    assert "maybe" not in said
    assert "Traceback" not in said
    assert not (tmp_path / "OUT").exists()
