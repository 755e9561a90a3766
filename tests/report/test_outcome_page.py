"""The page of an evaluation shows its figures with n and interval, and no patient."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_build import HOSTILE, Page, check_self_contained

from medpipe.errors import InputError
from medpipe.outcome.evaluation import Predictions, SurvivalPredictions, evaluate
from medpipe.report.outcome_page import evaluation_page

STUDY = {
    "title": "Death after a haemorrhage",
    "outcome_name": "death within 3 months",
    "architecture": "densenet121",
    "training": {"loss": "focal", "iterations": 2000},
    "versions": {"monai": "1.6.1"},
    "demonstration": True,
    "findings": ["4 cases have no age"],
}


def evaluation(simulated: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    n = 150
    truth = rng.normal(-0.8, 1.5, n)
    y = (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(int)
    fold = np.arange(n) % 3
    seen = [truth + rng.normal(0, s, n) for s in (1.0, 2.0)]
    ct, clinical = (1 / (1 + np.exp(-v)) for v in seen)
    prevalence = np.array([y[fold != k].mean() for k in range(3)])[fold]
    predictions = Predictions(
        y,
        {"ct": ct, "clinical": clinical, "prevalence": prevalence},
        groups=[f"PATIENT-{i:04d}" for i in range(n)],
        fold=fold,
        uncalibrated={"ct": ct**2},
        sites=np.where(np.arange(n) < 8, "Little", "Large"),
        covariates={"sex": (rng.random(n) < 0.5).astype(float)},
        simulated=simulated,
    )
    times = SurvivalPredictions(
        y,
        rng.exponential(50, n),
        np.stack([1 - ct / 2, 1 - ct], 1),
        np.array([30.0, 90.0]),
        fold=fold,
    )
    flow = {"read": n + 3, "refused": {"no whole head": 2, "MR given as CT": 1}}
    return evaluate(predictions, resamples=40, flow=flow, study=STUDY, survival=times)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(json.dumps(evaluation(), allow_nan=False))


@pytest.fixture(scope="module")
def page(record: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(evaluation_page(record), "utf-8")
    return check_self_contained(path)


def test_it_stands_alone_and_names_no_patient(page: Page) -> None:
    assert "PATIENT" not in page.source
    (policy,) = [v for _, k, v in page.attributes if k == "content" and "default-src" in v]
    assert policy.startswith("default-src 'none'")
    assert not page.images
    assert not page.links
    assert len(page.source) < 400_000


def test_figures_stand_with_n_events_and_interval(record: dict[str, Any], page: Page) -> None:
    n, events = record["n"], record["events"]
    assert page.text.count(f"n = {n}, {events} events") >= 10
    ct = next(m for m in record["models"] if m["name"] == "ct")
    for key in ("auroc", "calibration_slope", "sensitivity", "f1_other"):
        figure = ct["metrics"][key]
        text = f"{figure['value']:.2f} {figure['low']:.2f} to {figure['high']:.2f}"
        assert text in page.text, key
    for svg in re.findall(r'<svg class="chart outcome".*?</svg>', page.source, re.S):
        assert re.search(r"<title>[^<]*n = \d+, \d+ events?", svg)
        assert "simulated data" in svg
    assert len(re.findall(r'<svg class="chart outcome', page.source)) == 13


def test_every_section_is_there(page: Page) -> None:
    for heading in ("What was found", "Models compared", "Tests between models", "Curves",
                    "Operating point", "Recalibration", "Sites", "Subgroups", "Time to the event",
                    "Patients and folds", "Methods", "TRIPOD+AI checklist"):  # fmt: skip
        assert f">{heading}</h2>" in page.source, heading
    for text in ("153 cases read", "3 left out", "2: no whole head", "150 cases analysed",
                 "to be completed by the authors", "too small for an interval", "by definition",
                 "Concordance (Uno, IPCW)", "F1, no event",
                 "chosen for each fold on the", "4 cases have no age"):  # fmt: skip
        assert text in page.text, text


def test_simulated_and_demonstration_are_said_wherever_figures_stand(page: Page) -> None:
    assert "Demonstration, not for clinical use." in page.text
    assert "says nothing about real ones" in page.text
    parts = re.split(r"<section>", page.source)[1:]
    for part in parts:
        title = re.findall(r"<h2>([^<]*)", part)
        if title and title[0] in ("Methods",):  # no figure of the data
            continue
        assert "simulated" in part, title
    assert re.findall(r"<dt>([^<]*)</dt>", page.source)
    assert all("simulated" in name for name in re.findall(r"<dt>([^<]*)</dt>", page.source))


def test_times_to_the_event_have_figures_curves_and_numbers_at_risk(
    record: dict[str, Any], page: Page
) -> None:
    part = record["survival"]
    section = re.split(r"<section>", page.source)
    (section,) = [s for s in section if "<h2>Time to the event</h2>" in s]
    plain = " ".join(re.sub(r"<[^>]+>", " ", section).split())
    early, lost = part["events_by_horizon"], part["censored_before_horizon"]
    assert f"n = 150, {early} events by 90 days, {lost} censored before" in plain
    for name, figure in part["figures"].items():
        value, low, high = (f"{figure[k]:.3f}".replace("-", "−") for k in ("value", "low", "high"))
        assert f"{name} {value} {low} to {high}" in plain, name
    assert "log-rank: p" in plain
    for row in part["groups"]["rows"]:
        text = f"{row['label'].split()[0]} {' '.join(map(str, row['at_risk']))}"
        assert text in plain
        assert f"{row['label']}: n {row['n']}, {row['events']} event" in plain
    assert section.count("<figure") == 3
    assert section.count("simulated data") >= 4
    sentence = next(s for s in re.findall(r"<li>([^<]*)", page.source) if "Time to the event" in s)
    assert f"150 simulated cases, {early} events" in sentence
    assert "Concordance (Uno, IPCW), simulated" in page.text


def test_a_damaged_part_of_times_is_left_out(record: dict[str, Any]) -> None:
    part = record["survival"]
    for key in part:
        for broken in (None, [None], {"a": [1]}, "text"):
            changed = record | {"survival": part | {key: broken}}
            assert "Models compared" in evaluation_page(changed), (key, broken)
    for text in HOSTILE:
        changed = json.loads(json.dumps(record))
        changed["survival"]["groups"]["rows"][0]["label"] = text
        changed["survival"]["groups"]["test"]["method"] = text
        changed["survival"]["figures"][text] = changed["survival"]["figures"].pop(
            "Concordance (Uno, IPCW)"
        )
        changed["survival"]["reference"] = text
        source = evaluation_page(changed)
        assert len(re.findall("<script", source)) == len(
            re.findall("<script", evaluation_page(record))
        )


def test_a_slope_that_tells_nothing_is_not_called_right(record: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(record))
    ct = next(m for m in changed["models"] if m["name"] == "ct")
    said = {}
    for low, high in ((0.9, 1.1), (-0.3, 1.4), (0.2, 0.8), (1.2, 1.9), (-0.5, 0.4)):
        ct["metrics"]["calibration_slope"] |= {"value": (low + high) / 2, "low": low, "high": high}
        said[low] = evaluation_page(changed)
    assert "no sign that probabilities are too extreme" in said[0.9]
    assert "too few cases to tell whether" in said[-0.3]
    assert "no sign that" not in said[-0.3]
    assert "the probabilities are too extreme" in said[0.2]
    assert "the probabilities are too moderate" in said[1.2]
    assert "not shown to be more frequent" in said[-0.5]


def test_a_difference_is_told_from_the_better_model(record: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(record))
    test = changed["tests"][0]
    test |= {"difference": -0.2, "low": -0.3, "high": -0.1, "p": 0.001, "p_holm": 0.002}
    names = {m["name"]: m["label"] for m in changed["models"]}
    better, worse = names[test["b"]], names[test["a"]]
    text = evaluation_page(changed)
    assert f"{better} ranks better than {worse}: difference of AUROC 0.20 (0.10 to 0.30)" in text
    test |= {"p": 0.03, "p_holm": 0.09}
    text = evaluation_page(changed)
    assert "difference of AUROC −0.20 (−0.30 to −0.10)" in text
    assert "the interval is of this comparison alone, of several; no difference is shown" in text


def test_real_data_are_not_called_simulated() -> None:
    assert "simulated" not in evaluation_page(evaluation(simulated=False)).lower()


def test_a_claim_needs_an_interval_without_chance(record: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(record))
    ct = next(m for m in changed["models"] if m["name"] == "ct")
    ct["metrics"]["auroc"] |= {"value": 0.55, "low": 0.45, "high": 0.65}
    changed["tests"][0] |= {"difference": 0.02, "low": -0.05, "high": 0.09, "p": 0.5, "p_holm": 0.5}
    text = evaluation_page(changed)
    assert "is not shown to be better than chance" in text
    assert "no difference is shown" in text
    assert "ranks better" not in text


def test_too_few_cases_are_said_to_be_too_few() -> None:
    y = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    few = Predictions(y, {"ct": np.linspace(0.1, 0.9, 12)}, fold=np.arange(12) % 2)
    text = evaluation_page(evaluate(few, resamples=2))
    assert "no figure says how well others would be predicted" in text
    assert "AUROC" in text
    assert "no interval" in text


def test_hostile_records_are_inert(record: dict[str, Any], tmp_path: Path) -> None:
    scripts = len(re.findall(r"<script>", evaluation_page(record)))
    for text in HOSTILE:
        changed = json.loads(json.dumps(record))
        changed["study"] = dict.fromkeys(STUDY, text) | {"training": {text: text}}
        changed["models"][0]["label"] = changed["models"][1]["label"] = text
        changed["operating_point"] = {"rule": text, "chosen": text}
        changed["sites"][0]["label"] = changed["subgroups"][0]["label"] = text
        changed["flow"]["refused"][0]["reason"] = text
        changed["notes"] = [text]
        changed["checklist"][0] = dict.fromkeys(changed["checklist"][0], text)
        path = tmp_path / "page.html"
        path.write_text(evaluation_page(changed).encode("utf-8", "replace").decode(), "utf-8")
        check_self_contained(path)
        assert len(re.findall(r"<script>", path.read_text())) == scripts


def test_a_record_with_holes_is_shown_as_far_as_it_goes(record: dict[str, Any]) -> None:
    for key in record:
        if key in ("n", "models"):
            continue
        for broken in (None, [None], {"a": [1]}):
            assert "Models compared" in evaluation_page(record | {key: broken}), (key, broken)
    bare = {"n": 5, "events": 1, "models": [{"label": "m"}]}
    assert "n = 5, 1 event" in evaluation_page(bare)


@pytest.mark.parametrize("broken", [{}, {"n": 5}, {"n": "x", "models": [{}]}, {"models": [{}]}])
def test_what_is_no_evaluation_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no evaluation"):
        evaluation_page(broken)
