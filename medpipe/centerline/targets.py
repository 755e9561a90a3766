"""What the network learns: the place between curve and wall, and where branches end.

The normalised distance ``q = d_C / (d_C + d_B)`` (d_C to the centerline, d_B to the
background) is 0 on the curve and near 1 at the wall of thin and thick branches alike, as
in DeepCenterline (Guo et al., IPMI 2019, arXiv 1903.10481). Ends are Gaussians, learned
with the focal loss of CenterNet (Zhou et al., arXiv 1904.07850).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["focal_loss", "heat_map", "heat_sigma", "maps_loss", "normalised_distance"]

ALPHA, BETA = 2.0, 4.0
"""Exponents of the focal loss: of the confidence, and of the height of a Gaussian."""

NEAR_CURVE = 0.3
"""Below this value of q an error counts five times."""


def normalised_distance(curve: Tensor, wall: Tensor) -> Tensor:
    """Return q: 0 on the centerline, 1 in the background.

    Parameters
    ----------
    curve : Tensor
        Distance of each voxel to the centerline.
    wall : Tensor, same shape
        Distance to the background, 0 there; in the same unit.
    """
    inside = wall > 0
    whole = torch.where(inside, curve + wall, 1.0)
    return torch.where(inside, curve / whole, 1.0)


def heat_sigma(radius: Tensor) -> Tensor:
    """Return the standard deviation of the Gaussian at an end, for its radius; in voxels."""
    return (0.5 * radius).clamp(min=2.0)


def heat_map(points: Tensor, sigma: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the maximum of Gaussians of height 1.

    Parameters
    ----------
    points : Tensor (P, 3)
        Centres in voxels; they may lie outside the array.
    sigma : Tensor (P,)
        Standard deviations in voxels.
    shape : three int

    Returns
    -------
    Tensor, float32 of this shape
    """
    out = torch.zeros(tuple(shape), device=points.device)
    axes = [torch.arange(n, device=points.device, dtype=torch.float32) for n in shape]
    for centre, width in zip(points.float(), sigma.float(), strict=True):
        i, j, k = (
            torch.exp(-((axis - at) ** 2) / (2 * width * width))
            for axis, at in zip(axes, centre, strict=True)
        )
        torch.maximum(out, i[:, None, None] * j[:, None] * k, out=out)
    return out


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the focal loss of a heat map, per voxel where `target` is 1.

    Parameters
    ----------
    logits : Tensor
        Before the sigmoid.
    target : Tensor, same shape
        Gaussians; 1 at their centres.
    """
    p = torch.sigmoid(logits)
    centre = target >= 1
    hit = (1 - p) ** ALPHA * functional.logsigmoid(logits)
    miss = (1 - target) ** BETA * p**ALPHA * functional.logsigmoid(-logits)
    return -torch.where(centre, hit, miss).sum() / centre.sum().clamp(min=1)


def maps_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the loss of all three maps.

    Parameters
    ----------
    logits : Tensor (B, 3, I, J, K)
        Of q, ends and roots, before the sigmoid.
    target : Tensor, same shape

    Notes
    -----
    q counts within two voxels of the mask, by its Kullback–Leibler divergence: a difference
    of sigmoids has no gradient where the network is sure and wrong. The two heat maps count
    everywhere.
    """
    q = target[:, :1]
    near = (q < 1).float()
    for size in ((5, 1, 1), (1, 5, 1), (1, 1, 5)):
        near = functional.max_pool3d(near, size, stride=1, padding=tuple(n // 2 for n in size))
    weight = near * (1 + 4 * (q < NEAR_CURVE))
    cross = functional.binary_cross_entropy_with_logits(logits[:, :1], q, reduction="none")
    error = cross + torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q)
    distance = (weight * error).sum() / weight.sum().clamp(min=1)
    ends = focal_loss(logits[:, 1], target[:, 1])
    roots = focal_loss(logits[:, 2], target[:, 2])
    return 2 * distance + ends + roots
