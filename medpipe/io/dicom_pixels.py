"""Stored values of image planes → numbers with a unit (HU for CT).

What the header declares is compared with what the file holds before a byte is
interpreted: size, bits, compressed image size and its end marker.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from medpipe.errors import InputError
from medpipe.io.dicom_header import Frame
from medpipe.io.dicom_tags import DEFLATED, HEADER_CAP, BadHeader, open_dataset, quiet_pydicom
from medpipe.types import Finding, Severity

__all__ = [
    "SYNTAXES",
    "check_form",
    "check_hounsfield",
    "output_dtype",
    "padding_note",
    "read_planes",
]

AIR_HU = -1024
_TISSUE_HU = (-500, 3071)
SLACK = 4 << 20
"""Bytes that a file's tags may take besides its pixels when it is inflated."""

_NATIVE = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",
    DEFLATED: "Deflated Explicit VR Little Endian",
}
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_RLE = "1.2.840.10008.1.2.5"
_JPEG2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_COMPRESSED = {
    _RLE: "RLE Lossless",
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless, first-order prediction",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS Near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}
SYNTAXES = _NATIVE | _COMPRESSED

Progress = Callable[[int, int], None]


def _refuse(what: str, **parts: str) -> InputError:
    return InputError(what, **parts)


def check_form(frames: Sequence[Frame]) -> None:
    """Check that the pixel data of a series has one form and one medpipe can read.

    Raises
    ------
    InputError
        If it is a colour image, an unknown transfer syntax, an impossible
        number of bits, or differs between the slices.
    """
    for name, values in (
        ("PixelRepresentation", {f.signed for f in frames}),
        ("BitsAllocated", {f.bits_allocated for f in frames}),
        ("PhotometricInterpretation", {f.photometric for f in frames}),
    ):
        if len(values) > 1:
            raise _refuse(f"{name} differs between the slices")
    first = frames[0]
    if first.samples != 1 or first.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise _refuse(
            "the slices are colour images",
            expected="one sample per pixel, MONOCHROME1 or MONOCHROME2",
            got=f"{first.samples} samples per pixel",
        )
    for frame in frames:
        if frame.syntax not in SYNTAXES:
            raise _refuse("the transfer syntax is missing or not one medpipe reads")
        if frame.bits_allocated not in (8, 16):
            raise _refuse(
                "BitsAllocated is not supported", expected="8 or 16", got=str(frame.bits_allocated)
            )
        if not 1 <= frame.bits_stored <= frame.bits_allocated:
            raise _refuse("BitsStored is larger than BitsAllocated, or zero")
        if frame.high_bit != frame.bits_stored - 1:
            raise _refuse(
                "HighBit and BitsStored disagree",
                expected=f"HighBit {frame.bits_stored - 1}",
                got=str(frame.high_bit),
            )
        if frame.lut:
            raise _refuse("the slices carry a modality lookup table, which medpipe does not apply")
    _check_rescale(frames)


def _check_rescale(frames: Sequence[Frame]) -> None:
    slopes, intercepts = [f.slope for f in frames], [f.intercept for f in frames]
    absent = slopes.count(None) + intercepts.count(None)
    if absent and (frames[0].modality == "CT" or absent != 2 * len(frames)):
        raise _refuse(
            "RescaleSlope or RescaleIntercept is missing",
            got=f"{slopes.count(None)} of {len(frames)} slices without a slope",
        )
    if any(s == 0 for s in slopes):
        raise _refuse("RescaleSlope is zero")
    if any(abs(v) > 1e9 for v in (*slopes, *intercepts) if v is not None):
        raise _refuse("RescaleSlope or RescaleIntercept is not a possible number")


def _rescale(frame: Frame) -> tuple[float, float]:
    return (
        1.0 if frame.slope is None else frame.slope,
        0.0 if frame.intercept is None else frame.intercept,
    )


def _stored_range(frame: Frame) -> tuple[int, int]:
    top = 1 << frame.bits_stored
    return (-top // 2, top // 2 - 1) if frame.signed else (0, top - 1)


def output_dtype(frames: Sequence[Frame]) -> np.dtype[Any]:
    """Return int16 or int32 when rescaling keeps whole numbers, else float32."""
    low, high = AIR_HU if frames[0].modality == "CT" else 0, 0
    for frame in frames:
        slope, intercept = _rescale(frame)
        if slope != 1 or intercept != int(intercept):
            return np.dtype(np.float32)
        smallest, largest = _stored_range(frame)
        if frame.padding is not None:
            smallest, largest = min(smallest, frame.padding[0]), max(largest, frame.padding[1])
        low, high = min(low, smallest + int(intercept)), max(high, largest + int(intercept))
    for dtype in (np.int16, np.int32):
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return np.dtype(dtype)
    return np.dtype(np.float32)


def _plane_bytes(frame: Frame) -> int:
    return frame.rows * frame.cols * frame.bits_allocated // 8


def _size_in_codestream(stream: bytes, syntax: str) -> tuple[int, int] | None:
    """Return (rows, columns) from the header of a JPEG family code stream."""
    if syntax in _JPEG2000:  # SOC, then SIZ: Lsiz, Rsiz, Xsiz, Ysiz, XOsiz, YOsiz
        if stream[:4] != b"\xff\x4f\xff\x51" or len(stream) < 24:
            return None
        x, y, x0, y0 = (int.from_bytes(stream[i : i + 4], "big") for i in (8, 12, 16, 20))
        return y - y0, x - x0
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return (
                int.from_bytes(stream[at + 5 : at + 7], "big"),
                int.from_bytes(stream[at + 7 : at + 9], "big"),
            )
        at += 1 if marker == 0xFF else 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def _check_codestream(data: bytes, frame: Frame) -> None:
    """Refuse a compressed image that is cut off or of another size than declared.

    Decoders fill what is cut off with zeros and trust the size in the stream.
    """
    stream = get_frame(data, frame.index, number_of_frames=frame.frames)
    if _size_in_codestream(stream, frame.syntax) != (frame.rows, frame.cols):
        raise BadHeader("the compressed image has another size than Rows × Columns")
    if not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise BadHeader("the compressed image is cut off")


def _decode(ds: Dataset, frame: Frame) -> NDArray[Any]:
    """Decompress one plane with pydicom's RLE decoder or GDCM."""
    plugin = "pydicom" if frame.syntax == _RLE else "gdcm"
    decoder = get_decoder(UID(frame.syntax))
    if plugin not in decoder.available_plugins:
        raise _refuse(
            f"no decoder for {SYNTAXES[frame.syntax]} is installed",
            hint='pip install "medpipe[dicom]"',
        )
    try:
        if plugin == "gdcm":
            _check_codestream(ds.PixelData, frame)
        plane, _ = decoder.as_array(ds, index=frame.index, raw=True, decoding_plugin=plugin)
    except BadHeader:
        raise
    except Exception:  # decoders raise many classes, with header text in them
        raise BadHeader("the compressed image cannot be decoded") from None
    if plane.shape != (frame.rows, frame.cols):
        raise BadHeader("the compressed image has another size than Rows × Columns")
    return np.asarray(plane)


def _native(ds: Dataset, frame: Frame) -> NDArray[Any]:
    """View one plane of uncompressed pixel data."""
    data, size = ds.PixelData, _plane_bytes(frame)
    whole = size * frame.frames
    if len(data) < whole:
        raise BadHeader(f"its pixel data is truncated: {len(data)} of {whole} bytes")
    if len(data) > whole + whole % 2:
        raise BadHeader(f"its pixel data has {len(data)} bytes where Rows × Columns need {whole}")
    if frame.syntax == _BIG_ENDIAN and frame.bits_allocated == 8:
        raise BadHeader("8-bit big-endian pixel data is not supported")
    kind = "i" if frame.signed else "u"
    order = ">" if frame.syntax == _BIG_ENDIAN else "<"
    dtype = f"{order}{kind}{frame.bits_allocated // 8}"
    flat = np.frombuffer(data, dtype, frame.rows * frame.cols, offset=frame.index * size)
    return flat.reshape(frame.rows, frame.cols)


def _padded(stored: NDArray[Any], frame: Frame) -> NDArray[np.bool_] | None:
    if frame.padding is None:
        return None
    return (stored >= frame.padding[0]) & (stored <= frame.padding[1])


def _check_bits(stored: NDArray[Any], frame: Frame, padded: NDArray[Any] | None) -> NDArray[Any]:
    """Return stored values within their declared bits; sign-extend where a writer did not."""
    if frame.bits_stored == frame.bits_allocated:
        return stored
    low, high = _stored_range(frame)
    beyond = (stored < low) | (stored > high)
    if padded is not None:
        beyond &= ~padded
    if not beyond.any():
        return stored
    top = 1 << frame.bits_stored
    if frame.signed and stored[beyond].min() >= 0 and stored[beyond].max() < top:
        return np.where(beyond, stored - top, stored).astype(stored.dtype)
    raise BadHeader(f"stored values need more than the {frame.bits_stored} bits of BitsStored")


def _convert(stored: NDArray[Any], frame: Frame, out: NDArray[Any]) -> int:
    """Rescale one plane into `out`; return how many pixels were padding."""
    padded = _padded(stored, frame)
    stored = _check_bits(stored, frame, padded)
    ct = frame.modality == "CT"
    if frame.photometric == "MONOCHROME1" and not ct:
        # the scale is reversed: what is stored as the smallest value shows as white
        low, high = _stored_range(frame)
        stored = (low + high) - stored.astype(np.int32)
    slope, intercept = _rescale(frame)
    if out.dtype.kind == "i":
        np.add(stored, int(intercept), out=out, dtype=np.int32, casting="unsafe")
    else:
        np.copyto(out, stored * np.float64(slope) + intercept, casting="same_kind")
    if padded is None or not ct:
        return 0
    out[padded] = AIR_HU
    return int(padded.sum())


_FORM = ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"]


def _open(path: Path, frame: Frame) -> Dataset:
    size = _plane_bytes(frame) * frame.frames
    on_disk = os.stat(path).st_size
    if frame.syntax in _NATIVE and frame.syntax != DEFLATED and on_disk < size:
        raise BadHeader(f"its pixel data is truncated: the file has {on_disk} of {size} bytes")
    if on_disk > size + 4 * HEADER_CAP:
        raise BadHeader("the file is far larger than its pixels")
    ds = open_dataset(path, pixels=True, cap=size + SLACK)
    if "PixelData" not in ds:
        raise BadHeader("its pixel data is missing or cut off")
    try:
        form = [int(ds[k].value) for k in _FORM]
        data = ds.PixelData
    except Exception:  # pydicom converts on access and raises many classes
        raise BadHeader("its pixel data cannot be interpreted") from None
    if not isinstance(data, bytes):
        raise BadHeader("its pixel data cannot be interpreted")
    seen = [frame.rows, frame.cols, frame.bits_allocated, frame.bits_stored, int(frame.signed)]
    if form != seen:
        raise BadHeader("the file changed while it was read")
    return ds


def read_planes(
    frames: Sequence[Frame],
    out: NDArray[Any],
    where: Sequence[str],
    progress: Progress | None = None,
) -> int:
    """Decode planes into `out`, each file opened once.

    Parameters
    ----------
    frames : sequence of Frame, length N
        Checked by `check_form`.
    out : ndarray, shape (N, rows, cols)
        Filled; of the dtype `output_dtype` gave.
    where : sequence of str, length N
        The name of each plane in messages.
    progress : callable, optional
        Called with (files done, files in all).

    Returns
    -------
    int
        Number of padding pixels of a CT that were set to -1024 HU.

    Raises
    ------
    InputError
        Naming the slice, if one cannot be decoded.
    """
    by_file: dict[Path, list[int]] = defaultdict(list)
    for i, frame in enumerate(frames):
        by_file[frame.path].append(i)
    padded = 0
    for done, (path, members) in enumerate(by_file.items(), 1):
        at = members[0]
        try:
            with quiet_pydicom():
                ds = _open(path, frames[at])
                for at in members:
                    frame = frames[at]
                    plane = (_native if frame.syntax in _NATIVE else _decode)(ds, frame)
                    padded += _convert(plane, frame, out[at])
        except BadHeader as bad:
            raise InputError(f"a slice cannot be read: {bad}", where=where[at]) from None
        except OSError as error:
            what = f"a slice cannot be read: {os.strerror(error.errno or 0)}"
            raise InputError(what, where=where[at]) from None
        if progress is not None:
            progress(done, len(by_file))
    return padded


def padding_note(count: int, frames: Sequence[Frame]) -> Finding:
    """Report the padding of a CT; warn where its value is one that tissue has, too.

    Parameters
    ----------
    count : int
        Pixels that were set to -1024 HU.
    frames : sequence of Frame
        The planes of the volume.
    """
    text = f"{count} padding pixels set to {AIR_HU} HU"
    hu = {v * _rescale(f)[0] + _rescale(f)[1] for f in frames for v in f.padding or ()}
    tissue = sorted(v for v in hu if _TISSUE_HU[0] <= v <= _TISSUE_HU[1])
    if not tissue:
        return Finding("dicom.padding", Severity.INFO, text)
    text += f", but PixelPaddingValue stands for {tissue[0]:g} HU, which tissue has, too"
    return Finding("dicom.padding", Severity.WARNING, text)


def check_hounsfield(data: NDArray[Any]) -> list[Finding]:
    """Look for signs that CT numbers are no Hounsfield units.

    Parameters
    ----------
    data : ndarray
        CT numbers.

    Returns
    -------
    list of Finding
        Warnings: nothing near air, values no scanner produces.
    """
    out = []
    air = np.count_nonzero((data >= -1100) & (data <= -900))
    if air < 1e-3 * data.size:
        text = "less than 0.1 % of the voxels are near -1000 HU: no air in the field of view?"
        out.append(Finding("dicom.hu_air", Severity.WARNING, text))
    low, high = float(data.min()), float(data.max())
    if low < -8192 or high > 32767:
        text = f"CT numbers from {low:g} to {high:g} are no plausible Hounsfield units"
        out.append(Finding("dicom.hu_range", Severity.WARNING, text))
    return out
