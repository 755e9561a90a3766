"""Steps described from their source text, without importing them."""

from __future__ import annotations

import inspect
import sys
import typing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from medpipe.errors import StepError, UsageError
from medpipe.workflow.describe import check_parameters, describe_step, numpydoc_parameters
from medpipe.workflow.registry import STEPS, step_names, step_target

Install = typing.Callable[..., Path]


def test_everything_about_a_step_is_read_from_its_text(lab: Path) -> None:
    step = describe_step("blend")
    assert "lab" not in sys.modules
    assert step.to_dict() == {
        "name": "blend",
        "target": "lab.steps:Blendd",
        "summary": "Blend an image with another.",
        "version": "7",
        "reads": ["mask"],
        "writes": [],
        "files": [],
        "makes": "volume",
        "suffix": "",
        "random": False,
        "parameters": [
            dict(zip(("name", "type", "required", "default", "help"), row, strict=True))
            for row in [
                ("mask", "str | None", False, None, "Key of the mask."),
                ("amount", "float", False, 0.5, "How much, from 0 to 1, in steps of your choice."),
                ("size", "[int, int]", False, [3, 4], ""),
                ("mode", '"linear" | "nearest"', False, "linear", "How to interpolate."),
                ("flag", "bool", False, False, ""),
                ("count", "int", False, 1, ""),
                ("note", "str", False, "", ""),
            ]
        ],
    }
    model = describe_step("model")
    assert (model.files, model.random, model.makes) == (("weights",), True, "labels")
    assert describe_step("count").parameter("least").required  # type: ignore[union-attr]
    assert describe_step("split").writes == ("rest",)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def __init__(self, keys): ...", 'version is missing, e.g. version = "1"'),
        ("version = 1", "version is missing"),
        ("version = str(1)", "class attribute version is not a literal"),
        ("version = '1'; makes = 'image'", "makes is none of volume, labels, table"),
        ("version = '1'; random = 1", "random is neither True nor False"),
        ("version = '1'; reads = 'mask'", "reads is not a tuple of parameter names"),
        ("version = '1'; reads = ('mask',)", 'reads names "mask", which is no parameter'),
        ("version = '1'\n    def __init__(self, keys, a): ...", "parameter a has no type"),
        (
            "version = '1'\n    def __init__(self, keys, a: object): ...",
            "parameter a has a type that is not JSON: object",
        ),
        (
            "version = '1'\n    def __init__(self, keys, a: int = 'x'): ...",
            "the default of parameter a is no literal of its type; expected int",
        ),
        (
            "version = '1'\n    def __init__(self, keys, a: float = float('inf')): ...",
            "the default of parameter a is no literal of its type; expected float",
        ),
        (
            "version = '1'\n    def __init__(self, keys, a: float = 1e999): ...",
            "the default of parameter a is no literal of its type; expected float",
        ),
    ],
)
def test_a_step_that_breaks_the_contract(install: Install, body: str, message: str) -> None:
    install("bad", {"bad.py": f"class Badd:\n    {body}\n"}, steps={"bad": "bad:Badd"})
    with pytest.raises(StepError) as caught:
        describe_step("bad")
    assert 'step "bad" (bad:Badd)' in str(caught.value)
    assert message in str(caught.value)
    assert "bad" not in sys.modules


@pytest.mark.parametrize(
    ("target", "files", "message"),
    [
        ("absent.mod:Xd", {}, "no module absent is installed"),
        ("there.mod:Xd", {"there/__init__.py": ""}, "no module there.mod is installed"),
        ("flat.mod:Xd", {"flat.py": ""}, "flat is not a package"),
        ("there:Xd", {"there/__init__.py": "X = 1"}, "the module has no class Xd"),
        ("there:Xd", {"there/__init__.py": "Xd = 1"}, "the module has no class Xd"),
        ("there:Xd", {"there/__init__.py": "class Xd("}, "module there does not parse"),
        ("zlib:Xd", {}, "module zlib has no readable source text"),
    ],
)
def test_a_broken_package_is_an_error_only_when_used(
    install: Install, target: str, files: dict[str, str], message: str
) -> None:
    install("broken", files, steps={"broken": target})
    assert "broken" in step_names()
    assert describe_step("orient").version
    with pytest.raises(StepError) as caught:
        describe_step("broken")
    assert message in str(caught.value)
    assert target in str(caught.value)


@pytest.mark.parametrize("value", ["os.system", "a:b:c", "a b:c d", "../x:Y", "x:Y.z", ":", "x:"])
def test_a_wrong_entry_point(install: Install, value: str) -> None:
    install("wrong", {}, steps={"wrong": value})
    with pytest.raises(StepError, match='"wrong" is declared wrongly'):
        step_target("wrong")


def test_two_packages_that_claim_one_name(install: Install) -> None:
    install("one", {}, steps={"twice": "one:Xd", "orient": "one:Orientd"})
    install("two", {}, steps={"twice": "two:Xd"})
    with pytest.raises(StepError, match=r"two installed packages.*one:Xd and two:Xd"):
        step_target("twice")
    assert step_target("orient") == STEPS["orient"]  # nobody takes medpipe's own names


def test_an_unknown_step_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r'unknown step "treshold"\. Next: did you mean "thresh'):
        describe_step("treshold")


def test_base_classes_and_constants_in_a_sibling_module(install: Install) -> None:
    files = {
        "pack/__init__.py": "raise RuntimeError('not to be run')",
        "pack/base.py": "from typing import Literal\nM = Literal['a', 'b']\nD = 'b'\n"
        "class Base:\n    version = '3'\n    makes = 'labels'\n",
        "pack/sub/__init__.py": "",
        "pack/sub/steps.py": "from ..base import Base as B, M, D\n"
        "class Xd(B):\n    def __init__(self, keys, m: M | None = D): ...\n",
    }
    install("pack", files, steps={"x": "pack.sub.steps:Xd"})
    step = describe_step("x")
    assert (step.version, step.makes) == ("3", "labels")
    assert str(step.parameters[0].annotation) == '"a" | "b" | None'
    assert step.parameters[0].default == "b"


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({}, ['needs the parameter "least" (int)']),
        ({"least": 1.0}, ['parameter "least": expected int, got 1.0']),
        ({"least": True}, ['parameter "least": expected int, got true']),
        ({"least": 1, "lest": 2}, ['has no parameter "lest"|did you mean "least"?']),
    ],
)
def test_parameters_are_checked(lab: Path, given: dict[str, object], problems: list[str]) -> None:
    values, found = check_parameters(describe_step("count"), given)
    assert [f"{p.what}|{p.hint}" for _, p in found] == [
        f'step "count" {p}' + ("" if "|" in p else "|None") if p[0] in "nh" else f"{p}|None"
        for p in problems
    ]
    assert values == ({"least": 1} if given.get("least") == 1 and "lest" in given else {})


def test_a_wrong_choice_names_the_nearest(lab: Path) -> None:
    _, found = check_parameters(describe_step("blend"), {"mode": "linnear", "size": [1]})
    assert [(name, p.what, p.hint) for name, p in found] == [
        ("size", 'parameter "size": expected [int, int], got [1]', None),
        (
            "mode",
            'parameter "mode": expected "linear" | "nearest", got "linnear"',
            'did you mean "linear"?',
        ),
    ]


def test_defaults_are_filled_in_canonically(lab: Path) -> None:
    step = describe_step("blend")
    written = {"amount": 0.5, "size": [3, 4], "mode": "linear", "flag": False, "count": 1}
    assert check_parameters(step, {}) == check_parameters(step, written | {"note": ""})
    values, _ = check_parameters(step, {"amount": 1})
    assert repr(values["amount"]) == "1.0"


def test_numpydoc_sections() -> None:
    text = """Do.

    Parameters
    ----------
    a, b : int
        Both.

        More.
    *c : str
        Third
    d

    Returns
    -------
    e : int
        Not this.

    Other Parameters
    ----------------
    f : {"x", "y"}
        Late.
    """
    expected = {
        "a": "Both. More.",
        "b": "Both. More.",
        "c": "Third",
        "d": "",
        "f": '{"x", "y"} Late.',
    }
    assert numpydoc_parameters(text) == expected


@pytest.mark.parametrize("name", list(STEPS))
def test_the_description_agrees_with_the_imported_class(name: str) -> None:
    """The class itself, imported, is the truth that the text is compared with."""
    module, _, cls = STEPS[name].partition(":")
    if find_spec(module) is None:
        pytest.fail(f"{module} is missing")
    imported = getattr(import_module(module), cls)
    step = describe_step(name)
    for attribute in ("version", "makes"):
        assert getattr(imported, attribute) == getattr(step, attribute)
    for attribute in ("reads", "writes", "files"):
        assert tuple(getattr(imported, attribute, ())) == getattr(step, attribute)
    assert getattr(imported, "random", False) == step.random
    signature = dict(inspect.signature(imported).parameters)
    assert next(iter(signature)) == "keys"
    assert list(signature)[-1] == "allow_missing_keys"
    del signature["keys"], signature["allow_missing_keys"]
    assert list(signature) == [p.name for p in step.parameters]
    for parameter in step.parameters:
        default = signature[parameter.name].default
        assert parameter.required == (default is inspect.Parameter.empty)
        if not parameter.required:
            expected = list(default) if isinstance(default, tuple) else default
            assert parameter.default == expected
        assert parameter.help, f"{name}.{parameter.name} is not documented"
    assert step.summary
    assert hasattr(import_module(module), cls.removesuffix("d"))
