"""What networks of several folds say together, with mirrored copies if asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medpipe.outcome.losses import survival_curve
from medpipe.outcome.samples import Picture, Volumes

__all__ = [
    "ensemble_probability",
    "event_logit",
    "mean_survival",
    "predict_logits",
    "predict_volumes",
]

Flips = Sequence[Sequence[int]]


def predict_logits(models: Sequence[Any], inputs: Tensor, *, tta: Flips | bool = ()) -> Tensor:
    """Return what each network says of a batch of channels.

    Parameters
    ----------
    models : sequence of torch.nn.Module or FoldModel
        On the device of the inputs; they are set to use (``eval``).
    inputs : Tensor (B, C, I, J, K)
    tta : sequence of sequences of int, or bool
        Spatial axes to mirror for each further copy: ``[[0], [0, 1]]`` makes two besides
        the inputs themselves. True is one copy, mirrored from left to right.

    Returns
    -------
    Tensor (M, B, outputs)
        For each model the mean of the logits of the copies.
    """
    flips: Flips = [[0]] * tta if isinstance(tta, bool) else tta
    copies = [inputs, *(inputs.flip([2 + a for a in axes]) for axes in flips)]
    said = []
    with torch.no_grad():
        for model in models:
            network: nn.Module = getattr(model, "network", model)
            network.eval()
            said.append(torch.stack([network(copy).float() for copy in copies]).mean(0))
    return torch.stack(said)


def predict_volumes(
    models: Sequence[Any], volumes: Sequence[Picture], *, preset: str = "windows",
    spatial_dims: int = 3, size: Sequence[int] | None = None, tta: Flips | bool = (),
    batch_size: int = 1, names: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:  # fmt: skip
    """Return what each network says of prepared volumes.

    Parameters
    ----------
    models : sequence of torch.nn.Module or FoldModel
        They are moved to `device`.
    volumes, preset, spatial_dims, size, names
        See `medpipe.outcome.samples.Volumes`.
    tta
        See `predict_logits`.
    batch_size : int
        Volumes at a time.
    device : str or torch.device

    Returns
    -------
    Tensor (M, n, outputs), on `device`
    """
    for model in models:
        getattr(model, "network", model).to(device)
    samples = Volumes(
        volumes, preset=preset, spatial_dims=spatial_dims, size=size, names=names,
        device=device, cache_bytes=0,
    )  # fmt: skip
    said = []
    for first in range(0, len(samples), batch_size):
        batch = range(first, min(first + batch_size, len(samples)))
        inputs = torch.stack([samples[n][0] for n in batch])
        said.append(predict_logits(models, inputs, tta=tta))
    return torch.cat(said, 1)


def ensemble_probability(logits: Tensor) -> Tensor:
    """Return the mean over models of the probabilities of the classes.

    Parameters
    ----------
    logits : Tensor (M, ..., K)

    Returns
    -------
    Tensor (..., K)
    """
    return logits.softmax(-1).mean(0)


def event_logit(logits: Tensor, *, survival: bool = False) -> Tensor:
    """Return the logit of the probability of the event.

    Parameters
    ----------
    logits : Tensor (..., 2), or (..., T) of hazards
    survival : bool
        Whether they are of hazards; the event is then one before the last interval ends.

    Returns
    -------
    Tensor (...)
    """
    if not survival:
        return logits[..., 1] - logits[..., 0]
    through = functional.logsigmoid(-logits).sum(-1)  # log S
    # log((1 - S) / S), exact for S near 1 and near 0
    return torch.log(-torch.expm1(through)) - through


def mean_survival(logits: Tensor) -> Tensor:
    """Return the mean over models (M, ..., T) of the curves of survival, (..., T)."""
    return survival_curve(logits).mean(0)
