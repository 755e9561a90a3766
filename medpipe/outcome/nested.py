"""Logits of networks that saw neither a case nor the test set, for a late fusion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import UsageError
from medpipe.outcome.folds import Folds

__all__ = ["nested_logits"]

Predict = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]


def nested_logits(folds: Folds, predict: Predict) -> NDArray[np.float64]:
    """Return logits for a late fusion from networks that saw neither case nor test set.

    For each fold one network learns from all other folds, and for each pair of folds one
    from all but the two: K + K (K - 1) / 2 in all, 15 for five folds. A pair serves both
    of its folds.

    Parameters
    ----------
    folds : Folds
        At least three.
    predict : callable
        Given the places of training cases and of other cases, trains a network with the
        former and returns the logits of the latter, shape (number of the latter,).

    Returns
    -------
    ndarray of float64, shape (number of folds, n)
        Row k is for the fusion that is tested on fold k. The logits of one plain
        cross-validation are ``rows[folds.fold_of, arange(n)]``.

    Raises
    ------
    UsageError
        If there are fewer than three folds, or `predict` returns another shape.
    """
    if len(folds) < 3:
        raise UsageError("nested logits need three folds", got=str(len(folds)))
    rows = np.full((len(folds), folds.n_cases), np.nan)
    fold_of = folds.fold_of

    def fill(left_out: tuple[int, ...]) -> None:
        cases = np.flatnonzero(np.isin(fold_of, left_out))
        found = np.asarray(predict(np.flatnonzero(~np.isin(fold_of, left_out)), cases), float)
        if found.shape != cases.shape:
            got = f"shape {found.shape}"
            raise UsageError("logits are of the wrong shape", expected=f"{cases.shape}", got=got)
        for k in left_out:
            # of a pair, fold k takes what is said of the other; alone, of itself
            wanted = fold_of[cases] != k if len(left_out) == 2 else fold_of[cases] == k
            rows[k, cases[wanted]] = found[wanted]

    for k in range(len(folds)):
        fill((k,))
        for j in range(k):
            fill((j, k))
    return rows
