"""NIfTI files made byte by byte, valid and broken, without any NIfTI library.

`Nifti` writes the header with `struct` from the published layouts, so that
what a test expects does not come from the reader under test. `BROKEN_HEADERS`
and `BROKEN_FILES` hold one entry for each way a file can be wrong.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

NAN, INF = math.nan, math.inf

LAYOUT_1 = "i10s18sihcB8h3fhhhh8ffffhBBffffii80s24shh3f3f12f16s4s"
LAYOUT_2 = "i8shh8q3d8dqddddddqq80s24sii3d3d12diii16sB15s"
CANARY = b"ZZCANARY"

STEP = (0.75, 0.5, 2.0)
ORIGIN = (-10.0, 20.0, 30.0)
SFORM = (0.75, 0, 0, -10.0, 0, 0.5, 0, 20.0, 0, 0, 2.0, 30.0)
AFFINE = np.array([*SFORM, 0, 0, 0, 1]).reshape(4, 4)


def gradient(shape: tuple[int, ...] = (5, 4, 3), dtype: str = "int16") -> np.ndarray:
    """An image with a different value in every voxel."""
    return (np.arange(math.prod(shape)) - 7).reshape(shape, order="F").astype(dtype)


@dataclass(frozen=True)
class Nifti:
    """Every field of a header that matters, and what follows it."""

    version: int = 1
    order: str = "<"
    dim: tuple[int, ...] = (3, 5, 4, 3, 1, 1, 1, 1)
    datatype: int = 4
    bitpix: int = 16
    pixdim: tuple[float, ...] = (1, *STEP, 0, 0, 0, 0)
    vox_offset: float | None = None
    slope: float = 1.0
    inter: float = 0.0
    units: int = 2
    qform_code: int = 1
    sform_code: int = 1
    quatern: tuple[float, ...] = (0, 0, 0)
    qoffset: tuple[float, ...] = ORIGIN
    srow: tuple[float, ...] = SFORM
    magic: bytes | None = None
    size_field: bytes | None = None
    text: bytes = b""
    extender: bytes = b"\0\0\0\0"
    extensions: bytes = b""
    data: np.ndarray = field(default_factory=gradient)

    def header(self) -> bytes:
        """The 348 or 540 bytes."""
        t, offset = self.text, self.vox_offset
        if offset is None:
            offset = (352 if self.version == 1 else 544) + len(self.extensions)
        scale = (self.slope, self.inter)
        place = (*self.quatern, *self.qoffset, *self.srow)
        if self.version == 1:
            head = struct.pack(
                self.order + LAYOUT_1,
                *(348, t, t, 0, 0, b"r", 0, *self.dim, 0, 0, 0, 0),
                *(self.datatype, self.bitpix, 0, *self.pixdim, offset, *scale),
                *(0, 0, self.units, 0, 0, 0, 0, 0, 0, t, t),
                *(self.qform_code, self.sform_code, *place, t, self.magic or b"n+1\0"),
            )
        else:
            head = struct.pack(
                self.order + LAYOUT_2,
                *(540, self.magic or b"n+2\0\r\n\x1a\n", self.datatype, self.bitpix, *self.dim),
                *(0, 0, 0, *self.pixdim, int(offset), *scale, 0, 0, 0, 0, 0, 0, t, t),
                *(self.qform_code, self.sform_code, *place, 0, self.units, 0, t, 0, b""),
            )
        return (self.size_field or head[:4]) + head[4:]

    def bytes(self) -> bytes:
        """The whole file, not compressed."""
        voxels = self.data.astype(self.data.dtype.newbyteorder(self.order)).tobytes(order="F")
        return self.header() + self.extender + self.extensions + voxels

    def write(self, path: Path) -> Path:
        """Write the file, compressed where the name says so."""
        content = self.bytes()
        path.write_bytes(gz(content) if path.name.endswith(".gz") else content)
        return path


def gz(content: bytes) -> bytes:
    """One gzip member, as small as it gets."""
    out = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, out, mtime=0) as f:
        f.write(content)
    return out.getvalue()


def typed(dtype: str, code: int, **fields: Any) -> dict[str, Any]:
    """Fields for another data type."""
    data = gradient(dtype=dtype)
    return {"datatype": code, "bitpix": data.itemsize * 8, "data": data, **fields}


def shaped(*shape: int) -> dict[str, Any]:
    """Fields for another shape."""
    dim = (len(shape), *shape, *(1,) * (7 - len(shape)))
    return {"dim": dim, "data": gradient(shape)}


def floats(**at: float) -> dict[str, Any]:
    """Fields for float32 voxels with some values set, e.g. ``v3=NAN``."""
    fields = typed("float32", 16)
    for name, value in at.items():
        fields["data"].reshape(-1, order="A")[int(name[1:])] = value
    return fields


@dataclass(frozen=True)
class Broken:
    """One broken header: what is wrong, what the error must say, and which repair it has."""

    id: str
    fields: dict[str, Any]
    says: str
    fix: str | None = None
    only: int | None = None  # the NIfTI version that can express it
    affine: np.ndarray | None = None  # after the repair; default: AFFINE
    data: np.ndarray | None = None  # after the repair; default: as written

    def make(self, version: int) -> Nifti:
        """The file in one NIfTI version."""
        return replace(Nifti(version=version), **self.fields)


def _srow(index: int, *values: float) -> dict[str, Any]:
    rows = list(SFORM)
    rows[index : index + len(values)] = values
    return {"srow": tuple(rows)}


def _pixdim(index: int, value: float, **fields: Any) -> dict[str, Any]:
    values = [1, *STEP, 0, 0, 0, 0]
    values[index] = value
    return {"pixdim": tuple(values), **fields}


def _nan_to_zero(*index: int) -> np.ndarray:
    data = gradient(dtype="float32")
    data.reshape(-1, order="A")[list(index)] = 0
    return data


_ONE_MM = np.diag([0.75, 0.5, 1.0, 1.0])
_ONE_MM[:3, 3] = ORIGIN
_SHIFTED = AFFINE.copy()
_SHIFTED[0, 3] += 5
_EXT = b"\x01\0\0\0"

BROKEN_HEADERS = [
    Broken("ndim_0", {"dim": (0, 5, 4, 3, 1, 1, 1, 1)}, "0 axes"),
    Broken("ndim_9", {"dim": (9, 5, 4, 3, 1, 1, 1, 1)}, "9 axes"),
    Broken("ndim_negative", {"dim": (-3, 5, 4, 3, 1, 1, 1, 1)}, "-3 axes"),
    Broken("dim_0", {"dim": (3, 5, 0, 3, 1, 1, 1, 1)}, "5 × 0 × 3"),
    Broken("dim_negative", {"dim": (3, 5, -1, 3, 1, 1, 1, 1)}, "5 × -1 × 3"),
    Broken("dim_huge", {"dim": (3, 30000, 30000, 30000, 1, 1, 1, 1)}, "at most 8 GiB"),
    Broken("dim_overflow", {"dim": (3, 2**62, 2**62, 4, 1, 1, 1, 1)}, "at most 8 GiB", only=2),
    Broken("dim_smaller_than_data", {"dim": (3, 5, 4, 2, 1, 1, 1, 1)}, "goes on after its last"),
    Broken("dim_larger_than_data", {"dim": (3, 5, 4, 4, 1, 1, 1, 1)}, "truncated"),
    Broken("image_2d", shaped(5, 4), "2 axes", "nifti.ndim", data=gradient((5, 4, 1))),
    Broken("image_4d", shaped(5, 4, 3, 2), "4 axes"),
    Broken("image_4d_one", shaped(5, 4, 3, 1), "4 axes", "nifti.ndim", data=gradient()),
    Broken("image_5d", shaped(5, 4, 3, 1, 3), "5 axes"),
    Broken("image_5d_one", shaped(5, 4, 3, 1, 1), "5 axes", "nifti.ndim", data=gradient()),
    Broken("datatype_0", {"datatype": 0}, "unknown type"),
    Broken("datatype_unknown", {"datatype": 7}, "undefined code 7"),
    Broken("datatype_negative", {"datatype": -4}, "undefined code -4"),
    Broken("datatype_bit", {"datatype": 1, "bitpix": 1}, "one bit"),
    Broken("datatype_rgb", {"datatype": 128, "bitpix": 24}, "RGB colour"),
    Broken("datatype_rgba", {"datatype": 2304, "bitpix": 32}, "RGBA colour"),
    Broken("datatype_float128", {"datatype": 1536, "bitpix": 128}, "128-bit"),
    Broken("datatype_complex256", {"datatype": 2048, "bitpix": 256}, "256-bit"),
    Broken("bitpix", {"bitpix": 8}, "8 bits for int16", "nifti.bitpix"),
    Broken("bitpix_negative", {"bitpix": -16}, "-16 bits for int16", "nifti.bitpix"),
    Broken("offset_0", {"vox_offset": 0}, "start at byte 0"),
    Broken("offset_in_header", {"vox_offset": 340}, "start at byte 340"),
    Broken("offset_negative", {"vox_offset": -352}, "start at byte -352"),
    Broken("offset_half", {"vox_offset": 352.5}, "start at byte 352.5", only=1),
    Broken("offset_nan", {"vox_offset": NAN}, "start at byte nan", only=1),
    Broken("offset_inf", {"vox_offset": INF}, "start at byte inf", only=1),
    Broken("offset_past_end", {"vox_offset": 4096}, "truncated"),
    Broken("offset_far", {"vox_offset": 2**30}, "start at byte"),
    Broken("slope_0", {"slope": 0, "inter": 5}, "slope 0, intercept 5", "nifti.scl_slope"),
    Broken("slope_nan", {"slope": NAN, "inter": 5}, "slope nan", "nifti.scl_slope"),
    Broken("slope_inf", {"slope": INF, "inter": 5}, "slope inf", "nifti.scl_slope"),
    Broken("inter_nan", {"slope": 2, "inter": NAN}, "intercept nan", "nifti.scl_slope"),
    Broken("inter_inf", {"slope": 2, "inter": -INF}, "intercept -inf", "nifti.scl_slope"),
    Broken("slope_overflows", {"slope": 3e38}, "NaN or infinite"),
    Broken("pixdim_0", _pixdim(3, 0), "spacing (pixdim) is zero", "nifti.zero_pixdim"),
    Broken(
        "pixdim_0_no_sform",
        _pixdim(3, 0, sform_code=0),
        "spacing (pixdim) is zero",
        "nifti.zero_pixdim",
        affine=_ONE_MM,
    ),
    Broken("pixdim_negative", _pixdim(1, -0.75), "is negative", "nifti.negative_pixdim"),
    Broken(
        "pixdim_negative_no_sform",
        _pixdim(1, -0.75, sform_code=0),
        "is negative",
        "nifti.negative_pixdim",
    ),
    Broken("pixdim_nan", _pixdim(2, NAN), "NaN or infinite", "nifti.pixdim_finite"),
    Broken("pixdim_inf", _pixdim(2, INF), "NaN or infinite", "nifti.pixdim_finite"),
    Broken("pixdim_tiny", _pixdim(2, 1e-9), "outside 0.001..1000", "nifti.affine_spacing"),
    Broken("pixdim_huge", _pixdim(2, 1e6), "outside 0.001..1000", "nifti.affine_spacing"),
    Broken("pixdim_tiny_no_sform", _pixdim(2, 1e-9, sform_code=0), "outside 0.001..1000"),
    Broken("qfac", _pixdim(0, 0.5), "handedness", "nifti.qform_quaternion"),
    Broken("qfac_nan", _pixdim(0, NAN), "handedness", "nifti.qform_quaternion"),
    Broken("sform_nan", _srow(5, NAN), "sform is not usable", "nifti.affine_finite"),
    Broken("sform_inf", _srow(3, INF), "sform is not usable", "nifti.affine_finite"),
    Broken("sform_nan_alone", {**_srow(5, NAN), "qform_code": 0}, "sform is not usable"),
    Broken("sform_zero", _srow(0, *(0,) * 12), "singular", "nifti.affine_singular"),
    Broken("sform_zero_axis", _srow(10, 0), "singular", "nifti.affine_singular"),
    Broken("sform_coplanar", _srow(8, 0, 1.0, 0), "singular", "nifti.affine_singular"),
    Broken("sform_zero_alone", {**_srow(10, 0), "qform_code": 0}, "singular"),
    Broken("sform_giant", _srow(0, 1e30), "outside 0.001..1000", "nifti.affine_spacing"),
    Broken("qform_nan", {"quatern": (NAN, 0, 0)}, "qform is not usable", "nifti.affine_finite"),
    Broken("qform_nan_alone", {"quatern": (NAN, 0, 0), "sform_code": 0}, "qform is not usable"),
    Broken("qoffset_nan", {"qoffset": (0, NAN, 0)}, "qform is not usable", "nifti.affine_finite"),
    Broken("qform_long", {"quatern": (1, 1, 0)}, "longer than one", "nifti.qform_quaternion"),
    Broken("qform_long_alone", {"quatern": (1, 1, 0), "sform_code": 0}, "longer than one"),
    Broken("code_negative", {"sform_code": -1}, "must lie in 0..5", "nifti.xform_code"),
    Broken("code_unknown", {"qform_code": 99}, "must lie in 0..5", "nifti.xform_code"),
    Broken(
        "forms_disagree",
        {"qoffset": (-5.0, 20.0, 30.0)},
        "up to 5 mm apart",
        "nifti.sform_qform_disagree",
    ),
    Broken("units_undefined", {"units": 5}, "unit of length", "nifti.units"),
    Broken(
        "extension_0",
        {"extender": _EXT, "extensions": bytes(4) + b"\x04\0\0\0" + bytes(8)},
        "extension 1 claims a size of 0",
        "nifti.extension",
    ),
    Broken(
        "extension_negative",
        {"extender": _EXT, "extensions": b"\xf0\xff\xff\xff" + b"\x04" * 12},
        "extension 1 claims a size of -16",
        "nifti.extension",
    ),
    Broken(
        "extension_huge",
        {"extender": _EXT, "extensions": b"\xf0\xff\xff\x7f" + b"\x04" * 12},
        "extension 1 claims a size of 2147483632",
        "nifti.extension",
    ),
    Broken(
        "voxels_nan",
        floats(v3=NAN, v8=NAN, v9=-INF),
        "5 % of the voxels (3)",
        "nifti.voxels_finite",
        data=_nan_to_zero(3, 8, 9),
    ),
    Broken(
        "voxels_all_nan", {**typed("float32", 16), "data": np.full((5, 4, 3), NAN, "f4")}, "all"
    ),
    Broken("bad_magic", {"magic": b"n?1\0" + b"\r\n\x1a\n"}, "not a NIfTI image"),
    Broken("text_mode_magic", {"magic": b"n+2\0\n\n\x1a\n"}, "not a NIfTI image", only=2),
    Broken("analyze", {"magic": b"\0" * 8}, "ANALYZE"),
    Broken("pair", {"magic": b"ni1\0"}, ".hdr/.img pair", only=1),
    Broken("pair_2", {"magic": b"ni2\0\r\n\x1a\n"}, ".hdr/.img pair", only=2),
    Broken("size_swapped", {"size_field": b"\0\0\x01\x5c"}, "", only=1),
    Broken("size_wrong", {"size_field": b"\x5d\x01\0\0"}, "not a NIfTI image"),
]

PNG = b"\x89PNG\r\n\x1a\n" + bytes(400)
DICOM = bytes(128) + b"DICM" + bytes(400)


def broken_files() -> dict[str, tuple[Callable[[Path], Path], str]]:
    """Files that are wrong as files: id → (maker in a folder, what the error must say)."""
    whole = Nifti().bytes()
    packed = gz(whole)

    def put(name: str, content: bytes) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            (folder / name).write_bytes(content)
            return folder / name

        return make

    def link(target: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            (folder / "a.nii").symlink_to(target)
            return folder / "a.nii"

        return make

    def fifo(folder: Path) -> Path:
        os.mkfifo(folder / "a.nii")
        return folder / "a.nii"

    def folder_named_nii(folder: Path) -> Path:
        (folder / "a.nii").mkdir()
        return folder / "a.nii"

    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 0xFF
    wrong_crc = bytearray(packed)
    wrong_crc[-8] ^= 1
    wrong_size = bytearray(packed)
    wrong_size[-1] ^= 1
    return {
        "missing": (lambda folder: folder / "a.nii", "cannot be opened"),
        "empty": (put("a.nii", b""), "an empty file"),
        "empty_gz": (put("a.nii.gz", b""), "an empty file"),
        "one_byte": (put("a.nii", whole[:1]), "only 1 bytes"),
        "half_header": (put("a.nii", whole[:200]), "only 200 bytes"),
        "half_header_2": (put("a.nii", Nifti(version=2).bytes()[:400]), "truncated"),
        "header_only": (put("a.nii", whole[:348]), "truncated"),
        "no_voxels": (put("a.nii", whole[:352]), "0 of 120 bytes"),
        "one_byte_short": (put("a.nii", whole[:-1]), "119 of 120 bytes"),
        "one_byte_long": (put("a.nii", whole + b"\0"), "goes on after its last"),
        "gz_cut_in_magic": (put("a.nii.gz", packed[:2]), "truncated"),
        "gz_cut_in_header": (put("a.nii.gz", packed[:40]), "truncated"),
        "gz_cut_in_voxels": (put("a.nii.gz", packed[:-30]), "truncated"),
        "gz_cut_before_crc": (put("a.nii.gz", packed[:-8]), "truncated"),
        "gz_cut_in_crc": (put("a.nii.gz", packed[:-3]), "truncated"),
        "gz_bit_flip": (put("a.nii.gz", bytes(broken)), ""),
        "gz_wrong_crc": (put("a.nii.gz", bytes(wrong_crc)), "gzip data are damaged"),
        "gz_wrong_size": (put("a.nii.gz", bytes(wrong_size)), "gzip data are damaged"),
        "gz_garbage_behind": (put("a.nii.gz", packed + b"garbage"), "gzip data are damaged"),
        "gz_half_member_behind": (put("a.nii.gz", packed + packed[:20]), "gzip data are damaged"),
        "gz_long": (put("a.nii.gz", gz(whole + b"\0")), "goes on after its last"),
        "gz_member_long": (put("a.nii.gz", packed + gz(b"more")), "goes on after its last"),
        "gz_twice": (put("a.nii.gz", gz(packed)), "compressed twice"),
        "gz_of_text": (put("a.nii.gz", gz(b"hello")), "only 5 bytes"),
        "gz_empty_members": (put("a.nii.gz", gz(b"") * 5000), "empty gzip members"),
        "png": (put("a.nii", PNG), "a PNG picture"),
        "dicom": (put("a.nii", DICOM), "a DICOM file"),
        "text": (put("a.nii", b"John Doe\n" * 100), "unknown content"),
        "random": (put("a.nii", np.random.default_rng(1).bytes(4096)), "unknown content"),
        "folder": (folder_named_nii, "a folder"),
        "fifo": (fifo, "a named pipe"),
        "link_to_device": (link("/dev/zero"), "a device"),
        "dangling_link": (link("nowhere"), "cannot be opened"),
        "looping_link": (link("a.nii"), "cannot be opened"),
        "name_too_long": (lambda folder: folder / ("a" * 300 + ".nii"), "cannot be opened"),
        "nul_in_name": (lambda folder: folder / "a\0.nii", "NUL character"),
    }


def bomb(path: Path, *, claimed: int, contained: int) -> Path:
    """A small gzip file of zeros that claims and contains so many bytes of voxels."""
    side = math.isqrt(claimed // 256)
    nifti = Nifti(dim=(3, side, side, 256, 1, 1, 1, 1), datatype=2, bitpix=8)
    chunk = gz(bytes(1 << 24))
    with open(path, "wb") as f:
        f.write(gz(nifti.header() + b"\0\0\0\0"))
        for _ in range(contained >> 24):
            f.write(chunk)
    return path


def cut_everywhere(content: bytes, step: int) -> Iterator[bytes]:
    """Every beginning of a file, in steps."""
    for size in range(0, len(content), step):
        yield content[:size]
