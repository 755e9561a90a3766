"""`medpipe data brain-population`: a folder from label maps, and what is refused."""

import csv

import numpy as np
import pytest

from medpipe.cli.main import invoke
from medpipe.io.nifti import write_nifti
from medpipe.types import Volume


@pytest.fixture
def maps(tmp_path):
    """A folder with one head of balls: skull, fluid, cortex, white matter and a ventricle."""
    at = np.moveaxis(np.indices((48, 48, 48)), 0, -1) * 4.0 - 94.0
    r = np.sqrt((at**2).sum(-1))
    labels = np.zeros(r.shape, np.int16)
    for radius, number in ((84, 511), (74, 24), (66, 3), (55, 2), (16, 4)):
        labels[r < radius] = number
    folder = tmp_path / "maps"
    folder.mkdir()
    write_nifti(folder / "head.nii.gz", Volume(labels, np.diag([4.0, 4.0, 4.0, 1.0])))
    return folder


def test_a_population_is_written_with_its_manifest(capsys, maps, tmp_path):
    out = tmp_path / "out"
    options = ["--subjects", "1", "--matrix", "48", "--spacing-mm", "4", "--jacobian"]
    command = ["data", "brain-population", str(out), "--label-maps", str(maps), *options]
    assert invoke(command) == 0
    assert "1 simulated cases" in capsys.readouterr().out
    with (out / "cases.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["patient_id"] == "P0-0001"
    assert 5 < float(row["ventricle_ml"]) < 120
    assert sorted(p.name for p in (out / "images" / "brain0001").iterdir()) == [
        "growth.nii.gz",
        "labels.nii.gz",
        "mr.nii.gz",
    ]
    assert invoke(command) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--matrix", "32"], "field of view cuts the brain"),
        (["--subjects", "0"], "no such population"),
    ],
)
def test_what_makes_no_population_is_refused(capsys, tmp_path, options, words):
    assert invoke(["data", "brain-population", str(tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
