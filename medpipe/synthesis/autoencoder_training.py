"""Training of the latent autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from monai.transforms.transform import Randomizable
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from medpipe.synthesis.autoencoder import AutoencoderSettings, LatentAutoencoder
from medpipe.synthesis.memory import enough_memory
from medpipe.train import LoopSettings, train
from medpipe.train.settings import Tell

__all__ = ["train_autoencoder"]


class _Itself(Dataset[Any]):
    """Volumes as inputs and as targets."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples
        random = isinstance(samples, Randomizable)
        # what the loop seeds before each sample
        self.transform = samples if random else getattr(samples, "transform", None)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        volume = self.samples[index]
        return volume, volume


def train_autoencoder(
    samples: Dataset[Any] | Sequence[Tensor],
    settings: AutoencoderSettings,
    training: LoopSettings,
    *,
    validation: Dataset[Any] | Sequence[Tensor] | None = None,
    reconstruction: Callable[[Tensor, Tensor], Tensor] = functional.l1_loss,
    kl_weight: float = 1e-3,
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    progress: Tell | None = None,
) -> LatentAutoencoder:
    """Train an autoencoder and measure the scale of its latents.

    Parameters
    ----------
    samples : dataset or sequence of Tensor (C, I, J, K)
        Of one shape, about 0 to 1. MONAI's `Randomizable` ones are seeded for every sample.
    settings : AutoencoderSettings
    training : LoopSettings
    validation : dataset or sequence, optional
        To choose the best weights by; its metric is the mean absolute error.
    reconstruction : callable
        Of reconstructions and volumes to a scalar.
    kl_weight : float
        Of the divergence from a normal distribution, in nats for each value of the volume.
    device, checkpoint, progress
        See `medpipe.train.train`.

    Returns
    -------
    LatentAutoencoder
        In evaluation mode, on `device`, with `facts`.

    Raises
    ------
    UsageError, StepError, StoreError
        See `medpipe.train.train`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = LatentAutoencoder(settings)

    def loss(made: dict[str, Tensor], volume: Tensor) -> Tensor:
        divergence = _divergence(made["mean"], made["sigma"]) / volume.numel()
        return reconstruction(made["values"], volume) + kl_weight * divergence

    def error(made: dict[str, Tensor], volume: Tensor) -> Tensor:
        return functional.l1_loss(made["values"], volume)

    with enough_memory("take a smaller batch or smaller volumes"):
        result = train(
            model,
            loss,
            _Itself(samples),
            training,
            validation=None if validation is None else _Itself(validation),
            metric=error,
            device=device,
            checkpoint=checkpoint,
            progress=progress,
        )
        for part in (samples, getattr(samples, "transform", None)):
            if isinstance(part, Randomizable):
                part.set_random_state(seed=training.seed)
        model.eval().measure_scale(samples)
    model.facts = {
        "training": asdict(training),
        "kl_weight": kl_weight,
        "history": list(result.history),
        "metric": "mean absolute error" if validation is not None else "loss",
        "best": result.best_metric if math.isfinite(result.best_metric) else None,
        "best_iteration": result.best_iteration,
    }
    return model


def _divergence(mean: Tensor, sigma: Tensor) -> Tensor:
    """Return the Kullback–Leibler divergence from the standard normal distribution, in nats."""
    return 0.5 * (mean**2 + sigma**2 - 1.0 - 2.0 * sigma.log()).sum()
