# ruff: noqa: S314 - only documents of our own are parsed
"""Figures of times to an event: curves are where the axes say, numbers at risk where days are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from medpipe.figures.outcome_frame import Facts
from medpipe.figures.outcome_survival import RiskGroup, brier_svg, survival_svg

FACTS = Facts(120, 40, "thirds of out-of-fold risk; log-rank: p < 0.001; bands: 95 %", True)
LOW = RiskGroup(
    "low risk", 60, 4, [10, 50], [0.95, 0.9], 90, [0.8, 0.7], [0.99, 0.97],
    [0, 30, 90], [1, 0.95, 0.85], [60, 40, 20],
)  # fmt: skip
HIGH = RiskGroup("high <risk>", 60, 36, [5, 20], [0.7, 0.4], 60, at_risk=[60, 11, 0])
MARKS = [0, 40, 80]


def draw(simulated: bool = True) -> ElementTree.Element:
    facts = Facts(FACTS.n, FACTS.events, FACTS.interval, simulated)
    return ElementTree.fromstring(survival_svg([LOW, HIGH], facts, marks=MARKS, horizon=90))


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(t.itertext()) for t in root.iter("text")]


def points(path: ElementTree.Element) -> np.ndarray:
    parts = re.split("[ML]", path.get("d", "").strip("Z"))
    return np.array([[float(v) for v in p.split()] for p in parts if p])


def scale(root: ElementTree.Element, anchor: str, of: str, shift: float) -> np.ndarray:
    """Return the line from px to values of an axis, by its numbers."""
    found = [
        (float(t.get(of, "nan")) + shift, float(t.text or ""))
        for t in root.iter("text")
        if t.get("text-anchor") == anchor
        and t.get("class") is None
        and re.fullmatch(r"[\d.]+", t.text or "")
    ]
    assert len(found) >= 3
    return np.polyfit(*np.array(found).T, 1)


def test_curves_are_steps_at_their_days() -> None:
    root = draw()
    x_of, y_of = scale(root, "middle", "x", 0), scale(root, "end", "y", -4)
    low, high = (points(p) for p in root.iter("path") if p.get("class") == "curve")
    for drawn, days, shares in (
        (low, [0, 10, 10, 50, 50, 90], [1, 1, 0.95, 0.95, 0.9, 0.9]),
        (high, [0, 5, 5, 20, 20, 60], [1, 1, 0.7, 0.7, 0.4, 0.4]),
    ):
        np.testing.assert_allclose(np.polyval(x_of, drawn[:, 0]), days, atol=0.1)
        np.testing.assert_allclose(np.polyval(y_of, drawn[:, 1]), shares, atol=0.002)
    (said,) = (points(p) for p in root.iter("path") if p.get("class") == "predicted")
    np.testing.assert_allclose(np.polyval(y_of, said[:, 1]), [1, 0.95, 0.85], atol=0.002)
    (band,) = (points(p) for p in root.iter("path") if p.get("class") == "band")
    np.testing.assert_allclose(
        np.polyval(y_of, band[:, 1]), [1, 1, 0.99, 0.99, 0.97, 0.97, 0.7, 0.7, 0.8, 0.8, 1, 1],
        atol=0.002,
    )  # fmt: skip


def test_numbers_at_risk_stand_below_their_days() -> None:
    root = draw()
    x_of = scale(root, "middle", "x", 0)
    found = [
        (round(np.polyval(x_of, float(t.get("x", 0)))), int(t.text or 0))
        for t in root.iter("text")
        if t.get("class") == "risk"
    ]
    assert found == [(0, 60), (40, 40), (80, 20), (0, 60), (40, 11), (80, 0)]
    assert {"at risk", "low", "high"} <= set(texts(root))


@pytest.mark.parametrize("simulated", [True, False])
def test_the_figure_says_what_it_is_of(simulated: bool) -> None:
    root = draw(simulated)
    shown, told = " ".join(texts(root)), root.get("aria-label", "")
    for text in (shown, told):
        assert "n = 120, 40 events" in text
        assert ("simulated data" in text) is simulated
        assert "log-rank: p < 0.001" in text
    for text in ("low risk: n 60, 4 events", "high <risk>: n 60, 36 events", "seen (Kaplan-Meier)",
                 "mean predicted", "days", "share without the event"):  # fmt: skip
        assert text in shown
    _, top, width, height = (float(v) for v in root.get("viewBox", "").split())
    for text in root.iter("text"):
        if text.get("x") is None:
            continue
        assert -2 <= float(text.get("x", 0)) <= width
        assert top <= float(text.get("y", 0)) <= top + height


def test_scores_along_time_are_both_there() -> None:
    days, ours, other = [7, 30, 90], [0.05, 0.1, 0.15], [0.05, 0.15, 0.2]
    root = ElementTree.fromstring(brier_svg(days, ours, other, FACTS))
    y_of = scale(root, "end", "y", -4)
    lines = [points(p) for p in root.iter("path")]
    np.testing.assert_allclose(np.polyval(y_of, lines[0][:, 1]), other, atol=0.001)
    np.testing.assert_allclose(np.polyval(y_of, lines[1][:, 1]), ours, atol=0.001)
    assert "Kaplan-Meier for everyone" in texts(root)


def test_nothing_is_drawn_of_nothing() -> None:
    assert survival_svg([], FACTS, marks=[], horizon=90) == ""
    assert survival_svg([LOW], FACTS, marks=[], horizon=0) == ""
    assert brier_svg([1], [0.1], [0.1], FACTS) == ""
    assert brier_svg([1, 2], [0.1], [0.1, 0.2], FACTS) == ""
