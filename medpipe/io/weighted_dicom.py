"""DICOM series → a set of weighted images, each placed by the assembler of single series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medpipe.errors import InputError
from medpipe.io.dicom_assemble import assemble
from medpipe.io.dicom_group import Series
from medpipe.io.dicom_header import Frame
from medpipe.io.dicom_options import Options
from medpipe.io.dicom_scan import scan_folder
from medpipe.io.dicom_select import SeriesRules
from medpipe.io.weighted_set import WeightedSet, check_grids, image_name, require_settings
from medpipe.types import Finding, Severity, Volume

__all__ = ["DicomSetOptions", "read_weighted_dicom"]

_ORDER = ("inversion_time_s", "flip_angle_deg", "echo_time_s", "repetition_time_s")
_PARTS = {
    **dict.fromkeys(("P", "PHASE"), "phase"),
    **dict.fromkeys(("R", "REAL"), "real"),
    **dict.fromkeys(("I", "IMAGINARY"), "imag"),
    **dict.fromkeys(("M", "MAGNITUDE"), "mag"),
}


@dataclass(frozen=True, slots=True)
class DicomSetOptions:
    """What to take of a folder; see `medpipe.io.weighted.LoadWeighted`."""

    select: dict[str, Any] | None = None
    part: str = "mag"
    suffix: tuple[str, ...] = ()
    required: bool = True
    max_gb: float = 8.0


@dataclass(slots=True)
class _Image:
    """Frames of one setting of one series."""

    series: Series
    settings: dict[str, float]
    part: str | None

    def order(self) -> tuple[Any, ...]:
        known = [self.settings.get(name, -1.0) for name in _ORDER]
        return (*known, self.series.number or 0, self.series.hash8)


def read_weighted_dicom(path: Path, options: DicomSetOptions) -> WeightedSet:
    """Read all images of a DICOM folder, ordered by inversion time, flip angle, echo time.

    Frames with the same settings in one series make an image.

    Raises
    ------
    InputError
        If there is no MR series, or one cannot be assembled, or the images lie
        on several grids or lack settings.
    """
    images, findings = _images(path, options)
    suffix = _kind(images, options.suffix)
    volumes: list[Volume] = []
    held = 0
    for position, image in enumerate(images):
        held += 4 * sum(f.rows * f.cols for f in image.series.frames)
        if held > options.max_gb * 2**30:
            raise InputError("the images need more memory than max_gb allows", hint="raise max_gb")
        volumes.append(_assembled(image, position, len(images), options))
    check_grids(volumes)
    acquisitions: list[dict[str, Any]] = [
        {
            **image.settings,
            **({"suffix": suffix} if suffix else {}),
            **({"complex_part": "real" if image.part == "real" else "magnitude"}),
        }
        for image in images
    ]
    if options.required:
        require_settings(acquisitions, [suffix] * len(images))
    first = volumes[0].source
    facts = ("modality", "rows", "cols", "slices", "pixel_spacing_mm", "orientation", "step_mm")
    source = {"kind": "dicom", **{name: first[name] for name in facts}}
    source["series"] = [
        {"series_number": image.series.number, "uid_hash8": image.series.hash8} for image in images
    ]
    found = WeightedSet(volumes, acquisitions, source, findings)
    for volume in volumes:
        found.add_findings(f for f in volume.findings if f.check not in _SAID)
    return found


_SAID = frozenset({"dicom.split_series", "dicom.mr_scale", "dicom.incomplete"})
"""Findings about a series as a whole: here its parts are wanted, and the scale has its own."""


def _images(path: Path, options: DicomSetOptions) -> tuple[list[_Image], list[Finding]]:
    """Return the images of a folder in order, their values put on one scale."""
    scan = scan_folder(path)
    rules = SeriesRules.parse(options.select)
    series = [s for s in scan.series if s.modality == "MR" and rules.accept(s)]
    if not series:
        got = f"{len(scan.series)} other series" if scan.series else "no series"
        raise InputError(
            "there is no MR series to take images from",
            expected="NIfTI files, or DICOM series of MR",
            got=got,
        )
    findings: list[Finding] = []
    taken = [s for s in series if _part(s) == options.part and not _derived(s)]
    if not taken:
        raise InputError(
            f"no MR series holds original {'real' if options.part == 'real' else 'magnitude'} "
            "images",
            got=f"{len(series)} others",
        )
    if len(taken) < len(series):
        text = f"{len(series) - len(taken)} series of phase or derived images were left"
        findings.append(Finding("weighted.part", Severity.INFO, text))
    images = [image for one in taken for image in _split(one)]
    images.sort(key=_Image.order)
    return images, findings + _to_one_scale(images)


def _part(series: Series) -> str:
    """Return which part of the complex image a series shows; none said is the magnitude."""
    kinds = {_PARTS[t] for t in series.frames[0].image_type[2:] if t in _PARTS}
    return next((p for p in ("phase", "imag", "real") if p in kinds), "mag")


def _derived(series: Series) -> bool:
    return series.frames[0].image_type[:1] == ("DERIVED",)


def _split(series: Series) -> list[_Image]:
    """Split a series by the settings of its frames."""
    groups: dict[tuple[tuple[str, float], ...], list[Frame]] = defaultdict(list)
    for frame in series.frames:
        groups[tuple(sorted(frame.settings.items()))].append(frame)
    return [
        _Image(
            Series(frames, list(series.findings), list(series.problems)),
            dict(settings),
            _part(series),
        )
        for settings, frames in groups.items()
    ]


def _to_one_scale(images: Sequence[_Image]) -> list[Finding]:
    """Divide by the private scale slope of Philips; warn where scales differ without it.

    The displayed value is ``stored · slope + intercept``; what was measured is that
    divided by ``slope · scale slope``.
    """
    frames = [f for image in images for f in image.series.frames]
    private = [f.scale_slope for f in frames]
    if all(private):
        for image in images:
            image.series.frames = [_scaled(f) for f in image.series.frames]
        text = (
            "values were divided by RescaleSlope and by the private scale slope of Philips, "
            "which puts the images on one scale"
        )
        return [Finding("weighted.philips_scale", Severity.INFO, text)]
    if any(private):
        raise InputError(
            "only some images hold the private scale slope of Philips",
            expected="all or none: they are on different scales",
            got=f"{sum(p is not None for p in private)} of {len(private)} slices",
            hint="export the series again with their private tags",
        )
    if len({(f.slope, f.intercept) for f in frames}) > 1:
        text = (
            "RescaleSlope differs between the images and no private scale slope is there: their "
            "values may be on different scales"
        )
        return [Finding("weighted.scale", Severity.WARNING, text)]
    return []


def _scaled(frame: Frame) -> Frame:
    slope, scale = frame.slope or 1.0, frame.scale_slope or 1.0
    intercept = 0.0 if frame.intercept is None else frame.intercept
    return replace(frame, slope=1 / scale, intercept=intercept / (slope * scale))


def _assembled(image: _Image, position: int, images: int, options: DicomSetOptions) -> Volume:
    where = f"{image_name(position, images)} · {image.series.label}"
    try:
        return assemble(image.series, Options(max_gb=options.max_gb), None)
    except InputError as error:
        if "different images at" in error.what:
            error.hint = "their settings do not tell them apart; choose series by select"
        raise error.at(where) from None


def _kind(images: Sequence[_Image], asked: Sequence[str]) -> str:
    """Return the suffix of the images; refuse those that are certainly not what was asked for."""
    found = _suffix(images)
    if found and asked and found not in asked:
        raise InputError(
            "the DICOM images are of another kind",
            expected=" or ".join(asked),
            got=f"{found}, by what differs between their headers",
            hint="use the workflow for them, or choose series by select",
        )
    return found or (asked[0] if len(asked) == 1 else "")


def _suffix(images: Sequence[_Image]) -> str:
    """Return the suffix of BIDS that the images would have, "" where it is not certain."""
    differ = {n for n in _ORDER if len({i.settings.get(n) for i in images}) > 1}
    kinds = {word for image in images for f in image.series.frames for word in f.sequence}
    if "inversion_time_s" in differ:
        return "" if "GR" in kinds else "IRT1"
    if "flip_angle_deg" in differ:
        return "VFA" if "GR" in kinds and "echo_time_s" not in differ else ""
    if "echo_time_s" in differ:
        return "MESE" if "SE" in kinds else "MEGRE" if "GR" in kinds else ""
    return ""
