"""One DICOM file → plain records of its frames, without its pixels.

What the file says is checked for form (numbers
are numbers, vectors have their length); what it means is for
`medpipe.io.dicom_geometry` and `medpipe.io.dicom_pixels`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from medpipe.io.dicom_mr import functional_settings, mr_settings, scale_slope
from medpipe.io.dicom_tags import (
    BadHeader,
    lenient,
    open_dataset,
    quiet_pydicom,
    read_integer,
    read_items,
    read_number,
    read_numbers,
    read_positive,
    read_required,
    read_text,
    read_texts,
    read_value,
)

__all__ = ["Frame", "read_frames"]

_MODALITIES = frozenset(
    [
        "CT",
        "MR",
        "PT",
        "NM",
        "CR",
        "DX",
        "DR",
        "XA",
        "RF",
        "US",
        "MG",
        "OT",
        "SC",
        "SR",
        "PR",
        "KO",
        "SEG",
        "RTDOSE",
        "RTSTRUCT",
        "RTPLAN",
        "RTIMAGE",
        "RWV",
        "REG",
        "OCT",
        "OPT",
        "IVUS",
        "DOC",
        "RAW",
        "ANN",
    ]
)


@dataclass(frozen=True, slots=True)
class Frame:
    """What one image plane says about itself; the geometry is DICOM's (LPS+ mm)."""

    path: Path = field(repr=False)
    index: int = 0
    frames: int = 1
    study: str = field(default="", repr=False)
    series: str = field(default="", repr=False)
    instance: str = field(default="", repr=False)
    reference: str = field(default="", repr=False)
    sop_class: str = ""
    syntax: str = ""
    modality: str = "OT"
    number: int | None = None
    description: str = field(default="", repr=False)
    image_type: tuple[str, ...] = field(default=(), repr=False)
    stack: str = field(default="", repr=False)
    rows: int = 0
    cols: int = 0
    samples: int = 1
    photometric: str = ""
    bits_allocated: int = 16
    bits_stored: int = 16
    high_bit: int = 15
    signed: bool = False
    spacing: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    position: tuple[float, ...] | None = None
    thickness: float | None = None
    between: float | None = None
    slope: float | None = None
    intercept: float | None = None
    hounsfield: bool = True
    lut: bool = False
    padding: tuple[int, int] | None = None
    kernel: str | None = None
    contrast: bool = False
    kvp: float | None = None
    scale_slope: float | None = None
    sequence: tuple[str, ...] = ()
    settings: dict[str, float] = field(default_factory=dict)
    acquisition: int | None = None
    images_in_acquisition: int | None = None
    order: dict[str, Any] = field(default_factory=dict, repr=False)
    problem: str | None = None

    @property
    def hash8(self) -> str:
        """First eight hex digits of the sha256 of the series' UID."""
        return hashlib.sha256(self.series.encode()).hexdigest()[:8]


def _padding(ds: Dataset, signed: bool, bits: int) -> tuple[int, int] | None:
    """Return the lowest and highest stored value that mean "nothing was measured here"."""

    def one(keyword: str) -> int | None:
        value = read_value(ds, keyword)
        if isinstance(value, bytes):  # implicit VR leaves "US or SS" undecided
            value = int.from_bytes(value[:2], "little")
        elif value is not None:
            value = read_integer(ds, keyword)
        if value is None:
            return None
        value &= (1 << bits) - 1
        return value - (1 << bits) if signed and value >> (bits - 1) else value

    first, last = one("PixelPaddingValue"), one("PixelPaddingRangeLimit")
    if first is None:
        return None
    return (first, first) if last is None else (min(first, last), max(first, last))


def _kernel(ds: Dataset) -> str | None:
    """Return the convolution kernel when it looks like one; free text does not."""
    names = lenient(read_texts, ds, "ConvolutionKernel") or ()
    kernel = "\\".join(names)
    return kernel if re.fullmatch(r"[A-Za-z0-9+_.\-\\ ]{1,24}", kernel) else None


def _order(ds: Dataset) -> dict[str, Any]:
    """Collect what may tell time points (or echoes) apart; never written anywhere."""
    out: dict[str, Any] = {}
    for keyword in ("TemporalPositionIdentifier", "TriggerTime", "EchoTime"):
        out[keyword] = lenient(read_number, ds, keyword)
    when = lenient(read_text, ds, "AcquisitionDateTime")
    if not when and (clock := lenient(read_text, ds, "AcquisitionTime")):
        when = (lenient(read_text, ds, "AcquisitionDate") or "") + clock
    out["AcquisitionTime"] = when or None
    for keyword in ("AcquisitionNumber", "InstanceNumber"):
        out[keyword] = lenient(read_integer, ds, keyword)
    return out


def _contrast(ds: Dataset) -> bool:
    agent = str(lenient(read_text, ds, "ContrastBolusAgent") or "").upper()
    return agent not in ("", "NO", "NONE", "N", "NO CONTRAST", "WITHOUT", "0")


def _identity(ds: Dataset, path: Path) -> Frame:
    """Read what places a file in a series; the rest may still be unusable."""
    modality = str(lenient(read_text, ds, "Modality") or "").upper()
    return Frame(
        path,
        study=read_text(ds, "StudyInstanceUID"),
        series=read_text(ds, "SeriesInstanceUID"),
        instance=read_text(ds, "SOPInstanceUID"),
        sop_class=read_text(ds, "SOPClassUID"),
        syntax=str(getattr(ds, "file_meta", {}).get("TransferSyntaxUID") or ""),
        modality=modality if modality in _MODALITIES else "OT",
        number=lenient(read_integer, ds, "SeriesNumber"),
        description=lenient(read_text, ds, "SeriesDescription") or "",
        image_type=read_texts(ds, "ImageType"),
    )


def _pixel_form(ds: Dataset) -> dict[str, Any]:
    """Read how a stored value is laid out in the pixel data."""
    out: dict[str, Any] = {"rows": read_required(ds, "Rows"), "cols": read_required(ds, "Columns")}
    if out["rows"] < 1 or out["cols"] < 1:
        raise BadHeader("Rows or Columns is zero")
    out["frames"] = read_integer(ds, "NumberOfFrames", 1)
    if out["frames"] < 1:
        raise BadHeader("NumberOfFrames is zero or negative")
    out["samples"] = read_integer(ds, "SamplesPerPixel", 1)
    out["photometric"] = read_text(ds, "PhotometricInterpretation").upper()
    out["bits_allocated"] = read_required(ds, "BitsAllocated")
    out["bits_stored"] = read_required(ds, "BitsStored")
    out["high_bit"] = read_integer(ds, "HighBit", out["bits_stored"] - 1)
    representation = read_required(ds, "PixelRepresentation")
    if representation not in (0, 1):
        raise BadHeader("PixelRepresentation is neither 0 nor 1")
    out["signed"] = representation == 1
    return out


def _plane(ds: Dataset) -> dict[str, Any]:
    """Read place and scale of one plane; absent tags are left out."""
    out = {
        "spacing": read_numbers(ds, "PixelSpacing", 2),
        "orientation": read_numbers(ds, "ImageOrientationPatient", 6),
        "position": read_numbers(ds, "ImagePositionPatient", 3),
        "thickness": read_positive(ds, "SliceThickness"),
        "between": read_positive(ds, "SpacingBetweenSlices"),
        "slope": read_number(ds, "RescaleSlope"),
        "intercept": read_number(ds, "RescaleIntercept"),
    }
    if kind := read_text(ds, "RescaleType"):
        out["hounsfield"] = kind.upper() in ("HU", "HU_MOD", "US")
    return {k: v for k, v in out.items() if v is not None}


_GROUPS = [
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
    "PixelValueTransformationSequence",
    "CTPixelValueTransformationSequence",
]
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")


def _functional(group: Dataset) -> dict[str, Any]:
    """Read one item of the functional groups, shared or per frame."""
    out: dict[str, Any] = {}
    for keyword in _GROUPS:
        for item in read_items(group, keyword):
            out |= _plane(item)
    for keyword in _FRAME_TYPES:
        for item in read_items(group, keyword):
            part = read_text(item, "ComplexImageComponent").upper()
            out["image_type"] = (*read_texts(item, "FrameType"), *([part] if part else []))
    for item in read_items(group, "FrameContentSequence"):
        out["stack"] = read_text(item, "StackID")
        dims = read_value(item, "DimensionIndexValues")
        out["order"] = {
            "TemporalPositionIdentifier": lenient(read_integer, item, "TemporalPositionIndex"),
            "AcquisitionTime": lenient(read_text, item, "FrameAcquisitionDateTime") or None,
            "DimensionIndexValues": tuple(dims) if hasattr(dims, "__iter__") else None,
        }
    for item in read_items(group, "MREchoSequence"):
        out.setdefault("order", {})["EchoTime"] = lenient(read_number, item, "EffectiveEchoTime")
    out["settings"] = functional_settings(group)
    if (slope := scale_slope(group)) is not None:
        out["scale_slope"] = slope
    return out


def _enhanced(ds: Dataset, whole: Frame) -> list[Frame]:
    """Split a multi-frame object into its planes."""
    shared_items = read_items(ds, "SharedFunctionalGroupsSequence")
    shared = _functional(shared_items[0]) if shared_items else {}
    groups = read_items(ds, "PerFrameFunctionalGroupsSequence")
    if len(groups) != whole.frames:
        raise BadHeader("NumberOfFrames and the per-frame functional groups disagree")
    # a plane's place must come from its own frame: the object's own tags hold the first one only
    base = replace(whole, position=None)
    out = []
    for index, group in enumerate(groups):
        own = _functional(group)
        merged: dict[str, Any] = {
            name: shared.get(name, {}) | own.pop(name, {}) for name in ("order", "settings")
        }
        out.append(replace(base, index=index, **{**shared, **own, **merged}))
    return out


def read_frames(path: Path) -> list[Frame]:
    """Return the records of all frames of one DICOM file.

    A file whose series is known but whose header is unusable gives one record
    with `problem` set, so that it can be missed by name and not by silence.

    Raises
    ------
    BadHeader
        If it cannot be told which series the file belongs to.
    """
    with quiet_pydicom():
        ds = open_dataset(path, pixels=False)
        frame = _identity(ds, path)
        if not frame.series or not frame.sop_class:
            raise BadHeader("it names no series or no SOP class")
        try:
            if read_value(ds, "Rows") is None and read_value(ds, "BitsAllocated") is None:
                return [frame]
            frame = replace(frame, **_pixel_form(ds))
            frame = replace(
                frame,
                reference=read_text(ds, "FrameOfReferenceUID"),
                lut=bool(read_items(ds, "ModalityLUTSequence")),
                padding=_padding(ds, frame.signed, frame.bits_allocated),
                kernel=_kernel(ds),
                contrast=_contrast(ds),
                kvp=lenient(read_number, ds, "KVP"),
                scale_slope=scale_slope(ds),
                sequence=lenient(read_texts, ds, "ScanningSequence") or (),
                settings=mr_settings(ds) if frame.modality == "MR" else {},
                acquisition=lenient(read_integer, ds, "AcquisitionNumber"),
                images_in_acquisition=lenient(read_integer, ds, "ImagesInAcquisition"),
                order=_order(ds),
                **_plane(ds),
            )
            if read_value(ds, "PerFrameFunctionalGroupsSequence") is not None:
                return _enhanced(ds, frame)
            if frame.frames > 1:
                raise BadHeader("it is a multi-frame object that does not place its frames")
            if "MOSAIC" in frame.image_type:  # Siemens: the tags place the mosaic, not its tiles
                raise BadHeader("it is a mosaic that shows all slices side by side as one image")
        except BadHeader as bad:
            return [replace(frame, problem=str(bad))]
    return [frame]
