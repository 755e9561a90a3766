"""Labels from shares that need not be probabilities, with the volumes that the shares have."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["labels_of_shares"]

SWEEPS = 8
"""How often the prices of the labels are set in turn; volumes are met long before."""


def labels_of_shares(shares: Tensor) -> Tensor:
    """Return label maps in which each label has as many voxels as its shares add up to.

    The label of the highest share shrinks what is blurred: a thin structure whose place
    varies is nowhere the most likely. Here a price on each label is set so that the counts
    are met, which gives the map that agrees best with the shares among all with these counts
    (the dual of a transport problem, solved by coordinates). Voxels that are equal where a
    label ends are all left out of it.

    Parameters
    ----------
    shares : Tensor (B, K, I, J, K)
        Of all labels but 0, which has what the others leave of 1; below 0 and above 1 occur.

    Returns
    -------
    Tensor of int64 (B, 1, I, J, K)
    """
    return torch.stack([_one(case) for case in shares])[:, None]


def _one(shares: Tensor) -> Tensor:
    score = torch.cat([1 - shares.sum(0, keepdim=True), shares]).flatten(1)
    voxels = score.shape[1]
    counts = [min(max(round(float(n)), 0), voxels) for n in score.double().sum(1)]
    for _ in range(SWEEPS):
        for label in range(1, len(score)):
            others = torch.cat([score[:label], score[label + 1 :]]).amax(0)
            ahead = score[label] - others
            score[label] -= _cut(ahead, counts[label])
    return score.argmax(0).reshape(shares.shape[1:])


def _cut(ahead: Tensor, count: int) -> Tensor:
    """Return a value that `count` of the numbers exceed."""
    if count == 0:
        return ahead.amax() + 1
    top = ahead.topk(min(count + 1, len(ahead))).values
    return (top[-1] + top[count - 1]) / 2 if count < len(ahead) else top[-1] - 1
