"""Settings of a sequence: units, plausible ranges, and what a wrong value may mean.

Times are in seconds, angles in degrees, scalings are fractions. A value outside
its range is refused by name and never converted: a repetition time of 1830 is
1.83 s in one file and a mistake in the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType

from medpipe.errors import UsageError

__all__ = ["SETTINGS", "Setting", "check_range", "check_setting"]


@dataclass(frozen=True)
class Setting:
    """One setting of a pulse sequence.

    Attributes
    ----------
    name : str
        As in protocol files, with its unit.
    unit : str
        ``"s"``, ``"deg"``, ``"1"`` for a fraction or ``"count"``.
    plausible : (float, float)
        Least and greatest value that is accepted, both inclusive.
    bids : str or None
        Field of a BIDS sidecar, which uses the same unit.
    description : str
    """

    name: str
    unit: str
    plausible: tuple[float, float]
    bids: str | None
    description: str


_ALL = (
    Setting(
        "repetition_time_s", "s", (0.001, 60.0), "RepetitionTimeExcitation", "between excitations"
    ),
    Setting(
        "repetition_time_preparation_s",
        "s",
        (0.1, 60.0),
        "RepetitionTimePreparation",
        "between preparation pulses",
    ),
    Setting("echo_time_s", "s", (0.0, 3.0), "EchoTime", "from the centre of the excitation"),
    Setting("echo_spacing_s", "s", (0.001, 0.5), None, "between refocusing pulses"),
    Setting("inversion_time_s", "s", (0.0, 20.0), "InversionTime", "from inversion to excitation"),
    # A T1 or T2 weighting by angles below one degree is not measurable, while
    # angles up to 57 degrees are below one in radians.
    Setting("flip_angle_deg", "deg", (1.0, 180.0), "FlipAngle", "nominal excitation angle"),
    Setting("excitation_angle_deg", "deg", (10.0, 180.0), None, "excitation of a spin-echo train"),
    Setting("refocusing_angle_deg", "deg", (20.0, 270.0), None, "nominal refocusing angle"),
    Setting("assumed_t1_s", "s", (0.05, 10.0), None, "T1 where the protocol does not measure it"),
    Setting("inversion_efficiency", "1", (0.3, 1.0), None, "1 for a perfect inversion, 0 for none"),
    Setting(
        "number_shots", "count", (1.0, 4096.0), "NumberShots", "excitations of one readout train"
    ),
    Setting("number_shots_before", "count", (0.0, 4096.0), None, "excitations before the centre"),
    Setting("partial_fourier", "1", (0.5, 1.0), "PartialFourier", "fraction along the train"),
    Setting("kappa", "1", (0.2, 3.0), None, "flip-angle scaling (B1+), 1 where it is as nominal"),
)

SETTINGS: Mapping[str, Setting] = MappingProxyType({s.name: s for s in _ALL})
"""Name → setting, for every setting that a protocol may hold, and ``kappa``."""

_MISTAKES = {
    "s": ((1e-3, "in ms?"), (1e-6, "in microseconds?")),
    "deg": ((180 / math.pi, "in radians?"),),
    "1": ((1e-2, "in percent?"), (1e-3, "in thousandths?")),
}
_UNITS = {"s": "give seconds", "deg": "give degrees", "1": "give a fraction, 1 for the whole"}


def check_setting(
    name: str, value: object, where: str, plausible: tuple[float, float] | None = None
) -> float:
    """Return `value` of the setting `name` as a float, if it is a plausible number.

    Parameters
    ----------
    name : str
        A name in `SETTINGS`.
    value : object
        An int or float; a string or a bool is no number.
    where : str
        The place for the error, for example ``"protocol.json · acquisition 1 (spgr)"``.
    plausible : (float, float), optional
        A narrower range: a repetition time of 12 s is one for an inversion
        recovery and a mistake for a spoiled gradient echo.

    Raises
    ------
    UsageError
        Names the setting, the range and the likely mistake ("in ms?").
    """
    setting = SETTINGS[name]
    return check_range(name, setting.unit, plausible or setting.plausible, value, where)


def check_range(
    name: str, unit: str, plausible: tuple[float, float], value: object, where: str
) -> float:
    """Return `value` as a float if it lies in `plausible` (both inclusive); else UsageError."""
    low, high = plausible
    expected = f"{low:g} to {high:g}{f' {unit}' if unit in ('s', 'deg') else ''}"
    if isinstance(value, bool) or not isinstance(value, Real):
        is_text = isinstance(value, str)
        raise UsageError(
            f"{name} is not a number",
            where=where,
            expected=expected,
            got="a text" if is_text else "true or false" if isinstance(value, bool) else None,
            hint="write a plain number without quotes, such as 0.005" if is_text else None,
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if low <= number <= high:
        return number
    mistakes = _MISTAKES.get(unit, ()) if number and math.isfinite(number) else ()
    guess = next((text for factor, text in mistakes if low <= number * factor <= high), None)
    raise UsageError(
        f"{name} is not {'plausible' if math.isfinite(number) else 'finite'}",
        where=where,
        expected=expected,
        got=f"{number:g}{f' ({guess})' if guess else ''}",
        hint=_UNITS[unit] if guess else None,
    )
