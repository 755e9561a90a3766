"""Which grey values a picture shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medpipe.errors import UsageError
from medpipe.figures.histogram import Statistics

__all__ = ["Window", "choose_window", "looks_like_ct"]

HEAD_WIDTH_MM = 300.0


@dataclass(frozen=True, slots=True)
class Window:
    """Values `low` … `high` become black … white; `name` says where they come from."""

    low: float
    high: float
    name: str
    unit: str = ""

    def text(self) -> str:
        """Return e.g. ``"brain window 0 .. 80 HU"``."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name} {_digits(self.low)} .. {_digits(self.high)}{unit}"


def _digits(value: float) -> str:
    """Return a number with four digits, or all of a whole one that has more."""
    return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:.0f}"


def looks_like_ct(stats: Statistics, modality: str | None) -> bool:
    """Tell CT in Hounsfield units from other images, by the modality or by its air and bone."""
    if stats.low is None or stats.high is None or stats.low > -500 or stats.high < 100:
        return False
    if modality:
        return modality.upper() == "CT"
    return stats.low >= -11_000 and stats.percentiles["p0.5"] <= -900 and stats.high <= 40_000


def choose_window(
    stats: Statistics, options: Mapping[str, Any], *, is_ct: bool, width_mm: float
) -> Window:
    """Return the window of an image.

    Parameters
    ----------
    stats : Statistics
    options : mapping
        ``window_hu = [low, high]`` decides if given.
    is_ct : bool
        Whether values are Hounsfield units: then the brain window (0 to 80), or
        soft tissue (−160 to 240) if the body is wider than a head.
    width_mm : float
        Left to right extent of the foreground.

    Raises
    ------
    UsageError
        If ``window_hu`` is not two rising numbers.
    """
    given = options.get("window_hu")
    if given is not None:
        pair = list(given) if isinstance(given, list | tuple) else []
        if (
            len(pair) != 2
            or not all(isinstance(v, int | float) for v in pair)
            or pair[0] >= pair[1]
        ):
            raise UsageError("a window is two rising numbers", where="qc option window_hu",
                             expected="[low, high]", got=repr(given)[:60])  # fmt: skip
        return Window(float(pair[0]), float(pair[1]), "window", "HU" if is_ct else "")
    if is_ct:
        if width_mm > HEAD_WIDTH_MM:
            return Window(-160.0, 240.0, "soft tissue window", "HU")
        return Window(0.0, 80.0, "brain window", "HU")
    if stats.low is None or stats.high is None:
        return Window(0.0, 1.0, "window")
    if stats.integer and stats.distinct <= 64:
        return Window(stats.low, max(stats.high, stats.low + 1.0), "all values")
    low, high = stats.percentiles["p1"], stats.percentiles["p99"]
    if not high > low:
        low, high = stats.low, stats.high
    if not high > low:
        return Window(low - 0.5, low + 0.5, "constant")
    return Window(low, high, "1st to 99th percentile,")
