"""Closed-form signals of MR sequences as differentiable torch functions.

Adding a model is one function of ``(values, settings)`` and one call of
`register_model`; protocols, PERK, least squares and dictionaries then work with it.
"""

from __future__ import annotations

from medpipe.qmri.signals import gradient_echo, inversion, mp2rage, spin_echo
from medpipe.qmri.signals._model import (
    MODELS,
    Settings,
    SignalModel,
    Values,
    register_model,
)

__all__ = ["MODELS", "Settings", "SignalModel", "Values", "register_model"]

for _module in (gradient_echo, inversion, spin_echo, mp2rage):
    for _signal_model in _module.SIGNALS:
        register_model(_signal_model)
