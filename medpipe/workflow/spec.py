"""Workflow files: TOML → checked models, every problem at once, with file and line.

This module knows the shape of the file; what its steps take and read is
checked in `medpipe.workflow.plan`. Nothing in a workflow is evaluated: a value
is a TOML value and stays one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from medpipe.errors import Problem, UsageError, WorkflowError
from medpipe.workflow.suggest import did_you_mean, shown
from medpipe.workflow.toml_lines import TomlFile, TomlPath, parse_toml, read_toml

__all__ = [
    "InputModel",
    "Override",
    "QcModel",
    "SaveModel",
    "StepModel",
    "WorkflowSpec",
    "apply_overrides",
    "parse_override",
    "parse_workflow",
    "read_workflow",
]

WORKFLOW_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
KEY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "complex64")

_MODEL = ConfigDict(extra="forbid", strict=True, populate_by_name=True)


def _wrong(expected: str, value: Any) -> PydanticCustomError:
    # pydantic formats its template with braces, so the words go in as values.
    words = {"expected": expected, "got": shown(value)}
    return PydanticCustomError("medpipe", "expected {expected}, got {got}", words)


def _text(pattern: re.Pattern[str], expected: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _wrong(expected, value)
        return value

    return check


def _version(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,31}", value):
        raise _wrong('a short text such as "1"', value)
    return value


def _window(value: Any) -> Any:
    numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != 2 or not value[0] < value[1]:
        raise _wrong("two rising numbers [low, high]", value)
    return [float(v) for v in value]


def _names(value: Any) -> Any:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise _wrong("a list of names, the first that of label 1", value)
    return value


def _keys(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise _wrong("a key or a list of keys", value)
    for name in names:
        _text(KEY_NAME, "a key: letters, digits, _ and -, a letter first")(name)
    if len(set(names)) < len(names):
        raise _wrong("different keys", value)
    return names


def _saves(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _save(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


def _qc(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Key = Annotated[str, BeforeValidator(_text(KEY_NAME, "a key: letters, digits, _ and -"))]
Prose = Annotated[str, Field(max_length=20_000)]


class InputModel(BaseModel):
    """``[inputs.NAME]``."""

    model_config = _MODEL
    kind: Literal["volume", "labels", "images", "folder", "table"] = "volume"
    help: Prose = ""
    optional: bool = False


class SaveModel(BaseModel):
    """``save``: a file name, or a table with the key and the dtype."""

    model_config = _MODEL
    file: str
    key: Key | None = None
    dtype: Literal[DTYPES] | None = None  # type: ignore[valid-type]


class QcModel(BaseModel):
    """``qc``: a kind of picture, or a table with the kind and what to draw."""

    model_config = _MODEL
    kind: Literal["mosaic", "none"] = "mosaic"
    key: Key | None = None
    overlay: Key | None = None
    window_hu: Annotated[list[float], BeforeValidator(_window)] | None = None
    labels: Annotated[list[str], BeforeValidator(_names)] | None = None


class StepModel(BaseModel):
    """``[[step]]``."""

    model_config = _MODEL
    use: Annotated[str, BeforeValidator(_text(KEY_NAME, "the name of a step"))]
    id: Key | None = None
    in_: Annotated[list[str], BeforeValidator(_keys), Field(alias="in")]
    out: Annotated[list[str], BeforeValidator(_keys)] | None = None
    with_: Annotated[dict[str, Any], Field(alias="with")] = {}
    save: Annotated[
        list[Annotated[SaveModel, BeforeValidator(_save)]], BeforeValidator(_saves)
    ] = []
    qc: Annotated[QcModel, BeforeValidator(_qc)] | None = None

    @property
    def name(self) -> str:
        """Return the step's id."""
        return self.id or self.use

    @property
    def outputs(self) -> list[str]:
        """Return the keys the step writes."""
        return self.out or self.in_


class _Head(BaseModel):
    model_config = _MODEL
    name: Annotated[
        str,
        BeforeValidator(_text(WORKFLOW_NAME, "a name of lower-case letters, digits and hyphens")),
    ]
    version: Annotated[str, BeforeValidator(_version)]
    summary: Annotated[str, Field(min_length=1, max_length=200)]
    description: Prose = ""
    inputs: Annotated[dict[str, Any], Field(min_length=1)]
    step: Annotated[list[Any], Field(min_length=1)]


@dataclass(frozen=True)
class Override:
    """``--set STEP.PARAMETER=VALUE``."""

    step: str
    parameter: str
    value: Any


@dataclass
class WorkflowSpec:
    """A workflow file as written.

    Attributes
    ----------
    steps : dict
        Position in the file (from 0) → step; steps with problems are left out.
    problems : list of Problem
        What is wrong with the shape of the file.
    overridden : dict
        (step id, parameter) → the override that replaced its value.
    """

    toml: TomlFile
    folder: Path
    name: str = ""
    version: str = ""
    summary: str = ""
    description: str = ""
    inputs: dict[str, InputModel] = field(default_factory=dict)
    steps: dict[int, StepModel] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    overridden: dict[tuple[str, str], Override] = field(default_factory=dict)

    def refuse(self, what: str, path: TomlPath, hint: str | None = None) -> None:
        """Note a problem at a place of the file, fit for a terminal."""
        what = "".join(c if c.isprintable() else "?" for c in what)
        self.problems.append(Problem(what, line=self.toml.line(path), hint=hint))

    def raise_problems(self) -> None:
        """Raise WorkflowError with every problem, in the order of the file."""
        if self.problems:
            raise WorkflowError(self.toml.label, sorted(self.problems, key=lambda p: p.line or 0))


_M = TypeVar("_M", bound=BaseModel)


def _model(spec: WorkflowSpec, kind: type[_M], value: Any, path: TomlPath) -> _M | None:
    if not isinstance(value, dict):
        spec.refuse(f"{_place(path)}: expected a table, got {shown(value)}", path)
        return None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=True):
            _translate(spec, kind, detail, path)
        return None


_PART_MODELS: Mapping[str, type[BaseModel]] = {"save": SaveModel, "qc": QcModel}


def _translate(
    spec: WorkflowSpec, kind: type[BaseModel], detail: ErrorDetails, path: TomlPath
) -> None:
    """Say one problem that pydantic found in our own words."""
    place = (*path, *detail["loc"])
    name = str(place[-1])
    match detail["type"]:
        case "extra_forbidden":
            part = next((_PART_MODELS[str(p)] for p in place[:-1] if p in _PART_MODELS), kind)
            known = [f.alias or n for n, f in part.model_fields.items()]
            spec.refuse(f'unknown key "{name}"', place, did_you_mean(name, known))
        case "missing":
            around = _place(place[:-1])
            spec.refuse(f'{around}{": " if around else ""}the key "{name}" is missing', place)
        case "literal_error":
            ctx = detail.get("ctx", {})
            words = f"{_place(place)}: expected {ctx.get('expected')}, got {shown(detail['input'])}"
            spec.refuse(words.replace("'", '"'), place)
        case _:
            expected = _EXPECTED.get(detail["type"])
            words = f"expected {expected}, got {shown(detail['input'])}"
            spec.refuse(f"{_place(place)}: {words if expected else detail['msg']}", place)


_EXPECTED = {
    "string_type": "a text in quotes",
    "string_too_short": "a text",
    "string_too_long": "a shorter text",
    "bool_type": "true or false",
    "dict_type": "a table",
    "list_type": "a list",
    "too_short": "at least one entry",
    "model_type": "a text or a table",
    "model_attributes_type": "a text or a table",
}


def _place(path: TomlPath) -> str:
    return ".".join(str(p + 1) if isinstance(p, int) else p for p in path)


def _build(toml: TomlFile, folder: Path) -> WorkflowSpec:
    spec = WorkflowSpec(toml, folder)
    head = _model(spec, _Head, toml.data, ())
    if head is not None:
        spec.name, spec.version = head.name, head.version
        spec.summary, spec.description = head.summary, head.description
    inputs = toml.data.get("inputs")
    for name, value in inputs.items() if isinstance(inputs, dict) else ():
        path: TomlPath = ("inputs", name)
        if not KEY_NAME.fullmatch(name) or name in {"case_id", "patient_id"}:
            hint = "letters, digits, _ and -, a letter first; not case_id or patient_id"
            spec.refuse(f"{shown(name)} cannot name an input", path, hint)
        model = _model(spec, InputModel, value, path)
        if model is not None:
            spec.inputs[name] = model
    steps = toml.data.get("step")
    for index, value in enumerate(steps if isinstance(steps, list) else ()):
        step = _model(spec, StepModel, value, ("step", index))
        if step is not None:
            spec.steps[index] = step
    return spec


def parse_workflow(text: str, label: str = "workflow", folder: Path | None = None) -> WorkflowSpec:
    """Parse the text of a workflow; problems of its shape are in ``problems``.

    Raises
    ------
    WorkflowError
        If the text is not TOML.
    """
    return _build(parse_toml(text, label), folder or Path.cwd())


def read_workflow(path: Path) -> WorkflowSpec:
    """Read a workflow file; problems of its shape are in ``problems``.

    Raises
    ------
    WorkflowError
        If the file cannot be read or is not TOML.
    """
    return _build(read_toml(path), path.resolve().parent)


def parse_override(text: str) -> Override:
    """Parse ``step.parameter=value``; the value is TOML, or else taken as text.

    Raises
    ------
    UsageError
        If the text does not have that form.
    """
    place, equals, raw = text.partition("=")
    step, dot, parameter = (part.strip() for part in place.partition("."))
    if not (equals and dot and step and parameter):
        raise UsageError(
            "an override is not readable",
            where="--set",
            expected="STEP.PARAMETER=VALUE",
            got=shown(text),
        )
    return Override(step, parameter, _toml_value(raw.strip()))


def _toml_value(raw: str) -> Any:
    try:
        data = parse_toml(f"value = {raw}\n", "--set").data
    except WorkflowError:
        return raw
    # More than one key: the text held a line break and was no single value.
    value = data["value"] if data.keys() == {"value"} else raw
    return value if isinstance(value, (bool, int, float, str, list, dict)) else raw


def apply_overrides(spec: WorkflowSpec, overrides: Iterable[str | Override]) -> WorkflowSpec:
    """Return the workflow with parameters replaced; of two for one parameter the later wins.

    Raises
    ------
    UsageError
        If an override is unreadable or names no step of the workflow.
    """
    spec = replace(spec, steps=dict(spec.steps), overridden=dict(spec.overridden))
    by_name = {step.name: index for index, step in spec.steps.items()}
    for given in overrides:
        override = parse_override(given) if isinstance(given, str) else given
        if override.step not in by_name:
            if spec.problems:  # the step may be one that could not be read
                continue
            raise UsageError(
                f'the workflow has no step "{override.step}"',
                where=f"--set {override.step}.{override.parameter}",
                hint=did_you_mean(override.step, by_name),
            )
        index = by_name[override.step]
        step = spec.steps[index]
        changed = {**step.with_, override.parameter: override.value}
        spec.steps[index] = step.model_copy(update={"with_": changed})
        spec.overridden[override.step, override.parameter] = override
    return spec
