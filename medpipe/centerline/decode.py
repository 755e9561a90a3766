"""From heat maps to voxels where branches end or start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from medpipe.errors import StepError

__all__ = ["classify_candidates", "decode_points", "peaks", "support"]

WINDOW = 7
"""Voxels along each axis in which a peak is the only one."""

PEAK = 0.3
"""Least height of a peak."""

SUPPORT = 0.2
"""Least height near an end that was found in the mask."""


def peaks(heat: Tensor, threshold: float = PEAK) -> tuple[Tensor, Tensor]:
    """Return local maxima of a heat map, the highest first.

    Parameters
    ----------
    heat : Tensor (I, J, K)
    threshold : float
        Maxima below are left out.

    Returns
    -------
    voxels : int64 Tensor (P, 3)
    heights : Tensor (P,)
        Of equal heights the lowest linear index comes first; a plateau counts once.
    """
    _check(heat)
    warm = (heat >= threshold).nonzero()
    if not len(warm):
        return warm, heat.new_zeros(0)
    low, high = warm.amin(0), warm.amax(0) + 1
    box = heat[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    best = functional.max_pool3d(box[None, None], WINDOW, stride=1, padding=WINDOW // 2)[0, 0]
    found = ((box == best) & (box >= threshold)).nonzero() + low
    heights = heat[tuple(found.T)]
    order = heights.argsort(descending=True, stable=True)
    found, heights = found[order], heights[order]
    keep = _apart(found, torch.full((len(found),), WINDOW / 2, device=heat.device))
    return found[keep], heights[keep]


def decode_points(
    heat: Tensor, mask: Tensor, radius: Tensor, *, threshold: float = PEAK
) -> tuple[Tensor, Tensor]:
    """Return the voxels of a mask where a heat map peaks.

    Parameters
    ----------
    heat : Tensor (I, J, K)
        Between 0 and 1.
    mask : bool Tensor (I, J, K)
    radius : Tensor (I, J, K)
        Distance to the background in voxels.
    threshold : float
        Least height of a peak.

    Returns
    -------
    voxels : int64 Tensor (P, 3)
        Peaks moved to the nearest voxel of the mask, at most twice the window away. Of
        those closer than twice the radius (or 3 voxels) the highest stays.
    heights : Tensor (P,)
    """
    found, heights = peaks(heat, threshold)
    inside = mask.nonzero()
    if not len(found) or not len(inside):
        return found[:0], heights[:0]
    snapped, away = _nearest(found, inside)
    near = away <= 2 * WINDOW
    snapped, heights = snapped[near], heights[near]
    reach = (2 * radius[tuple(snapped.T)]).clamp(min=3.0)
    keep = _apart(snapped, reach)
    return snapped[keep], heights[keep]


def support(candidates_voxels: Tensor, heat: Tensor, radius: Tensor | float) -> Tensor:
    """Return the largest value of a heat map near each candidate.

    Parameters
    ----------
    candidates_voxels : integer Tensor (N, 3)
    heat : Tensor (I, J, K)
    radius : Tensor (N,) or float
        Of the vessel there, in voxels. "Near" is within this, or 2 voxels where it is less.

    Returns
    -------
    Tensor (N,)
    """
    _check(heat)
    count = len(candidates_voxels)
    points = candidates_voxels.to(heat.device, torch.int64)
    widths = torch.as_tensor(radius, device=heat.device, dtype=torch.float32).expand(count)
    reach = widths.clamp(min=2.0)
    out = heat.new_zeros(count)
    if not count:
        return out
    most = int(reach.max().ceil())
    steps = torch.arange(-most, most + 1, device=heat.device)
    cube = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    far = cube.float().norm(dim=1)
    last = torch.tensor(heat.shape, device=heat.device) - 1
    for n, (point, limit) in enumerate(zip(points, reach, strict=True)):
        at = point + cube[far <= limit]
        at = at[((at >= 0) & (at <= last)).all(1)]
        if len(at):
            out[n] = heat[tuple(at.T)].max()
    return out


def classify_candidates(
    candidates_voxels: Tensor,
    endpoint_map: Tensor,
    radius: Tensor | float,
    *,
    threshold: float = SUPPORT,
) -> Tensor:
    """Return which geodesic candidates are ends: bool (N,).

    A candidate stays if the endpoint map reaches `threshold` within its radius or 2
    voxels, whichever is more. Parameters are those of `support`. The learned path is a
    choice, the classical one the default: see US 11,069,078 B2 and US 11,748,902 B2.
    """
    return support(candidates_voxels, endpoint_map, radius) >= threshold


def _check(heat: Tensor) -> None:
    if heat.ndim != 3:
        raise StepError("the heat map has the wrong axes", expected="(I, J, K)", got=str(heat.ndim))


def _nearest(points: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest voxel of a list for each point, and how far it is."""
    to, away = [], []
    for point in points:
        far = (inside - point).float().norm(dim=1)
        best = far.argmin()
        to.append(inside[best])
        away.append(far[best])
    return torch.stack(to), torch.stack(away)


def _apart(points: Tensor, reach: Tensor | Sequence[float]) -> Tensor:
    """Return the rows that no row before them, that stays, is nearer to than its reach."""
    far = (points[:, None] - points[None]).float().norm(dim=2)
    limit = torch.as_tensor(reach, device=points.device)
    close = far < torch.minimum(limit[:, None], limit[None])
    keep: list[int] = []
    for n in range(len(points)):
        if not bool(close[n, keep].any()):
            keep.append(n)
    return torch.tensor(keep, dtype=torch.int64, device=points.device)
