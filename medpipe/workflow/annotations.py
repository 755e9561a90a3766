"""The annotations a step parameter may have, as checkers of JSON values.

A small language, read from the syntax tree and never evaluated: ``bool int
float str None``, ``X | Y``, ``Optional``, ``Union``, ``Literal``, ``tuple``,
``list``, ``Sequence``, ``dict[str, X]``, ``Mapping[str, X]``, ``Any`` (any
JSON), and names that the module (or a sibling it imports from) binds to one of
these.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from medpipe.types import Json
from medpipe.workflow.source import SourceModule

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["Annotation", "Misfit", "UnsupportedAnnotation", "json_value", "read_annotation"]

_MAX_DEPTH = 12
_LISTS = {"list", "List", "Sequence"}
_DICTS = {"dict", "Dict", "Mapping"}
_ANY = {"Any", "Json"}
_SCALARS = {"bool", "int", "float", "str", "None"}


class UnsupportedAnnotation(Exception):  # noqa: N818
    """The annotation is outside the language."""


class Misfit(Exception):  # noqa: N818
    """The value does not fit the annotation, or cannot be written as JSON."""


@dataclass(frozen=True)
class Annotation:
    """A node of the language: ``kind`` and what it is made of.

    Attributes
    ----------
    kind : str
        ``any bool int float str None literal union list tuple dict``.
    parts : tuple
        Literal values for ``literal``, annotations otherwise.
    """

    kind: str
    parts: tuple[Any, ...] = ()

    def __str__(self) -> str:
        inner = [str(p) for p in self.parts]
        match self.kind:
            case "any":
                return "any value"
            case "literal":
                return " | ".join(_literal_text(p) for p in self.parts)
            case "union":
                return " | ".join(inner)
            case "list":
                return f"list of {inner[0]}"
            case "tuple":
                return f"[{', '.join(inner)}]"
            case "dict":
                return f"table of {inner[0]}"
        return self.kind

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the words that are allowed, for "did you mean"."""
        if self.kind == "literal":
            return tuple(p for p in self.parts if isinstance(p, str))
        if self.kind == "union":
            return tuple(word for part in self.parts for word in part.choices)
        return ()

    def check(self, value: Json) -> Json:
        """Return the canonical JSON form of `value`: ``1`` for a float becomes ``1.0``.

        Raises
        ------
        Misfit
            If the value does not fit.
        """
        from pydantic import ValidationError

        try:
            return json_value(self._adapter.validate_python(value))
        except (ValidationError, OverflowError):
            raise Misfit from None

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        from pydantic import TypeAdapter

        return TypeAdapter(self._type())

    def _type(self) -> Any:
        """Return the type that pydantic checks; its leaves are strict."""
        from pydantic import BeforeValidator, Field, Strict

        inner: list[Any] = []
        if self.kind != "literal":
            inner = [part._type() for part in self.parts]
        leaves: dict[str, Any] = {
            "any": Any,
            "None": type(None),
            "bool": Annotated[bool, Strict()],
            "int": Annotated[int, Strict()],
            "float": Annotated[float, Strict(), Field(allow_inf_nan=False)],
            "str": Annotated[str, Strict()],
        }
        match self.kind:
            case "literal":
                # Python says True == 1, so the type is compared as well.
                literal: Any = Literal
                return Annotated[literal[self.parts], BeforeValidator(_same_type(self.parts))]
            case "union":
                return reduce(or_, inner)
            case "list":
                return list.__class_getitem__(inner[0])
            case "tuple":
                return tuple.__class_getitem__(tuple(inner))
            case "dict":
                return dict.__class_getitem__((leaves["str"], inner[0]))
        return leaves[self.kind]


def _same_type(allowed: Sequence[Any]) -> Any:
    def check(value: Any) -> Any:
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise ValueError
        return value

    return check


def _literal_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def json_value(value: Any) -> Json:
    """Return `value` with tuples as lists, if it is JSON.

    Raises
    ------
    Misfit
        For dates, NaN, infinity and anything else JSON has no form for.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise Misfit
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [json_value(v) for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: json_value(v) for k, v in value.items()}
    raise Misfit


def read_annotation(node: ast.expr, module: SourceModule, depth: int = 0) -> Annotation:
    """Translate a syntax tree into the language.

    Raises
    ------
    UnsupportedAnnotation
        Naming the part that is outside the language.
    """
    if depth > _MAX_DEPTH:
        raise UnsupportedAnnotation("nested too deeply")
    if isinstance(node, ast.Constant):
        if node.value is None:
            return Annotation("None")
        if isinstance(node.value, str):
            return read_annotation(_quoted(node.value), module, depth + 1)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([node.left, node.right], module, depth)
    if isinstance(node, ast.Subscript):
        return _subscript(node, module, depth)
    name = _last_name(node)
    if name in _SCALARS:
        return Annotation(name)
    if name in _ANY:
        return Annotation("any")
    found = module.lookup(name) if isinstance(node, ast.Name) else None
    if found is not None and isinstance(found[1], ast.expr):
        return read_annotation(found[1], found[0], depth + 1)
    raise UnsupportedAnnotation(ast.unparse(node))


def _quoted(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UnsupportedAnnotation(text) from None


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _union(nodes: Sequence[ast.expr], module: SourceModule, depth: int) -> Annotation:
    parts: list[Annotation] = []
    for node in nodes:
        part = read_annotation(node, module, depth + 1)
        parts += part.parts if part.kind == "union" else [part]
    return Annotation("union", tuple(dict.fromkeys(parts)))


def _subscript(node: ast.Subscript, module: SourceModule, depth: int) -> Annotation:
    outer = _last_name(node.value)
    items = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if outer == "Literal":
        try:
            return Annotation("literal", tuple(ast.literal_eval(i) for i in items))
        except ValueError:
            raise UnsupportedAnnotation(ast.unparse(node)) from None
    if outer == "Optional" and len(items) == 1:
        return _union([*items, ast.Constant(None)], module, depth)
    if outer == "Union":
        return _union(items, module, depth)
    if outer == "Annotated":
        return read_annotation(items[0], module, depth + 1)
    if outer in _LISTS and len(items) == 1:
        return Annotation("list", (read_annotation(items[0], module, depth + 1),))
    if outer in {"tuple", "Tuple"}:
        if len(items) == 2 and isinstance(items[1], ast.Constant) and items[1].value is Ellipsis:
            return Annotation("list", (read_annotation(items[0], module, depth + 1),))
        return Annotation("tuple", tuple(read_annotation(i, module, depth + 1) for i in items))
    if outer in _DICTS and len(items) == 2 and _last_name(items[0]) == "str":
        return Annotation("dict", (read_annotation(items[1], module, depth + 1),))
    raise UnsupportedAnnotation(ast.unparse(node))
