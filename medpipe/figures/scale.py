"""Pictures of measured quantities: a colour for each value, and a scale that says which.

An image whose metadata hold ``source["display"] = {"name": "T1", "unit": "ms",
"factor": 1000.0}`` is a map of a quantity. It is shown in that unit, from 0 to a round
number, and voxels that are exactly 0 hold no value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medpipe.figures.histogram import Statistics
from medpipe.figures.window import Window

if TYPE_CHECKING:
    import torch

__all__ = ["COLOURS", "Display", "display_of", "quantity_window", "values_of"]

# From dark to light without a turn, so that the order shows without colour vision; no
# magenta, which is NaN.
_POINTS = (
    (0.0, (0, 0, 0)),
    (0.2, (24, 44, 110)),
    (0.4, (20, 104, 138)),
    (0.6, (54, 158, 120)),
    (0.8, (170, 200, 80)),
    (1.0, (252, 244, 190)),
)
_ROUND = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def _table() -> NDArray[np.uint8]:
    at = np.linspace(0, 1, 256)
    places = [place for place, _ in _POINTS]
    channels = zip(*(colour for _, colour in _POINTS), strict=True)
    return np.stack([np.interp(at, places, c) for c in channels], 1).round().astype(np.uint8)


COLOURS = _table()
"""RGB of the levels 0 to 255, (256, 3)."""


@dataclass(frozen=True, slots=True)
class Display:
    """How a quantity is shown: its name, its unit in pictures, and the factor to that unit."""

    name: str
    unit: str
    factor: float


def display_of(facts: Mapping[str, Any]) -> Display | None:
    """Return how to show an image with these facts (``source``), None for one without a scale."""
    given = facts.get("display")
    if not isinstance(given, Mapping):
        return None
    name, unit, factor = given.get("name"), given.get("unit"), given.get("factor")
    if not isinstance(name, str) or not isinstance(unit, str):
        return None
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        return None
    return Display(name[:40], unit[:12], float(factor))


def values_of(data: torch.Tensor) -> torch.Tensor:
    """Return the voxels of a map that hold a value or NaN; all where there are none."""
    kept = data[data != 0]
    return kept if kept.numel() else data


def quantity_window(stats: Statistics, display: Display) -> Window:
    """Return 0 to the round number above the 99th percentile of a quantity."""
    high = stats.percentiles.get("p99", 0.0) if stats.low is not None else 0.0
    if not high > 0:
        return Window(0.0, 1.0, display.name, display.unit)
    power = 10.0 ** math.floor(math.log10(high))
    top = next(r * power for r in _ROUND if r * power >= high * (1 - 1e-6))
    return Window(0.0, top, display.name, display.unit)
