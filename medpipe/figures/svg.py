"""Small charts as SVG text: no script, no external file, colours by CSS class.

Every string is escaped here, so that the result can be put into a page as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

__all__ = ["histogram_svg", "outliers", "share_bar_svg", "strip_svg", "tick_text", "ticks"]


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return about `wanted` round positions inside ``[low, high]``."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return []
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """Return a short number: 2500000 as ``"2.5M"``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):g}{unit}"
    return f"{value:g}"


def _open(width: int, height: int, label: str, css: str) -> str:
    return (
        f'<svg class="chart {css}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}" preserveAspectRatio="xMidYMid meet">'
        f"<title>{escape(label)}</title>"
    )


def _axis(low: float, high: float, width: int, y: float, unit: str) -> list[str]:
    out = [f'<line class="axis" x1="0" y1="{y:.1f}" x2="{width}" y2="{y:.1f}"/>']
    for tick in ticks(low, high, 6):
        x = (tick - low) / (high - low) * width
        anchor = "start" if x < 14 else "end" if x > width - 14 else "middle"
        out.append(f'<line class="axis" x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{y + 4:.1f}"/>')
        out.append(
            f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="{anchor}">{tick_text(tick)}</text>'
        )
    if unit:
        out.append(f'<text x="{width}" y="{y + 29:.1f}" text-anchor="end">{escape(unit)}</text>')
    return out


def histogram_svg(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    window: Sequence[float] | None = None,
    unit: str = "",
    label: str = "Histogram of voxel values",
    width: int = 520,
    height: int = 170,
) -> str:
    """Return a histogram with a logarithmic y axis and the display window shaded.

    Parameters
    ----------
    edges : sequence of float, n + 1
    counts : sequence of float, n
    window : (low, high), optional
        Part of the x axis to shade.
    """
    if len(edges) != len(counts) + 1 or not counts or not edges[-1] > edges[0]:
        return ""
    base, low, high = height - 32.0, edges[0], edges[-1]
    top = math.log10(max(*counts, 1) + 1)

    def x_of(value: float) -> float:
        return min(max((value - low) / (high - low), 0.0), 1.0) * width

    def y_of(count: float) -> float:
        return base - math.log10(count + 1) / top * (base - 6)

    parts = [_open(width, height, label, "histogram")]
    if window:
        x0, x1 = x_of(window[0]), x_of(window[1])
        parts.append(
            f'<rect class="window" x="{x0:.1f}" y="0" width="{max(x1 - x0, 1):.1f}" '
            f'height="{base:.1f}"/>'
        )
    for power in range(1, int(top) + 1):
        y = y_of(10.0**power - 1)
        parts.append(f'<line class="grid" x1="0" y1="{y:.1f}" x2="{width}" y2="{y:.1f}"/>')
        parts.append(f'<text class="faint" x="{width}" y="{y - 2:.1f}" text-anchor="end">'
                     f"10<tspan dy='-4' font-size='8'>{power}</tspan></text>")  # fmt: skip
    path = f"M0 {base:.1f}"
    for i, count in enumerate(counts):
        path += f"V{y_of(count):.1f}H{x_of(edges[i + 1]):.1f}"
    parts.append(f'<path class="bars" d="{path}V{base:.1f}Z"/>')
    return "".join([*parts, *_axis(low, high, width, base, unit), "</svg>"])


def _quartiles(ordered: Sequence[float]) -> tuple[float, float, float]:
    def at(q: float) -> float:
        place = q * (len(ordered) - 1)
        i = int(place)
        j = min(i + 1, len(ordered) - 1)
        return ordered[i] + (ordered[j] - ordered[i]) * (place - i)

    return at(0.25), at(0.5), at(0.75)


def outliers(values: Mapping[str, float], limit: int = 3) -> list[tuple[str, float]]:
    """Return the names farthest outside 1.5 interquartile ranges, the farthest first."""
    if len(values) < 5:
        return []
    q1, middle, q3 = _quartiles(sorted(values.values()))
    reach = 1.5 * (q3 - q1) + 1e-9 * max(abs(q1), abs(q3))
    far = [(n, v) for n, v in values.items() if v < q1 - reach or v > q3 + reach]
    return sorted(far, key=lambda item: (-abs(item[1] - middle), item[0]))[:limit]


def strip_svg(
    values: Mapping[str, float],
    *,
    label: str,
    links: Mapping[str, str] | None = None,
    width: int = 340,
    height: int = 104,
) -> str:
    """Return a distribution: dots (bars from 250 values on), quartile box, outliers by name.

    Parameters
    ----------
    values : mapping of name to value
    label : str
        What the values are, for readers who cannot see the chart.
    links : mapping of name to address, optional
        Makes the outliers' names links.
    """
    ordered = sorted(values.values())
    low, high = ordered[0], ordered[-1]
    if not high > low:
        return ""
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    base = height - 22.0
    named = outliers(values)

    def x_of(value: float) -> float:
        return (value - low) / (high - low) * width

    parts = [_open(width, height, label, "strip")]
    q1, middle, q3 = _quartiles(ordered)
    box_top, box_bottom = 22.0, base - 6
    parts.append(
        f'<rect class="box" x="{x_of(q1):.1f}" y="{box_top}" '
        f'width="{max(x_of(q3) - x_of(q1), 1):.1f}" height="{box_bottom - box_top}"/>'
    )
    if len(ordered) > 250:
        parts.append(_bars(ordered, low, high, width, box_top, box_bottom))
    else:
        for rank, (name, value) in enumerate(sorted(values.items())):
            y = box_top + 3 + (rank * 0.6180339887 % 1) * (box_bottom - box_top - 6)
            parts.append(f'<circle class="dot" cx="{x_of(value):.1f}" cy="{y:.1f}" r="2.4">'
                         f"<title>{escape(name)}: {value:.5g}</title></circle>")  # fmt: skip
    parts.append(f'<line class="median" x1="{x_of(middle):.1f}" y1="{box_top - 3}" '
                 f'x2="{x_of(middle):.1f}" y2="{box_bottom + 3}"/>')  # fmt: skip
    parts += _names(named, x_of, links or {}, width, box_top)
    return "".join([*parts, *_axis(low, high, width, base, ""), "</svg>"])


def _bars(
    ordered: Sequence[float], low: float, high: float, width: int, top: float, bottom: float
) -> str:
    n = 48
    counts = [0] * n
    for value in ordered:
        counts[min(int((value - low) / (high - low) * n), n - 1)] += 1
    tall = max(counts)
    path = f"M0 {bottom:.1f}"
    for i, count in enumerate(counts):
        y = bottom - math.sqrt(count / tall) * (bottom - top)
        path += f"V{y:.1f}H{(i + 1) * width / n:.1f}"
    return f'<path class="bars" d="{path}V{bottom:.1f}Z"/>'


def _names(
    named: Sequence[tuple[str, float]],
    x_of: Callable[[float], float],
    links: Mapping[str, str],
    width: int,
    top: float,
) -> list[str]:
    """Write outlier names above the box, leaving out those that would overlap."""
    out: list[str] = []
    taken: list[tuple[float, float]] = []
    for name, value in named:
        short = name if len(name) <= 18 else name[:17] + "…"
        x, need = x_of(value), 6.2 * len(short)
        left = min(max(x - need / 2, 0), width - need)
        if any(left < b + 6 and left + need > a - 6 for a, b in taken):
            continue
        taken.append((left, left + need))
        text = f'<text class="outlier" x="{left:.1f}" y="{top - 8:.1f}">{escape(short)}</text>'
        text += f'<circle class="outlier" cx="{x:.1f}" cy="{top - 3:.1f}" r="2.6"/>'
        if name in links:
            text = f'<a href="{escape(links[name])}">{text}</a>'
        out.append(text)
    return out


def share_bar_svg(share: float, label: str) -> str:
    """Return a thin bar that fills `share` (0..1) of its width."""
    filled = 100 * min(max(share, 0.0), 1.0)
    return (
        '<svg class="share" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}"><rect class="back" width="100" height="6"/>'
        f'<rect class="fill" width="{filled:.2f}" height="6"/></svg>'
    )
