"""What the figures of a prediction share: the plot, its axes, and what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from medpipe.figures.chart import SERIES_COLOURS, polyline_path
from medpipe.figures.svg import tick_text, ticks

__all__ = [
    "DASHED",
    "LEFT",
    "LINE",
    "REFERENCE",
    "RIGHT",
    "WIDTH",
    "Facts",
    "Plot",
    "colour_of",
    "document",
    "head_of",
    "line",
    "shortened",
    "stroke_of",
    "text_at",
    "wrapped",
]

WIDTH = 380
LEFT, RIGHT, LINE, _CHARACTER = 44.0, 10.0, 15.0, 5.7
_DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "1 2", "12 4")
DASHED = 'stroke-dasharray="3 3"'
REFERENCE = f'class="axis" {DASHED}'


@dataclass(frozen=True)
class Facts:
    """What every figure says of itself.

    Parameters
    ----------
    n, events : int
        Patients' rows, and those with the event.
    interval : str
        What the band or the whiskers are, e.g. ``"95 %, bootstrap of patients"``; why there
        is none where there is none.
    simulated : bool
        Whether the data are simulated.
    """

    n: int
    events: int
    interval: str
    simulated: bool = False

    def text(self) -> str:
        """Return the facts as one line."""
        parts = [f"n = {self.n}", f"{self.events} event{'s' if self.events != 1 else ''}"]
        return ", ".join([*parts, *(["simulated data"] if self.simulated else []), self.interval])


@dataclass(frozen=True)
class Plot:
    """The rectangle that curves are drawn in, and its scales."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    top: float
    height: float
    left: float = LEFT
    right: float = WIDTH - RIGHT

    @property
    def base(self) -> float:
        """Lower end, in px."""
        return self.top + self.height

    def x(self, value: float) -> float:
        """Return the place of a value, in px."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return the place of a value, in px."""
        low, high = self.y_range
        return self.base - (value - low) / (high - low) * self.height

    def path(self, x: Sequence[float], y: Sequence[float]) -> str:
        """Return the ``d`` of a line through points."""
        places = [(self.x(a), self.y(b)) for a, b in zip(x, y, strict=True)]
        return polyline_path(np.array(places, float).reshape(-1, 2), 0.4)

    def clipped(self, parts: Sequence[str]) -> str:
        """Return the parts inside the rectangle; its coordinates are those of the figure."""
        box = f"{self.left:.1f} {self.top:.1f} {self.right - self.left:.1f} {self.height:.1f}"
        left, top, width, height = box.split()
        return (
            f'<svg x="{left}" y="{top}" width="{width}" height="{height}" viewBox="{box}">'
            f"{''.join(parts)}</svg>"
        )

    def frame(self, x_label: str, y_label: str) -> list[str]:
        """Return axes, grid and labels."""
        out = []
        for tick in ticks(*self.y_range, 5):
            y = self.y(tick)
            out.append(line("grid", self.left, y, self.right, y))
            out.append(text_at(self.left - 6, y + 4, tick_text(tick), "end"))
        for tick in ticks(*self.x_range, 5):
            x = self.x(tick)
            out.append(line("axis", x, self.base, x, self.base + 4))
            out.append(text_at(x, self.base + 16, tick_text(tick), "middle"))
        out.append(line("axis", self.left, self.base, self.right, self.base))
        out.append(text_at((self.left + self.right) / 2, self.base + 31, x_label, "middle"))
        middle = self.top + self.height / 2
        out.append(
            f'<text transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
        return out


def line(css: str, x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    """Return a line between two points, in px."""
    return (
        f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        f"{' ' if more else ''}{more}/>"
    )


def text_at(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    """Return escaped text at a place, in px."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{" " if more else ""}{more}>'
        f"{escape(text)}</text>"
    )


def shortened(text: str, room: float) -> str:
    """Return text cut to what fits into so many px."""
    most = max(int(room / _CHARACTER), 4)
    return text if len(text) <= most else text[: most - 1] + "…"


def wrapped(text: str, room: float = WIDTH) -> list[str]:
    """Return lines of words that fit into so many px; they break at plain spaces."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) * _CHARACTER <= room or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def head_of(facts: Facts) -> tuple[list[str], float]:
    """Return the lines above a plot, and where the plot begins."""
    count = f"n = {facts.n}, {facts.events} event{'s' if facts.events != 1 else ''}"
    mark = '<tspan font-weight="700" class="simulated"> · simulated data</tspan>'
    out = [f'<text x="0" y="11">{escape(count)}{mark if facts.simulated else ""}</text>']
    y = 11.0
    for line in wrapped(facts.interval):
        y += LINE - 1
        out.append(text_at(0, y, line))
    return out, y + 15


def document(title: str, facts: Facts, height: float, parts: Sequence[str]) -> str:
    """Return the whole figure; its title says the facts to those who cannot see it."""
    label = escape(f"{title}: {facts.text()}")
    return (
        f'<svg class="chart outcome" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{label}" preserveAspectRatio="xMidYMid meet"><title>{label}</title>'
        f"{''.join(parts)}</svg>"
    )


def colour_of(rank: int) -> str:
    """Return the colour of a model."""
    return SERIES_COLOURS[rank % len(SERIES_COLOURS)]


def stroke_of(rank: int, width: float = 2.0) -> str:
    """Return colour, width and dashes of a model's lines."""
    dash = _DASHES[rank % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{colour_of(rank)}" stroke-width="{width}"{dashes}'
