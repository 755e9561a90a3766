"""What a content key depends on, and what it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medpipe.workflow.compiled import CompiledWorkflow, qc_key, step_keys
from medpipe.workflow.plan import compile_workflow
from medpipe.workflow.spec import parse_workflow

TEXT = """\
name = "w"
version = "1"
summary = "s"
[inputs.ct]
help = "h"
[[step]]
use = "load_volume"
in = "ct"
[[step]]
use = "threshold"
in = "ct"
out = "mask"
with = { lower = 10, upper = 20 }
[[step]]
use = "blend"
in = "ct"
out = "mixed"
with = { mask = "mask" }
save = "mixed.nii.gz"
qc = { overlay = "mask" }
[[step]]
use = "model"
in = "mixed"
out = "labels"
with = { weights = "w.pt" }
[[step]]
use = "count"
in = "ct"
out = "n"
with = { least = 1 }
"""
DIGESTS = {"ct": "0" * 64}
SEEDS = {"model": 7}
LOAD, THRESHOLD, BLEND, MODEL, COUNT = range(5)


@pytest.fixture
def folder(lab: Path, tmp_path: Path) -> Path:
    (tmp_path / "w.pt").write_bytes(b"weights")
    return tmp_path


def workflow(text: str, folder: Path) -> CompiledWorkflow:
    return compile_workflow(parse_workflow(text, "w.toml", folder))


def keys(
    text: str,
    folder: Path,
    digests: Mapping[str, str | None] = DIGESTS,
    seeds: Mapping[str, int] = SEEDS,
) -> list[str]:
    return step_keys(workflow(text, folder), digests, seeds)


def changed(text: str, folder: Path, **others: Any) -> set[int]:
    before, after = keys(TEXT, folder), keys(text, folder, **others)
    return {i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}


@pytest.mark.parametrize(
    ("old", "new", "steps"),
    [
        ("lower = 10", "lower = 10.5", {THRESHOLD, BLEND, MODEL}),
        ('with = { mask = "mask" }', "", {BLEND, MODEL}),
        ('{ mask = "mask" }', '{ mask = "mask", flag = true }', {BLEND, MODEL}),
        ("least = 1", "least = 2", {COUNT}),
        ('in = "ct"\n[[step]]', 'in = "ct"\nwith = { ndim = [3, 4] }\n[[step]]', set(range(5))),
        ('"mixed.nii.gz"', '{ file = "mixed.nii.gz", dtype = "int16" }', {BLEND, MODEL}),
        ('"mixed.nii.gz"', '"other.nii.gz"', {BLEND, MODEL}),
        ('use = "threshold"', 'id = "t"\nuse = "threshold"', set()),
        ('summary = "s"', 'summary = "other"\ndescription = "words"', set()),
        ('help = "h"', 'help = "other"', set()),
        ('version = "1"', 'version = "2"', set()),
        ('overlay = "mask"', 'overlay = "mask", window_hu = [0, 1]', set()),
        ("lower = 10, upper = 20", "upper = 20.0, lower = 10.0", set()),
        ('{ mask = "mask" }', '{ amount = 0.5, mode = "linear", mask = "mask" }', set()),
        ("least = 1 }", "least = 1 } # words", set()),
    ],
)
def test_a_key_changes_with_what_matters_and_with_nothing_else(
    folder: Path, old: str, new: str, steps: set[int]
) -> None:
    assert TEXT.count(old) >= 1
    assert changed(TEXT.replace(old, new, 1), folder) == steps


def test_a_key_changes_with_inputs_seeds_and_files(folder: Path) -> None:
    assert changed(TEXT, folder) == set()
    assert changed(TEXT, folder, digests={"ct": "1" * 64}) == set(range(5))
    assert changed(TEXT, folder, digests={"ct": None}) == set(range(5))
    assert changed(TEXT, folder, seeds={"model": 8}) == {MODEL}
    before = keys(TEXT, folder)
    (folder / "w.pt").write_bytes(b"other")
    after = keys(TEXT, folder)
    assert [a != b for a, b in zip(before, after, strict=True)] == [False] * 3 + [True, False]


def test_a_key_changes_with_the_version_of_a_step(folder: Path) -> None:
    before = keys(TEXT, folder)
    source = folder / "site" / "lab" / "steps.py"
    source.write_text(source.read_text().replace('version = "7"', 'version = "8"'))
    after = keys(TEXT, folder)
    assert [a != b for a, b in zip(before, after, strict=True)] == [False, False, True, True, False]


def test_words_are_in_no_digest(folder: Path) -> None:
    flow = workflow(TEXT, folder)
    words = TEXT.replace('summary = "s"', 'summary = "t"\ndescription = "d"')
    assert workflow(words.replace('help = "h"', ""), folder).digest() == flow.digest()
    for old, new in [('version = "1"', 'version = "2"'), ("least = 1", "least = 2"),
                     ('overlay = "mask"', 'window_hu = [0, 1]'), ('"mixed.', '"x.')]:  # fmt: skip
        assert workflow(TEXT.replace(old, new, 1), folder).digest() != flow.digest()


def test_swapped_inputs_are_another_result(lab: Path) -> None:
    text = 'name = "w"\nversion = "1"\nsummary = "s"\n[inputs.a]\n[inputs.b]\n[[step]]\n'
    text += 'use = "load_volume"\nin = ["a", "b"]\n[[step]]\nuse = "blend"\nin = "a"\n'
    text += 'with = { mask = "b" }\n'
    flow = compile_workflow(parse_workflow(text))
    one = step_keys(flow, {"a": "1", "b": "2"}, {})
    two = step_keys(flow, {"a": "2", "b": "1"}, {})
    assert one[1] != two[1]


def test_a_picture_has_a_key_of_its_own(folder: Path) -> None:
    step = workflow(TEXT, folder).steps[BLEND]
    key = qc_key(step, "k", "o", "1")
    assert step.qc is not None
    wider = replace(step, qc=replace(step.qc, options={"window_hu": [0.0, 1.0]}))
    others = {
        qc_key(wider, "k", "o", "1"),
        qc_key(step, "l", "o", "1"),
        qc_key(step, "k", None, "1"),
        qc_key(step, "k", "o", "2"),
    }
    assert len(others | {key}) == 5
    with pytest.raises(ValueError, match="draws no picture"):
        qc_key(replace(step, qc=None), "k", "o", "1")


def test_paths_are_in_no_digest_but_cross_to_the_child(folder: Path) -> None:
    flow = workflow(TEXT, folder)
    again = CompiledWorkflow.from_dict(json.loads(json.dumps(flow.to_dict())))
    assert again.steps[MODEL].arguments()["weights"] == str((folder / "w.pt").resolve())
    assert flow.digest() == again.digest()
    (folder / "moved").mkdir()
    (folder / "moved" / "w.pt").write_bytes(b"weights")
    moved = workflow(TEXT, folder / "moved")
    assert moved.digest() == flow.digest()
    assert moved.steps[MODEL].paths != flow.steps[MODEL].paths
    assert str(folder) not in json.dumps([dict(s.params) for s in flow.steps])


PARAMETERS = {
    "amount": (0.5, ["0.25", "1", "1.5"]),
    "size": ([3, 4], ["[1, 2]", "[ 5 , 6 ]"]),
    "mode": ("linear", ['"nearest"']),
    "flag": (False, ["true"]),
    "count": (1, ["2", "-3"]),
    "note": ("", ['"$import os"', "'é'"]),
    "mask": (None, ['"mask"']),
}


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_written_defaults_and_order_do_not_matter_and_the_form_survives_json(
    folder: Path, data: Any
) -> None:
    chosen = {
        name: data.draw(st.sampled_from(values))
        for name, (_, values) in PARAMETERS.items()
        if data.draw(st.booleans())
    }
    defaults = {
        name: _toml(default)
        for name, (default, _) in PARAMETERS.items()
        if name not in chosen and default is not None and data.draw(st.booleans())
    }

    def text(params: dict[str, str]) -> str:
        inner = ", ".join(f"{k} = {v}" for k, v in params.items())
        return TEXT.replace('{ mask = "mask" }', f"{{ {inner} }}")

    shuffled = dict(data.draw(st.permutations(list((chosen | defaults).items()))))
    plain, spelt = workflow(text(chosen), folder), workflow(text(shuffled), folder)
    assert step_keys(plain, DIGESTS, SEEDS) == step_keys(spelt, DIGESTS, SEEDS)
    assert plain.digest() == spelt.digest()
    again = CompiledWorkflow.from_dict(json.loads(json.dumps(plain.to_dict())))
    assert again == plain
    assert step_keys(again, DIGESTS, SEEDS) == step_keys(plain, DIGESTS, SEEDS)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_two_different_settings_never_share_a_key(folder: Path, data: Any) -> None:
    def draw() -> dict[str, str]:
        return {
            name: data.draw(st.sampled_from(values))
            for name, (_, values) in PARAMETERS.items()
            if data.draw(st.booleans())
        }

    one, two = draw(), draw()
    made = []
    for params in (one, two):
        inner = ", ".join(f"{k} = {v}" for k, v in params.items())
        text = TEXT.replace('{ mask = "mask" }', f"{{ {inner} }}")
        made.append(keys(text, folder)[BLEND])
    assert (made[0] == made[1]) == (one == two)
