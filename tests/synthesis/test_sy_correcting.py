"""Latents moved by a gradient: as little as will do, by the normal equations and by scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

from medpipe.synthesis.correcting import NEAR, corrected
from medpipe.synthesis.label_reading import LabelReading

VOXELS = 4**3
ML = 0.1
ERRORS = {"size_ml": 0.4, "luck": 9.0}
READING = LabelReading(
    tuple(ERRORS), np.array([[0.2, 1.0], [ML, 0.0]]), np.array(list(ERRORS.values())),
    np.array([2.0, 10.0]),
)  # fmt: skip


class Brightness(nn.Module):
    """Labels what is bright: the logit of label 1 is the intensity, times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), self.weight * x], 1)


def flat(latent):
    """Return an image that is one number everywhere."""
    return latent.mean() * torch.ones(1, 4, 4, 4)


def read_of(x):
    """Return what is read of an image that is x everywhere."""
    return 0.2 + ML * VOXELS / (1 + np.exp(-1.5 * x))


@pytest.mark.parametrize("asked", [1.0, 3.0, 5.9])
def test_what_was_asked_is_reached(asked):
    began = torch.full((1, 1, 1, 1), 0.3)
    found = corrected(
        began, torch.ones(()), flat, Brightness(), READING, {"size_ml": asked, "luck": 50}, 20
    )
    assert abs(read_of(float(found)) - asked) <= NEAR * ERRORS["size_ml"]
    wanted = optimize.brentq(lambda x: read_of(x) - asked, -9, 9)
    assert float(found) == pytest.approx(wanted, abs=0.1)
    assert abs(wanted - 0.3) > 0.1


class Parts(nn.Module):
    """Labels two parts of an image by their intensity."""

    def forward(self, x):
        first = torch.zeros_like(x)
        first[..., :2] = 1
        return torch.cat([torch.zeros_like(x), 8 * x * first - 4, 8 * x * (1 - first) - 4], 1)


@pytest.mark.parametrize("correlated", [False, True])
def test_a_step_is_the_most_probable_change(correlated):
    """A weighted least squares problem, posed for all unknowns and solved by numpy."""
    torch.manual_seed(1)
    weights = [[0.3, 1.0], [ML, 0.02 * correlated], [0.01 * correlated, ML]]
    reading = LabelReading(
        ("a_ml", "b_ml"), np.array(weights), np.array([0.3, 0.2]), np.array([2.0, 2.0])
    )
    latent, spread = torch.rand(1, 4, 4, 4), 0.1 + torch.rand(1, 4, 4, 4)
    row = {"a_ml": 2.9, "b_ml": 4.1}

    def missing(flat):
        x = flat.reshape(4, 4, 4)
        scores = np.stack(
            [np.where(np.arange(4) < 2, 8 * x, 0), np.where(np.arange(4) < 2, 0, 8 * x)]
        )
        raised = np.exp(np.concatenate([np.zeros((1, 4, 4, 4)), scores - 4]))
        sizes = (raised / raised.sum(0))[1:].sum((1, 2, 3))
        read = np.array(weights[0]) + sizes @ np.array(weights[1:])
        return (np.array([2.9, 4.1]) - read) / np.array([0.3, 0.2])

    start, scale = latent.double().numpy().ravel(), spread.double().numpy().ravel()
    tiny = 1e-6 * np.eye(64)
    slopes = np.stack([(missing(start + d) - missing(start - d)) / 2e-6 for d in tiny], 1)
    # all unknowns and both equations, stacked: |change / spread|² + |missing + slopes change|²
    stacked = np.concatenate([np.diag(1 / scale), slopes])
    change = np.linalg.lstsq(stacked, np.concatenate([np.zeros(64), -missing(start)]), rcond=None)[
        0
    ]
    found = corrected(latent, spread, lambda z: z, Parts(), reading, row, 1)
    assert np.allclose((found - latent).numpy().ravel(), change, atol=1e-4 * np.abs(change).max())
    assert np.abs(change).max() > 0.01


def test_what_no_condition_depends_on_stays_as_it_was():
    torch.manual_seed(2)
    latent, spread = torch.rand(2, 4, 4, 4), torch.ones(2, 4, 4, 4)
    spread[0, 0] = 1e-3

    found = corrected(latent, spread, lambda z: z[:1], Brightness(), READING, {"size_ml": 3.5}, 40)
    change = (found - latent).abs()
    assert torch.equal(found[1], latent[1])  # the image does not show it
    assert change[0, 0].max() < 1e-4 * change[0, 1:].min()  # hardly varies
    read = 0.2 + ML * float((1.5 * found[0]).sigmoid().sum())
    assert read == pytest.approx(3.5, abs=NEAR * ERRORS["size_ml"])


def test_what_labels_do_not_show_moves_nothing():
    began = torch.full((1, 1, 1, 1), 0.3)
    for row in ({"luck": 50.0}, {"size_ml": None}, {}):
        found = corrected(began, torch.ones(()), flat, Brightness(), READING, row, 5)
        assert torch.equal(found, began)


def test_networks_are_left_as_they_were():
    labeller = Brightness().train()
    began = torch.full((1, 1, 1, 1), 0.3)
    with torch.no_grad():
        moved = corrected(began, torch.ones(()), flat, labeller, READING, {"size_ml": 6.0}, 3)
    assert not moved.requires_grad
    assert not began.requires_grad
    assert not torch.equal(moved, began)
    assert labeller.weight.grad is None
    assert labeller.training
