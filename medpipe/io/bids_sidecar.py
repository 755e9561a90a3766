"""Settings of weighted images from the JSON sidecars of BIDS.

Quantitative series are named by what they are (``VFA``, ``MESE``, …) and by a
number for each image (``flip-1``, ``echo-2``, ``inv-1``); their sidecars hold
the settings (Karakuzu 2022, doi:10.1038/s41597-022-01571-4). Here settings get
SI names. Numbers written as text and lists with one entry per image are
understood; whether a number is plausible is for the protocol to say.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medpipe.errors import InputError

__all__ = [
    "FIELDS",
    "NUMBERED",
    "REQUIRED",
    "ImageName",
    "fields_of",
    "image_part",
    "image_settings",
    "parse_image_name",
    "read_sidecars",
]

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "echo_time_s": ("EchoTime",),
    "repetition_time_s": ("RepetitionTimeExcitation", "RepetitionTime"),
    "repetition_time_preparation_s": ("RepetitionTimePreparation",),
    "inversion_time_s": ("InversionTime",),
    "flip_angle_deg": ("FlipAngle",),
    "number_shots": ("NumberShots",),
    "partial_fourier": ("PartialFourier",),
}
"""Setting → the fields that hold it, the first that is there counts; in seconds and degrees."""

_SPECIAL: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    # the time between inversions, which scanners call the repetition time
    ("IRT1", "repetition_time_s"): (
        "RepetitionTime",
        "RepetitionTimePreparation",
        "RepetitionTimeExcitation",
    ),
    # RepetitionTime of a scanner is that of the whole cycle here: no stand-in for an excitation
    ("MP2RAGE", "repetition_time_s"): ("RepetitionTimeExcitation",),
}

REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "VFA": ("flip_angle_deg", "repetition_time_s"),
    "IRT1": ("inversion_time_s",),
    "MESE": ("echo_time_s",),
    "MEGRE": ("echo_time_s",),
    "MP2RAGE": (
        "inversion_time_s",
        "flip_angle_deg",
        "repetition_time_s",
        "repetition_time_preparation_s",
        "number_shots",
    ),
    "DESS": ("flip_angle_deg", "repetition_time_s", "echo_time_s"),
}
"""Suffix → the settings that every image must have. DESS is no suffix of the standard yet."""

NUMBERED: Final = frozenset({"flip", "inv", "echo", "mt", "part"})
"""Entities that tell the images of one set apart; all others must agree."""

_ENTITY: Final = re.compile(r"([a-z]+)-([A-Za-z0-9+]+)\Z", re.ASCII)
_KEYS: Final = frozenset(
    [
        *("sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain"),
        *("rec", "dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi"),
        *("space", "split", "recording", "chunk", "seg", "res", "den", "label", "desc"),
    ]
)
"""Entities of BIDS. Messages name them, so nothing else may pass for one: it may be a name."""

_LIMIT: Final = 4 << 20
_PARTS: Final = {
    **dict.fromkeys(("mag", "m", "magnitude"), "mag"),
    **dict.fromkeys(("phase", "p", "ph"), "phase"),
    **dict.fromkeys(("real", "r"), "real"),
    **dict.fromkeys(("imag", "i", "imaginary"), "imag"),
}


@dataclass(frozen=True, slots=True)
class ImageName:
    """What the name of an image says.

    Attributes
    ----------
    path : Path
    entities : dict
        ``{"sub": "01", "flip": "1"}``; empty where the name is no BIDS name.
    suffix : str
        ``"VFA"``; the whole stem where the name is no BIDS name.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str


def fields_of(suffix: str, setting: str) -> tuple[str, ...]:
    """Return the fields that hold a setting of images with a suffix, the first that is there."""
    return _SPECIAL.get((suffix, setting), FIELDS[setting])


def parse_image_name(path: Path) -> ImageName:
    """Read entities and suffix from a name; ``sub`` may be missing.

    >>> parse_image_name(Path("sub-01_flip-2_VFA.nii.gz")).entities
    {'sub': '01', 'flip': '2'}
    """
    stem = re.sub(r"\.(nii\.gz|nii|json)\Z", "", path.name, flags=re.IGNORECASE)
    *parts, suffix = stem.split("_")
    matches = [_ENTITY.match(part) for part in parts]
    entities = {m[1]: m[2] for m in matches if m is not None and m[1] in _KEYS}
    if len(entities) < len(parts) or not re.fullmatch(r"[A-Za-z0-9]+", suffix):
        return ImageName(path, {}, stem)
    return ImageName(path, entities, suffix)


def read_sidecars(image: ImageName, root: Path) -> dict[str, Any] | None:
    """Return the fields that apply to an image, None where no sidecar does.

    A sidecar applies to the images of its folder and of those below it that
    have its suffix and all its entities; the nearest counts most (the
    inheritance principle of BIDS). Nothing above `root` is read.

    Raises
    ------
    InputError
        If a sidecar cannot be read.
    """
    found: list[tuple[int, int, Path]] = []
    folder = image.path.parent
    folders = [folder, *folder.parents]
    top = folders.index(root) if root in folders else 0
    for depth, place in enumerate(reversed(folders[: top + 1])):
        for name in sorted(os.listdir(place)):
            if not name.lower().endswith(".json") or name.startswith("."):
                continue
            sidecar = parse_image_name(place / name)
            if (
                sidecar.suffix == image.suffix
                and sidecar.entities.items() <= image.entities.items()
            ):
                found.append((depth, len(sidecar.entities), sidecar.path))
    fields: dict[str, Any] = {}
    for _, _, path in sorted(found):
        fields |= _read_json(path)
    return fields if found else None


def _refuse_constant(_: str) -> float:
    raise ValueError


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LIMIT:
            raise InputError("a JSON sidecar is too large", expected="at most 4 MB")
        content = json.loads(path.read_text("utf-8-sig"), parse_constant=_refuse_constant)
    except OSError:
        raise InputError("a JSON sidecar cannot be opened") from None
    except (ValueError, RecursionError):
        raise InputError(
            "a JSON sidecar is not valid JSON", hint="check it by a validator"
        ) from None
    if not isinstance(content, dict):
        raise InputError("a JSON sidecar holds no object", expected='{"EchoTime": …}')
    return content


def image_part(image: ImageName, fields: Mapping[str, Any] | None) -> str | None:
    """Return ``"mag"``, ``"phase"``, ``"real"`` or ``"imag"`` as name or sidecar say, else None."""
    named = _PARTS.get(image.entities.get("part", "").lower())
    if named is not None:
        return named
    kinds = (fields or {}).get("ImageType", [])
    words = [str(kind).lower() for kind in kinds] if isinstance(kinds, list) else []
    return next((_PARTS[w] for w in words[2:] if w in _PARTS), None)


def image_settings(
    fields: Mapping[str, Any], suffix: str, position: int, volumes: int, images: int
) -> list[dict[str, float]]:
    """Return the settings of each volume of an image in SI units.

    Parameters
    ----------
    fields : dict
        As `read_sidecars` returns them.
    suffix : str
        Decides which fields stand for a setting.
    position : int
        Rank of the image in its set, from 0.
    volumes, images : int
        Volumes in the image, and images in the set. A list in the sidecar has
        one number per volume; for a single volume also one per image of the set.

    Raises
    ------
    InputError
        If a field holds no number, or another count of numbers.
    """
    out: list[dict[str, float]] = [{} for _ in range(volumes)]
    for name in FIELDS:
        key = next((k for k in fields_of(suffix, name) if k in fields), None)
        if key is None:
            continue
        numbers = _numbers(fields[key], key)
        if name == "number_shots" and len(numbers) == 2:
            # before and after the centre of k-space: of one image, not of two
            before, after = numbers
            for one in out:
                one |= {name: before + after, f"{name}_before": before}
            continue
        for volume, one in enumerate(out):
            one[name] = _pick(numbers, key, volume, position, volumes, images)
    return out


def _numbers(value: Any, key: str) -> list[float]:
    values = value if isinstance(value, list) else [value]
    try:
        numbers = [math.nan if isinstance(v, bool) else float(v) for v in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise InputError(f"the field {key} of the sidecar is no number", expected="a number")
    return numbers


def _pick(
    numbers: Sequence[float], key: str, volume: int, position: int, volumes: int, images: int
) -> float:
    if len(numbers) == 1:
        return numbers[0]
    if volumes > 1 and len(numbers) == volumes:
        return numbers[volume]
    if volumes == 1 and len(numbers) == images:
        return numbers[position]
    raise InputError(
        f"the field {key} of the sidecar does not fit the image",
        expected="one number" + (f", or {volumes}" if volumes > 1 else ""),
        got=f"{len(numbers)}",
        hint="check the order of the axes and that the sidecar belongs to the image",
    )
