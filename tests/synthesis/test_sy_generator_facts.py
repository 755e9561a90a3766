"""Reconstructions and likelihoods are those of the networks of a generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sy_tiny_models import AFFINE, SHAPE, conditions, prior, tokeniser

from medpipe.errors import InputError
from medpipe.synthesis.autoencoder import AutoencoderSettings, LatentAutoencoder
from medpipe.synthesis.denoiser import Denoiser, DenoiserSettings
from medpipe.synthesis.evaluation_sets import SynthesisSet
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.generator_facts import likelihoods_of, reconstructions_of
from medpipe.synthesis.routes import LatentRoute, TokenRoute
from medpipe.synthesis.tokeniser import join_labels


def cases(n=3, labels=True):
    made = torch.Generator().manual_seed(1)
    images = torch.rand(n, *SHAPE, generator=made) * 1.2 - 0.1
    known = torch.randint(0, 3, (n, *SHAPE), generator=made, dtype=torch.int16)
    return SynthesisSet(images, known if labels else None)


@pytest.fixture(scope="module")
def tokens():
    coder = tokeniser()
    return Generator(TokenRoute(coder, prior(coder)), AFFINE, SHAPE)


@pytest.fixture(scope="module")
def latents():
    torch.manual_seed(3)
    coder = LatentAutoencoder(AutoencoderSettings(1, 2, (8, 8), groups=4)).eval()
    how = DenoiserSettings(
        2, (8, 8), attention=(False, False), head_channels=4, groups=4, condition_width=8,
        conditions=conditions().columns, conditioning="embedding",
    )  # fmt: skip
    return Generator(LatentRoute(coder, Denoiser(how).eval(), conditions()), AFFINE, SHAPE)


@torch.no_grad()
def test_cases_go_through_the_tokeniser_with_their_labels(tokens):
    given = cases()
    net = tokens.route.tokeniser.tokeniser
    x = join_labels(given.images[:, None].clamp(0, 1), given.labels[:, None], 3)
    expected = net.decode(net.encode(x), SHAPE)[:, 0]
    assert torch.allclose(reconstructions_of(tokens, given), expected, atol=1e-6)
    with pytest.raises(InputError, match="draws labels: real cases need them too"):
        reconstructions_of(tokens, cases(labels=False))
    with pytest.raises(InputError, match="not on the grid of the generator"):
        reconstructions_of(tokens, SynthesisSet(torch.zeros(2, 8, 8, 8)))


@torch.no_grad()
def test_cases_go_through_an_autoencoder(latents):
    given = cases(labels=False)
    own = latents.route.autoencoder
    mean, _ = own.encode(given.images[:, None].clamp(0, 1))
    expected = own.decode(mean, SHAPE)[:, 0]
    assert torch.allclose(reconstructions_of(latents, given), expected, atol=1e-5)
    assert likelihoods_of(latents, given, [{}] * 3) is None


@torch.no_grad()
def test_likelihoods_are_those_of_the_prior(tokens):
    given = cases()
    net, model = tokens.route.tokeniser.tokeniser, tokens.route.prior
    x = join_labels(given.images[:, None].clamp(0, 1), given.labels[:, None], 3)
    # trained with ages of 20 to 90: older ones are taken as 90
    rows = [{"age_years": 30.0, "sex": "F"}, {"age_years": 99.0}, {}]
    told = [rows[0], {"age_years": 90.0}, {}]
    found = likelihoods_of(tokens, given, rows)
    for a, b in zip(found, model.nll(net.encode(x), told), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5)
    assert found[0][0] != pytest.approx(found[1][0], rel=1e-4)
