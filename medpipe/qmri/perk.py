"""PERK: parameter estimation by regression with kernels (training).

Voxels are simulated from priors and the protocol, their values are regressed on random
Fourier features of their signals. The regression is linear in the features, so training
is one eigendecomposition and inference one pass without iterations or starting values,
whatever the signal model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from medpipe.errors import UsageError
from medpipe.qmri.features import regressor_scale, regressors
from medpipe.qmri.hold_out import RIDGES, HoldOut, hold_out, search
from medpipe.qmri.perk_model import Guard, Perk
from medpipe.qmri.priors import Empirical, LogUniform, Prior, TruncatedLogNormal, Uniform
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.ridge import Spectrum, moments
from medpipe.qmri.training import Recipe, TrainingSet, make_recipe

__all__ = ["PAPER", "Guard", "HoldOut", "Perk", "hold_out", "train_perk"]

FEATURES = 1000
SAMPLES = 20_000
COARSE = tuple(2.0 ** (i / 2) for i in range(-4, 4))
"""Length scales of the search within training."""
SEARCHED = 10_000
"""Most samples of that search; the choice changes little with more."""

PAPER = {"features": 1000, "samples": 100_000, "length_scale": 2.0**0.6, "ridge": 2.0**-41}
"""The published settings of the T1 and T2 experiments."""
PAPER_PRIORS: dict[str, Prior] = {"t1_s": LogUniform(0.4, 2.0), "t2_s": LogUniform(0.04, 0.2)}
PAPER_KAPPA = (0.5, 2.0)
LARGEST_UNIT_SIGNAL = 0.15
"""What the published training takes for the largest signal of M0 = 1."""


def train_perk(
    protocol: Protocol,
    priors: Mapping[str, Prior] | None,
    noise_sigma: float | Sequence[float],
    *,
    features: int = FEATURES,
    samples: int = SAMPLES,
    length_scale: float | Literal["hold-out"] = "hold-out",
    ridge: float | Literal["hold-out"] = "hold-out",
    normalize: bool = True,
    logarithm: bool = True,
    seed: int = 0,
    preset: Literal["paper"] | None = None,
    data: torch.Tensor | None = None,
    known: Mapping[str, torch.Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Perk:
    """Train PERK for a protocol.

    Parameters
    ----------
    protocol : Protocol
    priors : mapping of str to Prior or None
        Of latents and known regressors; `default_priors` where one is missing. Their
        ranges are the support of the model: what lies outside is flagged.
    noise_sigma : float or sequence of float
        Standard deviation of each measured value (of one channel, of a magnitude), in
        the unit in which the prior of M0 draws. For a normalised model only the ratio
        counts: with M0 near 1, the noise divided by the M0 of the images.
    features : int
        Number of random features Z.
    samples : int
        Simulated voxels N.
    length_scale : float or "hold-out"
        Kernel scale λ in units of the mean of each regressor, or the choice of `hold_out`.
    ridge : float or "hold-out"
        Ridge ρ, or the choice of `hold_out`.
    normalize : bool
        Divide the signal of a voxel by its norm, so that the model can be used for other
        scans of the protocol; M0 then comes from a linear fit. Without it M0 is regressed.
    logarithm : bool
        Regress logarithms: no estimate is negative and relative errors are minimised.
    seed : int
        Of samples and features.
    preset : "paper", optional
        Train as published: `PAPER` settings, linear targets, no normalisation, scale of
        the kernel, range of M0 and of kappa from the images. The model then holds for
        these images alone. Overrides all settings above except `seed`, and `priors` of
        M0; other priors hold where they are given.
    data : Tensor, optional
        (N, D) signals of the images, for the preset alone.
    known : mapping of str to Tensor, optional
        (N,) known regressors of the images, for the preset alone.
    device : torch.device or str
        Where the linear algebra is done. Samples and features are drawn on the host, so
        they are the same everywhere.

    Raises
    ------
    UsageError
        For a setting, prior or noise level that cannot be used.
    """
    if preset not in (None, "paper"):
        raise UsageError("unknown preset", where="preset", expected="paper")
    if preset == "paper":
        return _train_as_published(protocol, dict(priors or {}), noise_sigma, seed, data, known)
    _check_sizes(features, samples)
    recipe = make_recipe(
        protocol, priors, noise_sigma, normalize=normalize, logarithm=logarithm, seed=seed
    )
    train = recipe.draw(samples, "train", device)
    scale = regressor_scale(train.q)
    score = None
    if length_scale == "hold-out" or ridge == "hold-out":
        found = _search(recipe, train, scale, features, length_scale, ridge)
        length_scale, ridge, score = found.length_scale, found.ridge, found.score
    perk = _fit(recipe, train, scale, features, float(length_scale), float(ridge))
    return replace(perk, score=score)


def _check_sizes(features: int, samples: int) -> None:
    for name, value, least in (("features", features, 1), ("samples", samples, 2)):
        if value < least:
            raise UsageError(
                f"too few {name}", where=name, expected=f"{least} or more", got=str(value)
            )


def _search(
    recipe: Recipe,
    train: TrainingSet,
    scale: torch.Tensor,
    features: int,
    length_scale: float | str,
    ridge: float | str,
) -> HoldOut:
    """Return the hold-out over what is not given."""
    count = min(len(train.q), SEARCHED)
    test = recipe.draw(count, "test", train.q.device)
    part = TrainingSet(train.samples, train.q[:count], train.values[:count])
    scales = COARSE if isinstance(length_scale, str) else (length_scale,)
    ridges = RIDGES if isinstance(ridge, str) else (ridge,)
    return search(recipe, part, test, scale, features, scales, ridges)


def _fit(
    recipe: Recipe,
    train: TrainingSet,
    scale: torch.Tensor,
    count: int,
    length_scale: float,
    ridge: float,
) -> Perk:
    """Return the model of one length scale and ridge."""
    if length_scale <= 0 or ridge <= 0:
        raise UsageError("length scale and ridge must be above 0", where="training")
    features = recipe.features(scale, length_scale, count)
    moment = moments(features, train.q, recipe.to_targets(train.values))
    readout = Spectrum.of(moment).readout((ridge,))[0]
    # folded together in float64: the read-outs reach 1e6 and cancel
    offset = moment.mean_x - readout @ moment.mean_z
    host = torch.device("cpu")
    perk = Perk(
        recipe,
        features.to(host),
        (readout * (2 / count) ** 0.5).to(host),
        offset.to(host),
        length_scale,
        ridge,
        len(train.q),
    )
    return perk.calibrated()


def _train_as_published(
    protocol: Protocol,
    priors: dict[str, Prior],
    noise_sigma: float | Sequence[float],
    seed: int,
    data: torch.Tensor | None,
    known: Mapping[str, torch.Tensor] | None,
) -> Perk:
    """Return the model trained for some images with the published settings."""
    if data is None:
        raise UsageError(
            "the published training needs the signals of the images",
            where="preset",
            hint="give data=, shape (voxels, measured values)",
        )
    images = data.detach().to("cpu", torch.float64)
    ones = torch.ones(len(images), dtype=torch.float64)
    maps = {n: (known or {}).get(n, ones).to("cpu", torch.float64) for n in protocol.knowns}
    for name in protocol.latents:
        if name in PAPER_PRIORS:
            priors.setdefault(name, PAPER_PRIORS[name])
    priors["m0"] = Uniform(2.2e-16, float(images.abs().max()) / LARGEST_UNIT_SIGNAL)
    for name, values in maps.items():
        priors.setdefault(name, _measured(values))
    recipe = make_recipe(protocol, priors, noise_sigma, normalize=False, logarithm=False, seed=seed)
    scale = regressors(images, maps, protocol, False).abs().mean(0)
    train = recipe.draw(int(PAPER["samples"]), "train")
    used = torch.where(regressor_scale(train.q) > 0, scale, torch.zeros_like(scale))
    count = int(PAPER["features"])
    return _fit(recipe, train, used, count, PAPER["length_scale"], PAPER["ridge"])


def _measured(values: torch.Tensor) -> Prior:
    """Return the distribution of a map of kappa; the one of the hold-out if it is constant."""
    low, high = PAPER_KAPPA
    prior = Empirical.of(values.clamp(low, high))
    if prior.support[0] == prior.support[1]:
        return TruncatedLogNormal(1.0, 0.2, low, high)
    return prior
