"""Costs of a surface along columns: from edges, from regions and from networks.

Columns are tensors (..., K): K nodes along the last axis, which grow with depth or
height. Every function returns a cost per node, low where the surface belongs, and
0 along a whole column that has no finite data (see `valid_columns`): such a column
follows its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from medpipe.errors import StepError, UsageError

__all__ = [
    "Direction",
    "boundary_cost",
    "edge_slope",
    "fill_missing",
    "gaussian_cost",
    "gaussian_filter",
    "gradient_cost",
    "log_likelihood_cost",
    "probability_cost",
    "robust_unit",
    "step_response",
    "valid_columns",
]

Direction = Literal["dark_to_bright", "bright_to_dark", "either"]
Model = Literal["gaussian", "gamma", "rayleigh"]

TRUNCATE = 4.0


def valid_columns(columns: torch.Tensor) -> torch.Tensor:
    """Return which columns (..., K) hold finite values only, bool (...)."""
    return torch.isfinite(columns).all(-1)


def fill_missing(columns: torch.Tensor) -> torch.Tensor:
    """Return the columns (..., K) with 0 in those that `valid_columns` rejects."""
    return torch.where(valid_columns(columns)[..., None], columns, torch.zeros_like(columns))


def gaussian_filter(
    image: torch.Tensor,
    sigma: Sequence[float],
    *,
    derivative: int | None = None,
    wrap: Sequence[int] = (),
) -> torch.Tensor:
    """Return `image` after a Gaussian along each axis.

    Parameters
    ----------
    image : Tensor
        Real values; integer types become float32.
    sigma : sequence of float
        Standard deviation along each axis in samples; 0 leaves the axis alone.
    derivative : int, optional
        Axis along which the first derivative is taken, per sample. The kernel is
        scaled so that a ramp of slope 1 gives 1.
    wrap : sequence of int
        Axes that close on themselves; the others are continued by their last value.
    """
    if len(sigma) != image.ndim:
        raise UsageError("sigma does not fit the image", expected=f"{image.ndim} values")
    out = image if image.is_floating_point() else image.to(torch.float32)
    for axis, width in enumerate(sigma):
        if width > 0:
            kernel = _derivative(width, out) if axis == derivative else _gaussian(width, out)
            out = _filter_axis(out, kernel, axis, axis in wrap)
        elif axis == derivative:
            raise UsageError("a derivative needs a width", expected="sigma above 0")
    return out


def edge_slope(
    columns: torch.Tensor, step_mm: float, *, sigma_mm: float, between: bool = False
) -> torch.Tensor:
    """Return the derivative along columns, per mm, by that of a Gaussian.

    Parameters
    ----------
    columns : Tensor (..., K)
        Intensities at samples `step_mm` apart; those without data have slope 0.
    step_mm, sigma_mm : float
        Distance of the samples and width of the Gaussian in mm.
    between : bool
        At the K - 1 places half way between samples instead of at the samples. The
        narrowest derivative then spans two samples instead of three, which tells
        edges of thin layers apart.

    Returns
    -------
    Tensor (..., K), or (..., K - 1) with `between`
    """
    if not (step_mm > 0 and sigma_mm > 0):
        raise UsageError("a length is not positive", expected="step_mm and sigma_mm above 0")
    if between and columns.shape[-1] < 2:
        raise StepError("a column has nothing between samples", expected="two samples or more")
    data = fill_missing(columns)
    data = data if data.is_floating_point() else data.to(torch.float32)
    kernel = _derivative(sigma_mm / step_mm, data, between)
    return _filter_axis(data, kernel, data.ndim - 1, False) / step_mm


def step_response(sigma: float, count: int = 3) -> list[float]:
    """Return the slope of a unit step, 0, 1, … places away from it, per sample.

    The slope is that of `edge_slope` between samples, the step lies half way between
    two of them.

    Parameters
    ----------
    sigma : float
        Width of the Gaussian in samples.
    count : int
        Number of places.
    """
    kernel = _derivative(sigma, torch.zeros(0, dtype=torch.float64), between=True)
    half = kernel[kernel.numel() // 2 :]
    sums = half.flip(0).cumsum(0).flip(0)
    return torch.nn.functional.pad(sums, (0, count))[:count].tolist()


def gradient_cost(
    columns: torch.Tensor,
    step_mm: float,
    *,
    direction: Direction,
    sigma_mm: float,
    scale: float | torch.Tensor | None = None,
    between: bool = False,
) -> torch.Tensor:
    """Return a cost from the derivative of the columns, 0 at the strongest edges.

    The derivative of a Gaussian is divided by `scale` and clipped to ±1; the cost is
    ``(1 - g) / 2``, so a flat place costs ½ and an edge of the other sign 1.

    Parameters
    ----------
    columns : Tensor (..., K)
        Intensities at nodes `step_mm` apart.
    step_mm : float
        Distance of the nodes in mm.
    direction : {"dark_to_bright", "bright_to_dark", "either"}
        Change of the intensity with growing k.
    sigma_mm : float
        Width of the Gaussian, about the resolution of the image.
    scale : float or Tensor, optional
        Derivative per mm that counts as a full edge, broadcastable to the columns;
        default the 99th percentile of the edges of this direction.
    between : bool
        Costs at the K - 1 places half way between nodes, see `edge_slope`.

    Raises
    ------
    UsageError
        If a length is not positive or the direction is unknown.
    """
    if direction not in ("dark_to_bright", "bright_to_dark", "either"):
        raise UsageError(
            "the direction of the edge is unknown",
            expected="dark_to_bright, bright_to_dark or either",
            got=str(direction)[:40],
        )
    valid = valid_columns(columns)
    slope = edge_slope(columns, step_mm, sigma_mm=sigma_mm, between=between)
    if direction == "either":
        slope = slope.abs()
    elif direction == "bright_to_dark":
        slope = -slope
    if scale is None:
        scale = _upper(slope[valid].clamp(min=0), 0.99)
    elif isinstance(scale, float | int):
        scale = torch.as_tensor(float(scale), dtype=slope.dtype, device=slope.device)
    edge = (slope / scale.clamp(min=torch.finfo(slope.dtype).tiny)).clamp(-1, 1)
    return torch.where(valid[..., None], (1 - edge) / 2, torch.zeros_like(edge))


def log_likelihood_cost(
    columns: torch.Tensor,
    mean: float | torch.Tensor,
    spread: float | torch.Tensor = 1.0,
    *,
    model: Model = "gaussian",
) -> torch.Tensor:
    """Return how badly each node fits one tissue, −ln of the density, (..., K).

    Parameters
    ----------
    columns : Tensor (..., K)
        Intensities; not negative for "gamma" and "rayleigh".
    mean : float or Tensor
        Mean of the tissue, broadcastable.
    spread : float or Tensor
        Standard deviation ("gaussian") or number of looks ("gamma": speckle
        intensity averaged over that many frames). "rayleigh", the amplitude of fully
        developed speckle, has none.
    model : {"gaussian", "gamma", "rayleigh"}
        Family of the density.
    """
    valid = valid_columns(columns)
    x = fill_missing(columns)
    mu = torch.as_tensor(mean, dtype=x.dtype, device=x.device)
    width = torch.as_tensor(spread, dtype=x.dtype, device=x.device)
    if not bool((width > 0).all()) or (model != "gaussian" and not bool((mu > 0).all())):
        raise UsageError("a tissue has no positive mean or spread", got=f"model {model}")
    if model == "gaussian":
        cost = 0.5 * ((x - mu) / width) ** 2 + torch.log(width) + 0.5 * math.log(2 * math.pi)
    elif model == "gamma":
        y = x.clamp(min=1e-6 * mu)
        shape = width
        cost = shape * (y / mu + torch.log(mu / shape)) - (shape - 1) * torch.log(y)
        cost = cost + torch.lgamma(shape)
    elif model == "rayleigh":
        power = 2 * mu**2 / math.pi  # sigma² from the mean
        y = x.clamp(min=1e-3 * mu)
        cost = y**2 / (2 * power) - torch.log(y / power)
    else:
        raise UsageError("the model is unknown", expected="gaussian, gamma or rayleigh")
    return torch.where(valid[..., None], cost, torch.zeros_like(cost))


def boundary_cost(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Return the cost of a surface from the fit of the tissues on its two sides.

    ``c(k) = Σ_{j≤k} above(j) + Σ_{j>k} below(j)``, less its minimum along the column:
    the cumulative log-likelihood ratio, 0 at the best place of every column.

    Parameters
    ----------
    above, below : Tensor (..., K)
        Costs of each node to lie before the surface (at or below index k) and behind it.
    """
    if above.shape != below.shape:
        raise UsageError(
            "the costs differ in shape", expected=str(tuple(above.shape)), got=str(below.shape)
        )
    total = torch.cumsum((above - below).to(torch.float64), -1)
    return (total - total.amin(-1, keepdim=True)).to(above.dtype)


def probability_cost(probability: torch.Tensor, *, floor: float = 1e-4) -> torch.Tensor:
    """Return −ln p of a surface from network probabilities (..., K).

    Each column is divided by its sum first. `floor` is the least probability of a
    node, so that one confident error of the network stays finite. Columns that sum
    to 0 or hold NaN cost 0 everywhere.

    Raises
    ------
    StepError
        If a probability is negative.
    """
    if not 0 < floor < 1:
        raise UsageError("floor is out of range", expected="between 0 and 1", got=f"{floor:g}")
    p = fill_missing(probability)
    if bool((p < 0).any()):
        raise StepError(
            "a probability is negative",
            expected="0 or more",
            got=f"{float(p.min()):g}",
            hint="pass the output after softmax",
        )
    total = p.sum(-1, keepdim=True)
    cost = -torch.log((p / total.clamp(min=torch.finfo(p.dtype).tiny)).clamp(min=floor))
    return torch.where(total > 0, cost, torch.zeros_like(cost))


def gaussian_cost(
    positions_mm: torch.Tensor, mean_mm: torch.Tensor, sd_mm: torch.Tensor
) -> torch.Tensor:
    """Return ``(L − μ)² / 2σ²`` for a surface predicted as μ ± σ in each column.

    Parameters
    ----------
    positions_mm : Tensor (..., K)
        Positions of the nodes.
    mean_mm, sd_mm : Tensor (...)
        Prediction of each column; NaN or an infinite σ is no prediction and costs 0.

    Raises
    ------
    StepError
        If a σ is not positive.
    """
    given = torch.isfinite(mean_mm) & torch.isfinite(sd_mm)
    if bool((sd_mm[given] <= 0).any()):
        raise StepError(
            "a predicted standard deviation is not positive",
            expected="above 0 mm",
            got=f"{float(sd_mm[given].min()):g} mm",
        )
    mean = torch.where(given, mean_mm, torch.zeros_like(mean_mm))[..., None]
    sd = torch.where(given, sd_mm, torch.ones_like(sd_mm))[..., None]
    return torch.where(given[..., None], 0.5 * ((positions_mm - mean) / sd) ** 2, 0.0)


def robust_unit(costs: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Return costs in units that can be added to others.

    The minimum of each column becomes 0 and the median over the columns of their own
    spread (median minus minimum) becomes 1.

    Parameters
    ----------
    costs : Tensor (..., K)
    valid : Tensor (...), optional
        Columns that decide the unit.
    """
    low = costs - costs.amin(-1, keepdim=True)
    spread = low.median(-1).values
    chosen = spread if valid is None else spread[valid]
    unit = chosen.median() if chosen.numel() else torch.ones((), dtype=costs.dtype)
    return torch.where(unit > 0, low / torch.where(unit > 0, unit, 1.0), low)


def _upper(values: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return a quantile of any number of values; 1 where there is none."""
    flat = values.reshape(-1)
    if flat.numel() == 0:
        return torch.ones((), dtype=values.dtype, device=values.device)
    rank = max(1, math.ceil(fraction * flat.numel()))
    return torch.kthvalue(flat, rank).values


def _gaussian(sigma: float, like: torch.Tensor) -> torch.Tensor:
    radius = max(1, math.ceil(TRUNCATE * sigma))
    x = torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return kernel / kernel.sum()


def _derivative(sigma: float, like: torch.Tensor, between: bool = False) -> torch.Tensor:
    """Return a kernel of which a ramp of slope 1 gives 1, of even length between samples."""
    radius = max(1, math.ceil(TRUNCATE * sigma))
    x = torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)
    x = x[1:] - 0.5 if between else x
    # relative to the nearest sample with a weight, so that a narrow Gaussian does not vanish
    nearest = 0.5 if between else 1.0
    kernel = x * torch.exp((0.5 * (nearest**2 - x**2) / sigma**2).clamp(max=0))
    return kernel / (x * kernel).sum()


def _filter_axis(image: torch.Tensor, kernel: torch.Tensor, axis: int, wrap: bool) -> torch.Tensor:
    """Correlate along an axis; a kernel of even length gives the places between samples."""
    taps, size = kernel.numel(), image.shape[axis]
    before = (taps - 1) // 2
    reach = torch.arange(-before, size + before, device=image.device)
    reach = reach % size if wrap else reach.clamp(0, size - 1)
    moved = image.index_select(axis, reach).movedim(axis, -1)
    flat = moved.reshape(-1, 1, reach.numel())
    out = torch.nn.functional.conv1d(flat, kernel[None, None])
    return out.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
