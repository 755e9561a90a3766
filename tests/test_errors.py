"""Errors: one line, every part in it, and the same after crossing a process border."""

from __future__ import annotations

import json
import pickle

import pytest

from medpipe import errors
from medpipe.errors import InputError, ManifestError, Problem, WorkflowError, error_from_dict


def test_message_holds_every_part_in_reading_order() -> None:
    error = InputError(
        "119 slices with one gap",
        where="ct",
        expected="2.5 mm between slices",
        got="5 mm after slice 63",
        hint='set missing_slices="interpolate"',
    )
    assert str(error) == (
        "ct: 119 slices with one gap; expected 2.5 mm between slices, got 5 mm after slice 63. "
        'Next: set missing_slices="interpolate"'
    )


def test_message_is_one_line_even_if_a_part_is_not() -> None:
    assert "\n" not in str(InputError("a\nb", got="c\n\nd"))


def test_places_nest_from_the_outside_in() -> None:
    error = InputError("broken", where="ct").at("step load").at("case 7")
    assert error.where == "case 7 · step load · ct"


@pytest.mark.parametrize(
    "cls",
    [
        errors.UsageError,
        errors.InputError,
        errors.ResourceError,
        errors.StepError,
        errors.StoreError,
        errors.WorkerDied,
    ],
)
@pytest.mark.parametrize("way", ["json", "pickle"])
def test_errors_cross_process_borders_whole(cls: type[errors.MedpipeError], way: str) -> None:
    error = cls("what", where="here", expected="a", got="b", hint="c")
    if way == "json":
        copy = error_from_dict(json.loads(json.dumps(error.to_dict())))
    else:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is cls
    assert str(copy) == str(error)


@pytest.mark.parametrize("cls", [ManifestError, WorkflowError])
def test_a_file_error_lists_every_problem_with_its_line(cls: type) -> None:
    error = cls("cases.csv", [Problem("bad id", line=3, hint="rename it"), Problem("no column")])
    assert error.lines() == ["cases.csv:3: bad id. Next: rename it", "cases.csv: no column"]
    copy = error_from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(copy) is cls
    assert str(copy) == str(error)
