"""How an MR image was weighted, and on which scale its values are, from one DICOM header."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medpipe.io.dicom_tags import (
    PHILIPS_CREATOR,
    PHILIPS_SLOPE,
    lenient,
    read_items,
    read_number,
    read_value,
)

__all__ = ["functional_settings", "mr_settings", "scale_slope"]

_TAGS = (
    ("RepetitionTime", "repetition_time_s", 1e-3),
    ("EchoTime", "echo_time_s", 1e-3),
    ("EffectiveEchoTime", "echo_time_s", 1e-3),
    ("InversionTime", "inversion_time_s", 1e-3),
    ("FlipAngle", "flip_angle_deg", 1.0),
)
"""Tag, the setting it is, and the factor to SI units: DICOM has milliseconds."""

_DIGITS = 7
"""Settings are kept to 0.1 µs: binary times of frames differ in their last bits."""

_GROUPS = ("MRTimingAndRelatedParametersSequence", "MREchoSequence", "MRModifierSequence")
_PHILIPS = "Philips MR Imaging DD 001"
_PHILIPS_FRAME = Tag(0x2005, 0x140F)


def mr_settings(ds: Dataset) -> dict[str, float]:
    """Return the settings of an MR image in SI units; a tag that is no number is left out."""
    found = {}
    for tag, name, factor in _TAGS:
        value = lenient(read_number, ds, tag)
        if value is not None:
            found[name] = round(value * factor, _DIGITS)
    return found


def functional_settings(group: Dataset) -> dict[str, float]:
    """Return the settings in one item of the functional groups of an enhanced MR object."""
    found: dict[str, float] = {}
    for keyword in _GROUPS:
        for item in read_items(group, keyword):
            found |= mr_settings(item)
            times = lenient(read_value, item, "InversionTimes")
            one = list(times) if isinstance(times, Sequence) else [times]
            if len(one) == 1 and isinstance(one[0], int | float) and math.isfinite(one[0]):
                found["inversion_time_s"] = round(float(one[0]) * 1e-3, _DIGITS)
    return found


def scale_slope(ds: Dataset) -> float | None:
    """Return the private scale slope of a Philips MR image, None where there is none to use.

    A stored value is what the scanner measured times this slope. It differs
    between series, and RescaleSlope only leads to the value that is displayed
    (Chenevert 2014, doi:10.1593/tlo.13811). In an enhanced object it lies in a
    private sequence of the functional groups.
    """
    try:
        if _PHILIPS_FRAME in ds:
            ds = ds[_PHILIPS_FRAME].value[0]
        if str(ds[PHILIPS_CREATOR].value).strip() != _PHILIPS:
            return None
        value: Any = ds[PHILIPS_SLOPE].value
        # a private tag of implicit VR that pydicom does not know stays four bytes
        number = struct.unpack("<f", value)[0] if isinstance(value, bytes) else float(value)
    except Exception:  # pydicom raises many classes, with header text in them
        return None
    return number if math.isfinite(number) and number > 0 else None
