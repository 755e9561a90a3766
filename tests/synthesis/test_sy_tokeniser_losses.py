"""Losses of the tokeniser against closed forms and MONAI's, and where MONAI's break."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import JukeboxLoss, PatchAdversarialLoss
from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import nn

from medpipe.errors import UsageError
from medpipe.synthesis.tokeniser import Reconstruction
from medpipe.synthesis.tokeniser_losses import (
    LossWeights,
    PerceptualLoss,
    TokeniserLoss,
    check_patches,
    discriminator_loss,
    label_loss,
    least_squares_opponent,
    spectral_loss,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made_of(values, commitment=0.0):
    zero = torch.zeros(())
    return Reconstruction(values, zero + commitment, torch.zeros(1, 1, 1, 1), zero)


@pytest.mark.parametrize("shape", [(2, 1, 8, 6, 4), (1, 2, 7, 5, 9), (1, 3, 4, 5, 1)])
def test_the_spectral_loss_and_its_gradient_are_those_of_monai(shape):
    """Half the spectrum says it all, for odd and even sizes and several channels."""
    x, y = noise(*shape), noise(*shape, seed=1)
    grads, values = [], []
    for loss in (spectral_loss, JukeboxLoss(spatial_dims=3)):
        leaf = x.clone().requires_grad_()
        value = loss(leaf, y)
        value.backward()
        values.append(float(value.detach()))
        grads.append(leaf.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert torch.allclose(grads[0], grads[1], atol=1e-6)


def test_the_spectral_loss_has_a_gradient_where_monais_has_none():
    zero = torch.zeros(1, 1, 4, 4, 4)
    y = noise(1, 1, 4, 4, 4)
    ours, theirs = zero.clone().requires_grad_(), zero.clone().requires_grad_()
    spectral_loss(ours, y).backward()
    JukeboxLoss(spatial_dims=3)(theirs, y).backward()
    assert torch.isnan(theirs.grad).any()
    assert torch.equal(ours.grad, zero)
    # a mean shift is the closed form: one amplitude of sqrt(n) x shift, over n amplitudes
    assert float(spectral_loss(zero + 0.5, zero)) == pytest.approx(0.25, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert spectral_loss(zero.bfloat16() + 0.5, zero).dtype == torch.float32


def test_a_shift_in_space_costs_nothing_in_the_spectrum():
    x = noise(1, 1, 8, 8, 8)
    assert float(spectral_loss(x.roll((1, 2, 3), (2, 3, 4)), x)) < 1e-10
    assert float((x.roll(1, 2) - x).square().mean()) > 0.5


def test_the_label_loss_counts_all_classes_alike():
    wanted = torch.zeros(1, 3, 10, 1, 1)
    for place, label in enumerate([0] * 7 + [1] * 2 + [2]):
        wanted[0, label, place] = 1
    assert float(label_loss(torch.zeros_like(wanted), wanted)) == pytest.approx(math.log(3))
    # where logits say how frequent the classes are, nothing pulls: no class is inflated
    shares = torch.tensor([0.7, 0.2, 0.1]).log().requires_grad_()
    label_loss(shares.view(1, 3, 1, 1, 1).expand_as(wanted), wanted).backward()
    assert float(shares.grad.abs().max()) < 1e-6


class Pair(nn.Module):
    """Two features of a place: the value and one minus it."""

    def forward(self, x):
        return torch.cat([x, 1 - x], 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_perceptual_loss_is_the_angle_between_features(dims):
    """Of unit vectors at angles a and b it is 2 - 2 cos(a - b)."""
    loss = PerceptualLoss(Pair(), dims, share=1.0)
    x, y = torch.rand(2, 1, 4, 3, 5), torch.rand(2, 1, 4, 3, 5)
    a, b = (torch.atan2(1 - v, v) for v in (x, y))
    truth = float((2 - 2 * torch.cos(a - b)).mean())
    assert float(loss(x, y)) == pytest.approx(truth, rel=1e-4)
    assert float(loss(x, x)) == 0


def test_slices_are_seen_along_all_axes():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return [x, x.mean((2, 3), keepdim=True)]

    x = torch.arange(2 * 4 * 6 * 8.0).reshape(2, 1, 4, 6, 8)
    torch.manual_seed(3)
    value = PerceptualLoss(Spy(), 2, share=0.5)(x, x + 1)
    assert [tuple(s.shape) for s in seen[::2]] == [(4, 1, 6, 8), (6, 1, 4, 8), (8, 1, 4, 6)]
    slices = {tuple(x[b, 0, i].flatten().tolist()) for b in range(2) for i in range(4)}
    assert {tuple(s.flatten().tolist()) for s in seen[0]} <= slices
    torch.manual_seed(3)
    assert float(PerceptualLoss(Spy(), 2, share=0.5)(x, x + 1)) == float(value)


def test_the_network_of_features_stays_as_it_is():
    network = nn.Conv3d(1, 3, 3)
    loss = PerceptualLoss(network)
    zero = torch.zeros(1, 1, 5, 5, 5, requires_grad=True)
    network.bias.data.zero_()
    loss(zero, noise(1, 1, 5, 5, 5)).backward()
    assert torch.isfinite(zero.grad).all()
    assert network.weight.grad is None
    assert not network.training
    for bad in ({"spatial_dims": 4}, {"share": 0}):
        with pytest.raises(UsageError, match="perceptual"):
            PerceptualLoss(network, **bad)


def test_least_squares_are_those_of_monai():
    peer = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)
    opponent = least_squares_opponent(1, width=4, layers=1)
    network = opponent.network
    real, made = noise(2, 1, 8, 8, 8), noise(2, 1, 8, 8, 8, seed=1)
    network.requires_grad_(False)
    mine = discriminator_loss(network, made, real)
    scores = network(real)[-1], network(made)[-1]
    theirs = 0.5 * (peer(scores[0], True, True) + peer(scores[1], False, True))
    assert float(mine) == pytest.approx(float(theirs), rel=1e-5)
    weights = LossWeights(spectral=0, adversarial=0.3)
    loss = TokeniserLoss(1, weights, opponent=opponent)
    total, fit = loss(made_of(made), real), loss.fit(made_of(made), real)
    fooled = peer(network(made)[-1], True, False)
    assert float(total - fit) == pytest.approx(0.3 * float(fooled), rel=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_volumes_too_small_for_the_discriminator_are_named(layers):
    network = PatchDiscriminator(spatial_dims=3, channels=2, in_channels=1, num_layers_d=layers)
    least = {1: 6, 2: 12, 3: 24}[layers]
    check_patches((least, 40, least), layers)
    assert network(torch.zeros(1, 1, least, least, least))[-1].shape[2:] == (1, 1, 1)
    with pytest.raises(UsageError, match=f"expected {least} voxels or more"):
        check_patches((40, least - 1, 40), layers)
    with pytest.raises(RuntimeError):
        network(torch.zeros(2, 1, least - 1, least - 1, least - 1))


def test_the_sum_has_its_parts_and_waits_for_the_opponent():
    target = torch.cat([noise(1, 1, 12, 12, 12), torch.zeros(1, 2, 12, 12, 12)], 1)
    target[:, 1] = 1
    values = noise(1, 3, 12, 12, 12, seed=2)
    opponent = least_squares_opponent(1, width=2, layers=2, start=5, ramp=1)
    weights = LossWeights("l1", spectral=2.0, perceptual=0.5, labels=0.1, adversarial=1.0)
    loss = TokeniserLoss(1, weights, features=PerceptualLoss(Pair()), opponent=opponent)
    parts = loss.parts(made_of(values, 0.7), target)
    assert list(parts) == ["pixel", "commitment", "spectral", "perceptual", "labels"]
    image = values[:, :1], target[:, :1]
    assert float(parts["pixel"]) == pytest.approx(float((image[0] - image[1]).abs().mean()))
    assert float(parts["spectral"]) == pytest.approx(2 * float(spectral_loss(*image)))
    assert float(parts["labels"]) == pytest.approx(
        0.1 * float(torch.logsumexp(values[:, 1:], 1).sub(values[:, 1]).mean()), rel=1e-5
    )
    total = sum(float(p) for p in parts.values())
    assert float(loss(made_of(values, 0.7), target)) == pytest.approx(total, rel=1e-6)
    more = []
    for opponent.iteration in (4, 5, 6):
        more.append(float(loss(made_of(values, 0.7), target)) - total)
    assert more[0] == pytest.approx(0, abs=1e-5)
    assert more[1] == pytest.approx(more[2] / 2, rel=1e-3)
    with pytest.raises(UsageError, match="needs a network of features"):
        TokeniserLoss(1, weights)
    for bad in ({"pixel": "huber"}, {"spectral": -1.0}):
        with pytest.raises(UsageError):
            LossWeights(**bad)
