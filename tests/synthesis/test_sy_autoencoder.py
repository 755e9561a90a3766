"""The latent autoencoder: any size, scaled latents, slabs, training, files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import Randomizable
from torch.distributions import Normal, kl_divergence
from torch.utils.data import Dataset

from medpipe.errors import InputError, ResourceError, UsageError
from medpipe.models import pack_weights
from medpipe.synthesis.autoencoder import AutoencoderSettings, LatentAutoencoder
from medpipe.synthesis.autoencoder_training import (
    AutoencoderTraining,
    _divergence,
    measure_autoencoder,
    train_autoencoder,
)
from medpipe.synthesis.cubes import folded, unfolded
from medpipe.synthesis.latents import Latents, encode_latents
from medpipe.synthesis.tokeniser_losses import PerceptualLoss
from medpipe.train import LoopSettings

SMALL = AutoencoderSettings(channels=(8, 16, 16), groups=4, latent_channels=2)


def made(settings=SMALL, seed=0):
    torch.manual_seed(seed)
    return LatentAutoencoder(settings).eval()


def volumes(n, shape=(8, 12, 8), seed=0):
    return list(torch.rand(n, 1, *shape, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def test_a_volume_of_any_size_is_continued_and_cut_again():
    model = made()
    x = torch.rand(2, 1, 9, 12, 6)
    mean, sigma = model.encode(x)
    assert mean.shape == sigma.shape == (2, 2, 3, 3, 2)
    assert model.grid((9, 12, 6)) == (3, 3, 2)
    # the same as a volume that repeats its last planes
    planes = [torch.arange(n).clamp_max(m - 1) for n, m in ((12, 9), (12, 12), (8, 6))]
    wide = x[:, :, planes[0]][:, :, :, planes[1]][:, :, :, :, planes[2]]
    theirs = model.net.encode(wide)
    assert torch.equal(mean, theirs[0])
    assert torch.equal(sigma, theirs[1])
    out = model.decode(mean, (9, 12, 6))
    assert torch.allclose(out, model.net.decode(theirs[0])[:, :, :9, :, :6], atol=1e-6)


@torch.no_grad()
def test_scaled_latents_have_mean_0_and_variance_1_noise_included():
    model, data = made(), volumes(6)
    raw = [model.encode(x[None]) for x in data]
    model.measure_scale(data)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for x in data:
        mean, sigma = model.encode(x[None])
        drawn += [mean + sigma * torch.randn(mean.shape, generator=generator) for _ in range(200)]
    x = torch.cat(drawn).transpose(0, 1).flatten(1)
    assert torch.allclose(x.mean(1), torch.zeros(2), atol=0.02)
    assert torch.allclose(x.std(1), torch.ones(2), atol=0.02)
    # and decode undoes it
    again = model.decode(model.encode(data[0][None])[0])
    assert torch.allclose(again, model.net.decode(raw[0][0]), atol=1e-5)
    # measured again, the same
    scale = model.scale.clone()
    model.measure_scale(data)
    assert torch.equal(scale, model.scale)


@torch.no_grad()
@pytest.mark.parametrize("middle", [False, True])
def test_slabs_give_the_same_latent_and_the_same_volume(middle):
    settings = AutoencoderSettings(
        channels=(8, 16), groups=4, latent_channels=2, middle_attention=middle, residual_blocks=2
    )
    model = made(settings)
    x = torch.rand(1, 1, 11, 26, 10)
    mean, sigma = model.encode(x)
    for slabs in (1, 3, 5):
        part = model.encode(x, slabs=slabs)
        assert torch.allclose(part[0], mean, atol=1e-5)
        assert torch.allclose(part[1], sigma, atol=1e-5)
    whole = model.decode(mean, x.shape[2:])
    for how in ({"slabs": 4}, {"slabs": 3, "storage": "cpu"}, {"slabs": 2, "levels": 9}):
        assert torch.allclose(model.decode(mean, x.shape[2:], **how), whole, atol=1e-5)


def test_the_divergence_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 3, 4, generator=generator)
    sigma = torch.rand(2, 3, 4, generator=generator) + 0.1
    truth = kl_divergence(Normal(mean, sigma), Normal(0.0, 1.0)).sum()
    assert _divergence(mean, sigma) == pytest.approx(float(truth), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("transposed", [False, True])
def test_patches_and_labels_of_a_volume_of_any_size(transposed):
    settings = AutoencoderSettings(
        channels=(8, 16), groups=4, latent_channels=2, label_classes=3, patch_voxels=2,
        transposed=transposed,
    )  # fmt: skip
    model = made(settings)
    assert model.stride == 4
    x = torch.rand(1, 4, 9, 12, 7)
    mean, _ = model.encode(x)
    assert mean.shape == (1, 2, 3, 3, 2)
    whole = model.decode(mean, (9, 12, 7))
    assert whole.shape == x.shape
    # each cube of 2 x 2 x 2 voxels is eight channels at one place, and comes back to it
    cubes = folded(x[..., :8, :, :6], 2)
    assert torch.equal(cubes[0, 8 + 4 + 1, 1, 2, 0], x[0, 1, 3, 4, 1])
    assert torch.equal(unfolded(cubes, 2), x[..., :8, :, :6])
    for slabs in (2, 3):
        assert torch.allclose(model.encode(x, slabs=slabs)[0], mean, atol=1e-5)
        assert torch.allclose(model.decode(mean, (9, 12, 7), slabs=slabs), whole, atol=1e-5)


class Boxes(Dataset, Randomizable):
    """A box of a random brightness and size."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        out = np.zeros((1, 8, 8, 8), np.float32)
        size = 3 + index % 4
        out[:, 1 : 1 + size, 2 : 2 + size, 1 : 1 + size] = self.R.uniform(0.6, 1.0)
        return torch.from_numpy(out)


TINY = AutoencoderSettings(channels=(8, 8), groups=4, latent_channels=2)


def test_training_reconstructs_and_measures_the_scale():
    before = made(TINY)
    training = LoopSettings(iterations=120, batch_size=4, learning_rate=1e-2, validate_every=60)
    model = train_autoencoder(
        Boxes(), TINY, training, validation=Boxes(), device="cpu", kl_weight=1e-4
    )
    data = Boxes()
    data.set_random_state(seed=7)
    x = torch.stack([data[n] for n in range(8)])

    def error(net):
        with torch.no_grad():
            return float((net.decode(net.encode(x)[0], (8, 8, 8)) - x).abs().mean())

    assert error(model) < 0.25 * error(before)
    assert model.facts["metric"] == "held-out reconstruction"
    assert model.facts["best"] == pytest.approx(error(model), rel=0.5)
    with torch.no_grad():
        mean, sigma = model.encode(x)
    total = (mean**2 + sigma**2).mean((0, 2, 3, 4))
    assert torch.allclose(total, torch.ones(2), atol=0.2)


def test_labels_are_learned_with_the_image_and_measured():
    def pair(n):
        inside = torch.zeros(8, 8, 8, dtype=torch.long)
        inside[1 : 3 + n % 4, 2:7, 1:6] = 1
        x = torch.cat([0.3 + 0.6 * inside[None], torch.stack([1 - inside, inside])])
        return x.float()

    data = [pair(n) for n in range(8)]
    settings = replace(TINY, label_classes=2)
    how = LoopSettings(iterations=100, batch_size=4, learning_rate=1e-2, validate_every=100)
    model = train_autoencoder(
        data, settings, how, validation=data, device="cpu", kl_weight=1e-4, label_weight=1.0
    )
    found = measure_autoencoder(model, data)
    with torch.no_grad():
        x = torch.stack(data)
        y = model.decode(model.encode(x)[0], (8, 8, 8))
    a, b = y[:, 1:].argmax(1) == 1, x[:, 2] == 1
    dice = 2 * (a & b).sum((1, 2, 3)) / (a.sum((1, 2, 3)) + b.sum((1, 2, 3)))
    assert found["dice"][0]["value"] == pytest.approx(float(dice.mean()), abs=1e-4)
    assert found["dice"][0]["n"] == 8
    assert float(dice.mean()) > 0.8
    errors = (y[:, 0] - x[:, 0]).square().mean((1, 2, 3))
    assert found["psnr_db"]["value"] == pytest.approx(float(-10 * errors.log10().mean()), abs=1e-3)
    wanted = (y[:, 0] - x[:, 0]).abs().mean() + torch.nn.functional.cross_entropy(
        y[:, 1:], x[:, 1:].argmax(1)
    )
    assert model.facts["best"] == pytest.approx(float(wanted), rel=1e-3)


def test_images_are_also_compared_as_a_network_sees_them(tmp_path):
    torch.manual_seed(3)
    network = torch.nn.Conv3d(1, 4, 3, padding=1)
    how = LoopSettings(iterations=60, batch_size=4, learning_rate=1e-2, validate_every=60)
    boxes = Boxes()
    boxes.set_random_state(seed=7)
    data = [boxes[n] for n in range(8)]

    def trained(weight, features=network, **more):
        return train_autoencoder(
            data, TINY, how, validation=data, device="cpu", kl_weight=1e-4,
            perceptual_weight=weight, features=PerceptualLoss(features), **more,
        )  # fmt: skip

    def measured(model):
        with torch.no_grad():
            x = torch.stack(data)
            y = model.decode(model.encode(x)[0], (8, 8, 8))
            seen = [m / m.norm(dim=1, keepdim=True) for m in map(network, (x, y))]
        return float((x - y).abs().mean()), float((seen[0] - seen[1]).square().sum(1).mean())

    without, with_it = trained(0.0), trained(2.0, checkpoint=tmp_path / "run.pt")
    pixels, distance = measured(with_it)
    assert with_it.facts["best"] == pytest.approx(pixels + 2 * distance, rel=1e-3)
    assert distance < 0.9 * measured(without)[1]
    with pytest.raises(UsageError, match="checkpoint"):  # what it was trained by has changed
        trained(2.0, torch.nn.Conv3d(1, 4, 3), checkpoint=tmp_path / "run.pt")
    with pytest.raises(UsageError, match="the perceptual loss has no features"):
        train_autoencoder(data, TINY, how, device="cpu", perceptual_weight=1.0)


def test_a_killed_training_ends_with_the_bits_of_a_whole_one(tmp_path):
    how = LoopSettings(iterations=6, batch_size=2, checkpoint_every=2, validate_every=3)

    class StopError(Exception):
        pass

    def stop(at):
        if at.iteration == 5:
            raise StopError

    whole = train_autoencoder(Boxes(), TINY, how, device="cpu")
    file = tmp_path / "run.pt"
    with pytest.raises(StopError):
        train_autoencoder(Boxes(), TINY, how, device="cpu", checkpoint=file, progress=stop)
    again = train_autoencoder(Boxes(), TINY, how, device="cpu", checkpoint=file)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_files_give_the_same_back(tmp_path):
    model, data = made(), volumes(3)
    model.measure_scale(data)
    model.facts = {"best": 0.1}
    file = tmp_path / "autoencoder.safetensors"
    file.write_bytes(model.to_bytes())
    read = LatentAutoencoder.read(file)
    assert (read.settings, read.facts, read.digest()) == (SMALL, {"best": 0.1}, model.digest())
    assert made(seed=1).digest() != model.digest()
    told = []
    latents = encode_latents(
        model, data, torch.tensor([[0.1], [0.2], [0.3]]), progress=lambda *at: told.append(at)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    with torch.no_grad():
        assert torch.equal(latents.mean[1:2], model.encode(data[1][None])[0])
    assert latents.autoencoder == model.digest()
    assert bool(latents.present.all())
    stored = tmp_path / "latents.safetensors"
    stored.write_bytes(latents.to_bytes())
    again = Latents.read(stored)
    for name in ("mean", "sigma", "values", "present"):
        assert torch.equal(getattr(again, name), getattr(latents, name))
    assert again.autoencoder == latents.autoencoder
    with pytest.raises(InputError, match="holds no latents"):
        Latents.read(file)
    with pytest.raises(InputError, match="not a latent autoencoder"):
        LatentAutoencoder.read(stored)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(pack_weights(model.state_dict(), {"model": "latent-autoencoder"}))
    with pytest.raises(InputError, match="not a latent autoencoder"):
        LatentAutoencoder.read(damaged)


def test_what_is_wrong_is_said_in_one_line(monkeypatch):
    model = made()
    with pytest.raises(UsageError, match=r"expected \(batch, 1, I, J, K\), got \(1, 2, 8, 8, 8\)"):
        model.encode(torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(UsageError, match="the latent has the wrong shape"):
        model.decode(torch.zeros(1, 3, 2, 2, 2))
    with pytest.raises(UsageError, match=r"a grid of \(3, 2, 2\), got \(2, 2, 2\)"):
        model.decode(torch.zeros(1, 2, 2, 2, 2), (9, 8, 8))
    with pytest.raises(UsageError, match="nothing to measure"):
        model.measure_scale([])
    with pytest.raises(UsageError, match="one shape"):
        encode_latents(model, [torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 8, 8)])
    with pytest.raises(UsageError, match="not those of the latents"):
        Latents(*[torch.zeros(2, 1, 2, 2, 2)] * 2, torch.zeros(3, 1), torch.zeros(3, 1) > 0)
    for bad, text in (
        ({"channels": (8, 10), "groups": 4}, "multiples of groups"),
        ({"attention": (True,)}, "a mark for each"),
        ({"residual_blocks": 0}, "1 or more"),
        ({"label_classes": 1}, "two or more"),
        ({"patch_voxels": 0}, "1 voxel or more"),
    ):
        with pytest.raises(UsageError, match=text):
            AutoencoderSettings(**bad)
    with pytest.raises(UsageError, match=r"expected small \| hippocampus \| brain-ldm, got 'x'"):
        AutoencoderSettings.preset("x")
    assert AutoencoderSettings.preset("hippocampus").stride == 8
    for wrong in (
        {"pixel": "l3"}, {"kl_weight": -1}, {"perceptual_weight": -1}, {"gain": 1.0},
        {"iterations": 0},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            AutoencoderTraining(**wrong)

    def full(*_):
        raise torch.OutOfMemoryError("address 0x1 of patient")

    monkeypatch.setattr(model.net, "decode", full)
    with pytest.raises(ResourceError, match="decode in slabs") as caught:
        model.decode(torch.zeros(1, 2, 2, 2, 2))
    assert "patient" not in str(caught.value)
