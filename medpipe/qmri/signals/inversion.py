"""Inversion recovery, read by a 90° pulse."""

from __future__ import annotations

import torch

from medpipe.qmri.signals._model import Settings, SignalModel, Values, longest, setting, value

__all__ = ["SIGNALS", "inversion_recovery_fixed_signal", "inversion_recovery_signal"]


def inversion_recovery_signal(values: Values, settings: Settings) -> torch.Tensor:
    """Return the signed signal of an inversion recovery for M0 = 1.

    1 - (1 + f) exp(-TI/T1) + f exp(-TR/T1), with the inversion efficiency f: the
    pulse turns Mz to -f Mz, so f = -cos of its angle. TR counts from inversion to
    inversion and is the same for every TI; the excitation at TI leaves no Mz.

    The form a + b exp(-TI/T1) of three parameters is the same curve, whatever TR
    is: a = M0 (1 + f exp(-TR/T1)), b = -M0 (1 + f). Without a TR, M0 = a and
    f = -b/a - 1, and f takes up what a short TR does. Where the readout is a spin
    echo, its refocusing pulse changes only what is constant in TI, so f again.

    Parameters
    ----------
    values : mapping
        ``t1_s``, ``inversion_efficiency``; (...,).
    settings : mapping
        ``inversion_time_s`` (D,), ``repetition_time_s``, infinite by default.

    Returns
    -------
    Tensor (..., D)

    References
    ----------
    Barral et al. 2010, doi 10.1002/mrm.22497.
    """
    return _recovery(values, settings, value(values, "inversion_efficiency"))


def inversion_recovery_fixed_signal(values: Values, settings: Settings) -> torch.Tensor:
    """Return the signal of an inversion recovery with a given efficiency, for M0 = 1.

    As `inversion_recovery_signal`; the efficiency is a setting, 1 by default.

    Returns
    -------
    Tensor (..., D)
    """
    t1 = value(values, "t1_s")
    return _recovery(values, settings, setting(settings, "inversion_efficiency", t1))


def _recovery(values: Values, settings: Settings, efficiency: torch.Tensor) -> torch.Tensor:
    t1 = value(values, "t1_s")
    ti = setting(settings, "inversion_time_s", t1)
    signal = 1 - (1 + efficiency) * torch.exp(-ti / t1)
    # the derivative of exp(-TR/T1) is NaN for an infinite TR
    if bool(torch.isinf(settings["repetition_time_s"]).all()):
        return signal
    return signal + efficiency * torch.exp(-setting(settings, "repetition_time_s", t1) / t1)


def _check(settings: Settings) -> str | None:
    if bool((settings["inversion_time_s"] > settings["repetition_time_s"]).any()):
        return "inversion_time_s is above repetition_time_s"
    return None


def _model(name: str, latents: tuple[str, ...], optional: dict[str, float]) -> SignalModel:
    fixed = "inversion_efficiency" in optional
    return SignalModel(
        name=name,
        latents=latents,
        knowns=(),
        required=("inversion_time_s",),
        optional={"repetition_time_s": float("inf")} | optional,
        signal=inversion_recovery_fixed_signal if fixed else inversion_recovery_signal,
        measured=longest,
        magnitude=True,
        reference="10.1002/mrm.22497",
        title="IR",
        single=tuple(optional),
        plausible={"repetition_time_s": (0.05, 60.0)},
        check=_check,
    )


SIGNALS = (
    _model("inversion_recovery", ("t1_s", "inversion_efficiency"), {}),
    _model("inversion_recovery_fixed", ("t1_s",), {"inversion_efficiency": 1.0}),
)
