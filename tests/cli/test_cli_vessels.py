"""`medpipe data vessels`: files that agree with each other."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medpipe.centerline.swc import read_swc
from medpipe.cli.main import invoke
from medpipe.io.manifest import read_manifest
from medpipe.phantoms.vessel_tree import vessel_tree


def cases(folder: Path, *options: str) -> list:
    assert invoke(["data", "vessels", str(folder), "--cases", "1", *options]) == 0
    return read_manifest(folder / "cases.csv")


def curve(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns of the file, read without medpipe."""
    path = folder / "t01" / "centerline.swc"
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("mm" in line and "RAS+" in line for line in comments)
    rows = np.loadtxt(path, ndmin=2)
    assert rows[:, 0].tolist() == list(range(1, len(rows) + 1))
    parents = rows[:, 6].astype(int)
    children = np.bincount(parents[parents > 0], minlength=len(rows) + 1)[1:]
    assert (rows[children > 1, 1] == 5).all()
    assert (rows[(children == 0) & (parents > 0), 1] == 6).all()
    return rows[:, 2:5], rows[:, 5], np.where(parents < 0, -1, parents - 1)


def holds(image: nib.Nifti1Image, points: np.ndarray) -> float:
    index = np.rint((points - image.affine[:3, 3]) / np.diag(image.affine)[:3]).astype(int)
    return float(np.asarray(image.dataobj)[tuple(index.T)].astype(bool).mean())


def test_the_curve_is_read_as_a_centerline(tmp_path: Path) -> None:
    cases(tmp_path / "out", "--size", "48")
    points, radius, parents = curve(tmp_path / "out")
    nodes = read_swc(tmp_path / "out" / "t01" / "centerline.swc")
    assert np.array_equal(nodes.points_mm, points)
    assert np.array_equal(nodes.radius_mm, radius)
    assert nodes.parents.tolist() == parents.tolist()
    tree = vessel_tree(0, shape=(48,) * 3, spacing_mm=(0.5,) * 3, root_radius_voxels=2.5)
    assert np.abs(tree.points_mm - points).max() < 1e-5
    assert (tree.parents == parents).all()


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
