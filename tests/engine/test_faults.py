"""Exceptions of steps as records: nothing foreign in them, and a hint one can type."""

from __future__ import annotations

import json

import pytest
import torch

from medpipe.engine.faults import describe_fault
from medpipe.errors import InputError


def _raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as fault:
        return fault


def test_the_text_of_a_foreign_exception_is_not_recorded() -> None:
    record = describe_fault(_raised(ValueError("ZZCANARY^NAME")), "load")
    assert "ZZCANARY" not in json.dumps(record)
    assert record["type"] == "ValueError"
    assert record["step"] == "load"
    assert any("test_faults.py" in frame for frame in record["frames"])


def test_a_medpipe_error_is_found_inside_what_wrapped_it() -> None:
    inner = _raised(InputError("3 slices are missing", where="series 2"))
    record = describe_fault(_raised(RuntimeError("applying transform <...>"), inner), "load")
    assert record["what"] == "3 slices are missing"
    assert record["where"] == "step load · series 2"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("GPU")])
def test_memory_faults_say_what_to_lower(error: BaseException) -> None:
    record = describe_fault(_raised(error), "resample")
    assert record["kind"] == "resource"
    assert "coarser spacing" in record["hint"]


@pytest.mark.parametrize(
    ("hint", "typed"),
    [
        (
            'export again, or set missing_slices="interpolate"',
            "export again, or --set load.missing_slices=interpolate",
        ),
        ('fixes=["nifti.ndim"], then', "--set 'load.fixes=[\"nifti.ndim\"]', then"),
        ("set spacing_mm=1.0", "--set load.spacing_mm=1.0"),
        ("use --device cpu", "use --device cpu"),
        ("already --set load.a=b", "already --set load.a=b"),
        (None, None),
    ],
)
def test_hints_become_what_a_user_types(hint: str | None, typed: str | None) -> None:
    assert describe_fault(_raised(InputError("x", hint=hint)), "load")["hint"] == typed
