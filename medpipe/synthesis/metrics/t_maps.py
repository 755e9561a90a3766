"""Voxelwise comparison of two sets of volumes: Welch's t after re-alignment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import ArrayLike

from medpipe.errors import InputError, UsageError
from medpipe.stats.interval import check_level
from medpipe.steps._sampling import sample_grid
from medpipe.steps.registration import register_images
from medpipe.synthesis.metrics._figures import Floats, check_count, flat, symmetric, to_host
from medpipe.synthesis.metrics._matching import Matcher
from medpipe.synthesis.metrics.floor import Indices, WithFloor, draw_halves, floor_figure
from medpipe.types import Affine

__all__ = ["Realigned", "TMapShare", "realign", "t_map", "t_map_share"]

Alignment = Literal["centre", "shift", "rigid"]
FIELD_MM = 64.0
BINS = 256
HELD = 8_000_000
"""Values of one block of voxels: 64 MB."""


@dataclass(frozen=True)
class TMapShare:
    """How much of a volume differs between two sets.

    Attributes
    ----------
    share : WithFloor
        Share of voxels with \\|t\\| above the threshold, of halves of both sets; the floor is
        that of real halves.
    all_cases : float
        The share with all cases of both sets: more cases show smaller differences.
    p : float
        Probability of a share as large as `all_cases` if the sets are exchangeable, by
        permutation of their cases.
    threshold : float
    voxels, permutations : int
        Voxels that were compared: those of the mask that differ between any cases.
    """

    share: WithFloor
    all_cases: float
    p: float
    threshold: float
    voxels: int
    permutations: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


class Realigned(NamedTuple):
    """Both sets on one grid, and the voxels (I, J, K) that lie inside all volumes."""

    real: torch.Tensor
    synthetic: torch.Tensor
    inside: torch.Tensor


def realign(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    *,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    alignment: Alignment = "rigid",
) -> Realigned:
    """Align each volume of both sets to the mean of the real ones.

    A generator trained with shifts that are no condition draws shifted volumes; without
    re-alignment that is read as a difference of anatomy. Both sets are treated alike and each
    volume is interpolated once. Compare the voxels `inside` alone: at the border values of
    moved volumes are made up.

    Parameters
    ----------
    real, synthetic : Tensor, shape (n, I, J, K) and (m, I, J, K)
    spacing_mm : sequence of 3 floats
    alignment : {"rigid", "shift", "centre"}
        "centre" brings the centre of mass of what is brighter than the background (Otsu's
        threshold) to the middle of the grid: for objects that lie inside it. "shift" moves
        each volume to where it correlates best with the mean of the real ones: for volumes
        that tissue fills, whose centre of mass does not move with it. "rigid" begins as
        "centre" and turns and moves each onto the mean of the real ones; a second a volume.

    Raises
    ------
    InputError
        If the volumes do not compare.
    StepError
        If a volume cannot be registered.
    UsageError
        For another alignment or a wrong spacing.
    """
    if alignment not in get_args(Alignment):
        raise UsageError(
            "unknown alignment", expected="rigid, shift or centre", got=repr(alignment)
        )
    if len(spacing_mm) != 3 or not min(spacing_mm) > 0:
        raise UsageError("the spacing is wrong", expected="three sizes in mm above 0")
    _check_volumes(real, synthetic, 1)
    grid: Affine = np.diag([*(float(s) for s in spacing_mm), 1.0])
    sets = [s if s.is_floating_point() else s.float() for s in (real, synthetic.to(real.device))]
    if alignment == "shift":
        places = _matched(sets[0], sets[1], grid)
    else:
        places = [[_centred(volume, grid) for volume in s] for s in sets]
    if alignment == "rigid":
        centred = [_placed(v, p, grid)[0] for v, p in zip(sets[0], places[0], strict=True)]
        fixed = torch.stack(centred).mean(dim=0)
        places = [
            [_registered(v, p, fixed, grid) for v, p in zip(s, at, strict=True)]
            for s, at in zip(sets, places, strict=True)
        ]
    inside = torch.ones(real.shape[1:], dtype=torch.bool, device=real.device)
    done = []
    for s, at in zip(sets, places, strict=True):
        moved = []
        for volume, place in zip(s, at, strict=True):
            values, seen = _placed(volume, place, grid)
            inside &= seen
            moved.append(values)
        done.append(torch.stack(moved))
    return Realigned(done[0], done[1], inside)


def _centred(volume: torch.Tensor, grid: Affine) -> Affine:
    """Return the affine that puts the bright part of a volume in the middle of the grid."""
    bright = (volume - _threshold(volume)).clamp_(min=0).to(torch.float64)
    total = bright.sum()
    middle = []
    for axis, size in enumerate(volume.shape):
        others = [a for a in range(3) if a != axis]
        along = torch.arange(size, dtype=torch.float64, device=volume.device)
        place = (bright.sum(dim=others) * along).sum() / total
        middle.append(torch.where(total > 0, place, (size - 1) / 2))
    away = (np.array(volume.shape) - 1) / 2 - to_host(torch.stack(middle))
    out = grid.copy()
    out[:3, 3] += grid[:3, :3] @ away
    return out


def _matched(real: torch.Tensor, synthetic: torch.Tensor, grid: Affine) -> list[list[Affine]]:
    """Return the affines that move volumes of both sets onto the mean of the real ones."""

    def place(away: Floats) -> Affine:
        out = grid.copy()
        out[:3, 3] += grid[:3, :3] @ away
        return out

    # the mean of volumes as they came is blurred: the second is of moved ones
    first = Matcher(real.mean(dim=0))
    moved = [_placed(v, place(first.away(v)), grid)[0] for v in real]
    second = Matcher(torch.stack(moved).mean(dim=0))
    return [[place(second.away(v)) for v in s] for s in (real, synthetic)]


def _threshold(volume: torch.Tensor) -> torch.Tensor:
    """Return the value that parts background and bright voxels best.

    The mean would do only where the background is even: half of one with texture is above
    it, and pulls the centre to the middle of the grid.

    References
    ----------
    Otsu 1979, doi:10.1109/TSMC.1979.4310076.
    """
    low, high = volume.min(), volume.max()
    scaled = (volume - low) / (high - low).clamp(min=1e-12) * (BINS - 1)
    counts = torch.bincount(scaled.flatten().long(), minlength=BINS).to(torch.float64)
    values = torch.arange(BINS, dtype=torch.float64, device=volume.device)
    below, moment = counts.cumsum(0), (counts * values).cumsum(0)
    above = below[-1] - below
    gap = moment / below.clamp(min=1) - (moment[-1] - moment) / above.clamp(min=1)
    best = (below * above * gap * gap).argmax()
    return low + (best + 1) / (BINS - 1) * (high - low)


def _placed(volume: torch.Tensor, place: Affine, grid: Affine) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a volume with affine `place` on the grid, and where the grid is inside it.

    The smallest value of the volume lies outside.
    """
    i, j, k = volume.shape
    moved = sample_grid(volume[None], place, grid, (i, j, k), "linear", float("nan"), False)[0]
    inside = ~moved.isnan()
    return torch.where(inside, moved, volume.min()), inside


def _registered(volume: torch.Tensor, place: Affine, fixed: torch.Tensor, grid: Affine) -> Affine:
    """Return the affine that puts a volume with affine `place` onto the fixed one.

    The steps of the registration suit a head: a smaller field of view is enlarged for it.
    """
    extent = min(n * s for n, s in zip(fixed.shape, np.diag(grid)[:3], strict=True))
    larger = np.diag([max(1.0, FIELD_MM / extent)] * 3 + [1.0])
    target, moving = (
        MetaTensor(values[None], affine=torch.as_tensor(larger @ affine))
        for values, affine in ((fixed, grid), (volume, place))
    )
    matrix, _ = register_images(target, moving, "rigid", "correlation", "identity", seed=1)
    return np.asarray(np.linalg.solve(matrix @ larger, larger @ place), np.float64)


def t_map(real: torch.Tensor, synthetic: torch.Tensor) -> torch.Tensor:
    """Return Welch's t of each voxel (I, J, K), positive where synthetic volumes are brighter.

    0 where all volumes agree; infinite where neither set varies and they differ.

    Parameters
    ----------
    real, synthetic : Tensor, shape (n, I, J, K) and (m, I, J, K)

    Raises
    ------
    InputError
        If the volumes do not compare, or a set has less than two.
    """
    _check_volumes(real, synthetic, 2)
    parts = []
    for x, y in _blocks(real, synthetic, len(real) + len(synthetic)):
        square = x.var(dim=0) / len(x) + y.var(dim=0) / len(y)
        gap = y.mean(dim=0) - x.mean(dim=0)
        parts.append(torch.where(gap == 0, 0.0, gap / square.sqrt()))
    return torch.cat(parts).view(real.shape[1:])


def t_map_share(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    *,
    threshold: float = 3.3,
    mask: torch.Tensor | ArrayLike | None = None,
    splits: int = 50,
    permutations: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> TMapShare:
    """Return the share of voxels in which two sets differ, against that of real halves.

    Parameters
    ----------
    real, synthetic : Tensor, shape (n, I, J, K) and (m, I, J, K)
        On one grid (see `realign`, and give its `inside` as the mask), four or more in each
        set.
    threshold : float
        Of \\|t\\|; 3.3 is about p = 0.001 of one voxel.
    mask : Tensor or array, shape (I, J, K), optional
        Voxels to compare.
    splits, permutations, seed : int
        Random halves, permutations of the test, and their seed.
    level : float
        Coverage.

    Raises
    ------
    InputError
        If the volumes or the mask do not fit, or no voxel varies.
    UsageError
        For a level outside 0..1, a threshold that is not above 0, or too few splits or
        permutations.
    """
    check_level(level)
    check_count(permutations, "permutations", 19)
    if not threshold > 0:
        raise UsageError("the threshold is wrong", expected="above 0", got=f"{threshold:g}")
    _check_volumes(real, synthetic, 4)
    n, m = len(real), len(synthetic)
    halves = draw_halves(n, m, splits, seed)
    drawn = np.random.default_rng(seed).permuted(
        np.tile(np.arange(n + m), (permutations, 1)), axis=1
    )
    everything = np.arange(n + m)[None]
    first = [halves.first, halves.first, everything[:, :n], drawn[:, :n]]
    second = [halves.second, n + halves.synthetic, everything[:, n:], drawn[:, n:]]
    shares, voxels = _shares(
        real, synthetic, _rows(first, n + m), _rows(second, n + m), threshold, mask
    )
    floors, figures = shares[:splits], shares[splits : 2 * splits]
    whole, shuffled = float(shares[2 * splits]), shares[2 * splits + 1 :]
    k = halves.first.shape[1]
    method = f"mean of {splits} random halves of {k}, normal interval"
    spread = float(figures.std(ddof=1))
    value = symmetric(float(figures.mean()), spread, n + m, method, level=level, bounds=(0.0, 1.0))
    p = float((1 + (shuffled >= whole - 1e-12).sum()) / (1 + permutations))
    share = WithFloor(value, floor_figure(floors, k, level))
    return TMapShare(share, whole, p, threshold, voxels, permutations)


def _rows(groups: list[Indices], n: int) -> Floats:
    """Return which of n cases are in each group (R, n), of index arrays (r, k)."""
    out = []
    for group in groups:
        row = np.zeros((len(group), n))
        np.put_along_axis(row, group, 1.0, axis=1)
        out.append(row)
    return np.concatenate(out)


def _shares(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    first: Floats,
    second: Floats,
    threshold: float,
    mask: torch.Tensor | ArrayLike | None,
) -> tuple[Floats, int]:
    """Return the shares (R,) above the threshold, for groups in rows (R, n + m)."""
    a, b = (torch.as_tensor(g, device=real.device) for g in (first, second))
    inside = torch.ones(real.shape[1:], dtype=torch.bool, device=real.device)
    if mask is not None:
        inside = torch.as_tensor(mask, device=real.device) != 0
        if inside.shape != real.shape[1:]:
            raise InputError(
                "the mask has another grid than the volumes",
                expected=str(tuple(real.shape[1:])),
                got=str(tuple(inside.shape)),
            )
    chosen = inside.flatten()
    found = torch.zeros(len(a), dtype=torch.float64, device=real.device)
    total, start = 0, 0
    for x, y in _blocks(real, synthetic, len(a) + a.shape[1]):
        values = torch.cat([x, y])[:, chosen[start : start + x.shape[1]]]
        start += x.shape[1]
        values -= values.mean(dim=0)
        values = values[:, (values != 0).any(dim=0)]
        total += values.shape[1]
        found += _above(values, a, b, threshold)
    if not total:
        raise InputError("no voxel differs between the volumes: there is nothing to compare")
    return to_host(found / total), total


def _above(
    values: torch.Tensor, a: torch.Tensor, b: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Return how many voxels of centred values (n, V) have \\|t\\| above the threshold (R,)."""
    squares = values * values
    parts = []
    for group in (a, b):
        k = group.sum(dim=1, keepdim=True)
        mean = group @ values / k
        variance = ((group @ squares - k * mean * mean) / (k - 1)).clamp_(min=0)
        parts.append((mean, variance / k))
    (mean_a, error_a), (mean_b, error_b) = parts
    # without the quotient, voxels in which neither group varies need no case of their own
    above = (mean_b - mean_a) ** 2 > threshold**2 * (error_a + error_b)
    return above.sum(dim=1).to(torch.float64)


def _blocks(
    real: torch.Tensor, synthetic: torch.Tensor, rows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield blocks of voxels (n, v) and (m, v) in float64."""
    a, b = real.flatten(1), synthetic.flatten(1)
    step = max(1, HELD // rows)
    for start in range(0, a.shape[1], step):
        x, y = (t[:, start : start + step].to(torch.float64) for t in (a, b))
        yield x, y.to(x.device)


def _check_volumes(real: torch.Tensor, synthetic: torch.Tensor, least: int) -> None:
    for values, name in ((real, "the real volumes"), (synthetic, "the synthetic volumes")):
        flat(values, name, least)
    if real.ndim != 4 or real.shape[1:] != synthetic.shape[1:]:
        raise InputError(
            "both sets need volumes of one shape",
            expected="(n, I, J, K)",
            got=f"{tuple(real.shape)} and {tuple(synthetic.shape)}",
        )
