"""Both trainings of a generator: what encodes volumes, then what draws codes or latents."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medpipe.errors import UsageError
from medpipe.seeds import derive_seed
from medpipe.synthesis.autoencoder import LatentAutoencoder
from medpipe.synthesis.autoencoder_training import measure_autoencoder, train_autoencoder
from medpipe.synthesis.coded import encode_moved
from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.denoiser import Denoiser
from medpipe.synthesis.denoiser_training import denoising_errors, train_denoiser
from medpipe.synthesis.detail import FineDetail
from medpipe.synthesis.features import train_features
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.generator_settings import GeneratorTraining
from medpipe.synthesis.label_reading import LabelReading, label_sizes
from medpipe.synthesis.latents import Latents, encode_latents
from medpipe.synthesis.moved import SHIFTS, MovedVolumes, repeated
from medpipe.synthesis.prior_training import train_prior
from medpipe.synthesis.quantile_mapping import FEWEST, QuantileMapping
from medpipe.synthesis.rebuilt import AsDrawn, Rebuilt, fit_detail
from medpipe.synthesis.routes import DrawSettings, LatentRoute, TokenRoute
from medpipe.synthesis.segmenter import SegmenterModel, SegmenterSettings, train_segmenter
from medpipe.synthesis.tokeniser_losses import PerceptualLoss
from medpipe.synthesis.tokeniser_measures import measure_variety
from medpipe.synthesis.tokeniser_samples import Some, TokeniserSamples
from medpipe.synthesis.tokeniser_training import train_tokeniser
from medpipe.synthesis.training_files import TrainingSet
from medpipe.train import LoopSettings, Progress
from medpipe.types import Json

__all__ = ["train_generator"]

LABELLER_VALIDATIONS = 8
MAPPING_BATCH = 8


def train_generator(
    samples: TrainingSet,
    training: GeneratorTraining,
    *,
    device: str | torch.device = "auto",
    checkpoints: str | Path | None = None,
    progress: Callable[[str, Progress], None] | None = None,
) -> Generator:
    """Train a tokeniser and the prior of its codes, or an autoencoder and a denoiser.

    Parameters
    ----------
    samples : TrainingSet
    training : GeneratorTraining
    device : str or torch.device
    checkpoints : path, optional
        Folder to continue from, with a checkpoint of each training. On the CPU an interrupted
        run ends with the bits of one that was not.
    progress : callable, optional
        Told which training ("tokeniser", "prior", "features", "autoencoder", "denoiser",
        "labeller") is where, and how many volumes are drawn of those that "mapping" needs.

    Returns
    -------
    Generator
        On `device`, with facts of both trainings.

    Raises
    ------
    UsageError
        If there are too few subjects, or a checkpoint is of another run.
    InputError
        If a volume cannot be used; its number is named.
    ResourceError
        If a batch does not fit in memory.
    StepError, StoreError
        See `medpipe.train.train`.
    """
    held_out = _held_out(samples.subjects, training)
    folder = None if checkpoints is None else Path(checkpoints)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    run = _Run(samples, training, held_out, device, folder, progress)
    route, shape, found = (_latents if training.route == "latents" else _tokens)(run)
    facts: dict[str, Json] = {
        "subjects": len(set(samples.subjects)),
        "subjects_held_out": len(held_out),
        "volumes": len(samples.volumes),
        **found,
        "shift_voxels": training.shift_voxels,
        "copies": training.copies,
        "seed": training.seed,
    }
    affine = np.array(samples.volumes.affine, np.float64)
    rebuilt = Rebuilt(run.sides()[0], route), Rebuilt(run.sides()[1], route)
    detail = fit_detail(*rebuilt, training.detail)
    labels = training.labeller_iterations and route.label_classes
    labeller = _labeller(run, rebuilt, detail) if labels else None
    reading = _reading(samples, route, labeller)
    made = Generator(route, affine, shape, facts, detail, reading, labeller)
    return replace(made, mapping=_mapping(made, run))


def _labeller(run: _Run, rebuilt: tuple[Rebuilt, Rebuilt], detail: FineDetail) -> SegmenterModel:
    """Return what labels images, trained with those that are not held out."""
    own = run.training
    real = own.labeller_sees == "real"
    trains, validates = (side.volumes if real else AsDrawn(side, detail) for side in rebuilt)
    loop = LoopSettings(
        iterations=own.labeller_iterations, batch_size=2, learning_rate=5e-3,
        validate_every=max(1, own.labeller_iterations // LABELLER_VALIDATIONS), seed=own.seed,
    )  # fmt: skip
    route = rebuilt[0].route
    settings = SegmenterSettings(route.label_classes, route.image_channels, **own.labeller)
    validation = validates if len(validates) else None
    made = train_segmenter(
        trains, settings, loop, validation=validation, validation_share=0.0,
        **run.stage("labeller"),
    )  # fmt: skip
    made.facts.update(trained=len(rebuilt[0]), validated=len(rebuilt[1]))
    return made


def _reading(
    samples: TrainingSet, route: TokenRoute | LatentRoute, labeller: SegmenterModel | None
) -> LabelReading | None:
    """Return what reads conditions from labels, where there are both; those of a labeller that
    sees regions larger or smaller than they are, on average of real images, count as less or
    more."""
    if not route.label_classes:
        return None
    classes, number = route.label_classes, range(len(samples.volumes))
    true, seen = [], []
    for image, labels in (samples.volumes[n] for n in number):
        true.append(label_sizes(torch.as_tensor(labels), classes))
        if labeller is not None:
            found = labeller.labels(torch.as_tensor(image)[None])
            seen.append(label_sizes(found, classes))
    rows = [{name: column[n] for name, column in samples.table.items()} for n in number]
    reading = LabelReading.fit(np.stack(true), rows, route.conditions)
    return reading.of_labeller(np.stack(seen), np.stack(true)) if reading and seen else reading


def _mapping(made: Generator, run: _Run) -> QuantileMapping | None:
    """Return what maps intensities that are drawn to those of volumes, if there are enough.

    Volumes are drawn for the conditions of as many real ones, each as often as the others.
    """
    samples, training, tell = run.samples, run.training, run.progress
    count = min(len(samples.volumes), training.mapping_draws)
    if count < FEWEST:
        return None
    chosen = [k * len(samples.volumes) // count for k in range(count)]
    images = TokeniserSamples(samples.volumes, made.route.image_channels, 0)
    real = (images.volume(n) for n in chosen)
    whose = [chosen[k % count] for k in range(training.mapping_draws)]
    rows = [{name: column[n] for name, column in samples.table.items()} for n in whose]
    seeds = [derive_seed(training.seed, "mapping", str(k)) for k in range(len(rows))]

    def drawn() -> Iterator[Tensor]:
        began = time.monotonic()
        how = DrawSettings(corrections=0, batch=MAPPING_BATCH)
        for done, volume in enumerate(made.stream(rows, seeds, how), 1):
            if tell is not None:
                spent = time.monotonic() - began
                tell("mapping", Progress(done, len(rows), math.nan, None, spent))
            yield volume.image.as_tensor()

    return QuantileMapping.fit(drawn(), real)


@dataclass(frozen=True, eq=False)
class _Run:
    """What both trainings of a route are given."""

    samples: TrainingSet
    training: GeneratorTraining
    held_out: set[int]
    device: str | torch.device
    folder: Path | None
    progress: Callable[[str, Progress], None] | None

    def stage(self, name: str) -> dict[str, Any]:
        """Return the arguments of a training that say where it runs and who is told."""
        tell, folder = self.progress, self.folder
        return {
            "device": self.device,
            "checkpoint": None if folder is None else folder / f"{name}.pt",
            "progress": None if tell is None else lambda at: tell(name, at),
        }

    @property
    def moving(self) -> dict[str, Any]:
        """How volumes are moved for what draws."""
        own = self.training
        return {"shift_voxels": own.shift_voxels, "copies": own.copies, "seed": own.seed}

    def sides(self) -> tuple[Some, Some]:
        """Return the volumes that train and those that validate."""
        whose = list(enumerate(self.samples.subjects))
        first, second = ([n for n, s in whose if (s in self.held_out) == t] for t in (False, True))
        return Some(self.samples.volumes, first), Some(self.samples.volumes, second)


_Shape = tuple[int, int, int]


def _tokens(run: _Run) -> tuple[TokenRoute, _Shape, dict[str, Json]]:
    """Train tokeniser and prior."""
    samples, training = run.samples, run.training
    own = replace(training.tokeniser, label_classes=samples.label_classes)
    trains, validates = run.sides()
    tokeniser = train_tokeniser(
        trains, own, training.tokeniser_training,
        validation=validates if len(validates) else None,
        features=_features(run, training.tokeniser_training.weights.perceptual),
        **run.stage("tokeniser"),
    )  # fmt: skip
    coded = encode_moved(tokeniser, samples.volumes, **run.moving)
    kinds: Any = {**samples.kinds, **dict.fromkeys(coded.shifts, "augmentation")}
    grid = tuple(coded.codes.shape[1:])
    settings = training.prior_settings(tokeniser.settings.codes, grid)
    prior = train_prior(
        coded.codes, coded.table(samples.table), kinds, settings, training.prior_training,
        units=_units(samples.kinds), subjects=[samples.subjects[n] for n in coded.subjects],
        validation=sorted(run.held_out), tokeniser=tokeniser.digest, **run.stage("prior"),
    )  # fmt: skip
    unmoved = coded.codes[:: training.copies]
    return TokenRoute(tokeniser, prior), coded.shape, measure_variety(unmoved)


def _latents(run: _Run) -> tuple[LatentRoute, _Shape, dict[str, Json]]:
    """Train autoencoder and denoiser."""
    samples, training = run.samples, run.training
    coder = _autoencoder(run)
    how = (coder.settings.image_channels, samples.label_classes)
    moved = MovedVolumes(TokeniserSamples(samples.volumes, *how), **run.moving)
    table = repeated(samples.table, moved.subjects, moved.shifts)
    kinds: Any = {**samples.kinds, **dict.fromkeys(moved.shifts, "augmentation")}
    conditions = Conditions.fit(
        {name: table[name] for name in kinds}, kinds, units=_units(samples.kinds)
    )
    rows = [{name: table[name][n] for name in kinds} for n in range(len(moved))]
    latents = encode_latents(coder, moved, *conditions.encode(rows))
    held = [samples.subjects[n] in run.held_out for n in moved.subjects]
    plain = [not any(move) for move in moved.moves]
    trained = [n for n, out in enumerate(held) if not out]
    validates = [n for n, (out, still) in enumerate(zip(held, plain, strict=True)) if out and still]
    validation = latents.part(validates) if validates else None
    own = training.denoiser_training
    denoiser = train_denoiser(
        latents.part(trained),
        training.denoiser_settings(
            latents.mean.shape[1], conditions.columns, tuple(latents.mean.shape[2:])
        ),
        own.loop(), validation=validation, hide=own.hide, hide_each=own.hide_each,
        times=own.times, validation_draws=own.validation_draws, conditions=conditions,
        **run.stage("denoiser"),
    )  # fmt: skip
    sides = {"trained": latents.part([n for n in trained if plain[n]]), "held_out": validation}
    denoiser.facts |= {name: _error_facts(denoiser, side) for name, side in sides.items()}
    _, i, j, k = moved[0].shape
    spread = latents.mean[plain].std(0).mean() if sum(plain) > 1 else torch.zeros(())
    found: dict[str, Json] = {"spread_of_latents": float(spread)}
    return LatentRoute(coder, denoiser, conditions), (i, j, k), found


def _autoencoder(run: _Run) -> LatentAutoencoder:
    """Return the autoencoder, trained with those that are not held out."""
    own = run.training.autoencoder_training
    settings = replace(run.training.autoencoder, label_classes=run.samples.label_classes)
    how = (settings.image_channels, settings.label_classes)
    trains, validates = run.sides()
    validation = TokeniserSamples(validates, *how) if len(validates) else None
    coder = train_autoencoder(
        TokeniserSamples(trains, *how, shift=own.shift_voxels, gain=own.gain), settings,
        own.loop(), validation=validation, features=_features(run, own.perceptual_weight),
        **own.losses(), **run.stage("autoencoder"),
    )  # fmt: skip
    if validation is not None:
        coder.facts["validation"] = measure_autoencoder(coder, validation)
    return coder


def _features(run: _Run, counts: float) -> PerceptualLoss | None:
    """Return what compares images, if it counts, trained with those that are not held out."""
    if not counts:
        return None
    iterations = run.training.feature_iterations
    loop = LoopSettings(
        iterations=iterations, batch_size=2, learning_rate=3e-3, validate_every=iterations,
        seed=run.training.seed,
    )  # fmt: skip
    network = train_features(
        run.sides()[0], label_classes=run.samples.label_classes, settings=loop,
        **run.training.features, **run.stage("features"),
    )  # fmt: skip
    return PerceptualLoss(network)


def _error_facts(denoiser: Denoiser, latents: Latents | None) -> Json:
    """Return mean and standard error of what `denoising_errors` finds, and of the gain."""
    if latents is None:
        return None
    told, untold = denoising_errors(denoiser, latents)
    n = len(told)
    figures = {"conditional": told, "unconditional": untold, "gain": untold - told}
    return {"n": n} | {
        name: {
            "mean": float(each.mean()),
            "standard_error": float(each.std()) / math.sqrt(n) if n > 1 else None,
        }
        for name, each in figures.items()
    }


def _held_out(subjects: list[int], training: GeneratorTraining) -> set[int]:
    """Return the subjects that validate."""
    known = sorted(set(subjects))
    if len(known) < 2:
        raise UsageError(
            "too few subjects to train a generator with", expected="two or more",
            got=str(len(known)), hint="patient_id says which volumes are of one",
        )  # fmt: skip
    share = math.floor(training.validation_share * len(known) + 0.5)
    made = torch.Generator().manual_seed(training.seed)
    order = torch.randperm(len(known), generator=made).tolist()
    return {known[n] for n in order[: min(share, len(known) - 1)]}


def _units(kinds: dict[str, Any]) -> dict[str, str]:
    """Return the units that names of conditions end with: ``age_years``, ``ventricles_ml``."""
    ends = [(name, name.rpartition("_")[2]) for name, kind in kinds.items() if kind == "continuous"]
    known = {name: end for name, end in ends if end in ("years", "ml", "mm3", "mm", "kg", "cm")}
    return dict.fromkeys(SHIFTS, "voxels") | known
