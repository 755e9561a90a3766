"""The page of an evaluation of synthesis shows its figures with floors, and trusts no record."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_build import HOSTILE, check_self_contained

from medpipe.errors import InputError
from medpipe.report.synthesis_page import synthesis_page

BAD = " ".join(HOSTILE)


def png() -> str:
    to = io.BytesIO()
    Image.new("L", (6, 4), 90).save(to, "PNG")
    return base64.b64encode(to.getvalue()).decode()


def figure(value: float | None, low: float | None = None, high: float | None = None) -> Any:
    return {"value": value, "low": low, "high": high, "n": 20, "method": "m", "level": 0.95}


def floored(*of: float) -> dict[str, Any]:
    return {"figure": figure(*of), "floor": figure(of[0] / 2, 0.001, of[0])}


def record() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    values = {k: np.sort(rng.normal(1700, 300, 20)).tolist() for k in ("real", "synthetic")}
    agreement = {
        k: figure(0.84, 0.7, 0.9) for k in ("pearson", "spearman", "slope", "error", "bias")
    }
    points = {"requested": values["real"], "measured": values["synthetic"]}
    t_map = {"share": floored(0.0171, 0.01, 0.02), "p": 0.2, "voxels": 12345}
    row = {k: figure(1715.0, 1600.0, 1800.0) for k in (
        "real_mean", "real_sd", "synthetic_mean", "synthetic_sd", "percent", "sd_ratio", "effect",
    )}  # fmt: skip
    gap = {"difference": 0.171, "low": 0.1, "high": 0.25, "method": "paired t"}
    return {
        "schema": 1, "n": {"train": 40, "test": 20, "synthetic": 20}, "level": 0.95,
        "simulated": True, "study": {"title": "Hippocampi", "generator": "prior of 4 layers"},
        "features": {"name": "segmenter 16-32-64"},
        "segmenter": {"n": 20, "dice": {"anterior": figure(0.885, 0.87, 0.9)},
                      "volumes": {"anterior": agreement}},
        "distribution": {"kid": floored(0.0123, 0.01, 0.02), "ms_ssim": floored(0.61, 0.6, 0.62)},
        "volumes": {"rows": [{"region": "anterior", **row, "wasserstein": floored(44.0, 30, 60),
                              "p_bonferroni": 0.0421}],
                    "values": {"anterior": values}},
        "conditions": [{"name": "anterior", "unit": "mm³",
                        "rows": {"synthetic": agreement, "measurement": agreement},
                        "points": {"synthetic": points, "measurement": points}}],
        "t_map": {"alignment": "rigid", "inside_share": 0.9, "as_generated": t_map,
                  "realigned": t_map,
                  "picture": {"png": png(), "threshold": 3.3, "end": 6.0}},
        "privacy": {"verdict": "no copies found", "rule": "copies: a rule", "space": "images",
                    "to_train": floored(0.19, 0.18, 0.2), "ratio": figure(0.97, 0.9, 1.02),
                    "closer": floored(0.72, 0.6, 0.8), "authentic": floored(0.5, 0.4, 0.6),
                    "to_held_out": figure(0.2, 0.19, 0.21), "membership": figure(0.52, 0.4, 0.6),
                    "likelihoods": {"held_out": gap}, "copied": 0, "smallest_real": 0.11,
                    "nearest": {"synthetic_to_train": values["real"],
                                "held_out_to_train": values["synthetic"]}},
        "pictures": [{"sample": png(), "nearest": png(), "distance": 0.123, "rank": 0}],
        "utility": {"reference": "real 20", "tested": {"anterior": 20}, "regions": {"anterior": [
            {"name": "real 20", "mean": figure(0.851, 0.84, 0.86), "difference": None, "seeds": 3},
            {"name": "real 20 + synthetic", "mean": figure(0.866, 0.85, 0.87),
             "difference": figure(0.0152, 0.01, 0.02), "seeds": 3}]}},
        "cost": {"seconds_per_sample": 3.14, "peak_bytes": 2 * 10**9, "device": "cpu"},
        "gates": [{"name": "copies", "passed": True, "void": False, "found": "f", "rule": "r"},
                  {"name": "place", "passed": False, "void": False, "found": "f", "rule": "r"},
                  {"name": "anatomy", "passed": None, "void": True, "found": "f", "rule": "r"}],
        "controls": [{"name": "copier", "gate": "copies", "what": "w", "caught": True,
                      "found": "0.007"}],
    }  # fmt: skip


def test_every_part_is_on_the_page(tmp_path):
    page = synthesis_page(record())
    file = tmp_path / "index.html"
    file.write_text(page)
    check_self_contained(file)
    for text in (
        "Hippocampi", "20 synthetic, 40 real training and 20 real held-out cases",
        "no copies found", "0.0123", "0.0100 to 0.0200", "segmenter 16-32-64", "1715",
        "0.042", "ceiling: real cases, measured", "0.885 (0.870 to 0.900)", "1.71 (1.00 to 2.00)",
        "0.97 (0.90 to 1.02)", "0.171 (0.100 to 0.250)", "0.015 (0.010 to 0.020)", "3.1 s",
        "2 GB", "prior of 4 layers", "1 of 3", "1 of 1 planted sets caught", "simulated data",
        "caught", "void", "failed", "passed",
    ):  # fmt: skip
        assert text in page, text
    assert page.count("data:image/png;base64,") == 3
    assert page.count("<svg") >= 3


def test_errors_show_two_digits_whatever_the_unit():
    evaluation = record()
    own = {"error": figure(0.0916, 0.0794, 0.1213), "bias": figure(-0.0123, -0.0456, 0.0211)}
    rows = evaluation["conditions"][0]["rows"]
    rows["synthetic"] = rows["measurement"] = rows["synthetic"] | own
    page = synthesis_page(evaluation)
    assert "0.092" in page
    assert "0.079 to 0.121" in page
    assert "\N{MINUS SIGN}0.012" in page
    rows["synthetic"] = rows["measurement"] | {"error": figure(91.6, 79.4, 121.3)}
    assert "91.6" in synthesis_page(evaluation)
    assert "91.60" not in synthesis_page(evaluation)


def test_a_record_read_back_gives_the_same_page():
    assert synthesis_page(json.loads(json.dumps(record()))) == synthesis_page(record())


def test_without_controls_the_page_says_so():
    page = synthesis_page(record() | {"controls": []})
    assert "No sets were planted" in page
    assert "No sets were planted" not in synthesis_page(record())


def test_copies_are_said_at_once():
    changed = record()
    changed["privacy"]["copied"] = 3
    assert "3 synthetic cases are nearer" in synthesis_page(changed)


def swapped(value: Any, new: Any) -> list[Any]:
    """Return the record with each of its leaves and branches in turn replaced."""
    if not isinstance(value, dict):
        return [new]
    out = [value | {key: new} for key in value]
    for key, inner in value.items():
        if isinstance(inner, dict):
            out += [value | {key: v} for v in swapped(inner, new)]
    return out


@pytest.mark.parametrize("new", [None, BAD, [1, BAD], [{"x": BAD}], {"x": BAD}, 1e400, -3])
def test_no_field_is_trusted(new):
    for changed in swapped(record(), new):
        try:
            page = synthesis_page(changed)
        except InputError:
            continue
        assert not re.search(r"<script>alert|<img src=x|<svg/onload", page)


def test_only_a_png_is_shown():
    changed = record()
    for wrong in ("javascript:alert(1)", base64.b64encode(b"<svg>").decode(), "@@", 5):
        changed["t_map"]["picture"]["png"] = wrong
        assert synthesis_page(changed).count("data:image/png") == 2


def test_something_else_is_refused():
    with pytest.raises(InputError, match="no evaluation of synthesis"):
        synthesis_page({"n": 5, "models": []})
