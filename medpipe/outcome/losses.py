"""What training makes small: losses of classes, and the likelihood of times to an event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.losses.focal_loss import FocalLoss
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from medpipe.errors import UsageError

__all__ = [
    "bias_to_share",
    "class_weights",
    "cross_entropy_loss",
    "discrete_survival_loss",
    "focal_loss",
    "life_table_logits",
    "survival_curve",
    "survival_targets",
]

Loss = Callable[[Tensor, Tensor], Tensor]


def class_weights(classes: ArrayLike, count: int) -> tuple[float, ...]:
    """Return weights n / (count n_k): each class weighs the same, their mean over n is 1.

    Parameters
    ----------
    classes : array-like of int (n,)
        0 to `count` - 1.
    count : int

    Raises
    ------
    UsageError
        If a class is absent.
    """
    found = np.bincount(np.asarray(classes, np.int64), minlength=count)
    if len(found) > count or (found == 0).any():
        raise UsageError(
            "a class is absent among the samples to train with",
            expected=f"each of {count} classes",
            got=f"{np.count_nonzero(found)} classes",
        )
    return tuple(float(w) for w in found.sum() / (count * found))


def cross_entropy_loss(weights: Sequence[float] | None = None) -> Loss:
    """Return the mean of the weighted cross-entropies of a batch.

    The mean is over the samples, not over their weights, so that the mean of batches is that
    of all samples.

    Parameters
    ----------
    weights : sequence of float, optional
        Of the classes.

    Returns
    -------
    callable
        Of logits (B, K) and classes (B,).
    """

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        w = None if weights is None else torch.tensor(weights, device=logits.device)
        each = functional.cross_entropy(logits.float(), classes.long(), w, reduction="none")
        return each.mean()

    return loss


def focal_loss(gamma: float = 2.0, weights: Sequence[float] | None = None) -> Loss:
    """Return the focal loss of a softmax, by MONAI: the mean of -w (1 - p)^gamma log p.

    See Lin et al., arXiv 1708.02002. With gamma 0 it is the cross-entropy.

    Parameters
    ----------
    gamma : float
        How much a sample that is already right counts less.
    weights : sequence of float, optional
        Of the classes.

    Returns
    -------
    callable
        Of logits (B, K) and classes (B,).
    """
    kept: Any = None if weights is None else list(weights)
    by_class = FocalLoss(
        to_onehot_y=True, use_softmax=True, gamma=gamma, weight=kept, reduction="none"
    )

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        return by_class(logits, classes.long().unsqueeze(1)).sum(1).mean()

    return loss


def discrete_survival_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of discrete times to an event.

    The probability of the event in interval j, given that it did not come before, is
    h_j = sigmoid(logit_j). A sample that was without the event through s intervals has
    the likelihood prod_{j<s} (1 - h_j), times h_s if the event came in the next one. See
    Gensheimer and Narasimhan, doi 10.7717/peerj.6257.

    Parameters
    ----------
    logits : Tensor (B, T)
    targets : Tensor (B, 2)
        Intervals without the event, and 1 if the event came in the next one; see
        `survival_targets`.

    Returns
    -------
    Tensor ()
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    survived, event = targets.long().unbind(1)
    before = torch.arange(x.shape[1], device=x.device) < survived.unsqueeze(1)
    # log(1 - h) = -softplus(x) and log h = -softplus(-x)
    through = torch.where(before, functional.softplus(x), 0.0).sum(1)
    last = x.gather(1, survived.clamp(max=x.shape[1] - 1).unsqueeze(1)).squeeze(1)
    there = (event > 0) & (survived < x.shape[1])
    return (through + torch.where(there, functional.softplus(-last), 0.0)).mean()


def survival_targets(
    time_days: ArrayLike, event: ArrayLike, ends_days: Sequence[float]
) -> NDArray[np.int64]:
    """Return for each sample the intervals without the event, and whether it came in the next.

    Parameters
    ----------
    time_days : array-like (n,)
        To the event, or to the end of observation.
    event : array-like (n,)
        1 where the event was observed at that time, 0 where observation ended.
    ends_days : sequence of float
        Ends of the intervals, growing; the first begins at 0, an end belongs to its interval.

    Returns
    -------
    int64 array (n, 2)
        Events after the last interval count as observation that ended there. A sample whose
        observation ended in an interval counts as without the event in it if it was observed
        for half of it or more.

    Raises
    ------
    UsageError
        If the intervals do not grow, or a time or an event is wrong.
    """
    ends = np.asarray(ends_days, float)
    if ends.ndim != 1 or not len(ends) or not np.isfinite(ends).all():
        raise UsageError("the intervals are wrong", expected="one or more days")
    edges = np.concatenate([[0.0], ends])
    if (np.diff(edges) <= 0).any():
        raise UsageError("the intervals are wrong", expected="days above 0 that grow")
    time, observed = np.asarray(time_days, float), np.asarray(event)
    if time.ndim != 1 or observed.shape != time.shape:
        raise UsageError("times and events do not fit", expected="one of each for every sample")
    if not np.isfinite(time).all() or (time < 0).any() or not np.isin(observed, (0, 1)).all():
        raise UsageError("a time or an event is wrong", expected="0 days or more, and 0 or 1")
    within = np.searchsorted(ends, time, side="left")  # the interval that holds the time
    middles = 0.5 * (edges[:-1] + edges[1:])
    seen_half = time >= np.append(middles, np.inf)[within]
    happened = (observed == 1) & (within < len(ends))
    survived = within + ((observed == 0) & seen_half)
    return np.stack([survived, happened.astype(np.int64)], 1).astype(np.int64)


def life_table_logits(targets: Tensor, intervals: int) -> Tensor:
    """Return the logits (T,) of the hazards that a cohort has without regard to any image.

    Of those who reach an interval, the share with the event in it; half an event more and
    one sample more keep it off 0 and 1. Where a network begins with these, it is as good
    as the life table before it has learned anything.

    Parameters
    ----------
    targets : Tensor (B, 2)
        See `survival_targets`.
    intervals : int
        T.
    """
    survived, event = targets.long().unbind(1)
    number = torch.arange(intervals, device=survived.device)
    here = (survived.unsqueeze(1) == number) & (event.unsqueeze(1) > 0)
    events = here.sum(0)
    without = (survived.unsqueeze(1) > number).sum(0)
    return torch.log((events + 0.5) / (without + 0.5))


def survival_curve(logits: Tensor) -> Tensor:
    """Return the probability (..., T) of no event up to the end of each interval.

    Parameters
    ----------
    logits : Tensor (..., T)
        Of the hazards of the intervals.
    """
    # exp of a sum of logarithms: small probabilities stay exact
    return functional.logsigmoid(-logits).cumsum(-1).exp()


def bias_to_share(logits: Tensor, share: float) -> Tensor:
    """Return what to add to logits so that their mean probability is `share`, by bisection.

    Parameters
    ----------
    logits : Tensor (n,)
    share : float
        Above 0 and below 1.

    Returns
    -------
    Tensor
        A scalar, float64.
    """
    wide = logits.double()
    low, high = -wide.max() - 40, -wide.min() + 40
    for _ in range(80):
        middle = (low + high) / 2
        below = (wide + middle).sigmoid().mean() < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
