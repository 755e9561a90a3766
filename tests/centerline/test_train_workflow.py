"""From a folder of examples to a network and to trees, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from medpipe.centerline.tree import CenterlineTree
from medpipe.models import MODELS, load_weights

TINY = {
    "iterations": "3",
    "batch_size": "2",
    "patch_voxels": "16",
    "channels": "[4,8]",
    "ema_decay": "0.5",
}
MASK = "TRAIN/t01/mask.nii.gz"


Medpipe = Callable[..., "CompletedProcess[str]"]


def changes(step: str, **values: str) -> list[str]:
    return [w for name, value in values.items() for w in ("--set", f"{step}.{name}={value}")]


def train(run: Medpipe, folder: Path, out: str, source: str = "TRAIN") -> CompletedProcess[str]:
    return run(
        "run", "centerline-train", source, out, *changes("train_centerline", **TINY), folder=folder
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, medpipe_here: Medpipe) -> Path:
    """An empty folder in which a new user simulated examples and trained."""
    folder = tmp_path_factory.mktemp("user")
    done = medpipe_here(
        "data", "vessels", "TRAIN", "--kind", "mask", "--walls", "kissing", "--cases", 3,
        "--size", 48, folder=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = train(medpipe_here, folder, "OUT")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "1 computed" in done.stdout
    return folder


def case(folder: Path, out: str) -> Path:
    (found,) = (folder / out / "cases").iterdir()
    return found


def test_a_folder_is_one_case_with_a_model_a_curve_and_a_table(trained: Path) -> None:
    made = case(trained, "OUT")
    record = json.loads((made / "case.json").read_text())
    assert record["inputs"]["examples"]["files"] == 1 + 3 * 2  # cases.csv, masks and curves
    assert str(trained) not in json.dumps(record)
    table = json.loads((made / "training.json").read_text())
    assert table["iterations"] == 3
    assert table["examples_trained"] + table["examples_held_out"] == 3
    _, facts = load_weights(made / "model.safetensors")
    assert facts["loss"] == table["best_loss"]
    page = (trained / "OUT" / "report" / "cases" / f"{made.name}.html").read_text()
    assert "data:image/svg+xml;base64," in page
    assert "model.safetensors" in page


def test_the_same_training_is_not_repeated(trained: Path, medpipe_here: Medpipe) -> None:
    assert "0 computed, 1 already there" in train(medpipe_here, trained, "OUT").stdout


def test_the_model_finds_the_ends_of_trees(trained: Path, medpipe_here: Medpipe) -> None:
    weights = case(trained, "OUT") / "model.safetensors"
    done = medpipe_here(
        "run", "centerline-learned", MASK, "TREES", "--set", f"centerline_maps.weights={weights}",
        folder=trained,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    made = case(trained, "TREES")
    tree = CenterlineTree.from_json((made / "tree.json").read_bytes())
    assert tree.facts["settings"]["endpoints"] == "learned"
    assert {
        "labels.nii.gz",
        "summary.json",
        "branches.csv",
        "tree.swc",
        "tree.vtp",
        "tree.svg",
    } <= {path.name for path in made.iterdir()}
    assert str(weights) not in (made / "case.json").read_text()


@pytest.mark.skipif("centerline" in MODELS, reason="a model is packaged")
def test_without_a_packaged_model_one_line_says_so(trained: Path, medpipe_here: Medpipe) -> None:
    done = medpipe_here("run", "centerline-learned", MASK, "NONE", folder=trained)
    assert done.returncode != 0
    (line,) = [x for x in (done.stdout + done.stderr).splitlines() if "no such model" in x]
    assert "none is packaged here" in line


def test_bad_examples_fail_in_one_line(
    trained: Path, tmp_path: Path, medpipe_here: Medpipe
) -> None:
    (tmp_path / "BAD").mkdir()
    (tmp_path / "BAD" / "anna.swc").write_bytes(
        (trained / "TRAIN" / "t01" / "centerline.swc").read_bytes()
    )
    done = train(medpipe_here, tmp_path, "OUT", "BAD")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "1 of 1 curves have no mask beside them" in said
    assert "anna" not in said
