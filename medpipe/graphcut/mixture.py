"""Gaussian mixtures of one intensity, fitted by expectation maximisation.

Own code: scikit-learn would be a dependency for these few lines, works on the
host and takes every voxel, where eight thousand order statistics say the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.voxels import finite_image

__all__ = ["SIGMA_FLOOR", "GaussianMixture", "central_range", "fit_gaussian_mixture", "summary"]

SUMMARY = 2**13
"""Order statistics that stand for the values in a fit."""
SORTED_AT_MOST = 2**22
"""Values that are sorted; of more, every n-th is taken."""
SIGMA_FLOOR = 1e-3
"""Smallest standard deviation of a component, as a fraction of the central range."""


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture of normal densities of one intensity, components in order of their means.

    Parameters
    ----------
    weights, means, sigmas : Tensor
        float64 (K,); weights sum to 1, sigmas are above 0.
    log_likelihood : float
        Mean log density of the fitted values, nats.
    iterations : int
        Steps of expectation maximisation.
    converged : bool
        Whether the likelihood had settled.
    """

    weights: torch.Tensor
    means: torch.Tensor
    sigmas: torch.Tensor
    log_likelihood: float
    iterations: int
    converged: bool

    def component_costs(self, image: torch.Tensor) -> torch.Tensor:
        """Return -log(weight · density) per component, (K, ...) for an image (...)."""
        return torch.stack([-self._log_joint(image, k) for k in range(self.means.numel())])

    def cost(self, image: torch.Tensor) -> torch.Tensor:
        """Return -log density of the mixture at each voxel, in the shape of `image`."""
        total = self._log_joint(image, 0)
        for k in range(1, self.means.numel()):
            total = torch.logaddexp(total, self._log_joint(image, k))
        return -total

    def _log_joint(self, x: torch.Tensor, k: int) -> torch.Tensor:
        mean, sigma = float(self.means[k]), float(self.sigmas[k])
        scale = math.log(float(self.weights[k])) - math.log(sigma) - 0.5 * math.log(2 * math.pi)
        return scale - 0.5 * ((x - mean) / sigma) ** 2


def fit_gaussian_mixture(
    values: torch.Tensor,
    components: int,
    *,
    sigma_floor: float | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> GaussianMixture:
    """Fit a Gaussian mixture by expectation maximisation.

    The values are summed up by evenly spaced order statistics, so that the cost
    of a step does not grow with the image. Two starts, means at quantiles and means
    evenly spaced over the central 98 %, are each improved by k-means; the fit of
    the higher likelihood is returned. Nothing is random.

    Parameters
    ----------
    values : Tensor
        Intensities, any shape.
    components : int
        Number of components; of fewer distinct values as many.
    sigma_floor : float, optional
        Smallest standard deviation of a component; by default a thousandth of
        the central 98 % of the values.
    tolerance : float
        Stop when the mean log-likelihood gains less, nats.
    max_iterations : int
        Stop after so many steps.

    Raises
    ------
    StepError
        If there is no value or one is not finite.

    References
    ----------
    Dempster, Laird, Rubin 1977, doi 10.1111/j.2517-6161.1977.tb01600.x.
    """
    if components < 1:
        raise UsageError("components is wrong", expected="1 or more", got=str(components))
    x = summary(values)
    low, high = central_range(x)
    floor = SIGMA_FLOOR * (high - low) if sigma_floor is None else sigma_floor
    floor = max(floor, 1e-6 * max(abs(low), abs(high)), 1e-12)
    k = min(components, int(torch.unique(x).numel()))
    ranks = (torch.arange(k, device=x.device) + 0.5) / k
    starts = [x[(ranks * x.numel()).long()], low + ranks * (high - low)]
    fits = [_expectation_maximisation(x, s, floor, tolerance, max_iterations) for s in starts]
    return max(fits, key=lambda f: f.log_likelihood)


def summary(values: torch.Tensor) -> torch.Tensor:
    """Return at most SUMMARY evenly spaced order statistics, float64, ascending."""
    flat = finite_image(values).reshape(-1)
    if flat.numel() == 0:
        raise StepError("there is no value to fit")
    ordered = torch.sort(flat[:: -(-flat.numel() // SORTED_AT_MOST)]).values.to(torch.float64)
    if ordered.numel() <= SUMMARY:
        return ordered
    middle = (torch.arange(SUMMARY, device=flat.device) + 0.5) / SUMMARY
    return ordered[(middle * ordered.numel()).long()]


def central_range(ordered: torch.Tensor, tail: float = 0.01) -> tuple[float, float]:
    """Return the quantiles `tail` and 1 - `tail` of ascending values."""
    last = ordered.numel() - 1
    return float(ordered[round(tail * last)]), float(ordered[round((1 - tail) * last)])


def _expectation_maximisation(
    x: torch.Tensor, means: torch.Tensor, floor: float, tolerance: float, max_iterations: int
) -> GaussianMixture:
    for _ in range(20):
        nearest = torch.argmin((x[:, None] - means).abs(), 1)
        share = functional.one_hot(nearest, means.numel()).to(x.dtype)
        moved = torch.where(share.sum(0) > 0, (share * x[:, None]).sum(0) / share.sum(0), means)
        if torch.equal(moved, means):
            break
        means = moved
    before, now, count = -math.inf, -math.inf, 0
    fit = _maximise(x, share, means, floor)
    for count in range(1, max_iterations + 1):  # noqa: B007
        weights, means, sigmas = fit
        z = (x[:, None] - means) / sigmas
        joint = torch.log(weights) - torch.log(sigmas) - 0.5 * z**2
        total = torch.logsumexp(joint, 1)
        before, now = now, float(total.mean()) - 0.5 * math.log(2 * math.pi)
        if now - before < tolerance:
            break
        fit = _maximise(x, torch.exp(joint - total[:, None]), means, floor)
    order = torch.argsort(fit[1])
    weights, means, sigmas = (t[order] for t in fit)
    return GaussianMixture(weights, means, sigmas, now, count, now - before < tolerance)


def _maximise(
    x: torch.Tensor, share: torch.Tensor, means: torch.Tensor, floor: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weights, means and sigmas from the share of each value in each component."""
    mass = share.sum(0)
    filled = mass > 1e-9 * x.numel()
    safe = torch.where(filled, mass, 1.0)
    means = torch.where(filled, (share * x[:, None]).sum(0) / safe, means)
    variance = (share * (x[:, None] - means) ** 2).sum(0) / safe
    weights = torch.where(filled, mass, 1e-9 * x.numel())
    return weights / weights.sum(), means, variance.sqrt().clamp_min(floor)
