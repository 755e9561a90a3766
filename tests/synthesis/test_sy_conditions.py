"""Conditions of patients as numbers: equalised, checked, kept as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.conditions import Conditions


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(4)
    return {
        "ventricles": rng.lognormal(3, 0.6, 2000),
        "age": rng.integers(45, 81, 2000),
        "sex": rng.choice(["F", "M"], 2000),
        "diagnosis": rng.choice(["CN", "MCI", "AD"], 2000),
        "shift_voxels": rng.uniform(-2, 2, 2000),
    }


@pytest.fixture(scope="module")
def conditions(table):
    kinds = {
        "ventricles": "continuous",
        "age": "continuous",
        "sex": "binary",
        "diagnosis": "category",
        "shift_voxels": "augmentation",
    }
    return Conditions.fit(table, kinds, units={"ventricles": "mL", "age": "years"})


def test_a_skewed_condition_becomes_uniform(conditions, table):
    values, present = conditions.encode([{"ventricles": v} for v in table["ventricles"]])
    column = values[:, 0].double().sort().values
    uniform = torch.linspace(-1, 1, 2000, dtype=torch.float64)
    assert (column - uniform).abs().max() < 0.01
    assert present[:, 0].all()
    assert (column[0], column[-1]) == (-1, 1)


def test_the_value_is_the_share_of_patients_below_it(conditions, table):
    for age in (45, 52, 63.5, 80):
        values, _ = conditions.encode([{"age": age}])
        below = np.mean(table["age"] < age) + np.mean(table["age"] == age) / 2
        assert values[0, 1] == pytest.approx(2 * below - 1, abs=0.03)


def test_classes(conditions):
    values, present = conditions.encode([{"sex": "F", "diagnosis": "CN"}, {"sex": "M"}])
    assert values[:, 2].tolist() == [-1, 1]
    assert values[0, 3:6].tolist() == [-1, 1, -1]  # AD, CN, MCI
    assert present[:, 3:6].tolist() == [[True] * 3, [False] * 3]
    assert conditions.columns == 7


def test_what_is_left_out_is_unknown_and_an_augmentation_neutral(conditions):
    rows = [{}, {"age": None, "sex": ""}, {"age": float("nan")}, {"age": np.float32("nan")}]
    values, present = conditions.encode(rows)
    assert present.tolist() == [[False] * 6 + [True]] * 4
    assert (values[:, :6] == 0).all()
    assert values[:, 6].abs().max() < 0.01  # no shift, in the middle of the range
    shifted, _ = conditions.encode([{"shift_voxels": 1.0}])
    assert shifted[0, 6] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"age": 130}, "condition age: .* expected 45 to 80 years, got 130"),
        ({"age": "old"}, "condition age: .* expected a number, got old"),
        ({"sex": "X"}, "condition sex: .* expected F or M, got X"),
        ({"diagnosis": "PD"}, "condition diagnosis: .* expected AD or CN or MCI, got PD"),
        ({"agee": 70}, "no such condition; expected ventricles, age, .*got agee"),
    ],
)
def test_what_was_not_trained_is_refused(conditions, row, said):
    with pytest.raises(UsageError, match=said):
        conditions.encode([row])


def test_json_gives_the_same_conditions_back(conditions):
    again = Conditions.from_json(json.loads(json.dumps(conditions.to_json())))
    assert again == conditions
    with pytest.raises(InputError, match="cannot be read"):
        Conditions.from_json({"conditions": [{"name": "age"}]})


@pytest.mark.parametrize(
    ("column", "kind", "said"),
    [
        ([1, 1, None], "continuous", "two finite values or more, got 1"),
        (["a", "b"], "continuous", "expected numbers, got text"),
        (["a", "b", "c"], "binary", "expected two values, got 3"),
        ([1.0, 2.0], "ordinal", "got ordinal"),
    ],
)
def test_a_column_that_cannot_be_learned_is_named(column, kind, said):
    with pytest.raises(UsageError, match=f"condition x.*{said}"):
        Conditions.fit({"x": column}, {"x": kind})


def test_a_column_that_is_missing_is_named():
    with pytest.raises(UsageError, match="lacks a condition; expected age, got sex"):
        Conditions.fit({"sex": ["F", "M"]}, {"age": "continuous"})
