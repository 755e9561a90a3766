"""A set of weighted images: volumes on one grid, each with its settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medpipe.errors import InputError
from medpipe.geometry import same_grid
from medpipe.io.bids_sidecar import FIELDS, REQUIRED, fields_of
from medpipe.types import Finding, Volume

__all__ = ["WeightedSet", "check_grids", "image_name", "require_settings"]


@dataclass(slots=True)
class WeightedSet:
    """Weighted images of one examination.

    Attributes
    ----------
    volumes : list of Volume
        D images (I, J, K) on one grid.
    acquisitions : list of dict
        Their settings in SI units: ``echo_time_s``, ``repetition_time_s``,
        ``repetition_time_preparation_s``, ``inversion_time_s``,
        ``flip_angle_deg``, ``number_shots``, ``number_shots_before``,
        ``partial_fourier`` as far as they are known, and as text ``suffix`` and
        ``complex_part`` (``"magnitude"`` or ``"real"``).
    source : dict
        JSON facts without patient data.
    findings : list of Finding
    """

    volumes: list[Volume]
    acquisitions: list[dict[str, Any]]
    source: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add_findings(self, findings: Iterable[Finding]) -> None:
        """Note findings, each once."""
        self.findings += [f for f in findings if f not in self.findings]


def image_name(position: int, images: int) -> str:
    """Return how messages name an image: by its rank in the set, never by its file."""
    return f"image {position + 1} of {images}"


def check_grids(volumes: Sequence[Volume]) -> None:
    """Refuse images that do not lie on the grid of the first.

    Raises
    ------
    InputError
        Naming the first that does not by its number.
    """
    first = volumes[0]
    for position, volume in enumerate(volumes[1:], start=1):
        if same_grid(first.affine, first.data.shape, volume.affine, volume.data.shape):
            continue
        shapes = [" × ".join(map(str, v.data.shape[:3])) for v in (first, volume)]
        where = "another place" if shapes[0] == shapes[1] else f"{shapes[1]} voxels"
        raise InputError(
            "an image lies on another grid than the first",
            where=image_name(position, len(volumes)),
            expected=f"{shapes[0]} voxels at the same place",
            got=where,
            hint="register and resample the images to one grid first",
        )


def require_settings(acquisitions: Sequence[Mapping[str, Any]], suffixes: Sequence[str]) -> None:
    """Refuse an image that lacks a setting its kind cannot do without.

    Raises
    ------
    InputError
        Naming the field and the image by its number.
    """
    for position, (known, suffix) in enumerate(zip(acquisitions, suffixes, strict=True)):
        missing = [name for name in REQUIRED.get(suffix, ()) if name not in known]
        nothing = not missing and not FIELDS.keys() & known.keys()
        if missing or nothing:
            names = ", ".join(fields_of(suffix, name)[0] for name in missing)
            kind = f" ({suffix})" if suffix in REQUIRED else ""
            raise InputError(
                f"{names} is missing" if missing else "no setting is given",
                where=image_name(position, len(acquisitions)) + kind,
                expected=names if missing else ", ".join(FIELDS[name][0] for name in FIELDS),
                hint="add it to the sidecar in the folder of the image, or give a protocol file "
                'and set settings = "optional"',
            )
