"""Gradient echoes: spoiled (SPGR), double echo in the steady state (DESS), multi-echo."""

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

__all__ = ["SIGNALS", "dess_signal", "gradient_echo_signal", "spgr_signal"]


def spgr_signal(values: Values, settings: Settings) -> torch.Tensor:
    r"""Return the steady state of an ideally spoiled gradient echo for M0 = 1.

    sin a (1 - E1) / (1 - E1 cos a) exp(-TE/T2*), a = kappa × flip angle,
    E1 = exp(-TR/T1). The decay is T2* where the protocol has it, else T2 where
    it has that (no off-resonance within the voxel), else a factor of M0.

    Parameters
    ----------
    values : mapping
        ``t1_s``; ``kappa``, ``t2_s``, ``t2star_s`` where there are any; (...,).
    settings : mapping
        ``flip_angle_deg``, ``repetition_time_s``, ``echo_time_s``; (D,) or ().

    Returns
    -------
    Tensor (..., D)

    References
    ----------
    Ernst and Anderson 1966, doi 10.1063/1.1719961.
    """
    t1 = value(values, "t1_s")
    angle = torch.deg2rad(setting(settings, "flip_angle_deg", t1)) * kappa_of(values, t1)
    rate = -setting(settings, "repetition_time_s", t1) / t1
    # 1 - E1 and 1 - E1 cos a without cancellation where TR is much shorter than T1
    recovered = -torch.expm1(rate)
    turned = 2 * torch.sin(angle / 2) ** 2
    signal = torch.sin(angle) * recovered / (recovered + torch.exp(rate) * turned)
    return signal * _decay(values, settings, t1)


def _decay(values: Values, settings: Settings, like: torch.Tensor) -> torch.Tensor:
    """Return exp(-TE/T2*), with T2 for T2* where only that is there; (..., D or 1)."""
    name = next((n for n in ("t2star_s", "t2_s") if n in values), None)
    if name is None:
        return like.new_ones(1)
    return torch.exp(-setting(settings, "echo_time_s", like) / value(values, name))


def dess_signal(values: Values, settings: Settings) -> torch.Tensor:
    r"""Return both echoes of a double-echo steady state for M0 = 1.

    With a = kappa × flip angle, E1 = exp(-TR/T1), E2 = exp(-TR/T2),
    xi = (E1 - cos a) / (1 - E1 cos a), eta² = (1 - E2²) / (1 - E2² xi²):

    - echo 1, TE after the pulse: tan(a/2) (1 - eta xi) exp(-TE/T2*)
    - echo 2, TE before the next pulse: tan(a/2) (1 - eta) exp(TE/T2 - TE R2'),
      R2' = 1/T2* - 1/T2, 0 where the protocol has no T2*.

    These are magnitudes: the two echoes have opposite phases. Diffusion and
    magnetisation transfer are neglected.

    Parameters
    ----------
    values : mapping
        ``t1_s``, ``t2_s``; ``kappa`` and ``t2star_s`` where there are any; (...,).
    settings : mapping
        ``flip_angle_deg``, ``repetition_time_s``, ``echo_time_s``; (n,) or ().

    Returns
    -------
    Tensor (..., 2 n)
        Echo 1 and echo 2 of the first set of settings, then of the next.

    References
    ----------
    Hänicke and Vogel 2003, doi 10.1002/mrm.10410; as used by Nataraj et al. 2018,
    doi 10.1109/TMI.2018.2817547.
    """
    t1, t2 = value(values, "t1_s"), value(values, "t2_s")
    angle = torch.deg2rad(setting(settings, "flip_angle_deg", t1)) * kappa_of(values, t1)
    tr = setting(settings, "repetition_time_s", t1)
    te = setting(settings, "echo_time_s", t1)
    e1, lost1 = torch.exp(-tr / t1), -torch.expm1(-tr / t1)
    e2, lost2 = torch.exp(-tr / t2), -torch.expm1(-tr / t2)
    half = angle / 2
    below = lost1 + e1 * 2 * torch.sin(half) ** 2  # 1 - E1 cos a
    xi = (2 * torch.sin(half) ** 2 - lost1) / below
    less = lost1 * 2 * torch.cos(half) ** 2 / below  # 1 - xi
    more = (1 + e1) * 2 * torch.sin(half) ** 2 / below  # 1 + xi
    # 1 - E2² xi², and 1 - eta from eta², all without cancellation
    width = (less + xi * lost2) * (more - xi * lost2)
    eta = torch.sqrt(lost2 * (1 + e2) / width)
    rest = e2**2 * less * more / width / (1 + eta)
    r2 = 1 / t2
    r2star = 1 / value(values, "t2star_s") if "t2star_s" in values else r2
    turn = torch.tan(half)
    first = turn * (less + xi * rest) * torch.exp(-te * r2star)
    second = turn * rest * torch.exp(te * (2 * r2 - r2star))
    return torch.stack(torch.broadcast_tensors(first, second), -1).flatten(-2)


def gradient_echo_signal(values: Values, settings: Settings) -> torch.Tensor:
    """Return the free induction decay exp(-TE/T2*) for M0 = 1.

    What T1 and the flip angle do is the same for all echoes of one excitation
    and part of M0.

    Parameters
    ----------
    values : mapping
        ``t2star_s``, (...,).
    settings : mapping
        ``echo_time_s``, (D,).

    Returns
    -------
    Tensor (..., D)

    References
    ----------
    Chavhan et al. 2009, doi 10.1148/rg.295095034.
    """
    t2star = value(values, "t2star_s")
    return torch.exp(-setting(settings, "echo_time_s", t2star) / t2star)


def _twice(settings: Settings) -> int:
    return 2 * longest(settings)


def _dess_labels(settings: Settings) -> tuple[str, ...]:
    angles = settings["flip_angle_deg"].expand(longest(settings)).tolist()
    return tuple(f"DESS {a:g}° echo {echo}" for a in angles for echo in (1, 2))


def _echo_before_pulse(settings: Settings) -> str | None:
    if bool((settings["echo_time_s"] >= settings["repetition_time_s"]).any()):
        return "echo_time_s is not below repetition_time_s"
    return None


def _dess_echoes(settings: Settings) -> str | None:
    if bool((settings["echo_time_s"] * 2 > settings["repetition_time_s"]).any()):
        return "echo_time_s is more than half of repetition_time_s, so echo 2 comes before echo 1"
    return None


_SHORT = {"repetition_time_s": (0.001, 1.0), "echo_time_s": (0.0, 0.2)}
_STEADY = ("flip_angle_deg", "repetition_time_s")

SIGNALS = (
    SignalModel(
        name="spgr",
        latents=("t1_s",),
        knowns=("kappa",),
        required=_STEADY,
        optional={"echo_time_s": 0.0},
        signal=spgr_signal,
        measured=longest,
        magnitude=True,
        reference="10.1063/1.1719961",
        title="SPGR",
        also=("t2_s", "t2star_s"),
        plausible=_SHORT,
        check=_echo_before_pulse,
    ),
    SignalModel(
        name="dess",
        latents=("t1_s", "t2_s"),
        knowns=("kappa",),
        required=(*_STEADY, "echo_time_s"),
        optional={},
        signal=dess_signal,
        measured=_twice,
        magnitude=True,
        reference="10.1109/TMI.2018.2817547",
        title="DESS",
        also=("t2star_s",),
        plausible=_SHORT,
        check=_dess_echoes,
        labels=_dess_labels,
        per_set=2,
    ),
    SignalModel(
        name="gradient_echo",
        latents=("t2star_s",),
        knowns=(),
        required=("echo_time_s",),
        optional={},
        signal=gradient_echo_signal,
        measured=longest,
        magnitude=True,
        reference="10.1148/rg.295095034",
        title="GRE",
        plausible={"echo_time_s": (0.0, 0.5)},
    ),
)
