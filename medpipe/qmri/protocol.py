"""The protocol: which images were measured, with which settings. One source of truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medpipe.errors import InputError, UsageError
from medpipe.qmri.acquisition import (
    Acquisition,
    did_you_mean,
    find_model,
    same_values,
    shown,
)
from medpipe.qmri.quantities import LATENT_ORDER
from medpipe.qmri.settings import SETTINGS, check_setting
from medpipe.qmri.signals import MODELS, SignalModel, Values

__all__ = ["Acquisition", "Protocol", "protocol_from_settings", "read_protocol"]

_LONGEST_FILE = 100_000
_SAME_ECHO_S = 3e-4
"""One percent of a decay with T2* = 30 ms."""


@dataclass(frozen=True)
class Protocol:
    """All acquisitions of one examination, in the order of the measured values.

    Parameters
    ----------
    acquisitions : tuple of Acquisition

    Raises
    ------
    UsageError
        If there is none, or one of them is no `Acquisition`.
    """

    acquisitions: tuple[Acquisition, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "acquisitions", tuple(self.acquisitions))
        if not self.acquisitions or not all(isinstance(a, Acquisition) for a in self.acquisitions):
            raise UsageError("a protocol needs acquisitions", expected="one or more")
        self._check_decay()

    def _check_decay(self) -> None:
        """Refuse echo times that differ where no latent describes the decay.

        The decay is then a factor of M0, which all measured values share.
        """
        decays = {"t2_s", "t2star_s"}
        if decays & set(self.latents):
            return
        times = [
            t
            for a in self.acquisitions
            if decays & set(a.signal_model.also)
            for t in a.settings.get("echo_time_s", ())
        ]
        if times and max(times) - min(times) > _SAME_ECHO_S:
            raise UsageError(
                "echo_time_s differs, and nothing in the protocol measures the decay",
                expected=f"echo times within {_SAME_ECHO_S * 1e3:g} ms of each other",
                got=f"{shown(sorted(set(times)))} s",
                hint="fit each echo time for itself, or add acquisitions that give T2 or T2*",
            )

    @property
    def count(self) -> int:
        """Number of measured values per voxel, D."""
        return sum(a.count for a in self.acquisitions)

    @property
    def latents(self) -> tuple[str, ...]:
        """``m0`` and the unknowns of all acquisitions."""
        needed = {n for a in self.acquisitions for n in a.signal_model.latents}
        return tuple(n for n in LATENT_ORDER if n in needed or n == "m0")

    @property
    def knowns(self) -> tuple[str, ...]:
        """Regressors that may be given per voxel; one that is a latent is none."""
        used = {n for a in self.acquisitions for n in a.signal_model.knowns}
        return tuple(n for n in LATENT_ORDER if n in used and n not in self.latents)

    @property
    def labels(self) -> tuple[str, ...]:
        """One short text per measured value, for example ``"SPGR 15°"``."""
        return tuple(label for a in self.acquisitions for label in a.labels)

    def signal(self, values: Values, *, magnitude: bool = True) -> torch.Tensor:
        """Return the noiseless signal of voxels.

        Parameters
        ----------
        values : mapping of str to Tensor
            The latents but ``m0``, which is 1 where it is not given, and the
            knowns where there are any; broadcastable to (...,). Other names are
            not used.
        magnitude : bool
            Take the absolute value where the acquisition stores magnitudes.

        Returns
        -------
        Tensor (..., D)
            In the dtype and on the device of the values.

        Raises
        ------
        UsageError
            If a latent is missing.
        """
        names = (*self.latents, *self.knowns)
        used = {n: values[n] for n in names if n in values}
        missing = [n for n in self.latents if n not in used and n != "m0"]
        if missing:
            raise UsageError(f"{missing[0]} is missing", where="protocol · signal")
        m0 = used.pop("m0", None)
        parts = []
        for a in self.acquisitions:
            part = a.signal_model.signal(used, a.tensors)
            parts.append(part.abs() if magnitude and a.magnitude else part)
        shape = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
        signal = torch.cat([p.expand(*shape, p.shape[-1]) for p in parts], -1)
        return signal if m0 is None else signal * m0.unsqueeze(-1)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as in a protocol file."""
        return {"acquisitions": [a.to_dict() for a in self.acquisitions]}

    @classmethod
    def from_dict(cls, record: Any, where: str = "protocol") -> Protocol:
        """Return the protocol of a JSON record.

        Raises
        ------
        UsageError
            Names the acquisition and the field that is unknown, missing or wrong.
        """
        _fields(record, ("acquisitions",), where)
        entries = record.get("acquisitions")
        if not isinstance(entries, list) or not entries:
            raise UsageError("acquisitions is no list", where=where, expected="one or more")
        acquisitions = []
        for i, entry in enumerate(entries, 1):
            place = f"{where} · acquisition {i}"
            if not isinstance(entry, Mapping):
                raise UsageError("it is no table", where=place, expected="model and settings")
            settings = dict(entry)
            if "model" not in settings:
                raise UsageError("model is missing", where=place, expected=" | ".join(MODELS))
            model = find_model(settings.pop("model"), place)
            magnitude = settings.pop("magnitude", None)
            try:
                acquisitions.append(Acquisition(model.name, settings, magnitude))
            except UsageError as error:
                error.where = f"{place} ({model.name})"
                raise
        try:
            return cls(tuple(acquisitions))
        except UsageError as error:
            raise error.at(where) from None

    def difference(self, other: Protocol) -> list[str]:
        """Return one sentence for each way in which `other` differs; [] where it does not."""
        mine, theirs = self.acquisitions, other.acquisitions
        out = []
        if len(mine) != len(theirs):
            out.append(f"{len(mine)} acquisitions against {len(theirs)}")
        for i, (a, b) in enumerate(zip(mine, theirs, strict=False), 1):
            place = f"acquisition {i}"
            if a.model != b.model:
                out.append(f"{place}: model {a.model} against {b.model}")
                continue
            out += [f"{place} ({a.model}): {text}" for text in _differences(a, b)]
        return out


def _differences(a: Acquisition, b: Acquisition) -> list[str]:
    """Return what differs between two acquisitions of one model."""
    defaults = a.signal_model.optional
    out = []
    for name in (*a.signal_model.required, *defaults):
        x, y = (s.settings.get(name) or (defaults[name],) for s in (a, b))
        given = name in a.settings or name in b.settings
        if given and not (same_values(x, y) and len(x) == len(y)):
            out.append(f"{name} {shown(x)} against {shown(y)}")
    if a.magnitude != b.magnitude:
        kinds = {True: "magnitudes", False: "signed values"}
        out.append(f"{kinds[bool(a.magnitude)]} against {kinds[bool(b.magnitude)]}")
    return out


def _fields(record: Any, names: Sequence[str], where: str) -> None:
    """Refuse a record that is no table or has other fields than `names`."""
    if not isinstance(record, Mapping):
        raise UsageError("it is no table", where=where, expected=" and ".join(names))
    for name in record:
        if name not in names:
            raise UsageError(
                f"unknown field {str(name)[:40]!r}",
                where=where,
                expected=", ".join(names),
                hint=did_you_mean(name, names),
            )


def read_protocol(path: str | Path) -> Protocol:
    """Read a protocol file.

    Parameters
    ----------
    path : str or Path
        ``.json``, ``.yaml`` or ``.yml`` (YAML where PyYAML is installed).

    Raises
    ------
    UsageError
        Names the file, the acquisition and the field.
    """
    file = Path(path)
    where = file.name
    try:
        with file.open("rb") as stream:
            data = stream.read(_LONGEST_FILE + 1)
    except OSError:
        raise UsageError("the protocol file cannot be read", where=where) from None
    if len(data) > _LONGEST_FILE:
        raise UsageError("the protocol file is too long", where=where, expected="at most 100 kB")
    suffix = file.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise UsageError("unknown kind of protocol file", where=where, expected=".json or .yaml")
    record = _json(data, where) if suffix == ".json" else _yaml(data, where)
    return Protocol.from_dict(record, where)


def _json(data: bytes, where: str) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            raise UsageError("a field is there twice", where=where)
        return out

    try:
        return json.loads(data, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        place = where if line is None else f"{where}:{line}"
        raise UsageError("the file is not valid JSON", where=place) from None


def _yaml(data: bytes, where: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise UsageError(
            "PyYAML is not installed", where=where, hint="write the protocol as .json"
        ) from None

    class Loader(yaml.SafeLoader):
        """The safe loader, which would let the second of two equal fields win."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if len(set(map(str, keys))) < len(keys):
                raise UsageError("a field is there twice", where=where)
            return super().construct_mapping(node, deep)

    try:
        return Loader(data).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = where if mark is None else f"{where}:{mark.line + 1}"
        raise UsageError("the file is not valid YAML", where=place) from None


_ALIASES = {"repetition_time_s": ("repetition_time_excitation_s",)}
_PARTS = {"magnitude": True, "real": False}


def protocol_from_settings(settings: Sequence[Mapping[str, Any]], model: str) -> Protocol:
    """Return the protocol of a set of images from the settings in their headers.

    Parameters
    ----------
    settings : sequence of mappings
        One per image, in SI names; numbers may be texts, as in some sidecars.
        What the model does not need is ignored. ``complex_part`` is
        ``"magnitude"`` or ``"real"`` where it is known.
    model : str
        A name in `medpipe.qmri.MODELS`.

    Raises
    ------
    UsageError
        If the model is unknown.
    InputError
        Names the image and the setting that is missing or wrong.
    """
    kind = find_model(model, "model")
    n = len(settings)
    if not n or n % kind.per_set:
        raise InputError(
            f"the images are no sets of {kind.per_set}" if n else "there are no images",
            where=f"images of {model}",
            expected=f"a multiple of {kind.per_set}" if n else f"images of {model}",
            got=str(n) if n else None,
        )
    values: dict[str, tuple[float, ...]] = {}
    for name in (*kind.required, *kind.optional):
        given = [_number(s, kind, name, i) for i, s in enumerate(settings, 1)]
        found = tuple(v for v in given if v is not None)
        if name in kind.required or found:
            if len(found) < n:
                raise _missing(name, given.index(None) + 1)
            values[name] = found[:: kind.per_set]
    try:
        return Protocol((Acquisition(model, values, _magnitude(settings)),))
    except UsageError as error:
        raise _as_input(error, f"images of {model}") from None


def _missing(name: str, image: int) -> InputError:
    """Return the error of a setting that `image` (from 1) lacks."""
    bids = SETTINGS[name].bids
    return InputError(
        f"{name} is missing",
        where=f"image {image}",
        hint=f"give {bids} in its sidecar, or a protocol file" if bids else None,
    )


def _as_input(error: UsageError, where: str) -> InputError:
    """Return `error` as one of the images."""
    return InputError(
        error.what, where=where, expected=error.expected, got=error.got, hint=error.hint
    )


def _number(record: Mapping[str, Any], model: SignalModel, name: str, image: int) -> float | None:
    """Return the plausible number under `name` or an alias of it; a text of a number is one."""
    found: Any = next((record[n] for n in (name, *_ALIASES.get(name, ())) if n in record), None)
    if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0]
    if found is None:
        return None
    where = f"image {image}"
    if isinstance(found, str):
        try:
            found = float(found)
        except ValueError:
            raise InputError(f"{name} is not a number", where=where, got="a text") from None
    try:
        return check_setting(name, found, where, model.plausible.get(name))
    except UsageError as error:
        raise _as_input(error, where) from None


def _magnitude(settings: Sequence[Mapping[str, Any]]) -> bool | None:
    """Return whether the images are magnitudes, None where they do not say."""
    parts = {str(s["complex_part"]) for s in settings if s.get("complex_part") is not None}
    if not parts:
        return None
    if len(parts) > 1 or not parts <= set(_PARTS):
        raise InputError(
            "the images are not all of one usable part of the complex signal",
            expected="magnitude or real",
            hint="give the magnitude images alone",
        )
    return _PARTS[parts.pop()]
