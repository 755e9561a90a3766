"""One acquisition of a protocol: a signal model with checked settings."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch

from medpipe.errors import UsageError
from medpipe.qmri.settings import check_setting
from medpipe.qmri.signals import MODELS, Settings, SignalModel

__all__ = ["Acquisition", "did_you_mean", "same_values", "shown"]

_SHORT = {
    "flip_angle_deg": "",
    "echo_time_s": "TE ",
    "inversion_time_s": "TI ",
    "repetition_time_s": "TR ",
}
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Acquisition:
    """One acquisition: a signal model and its settings in SI units.

    Parameters
    ----------
    model : str
        A name in `medpipe.qmri.MODELS`.
    settings : mapping of str to float or sequence of float
        One value for the whole acquisition or one per measured value (per pair
        of echoes for ``dess``). Kept in one form: values that are all the same
        become one, and a default is left out.
    magnitude : bool, optional
        Whether the measured values are magnitudes; by default what scanners
        store for this model.

    Raises
    ------
    UsageError
        Names the setting that is unknown, missing, implausible, not of the
        count of the others, or in conflict with another one.
    """

    model: str
    settings: Mapping[str, tuple[float, ...]]
    magnitude: bool | None = None

    def __post_init__(self) -> None:
        model = find_model(self.model, "acquisition")
        where = f"acquisition ({self.model})"
        settings = _canonical(model, _checked(model, self.settings, where))
        object.__setattr__(self, "settings", MappingProxyType(settings))
        if self.magnitude is None:
            object.__setattr__(self, "magnitude", model.magnitude)
        elif not isinstance(self.magnitude, bool):
            raise UsageError("magnitude is not true or false", where=where)
        problem = model.check(self.tensors) if model.check else None
        if problem:
            raise UsageError(problem, where=where)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Acquisition, (self.model, dict(self.settings), self.magnitude))

    def __hash__(self) -> int:
        return hash((self.model, tuple(self.settings.items()), self.magnitude))

    @property
    def signal_model(self) -> SignalModel:
        """The signal model."""
        return MODELS[self.model]

    @property
    def count(self) -> int:
        """Number of measured values."""
        return self.signal_model.measured(self.tensors)

    @cached_property
    def tensors(self) -> Settings:
        """All settings with the defaults, each (n,) or (), float64 on the host."""
        # kept for later calls, so they must not be made unfit for autograd
        with torch.inference_mode(False):
            given = {
                name: torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)
                for name, values in self.settings.items()
            }
            rest = self.signal_model.optional
            return {n: torch.tensor(v, dtype=torch.float64) for n, v in rest.items()} | given

    @property
    def labels(self) -> tuple[str, ...]:
        """One short text per measured value."""
        model = self.signal_model
        if model.labels is not None:
            return model.labels(self.tensors)
        return tuple(f"{model.title or model.name} {text}" for text in _texts(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as in a protocol file."""
        record: dict[str, Any] = {"model": self.model}
        for name, values in self.settings.items():
            record[name] = list(values) if len(values) > 1 else values[0]
        if self.magnitude != self.signal_model.magnitude:
            record["magnitude"] = self.magnitude
        return record


def find_model(name: object, where: str) -> SignalModel:
    """Return the signal model `name`; UsageError with the nearest name otherwise."""
    if isinstance(name, str) and name in MODELS:
        return MODELS[name]
    raise UsageError(
        "model is not a known signal model",
        where=where,
        expected=" | ".join(MODELS),
        hint=did_you_mean(name, MODELS),
    )


def did_you_mean(word: object, names: Sequence[str] | Mapping[str, Any]) -> str | None:
    """Return ``did you mean "x"?`` for the nearest of `names`, or None."""
    near = difflib.get_close_matches(str(word)[:40].lower(), list(names), n=1, cutoff=0.5)
    return f'did you mean "{near[0]}"?' if near else None


def _checked(
    model: SignalModel, given: Mapping[str, Any], where: str
) -> dict[str, tuple[float, ...]]:
    """Return `given` as tuples of plausible floats, in the order of the model."""
    names = (*model.required, *model.optional)
    for name in given:
        if name not in names:
            raise UsageError(
                f"unknown setting {str(name)[:40]!r}",
                where=where,
                expected=", ".join(names),
                hint=did_you_mean(name, names),
            )
    for name in model.required:
        if name not in given:
            raise UsageError(f"{name} is missing", where=where, expected=", ".join(model.required))
    out = {}
    for name in names:
        if name in given:
            values = given[name]
            many = values if isinstance(values, list | tuple) else [values]
            if not many:
                raise UsageError(f"{name} is empty", where=where, expected="one number or more")
            plausible = model.plausible.get(name)
            out[name] = tuple(check_setting(name, v, where, plausible) for v in many)
    return out


def _canonical(
    model: SignalModel, settings: dict[str, tuple[float, ...]]
) -> dict[str, tuple[float, ...]]:
    """Return `settings` in the one form in which equal acquisitions are equal."""
    where = f"acquisition ({model.name})"
    longest = max(settings, key=lambda name: len(settings[name]))
    n = len(settings[longest])
    for name, values in settings.items():
        if len(values) not in (1, n):
            raise UsageError(
                f"{name} has {len(values)} values and {longest} has {n}",
                where=where,
                expected="one value each, or one for all",
            )
    one = {k: v[:1] if same_values(v, v[:1]) else v for k, v in settings.items()}
    for name in model.single:
        if len(one.get(name, (0,))) > 1:
            raise UsageError(f"{name} has {n} different values", where=where, expected="one value")
    if n > 1 and max(map(len, one.values())) == 1:
        first = next(name for name in one if name not in model.single)
        one[first] = one[first] * n
    default = model.optional
    return {k: v for k, v in one.items() if not (k in default and same_values(v, (default[k],)))}


def same_values(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two lists of settings agree to 1e-6, one value standing for many."""
    n = max(len(a), len(b))
    if len(a) not in (1, n) or len(b) not in (1, n):
        return False
    pairs = zip(list(a) * (n // len(a)), list(b) * (n // len(b)), strict=True)
    return all(math.isclose(x, y, rel_tol=_TOLERANCE) for x, y in pairs)


def shown(values: Sequence[float]) -> str:
    """Return settings as text: ``15, 5``."""
    return ", ".join(f"{v:g}" if math.isfinite(v) else "not given" for v in values)


def _texts(acquisition: Acquisition) -> list[str]:
    """Return for each value the settings in which the values differ."""
    n = acquisition.count
    settings = acquisition.settings
    varying = [name for name, v in settings.items() if len(v) > 1] or [next(iter(settings))]
    out = []
    for i in range(n):
        parts = [(name, settings[name][i if len(settings[name]) == n else 0]) for name in varying]
        out.append(", ".join(text_of(name, v) for name, v in parts))
    return out


def text_of(name: str, value: float) -> str:
    """Return one setting as text: ``15°``, ``TE 4.67 ms``."""
    short = _SHORT.get(name, name.rsplit("_", 1)[0].replace("_", " ") + " ")
    if name.endswith("_deg"):
        return f"{short}{value:g}°"
    return f"{short}{value * 1e3:g} ms" if name.endswith("_s") else f"{short}{value:g}"
