"""Noise of weighted images, from their background or, where that was zeroed, from tissue.

In air a magnitude is Rayleigh distributed with the standard deviation σ of one channel as
its scale. The corners of a field of view are air in most scans; whether they are is
checked by the shape of their distribution. Scanners that set the background to 0, and
cropped images, leave tissue: there σ is the median deviation of a second difference, in
which smooth structure cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch

from medpipe.errors import InputError

__all__ = ["Noise", "measure_noise", "noise_sigma"]

CORNER = 8
"""A corner is this part of each axis."""
ALIKE = 1.3
"""Corners whose median is up to this times that of the darkest are air like it."""
FEWEST = 50
"""Values that a quantile is taken from at least."""
BRIGHT = 4.0
"""Medians beyond which 15 in a million values of air lie."""
RAYLEIGH_QUARTILES = math.sqrt(math.log(4) / math.log(4 / 3))
"""Upper by lower quartile of a Rayleigh distribution, 2.195."""
SHAPE = 0.15
"""By what part the quartiles may be off before corners are no air."""
DARK = 0.5
"""Of the brightest fiftieth of the image: corners are brighter than this where they hold tissue."""
NORMAL_MEDIAN = 0.6745
MOST = 4_000_000
"""Values that are sorted; of more, every n-th is taken."""


@dataclass(frozen=True)
class Noise:
    """Noise of a set of weighted images.

    Parameters
    ----------
    sigma : float
        Standard deviation of one channel, the median over the images.
    per_image : tuple of float
        That of each image; NaN for one that says nothing.
    method : {"background", "difference"}
        Whether air was found in most images.
    """

    sigma: float
    per_image: tuple[float, ...]
    method: Literal["background", "difference"]


def noise_sigma(images: torch.Tensor, mask: torch.Tensor | None = None) -> float | None:
    """Return the standard deviation of the noise of one channel, None where nothing tells it.

    Parameters
    ----------
    images : Tensor
        (D, I, J) or (D, I, J, K) magnitudes or signed values, one image per measured value.
    mask : Tensor, optional
        (I, J) or (I, J, K), above 0 in the object: what is outside it is searched for air.

    Raises
    ------
    InputError
        If images and mask are not on one grid.
    """
    found = measure_noise(images, mask)
    return None if found is None else found.sigma


def measure_noise(images: torch.Tensor, mask: torch.Tensor | None = None) -> Noise | None:
    """Return the noise of each image and how it was found; None where nothing tells it.

    Parameters and errors are those of `noise_sigma`.
    """
    if images.ndim not in (3, 4) or images.is_complex():
        raise InputError(
            "noise is measured in a set of real images",
            expected="(D, I, J) or (D, I, J, K)",
            got=f"shape {tuple(images.shape)}",
        )
    if mask is not None and mask.shape != images.shape[1:]:
        raise InputError(
            "the mask is not on the grid of the images",
            expected=f"{tuple(images.shape[1:])}",
            got=f"{tuple(mask.shape)}",
        )
    inside = None if mask is None else mask > 0
    found = [_one(image.to(torch.float32), inside) for image in images]
    sigmas = [sigma for sigma, _ in found if sigma > 0]
    if not sigmas:
        return None
    air = sum(kind == "background" for sigma, kind in found if sigma > 0)
    middle = float(torch.tensor(sigmas, dtype=torch.float64).quantile(0.5))
    method: Literal["background", "difference"] = (
        "background" if 2 * air > len(sigmas) else "difference"
    )
    return Noise(middle, tuple(sigma for sigma, _ in found), method)


def _one(image: torch.Tensor, inside: torch.Tensor | None) -> tuple[float, str]:
    """Return σ of one image and how it was found; NaN where nothing tells it."""
    sigma = _air(image, inside)
    if not math.isnan(sigma):
        return sigma, "background"
    return _difference(image, inside), "difference"


def _air(image: torch.Tensor, inside: torch.Tensor | None) -> float:
    """Return σ from the corners as dark as the darkest, NaN where they are no air."""
    corners = []
    ends = [(slice(0, n), slice(-n, None)) for n in _corner_sizes(image.shape)]
    for place in product(*ends):
        values = image[place]
        keep = values.isfinite()
        if inside is not None:
            keep &= ~inside[place]
        values = values[keep]
        # a padded corner is no measurement
        if values.numel() and float((values == 0).float().mean()) < 0.5:
            corners.append(values)
    if not corners:
        return math.nan
    levels = [float(values.abs().median()) for values in corners]
    darkest = min(levels)
    values = torch.cat([v for v, at in zip(corners, levels, strict=True) if at <= ALIKE * darkest])
    if values.numel() < FEWEST:
        return math.nan
    return (
        _signed(values)
        if float((values < 0).float().mean()) > 0.25
        else _rayleigh(values, _typical(image))
    )


def _corner_sizes(shape: torch.Size) -> list[int]:
    """Return the extent of a corner along each axis; thin stacks are taken whole."""
    return [max(4, n // CORNER) if n >= CORNER else n for n in shape]


def _typical(image: torch.Tensor) -> float:
    """Return the brightness that a fiftieth of the image exceeds."""
    values = _some(image[image.isfinite()])
    return float(values.quantile(0.98))


def _rayleigh(values: torch.Tensor, typical: float) -> float:
    values = _some(values)
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75]).to(values)).tolist()
    if low <= 0 or middle > DARK * typical:
        return math.nan
    if abs(high / low / RAYLEIGH_QUARTILES - 1) > SHAPE:
        return math.nan
    # twice as precise as the median, which has ruled out what is far brighter
    return math.sqrt(float(values[values < BRIGHT * middle].square().mean()) / 2)


def _signed(values: torch.Tensor) -> float:
    """Return σ of signed values around 0."""
    sigma = float(_some(values).abs().median()) / NORMAL_MEDIAN
    return sigma if sigma > 0 else math.nan


def _difference(image: torch.Tensor, inside: torch.Tensor | None) -> float:
    """Return σ from the second difference along I and J where all four values are there."""
    there = image.isfinite() & (image != 0)
    if inside is not None:
        there &= inside
    image = torch.where(there, image, torch.zeros_like(image))
    if min(image.shape[:2]) < 2:
        return math.nan
    rows = image[1:] - image[:-1]
    second = (rows[:, 1:] - rows[:, :-1]) / 2
    pairs = there[1:] & there[:-1]
    values = second[pairs[:, 1:] & pairs[:, :-1]]
    return _signed(values) if values.numel() >= FEWEST else math.nan


def _some(values: torch.Tensor) -> torch.Tensor:
    """Return at most `MOST` of the values, equally spaced."""
    return values.flatten()[:: -(-values.numel() // MOST) or 1]
