"""Quantitative MRI: PERK, least squares and dictionaries behind one protocol.

The names below are loaded from their modules when they are first used; importing
this package imports nothing else. The steps are in `medpipe.transforms`, like
every step.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES: dict[str, tuple[str, ...]] = {
    "quantities": ("QUANTITIES", "Quantity", "check_quantity"),
    "settings": ("SETTINGS", "Setting", "check_setting"),
    "signals": ("MODELS", "Settings", "SignalModel", "Values", "register_model"),
    "signals.mp2rage": ("mp2rage_pair", "mp2rage_signed", "mp2rage_uni"),
    "protocol": ("Acquisition", "Protocol", "protocol_from_settings", "read_protocol"),
    "priors": (
        "Empirical",
        "Fixed",
        "LogUniform",
        "Prior",
        "TruncatedLogNormal",
        "TruncatedNormal",
        "Uniform",
        "default_priors",
        "prior_from_dict",
    ),
    "estimate": ("Estimate", "Estimator", "Flag"),
    "perk": ("HoldOut", "Perk", "hold_out", "train_perk"),
    "model_file": ("load_perk", "save_perk"),
    "least_squares": ("NonlinearLeastSquares",),
    "dictionary": ("DictionarySearch",),
    "hybrid": ("Hybrid",),
    "noise": ("noise_sigma",),
}

_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
