"""The checklist has every item, and says what nobody but the authors can know."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from medpipe.outcome.card import model_card
from medpipe.outcome.checklist import OPEN, fill_checklist
from medpipe.outcome.evaluation import Predictions, evaluate

STUDY = {
    "title": "Death after a haemorrhage",
    "outcome_name": "death within 3 months",
    "architecture": "densenet121",
    "training": {"loss": "focal", "iterations": 2000},
    "recalibration": "Platt",
    "fold_digest": "ab12" * 16,
    "missing": {"age_years": 4, "wfns": 0},
    "model": "demo",
    "demonstration": True,
    "authors": {"17": "Committee of the university, 12/2026", "19": " "},
}


def evaluation(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    n = 60
    y = (np.arange(n) % 3 == 0).astype(int)
    p = np.clip(0.3 + 0.3 * y + rng.normal(0, 0.2, n), 0.01, 0.99)
    given: dict[str, Any] = {"simulated": True, "sites": ["A", "B"] * 30} | changes
    predictions = Predictions(y, {"ct": p}, fold=np.arange(n) % 4, **given)
    return evaluate(predictions, resamples=2, study=STUDY)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return evaluation()


def items(evaluation: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {i["number"]: i for i in fill_checklist(evaluation)}


def test_all_items_are_there_once_and_in_order(whole: dict[str, Any]) -> None:
    numbers = [i["number"] for i in fill_checklist(whole)]
    assert len(numbers) == len(set(numbers)) == 52
    assert [int(re.sub(r"\D", "", n)) for n in numbers] == sorted(
        int(re.sub(r"\D", "", n)) for n in numbers
    )
    assert {int(re.sub(r"\D", "", n)) for n in numbers} == set(range(1, 28))
    assert whole["checklist"] == fill_checklist(whole)


def test_what_a_run_cannot_know_is_left_to_the_authors(whole: dict[str, Any]) -> None:
    found = items(whole)
    for number in ("2", "3a", "5b", "8b", "18a", "18b", "18c", "18d", "19", "25", "26", "27c"):
        assert found[number]["state"] == "open"
        assert found[number]["answer"] == OPEN
    # nothing but a whole answer counts as one
    assert {i["state"] for i in found.values()} == {"filled", "partly", "open"}


def test_metadata_fill_the_items(whole: dict[str, Any]) -> None:
    found = items(whole)
    assert "4 folds" in found["12a"]["answer"]
    assert "ab12ab12ab12ab12" in found["12a"]["answer"]
    assert "densenet121" in found["12c"]["answer"]
    assert "focal" in found["13"]["answer"]
    assert "age_years 4" in found["11"]["answer"]
    assert "Platt" in found["12f"]["answer"]
    assert "2 sites" in found["6a"]["answer"]
    area = whole["models"][0]["metrics"]["auroc"]
    text = f"AUROC {area['value']:.2f} ({area['low']:.2f} to {area['high']:.2f}), simulated data"
    assert text in found["23a"]["answer"]
    assert "n = 60, 20 events" in found["23a"]["answer"]
    assert found["17"]["answer"] == "Committee of the university, 12/2026"
    assert found["17"]["state"] == "filled"


def test_no_recalibration_is_not_called_one(whole: dict[str, Any]) -> None:
    changed = whole | {"study": STUDY | {"recalibration": "none, on validating cases"}}
    assert items(changed)["12f"]["answer"] == "none"


def test_simulated_data_are_called_so() -> None:
    for simulated in (True, False):
        found = items(evaluation(simulated=simulated))
        for number in ("1", "5a", "23a"):
            assert ("simulated" in found[number]["answer"]) is simulated


def test_the_card_has_figures_with_intervals_and_says_what_it_is(whole: dict[str, Any]) -> None:
    card = model_card(whole)
    assert card.startswith("# demo\n")
    assert "**Demonstration, not for clinical use.**" in card
    assert "**Simulated data.**" in card
    assert "n = 60, 20 events, simulated data; in brackets: 95 % intervals" in card
    area = whole["models"][0]["metrics"]["auroc"]
    row = f"| AUROC | {area['value']:.2f} ({area['low']:.2f} to {area['high']:.2f}) |"
    assert row in card
    assert "| A | 30 |" in card
    assert f"## Intended use\n\n{OPEN}\n" in card
    assert "simulated" not in model_card(evaluation(simulated=False)).lower()


def test_texts_of_the_study_stay_text() -> None:
    hostile = "<script>x</script> | [a](b)\n# c"
    changed = evaluation() | {"study": {"title": hostile, "intended_use": hostile}}
    card = model_card(changed)
    assert "<script>" not in card
    assert "\n# c" not in card
    assert r"\| \[a\](b) # c" in card


def test_an_evaluation_without_folds_or_study_is_filled_too() -> None:
    rng = np.random.default_rng(0)
    predictions = Predictions((np.arange(40) % 2), {"x": rng.random(40)})
    found = items(evaluate(predictions, resamples=2))
    assert found["12a"]["state"] == "open"
    assert found["12c"]["state"] == "open"
    assert "x: AUROC" in found["23a"]["answer"]
