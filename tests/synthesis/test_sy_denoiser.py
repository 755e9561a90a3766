"""The denoiser: any size, conditions that are known or not, files."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from medpipe.errors import InputError, UsageError
from medpipe.models import pack_weights
from medpipe.synthesis.autoencoder import AutoencoderSettings, LatentAutoencoder
from medpipe.synthesis.cubes import folded, unfolded
from medpipe.synthesis.denoiser import Denoiser, DenoiserSettings


def settings(**how):
    base = {
        "latent_channels": 2, "channels": (8, 16), "attention": (False, True), "groups": 4,
        "head_channels": 8, "condition_width": 8,
    }  # fmt: skip
    return DenoiserSettings(**(base | how))


def made(**how):
    """A denoiser whose last layers are not zero, as MONAI begins with."""
    torch.manual_seed(0)
    denoiser = Denoiser(settings(**how)).eval()
    with torch.no_grad():
        for p in denoiser.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return denoiser


def noisy(shape=(4, 6, 4), batch=2):
    return torch.randn(batch, 2, *shape, generator=torch.Generator().manual_seed(1))


TIME = torch.tensor([200.0, 700.0])


@torch.no_grad()
def test_a_latent_of_any_size_is_one_that_zeros_surround():
    denoiser, x = made(), noisy((5, 6, 3))
    out = denoiser(x, TIME)
    assert out.shape == x.shape
    wide = torch.zeros(2, 2, 6, 6, 4)
    wide[:, :, :5, :, :3] = x
    assert torch.equal(out, denoiser.unet(wide, TIME)[:, :, :5, :, :3])
    assert not torch.allclose(out[:1], denoiser(x, TIME.flip(0))[:1], atol=1e-3)


@torch.no_grad()
def test_cubes_of_cells_are_channels_of_the_network():
    denoiser, x = made(patch_cells=2), noisy((5, 6, 3))
    assert denoiser.stride == 4
    wide = torch.zeros(2, 2, 8, 8, 4)
    wide[:, :, :5, :6, :3] = x
    cubes = folded(wide, 2)
    assert cubes.shape == (2, 16, 4, 4, 2)
    out = unfolded(denoiser.unet(cubes, TIME), 2)
    assert torch.equal(denoiser(x, TIME), out[:, :, :5, :6, :3])


@torch.no_grad()
@pytest.mark.parametrize("conditioning", ["cross-attention", "embedding"])
def test_conditions_count_where_they_are_known_and_nowhere_else(conditioning):
    denoiser, x = made(conditions=2, conditioning=conditioning), noisy()
    values = torch.tensor([[0.5, -0.2], [0.1, 0.9]])
    known = torch.tensor([[True, True], [True, False]])
    out = denoiser(x, TIME, values, known)
    other = values + torch.tensor([[0.4, 0.0], [0.0, float("nan")]])
    changed = denoiser(x, TIME, other, known)
    assert not torch.allclose(out[0], changed[0], atol=1e-4)
    assert torch.equal(out[1], changed[1])
    # absent is not the same as any value, and none at all is all absent
    absent = denoiser(x, TIME, values, torch.zeros_like(known))
    assert torch.equal(absent, denoiser(x, TIME))
    assert not torch.allclose(absent, denoiser(x, TIME, torch.zeros(2, 2)), atol=1e-4)
    # the two conditions have meanings of their own
    assert not torch.allclose(out[0], denoiser(x, TIME, values.flip(1))[0], atol=1e-4)


def test_a_file_gives_the_same_denoiser_back(tmp_path):
    denoiser = made(conditions=1, objective="noise")
    denoiser.autoencoder, denoiser.facts = "0123", {"best": 0.5}
    file = tmp_path / "denoiser.safetensors"
    file.write_bytes(denoiser.to_bytes())
    read = Denoiser.read(file)
    assert read.settings == denoiser.settings
    assert (read.autoencoder, read.facts, read.training) == ("0123", {"best": 0.5}, False)
    with torch.no_grad():
        assert torch.equal(read(noisy(), TIME), denoiser(noisy(), TIME))
    assert file.read_bytes() == read.to_bytes()


def test_a_denoiser_knows_its_autoencoder():
    torch.manual_seed(0)
    shape = AutoencoderSettings(channels=(8, 8), groups=4)
    one, other = LatentAutoencoder(shape), LatentAutoencoder(shape)
    denoiser = Denoiser(settings())
    denoiser.check_autoencoder(one)  # unknown: nothing to say
    denoiser.autoencoder = one.digest()
    denoiser.check_autoencoder(one)
    with pytest.raises(UsageError, match="latents of another autoencoder"):
        denoiser.check_autoencoder(other)


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    denoiser = Denoiser(settings(conditions=1))
    with pytest.raises(UsageError, match=r"expected \(batch, 2, h, w, d\), got \(2, 3, 4, 4, 4\)"):
        denoiser(torch.zeros(2, 3, 4, 4, 4), TIME)
    with pytest.raises(UsageError, match=r"expected \(2, 1\), got \(2, 2\)"):
        denoiser(noisy(), TIME, torch.zeros(2, 2))
    for bad, text in (
        ({"channels": (8, 10)}, "multiples of groups"),
        ({"channels": ()}, "multiples of groups"),
        ({"channels": (16, 16), "groups": 16}, "larger than that"),
        ({"grid": (2, 3)}, "three extents"),
        ({"attention": (True,)}, "a mark for each"),
        ({"conditioning": "prefix"}, "cross-attention or embedding"),
        ({"objective": "score"}, "flow, velocity or noise"),
        ({"residual_blocks": 0}, "1 or more"),
        ({"conditions": -1}, "0 conditions or more"),
        ({"directions": 2}, "more with a grid"),
        ({"begin": 0.5}, "begin is wrong"),
        ({"begin": 0.0}, "begin is wrong"),
        (
            {"begin": 0.5, "directions": 2, "grid": (2, 2, 2), "objective": "noise"},
            "above 0 for a flow with directions",
        ),
    ):
        with pytest.raises(UsageError, match=text):
            settings(**bad)
    good = made()
    for name, metadata in (
        ("other", {"model": "tokeniser"}),
        ("bare", {"model": "latent-denoiser"}),
        (
            "shape",
            json.loads(json.dumps({"model": "latent-denoiser", "settings": {"channels": [16]}})),
        ),
    ):
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(pack_weights(good.state_dict(), metadata))
        with pytest.raises(InputError, match="not a denoiser of latents"):
            Denoiser.read(file)
