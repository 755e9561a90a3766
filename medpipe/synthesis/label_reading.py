"""What the labels of a volume say of its conditions: how near it is to what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medpipe.synthesis.conditions import Conditions
from medpipe.types import Json

__all__ = ["LabelReading", "label_sizes"]

_ARRAYS = ("weights", "errors", "spreads")
RIDGE = 1e-3
"""Penalty of the regression, of sizes of unit spread, per volume."""
LEAST_ERROR = 0.05
"""Of the spread of a condition: no volume is asked to be nearer than this."""
SHOWN = 0.5
"""Error, of the spread of a condition, up to which labels show it well enough to correct it."""


@dataclass(frozen=True, eq=False)
class LabelReading:
    """A regression of continuous conditions on the sizes of the labelled regions.

    Parameters
    ----------
    names : tuple of str
        The conditions that it reads.
    weights : array (1 + regions, conditions)
        Of 1 and of the number of voxels of each label from 1 up.
    errors : array (conditions,)
        Standard deviation of what is read about what is true. A condition that labels do not
        show has the spread of the condition itself, and hardly counts.
    spreads : array (conditions,)
        Standard deviation of the conditions themselves.
    """

    names: tuple[str, ...]
    weights: NDArray[np.float64]
    errors: NDArray[np.float64]
    spreads: NDArray[np.float64]

    @classmethod
    def fit(
        cls, sizes: NDArray[np.float64], rows: Sequence[Mapping[str, Any]], conditions: Conditions
    ) -> LabelReading | None:
        """Learn from real cases; None if there is nothing to learn.

        Parameters
        ----------
        sizes : array (cases, regions)
            From `label_sizes`.
        rows : sequence of mapping
            Conditions of each case by name.
        conditions : Conditions
        """
        names = tuple(c.name for c in conditions.items if c.kind == "continuous")
        kept, columns, errors, spreads = [], [], [], []
        for name in names:
            known = np.array([_number(row.get(name)) for row in rows])
            use = np.isfinite(known)
            if use.sum() < 3 or not known[use].std() > 0:
                continue
            weights = _regression(sizes[use], known[use])
            read = weights[0] + sizes[use] @ weights[1:]
            spread = known[use].std()
            kept.append(name)
            columns.append(weights)
            errors.append(max((read - known[use]).std(), LEAST_ERROR * spread))
            spreads.append(spread)
        if not kept:
            return None
        return cls(tuple(kept), np.stack(columns, 1), np.array(errors), np.array(spreads))

    def of_labeller(self, seen: NDArray[np.float64], true: NDArray[np.float64]) -> LabelReading:
        """Return what reads the labels of a labeller: sizes are divided by its bias.

        Parameters
        ----------
        seen, true : array (cases, regions)
            Sizes of what it labels in real images, and of their true labels. A region that
            it does not see at all is read as it is.
        """
        seen, true = seen.sum(0), true.sum(0)
        factors = np.where((seen > 0) & (true > 0), true / np.maximum(seen, 1), 1.0)
        return replace(self, weights=self.weights * np.append(1.0, factors)[:, None])

    def read(self, labels: Tensor) -> dict[str, float]:
        """Return the conditions that a label map (1, I, J, K) shows."""
        sizes = label_sizes(labels, len(self.weights))
        found = self.weights[0] + sizes @ self.weights[1:]
        return dict(zip(self.names, found.tolist(), strict=True))

    def distance(self, labels: Tensor, row: Mapping[str, Any]) -> float:
        """Return how far a label map is from a row, in errors; what is not asked is free."""
        missing, asked = self._missing(labels, row)
        return float(np.sqrt(np.sum((missing / self.errors)[asked] ** 2)))

    def lacking(self, labels: Tensor, row: Mapping[str, Any]) -> dict[str, float]:
        """Return what is asked and not there, in spreads, of conditions that labels show."""
        missing, _ = self._missing(labels, row)
        lack = dict(zip(self.names, (missing / self.spreads).tolist(), strict=True))
        return {name: lack[name] for name in self.shown(row)}

    def shown(self, row: Mapping[str, Any]) -> list[str]:
        """Return the conditions that a row asks for and that labels show."""
        clear = self.errors <= SHOWN * self.spreads
        asked = (not np.isnan(_number(row.get(name))) for name in self.names)
        return [n for n, a, s in zip(self.names, asked, clear, strict=True) if a and s]

    def _missing(
        self, labels: Tensor, row: Mapping[str, Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return what is asked less what is read, and which conditions are asked for."""
        asked = np.array([_number(row.get(name)) for name in self.names])
        return asked - np.array(list(self.read(labels).values())), ~np.isnan(asked)

    def to_json(self) -> dict[str, Json]:
        """Return it as JSON values."""
        return {
            "names": list(self.names),
            "weights": self.weights.tolist(),
            "errors": self.errors.tolist(),
            "spreads": self.spreads.tolist(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LabelReading:
        """Return what `to_json` wrote."""
        names = tuple(map(str, record["names"]))
        return cls(names, *(np.array(record[k], np.float64) for k in _ARRAYS))


def _number(value: Any) -> float:
    """Return what is known of a condition as a number, NaN for nothing."""
    return float("nan") if value in (None, "") else float(value)


def label_sizes(labels: Tensor, classes: int) -> NDArray[np.float64]:
    """Return the number of voxels (classes - 1,) of each label from 1 up.

    Parameters
    ----------
    labels : integer Tensor, any shape
    classes : int
        Background included.
    """
    counts = torch.bincount(labels.flatten().long(), minlength=classes)[1:classes]
    return np.array(counts.tolist(), np.float64)


def _regression(sizes: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights of 1 and of the sizes."""
    mean, spread = sizes.mean(0), sizes.std(0)
    plain = (sizes - mean) / np.where(spread > 0, spread, 1.0)
    penalty = RIDGE * len(plain) * np.eye(plain.shape[1])
    slopes = np.linalg.solve(plain.T @ plain + penalty, plain.T @ (known - known.mean()))
    slopes = slopes / np.where(spread > 0, spread, 1.0)
    return np.concatenate([[known.mean() - mean @ slopes], slopes])
