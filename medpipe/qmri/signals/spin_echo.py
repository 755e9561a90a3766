"""Spin echoes: one exponential, and echo trains with stimulated echoes (EPG)."""

from __future__ import annotations

import torch

from medpipe.qmri.signals._model import (
    Settings,
    SignalModel,
    Values,
    kappa_of,
    longest,
    setting,
    value,
)

__all__ = ["SIGNALS", "epg_spin_echo_signal", "spin_echo_signal"]

_OFF_GRID = 0.05


def spin_echo_signal(values: Values, settings: Settings) -> torch.Tensor:
    """Return the decay exp(-TE/T2) for M0 = 1.

    It holds for perfect refocusing. What TR and T1 do is part of M0.

    Parameters
    ----------
    values : mapping
        ``t2_s``, (...,).
    settings : mapping
        ``echo_time_s``, (D,).

    Returns
    -------
    Tensor (..., D)

    References
    ----------
    Meiboom and Gill 1958, doi 10.1063/1.1716296.
    """
    t2 = value(values, "t2_s")
    return torch.exp(-setting(settings, "echo_time_s", t2) / t2)


def epg_spin_echo_signal(values: Values, settings: Settings) -> torch.Tensor:
    """Return the echoes of a spin-echo train with imperfect refocusing, for M0 = 1.

    Extended phase graph of a CPMG train with crushers: excitation and refocusing
    pulses of kappa × their nominal angles, all stimulated echoes. Exact for these
    pulses; slice profiles, diffusion and the recovery of Mz between trains (a
    factor of M0) are not part of it. T1 acts on the stimulated echoes alone. It is
    ``t1_s`` where the protocol measures that, else the setting ``assumed_t1_s``:
    with T2 = 80 ms and refocusing at 140°, 0.7 s in place of 1 s changes no echo
    by more than 1 % of the first.

    Parameters
    ----------
    values : mapping
        ``t2_s``; ``kappa`` and ``t1_s`` where there are any; (...,).
    settings : mapping
        ``echo_time_s`` (D,), multiples of ``echo_spacing_s``, which is the first
        echo time where it is NaN; ``refocusing_angle_deg``,
        ``excitation_angle_deg``, ``assumed_t1_s``, ().

    Returns
    -------
    Tensor (..., D)

    References
    ----------
    Hennig 1988, doi 10.1016/0022-2364(88)90128-X; Weigel 2015, doi 10.1002/jmri.24619.
    """
    t2 = values["t2_s"]
    kappa = kappa_of(values, t2)[..., 0]
    t1 = values["t1_s"] if "t1_s" in values else setting(settings, "assumed_t1_s", t2)
    spacing = _spacing(settings).to(t2)
    e1, e2, e2_half = (torch.exp(-spacing / t) for t in (t1, t2, 2 * t2))
    turned = torch.deg2rad(setting(settings, "refocusing_angle_deg", t2)) * kappa
    excited = torch.sin(torch.deg2rad(setting(settings, "excitation_angle_deg", t2)) * kappa)
    numbers = _echo_numbers(settings)
    start = torch.broadcast_tensors(excited * e2_half, t2, e1)[0]
    echoes = _echo_train(start, turned, e1, e2, numbers[-1])
    return torch.stack([echoes[i - 1] * e2_half for i in numbers], -1)


def _echo_train(
    start: torch.Tensor, turned: torch.Tensor, e1: torch.Tensor, e2: torch.Tensor, n: int
) -> list[torch.Tensor]:
    """Return the transverse states that become the echoes 1 to `n`, before half a spacing.

    At a pulse only odd orders 1, 3, … can still form an echo (a half spacing
    dephases by one order), so recovered magnetisation never does. With the phase
    of CPMG dephasing states P, rephasing states Q and stored states Z are real.
    Orders that cannot be back at 0 by echo `n` are left out. States are the first
    axis, so that each is contiguous over the voxels.
    """
    keep, flip = torch.cos(turned / 2) ** 2, torch.sin(turned / 2) ** 2
    cross = torch.sin(turned)
    along = torch.cos(turned)
    p = start.unsqueeze(0)
    q, z = torch.zeros_like(p), torch.zeros_like(p)
    none = torch.zeros_like(p)
    echoes = []
    for i in range(1, n + 1):
        p, q, z = (
            keep * p + flip * q + cross * z,
            flip * p + keep * q - cross * z,
            along * z - cross * (p - q) / 2,
        )
        echoes.append(q[0])
        width = min(i + 1, n - i)
        p = e2 * torch.cat([q[:1], p])[:width]
        q = e2 * torch.cat([q[1:], none, none])[:width]
        z = e1 * torch.cat([z, none])[:width]
    return echoes


def _spacing(settings: Settings) -> torch.Tensor:
    """Return the echo spacing in s, ()."""
    given = settings["echo_spacing_s"]
    return settings["echo_time_s"].flatten()[0] if bool(torch.isnan(given)) else given


def _echo_numbers(settings: Settings) -> list[int]:
    """Return the number of each echo in its train, from 1."""
    ratio = settings["echo_time_s"].flatten() / _spacing(settings)
    return [round(r) for r in ratio.tolist()]


def _check(settings: Settings) -> str | None:
    times = settings["echo_time_s"].flatten()
    ratio = times / _spacing(settings)
    if bool((torch.diff(times) <= 0).any()):
        return "echo_time_s does not rise from echo to echo"
    if bool((ratio < 0.5).any()) or bool(((ratio - ratio.round()).abs() > _OFF_GRID).any()):
        return (
            "echo_time_s are no multiples of the echo spacing "
            "(the first echo time, or echo_spacing_s where it is given)"
        )
    return None


_PULSES = ("refocusing_angle_deg", "excitation_angle_deg", "assumed_t1_s", "echo_spacing_s")
_DEFAULTS = dict(zip(_PULSES, (180.0, 90.0, 1.0, float("nan")), strict=True))


def _train(name: str, latents: tuple[str, ...], knowns: tuple[str, ...]) -> SignalModel:
    return SignalModel(
        name=name,
        latents=latents,
        knowns=knowns,
        required=("echo_time_s",),
        optional=_DEFAULTS,
        signal=epg_spin_echo_signal,
        measured=longest,
        magnitude=True,
        reference="10.1002/jmri.24619",
        title="SE",
        also=("t1_s",),
        single=_PULSES,
        plausible={"echo_time_s": (0.001, 3.0)},
        check=_check,
    )


SIGNALS = (
    SignalModel(
        name="spin_echo",
        latents=("t2_s",),
        knowns=(),
        required=("echo_time_s",),
        optional={},
        signal=spin_echo_signal,
        measured=longest,
        magnitude=True,
        reference="10.1063/1.1716296",
        title="SE",
        plausible={"echo_time_s": (0.001, 3.0)},
    ),
    _train("epg_spin_echo", ("t2_s",), ("kappa",)),
    _train("epg_spin_echo_b1", ("t2_s", "kappa"), ()),
)
