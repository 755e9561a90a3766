"""Latents moved as little as possible until a labeller sees what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medpipe.synthesis.label_reading import LabelReading

__all__ = ["corrected"]

NEAR = 0.1
"""Errors of what is read, below which no further step is made."""


def corrected(
    latent: Tensor, spread: Tensor, image_of: Callable[[Tensor], Tensor], labeller: nn.Module,
    reading: LabelReading, row: Mapping[str, Any], steps: int,
) -> Tensor:  # fmt: skip
    """Return a latent near another whose image is labelled as a row of conditions asks.

    What labels show is a vector of few numbers: what is asked less what is read, each divided
    by the error of reading it, is e. With J, the derivatives of what is read by each number of
    the latent in units of its spread, every step is the shortest that would do,
    Jᵀ(JJᵀ + 1)⁻¹e: the change that is most probable beforehand, where reading has an error of
    1 (Levenberg-Marquardt, few equations in many unknowns). What no condition depends on stays
    as it was drawn; steps that give all numbers the same weight, such as those of Adam, leave a
    trace everywhere. Labels are counted as probabilities.

    Parameters
    ----------
    latent : Tensor (c, h, w, d)
    spread : Tensor (c, h, w, d) or ()
        Standard deviation of each number of a latent.
    image_of : callable
        Of a latent to its image (C, I, J, K), as it will be shown; differentiable.
    labeller : torch.nn.Module
        Of images (1, C, I, J, K) to logits (1, classes, I, J, K); left as it is.
    reading : LabelReading
    row : mapping
        What is asked for.
    steps : int
        At most; fewer if all that is read is within `NEAR` errors.
    """
    shown = reading.shown(row)
    if not shown:
        return latent
    kept = [reading.names.index(name) for name in shown]
    weights, errors, asked = (
        torch.as_tensor(values, dtype=torch.float64, device=latent.device)
        for values in (
            reading.weights[:, kept], reading.errors[kept], [float(row[name]) for name in shown],
        )
    )  # fmt: skip
    training = labeller.training
    labeller.eval()
    moved = latent.detach()
    for _ in range(steps):
        with torch.enable_grad():
            here = moved.requires_grad_(True)
            seen = labeller(image_of(here)[None]).softmax(1)
            sizes = seen[0, 1:].flatten(1).sum(1).double()
            missing = (asked - weights[0] - sizes @ weights[1:]) / errors
            moved = here.detach()
            if bool((missing.abs() <= NEAR).all()):
                break
            slopes = [
                torch.autograd.grad(each, here, retain_graph=True)[0] * -spread for each in missing
            ]
        j = torch.stack(slopes).flatten(1)
        inner = (j @ j.T).double()
        inner.diagonal().add_(1.0)
        step = torch.linalg.solve(inner, missing.detach()).to(j) @ j
        moved = moved + spread * step.view_as(moved)
    labeller.train(training)
    return moved
