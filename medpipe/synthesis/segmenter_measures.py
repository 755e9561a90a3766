"""How far the word of a segmenter can be trusted: Dice and volumes of real cases it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from medpipe.errors import InputError
from medpipe.stats.interval import Interval
from medpipe.synthesis.metrics._figures import Floats, figure, symmetric, to_host
from medpipe.synthesis.metrics.agreement import Agreement, condition_agreement
from medpipe.synthesis.metrics.regions import label_volumes

__all__ = ["dice_of_regions", "mean_figure", "measure_segmenter"]

Regions = Mapping[str, int | Sequence[int]]


def dice_of_regions(
    found: torch.Tensor, truth: torch.Tensor, regions: Regions
) -> dict[str, Floats]:
    """Return the Dice of each region in each case, NaN where the truth lacks the region.

    Parameters
    ----------
    found, truth : Tensor, shape (n, I, J, K)
        Labels.
    regions : mapping of name to a label, or to labels that are one region

    Returns
    -------
    dict of name to array (n,)

    Raises
    ------
    InputError
        If the shapes differ.
    """
    if found.shape != truth.shape or truth.ndim != 4:
        raise InputError(
            "the labels do not compare",
            expected=f"shape {tuple(truth.shape)}",
            got=f"shape {tuple(found.shape)}",
        )
    out = {}
    for name, which in regions.items():
        labels = torch.as_tensor([which] if isinstance(which, int) else list(which))
        a, b = (torch.isin(x.flatten(1), labels.to(x)) for x in (found, truth.to(found.device)))
        shared, both = to_host((a & b).sum(1)), to_host(a.sum(1) + b.sum(1))
        there = to_host(b.sum(1)) > 0
        out[name] = np.where(there, 2 * shared / np.maximum(both, 1), np.nan)
    return out


def measure_segmenter(
    segment: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    spacing_mm: Sequence[float],
    regions: Regions,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return Dice and volume agreement of a segmenter on real cases it was not trained with.

    This is the ceiling: what is measured in synthetic cases cannot agree better with what was
    requested than what is measured in real ones agrees with what is there.

    Parameters
    ----------
    segment : callable
        Labels (n, I, J, K) of images (n, I, J, K).
    images, labels : Tensor, shape (n, I, J, K)
    spacing_mm : sequence of 3 floats
    regions : mapping of name to a label, or to labels that are one region
    seed, level
        Of the intervals.

    Returns
    -------
    dict of JSON values
        ``n``; ``dice`` and ``volumes`` (`condition_agreement` of true and measured volumes in
        mm³, None where all cases have one volume), each by region.

    Raises
    ------
    InputError
        If the cases cannot be used.
    """
    found = segment(images)
    dice = dice_of_regions(found, labels, regions)
    true, seen = (label_volumes(x, spacing_mm, regions) for x in (labels, found))
    volumes: dict[str, Agreement | None] = {
        name: None
        if np.ptp(true[name]) == 0 or true[name].size < 4
        else condition_agreement(true[name], seen[name], seed=seed, level=level)
        for name in regions
    }
    return {
        "n": len(images),
        "dice": {name: mean_figure(values, level).to_dict() for name, values in dice.items()},
        "volumes": {k: None if v is None else v.to_dict() for k, v in volumes.items()},
    }


def mean_figure(values: Floats, level: float) -> Interval:
    """Return the mean of the finite values with the interval of Student's t."""
    kept = values[np.isfinite(values)]
    if kept.size < 2:
        note = "too few cases for an interval"
        value = float(kept[0]) if kept.size else None
        return figure(value, kept.size, "mean", level=level, note=note)
    se = float(kept.std(ddof=1)) / kept.size**0.5
    return symmetric(
        float(kept.mean()), se, kept.size, "Student's t", level=level, df=kept.size - 1
    )
