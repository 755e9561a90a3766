"""Does a set repeat itself: how far its cases are from each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from medpipe.errors import InputError
from medpipe.stats.interval import Interval, check_level
from medpipe.synthesis.metrics._figures import Floats, median_figure, ratio_of_medians
from medpipe.synthesis.metrics.distances import expected_nearest, without_self
from medpipe.synthesis.metrics.floor import WithFloor

__all__ = ["Repeats", "repeats_of_distances"]


@dataclass(frozen=True)
class Repeats:
    """How far the cases of a synthetic set are from each other.

    Attributes
    ----------
    nearest : WithFloor
        Median distance of a synthetic case to the nearest of k others; the floor is that of
        a real case to the nearest of k other real ones.
    ratio : Interval
        `nearest` over its floor: 1 if synthetic cases are as far apart as real ones, 0 if
        each is there twice.
    """

    nearest: WithFloor
    ratio: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, flat: ``figure``, ``floor`` and ``ratio``."""
        return self.nearest.to_dict() | {"ratio": asdict(self.ratio)}


def repeats_of_distances(
    within_synthetic: Floats, within_real: Floats, *, resamples: int = 1000, seed: int = 0,
    level: float = 0.95,
) -> Repeats:  # fmt: skip
    """Compare how far the cases of two sets are from the others of their own.

    The mean similarity of pairs does not see a set that repeats a few cases which are unlike
    each other; the nearest case does. The nearest of many is nearer than that of few: k is
    one less than the cases of the smaller set, and distances are means over all choices of k.

    Parameters
    ----------
    within_synthetic : array (n, n)
    within_real : array (m, m)
        The distance of a case to itself is not looked at.
    resamples, seed : int
        Bootstrap of the ratio.
    level : float
        Coverage.

    Raises
    ------
    InputError
        If a set has less than two cases, or half of the real ones are there twice.
    UsageError
        For a level outside 0..1, or too few resamples.
    """
    check_level(level)
    k = min(len(within_synthetic), len(within_real)) - 1
    if k < 1:
        raise InputError("a set has too few cases to repeat any", expected="2 or more")
    made, real = (expected_nearest(without_self(d), k) for d in (within_synthetic, within_real))
    floor = median_figure(real, level)
    if not floor.value:
        raise InputError(
            "real cases are there twice", expected="each patient once",
            hint="leave one of each pair out",
        )  # fmt: skip
    ratio = ratio_of_medians(made, real, resamples=resamples, seed=seed, level=level)
    return Repeats(WithFloor(median_figure(made, level), floor), ratio)
