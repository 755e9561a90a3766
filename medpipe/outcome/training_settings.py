"""How networks of outcomes are trained: the settings of a fold, and those of a known study."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from medpipe.errors import UsageError
from medpipe.outcome.augment import Augmentation
from medpipe.outcome.losses import survival_targets
from medpipe.outcome.samples import PRESETS
from medpipe.train import LoopSettings

__all__ = ["OutcomeTraining"]

LOSSES = ("cross-entropy", "weighted", "focal", "survival")


@dataclass(frozen=True)
class OutcomeTraining:
    """How networks of outcomes are trained.

    Parameters
    ----------
    preset : {"windows", "paper", "pictures"}
        How channels are made (`medpipe.outcome.samples.Volumes`).
    size_voxels, spacing_mm : three numbers, optional
        The grid of prepared volumes; with a size, volumes of another one are refused.
    loss : {"cross-entropy", "weighted", "focal", "survival"}
        The second and third weigh classes so that each counts the same; probabilities then
        need recalibration. The fourth is the likelihood of discrete times.
    focal_gamma : float
        See `medpipe.outcome.losses.focal_loss`.
    interval_days : tuple of float
        Ends of the intervals of time of the survival loss.
    head_iterations, head_rate
        Steps and rate for the head alone, on an encoder that was given; an encoder that
        begins at random has no such phase.
    iterations, learning_rate, weight_decay, schedule, clip_norm, ema_decay, batch_size, amp
        See `medpipe.train.LoopSettings`.
    balanced : bool
        Whether every class is drawn as often as the most frequent one.
    augmentation : Augmentation, optional
        None trains with the volumes as they are.
    validation_share : float
        Of the patients of a fold's training part, for early stopping and the choice of
        weights; with 0 all iterations are made, and the weights are the last ones.
    validate_every, patience : int
        Iterations between validations, and how many without a better one end a phase.
    tta_flips : tuple of tuples of int
        Axes to mirror for each further copy in prediction.
    folds : int
        Of the cross-validation.
    seed : int
    """

    preset: Literal["windows", "paper", "pictures"] = "windows"
    size_voxels: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    loss: Literal["cross-entropy", "weighted", "focal", "survival"] = "cross-entropy"
    focal_gamma: float = 2.0
    interval_days: tuple[float, ...] = (3.0, 7.0, 14.0, 30.0, 60.0, 90.0)
    head_iterations: int = 200
    head_rate: float = 1e-3
    iterations: int = 1500
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    batch_size: int = 4
    balanced: bool = False
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    validation_share: float = 0.15
    validate_every: int = 50
    patience: int | None = 10
    tta_flips: tuple[tuple[int, ...], ...] = ()
    folds: int = 5
    amp: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size_voxels", "spacing_mm", "interval_days"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "tta_flips", tuple(tuple(axes) for axes in self.tta_flips))
        if isinstance(self.augmentation, dict):
            object.__setattr__(self, "augmentation", Augmentation(**self.augmentation))
        if self.preset not in PRESETS:
            raise UsageError("unknown preset", expected=" | ".join(PRESETS))
        if self.loss not in LOSSES:
            raise UsageError("unknown loss", expected=" | ".join(LOSSES))
        if self.head_iterations < 0 or self.focal_gamma < 0:
            raise UsageError("head_iterations or focal_gamma is wrong", expected="0 or more")
        if not 0 <= self.validation_share < 1 or self.folds < 2:
            raise UsageError("validation_share or folds is wrong", expected="below 1; 2 or more")
        if self.loss == "survival":
            survival_targets([0.0], [0], self.interval_days)  # says what is wrong with them
        for head in (True, False):
            self.loop(head=head)

    @classmethod
    def paper(cls, **changes: Any) -> OutcomeTraining:
        """Return the settings of the study of doi 10.3390/brainsci14010010 as far as known.

        Grid and channels are published. Rates, loss and changes of the samples are what its
        framework does where nothing is said: Adam at 1e-4 for the head, then at 1e-5 for
        all, focal loss with gamma 2 and weighted classes, each change with probability 0.5.
        """
        known: dict[str, Any] = {
            "preset": "paper",
            "size_voxels": (128, 128, 160),
            "spacing_mm": (1.18, 1.58, 1.10),
            "loss": "focal",
            "head_iterations": 400,
            "head_rate": 1e-4,
            "iterations": 4000,
            "learning_rate": 1e-5,
            "weight_decay": 0.0,
            "schedule": "constant",
            "clip_norm": None,
            "validate_every": 40,
            "patience": 12,
            "augmentation": Augmentation(rotate_deg=15.0, scale=(0.85, 1.25), gamma=(0.7, 1.5)),
        }
        return cls(**(known | changes))

    def loop(self, *, head: bool, workers: int = 0) -> LoopSettings:
        """Return the settings of a phase for `medpipe.train.train`."""
        iterations = max(1, self.head_iterations) if head else self.iterations
        return LoopSettings(
            iterations=iterations,
            batch_size=self.batch_size,
            learning_rate=self.head_rate if head else self.learning_rate,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            clip_norm=self.clip_norm,
            ema_decay=self.ema_decay,
            amp=self.amp,
            validate_every=self.validate_every if self.validation_share else iterations,
            patience=self.patience if self.validation_share else None,
            checkpoint_every=self.validate_every,
            workers=workers,
            seed=self.seed,
        )

    def to_json(self) -> str:
        """Return the settings as JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> OutcomeTraining:
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
