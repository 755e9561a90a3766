"""A checked workflow, ready to run: plain data that crosses process borders.

`medpipe.workflow.plan` makes it from a TOML file; the engine reads it. Every
parameter has its default filled in, so that writing a default out loud does
not change a key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from medpipe.io.atomic import canonical_json
from medpipe.types import Json

__all__ = [
    "KEY_SCHEMA",
    "CompiledStep",
    "CompiledWorkflow",
    "InputSpec",
    "QcSpec",
    "SaveSpec",
    "qc_key",
    "step_keys",
]

KEY_SCHEMA = 1
"""Bumped when the meaning of a key changes; every stored result is then made anew."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a workflow, e.g. ``[inputs.ct]``."""

    kind: str = "volume"
    help: str = ""
    optional: bool = False

    @property
    def as_images(self) -> bool:
        """Whether the input is a set of files whose names matter, one case together."""
        return self.kind in ("images", "folder")


@dataclass(frozen=True, slots=True)
class SaveSpec:
    """One file to write: the key it comes from, its name in the case folder, its dtype."""

    key: str
    file: str
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class QcSpec:
    """One picture to draw of a key, with the key of a label map to lay over it."""

    key: str
    kind: str = "mosaic"
    overlay: str | None = None
    options: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CompiledStep:
    """One step with canonical parameters.

    Attributes
    ----------
    target : str
        ``"module:Class"`` of the dictionary transform.
    inputs, outputs : tuple of str
        Keys; ``data[inputs[i]]`` is copied to ``data[outputs[i]]``, then the
        transform is applied to ``keys=outputs``.
    reads, writes : dict
        Parameter name → other key that is read or written through it.
    files : dict
        Parameter name → sha256 of the file that the parameter names.
    paths : dict
        Parameter name → absolute path of that file on this machine. In `params`
        the digest stands in its place: a path may say too much and is no part
        of what a result is. Not in any key or digest, never recorded.
    """

    id: str
    use: str
    target: str
    version: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: Mapping[str, Json] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=dict)
    writes: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    makes: str = "volume"
    random: bool = False
    save: tuple[SaveSpec, ...] = ()
    qc: QcSpec | None = None

    def arguments(self) -> dict[str, Json]:
        """Return the keyword arguments to make the transform with, besides ``keys``."""
        return {**self.params, **self.paths}

    def keys_read(self) -> tuple[str, ...]:
        """Return every key this step reads, inputs first, each once."""
        return tuple(dict.fromkeys((*self.inputs, *self.reads.values())))

    def keys_written(self) -> tuple[str, ...]:
        """Return every key this step writes, outputs first, each once."""
        return tuple(dict.fromkeys((*self.outputs, *self.writes.values())))


@dataclass(frozen=True, slots=True)
class CompiledWorkflow:
    """A whole workflow as the engine runs it."""

    name: str
    version: str
    summary: str
    inputs: Mapping[str, InputSpec]
    steps: tuple[CompiledStep, ...]
    description: str = ""

    def digest(self) -> str:
        """Return the sha256 of everything that can change a result."""
        record = self.to_dict()
        for prose in ("summary", "description"):
            record.pop(prose)
        for spec in record["inputs"].values():
            spec.pop("help")
        for step in record["steps"]:
            step.pop("paths")
        return hashlib.sha256(canonical_json(record)).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> CompiledWorkflow:
        """Rebuild what `to_dict` described, also after a round trip through JSON."""
        steps = tuple(
            CompiledStep(
                **{
                    **step,
                    "inputs": tuple(step["inputs"]),
                    "outputs": tuple(step["outputs"]),
                    "save": tuple(SaveSpec(**s) for s in step["save"]),
                    "qc": QcSpec(**step["qc"]) if step["qc"] else None,
                }
            )
            for step in record["steps"]
        )
        inputs = {name: InputSpec(**spec) for name, spec in record["inputs"].items()}
        return cls(**{**record, "inputs": inputs, "steps": steps})


def _key(record: Json) -> str:
    return hashlib.sha256(canonical_json(record)).hexdigest()


def step_keys(
    workflow: CompiledWorkflow, input_digests: Mapping[str, str | None], seeds: Mapping[str, int]
) -> list[str]:
    """Return the content key of every step of one case, in order.

    Parameters
    ----------
    workflow : CompiledWorkflow
    input_digests : dict
        Input name → digest of its content; None for an optional input that is absent.
    seeds : dict
        Step id → seed. Only steps with ``random`` let it into their key.

    Notes
    -----
    A key covers the step, its version, its parameters, the files they name,
    what it saves (a dtype rounds the values that travel on) and, through the
    keys of everything it reads, its whole history. Package versions and the
    device are recorded beside a result instead.
    """
    current: dict[str, Json] = {f"{name}": digest for name, digest in input_digests.items()}
    keys = []
    for step in workflow.steps:
        record: dict[str, Json] = {
            "schema": KEY_SCHEMA,
            "use": step.use,
            "version": step.version,
            "params": dict(step.params),
            "files": dict(step.files),
            "inputs": list(step.inputs),
            "outputs": list(step.outputs),
            "reads": {key: current.get(key) for key in step.keys_read()},
            "save": [asdict(s) for s in step.save],
        }
        if step.random:
            record["seed"] = seeds[step.id]
        key = _key(record)
        keys.append(key)
        for name in step.keys_written():
            current[name] = f"{key}/{name}"
    return keys


def qc_key(step: CompiledStep, step_key: str, overlay_key: str | None, version: str) -> str:
    """Return the content key of a step's picture.

    It is apart from the step's own key: drawing a picture differently does not
    make the data anew.
    """
    if step.qc is None:
        raise ValueError(f"step {step.id} draws no picture")
    return _key(
        {
            "schema": KEY_SCHEMA,
            "qc": asdict(step.qc),
            "version": version,
            "step": step_key,
            "overlay": overlay_key,
        }
    )
