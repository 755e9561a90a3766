"""The published JSON Schema of a row agrees with the code, and the examples with both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medpipe.io.manifest import load_manifest
from medpipe.io.manifest_cells import SHA256, case_id_problem, spreadsheet_error, starts_formula

FOLDER = Path(__file__).resolve().parents[2] / "data_manifests"
SCHEMA = json.loads((FOLDER / "schema.json").read_text())


@pytest.fixture(scope="module")
def accepts():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    return validator.is_valid


IDS = st.one_of(
    st.text("aAeE01.-_ +mMrR", max_size=20),
    st.text(max_size=6),
    st.sampled_from(["con", "COM9", "lpt3.x", "nul.", "1E5", "1e5", "12-mar", "feb-09", "0" * 64]),
    st.from_regex(r"[0-9]{14,17}0{0,3}", fullmatch=True),
)


@settings(max_examples=400, deadline=None)
@given(case_id=IDS)
@example(case_id="a\n")
@example(case_id="a" * 65)
@example(case_id="1.23457E+11")
def test_case_ids(accepts, case_id: str) -> None:
    expected = case_id_problem(case_id) is None
    # `$` of Python's re also matches before a final line break, that of JSON Schema does not.
    assert (accepts({"case_id": case_id}) and not case_id.endswith("\n")) == expected


CELLS = st.one_of(
    st.text("=+-@#.0123456789eE\tNA/", max_size=8),
    st.sampled_from(["#REF!", "#N/A", "#DIV/0!", "-1.5e-3", "+.5", "-", "+", "##", "@a", "\tx"]),
)


@settings(max_examples=400, deadline=None)
@given(cell=CELLS)
def test_covariates(accepts, cell: str) -> None:
    expected = not (starts_formula(cell) or spreadsheet_error(cell))
    assert accepts({"case_id": "a", "note": cell}) == expected


@pytest.mark.parametrize("digest", ["", "a" * 64, "A" * 64, "g" * 64, "a" * 63, "a" * 65])
def test_digests(accepts, digest: str) -> None:
    expected = not digest or SHA256.match(digest.lower()) is not None
    assert accepts({"case_id": "a", "ct_sha256": digest}) == expected


@pytest.mark.parametrize(
    ("name", "inputs", "optional"),
    [("ct_example.csv", ["image"], []), ("mri_example.csv", ["t1"], ["flair"])],
)
def test_examples(accepts, name: str, inputs: list[str], optional: list[str]) -> None:
    read = load_manifest(FOLDER / name, inputs=inputs, optional=optional, check_files=False)
    assert set(read.inputs) == {*inputs, *optional}
    assert load_manifest(FOLDER / name, check_files=False).inputs == read.inputs
    for case in read.cases:
        assert accepts({"case_id": case.case_id, "patient_id": case.patient_id, **case.covariates})
