"""`medpipe data vessels`: files that agree with each other."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medpipe.cli.main import invoke
from medpipe.io.manifest import read_manifest


def cases(folder: Path, *options: str) -> list:
    assert invoke(["data", "vessels", str(folder), "--cases", "1", *options]) == 0
    return read_manifest(folder / "cases.csv")


def curve(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with (folder / "t01" / "centerline.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = np.array([[float(row[c]) for c in ("x_mm", "y_mm", "z_mm")] for row in rows])
    radius = np.array([float(row["radius_mm"]) for row in rows])
    return points, radius, np.array([int(row["parent"]) for row in rows])


def holds(image: nib.Nifti1Image, points: np.ndarray) -> float:
    index = np.rint((points - image.affine[:3, 3]) / np.diag(image.affine)[:3]).astype(int)
    return float(np.asarray(image.dataobj)[tuple(index.T)].astype(bool).mean())


@pytest.mark.parametrize("walls", ["clean", "very-rough", "kissing"])
def test_masks_hold_the_curves_of_their_file(tmp_path: Path, walls: str) -> None:
    (case,) = cases(tmp_path / "out", "--size", "64", "--walls", walls, "--ostium")
    assert sorted(case.inputs) == ["mask", "ostium"]
    mask, ostium = (nib.load(case.inputs[k]) for k in ("mask", "ostium"))
    assert mask.shape == (64, 64, 64)
    assert mask.get_data_dtype() == ostium.get_data_dtype() == np.uint8
    points, radius, parents = curve(tmp_path / "out")
    assert (parents < np.arange(len(parents))).all()
    assert radius.min() > 0.4
    assert holds(mask, points) > 0.95
    both = np.asarray(mask.dataobj).astype(bool) & np.asarray(ostium.dataobj).astype(bool)
    assert not both.any()


@pytest.mark.parametrize(
    ("kind", "size", "shape"),
    [("cta", 64, (64,) * 3), ("mra", 64, (64,) * 3), ("airway", 96, (96, 72, 84))],
)
def test_images_have_their_truth(tmp_path: Path, kind: str, size: int, shape: tuple) -> None:
    (case,) = cases(tmp_path / "out", "--kind", kind, "--size", str(size))
    assert sorted(case.inputs) == ["image", "truth"]
    image, truth = (nib.load(case.inputs[k]) for k in ("image", "truth"))
    assert image.shape == truth.shape == shape
    assert (image.affine == truth.affine).all()
    points, _, _ = curve(tmp_path / "out")
    assert holds(truth, points) > 0.95
    grey, inside = np.asarray(image.dataobj), np.asarray(truth.dataobj).astype(bool)
    away = grey[~inside].mean()
    assert (grey[inside].mean() < away) == (kind == "airway")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kind", "cta", "--walls", "rough"], "smooth walls"),
        (["--kind", "airway", "--walls", "kissing"], "clean walls"),
        (["--kind", "mra", "--ostium"], "goes with masks"),
        (["--kind", "airway", "--size", "32"], "too small"),
        (["--cases", "0"], "nothing to write"),
    ],
)
def test_what_does_not_go_together_is_said(
    tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["data", "vessels", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
