"""Training of a generator with a folder of volumes."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import Randomizable

from medpipe.errors import StepError
from medpipe.steps._base import ArrayStep, DictStep, check_choice
from medpipe.synthesis.autoencoder import AutoencoderSettings
from medpipe.synthesis.autoencoder_training import AutoencoderTraining
from medpipe.synthesis.denoiser_training import DenoiserTraining
from medpipe.synthesis.generator_settings import GeneratorTraining
from medpipe.synthesis.generator_training import train_generator
from medpipe.synthesis.prior_training import PriorTraining
from medpipe.synthesis.tokeniser import TokeniserSettings
from medpipe.synthesis.tokeniser_losses import LossWeights
from medpipe.synthesis.tokeniser_training import TokeniserTraining
from medpipe.synthesis.training_files import read_training_set
from medpipe.train import Progress

__all__ = [
    "TrainSynthesis",
    "TrainSynthesisD",
    "TrainSynthesisDict",
    "TrainSynthesisd",
]

VALIDATIONS = 30
"""Validations in a training that is not stopped early."""
PERCEPTUAL = 0.2
"""Weight of features in the training of an autoencoder."""
FEATURE_ITERATIONS = 600
"""Of the network of features, or as many as the first network has, where these are fewer."""
DIRECTIONS = 160
"""Principal directions of latents that are kept at most."""

_NOTICE = logging.getLogger("medpipe.notice")
_NOTICE_EVERY_S = 30.0


class TrainSynthesis(ArrayStep, Randomizable):
    """Train a generator with a folder of volumes: what encodes them, then what draws.

    Parameters
    ----------
    As `TrainSynthesisd`.
    """

    def __init__(
        self,
        conditions: list[str] | None = None,
        route: Literal["tokens", "latents"] = "tokens",
        preset: Literal["small", "hippocampus", "synthanatomy", "brain-ldm"] = "small",
        codes: int | None = None,
        tokeniser_iterations: int = 4000,
        tokeniser_batch: int = 4,
        tokeniser_rate: float = 1e-3,
        adversarial: float = 0.0,
        perceptual: float | None = None,
        prior_iterations: int = 3000,
        prior_batch: int = 16,
        prior_rate: float = 5e-4,
        width: int = 256,
        layers: int = 6,
        heads: int = 8,
        dropout: float = 0.1,
        attention: Literal["dense", "plane-column"] = "dense",
        order: Literal["raster", "s-curve", "hilbert"] = "raster",
        patience: int | None = 10,
        shift_voxels: int = 2,
        copies: int = 4,
        validation_share: float = 0.1,
        denoiser_channels: list[int] | None = None,
        begin: float = 0.3,
        labeller_iterations: int = 0,
        detail: float = 0.5,
        mapping_draws: int = 200,
        half: bool = False,
    ) -> None:
        self.conditions, self.half = conditions, half
        self.device: str | torch.device = "auto"
        self.checkpoints: Path | None = None
        check_choice("route", route, ("tokens", "latents"))
        first: dict[str, Any] = {
            "iterations": tokeniser_iterations, "batch_size": tokeniser_batch,
            "learning_rate": tokeniser_rate,
            "validate_every": max(1, tokeniser_iterations // VALIDATIONS),
        }  # fmt: skip
        second = {
            "iterations": prior_iterations, "batch_size": prior_batch,
            "learning_rate": prior_rate, "patience": patience,
            "warmup": min(100, prior_iterations // 10),
            "validate_every": max(1, prior_iterations // VALIDATIONS),
        }  # fmt: skip
        self.settings: dict[str, Any] = {
            "route": route, "shift_voxels": shift_voxels, "copies": copies,
            "validation_share": validation_share, "labeller_iterations": labeller_iterations,
            "detail": detail, "mapping_draws": mapping_draws,
            "feature_iterations": min(FEATURE_ITERATIONS, tokeniser_iterations),
        }  # fmt: skip
        if route == "tokens":
            start = tokeniser_iterations // 4
            changes = {} if codes is None else {"codes": codes}
            self.settings |= {
                "tokeniser": TokeniserSettings.preset(preset, **changes),
                "prior": {
                    "width": width, "layers": layers, "heads": heads, "dropout": dropout,
                    "attention": attention, "order": order,
                },
            }  # fmt: skip
            first |= {
                "weights": LossWeights(adversarial=adversarial, perceptual=perceptual or 0.0),
                "adversarial_start": start, "adversarial_ramp": start,
            }  # fmt: skip
            self.stages: dict[str, Any] = {
                "tokeniser_training": (TokeniserTraining, first),
                "prior_training": (PriorTraining, second),
            }
        else:
            levels = denoiser_channels or [64, 128]
            self.settings |= {
                "autoencoder": AutoencoderSettings.preset(preset),
                "denoiser": {
                    "channels": levels, "groups": 8, "conditioning": "embedding",
                    "attention": [False] * (len(levels) - 1) + [True], "begin": begin,
                    "directions": DIRECTIONS if begin < 1 else 0,
                },
            }  # fmt: skip
            first["perceptual_weight"] = PERCEPTUAL if perceptual is None else perceptual
            self.stages = {
                "autoencoder_training": (AutoencoderTraining, first),
                "denoiser_training": (DenoiserTraining, second),
            }
        self._training(0)  # says what is wrong before volumes are read

    def _training(self, seed: int) -> GeneratorTraining:
        both = {name: kind(**how, seed=seed) for name, (kind, how) in self.stages.items()}
        return GeneratorTraining(**(self.settings | both), seed=seed)

    def set_device(self, device: torch.device) -> None:
        """Choose where to train; otherwise a GPU if there is one."""
        self.device = device

    def set_checkpoints(self, folder: Path) -> None:
        """Continue from what is there, and keep there what was done."""
        self.checkpoints = folder

    def __call__(self, folder: Any) -> bytes:
        """Return the generator as the content of a ``.safetensors`` file.

        Parameters
        ----------
        folder : path
            See `medpipe.synthesis.read_training_set`.

        Raises
        ------
        StepError
            If it is no path, or a loss is not a number any more.
        InputError, ManifestError
            If the manifest or a volume cannot be used.
        UsageError
            If there are too few subjects, or pytorch-ignite is absent.
        ResourceError
            If a batch does not fit in memory.
        """
        if not isinstance(folder, str | os.PathLike):
            raise StepError("the step needs volumes", expected="an input of kind folder")
        samples = read_training_set(os.fspath(folder), self.conditions)
        training = self._training(int(self.R.randint(2**31 - 1)))
        told = ", ".join(f"{name} ({kind})" for name, kind in samples.kinds.items()) or "none"
        _NOTICE.info("%d volumes to train with, conditions: %s", len(samples.volumes), told)
        made = train_generator(
            samples, training, device=self.device, checkpoints=self.checkpoints,
            progress=_notices(),
        )  # fmt: skip
        return made.to_bytes(half=self.half)


def _notices() -> Any:
    """Return what logs a sentence at most every `_NOTICE_EVERY_S` seconds."""
    said = time.monotonic()

    def tell(stage: str, at: Progress) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _NOTICE_EVERY_S:
            said = now
            left = at.seconds / at.iteration * (at.iterations - at.iteration) / 60
            what = "volumes" if stage == "mapping" else f"iterations, loss {at.loss:.4g}"
            _NOTICE.info(
                "%s: %d of %d %s, at most %.0f min left",
                stage, at.iteration, at.iterations, what, left,
            )  # fmt: skip

    return tell


class TrainSynthesisd(DictStep, Randomizable):
    """Replace folders of volumes by a trained generator (.safetensors) for ``sample_volume``.

    A folder holds ``cases.csv``, a manifest with case_id, image, labels if there are any, and
    conditions. Images have one size, spacing and orientation. Needs pytorch-ignite
    (``medpipe[train]``).

    Parameters
    ----------
    keys : keys of inputs of kind folder, replaced by documents
    conditions : list of str, optional
        Columns that volumes can be asked for by; by default all that are nothing else.
    route : {"tokens", "latents"}
        A tokeniser and the prior of its codes, or an autoencoder and a denoiser of its
        latents (rectified flow).
    preset : {"small", "hippocampus", "synthanatomy", "brain-ldm"}
        Of the tokeniser: 8, 4 or 16 voxels along the edge of a token (the last preset is not
        one). Of the autoencoder: 4, 8 or, with the last, 8 voxels along that of a latent's
        cell (the third is not one).
    codes : int, optional
        Vectors in the codebook; by default those of the preset.
    tokeniser_iterations, tokeniser_batch, tokeniser_rate
        Of the tokeniser or autoencoder: steps of the optimiser, volumes in a step, the
        largest learning rate.
    adversarial : float
        Weight of a discriminator that joins after a quarter of the training of a tokeniser;
        0 is none.
    perceptual : float, optional
        Weight of the distance of images as a network of features sees them, which is trained
        first with the same volumes; by default 0.2 of an autoencoder, 0 of a tokeniser.
    prior_iterations, prior_batch, prior_rate
        The same of the prior or denoiser.
    width, layers, heads, dropout
        Of the prior.
    attention : {"dense", "plane-column"}
        The second for more than 4000 tokens.
    order : {"raster", "s-curve", "hilbert"}
        In which tokens are drawn.
    patience : int, optional
        The second training ends after so many validations (30 in all) without progress.
    shift_voxels, copies : int
        Prior or denoiser learn from each volume as it is and moved by up to so much, so often
        in all; they are told by how much, and draw volumes that are not moved.
    validation_share : float
        Of the subjects: they validate and are not trained with.
    denoiser_channels : list of int, optional
        Of the denoiser, from the grid of the latent down, multiples of 16; by default 64 and
        128. The last has attention.
    begin : float
        Share of the noise with which a denoiser begins to draw: below 1 it begins with a
        Gaussian of the latents of the training, which knows what goes together far apart.
    labeller_iterations : int
        Of a segmenter, trained besides, that labels what is drawn; 0: labels are drawn with
        the image.
    detail : float
        Share of the fine detail that is put back into what is drawn.
    mapping_draws : int
        Volumes that are drawn at the end to learn which intensities they have too often at
        each place, and map them to those of the volumes; 0: none, nor with less than 20.
    half : bool
        Weights in half precision: a file of half the size.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "4"
    reads = ()
    writes = ()
    files = ()
    makes = "document"
    suffix = ".safetensors"
    random = True

    def __init__(
        self,
        keys: KeysCollection,
        conditions: list[str] | None = None,
        route: Literal["tokens", "latents"] = "tokens",
        preset: Literal["small", "hippocampus", "synthanatomy", "brain-ldm"] = "small",
        codes: int | None = None,
        tokeniser_iterations: int = 4000,
        tokeniser_batch: int = 4,
        tokeniser_rate: float = 1e-3,
        adversarial: float = 0.0,
        perceptual: float | None = None,
        prior_iterations: int = 3000,
        prior_batch: int = 16,
        prior_rate: float = 5e-4,
        width: int = 256,
        layers: int = 6,
        heads: int = 8,
        dropout: float = 0.1,
        attention: Literal["dense", "plane-column"] = "dense",
        order: Literal["raster", "s-curve", "hilbert"] = "raster",
        patience: int | None = 10,
        shift_voxels: int = 2,
        copies: int = 4,
        validation_share: float = 0.1,
        denoiser_channels: list[int] | None = None,
        begin: float = 0.3,
        labeller_iterations: int = 0,
        detail: float = 0.5,
        mapping_draws: int = 200,
        half: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = TrainSynthesis(
            conditions, route, preset, codes, tokeniser_iterations, tokeniser_batch, tokeniser_rate,
            adversarial, perceptual, prior_iterations, prior_batch, prior_rate, width, layers,
            heads, dropout, attention, order, patience, shift_voxels, copies, validation_share,
            denoiser_channels, begin, labeller_iterations, detail, mapping_draws, half,
        )  # fmt: skip

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> TrainSynthesisd:
        """Seed the training."""
        self.step.set_random_state(seed, state)
        return self

    def set_device(self, device: torch.device) -> None:
        """Choose where to train."""
        self.step.set_device(device)

    def set_checkpoints(self, folder: Path) -> None:
        """Continue from what is there, and keep there what was done."""
        self.step.set_checkpoints(folder)


TrainSynthesisD = TrainSynthesisDict = TrainSynthesisd
