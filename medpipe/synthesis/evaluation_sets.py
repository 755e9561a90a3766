"""What an evaluation of synthesis is given: sets of cases, and how it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from numpy.typing import ArrayLike

from medpipe.errors import InputError, UsageError

__all__ = [
    "EvaluationSettings",
    "Measured",
    "SynthesisSet",
    "TrainSegmenter",
    "UtilityPlan",
]

Segment = Callable[[torch.Tensor], torch.Tensor]
"""Labels (n, I, J, K) of images (n, I, J, K)."""
TrainSegmenter = Callable[[Sequence[tuple[torch.Tensor, torch.Tensor]], int], Segment]
"""Of pairs of image (1, I, J, K) and labels (1, I, J, K), and a seed."""


@dataclass(frozen=True, eq=False)
class SynthesisSet:
    """Cases of one grid.

    Parameters
    ----------
    images : Tensor, shape (n, I, J, K)
        Intensities, about 0 to 1.
    labels : Tensor, shape (n, I, J, K), optional
        Whole numbers.
    """

    images: torch.Tensor
    labels: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not self.images.is_floating_point():
            raise InputError(
                "the images of a set have the wrong shape",
                expected="numbers with a point, (n, I, J, K)",
                got=f"{self.images.dtype}, shape {tuple(self.images.shape)}",
            )
        if self.labels is not None and self.labels.shape != self.images.shape:
            raise InputError(
                "images and labels of a set do not fit",
                expected=f"labels of shape {tuple(self.images.shape)}",
                got=f"shape {tuple(self.labels.shape)}",
            )

    def __len__(self) -> int:
        return len(self.images)

    def pairs(self, which: Sequence[int] | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return pairs (1, I, J, K) of image and labels.

        Raises
        ------
        InputError
            If the set has no labels.
        """
        if self.labels is None:
            raise InputError("a set to train with has no labels")
        rows = range(len(self)) if which is None else which
        return [(self.images[i][None], self.labels[i][None]) for i in rows]


@dataclass(frozen=True, eq=False)
class Measured:
    """How a condition is measured: by a function, in a region, or before the evaluation.

    Parameters
    ----------
    measure : callable, optional
        Values (n,) of images (n, I, J, K).
    truth : array (n,), optional
        Values of the held-out real cases, for the ceiling; of a region those of their labels.
    unit : str
        Of a region's volume mm³ or ml.
    region : str, optional
        Whose volume it is, as the segmenter finds it.
    values : mapping of str to array (n,), optional
        Measured before: in ``synthetic`` and, for the ceilings, in ``real`` held-out cases
        and their ``reconstruction``.
    """

    measure: Callable[[torch.Tensor], ArrayLike] | None = None
    truth: ArrayLike | None = None
    unit: str = ""
    region: str | None = None
    values: Mapping[str, ArrayLike] | None = None

    def __post_init__(self) -> None:
        given = sum(way is not None for way in (self.measure, self.region, self.values))
        if given != 1:
            raise UsageError(
                "how a condition is measured is not clear",
                expected="one of measure, region and values", got=str(given),
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class UtilityPlan:
    """Segmenters that are trained to see what synthetic cases are good for.

    Parameters
    ----------
    train : callable
        Trains with pairs and a seed, and returns what gives labels of images.
    real_cases : int
        The few real cases to which synthetic ones are added.
    seeds : sequence of int
        Three or more; each draws other real cases too.
    """

    train: TrainSegmenter
    real_cases: int
    seeds: Sequence[int] = (0, 1, 2)

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < 3:
            raise UsageError(
                "too few seeds for an interval", expected="3 different ones or more",
                got=str(len(set(self.seeds))),
            )  # fmt: skip
        if self.real_cases < 1:
            raise UsageError("too few real cases", expected="1 or more", got=str(self.real_cases))


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation is done.

    Parameters
    ----------
    spacing_mm : sequence of 3 floats
    regions : mapping of name to a label, or to labels that are one region
    alignment : {"rigid", "shift", "centre"}
        Before the t map and the distances (see `medpipe.synthesis.metrics.realign`).
    threshold : float
        Of \\|t\\|.
    limit : float
        Of the gate against copies.
    shift_voxels : int
        By which the planted population is shifted.
    resamples, splits, pairs, permutations, seed : int
        Of bootstraps, halves, pairs of volumes and permutations.
    level : float
        Coverage of the intervals.
    shown : int
        Synthetic cases of which pictures are kept, beside the nearest training case.
    """

    regions: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    alignment: Literal["rigid", "shift", "centre"] = "rigid"
    threshold: float = 3.3
    limit: float = 0.5
    shift_voxels: int = 2
    resamples: int = 1000
    splits: int = 100
    pairs: int = 300
    permutations: int = 199
    seed: int = 0
    level: float = 0.95
    shown: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing_mm", tuple(float(s) for s in self.spacing_mm))
        if not self.regions:
            raise UsageError("no regions are named", expected="a label, or labels, for each name")
        if self.shift_voxels < 1 or self.shown < 0:
            raise UsageError(
                "the settings of an evaluation are wrong",
                expected="shift_voxels of 1 or more, shown of 0 or more",
            )

    def resampled(self) -> dict[str, Any]:
        """Return what measures with bootstraps are told."""
        return {"resamples": self.resamples, "seed": self.seed, "level": self.level}
