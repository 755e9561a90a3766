"""What the network should learn, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medpipe.centerline.targets import (
    focal_loss,
    heat_map,
    heat_sigma,
    maps_loss,
    normalised_distance,
)


def test_q_of_a_cylinder_is_the_share_of_the_way_to_its_wall():
    r = torch.linspace(0, 12, 49)
    radius = 9.0
    wall = (radius - r).clamp(min=0)
    q = normalised_distance(r, wall)
    expected = torch.where(r < radius, r / radius, torch.ones(()))
    assert torch.allclose(q, expected, atol=1e-6)
    thin = normalised_distance(r / 10, wall / 10)
    assert torch.allclose(thin, q, atol=1e-6)  # free of scale


def test_q_is_whole_where_curve_and_wall_meet():
    q = normalised_distance(torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 0.0]))
    assert q.tolist() == [1.0, 0.0, 1.0]


def test_heat_is_the_highest_of_gaussians():
    points = torch.tensor([[4.0, 5, 6], [10, 5, 6], [-3, 0, 0]])
    sigma = torch.tensor([2.0, 3.0, 2.0])
    heat = heat_map(points, sigma, (12, 11, 13))
    grid = np.stack(np.meshgrid(*map(np.arange, (12, 11, 13)), indexing="ij"), -1)
    far = np.linalg.norm(grid[..., None, :] - np.asarray(points), axis=-1)
    expected = np.exp(-(far**2) / (2 * np.asarray(sigma) ** 2)).max(-1)
    assert np.allclose(np.asarray(heat), expected, atol=1e-6)
    assert heat[4, 5, 6] == 1
    assert heat_map(points[:0], sigma[:0], (3, 3, 3)).sum() == 0
    assert heat_sigma(torch.tensor([1.0, 4.0, 9.0])).tolist() == [2.0, 2.0, 4.5]


def test_focal_loss_is_that_of_centernet():
    target = torch.tensor([1.0, 0.5, 0.0])
    p = torch.tensor([0.8, 0.3, 0.1])
    by_hand = -(0.2**2 * math.log(0.8) + 0.5**4 * 0.3**2 * math.log(0.7) + 0.1**2 * math.log(0.9))
    assert float(focal_loss(torch.logit(p), target)) == pytest.approx(by_hand, rel=1e-5)
    twice = focal_loss(torch.logit(p).repeat(2), target.repeat(2))
    assert float(twice) == pytest.approx(by_hand, rel=1e-5)  # per end
    assert torch.isfinite(focal_loss(torch.tensor([-200.0, 200.0]), torch.tensor([1.0, 0.0])))


def test_the_loss_is_least_at_the_truth_and_its_gradient_points_there():
    target = torch.zeros(1, 3, 12, 12, 12)
    target[:, 0] = 1
    target[:, 0, 4:8, 4:8] = 0.4
    target[:, 1, 5, 5, 5] = 1
    truth = torch.logit(target.clamp(1e-6, 1 - 1e-6))
    best = maps_loss(truth, target)
    assert float(best) < 1e-3
    logits = torch.zeros_like(target, requires_grad=True)
    loss = maps_loss(logits, target)
    loss.backward()
    assert float(loss.detach()) > 1
    gradient = logits.grad
    assert gradient[0, 0, 5, 5, 5] > 0 > gradient[0, 0, 2, 5, 5]
    assert gradient[0, 0, 0, 0, 0] == 0  # q counts near the mask alone
    assert gradient[0, 1, 5, 5, 5] < 0 < gradient[0, 1, 9, 9, 9]


def test_errors_near_the_curve_count_five_times():
    target = torch.zeros(1, 3, 8, 8, 8)
    target[:, 0] = 1
    target[0, 0, 2, 2, 2], target[0, 0, 5, 5, 5] = 0.29, 0.31
    logits = torch.logit(target.clamp(1e-6, 1 - 1e-6))
    logits[:, 0, 2, 2, 2] = logits[:, 0, 5, 5, 5] = 2.0
    logits.requires_grad_()
    maps_loss(logits, target).backward()
    near, far = logits.grad[0, 0, 2, 2, 2], logits.grad[0, 0, 5, 5, 5]
    p = torch.sigmoid(torch.tensor(2.0))
    assert float(near / far) == pytest.approx(5 * float((p - 0.29) / (p - 0.31)), rel=1e-4)


def test_the_loss_of_q_is_the_divergence_by_hand():
    target = torch.zeros(1, 3, 4, 4, 4)
    target[:, 0] = 0.5
    logits = torch.full_like(target, -20.0)
    logits[:, 0] = torch.logit(torch.tensor(0.8))
    by_hand = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert float(maps_loss(logits, target)) == pytest.approx(2 * by_hand, rel=1e-4)
