"""From a workflow file to a `CompiledWorkflow`: every step checked, no step imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medpipe.errors import MedpipeError
from medpipe.io.atomic import sha256_file
from medpipe.models import MODELS
from medpipe.types import Json
from medpipe.workflow.compiled import (
    CompiledStep,
    CompiledWorkflow,
    InputSpec,
    QcSpec,
    SaveSpec,
)
from medpipe.workflow.describe import StepInfo, check_parameters, describe_step
from medpipe.workflow.find import find_workflow
from medpipe.workflow.registry import check_step_names, is_own_step
from medpipe.workflow.spec import (
    KEY_NAME,
    Override,
    SaveModel,
    StepModel,
    WorkflowSpec,
    apply_overrides,
    read_workflow,
)
from medpipe.workflow.suggest import did_you_mean, shown
from medpipe.workflow.toml_lines import TomlPath

__all__ = ["check_step_names", "compile_workflow"]

IMAGE_SUFFIXES = (".nii.gz", ".nii")
TABLE_SUFFIXES = (".json", ".csv")

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MODEL_NAME = re.compile(r"[a-z][a-z0-9-]*")
_RESERVED = {"case.json", "object.json"}
_FILE, _IMAGES, _FOLDER, _ROW = "file", "images", "folder", "row"
LOADERS = {
    _FILE: ("load_volume",),
    _IMAGES: ("load_weighted",),
    _FOLDER: ("train_centerline", "train_synthesis", "fit_baseline"),
    _ROW: ("sample_volume",),
}
"""What a key holds that is not loaded yet → the steps that load it."""
_LOADING = frozenset(name for names in LOADERS.values() for name in names)
_UNLOADED = {"images": _IMAGES, "folder": _FOLDER, "table": _ROW}
"""Kinds of inputs → what their keys hold; those that are not here are files of an image."""

_NO_IMAGE = ("table", "document")


def compile_workflow(
    workflow: WorkflowSpec | str | Path,
    overrides: Iterable[str | Override] = (),
    base_dir: Path | None = None,
    *,
    workflow_paths: Sequence[str | Path] = (),
) -> CompiledWorkflow:
    """Check a workflow and fill in every default.

    Parameters
    ----------
    workflow : WorkflowSpec, str or Path
        A name, a path of a ``.toml`` file, or what `read_workflow` returned.
    overrides : iterable of str or Override
        ``"step.parameter=value"``, as ``--set`` takes them.
    base_dir : Path, optional
        Folder that file parameters in the workflow are relative to and may
        not leave; by default the folder of the workflow file. Paths given by
        an override are the user's own: relative to the current folder, free.
    workflow_paths : sequence of path
        Folders to look in first for a name.

    Raises
    ------
    WorkflowError
        With every problem of the file.
    UsageError
        If there is no such workflow, or an override is unreadable or names no step.
    """
    if not isinstance(workflow, WorkflowSpec):
        workflow = read_workflow(find_workflow(workflow, workflow_paths=workflow_paths))
    spec = apply_overrides(workflow, overrides)
    compiler = _Compiler(spec, (base_dir or spec.folder).resolve())
    steps = compiler.steps()
    spec.raise_problems()
    return CompiledWorkflow(
        name=spec.name,
        version=spec.version,
        summary=spec.summary,
        description=spec.description,
        inputs={
            name: InputSpec(kind=i.kind, help=i.help, optional=i.optional)
            for name, i in spec.inputs.items()
        },
        steps=tuple(steps),
    )


@dataclass
class _Compiler:
    """Walk the steps from top to bottom with what is known at each."""

    spec: WorkflowSpec
    base_dir: Path
    kinds: dict[str, str] = field(default_factory=dict)  # key → what it holds now
    suffixes: dict[str, str] = field(default_factory=dict)  # key of a document → its suffix
    ids: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)  # lower-case name → as written
    pictures: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    sure: bool = True  # False after a step that could not be read: it may write anything

    def steps(self) -> list[CompiledStep]:
        for name, model in self.spec.inputs.items():
            self.kinds[name] = _UNLOADED.get(model.kind, _FILE)
        count = len(self.spec.toml.data["step"]) if self.spec.steps else 0
        self.sure = not self.spec.problems
        done = [self._step(i, self.spec.steps[i]) for i in range(count) if i in self.spec.steps]
        for name in self.spec.inputs if self.sure else ():
            if name not in self.used:
                self.spec.refuse(f'input "{name}" is read by no step', ("inputs", name))
        return [step for step in done if step is not None]

    def _step(self, index: int, step: StepModel) -> CompiledStep | None:
        place: TomlPath = ("step", index)
        if step.name in self.ids:
            what = f'two steps are called "{step.name}"'
            self.spec.refuse(what, (*place, "id" if step.id else "use"), 'give one an "id"')
        self.ids.add(step.name)
        if len(step.in_) != len(step.outputs):
            what = f'"in" names {len(step.in_)} keys and "out" {len(step.outputs)}'
            self.spec.refuse(what, (*place, "out"))
        try:
            info = describe_step(step.use)
        except MedpipeError as error:
            where = f"{error.where}: " if error.where else ""
            got = f", got {error.got}" if error.got else ""
            self.spec.refuse(f"{where}{error.what}{got}", (*place, "use"), error.hint)
            self.sure = False
            return None
        return self._described(place, step, info)

    def _described(self, place: TomlPath, step: StepModel, info: StepInfo) -> CompiledStep:
        params = self._parameters(place, step, info)
        reads = self._named_keys(place, params, info.reads)
        writes = self._named_keys(place, params, info.writes)
        for key in step.in_:
            self._read(key, step, (*place, "in"))
        for name, key in reads.items():
            self._read(key, None, (*place, "with", name))
        for key in (*step.outputs, *writes.values()):
            self.kinds[key] = info.makes
            self.suffixes[key] = info.suffix
        digests, paths = self._digests(place, step, params, info)
        return CompiledStep(
            id=step.name,
            use=step.use,
            target=info.target,
            version=info.version,
            inputs=tuple(step.in_),
            outputs=tuple(step.outputs),
            params=params,
            reads=reads,
            writes=writes,
            files=digests,
            paths=paths,
            makes=info.makes,
            random=info.random,
            save=self._saves(place, step, [*step.outputs, *writes.values()]),
            qc=self._picture(place, step),
        )

    def _parameters(self, place: TomlPath, step: StepModel, info: StepInfo) -> dict[str, Any]:
        params, problems = check_parameters(info, step.with_)
        for name, problem in problems:
            what = problem.what
            if name is not None and (step.name, name) in self.spec.overridden:
                what = f"--set {step.name}.{name}: {what}"
            path = (*place, "with", name) if name is not None else (*place, "use")
            self.spec.refuse(what, path, problem.hint)
        return params

    def _named_keys(
        self, place: TomlPath, params: Mapping[str, Any], names: Iterable[str]
    ) -> dict[str, str]:
        """Return parameter → key, for the parameters whose value is a key."""
        found: dict[str, str] = {}
        for name in names:
            key = params.get(name)
            if isinstance(key, str) and KEY_NAME.fullmatch(key):
                found[name] = key
            elif key is not None:
                what = f'parameter "{name}": expected a key, got {shown(key)}'
                self.spec.refuse(what, (*place, "with", name))
        return found

    def _read(self, key: str, step: StepModel | None, path: TomlPath) -> None:
        """Check that `key` can be read here; `step` is None for a key in a parameter."""
        self.used.add(key)
        kind = self.kinds.get(key)
        if kind is None:
            if self.sure:
                hint = did_you_mean(key, self.kinds) or "a step reads only keys written above it"
                self.spec.refuse(f'no input or step above makes the key "{key}"', path, hint)
        elif kind == "table":
            self.spec.refuse(f'the key "{key}" holds a table here, not an image', path)
        elif step is None or is_own_step(step.use):
            loads = step is not None and step.use in _LOADING
            loaders = LOADERS.get(kind, ())
            named = " or ".join(f'"{name}"' for name in loaders)
            if loaders and not loads:
                hint = f"put a step with use = {named} above"
                self.spec.refuse(f'the input "{key}" is not loaded yet', path, hint)
            elif loaders and step is not None and step.use not in loaders:
                hint = f"use = {named}, or change the kind of the input"
                self.spec.refuse(f'"{step.use}" does not load this kind of input', path, hint)
            elif loads and not loaders and self.sure:
                self.spec.refuse(f'the key "{key}" is loaded already', path)

    def _digests(
        self, place: TomlPath, step: StepModel, params: dict[str, Any], info: StepInfo
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return sha256 and path of each file parameter; put the digest into `params`.

        A packaged model has a digest and stays a name.
        """
        digests: dict[str, str] = {}
        paths: dict[str, str] = {}
        for name in info.files:
            value = params.get(name)
            if value is None:
                continue
            if isinstance(value, str) and value in MODELS:
                digests[name] = MODELS[value].sha256
                continue
            known = info.parameter(name)
            if known is not None and value == known.default and _MODEL_NAME.fullmatch(str(value)):
                continue  # a model that this installation lacks: the step says so
            own = (step.name, name) in self.spec.overridden
            path, what = _file_parameter(value, self.base_dir, free=own)
            if path is None:
                self.spec.refuse(f'parameter "{name}": {what}', (*place, "with", name))
                continue
            digests[name] = sha256_file(path)
            paths[name] = str(path)
            params[name] = f"sha256:{digests[name]}"
        return digests, paths

    def _saves(
        self, place: TomlPath, step: StepModel, written: Sequence[str]
    ) -> tuple[SaveSpec, ...]:
        found = []
        for index, save in enumerate(step.save):
            path: TomlPath = (*place, "save", index)
            key = save.key or written[0]
            if save.key is None and len(written) > 1:
                hint = f'write {{ key = "{written[0]}", file = "…" }}'
                self.spec.refuse(f'"save" must say which of the keys {shown(written)}', path, hint)
            elif key not in written:
                self.spec.refuse(f'the step does not write the key "{key}" that it saves', path)
            self._file_name(save, key, path)
            found.append(SaveSpec(key=key, file=save.file, dtype=save.dtype))
        return tuple(found)

    def _suffixes(self, key: str) -> tuple[str, ...]:
        """Return the endings that the file of a key may have."""
        kind = self.kinds.get(key)
        if kind == "document":
            return (self.suffixes[key],)
        return TABLE_SUFFIXES if kind == "table" else IMAGE_SUFFIXES

    def _file_name(self, save: SaveModel, key: str, path: TomlPath) -> None:
        name, kind, suffixes = save.file, self.kinds.get(key, ""), self._suffixes(key)
        if not _FILE_NAME.fullmatch(name):
            what = f"{shown(name)} is not a safe file name"
            self.spec.refuse(what, path, "letters, digits, dot, _ and -, no folder")
            return
        if not name.endswith(suffixes):
            noun = {"labels": "label map", "document": "document of this step"}.get(kind, kind)
            what = f"a {noun} is saved as {' or '.join(suffixes)}, got {shown(name)}"
            self.spec.refuse(what, path)
        if save.dtype is not None and kind in _NO_IMAGE:
            self.spec.refuse(f"a {kind} has no dtype", path)
        low = name.lower()
        if low in _RESERVED or low.startswith("qc-"):
            self.spec.refuse(f'"{name}" is a name that medpipe uses itself', path)
        if low in self.files:
            self.spec.refuse(f'two steps save "{name}"', path)
        # Every file has a sidecar named after it.
        if f"{low}.json" in self.files or low.removesuffix(".json") in {*self.files} - {low}:
            self.spec.refuse(f'"{name}" collides with the sidecar of another file', path)
        self.files[low] = name

    def _picture(self, place: TomlPath, step: StepModel) -> QcSpec | None:
        qc = step.qc
        if qc is None or qc.kind == "none":
            return None
        path: TomlPath = (*place, "qc")
        key = qc.key or step.outputs[0]
        for name, role in ((key, "key"), (qc.overlay, "overlay")):
            if name is None:
                continue
            kind = self.kinds.get(name)
            if kind is None and self.sure:
                hint = did_you_mean(name, self.kinds)
                self.spec.refuse(f'{role} "{name}" of the picture is not known here', path, hint)
            elif kind in _NO_IMAGE:
                self.spec.refuse(f'{role} "{name}" of the picture is a {kind}', path)
            elif kind in LOADERS:
                self.spec.refuse(f'{role} "{name}" of the picture is not loaded yet', path)
        picture = f"{step.name}-{key}".lower()
        if picture in self.pictures:
            self.spec.refuse(f"two pictures would be called qc-{picture}.png", path)
        self.pictures.add(picture)
        options: dict[str, Json] = {} if qc.window_hu is None else {"window_hu": list(qc.window_hu)}
        if qc.labels is not None:
            options["labels"] = {str(n): name for n, name in enumerate(qc.labels, 1)}
        return QcSpec(key=key, kind=qc.kind, overlay=qc.overlay, options=options)


def _file_parameter(value: Any, base_dir: Path, *, free: bool) -> tuple[Path | None, str]:
    """Return the path of a file parameter, or None and why it is refused.

    The folder of a MONAI bundle stands for its ``configs/metadata.json``.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        return None, f"expected the path of a file, got {shown(value)}"
    path = Path(value)
    if free:
        path = Path.cwd() / path.expanduser()
    elif path.is_absolute() or ".." in path.parts:
        return None, "expected a path below the workflow's folder; give others with --set"
    else:
        path = base_dir / path
    try:
        path = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return None, f"there is no file {shown(value)}"
    bundle = path / "configs" / "metadata.json"
    if bundle.is_file():  # a model is named by its folder, and its metadata pin the rest
        path = bundle.resolve()
    if not free and not path.is_relative_to(base_dir):
        return None, "the file is a link that leaves the workflow's folder"
    if not path.is_file():
        return None, f"{shown(value)} is not a regular file"
    return path, ""
