"""The verbs together, as a user types them, on simulated patients."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from medpipe.cli.main import invoke

pytestmark = pytest.mark.slow


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict]:
    """Run a verb with --json; return exit code and what it printed."""
    capsys.readouterr()
    code = invoke([str(a) for a in arguments] + ["--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six simulated patients of the demonstration, small."""
    folder = tmp_path_factory.mktemp("demo") / "patients"
    assert invoke(["data", "demo", str(folder), "--matrix", "32"]) == 0
    settled = time.time() - 60  # digests of files that were just written are not remembered
    for path in folder.rglob("*"):
        os.utime(path, (settled, settled))
    return folder


def test_a_manifest_runs_fails_where_it_must_and_resumes(
    patients: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    manifest, out = patients / "cases.csv", tmp_path / "out"
    code, planned = run_json(capsys, "plan", "dicom-import", manifest, out)
    assert code == 0
    assert planned["counts"] == {"cached": 0, "pending": 0, "unknown": 6}
    assert not out.exists()

    code, first = run_json(capsys, "run", "dicom-import", manifest, out, "--workers", 2)
    assert code == 3
    assert (first["total"], first["done"], first["cached"]) == (6, 4, 0)
    messages = {failure["case_id"]: failure["message"] for failure in first["failed"]}
    assert set(messages) == {"p03", "p05"}
    assert "--set load.variable_step=resample" in messages["p03"]
    assert "1 slice is missing" in messages["p05"]
    assert Path(first["report"]).is_file()

    record = json.loads((out / "runs" / first["run_id"] / "run.json").read_text())
    assert record["timeout_s"] == 7200
    total = psutil.virtual_memory().total
    assert record["memory_gb"] == pytest.approx(0.9 * total / 2 / 1e9, rel=0.01)

    request.getfixturevalue("cases_here")  # processes were started; what is resumed is not theirs
    code, planned = run_json(capsys, "plan", "dicom-import", manifest, out)
    assert planned["counts"]["cached"] == 4
    code, second = run_json(capsys, "run", "dicom-import", manifest, out)
    assert (code, second["done"], second["cached"]) == (3, 0, 4)

    repairs = [
        "load.variable_step=resample",
        "load.missing_slices=interpolate",
        "load.resample_spacing_mm=8",
    ]
    options = [word for repair in repairs for word in ("--set", repair)]
    code, third = run_json(capsys, "run", "dicom-import", manifest, out, *options)
    assert (code, third["failed"]) == (0, [])
    record = json.loads((out / "cases" / "p05" / "volume.nii.gz.json").read_text())
    assert "missing_slices" in json.dumps(record)


@pytest.mark.usefixtures("cases_here")
def test_two_shards_together_are_the_whole(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = []
    for shard in ("1/2", "2/2"):
        _, summary = run_json(
            capsys, "run", "dicom-import", patients / "cases.csv", tmp_path, "--shard", shard
        )
        totals.append(summary["total"])
    assert sum(totals) == 6
    assert min(totals) > 0
    assert len(list(tmp_path.glob("cases/*/case.json"))) == 6


@pytest.mark.usefixtures("cases_here")
def test_a_folder_and_a_file_need_no_manifest(
    patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, summary = run_json(capsys, "run", "dicom-import", patients / "case-01", tmp_path / "a")
    assert (code, summary["done"]) == (0, 1)
    volume = tmp_path / "a" / "cases" / "case0001" / "volume.nii.gz"
    code, summary = run_json(
        capsys, "run", "nifti-check", volume, tmp_path / "b", "--case-id", "again"
    )
    assert (code, summary["done"]) == (0, 1)
    table = json.loads((tmp_path / "b" / "cases" / "again" / "statistics.json").read_text())
    data = np.asarray(nib.load(volume).dataobj)
    assert table["image"]["max"] == data.max()
    assert table["image"]["mean"] == pytest.approx(data.mean(dtype=float), rel=1e-6)


@pytest.mark.usefixtures("cases_here")
def test_a_folder_of_nifti_files_is_checked_file_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    assert invoke(["data", "nifti-folder", str(folder), "--matrix", "24"]) == 0
    code, summary = run_json(capsys, "run", "nifti-check", folder, tmp_path / "out")
    assert code == 3
    assert summary["total"] == len(list(folder.iterdir()))
    assert summary["done"] >= 4
    assert all(failure["hint"] for failure in summary["failed"])


@pytest.mark.usefixtures("cases_here")
def test_a_bids_dataset_becomes_a_derivative(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, derivative = tmp_path / "data", tmp_path / "derived"
    for subject in ("01", "02"):
        folder = dataset / f"sub-{subject}" / "anat"
        folder.mkdir(parents=True)
        target = folder / f"sub-{subject}_T1w.nii.gz"
        assert invoke(["data", "brain-mr", str(target), "--matrix", "24"]) == 0
    (dataset / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    code = invoke(["bids", "dicom-import", str(dataset), str(derivative), "participant"])
    assert code == 0, capsys.readouterr().err
    description = json.loads((derivative / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert len(list(derivative.glob("sub-*/**/*.nii.gz"))) == 2
    assert invoke(["bids", "dicom-import", str(dataset), str(derivative), "group"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "dicom-imprt", "x", "out"], "dicom-import"),
        (["run", "dicom-import", "no-such-folder", "out"], "no such file or folder"),
        (["run", "dicom-import", ".", "out", "--shard", "3/2"], "--shard is not understood"),
        (["run", "dicom-import", ".", "out", "--gpus", "a"], "--gpus is not understood"),
        (["run", "dicom-import", ".", "out", "--set", "load.nonsense=1"], "nonsense"),
        (["data", "demo", "."], "not empty"),
        (["show", "no-such-thing"], "medpipe ls"),
        (["show", "nothere.toml"], ". Next: medpipe ls"),
        (["show", "loadvolume"], '"load_volume"'),
        (["doctor", "nowhere"], "no such folder"),
        (["doctor", "."], "no run in this folder"),
        (["report", "."], "no run in this folder"),
        (["bids", "nifti-check", ".", "out", "group"], "level participant first"),
        (["manifest", "series", "."], "no DICOM series"),
        (["run", "dicom-import", "cases.xlsx", "out"], "is a spreadsheet"),
        (["run", "dicom-import", ".", "out"], "within a folder of input"),
        (["plan", "dicom-import", "cases.csv", "./scan/out"], "within a folder of input"),
    ],
)
def test_wrong_commands_say_so_in_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "slice").touch()
    (tmp_path / "cases.csv").write_text("case_id,image\na,scan\n")
    (tmp_path / "cases.xlsx").write_bytes(b"PK\x03\x04")
    assert invoke(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_problems_of_a_manifest_are_json_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cases.csv").write_text("case_id,image\n12-Mar,.\n1.2E+11,.\n")
    code, said = run_json(capsys, "validate", tmp_path / "cases.csv")
    assert code == 2
    assert [problem["line"] for problem in said["problems"]] == [2, 3]


def test_patients_are_counted_where_they_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cases.csv").write_text("case_id,image\na,.\n")
    assert invoke(["validate", str(tmp_path / "cases.csv")]) == 0
    assert capsys.readouterr().out.strip().endswith("1 sound cases; inputs image")


def test_a_head_ct_is_written_as_nifti_in_whole_hu(tmp_path: Path) -> None:
    target = tmp_path / "head.nii.gz"
    assert invoke(["data", "head-ct", str(target), "--matrix", "24", "--slices", "6"]) == 0
    image = nib.load(target)
    assert image.get_data_dtype() == np.int16
    assert image.shape == (24, 24, 6)


def test_series_are_chosen_by_contrast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patient = tmp_path / "patient"
    assert invoke(["data", "head-ct", str(patient), "--matrix", "24", "--slices", "4"]) == 0
    chosen = tmp_path / "cases.csv"
    code, said = run_json(capsys, "manifest", "scan", patient, chosen, "--no-contrast")
    assert (code, said["cases"]) == (0, 1)
    assert invoke(["manifest", "scan", str(patient), str(chosen), "--contrast"]) == 2


def test_gpus_that_are_not_there_are_not_replaced_by_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "99")  # hides every GPU this machine may have
    image = tmp_path / "brain.nii.gz"
    assert invoke(["data", "brain-mr", str(image), "--matrix", "16"]) == 0
    asked = ["nifti-check", image, tmp_path / "out", "--gpus", 0, "--no-report"]
    code, summary = run_json(capsys, "run", *asked)
    assert code == 2
    assert "no CUDA device" in summary["failed"][0]["message"]
