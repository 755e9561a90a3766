"""Fréchet distance between normal distributions of features (FID)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from medpipe.errors import InputError
from medpipe.stats.interval import check_level
from medpipe.synthesis.metrics._figures import Floats, pair_of, to_host
from medpipe.synthesis.metrics.floor import Indices, WithFloor, against_floor

__all__ = ["frechet", "frechet_of_moments"]


def frechet(
    real: torch.Tensor | ArrayLike,
    synthetic: torch.Tensor | ArrayLike,
    *,
    splits: int = 50,
    seed: int = 0,
    level: float = 0.95,
) -> WithFloor:
    """Return the Fréchet distance at k cases, with the floor of real against real at k cases.

    Its bias grows with the number of features over the number of cases: a value is read
    against its floor, and never against a value of another number of cases. With less than
    1,000 cases `kid` says more.

    Parameters
    ----------
    real, synthetic : Tensor or array, shape (n, d) and (m, d)
        Features of one network, of four or more cases each.
    splits, seed : int
        Random halves (see `medpipe.synthesis.metrics.floor`) and their seed.
    level : float
        Coverage.

    Raises
    ------
    InputError
        If the features cannot be compared.
    UsageError
        For a level outside 0..1 or less than two splits.

    References
    ----------
    Heusel et al. 2017, arXiv:1706.08500; Dowson and Landau 1982,
    doi:10.1016/0047-259X(82)90077-X.
    """
    check_level(level)
    a, b = pair_of(real, synthetic)
    features = _in_their_span(torch.cat([a, b]))

    def statistic(x: Indices, y: Indices) -> float:
        return frechet_of_moments(*_moments(features[x]), *_moments(features[y]))

    (found,) = against_floor(
        statistic, len(a), len(b), splits=splits, seed=seed, level=level, bounds=(0.0, np.inf)
    )
    return found


def frechet_of_moments(
    mean_a: ArrayLike, covariance_a: ArrayLike, mean_b: ArrayLike, covariance_b: ArrayLike
) -> float:
    """Return the squared Fréchet distance of two normal distributions.

    The trace of the root of a product of covariances is the sum of the roots of the
    eigenvalues of a symmetric product: real, and no root of a singular matrix is taken.

    Parameters
    ----------
    mean_a, mean_b : array (d,)
    covariance_a, covariance_b : array (d, d)

    Raises
    ------
    InputError
        If the shapes do not fit.
    """
    means = [np.asarray(m, np.float64) for m in (mean_a, mean_b)]
    first, second = (np.asarray(c, np.float64) for c in (covariance_a, covariance_b))
    d = means[0].size
    if means[0].shape != (d,) or means[1].shape != (d,) or {first.shape, second.shape} != {(d, d)}:
        raise InputError("the moments do not fit", expected="two means (d,), covariances (d, d)")
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0))
    # root.T @ second @ root has the eigenvalues of the product
    shared = np.linalg.eigvalsh(root.T @ second @ root)
    both = np.sqrt(np.maximum(shared, 0)).sum()
    gap = means[0] - means[1]
    return max(float(gap @ gap + np.trace(first) + np.trace(second) - 2 * both), 0.0)


def _moments(features: Floats) -> tuple[Floats, Floats]:
    mean = features.mean(axis=0)
    away = features - mean
    return mean, away.T @ away / (len(features) - 1)


def _in_their_span(features: torch.Tensor) -> Floats:
    """Return coordinates of features (n, d) in an orthonormal basis of their span.

    A rotation does not change the distance, and n cases have at most n coordinates.
    """
    centred = features - features.mean(dim=0)
    if centred.shape[1] > centred.shape[0]:
        u, s, _ = torch.linalg.svd(centred, full_matrices=False)
        centred = u * s
    return to_host(centred)
