# ruff: noqa: S314 - only documents of our own are parsed
"""Figures of a prediction: points are where the axes say, and the facts are in the picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest

from medpipe.figures.outcome import (
    Bin,
    Curve,
    calibration_svg,
    decision_svg,
    distribution_svg,
    precision_recall_svg,
    roc_svg,
)
from medpipe.figures.outcome_forest import ForestRow, flow_svg, forest_svg
from medpipe.figures.outcome_frame import WIDTH, Facts

FACTS = Facts(219, 63, "95 % band: bootstrap of patients", simulated=True)
X = np.linspace(0, 1, 60).tolist()
Y = np.sqrt(X).tolist()
LOW, HIGH = (0.8 * np.sqrt(X)).tolist(), np.minimum(1.1 * np.sqrt(X), 1).tolist()
ROC = Curve("CT alone", X, Y, LOW, HIGH, "0.82 (0.66 to 0.98)")
EDGES = np.linspace(0, 1, 11).tolist()
UP, DOWN = [0, 1, 2, 3, 4, 5, 6, 7, 8, 2], [30, 20, 10, 9, 8, 7, 6, 5, 4, 0]
BINS = [Bin(0.2, 0.1, 0.05, 0.3, 40), Bin(0.7, 0.8, None, None, 4)]
BENEFIT = Curve("CT alone", X[:50], (0.3 - 0.3 * np.array(X[:50])).tolist())
ALL = Curve("everyone", X[:50], (0.3 - np.array(X[:50])).tolist())
ROWS = [
    ForestRow("CT alone", 0.82, 0.66, 0.98, 219, 63),
    ForestRow("site Z", 0.6, None, None, 12, 3),
    ForestRow("site Y", None, None, None, 5, 0),
]

FIGURES: dict[str, Callable[[Facts], str]] = {
    "roc": lambda f: roc_svg([ROC], f, point=(0.25, 0.7)),
    "recall": lambda f: precision_recall_svg([ROC], f),
    "calibration": lambda f: calibration_svg(
        BINS, f, smooth=ROC, edges=EDGES, with_event=UP, without_event=DOWN
    ),
    "decision": lambda f: decision_svg([BENEFIT], ALL, f),
    "distribution": lambda f: distribution_svg(EDGES, UP, DOWN, f, thresholds=[0.3, 0.4]),
    "forest": lambda f: forest_svg(ROWS, f, title="t", x_label="AUROC", reference=0.5),
}


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(t.itertext()) for t in root.iter("text")]


def axis(root: ElementTree.Element, anchor: str, of: str) -> tuple[np.ndarray, np.ndarray]:
    """Return place and value of the numbers along one axis."""
    found = [
        (float(t.get(of, "nan")), float((t.text or "").replace("−", "-")))
        for t in root.iter("text")
        if t.get("text-anchor") == anchor and re.fullmatch(r"[−-]?[\d.]+", t.text or "")
    ]
    at, value = np.array(found).T
    return at, value


def points(path: str) -> np.ndarray:
    return np.array([[float(v) for v in p.split()] for p in re.split("[ML]", path.strip("Z")) if p])


def scales(root: ElementTree.Element) -> tuple[np.ndarray, np.ndarray]:
    at_x, value_x = axis(root, "middle", "x")
    at_y, value_y = axis(root, "end", "y")
    assert len(value_x) >= 3
    assert len(value_y) >= 3
    return np.polyfit(at_x, value_x, 1), np.polyfit(at_y - 4, value_y, 1)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("simulated", [True, False])
def test_every_figure_says_n_events_interval_and_whether_simulated(
    name: str, simulated: bool
) -> None:
    svg = FIGURES[name](Facts(219, 63, "95 % band: bootstrap of patients", simulated))
    root = ElementTree.fromstring(svg)
    shown, told = " ".join(texts(root)), root.get("aria-label", "")
    for text in (shown, told, root.findtext("title") or ""):
        assert "n = 219" in text
        assert "63 events" in text
        assert "95 % band: bootstrap of patients" in text
        assert ("simulated data" in text) is simulated
    assert root.get("role") == "img"
    assert "<script" not in svg
    assert not re.search(r"\b(href|url|on\w+)\b\s*=", svg)


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_outside(name: str) -> None:
    root = ElementTree.fromstring(FIGURES[name](FACTS))
    _, top, width, height = (float(v) for v in root.get("viewBox", "").split())
    assert width == WIDTH
    for text in root.iter("text"):
        if text.get("x") is None:
            continue
        x, y = float(text.get("x", "0")), float(text.get("y", "0"))
        long = 5.7 * len("".join(text.itertext()))
        start = x - {"start": 0, "middle": long / 2, "end": long}[text.get("text-anchor", "start")]
        assert start >= -2, "".join(text.itertext())
        assert start + long <= width + 12, "".join(text.itertext())
        assert top + 8 <= y <= top + height


@pytest.mark.parametrize("name", ["roc", "recall"])
def test_curves_and_bands_read_against_the_axes_are_the_values(name: str) -> None:
    root = ElementTree.fromstring(FIGURES[name](FACTS))
    to_x, to_y = scales(root)
    curve = next(p for p in root.iter("path") if p.get("class") == "curve")
    drawn = points(curve.get("d", ""))
    x, y = np.polyval(to_x, drawn[:, 0]), np.polyval(to_y, drawn[:, 1])
    assert x == pytest.approx(X, abs=0.002)
    assert y == pytest.approx(Y, abs=0.002)
    band = points(next(p for p in root.iter("path") if p.get("class") == "band").get("d", ""))
    x, y = np.polyval(to_x, band[:, 0]), np.polyval(to_y, band[:, 1])
    n = len(x) // 2
    assert y[:n] == pytest.approx(np.interp(x[:n], X, LOW), abs=0.004)
    assert y[n:] == pytest.approx(np.interp(x[n:], X, HIGH), abs=0.004)


def test_a_band_has_its_own_places() -> None:
    curve = Curve("a", [0, 1], [0, 1], [0.0, 0.1, 0.2], [0.5, 0.6, 0.7], band_x=[0, 0.5, 1])
    root = ElementTree.fromstring(roc_svg([curve], FACTS))
    to_x, _ = scales(root)
    band = points(next(p for p in root.iter("path") if p.get("class") == "band").get("d", ""))
    assert np.polyval(to_x, band[:, 0]) == pytest.approx([0, 0.5, 1, 1, 0.5, 0], abs=0.003)


def test_the_operating_point_is_marked_and_told() -> None:
    root = ElementTree.fromstring(FIGURES["roc"](FACTS))
    to_x, to_y = scales(root)
    dot = next(c for c in root.iter("circle") if c.get("class") == "point")
    assert np.polyval(to_x, float(dot.get("cx", 0))) == pytest.approx(0.25, abs=0.002)
    assert np.polyval(to_y, float(dot.get("cy", 0))) == pytest.approx(0.7, abs=0.002)
    assert "operating point: sensitivity 0.70, specificity 0.75" in texts(root)


def test_bins_of_a_calibration_curve_have_whiskers_where_there_is_an_interval() -> None:
    root = ElementTree.fromstring(FIGURES["calibration"](FACTS))
    to_x, to_y = scales(root)
    dots = [c for c in root.iter("circle") if c.get("class") == "bin"]
    x = np.polyval(to_x, [float(c.get("cx", 0)) for c in dots])
    y = np.polyval(to_y, [float(c.get("cy", 0)) for c in dots])
    assert x == pytest.approx([0.2, 0.7], abs=0.002)
    assert y == pytest.approx([0.1, 0.8], abs=0.002)
    (whisker,) = [w for w in root.iter("line") if w.get("class") == "whisker"]
    ends = np.polyval(to_y, [float(whisker.get(k, 0)) for k in ("y1", "y2")])
    assert ends == pytest.approx([0.05, 0.3], abs=0.002)
    assert len([p for p in root.iter("path") if p.get("class") == "counts"]) == 2


def test_bars_of_both_outcomes_have_one_scale() -> None:
    root = ElementTree.fromstring(FIGURES["distribution"](FACTS))
    up, down = (p.get("d", "") for p in root.iter("path") if p.get("class") == "counts")
    middle = float(re.findall(r"^M[\d.]+ ([\d.]+)", up)[0])
    heights = [
        np.array([float(v) for v in re.findall(r"V([\d.]+)H", d)]) - middle for d in (up, down)
    ]
    unit = heights[1][0] / DOWN[0]
    assert unit > 0
    assert heights[0] == pytest.approx(-unit * np.array(UP), abs=0.1)
    assert heights[1] == pytest.approx(unit * np.array(DOWN), abs=0.1)


def test_a_decision_curve_keeps_to_its_axes() -> None:
    root = ElementTree.fromstring(FIGURES["decision"](FACTS))
    to_x, to_y = scales(root)
    drawn = points(next(p for p in root.iter("path") if p.get("class") == "curve").get("d", ""))
    assert np.polyval(to_y, drawn[:, 1]) == pytest.approx(BENEFIT.y, abs=0.002)
    assert np.polyval(to_x, drawn[:, 0]) == pytest.approx(BENEFIT.x, abs=0.002)
    # to act on everyone goes far below 0: it is cut by the inner picture
    inner = next(s for s in root.iter("svg") if s is not root)
    assert inner.get("viewBox")


def test_a_forest_marks_what_has_no_interval() -> None:
    root = ElementTree.fromstring(FIGURES["forest"](FACTS))
    shown = texts(root)
    assert "0.82 (0.66 to 0.98)" in shown
    assert "too few to say" in shown
    assert "not estimable" in shown
    assert "n 12, 3 events" in shown
    at, value = axis(root, "middle", "x")
    to_x = np.polyfit(at, value, 1)
    (whisker,) = [w for w in root.iter("line") if w.get("class") == "whisker"]
    ends = np.polyval(to_x, [float(whisker.get(k, 0)) for k in ("x1", "x2")])
    assert ends == pytest.approx([0.66, 0.98], abs=0.003)
    (ring,) = [c for c in root.iter("circle") if c.get("class") == "value"]
    assert np.polyval(to_x, float(ring.get("cx", 0))) == pytest.approx(0.6, abs=0.003)


def test_a_forest_of_differences_has_a_true_minus() -> None:
    rows = [ForestRow("CT\u00a0+\u00a0clinical − CT\u00a0alone", -0.01, -0.06, 0.03, 219, 63)]
    svg = forest_svg(rows, FACTS, title="t", x_label="difference", reference=0.0)
    shown = texts(ElementTree.fromstring(svg))
    assert "−0.01 (−0.06 to 0.03)" in shown
    assert {"CT\u00a0+\u00a0clinical −", "CT\u00a0alone"} <= set(shown)


def test_the_flow_names_reasons_and_numbers() -> None:
    svg = flow_svg(225, [("no whole head", 4), ("MR given as CT", 2)], 219, 63,
                   patients=210, folds=5, simulated=True)  # fmt: skip
    shown = texts(ElementTree.fromstring(svg))
    for text in ("225 cases read", "6 left out", "4: no whole head", "2: MR given as CT",
                 "219 cases analysed of 210 patients", "63 with the event, 156 without",
                 "tested in 5 folds", "simulated data"):  # fmt: skip
        assert text in shown
    assert "225" not in flow_svg(None, [], 219, 63)


def test_models_differ_in_colour_and_dashes() -> None:
    curves = [Curve(f"m{i}", X, Y, rank=i) for i in range(5)]
    root = ElementTree.fromstring(roc_svg(curves, FACTS))
    drawn = [p for p in root.iter("path") if p.get("class") == "curve"]
    assert len({p.get("stroke") for p in drawn}) == 5
    assert len({p.get("stroke-dasharray") for p in drawn}) == 5


def test_texts_are_escaped() -> None:
    hostile = '<script>alert(1)</script>"&'
    facts = Facts(9, 1, hostile)
    for svg in (
        roc_svg([Curve(hostile, X, Y, text=hostile)], facts),
        forest_svg([ForestRow(hostile, 0.5, None, None, 9, 1)], facts, title=hostile,
                   x_label=hostile, reference=0.5),
        flow_svg(1, [(hostile, 1)], 0, 0),
    ):  # fmt: skip
        assert "<script" not in svg
        ElementTree.fromstring(svg)


def test_nothing_to_draw_is_no_figure() -> None:
    assert roc_svg([], FACTS) == ""
    assert precision_recall_svg([], FACTS) == ""
    assert calibration_svg([], FACTS) == ""
    assert decision_svg([], ALL, FACTS) == ""
    assert distribution_svg([], [], [], FACTS) == ""
    assert forest_svg([ROWS[2]], FACTS, title="t", x_label="x", reference=0.5) == ""
