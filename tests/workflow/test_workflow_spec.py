"""The shape of a workflow file: every mistake at once, each with its line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpipe.errors import UsageError, WorkflowError
from medpipe.workflow.spec import apply_overrides, parse_override, parse_workflow

GOOD = """\
name = "a-1"
version = "1"
summary = "s"
[inputs.ct]
[[step]]
use = "load_volume"
in = "ct"
"""


def problems(text: str) -> list[str]:
    spec = parse_workflow(text, "w.toml")
    with pytest.raises(WorkflowError) as caught:
        spec.raise_problems()
    return caught.value.lines()


def test_a_good_file_has_no_problems() -> None:
    spec = parse_workflow(GOOD)
    spec.raise_problems()
    assert spec.inputs["ct"].kind == "volume"
    assert spec.steps[0].name == "load_volume"
    assert spec.steps[0].outputs == ["ct"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "a-1"', 'name = "A"', "name: expected a name of lower-case letters, digits and"),
        ('name = "a-1"', 'name = "-a"', "name: expected a name"),
        ('name = "a-1"', f'name = "{"a" * 65}"', "name: expected a name"),
        ('name = "a-1"', 'name = "a\\n"', "name: expected a name"),
        ('name = "a-1"', 'name = "../a"', "name: expected a name"),
        ('version = "1"', "version = 1", 'version: expected a short text such as "1", got 1'),
        ('version = "1"', 'version = ""', "version: expected a short text"),
        ('summary = "s"', "summary = 3", "summary: expected a text in quotes, got 3"),
        ('summary = "s"', 'summary = ""', "summary: expected a text"),
        ('summary = "s"', f'summary = "{"s" * 201}"', "summary: expected a shorter text"),
        ('summary = "s"', 'summary = "s"\nsteps = 1', 'unknown key "steps". Next: did you mean'),
        ("[inputs.ct]", "[inputs]", "inputs: expected at least one entry"),
        ("[inputs.ct]", "[inputs.case_id]", '"case_id" cannot name an input'),
        ("[inputs.ct]", '[inputs."a b"]', '"a b" cannot name an input'),
        ("[inputs.ct]", '[inputs.ct]\nkind = "mesh"', 'inputs.ct.kind: expected "volume", "lab'),
        ("[inputs.ct]", "[inputs.ct]\noptional = 1", "inputs.ct.optional: expected true or false"),
        ("[inputs.ct]", "[inputs.ct]\nhlep = 'x'", 'key "hlep". Next: did you mean "help"?'),
        ("[inputs.ct]", "inputs.ct = 1", "inputs.ct: expected a table, got 1"),
        ("[inputs.ct]", "inputs = 1", "inputs: expected a table, got 1"),
        ('in = "ct"', "in = []", "step.1.in: expected a key or a list of keys, got []"),
        ('in = "ct"', "in = 1", "step.1.in: expected a key or a list of keys, got 1"),
        ('in = "ct"', 'in = "../x"', "step.1.in: expected a key: letters"),
        ('in = "ct"', 'in = ["ct", "ct"]', "step.1.in: expected different keys"),
        ('use = "load_volume"', 'use = "os.system"', "step.1.use: expected the name of a step"),
        ('use = "load_volume"', "use = 1", "step.1.use: expected the name of a step, got 1"),
        ('in = "ct"', 'in = "ct"\nid = "a/b"', "step.1.id: expected a key"),
        ('in = "ct"', 'in = "ct"\nwith = 1', "step.1.with: expected a table, got 1"),
        ('in = "ct"', 'in = "ct"\nparams = {}', 'unknown key "params". Next: known: id, in'),
        ('in = "ct"', 'in = "ct"\nsave = 1', "step.1.save.1: expected a text or a table, got 1"),
        ('in = "ct"', 'in = "ct"\nsave = {}', 'the key "file" is missing'),
        ('in = "ct"', 'in = "ct"\nsave = { file = "a", dtype = "int17" }', "save.1.dtype: exp"),
        ('in = "ct"', 'in = "ct"\nsave = { fil = "a", file = "b" }', 'did you mean "file"?'),
        ('in = "ct"', 'in = "ct"\nqc = "movie"', 'step.1.qc.kind: expected "mosaic" or "none"'),
        ('in = "ct"', 'in = "ct"\nqc = { window = [1, 2] }', 'did you mean "window_hu"?'),
        ('in = "ct"', 'in = "ct"\nqc = { window_hu = [2, 1] }', "expected two rising numbers"),
        ('in = "ct"', 'in = "ct"\nqc = { window_hu = [0, nan] }', "expected two rising numbers"),
        ('in = "ct"', 'in = "ct"\nqc = { window_hu = [true, 2] }', "expected two rising numbers"),
        ('in = "ct"', 'in = "ct"\nqc = { window_hu = 80 }', "expected two rising numbers"),
        ('in = "ct"', 'in = "ct"\nqc = { labels = [1] }', "expected a list of names"),
    ],
)
def test_each_mistake_is_named_with_its_line(old: str, new: str, message: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    # The mistake stands on the last line of what was put in.
    line = text[: text.index(new) + len(new)].rstrip("\n").count("\n") + 1
    if message == "inputs: expected at least one entry":
        line = 4
    first = problems(text)[0]
    assert first.startswith(f"w.toml:{line}: "), first
    assert message in first
    assert "\n" not in first


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ('name = "a-1"', 'w.toml: the key "name" is missing'),
        ('use = "load_volume"', 'w.toml:5: step.1: the key "use" is missing'),
        ('in = "ct"', 'w.toml:5: step.1: the key "in" is missing'),
        ("[inputs.ct]", 'w.toml: the key "inputs" is missing'),
    ],
)
def test_what_is_missing(drop: str, message: str) -> None:
    assert message in problems(GOOD.replace(f"{drop}\n", "" if "inputs" in drop else "\n"))


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace('"a-1"', '"A"') + "\n[[step]]\nin = 1\nsave = 2\n[[step]]\nuse = 1\n"
    lines = [line.split(": ")[0] for line in problems(text)]
    assert lines == [f"w.toml:{n}" for n in (1, 9, 10, 11, 12, 13)]


def test_no_steps_and_an_empty_file() -> None:
    assert any("step" in line for line in problems(GOOD.split("[[step]]")[0]))
    assert len(problems("")) == 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1", 1),
        ("a.b=1.5", 1.5),
        ("a.b=true", True),
        ("a.b=interpolate", "interpolate"),
        ('a.b="1"', "1"),
        ("a.b=[1, 2]", [1, 2]),
        ('a.b={modality="CT"}', {"modality": "CT"}),
        ("a.b=", ""),
        ("a.b=x=y", "x=y"),
        ("a.b = 3 ", 3),
        ("a.b=2020-01-01", "2020-01-01"),
        ("a.b=1\nc=2", "1\nc=2"),
        ("a.b=1\n[step]", "1\n[step]"),
        ("a.b=[[[[[[[[[[[[1]]]]]]]]]]]]", "[[[[[[[[[[[[1]]]]]]]]]]]]"),
        ("a.b=/data/x.pt", "/data/x.pt"),
        ("a.b.c=1", 1),
    ],
)
def test_an_override_is_a_toml_value_or_text(text: str, value: Any) -> None:
    override = parse_override(text)
    assert override.step == "a"
    assert override.value == value
    assert type(override.value) is type(value)


@pytest.mark.parametrize("text", ["", "a", "a.b", "a=1", ".b=1", "a.=1", "=1"])
def test_an_unreadable_override(text: str) -> None:
    with pytest.raises(UsageError, match=r"--set: .*expected STEP\.PARAMETER=VALUE"):
        parse_override(text)


def test_overrides_change_a_copy_and_the_last_wins() -> None:
    spec = parse_workflow(GOOD + "with = { ndim = 3, max_gb = 1 }\n")
    changed = apply_overrides(spec, ["load_volume.ndim=4", "load_volume.ndim=[3, 4]"])
    assert changed.steps[0].with_ == {"ndim": [3, 4], "max_gb": 1}
    assert spec.steps[0].with_ == {"ndim": 3, "max_gb": 1}
    with pytest.raises(UsageError, match=r"--set load\.ndim: .*no step.*known: load_volume"):
        apply_overrides(spec, ["load.ndim=4"])


_json = st.recursive(
    st.one_of(st.booleans(), st.integers(-99, 99), st.text(max_size=5), st.floats()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(max_size=3), inner)),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["name", "step", "inputs", "x"]), _json), st.data())
def test_any_table_is_checked_without_an_exception(data: dict[str, Any], extra: Any) -> None:
    from medpipe.workflow.spec import _build
    from medpipe.workflow.toml_lines import TomlFile

    keys = ["use", "in", "out", "with", "save", "qc", "id", "y"]
    data["step"] = extra.draw(
        st.lists(st.one_of(_json, st.dictionaries(st.sampled_from(keys), _json)), max_size=2)
    )
    data["inputs"] = extra.draw(st.one_of(_json, st.dictionaries(st.text(max_size=2), _json)))
    spec = _build(TomlFile("f", data, "", {}), None)  # type: ignore[arg-type]
    assert spec.problems
