"""Figures of times to an event, as SVG text: observed and predicted survival of risk groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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

__all__ = ["RiskGroup", "brier_svg", "survival_svg"]

_LEFT = 60.0
_RANKS = (2, 0, 1, 3)
"""Colours of groups by rising risk."""


@dataclass(frozen=True)
class RiskGroup:
    """Cases of near predicted risk: what was seen, and what was predicted on average.

    Parameters
    ----------
    name : str
        Its first word stands before the numbers at risk.
    n, events : int
    x, y : sequence of float, m
        Kaplan-Meier: days with an event, and the share without it from then on.
    until : float
        Day of the last case seen; the curve ends there.
    low, high : sequence of float, m
        Its band; empty where there is none.
    predicted_x, predicted_y : sequence of float
        Mean predicted share without the event.
    at_risk : sequence of int
        Cases seen for that long or longer, at each mark.
    """

    name: str
    n: int
    events: int
    x: Sequence[float]
    y: Sequence[float]
    until: float
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    predicted_x: Sequence[float] = ()
    predicted_y: Sequence[float] = ()
    at_risk: Sequence[int] = ()


def survival_svg(
    groups: Sequence[RiskGroup], facts: Facts, *, marks: Sequence[float], horizon: float
) -> str:
    """Return Kaplan-Meier curves of groups beside mean predicted survival, numbers at risk below.

    Parameters
    ----------
    groups : sequence of RiskGroup
        By rising risk.
    facts : Facts
    marks : sequence of float
        Days that numbers at risk are of.
    horizon : float
        The last day.
    """
    if not groups or not horizon > 0:
        return ""
    head, top = head_of(facts)
    plot = Plot((0.0, horizon), (0.0, 1.0), top, 250.0, left=_LEFT)
    bands, lines = [], []
    for rank, group in enumerate(groups):
        colour = colour_of(_RANKS[rank % len(_RANKS)])
        bands += _band(plot, group, colour)
        x, y = _steps(group.x, group.y, 1.0, group.until)
        lines.append(
            f'<path class="curve" d="{plot.path(x, y)}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        if len(group.predicted_x) == len(group.predicted_y) > 1:
            path = plot.path(group.predicted_x, group.predicted_y)
            lines.append(
                f'<path class="predicted" d="{path}" fill="none" stroke="{colour}" '
                f'stroke-width="1.6" {DASHED}/>'
            )
    below, end = _at_risk(plot, groups, marks)
    legend, end = _legend(groups, end + 8)
    frame = plot.frame("days", "share without the event")
    parts = [*head, *frame, plot.clipped([*bands, *lines]), *below, *legend]
    return document("Observed and predicted survival of risk groups", facts, end - 6, parts)


def _steps(
    x: Sequence[float], y: Sequence[float], start: float, until: float
) -> tuple[list[float], list[float]]:
    """Return the corners of a curve that holds from each day to the next."""
    days = np.r_[0.0, np.repeat(np.asarray(x, float), 2), until]
    shares = np.repeat(np.r_[start, np.asarray(y, float)], 2)
    return days.tolist(), shares.tolist()


def _band(plot: Plot, group: RiskGroup, colour: str) -> list[str]:
    if not len(group.low) == len(group.high) == len(group.x) > 0:
        return []
    x, high = _steps(group.x, group.high, 1.0, group.until)
    _, low = _steps(group.x, group.low, 1.0, group.until)
    path = f"{plot.path(x, high)}L{plot.path(x[::-1], low[::-1])[1:]}Z"
    return [f'<path class="band" d="{path}" fill="{colour}" fill-opacity="0.15"/>']


def _at_risk(
    plot: Plot, groups: Sequence[RiskGroup], marks: Sequence[float]
) -> tuple[list[str], float]:
    """Return the rows of numbers at risk, and where they end."""
    y = plot.base + 50
    out = [text_at(0, y, "at risk")]
    for rank, group in enumerate(groups):
        y += LINE
        colour = colour_of(_RANKS[rank % len(_RANKS)])
        out.append(f'<rect x="0" y="{y - 8:.1f}" width="4" height="8" fill="{colour}"/>')
        out.append(text_at(7, y, shortened(group.name.split(" ")[0], _LEFT - 18)))
        out += [
            text_at(plot.x(day), y, f"{count}", "middle", 'class="risk"')
            for day, count in zip(marks, group.at_risk, strict=False)
        ]
    return out, y + LINE


def _legend(groups: Sequence[RiskGroup], y: float) -> tuple[list[str], float]:
    rows = [
        (
            f'stroke="{colour_of(_RANKS[rank % len(_RANKS)])}" stroke-width="2"',
            f"{g.name}: n {g.n}, {g.events} event{'s' if g.events != 1 else ''}",
        )
        for rank, g in enumerate(groups)
    ]
    rows += [
        ('class="axis" stroke-width="2"', "line: seen (Kaplan-Meier)"),
        (REFERENCE, "dashes: mean predicted"),
    ]
    return _keys(rows, y)


def _keys(rows: Sequence[tuple[str, str]], y: float) -> tuple[list[str], float]:
    """Return a row for each (style, text), and where they end."""
    out = []
    for style, text in rows:
        out.append(f'<line x1="0" y1="{y - 4:.1f}" x2="26" y2="{y - 4:.1f}" {style}/>')
        out.append(text_at(33, y, shortened(text, WIDTH - 33)))
        y += LINE
    return out, y


def brier_svg(
    days: Sequence[float], model: Sequence[float], reference: Sequence[float], facts: Facts
) -> str:
    """Return the Brier score along time, of a model and of Kaplan-Meier's curve for everyone.

    Parameters
    ----------
    days, model, reference : sequence of float, m
    facts : Facts
    """
    if not len(days) == len(model) == len(reference) > 1:
        return ""
    head, top = head_of(facts)
    high = max(*model, *reference, 0.01) * 1.12
    plot = Plot((0.0, 1.03 * max(days)), (0.0, high), top, WIDTH - LEFT - RIGHT - 110)
    styles = (REFERENCE, stroke_of(0))
    inside = [
        f'<path {style} d="{plot.path(days, values)}" fill="none"/>'
        for style, values in zip(styles, (reference, model), strict=True)
    ]
    inside += [
        f'<circle class="bin" cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="3" '
        f'fill="{colour_of(0)}"/>'
        for x, y in zip(days, model, strict=True)
    ]
    legend, end = _keys(
        [(styles[1], "model"), (styles[0], "Kaplan-Meier for everyone")], plot.base + 52
    )
    base = line("axis", plot.left, plot.y(0), plot.right, plot.y(0))
    frame = plot.frame("days", "Brier score, less is better")
    parts = [*head, *frame, base, plot.clipped(inside), *legend]
    return document("Brier score along time", facts, end - 6, parts)
