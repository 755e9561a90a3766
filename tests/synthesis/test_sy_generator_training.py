"""Both trainings together: the same bits after a stop, no leaks, a generator that says all."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch

from medpipe.errors import InputError, StepError, UsageError
from medpipe.io.nifti import write_nifti
from medpipe.models import unpack_weights
from medpipe.synthesis.coded import encode_moved
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.generator_training import GeneratorTraining, train_generator
from medpipe.synthesis.prior_training import PriorTraining
from medpipe.synthesis.tokeniser import TokeniserSettings
from medpipe.synthesis.tokeniser_training import TokeniserTraining
from medpipe.synthesis.training_files import read_training_set
from medpipe.transforms import SynthesisCurve, SynthesisTable, TrainSynthesisd
from medpipe.types import Volume

SIZE = (16, 12, 16)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SMALL = TokeniserSettings(widths=(8, 16), residual_units=1, codes=32, code_width=8, decay_steps=50)
SHORT = GeneratorTraining(
    SMALL,
    TokeniserTraining(iterations=6, batch_size=2, validate_every=3),
    {"width": 16, "layers": 1, "heads": 2, "dropout": 0.1},
    PriorTraining(iterations=6, batch_size=4, warmup=1, validate_every=3),
    shift_voxels=1, copies=2, validation_share=0.25,
)  # fmt: skip


def write_balls(folder, count):
    """Balls in noise, of which the manifest says where along the first axis they are."""
    made = np.random.default_rng(1)
    rows = ["case_id,image,labels,place_voxels"]
    for n, place in enumerate(np.linspace(3.5, 11.5, count)):
        middle = np.array([place, 5.5, 7.5])[:, None, None, None]
        inside = np.linalg.norm(np.indices(SIZE) - middle, axis=0) < 3.2
        image = (inside + 0.05 * made.random(SIZE)).astype(np.float32)
        write_nifti(folder / f"i{n}.nii.gz", Volume(image, AFFINE))
        write_nifti(folder / f"l{n}.nii.gz", Volume(inside.astype(np.uint8), AFFINE))
        rows.append(f"c{n},i{n}.nii.gz,l{n}.nii.gz,{place:.3f}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_balls(tmp_path_factory.mktemp("balls"), 8)


class StopError(Exception):
    pass


def test_a_run_that_was_killed_in_either_training_ends_with_the_same_bits(folder, tmp_path):
    samples = read_training_set(folder)
    whole = train_generator(samples, SHORT, device="cpu").to_bytes()
    for stage, at in (("tokeniser", 4), ("prior", 5)):

        def stop(name, where, stage=stage, at=at):
            if (name, where.iteration) == (stage, at):
                raise StopError

        checkpoints = tmp_path / stage
        with pytest.raises(StopError):
            train_generator(samples, SHORT, device="cpu", checkpoints=checkpoints, progress=stop)
        again = train_generator(samples, SHORT, device="cpu", checkpoints=checkpoints)
        assert again.to_bytes() == whole


def test_who_is_held_out_trains_neither_part(folder, tmp_path):
    samples = read_training_set(folder)
    made = train_generator(samples, SHORT, device="cpu")
    route = made.route
    moved = encode_moved(route.tokeniser, samples.volumes, shift_voxels=1, copies=2, seed=0)
    grids = moved.codes.flatten(1)
    vary = sum(len(grids[:, n].unique()) > 1 for n in range(grids.shape[1]))
    assert made.facts["tokens_that_vary"] == vary
    assert route.tokeniser.facts["validated"] == 2
    assert route.prior.facts["held_out"]["n"] == 2  # as they are, not moved
    assert route.prior.facts["trained"]["n"] == 12
    held_out = set(range(8)) - set(_trained(samples, SHORT))
    changed = read_training_set(folder)
    for n in held_out:
        image, labels = changed.volumes[n]
        changed.volumes._kept[n] = (1 - image, labels)
    # one iteration, so that no validation chooses between weights
    once = replace(
        SHORT,
        tokeniser_training=replace(SHORT.tokeniser_training, iterations=1),
        prior_training=replace(SHORT.prior_training, iterations=1, warmup=0),
    )
    one, two = (train_generator(s, once, device="cpu") for s in (samples, changed))
    for part in ("tokeniser", "prior"):
        a, b = (getattr(g.route, part) for g in (one, two))
        a, b = (getattr(m, part).state_dict() for m in (a, b))
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert one.route.prior.facts != two.route.prior.facts


def _trained(samples, training):
    """The subjects whose volumes are asked for before anything validates."""
    asked = []

    class Watched(type(samples.volumes)):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    volumes = Watched(samples.volumes.pairs, samples.volumes.percentiles)

    def stop(_, at):
        if at.iteration == 5:
            raise StopError

    quiet = replace(
        training, tokeniser_training=replace(training.tokeniser_training, validate_every=100)
    )
    with pytest.raises(StopError):
        train_generator(replace(samples, volumes=volumes), quiet, device="cpu", progress=stop)
    return asked


def test_the_steps_train_draw_and_tell(folder):
    step = TrainSynthesisd(
        "model", tokeniser_iterations=3, prior_iterations=3, width=16, layers=1, heads=2, codes=16,
        shift_voxels=1, copies=2, half=True, validation_share=0.3,
    )  # fmt: skip
    step.set_device(torch.device("cpu"))
    one = step.set_random_state(seed=1)({"model": str(folder)})["model"]
    assert step.set_random_state(seed=1)({"model": str(folder)})["model"] == one
    assert step.set_random_state(seed=2)({"model": str(folder)})["model"] != one
    model = Generator.from_bytes(one)
    assert model.sample([{"place_voxels": 5}], [1])[0].image.shape == (1, *SIZE)
    table = SynthesisTable()(one)
    _, header = unpack_weights(one)
    assert (table["subjects"], table["subjects_held_out"], table["tokens"]) == (8, 2, 8)
    assert table["conditions"] == "place_voxels, shift_i_voxels, shift_j_voxels, shift_k_voxels"
    held_out = header["parts"]["prior"]["facts"]["held_out"]
    assert table["held_out_conditional"] == held_out["conditional"]["mean"]
    for stage in ("prior", "tokeniser"):
        root = ET.fromstring(SynthesisCurve(stage)(one))  # noqa: S314 - our own document
        curves = [e for e in root.iter() if e.tag.endswith("path")]
        assert len(curves) == 2
        assert all(e.attrib["d"].count("L") == 2 for e in curves)


def test_what_cannot_be_is_said_before_anything_is_trained(folder, tmp_path):
    with pytest.raises(UsageError, match="copies of 1 or more"):
        replace(SHORT, copies=0)
    with pytest.raises(UsageError, match="width is not divisible by heads"):
        TrainSynthesisd("model", width=10, heads=3)
    with pytest.raises(UsageError, match=r"too few subjects.*got 1"):
        train_generator(read_training_set(write_balls(tmp_path, 1), []), SHORT, device="cpu")
    step = TrainSynthesisd("model")
    with pytest.raises(StepError, match="the step needs volumes"):
        step({"model": torch.zeros(1)})
    with pytest.raises(StepError, match="needs a generator"):
        SynthesisTable()(torch.zeros(1))
    with pytest.raises(InputError):
        SynthesisCurve()(b"nothing")
