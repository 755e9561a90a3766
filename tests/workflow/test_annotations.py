"""The annotation language, against Python's own typing."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpipe.workflow.annotations import (
    Annotation,
    Misfit,
    UnsupportedAnnotation,
    json_value,
    read_annotation,
)
from medpipe.workflow.source import SourceModule

MODULE = """
from typing import Literal, TypeAlias
Mode = Literal["a", "b"]
Pair: TypeAlias = "tuple[float, float]"
Loop = Loop
def f(): ...
"""


def read(text: str) -> Annotation:
    module = SourceModule("m", ast.parse(MODULE), package=False)
    return read_annotation(ast.parse(text, mode="eval").body, module)


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("bool", [(True, True)], [1, 0, "true", None]),
        ("int", [(3, 3), (-1, -1)], [True, 1.0, "3", None]),
        ("float", [(1, 1.0), (0.5, 0.5)], [True, "1", None, [1.0]]),
        ("str", [("", ""), ("x", "x")], [1, None, ["x"]]),
        ("None", [(None, None)], [0, "", False]),
        ("float | None", [(None, None), (2, 2.0)], [False, "2"]),
        ("Optional[int]", [(None, None), (2, 2)], [2.5, True]),
        ("typing.Union[int, str]", [(1, 1), ("1", "1")], [1.5, None]),
        ("'int | None'", [(1, 1), (None, None)], ["1"]),
        ("Literal['a', 1]", [("a", "a"), (1, 1)], [True, 1.0, "b", None]),
        ("Literal[True]", [(True, True)], [1]),
        ("Mode", [("a", "a")], ["c", None]),
        ("Mode | None", [("a", "a"), (None, None)], ["c"]),
        ("Pair", [([1, 2], [1.0, 2.0])], [[1], [1, 2, 3], "12", [1, "2"]]),
        ("tuple[int, ...]", [([], []), ([1, 2], [1, 2])], [[1.5], 1]),
        ("list[float]", [([], []), ([1], [1.0])], [1.0, ["1"], {"a": 1.0}]),
        ("Sequence[str]", [(["a"], ["a"])], ["a", [1]]),
        ("list[list[int]]", [([[1], []], [[1], []])], [[1]]),
        ("dict[str, float]", [({"a": 1}, {"a": 1.0})], [{"a": "1"}, [1], 1]),
        ("Mapping[str, int]", [({"a": 1}, {"a": 1})], [{"a": 1.5}]),
        ("dict[str, Any]", [({"a": [1, "x"]}, {"a": [1, "x"]})], [1]),
        ("int | float", [(1, 1), (1.0, 1.0)], [True]),
        ("float | tuple[float, float, float]", [(1, 1.0), ([1, 2, 3], [1.0, 2.0, 3.0])], [[1, 2]]),
        ("Annotated[int, 'mm']", [(1, 1)], [1.5]),
    ],
)
def test_what_an_annotation_takes(
    annotation: str, good: list[tuple[Any, Any]], bad: list[Any]
) -> None:
    checker = read(annotation)
    for value, canonical in good:
        found = checker.check(value)
        assert found == canonical
        assert repr(found) == repr(canonical)  # 1 is not 1.0 in a key
    for value in bad:
        with pytest.raises(Misfit):
            checker.check(value)


def test_a_number_too_large_for_a_float() -> None:
    for value in (10**400, -(10**400)):
        with pytest.raises(Misfit):
            read("float").check(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, {1: 2}, [b"x"]])
def test_what_json_cannot_hold(value: Any) -> None:
    with pytest.raises(Misfit):
        json_value(value)


@pytest.mark.parametrize(
    "annotation",
    [
        "np.ndarray",
        "Callable[[int], int]",
        "set[int]",
        "dict[int, str]",
        "Unknown",
        "f",
        "Loop",
        "list",
        "print('x')",
        "__import__('os').system('true')",
        "Literal[print()]",
        "'('",
        "list[" * 30 + "int" + "]" * 30,
    ],
)
def test_what_is_outside_the_language(annotation: str) -> None:
    with pytest.raises(UnsupportedAnnotation):
        read(annotation)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("Mode | None", '"a" | "b" | None'),
        ("list[float] | float", "list of float | float"),
        ("tuple[int, int]", "[int, int]"),
        ("dict[str, int]", "table of int"),
    ],
)
def test_words_for_people(annotation: str, words: str) -> None:
    assert str(read(annotation)) == words


_leaf = st.sampled_from(["bool", "int", "float", "str", "None", "Literal['a', 2]"])
_annotation = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        inner.map(lambda a: f"list[{a}]"),
        inner.map(lambda a: f"dict[str, {a}]"),
        st.tuples(inner, inner).map(lambda p: f"tuple[{p[0]}, {p[1]}]"),
        st.tuples(inner, inner).map(lambda p: f"{p[0]} | {p[1]}"),
    ),
    max_leaves=4,
)
_json = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.sampled_from([0.5, 1.0, "a", "b"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xy"), inner, max_size=2)
    ),
    max_leaves=5,
)


def fits(annotation: Annotation, value: Any) -> bool:
    """Say by definition whether a value fits: the slow, obvious way."""
    parts = annotation.parts
    match annotation.kind:
        case "bool":
            return value is True or value is False
        case "int":
            return type(value) is int
        case "float":
            return type(value) in (int, float)
        case "str":
            return type(value) is str
        case "None":
            return value is None
        case "literal":
            return any(type(value) is type(p) and value == p for p in parts)
        case "union":
            return any(fits(p, value) for p in parts)
        case "list":
            return type(value) is list and all(fits(parts[0], v) for v in value)
        case "dict":
            return type(value) is dict and all(fits(parts[0], v) for v in value.values())
        case "tuple":
            same = type(value) is list and len(value) == len(parts)
            return same and all(fits(p, v) for p, v in zip(parts, value, strict=True))
    raise AssertionError(annotation.kind)


@given(_annotation, _json)
def test_check_agrees_with_the_definition(text: str, value: Any) -> None:
    annotation = read(text)
    if not fits(annotation, value):
        with pytest.raises(Misfit):
            annotation.check(value)
        return
    canonical = annotation.check(value)
    assert canonical == value
    assert repr(annotation.check(canonical)) == repr(canonical)  # a second time changes nothing
