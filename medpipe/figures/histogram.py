"""Numbers of an image for its report: range, percentiles, histogram, label volumes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["Statistics", "describe_values", "every_nth", "label_counts"]

MAX_SAMPLES = 8_000_000
N_BINS = 160
PERCENTS = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the values of an image are like; `percentiles` and counts ignore NaN and infinity.

    Attributes
    ----------
    n_voxels, n_nan, n_inf : int
    low, high, mean : float or None
        Exact over the finite voxels; None without any.
    percentiles : dict of str to float
        ``"p0.5"`` … ``"p99.5"``, of every `nth` voxel.
    edges, counts : list
        Histogram between p0.5 and p99.5 widened by 5 %, of every `nth` voxel.
    below, above : int
        Sampled voxels outside the edges.
    mode_share : float
        Share of sampled voxels that hold the most frequent value.
    distinct : int
        Number of different values among the sampled voxels, at most 1000.
    integer : bool
        Whether all sampled values are whole numbers.
    """

    n_voxels: int
    n_nan: int
    n_inf: int
    low: float | None
    high: float | None
    mean: float | None
    percentiles: dict[str, float]
    edges: list[float]
    counts: list[int]
    below: int
    above: int
    nth: int
    mode: float | None
    mode_share: float
    distinct: int
    integer: bool

    @property
    def constant(self) -> bool:
        """Whether every finite voxel holds one value."""
        return self.low is not None and self.low == self.high

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        share = 100 / self.n_voxels if self.n_voxels else 0.0
        return {
            "n_voxels": self.n_voxels,
            "nan_percent": self.n_nan * share,
            "inf_percent": self.n_inf * share,
            "min": self.low,
            "max": self.high,
            "mean": self.mean,
            "percentiles": self.percentiles,
            "histogram": {
                "edges": self.edges,
                "counts": self.counts,
                "below": self.below,
                "above": self.above,
                "every_nth_voxel": self.nth,
            },
            "most_frequent_value": self.mode,
            "most_frequent_percent": 100 * self.mode_share,
        }


def every_nth(shape: tuple[int, ...], limit: int = MAX_SAMPLES) -> int:
    """Return a stride that leaves about `limit` voxels and hits no axis' period."""
    n = math.prod(shape)
    if n <= limit:
        return 1
    wanted = math.ceil(n / limit)
    return next((p for p in _PRIMES if p >= wanted and all(s % p for s in shape)), wanted)


def describe_values(data: torch.Tensor) -> Statistics:
    """Measure an image of any shape on the device that it is on."""
    import torch

    flat = data.reshape(-1)
    nth = every_nth(tuple(data.shape))
    n_nan = n_inf = 0
    finite = flat
    # One finite sum proves that no voxel is NaN or infinite; that is the common case.
    if flat.numel() and not bool(torch.isfinite(flat.sum())):
        n_nan = int(torch.isnan(flat).sum())
        n_inf = int(torch.isinf(flat).sum())
        finite = flat[torch.isfinite(flat)]
    if finite.numel() == 0:
        return Statistics(flat.numel(), n_nan, n_inf, None, None, None, {}, [], [], 0, 0, nth,
                          None, 0.0, 0, False)  # fmt: skip
    low, high = (float(v) for v in torch.aminmax(finite))
    mean = _mean(finite)
    sample = finite[::nth]
    ordered = torch.sort(sample[:: every_nth(tuple(sample.shape), 1_000_000)]).values
    rank = torch.tensor(PERCENTS, dtype=torch.float64) / 100 * (ordered.numel() - 1)
    quantiles = ordered[rank.round().long().to(ordered.device)].tolist()
    percentiles = {f"p{p:g}": float(q) for p, q in zip(PERCENTS, quantiles, strict=True)}
    edges, counts, below, above = _histogram(sample, quantiles[0], quantiles[-1], low, high)
    values, repeats = torch.unique_consecutive(ordered, return_counts=True)
    top = int(repeats.argmax())
    return Statistics(
        n_voxels=flat.numel(),
        n_nan=n_nan,
        n_inf=n_inf,
        low=low,
        high=high,
        mean=mean,
        percentiles=percentiles,
        edges=edges,
        counts=counts,
        below=below,
        above=above,
        nth=nth,
        mode=float(values[top]),
        mode_share=float(repeats[top]) / ordered.numel(),
        distinct=min(int(values.numel()), 1000),
        integer=bool((ordered == ordered.round()).all()),
    )


def _mean(finite: torch.Tensor) -> float:
    """Mean in blocks: single precision inside a block, double across them (four times faster)."""
    block = 1 << 16
    whole = finite.numel() // block * block
    total = float(finite[:whole].reshape(-1, block).sum(1).double().sum())
    return (total + float(finite[whole:].double().sum())) / finite.numel()


def _histogram(
    sample: torch.Tensor, p_low: float, p_high: float, low: float, high: float
) -> tuple[list[float], list[int], int, int]:
    import torch

    margin = 0.05 * (p_high - p_low)
    first, last = max(low, p_low - margin), min(high, p_high + margin)
    if not last > first:
        first, last = (low, high) if high > low else (low - 0.5, low + 0.5)
    counts = torch.histc(sample, N_BINS, first, last)
    below, above = int((sample < first).sum()), int((sample > last).sum())
    edges = np.linspace(first, last, N_BINS + 1)
    return [float(e) for e in edges], [int(c) for c in counts.tolist()], below, above


def label_counts(labels: torch.Tensor) -> dict[int, int]:
    """Return the voxel count of every label value except 0; NaN counts as 0."""
    import torch

    whole = torch.nan_to_num(labels.reshape(-1), nan=0.0, posinf=0.0, neginf=0.0)
    whole = whole.round().to(torch.int32)
    low, high = (int(v) for v in torch.aminmax(whole)) if whole.numel() else (0, 0)
    if low >= 0 and high < 1 << 16:
        counts = torch.bincount(whole, minlength=1).tolist()
        pairs = enumerate(counts)
    else:
        values, repeats = torch.unique(whole, return_counts=True)
        pairs = zip(values.tolist(), repeats.tolist(), strict=True)  # type: ignore[assignment]
    return {int(v): int(c) for v, c in pairs if v != 0 and c > 0}
