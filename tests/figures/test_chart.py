# ruff: noqa: S314 - only documents of our own are parsed
"""Charts of lines: the points are where the axes say."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from medpipe.errors import UsageError
from medpipe.figures.chart import Line, line_chart_svg, loss_chart_svg, polyline_path

SVG = "{http://www.w3.org/2000/svg}"


def points(path: str) -> list[np.ndarray]:
    parts = [part for part in path.split("M") if part]
    return [np.array([[float(v) for v in p.split()] for p in part.split("L")]) for part in parts]


def axis(root: ElementTree.Element, anchor: str, coordinate: str) -> tuple[np.ndarray, np.ndarray]:
    """Return place and value of the numbers along one axis."""
    texts = [
        t for t in root.iter(f"{SVG}text")
        if t.get("text-anchor") == anchor and re.fullmatch(r"[\d.]+", t.text or "")
    ]  # fmt: skip
    at = np.array([float(t.get(coordinate, "nan")) for t in texts])
    return at, np.array([float(t.text or "nan") for t in texts])


def test_points_read_against_the_axes_are_the_values() -> None:
    x = np.linspace(0, 137.0, 400)
    y = 4.3 - 3 * x / 137 + 0.3 * np.sin(x / 9)
    chart = line_chart_svg(
        [Line(x, y, "one"), Line(x, y + 0.2, thin=True)],
        x_label="distance, mm", y_label="radius, mm", title="t", keys=[("ball", False)],
    )  # fmt: skip
    root = ElementTree.fromstring(chart)
    thick = next(p for p in root.iter(f"{SVG}path") if p.get("stroke-width") == "2")
    (drawn,) = points(thick.get("d", ""))
    at_x, value_x = axis(root, "middle", "x")
    at_y, value_y = axis(root, "end", "y")
    assert len(value_x) >= 5
    assert len(value_y) >= 4
    to_x, to_y = np.polyfit(at_x, value_x, 1), np.polyfit(at_y - 4, value_y, 1)
    found_x, found_y = np.polyval(to_x, drawn[:, 0]), np.polyval(to_y, drawn[:, 1])
    assert np.interp(found_x, x, y) == pytest.approx(found_y, abs=0.03)
    assert found_x[[0, -1]] == pytest.approx([0, 137], abs=0.3)


@pytest.mark.parametrize(("first", "logarithmic"), [(2e4, True), (3.0, False)])
def test_losses_that_fall_far_are_drawn_on_a_logarithmic_axis(
    first: float, logarithmic: bool
) -> None:
    y = np.geomspace(first, 0.7, 40)
    history = [{"iteration": n + 1, "loss": v, "metric": 1.1 * v} for n, v in enumerate(y)]
    root = ElementTree.fromstring(loss_chart_svg(history, title="t"))
    path = next(p for p in root.iter(f"{SVG}path"))
    (drawn,) = points(path.get("d", ""))
    at, value = axis(root, "end", "y")
    assert len(value) >= 4
    scale = np.log10 if logarithmic else np.array
    found = np.polyval(np.polyfit(at - 4, scale(value), 1), drawn[:, 1])
    assert found == pytest.approx(scale(y), abs=0.02)
    assert drawn[:, 1].max() - drawn[:, 1].min() > 200


def test_a_logarithm_of_nothing_is_refused() -> None:
    line = Line(np.arange(3.0), np.array([1.0, 0.0, 2.0]))
    with pytest.raises(UsageError, match="no logarithm"):
        line_chart_svg([line], x_label="x", y_label="y", title="t", log_y=True)


def test_values_that_are_not_known_make_gaps() -> None:
    x = np.arange(30.0)
    y = np.where((x > 9) & (x < 15), np.nan, 2.0)
    assert [len(p) for p in points(polyline_path(np.stack([x, y], 1)))] == [10, 15]


def test_many_points_are_thinned_and_the_ends_are_kept() -> None:
    angle = np.linspace(0, 2 * np.pi, 100_000)
    circle = 50 * np.stack([np.cos(angle), np.sin(angle)], 1)
    (kept,) = points(polyline_path(circle, 1.0))
    assert 250 < len(kept) < 400
    assert kept[0] == pytest.approx(circle[0], abs=0.06)
    assert kept[-1] == pytest.approx(circle[-1], abs=0.06)


def test_texts_are_escaped_and_the_bytes_repeat() -> None:
    line = Line(np.arange(5.0), np.arange(5.0), '<script>"&')
    both = [line_chart_svg([line], x_label="<b>", y_label="&", title="<i>") for _ in range(2)]
    assert both[0] == both[1]
    assert b"<script>" not in both[0]
    assert ElementTree.fromstring(both[0]).find(f"{SVG}title").text == "<i>"


@pytest.mark.parametrize("lines", [[], [Line(np.arange(3.0), np.full(3, np.nan))]])
def test_nothing_to_draw_is_said(lines: list[Line]) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        line_chart_svg(lines, x_label="x", y_label="y", title="t")


def test_a_flat_zero_line_is_drawn() -> None:
    chart = line_chart_svg(
        [Line(np.zeros(2), np.zeros(2), "zero")], x_label="x", y_label="y", title="t"
    )
    ElementTree.fromstring(chart)
