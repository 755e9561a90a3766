"""How much the surroundings of a voxel look like a tube, at several radii in mm.

The filters of Frangi et al. 1998 (doi 10.1007/BFb0056195) and Sato et al. 1998
(doi 10.1016/S1361-8415(98)80009-1), from the eigenvalues of the Hessian.

A tube of radius r, bright throughout, answers most strongly at sigma = r / sqrt(2): on
its axis the scale-normalised second derivative across it is -u exp(-u) of its contrast
with u = r² / (2 sigma²), and u = 1 is the maximum. So radii are asked for, and `sato`
at the right radius is the contrast divided by e, in the units of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, isfinite, sqrt
from typing import Literal, TypeAlias

import torch
from torch.nn import functional

from medpipe.centerline.hessian import hessian_slabs, symmetric_eigenvalues
from medpipe.errors import StepError, UsageError

__all__ = ["CONTRAST", "Method", "Polarity", "checked_volume", "tube_response", "vesselness"]

Method: TypeAlias = Literal["frangi", "sato"]
Polarity: TypeAlias = Literal["bright", "dark"]

CONTRAST = exp(1)
"""Contrast of a long tube over its largest `sato` response."""

SIGMA_PER_RADIUS = 1 / sqrt(2)

COARSE_SIGMA = 3.5
"""A scale is worked out on blocks of voxels that leave it this many blocks wide; the
answer between their middles is then within 7 % of what the whole grid gives."""

SATO_ALONG = (0.5, 2.0)
"""Widths of Sato's weight where the image along the tube curves down, and up."""


def _coarse(
    image: torch.Tensor, spacing_mm: Sequence[float], sigma_mm: float
) -> tuple[torch.Tensor, list[float], list[float], list[int]]:
    """Return the image averaged in blocks, its spacing, the sigma that is left, the blocks."""
    steps = [float(s) for s in spacing_mm]
    blocks = [
        max(1, min(int(sigma_mm / (COARSE_SIGMA * s)), n))
        for s, n in zip(steps, image.shape, strict=True)
    ]
    # a mean of n samples is itself a smoothing, of variance (n² - 1) / 12
    left = [sqrt(sigma_mm**2 - s**2 * (n**2 - 1) / 12) for s, n in zip(steps, blocks, strict=True)]
    if max(blocks) == 1:
        return image, steps, left, blocks
    for axis, block in enumerate(blocks):
        count = -(-image.shape[axis] // block)
        index = torch.arange(count * block, device=image.device)
        whole = image.index_select(axis, index.clamp_(0, image.shape[axis] - 1))
        image = whole.unflatten(axis, (count, block)).mean(axis + 1)
    return image, [s * n for s, n in zip(steps, blocks, strict=True)], left, blocks


def _fine(coarse: torch.Tensor, blocks: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Return values of blocks at the voxels, linear between the middles of blocks."""
    if max(blocks) == 1:
        return coarse
    size = [n * b for n, b in zip(coarse.shape, blocks, strict=True)]
    fine = functional.interpolate(coarse[None, None], size=size, mode="trilinear")[0, 0]
    return fine[: shape[0], : shape[1], : shape[2]]


def _sato(large: torch.Tensor, middle: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    """Return Sato's response to bright lines from eigenvalues in descending order."""
    across = middle.neg_().clamp_min_(0)
    width = torch.where(large > 0, SATO_ALONG[1], SATO_ALONG[0]).to(large)
    weight = large.div_(width.mul_(across).clamp_min_(torch.finfo(large.dtype).tiny))
    return weight.square_().div_(-2).exp_().mul_(across)


def _frangi(
    large: torch.Tensor,
    middle: torch.Tensor,
    small: torch.Tensor,
    alpha: float,
    beta: float,
    c: float,
) -> torch.Tensor:
    """Return Frangi's response to bright tubes from eigenvalues in descending order."""
    # for a tube the two most negative are the largest in size, else the answer is 0
    is_tube = (middle < 0) & (large.abs() <= middle.abs())
    l1, l2, l3 = large.square_(), middle.square_(), small.square_()
    tiny = torch.finfo(l3.dtype).tiny
    energy = (l1 + l2).add_(l3).div_(-2 * c**2).exp_().neg_().add_(1)
    plate = (l2 / l3.clamp_min(tiny)).div_(-2 * alpha**2).exp_().neg_().add_(1)
    blob = l1.div_((l2.mul_(l3)).sqrt_().clamp_min_(tiny)).div_(-2 * beta**2).exp_()
    return energy.mul_(plate).mul_(blob).mul_(is_tube)


def _largest_norm(
    image: torch.Tensor, spacing_mm: Sequence[float], sigmas: Sequence[float]
) -> float:
    """Return the largest Frobenius norm of the Hessian over all voxels and scales."""
    most = 0.0
    for sigma in sigmas:
        coarse, steps, left, _ = _coarse(image, spacing_mm, sigma)
        for _, parts in hessian_slabs(coarse, steps, left, scale_mm=sigma):
            parts.square_()
            parts[3:] *= 2
            most = max(most, float(parts.sum(0).max()))
    return sqrt(most)


def _responses(
    image: torch.Tensor,
    spacing_mm: Sequence[float],
    sigmas: Sequence[float],
    method: Method,
    alpha: float,
    beta: float,
    c: float,
) -> Iterator[torch.Tensor]:
    """Yield the response to bright tubes at each scale, at the voxels of the image."""
    for sigma in sigmas:
        coarse, steps, left, blocks = _coarse(image, spacing_mm, sigma)
        out = torch.empty_like(coarse)
        for rows, parts in hessian_slabs(coarse, steps, left, scale_mm=sigma):
            values = symmetric_eigenvalues(parts)
            out[rows] = _sato(*values) if method == "sato" else _frangi(*values, alpha, beta, c)
        yield _fine(out, blocks, image.shape)


def checked_volume(image: torch.Tensor) -> torch.Tensor:
    """Return a volume (I, J, K) in floating point.

    Raises
    ------
    StepError
        If it is no volume, or holds NaN, infinity or complex values.
    """
    if image.ndim != 3 or 1 in image.shape or image.is_complex():
        raise StepError(
            "tubes are looked for in volumes",
            expected="real values (I, J, K), two voxels or more along each axis",
            got=f"shape {tuple(image.shape)}",
        )
    data = image if image.dtype in (torch.float32, torch.float64) else image.float()
    if not bool(torch.isfinite(data).all()):
        raise StepError(
            "the image holds NaN or infinity",
            expected="finite values",
            hint="replace them before, with nan_to_num or a mask",
        )
    return data


def _checked(
    image: torch.Tensor, radius_mm: Sequence[float], method: Method, polarity: Polarity
) -> torch.Tensor:
    """Return the image in floating point, dark tubes made bright, or say what is wrong."""
    if not radius_mm or not all(isfinite(r) and r > 0 for r in radius_mm):
        raise UsageError("radius_mm is wrong", expected="one or more positive numbers")
    if method not in ("frangi", "sato"):
        raise UsageError("unknown method", expected="frangi | sato", got=repr(method)[:40])
    if polarity not in ("bright", "dark"):
        raise UsageError("unknown polarity", expected="bright | dark", got=repr(polarity)[:40])
    data = checked_volume(image)
    return -data if polarity == "dark" else data


def tube_response(
    image: torch.Tensor,
    spacing_mm: Sequence[float],
    radius_mm: Sequence[float],
    *,
    method: Method = "frangi",
    polarity: Polarity = "bright",
    alpha: float = 0.5,
    beta: float = 0.5,
    c: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest response to tubes over several radii, and the radius that gave it.

    Parameters
    ----------
    image : Tensor, shape (I, J, K)
    spacing_mm : sequence of 3 floats
        Distance between voxel centres along each axis.
    radius_mm : sequence of floats
        Radii of tubes; sigma is radius / sqrt(2). Wide scales are worked out on means of
        blocks of voxels, at least 3.5 blocks to a sigma.
    method : {"frangi", "sato"}
        Frangi's response lies in 0..1. Sato's is in the units of the image: a long tube
        of contrast A and a radius that is asked for gives A / e on its axis.
    polarity : {"bright", "dark"}
        Tubes brighter or darker than their surroundings.
    alpha, beta : float
        Frangi's sensitivity to plates and to blobs.
    c : float, optional
        Frangi's sensitivity to the size of the Hessian, in the units of the image; by
        default half of its largest Frobenius norm over all voxels and scales.

    Returns
    -------
    response : Tensor, shape (I, J, K)
    radius_mm : Tensor float32, shape (I, J, K)
        0 where the response is.

    Raises
    ------
    UsageError
        If a parameter is out of range.
    StepError
        If the image is no volume of finite real values.
    """
    data = _checked(image, radius_mm, method, polarity)
    sigmas = [float(r) * SIGMA_PER_RADIUS for r in radius_mm]
    if method == "frangi" and c is None:
        c = _largest_norm(data, spacing_mm, sigmas) / 2
    if not min(alpha, beta) > 0 or (c is not None and not c >= 0):
        raise UsageError("alpha, beta or c is wrong", expected="positive numbers")
    best = torch.zeros_like(data)
    radius = torch.zeros(data.shape, dtype=torch.float32, device=data.device)
    found = _responses(data, spacing_mm, sigmas, method, alpha, beta, max(c or 0.0, 1e-12))
    for r, response in zip(radius_mm, found, strict=True):
        radius.masked_fill_(response > best, float(r))
        torch.maximum(best, response, out=best)
    return best, radius


def vesselness(
    image: torch.Tensor,
    spacing_mm: Sequence[float],
    radius_mm: Sequence[float],
    *,
    method: Method = "frangi",
    polarity: Polarity = "bright",
    alpha: float = 0.5,
    beta: float = 0.5,
    c: float | None = None,
) -> torch.Tensor:
    """Return the largest response to tubes over several radii, shape (I, J, K).

    See `tube_response` for the parameters.
    """
    return tube_response(
        image, spacing_mm, radius_mm,
        method=method, polarity=polarity, alpha=alpha, beta=beta, c=c,
    )[0]  # fmt: skip
