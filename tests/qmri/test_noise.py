"""The noise that is measured is the noise that was put in."""

from __future__ import annotations

import math

import pytest
import torch

from medpipe.errors import InputError
from medpipe.qmri.noise import measure_noise, noise_sigma


def head(shape=(96, 96, 24), images=4) -> torch.Tensor:
    """Return smooth signals inside an ellipse, 0 around it, (D, I, J, K)."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    inside = (x / 0.8) ** 2 + (y / 0.9) ** 2 < 1
    signal = 100 + 30 * torch.cos(3 * x + 2 * y) + 5 * z
    return torch.stack([inside * signal * (1 + 0.3 * d) for d in range(images)])


def noisy(ideal: torch.Tensor, sigma: float, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    parts = torch.randn((2, *ideal.shape), generator=g) * sigma
    return torch.hypot(ideal + parts[0], parts[1])


@pytest.mark.parametrize("sigma", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("shape", [(96, 96, 24), (64, 64, 1), (128, 128)])
def test_background_gives_the_noise(sigma, shape):
    ideal = head((*shape, 1)[:3])
    found = measure_noise(noisy(ideal, sigma).reshape(4, *shape))
    assert found is not None
    assert found.method == "background"
    assert abs(found.sigma / sigma - 1) < 0.04
    assert len(found.per_image) == 4


def test_a_shoulder_in_some_corners_does_no_harm():
    ideal = head()
    ideal[:, :40, :, :6] = 150
    found = measure_noise(noisy(ideal, 2.0))
    assert found is not None
    assert abs(found.sigma / 2 - 1) < 0.04


@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_a_background_of_zeros_falls_back_to_differences(sigma):
    ideal = head()
    images = noisy(ideal, sigma) * (ideal > 0)
    found = measure_noise(images)
    assert found is not None
    assert found.method == "difference"
    assert abs(found.sigma / sigma - 1) < 0.06


def test_a_cropped_image_has_no_background():
    images = noisy(head()[:, 24:72, 24:72], 2.0)
    found = measure_noise(images)
    assert found is not None
    assert found.method == "difference"
    assert abs(found.sigma / 2 - 1) < 0.06


def test_outside_of_a_mask_is_searched_alone():
    ideal = head()
    images = noisy(ideal, 2.0)
    assert abs((noise_sigma(images, ideal[0] > 0) or 0) / 2 - 1) < 0.04
    whole = torch.ones(ideal.shape[1:])
    found = measure_noise(images, whole)
    assert found is not None
    assert found.method == "difference"


def test_signed_images_have_normal_noise():
    g = torch.Generator().manual_seed(1)
    images = head() + 2 * torch.randn(head().shape, generator=g)
    assert abs((noise_sigma(images) or 0) / 2 - 1) < 0.04


def test_what_is_not_finite_does_not_count():
    images = noisy(head(), 2.0)
    images[:, :3, :3] = torch.nan
    images[:, 50, 50] = torch.inf
    assert abs((noise_sigma(images) or 0) / 2 - 1) < 0.04


@pytest.mark.parametrize("value", [0.0, 5.0, math.nan])
def test_images_without_noise_tell_none(value):
    assert noise_sigma(torch.full((2, 32, 32, 8), value)) is None


def test_one_black_image_does_not_decide():
    images = noisy(head(), 2.0)
    images[1] = 0
    found = measure_noise(images)
    assert found is not None
    assert abs(found.sigma / 2 - 1) < 0.04
    assert math.isnan(found.per_image[1])


def test_grids_that_differ_are_refused():
    with pytest.raises(InputError, match="grid of the images"):
        noise_sigma(head(), torch.ones(3, 3, 3))
    with pytest.raises(InputError, match="set of real images"):
        noise_sigma(torch.ones(4, 4))
