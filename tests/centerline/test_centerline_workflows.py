"""The workflows of centerlines from the command line, with good and bad inputs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import nibabel as nib
import numpy as np
import pytest

from medpipe.centerline.tree import CenterlineTree
from medpipe.phantoms.vessel_tree import small_tree

AFFINE = np.diag([-0.7, -0.7, 0.9, 1.0])


Medpipe = Callable[..., "CompletedProcess[str]"]


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(data, affine), path)


def manifest(folder: Path, rows: dict[str, str], column: str = "mask") -> Path:
    path = folder / "cases.csv"
    lines = [f"{name},{file}" for name, file in rows.items()]
    path.write_text("\n".join([f"case_id,{column}", *lines]) + "\n")
    return path


def tube() -> np.ndarray:
    mask = np.zeros((30, 24, 40), np.uint8)
    mask[12:17, 9:14, 4:36] = 1
    mask[14:28, 10:13, 20:23] = 1
    return mask


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory, medpipe_here: Medpipe) -> tuple[Path, str]:
    """One run over a good mask and every bad one; the folder and what the program said."""
    folder = tmp_path_factory.mktemp("batch")
    rng = np.random.default_rng(0)
    two = tube()
    two[22:28, 2:6, 5:35] = 7
    inputs = {
        "good": tube(),
        "labels": two,
        "empty": np.zeros((20, 20, 20), np.uint8),
        "flat": np.ones((20, 20, 1), np.uint8),
        "probability": rng.random((20, 20, 20)).astype(np.float32),
        "ct": rng.integers(-1000, 1000, (20, 20, 20)).astype(np.int16),
        "inverted": 1 - tube(),
    }
    for name, data in inputs.items():
        save(folder / f"{name}.nii.gz", data)
    manifest(folder, {name: f"{name}.nii.gz" for name in inputs})
    done = medpipe_here("run", "centerline", "cases.csv", "OUT", folder=folder)
    assert "Traceback" not in done.stderr + done.stdout
    return folder, done.stdout + done.stderr


def record(folder: Path, case: str) -> dict:
    return json.loads((folder / "OUT" / "cases" / case / "case.json").read_text())


def test_good_cases_of_a_batch_with_bad_ones_are_done(batch: tuple[Path, str]) -> None:
    folder, said = batch
    assert "2 computed" in said
    assert "5 failed" in said
    made = {p.name for p in (folder / "OUT" / "cases" / "good").iterdir()}
    wanted = {
        "tree.json", "labels.nii.gz", "line.nii.gz", "summary.json", "branches.csv",
        "bifurcations.csv", "tree.swc", "tree.vtp", "tree.graphml", "tree.svg", "radius.svg",
    }  # fmt: skip
    assert wanted <= made
    tree = CenterlineTree.from_json((folder / "OUT/cases/good/tree.json").read_bytes())
    assert (len(tree.roots), len(tree.leaves)) == (1, 2)


def test_each_value_of_a_label_map_is_a_structure(batch: tuple[Path, str]) -> None:
    tree = CenterlineTree.from_json((batch[0] / "OUT/cases/labels/tree.json").read_bytes())
    assert [int(tree.structures[r]) for r in tree.roots] == [1, 7]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty", "the mask is empty"),
        ("flat", "two voxels or more along each axis"),
        ("probability", "use threshold first"),
        ("ct", "0 (background) to 255"),
        ("inverted", "the mask is not inverted"),
    ],
)
def test_a_bad_mask_fails_alone_in_one_line(
    batch: tuple[Path, str], case: str, message: str
) -> None:
    folder, said = batch
    found = record(folder, case)
    assert found["status"] == "failed"
    assert found["error"]["step"] == "centerline"
    assert message in found["error"]["message"]
    (line,) = [line for line in said.splitlines() if re.search(rf"\b{case}\b", line)]
    assert len(line) < 400
    assert str(folder) not in json.dumps(found)


def test_tables_and_labels_of_the_batch_agree(batch: tuple[Path, str]) -> None:
    folder = batch[0] / "OUT" / "cases" / "good"
    rows = list(csv.DictReader((folder / "branches.csv").read_text().splitlines()))
    labels = np.asarray(nib.load(folder / "labels.nii.gz").dataobj)
    line = np.asarray(nib.load(folder / "line.nii.gz").dataobj)
    assert ((labels > 0) == (tube() > 0)).all()
    assert [f"label {v}" for v in np.unique(labels)[1:]] == [row["name"] for row in rows]
    assert (labels[line > 0] == line[line > 0]).all()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["branches"] == len(rows) == 3
    assert summary["length_mm"] == pytest.approx(sum(float(r["length_mm"]) for r in rows))
    # 32 voxels along k and 14 along i, to a voxel or two at each end
    assert summary["length_mm"] == pytest.approx(31 * 0.9 + 13.5 * 0.7, abs=4.0)


def test_the_page_shows_the_tree_and_holds_all_it_needs(batch: tuple[Path, str]) -> None:
    page = (batch[0] / "OUT" / "report" / "cases" / "good.html").read_text()
    assert page.count('<img src="data:image/svg+xml;base64,') == 2
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert page.index('alt="Picture tree.svg') < page.index("data:image/png")


def test_points_and_options_by_set(batch: tuple[Path, str], medpipe_here: Medpipe) -> None:
    """A point outside fails the case in a line; a root inside is where the tree starts."""
    folder = batch[0]
    for path in ("OUT2", "OUT3"):
        shutil.rmtree(folder / path, ignore_errors=True)
    far = ["--set", "centerline.endpoint_points_mm=[[500.0, 0.0, 0.0]]"]
    done = medpipe_here("run", "centerline", "good.nii.gz", "OUT2", *far, folder=folder)
    assert done.returncode == 4
    assert "endpoint 1 lies" in done.stdout + done.stderr
    point = (AFFINE @ [14, 11, 35, 1])[:3].tolist()
    near = ["--set", f"centerline.root_points_mm=[{point}]"]
    done = medpipe_here("run", "centerline", "good.nii.gz", "OUT3", *near, folder=folder)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "OUT3" / "cases").glob("*/tree.json")
    tree = CenterlineTree.from_json(path.read_bytes())
    assert np.linalg.norm(tree.positions_mm[0] - point) < 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("centerline.root=upwards", "root"),
        ("centerline.ball_scale=-1", "ball_scale is wrong"),
        ("centerline.prune=3", "prune"),
    ],
)
def test_wrong_settings_are_said_before_or_with_the_first_case(
    tmp_path: Path, medpipe_here: Medpipe, change: str, message: str
) -> None:
    save(tmp_path / "good.nii.gz", tube())
    done = medpipe_here(
        "run", "centerline", "good.nii.gz", "OUT", "--set", change, folder=tmp_path
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stdout + done.stderr


def test_an_ostium_is_where_the_root_is(tmp_path: Path, medpipe_here: Medpipe) -> None:
    phantom = small_tree(5, ostium=True)
    save(tmp_path / "mask.nii.gz", phantom.mask.astype(np.uint8), phantom.affine)
    save(tmp_path / "aorta.nii.gz", np.asarray(phantom.ostium, np.uint8), phantom.affine)
    (tmp_path / "cases.csv").write_text("case_id,mask,ostium\na,mask.nii.gz,aorta.nii.gz\n")
    done = medpipe_here("run", "centerline", "cases.csv", "OUT", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    tree = CenterlineTree.from_json((tmp_path / "OUT/cases/a/tree.json").read_bytes())
    assert len(tree.roots) == 1
    gap = np.linalg.norm(tree.positions_mm[0] - phantom.points_mm[phantom.root])
    assert gap < 2 * phantom.radius_mm[phantom.root]


@pytest.mark.parametrize("kind", ["cta", "airway"])
def test_from_an_image_to_measures(tmp_path: Path, medpipe_here: Medpipe, kind: str) -> None:
    """As a new user: simulated image, workflow, results."""
    workflow = {"cta": "vessel-centerline", "airway": "airway-centerline"}[kind]
    size = {"cta": 96, "airway": 112}[kind]
    done = medpipe_here(
        "data", "vessels", "F", "--kind", kind, "--cases", 1, "--size", size, folder=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = medpipe_here("run", workflow, "F/cases.csv", "OUT", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "OUT" / "cases" / "t01"
    truth = np.loadtxt(tmp_path / "F" / "t01" / "centerline.swc")
    assert len(truth) > 50
    found = record(tmp_path, "t01")
    pictures = {o["file"] for o in found["outputs"] if o["file"].endswith(".svg")}
    strip = {"straight.svg"} if kind == "cta" else set()
    assert pictures == {"tree.svg", "radius.svg"} | strip
    tree = CenterlineTree.from_json((folder / "tree.json").read_bytes())
    assert len(tree.leaves) >= 4
    if kind == "airway":
        assert tree.positions_mm[tree.roots[0], 2] > np.quantile(tree.positions_mm[:, 2], 0.98)
        generations = np.asarray(nib.load(folder / "generations.nii.gz").dataobj)
        assert generations.max() == json.loads((folder / "summary.json").read_text())[
            "max_generation"
        ] + 1  # fmt: skip


@pytest.mark.real_data
def test_a_real_aorta(tmp_path: Path, medpipe_here: Medpipe, real_data: Path) -> None:
    mask = real_data / "aorta_ct" / "aorta_aorta.nii.gz"
    if not mask.is_file():
        pytest.skip("the image is absent")
    done = medpipe_here("run", "centerline", mask, "OUT", "--case-id", "a", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    tree = CenterlineTree.from_json((tmp_path / "OUT/cases/a/tree.json").read_bytes())
    inside = np.asarray(nib.load(mask).dataobj) > 0
    assert inside[tuple(tree.voxels.T)].all()
    # thoracic and upper abdominal aorta with its arch
    assert 250 < tree.distance_mm.max() < 500
    assert 8 < np.median(tree.radius_mm) < 20
