"""Unary costs against known densities and an independent fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.unaries import (
    class_probability_costs,
    fit_gaussian_mixture,
    gaussian_mixture_costs,
    histogram_costs,
    nested_costs,
    probability_costs,
    tissue_costs,
)

WEIGHTS, MEANS, SIGMAS = (0.55, 0.3, 0.15), (20.0, 60.0, 95.0), (6.0, 5.0, 8.0)


def drawn(count=40_000, seed=0):
    rng = np.random.default_rng(seed)
    which = rng.choice(3, count, p=WEIGHTS)
    return torch.from_numpy(rng.normal(np.take(MEANS, which), np.take(SIGMAS, which)))


def test_the_parameters_of_a_drawn_mixture_are_found():
    fit = fit_gaussian_mixture(drawn(), 3)
    assert fit.converged
    assert fit.weights.tolist() == pytest.approx(WEIGHTS, abs=0.01)
    assert fit.means.tolist() == pytest.approx(MEANS, abs=0.4)
    assert fit.sigmas.tolist() == pytest.approx(SIGMAS, rel=0.05)


def test_a_small_class_beside_a_large_one_is_found():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 1, 97_000), rng.normal(40, 2, 3000)])
    fit = fit_gaussian_mixture(torch.from_numpy(values), 2)
    assert fit.means.tolist() == pytest.approx([0, 40], abs=0.2)
    assert fit.weights.tolist() == pytest.approx([0.97, 0.03], abs=0.002)


def test_costs_are_minus_the_log_density():
    fit = fit_gaussian_mixture(drawn(), 3)
    at = np.linspace(-20, 140, 33)
    parts = [
        w * stats.norm(m, s).pdf(at)
        for w, m, s in zip(*(x.tolist() for x in (fit.weights, fit.means, fit.sigmas)), strict=True)
    ]
    image = torch.from_numpy(at)
    np.testing.assert_allclose(fit.cost(image), -np.log(sum(parts)), rtol=1e-9)
    np.testing.assert_allclose(fit.component_costs(image), -np.log(parts), rtol=1e-9)
    assert fit.log_likelihood == pytest.approx(float(-fit.cost(drawn()).mean()), abs=0.01)


def test_no_step_lowers_the_likelihood():
    values = drawn(5000)
    likelihoods = [
        fit_gaussian_mixture(values, 3, max_iterations=n).log_likelihood for n in (1, 3, 10, 100)
    ]
    assert likelihoods == sorted(likelihoods)


def test_the_order_of_the_voxels_does_not_matter():
    values = drawn()
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    one, two = fit_gaussian_mixture(values, 3), fit_gaussian_mixture(shuffled, 3)
    assert torch.equal(one.means, two.means)
    assert torch.equal(one.sigmas, two.sigmas)


def test_a_spike_does_not_collapse_a_component():
    values = torch.cat([torch.full((3000,), -1000.0), drawn(3000).float()])
    fit = fit_gaussian_mixture(values, 4)
    assert torch.isfinite(fit.cost(values)).all()
    assert fit.sigmas.min() > 0.5
    assert float(fit.means[0]) == pytest.approx(-1000)
    constant = fit_gaussian_mixture(torch.full((50,), 7.0), 3)
    assert constant.means.tolist() == [7.0]
    assert math.isfinite(float(constant.cost(torch.tensor(8.0))))


def two_sided(shape=(30, 30, 30)):
    """An image of two halves with known normal densities, and seeds in both."""
    generator = torch.Generator().manual_seed(0)
    side = torch.arange(shape[0])[:, None, None].expand(shape) < shape[0] // 2
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    image = torch.where(side, 100.0, 60.0) + torch.where(side, 8.0, 12.0) * noise
    return image, side


@pytest.mark.parametrize(
    ("costs", "tolerance"), [(gaussian_mixture_costs, 0.03), (histogram_costs, 0.4)]
)
def test_the_difference_of_the_costs_is_the_log_likelihood_ratio(costs, tolerance):
    image, side = two_sided()
    arguments = {"components": 1} if costs is gaussian_mixture_costs else {}
    inside, outside = costs(image, side, ~side, outlier_fraction=0.0, **arguments)
    x = image.numpy()
    densities = [stats.norm(x[s].mean(), x[s].std()) for s in (side.numpy(), ~side.numpy())]
    expected = [-d.logpdf(x) for d in densities]
    usual = (x > 76) & (x < 92)
    assert usual.sum() > 3000
    ratio = (inside - outside).numpy()
    np.testing.assert_allclose(ratio[usual], (expected[0] - expected[1])[usual], atol=tolerance)
    # each side alone is minus a log density per unit of intensity
    near = (x > 90) & (x < 110)
    np.testing.assert_allclose(inside.numpy()[near], expected[0][near], atol=tolerance)


@pytest.mark.parametrize(("costs", "most"), [(gaussian_mixture_costs, 1.0), (histogram_costs, 3.0)])
def test_a_value_that_no_seed_shows_does_not_decide(costs, most):
    image, side = two_sided()
    image[0, 0, 0], image[29, 29, 29] = 1e5, -1e5
    seeds = side.clone()
    seeds[0, 0, 0] = False
    others = ~side
    others[29, 29, 29] = False
    inside, outside = costs(image, seeds, others)
    difference = (inside - outside).abs()
    assert float(difference[0, 0, 0]) < most
    assert float(difference[29, 29, 29]) < most
    assert float(difference.max()) < 20


def test_tissues_come_in_order_and_label_the_voxels():
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.choice(3, (20, 20, 20), p=WEIGHTS))
    image = torch.tensor(MEANS)[truth] + torch.tensor(SIGMAS)[truth] * torch.from_numpy(
        rng.normal(size=truth.shape)
    )
    costs, mixture = tissue_costs(image, 3)
    assert costs.shape == (3, 20, 20, 20)
    assert mixture.means.tolist() == pytest.approx(MEANS, abs=1)
    assert float((costs.argmin(0) == truth).double().mean()) > 0.98
    _, bright = tissue_costs(image, 1, mask=truth == 2)
    assert bright.means.tolist() == pytest.approx([float(image[truth == 2].mean())])


def test_probabilities_become_costs():
    p = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    inside, outside = probability_costs(p, floor=0.01)
    expected = [math.log(100), -math.log(0.2), math.log(2), -math.log(0.99)]
    assert inside.tolist() == pytest.approx(expected)
    assert outside.tolist() == pytest.approx(
        [-math.log(0.99), -math.log(0.8), *expected[2:3], math.log(100)]
    )
    classes = class_probability_costs(torch.stack([p, 1 - p]), floor=0.01)
    assert classes[0].tolist() == pytest.approx([math.log(100), -math.log(0.2), math.log(2), 0])


def test_nested_costs_add_up_to_the_cost_of_the_classes():
    costs = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layers = nested_costs(costs)
    for depth in range(4):
        torch.testing.assert_close(layers[:depth].sum(0) + costs[0], costs[depth])


@pytest.mark.parametrize("costs", [gaussian_mixture_costs, histogram_costs])
def test_a_density_is_per_unit_of_intensity(costs):
    image, side = two_sided((16, 16, 16))
    for one, ten in zip(costs(image, side, ~side), costs(image * 10, side, ~side), strict=True):
        np.testing.assert_allclose(ten, one + math.log(10), atol=1e-3)


@pytest.mark.parametrize("costs", [gaussian_mixture_costs, histogram_costs])
def test_unusable_seeds_and_images_are_refused(costs):
    image, side = two_sided((4, 4, 4))
    with pytest.raises(StepError, match="no background seeds"):
        costs(image, side, side & False)
    with pytest.raises(StepError, match="object seeds are on another grid"):
        costs(image, side[:2], side)
    image[1, 2, 3] = math.nan
    with pytest.raises(StepError, match="not finite; got 1 voxels"):
        costs(image, side, ~side)


def test_unusable_parameters_are_refused():
    image, side = two_sided((4, 4, 4))
    for make in (
        lambda: fit_gaussian_mixture(image, 0),
        lambda: gaussian_mixture_costs(image, side, ~side, outlier_fraction=1.0),
        lambda: histogram_costs(image, side, ~side, bins=1),
        lambda: histogram_costs(image, side, ~side, outlier_fraction=-0.1),
        lambda: probability_costs(image, floor=0.0),
        lambda: class_probability_costs(image, floor=1.0),
    ):
        with pytest.raises(UsageError):
            make()
    for wrong in (torch.tensor([1.2]), torch.tensor([math.nan]), torch.tensor([-0.1])):
        with pytest.raises(StepError, match="1 voxels outside or NaN"):
            probability_costs(wrong)
    with pytest.raises(StepError, match="expected 3, got 1"):
        tissue_costs(torch.ones(3, 3, 3), 3)
    with pytest.raises(StepError, match="no value"):
        fit_gaussian_mixture(torch.empty(0), 2)
