"""Training of a tokeniser: it learns, continues with the same bits, measures, keeps, refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medpipe.errors import InputError, ResourceError, UsageError
from medpipe.models import pack_weights
from medpipe.synthesis.quantiser import Codebook
from medpipe.synthesis.tokeniser import Tokeniser, TokeniserSettings, split_labels
from medpipe.synthesis.tokeniser_losses import LossWeights, PerceptualLoss
from medpipe.synthesis.tokeniser_measures import measure_tokeniser, measure_variety
from medpipe.synthesis.tokeniser_samples import TokeniserSamples, shared_out
from medpipe.synthesis.tokeniser_training import (
    TokeniserModel,
    TokeniserTraining,
    train_tokeniser,
)

NETWORK = TokeniserSettings(
    label_classes=2, widths=(8, 16), residual_units=1, codes=32, code_width=8, decay_steps=20
)
SHORT = TokeniserTraining(
    iterations=9, batch_size=2, learning_rate=2e-3, validate_every=4, shift_voxels=1, gain=0.1,
    weights=LossWeights(perceptual=0.1, adversarial=0.1), adversarial_start=3, adversarial_ramp=2,
    discriminator_width=4, discriminator_layers=1, validation_share=0.34,
)  # fmt: skip


def blobs(count, size=(16, 12, 16)):
    """Smooth images about 0 to 1 with the label of their bright half."""
    made = torch.Generator().manual_seed(5)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    out = []
    for _ in range(count):
        a, b = torch.randn(2, 3, generator=made)
        wave = sum(torch.sin(3 * w * x + p) for w, p, x in zip(a, b, axes, strict=True))
        image = torch.sigmoid(2 * wave)[None]
        out.append((image.numpy(), (image > 0.5).numpy().astype(np.uint8)))
    return out


def features():
    torch.manual_seed(1)
    return PerceptualLoss(torch.nn.Conv3d(1, 2, 3), 3)


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def learned():
    settings = TokeniserTraining(
        iterations=150, batch_size=2, learning_rate=5e-3, validate_every=50,
        weights=LossWeights(labels=0.1),
    )  # fmt: skip
    samples = blobs(2)
    return train_tokeniser(samples, NETWORK, settings, validation=samples, device="cpu"), samples


def test_two_volumes_are_learned_by_heart(learned):
    model, samples = learned
    found = model.facts["validation"]
    images = np.stack([s[0] for s in samples])
    flat = -10 * math.log10(float(((images - images.mean()) ** 2).mean()))  # the mean everywhere
    assert found["psnr_db"]["mean"] > flat + 9
    assert found["dice"][0]["mean"] > 0.93
    assert found["perplexity"] > 8
    assert [row["iteration"] for row in model.history] == [50, 100, 150]
    assert model.size_voxels == (16, 12, 16)


@pytest.mark.parametrize("stop", [6])
def test_a_training_that_was_killed_ends_with_the_same_bits(tmp_path, stop):
    """Opponent, codebook, random slices and samples are all in the checkpoint."""
    samples = blobs(6)
    whole = train_tokeniser(samples, NETWORK, SHORT, features=features(), device="cpu")

    def tell(at):
        if at.iteration == stop:
            raise StopError

    file = tmp_path / "t.pt"
    how = {"features": features(), "device": "cpu", "checkpoint": file}
    with pytest.raises(StopError):
        train_tokeniser(samples, NETWORK, SHORT, progress=tell, **how)
    assert file.is_file()
    torch.manual_seed(4321)
    again = train_tokeniser(samples, NETWORK, SHORT, **how)
    assert again.history == whole.history
    assert again.digest == whole.digest
    assert again.facts == whole.facts
    other = replace(SHORT, weights=replace(SHORT.weights, spectral=0.5))
    with pytest.raises(UsageError, match="other settings; got weights"):
        train_tokeniser(samples, NETWORK, other, **how)
    with pytest.raises(UsageError, match="other settings; got tokeniser"):
        train_tokeniser(samples, replace(NETWORK, codes=16), SHORT, **how)


def test_the_file_is_the_model(learned, tmp_path):
    model, samples = learned
    file = tmp_path / "t.safetensors"
    file.write_bytes(model.to_bytes({"made": "here"}))
    again = TokeniserModel.read(file)
    assert again.digest == model.digest
    assert again.facts == {**model.facts, "made": "here"}
    assert (again.training, again.settings) == (model.training, model.settings)
    assert again.history == model.history
    assert not again.tokeniser.training
    assert measure_tokeniser(again.tokeniser, samples) == model.facts["validation"]
    half = TokeniserModel.from_bytes(model.to_bytes(half=True))
    assert half.digest != model.digest
    close = measure_tokeniser(half.tokeniser, samples)["psnr_db"]["mean"]
    assert close == pytest.approx(model.facts["validation"]["psnr_db"]["mean"], abs=0.5)
    assert len(model.to_bytes(half=True)) < 0.7 * len(model.to_bytes())
    file.write_bytes(pack_weights(model.tokeniser.state_dict(), {"model": "prior"}))
    with pytest.raises(InputError, match=r"t.safetensors: the model is no tokeniser"):
        TokeniserModel.read(file)


def test_codes_of_many_volumes_are_those_of_each(learned):
    model, _ = learned
    samples = blobs(3)
    codes = model.encode(samples)
    assert codes.shape == (3, 4, 3, 4)
    for row, (image, labels) in zip(codes, samples, strict=True):
        one_hot = np.concatenate([image, 1 - labels, labels]).astype(np.float32)
        assert torch.equal(row, model.tokeniser.encode(torch.from_numpy(one_hot)[None])[0])
    with pytest.raises(InputError, match="sample 3: the volumes are not of one size"):
        model.encode([*samples, *blobs(1, (12, 12, 12))])
    with pytest.raises(UsageError, match="nothing to encode"):
        model.encode([])


def test_measures_are_those_computed_by_hand():
    torch.manual_seed(0)
    net = Tokeniser(replace(NETWORK, codes=4))
    net.codebook.vectors.normal_()
    samples = blobs(3) + blobs(1, (9, 10, 11))  # any size
    samples[1] = (samples[1][0], 0 * samples[1][1])  # without label 1
    found = measure_tokeniser(net, samples)
    assert net.training
    net.eval()
    psnr, mae, dice, codes = [], [], [], []
    for image, labels in samples:
        one_hot = np.concatenate([image, 1 - labels, labels]).astype(np.float32)
        with torch.no_grad():
            made = net(torch.from_numpy(one_hot)[None])
        values = made.values[0].double().numpy()
        psnr.append(10 * np.log10(1 / np.mean((values[0] - image[0]) ** 2)))
        mae.append(np.abs(values[0] - image[0]).mean())
        said, known = values[2] > values[1], labels[0] == 1
        if known.any():
            dice.append(2 * (said & known).sum() / (said.sum() + known.sum()))
        codes.append(made.codes.numpy().ravel())
    p = np.bincount(np.concatenate(codes), minlength=4) / sum(map(len, codes))
    for name, values in (("psnr_db", psnr), ("mae", mae)):
        assert found[name]["mean"] == pytest.approx(np.mean(values), rel=1e-5)
        assert found[name]["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-4)
        half = 3.182446 * np.std(values, ddof=1) / 2  # t of 3 degrees of freedom
        assert found[name]["high"] - found[name]["mean"] == pytest.approx(half, rel=1e-4)
    assert found["dice"][0]["n"] == 3
    assert found["dice"][0]["mean"] == pytest.approx(np.mean(dice), rel=1e-5)
    assert found["perplexity"] == pytest.approx(
        np.exp(-np.sum(p[p > 0] * np.log(p[p > 0]))), rel=1e-4
    )
    assert found["codes_used"] == (p > 0).sum()
    assert found["tokens_that_vary"] is None  # of several grids


def test_variety_is_that_of_each_place():
    codes = torch.randint(0, 3, (5, 2, 3, 4), generator=torch.Generator().manual_seed(1))
    codes[:, 0] = torch.arange(12).reshape(3, 4)  # the same in all volumes
    found = measure_variety(codes)
    each = []
    for place in codes.flatten(1).T.numpy():
        p = np.unique(place, return_counts=True)[1] / 5
        each.append(np.exp(-np.sum(p * np.log(p))))
    assert found["perplexity_of_a_place"] == pytest.approx(np.mean(each), rel=1e-9)
    assert found["tokens_that_vary"] == pytest.approx(np.mean(np.array(each) > 1.0001))
    assert 0.4 < found["tokens_that_vary"] <= 0.5
    assert measure_variety(codes[:1]) == measure_variety(None)
    same = measure_variety(codes[:1].expand(4, -1, -1, -1))
    assert same == {"tokens_that_vary": 0.0, "perplexity_of_a_place": 1.0}


def test_volumes_that_share_their_codes_are_said(caplog, monkeypatch):
    """Where the codebook has one vector, all volumes have the same codes."""
    samples = blobs(3)
    settings = TokeniserTraining(iterations=1, batch_size=1)
    monkeypatch.setattr(Codebook, "_begin", lambda *_: None)
    monkeypatch.setattr(Codebook, "_follow", lambda *_: None)
    train_tokeniser(samples, NETWORK, settings, validation=samples, device="cpu")
    assert "has collapsed: 0 % of the tokens vary between 3 volumes" in caplog.text
    assert caplog.records[-1].name == "medpipe.notice"


def balls(count, size=(16, 12, 16)):
    """One ball in noise, its label, and where along the first axis it is, in voxels."""
    made = np.random.default_rng(1)
    places = np.linspace(3.5, 11.5, count)
    samples = []
    for place in places:
        middle = np.array([place, 5.5, 7.5])[:, None, None, None]
        inside = np.linalg.norm(np.indices(size) - middle, axis=0) < 3.2
        image = (inside + 0.05 * made.random(size)) / 1.05
        samples.append((image[None].astype(np.float32), inside[None].astype(np.uint8)))
    return samples, places


def test_balls_are_coded_where_they_are(caplog):
    """What a prior learns from: without a place in the codes all would be drawn in one."""
    samples, places = balls(24)
    settings = TokeniserTraining(
        iterations=160, batch_size=4, learning_rate=2e-3, validate_every=160,
        weights=LossWeights(spectral=0.0),
    )  # fmt: skip
    model = train_tokeniser(samples, NETWORK, settings, device="cpu")
    codes = model.encode(samples)
    _, labels = split_labels(model.tokeniser.decode(codes, (16, 12, 16)), 1)
    inside = labels[:, 0].double()
    along = torch.arange(16.0, dtype=torch.float64).view(-1, 1, 1)
    found = ((inside * along).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp_min(1)).numpy()
    assert np.corrcoef(found, places)[0, 1] > 0.9
    assert np.abs(found - places).mean() < 1
    assert len(codes.flatten(1).unique(dim=0)) > 20
    assert measure_variety(codes)["tokens_that_vary"] > 0.4
    assert "collapsed" not in caplog.text


def test_samples_are_moved_and_cut_as_their_seed_says():
    ramp = torch.arange(8 * 9 * 10.0).reshape(1, 8, 9, 10) / 100
    moved = TokeniserSamples([ramp], 1, 0, shift=2)
    starts = set()
    for seed in range(40):
        moved.set_random_state(seed=seed)
        x, target = moved[0]
        assert x is target
        assert x.shape == ramp.shape
        matches = [
            (a, b, c) for a in range(-2, 3) for b in range(-2, 3) for c in range(-2, 3)
            if torch.equal(x[0, 4, 4, 4], ramp[0, 4 + a, 4 + b, 4 + c])
        ]  # fmt: skip
        a, b, c = matches[0]
        inside = ramp[0, 2 + a : 6 + a, 2 + b : 7 + b, 2 + c : 8 + c]
        assert torch.equal(x[0, 2:6, 2:7, 2:8], inside)
        starts.add((a, b, c))
        moved.set_random_state(seed=seed)
        assert torch.equal(moved[0][0], x)
    assert len(starts) > 25
    cut = TokeniserSamples([ramp], 1, 0, patch=(4, 5, 6))
    places = {float(cut[0][0][0, 0, 0, 0]) for _ in range(60)}
    assert len(places) > 20
    middle = TokeniserSamples([ramp], 1, 0, patch=(4, 5, 6), middle=True)
    assert torch.equal(middle[0][0], ramp[:, 2:6, 2:7, 2:8])
    bright = TokeniserSamples([(ramp, ramp > 3)], 1, 2, gain=0.5)
    x, _ = bright[0]
    factor = float(x[0, 7, 8, 9] / ramp[0, 7, 8, 9])
    assert 0.5 < factor < 1.5
    assert torch.allclose(x[0], factor * ramp[0])
    assert torch.equal(x[2], (ramp[0] > 3).float())


def test_samples_that_validate_are_not_trained_with():
    samples = list(range(10))
    trains, validates = shared_out(samples, None, 0.3, seed=1)
    assert sorted([*trains, *validates]) == samples
    assert len(validates) == 3
    assert list(shared_out(samples, None, 0.3, seed=1)[1]) == list(validates)
    assert list(shared_out(samples, None, 0.3, seed=2)[1]) != list(validates)
    assert shared_out(samples, [7], 0.3, seed=1) == (samples, [7])
    assert len(shared_out([1], None, 0.9, 0)[0]) == 1


def test_samples_that_cannot_be_used_are_named(monkeypatch):
    good = blobs(4)

    def ask(match, samples, training=SHORT, error=InputError, **how):
        settings = replace(training, weights=LossWeights(), validation_share=0.0, **how)
        with pytest.raises(error, match=match):
            train_tokeniser(samples, NETWORK, settings, device="cpu")

    image, labels = good[2]
    ask("sample 2: the intensities were not brought", [*good[:2], (image * 1e4, labels)])
    ask("sample 2: the intensities are not finite", [*good[:2], (image * np.nan, labels)])
    ask("sample 2: the labels are missing", [*good[:2], image])
    ask("sample 2: a label is wrong", [*good[:2], (image, labels + 1)])
    ask("sample 2: image and labels do not fit", [*good[:2], (image[..., 1:], labels)])
    ask("sample 2: the volume has the wrong shape", [*good[:2], (image[0], labels)])
    ask("sample [02]: the volumes are not of one size", [*good[:2], *blobs(1, (12, 12, 12))])
    ask("sample .: the volume is smaller than a patch", good, patch_voxels=(8, 16, 8))
    ask("nothing to train with", [], error=UsageError)
    with pytest.raises(UsageError, match="too small for the discriminator"):
        train_tokeniser(good, NETWORK, replace(SHORT, discriminator_layers=3), features=features())
    # the number is that of the sample that was given, wherever it ended up
    bad = [*blobs(9), (image * 1e4, labels)]
    with pytest.raises(InputError, match="sample 9: "):
        train_tokeniser(bad, NETWORK, replace(SHORT, weights=LossWeights()), device="cpu")

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Tokeniser, "_blocks", full)
    ask("not enough memory", good, error=ResourceError)
    for wrong in (
        {"gain": 1.0},
        {"unquantised_share": 1.0},
        {"patch_voxels": (1, 2)},
        {"iterations": 0},
    ):
        with pytest.raises(UsageError):
            replace(SHORT, **wrong)
    assert TokeniserTraining.published().weights.adversarial == 0.005
