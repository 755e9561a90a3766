"""Frames → series: what belongs to one volume, and what is no volume at all.

One study, one series, one frame of reference, one kind of object, one
orientation and one pixel grid make a series. AcquisitionNumber and
SliceThickness do not separate: scanners change both within one volume.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medpipe.errors import InputError
from medpipe.io.dicom_geometry import stack_of
from medpipe.io.dicom_header import Frame
from medpipe.types import Finding, Severity

__all__ = ["Series", "group_frames", "set_aside_as"]

GRID_TOLERANCE = 1e-4
NO_IMAGE = "object without an image"

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NOT_VOLUMES = (
    ("7", "secondary capture"),
    ("66", "segmentation or raw data"),
    ("88", "structured report"),
    ("11", "presentation state"),
    ("4.2", "spectroscopy"),
    ("9", "waveform"),
    ("104", "document"),
    ("481", "radiotherapy object"),
)
_TYPES = (
    ({"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW"}, "localizer"),
    ({"DOSE_INFO", "DOSE", "DOSE REPORT"}, "dose report"),
    ({"MIP", "MINIP", "MNIP", "PROJECTION IMAGE", "MAXIMUM", "THICK MIP"}, "projection"),
    ({"VRT", "VOLREN", "VOLUME RENDERING", "SCREEN SAVE", "SCREENSAVE"}, "screen image"),
)
_PARTS = frozenset(
    [
        "M",
        "P",
        "R",
        "I",
        "MAGNITUDE",
        "PHASE",
        "REAL",
        "IMAGINARY",
        "W",
        "F",
        "IP",
        "OP",
        "WATER",
        "FAT",
        "IN_PHASE",
        "OPP_PHASE",
    ]
)
_ONE_PER_SERIES = frozenset(("study", "frame of reference", "modality", "kind of object"))


@dataclass(repr=False)
class Series:
    """Image planes that belong together, known from their headers alone.

    Attributes
    ----------
    number : int or None
        SeriesNumber.
    modality : str
        ``CT``, ``MR``, …; ``OT`` for one DICOM does not define.
    n_slices, rows, cols : int
        Planes (time points counted) and their size.
    spacing_mm : (float, float) or None
        Between rows, between columns.
    step_mm : (float, float, float) or None
        Smallest, median and largest distance between neighbouring positions.
    tilt_deg : float or None
        Angle between the direction of stacking and the normal.
    thickness_mm : float or None
        Median SliceThickness.
    orientation : str or None
        ``axial``, ``coronal`` or ``sagittal``: the nearest.
    kernel : str or None
        Convolution kernel.
    contrast : bool
        Whether a contrast agent is recorded.
    hash8 : str
        First eight hex digits of the sha256 of the series' UID.
    findings : list of Finding
        What the scan saw.
    problems : list of str
        Why the series cannot be assembled as it lies there.

    `description` serves selection; it is in no repr and no `to_dict`.
    """

    frames: list[Frame]
    findings: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    number: int | None = None
    modality: str = "OT"
    n_slices: int = 0
    rows: int = 0
    cols: int = 0
    spacing_mm: tuple[float, float] | None = None
    step_mm: tuple[float, float, float] | None = None
    tilt_deg: float | None = None
    thickness_mm: float | None = None
    orientation: str | None = None
    kernel: str | None = None
    contrast: bool = False
    hash8: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        first = self.frames[0]
        self.number, self.modality, self.hash8 = first.number, first.modality, first.hash8
        self.n_slices, self.rows, self.cols = len(self.frames), first.rows, first.cols
        self.kernel, self.description = first.kernel, first.description
        self.contrast = any(f.contrast for f in self.frames)
        thick = [f.thickness for f in self.frames if f.thickness is not None]
        self.thickness_mm = float(np.median(thick)) if thick else None
        try:
            stack = stack_of(self.frames)
        except InputError:
            return  # assembling says what is wrong
        self.spacing_mm, self.orientation = stack.spacing, stack.orientation
        self.tilt_deg = round(stack.tilt_deg, 3)
        if len(stack.steps_mm):
            steps = stack.steps_mm
            self.step_mm = (float(steps.min()), float(np.median(steps)), float(steps.max()))

    @property
    def label(self) -> str:
        """The series' name in messages: ``series 3 (CT, 28 slices, 1a2b3c4d)``."""
        number = "without number" if self.number is None else str(self.number)
        plural = "" if self.n_slices == 1 else "s"
        return f"series {number} ({self.modality}, {self.n_slices} slice{plural}, {self.hash8})"

    @property
    def files(self) -> list[Path]:
        """The files that hold the series, each once."""
        return list(dict.fromkeys(f.path for f in self.frames))

    def __repr__(self) -> str:
        return f"<{self.label}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON facts of the series, free of patient data."""
        names = [
            "number",
            "modality",
            "n_slices",
            "rows",
            "cols",
            "spacing_mm",
            "step_mm",
            "tilt_deg",
            "thickness_mm",
            "orientation",
            "kernel",
            "contrast",
            "hash8",
            "problems",
        ]
        return {n: getattr(self, n) for n in names} | {"files": len(self.files)}


def set_aside_as(frame: Frame) -> str | None:
    """Say why an object is not part of a volume, or return None for an image plane."""
    if frame.sop_class == "1.2.840.10008.1.3.10":
        return "media directory"
    if frame.sop_class.startswith(_STORAGE):
        tail = frame.sop_class[len(_STORAGE) :]
        for prefix, name in _NOT_VOLUMES:
            if tail == prefix or tail.startswith(prefix + "."):
                return name
    for tokens, name in _TYPES:
        if tokens & set(frame.image_type):
            return name
    if not frame.rows and frame.problem is None:
        return NO_IMAGE
    return None


def _kind(frame: Frame) -> dict[str, Any]:
    """Return what must be equal within a series, besides orientation and spacing."""
    return {
        "study": frame.study,
        "series": frame.series,
        "frame of reference": frame.reference,
        "modality": frame.modality,
        "kind of object": frame.sop_class,
        "image size": (frame.rows, frame.cols),
        "stack": frame.stack,
        "image component": tuple(sorted(_PARTS & set(frame.image_type[2:]))),
        "original or derived": frame.image_type[:1] == ("DERIVED",),
    }


def _grid(frame: Frame) -> tuple[float, ...]:
    return (*(frame.orientation or ()), *(frame.spacing or ()))


def _near(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= GRID_TOLERANCE for x, y in zip(a, b, strict=True))


def _by_grid(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Collect frames whose orientation and spacing agree within 1e-4."""
    clusters: list[list[Frame]] = []
    for frame in sorted(frames, key=lambda f: (_grid(f), f.position or (), f.instance, f.index)):
        for cluster in clusters:
            if _near(_grid(cluster[0]), _grid(frame)):
                cluster.append(frame)
                break
        else:
            clusters.append([frame])
    return clusters


def _unplaced(frame: Frame) -> str | None:
    for name, value in (
        ("ImagePositionPatient", frame.position),
        ("ImageOrientationPatient", frame.orientation),
        ("PixelSpacing", frame.spacing),
    ):
        if value is None:
            return f"{name} is missing"
    return None


def _mark_unplaced(frames: list[Frame]) -> list[Frame]:
    """Count planes without a place as problems of the series that has placed ones."""
    placed = {f.series for f in frames if f.problem is None and _unplaced(f) is None}
    return [
        replace(f, problem=_unplaced(f)) if f.problem is None and f.series in placed else f
        for f in frames
    ]


def _note_split(parts: list[Series]) -> None:
    """Tell each part of a split series what it was split by, and refuse a split that is damage."""
    kinds = [_kind(p.frames[0]) for p in parts]
    for a, part in enumerate(parts):
        names: list[str] = []
        for b, other in enumerate(parts):
            differ = [n for n in kinds[a] if kinds[a][n] != kinds[b][n]]
            same_grid = _near(_grid(part.frames[0]), _grid(other.frames[0]))
            if differ and same_grid and set(differ) <= _ONE_PER_SERIES:
                part.problems.append(f"its slices differ in {', '.join(differ)}")
            names += differ if same_grid else [*differ, "orientation or spacing"]
        if names:
            message = (
                f"{part.label} is one of {len(parts)} parts that differ in "
                f"{', '.join(dict.fromkeys(names))}"
            )
            part.findings.append(Finding("dicom.split_series", Severity.WARNING, message))


def _note_lookalikes(parts: list[Series], aside: list[tuple[Frame, str]]) -> None:
    """Refuse a stack when objects of the same series that were set aside lie on its grid."""
    for part in parts:
        first = part.frames[0]
        names = [
            name
            for f, name in aside
            if (f.rows, f.cols) == (first.rows, first.cols)
            and f.orientation
            and _near(_grid(f), _grid(first))
        ]
        if names:
            part.problems.append(
                f"{len(names)} more slices on the same grid are marked as {names[0]}"
            )


def group_frames(frames: Iterable[Frame]) -> tuple[list[Series], list[tuple[Frame, str]]]:
    """Split frames into series and objects that are no volume.

    Returns
    -------
    series : list of Series
        In a fixed order that does not depend on the order of the files.
    aside : list of (Frame, str)
        Localizers, projections, captures, reports, … with the reason.
    """
    aside: list[tuple[Frame, str]] = []
    images: list[Frame] = []
    for frame in frames:
        reason = set_aside_as(frame)
        if reason is None:
            images.append(frame)
        else:
            aside.append((frame, reason))
    images, aside = _claim_headless(images, aside)
    images = _mark_unplaced(images)
    kinds: dict[tuple[Any, ...], list[Frame]] = defaultdict(list)
    broken: dict[str, list[Frame]] = defaultdict(list)
    for frame in images:
        if frame.problem is None:
            kinds[tuple(_kind(frame).values())].append(frame)
        else:
            broken[frame.series].append(frame)
    out = [Series(cluster) for members in kinds.values() for cluster in _by_grid(members)]
    by_uid: dict[str, list[Series]] = defaultdict(list)
    for series in out:
        by_uid[series.frames[0].series].append(series)
    for uid, members in broken.items():
        if uid not in by_uid:
            by_uid[uid] = [Series(members)]
            out += by_uid[uid]
        for part in by_uid[uid]:
            part.problems.append(_broken_text(members))
    for uid, parts in by_uid.items():
        _note_split(parts)
        _note_lookalikes(parts, [(f, name) for f, name in aside if f.series == uid])
    return sorted(out, key=_rank), aside


def _claim_headless(
    images: list[Frame], aside: list[tuple[Frame, str]]
) -> tuple[list[Frame], list[tuple[Frame, str]]]:
    """Count as damaged slices what has no image but the series or class of those that have."""
    series, classes = {f.series for f in images}, {f.sop_class for f in images}
    lost = [
        f for f, why in aside if why == NO_IMAGE and (f.series in series or f.sop_class in classes)
    ]
    claimed = [replace(f, problem="Rows is missing") for f in lost]
    return images + claimed, [(f, why) for f, why in aside if f not in lost]


def _broken_text(members: list[Frame]) -> str:
    one = sorted(members, key=lambda f: (f.position or (), f.problem or ""))[0]
    n = len(members)
    return f"{n} slice{'s' if n > 1 else ''} cannot be used: {one.problem}"


def _rank(series: Series) -> tuple[Any, ...]:
    first = series.frames[0]
    number = series.number if series.number is not None else 1 << 31
    return (number, series.hash8, -series.n_slices, _grid(first), first.stack, first.image_type)
