"""Distances between cases: images, latents or features."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import special

from medpipe.errors import InputError
from medpipe.synthesis.metrics._figures import Floats, flat, to_host

__all__ = ["expected_nearest", "nearest_of_subset", "rms_distances", "without_self"]

HELD = 8_000_000
"""Values of both sets that are held in float64 at once: 64 MB."""


def rms_distances(first: torch.Tensor | ArrayLike, second: torch.Tensor | ArrayLike) -> Floats:
    """Return root mean square differences (n, m) of all pairs of cases.

    Differences are taken before they are squared, so that a copy is at 0 and a near copy is
    told from it. Works in pieces along the values, on the device of `first`.

    Parameters
    ----------
    first, second : Tensor or array, shape (n, ...) and (m, ...)
        Images, latents or features, with as many values a case.

    Raises
    ------
    InputError
        If the cases do not compare.
    """
    a = flat(first, "the first cases", 1)
    b = flat(second, "the second cases", 1).to(a.device)
    width = a.shape[1]
    if b.shape[1] != width:
        raise InputError(
            "the cases of two sets have different sizes",
            expected=f"{width} values",
            got=str(b.shape[1]),
        )
    squares = torch.zeros((len(a), len(b)), dtype=torch.float64, device=a.device)
    step = max(1, HELD // (len(a) + len(b)))
    for start in range(0, width, step):
        parts = [t[:, start : start + step].to(torch.float64) for t in (a, b)]
        exact = "donot_use_mm_for_euclid_dist"
        squares += torch.cdist(parts[0], parts[1], compute_mode=exact).square_()
    return to_host((squares / width).sqrt_())


def without_self(distances: Floats) -> Floats:
    """Return distances (n, n - 1) of cases to the others of their set, of all (n, n)."""
    n = len(distances)
    return distances[~np.eye(n, dtype=bool)].reshape(n, n - 1)


def expected_nearest(distances: Floats, size: int) -> Floats:
    """Return the mean distance (n,) to the nearest of `size` references drawn at random.

    Exact, without drawing: of m references the j-th nearest is the nearest of a subset in
    C(m - j, size - 1) of the C(m, size) subsets.

    Parameters
    ----------
    distances : array (n, m)
    size : int
        1 to m.
    """
    return np.sort(distances, axis=1) @ nearest_of_subset(distances.shape[1], size)


def nearest_of_subset(count: int, size: int) -> Floats:
    """Return the probability (count,) that the j-th nearest is the nearest of a subset.

    Parameters
    ----------
    count : int
        References.
    size : int
        Of them in a subset drawn at random, 1 to `count`.
    """
    further = np.arange(count - 1, -1, -1.0)
    possible = further >= size - 1
    log = _log_choose(np.where(possible, further, size - 1), size - 1.0)
    return np.where(possible, np.exp(log - _log_choose(np.float64(count), float(size))), 0.0)


def _log_choose(n: Floats | np.float64, k: float) -> Floats:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
