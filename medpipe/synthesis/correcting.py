"""Latents moved by the gradient of what a labeller sees, until it sees what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medpipe.synthesis.label_reading import LabelReading

__all__ = ["GRADIENT_STEPS", "descended"]

GRADIENT_STEPS = 16
"""By default."""
RATE = 0.1
"""Of a step, in spreads of a latent."""
STRAYING = 10.0
"""Penalty of the mean square change of a latent, beside errors squared and summed."""


def descended(
    latent: Tensor, image_of: Callable[[Tensor], Tensor], labeller: nn.Module,
    reading: LabelReading, row: Mapping[str, Any], steps: int,
) -> Tensor:  # fmt: skip
    """Return a latent near another whose image is labelled as a row of conditions asks.

    The sum over the conditions that labels show of ((read − asked) / error)², and `STRAYING`
    times the mean square of the change, is lessened by `steps` steps of Adam. Labels are
    counted as probabilities.

    Parameters
    ----------
    latent : Tensor (c, h, w, d)
    image_of : callable
        Of a latent to its image (C, I, J, K), as it will be shown; differentiable.
    labeller : torch.nn.Module
        Of images (1, C, I, J, K) to logits (1, classes, I, J, K); left as it is.
    reading : LabelReading
    row : mapping
        What is asked for.
    steps : int
    """
    shown = reading.shown(row)
    if not shown:
        return latent
    kept = [reading.names.index(name) for name in shown]
    weights, errors, asked = (
        torch.as_tensor(values, dtype=torch.float32, device=latent.device)
        for values in (
            reading.weights[:, kept], reading.errors[kept], [float(row[name]) for name in shown],
        )
    )  # fmt: skip
    training = labeller.training
    labeller.eval()
    change = torch.zeros_like(latent, requires_grad=True)
    adam = torch.optim.Adam([change], lr=RATE)
    for _ in range(steps):
        with torch.enable_grad():
            seen = labeller(image_of(latent + change)[None]).softmax(1)
            sizes = seen[0, 1:].flatten(1).sum(1)
            missing = (weights[0] + sizes @ weights[1:] - asked) / errors
            loss = missing.square().sum() + STRAYING * change.square().mean()
            # of the latent alone: networks keep no gradients
            (change.grad,) = torch.autograd.grad(loss, change)
        adam.step()
    labeller.train(training)
    return latent + change.detach()
