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
from medpipe.seeds import derive_seed
from medpipe.synthesis import generator_training
from medpipe.synthesis.autoencoder import AutoencoderSettings
from medpipe.synthesis.autoencoder_training import AutoencoderTraining
from medpipe.synthesis.coded import encode_moved
from medpipe.synthesis.denoiser_training import DenoiserTraining
from medpipe.synthesis.detail import FineDetail
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.generator_settings import GeneratorTraining
from medpipe.synthesis.generator_training import train_generator
from medpipe.synthesis.label_reading import LabelReading, label_sizes
from medpipe.synthesis.prior_training import PriorTraining
from medpipe.synthesis.quantile_mapping import QuantileMapping
from medpipe.synthesis.segmenter import train_segmenter
from medpipe.synthesis.tokeniser import TokeniserSettings, join_labels
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


LATENT = GeneratorTraining(
    route="latents",
    autoencoder=AutoencoderSettings(
        latent_channels=2, channels=(8, 16), groups=8, patch_voxels=2, transposed=True
    ),
    autoencoder_training=AutoencoderTraining(iterations=6, validate_every=3),
    denoiser={
        "channels": (16,), "attention": (False,), "groups": 4, "conditioning": "embedding",
        "condition_width": 8,
    },
    denoiser_training=DenoiserTraining(
        iterations=6, batch_size=4, warmup=1, validate_every=3, validation_draws=2
    ),
    shift_voxels=1, copies=2, labeller_iterations=4, validation_share=0.25,
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


@pytest.mark.parametrize("training", [SHORT, LATENT], ids=["tokens", "latents"])
def test_a_run_that_was_killed_in_either_training_ends_with_the_same_bits(
    folder, tmp_path, training
):
    samples = read_training_set(folder)
    whole = train_generator(samples, training, device="cpu").to_bytes()
    stages = ("tokeniser", "prior") if training is SHORT else ("autoencoder", "denoiser")
    for stage, at in zip(stages, (4, 5), strict=True):

        def stop(name, where, stage=stage, at=at):
            if (name, where.iteration) == (stage, at):
                raise StopError

        checkpoints = tmp_path / stage
        with pytest.raises(StopError):
            train_generator(samples, training, device="cpu", checkpoints=checkpoints, progress=stop)
        again = train_generator(samples, training, device="cpu", checkpoints=checkpoints)
        assert again.to_bytes() == whole


def test_who_is_held_out_trains_neither_part(folder, tmp_path):
    samples = read_training_set(folder)
    made = train_generator(samples, SHORT, device="cpu")
    route = made.route
    moved = encode_moved(route.tokeniser, samples.volumes, shift_voxels=1, copies=2, seed=0)
    grids = moved.codes.flatten(1)[[not any(at) for at in zip(*moved.shifts.values(), strict=True)]]
    vary = [len(grids[:, n].unique()) > 1 for n in range(grids.shape[1])]
    assert len(grids) >= 8
    assert made.facts["tokens_that_vary"] == pytest.approx(np.mean(vary))
    assert route.tokeniser.facts["validated"] == 2
    assert route.prior.facts["held_out"]["n"] == 2  # as they are, not moved
    assert route.prior.facts["trained"]["n"] == 12
    held_out = set(range(8)) - set(_trained(samples, SHORT))
    changed = _inverted(folder, held_out)
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


def _inverted(folder, which):
    """The volumes of the folder, some of them with bright and dark exchanged."""
    changed = read_training_set(folder)
    for n in which:
        image, labels = changed.volumes[n]
        changed.volumes._kept[n] = (1 - image, labels)
    return changed


def test_who_is_held_out_trains_neither_autoencoder_nor_denoiser(folder):
    samples = read_training_set(folder)
    made = train_generator(samples, LATENT, device="cpu")
    facts = made.route.denoiser.facts
    assert facts["held_out"]["n"] == 2  # as they are, not moved
    assert facts["trained"]["n"] == 6
    assert made.route.autoencoder.facts["validation"]["psnr_db"]["n"] == 2
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    # too few are held out to measure detail on: all others are
    route, left = made.route, []
    for n in sorted(order[2:]):
        image, labels = (torch.as_tensor(part) for part in samples.volumes[n])
        whole = join_labels(image[None], labels[None], 2)[0]
        left.append(whole[:1] - route.rebuilt(whole)[:1])
    assert torch.equal(made.detail.strength, FineDetail.fit(torch.stack(left)).strength)
    read = made.reading.read(torch.as_tensor(samples.volumes[3][1]))
    assert list(read) == ["place_voxels"]  # the balls are alike: their size says no place
    assert made.reading.errors[0] > 0.5 * np.std(samples.table["place_voxels"])
    once = replace(
        LATENT,
        autoencoder_training=replace(
            LATENT.autoencoder_training, iterations=1, perceptual_weight=0.5
        ),
        features={"widths": (4, 8)},
        feature_iterations=2,
        denoiser_training=replace(LATENT.denoiser_training, iterations=1, warmup=0),
        labeller_iterations=1,
    )
    one, two = (
        train_generator(s, once, device="cpu") for s in (samples, _inverted(folder, order[:2]))
    )
    for part in ("autoencoder", "denoiser"):
        a, b = (getattr(g.route, part).state_dict() for g in (one, two))
        assert all(torch.equal(a[name], b[name]) for name in a), part
        assert getattr(one.route, part).facts != getattr(two.route, part).facts
    a, b = (g.labeller.network.state_dict() for g in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert one.labeller.facts["trained"] == 6


def test_a_labeller_is_trained_with_images_as_they_are_drawn_too(folder, monkeypatch):
    given = {}

    def spied(samples, settings, loop, **how):
        given["samples"], given["validation"] = samples, how["validation"]
        return train_segmenter(samples, settings, loop, **how)

    monkeypatch.setattr(generator_training, "train_segmenter", spied)
    samples = read_training_set(folder)
    made = train_generator(samples, replace(LATENT, detail=0.3), device="cpu")
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    assert made.detail.share == 0.3
    for side, numbers in (("samples", sorted(order[2:])), ("validation", sorted(order[:2]))):
        assert len(given[side]) == 3 * len(numbers)
        for place, n in enumerate(numbers):
            image, labels = (torch.as_tensor(part) for part in samples.volumes[n])
            whole = join_labels(image[None], labels[None], 2)[0]
            rebuilt = made.route.rebuilt(whole)[:1]
            for version in range(3):
                seen, known = given[side][3 * place + version]
                assert torch.equal(torch.as_tensor(known), labels)
                grain = 0.3 * made.detail.draw(3 * place + version) + made.detail.offset
                wanted = (rebuilt + grain).clamp(0, 1) if version else image
                assert torch.allclose(torch.as_tensor(seen).float(), wanted.float(), atol=2e-3)
    # it sees regions larger or smaller than they are: its labels count as less or more
    pairs = [samples.volumes[n] for n in range(8)]
    seen = made.labeller.labels(torch.stack([torch.as_tensor(image) for image, _ in pairs]))
    true = torch.stack([torch.as_tensor(known) for _, known in pairs])
    bias = float((seen == 1).sum() / (true == 1).sum())
    assert abs(bias - 1) > 0.05  # hardly trained
    rows = [{"place_voxels": value} for value in samples.table["place_voxels"]]
    sizes = np.stack([label_sizes(known, 2) for known in true])
    plain = LabelReading.fit(sizes, rows, made.conditions)
    assert made.reading.weights[0] == pytest.approx(plain.weights[0])
    assert made.reading.weights[1] == pytest.approx(plain.weights[1] / bias)


def test_a_labeller_may_see_real_images_alone(folder, monkeypatch):
    given = {}

    def spied(samples, settings, loop, **how):
        given["samples"] = samples
        return train_segmenter(samples, settings, loop, **how)

    monkeypatch.setattr(generator_training, "train_segmenter", spied)
    samples = read_training_set(folder)
    how = replace(LATENT, labeller_sees="real")
    train_generator(samples, how, device="cpu")
    assert len(given["samples"]) == 6
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    for (image, _), n in zip(given["samples"], sorted(order[2:]), strict=True):
        assert np.array_equal(image, samples.volumes[n][0])
    with pytest.raises(UsageError, match="drawn or real, got rebuilt"):
        replace(how, labeller_sees="rebuilt")


@pytest.mark.parametrize("training", [SHORT, LATENT], ids=["tokens", "latents"])
def test_intensities_are_mapped_to_those_of_all_volumes(tmp_path, monkeypatch, training):
    given = {}

    def spied(drawn, real):
        given.update(drawn=list(drawn), real=list(real))
        return fit(given["drawn"], given["real"])

    fit = QuantileMapping.fit
    monkeypatch.setattr(QuantileMapping, "fit", spied)
    samples = read_training_set(write_balls(tmp_path, 22))
    told = []
    made = train_generator(
        samples, replace(training, mapping_draws=30), device="cpu",
        progress=lambda *at: told.append(at),
    )  # fmt: skip
    drawn = [at for stage, at in told if stage == "mapping"]
    assert [at.iteration for at in drawn] == list(range(1, 31))
    assert {at.iterations for at in drawn} == {30}
    assert len(given["real"]) == 22
    for number, image in enumerate(given["real"]):
        assert np.array_equal(image, samples.volumes[number][0])
    assert len(given["drawn"]) == 30
    # the eighth and the last are drawn for the eighth volume, before latents are corrected
    unmapped = replace(made, mapping=None)
    row = {"place_voxels": samples.table["place_voxels"][7]}
    for number in (7, 29):
        seed = derive_seed(training.seed, "mapping", str(number))
        (alone,) = unmapped.sample([row], [seed], corrections=0)
        assert torch.allclose(alone.image.as_tensor(), given["drawn"][number], atol=1e-5)
    few = train_generator(samples, replace(training, mapping_draws=19), device="cpu")
    assert few.mapping is None
    assert Generator.from_bytes(made.to_bytes()).mapping is not None


def test_balls_are_drawn_where_they_are_asked_for(tmp_path):
    """Where the bright and the labelled voxels lie says it, not the model."""
    samples = read_training_set(write_balls(tmp_path, 24))
    training = replace(
        LATENT,
        autoencoder_training=AutoencoderTraining(
            iterations=100, learning_rate=1e-2, batch_size=4, label_weight=0.5, validate_every=50
        ),
        denoiser_training=DenoiserTraining(
            iterations=200, batch_size=16, learning_rate=5e-3, warmup=10, ema_decay=0.95,
            validate_every=50, hide_each=0.0,
        ),
        shift_voxels=0, copies=1, labeller_iterations=0, validation_share=0.1,
    )  # fmt: skip
    made = train_generator(samples, training, device="cpu")
    assert made.route.autoencoder.facts["validation"]["dice"][0]["value"] > 0.8
    held_out = made.route.denoiser.facts["held_out"]
    assert held_out["gain"]["mean"] > 0
    asked = np.linspace(4, 11, 12)
    rows = [{"place_voxels": p} for p in asked]
    drawn = made.sample(rows, range(12), steps=10, batch=12, detail=0)  # what the networks know
    places = np.arange(SIZE[0])[:, None, None]
    images = [d.image[0].numpy() for d in drawn]
    bright = [np.clip(image - image.max() / 2, 0, None) for image in images]
    for values in (bright, [d.labels[0].numpy() for d in drawn]):
        found = [(v * places).sum() / max(v.sum(), 1) for v in values]
        assert np.corrcoef(asked, found)[0, 1] > 0.8
        assert np.abs(np.array(found) - asked).mean() < 1.5
    back = Generator.from_bytes(made.to_bytes())
    assert back.sample([{"place_voxels": 5}], [3], steps=2)[0].labels is not None


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


def test_the_steps_train_and_tell_by_latents(folder):
    step = TrainSynthesisd(
        "model", route="latents", tokeniser_iterations=2, prior_iterations=2,
        denoiser_channels=[16], shift_voxels=0, copies=1, validation_share=0.3,
    )  # fmt: skip
    step.set_device(torch.device("cpu"))
    one = step.set_random_state(seed=1)({"model": str(folder)})["model"]
    assert step.set_random_state(seed=1)({"model": str(folder)})["model"] == one
    table = SynthesisTable()(one)
    _, header = unpack_weights(one)
    assert (table["route"], table["subjects_held_out"]) == ("latents", 2)
    assert table["conditions"] == "place_voxels"
    parts = header["parts"]
    held_out = parts["denoiser"]["facts"]["held_out"]
    assert table["held_out_conditional"] == held_out["conditional"]["mean"]
    shown = parts["autoencoder"]["facts"]["validation"]
    assert table["dice_1"] == shown["dice"][0]["value"]
    for stage, name in (("prior", "Denoiser"), ("tokeniser", "Autoencoder")):
        assert f"{name}: best after".encode() in SynthesisCurve(stage)(one)
    with pytest.raises(UsageError, match=r"no such preset; expected small \| hippocampus"):
        TrainSynthesisd("model", route="latents", preset="synthanatomy")


def test_a_preset_gives_both_trainings_its_seed():
    made = GeneratorTraining.preset("hippocampus", seed=4, copies=1)
    assert made.route == "latents"
    seeds = (made.seed, made.autoencoder_training.seed, made.denoiser_training.seed)
    assert (*seeds, made.copies) == (4, 4, 4, 1)
    with pytest.raises(UsageError, match="no such preset; expected hippocampus, got 'x'"):
        GeneratorTraining.preset("x")


def test_what_cannot_be_is_said_before_anything_is_trained(folder, tmp_path):
    with pytest.raises(UsageError, match="copies and feature_iterations of 1 or more"):
        replace(SHORT, copies=0)
    with pytest.raises(UsageError, match="unknown route; expected tokens or latents, got codes"):
        replace(SHORT, route="codes")
    with pytest.raises(UsageError, match="channels is wrong"):
        replace(LATENT, denoiser={"channels": (10,), "attention": (False,)})
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
