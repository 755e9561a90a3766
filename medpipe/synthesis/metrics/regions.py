"""Volumes of regions: do synthetic anatomies have the sizes, and the spread, of real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import special, stats

from medpipe.errors import InputError
from medpipe.stats.interval import Interval, check_level
from medpipe.synthesis.metrics._figures import (
    Floats,
    bootstrapped,
    column,
    figure,
    same_names,
    symmetric,
    to_host,
)
from medpipe.synthesis.metrics.floor import Indices, WithFloor, against_floor

__all__ = ["RegionComparison", "label_volumes", "regional_volumes"]


@dataclass(frozen=True)
class RegionComparison:
    """One region in the real and the synthetic set; volumes in the unit of the tables.

    Attributes
    ----------
    region : str
    real_mean, real_sd, synthetic_mean, synthetic_sd : Interval
    difference : Interval
        Synthetic minus real mean, Welch.
    percent : Interval
        Difference of the means in percent of the real mean.
    sd_ratio : Interval
        Synthetic over real standard deviation.
    effect : Interval
        Difference over the pooled standard deviation, corrected for few cases (Hedges' g).
    wasserstein : WithFloor
        Mean difference of the sorted volumes, against real halves of as many cases.
    t, df, p : float
        Welch's test.
    p_bonferroni : float
        Times the number of regions, at most 1.
    """

    region: str
    real_mean: Interval
    real_sd: Interval
    synthetic_mean: Interval
    synthetic_sd: Interval
    difference: Interval
    percent: Interval
    sd_ratio: Interval
    effect: Interval
    wasserstein: WithFloor
    t: float
    df: float
    p: float
    p_bonferroni: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def regional_volumes(
    real: Mapping[str, ArrayLike],
    synthetic: Mapping[str, ArrayLike],
    *,
    resamples: int = 1000,
    splits: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> list[RegionComparison]:
    """Compare volumes of regions, measured in both sets by the same segmenter.

    Parameters
    ----------
    real, synthetic : mapping of region to array (n,) and (m,)
        Volumes above 0 of four or more cases in each set.
    resamples, splits, seed : int
        Of the bootstrap (standard deviations) and of the halves (distance), and their seed.
    level : float
        Coverage.

    Returns
    -------
    list of RegionComparison
        In the order of `real`.

    Raises
    ------
    InputError
        If the regions differ, a table cannot be used, or a region has no spread in a set of
        real cases.
    UsageError
        For a level outside 0..1 or too few resamples or splits.

    References
    ----------
    Welch 1947, doi:10.1093/biomet/34.1-2.28; Hedges 1981, doi:10.3102/10769986006002107.
    """
    check_level(level)
    names = same_names(real, synthetic, "regions")
    out = []
    for name in names:
        a = column(real[name], f"region {name} of the real cases", least=4)
        b = column(synthetic[name], f"region {name} of the synthetic cases", least=4)
        if min(a.min(), b.min()) < 0 or not (a.mean() > 0 and b.mean() > 0):
            raise InputError(f"region {name} has volumes that are no sizes", expected="above 0")
        if a.std() == 0:
            raise InputError(f"region {name} has one volume in all real cases")
        out.append(_compare(name, a, b, len(names), resamples, splits, seed, level))
    return out


def _compare(
    name: str,
    a: Floats,
    b: Floats,
    regions: int,
    resamples: int,
    splits: int,
    seed: int,
    level: float,
) -> RegionComparison:
    n, m = a.size, b.size
    test = stats.ttest_ind(b, a, equal_var=False)
    df, errors = float(test.df), (a.std(ddof=1) / n**0.5, b.std(ddof=1) / m**0.5)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level}
    means = [
        symmetric(float(x.mean()), float(e), x.size, "Student's t", level=level, df=x.size - 1)
        for x, e in zip((a, b), errors, strict=True)
    ]
    difference = symmetric(
        float(b.mean() - a.mean()), float(np.hypot(*errors)), n + m, "Welch", level=level, df=df
    )
    both = np.concatenate([a, b])
    (distance,) = against_floor(
        lambda x, y: _wasserstein(both, x, y),
        n,
        m,
        splits=splits,
        seed=seed,
        level=level,
        bounds=(0.0, np.inf),
    )
    p = float(test.pvalue)
    return RegionComparison(
        region=name,
        real_mean=means[0],
        real_sd=bootstrapped((a,), _sd, **options),
        synthetic_mean=means[1],
        synthetic_sd=bootstrapped((b,), _sd, **options),
        difference=difference,
        percent=_percent(a, b, df, level),
        sd_ratio=bootstrapped((b, a), _sd_ratio, **options),
        effect=_hedges(a, b, level),
        wasserstein=distance,
        t=float(test.statistic),
        df=df,
        p=p,
        p_bonferroni=min(1.0, p * regions),
    )


def _sd(x: Floats, axis: int) -> Any:
    return np.std(x, axis=axis, ddof=1)


def _sd_ratio(x: Floats, y: Floats, axis: int) -> Any:
    return _sd(x, axis) / _sd(y, axis)


def _wasserstein(values: Floats, x: Indices, y: Indices) -> float:
    """Return the distance of two samples of one size: the mean difference when sorted."""
    return float(np.abs(np.sort(values[x]) - np.sort(values[y])).mean())


def _percent(a: Floats, b: Floats, df: float, level: float) -> Interval:
    """Return the change of the mean in percent; the interval is that of the log ratio."""
    parts = [x.var(ddof=1) / x.size / x.mean() ** 2 for x in (a, b)]
    log, se = float(np.log(b.mean() / a.mean())), float(np.sqrt(sum(parts)))
    half = float(stats.t.ppf(0.5 + level / 2, df)) * se
    value, low, high = (100 * float(np.expm1(x)) for x in (log, log - half, log + half))
    method = "ratio of means, log scale"
    return figure(value, a.size + b.size, method, low=low, high=high, level=level)


def _hedges(a: Floats, b: Floats, level: float) -> Interval:
    n, m = a.size, b.size
    pooled = np.sqrt(((n - 1) * a.var(ddof=1) + (m - 1) * b.var(ddof=1)) / (n + m - 2))
    half = (n + m - 2) / 2
    correction = np.exp(special.gammaln(half) - special.gammaln(half - 0.5)) / np.sqrt(half)
    g = float(correction * (b.mean() - a.mean()) / pooled)
    se = float(np.sqrt((n + m) / (n * m) + g**2 / (2 * (n + m))))
    return symmetric(g, se, n + m, "Hedges' g, normal interval", level=level)


def label_volumes(
    labels: torch.Tensor, spacing_mm: Sequence[float], regions: Mapping[str, int | Sequence[int]]
) -> dict[str, Floats]:
    """Return the volume of each region in each label map, in mm³.

    Parameters
    ----------
    labels : Tensor, shape (n, I, J, K)
        Whole numbers from 0.
    spacing_mm : sequence of 3 floats
    regions : mapping of name to a label, or to labels that are one region

    Raises
    ------
    InputError
        If the maps are no label maps, or the spacing is not three sizes.
    """
    voxel = np.prod(np.asarray(spacing_mm, float)) if len(spacing_mm) == 3 else 0.0
    if labels.ndim != 4 or labels.is_floating_point() or labels.is_complex() or not labels.numel():
        raise InputError("these are no label maps", expected="whole numbers, shape (n, I, J, K)")
    if not (voxel > 0 and min(spacing_mm) > 0):
        raise InputError("the spacing is wrong", expected="three sizes in mm above 0")
    n, rows = len(labels), labels.flatten(1).long()
    if bool((rows < 0).any()):
        raise InputError("a label map has labels below 0")
    most = int(rows.max()) + 1
    rows = rows + most * torch.arange(n, device=rows.device)[:, None]
    counts = to_host(torch.bincount(rows.flatten(), minlength=n * most).view(n, most)) * voxel
    out = {}
    for name, which in regions.items():
        chosen = [which] if isinstance(which, int) else list(which)
        out[name] = counts[:, [label for label in chosen if label < most]].sum(axis=1)
    return out
