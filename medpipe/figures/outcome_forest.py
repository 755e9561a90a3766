"""Figures with intervals in rows, and the flow of cases, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from medpipe.figures.outcome_frame import (
    DASHED,
    LINE,
    WIDTH,
    Facts,
    Plot,
    colour_of,
    document,
    head_of,
    line,
    shortened,
    text_at,
    wrapped,
)
from medpipe.figures.svg import tick_text, ticks

__all__ = ["ForestRow", "flow_svg", "forest_svg"]


@dataclass(frozen=True)
class ForestRow:
    """A figure with its interval; `low` and `high` are None where there is none, and `why`."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    events: int
    rank: int = 0
    why: str = "too few to say"


_NAMES, _AXIS_END = 130.0, 242.0
_ROW, _FIRST = 34.0, 15.0


def forest_svg(
    rows: Sequence[ForestRow], facts: Facts, *, title: str, x_label: str, reference: float
) -> str:
    """Return figures with their intervals, one row each.

    Parameters
    ----------
    rows : sequence of ForestRow
        A row without an interval gets a hollow dot and says so.
    facts : Facts
        Of all rows together.
    title, x_label : str
    reference : float
        Where a dashed line stands: 0.5 for an area under the curve, 0 for a difference.
    """
    seen = [v for r in rows for v in (r.value, r.low, r.high) if v is not None]
    if not seen:
        return ""
    head, top = head_of(facts)
    low, high = min([*seen, reference]), max([*seen, reference])
    margin = 0.05 * (high - low) or 0.05
    names = [wrapped(row.label, 122)[:3] for row in rows]
    heights = [_ROW + LINE * (len(name) - 1) for name in names]
    place = Plot((low - margin, high + margin), (0.0, 1.0), top, sum(heights), _NAMES, _AXIS_END)
    x = place.x(reference)
    parts = [*head, line("axis", x, top, x, place.base, DASHED)]
    for row, name, height in zip(rows, names, heights, strict=True):
        parts += _forest_row(row, name, top, place)
        top += height
    parts.append(line("axis", place.left, place.base, place.right, place.base))
    for tick in ticks(*place.x_range, 4):
        parts.append(line("axis", place.x(tick), place.base, place.x(tick), place.base + 4))
        parts.append(text_at(place.x(tick), place.base + 16, tick_text(tick), "middle"))
    parts.append(text_at((place.left + place.right) / 2, place.base + 31, x_label, "middle"))
    return document(title, facts, place.base + 38, parts)


def _forest_row(row: ForestRow, name: Sequence[str], top: float, place: Plot) -> list[str]:
    colour, bold, right = colour_of(row.rank), 'font-weight="600"', place.right + 8
    out = [
        text_at(0, top + _FIRST + LINE * i, shortened(text, 128), more=bold)
        for i, text in enumerate(name)
    ]
    below = top + _FIRST + LINE * len(name) - 2
    count = f"n {row.n}, {row.events} event{'s' if row.events != 1 else ''}"
    out.append(text_at(0, below, count))
    y = (top + below) / 2 + 1
    if row.value is None or not math.isfinite(row.value):
        return [*out, text_at(right, y + 4, "not estimable")]
    x = place.x(row.value)
    if row.low is None or row.high is None:
        ring = f'fill="none" stroke="{colour}" stroke-width="1.5"'
        out.append(f'<circle class="value" cx="{x:.1f}" cy="{y:.1f}" r="4" {ring}/>')
        out.append(text_at(right, y - 2, _signed(row.value)))
        return [*out, text_at(right, y + 11, row.why)]
    style = f'stroke="{colour}" stroke-width="2"'
    out.append(line("whisker", place.x(row.low), y, place.x(row.high), y, style))
    out.append(f'<rect class="value" x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" '
               f'fill="{colour}"/>')  # fmt: skip
    text = f"{_signed(row.value)} ({_signed(row.low)} to {_signed(row.high)})"
    return [*out, text_at(right, y + 4, text)]


def _signed(value: float) -> str:
    text = f"{value:.2f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def flow_svg(
    read: int | None,
    refused: Sequence[tuple[str, int]],
    n: int,
    events: int,
    *,
    patients: int | None = None,
    folds: int = 0,
    simulated: bool = False,
) -> str:
    """Return how many cases were read, refused, analysed, and had the event.

    Parameters
    ----------
    read : int or None
        Cases of the manifest; not known: the first box is left out.
    refused : sequence of (str, int)
        Reason and number of cases.
    n, events : int
        Analysed cases, and those with the event.
    patients, folds : int
        Told where they are known.
    simulated : bool
    """
    known = f" of {patients} patients" if patients is not None else ""
    last = [f"{n} cases analysed{known}", f"{events} with the event, {n - events} without"]
    last += [f"tested in {folds} folds"] * (folds > 0) + ["simulated data"] * simulated
    parts: list[str] = []
    y = 0.0
    if read is not None:
        box, bottom = _box(0, y, 150, [f"{read} cases read"])
        parts += box
        y = bottom + 18
        if refused:
            total = sum(count for _, count in refused)
            lines = [f"{total} left out"]
            for reason, count in refused:
                lines += wrapped(f"{count}: {reason}", 180)
            side, end = _box(185, y - 9, WIDTH - 185, lines)
            middle = (y - 9 + end) / 2
            parts += [*side, line("axis", 75, middle, 185, middle)]
            y = end + 9
        parts.append(line("axis", 75, bottom, 75, y))
    box, y = _box(0, y, 250, last)
    title = f"Flow of cases: {', '.join(last)}"
    return (
        f'<svg class="chart outcome flow" viewBox="0 -1 {WIDTH} {y + 2:.0f}" role="img" '
        f'aria-label="{escape(title)}" preserveAspectRatio="xMidYMid meet">'
        f"<title>{escape(title)}</title>{''.join([*parts, *box])}</svg>"
    )


def _box(x: float, y: float, width: float, lines: Sequence[str]) -> tuple[list[str], float]:
    """Return a box with lines of text, and where it ends."""
    height = LINE * len(lines) + 12
    out = [
        f'<rect class="axis" x="{x + 0.5:.1f}" y="{y:.1f}" width="{width - 1:.1f}" '
        f'height="{height:.1f}" rx="5" fill="none"/>'
    ]
    for rank, text in enumerate(lines):
        more = 'font-weight="600"' if not rank else ""
        short = shortened(text, width - 14)
        out.append(text_at(x + 10, y + LINE * (rank + 1) + 2, short, more=more))
    return out, y + height
