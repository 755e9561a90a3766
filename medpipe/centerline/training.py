"""Training of the network on generated and given trees, and how well it finds their ends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medpipe.centerline.decode import PEAK, decode_points
from medpipe.centerline.examples import FIRST_SEED, TreePatches, TreeSample
from medpipe.centerline.maps import predict_maps
from medpipe.centerline.metrics.leaves import match_points
from medpipe.centerline.network import CHANNELS, CenterlineNetwork, network_from
from medpipe.centerline.targets import maps_loss
from medpipe.errors import UsageError
from medpipe.models import pack_weights
from medpipe.train import LoopSettings, train
from medpipe.train.settings import Tell
from medpipe.types import Json

__all__ = ["TrainingSettings", "end_scores", "train_centerline_maps"]

HELD_OUT = 100_000
"""Number of the first tree that validates; those before it may train."""


@dataclass(frozen=True)
class TrainingSettings:
    """How the maps are trained.

    Parameters
    ----------
    iterations, batch_size, learning_rate, seed
        See `medpipe.train.LoopSettings`.
    trees : int
        Generated trees that patches come from; 0 with samples that are given alone.
    tree_voxels : int, optional
        Voxels along each axis of a tree; by default 192 and 128.
    patch_voxels : int
        Voxels along each axis of a patch.
    validation_trees, validate_every : int
        Without generated trees, so many of the samples (half of them at most) validate.
    ema_decay : float, optional
        Of the average of the weights that is the result.
    channels : tuple of int
        Of the levels of the network.
    """

    iterations: int = 4500
    batch_size: int = 8
    learning_rate: float = 4e-3
    trees: int = 200
    tree_voxels: int | None = None
    patch_voxels: int = 40
    validation_trees: int = 6
    validate_every: int = 250
    ema_decay: float | None = 0.995
    channels: tuple[int, ...] = CHANNELS
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not 0 <= self.trees < HELD_OUT or self.validation_trees < 1:
            raise UsageError(
                "the number of trees is wrong",
                expected=f"0 to {HELD_OUT - 1}, and 1 or more to validate",
            )
        multiple = 2 ** (len(self.channels) - 2)
        if self.patch_voxels < 16 or self.patch_voxels % multiple:
            raise UsageError(
                "patch_voxels is wrong", expected=f"a multiple of {multiple}, 16 or more"
            )
        self.loop()  # says what is wrong with its part

    def loop(self, workers: int = 0) -> LoopSettings:
        """Return the part of the settings that any training has."""
        return LoopSettings(
            iterations=self.iterations,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            ema_decay=self.ema_decay,
            validate_every=self.validate_every,
            checkpoint_every=self.validate_every,
            workers=workers,
            seed=self.seed,
        )

    def to_json(self) -> str:
        """Return the settings as JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TrainingSettings:
        """Return the settings that `to_json` wrote.

        Raises
        ------
        UsageError
            If the text is something else.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            raise UsageError(
                "the settings of a training are wrong", expected="what to_json wrote"
            ) from None


def train_centerline_maps(
    settings: TrainingSettings,
    *,
    samples: Sequence[TreeSample] = (),
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    progress: Tell | None = None,
    workers: int = 0,
) -> tuple[bytes, list[dict[str, Json]]]:
    """Train the network on generated trees, given ones, or both.

    What is trained here is a choice, the classical path the default of medpipe: see
    US 11,069,078 B2 and US 11,748,902 B2.

    Parameters
    ----------
    settings : TrainingSettings
    samples : sequence of TreeSample
        Trees of your own, see `read_examples`. Where there are generated trees too, others
        of those validate; else the last of the samples, which then are not trained with.
    device, checkpoint, progress, workers
        See `medpipe.train.train`.

    Returns
    -------
    model : bytes
        Content of a safetensors file for `learned_maps` and `medpipe.models.load_weights`.
        Its header holds the settings, the history, and `end_scores` of what validated.
    history : list of dict
        A row per validation.

    Raises
    ------
    UsageError
        If there are fewer than two samples and no generated trees.
    """
    given, held_out = _shared_out(settings, samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = CenterlineNetwork(settings.channels)
    shape = None if settings.tree_voxels is None else (settings.tree_voxels,) * 3
    how: dict[str, Any] = {"size": settings.patch_voxels, "shape": shape}
    measured = TreePatches(
        0 if held_out else settings.validation_trees, first=HELD_OUT, samples=held_out, **how
    )
    result = train(
        network,
        maps_loss,
        TreePatches(settings.trees, samples=given, **how),
        settings.loop(workers),
        validation=measured,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )
    metadata: dict[str, Json] = {
        "model": "centerline",
        "channels": list(settings.channels),
        "outputs": ["q", "endpoint", "root"],
        "settings": asdict(settings) | {"channels": list(settings.channels)},
        "loss": result.best_metric,
        "iteration": result.best_iteration,
        "seeds": f"trees of seed {FIRST_SEED} and above",
        "examples": {"trained": len(given), "held_out": len(held_out)},
        "history": list(result.history),
    }
    weights = _half(network)
    trees = (measured.sample(n) for n in range(measured.count))
    metadata["ends"] = dict(end_scores(network_from(weights, metadata), trees))
    return pack_weights(weights, metadata), result.history


def _shared_out(
    settings: TrainingSettings, samples: Sequence[TreeSample]
) -> tuple[Sequence[TreeSample], Sequence[TreeSample]]:
    """Return the samples to train with and those to validate with."""
    if settings.trees:
        return samples, ()
    if len(samples) < 2:
        raise UsageError(
            "too few examples to train with",
            expected="two or more, or generated trees as well",
            got=str(len(samples)),
        )
    last = len(samples) - min(settings.validation_trees, len(samples) // 2)
    return samples[:last], samples[last:]


def _half(network: CenterlineNetwork) -> dict[str, Tensor]:
    """Return the weights in half precision, statistics of the data in single."""
    out = {}
    for name, value in network.state_dict().items():
        wide = "running" in name or not value.is_floating_point()
        out[name] = value if wide else value.half()
    return out


def end_scores(
    network: CenterlineNetwork, samples: Iterable[TreeSample], *, threshold: float = PEAK
) -> dict[str, Json]:
    """Return how well the decoded ends are those of generated trees.

    Parameters
    ----------
    network : CenterlineNetwork
    samples : iterable of TreeSample
        That the network was not trained on.
    threshold : float
        Least height of a peak.

    Returns
    -------
    dict
        ``true``, ``found``, ``matched``, ``missed``, ``spurious``, ``precision``,
        ``recall`` over all samples; an end is found within the larger of twice its radius
        and 4 voxels.
    """
    true = found = matched = 0
    for sample in samples:
        depth = torch.zeros(sample.shape)
        depth[tuple(torch.from_numpy(sample.voxels.T.copy()))] = torch.from_numpy(sample.depth)
        heat = predict_maps(network, depth)[1]
        ends, _ = decode_points(heat, depth > 0, depth, threshold=threshold)
        tolerance = np.maximum(2 * sample.tip_radius, 4.0)
        matched += len(match_points(sample.tips, np.asarray(ends), tolerance))
        true += len(sample.tips)
        found += len(ends)
    return {
        "true": true,
        "found": found,
        "matched": matched,
        "missed": true - matched,
        "spurious": found - matched,
        "precision": matched / found if found else 1.0,
        "recall": matched / true if true else 1.0,
    }
