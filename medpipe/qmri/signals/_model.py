"""What a signal model is, and the table of all models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from medpipe.errors import UsageError
from medpipe.qmri.quantities import QUANTITIES
from medpipe.qmri.settings import SETTINGS

__all__ = [
    "MODELS",
    "Settings",
    "SignalModel",
    "Values",
    "kappa_of",
    "longest",
    "register_model",
    "setting",
    "value",
]

Values = Mapping[str, torch.Tensor]
"""Latents and knowns by name, each broadcastable to (...,)."""

Settings = Mapping[str, torch.Tensor]
"""Settings by name, each (n,) or (), float64 on the host, with the defaults filled in."""


@dataclass(frozen=True)
class SignalModel:
    """One kind of acquisition: a function and what it needs.

    Attributes
    ----------
    name : str
        As in protocol files.
    latents, knowns : tuple of str
        Unknowns besides ``m0``, and regressors given per voxel (1 where they are not).
    required : tuple of str
        Settings that must be given.
    optional : mapping of str to float
        Settings with defaults; NaN where the model derives the value.
    signal : callable
        ``signal(values, settings)`` for M0 = 1: (..., D), real and signed, of the
        dtype and on the device of the values. Differentiable: no in-place
        operation, no branch on the value of a voxel.
    measured : callable
        ``measured(settings)`` → D.
    magnitude : bool
        Whether a scanner stores ``|signal|`` by default.
    reference : str
        DOI of the closed form.
    title : str
        For labels.
    also : tuple of str
        Latents that are used where another acquisition of the protocol brings
        them, and are otherwise a factor of M0.
    single : tuple of str
        Settings with one value for the whole acquisition.
    plausible : mapping of str to (float, float)
        Narrower ranges for this kind of sequence.
    check : callable, optional
        ``check(settings)`` returns a sentence about settings that do not fit
        each other, else None.
    labels : callable, optional
        ``labels(settings)`` → one short text per measured value.
    per_set : int
        Measured values, so images, for each set of settings: 2 for ``dess``.
    """

    name: str
    latents: tuple[str, ...]
    knowns: tuple[str, ...]
    required: tuple[str, ...]
    optional: Mapping[str, float]
    signal: Callable[[Values, Settings], torch.Tensor]
    measured: Callable[[Settings], int]
    magnitude: bool
    reference: str
    title: str = ""
    also: tuple[str, ...] = ()
    single: tuple[str, ...] = ()
    plausible: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    check: Callable[[Settings], str | None] | None = None
    labels: Callable[[Settings], tuple[str, ...]] | None = None
    per_set: int = 1


_MODELS: dict[str, SignalModel] = {}

MODELS: Mapping[str, SignalModel] = MappingProxyType(_MODELS)
"""Name → signal model, in the order of registration."""


def register_model(model: SignalModel) -> None:
    """Add `model` to `MODELS`; protocols and all estimators can then use it.

    Raises
    ------
    UsageError
        If the name is taken, or a latent, known or setting has no unit and range
        (`medpipe.qmri.quantities.QUANTITIES`, `medpipe.qmri.settings.SETTINGS`).
    """
    where = f"signal model {model.name}"
    if model.name in _MODELS:
        raise UsageError("a model of this name is there already", where=where)
    for name in (*model.latents, *model.knowns, *model.also):
        if name not in QUANTITIES or name == "m0":
            raise UsageError(
                f"{name} is no quantity of a voxel", where=where, expected=", ".join(QUANTITIES)
            )
    for name in (*model.required, *model.optional):
        if name not in SETTINGS:
            raise UsageError(f"{name} is no setting", where=where, expected=", ".join(SETTINGS))
    _MODELS[model.name] = model


def value(values: Values, name: str) -> torch.Tensor:
    """Return the value `name` as (..., 1), to stand against settings (D,)."""
    return values[name].unsqueeze(-1)


def setting(settings: Settings, name: str, like: torch.Tensor) -> torch.Tensor:
    """Return the setting `name`, (D,) or (), in the dtype and on the device of `like`."""
    return settings[name].to(dtype=like.dtype, device=like.device)


def kappa_of(values: Values, like: torch.Tensor) -> torch.Tensor:
    """Return ``kappa`` as (..., 1), 1 where it is not given."""
    return value(values, "kappa") if "kappa" in values else like.new_ones(1)


def longest(settings: Settings) -> int:
    """Return how many sets of settings there are."""
    return max(s.numel() for s in settings.values())
