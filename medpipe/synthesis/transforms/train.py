"""Training of a generator with a folder of volumes, and what it says about itself."""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Literal

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import Randomizable

from medpipe.errors import InputError, StepError
from medpipe.figures.chart import SERIES_COLOURS, Line, line_chart_svg
from medpipe.models import unpack_weights
from medpipe.steps._base import ArrayStep, DictStep, check_choice
from medpipe.synthesis.generator_training import GeneratorTraining, train_generator
from medpipe.synthesis.prior_training import PriorTraining
from medpipe.synthesis.tokeniser import TokeniserSettings
from medpipe.synthesis.tokeniser_losses import LossWeights
from medpipe.synthesis.tokeniser_training import TokeniserTraining
from medpipe.synthesis.training_files import read_training_set
from medpipe.train import Progress
from medpipe.types import Json

__all__ = [
    "SynthesisCurve",
    "SynthesisCurveD",
    "SynthesisCurveDict",
    "SynthesisCurved",
    "SynthesisTable",
    "SynthesisTableD",
    "SynthesisTableDict",
    "SynthesisTabled",
    "TrainSynthesis",
    "TrainSynthesisD",
    "TrainSynthesisDict",
    "TrainSynthesisd",
]

VALIDATIONS = 30
"""Validations in a training that is not stopped early."""

_NOTICE = logging.getLogger("medpipe.notice")
_NOTICE_EVERY_S = 30.0


class TrainSynthesis(ArrayStep, Randomizable):
    """Train a generator with a folder of volumes: a tokeniser, then the prior of its codes.

    Parameters
    ----------
    As `TrainSynthesisd`.
    """

    def __init__(
        self,
        conditions: list[str] | None = None,
        preset: Literal["small", "hippocampus", "synthanatomy"] = "small",
        codes: int | None = None,
        tokeniser_iterations: int = 4000,
        tokeniser_batch: int = 4,
        tokeniser_rate: float = 1e-3,
        adversarial: float = 0.0,
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
        half: bool = False,
    ) -> None:
        self.conditions, self.half = conditions, half
        self.device: str | torch.device = "auto"
        changes = {} if codes is None else {"codes": codes}
        start = tokeniser_iterations // 4
        self.settings: dict[str, Any] = {
            "tokeniser": TokeniserSettings.preset(preset, **changes),
            "tokeniser_training": {
                "iterations": tokeniser_iterations, "batch_size": tokeniser_batch,
                "learning_rate": tokeniser_rate, "weights": LossWeights(adversarial=adversarial),
                "adversarial_start": start, "adversarial_ramp": start,
                "validate_every": max(1, tokeniser_iterations // VALIDATIONS),
            },
            "prior": {
                "width": width, "layers": layers, "heads": heads, "dropout": dropout,
                "attention": attention, "order": order,
            },
            "prior_training": {
                "iterations": prior_iterations, "batch_size": prior_batch,
                "learning_rate": prior_rate, "patience": patience,
                "warmup": min(100, prior_iterations // 10),
                "validate_every": max(1, prior_iterations // VALIDATIONS),
            },
            "shift_voxels": shift_voxels,
            "copies": copies,
            "validation_share": validation_share,
        }  # fmt: skip
        self._training(0)  # says what is wrong before volumes are read

    def _training(self, seed: int) -> GeneratorTraining:
        both = {
            "tokeniser_training": TokeniserTraining(
                **self.settings["tokeniser_training"], seed=seed
            ),
            "prior_training": PriorTraining(**self.settings["prior_training"], seed=seed),
        }
        return GeneratorTraining(**(self.settings | both), seed=seed)

    def set_device(self, device: torch.device) -> None:
        """Choose where to train; otherwise a GPU if there is one."""
        self.device = device

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
        made = train_generator(samples, training, device=self.device, progress=_notices())
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
            _NOTICE.info(
                "%s: %d of %d iterations, loss %.4g, at most %.0f min left",
                stage, at.iteration, at.iterations, at.loss, left,
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
    preset : {"small", "hippocampus", "synthanatomy"}
        Of the tokeniser: 8, 4 or 16 voxels along the edge of a token.
    codes : int, optional
        Vectors in the codebook; by default those of the preset.
    tokeniser_iterations, tokeniser_batch, tokeniser_rate
        Steps of the optimiser, volumes in a step, the largest learning rate.
    adversarial : float
        Weight of a discriminator that joins after a quarter of the training; 0 is none.
    prior_iterations, prior_batch, prior_rate
        The same of the prior.
    width, layers, heads, dropout
        Of the prior.
    attention : {"dense", "plane-column"}
        The second for more than 4000 tokens.
    order : {"raster", "s-curve", "hilbert"}
        In which tokens are drawn.
    patience : int, optional
        The prior's training ends after so many validations (30 in all) without progress.
    shift_voxels, copies : int
        The prior learns from each volume as it is and moved by up to so much, so often in
        all; it is told by how much, and draws volumes that are not moved.
    validation_share : float
        Of the subjects: they validate and are not trained with.
    half : bool
        Weights in half precision: a file of half the size.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
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
        preset: Literal["small", "hippocampus", "synthanatomy"] = "small",
        codes: int | None = None,
        tokeniser_iterations: int = 4000,
        tokeniser_batch: int = 4,
        tokeniser_rate: float = 1e-3,
        adversarial: float = 0.0,
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
        half: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = TrainSynthesis(
            conditions, preset, codes, tokeniser_iterations, tokeniser_batch, tokeniser_rate,
            adversarial, prior_iterations, prior_batch, prior_rate, width, layers, heads, dropout,
            attention, order, patience, shift_voxels, copies, validation_share, half,
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


class SynthesisCurve(ArrayStep):
    """Draw the loss of a training and of its validations against the iterations.

    Parameters
    ----------
    stage : {"prior", "tokeniser"}
    """

    def __init__(self, stage: Literal["prior", "tokeniser"] = "prior") -> None:
        self.stage = check_choice("stage", stage, ("prior", "tokeniser"))

    def __call__(self, model: Any) -> bytes:
        """Return an SVG document."""
        part = _header(model)["parts"][self.stage]
        rows = part["history"]
        x = np.array([row["iteration"] for row in rows], float)
        lines = [
            Line(x, np.array([row[column] for row in rows], float), name, SERIES_COLOURS[number])
            for number, (column, name) in enumerate(
                (("loss", "training"), ("metric", "validation"))
            )
        ]
        label = "nats per token" if self.stage == "prior" else "loss"
        title = f"{self.stage.capitalize()}: best after {part['best_iteration']} iterations"
        return line_chart_svg(lines, x_label="iteration", y_label=label, title=title)


class SynthesisCurved(DictStep):
    """Replace trained generators by charts: loss against iteration (.svg).

    Parameters
    ----------
    keys : keys of generators of ``train_synthesis``, replaced by documents
    stage : {"prior", "tokeniser"}
        Whose training is drawn.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "document"
    suffix = ".svg"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        stage: Literal["prior", "tokeniser"] = "prior",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = SynthesisCurve(stage)


class SynthesisTable(ArrayStep):
    """Say what a generator was trained with and how well its parts do on who was held out."""

    def __call__(self, model: Any) -> dict[str, Json]:
        """Return the table; likelihoods are in nats per token, None if nobody validated."""
        header = _header(model)
        tokeniser, prior = header["parts"]["tokeniser"], header["parts"]["prior"]
        shown = tokeniser["facts"].get("validation") or {}
        table: dict[str, Any] = {
            **header["facts"],
            "shape": " x ".join(map(str, header["shape"])),
            "tokens": int(np.prod(prior["network"]["grid"])),
            "codes": prior["network"]["codes"],
            "conditions": ", ".join(c["name"] for c in prior["conditions"]) or None,
            "tokeniser_best_iteration": tokeniser["best_iteration"],
            "prior_best_iteration": prior["best_iteration"],
            "psnr_db": (shown.get("psnr_db") or {}).get("mean"),
            "perplexity": shown.get("perplexity"),
        }
        for number, dice in enumerate(shown.get("dice") or (), 1):
            table[f"dice_{number}"] = dice["mean"]
        for side in ("trained", "held_out"):
            found = prior["facts"].get(side) or {}
            for name in ("conditional", "unconditional", "gain"):
                table[f"{side}_{name}"] = (found.get(name) or {}).get("mean")
        return table


class SynthesisTabled(DictStep):
    """Replace trained generators by tables: sizes, held-out quality and likelihoods.

    Parameters
    ----------
    keys : keys of generators of ``train_synthesis``, replaced by tables
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "table"
    random = False

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = SynthesisTable()


def _header(model: Any) -> dict[str, Any]:
    """Return what the header of a generator of ``train_synthesis`` says."""
    if not isinstance(model, bytes):
        raise StepError("the step needs a generator", expected="a document of train_synthesis")
    header: Any = unpack_weights(model)[1]
    if header.get("model") != "generator" or header.get("route") != "tokens":
        raise InputError("the model does not say how it was trained", hint="train it again")
    return header


TrainSynthesisD = TrainSynthesisDict = TrainSynthesisd
SynthesisCurveD = SynthesisCurveDict = SynthesisCurved
SynthesisTableD = SynthesisTableDict = SynthesisTabled
