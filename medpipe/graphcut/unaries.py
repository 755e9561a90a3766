"""Costs of a voxel being inside an object, in nats: minus the log of a probability.

Gaussian mixtures and histograms learn the density of the intensities of each
side from seeds; a mixture can also be fitted to the whole image, one component
a tissue. Probabilities of a network or an atlas become costs as they are.

A density says nothing about values it never saw: far from every seed it is a
quotient of two tails. Each model is therefore mixed with a few per cent of a
uniform density over the range of the image, which bounds the cost difference of
any voxel.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.mixture import (
    SIGMA_FLOOR,
    GaussianMixture,
    central_range,
    fit_gaussian_mixture,
    summary,
)
from medpipe.graphcut.voxels import finite_image

__all__ = [
    "GaussianMixture",
    "class_probability_costs",
    "fit_gaussian_mixture",
    "gaussian_mixture_costs",
    "histogram_costs",
    "nested_costs",
    "probability_costs",
    "tissue_costs",
]


def gaussian_mixture_costs(
    image: torch.Tensor,
    object_seeds: torch.Tensor,
    background_seeds: torch.Tensor,
    *,
    components: int = 3,
    outlier_fraction: float = 0.02,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the costs of object and background from mixtures fitted to seeds.

    Parameters
    ----------
    image : Tensor
        Intensities (X, Y, Z).
    object_seeds, background_seeds : Tensor
        Masks (X, Y, Z) of the voxels the densities are learned from.
    components : int
        Components of each mixture.
    outlier_fraction : float
        Share of a uniform density over the range of the image.

    Returns
    -------
    object_cost, background_cost : Tensor
        Nats, (X, Y, Z); their difference is the log-likelihood ratio.

    Raises
    ------
    StepError
        If one set of seeds is empty or the image is not finite.
    """
    x = finite_image(image)
    low, high = central_range(summary(x))
    costs = []
    for seeds, side in ((object_seeds, "object"), (background_seeds, "background")):
        values = _seeded(x, seeds, side)
        mixture = fit_gaussian_mixture(
            values, components, sigma_floor=SIGMA_FLOOR * (high - low) or None
        )
        costs.append(_with_outliers(mixture.cost(x), x, outlier_fraction))
    return costs[0], costs[1]


def tissue_costs(
    image: torch.Tensor,
    classes: int,
    mask: torch.Tensor | None = None,
    *,
    outlier_fraction: float = 0.02,
) -> tuple[torch.Tensor, GaussianMixture]:
    """Return the cost of each tissue from a mixture fitted without seeds.

    Parameters
    ----------
    image : Tensor
        Intensities (X, Y, Z).
    classes : int
        Number of tissues, one component each.
    mask : Tensor, optional
        Voxels that are fitted; by default all.
    outlier_fraction : float
        Share of a uniform density over the range of the image.

    Returns
    -------
    costs : Tensor
        Nats, (classes, X, Y, Z), darkest tissue first.
    mixture : GaussianMixture
        The fit.

    Raises
    ------
    StepError
        If the image is not finite, or holds fewer distinct values than classes.
    """
    x = finite_image(image)
    mixture = fit_gaussian_mixture(x if mask is None else _seeded(x, mask, "mask"), classes)
    if mixture.means.numel() < classes:
        raise StepError(
            "the image holds fewer distinct values than tissues",
            expected=f"{classes}",
            got=str(mixture.means.numel()),
        )
    costs = mixture.component_costs(x)
    return torch.stack([_with_outliers(c, x, outlier_fraction) for c in costs]), mixture


def histogram_costs(
    image: torch.Tensor,
    object_seeds: torch.Tensor,
    background_seeds: torch.Tensor,
    *,
    bins: int = 128,
    smooth_bins: float = 2.0,
    outlier_fraction: float = 0.02,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the costs of object and background from smoothed histograms of seeds.

    Parameters
    ----------
    image : Tensor
        Intensities (X, Y, Z).
    object_seeds, background_seeds : Tensor
        Masks (X, Y, Z) of the voxels the densities are learned from.
    bins : int
        Bins over the central 99.8 % of the image; values beyond count in the last.
    smooth_bins : float
        Standard deviation of the Gaussian that smooths the counts, in bins.
    outlier_fraction : float
        Share of a uniform density over the bins.

    Returns
    -------
    object_cost, background_cost : Tensor
        Nats, (X, Y, Z): minus the log of the density per unit of intensity.

    Raises
    ------
    StepError
        If one set of seeds is empty or the image is not finite.
    """
    if bins < 2 or smooth_bins < 0:
        raise UsageError("the histogram is wrong", expected="2 bins or more, smoothing from 0")
    _check_fraction(outlier_fraction)
    x = finite_image(image)
    low, high = central_range(summary(x), 0.001)
    width = (high - low) / bins or 1.0
    index = ((x - low) / width).long().clamp_(0, bins - 1)
    costs = []
    for seeds, side in ((object_seeds, "object"), (background_seeds, "background")):
        counts = torch.bincount(_seeded(index, seeds, side), minlength=bins).to(torch.float64)
        smooth = _smooth(counts, smooth_bins)
        share = (1 - outlier_fraction) * smooth / smooth.sum() + outlier_fraction / bins
        costs.append(-torch.log(share / width).to(x.dtype)[index])
    return costs[0], costs[1]


def probability_costs(
    probability: torch.Tensor, floor: float = 1e-3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the costs of object and background from the probability of the object.

    Parameters
    ----------
    probability : Tensor
        Probability of the object (X, Y, Z), from a network or an atlas.
    floor : float
        Probabilities are clipped to [floor, 1 - floor], so that no voxel is
        certain; give seeds for what is.

    Returns
    -------
    object_cost, background_cost : Tensor
        Nats: -log p and -log(1 - p).

    Raises
    ------
    StepError
        If a value is NaN or not in [0, 1].
    """
    _check_floor(floor, 0.5)
    p = _check_probability(probability).clamp(floor, 1 - floor)
    return -torch.log(p), -torch.log1p(-p)


def class_probability_costs(probabilities: torch.Tensor, floor: float = 1e-3) -> torch.Tensor:
    """Return -log p of several classes, (K, X, Y, Z) in nats, p not below `floor`.

    Raises
    ------
    StepError
        If a value is NaN or not in [0, 1].
    """
    _check_floor(floor, 1.0)
    return -torch.log(_check_probability(probabilities).clamp_min(floor))


def nested_costs(class_costs: torch.Tensor) -> torch.Tensor:
    """Return the data costs of nested layers from the costs of the classes between them.

    Class 0 is outside every layer, class k inside the k outermost ones. A layer
    then costs what its class costs more than the class around it; the sum over
    nested layers is the cost of the labelling, up to the sum of class 0.

    Parameters
    ----------
    class_costs : Tensor
        Finite costs (L + 1, X, Y, Z), from outside to inside.

    Returns
    -------
    Tensor
        (L, X, Y, Z), outermost layer first.
    """
    return class_costs[1:] - class_costs[:-1]


def _with_outliers(cost: torch.Tensor, x: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return the cost of a density mixed with a uniform one over the range of `x`."""
    _check_fraction(fraction)
    extent = float(x.max()) - float(x.min())
    if fraction == 0 or extent == 0:
        return cost
    uniform = torch.full_like(cost, math.log(fraction / extent))
    return -torch.logaddexp(math.log1p(-fraction) - cost, uniform)


def _smooth(counts: torch.Tensor, sigma: float) -> torch.Tensor:
    if sigma == 0:
        return counts
    reach = math.ceil(4 * sigma)
    at = torch.arange(-reach, reach + 1, device=counts.device, dtype=counts.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    return functional.conv1d(
        counts[None, None], (kernel / kernel.sum())[None, None], padding=reach
    )[0, 0]


def _seeded(x: torch.Tensor, seeds: torch.Tensor, side: str) -> torch.Tensor:
    if seeds.shape != x.shape:
        raise StepError(
            f"the {side} seeds are on another grid",
            expected=f"shape {tuple(x.shape)}",
            got=f"shape {tuple(seeds.shape)}",
        )
    values = x[seeds.to(x.device, torch.bool)]
    if values.numel() == 0:
        raise StepError(f"there are no {side} seeds", expected="at least one voxel above 0")
    return values


def _check_probability(p: torch.Tensor) -> torch.Tensor:
    p = p if p.is_floating_point() else p.to(torch.float32)
    bad = int((~((p >= 0) & (p <= 1))).sum())
    if bad:
        raise StepError(
            "the probabilities are wrong",
            expected="values from 0 to 1",
            got=f"{bad} voxels outside or NaN",
        )
    return p


def _check_floor(floor: float, limit: float) -> None:
    if not 0 < floor < limit:
        raise UsageError("floor is wrong", expected=f"above 0, below {limit:g}", got=f"{floor:g}")


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise UsageError(
            "outlier_fraction is wrong", expected="from 0, below 1", got=f"{fraction:g}"
        )
