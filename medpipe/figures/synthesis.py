"""Figures of synthetic volumes, as SVG text to be put into a page.

Like the figures of predictions: no script, no file, every text is escaped, and each says in
the picture of how many cases it is and whether the data are simulated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medpipe.figures.outcome_frame import (
    DASHED,
    LINE,
    REFERENCE,
    RIGHT,
    WIDTH,
    Facts,
    Plot,
    colour_of,
    document,
    head_of,
    line,
    shortened,
    stroke_of,
    text_at,
)
from medpipe.figures.svg import tick_text, ticks

__all__ = ["SetFacts", "agreement_svg", "distances_svg", "distribution_svg", "set_facts"]

_LEFT, _HEIGHT, _MOST = 58.0, 200.0, 600
"""At most so many points are drawn of each set."""


@dataclass(frozen=True)
class SetFacts(Facts):
    """What a figure of sets says of itself: how many cases of which sets."""

    sets: str = ""

    def text(self) -> str:
        """Return the facts as one line."""
        parts = [self.sets, "simulated data" if self.simulated else "", self.interval]
        return ", ".join(part for part in parts if part)


def set_facts(sets: Mapping[str, int], interval: str = "", *, simulated: bool = False) -> SetFacts:
    """Return the facts of a figure of named sets of so many cases."""
    named = ", ".join(f"{n} {name}" for name, n in sets.items())
    return SetFacts(sum(sets.values()), 0, interval, simulated, named)


def _range(values: Sequence[Sequence[float]], zero: bool = False) -> tuple[float, float]:
    """Return where an axis begins and ends, with a margin."""
    seen = np.concatenate([np.asarray(v, float) for v in values])
    low, high = float(seen.min()), float(seen.max())
    low = min(low, 0.0) if zero else low
    margin = 0.04 * (high - low) or abs(high) * 0.05 or 0.5
    return (low if zero and low == 0 else low - margin), high + margin


def _axis_below(plot: Plot, label: str) -> list[str]:
    out = [line("axis", plot.left, plot.base, plot.right, plot.base)]
    for tick in ticks(*plot.x_range, 5):
        x = plot.x(tick)
        out.append(line("axis", x, plot.base, x, plot.base + 4))
        out.append(text_at(x, plot.base + 16, tick_text(tick), "middle"))
    out.append(text_at((plot.left + plot.right) / 2, plot.base + 31, label, "middle"))
    return out


def _legend(rows: Sequence[tuple[str, str]], y: float, points: int = 0) -> tuple[list[str], float]:
    """Return rows of style and text; the first `points` are of points, the others of lines."""
    out = []
    for rank, (style, text) in enumerate(rows):
        if rank < points:
            out.append(f'<circle cx="13" cy="{y - 4:.1f}" r="3.4" {style}/>')
        else:
            out.append(f'<line x1="0" y1="{y - 4:.1f}" x2="26" y2="{y - 4:.1f}" {style}/>')
        out.append(text_at(33, y, shortened(text, WIDTH - 33)))
        y += LINE
    return out, y


def _cumulative(plot: Plot, values: Sequence[float], rank: int) -> str:
    """Return the steps of a cumulative distribution."""
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    if n > _MOST:
        ordered = np.quantile(ordered, np.linspace(0, 1, _MOST))
        n = _MOST
    path = f"M{plot.x(plot.x_range[0]):.1f} {plot.y(0):.1f}"
    for i, value in enumerate(ordered):
        path += f"H{plot.x(value):.1f}V{plot.y((i + 1) / n):.1f}"
    path += f"H{plot.x(plot.x_range[1]):.1f}"
    return f'<path class="curve" d="{path}" fill="none" {stroke_of(rank)}/>'


def distribution_svg(
    sets: Mapping[str, Sequence[float]], *, title: str, x_label: str, interval: str = "",
    texts: Mapping[str, str] | None = None, simulated: bool = False,
) -> str:  # fmt: skip
    """Return the cumulative distributions of a quantity in several sets.

    Cumulative, so that no choice of bins hides or makes a difference; the largest vertical
    gap is that of Kolmogorov and Smirnov, the area between is the Wasserstein distance.

    Parameters
    ----------
    sets : mapping of name to values
    title, x_label : str
    interval : str
        What is said below the counts.
    texts : mapping, optional
        Of a set: its figure, for the legend.
    simulated : bool
    """
    sets = {name: values for name, values in sets.items() if len(values)}
    if not sets:
        return ""
    facts = set_facts({k: len(v) for k, v in sets.items()}, interval, simulated=simulated)
    head, top = _head(facts)
    plot = Plot(_range(list(sets.values())), (0.0, 1.0), top, _HEIGHT)
    inside = [_cumulative(plot, values, rank) for rank, values in enumerate(sets.values())]
    rows = [
        (stroke_of(rank), f"{name}  {(texts or {}).get(name, '')}".strip())
        for rank, name in enumerate(sets)
    ]
    legend, end = _legend(rows, plot.base + 52)
    frame = plot.frame(x_label, "share of cases")
    parts = [*head, *frame, plot.clipped(inside), *legend]
    return document(title, facts, end - 6, parts)


def distances_svg(
    sets: Mapping[str, Sequence[float]], *, title: str, x_label: str, marks: Mapping[str, float],
    simulated: bool = False,
) -> str:  # fmt: skip
    """Return histograms of distances, one below the other on one axis from 0.

    Parameters
    ----------
    sets : mapping of name to values
    title, x_label : str
    marks : mapping of text to value
        Dashed lines across all.
    simulated : bool
    """
    sets = {name: values for name, values in sets.items() if len(values)}
    if not sets:
        return ""
    facts = set_facts({k: len(v) for k, v in sets.items()}, simulated=simulated)
    # long names: each stands at its own histogram, with its count
    head, top = _head(replace(facts, sets=f"{len(sets)} sets of distances"))
    x_range = _range([*sets.values(), list(marks.values())], zero=True)
    row = 62.0
    plot = Plot(x_range, (0.0, 1.0), top, row * len(sets), left=4.0)
    largest = max(len(v) for v in sets.values())
    edges = np.linspace(0, x_range[1], int(np.clip(2 * largest ** (1 / 3) * 3, 12, 60)) + 1)
    parts = list(head)
    for rank, (name, values) in enumerate(sets.items()):
        base = top + row * (rank + 1)
        counts = np.histogram(values, edges)[0] / len(values)
        path = f"M{plot.x(edges[0]):.1f} {base:.1f}"
        for i, share in enumerate(counts):
            height = (row - 20) * share / max(counts.max(), 1e-12)
            path += f"V{base - height:.1f}H{plot.x(edges[i + 1]):.1f}"
        path += f"V{base:.1f}Z"
        parts.append(
            f'<path class="counts" d="{path}" fill="{colour_of(rank)}" fill-opacity="0.75"/>'
        )
        parts.append(line("axis", plot.left, base, plot.right, base))
        text = shortened(f"{name}, n = {len(values)}", WIDTH)
        parts.append(text_at(plot.left, base - row + 14, text))
    for value in marks.values():
        x = plot.x(value)
        parts.append(line("axis", x, top, x, plot.base, DASHED))
    parts += _axis_below(plot, x_label)
    rows = [(REFERENCE, f"{text}: {value:.3g}") for text, value in marks.items()]
    legend, end = _legend(rows, plot.base + 52)
    return document(title, facts, end - 6, [*parts, *legend])


def agreement_svg(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str, unit: str,
    texts: Mapping[str, str], simulated: bool = False,
) -> str:  # fmt: skip
    """Return measured against requested values, with the line on which both agree.

    Parameters
    ----------
    points : mapping of name to pair of sequences
        Requested (for real cases: true) and measured; the first is drawn on top.
    title, unit : str
    texts : mapping of name to text
        Correlation with its interval, for the legend.
    simulated : bool
    """
    points = {k: v for k, v in points.items() if len(v[0]) and len(v[0]) == len(v[1])}
    if not points:
        return ""
    facts = set_facts({k: len(v[0]) for k, v in points.items()}, simulated=simulated)
    head, top = _head(facts)
    both = _range([v for pair in points.values() for v in pair])
    plot = Plot(both, both, top, WIDTH - RIGHT - _LEFT, left=_LEFT)
    inside = [line("axis", plot.x(both[0]), plot.y(both[0]), plot.x(both[1]), plot.y(both[1]),
                   DASHED)]  # fmt: skip
    for rank, (x, y) in reversed(list(enumerate(points.values()))):
        step = max(1, -(-len(x) // _MOST))
        inside += [
            f'<circle class="case" cx="{plot.x(a):.1f}" cy="{plot.y(b):.1f}" r="2.6" '
            f'fill="{colour_of(rank)}" fill-opacity="{0.75 if rank == 0 else 0.45}"/>'
            for a, b in zip(x[::step], y[::step], strict=True)
        ]
    in_unit = f", {unit}" if unit else ""
    rows = [
        (f'fill="{colour_of(rank)}"', f"{name}  {texts.get(name, '')}".strip())
        for rank, name in enumerate(points)
    ]
    legend, end = _legend([*rows, (REFERENCE, "measured = requested")], plot.base + 52, len(points))
    frame = plot.frame(f"requested{in_unit}", f"measured{in_unit}")
    parts = [*head, *frame, plot.clipped(inside), *legend]
    return document(title, facts, end - 6, parts)


def _head(facts: SetFacts) -> tuple[list[str], float]:
    """Return the lines above a plot, and where the plot begins."""
    parts, top = head_of(facts)
    count = text_at(0, 11, shortened(facts.sets, WIDTH - (90 if facts.simulated else 0)))
    if facts.simulated:
        mark = '<tspan font-weight="700" class="simulated"> · simulated data</tspan>'
        count = count.replace("</text>", f"{mark}</text>")
    rest = parts[1:] if facts.interval else []
    return [count, *rest], top if facts.interval else top - LINE + 1
