"""The sign that magnitude images of an inversion recovery lack, from phase or uniform images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError
from medpipe.io.weighted_set import WeightedSet
from medpipe.types import Finding, Severity, Volume

__all__ = ["no_sign", "phase_in_radians", "sign_by_phase", "sign_by_uniform"]

_SCANNER = 4096


def phase_in_radians(volume: Volume, unit: object) -> NDArray[np.float32]:
    """Return a phase image in radians.

    Parameters
    ----------
    volume : Volume
    unit : object
        ``Units`` of its sidecar; without ``"rad"`` the range of the values decides:
        one turn, or the 12 bits of a scanner, plain or about zero.

    Raises
    ------
    InputError
        If the values are none of these.
    """
    data = volume.data.astype(np.float32)
    low, high = float(np.nanmin(data)), float(np.nanmax(data))
    turn = 2 * np.pi + 0.01
    if unit == "rad" or (high - low <= turn and low >= -turn / 2 and high <= turn):
        return data
    if low < 0 and low >= -_SCANNER and high <= _SCANNER:
        return data * np.float32(np.pi / _SCANNER)
    if low >= 0 and high <= _SCANNER:
        return data * np.float32(2 * np.pi / _SCANNER)
    raise InputError(
        "the unit of a phase image is not known",
        expected="radians, or 12 bits: -4096 to 4095 or 0 to 4095",
        got=f"{low:g} to {high:g}",
        hint='give "Units": "rad" in its sidecar, or set part = "mag"',
    )


def sign_by_phase(found: WeightedSet, phases: Sequence[NDArray[np.float32]]) -> None:
    """Replace magnitudes by the part that is in phase with the longest inversion time.

    That image is taken as positive; the phase that coils and field give all
    images cancels.
    """
    times = [a.get("inversion_time_s", 0.0) for a in found.acquisitions]
    reference = int(np.argmax(times))
    found.volumes = [
        replace(volume, data=volume.data * np.cos(phase - phases[reference]))
        for volume, phase in zip(found.volumes, phases, strict=True)
    ]
    _say(found, "from the phase images, the image of the longest inversion time being positive")


def sign_by_uniform(found: WeightedSet, uniform: Volume) -> None:
    """Give the first image of MP2RAGE the sign of the uniform image; the second is positive.

    Raises
    ------
    InputError
        If the uniform image is on another scale than -0.5 to 0.5 or 0 to 4095.
    """
    data = uniform.data
    low, high = float(np.nanmin(data)), float(np.nanmax(data))
    if low >= -0.501 and low < 0 and high <= 0.501:
        middle = 0.0
    elif low >= 0 and 1 < high <= _SCANNER:
        middle = (_SCANNER - 1) / 2
    else:
        raise InputError(
            "the scale of the uniform image is not known",
            expected="-0.5 to 0.5, or 12 bits: 0 to 4095",
            got=f"{low:g} to {high:g}",
        )
    first = int(np.argmin([a.get("inversion_time_s", 0.0) for a in found.acquisitions]))
    volume = found.volumes[first]
    found.volumes[first] = replace(volume, data=np.where(data < middle, -1, 1) * volume.data)
    _say(found, "of the first from the uniform image, the second being positive")


def _say(found: WeightedSet, how: str) -> None:
    for acquisition in found.acquisitions:
        acquisition["complex_part"] = "real"
    text = f"the magnitude images were given their sign {how}"
    found.add_findings([Finding("weighted.sign", Severity.INFO, text)])


def no_sign(found: WeightedSet) -> None:
    """Say that the images stay magnitudes."""
    text = "no phase or uniform image gives the magnitude images their sign"
    found.add_findings([Finding("weighted.sign", Severity.WARNING, text)])
