"""What a step is, read from its source text: no step is imported.

The signature of ``Xd.__init__`` gives the parameters, the class attributes
what it reads and makes, the numpydoc docstring the words for `medpipe show`.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medpipe.errors import MedpipeError, Problem, StepError
from medpipe.types import Json
from medpipe.workflow.annotations import (
    Annotation,
    Misfit,
    UnsupportedAnnotation,
    json_value,
    read_annotation,
)
from medpipe.workflow.registry import step_target
from medpipe.workflow.source import SourceModule, SourceNotFound, load_source
from medpipe.workflow.suggest import did_you_mean, shown

__all__ = ["ParameterInfo", "StepInfo", "check_parameters", "describe_step"]

_SKIPPED = {"self", "keys", "allow_missing_keys"}
_MAKES = ("volume", "labels", "table", "document")
_DOCUMENT_SUFFIX = re.compile(r"(\.[a-z][a-z0-9]{0,15}){1,2}")
_TAKEN_SUFFIXES = (".nii", ".nii.gz", ".csv", ".png")
_ATTRIBUTES: Mapping[str, Json | tuple[str, ...]] = {
    "version": None,
    "reads": (),
    "writes": (),
    "files": (),
    "makes": "volume",
    "suffix": "",
    "random": False,
}


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of a step; `default` means nothing when `required`."""

    name: str
    annotation: Annotation
    required: bool
    default: Json
    help: str = ""


@dataclass(frozen=True)
class StepInfo:
    """One step as its source text declares it."""

    name: str
    target: str
    summary: str
    version: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    files: tuple[str, ...]
    makes: str
    suffix: str
    random: bool
    parameters: tuple[ParameterInfo, ...]

    def parameter(self, name: str) -> ParameterInfo | None:
        """Return the parameter of that name."""
        return next((p for p in self.parameters if p.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `medpipe show --json` prints."""
        record = {f: getattr(self, f) for f in self.__dataclass_fields__ if f != "parameters"}
        record["parameters"] = [
            {
                "name": p.name,
                "type": str(p.annotation),
                "required": p.required,
                "default": p.default,
                "help": p.help,
            }
            for p in self.parameters
        ]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}


def describe_step(name: str) -> StepInfo:
    """Return what the step called `name` takes, reads and makes, without importing it.

    Raises
    ------
    UsageError
        If no step has that name.
    StepError
        If its package is broken or breaks the contract of a step.
    """
    target = step_target(name)
    module_name, _, class_name = target.partition(":")
    try:
        module = load_source(module_name)
        return _Reader(name, target, module, class_name).read()
    except SourceNotFound as problem:
        raise StepError(f'step "{name}" cannot be used ({target}): {problem}') from None
    except MedpipeError as error:
        raise error.at(f'step "{name}" ({target})') from None


class _Reader:
    """Read one class and its base classes."""

    def __init__(self, name: str, target: str, module: SourceModule, class_name: str) -> None:
        found = module.lookup(class_name)
        if found is None or not isinstance(found[1], ast.ClassDef):
            raise StepError(f"the module has no class {class_name}")
        self.name = name
        self.target = target
        self.classes = list(_lineage(*found))
        self.module, self.node = self.classes[0]

    def read(self) -> StepInfo:
        attributes = self._attributes()
        parameters = tuple(self._parameters())
        known = {p.name for p in parameters}
        for kind in ("reads", "writes", "files"):
            for name in attributes[kind]:
                if name not in known:
                    raise StepError(f'class attribute {kind} names "{name}", which is no parameter')
        summary = _first_paragraph(self._docstring())
        return StepInfo(self.name, self.target, summary, parameters=parameters, **attributes)

    def _attributes(self) -> dict[str, Any]:
        values = {name: self._attribute(name, start) for name, start in _ATTRIBUTES.items()}
        if not isinstance(values["version"], str) or not values["version"]:
            raise StepError('class attribute version is missing, e.g. version = "1"')
        if values["makes"] not in _MAKES:
            raise StepError(f"class attribute makes is none of {', '.join(_MAKES)}")
        _check_suffix(values["makes"], values["suffix"])
        if not isinstance(values["random"], bool):
            raise StepError("class attribute random is neither True nor False")
        for name in ("reads", "writes", "files"):
            names = values[name]
            if not isinstance(names, (tuple, list)) or not all(isinstance(n, str) for n in names):
                raise StepError(f"class attribute {name} is not a tuple of parameter names")
            values[name] = tuple(names)
        return values

    def _attribute(self, name: str, start: Any) -> Any:
        for module, node in self.classes:
            for statement in node.body:
                if _assigned(statement) == name:
                    value = getattr(statement, "value", None)
                    try:
                        return _literal(value, module)
                    except ValueError:
                        raise StepError(f"class attribute {name} is not a literal") from None
        return start

    def _docstring(self) -> str:
        for node in (*(node for _, node in self.classes), self._array_class()):
            text = ast.get_docstring(node) if node is not None else None
            if text and not text.startswith("Dictionary form of"):
                return text
        return ""

    def _array_class(self) -> ast.ClassDef | None:
        """Return the class ``X`` that does the work of ``Xd``."""
        found = self.module.lookup(self.node.name.removesuffix("d"))
        return found[1] if found is not None and isinstance(found[1], ast.ClassDef) else None

    def _parameters(self) -> Iterator[ParameterInfo]:
        module, init = self._init()
        if init is None:
            return
        words = self._parameter_words()
        for argument, default in _signature(init):
            name = argument.arg
            if name in _SKIPPED:
                continue
            if argument.annotation is None:
                raise StepError(f"parameter {name} has no type annotation")
            try:
                annotation = read_annotation(argument.annotation, module)
            except UnsupportedAnnotation as part:
                raise StepError(f"parameter {name} has a type that is not JSON: {part}") from None
            value = self._default(name, default, annotation, module)
            yield ParameterInfo(name, annotation, default is None, value, words.get(name, ""))

    def _init(self) -> tuple[SourceModule, ast.FunctionDef | None]:
        for module, node in self.classes:
            for statement in node.body:
                if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                    return module, statement
        return self.module, None

    def _default(
        self, name: str, node: ast.expr | None, annotation: Annotation, module: SourceModule
    ) -> Json:
        if node is None:
            return None
        try:
            return annotation.check(json_value(_literal(node, module)))
        except (ValueError, Misfit):
            raise StepError(
                f"the default of parameter {name} is no literal of its type",
                expected=str(annotation),
            ) from None

    def _parameter_words(self) -> dict[str, str]:
        """Return the words on each parameter; the array class ``X`` helps out ``Xd``."""
        nodes = [node for _, node in self.classes]
        array = self._array_class()
        if array is not None:
            nodes.append(array)
        words: dict[str, str] = {}
        for node in nodes:
            documented: list[ast.ClassDef | ast.FunctionDef] = [node]
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    documented.append(part)
            for text in map(ast.get_docstring, documented):
                found = numpydoc_parameters(text or "")
                words = {k: v for k, v in found.items() if not v.startswith("See `")} | words
        return words


def _check_suffix(makes: str, suffix: Any) -> None:
    """Check that a document, and nothing else, says how the name of its file ends."""
    if makes != "document":
        if suffix != "":
            raise StepError("class attribute suffix is for steps that make a document")
    elif not isinstance(suffix, str) or not _DOCUMENT_SUFFIX.fullmatch(suffix):
        raise StepError('class attribute suffix of a document is missing, e.g. suffix = ".vtp"')
    elif suffix.endswith(_TAKEN_SUFFIXES):
        raise StepError("class attribute suffix is one of images, tables and pictures")


def _first_paragraph(docstring: str) -> str:
    return " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())


def _lineage(
    module: SourceModule, node: ast.AST, hops: int = 6
) -> Iterator[tuple[SourceModule, ast.ClassDef]]:
    """Yield a class and its base classes, as far as their source is at hand."""
    if not isinstance(node, ast.ClassDef):
        return
    yield module, node
    for base in node.bases:
        found = module.lookup(base.id) if isinstance(base, ast.Name) and hops else None
        if found is not None:
            yield from _lineage(*found, hops - 1)


def _assigned(statement: ast.stmt) -> str | None:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else None


def _literal(node: ast.AST | None, module: SourceModule, hops: int = 3) -> Any:
    """Return the value of a literal, or of a module constant that is one."""
    if isinstance(node, ast.Name) and hops:
        found = module.lookup(node.id)
        if found is not None:
            return _literal(found[1], found[0], hops - 1)
    if not isinstance(node, ast.expr):
        raise ValueError
    try:
        return ast.literal_eval(node)
    except (TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError from None


def _signature(init: ast.FunctionDef) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    positional = [*init.args.posonlyargs, *init.args.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(init.args.defaults))
    yield from zip(positional, [*missing, *init.args.defaults], strict=True)
    yield from zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)


_SECTION = re.compile(r"^(?P<title>[A-Z][A-Za-z ]+)\n-{3,}[ \t]*$", re.MULTILINE)


def numpydoc_parameters(docstring: str) -> dict[str, str]:
    """Return parameter name → its words, from the Parameters section of a numpydoc docstring."""
    text = inspect.cleandoc(docstring)
    marks = list(_SECTION.finditer(text))
    words: dict[str, str] = {}
    for mark, following in zip(marks, [*marks[1:], None], strict=False):
        if mark["title"] not in {"Parameters", "Other Parameters"}:
            continue
        body = text[mark.end() : following.start() if following else len(text)]
        names: list[str] = []
        for line in body.splitlines():
            text_of_line = line.strip()
            if line and not line[0].isspace():
                left, _, kind = line.partition(":")
                names = [n.strip().lstrip("*") for n in left.split(",")]
                # A type such as {"linear", "nearest"} is worth showing.
                text_of_line = kind.strip() if kind.strip().startswith("{") else ""
            for name in names:
                words[name] = f"{words.get(name, '')} {text_of_line}".strip()
    return words


def check_parameters(
    step: StepInfo, given: Mapping[str, Any]
) -> tuple[dict[str, Json], list[tuple[str | None, Problem]]]:
    """Return every parameter with defaults filled in, and what is wrong with `given`.

    Parameters
    ----------
    step : StepInfo
    given : mapping
        Parameter name → value, as TOML gave it.

    Returns
    -------
    values : dict
        Canonical JSON values. Parameters with a problem are left out.
    problems : list of (str or None, Problem)
        The parameter it is about (None when it is absent) and what is wrong.
    """
    problems: list[tuple[str | None, Problem]] = []
    values: dict[str, Json] = {}
    names = [p.name for p in step.parameters]
    for name in given:
        if name not in names:
            what = f'step "{step.name}" has no parameter "{name}"'
            hint = did_you_mean(name, names) or ("it takes none" if not names else None)
            problems.append((name, Problem(what, hint=hint)))
    for parameter in step.parameters:
        if parameter.name in given:
            value = given[parameter.name]
            try:
                values[parameter.name] = parameter.annotation.check(json_value(value))
            except Misfit:
                problems.append((parameter.name, _wrong_type(parameter, value)))
        elif parameter.required:
            what = f'step "{step.name}" needs the parameter "{parameter.name}"'
            problems.append((None, Problem(f"{what} ({parameter.annotation})")))
        else:
            values[parameter.name] = parameter.default
    return values, problems


def _wrong_type(parameter: ParameterInfo, value: Any) -> Problem:
    what = f'parameter "{parameter.name}": expected {parameter.annotation}, got {shown(value)}'
    hint = did_you_mean(value, parameter.annotation.choices) if isinstance(value, str) else None
    return Problem(what, hint=hint if hint and hint.startswith("did you mean") else None)
