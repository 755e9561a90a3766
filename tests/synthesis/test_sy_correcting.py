"""Latents moved down a gradient: to the minimum that another optimiser finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

from medpipe.synthesis.correcting import STRAYING, descended
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


@pytest.mark.parametrize("asked", [1.0, 3.0, 6.4])
def test_it_ends_where_the_sum_of_errors_and_change_is_least(asked):
    began = torch.full((1, 1, 1, 1), 0.3)

    def cost(x):
        read = 0.2 + ML * VOXELS / (1 + np.exp(-1.5 * x))
        return ((read - asked) / 0.4) ** 2 + STRAYING * (x - 0.3) ** 2

    best = optimize.minimize_scalar(cost, bounds=(-9, 9), method="bounded").x
    found = descended(began, flat, Brightness(), READING, {"size_ml": asked, "luck": 50}, 600)
    assert float(found) == pytest.approx(best, abs=2e-3)
    assert abs(best - 0.3) > 0.1
    # sixteen steps lead most of the way, and never away
    near = descended(began, flat, Brightness(), READING, {"size_ml": asked}, 16)
    assert cost(float(near)) < 0.5 * cost(0.3)


def test_what_labels_do_not_show_moves_nothing():
    began = torch.full((1, 1, 1, 1), 0.3)
    for row in ({"luck": 50.0}, {"size_ml": None}, {}):
        assert torch.equal(descended(began, flat, Brightness(), READING, row, 5), began)


def test_networks_are_left_as_they_were():
    labeller = Brightness().train()
    began = torch.full((1, 1, 1, 1), 0.3)
    with torch.no_grad():
        moved = descended(began, flat, labeller, READING, {"size_ml": 6.0}, 3)
    assert not moved.requires_grad
    assert not torch.equal(moved, began)
    assert labeller.weight.grad is None
    assert labeller.training
