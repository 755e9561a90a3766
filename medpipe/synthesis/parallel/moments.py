"""Mean and variance of a whole from those of its parts, for group normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["corrected", "pooled", "sums_of"]


def sums_of(x: Tensor, groups: int) -> Tensor:
    """Return count, mean and sum of squared deviations of each group.

    Parameters
    ----------
    x : Tensor (B, C, ...)
    groups : int
        Into which the channels are cut.

    Returns
    -------
    float64 Tensor (B, groups, 3)
    """
    flat = x.reshape(x.shape[0], groups, -1)
    wide = flat if flat.dtype == torch.float64 else flat.float()
    variance, mean = torch.var_mean(wide, -1, correction=0)
    count = torch.full_like(mean, flat.shape[-1])
    return torch.stack([count, mean, variance * count], -1).double()


def pooled(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and variance (B, groups) of what the parts hold together.

    Parameters
    ----------
    parts : sequence of Tensor (B, groups, 3)
        See `sums_of`. The sums are of deviations from the mean of a part, so nothing large
        is subtracted (Chan et al. 1983, doi 10.2307/2683386).
    """
    count, mean, squares = torch.stack(list(parts)).unbind(-1)
    total = count.sum(0)
    whole = (count * mean).sum(0) / total
    return whole, (squares + count * (mean - whole) ** 2).sum(0) / total


def corrected(
    then: Sequence[Tensor], own_then: Tensor, own_now: Tensor, own: int
) -> tuple[Tensor, Tensor]:
    """Return what mean and variance of the whole are likely to be now.

    First and second moment of the step before are moved by as much as those of one's own
    part have changed since (Li et al., arXiv 2402.19481, section 4). Where that leaves no
    variance, the parts as they are known stand in: one's own now, the others then.

    Parameters
    ----------
    then : sequence of Tensor (B, groups, 3)
        Of all parts in the step before; the entry `own` is not read.
    own_then, own_now : Tensor (B, groups, 3)
    own : int
        Which part is one's own.
    """
    others = list(then)
    before = pooled([*others[:own], own_then, *others[own + 1 :]])
    mixed = pooled([*others[:own], own_now, *others[own + 1 :]])
    part_then, part_now = pooled([own_then]), pooled([own_now])
    first = before[0] + part_now[0] - part_then[0]
    change = (part_now[1] + part_now[0] ** 2) - (part_then[1] + part_then[0] ** 2)
    variance = before[1] + before[0] ** 2 + change - first**2
    good = variance > 0
    return torch.where(good, first, mixed[0]), torch.where(good, variance, mixed[1])
