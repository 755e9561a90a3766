"""From the choice of a user to an estimator: ranges, noise, and a trained model where needed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from medpipe.errors import UsageError
from medpipe.qmri.dictionary import DictionarySearch
from medpipe.qmri.estimate import Estimator
from medpipe.qmri.hybrid import Hybrid
from medpipe.qmri.least_squares import NonlinearLeastSquares
from medpipe.qmri.model_file import load_perk
from medpipe.qmri.perk import Perk, train_perk
from medpipe.qmri.priors import Fixed, LogUniform, Prior
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.quantities import check_quantity
from medpipe.qmri.samples import complete_priors, draw_samples
from medpipe.steps._base import check_choice, quantiles

__all__ = ["DESCRIPTIONS", "Method", "MethodName", "make_ranges", "relative_noise"]

MethodName = Literal["hybrid", "least_squares", "perk", "dictionary"]

DESCRIPTIONS: Mapping[str, tuple[str, str]] = {
    "hybrid": (
        "nonlinear least squares (Levenberg-Marquardt, M0 by variable projection)"
        " started by regression with kernels (PERK)",
        "10.1109/TMI.2018.2817547",
    ),
    "least_squares": (
        "nonlinear least squares (Levenberg-Marquardt, M0 by variable projection)",
        "10.1137/0710036",
    ),
    "perk": (
        "regression with kernels (PERK) on random Fourier features",
        "10.1109/TMI.2018.2817547",
    ),
    "dictionary": ("nearest atom of a dictionary of signals", "10.1038/nature11971"),
}
"""Method → what it is, and the DOI of a description."""

FEWEST_TO_TRAIN = 50_000
"""Voxels from which training a start for least squares costs less than it saves."""

HYBRID_SCALE, HYBRID_RIDGE = 2.0**-0.5, 2.0**-41
"""Kernel and ridge of a start that least squares improve: searching better ones is slower."""

NOISE_STEPS = 2
"""Models are trained for noise levels this many to an octave, so that a batch shares them."""

NOISE_RANGE = (1e-5, 0.3)
SAMPLES_FOR_SCALE = 4000

_TRAINED: dict[str, Perk] = {}
"""Models of this process, by everything that training depends on."""


def make_ranges(**given: Sequence[float] | None) -> dict[str, tuple[float, float]]:
    """Return (low, high) of each latent that has a range.

    Raises
    ------
    UsageError
        If a range is not two rising plausible numbers.
    """
    ranges = {}
    for name, pair in given.items():
        if pair is None:
            continue
        if len(pair) != 2:
            raise UsageError(f"the range of {name} is wrong", expected="two numbers, [low, high]")
        low, high = (check_quantity(name, value, "range") for value in pair)
        if not low < high:
            raise UsageError(
                f"the range of {name} does not rise", expected="low below high", got=f"{low:g}"
            )
        ranges[name] = (low, high)
    return ranges


def relative_noise(
    protocol: Protocol, priors: Mapping[str, Prior], signal: torch.Tensor, sigma: float
) -> float:
    """Return the noise in the unit in which priors draw M0, rounded to half an octave.

    The median norm of simulated voxels is set equal to that of the measured ones.

    Parameters
    ----------
    signal : Tensor
        (N, D) measured values in the unit of the images.
    sigma : float
        Standard deviation of the noise in the same unit.
    """
    drawn = draw_samples(
        protocol,
        complete_priors(protocol, priors),
        (1.0,) * protocol.count,
        SAMPLES_FOR_SCALE,
        torch.Generator().manual_seed(0),
    )
    norm = signal.norm(dim=1)
    norm = norm[norm.isfinite() & (norm > 0)]
    if not norm.numel():
        return NOISE_RANGE[0]
    relative = sigma * _median(drawn.ideal.norm(dim=1)) / _median(norm)
    low, high = NOISE_RANGE
    steps = round(NOISE_STEPS * math.log2(min(max(relative, low), high)))
    return float(2.0 ** (steps / NOISE_STEPS))


def _median(values: torch.Tensor) -> float:
    return quantiles(values.double(), (50.0,))[0]


@dataclass(frozen=True)
class Method:
    """How values are estimated.

    Parameters
    ----------
    name : {"hybrid", "least_squares", "perk", "dictionary"}
    ranges : mapping of str to (low, high)
        Where each latent is searched: bounds, grid, and the prior of training.
    trained : str or None
        Path of a model file, for "hybrid" and "perk".
    seed : int
        Of the training.

    Raises
    ------
    UsageError
        For an unknown name, or a model file with a method that trains none.
    """

    name: MethodName = "hybrid"
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    trained: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("estimator", self.name, get_args(MethodName))
        if self.trained is not None and not self.trains:
            raise UsageError(
                f"the estimator {self.name} uses no trained model", expected="hybrid or perk"
            )

    def chosen(self, voxels: int) -> MethodName:
        """Return the method that is used for so many voxels.

        The hybrid gives the least squares fit either way; training decides on the time
        alone, and is left out where that would grow.
        """
        few = self.name == "hybrid" and self.trained is None and voxels < FEWEST_TO_TRAIN
        return "least_squares" if few else self.name

    @property
    def trains(self) -> bool:
        """Whether a PERK model is needed."""
        return self.name in ("hybrid", "perk")

    def estimator(
        self, protocol: Protocol, signal: torch.Tensor, sigma: float | None, *, scaled: bool
    ) -> Estimator:
        """Return the estimator for images of `protocol`.

        Parameters
        ----------
        signal : Tensor
            (N, D) measured values.
        sigma : float or None
            Standard deviation of their noise; None where it is not known.
        scaled : bool
            Whether a map of the flip-angle scaling is given.

        Raises
        ------
        UsageError
            If a range is for something the protocol does not measure, or a model file
            is of another protocol.
        """
        for name in self.ranges:
            if name not in protocol.latents:
                raise UsageError(
                    f"a range of {name} is given, which the protocol does not measure",
                    expected=", ".join(n for n in protocol.latents if n != "m0"),
                )
        bounds = dict(self.ranges) or None
        # without a value to spare, residuals say nothing about the noise
        exact = protocol.count <= len(protocol.latents)
        known_sigma = sigma if exact else None
        name = self.chosen(len(signal))
        if name == "dictionary":
            return DictionarySearch(protocol, bounds)
        if name == "least_squares":
            return NonlinearLeastSquares(protocol, bounds, sigma=known_sigma)
        perk = self._perk(protocol, signal, sigma, scaled)
        if sigma is not None:
            perk = perk.with_noise(sigma)
        return perk if name == "perk" else Hybrid(perk, bounds=bounds, sigma=known_sigma)

    def _perk(
        self, protocol: Protocol, signal: torch.Tensor, sigma: float | None, scaled: bool
    ) -> Perk:
        """Return a model from its file, from this process, or newly trained."""
        if self.trained is not None:
            return load_perk(self.trained, protocol)
        priors: dict[str, Prior] = {n: LogUniform(*pair) for n, pair in self.ranges.items()}
        if not scaled:
            priors |= {name: Fixed(1.0) for name in protocol.knowns}
        level = relative_noise(protocol, priors, signal, sigma or 0.0)
        record = [
            protocol.to_dict(),
            {name: prior.to_dict() for name, prior in sorted(priors.items())},
            level,
            self.seed,
            self.name,
            str(signal.device),
        ]
        key = json.dumps(record, sort_keys=True)
        if key not in _TRAINED:
            logging.getLogger("medpipe.notice").info(
                "training PERK for this protocol, once for each level of noise"
            )
            fixed = {"length_scale": HYBRID_SCALE, "ridge": HYBRID_RIDGE}
            how: dict[str, Any] = fixed if self.name == "hybrid" else {}
            _TRAINED[key] = train_perk(
                protocol, priors, level, seed=self.seed, device=signal.device, **how
            )
        return _TRAINED[key]
