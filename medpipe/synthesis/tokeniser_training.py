"""Training of a tokeniser, how well it does, and its file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from medpipe.errors import InputError, MedpipeError, UsageError
from medpipe.models import load_weights, pack_weights, unpack_weights
from medpipe.synthesis.model_file import network_digest, plain_json
from medpipe.synthesis.tokeniser import Tokeniser, TokeniserSettings, memory_named
from medpipe.synthesis.tokeniser_losses import (
    LossWeights,
    PerceptualLoss,
    TokeniserLoss,
    check_patches,
    least_squares_opponent,
)
from medpipe.synthesis.tokeniser_measures import measure_tokeniser, warn_of_collapse
from medpipe.synthesis.tokeniser_samples import TokeniserSamples, shared_out
from medpipe.train import LoopSettings, train
from medpipe.train.settings import Tell
from medpipe.types import Json

__all__ = ["TokeniserModel", "TokeniserTraining", "train_tokeniser"]

KIND = "tokeniser"
_FREE = ("amp", "workers", "recompute")
"""Settings that may change when a training continues."""


@dataclass(frozen=True)
class TokeniserTraining:
    """How a tokeniser is trained.

    Parameters
    ----------
    iterations, batch_size, learning_rate, schedule, clip_norm, validate_every, patience, amp,
    workers, seed
        See `medpipe.train.LoopSettings`.
    weights : LossWeights
    adversarial_start, adversarial_ramp : int
        Iterations without the opponent, and in which its weight rises after that.
    discriminator_width, discriminator_layers, discriminator_rate
        See `medpipe.synthesis.tokeniser_losses.least_squares_opponent`.
    patch_voxels : tuple of int, optional
        Train with boxes of this size; by default with whole volumes, which are then of one
        size.
    shift_voxels : int
        Volumes are moved by up to so many voxels along each axis.
    gain : float
        Intensities are multiplied by up to 1 ± this.
    unquantised_share : float
        Of the iterations, the first ones: the encoder learns what there is to say before it
        is told to say it in codes, see `medpipe.synthesis.quantiser`. Without, a tokeniser of
        few or simple volumes often ends with the same codes for all.
    validation_share : float
        Of the samples, where none are given to validate with.
    recompute : bool
        See `medpipe.synthesis.Tokeniser`.
    """

    iterations: int = 4000
    batch_size: int = 4
    learning_rate: float = 1e-3
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    clip_norm: float | None = 1.0
    weights: LossWeights = field(default_factory=LossWeights)
    adversarial_start: int = 1000
    adversarial_ramp: int = 1000
    discriminator_width: int = 32
    discriminator_layers: int = 3
    discriminator_rate: float = 5e-5
    patch_voxels: tuple[int, int, int] | None = None
    shift_voxels: int = 0
    gain: float = 0.0
    unquantised_share: float = 0.2
    validation_share: float = 0.1
    validate_every: int = 200
    patience: int | None = None
    amp: bool = True
    recompute: bool = False
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.weights, Mapping):
            object.__setattr__(self, "weights", LossWeights(**self.weights))
        if self.patch_voxels is not None:
            object.__setattr__(self, "patch_voxels", tuple(int(n) for n in self.patch_voxels))
            if len(self.patch_voxels) != 3 or min(self.patch_voxels) < 1:
                raise UsageError("patch_voxels is wrong", expected="three sizes of 1 or more")
        shares = (self.validation_share, self.gain, self.unquantised_share)
        if not all(0 <= share < 1 for share in shares) or self.shift_voxels < 0:
            raise UsageError(
                "the settings of the training of a tokeniser are wrong",
                expected="validation_share, gain and unquantised_share from 0 to below 1, "
                "shift_voxels 0 or more",
            )
        self.loop()  # says what is wrong with its part

    @classmethod
    def published(cls, **changes: Any) -> TokeniserTraining:
        """Return the settings of arXiv 2209.03177, where they are known.

        Its perceptual part (LPIPS of AlexNet, weight 0.001) needs weights that do not come
        with medpipe: give `train_tokeniser` features and set ``weights``.
        """
        known: dict[str, Any] = {
            "batch_size": 8,
            "learning_rate": 1.65e-4,
            "schedule": "constant",
            "clip_norm": None,
            "weights": LossWeights("mse", spectral=1.0, adversarial=0.005),
            "adversarial_start": 0,
            "adversarial_ramp": 0,
            "discriminator_width": 64,
        }
        return cls(**(known | changes))

    def loop(self) -> LoopSettings:
        """Return the part of the settings that any training has."""
        return LoopSettings(
            weight_decay=0.0,
            checkpoint_every=self.validate_every,
            **{n: getattr(self, n) for n in _LOOP},
        )


_LOOP = (
    "iterations", "batch_size", "learning_rate", "schedule", "clip_norm", "validate_every",
    "patience", "amp", "workers", "seed",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TokeniserModel:
    """A tokeniser that was trained, and how.

    Parameters
    ----------
    tokeniser : Tokeniser
        Ready to be asked (``eval``).
    training : TokeniserTraining
    history : list of dict
        A row per validation, see `medpipe.train.TrainResult`.
    best_iteration, iterations : int
        Whose weights were kept, and how many there were.
    size_voxels : tuple of int
        Of the volumes, or patches, that it was trained with.
    facts : dict
        Of what validated, see `medpipe.synthesis.tokeniser_measures.measure_tokeniser`, and
        what the header of a file said.
    """

    tokeniser: Tokeniser
    training: TokeniserTraining
    history: list[dict[str, Json]]
    best_iteration: int
    iterations: int
    size_voxels: tuple[int, ...]
    facts: dict[str, Json] = field(default_factory=dict)

    @property
    def settings(self) -> TokeniserSettings:
        """Those of the network."""
        return self.tokeniser.settings

    @cached_property
    def digest(self) -> str:
        """sha256 of settings and weights: what codes belong to."""
        content = pack_weights(self.tokeniser.state_dict(), plain_json(asdict(self.settings)))
        return hashlib.sha256(content).hexdigest()

    def encode(self, samples: Sequence[Any]) -> Tensor:
        """Return the codes (n, h, w, d) int64 that a prior is trained with.

        Parameters
        ----------
        samples : sequence
            Volumes of one size, as `train_tokeniser` takes them; one is in memory at a time.

        Raises
        ------
        UsageError
            If there are none.
        InputError
            If a sample cannot be used or is of another size; its number is named.
        ResourceError
            If one does not fit in memory.
        """
        if not len(samples):
            raise UsageError("nothing to encode", expected="at least one volume")
        known = self.settings
        data = TokeniserSamples(samples, known.image_channels, known.label_classes)
        where = self.tokeniser.codebook.vectors.device
        pairs = (data[number] for number in range(len(data)))
        return torch.cat([self.tokeniser.encode(x[None].to(where)) for x, _ in pairs])

    def to_bytes(self, facts: dict[str, Json] | None = None, *, half: bool = False) -> bytes:
        """Return the content of a safetensors file, with all settings in its header.

        Parameters
        ----------
        facts : dict of JSON values, optional
            Said in the header besides.
        half : bool
            Weights of the network in half precision; the codebook stays in single. What is
            read back has another `digest`.
        """
        weights = {
            name: value.half() if half and not name.startswith("codebook.") else value
            for name, value in self.tokeniser.state_dict().items()
        }
        metadata = {
            "model": KIND,
            "network": asdict(self.settings),
            "training": asdict(self.training),
            "facts": {**self.facts, **(facts or {})},
            **{name: getattr(self, name) for name in _SAID},
        }
        return pack_weights(weights, plain_json(metadata))

    @classmethod
    def read(cls, name_or_path: str | Path) -> TokeniserModel:
        """Return what `to_bytes` wrote, on the CPU.

        Raises
        ------
        UsageError
            If there is no such model or file.
        InputError
            If it is no tokeniser.
        """
        return cls._from(*load_weights(name_or_path), Path(name_or_path).name)

    @classmethod
    def from_bytes(cls, content: bytes) -> TokeniserModel:
        """Return what `to_bytes` returned; see `read`."""
        return cls._from(*unpack_weights(content), None)

    @classmethod
    def _from(
        cls, tensors: dict[str, Tensor], header: dict[str, Json], where: str | None
    ) -> TokeniserModel:
        said = cast(dict[str, Any], header)
        try:
            if said.pop("model") != KIND:
                raise ValueError
            tokeniser = Tokeniser(TokeniserSettings(**said.pop("network")))
            own = tokeniser.state_dict()
            tokeniser.load_state_dict({n: v.to(own[n].dtype) for n, v in tensors.items()})
            training = TokeniserTraining(**said.pop("training"))
            said["size_voxels"] = tuple(said["size_voxels"])
            return cls(tokeniser.eval(), training, **said)
        except (KeyError, TypeError, ValueError, RuntimeError, MedpipeError):
            raise InputError(
                "the model is no tokeniser", where=where, hint="use a file written by training"
            ) from None


_SAID = ("history", "best_iteration", "iterations", "size_voxels")


def train_tokeniser(
    samples: Sequence[Any], settings: TokeniserSettings, training: TokeniserTraining, *,
    validation: Sequence[Any] | None = None, features: PerceptualLoss | None = None,
    device: str | torch.device = "auto", checkpoint: str | Path | None = None,
    progress: Tell | None = None,
) -> TokeniserModel:  # fmt: skip
    """Train a tokeniser.

    Parameters
    ----------
    samples : sequence of Tensor (C, I, J, K), or of pairs with labels (1, I, J, K)
        Tensors or arrays, intensities about 0 to 1. A sequence may load them when asked.
    settings : TokeniserSettings
    training : TokeniserTraining
    validation : sequence, optional
        Others, to choose the weights by and for the facts; by default a share of the samples.
    features : PerceptualLoss, optional
        Needed where ``training.weights.perceptual`` is above 0.
    device, progress
        See `medpipe.train.train`.
    checkpoint : path, optional
        File to continue from if it is there. On the CPU an interrupted run ends with the bits
        of one that was not.

    Returns
    -------
    TokeniserModel

    Raises
    ------
    UsageError
        If there are no samples, they are too small, or the checkpoint is of another run.
    InputError
        If a sample cannot be used; its number is named.
    ResourceError
        If a batch does not fit in memory.
    StepError, StoreError
        See `medpipe.train.train`.
    """
    trains, validates = shared_out(samples, validation, training.validation_share, training.seed)
    how: dict[str, Any] = {
        "image_channels": settings.image_channels,
        "label_classes": settings.label_classes,
        "patch": training.patch_voxels,
    }
    data = TokeniserSamples(trains, shift=training.shift_voxels, gain=training.gain, **how)
    measured = TokeniserSamples(validates, middle=True, **how) if len(validates) else None
    size = tuple(data[0][0].shape[1:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        tokeniser = Tokeniser(settings, recompute=training.recompute)
    tokeniser.codebook.warmup = math.floor(training.unquantised_share * training.iterations)
    opponent = None
    if training.weights.adversarial:
        check_patches(size, training.discriminator_layers)
        opponent = least_squares_opponent(
            settings.image_channels, width=training.discriminator_width,
            layers=training.discriminator_layers, learning_rate=training.discriminator_rate,
            start=training.adversarial_start, ramp=training.adversarial_ramp, seed=training.seed,
        )  # fmt: skip
    loss = TokeniserLoss(
        settings.image_channels, training.weights, features=features, opponent=opponent
    )
    with memory_named(size):
        result = train(
            tokeniser, loss, data, training.loop(), validation=measured, metric=loss.fit,
            opponent=opponent, device=device, checkpoint=checkpoint, progress=progress,
            bound_to=_bound(settings, training, len(trains), features),
        )  # fmt: skip
    tokeniser.eval()
    tokeniser.codebook.warmup = 0
    facts: dict[str, Json] = {"trained": len(trains), "validated": len(validates)}
    if len(validates):
        facts["validation"] = found = measure_tokeniser(tokeniser, validates)
        warn_of_collapse(found)
    return TokeniserModel(
        tokeniser, training, result.history, result.best_iteration, result.iterations, size, facts
    )


def _bound(
    settings: TokeniserSettings, training: TokeniserTraining, samples: int,
    features: PerceptualLoss | None,
) -> dict[str, Json]:  # fmt: skip
    """Return what a checkpoint belongs to besides the settings of the loop."""
    loop = {f.name for f in fields(LoopSettings)}
    own = {n: v for n, v in asdict(training).items() if n not in loop and n not in _FREE}
    digest = None
    if training.weights.perceptual and features is not None:
        digest = network_digest(features.network)
    return plain_json(
        {"tokeniser": asdict(settings), **own, "samples": samples, "features": digest}
    )
