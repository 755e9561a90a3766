"""Both trainings of a generator, one after the other: the tokeniser, then the prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medpipe.errors import UsageError
from medpipe.synthesis.coded import SHIFTS, encode_moved
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.prior import PriorSettings
from medpipe.synthesis.prior_training import PriorTraining, train_prior
from medpipe.synthesis.routes import TokenRoute
from medpipe.synthesis.tokeniser import TokeniserSettings
from medpipe.synthesis.tokeniser_training import TokeniserModel, TokeniserTraining, train_tokeniser
from medpipe.synthesis.training_files import TrainingSet
from medpipe.train import Progress
from medpipe.types import Json

__all__ = ["GeneratorTraining", "train_generator"]


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
    shift_voxels, copies : int
        See `medpipe.synthesis.coded.encode_moved`; the shifts become conditions.
    validation_share : float
        Of the subjects: the same ones validate both trainings.
    seed : int
        Decides which these are.
    """

    tokeniser: TokeniserSettings = field(default_factory=TokeniserSettings)
    tokeniser_training: TokeniserTraining = field(default_factory=TokeniserTraining)
    prior: dict[str, Any] = field(default_factory=dict)
    prior_training: PriorTraining = field(default_factory=PriorTraining)
    shift_voxels: int = 0
    copies: int = 1
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1 or self.shift_voxels < 0 or self.copies < 1:
            raise UsageError(
                "the settings of the training of a generator are wrong",
                expected="validation_share from 0 to below 1, shift_voxels of 0 or more, "
                "copies of 1 or more",
            )
        # says what is wrong with them before anything is trained
        _prior_settings(self.tokeniser.codes, (1, 1, 1), self.prior)


def train_generator(
    samples: TrainingSet,
    training: GeneratorTraining,
    *,
    device: str | torch.device = "auto",
    checkpoints: str | Path | None = None,
    progress: Callable[[str, Progress], None] | None = None,
) -> Generator:
    """Train a tokeniser and the prior of its codes.

    Parameters
    ----------
    samples : TrainingSet
    training : GeneratorTraining
    device : str or torch.device
    checkpoints : path, optional
        Folder to continue from, with a checkpoint of each training. On the CPU an interrupted
        run ends with the bits of one that was not.
    progress : callable, optional
        Told which training ("tokeniser" or "prior") is where.

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

    def tell(stage: str) -> Callable[[Progress], None] | None:
        return None if progress is None else lambda at: progress(stage, at)

    tokeniser = _tokeniser(samples, training, held_out, device, folder, tell("tokeniser"))
    coded = encode_moved(
        tokeniser, samples.volumes, shift_voxels=training.shift_voxels, copies=training.copies,
        seed=training.seed,
    )  # fmt: skip
    kinds: Any = {**samples.kinds, **dict.fromkeys(coded.shifts, "augmentation")}
    grid = tuple(coded.codes.shape[1:])
    settings = _prior_settings(tokeniser.settings.codes, grid, training.prior)
    prior = train_prior(
        coded.codes, coded.table(samples.table), kinds, settings, training.prior_training,
        units=dict.fromkeys(SHIFTS, "voxels") | _units(samples.kinds),
        subjects=[samples.subjects[n] for n in coded.subjects], validation=sorted(held_out),
        tokeniser=tokeniser.digest, device=device, progress=tell("prior"),
        checkpoint=None if folder is None else folder / "prior.pt",
    )  # fmt: skip
    facts: dict[str, Json] = {
        "subjects": len(set(samples.subjects)),
        "subjects_held_out": len(held_out),
        "volumes": len(samples.volumes),
        # 0: the tokeniser has collapsed, codes say where they are and nothing of the volume
        "tokens_that_vary": int((coded.codes != coded.codes[:1]).any(0).sum()),
        "shift_voxels": training.shift_voxels,
        "copies": training.copies,
        "seed": training.seed,
    }
    shape = coded.shape
    affine = np.array(samples.volumes.affine, np.float64)
    return Generator(TokenRoute(tokeniser, prior), affine, shape, facts)


def _tokeniser(
    samples: TrainingSet, training: GeneratorTraining, held_out: set[int],
    device: str | torch.device, folder: Path | None,
    tell: Callable[[Progress], None] | None,
) -> TokeniserModel:  # fmt: skip
    """Return the tokeniser, trained with those that are not held out."""
    settings = replace(training.tokeniser, label_classes=samples.label_classes)
    sides = [[n for n, s in enumerate(samples.subjects) if (s in held_out) == t] for t in (0, 1)]
    trains, validates = (_Some(samples.volumes, side) for side in sides)
    return train_tokeniser(
        trains, settings, training.tokeniser_training,
        validation=validates if len(validates) else None, device=device, progress=tell,
        checkpoint=None if folder is None else folder / "tokeniser.pt",
    )  # fmt: skip


class _Some(Sequence[Any]):
    """Some of the volumes, read when they are asked for."""

    def __init__(self, volumes: Sequence[Any], which: list[int]) -> None:
        self.volumes, self.which = volumes, which

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: Any) -> Any:
        return self.volumes[self.which[index]]


def _prior_settings(codes: int, grid: tuple[int, ...], how: dict[str, Any]) -> PriorSettings:
    known: dict[str, Any] = {"codes": codes, "grid": grid}
    return PriorSettings(**(known | how))


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
    return {name: end for name, end in ends if end in ("years", "ml", "mm3", "mm", "kg", "cm")}
