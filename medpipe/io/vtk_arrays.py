"""Arrays in VTK's XML files: base64 with a header, optionally zlib blocks, or plain numbers."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree.ElementTree import Element
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, StepError

__all__ = ["Coding", "array_xml", "host_array"]

TYPES = {
    **{f"Int{n}": np.dtype(f"<i{n // 8}") for n in (8, 16, 32, 64)},
    **{f"UInt{n}": np.dtype(f"<u{n // 8}") for n in (8, 16, 32, 64)},
    **{f"Float{n}": np.dtype(f"<f{n // 8}") for n in (32, 64)},
}
NAMES = {dtype: name for name, dtype in TYPES.items()}

_BLOCK = 1 << 20
_LEVEL = 6


def host_array(values: Any) -> NDArray[Any]:
    """Return a numpy array of an array or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _encoded(raw: bytes, compress: bool) -> str:
    if not compress:
        if len(raw) >= 1 << 32:
            raise StepError("an array of the mesh has 4 GiB or more", hint="write it compressed")
        return base64.b64encode(np.uint32(len(raw)).tobytes() + raw).decode()
    blocks = [zlib.compress(raw[i : i + _BLOCK], _LEVEL) for i in range(0, len(raw), _BLOCK)]
    head = np.array([len(blocks), _BLOCK, len(raw) % _BLOCK, *map(len, blocks)], "<u4")
    return (base64.b64encode(head.tobytes()) + base64.b64encode(b"".join(blocks))).decode()


def array_xml(name: str, values: NDArray[Any], *, compress: bool) -> str:
    """Return the ``DataArray`` element of an array (N,) or (N, components)."""
    little = values.astype(values.dtype.newbyteorder("<"))
    kind = NAMES.get(np.dtype("u1") if little.dtype == bool else little.dtype)
    if kind is None or values.ndim not in (1, 2):
        raise StepError(
            "an array of the mesh cannot be written",
            expected=f"(N,) or (N, components) of {', '.join(TYPES)}",
            got=f"{values.dtype}, shape {values.shape}",
        )
    if not 0 < len(name) <= 256 or not name.isprintable():
        raise StepError("the name of an array is no printable text of 1 to 256 characters")
    components = values.shape[1] if values.ndim == 2 else 1
    head = f'type="{kind}" Name={quoteattr(name)} NumberOfComponents="{components}"'
    content = _encoded(np.ascontiguousarray(little).tobytes(), compress)
    return f'<DataArray {head} format="binary">\n{content}\n</DataArray>\n'


@dataclass(frozen=True)
class Coding:
    """How the arrays of one file are written down.

    Parameters
    ----------
    order : {"<", ">"}
        Byte order.
    header : numpy dtype
        Type of the lengths in front of an array.
    compressed : bool
        Whether arrays are zlib blocks.
    appended : str
        The arrays at the end of the file, base64.
    max_bytes : int
        Largest array.
    """

    order: Literal["<", ">"]
    header: np.dtype[Any]
    compressed: bool
    appended: str
    max_bytes: int

    @classmethod
    def of(cls, root: Element, max_bytes: int) -> Coding:
        """Return the coding that the root element declares."""
        compressor = root.get("compressor")
        if compressor not in (None, "", "vtkZLibDataCompressor"):
            raise InputError(
                "the VTP file is compressed in a way that is not read",
                expected="zlib or none",
                hint="save it again with another compressor",
            )
        order: Literal["<", ">"] = ">" if root.get("byte_order") == "BigEndian" else "<"
        header = np.dtype(f"{order}u{8 if root.get('header_type') == 'UInt64' else 4}")
        last = root.find("AppendedData")
        text = "" if last is None else (last.text or "").strip()
        return cls(order, header, bool(compressor), text.removeprefix("_"), max_bytes)

    def read(self, element: Element) -> NDArray[Any]:
        """Return the values of a ``DataArray`` or ``Array`` element, one axis."""
        kind = element.get("type", "")
        dtype = TYPES["UInt8"] if kind == "String" else TYPES.get(kind)
        if dtype is None:
            raise _wrong("an array has an unknown type")
        text, form = element.text or "", element.get("format", "ascii")
        if form == "ascii":
            try:
                return np.array(text.split(), dtype=dtype)
            except (ValueError, OverflowError):
                raise _wrong("an array holds something that is no number") from None
        start = 0
        if form == "appended":
            offset = element.get("offset", "")
            if not offset.isascii() or not offset.isdigit() or len(offset) > 15:
                raise _wrong("an array does not say where it begins")
            text, start = self.appended, int(offset)
        elif form == "binary":
            text = "".join(text.split())
        else:
            raise _wrong("an array has an unknown format")
        raw = self._inflate(text, start) if self.compressed else self._plain(text, start)
        if len(raw) % dtype.itemsize:
            raise _wrong("an array is cut short")
        return np.frombuffer(raw, dtype.newbyteorder(self.order)).astype(dtype)

    def _plain(self, text: str, start: int) -> bytes:
        size = self.header.itemsize
        length = self._lengths(text, start, 1)[0]
        return self._take(text, start, size + length)[size:]

    def _inflate(self, text: str, start: int) -> bytes:
        count, block, last = self._lengths(text, start, 3)
        if count == 0:
            return b""
        if count * block > self.max_bytes or last > block:
            raise _wrong("an array is too large")
        sizes = self._lengths(text, start, 3 + count)[3:]
        start += _characters((3 + count) * self.header.itemsize)
        packed = self._take(text, start, sum(sizes))
        parts, at = [], 0
        for i, size in enumerate(sizes):
            expected = last if last and i == count - 1 else block
            parts.append(_unpacked(packed[at : at + size], expected))
            at += size
        return b"".join(parts)

    def _lengths(self, text: str, start: int, count: int) -> list[int]:
        raw = self._take(text, start, count * self.header.itemsize)
        return [int(n) for n in np.frombuffer(raw, self.header)]

    def _take(self, text: str, start: int, count: int) -> bytes:
        """Decode the first `count` bytes of the base64 text that begins at `start`."""
        try:
            raw = base64.b64decode(text[start : start + _characters(count)], validate=True)
        except (binascii.Error, ValueError):
            raise _wrong("an array is no base64") from None
        if len(raw) < count:
            raise _wrong("an array is cut short")
        return raw[:count]


def _characters(count: int) -> int:
    return 4 * math.ceil(count / 3)


def _unpacked(packed: bytes, expected: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(packed, expected + 1)
    except zlib.error:
        raise _wrong("the compressed data are damaged") from None
    if len(raw) != expected or not stream.eof:
        raise _wrong("a compressed block has another size than it declares")
    return raw


def _wrong(what: str) -> InputError:
    return InputError(f"the VTP file cannot be used: {what}")
