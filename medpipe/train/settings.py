"""What a training run is told, what it says while it runs and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from medpipe.errors import UsageError
from medpipe.types import Json

__all__ = ["LoopSettings", "Progress", "Tell", "TrainResult"]


@dataclass(frozen=True)
class LoopSettings:
    """How a network is trained.

    Parameters
    ----------
    iterations : int
        Steps of the optimiser.
    batch_size : int
        Samples in a batch, over all processes.
    learning_rate : float
        The largest of the schedule.
    weight_decay : float
        Of AdamW.
    schedule : {"one-cycle", "cosine", "constant"}
        How the learning rate goes over the iterations.
    warmup : int
        Iterations in which the learning rate rises from 0 before that; "one-cycle" has its own.
    clip_norm : float, optional
        Gradients are shortened to this norm; None leaves them.
    ema_decay : float, optional
        The result is the exponential average of the weights, with this decay; None is off.
    amp : bool
        Half precision on CUDA devices; the CPU always computes in single precision.
    validate_every : int
        Iterations between validations; one more follows the last iteration.
    patience : int, optional
        Training ends after so many validations without a better metric.
    higher_is_better : bool
        Whether the metric should grow.
    checkpoint_every : int
        Iterations between checkpoints, where a file is given.
    workers : int
        Processes that make samples beside the training; the samples are the same for any.
    seed : int
        Of the order of the samples, of their random changes and of dropout.
    """

    iterations: int = 1000
    batch_size: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup: int = 0
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    amp: bool = True
    validate_every: int = 100
    patience: int | None = None
    higher_is_better: bool = False
    checkpoint_every: int = 100
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is wrong", expected="1 or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError("learning_rate is wrong", expected="a number above 0")
        if self.schedule not in ("one-cycle", "cosine", "constant"):
            raise UsageError("unknown schedule", expected="one-cycle, cosine or constant")
        if not 0 <= self.warmup < self.iterations or (self.warmup and self.schedule == "one-cycle"):
            raise UsageError(
                "warmup is wrong",
                expected="0, or fewer than iterations with the schedule cosine or constant",
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UsageError("ema_decay is wrong", expected="a number between 0 and 1")
        if self.patience is not None and self.patience < 1:
            raise UsageError("patience is wrong", expected="1 or more")

    def with_batch(self, batch_size: int) -> LoopSettings:
        """Return the settings for batches of another size, after LEGW (arXiv 1901.08256).

        For batches k times as large the learning rate is multiplied by the square root of k,
        and the epochs of warm-up by k. An epoch then has 1/k of the iterations, so the
        iterations of the warm-up stay, while those of the same number of epochs, and those
        between validations and checkpoints, are divided by k.

        Raises
        ------
        UsageError
            If the batch is empty, or so large that the warm-up would be all of the training.
        """
        k = batch_size / self.batch_size
        if k <= 0:
            raise UsageError("batch_size is wrong", expected="1 or more", got=str(batch_size))
        iterations = max(1, math.ceil(self.iterations / k))
        if self.warmup >= iterations:
            raise UsageError(
                "the batch is too large for so short a training",
                expected=f"more than {self.warmup} iterations, those of the warm-up",
                got=str(iterations),
                hint="train for more epochs, or shorten the warm-up",
            )
        return replace(
            self,
            batch_size=batch_size,
            learning_rate=self.learning_rate * math.sqrt(k),
            iterations=iterations,
            validate_every=max(1, round(self.validate_every / k)),
            checkpoint_every=max(1, round(self.checkpoint_every / k)),
        )


@dataclass(frozen=True)
class Progress:
    """Where a training run is.

    Parameters
    ----------
    iteration, iterations : int
        Done, and to do in all.
    loss : float
        Mean since the row before.
    metric : float, optional
        Of the latest validation.
    seconds : float
        Since this process began to train.
    """

    iteration: int
    iterations: int
    loss: float
    metric: float | None
    seconds: float


Tell = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained network.

    Parameters
    ----------
    network : torch.nn.Module
        The one that was given, with the best weights (the average of them, if asked for).
    history : list of dict
        A row per validation: iteration, loss (mean since the row before), metric,
        learning_rate. JSON values.
    best_metric : float
    best_iteration : int
    iterations : int
        Done; fewer than asked for where training ended early.
    """

    network: nn.Module
    history: list[dict[str, Json]]
    best_metric: float
    best_iteration: int
    iterations: int
