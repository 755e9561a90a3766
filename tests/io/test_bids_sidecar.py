"""Names and sidecars of BIDS: any name and any JSON give settings or one of our errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpipe.errors import InputError
from medpipe.io.bids_sidecar import FIELDS, REQUIRED, image_settings, parse_image_name

NAMES = sorted({key for keys in FIELDS.values() for key in keys})
NUMBERS = st.one_of(st.integers(), st.floats(), st.floats(0, 10).map(repr))
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(NAMES), ANY, max_size=4),
    st.sampled_from([*REQUIRED, "T1w"]),
    st.integers(1, 3),
)
def test_any_json_gives_finite_settings_or_our_error(fields, suffix, volumes):
    found, message = [], None
    try:
        found = image_settings(fields, suffix, 0, volumes, 2)
    except InputError as error:
        message = str(error)
    if message is not None:
        assert len(message.splitlines()) == 1
        assert any(name in message for name in fields)
        return
    assert len(found) == volumes
    for one in found:
        assert set(one) <= {*FIELDS, "number_shots_before"}
        assert all(isinstance(v, float) and math.isfinite(v) for v in one.values())


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40))
def test_any_name_is_read(name):
    found = parse_image_name(Path("folder") / f"x{name}.nii.gz")
    assert found.suffix


@pytest.mark.parametrize(
    ("name", "entities", "suffix"),
    [
        ("sub-01_ses-a_flip-2_VFA.nii.gz", {"sub": "01", "ses": "a", "flip": "2"}, "VFA"),
        ("echo-10_MESE.NII", {"echo": "10"}, "MESE"),
        ("VFA.json", {}, "VFA"),
        ("MUSTERMANN_VFA.nii", {}, "MUSTERMANN_VFA"),
        ("mueller-3_VFA.nii", {}, "mueller-3_VFA"),
        ("sub-01_T1w (1).nii", {}, "sub-01_T1w (1)"),
    ],
)
def test_names_of_bids_and_others(name, entities, suffix):
    found = parse_image_name(Path(name))
    assert (dict(found.entities), found.suffix) == (entities, suffix)
