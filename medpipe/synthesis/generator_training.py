"""Both trainings of a generator: what encodes volumes, then what draws codes or latents."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medpipe.errors import UsageError
from medpipe.synthesis.autoencoder import AutoencoderSettings, LatentAutoencoder
from medpipe.synthesis.autoencoder_training import (
    AutoencoderTraining,
    measure_autoencoder,
    train_autoencoder,
)
from medpipe.synthesis.coded import encode_moved
from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.denoiser import Denoiser, DenoiserSettings
from medpipe.synthesis.denoiser_training import DenoiserTraining, denoising_errors, train_denoiser
from medpipe.synthesis.detail import DETAIL, FineDetail
from medpipe.synthesis.features import train_features
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.label_reading import LabelReading
from medpipe.synthesis.latents import Latents, encode_latents
from medpipe.synthesis.moved import SHIFTS, MovedVolumes, repeated
from medpipe.synthesis.prior import PriorSettings
from medpipe.synthesis.prior_training import PriorTraining, train_prior
from medpipe.synthesis.routes import LatentRoute, TokenRoute
from medpipe.synthesis.segmenter import SegmenterModel, SegmenterSettings, train_segmenter
from medpipe.synthesis.tokeniser import TokeniserSettings
from medpipe.synthesis.tokeniser_losses import PerceptualLoss
from medpipe.synthesis.tokeniser_measures import measure_variety
from medpipe.synthesis.tokeniser_samples import TokeniserSamples
from medpipe.synthesis.tokeniser_training import TokeniserTraining, train_tokeniser
from medpipe.synthesis.training_files import TrainingSet
from medpipe.train import LoopSettings, Progress
from medpipe.types import Json

__all__ = ["GeneratorTraining", "train_generator"]

LABELLER_VALIDATIONS = 8
FEWEST_DETAILED = 6
"""Volumes that validate, if their fine detail shall be measured on them alone."""
MOST_DETAILED = 24
"""Volumes that it is measured on: they are in memory together."""
REBUILT_BYTES = 2**31
"""Memory for volumes that were rebuilt for a labeller; of more, each is rebuilt when needed."""


@dataclass(frozen=True)
class GeneratorTraining:
    """How a generator is trained.

    Parameters
    ----------
    tokeniser : TokeniserSettings
        Its label classes are set to those of the volumes.
    tokeniser_training : TokeniserTraining
    prior : dict
        Settings of `PriorSettings`; codes, grid and conditions follow from the volumes.
    prior_training : PriorTraining
    route : {"tokens", "latents"}
        Whether a tokeniser and a prior are trained, or an autoencoder and a denoiser.
    autoencoder : AutoencoderSettings
        Its label classes are set to those of the volumes.
    autoencoder_training : AutoencoderTraining
    denoiser : dict
        Settings of `DenoiserSettings`; latent channels, grid and conditions follow.
    denoiser_training : DenoiserTraining
    shift_voxels, copies : int
        What draws learns from each volume as it is and moved, so often in all; see
        `medpipe.synthesis.moved.MovedVolumes`. The shifts become conditions.
    features : dict
        ``widths`` of the network of features (see `FeatureNetwork`) by which the first network
        compares images, if it does (``perceptual_weight`` of an autoencoder,
        ``weights.perceptual`` of a tokeniser); it is trained with the same volumes.
    feature_iterations : int
        Of the training of that network.
    labeller : dict
        Settings of `SegmenterSettings`; classes and image channels follow.
    labeller_iterations : int
        Of this segmenter that labels the images which are drawn: labels that fit their image,
        where those that are drawn with it may not. 0: none.
    detail : float
        Share of the fine detail that is put back into what is drawn.
    validation_share : float
        Of the subjects: the same ones validate all trainings.
    seed : int
        Decides which these are.
    """

    tokeniser: TokeniserSettings = field(default_factory=TokeniserSettings)
    tokeniser_training: TokeniserTraining = field(default_factory=TokeniserTraining)
    prior: dict[str, Any] = field(default_factory=dict)
    prior_training: PriorTraining = field(default_factory=PriorTraining)
    route: Literal["tokens", "latents"] = "tokens"
    autoencoder: AutoencoderSettings = field(
        default_factory=lambda: AutoencoderSettings.preset("small")
    )
    autoencoder_training: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    denoiser: dict[str, Any] = field(default_factory=dict)
    denoiser_training: DenoiserTraining = field(default_factory=DenoiserTraining)
    shift_voxels: int = 0
    copies: int = 1
    features: dict[str, Any] = field(default_factory=dict)
    feature_iterations: int = 600
    labeller: dict[str, Any] = field(default_factory=dict)
    labeller_iterations: int = 0
    detail: float = DETAIL
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        least_1 = (self.copies, self.feature_iterations)
        counts = (self.shift_voxels, self.labeller_iterations, *(n - 1 for n in least_1))
        if not 0 <= self.validation_share < 1 or min(counts) < 0 or not self.detail >= 0:
            raise UsageError(
                "the settings of the training of a generator are wrong",
                expected="validation_share from 0 to below 1, shift_voxels, labeller_iterations "
                "and detail of 0 or more, copies and feature_iterations of 1 or more",
            )
        # says what is wrong with them before anything is trained
        if self.route not in ("tokens", "latents"):
            raise UsageError("unknown route", expected="tokens or latents", got=str(self.route))
        _prior_settings(self.tokeniser.codes, (1, 1, 1), self.prior)
        _denoiser_settings(1, 0, {"grid": (1, 1, 1)} | self.denoiser)

    @classmethod
    def preset(cls, name: str, *, seed: int = 0, **changes: Any) -> GeneratorTraining:
        """Return the settings of a preset with changes.

        "hippocampus": the route of latents for volumes of about 32 x 56 x 40 voxels with two
        labels and some 150 patients, on one thread.

        Raises
        ------
        UsageError
            If there is no such preset.
        """
        if name not in PRESETS:
            raise UsageError("no such preset", expected=" | ".join(PRESETS), got=repr(name)[:40])
        return cls(**(PRESETS[name](seed) | {"seed": seed} | changes))


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
        "labeller") is where.

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
    rebuilt = _Rebuilt(run.sides()[0], route), _Rebuilt(run.sides()[1], route)
    detail = _detail(rebuilt, training.detail)
    labels = training.labeller_iterations and route.label_classes
    labeller = _labeller(run, rebuilt, detail) if labels else None
    reading = _reading(samples, route, labeller)
    return Generator(route, affine, shape, facts, detail, reading, labeller)


def _labeller(run: _Run, rebuilt: tuple[_Rebuilt, _Rebuilt], detail: FineDetail) -> SegmenterModel:
    """Return what labels images, trained with those that are not held out."""
    own = run.training
    trains, validates = (_AsDrawn(side, detail) for side in rebuilt)
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


def _detail(rebuilt: tuple[_Rebuilt, _Rebuilt], share: float) -> FineDetail:
    """Return what the first network leaves out of volumes that did not train it, if there are."""
    trains, validates = rebuilt
    some = validates if len(validates) >= FEWEST_DETAILED else trains
    left = [some.left_out(number) for number in range(min(len(some), MOST_DETAILED))]
    return FineDetail.fit(torch.stack(left), share)


def _reading(
    samples: TrainingSet, route: TokenRoute | LatentRoute, labeller: SegmenterModel | None
) -> LabelReading | None:
    """Return what reads conditions from labels, where there are both; those of a labeller that
    sees regions larger or smaller than they are, on average of real images, count as less or
    more."""
    if not route.label_classes:
        return None
    volumes, classes = samples.volumes, route.label_classes
    rows = [
        {name: column[n] for name, column in samples.table.items()}
        for n in range(len(samples.volumes))
    ]
    known = (torch.as_tensor(volumes[n][1]) for n in range(len(volumes)))
    reading = LabelReading.fit(known, rows, route.conditions, classes)
    if reading is None or labeller is None:
        return reading
    pairs = (volumes[n] for n in range(len(volumes)))
    both = (
        (labeller.labels(torch.as_tensor(image)[None]), torch.as_tensor(labels))
        for image, labels in pairs
    )
    return reading.of_labeller(both)


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

    def sides(self) -> tuple[_Some, _Some]:
        """Return the volumes that train and those that validate."""
        whose = list(enumerate(self.samples.subjects))
        first, second = ([n for n, s in whose if (s in self.held_out) == t] for t in (False, True))
        return _Some(self.samples.volumes, first), _Some(self.samples.volumes, second)


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
    settings = _prior_settings(tokeniser.settings.codes, grid, training.prior)
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
        _denoiser_settings(
            latents.mean.shape[1], conditions.columns,
            {"grid": tuple(latents.mean.shape[2:])} | training.denoiser,
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


class _Some(Sequence[Any]):
    """Some of the volumes, read when they are asked for."""

    def __init__(self, volumes: Sequence[Any], which: list[int]) -> None:
        self.volumes, self.which = volumes, which

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: Any) -> Any:
        return self.volumes[self.which[index]]


class _Rebuilt:
    """Images as they come back from the first network; as many as `REBUILT_BYTES` are kept."""

    def __init__(self, volumes: _Some, route: TokenRoute | LatentRoute) -> None:
        self.volumes, self.route = volumes, route
        self.samples = TokeniserSamples(volumes, route.image_channels, route.label_classes)
        one = 4 * self.samples.volume(0)[: route.image_channels].numel() if len(volumes) else 1
        self.image = functools.lru_cache(max(1, REBUILT_BYTES // one))(self._made)

    def __len__(self) -> int:
        return len(self.volumes)

    def _made(self, number: int) -> Tensor:
        whole = self.samples.volume(number)
        return self.route.rebuilt(whole)[: self.route.image_channels].to(whole)

    def left_out(self, number: int) -> Tensor:
        """Return an image minus what came back."""
        return self.samples.volume(number)[: self.route.image_channels] - self.image(number)


class _AsDrawn(Sequence[Any]):
    """Each volume as it is, and twice as it would be drawn: rebuilt, with fine detail."""

    def __init__(self, rebuilt: _Rebuilt, detail: FineDetail) -> None:
        self.rebuilt, self.detail = rebuilt, detail

    def __len__(self) -> int:
        return 3 * len(self.rebuilt)

    def __getitem__(self, index: Any) -> Any:
        number, version = divmod(index, 3)
        image, labels = self.rebuilt.volumes[number]
        if version:
            grain = self.detail.share * self.detail.draw(index)
            image = (self.rebuilt.image(number) + grain).clamp(0, 1)
        return image, labels


def _prior_settings(codes: int, grid: tuple[int, ...], how: dict[str, Any]) -> PriorSettings:
    known: dict[str, Any] = {"codes": codes, "grid": grid}
    return PriorSettings(**(known | how))


def _denoiser_settings(channels: int, conditions: int, how: dict[str, Any]) -> DenoiserSettings:
    known: dict[str, Any] = {"latent_channels": channels, "conditions": conditions}
    return DenoiserSettings(**(known | how))


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


def _hippocampus(seed: int) -> dict[str, Any]:
    return {
        "route": "latents",
        "autoencoder": AutoencoderSettings.preset("hippocampus"),
        "autoencoder_training": AutoencoderTraining(
            iterations=2600, batch_size=2, learning_rate=2.5e-3, validate_every=200,
            kl_weight=0.03, label_weight=0.7, perceptual_weight=0.2, seed=seed,
        ),
        "denoiser": HIPPOCAMPUS_DENOISER,
        "denoiser_training": DenoiserTraining(
            iterations=1200, batch_size=8, learning_rate=2e-3, warmup=50, validate_every=100,
            ema_decay=0.99, hide=0.15, seed=seed,
        ),
        "shift_voxels": 1,
        "copies": 3,
        "labeller_iterations": 1000,
        "detail": 0.6,
    }  # fmt: skip


HIPPOCAMPUS_DENOISER: dict[str, Any] = {
    "channels": (64, 128), "attention": (False, True), "groups": 8, "conditioning": "embedding",
    "condition_width": 32, "directions": 160, "begin": 0.3,
}  # fmt: skip
PRESETS: dict[str, Callable[[int], dict[str, Any]]] = {"hippocampus": _hippocampus}
