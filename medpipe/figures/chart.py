"""A chart of lines as an SVG document that stands alone: axes, grid, legend.

It follows the light or dark mode of whoever shows it, and is light elsewhere. Every
text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import UsageError
from medpipe.figures.svg import tick_text, ticks

__all__ = ["SERIES_COLOURS", "Line", "line_chart_svg", "loss_chart_svg", "polyline_path"]

SERIES_COLOURS = (
    "#2f7fc1", "#d9622b", "#1f9d78", "#b24fa0", "#b58900", "#6a6fd0", "#4f8f2f", "#c23b4e",
)  # fmt: skip
"""Told apart on white and on near-black, and in this order by most eyes."""

_STYLE = """
.ground { fill: #ffffff } .title { fill: #1c2126; font-size: 15px; font-weight: 600 }
text { fill: #4c555e; font: 12px system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif }
.axis { stroke: #5d666f } .grid { stroke: #e3e6e8 } .key { stroke: #4c555e }
path { fill: none; stroke-linejoin: round; stroke-linecap: round }
@media (prefers-color-scheme: dark) {
  .ground { fill: #171b1f } .title { fill: #e4e7ea } text { fill: #a9b2ba }
  .axis { stroke: #8a949d } .grid { stroke: #2b3137 } .key { stroke: #a9b2ba }
}
"""
_LEFT, _TOP, _BOTTOM, _RIGHT = 62, 40, 48, 16
_LEGEND_ROW = 19
_CHARACTER = 6.7
_DECADES = 50.0
"""A loss that falls by more than this is drawn on a logarithmic axis."""


_Share = Callable[[Any], Any]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Parameters
    ----------
    x, y : arrays (n,)
        NaN in `y` makes a gap.
    name : str, optional
        In the legend; lines without a name are not listed.
    colour : str
        ``"#rrggbb"``.
    thin : bool
        Drawn thinner and dashed, as the companion of a line.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    name: str = ""
    colour: str = SERIES_COLOURS[0]
    thin: bool = False


def line_chart_svg(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    title: str,
    keys: Sequence[tuple[str, bool]] = (),
    log_y: bool = False,
    width: int = 960,
    height: int = 440,
) -> bytes:
    """Return a chart of lines with the y axis from 0, or a logarithmic one.

    Parameters
    ----------
    lines : sequence of Line
    x_label, y_label, title : str
        Labels with their units.
    keys : sequence of (str, bool)
        What thick (False) and thin (True) lines mean, below the legend.
    log_y : bool
        For values above 0 alone.
    width, height : int
        In px.

    Raises
    ------
    UsageError
        If there is no finite point, or one that has no logarithm.
    """
    x_end, y_end = _limits(lines)
    y_marks, y_share = _logarithmic(lines) if log_y else _linear(y_end)
    named = [line for line in lines if line.name]
    longest = max([len(line.name) for line in named] + [len(name) for name, _ in keys] + [0])
    legend = 40 + _CHARACTER * longest if longest else 0.0
    right, base = width - _RIGHT - legend, height - _BOTTOM

    def to_px(line: Line) -> NDArray[np.float64]:
        x = _LEFT + line.x / x_end * (right - _LEFT)
        return np.stack([x, base - y_share(line.y) * (base - _TOP)], 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(title)}">'
        f"<style>{_STYLE}</style><title>{escape(title)}</title>"
        f'<rect class="ground" width="{width}" height="{height}"/>'
        f'<text class="title" x="{_LEFT}" y="24">{escape(title)}</text>',
        *_axes(x_end, [(tick, float(y_share(tick))) for tick in y_marks], right, base),
        f'<text x="{(_LEFT + right) / 2:.0f}" y="{height - 10}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text transform="translate(16 {(base + _TOP) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>',
    ]
    for line in sorted(lines, key=lambda one: not one.thin):
        parts.append(_drawn(line, polyline_path(to_px(line), 0.7)))
    parts += _legend(named, keys, right + 18)
    return "".join([*parts, "</svg>\n"]).encode()


def loss_chart_svg(
    history: Sequence[Mapping[str, Any]], *, title: str, y_label: str = "loss"
) -> bytes:
    """Return the chart of a training: losses against the iteration.

    The axis is logarithmic where they fall far.

    Parameters
    ----------
    history : sequence of mapping
        ``iteration``, ``loss`` of the training and ``metric`` of the validation; see
        `medpipe.train.TrainResult`.
    title, y_label : str
    """
    x = np.array([row["iteration"] for row in history], float)
    lines = [
        Line(x, np.array([row[column] for row in history], float), name, colour)
        for column, name, colour in zip(
            ("loss", "metric"), ("training", "validation"), SERIES_COLOURS, strict=False
        )
    ]
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    far = values.size > 0 and values.min() > 0 and values.max() > _DECADES * values.min()
    return line_chart_svg(lines, x_label="iteration", y_label=y_label, title=title, log_y=bool(far))


def _limits(lines: Sequence[Line]) -> tuple[float, float]:
    """Return where the axes end: at a round number beyond the largest value."""
    ends = []
    for values in ([line.x for line in lines], [line.y for line in lines]):
        every = np.concatenate([np.asarray(v, float) for v in values]) if values else np.empty(0)
        every = every[np.isfinite(every)]
        if not every.size:
            raise UsageError("there is nothing to draw", expected="lines with finite values")
        top = max(float(every.max()), 1e-9)
        marks = ticks(0.0, top, 7)
        step = marks[1] - marks[0]
        ends.append(top if top - marks[-1] < 0.3 * step else marks[-1] + step)
    return ends[0], ends[1] * 1.03


def _linear(end: float) -> tuple[list[float], _Share]:
    """Return marks of an axis from 0, and where on it values are, as a share of its length."""
    return ticks(0.0, end, 7), lambda values: values / end


def _logarithmic(lines: Sequence[Line]) -> tuple[list[float], _Share]:
    """Return marks of a logarithmic axis, and where on it values are."""
    values = np.concatenate([np.asarray(line.y, float) for line in lines])
    values = values[np.isfinite(values)]
    if values.min() <= 0:
        raise UsageError("values have no logarithm", expected="above 0", got=f"{values.min():g}")
    low, high = (float(np.log10(end)) for end in (values.min() / 1.1, values.max() * 1.1))
    between = (1, 2, 5) if high - low < 3 else (1,)
    tens = range(math.floor(low), math.ceil(high) + 1)
    marks = [m * 10.0**ten for ten in tens for m in between]
    inside = [mark for mark in marks if low <= math.log10(mark) <= high]
    return inside, lambda values: (np.log10(values) - low) / (high - low)


def _axes(
    x_end: float, y_marks: Sequence[tuple[float, float]], right: float, base: float
) -> list[str]:
    out = []
    for tick, share in y_marks:
        y = base - share * (base - _TOP)
        out.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>')
        out.append(
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick_text(tick)}</text>'
        )
    out.append(f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{right:.1f}" y2="{base}"/>')
    for tick in ticks(0.0, x_end, 9):
        x = _LEFT + tick / x_end * (right - _LEFT)
        out.append(f'<line class="axis" x1="{x:.1f}" y1="{base}" x2="{x:.1f}" y2="{base + 5}"/>')
        out.append(
            f'<text x="{x:.1f}" y="{base + 19}" text-anchor="middle">{tick_text(tick)}</text>'
        )
    return out


def _drawn(line: Line, path: str) -> str:
    style = 'stroke-width="1.1" stroke-dasharray="4 2.5"' if line.thin else 'stroke-width="2"'
    return f'<path d="{path}" stroke="{line.colour}" {style}/>'


def _legend(lines: Sequence[Line], keys: Sequence[tuple[str, bool]], left: float) -> list[str]:
    out, y = [], _TOP + 8.0
    rows = [(line.name, f'stroke="{line.colour}" stroke-width="2.4"') for line in lines]
    for name, thin in keys:
        style = 'stroke-width="1.1" stroke-dasharray="4 2.5"' if thin else 'stroke-width="2"'
        rows.append((name, f'class="key" {style}'))
    for rank, (name, style) in enumerate(rows):
        y += 10 if rank == len(lines) and rank else 0
        out.append(
            f'<line x1="{left:.1f}" y1="{y:.1f}" x2="{left + 18:.1f}" y2="{y:.1f}" {style}/>'
        )
        out.append(f'<text x="{left + 25:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
        y += _LEGEND_ROW
    return out


def polyline_path(points: NDArray[np.float64], step: float = 1.0) -> str:
    """Return the ``d`` of a polyline (n, 2) in px, thinned to a point every `step` px or so.

    Parts end where a coordinate is not finite. First and last points are kept.
    """
    out = []
    finite = np.isfinite(points).all(1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]]).astype(np.int8)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        part = points[start:stop]
        length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(part, axis=0), axis=1))])
        keep = np.diff(np.floor(length / step), prepend=-1) > 0
        keep[-1] = True
        out.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in part[keep].tolist()))
    return "".join(out)
