# ruff: noqa: S314 - only documents of our own are parsed
"""Figures of synthetic sets: points are where the axes say, and the facts are in the picture."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from medpipe.figures.synthesis import agreement_svg, distances_svg, distribution_svg

RNG = np.random.default_rng(0)
SETS = {"real cases": RNG.normal(5, 1, 40).tolist(), "synthetic <cases>": [4.0, 5.0, 6.0]}
POINTS = {"synthetic": ([1.0, 2.0, 3.0], [1.5, 2.0, 2.5]), "real": ([1.0, 3.0], [1.0, 3.0])}

FIGURES = {
    "distribution": lambda simulated: distribution_svg(
        SETS, title="Volumes", x_label="mm³", simulated=simulated
    ),
    "distances": lambda simulated: distances_svg(
        SETS, title="Distances", x_label="rms", marks={"smallest": 1.0}, simulated=simulated
    ),
    "agreement": lambda simulated: agreement_svg(
        POINTS, title="Age", unit="years", texts={"real": "r 0.9"}, simulated=simulated
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_each_says_how_many_cases_it_is_of_and_whether_they_are_simulated(name):
    for simulated in (True, False):
        svg = FIGURES[name](simulated)
        root = ElementTree.fromstring(svg)
        said = "".join(root.itertext())
        assert re.search(r"\b3 synthetic|synthetic[^,]*, n = 3", said)
        assert ("simulated data" in said) == simulated
        assert "nan" not in svg
    assert "<cases>" not in svg


def test_the_steps_of_a_distribution_are_where_the_values_are():
    svg = distribution_svg({"a": [1.0, 2.0, 4.0]}, title="t", x_label="x")
    root = ElementTree.fromstring(svg)
    (path,) = (p for p in root.iter("path") if p.get("class") == "curve")
    across = [float(v) for v in re.findall(r"H([\d.]+)", path.get("d"))]
    up = [float(v) for v in re.findall(r"V([\d.]+)", path.get("d"))]
    ratio = (across[1] - across[0]) / (across[2] - across[1])
    assert ratio == pytest.approx(0.5, abs=0.01)
    assert np.diff(up) == pytest.approx([up[1] - up[0]] * 2, abs=0.15)
    assert len(up) == 3


def test_points_on_the_line_are_drawn_on_it():
    root = ElementTree.fromstring(FIGURES["agreement"](False))
    dots = [d for d in root.iter("circle") if d.get("class") == "case"]
    assert len(dots) == 5
    marks = [d for d in root.iter("circle") if d.get("class") != "case"]
    assert len({d.get("fill") for d in marks}) == len(marks) == 2
    # the two real ones come first, below the others, on the diagonal of a square
    (x1, y1), (x2, y2) = ((float(d.get("cx")), float(d.get("cy"))) for d in dots[:2])
    assert x2 - x1 == pytest.approx(y1 - y2, rel=0.1)


def test_histograms_hold_every_distance():
    values = RNG.uniform(0.5, 2, 200).tolist()
    svg = distances_svg({"a": values}, title="t", x_label="x", marks={"m": 3.0})
    root = ElementTree.fromstring(svg)
    (path,) = (p for p in root.iter("path") if p.get("class") == "counts")
    base = float(re.match(r"M[\d.]+ ([\d.]+)", path.get("d")).group(1))
    up = [base - float(v) for v in re.findall(r"V([\d.]+)", path.get("d"))]
    assert max(up) == pytest.approx(42, abs=0.1)
    lines = [e for e in root.iter("line") if e.get("stroke-dasharray")]
    (mark,) = (e for e in lines if e.get("y2") != e.get("y1"))
    assert float(mark.get("x1")) > 300


def test_sets_without_values_have_no_figure():
    assert distribution_svg({"a": []}, title="t", x_label="x") == ""
    assert distances_svg({}, title="t", x_label="x", marks={}) == ""
    assert agreement_svg({"a": ([1.0], [])}, title="t", unit="", texts={}) == ""
    one = distribution_svg({"a": [3.0]}, title="t", x_label="x")
    assert "nan" not in one
