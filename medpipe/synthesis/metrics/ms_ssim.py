"""Multi-scale structural similarity of pairs of volumes: how alike the cases of a set are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional

from medpipe.errors import InputError, UsageError
from medpipe.stats.interval import Interval, check_level
from medpipe.synthesis.metrics._figures import Floats, check_count, flat, symmetric, to_host
from medpipe.synthesis.metrics.floor import WithFloor

__all__ = ["SsimScales", "ms_ssim", "ms_ssim_pairs", "ssim_scales"]

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
LARGEST, SMALLEST = 11, 5
SIGMA = 1.5
K1, K2 = 0.01, 0.03
HELD = 8_000_000
"""Voxels of one side of the pairs that are compared at once: 32 MB."""


@dataclass(frozen=True)
class SsimScales:
    """Window and scales that fit a size of volume.

    Attributes
    ----------
    kernel : int
        Width of the Gaussian window in voxels, odd; its sigma is 1.5.
    weights : tuple of float
        One for each scale, the finest first.
    """

    kernel: int
    weights: tuple[float, ...]

    def text(self) -> str:
        """Return how the method is named beside a figure."""
        return f"MS-SSIM, {len(self.weights)} scales, window {self.kernel}"


def ssim_scales(shape: Sequence[int]) -> SsimScales:
    """Return the published five scales, or as many as a window of 5 voxels fits in.

    The window is the largest up to 11 that fits the coarsest scale. The weights of the scales
    that remain are raised to the same sum. Figures of different scales do not compare.

    Raises
    ------
    InputError
        If not even one scale fits.
    """
    least = min(shape)
    for count in range(len(WEIGHTS), 0, -1):
        coarsest = least // 2 ** (count - 1)
        if coarsest >= SMALLEST:
            kernel = min(LARGEST, coarsest - (coarsest + 1) % 2)
            kept = np.array(WEIGHTS[:count])
            weights = kept * (sum(WEIGHTS) / kept.sum())
            return SsimScales(kernel, tuple(float(w) for w in weights))
    raise InputError(
        "the volumes are too small for a structural similarity",
        expected=f"{SMALLEST} voxels or more along each axis",
        got="x".join(str(s) for s in shape),
    )


def ms_ssim(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    data_range: float = 1.0,
    scales: SsimScales | None = None,
) -> torch.Tensor:
    """Return the multi-scale structural similarity (B,) of pairs of volumes.

    Parameters
    ----------
    first, second : Tensor, shape (B, I, J, K)
    data_range : float
        Difference between the largest and the smallest value that voxels can have.
    scales : SsimScales, optional
        By default those of `ssim_scales`.

    Raises
    ------
    InputError
        If the shapes differ or are too small.
    UsageError
        For a range that is not above 0.

    References
    ----------
    Wang, Simoncelli and Bovik 2003, doi:10.1109/ACSSC.2003.1292216.
    """
    if first.shape != second.shape or first.ndim != 4:
        raise InputError(
            "pairs of volumes have two shapes",
            expected="(B, I, J, K) of both",
            got=f"{tuple(first.shape)} and {tuple(second.shape)}",
        )
    if not data_range > 0:
        raise UsageError("the range of values is wrong", expected="above 0", got=f"{data_range:g}")
    chosen = scales or ssim_scales(first.shape[1:])
    weights = torch.as_tensor(_window(chosen.kernel), dtype=torch.float32).tolist()
    real = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    x, y = first.to(real)[:, None], second.to(real)[:, None]
    out = torch.ones(len(x), dtype=real, device=x.device)
    last = len(chosen.weights) - 1
    for scale, weight in enumerate(chosen.weights):
        luminance, contrast = _similarity(x, y, weights, data_range)
        seen = luminance * contrast if scale == last else contrast
        # a negative mean has no power; the published product starts at 0
        out = out * seen.flatten(1).mean(dim=1).relu() ** weight
        if scale < last:
            x, y = functional.avg_pool3d(x, 2), functional.avg_pool3d(y, 2)
    return out


def _similarity(
    x: torch.Tensor, y: torch.Tensor, window: list[float], data_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return luminance and contrast-structure maps of (B, 1, I, J, K)."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    # around the mean of a pair, so that little is lost where products of means are taken off
    middle = (x + y).mean(dim=(1, 2, 3, 4)) / 2
    x, y = (v - middle[:, None, None, None, None] for v in (x, y))
    fields = torch.cat([x, y, x * x + y * y, x * y], dim=1)
    for axis in (2, 3, 4):
        fields = _weighted(fields, axis, window)
    mean_x, mean_y, squares, product = fields.unbind(dim=1)
    spread = squares - mean_x * mean_x - mean_y * mean_y
    contrast = (2 * (product - mean_x * mean_y) + c2) / (spread + c2)
    mean_x, mean_y = (v + middle[:, None, None, None] for v in (mean_x, mean_y))
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1), contrast


def _weighted(values: torch.Tensor, axis: int, window: list[float]) -> torch.Tensor:
    """Return sums of shifted copies along an axis, where the window fits."""
    size = values.shape[axis] - len(window) + 1
    out = values.narrow(axis, 0, size) * window[0]
    for shift, weight in enumerate(window[1:], start=1):
        out.add_(values.narrow(axis, shift, size), alpha=weight)
    return out


def _window(size: int) -> Floats:
    away = np.arange(size) - (size - 1) / 2
    bell = np.exp(-((away / SIGMA) ** 2) / 2)
    return bell / bell.sum()


def ms_ssim_pairs(
    real: torch.Tensor | ArrayLike,
    synthetic: torch.Tensor | ArrayLike,
    *,
    pairs: int = 500,
    data_range: float = 1.0,
    scales: SsimScales | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> WithFloor:
    """Return the mean similarity of pairs within the synthetic set, and within the real one.

    A set whose cases are more alike than real ones are has lost diversity. The interval of
    each mean counts that two pairs which share a case are not independent.

    Parameters
    ----------
    real, synthetic : Tensor or array, shape (n, I, J, K) and (m, I, J, K)
    pairs : int
        Drawn from each set, all if there are not more.
    data_range, scales
        As in `ms_ssim`.
    seed : int
        Of the choice of pairs.
    level : float
        Coverage.

    Returns
    -------
    WithFloor
        The floor is the mean of real pairs, with an interval of the same kind.

    Raises
    ------
    InputError
        If the volumes do not compare, or a set has less than four.
    UsageError
        For a level outside 0..1, a wrong range or no pairs.

    References
    ----------
    Fafchamps and Gubert 2007, doi:10.1016/j.jdeveco.2006.05.005 (variance of pairs).
    """
    check_level(level)
    check_count(pairs, "pairs", 2)
    sets = []
    for values, name in ((synthetic, "the synthetic volumes"), (real, "the real volumes")):
        tensor = torch.as_tensor(values)
        flat(tensor, name, 4)
        sets.append(tensor)
    if sets[0].ndim != 4 or sets[0].shape[1:] != sets[1].shape[1:]:
        raise InputError(
            "both sets need volumes of one shape",
            expected="(n, I, J, K)",
            got=f"{tuple(sets[1].shape)} and {tuple(sets[0].shape)}",
        )
    chosen = scales or ssim_scales(sets[0].shape[1:])
    figures = [_mean_of_pairs(s, pairs, data_range, chosen, seed, level) for s in sets]
    return WithFloor(figures[0], figures[1])


def _mean_of_pairs(
    volumes: torch.Tensor,
    pairs: int,
    data_range: float,
    scales: SsimScales,
    seed: int,
    level: float,
) -> Interval:
    chosen = _draw_pairs(len(volumes), pairs, seed)
    block = max(1, HELD // volumes[0].numel())
    found = [
        to_host(ms_ssim(volumes[a], volumes[b], data_range=data_range, scales=scales))
        for a, b in (
            torch.as_tensor(chosen[i : i + block], device=volumes.device).unbind(dim=1)
            for i in range(0, len(chosen), block)
        )
    ]
    values, n = np.concatenate(found), len(volumes)
    method = f"{scales.text()}; {len(chosen)} pairs, dyadic variance"
    se = _dyadic_error(values, chosen, n)
    return symmetric(float(values.mean()), se, n, method, level=level, df=n - 1, bounds=(0.0, 1.0))


def _draw_pairs(n: int, pairs: int, seed: int) -> NDArray[np.int64]:
    """Return distinct pairs (P, 2), each case in about as many as every other."""
    every = np.stack(np.triu_indices(n, 1), axis=1)
    if pairs >= len(every):
        return every
    generator = np.random.default_rng(seed)
    # rounds of neighbours on a circle of shuffled cases: distinct distances, distinct pairs
    order = generator.permutation(n)
    shifts = generator.permutation(np.arange(1, (n - 1) // 2 + 1))
    found = np.concatenate([np.stack([order, np.roll(order, -s)], axis=1) for s in shifts])
    if len(found) < pairs:
        # opposite cases of an even circle
        found = np.concatenate([found, np.stack([order[: n // 2], order[n // 2 :]], axis=1)])
    return found[:pairs]


def _dyadic_error(values: Floats, pairs: NDArray[np.int64], n: int) -> float:
    """Return the standard error of a mean over pairs, of which some share a case."""
    away = values - values.mean()
    by_case = np.bincount(pairs[:, 0], away, n) + np.bincount(pairs[:, 1], away, n)
    shared = float((by_case**2).sum() - (away**2).sum()) / len(values) ** 2
    alone = float((away**2).sum()) / len(values) ** 2
    return float(np.sqrt(max(shared, alone) * n / (n - 1)))
