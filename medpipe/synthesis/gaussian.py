"""A Gaussian of many numbers from few cases, and of some of them given what is known of a case.

The covariance has some principal directions and one variance for all others (probabilistic
principal components, Tipping and Bishop 1999, doi:10.1111/1467-9868.00196). It is never
formed: everything follows from the inner products of the cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medpipe.errors import InputError, UsageError
from medpipe.types import Json

__all__ = ["Gaussian", "KnownNumbers", "held_out_likelihood"]

CHUNK = 1 << 18
"""Columns that are multiplied at a time."""
_RANK = 1e-10
"""Variances below this share of the largest are none."""


@dataclass(frozen=True, eq=False)
class KnownNumbers:
    """What is known of the cases, jointly Gaussian with their scores.

    Attributes
    ----------
    names : tuple of str
    mean : Tensor (m,)
    covariance : Tensor (m, m)
    with_scores : Tensor (k, m)
        Covariance of scores and known numbers.
    low, high : Tensor (m,)
        The trained range.
    """

    names: tuple[str, ...] = ()
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    covariance: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    with_scores: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    low: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    high: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    @classmethod
    def fit(cls, table: Mapping[str, Any], scores: Tensor) -> KnownNumbers:
        """Return the numbers of a table (name → N values) with the scores (N, k) beside them.

        Raises
        ------
        UsageError
            If a column has another length, is not finite or constant, or follows from others.
        """
        if not table:
            return cls()
        columns = [_column(name, values, len(scores)) for name, values in table.items()]
        known = torch.stack(columns, 1).to(scores.device)
        mean = known.mean(0)
        centred = known - mean
        covariance = centred.T @ centred / len(known)
        deviation = covariance.diagonal().sqrt()
        if float(torch.linalg.eigvalsh(covariance / torch.outer(deviation, deviation))[0]) < 1e-9:
            raise UsageError(
                "a condition follows from the others", where=", ".join(table),
                hint="leave one of them out",
            )  # fmt: skip
        with_scores = (scores - scores.mean(0)).T @ centred / len(known)
        low, high = known.amin(0), known.amax(0)
        return cls(tuple(table), mean, covariance, with_scores, low, high)

    def given(self, row: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return by how much scores move (k,) and how much covariance they lose (k, k).

        Raises
        ------
        UsageError
            If a name is unknown or a value outside the trained range.
        """
        unknown = [name for name in row if name not in self.names]
        if unknown:
            raise UsageError(
                "the model has no such condition",
                expected=", ".join(self.names) or "none", got=", ".join(unknown),
            )  # fmt: skip
        at = [self.names.index(name) for name in row]
        for place, (name, value) in zip(at, row.items(), strict=True):
            low, high = float(self.low[place]), float(self.high[place])
            if not low <= value <= high:
                raise UsageError(
                    "a condition is outside what the model was trained on",
                    where=f"condition {name}", expected=f"{low:g} to {high:g}", got=f"{value:g}",
                    hint="choose a value of the trained range, or leave the condition out",
                )  # fmt: skip
        off = torch.tensor(list(row.values()), dtype=torch.float64, device=self.mean.device)
        off = off - self.mean[at]
        gain = torch.linalg.solve(self.covariance[at][:, at], self.with_scores[:, at].T).T
        return gain @ off, gain @ self.with_scores[:, at].T


def _column(name: str, values: Any, cases: int) -> Tensor:
    column = torch.as_tensor(values, dtype=torch.float64).flatten()
    if len(column) != cases:
        raise UsageError(
            "a condition has another number of cases", where=f"condition {name}",
            expected=str(cases), got=str(len(column)),
        )  # fmt: skip
    if not bool(column.isfinite().all()) or float(column.amax()) == float(column.amin()):
        raise UsageError(
            "a condition cannot be learned", where=f"condition {name}",
            expected="finite numbers that differ",
        )  # fmt: skip
    return column


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian with some principal directions.

    Attributes
    ----------
    mean : Tensor (D,)
    directions : Tensor (k, D)
        Orthonormal.
    variances : Tensor (k,) of float64
        Along the directions, largest first.
    residual : float
        Variance along every other direction.
    known : KnownNumbers
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    residual: float
    known: KnownNumbers = field(default_factory=KnownNumbers)

    @classmethod
    def fit(
        cls,
        rows: Tensor,
        components: int | float | str = "likelihood",
        *,
        known: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> Gaussian:
        """Return the Gaussian of cases.

        Parameters
        ----------
        rows : Tensor (N, D)
        components : int, float or "likelihood"
            How many directions are kept: a number, a share of the variance below 1, or as
            many as make cases that were left out most likely.
        known : mapping, optional
            Numbers that are known of each case, by name.
        seed : int
            Chooses which cases are left out together.

        Raises
        ------
        UsageError
            If there are fewer than three cases, no variance or no such number of directions.
        """
        mean = rows.mean(0, dtype=torch.float64).to(rows.dtype)
        centred = rows - mean
        gram = _inner(centred)
        values, vectors = _spectrum(gram / len(rows))
        count = _chosen(components, values, gram, rows.shape[1], seed)
        kept = values[:count]
        weights = vectors[:, :count] / (len(rows) * kept).sqrt()
        directions = weights.T.to(rows.dtype) @ centred
        left = values[count:].sum() / max(1, rows.shape[1] - count)
        scores = vectors[:, :count] * (len(rows) * kept).sqrt()
        return cls(mean, directions, kept, float(left), KnownNumbers.fit(known or {}, scores))

    def log_likelihood(self, rows: Tensor) -> Tensor:
        """Return the logarithm of the density at cases (N, D), in nats, shape (N,)."""
        centred = (rows - self.mean).double()
        scores = centred @ self.directions.double().T
        rest = (centred**2).sum(1) - (scores**2).sum(1)
        dimensions, count = rows.shape[1], len(self.variances)
        return -0.5 * (
            dimensions * math.log(2 * math.pi)
            + self.variances.log().sum()
            + (dimensions - count) * math.log(self.residual)
            + (scores**2 / self.variances).sum(1)
            + rest / self.residual
        )

    def sample(
        self, seeds: Sequence[int], rows: Sequence[Mapping[str, float]] | None = None
    ) -> Tensor:
        """Return cases (B, D), each from its own seed, along the principal directions.

        Parameters
        ----------
        seeds : sequence of int
        rows : sequence of mappings, optional
            What is known of each case; a number that is left out is drawn along.

        Raises
        ------
        UsageError
            See `KnownNumbers.given`, or if there are not as many rows as seeds.
        """
        if rows is not None and len(rows) != len(seeds):
            raise UsageError(
                "there are not as many conditions as seeds",
                expected=str(len(seeds)), got=str(len(rows)),
            )  # fmt: skip
        wanted = [{} for _ in seeds] if rows is None else [dict(row) for row in rows]
        roots: dict[tuple[tuple[str, float], ...], tuple[Tensor, Tensor]] = {}
        scores = []
        for seed, row in zip(seeds, wanted, strict=True):
            key = tuple(row.items())
            if key not in roots:
                roots[key] = self._conditional(row)
            moved, root = roots[key]
            scores.append(moved + root @ self._drawn(seed))
        return self.mean + torch.stack(scores).to(self.mean.dtype) @ self.directions

    def _drawn(self, seed: int) -> Tensor:
        """Return standard normal numbers of a seed, drawn on the host."""
        source = torch.Generator().manual_seed(seed)
        drawn = torch.randn(len(self.variances), dtype=torch.float64, generator=source)
        return drawn.to(self.variances.device)

    def _conditional(self, row: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return mean (k,) and a root (k, k) of the covariance of scores, given what is known."""
        if not row:
            return torch.zeros_like(self.variances), self.variances.sqrt().diag()
        moved, lost = self.known.given(row)
        values, vectors = torch.linalg.eigh(self.variances.diag() - lost)
        return moved, vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T

    def state(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Return tensors and JSON values that `from_state` takes."""
        tensors = {"mean": self.mean, "directions": self.directions, "variances": self.variances}
        for name in ("mean", "covariance", "with_scores", "low", "high"):
            tensors[f"known.{name}"] = getattr(self.known, name)
        return tensors, {"residual": self.residual, "known": list(self.known.names)}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Gaussian:
        """Return what `state` described; InputError for anything else."""
        try:
            parts = {
                name: tensors[f"known.{name}"]
                for name in ("mean", "covariance", "with_scores", "low", "high")
            }
            known = KnownNumbers(tuple(facts["known"]), **parts)
            mean, directions = tensors["mean"], tensors["directions"]
            fits = directions.shape == (len(tensors["variances"]), len(mean))
            fits &= known.with_scores.numel() == len(directions) * len(known.names)
            residual = float(facts["residual"])
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise InputError("the weights are not those of a Gaussian")
        return cls(mean, directions, tensors["variances"], residual, known)


def held_out_likelihood(gram: Tensor, dimensions: int, folds: int = 5, seed: int = 0) -> Tensor:
    """Return the mean log-likelihood of cases left out, for 0, 1, 2 ... directions.

    Parameters
    ----------
    gram : Tensor (N, N) of float64
        Inner products of the cases.
    dimensions : int
        Numbers of a case.
    folds : int
        How many parts are left out in turn.
    seed : int
        Chooses the parts.

    Returns
    -------
    Tensor (K,)
        In nats per case.
    """
    order = torch.randperm(len(gram), generator=torch.Generator().manual_seed(seed))
    order = order.to(gram.device)
    parts = [order[i::folds] for i in range(min(folds, len(gram)))]
    found = [
        _likelihoods(gram, torch.cat(parts[:i] + parts[i + 1 :]), part, dimensions)
        for i, part in enumerate(parts)
    ]
    shortest = min(one.shape[1] for one in found)
    return torch.cat([one[:, :shortest] for one in found]).mean(0)


def _likelihoods(gram: Tensor, train: Tensor, test: Tensor, dimensions: int) -> Tensor:
    """Return the log-likelihood of each case left out for each number of directions."""
    n = len(train)
    own, cross = gram[train][:, train], gram[test][:, train]
    rows, whole = own.mean(1), own.mean()
    values, vectors = _spectrum((own - rows - rows[:, None] + whole) / n)
    most = len(values) - 1  # one is left for the residual
    projected = (cross - cross.mean(1, keepdim=True) - rows + whole) @ vectors
    scores = projected / (n * values).sqrt()
    norms = gram.diagonal()[test] - 2 * cross.mean(1) + whole
    counts = torch.arange(most + 1, device=gram.device, dtype=torch.float64)
    head = torch.zeros(1, dtype=torch.float64, device=gram.device)
    left = (values.sum() - torch.cat([head, values.cumsum(0)[:most]])) / (dimensions - counts)
    logs = torch.cat([head, values.log().cumsum(0)[:most]])
    side = torch.zeros(len(test), 1, dtype=torch.float64, device=gram.device)
    fitted = torch.cat([side, (scores**2 / values).cumsum(1)[:, :most]], 1)
    rest = norms[:, None] - torch.cat([side, (scores**2).cumsum(1)[:, :most]], 1)
    constant = dimensions * math.log(2 * math.pi)
    return -0.5 * (constant + logs + (dimensions - counts) * left.log() + fitted + rest / left)


def _inner(rows: Tensor) -> Tensor:
    """Return the inner products of rows in float64."""
    out = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(CHUNK, 1):
        wide = part.double()
        out += wide @ wide.T
    return out


def _spectrum(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues above none, largest first, and their vectors."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    rank = int((values > _RANK * values[0]).sum()) if float(values[0]) > 0 else 0
    return values[:rank], vectors[:, :rank]


def _chosen(
    components: int | float | str, values: Tensor, gram: Tensor, dimensions: int, seed: int
) -> int:
    """Return how many directions are kept."""
    if len(gram) < 3 or len(values) < 2:
        raise UsageError("too few cases that differ", expected="three or more", got=str(len(gram)))
    most = len(values) - 1
    if components == "likelihood":
        return min(most, int(held_out_likelihood(gram, dimensions, seed=seed).argmax()))
    if isinstance(components, int) and 1 <= components <= most:
        return components
    if isinstance(components, float) and 0 < components < 1:
        share = values.cumsum(0) / values.sum()
        return min(most, int((share < components).sum()) + 1)
    raise UsageError(
        "no such number of components",
        expected=f"1 to {most}, a share below 1, or likelihood", got=repr(components),
    )  # fmt: skip
