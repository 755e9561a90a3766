"""`medpipe synthesis-evaluate`, from tables of NIfTI files to a report."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from sy_labelled_sets import REGIONS, eggs

from medpipe.cli.main import invoke
from medpipe.synthesis.metrics import label_volumes
from medpipe.synthesis.segmenter import SegmenterModel


def table(folder, name, n, seed, patients=None):
    images, labels = eggs(n, seed)
    volumes = label_volumes(labels, (1, 1, 1), REGIONS)["shell"]
    rows = ["case_id,patient_id,image,labels,shell"]
    for i in range(n):
        for kind, data in (("i", images[i]), ("l", labels[i])):
            nib.save(nib.Nifti1Image(data.numpy(), np.eye(4)), folder / f"{name}{kind}{i}.nii.gz")
        patient = f"{patients or name}{i}"
        rows.append(f"{name}{i},{patient},{name}i{i}.nii.gz,{name}l{i}.nii.gz,{volumes[i]}")
    path = folder / f"{name}.csv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return [table(folder, "a", 12, 0), table(folder, "b", 12, 1), table(folder, "s", 12, 2)]


REGION_WORDS = ["--region", "shell=1", "--region", "core=2"]


def test_tables_become_a_report(tables, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--iterations", "40", "--learning-rate", "1e-2", "--widths", "8", "16", "16"]
    code = invoke(
        ["synthesis-evaluate", *tables, str(out), *REGION_WORDS, "--condition", "shell",
         "--alignment", "centre", "--simulated", "--device", "cpu", "--quiet", *words]
    )  # fmt: skip
    record = json.loads((out / "evaluation.json").read_text())
    passed = [g["passed"] is True for g in record["gates"]]
    assert code == (0 if all(passed) else 3)
    said = capsys.readouterr().out
    assert all(f"{g['name']}: " in said for g in record["gates"])
    assert len(record["controls"]) == 4
    assert record["conditions"][0]["rows"]["synthetic"]["pearson"]["value"] > 0.8
    assert "Simulated data" in (out / "index.html").read_text()
    assert SegmenterModel.read(out / "segmenter.safetensors").name == record["features"]["name"]


def test_what_is_wrong_is_said_before_anything_is_trained(tables, tmp_path, capsys):
    leak = table(tmp_path, "c", 4, 1, patients="a")
    for words, says in (
        ([tables[0], leak, tables[2], *REGION_WORDS], "4 patients are in both real tables"),
        ([*tables, "--region", "shell"], "a region is wrong"),
        ([*tables, *REGION_WORDS, "--condition", "age"], "age is no number"),
    ):
        options = [w for w in words if w not in words[:3]]
        assert invoke(["synthesis-evaluate", *words[:3], str(tmp_path / "o"), *options]) == 2
        assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()
