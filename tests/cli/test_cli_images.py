"""Workflows that take a set of weighted images: folders, files, BIDS datasets, manifests."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medpipe.cli.main import invoke

pytestmark = pytest.mark.slow

WORKFLOW = """
name = "set"
version = "1"
summary = "load a set and keep it"

[inputs.images]
kind = "images"

[inputs.b1]
kind = "volume"
optional = true

[[step]]
id = "load"
use = "load_weighted"
in = "images"
save = "images.nii.gz"

[[step]]
id = "b1"
use = "load_volume"
in = "b1"
save = "b1.nii.gz"
"""


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = invoke([str(a) for a in arguments] + ["--json"])
    return code, json.loads(capsys.readouterr().out)


def write(path: Path, data: np.ndarray, sidecar: dict[str, Any] | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([1.0, 1, 1, 1])), path)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    if sidecar is not None:
        (path.parent / f"{stem}.json").write_text(json.dumps(sidecar))
    then = time.time() - 3600
    for file in path.parent.iterdir():
        os.utime(file, (then, then))
    return path


def vfa(anat: Path, prefix: str = "sub-01") -> Path:
    for number in (1, 2):
        sidecar = {"FlipAngle": 10 * number, "RepetitionTimeExcitation": 0.01}
        name = f"{prefix}_flip-{number}_VFA.nii.gz"
        write(anat / name, np.full((4, 4, 4), number / 8), sidecar)
    return anat


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "set.toml"
    path.write_text(WORKFLOW)
    return path


def kept(out: Path, case: str) -> np.ndarray:
    return np.asarray(nib.load(out / "cases" / case / "images.nii.gz").dataobj)


def source(out: Path, case: str) -> dict[str, Any]:
    return json.loads((out / "cases" / case / "images.nii.gz.json").read_text())["source"]


@pytest.mark.usefixtures("cases_here")
def test_a_folder_is_one_case_and_its_sidecars_are_part_of_it(
    workflow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, out = vfa(tmp_path / "MUSTERMANN" / "set"), tmp_path / "out"
    code, first = call(capsys, "run", workflow, folder, out, "--quiet", "--no-report")
    assert (code, first["done"]) == (0, 1)
    assert kept(out, "case0001").shape == (4, 4, 4, 2)
    assert [a["flip_angle_deg"] for a in source(out, "case0001")["acquisitions"]] == [10, 20]
    record = (out / "cases" / "case0001" / "case.json").read_text()
    assert json.loads(record)["inputs"]["images"]["kind"] == "images"
    assert "MUSTERMANN" not in record

    _, planned = call(capsys, "plan", workflow, folder, out)
    assert planned["counts"]["cached"] == 1

    # the same bytes under exchanged names are another set
    one, two = (folder / f"sub-01_flip-{n}_VFA.json" for n in (1, 2))
    texts = one.read_text(), two.read_text()
    one.write_text(texts[1])
    two.write_text(texts[0])
    _, planned = call(capsys, "plan", workflow, folder, out)
    assert planned["counts"] == {"cached": 0, "pending": 0, "unknown": 1}
    code, third = call(capsys, "run", workflow, folder, out, "--quiet", "--no-report")
    assert (code, third["done"], third["cached"]) == (0, 1, 0)
    assert [a["flip_angle_deg"] for a in source(out, "case0001")["acquisitions"]] == [20, 10]


@pytest.mark.usefixtures("cases_here")
def test_a_file_is_one_case_with_its_sidecar(
    workflow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path / "in" / "x.nii.gz", np.ones((3, 3, 3, 2)), {"EchoTime": [0.1, 0.2]})
    out = tmp_path / "out"
    assert call(capsys, "run", workflow, path, out, "--quiet", "--no-report")[0] == 0
    assert call(capsys, "plan", workflow, path, out)[1]["counts"]["cached"] == 1
    (path.parent / "x.json").write_text('{"EchoTime": [0.1, 0.3]}')
    assert call(capsys, "plan", workflow, path, out)[1]["counts"]["unknown"] == 1
    assert source(out, "case0001")["acquisitions"][1] == {"echo_time_s": 0.2}


@pytest.mark.usefixtures("cases_here")
def test_a_bids_dataset_gives_one_case_per_session_also_as_a_manifest(
    workflow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root, out = tmp_path / "dataset", tmp_path / "out"
    vfa(root / "sub-01" / "anat")
    for session in ("a", "b"):
        prefix = f"sub-02_ses-{session}"
        vfa(root / "sub-02" / f"ses-{session}" / "anat", prefix)
    (root / "sub-03" / "func").mkdir(parents=True)
    code, summary = call(capsys, "run", workflow, root, out, "--quiet", "--no-report")
    assert (code, summary["done"]) == (0, 3)
    names = ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]
    assert sorted(p.name for p in (out / "cases").iterdir()) == names

    table = root / "cases.csv"
    code, report = call(
        capsys, "manifest", "scan", root, table, "--kind", "bids", "--workflow", workflow
    )
    assert (code, report["cases"]) == (0, 3)
    assert report["left_out"] == [{"what": "sub-03", "why": "it has no folder anat"}]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["case_id"] for row in rows] == names
    assert rows[2]["images"] == "sub-02/ses-b/anat"
    assert rows[2]["patient_id"] == "sub-02"
    _, planned = call(capsys, "plan", workflow, table, out)
    assert planned["counts"]["cached"] == 3


@pytest.mark.usefixtures("cases_here")
def test_the_bids_command_takes_sessions(
    workflow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root, out = tmp_path / "dataset", tmp_path / "derived"
    vfa(root / "sub-01" / "anat")
    vfa(root / "sub-02" / "anat", "sub-02")
    words = ["--participant-label", "02", "--quiet"]
    assert invoke(["bids", str(workflow), str(root), str(out), "participant", *words]) == 0
    assert (out / "sub-02" / "anat" / "sub-02_desc-set_images.nii.gz").is_file()
    assert not (out / "sub-01").exists()
    words[1] = "99"
    assert invoke(["bids", str(workflow), str(root), str(out), "participant", *words]) == 2
    (root / "sub-04").mkdir()
    words[1] = "04"
    assert invoke(["bids", str(workflow), str(root), str(out), "participant", *words]) == 2
    assert "no session with a folder anat" in capsys.readouterr().err


@pytest.mark.usefixtures("cases_here")
def test_a_bad_set_is_one_line_that_names_no_file(
    workflow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, out = vfa(tmp_path / "MUSTERMANN" / "set"), tmp_path / "out"
    (folder / "sub-01_flip-2_VFA.json").unlink()
    code, summary = call(capsys, "run", workflow, folder, out, "--quiet", "--no-report")
    assert code == 4
    (failure,) = summary["failed"]
    assert "image 2 of 2: the image has no JSON sidecar" in failure["message"]
    assert "MUSTERMANN" not in json.dumps(summary["failed"])
    assert not list((out / "cases" / "case0001").glob("*.nii.gz"))
    (tmp_path / "none" / "sub-01").mkdir(parents=True)
    assert invoke(["run", str(workflow), str(tmp_path / "none"), str(out)]) == 2
    assert "no subject of the BIDS dataset" in capsys.readouterr().err
    words = ["manifest", "scan", str(folder), str(tmp_path / "c.csv"), "--workflow", str(workflow)]
    assert invoke(words) == 2
    assert "one row per examination" in capsys.readouterr().err
