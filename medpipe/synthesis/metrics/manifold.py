"""Fidelity and diversity by nearest neighbours: precision, recall, density, coverage."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from medpipe.stats.interval import check_level
from medpipe.synthesis.metrics._figures import Floats, check_count, pair_of
from medpipe.synthesis.metrics.distances import rms_distances
from medpipe.synthesis.metrics.floor import Indices, WithFloor, against_floor

__all__ = ["NAMES", "neighbour_scores", "precision_recall"]

NAMES = ("precision", "recall", "density", "coverage")


def precision_recall(
    real: torch.Tensor | ArrayLike,
    synthetic: torch.Tensor | ArrayLike,
    *,
    neighbours: int = 5,
    splits: int = 100,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, WithFloor]:
    """Return precision, recall, density and coverage, each with the floor of real halves.

    Around each case lies a ball up to its `neighbours`-th nearest neighbour in its own set.
    Precision is the share of synthetic cases in a ball of a real one, recall that of real
    cases in a ball of a synthetic one, density the mean number of real balls that a synthetic
    case is in over `neighbours` (above 1 where real cases are dense), coverage the share of
    real cases whose ball holds a synthetic one. A set that repeats few cases has low recall
    and coverage; one that copies has high values of all.

    Parameters
    ----------
    real, synthetic : Tensor or array, shape (n, d) and (m, d)
        Features of one network.
    neighbours : int
        Both sets need more than twice as many cases.
    splits, seed : int
        Random halves (see `medpipe.synthesis.metrics.floor`) and their seed.
    level : float
        Coverage of the intervals.

    Returns
    -------
    dict
        By name, in the order above.

    Raises
    ------
    InputError
        If the features cannot be compared, or are of too few cases.
    UsageError
        For a level outside 0..1, no neighbours or less than two splits.

    References
    ----------
    Kynkäänniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797.
    """
    check_level(level)
    check_count(neighbours, "neighbours")
    a, b = pair_of(real, synthetic)
    pooled = torch.cat([a, b])
    distance = rms_distances(pooled, pooled)

    def statistic(x: Indices, y: Indices) -> Floats:
        within = distance[np.ix_(x, x)], distance[np.ix_(y, y)]
        return neighbour_scores(*within, distance[np.ix_(x, y)], neighbours)

    found = against_floor(
        statistic,
        len(a),
        len(b),
        splits=splits,
        seed=seed,
        level=level,
        least=neighbours + 1,
        bounds=(0.0, np.inf),
    )
    return {name: _cut(f) if name != "density" else f for name, f in zip(NAMES, found, strict=True)}


def neighbour_scores(real: Floats, synthetic: Floats, between: Floats, neighbours: int) -> Floats:
    """Return precision, recall, density and coverage of distances.

    Parameters
    ----------
    real, synthetic : array (n, n) and (m, m)
        Distances within each set.
    between : array (n, m)
        Real to synthetic.
    neighbours : int
        Below n and m.
    """
    # the nearest to a case is the case itself
    real_radius = np.partition(real, neighbours, axis=1)[:, neighbours]
    made_radius = np.partition(synthetic, neighbours, axis=1)[:, neighbours]
    in_real = between <= real_radius[:, None]
    in_made = between <= made_radius[None, :]
    return np.array(
        [
            in_real.any(axis=0).mean(),
            in_made.any(axis=1).mean(),
            in_real.sum(axis=0).mean() / neighbours,
            in_real.any(axis=1).mean(),
        ]
    )


def _cut(found: WithFloor) -> WithFloor:
    """Return a share with its interval inside 0..1."""
    record = found.figure.to_dict()
    record["high"] = min(record["high"], 1.0)
    return WithFloor(type(found.figure).from_dict(record), found.floor)
