"""Training of the latent autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from monai.transforms.transform import Randomizable
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from medpipe.errors import UsageError
from medpipe.synthesis.autoencoder import AutoencoderSettings, LatentAutoencoder
from medpipe.synthesis.memory import enough_memory
from medpipe.synthesis.model_file import network_digest, plain_json
from medpipe.synthesis.segmenter_measures import dice_of_regions, mean_figure
from medpipe.synthesis.tokeniser_losses import PerceptualLoss, label_loss
from medpipe.train import LoopSettings, train
from medpipe.train.settings import Tell
from medpipe.types import Json

__all__ = ["AutoencoderTraining", "measure_autoencoder", "train_autoencoder"]

LEVEL = 0.95
"""Of the intervals."""
_PIXEL = {"l1": functional.l1_loss, "mse": functional.mse_loss}


@dataclass(frozen=True)
class AutoencoderTraining:
    """How an autoencoder is trained.

    Parameters
    ----------
    iterations, batch_size, learning_rate, weight_decay, schedule, clip_norm, ema_decay,
    validate_every, patience, amp, workers, seed
        See `medpipe.train.LoopSettings`.
    pixel : {"l1", "mse"}
        Absolute or squared error of intensities, which counts 1.
    kl_weight, label_weight, perceptual_weight : float
        See `train_autoencoder`.
    shift_voxels : int
        Volumes are moved by up to so many voxels along each axis.
    gain : float
        Intensities are multiplied by up to 1 ± this.
    """

    iterations: int = 4000
    batch_size: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    pixel: Literal["l1", "mse"] = "l1"
    kl_weight: float = 0.02
    label_weight: float = 0.5
    perceptual_weight: float = 0.0
    shift_voxels: int = 0
    gain: float = 0.0
    validate_every: int = 200
    patience: int | None = None
    amp: bool = True
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pixel not in _PIXEL:
            raise UsageError("unknown pixel loss", expected="l1 or mse")
        weights = (self.kl_weight, self.label_weight, self.perceptual_weight)
        if min(*weights, self.shift_voxels) < 0 or not 0 <= self.gain < 1:
            raise UsageError(
                "the settings of the training of an autoencoder are wrong",
                expected="weights and shift_voxels of 0 or more, gain from 0 to below 1",
            )
        self.loop()  # says what is wrong with its part

    def loop(self) -> LoopSettings:
        """Return the part of the settings that any training has."""
        own = {f.name: getattr(self, f.name) for f in fields(LoopSettings) if hasattr(self, f.name)}
        return LoopSettings(**own, checkpoint_every=self.validate_every)

    def losses(self) -> dict[str, Any]:
        """Return the arguments of `train_autoencoder` that say what is minimised."""
        return {
            "reconstruction": _PIXEL[self.pixel],
            "kl_weight": self.kl_weight,
            "label_weight": self.label_weight,
            "perceptual_weight": self.perceptual_weight,
        }


class _Itself(Dataset[Any]):
    """Volumes, or pairs of one twice, as inputs and as targets."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples
        random = isinstance(samples, Randomizable)
        # what the loop seeds before each sample
        self.transform = samples if random else getattr(samples, "transform", None)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        volume = _volume(self.samples[index])
        return volume, volume


def _volume(sample: Any) -> Tensor:
    return sample[0] if isinstance(sample, tuple) else sample


class _Volumes(Sequence[Any]):
    """Volumes alone, of samples that may be pairs."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return _volume(self.samples[index])


def train_autoencoder(
    samples: Dataset[Any] | Sequence[Tensor],
    settings: AutoencoderSettings,
    training: LoopSettings,
    *,
    validation: Dataset[Any] | Sequence[Tensor] | None = None,
    reconstruction: Callable[[Tensor, Tensor], Tensor] = functional.l1_loss,
    kl_weight: float = 1e-3,
    label_weight: float = 0.2,
    perceptual_weight: float = 0.0,
    features: PerceptualLoss | None = None,
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    progress: Tell | None = None,
) -> LatentAutoencoder:
    """Train an autoencoder and measure the scale of its latents.

    Parameters
    ----------
    samples : dataset or sequence of Tensor (C, I, J, K), or TokeniserSamples
        Of one shape, images about 0 to 1 and one-hot labels behind them, if the settings have
        some. MONAI's `Randomizable` ones are seeded for every sample.
    settings : AutoencoderSettings
    training : LoopSettings
    validation : dataset or sequence, optional
        To choose the best weights by; its metric is the loss without the divergence, of
        volumes decoded from the means of their latents.
    reconstruction : callable
        Of images that were reconstructed and of true ones to a scalar.
    kl_weight : float
        Of the divergence from a normal distribution, in nats for each value of the volume.
    label_weight : float
        Of the cross-entropy of labels; all classes alike, see
        `medpipe.synthesis.tokeniser_losses.label_loss`.
    perceptual_weight : float
        Of the distance of images as `features` sees them.
    features : PerceptualLoss, optional
        Needed where ``perceptual_weight`` is above 0.
    device, checkpoint, progress
        See `medpipe.train.train`.

    Returns
    -------
    LatentAutoencoder
        In evaluation mode, on `device`, with `facts`.

    Raises
    ------
    UsageError
        If features count and there are none; see `medpipe.train.train`.
    StepError, StoreError
        See `medpipe.train.train`.
    """
    if perceptual_weight and features is None:
        raise UsageError("the perceptual loss has no features", hint="give it a PerceptualLoss")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = LatentAutoencoder(settings)

    n = settings.image_channels

    def error(made: dict[str, Tensor], volume: Tensor) -> Tensor:
        values = made["values"]
        total = reconstruction(values[:, :n], volume[:, :n])
        if features is not None and perceptual_weight:
            total = total + perceptual_weight * features(values[:, :n], volume[:, :n])
        if settings.label_classes:
            total = total + label_weight * label_loss(values[:, n:], volume[:, n:])
        return total

    def loss(made: dict[str, Tensor], volume: Tensor) -> Tensor:
        divergence = _divergence(made["mean"], made["sigma"]) / volume.numel()
        return error(made, volume) + kl_weight * divergence

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
            bound_to={
                "autoencoder": plain_json(asdict(settings)),
                "weights": [kl_weight, label_weight, perceptual_weight],
                "features": network_digest(features.network) if features else None,
                "samples": len(cast(Sequence[Any], samples)),
            },
        )
        for part in (samples, getattr(samples, "transform", None)):
            if isinstance(part, Randomizable):
                part.set_random_state(seed=training.seed)
        model.eval().measure_scale(_Volumes(samples))
    model.facts = {
        "training": asdict(training),
        "kl_weight": kl_weight,
        "label_weight": label_weight,
        "perceptual_weight": perceptual_weight,
        "history": list(result.history),
        "metric": "held-out reconstruction" if validation is not None else "loss",
        "best": result.best_metric if math.isfinite(result.best_metric) else None,
        "best_iteration": result.best_iteration,
    }
    return model


@torch.no_grad()
def measure_autoencoder(autoencoder: LatentAutoencoder, samples: Sequence[Any]) -> dict[str, Json]:
    """Return how well volumes survive the way to the mean of their latent and back.

    Parameters
    ----------
    autoencoder : LatentAutoencoder
        Computes on its device.
    samples : sequence of Tensor (C, I, J, K), or TokeniserSamples
        Images with one-hot labels behind them, if the autoencoder has some.

    Returns
    -------
    dict of JSON values
        ``psnr_db`` (of a range of 1) and ``mae``, each as a mean with the interval of
        Student's t; ``dice``, a list of the same for label 1 and above, over the volumes that
        have the label.
    """
    n, classes = autoencoder.settings.image_channels, autoencoder.settings.label_classes
    regions = {str(label): label for label in range(1, classes)}
    rows: dict[str, list[float]] = {name: [] for name in ("psnr_db", "mae", *regions)}
    autoencoder.eval()
    for x in _Volumes(samples):
        whole = x[None].to(autoencoder.scale)
        made = autoencoder.decode(autoencoder.encode(whole)[0], whole.shape[2:])
        error = made[:, :n] - whole[:, :n]
        rows["psnr_db"].append(-10 * math.log10(max(float(error.square().mean()), 1e-12)))
        rows["mae"].append(float(error.abs().mean()))
        if regions:
            found, known = (values[:, n:].argmax(1) for values in (made, whole))
            for name, scores in dice_of_regions(found, known, regions).items():
                rows[name].append(float(scores[0]))
    figures = {name: mean_figure(np.array(row), LEVEL).to_dict() for name, row in rows.items()}
    dice: list[Json] = [figures.pop(name) for name in regions]
    return {**figures, "dice": dice}


def _divergence(mean: Tensor, sigma: Tensor) -> Tensor:
    """Return the Kullback–Leibler divergence from the standard normal distribution, in nats."""
    return 0.5 * (mean**2 + sigma**2 - 1.0 - 2.0 * sigma.log()).sum()
