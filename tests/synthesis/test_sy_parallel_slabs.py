"""Slabs on one device: how far layers look, pooled moments, decoding in turns."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.autoencoderkl import AEKLDownsample, AutoencoderKL
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from monai.networks.nets.vqvae import VQVAE
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medpipe.errors import UsageError
from medpipe.synthesis.parallel.decode import _leaves, decode_slabs, halo_decode, run_slabs
from medpipe.synthesis.parallel.exchange import Exchange
from medpipe.synthesis.parallel.modules import split_module, twin_of
from medpipe.synthesis.parallel.moments import corrected, pooled, sums_of
from medpipe.synthesis.parallel.patches import PatchParallel
from medpipe.synthesis.parallel.slabs import (
    choose_axis,
    cut_evenly,
    layer_reach,
    path_reach,
    slab_bounds,
)


@pytest.mark.parametrize(("cells", "parts"), [(7, 3), (8, 4), (5, 5), (9, 1)])
def test_an_axis_is_cut_evenly_and_whole(cells, parts):
    shares = cut_evenly(cells, parts)
    assert sum(shares) == cells
    assert max(shares) - min(shares) <= 1
    bounds = slab_bounds(shares, 4)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == 4 * cells
    assert [b for _, b in bounds[:-1]] == [a for a, _ in bounds[1:]]


def dependencies(net, length, start, stop):
    """Return the first and last cell of the input that outputs start to stop depend on."""
    x = torch.randn(1, 1, length, 4, 4, requires_grad=True)
    net(x)[:, :, start:stop].sum().backward()
    cells = x.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten()
    return int(cells[0]), int(cells[-1])


LAYERS = [
    nn.Conv3d(1, 1, 3, padding=1),
    nn.Conv3d(1, 1, 5, padding=2),
    nn.Conv3d(1, 1, 3, padding=2, dilation=2),
    nn.Conv3d(1, 1, 1),
    nn.Conv3d(1, 1, 3, stride=2, padding=1),
    nn.Conv3d(1, 1, 4, stride=2, padding=1),
    nn.Conv3d(1, 1, 2, stride=2),
    nn.ConvTranspose3d(1, 1, 2, stride=2),
    nn.ConvTranspose3d(1, 1, 4, stride=2, padding=1),
    nn.ConvTranspose3d(1, 1, 3, stride=2, padding=1, output_padding=1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_reach_of_a_layer_is_what_its_gradient_says(layer):
    nn.init.uniform_(layer.weight, 0.5, 1.0)
    reach = layer_reach(layer, 0)
    start, stop = 4, 8  # a slab of a volume of 16
    first, last = dependencies(layer, 16, int(start * reach.scale), int(stop * reach.scale))
    assert first == start - reach.before
    # what a wide stride leaves out at the end counts as no reach
    assert last == stop - 1 + reach.after or (reach.after == 0 and last < stop)


PATHS = [
    nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(1, 1, 3, padding=1)),
    nn.Sequential(
        nn.Conv3d(1, 1, 3, padding=1), nn.Upsample(scale_factor=2.0), nn.Conv3d(1, 1, 3, padding=1)
    ),
    nn.Sequential(LAYERS[8], LAYERS[0], LAYERS[8], LAYERS[0]),
    nn.Sequential(LAYERS[9], LAYERS[1]),
    nn.Sequential(LAYERS[0], LAYERS[4], LAYERS[0], LAYERS[5]),
    nn.Sequential(LAYERS[0], nn.AvgPool3d(2), LAYERS[0]),
    nn.Sequential(LAYERS[0], AEKLDownsample(3, 1), LAYERS[0]),
]


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_the_reach_of_a_path_covers_what_its_gradient_says(path):
    for p in path.parameters():
        nn.init.uniform_(p, 0.5, 1.0)
    reach = path_reach(list(_leaves(path)), 0)  # a layer that is there twice counts twice
    start, stop = 16, 24
    first, last = dependencies(path, 40, int(start * reach.scale), int(stop * reach.scale))
    assert start - reach.before <= first <= start - reach.before + int(1 / min(1, reach.scale))
    assert stop - 1 + reach.after >= last


def test_pooled_moments_are_those_of_the_whole():
    x = torch.randn(2, 6, 9, 3, 3, generator=torch.Generator().manual_seed(0)) + 100
    parts = [sums_of(x[:, :, a:b], 3) for a, b in ((0, 2), (2, 6), (6, 9))]
    mean, variance = pooled(parts)
    flat = x.double().reshape(2, 3, -1)
    assert torch.allclose(mean, flat.mean(-1), atol=1e-5)
    assert torch.allclose(variance, flat.var(-1, correction=0), rtol=1e-4)
    theirs = nn.functional.group_norm(x, 3)
    rate = (variance + 1e-5).rsqrt()
    ours = (x.double().reshape(2, 3, -1) - mean[..., None]) * rate[..., None]
    assert torch.allclose(ours.reshape(x.shape).float(), theirs, atol=1e-3)


def test_corrected_moments_follow_a_change_that_all_parts_share():
    generator = torch.Generator().manual_seed(0)
    then = [torch.randn(1, 2, 8, 4, 4, generator=generator) * (n + 1) for n in range(3)]
    sums = [sums_of(x, 2) for x in then]
    # a shift of everything is known exactly from one part, wherever its mean was
    now = [x + 0.7 for x in then]
    flat = torch.cat(now, 2).double().reshape(1, 2, -1)
    mean, _ = corrected(sums, sums[1], sums_of(now[1], 2), 1)
    assert torch.allclose(mean, flat.mean(-1), atol=1e-6)
    # nothing changed: the moments of the step before
    still = corrected(sums, sums[1], sums[1], 1)
    assert torch.allclose(torch.stack(still), torch.stack(pooled(sums)), atol=1e-9)
    # a part that shrinks to nothing leaves no variance: what is known stands in
    gone = sums_of(then[2] * 0, 2)
    mean, variance = corrected(sums, sums[2], gone, 2)
    known = pooled([sums[0], sums[1], gone])
    assert torch.allclose(mean, known[0])
    assert torch.allclose(variance, known[1])
    assert bool((variance > 0).all())


def autoencoder(**how):
    torch.manual_seed(0)
    base = {"channels": (8, 8, 8), "attention_levels": (False,) * 3, "norm_num_groups": 4,
            "num_res_blocks": 1, "latent_channels": 2, "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False}  # fmt: skip
    return AutoencoderKL(spatial_dims=3, **(base | how)).eval()


DECODERS = {
    "plain": lambda: autoencoder().decoder,
    "transposed": lambda: autoencoder(use_convtranspose=True).decoder,
    "attention": lambda: autoencoder(
        with_decoder_nonlocal_attn=True, attention_levels=(False, True, False)
    ).decoder,
    "tokens": lambda: VQVAE(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 8), num_res_layers=1,
        num_res_channels=(8, 8), embedding_dim=2, num_embeddings=4,
        downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
        upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
    ).decoder.eval(),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_decoding_in_turns_is_decoding_at_once(name):
    torch.manual_seed(1)
    decoder, latent = DECODERS[name](), torch.randn(2, 2, 5, 11, 4)
    whole = decoder(latent)
    for how in (
        {"slabs": 4},
        {"slabs": 5, "axis": 0, "levels": 2},
        {"slabs": 3, "levels": 9, "storage": "cpu"},
    ):
        assert torch.allclose(decode_slabs(decoder, latent, **how), whole, atol=1e-5), how
    # one process is one slab
    assert torch.allclose(halo_decode(decoder, latent), whole, atol=1e-5)


@torch.no_grad()
def test_the_weights_are_shared_and_the_decoder_stays_as_it_was():
    decoder = autoencoder().decoder
    names = [type(m).__name__ for m in decoder.modules()]
    twin = split_module(decoder, Exchange(None, (5,), 0))
    assert {id(p) for p in twin.parameters()} == {id(p) for p in decoder.parameters()}
    assert [type(m).__name__ for m in decoder.modules()] == names
    one = nn.Linear(2, 2)
    twice = twin_of(nn.Sequential(one, one), lambda _: None)
    assert twice[0] is twice[1]


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that anything computed."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


@torch.no_grad()
def test_no_tensor_is_as_large_as_the_features_of_the_whole():
    decoder, latent = autoencoder().decoder, torch.randn(1, 2, 32, 2, 2)
    sizes = []
    for run in (lambda: decoder(latent), lambda: decode_slabs(decoder, latent, slabs=16)):
        with Largest() as largest:
            run()
        sizes.append(largest.numbers)
    assert sizes[0] == 8 * 128 * 8 * 8
    # a slab of 4 coarse cells with rims of 2 on either side, at twice the resolution
    assert sizes[1] == 8 * 2 * (4 + 4) * 8 * 8


@torch.no_grad()
def test_slabs_of_an_encoder_begin_at_multiples_of_its_stride():
    encoder = autoencoder().encoder
    x = torch.rand(1, 1, 20, 8, 8)
    whole = encoder(x)
    for slabs in (1, 2, 5):
        made = run_slabs(list(encoder.blocks), x, slabs=slabs, axis=0)
        assert torch.allclose(made, whole, atol=1e-5)
    with pytest.raises(UsageError, match="a multiple of 4, got 18"):
        run_slabs(list(encoder.blocks), x[:, :, :18], slabs=2, axis=0)


def test_what_cannot_be_cut_is_refused():
    exchange = Exchange(None, (4,), 0)
    refused = [
        (nn.Conv3d(1, 1, 3), "Conv3d"),  # loses cells at its rim
        (nn.Conv3d(1, 1, 3, padding="same"), "Conv3d"),
        (nn.Conv3d(1, 1, 3, padding=1, padding_mode="circular"), "Conv3d"),
        (nn.ConvTranspose3d(1, 1, 3, stride=2), "ConvTranspose3d"),
        (nn.Upsample(scale_factor=2.0, mode="trilinear"), "Upsample"),
        (nn.Upsample(scale_factor=1.5), "Upsample"),
        (nn.AvgPool3d(3, 2), "AvgPool3d"),
        (nn.InstanceNorm3d(2), "InstanceNorm3d"),
        (nn.BatchNorm3d(2), "eval"),
        (nn.LayerNorm((2, 4)), "LayerNorm"),
    ]
    for layer, text in refused:
        with pytest.raises(UsageError, match=text):
            split_module(nn.Sequential(layer), exchange)
    net = DiffusionModelUNet(
        3, 1, 1, 1, (8,), (True,), 4, num_head_channels=8, with_conditioning=True,
        cross_attention_dim=4, dropout_cattn=0.5,
    )  # fmt: skip
    with pytest.raises(UsageError, match="eval"):
        split_module(net, exchange)
    for how, text in (
        ({"mode": "late"}, "synchronous or displaced"),
        ({"warmup": 0}, "1 or more"),
    ):
        with pytest.raises(UsageError, match=text):
            PatchParallel(**how)
    with pytest.raises(UsageError, match="expected 1 to 3, got 4"):
        cut_evenly(3, 4)
    with pytest.raises(UsageError, match="no such axis"):
        choose_axis((4, 5, 6), 3)
    with pytest.raises(UsageError, match="one for each process"):
        Exchange(None, (2, 2), 0)
    with pytest.raises(UsageError, match="taken apart"):
        decode_slabs(nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 2, 2, 2))
    with pytest.raises(UsageError, match="levels"):
        decode_slabs(nn.Sequential(), torch.zeros(1, 1, 2, 2, 2), levels=0)
    assert choose_axis((4, 9, 6), None) == 1
