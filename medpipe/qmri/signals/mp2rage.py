"""MP2RAGE: two trains of gradient echoes after one inversion, and their combination."""

from __future__ import annotations

import torch

from medpipe.errors import UsageError
from medpipe.qmri.signals._model import Settings, SignalModel, Values, kappa_of, setting

__all__ = ["SIGNALS", "mp2rage_pair", "mp2rage_signal", "mp2rage_signed", "mp2rage_uni"]


def mp2rage_signal(values: Values, settings: Settings) -> torch.Tensor:
    """Return both readouts (GRE1, GRE2) of an MP2RAGE for M0 = 1, signed.

    The steady state of: inversion to -f Mz, recovery, first train, recovery,
    second train, recovery. Each train has ``number_shots`` excitations of
    kappa × its flip angle; the signal is that of the excitation at the centre of
    k-space, which is at the inversion time.

    Parameters
    ----------
    values : mapping
        ``t1_s``; ``kappa`` where there is one; (...,).
    settings : mapping
        ``inversion_time_s`` (2,); ``flip_angle_deg`` (2,) or ();
        ``repetition_time_s`` between excitations,
        ``repetition_time_preparation_s`` between inversions, ``number_shots`` of
        full k-space, ``partial_fourier`` of it that is measured,
        ``number_shots_before`` the centre (NaN: from the two before; otherwise
        ``number_shots`` is what is measured), ``inversion_efficiency``; ().

    Returns
    -------
    Tensor (..., 2)

    References
    ----------
    Marques et al. 2010, doi 10.1016/j.neuroimage.2009.10.002; with the scaling of
    the flip angle, Marques and Gruetter 2013, doi 10.1371/journal.pone.0069294.
    """
    t1 = values["t1_s"]
    angles = setting(settings, "flip_angle_deg", t1).expand(2)
    kappa = kappa_of(values, t1)[..., 0]
    before, after = (n.to(t1) for n in _shots(settings))
    tr = setting(settings, "repetition_time_s", t1)
    lost = -torch.expm1(-tr / t1)
    waits = [torch.exp(-w.to(t1) / t1) for w in _waits(settings)]
    angle = [torch.deg2rad(a) * kappa for a in angles]
    trains = [[_train(a, lost, n) for n in (before, after)] for a in angle]

    def sequence(z: torch.Tensor | float) -> list[torch.Tensor]:
        """Return Mz at both centres and at the end, from Mz after the inversion."""
        out = []
        for wait, halves in zip(waits, trains, strict=False):
            z = 1 - wait + wait * z
            for i, (kept, gained) in enumerate(halves):
                z = kept * z + gained
                if i == 0:
                    out.append(z)
        return [*out, 1 - waits[2] + waits[2] * z]

    kept = waits[0] * waits[1] * waits[2]
    for halves in trains:
        kept = kept * halves[0][0] * halves[1][0]
    efficiency = setting(settings, "inversion_efficiency", t1)
    steady = sequence(0.0)[2] / (1 + efficiency * kept)
    centres = sequence(-efficiency * steady)[:2]
    both = [torch.sin(a) * z for a, z in zip(angle, centres, strict=True)]
    return torch.stack(torch.broadcast_tensors(*both), -1)


def _train(
    angle: torch.Tensor, lost: torch.Tensor, n: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (a, b) of Mz → a Mz + b over `n` excitations that lose 1 - E1 = `lost` each."""
    below = lost + (1 - lost) * 2 * torch.sin(angle / 2) ** 2  # 1 - E1 cos(angle)
    power = n * torch.log1p(-below)
    return torch.exp(power), -lost * torch.expm1(power) / below


def _shots(settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many excitations come before the centre of k-space, and from it on."""
    n, given = settings["number_shots"], settings["number_shots_before"]
    if bool(torch.isnan(given)):
        return n * (settings["partial_fourier"] - 0.5), n * 0.5
    return given, n - given


def _waits(settings: Settings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the times without pulses in s: before, between and after the trains."""
    before, after = (n * settings["repetition_time_s"] for n in _shots(settings))
    first, second = settings["inversion_time_s"].expand(2)
    end = settings["repetition_time_preparation_s"]
    return first - before, second - first - before - after, end - second - after


def mp2rage_uni(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the uniform image Re(GRE1* GRE2) / (|GRE1|² + |GRE2|²) in -0.5..0.5.

    Parameters
    ----------
    first, second : Tensor
        GRE1 and GRE2, signed or complex, of one shape.

    Returns
    -------
    Tensor
        Real, of that shape; 0 where both are 0.

    References
    ----------
    Marques et al. 2010, doi 10.1016/j.neuroimage.2009.10.002.
    """
    product = (first.conj() * second).real if first.is_complex() else first * second
    power = first.abs() ** 2 + second.abs() ** 2
    return product / torch.where(power > 0, power, 1)


def mp2rage_pair(uni: torch.Tensor) -> torch.Tensor:
    """Return a pair of readouts with the uniform image `uni`, of length 1.

    An estimator that does not depend on the scale of the signal reads T1 from this
    pair as from GRE1 and GRE2. Of the two pairs with this value the one with
    ``|GRE1| <= GRE2`` is returned, as in the usual table of T1 against UNI.

    Parameters
    ----------
    uni : Tensor (...,)
        In -0.5..0.5; a scanner's 12-bit image is ``stored / 4095 - 0.5``.

    Returns
    -------
    Tensor (..., 2)
        For a protocol of ``mp2rage`` with ``magnitude`` false.

    Raises
    ------
    UsageError
        If values lie outside -0.5..0.5, as in an image that is not scaled.
    """
    if bool((uni.abs() > 0.5 + 1e-3).any()):
        raise UsageError(
            "the uniform image is not scaled",
            expected="values in -0.5 to 0.5",
            hint="divide a 12-bit image by 4095 and subtract 0.5",
        )
    angle = torch.asin((2 * uni).clamp(-1, 1)) / 2
    return torch.stack([torch.sin(angle), torch.cos(angle)], -1)


def mp2rage_signed(first: torch.Tensor, second: torch.Tensor, uni: torch.Tensor) -> torch.Tensor:
    """Return GRE1 and GRE2 with the sign that magnitude images lack.

    Parameters
    ----------
    first, second : Tensor (...,)
        Magnitudes of GRE1 and GRE2.
    uni : Tensor (...,)
        The uniform image in -0.5..0.5; its sign is that of GRE1, as GRE2 is positive.

    Returns
    -------
    Tensor (..., 2)
    """
    return torch.stack([torch.where(uni < 0, -first, first), second], -1)


def _two(settings: Settings) -> int:
    return 2


def _labels(settings: Settings) -> tuple[str, ...]:
    return ("MP2RAGE INV1", "MP2RAGE INV2")


def _check(settings: Settings) -> str | None:
    if settings["inversion_time_s"].numel() != 2:
        return f"inversion_time_s has {settings['inversion_time_s'].numel()} values and needs 2"
    if bool(_shots(settings)[1] < 0):
        return "number_shots_before is more than number_shots"
    names = (
        "inversion_time_s is too short for the excitations before the centre of the first train",
        "the inversion times are too close for the excitations between them",
        "repetition_time_preparation_s is too short for the second train",
    )
    # a scanner rounds its times in headers
    for wait, name in zip(_waits(settings), names, strict=True):
        if float(wait) < -1e-3:
            return name
    return None


SIGNALS = (
    SignalModel(
        name="mp2rage",
        latents=("t1_s",),
        knowns=("kappa",),
        required=(
            "inversion_time_s",
            "flip_angle_deg",
            "repetition_time_s",
            "repetition_time_preparation_s",
            "number_shots",
        ),
        optional={
            "partial_fourier": 1.0,
            "number_shots_before": float("nan"),
            "inversion_efficiency": 0.96,
        },
        signal=mp2rage_signal,
        measured=_two,
        magnitude=True,
        reference="10.1016/j.neuroimage.2009.10.002",
        title="MP2RAGE",
        single=(
            "repetition_time_s",
            "repetition_time_preparation_s",
            "number_shots",
            "partial_fourier",
            "number_shots_before",
            "inversion_efficiency",
        ),
        plausible={"repetition_time_s": (0.001, 0.1), "flip_angle_deg": (1.0, 25.0)},
        check=_check,
        labels=_labels,
    ),
)
