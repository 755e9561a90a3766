"""Writes DICOM series whose voxels are a known function of the patient position.

`value(points)` gives the number at RAS+ mm positions, so every volume that is
assembled from such a series can be compared with the closed form at the
positions its affine claims. `spoil` functions turn a good series into a bad one.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
LPS = np.array([-1.0, -1.0, 1.0])
CANARY = "ZZCANARY^NAME"


def ramp(points: np.ndarray) -> np.ndarray:
    """Linear in the position: linear interpolation reproduces it exactly."""
    p = np.asarray(points, float)
    return 40 + 1.5 * p[..., 0] - 2.0 * p[..., 1] + 2.5 * p[..., 2]


def ball(points: np.ndarray) -> np.ndarray:
    """The ramp with an ellipsoid in it, 300 above."""
    p = (np.asarray(points, float) - (8, -6, 9)) / (9, 7, 6)
    return ramp(points) + 300.0 * ((p**2).sum(-1) < 1)


def tilted(deg: float) -> tuple[float, ...]:
    """ImageOrientationPatient of a gantry tilted about the left-right axis."""
    c, s = np.cos(np.radians(deg)), np.sin(np.radians(deg))
    return (1.0, 0.0, 0.0, 0.0, float(c), float(-s))


def plane_points(
    origin: Sequence[float], iop: Sequence[float], spacing: Sequence[float], rows: int, cols: int
) -> np.ndarray:
    """RAS+ mm positions of a plane's pixels, shape (rows, cols, 3), straight from PS3.3 C.7.6.2."""
    j, i = np.mgrid[:rows, :cols]
    lps = (
        np.asarray(origin, float)
        + i[..., None] * spacing[1] * np.asarray(iop[:3], float)
        + j[..., None] * spacing[0] * np.asarray(iop[3:], float)
    )
    return lps * LPS


def line(n: int, step: Sequence[float] = (0, 0, 3.0), start: Sequence[float] = (-9, -4, 2)) -> list:
    """`n` slice origins (LPS mm) at even steps."""
    return [tuple(np.asarray(start, float) + k * np.asarray(step, float)) for k in range(n)]


def _meta(sop_class: str, instance: str, syntax: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = syntax
    return meta


def _common(modality: str, series: str, study: str, number: int) -> Dataset:
    ds = Dataset()
    ds.PatientName = CANARY
    ds.PatientID = "ZZCANARYMRN"
    ds.PatientBirthDate = "19010203"
    ds.StudyDate = "20010101"
    ds.StudyInstanceUID = study
    ds.SeriesInstanceUID = series
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[study])
    ds.Modality = modality
    ds.SeriesNumber = number
    ds.SeriesDescription = "ZZCANARY description"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    return ds


def _text(number: float) -> str:
    return f"{number:.10g}"[:16]


def write_dataset(path: Path, ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a data set as a DICOM file, whatever is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.file_meta = _meta(ds.SOPClassUID, ds.SOPInstanceUID, syntax)
    ds.preamble = bytes(128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcmwrite(path, ds, enforce_file_format=True)
    return path


def stored(values: np.ndarray, slope: float, intercept: float, dtype: str) -> np.ndarray:
    """The stored integers for values in rescaled units."""
    info = np.iinfo(dtype)
    out = np.rint((values - intercept) / slope)
    assert info.min <= out.min() <= out.max() <= info.max
    return out.astype(dtype)


def write_series(
    folder: Path,
    origins: Sequence[Sequence[float]],
    *,
    value: Callable[[np.ndarray], np.ndarray] = ramp,
    iop: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (1.5, 2.0),
    size: tuple[int, int] = (14, 12),
    modality: str = "CT",
    rescale: Callable[[int], tuple[float, float]] = lambda k: (1.0, -1024.0),
    dtype: str = "uint16",
    bits: int = 16,
    number: int = 3,
    series: str | None = None,
    study: str | None = None,
    syntax: str = ExplicitVRLittleEndian,
    name: Callable[[int], str] = lambda k: f"{k:03d}.dcm",
    edit: Callable[[Dataset, int], None] | None = None,
) -> list[Path]:
    """Write one single-frame file per origin (LPS mm); `edit` may change each before writing."""
    series, study = series or generate_uid(), study or generate_uid()
    rows, cols = size
    paths = []
    for k, origin in enumerate(origins):
        ds = _common(modality, series, study, number)
        ds.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        ds.SOPInstanceUID = generate_uid()
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber = k + 1
        ds.ImagePositionPatient = [_text(v) for v in origin]
        ds.ImageOrientationPatient = [_text(v) for v in iop]
        ds.PixelSpacing = [_text(v) for v in spacing]
        ds.SliceThickness = "3"
        ds.Rows, ds.Columns = rows, cols
        ds.BitsAllocated = np.dtype(dtype).itemsize * 8
        ds.BitsStored = bits if ds.BitsAllocated == 16 else 8
        ds.HighBit = ds.BitsStored - 1
        ds.PixelRepresentation = int(np.dtype(dtype).kind == "i")
        slope, intercept = rescale(k)
        ds.RescaleSlope, ds.RescaleIntercept = _text(slope), _text(intercept)
        points = plane_points(ds.ImagePositionPatient, ds.ImageOrientationPatient, spacing, *size)
        pixels = stored(value(points), slope, intercept, dtype)
        if syntax == ExplicitVRBigEndian:
            pixels = pixels.astype(pixels.dtype.newbyteorder(">"))
        ds.PixelData = pixels.tobytes()
        ds["PixelData"].VR = "OW"
        if edit is not None:
            edit(ds, k)
        paths.append(write_dataset(folder / name(k), ds, syntax))
    return paths


def write_enhanced(
    path: Path,
    frames: Sequence[dict[str, Any]],
    *,
    value: Callable[..., np.ndarray] = ramp,
    spacing: Sequence[float] = (1.5, 2.0),
    size: tuple[int, int] = (14, 12),
    modality: str = "MR",
    shared: Sequence[str] = ("spacing",),
    edit: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write a multi-frame object.

    Each frame is a dict with `origin`, `iop` and optionally `stack`, `time`,
    `slope`, `intercept`, `echo`; `value` gets `time=` when the frame has one.
    """
    ds = _common(modality, generate_uid(), generate_uid(), 7)
    ds.SOPClassUID = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.Rows, ds.Columns = size
    ds.NumberOfFrames = len(frames)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    measures, common = Dataset(), Dataset()
    measures.PixelSpacing = [_text(v) for v in spacing]
    if "spacing" in shared:
        common.PixelMeasuresSequence = DicomSequence([measures])
    ds.SharedFunctionalGroupsSequence = DicomSequence([common])
    groups, planes = [], []
    for f in frames:
        group = Dataset()
        position, orientation, content, transform = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [_text(v) for v in f["origin"]]
        orientation.ImageOrientationPatient = [_text(v) for v in f["iop"]]
        content.StackID = str(f.get("stack", "1"))
        if "time" in f:
            content.TemporalPositionIndex = f["time"]
        slope, intercept = f.get("slope", 0.1), f.get("intercept", 0.0)
        transform.RescaleSlope, transform.RescaleIntercept = _text(slope), _text(intercept)
        transform.RescaleType = "US"
        group.PlanePositionSequence = DicomSequence([position])
        group.PlaneOrientationSequence = DicomSequence([orientation])
        group.FrameContentSequence = DicomSequence([content])
        group.PixelValueTransformationSequence = DicomSequence([transform])
        if "spacing" not in shared:
            group.PixelMeasuresSequence = DicomSequence([measures])
        groups.append(group)
        points = plane_points(f["origin"], f["iop"], spacing, *size)
        values = value(points, time=f["time"]) if "time" in f else value(points)
        planes.append(stored(values, slope, intercept, "int16"))
    ds.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
    ds.PixelData = np.stack(planes).tobytes()
    ds["PixelData"].VR = "OW"
    if edit is not None:
        edit(ds)
    return write_dataset(path, ds)


def deflate_bomb(path: Path, inflated: int) -> Path:
    """A small deflated file whose pixel data is `inflated` zero bytes, against 64 × 64 declared."""
    small = write_series(path.parent / "seed", line(1), size=(64, 64))[0]
    raw = small.read_bytes()
    small.unlink()
    small.parent.rmdir()
    meta_end = 144 + struct.unpack("<I", raw[140:144])[0]
    data_at = raw.index(struct.pack("<HH2sH", 0x7FE0, 0x0010, b"OW", 0))
    meta = raw[:meta_end].replace(
        struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0",
        struct.pack("<HH2sH", 2, 0x10, b"UI", 22) + b"1.2.840.10008.1.2.1.99",
    )
    meta = meta[:140] + struct.pack("<I", len(meta) - 144) + meta[144:]
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = engine.compress(raw[meta_end:data_at])
    body += engine.compress(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, inflated))
    # after a full flush the same input gives the same bytes: compress one chunk and repeat it
    body += engine.flush(zlib.Z_FULL_FLUSH)
    chunk = engine.compress(bytes(1 << 20)) + engine.flush(zlib.Z_FULL_FLUSH)
    body += chunk * (inflated >> 20)
    path.write_bytes(meta + body + engine.flush())
    return path


def nested_sequences(path: Path, depth: int) -> Path:
    """Insert a sequence that holds a sequence, `depth` times, of undefined length, before Rows."""
    raw = path.read_bytes()
    at = raw.index(struct.pack("<HH2sH", 0x0028, 0x0002, b"US", 2))
    opening = struct.pack("<HH2sHI", 0x0020, 0x9FFF, b"SQ", 0, 0xFFFFFFFF)
    opening += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    path.write_bytes(raw[:at] + opening * depth + closing * depth + raw[at:])
    return path


def truth_error(volume: Any, value: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """|volume - value| at the RAS+ mm positions the volume's affine claims, shape (I, J, K)."""
    index = np.stack(np.indices(volume.data.shape[:3]), -1).astype(float)
    points = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return np.abs(volume.data.astype(float) - value(points))


__all__ = [
    "AXIAL",
    "CANARY",
    "ImplicitVRLittleEndian",
    "ball",
    "deflate_bomb",
    "line",
    "nested_sequences",
    "plane_points",
    "ramp",
    "tilted",
    "truth_error",
    "write_dataset",
    "write_enhanced",
    "write_series",
]
