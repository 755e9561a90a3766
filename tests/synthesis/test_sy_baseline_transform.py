"""Baselines as steps: a folder, a file, volumes drawn from it by the step of generators."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from test_sy_generator_training import AFFINE, SIZE, write_balls

from medpipe.errors import InputError, StepError, UsageError
from medpipe.models import pack_weights
from medpipe.synthesis.baseline_fit import fit_baseline
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.training_files import read_training_set
from medpipe.transforms import (
    BaselineAveraged,
    BaselineTabled,
    FitBaseline,
    FitBaselined,
    SampleVolumed,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Balls whose place along the first axis is known, and how they are called."""
    made = write_balls(tmp_path_factory.mktemp("balls"), 12)
    rows = (made / "cases.csv").read_text().splitlines()
    kinds = ["low"] * 4 + ["middle"] * 4 + ["high"] * 4
    more = [f"{row},{kind}" for row, kind in zip(rows, ["part", *kinds], strict=True)]
    (made / "cases.csv").write_text("\n".join(more) + "\n")
    return made


@pytest.fixture(scope="module", params=["pca-gaussian", "template-deformation"])
def model(request, folder):
    step = FitBaselined(
        "model", request.param, ["place_voxels"], 6, rounds=1, iterations=12, stiffness=0.002
    )
    return step({"model": str(folder)})["model"]


def place(labels):
    """Return the middle of each label map along the first axis."""
    weights = labels.as_tensor()[0].sum((1, 2)).double()
    return float((weights * torch.arange(SIZE[0])).sum() / weights.sum())


def test_a_file_draws_what_is_asked_for_by_the_step_of_generators(model, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(model)
    generator = Generator.read(path)
    assert generator.to_bytes() == model
    wanted = np.linspace(4.5, 10.5, 7)
    drawn = generator.sample([{"place_voxels": w} for w in wanted], range(7))
    assert drawn[0].image.shape == drawn[0].labels.shape == (1, *SIZE)
    assert np.allclose(drawn[0].image.affine, AFFINE)
    # a ball that wanders is no sum of balls: even a Gaussian without fault is not exact
    assert np.corrcoef(wanted, [place(d.labels) for d in drawn])[0, 1] > 0.8
    step = SampleVolumed("row", str(path), labels_out="labels").set_random_state(seed=3)
    made = step({"row": {"place_voxels": 5.0}})
    assert made["row"].shape == made["labels"].shape
    with pytest.raises(UsageError, match="outside what the model was trained on"):
        step({"row": {"place_voxels": 99.0}})
    with pytest.raises(UsageError, match="drawn as it was fitted"):
        generator.sample([{}], [0], temperature=0.5)


def test_a_table_and_an_average_say_what_it_is(model):
    table = BaselineTabled("t")({"t": model})["t"]
    json.dumps(table)
    assert (table["volumes"], table["subjects"], table["conditions"]) == (12, 12, "place_voxels")
    assert table["label_1_drawn_mean_ml"] == pytest.approx(table["label_1_given_mean_ml"], rel=0.15)
    shown = BaselineAveraged("m", labels_out="l")({"m": model})
    assert shown["m"].shape == shown["l"].shape == (1, *SIZE)
    assert place(shown["l"]) == pytest.approx(7.5, abs=1.0)


def test_categories_are_told_too(folder):
    samples = read_training_set(folder, ["part"])
    made = Generator.from_bytes(fit_baseline(samples, components=6).to_bytes())
    found = {
        part: np.mean([place(d.labels) for d in made.sample([{"part": part}] * 8, range(8))])
        for part in ("low", "middle", "high")
    }
    assert found["low"] + 1 < found["middle"] < found["high"] - 1


def test_what_cannot_be_is_said(folder, tmp_path):
    with pytest.raises(UsageError, match="method"):
        FitBaseline("mean")  # type: ignore[arg-type]
    with pytest.raises(StepError, match="the step needs volumes"):
        FitBaseline()(torch.zeros(1))
    with pytest.raises(StepError, match="needs a baseline"):
        BaselineTabled("t")({"t": torch.zeros(1)})
    samples = read_training_set(folder, ["place_voxels"])
    samples.table["place_voxels"][3] = None
    with pytest.raises(UsageError, match=r"place_voxels: .*not known of all volumes"):
        fit_baseline(samples)
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(pack_weights({}, {"model": "generator", "route": "baseline", "parts": {}}))
    with pytest.raises(InputError, match="no generator"):
        Generator.read(wrong)


def test_the_workflow_leaves_model_table_and_picture(folder, tmp_path, medpipe_here):
    done = medpipe_here("run", "synthesis-baseline", folder, "OUT", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (tmp_path / "OUT" / "cases").iterdir()
    table = json.loads((made / "baseline.json").read_text())
    assert table["baseline"] == "pca-gaussian"
    assert nib.load(made / "average.nii.gz").shape == nib.load(made / "labels.nii.gz").shape == SIZE
    assert Generator.read(made / "model.safetensors").conditions.names == ("place_voxels", "part")
    assert str(folder) not in (made / "case.json").read_text()
