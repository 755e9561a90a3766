"""`medpipe synthesis-evaluate`, from tables of NIfTI files to a report."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from sy_labelled_sets import REGIONS, eggs
from sy_tiny_models import prior, tokeniser

from medpipe.cli.main import invoke
from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.metrics import label_volumes
from medpipe.synthesis.routes import TokenRoute
from medpipe.synthesis.segmenter import (
    Segmenter,
    SegmenterModel,
    SegmenterSettings,
    train_segmenter,
)
from medpipe.train import LoopSettings

SHAPE = (20, 18, 16)
COLUMNS = ["shell", "core_ml", "age_years", "age_seen"]


def table(folder, name, n, seed, patients=None):
    """Write a table of eggs; their age is that of their shell, seen with an error of 1."""
    images, labels = eggs(n, seed, shape=SHAPE)
    volumes = label_volumes(labels, (1, 1, 1), REGIONS)
    rows = [f"case_id,patient_id,image,labels,{','.join(COLUMNS)}"]
    for i in range(n):
        for kind, data in (("i", images[i]), ("l", labels[i])):
            nib.save(nib.Nifti1Image(data.numpy(), np.eye(4)), folder / f"{name}{kind}{i}.nii.gz")
        cells = [f"{name}{i}", f"{patients or name}{i}", f"{name}i{i}.nii.gz", f"{name}l{i}.nii.gz"]
        age = 20 + volumes["shell"][i] / 20
        asked = [volumes["shell"][i], volumes["core"][i] / 1000, age, age + 1]
        rows.append(",".join([*cells, *(str(v) for v in asked)]))
    path = folder / f"{name}.csv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return [table(folder, "a", 10, 0), table(folder, "b", 9, 1), table(folder, "s", 8, 2)]


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A generator that has learned nothing, of eggs and their age."""
    of = tokeniser()
    told = Conditions.fit({"age_years": [20, 60, 90]}, {"age_years": "continuous"})
    route = TokenRoute(of, prior(of, told, grid=of.tokeniser.grid(SHAPE)))
    file = tmp_path_factory.mktemp("generator") / "g.safetensors"
    file.write_bytes(Generator(route, np.eye(4), SHAPE).to_bytes())
    return str(file)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A segmenter of eggs."""
    images, labels = eggs(8, 9, shape=SHAPE)
    pairs = [(i[None], v[None]) for i, v in zip(images, labels, strict=True)]
    loop = LoopSettings(iterations=40, batch_size=4, learning_rate=1e-2)
    model = train_segmenter(
        pairs, SegmenterSettings(3, widths=(8, 8, 8)), loop, device="cpu", validation_share=0.0
    )
    file = tmp_path_factory.mktemp("segmenter") / "eggs.safetensors"
    file.write_bytes(model.to_bytes())
    return str(file)


def untrained(folder, classes):
    torch.manual_seed(0)
    file = folder / f"of{classes}.safetensors"
    network = Segmenter(SegmenterSettings(classes, widths=(8, 8)))
    file.write_bytes(SegmenterModel(network, [], 1, 1).to_bytes())
    return str(file)


REGION_WORDS = ["--region", "shell=1", "--region", "core=2"]


def quick(iterations=40):
    return [
        "--iterations", str(iterations), "--learning-rate", "1e-2", "--widths", "8", "8", "8",
        "--alignment", "centre", "--simulated", "--device", "cpu",
    ]  # fmt: skip


def record_of(out):
    return json.loads((out / "evaluation.json").read_text())


def test_tables_become_a_report(tables, generator, tmp_path, capsys):
    out = tmp_path / "out"
    code = invoke(
        ["synthesis-evaluate", *tables, str(out), *REGION_WORDS, *quick(), "--condition", "shell",
         "--condition", "core_ml=core", "--condition", "age_years=age_seen",
         "--generator", generator]
    )  # fmt: skip
    said = capsys.readouterr()
    record = record_of(out)
    assert code == (0 if all(g["passed"] is True for g in record["gates"]) else 3)
    assert all(f"{g['name']}: " in said.out for g in record["gates"])
    assert "training the segmenter\n  40 of 40 iterations, loss" in said.err
    assert len(record["controls"]) == 4
    shell, core, age = record["conditions"]
    assert shell["rows"]["synthetic"]["pearson"]["value"] > 0.8
    assert (core["unit"], age["unit"]) == ("ml", "years")
    assert age["rows"]["synthetic"]["bias"]["value"] == pytest.approx(1)
    assert age["rows"]["measurement"]["error"]["value"] == pytest.approx(1)
    assert "reconstruction" in core["rows"]
    assert set(record["privacy"]["likelihoods"]) == {"held_out", "training"}
    assert record["privacy"]["likelihoods"]["held_out"]["n"] == 9
    assert record["cost"]["samples"] == 3
    assert record["study"]["generator"].startswith("tokens, ")
    assert "Simulated data" in (out / "index.html").read_text()
    assert SegmenterModel.read(out / "segmenter.safetensors").name == record["features"]["name"]


def test_no_segmenter_is_trained_twice(tables, learned, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = [
        "synthesis-evaluate", *tables, str(out), *REGION_WORDS, *quick(2), "--segmenter", learned,
        "--real-cases", "4",
    ]  # fmt: skip
    code = invoke(words)
    said = capsys.readouterr().err
    assert "training with real 4 + synthetic, seed 2\n  2 of 2 iterations, loss" in said
    assert said.count("2 of 2 iterations") == 12
    record = record_of(out)

    def step(self, *_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert invoke([*words, "--quiet"]) == code
    assert capsys.readouterr().err == ""
    assert record_of(out) == record


def test_what_is_wrong_is_said_before_anything_is_trained(tables, generator, tmp_path, capsys):
    leak = table(tmp_path, "c", 4, 1, patients="a")
    other = table(tmp_path, "d", 9, 1)
    few = untrained(tmp_path, 2)
    for words, says in (
        ([tables[0], leak, tables[2], *REGION_WORDS], "4 patients are in both real tables"),
        ([*tables, "--region", "shell"], "a region is wrong"),
        ([*tables, *REGION_WORDS, "--condition", "age"], "condition age cannot be measured"),
        ([*tables, *REGION_WORDS, "--condition", "age=guess"], "s0: age is no number"),
        ([*tables, *REGION_WORDS, "--condition", "shell="], "a condition is wrong"),
        ([*tables, *REGION_WORDS, "--real-cases", "11"], "not so many real cases"),
        ([*tables, *REGION_WORDS, "--segmenter", few], "expected one image channel and 3 classes"),
        ([*tables, *REGION_WORDS, "--reconstructions", other], "are not of the held-out cases"),
        ([*tables, *REGION_WORDS, "--generator", few], "the model is no generator"),
        ([*tables, *REGION_WORDS, "--generator", generator, "--peak-mb", "3"], "says too"),
    ):
        options = [w for w in words if w not in words[:3]]
        assert invoke(["synthesis-evaluate", *words[:3], str(tmp_path / "o"), *options]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert says in said
        assert said.count("error ") == 1
    assert not (tmp_path / "o").exists()


def test_what_no_file_of_a_generator_says_is_told(tables, learned, tmp_path):
    out = tmp_path / "out"
    code = invoke(
        ["synthesis-evaluate", *tables, str(out), *REGION_WORDS, *quick(), "--condition", "shell",
         "--segmenter", learned, "--reconstructions", tables[1],
         "--seconds-per-sample", "2.5", "--peak-mb", "300", "--quiet"]
    )  # fmt: skip
    assert code in (0, 3)
    record = record_of(out)
    assert record["features"]["name"] == SegmenterModel.read(learned).name
    assert record["cost"] == {"seconds_per_sample": 2.5, "peak_bytes": 300_000_000}
    rows = record["conditions"][0]["rows"]
    assert rows["measurement"] == rows["reconstruction"]


def test_the_help_teaches(capsys):
    assert invoke(["synthesis-evaluate", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "case_id,image,labels,anterior", "--condition", "NAME=COLUMN", "The generator",
        "Run the same command again to resume", "Exit code 0 if every gate passed",
    ):  # fmt: skip
        assert words in said, words
