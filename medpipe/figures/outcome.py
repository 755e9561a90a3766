"""Figures of a prediction of two classes, as SVG text to be put into a page.

No script, no external file. Axes and text take the colours of the page; models are told
apart by colour and by dashes. Each figure says how many patients and events it is of, what
its interval is and whether the data are simulated, inside the picture, so that it says so
wherever it is copied to. Every text is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medpipe.figures.chart import SERIES_COLOURS
from medpipe.figures.outcome_frame import (
    DASHED,
    LEFT,
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

__all__ = [
    "Bin",
    "Curve",
    "calibration_svg",
    "decision_svg",
    "distribution_svg",
    "precision_recall_svg",
    "roc_svg",
]

_EVENT, _NO_EVENT = SERIES_COLOURS[1], SERIES_COLOURS[0]


@dataclass(frozen=True)
class Curve:
    """A curve of one model.

    Parameters
    ----------
    name : str
    x, y : sequence of float, n
    low, high : sequence of float, m
        Its band at `band_x`; empty where there is none.
    text : str
        Its figure with the interval, for the legend.
    rank : int
        Of the model: gives colour and dashes, the same in every figure.
    band_x : sequence of float, m
        `x` if empty.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    text: str = ""
    rank: int = 0
    band_x: Sequence[float] = ()


@dataclass(frozen=True)
class Bin:
    """A group of patients with near probabilities: its mean, what was seen, the interval."""

    mean: float
    observed: float
    low: float | None
    high: float | None
    n: int


def _curves(plot: Plot, curves: Sequence[Curve]) -> list[str]:
    """Return bands first, then lines, the first curve on top."""
    bands, lines = [], []
    for curve in reversed(curves):
        at = list(curve.band_x or curve.x)
        if len(curve.low) == len(curve.high) == len(at) > 1:
            colour = colour_of(curve.rank)
            there = plot.path(at, curve.low)
            back = plot.path(at[::-1], list(curve.high)[::-1])
            path = f"{there}L{back[1:]}Z"
            bands.append(f'<path class="band" d="{path}" fill="{colour}" fill-opacity="0.2"/>')
        path = plot.path(curve.x, curve.y)
        lines.append(f'<path class="curve" d="{path}" fill="none" {stroke_of(curve.rank)}/>')
    return bands + lines


def _legend(rows: Sequence[tuple[str, str]], y: float) -> tuple[list[str], float]:
    """Return a row for each (style, text), and where they end."""
    out = []
    for style, text in rows:
        out.append(f'<line x1="0" y1="{y - 4:.1f}" x2="26" y2="{y - 4:.1f}" {style}/>')
        out.append(text_at(33, y, shortened(text, WIDTH - 33)))
        y += LINE
    return out, y


def _named(curves: Sequence[Curve]) -> list[tuple[str, str]]:
    return [(stroke_of(c.rank), f"{c.name}  {c.text}".strip()) for c in curves]


def roc_svg(
    curves: Sequence[Curve], facts: Facts, *, point: tuple[float, float] | None = None
) -> str:
    """Return receiver operating characteristics: sensitivity against 1 − specificity.

    Parameters
    ----------
    curves : sequence of Curve
        The first is drawn on top; `text` is the area with its interval.
    facts : Facts
    point : (1 − specificity, sensitivity), optional
        The stated operating point of the first curve.
    """
    if not curves:
        return ""
    head, top = head_of(facts)
    plot = Plot((0.0, 1.0), (0.0, 1.0), top, WIDTH - LEFT - RIGHT - 40)
    inside = [line("axis", plot.x(0), plot.y(0), plot.x(1), plot.y(1), DASHED)]
    inside += _curves(plot, curves)
    rows = _named(curves)
    if point:
        inside.append(
            f'<circle class="point" cx="{plot.x(point[0]):.1f}" cy="{plot.y(point[1]):.1f}" '
            f'r="4.5" fill="{colour_of(curves[0].rank)}"/>'
        )
    legend, end = _legend(rows, plot.base + 52)
    if point:
        legend.append(f'<circle cx="13" cy="{end - 4:.1f}" r="4" class="dot"/>')
        text = f"operating point: sensitivity {point[1]:.2f}, specificity {1 - point[0]:.2f}"
        legend.append(text_at(33, end, text))
        end += LINE
    frame = plot.frame("1 − specificity", "sensitivity")
    return document("ROC curve", facts, end - 6, [*head, *frame, plot.clipped(inside), *legend])


def precision_recall_svg(curves: Sequence[Curve], facts: Facts) -> str:
    """Return precision (positive predictive value) against recall (sensitivity).

    The dashed line is the share of events, which a ranking by chance reaches.
    """
    if not curves or not facts.n:
        return ""
    head, top = head_of(facts)
    plot = Plot((0.0, 1.0), (0.0, 1.0), top, WIDTH - LEFT - RIGHT - 40)
    y = plot.y(facts.events / facts.n)
    inside = [line("axis", plot.left, y, plot.right, y, DASHED)]
    inside += _curves(plot, curves)
    rows = [*_named(curves), (REFERENCE, f"chance: {facts.events / facts.n:.2f}")]
    legend, end = _legend(rows, plot.base + 52)
    frame = plot.frame("recall (sensitivity)", "precision (PPV)")
    parts = [*head, *frame, plot.clipped(inside), *legend]
    return document("Precision-recall curve", facts, end - 6, parts)


def calibration_svg(
    bins: Sequence[Bin],
    facts: Facts,
    *,
    smooth: Curve | None = None,
    before: Curve | None = None,
    edges: Sequence[float] = (),
    with_event: Sequence[float] = (),
    without_event: Sequence[float] = (),
) -> str:
    """Return the share of events against the predicted probability, with a histogram below.

    Parameters
    ----------
    bins : sequence of Bin
        Dots with whiskers.
    facts : Facts
    smooth, before : Curve, optional
        A smoothed curve, and the one before recalibration.
    edges : sequence of float, m + 1
    with_event, without_event : sequence of float, m
        Counts of the histogram: events upwards, others downwards.
    """
    if not bins:
        return ""
    head, top = head_of(facts)
    plot = Plot((0.0, 1.0), (0.0, 1.0), top, WIDTH - LEFT - RIGHT - 40)
    inside = [line("axis", plot.x(0), plot.y(0), plot.x(1), plot.y(1), DASHED)]
    curves = [c for c in (smooth, before) if c is not None]
    inside += _curves(plot, curves)
    colour = colour_of(smooth.rank if smooth else 0)
    for one in bins:
        x = plot.x(one.mean)
        if one.low is not None and one.high is not None:
            style = f'stroke="{colour}" stroke-width="1.4"'
            inside.append(line("whisker", x, plot.y(one.low), x, plot.y(one.high), style))
        title = f"<title>{one.n} cases: predicted {one.mean:.2f}, seen {one.observed:.2f}"
        inside.append(
            f'<circle class="bin" cx="{x:.1f}" cy="{plot.y(one.observed):.1f}" r="3.6" '
            f'fill="{colour}">{title}</title></circle>'
        )
    strip = _mirrored(plot, plot.base + 66, 24.0, edges, with_event, without_event)
    legend, end = _legend(
        [*_named(curves), (REFERENCE, "predicted = seen")], plot.base + (114 if strip else 52)
    )
    frame = plot.frame("predicted probability", "share of events")
    parts = [*head, *frame, plot.clipped(inside), *strip, *legend]
    return document("Calibration curve", facts, end - 6, parts)


def _mirrored(
    plot: Plot,
    middle: float,
    reach: float,
    edges: Sequence[float],
    above: Sequence[float],
    below: Sequence[float],
) -> list[str]:
    """Return bars upwards and downwards from a line, on one scale of counts."""
    tall = max([*above, *below, 0])
    if not len(edges) == len(above) + 1 == len(below) + 1 or tall <= 0:
        return []
    out = []
    for counts, sign, colour in ((above, -1, _EVENT), (below, 1, _NO_EVENT)):
        path = f"M{plot.x(edges[0]):.1f} {middle:.1f}"
        for i, count in enumerate(counts):
            path += f"V{middle + sign * count / tall * reach:.1f}H{plot.x(edges[i + 1]):.1f}"
        path += f"V{middle:.1f}Z"
        out.append(f'<path class="counts" d="{path}" fill="{colour}" fill-opacity="0.75"/>')
    out.append(line("axis", plot.left, middle, plot.right, middle))
    names = ((middle - reach / 2 + 4, "event"), (middle + reach / 2 + 4, "none"))
    return out + [text_at(plot.left - 6, y, name, "end") for y, name in names]


def distribution_svg(
    edges: Sequence[float],
    with_event: Sequence[float],
    without_event: Sequence[float],
    facts: Facts,
    *,
    thresholds: Sequence[float] = (),
) -> str:
    """Return how predicted probabilities are spread: events upwards, others downwards.

    Parameters
    ----------
    edges : sequence of float, m + 1
    with_event, without_event : sequence of float, m
        Counts.
    facts : Facts
    thresholds : sequence of float
        Of the operating point, one for each fold.
    """
    head, top = head_of(facts)
    tall = max([*with_event, *without_event, 0])
    plot = Plot((0.0, 1.0), (-1.08 * tall, 1.08 * tall), top, 220.0) if tall else None
    if plot is None:
        return ""
    bars = _mirrored(plot, plot.y(0), plot.height / 2.16, edges, with_event, without_event)
    marks = [line("axis", plot.x(t), plot.top, plot.x(t), plot.base, DASHED) for t in thresholds]
    frame = []
    for tick in ticks(0, tall, 3):
        for y in {plot.y(tick), plot.y(-tick)}:
            frame.append(line("grid", plot.left, y, plot.right, y))
            if tick:
                frame.append(text_at(plot.right, y - 3, tick_text(tick), "end"))
    for tick in ticks(0, 1, 5):
        x = plot.x(tick)
        frame.append(line("axis", x, plot.base, x, plot.base + 4))
        frame.append(text_at(x, plot.base + 16, tick_text(tick), "middle"))
    middle = (plot.left + plot.right) / 2
    frame.append(text_at(middle, plot.base + 31, "predicted probability", "middle"))
    end = plot.base + 52
    legend: list[str] = []
    if marks:
        several = "thresholds of the folds" if len(marks) > 1 else "threshold"
        legend, end = _legend([(REFERENCE, several)], end)
    title = "Predicted probabilities by outcome"
    return document(title, facts, end - 6, [*head, *frame, *bars, *marks, *legend])


def decision_svg(curves: Sequence[Curve], treat_all: Curve, facts: Facts) -> str:
    """Return the net benefit against the threshold probability.

    The dashed line is to act on everyone, 0 is to act on no one.
    """
    values = np.array([v for c in curves for v in c.y], float)
    if not curves or not values.size or not len(treat_all.x):
        return ""
    head, top = head_of(facts)
    bands = [float(v) for c in curves for v in c.high]
    high = max(float(values.max()), max(treat_all.y), *bands, 0.01) * 1.08
    low = min(-0.25 * high, max(float(values.min()), -0.5 * high) * 1.05)
    end = max(max(c.x) for c in curves)
    plot = Plot((0.0, max(end, 0.05)), (low, high), top, 250.0, left=LEFT + 10)
    inside = [
        f'<path class="axis" d="{plot.path(treat_all.x, treat_all.y)}" fill="none" {DASHED}/>',
        line("axis", plot.left, plot.y(0), plot.right, plot.y(0)),
        *_curves(plot, curves),
    ]
    rows = [*_named(curves), (REFERENCE, "act on everyone; the line at 0: on no one")]
    legend, bottom = _legend(rows, plot.base + 52)
    frame = plot.frame("threshold probability", "net benefit")
    parts = [*head, *frame, plot.clipped(inside), *legend]
    return document("Decision curve", facts, bottom - 6, parts)
