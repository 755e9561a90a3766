"""Reading the tags medpipe uses, and no others, out of one DICOM file.

Names, dates of birth and private tags are never parsed, so they cannot leak; the
one exception is the number by which Philips scales MR values.
pydicom's own warnings and exceptions quote header values; neither passes here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.tag import Tag

__all__ = [
    "DEFLATED",
    "HEADER_CAP",
    "PHILIPS_CREATOR",
    "PHILIPS_SLOPE",
    "BadHeader",
    "lenient",
    "open_dataset",
    "quiet_pydicom",
    "read_integer",
    "read_items",
    "read_number",
    "read_numbers",
    "read_positive",
    "read_required",
    "read_text",
    "read_texts",
    "read_value",
]

T = TypeVar("T")

DEFLATED = "1.2.840.10008.1.2.1.99"
HEADER_CAP = 32 << 20
"""Most bytes a deflated header is inflated to."""

_PIXEL_TAGS = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
]
_HEADER_TAGS = (
    *_PIXEL_TAGS,
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "SeriesNumber",
    "SeriesDescription",
    "InstanceNumber",
    "AcquisitionNumber",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "ContentTime",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "FlipAngle",
    "ScanningSequence",
    "ImageType",
    "ComplexImageComponent",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "KVP",
    "ImagesInAcquisition",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
PHILIPS_CREATOR = Tag(0x2005, 0x0010)
PHILIPS_SLOPE = Tag(0x2005, 0x100E)
"""Where Philips says that the block of private tags is its own, and its scale slope."""

_PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_DATA_TAGS = frozenset(Tag(k) for k in _PIXEL_DATA)


class BadHeader(Exception):  # noqa: N818 - never leaves this part of the package
    """A header cannot be used; the text is ours and holds no header value."""


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom from warning or logging, since its texts quote header values."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _at_pixels(tag: Any, vr: str | None, length: int) -> bool:
    return tag in _PIXEL_DATA_TAGS


def _inflate(path: Path, cap: int, whole: bool) -> tuple[bytes, Dataset]:
    """Return the inflated data set, at most `cap` bytes of it, and the file meta group."""
    meta = read_file_meta_info(path)
    with open(path, "rb") as f:
        f.seek(128 + 4 + 12 + int(meta["FileMetaInformationGroupLength"].value))
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        content = engine.decompress(f.read(), cap)
    if whole and not engine.eof:
        raise BadHeader("the deflated data set is truncated or larger than its header declares")
    return content, meta


def open_dataset(path: Path, *, pixels: bool, cap: int = HEADER_CAP) -> Dataset:
    """Parse the tags medpipe uses out of one DICOM file.

    Parameters
    ----------
    path : Path
        A file that starts like DICOM.
    pixels : bool
        Whether to read the pixel data too.
    cap : int
        Most bytes to inflate from a deflated data set.

    Raises
    ------
    BadHeader
        If the file cannot be parsed.
    """
    tags = [*_HEADER_TAGS, PHILIPS_CREATOR, PHILIPS_SLOPE, *(_PIXEL_DATA if pixels else ())]
    try:
        with quiet_pydicom():
            with open(path, "rb") as f:
                deflated = DEFLATED.encode() in f.read(1024)
            if not deflated:
                return dcmread(path, stop_before_pixels=not pixels, specific_tags=tags)
            content, meta = _inflate(path, cap, pixels)
            ds = read_dataset(
                io.BytesIO(content),
                is_implicit_VR=False,
                is_little_endian=True,
                stop_when=None if pixels else _at_pixels,
                specific_tags=[Tag(t) for t in tags],
            )
            ds.file_meta = meta  # type: ignore[assignment]
            return ds
    except BadHeader:
        raise
    except RecursionError:
        raise BadHeader("its sequences are nested too deeply") from None
    except MemoryError:
        raise BadHeader("an element declares more bytes than there is memory") from None
    except Exception:  # pydicom raises many classes, with header text in them
        raise BadHeader("it cannot be parsed as DICOM") from None


def read_value(ds: Dataset, keyword: str) -> Any:
    """Return the value of a tag, None if it is absent or empty."""
    try:
        value = ds.get(keyword)
    except RecursionError:
        raise BadHeader("its sequences are nested too deeply") from None
    except Exception:
        raise BadHeader(f"{keyword} cannot be read") from None
    return None if value is None or (isinstance(value, str | bytes) and not value) else value


def read_numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return the `count` finite numbers of a tag, None if it is absent."""
    value = read_value(ds, keyword)
    if value is None:
        return None
    try:
        parts = value.split("\\") if isinstance(value, str) else value
        parts = list(parts) if hasattr(parts, "__iter__") else [parts]
        numbers = tuple(float(p) for p in parts)
    except (TypeError, ValueError):
        raise BadHeader(f"{keyword} is not a number") from None
    if not numbers:
        return None
    if len(numbers) != count:
        raise BadHeader(f"{keyword} holds {len(numbers)} numbers, not {count}")
    if not all(map(math.isfinite, numbers)):
        raise BadHeader(f"{keyword} is not a finite number")
    return numbers


def read_number(ds: Dataset, keyword: str) -> float | None:
    """Return the one finite number of a tag, None if it is absent."""
    numbers = read_numbers(ds, keyword, 1)
    return None if numbers is None else numbers[0]


def read_integer(ds: Dataset, keyword: str, default: int | None = None) -> int | None:
    """Return the whole number of a tag, `default` if it is absent."""
    number = read_number(ds, keyword)
    if number is None:
        return default
    if number != int(number):
        raise BadHeader(f"{keyword} is not a whole number")
    return int(number)


def read_required(ds: Dataset, keyword: str) -> int:
    """Return the whole number of a tag that must be there."""
    number = read_integer(ds, keyword)
    if number is None:
        raise BadHeader(f"{keyword} is missing")
    return number


def read_text(ds: Dataset, keyword: str) -> str:
    """Return the text of a tag without blanks around it, "" if it is absent."""
    value = read_value(ds, keyword)
    return "" if value is None else str(value).strip()


def read_texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the texts of a tag in capitals, none if it is absent."""
    value = read_value(ds, keyword)
    if value is None:
        return ()
    parts = value.split("\\") if isinstance(value, str) else value
    return tuple(str(p).strip().upper() for p in parts) if hasattr(parts, "__iter__") else ()


def lenient(read: Any, ds: Dataset, keyword: str) -> Any:
    """Read a tag that only describes: one that cannot be read counts as absent."""
    try:
        return read(ds, keyword)
    except BadHeader:
        return None


def read_items(ds: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence, none if it is absent."""
    value = read_value(ds, keyword)
    items = [] if value is None else list(value) if hasattr(value, "__iter__") else None
    if items is None or not all(isinstance(i, Dataset) for i in items):
        raise BadHeader(f"{keyword} is not a sequence")
    return items


def read_positive(ds: Dataset, keyword: str) -> float | None:
    """Return the positive number of a tag, None if it is absent, damaged or not positive."""
    number = lenient(read_number, ds, keyword)
    return abs(number) if number else None
