"""Ensembles: means over mirrored copies and over models."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medpipe.outcome.channels import ct_channels
from medpipe.outcome.ensemble import (
    ensemble_probability,
    event_logit,
    mean_survival,
    predict_logits,
    predict_volumes,
)
from medpipe.outcome.network import OutcomeNetworkSettings, outcome_network


@pytest.fixture(scope="module")
def models():
    out = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = outcome_network(OutcomeNetworkSettings(architecture="small"))
        net(torch.rand(4, 3, 16, 16, 16))  # statistics of its own
        out.append(net)
    return out


def test_mirrored_copies_are_averaged_exactly(models):
    x = torch.rand(2, 3, 16, 18, 20)
    flips = ((0,), (1, 2))
    models[0].train()  # whoever left it so
    got = predict_logits(models, x, tta=flips)
    assert got.shape == (2, 2, 2)
    assert not got.requires_grad
    copies = [x, torch.flip(x, [2]), torch.flip(x, [3, 4])]
    for model, said in zip(models, got, strict=True):
        assert not model.training
        with torch.no_grad():
            each = torch.stack([model(c) for c in copies])
        assert torch.equal(said, each.mean(0))
        assert float((each[0] - each[1]).abs().max()) > 1e-4  # copies differ
    # the mean over all mirrors of an axis does not depend on which one is given
    assert torch.allclose(
        predict_logits(models, x, tta=True), predict_logits(models, x.flip(2), tta=[[0]]), atol=1e-6
    )
    with torch.no_grad():
        assert torch.equal(predict_logits(models, x, tta=False)[1], models[1](x))


def test_volumes_are_predicted_one_by_one_or_together(models):
    rng = np.random.default_rng(0)
    volumes = [rng.integers(-1000, 1000, (16, 16, 16)).astype(np.int16) for _ in range(3)]
    wrapped = [SimpleNamespace(network=m) for m in models]
    got = predict_volumes(wrapped, volumes, preset="paper", batch_size=2, tta=True)
    assert got.shape == (2, 3, 2)
    for n, volume in enumerate(volumes):
        x = ct_channels(torch.from_numpy(volume)[None, None], "paper")
        assert torch.allclose(got[:, n], predict_logits(models, x, tta=True)[:, 0], atol=1e-5)


def test_the_mean_of_the_models_is_one_of_probabilities():
    logits = torch.tensor([[[0.0, 2.0], [1.0, -3.0]], [[1.0, 0.0], [0.0, 0.0]]])
    p = 1 / (1 + np.exp(-np.array([[2.0, -4.0], [-1.0, 0.0]])))
    got = ensemble_probability(logits)
    np.testing.assert_allclose(got[:, 1].numpy(), p.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.sum(-1).numpy(), 1, rtol=1e-6)
    np.testing.assert_allclose(torch.sigmoid(event_logit(logits)).numpy(), p, rtol=1e-6)


def test_the_event_of_a_curve_is_one_before_its_end():
    hazards = torch.tensor([[0.1, 0.2, 0.05], [0.5, 0.5, 0.9]], dtype=torch.float64)
    logits = torch.logit(hazards)
    truth = 1 - (1 - hazards).prod(-1)
    assert torch.allclose(torch.sigmoid(event_logit(logits, survival=True)), truth, rtol=1e-12)
    tiny = event_logit(torch.full((1, 3), -60.0, dtype=torch.float64), survival=True)
    assert float(tiny) == pytest.approx(np.log(3) - 60, rel=1e-12)
    curves = torch.cumprod(1 - hazards, -1)
    assert torch.allclose(mean_survival(logits[:, None]), curves.mean(0)[None], rtol=1e-12)
