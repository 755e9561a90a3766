"""Training of a fold: two phases, the same bits after an interruption, what a model file says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medpipe.errors import InputError, UsageError
from medpipe.models import pack_weights, unpack_weights
from medpipe.outcome.augment import Augmentation
from medpipe.outcome.ensemble import ensemble_probability, event_logit, predict_volumes
from medpipe.outcome.network import OutcomeNetworkSettings, outcome_network
from medpipe.outcome.samples import inner_split
from medpipe.outcome.training import OutcomeTraining, read_fold_model, train_fold

SMALL = OutcomeNetworkSettings(architecture="small", channels=3)
FLAT = OutcomeNetworkSettings(architecture="small", channels=1, spatial_dims=2)
QUICK = OutcomeTraining(
    head_iterations=4, iterations=5, batch_size=3, validate_every=2, patience=None, seed=1,
    validation_share=0.25,
)  # fmt: skip
DROPPING = {"network_settings": replace(SMALL, dropout=0.2), "device": "cpu"}


class StopError(Exception):
    pass


def cohort(n=12, size=16, seed=0):
    """CT of heads with blood (60 HU) in those with the outcome, soft tissue in all."""
    rng = np.random.default_rng(seed)
    outcome = np.arange(n) % 3 == 0
    volumes = [rng.normal(30, 6, (size,) * 3) for _ in range(n)]
    for volume, event in zip(volumes, outcome, strict=True):
        at = rng.integers(2, size - 7, 3)
        if event:
            volume[tuple(slice(a, a + 6) for a in at)] += 35
    return [v.astype(np.int16) for v in volumes], outcome.astype(int)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(7)
    file = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_file(outcome_network(SMALL).features.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def whole(encoder):
    """A fold that was not interrupted."""
    return train_fold(*cohort(), QUICK, encoder=encoder, **DROPPING)


def bits(model):
    return {k: v.clone() for k, v in model.network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(("stop", "goes_on"), [(3, 3), (8, 7)], ids=["head", "all"])
def test_an_interrupted_fold_ends_with_the_bits_of_a_whole_one(
    tmp_path, encoder, whole, stop, goes_on
):
    volumes, outcome = cohort()
    how = DROPPING | {"encoder": encoder}
    file = tmp_path / "0.pt"

    def tell(at):
        assert at.iterations == 9
        if at.iteration == stop:
            raise StopError

    with pytest.raises(StopError):
        train_fold(volumes, outcome, QUICK, checkpoint=file, progress=tell, **how)
    seen = []
    again = train_fold(volumes, outcome, QUICK, checkpoint=file, progress=seen.append, **how)
    assert [p.iteration for p in seen] == list(range(goes_on, 10))
    assert same(bits(whole), bits(again))
    assert whole.history == again.history
    assert [(r["phase"], r["iteration"]) for r in whole.history] == [
        ("head", 2), ("head", 4), ("all", 2), ("all", 4), ("all", 5)
    ]  # fmt: skip
    # what may change does; another fold or another loss does not continue this one
    free = replace(QUICK, tta_flips=((0,),), folds=3)
    assert same(bits(whole), bits(train_fold(volumes, outcome, free, checkpoint=file, **how)))
    for other in (
        (volumes, outcome[::-1].copy(), QUICK), (volumes, outcome, replace(QUICK, loss="focal")),
        (volumes[1:], outcome[1:], QUICK),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="checkpoint is of another training"):
            train_fold(*other, checkpoint=file, **how)


def test_the_head_learns_on_the_encoder_as_it_was_given_then_all(encoder):
    volumes, outcome = cohort(8)
    torch.manual_seed(QUICK.seed)
    head = outcome_network(SMALL).head.out.weight.detach().clone()
    kept, states = load_file(encoder), []
    real = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        states.append([p.detach().clone() for p in self.param_groups[0]["params"]])
        return out

    torch.optim.AdamW.step = step
    try:
        model = train_fold(
            volumes, outcome, QUICK, network_settings=SMALL, encoder=encoder, device="cpu"
        )
    finally:
        torch.optim.AdamW.step = real
    names = [name for name, _ in model.network.named_parameters()]
    for state in states[:4]:
        for name, value in zip(names, state, strict=True):
            if name.startswith("features."):
                assert torch.equal(value, kept[name.removeprefix("features.")])
    assert not torch.equal(states[3][names.index("class_layers.out.weight")], head)
    moved = [not torch.equal(a, b) for a, b in zip(states[3], states[8], strict=True)]
    assert all(moved)
    assert len(model.encoder["matched"]) == len(kept)
    # without an encoder there is nothing that a head alone could learn on
    alone = train_fold(volumes, outcome, QUICK, network_settings=SMALL, device="cpu")
    assert {row["phase"] for row in alone.history} == {"all"}
    assert alone.encoder is None


def test_blood_is_learned_and_recognised_in_heads_not_seen(tmp_path):
    volumes, outcome = cohort(36, seed=1)
    settings = OutcomeTraining(
        iterations=30, batch_size=8, learning_rate=5e-3, validate_every=10, seed=0,
        augmentation=Augmentation(probability=0.3), loss="weighted", tta_flips=((0,),),
    )  # fmt: skip
    model = train_fold(volumes, outcome, settings, network_settings=SMALL, device="cpu")
    assert not model.network.training
    assert model.size_voxels == (16, 16, 16)
    assert model.counts["trained"] + model.counts["validated"] == 36
    others, truth = cohort(24, seed=2)
    how = {"preset": "windows", "tta": settings.tta_flips, "batch_size": 12}
    said = predict_volumes([model], others, **how)
    logit = event_logit(said)[0].numpy()
    ranks = logit[truth == 1][:, None] > logit[truth == 0]
    assert ranks.mean() > 0.95
    # a file gives back the network, its settings and what is known of its training
    (tmp_path / "m.safetensors").write_bytes(model.to_bytes({"cohort": "simulated"}))
    read = read_fold_model(tmp_path / "m.safetensors")
    assert same(bits(model), bits(read))
    assert read.settings == settings
    assert read.history == model.history
    assert read.facts == {"cohort": "simulated"}
    assert read.size_voxels == (16, 16, 16)
    assert torch.equal(said[:, :12], predict_volumes([read], others[:12], **how))
    half = read_fold_model_of(tmp_path, model.to_bytes(half=True))
    assert torch.allclose(predict_volumes([half], others[:12], **how), said[:, :12], atol=0.05)
    assert len(model.to_bytes(half=True)) < 0.75 * len(model.to_bytes())


def read_fold_model_of(folder, content):
    (folder / "other.safetensors").write_bytes(content)
    return read_fold_model(folder / "other.safetensors")


def test_the_header_says_everything(tmp_path):
    volumes, outcome = cohort(8)
    model = train_fold(volumes, outcome, QUICK, network_settings=SMALL, device="cpu")
    _, header = unpack_weights(model.to_bytes())
    assert header["network"]["architecture"] == "small"
    assert OutcomeTraining.from_json(json.dumps(header["training"])) == QUICK
    assert header["counts"] == {"trained": 6, "validated": 2, "events": [2, 1]}
    assert header["size_voxels"] == [16, 16, 16]
    assert header["history"][-1]["iteration"] == 5
    with pytest.raises(InputError, match="not one of outcomes"):
        read_fold_model_of(tmp_path, pack_weights(model.network.state_dict(), {"model": "other"}))
    with pytest.raises(InputError, match="not one of outcomes"):
        read_fold_model_of(tmp_path, pack_weights({"a": torch.zeros(1)}, header))


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_three_classes_of_pictures(loss):
    rng = np.random.default_rng(0)
    classes = np.arange(45) % 3
    pictures = [rng.integers(0, 60, (13, 15), np.uint8) for _ in classes]
    for picture, k in zip(pictures, classes, strict=True):
        picture[:, 5 * k : 5 * k + 5] += 150
    changes = Augmentation(mirror_axes=(), rotate_deg=5, elastic_share=0)
    settings = OutcomeTraining(
        preset="pictures", iterations=18, batch_size=10, learning_rate=1e-2, loss=loss,
        validate_every=9, augmentation=changes if loss == "focal" else None,
    )  # fmt: skip
    model = train_fold(
        pictures[:30], classes[:30], settings, network_settings=replace(FLAT, outputs=3),
        device="cpu",
    )  # fmt: skip
    said = predict_volumes([model], pictures[30:], preset="pictures", spatial_dims=2, batch_size=15)
    found = ensemble_probability(said).argmax(-1).numpy()
    assert (found == classes[30:]).mean() > 0.9


def test_hazards_are_learned_from_times():
    """What is bright dies in the first interval, what is dark after the last."""
    rng = np.random.default_rng(0)
    bright = np.arange(40) % 2
    pictures = [
        np.clip(rng.normal(0.3 + 0.4 * b, 0.05, (16, 16)), 0, 1).astype(np.float32) for b in bright
    ]
    time = np.where(bright, rng.uniform(1, 9, 40), rng.uniform(90, 200, 40))
    settings = OutcomeTraining(
        preset="pictures", loss="survival", interval_days=(10, 30, 90), iterations=20,
        batch_size=12, learning_rate=1e-2, validate_every=10, augmentation=None, balanced=True,
    )  # fmt: skip
    model = train_fold(
        pictures, bright, settings, network_settings=replace(FLAT, outputs=3), time_days=time,
        device="cpu",
    )  # fmt: skip
    said = predict_volumes([model], pictures, preset="pictures", spatial_dims=2, batch_size=40)
    risk = torch.sigmoid(event_logit(said, survival=True))[0].numpy()
    assert risk[bright == 1].min() > risk[bright == 0].max()
    still = replace(settings, iterations=1, learning_rate=1e-9, validation_share=0.0)
    first = train_fold(
        pictures, bright, still, network_settings=replace(FLAT, outputs=3), time_days=time,
        device="cpu",
    )  # fmt: skip
    wanted = [20.5 / 20.5, 0.5 / 20.5, 0.5 / 20.5]  # of 40 half die at once, none later
    assert first.network.head.out.bias.exp().tolist() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(UsageError, match="survival needs a time"):
        train_fold(pictures, bright, settings, network_settings=FLAT, time_days=time)
    with pytest.raises(UsageError, match="survival needs a time"):
        train_fold(pictures, bright, settings, network_settings=replace(FLAT, outputs=3))
    with pytest.raises(UsageError, match="no event"):
        train_fold(
            pictures, 0 * bright, settings, network_settings=replace(FLAT, outputs=3),
            time_days=time,
        )  # fmt: skip


def test_a_fold_stops_when_validation_no_longer_gets_better():
    volumes, outcome = cohort(8)
    settings = replace(QUICK, iterations=60, validate_every=1, patience=2, learning_rate=0.3)
    model = train_fold(volumes, outcome, settings, network_settings=SMALL, device="cpu")
    losses = [row["metric"] for row in model.history]
    assert model.iterations == model.best_iteration + 2 < 60
    assert min(losses) == losses[model.best_iteration - 1] == model.best_metric


def test_balanced_samples_weigh_the_same_already():
    """As many of each class are drawn, so weights change nothing."""
    volumes, outcome = cohort(12)
    how = {"network_settings": SMALL, "device": "cpu"}
    settings = replace(QUICK, balanced=True)
    plain = train_fold(volumes, outcome, settings, **how)
    weighted = train_fold(volumes, outcome, replace(settings, loss="weighted"), **how)
    unbalanced = train_fold(volumes, outcome, QUICK, **how)
    assert same(bits(plain), bits(weighted))
    assert not same(bits(plain), bits(unbalanced))


@pytest.mark.parametrize("balanced", [False, True])
def test_the_mean_probability_of_those_who_trained_is_their_share_of_events(balanced):
    volumes, outcome = cohort(16)
    settings = replace(QUICK, balanced=balanced, learning_rate=1e-2)
    made = train_fold(volumes, outcome, settings, network_settings=SMALL, device="cpu")
    trained, _ = inner_split(outcome, None, settings.validation_share, settings.seed)
    said = predict_volumes([made], [volumes[n] for n in trained])
    assert len(trained) == made.counts["trained"] < 16
    mean = float(event_logit(said[0]).double().sigmoid().mean())
    assert mean == pytest.approx(outcome[trained].mean(), abs=1e-5)


def test_what_does_not_fit_is_said():
    volumes, outcome = cohort(8)

    def refused(match, *, settings=QUICK, network=SMALL, images=volumes, of=outcome, **how):
        with pytest.raises(UsageError, match=match):
            train_fold(images, of, settings, network_settings=network, device="cpu", **how)

    refused("volumes and outcomes do not fit", of=outcome[1:])
    refused("an outcome is wrong; expected 0 to 1", of=outcome * 2)
    refused("an outcome is wrong", of=[0, 1, 0, 1, 0, 1, 0, float("nan")])
    refused("a class is absent", of=np.zeros(8, int))
    refused("does not read these channels; expected 3, got 1", network=replace(SMALL, channels=1))
    refused("too small for the network", network=OutcomeNetworkSettings())
    refused("need batches", settings=replace(QUICK, batch_size=1))
    local = replace(SMALL, architecture="local")
    refused("needs batches", settings=replace(QUICK, batch_size=1), network=local)
    refused("patients and outcomes do not fit", patients=["a"])
    with pytest.raises(InputError, match="case p1: the volume is not on the grid"):
        train_fold(
            volumes, outcome, replace(QUICK, size_voxels=(16, 16, 17)), network_settings=SMALL,
            device="cpu", names=["p1"] * 8,
        )  # fmt: skip


def test_settings_are_checked_and_survive_json():
    settings = OutcomeTraining.paper(seed=4, tta_flips=[[0]])
    assert OutcomeTraining.from_json(settings.to_json()) == settings
    plain = OutcomeTraining(augmentation=None)
    assert OutcomeTraining.from_json(plain.to_json()) == plain
    for bad in (
        {"preset": "x"}, {"loss": "x"}, {"head_iterations": -1}, {"validation_share": 1},
        {"folds": 1}, {"iterations": 0}, {"head_rate": 0}, {"patience": 0},
        {"loss": "survival", "interval_days": (3, 2)}, {"augmentation": {"probability": 3}},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            OutcomeTraining(**bad)
    for text in ("[]", "{", '{"unknown": 1}'):
        with pytest.raises(UsageError, match="what to_json wrote"):
            OutcomeTraining.from_json(text)


def test_the_preset_of_the_paper():
    paper = OutcomeTraining.paper()
    # Adam is AdamW without decay; a constant rate of 1e-4 for the head, 1e-5 for all
    assert (paper.loop(head=True).learning_rate, paper.loop(head=False).learning_rate) == (
        1e-4, 1e-5
    )  # fmt: skip
    assert (paper.weight_decay, paper.schedule, paper.clip_norm) == (0, "constant", None)
    assert (paper.loss, paper.focal_gamma, paper.preset) == ("focal", 2.0, "paper")
    # 160 x 128 x 128 of 1.10 x 1.58 x 1.18 mm along z, y, x: 176 x 202 x 151 mm
    field_mm = np.multiply(paper.size_voxels, paper.spacing_mm)
    assert field_mm.tolist() == pytest.approx([151.04, 202.24, 176.0])
    change = paper.augmentation
    assert (change.probability, change.rotate_deg, change.scale, change.gamma) == (
        0.5, 15.0, (0.85, 1.25), (0.7, 1.5)
    )  # fmt: skip


@pytest.mark.gpu
def test_samples_are_made_where_the_network_is(encoder):
    """On a GPU volumes are changed and windows made there; the result is near the CPU's."""
    volumes, outcome = cohort(12)
    settings = replace(QUICK, amp=False, augmentation=Augmentation(probability=1, noise_sd=2))
    how = {"network_settings": SMALL, "encoder": encoder}
    on_gpu = train_fold(volumes, outcome, settings, device="cuda", **how)
    assert next(on_gpu.network.parameters()).is_cuda
    on_cpu = train_fold(volumes, outcome, settings, device="cpu", **how)
    for a, b in zip(on_gpu.history, on_cpu.history, strict=True):
        assert a["metric"] == pytest.approx(b["metric"], rel=0.05)
    half = train_fold(volumes, outcome, replace(settings, amp=True), device="cuda", **how)
    assert half.best_metric == pytest.approx(on_cpu.best_metric, rel=0.1)
