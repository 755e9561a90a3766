"""Surface costs: closed forms, comparable units, and columns without data."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.surface_costs import (
    boundary_cost,
    edge_slope,
    fill_missing,
    gaussian_cost,
    gaussian_filter,
    gradient_cost,
    log_likelihood_cost,
    probability_cost,
    robust_unit,
    step_response,
    valid_columns,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def step_columns(edges_mm, step_mm=0.004, nodes=60, low=0.1, high=0.9):
    z = torch.arange(nodes, dtype=torch.float64) * step_mm
    return low + (high - low) * torch.sigmoid((z - torch.as_tensor(edges_mm)[..., None]) / 0.002)


@pytest.mark.parametrize(("wrap", "mode"), [((), "nearest"), ((0,), "wrap")])
def test_the_gaussian_equals_scipy(rng, wrap, mode):
    image = rng.normal(size=(23, 9, 31))
    got = gaussian_filter(torch.from_numpy(image), [2.0, 0, 1.3], wrap=wrap)
    want = ndimage.gaussian_filter1d(image, 2.0, axis=0, mode=mode, radius=8)
    want = ndimage.gaussian_filter1d(want, 1.3, axis=2, mode="nearest", radius=6)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-12)


def test_the_derivative_of_a_ramp_is_its_slope():
    ramp = (3.0 * torch.arange(80, dtype=torch.float64)).expand(2, 80)
    out = gaussian_filter(ramp, [0, 2.5], derivative=1)
    np.testing.assert_allclose(out[:, 15:-15], 3.0, rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 2.5])
def test_slopes_between_samples_lie_between_samples(rng, sigma):
    z = torch.arange(60, dtype=torch.float64) * 0.5
    # the slope of a parabola at the middle of two samples is their difference
    slope = edge_slope((z - 7) ** 2, 0.5, sigma_mm=sigma * 0.5, between=True)
    inner = slice(12, -12)
    np.testing.assert_allclose(slope[inner], 2 * ((z[1:] + z[:-1]) / 2 - 7)[inner], rtol=1e-9)
    noise = torch.from_numpy(rng.normal(size=(3, 60)))
    narrow = edge_slope(noise, 0.5, sigma_mm=0.005, between=True)
    torch.testing.assert_close(narrow, noise.diff(dim=-1) / 0.5)
    at = edge_slope(noise, 0.5, sigma_mm=0.005)
    torch.testing.assert_close(at[:, 1:-1], (noise[:, 2:] - noise[:, :-2]) / 1.0)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 2.0])
def test_the_response_to_a_step_is_its_slope(sigma):
    step = (torch.arange(80) >= 40).double()
    slope = edge_slope(step, 1.0, sigma_mm=sigma, between=True)
    torch.testing.assert_close(slope[39:44].tolist(), step_response(sigma, 5))
    # a Gaussian integrated over a sample, once the width is resolved
    if sigma >= 1:
        here = stats.norm.pdf(np.arange(5), scale=sigma)
        np.testing.assert_allclose(step_response(sigma, 5), here, atol=0.03)


@pytest.mark.parametrize(
    ("sign", "direction"), [(1, "dark_to_bright"), (-1, "bright_to_dark"), (1, "either")]
)
def test_gradient_costs_are_least_at_edges_of_their_sign(sign, direction):
    truth = torch.tensor([0.08, 0.1, 0.133], dtype=torch.float64)
    columns = sign * step_columns(truth)
    cost = gradient_cost(columns, 0.004, direction=direction, sigma_mm=0.004)
    assert cost.argmin(-1).tolist() == [20, 25, 33]
    assert 0 <= float(cost.min()) < 0.05
    assert torch.allclose(cost[:, 2], torch.full((3,), 0.5, dtype=cost.dtype), atol=1e-3)
    other = {"dark_to_bright": "bright_to_dark", "bright_to_dark": "dark_to_bright"}
    if direction in other:
        wrong = gradient_cost(columns, 0.004, direction=other[direction], sigma_mm=0.004, scale=90)
        assert wrong.argmax(-1).tolist() == [20, 25, 33]
        assert float(wrong.min()) >= 0.5 - 1e-6


def test_gradient_costs_do_not_depend_on_the_units_of_the_image():
    columns = step_columns(torch.tensor([0.08, 0.1]))
    args = {"direction": "dark_to_bright", "sigma_mm": 0.004}
    one, many = (gradient_cost(columns * f, 0.004, **args) for f in (1.0, 4000.0))
    torch.testing.assert_close(one, many)


def test_columns_with_nan_cost_nothing_and_are_flagged():
    columns = step_columns(torch.tensor([0.08, 0.1, 0.12]))
    columns[1, 7] = torch.nan
    assert valid_columns(columns).tolist() == [True, False, True]
    cost = gradient_cost(columns, 0.004, direction="dark_to_bright", sigma_mm=0.004)
    assert bool((cost[1] == 0).all())
    assert bool(torch.isfinite(cost).all())
    assert bool((fill_missing(columns)[1] == 0).all())
    assert bool((log_likelihood_cost(columns, 0.5)[1] == 0).all())


@pytest.mark.parametrize(
    ("model", "mean", "spread", "density"),
    [
        ("gaussian", 0.4, 0.2, stats.norm(0.4, 0.2)),
        ("gamma", 0.4, 3.0, stats.gamma(3.0, scale=0.4 / 3)),
        ("rayleigh", 0.4, 1.0, stats.rayleigh(scale=0.4 * math.sqrt(2 / math.pi))),
    ],
)
def test_likelihoods_equal_the_densities(rng, model, mean, spread, density):
    x = rng.uniform(0.05, 1.5, (4, 30))
    got = log_likelihood_cost(torch.from_numpy(x), mean, spread, model=model)
    np.testing.assert_allclose(got.numpy(), -density.logpdf(x), rtol=1e-9, atol=1e-12)


def test_boundary_costs_are_the_cumulated_ratio(rng):
    above, below = (torch.from_numpy(rng.normal(size=(5, 12))) for _ in range(2))
    got = boundary_cost(above, below)
    want = [
        [above[c, : k + 1].sum() + below[c, k + 1 :].sum() for k in range(12)] for c in range(5)
    ]
    want = torch.tensor(want)
    torch.testing.assert_close(got, want - want.amin(-1, keepdim=True))


def test_regions_find_a_boundary_that_gradients_do_not(rng):
    # Speckle of two means: no single gradient tells, the whole column does.
    truth = rng.integers(25, 60, 200)
    mean = np.where(np.arange(90) <= truth[:, None], 1.0, 3.0)
    speckle = torch.from_numpy(rng.exponential(mean))
    fits = [log_likelihood_cost(speckle, m, 1.0, model="gamma") for m in (1.0, 3.0)]
    region = boundary_cost(*fits).argmin(-1).numpy()
    edge = gradient_cost(speckle, 1.0, direction="dark_to_bright", sigma_mm=1.5).argmin(-1).numpy()
    assert np.median(np.abs(region - truth)) <= 2
    assert np.abs(region - truth).mean() < 0.3 * np.abs(edge - truth).mean()


def test_probabilities_become_costs():
    p = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0], [1.0, torch.nan, 1.0]])
    cost = probability_cost(p, floor=1e-3)
    np.testing.assert_allclose(cost[0], -np.log([1e-3, 0.25, 0.75]), rtol=1e-6)
    assert bool((cost[1:] == 0).all())
    with pytest.raises(StepError, match="negative"):
        probability_cost(torch.tensor([[-0.1, 1.1]]))
    with pytest.raises(UsageError, match="floor"):
        probability_cost(p, floor=0)


def test_gaussian_predictions_become_costs():
    nodes = torch.linspace(0, 1, 11).expand(3, 11)
    mean = torch.tensor([0.5, torch.nan, 0.2])
    cost = gaussian_cost(nodes, mean, torch.tensor([0.1, 0.1, torch.inf]))
    np.testing.assert_allclose(cost[0], 0.5 * ((nodes[0] - 0.5) / 0.1) ** 2, rtol=1e-6)
    assert bool((cost[1:] == 0).all())
    with pytest.raises(StepError, match="not positive"):
        gaussian_cost(nodes, mean, torch.tensor([0.0, 0.1, 0.1]))


def test_units_become_comparable(rng):
    costs = torch.from_numpy(rng.gamma(2, 1, (40, 25)))
    one = robust_unit(costs)
    torch.testing.assert_close(one, robust_unit(costs * 77 + 5))
    assert float(one.min()) == 0
    assert float(one.median(-1).values.median()) == pytest.approx(1)
    assert bool((robust_unit(torch.ones(3, 4)) == 0).all())


def test_bad_arguments_are_refused():
    x = torch.ones(2, 9)
    with pytest.raises(UsageError, match="direction"):
        gradient_cost(x, 0.1, direction="up", sigma_mm=0.1)
    with pytest.raises(UsageError, match="length"):
        gradient_cost(x, 0.0, direction="either", sigma_mm=0.1)
    with pytest.raises(StepError, match="nothing between samples"):
        edge_slope(torch.zeros(4, 1), 1.0, sigma_mm=1.0, between=True)
    with pytest.raises(UsageError, match="model"):
        log_likelihood_cost(x, 1.0, model="poisson")
    with pytest.raises(UsageError, match="positive mean"):
        log_likelihood_cost(x, 1.0, 0.0)
    with pytest.raises(UsageError, match="differ in shape"):
        boundary_cost(x, x[:, :3])
    with pytest.raises(UsageError, match="sigma does not fit"):
        gaussian_filter(x, [1.0])
    with pytest.raises(UsageError, match="needs a width"):
        gaussian_filter(x, [1.0, 0], derivative=1)
