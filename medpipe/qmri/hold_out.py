"""Choice of kernel scale and ridge on voxels that were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from medpipe.errors import UsageError
from medpipe.qmri.features import FourierFeatures, regressor_scale
from medpipe.qmri.priors import Prior
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.ridge import CHUNK, Spectrum, moments
from medpipe.qmri.training import Recipe, TrainingSet, make_recipe, relative_score

__all__ = ["LENGTH_SCALES", "RIDGES", "HoldOut", "hold_out", "search"]

LENGTH_SCALES = tuple(2.0 ** (i / 10) for i in range(-20, 21))
"""The published grid of kernel scales: 2^-2 to 2^2 in steps of a tenth of an octave."""
RIDGES = tuple(2.0**i for i in range(-60, -19))
"""The published grid of ridges: 2^-60 to 2^-20."""
ALIKE = 0.005
"""Part by which scores differ that are equally good. They are flat over many octaves of both
settings, and a larger ridge has read-outs that are smaller by orders of magnitude."""


@dataclass(frozen=True, eq=False)
class HoldOut:
    """The best kernel scale and ridge of a grid, with the scores of all.

    Parameters
    ----------
    length_scale, ridge : float
        The largest ridge whose score is within half a percent of the least.
    score : float
        Root-mean-square relative error of the relaxation times there.
    surface : Tensor
        float64 (length scales, ridges), the score of each pair.
    length_scales, ridges : tuple of float
        The grid.
    """

    length_scale: float
    ridge: float
    score: float
    surface: torch.Tensor
    length_scales: tuple[float, ...]
    ridges: tuple[float, ...]


def hold_out(
    protocol: Protocol,
    priors: Mapping[str, Prior] | None,
    noise_sigma: float | Sequence[float],
    *,
    features: int = 1000,
    samples: int = 10_000,
    test_samples: int = 10_000,
    length_scales: Sequence[float] = LENGTH_SCALES,
    ridges: Sequence[float] = RIDGES,
    normalize: bool = True,
    logarithm: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> HoldOut:
    """Search kernel scale and ridge by the error on simulated voxels of the same kind.

    One eigendecomposition per kernel scale serves every ridge. The score is
    √(mean Σ_l ((x̂_l - x_l)/x_l)² / L) over the relaxation times l. Test voxels have the
    noise of the training voxels: tuned with another one, the choice is too smooth or
    too rough for the images.

    Parameters
    ----------
    protocol, priors, noise_sigma, features, samples, normalize, logarithm, seed
        As for `train_perk`.
    test_samples : int
        Voxels that are tested on, drawn from the same priors.
    length_scales, ridges : sequence of float
        The grid; by default the published one of 41 by 41.
    device : torch.device or str
        Where the linear algebra is done.

    Raises
    ------
    UsageError
        For an empty grid, or what `train_perk` refuses.
    """
    recipe = make_recipe(
        protocol, priors, noise_sigma, normalize=normalize, logarithm=logarithm, seed=seed
    )
    train = recipe.draw(samples, "train", device)
    test = recipe.draw(test_samples, "test", device)
    scale = regressor_scale(train.q)
    return search(recipe, train, test, scale, features, length_scales, ridges)


def search(
    recipe: Recipe,
    train: TrainingSet,
    test: TrainingSet,
    scale: torch.Tensor,
    count: int,
    length_scales: Sequence[float],
    ridges: Sequence[float],
) -> HoldOut:
    """Return the best pair of the grid for samples already drawn.

    Parameters
    ----------
    scale : Tensor
        (Q,), scale of each regressor in the kernel.
    count : int
        Number of features.
    """
    if not length_scales or not ridges or min(*length_scales, *ridges) <= 0:
        raise UsageError(
            "the grid of the hold-out is empty or has values that are not above 0",
            where="hold-out",
            expected="one or more length scales and ridges",
        )
    targets = recipe.to_targets(train.values)
    rows = []
    for length_scale in length_scales:
        features = recipe.features(scale, length_scale, count)
        rows.append(_scores(recipe, features, train.q, targets, test, ridges))
    surface = torch.stack(rows)
    i, j = _choose(surface, ridges)
    return HoldOut(
        float(length_scales[i]),
        float(ridges[j]),
        float(surface[i, j]),
        surface,
        tuple(map(float, length_scales)),
        tuple(map(float, ridges)),
    )


def _choose(surface: torch.Tensor, ridges: Sequence[float]) -> tuple[int, int]:
    """Return the place of the largest ridge whose score is as good as the least."""
    scores = surface.nan_to_num(nan=torch.inf)
    near = (scores <= (1 + ALIKE) * scores.min()) & scores.isfinite()
    order = torch.tensor(tuple(ridges)).to(scores)
    largest = torch.where(near, order, torch.zeros_like(scores)).max()
    best = int(torch.where(near & (order == largest), scores, torch.inf).argmin())
    return divmod(best, len(ridges))


def _scores(
    recipe: Recipe,
    features: FourierFeatures,
    q: torch.Tensor,
    targets: torch.Tensor,
    test: TrainingSet,
    ridges: Sequence[float],
) -> torch.Tensor:
    """Return the score of every ridge for one kernel, (R,)."""
    moment = moments(features, q, targets)
    readout = Spectrum.of(moment).readout(ridges)
    flat = readout.reshape(-1, features.count)
    total = q.new_zeros(len(ridges))
    for start in range(0, test.q.shape[0], CHUNK):
        rows = slice(start, start + CHUNK)
        z = features(test.q[rows]) - moment.mean_z
        found = (z @ flat.T).reshape(-1, *readout.shape[:2]).movedim(1, 0) + moment.mean_x
        truth = test.values[rows]
        score = relative_score(recipe.from_targets(found), truth, recipe.weights)
        total += score.square() * truth.shape[0]
    return (total / test.q.shape[0]).sqrt()
