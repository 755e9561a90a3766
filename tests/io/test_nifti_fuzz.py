"""Damaged headers and files: the outcome is the oracle's volume or an InputError, nothing else.

The oracle is a second reader of forty lines, `struct` and numpy only, written
from the standard; it does what the damaged file says without judging it.
``MEDPIPE_FUZZ_EXAMPLES=20000`` runs more examples, at random.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medpipe.errors import InputError
from medpipe.geometry import affine_problem
from medpipe.io.checks import REPAIRS
from medpipe.io.detect import detect_kind
from medpipe.io.nifti import read_nifti
from medpipe.types import Severity, Volume

EXAMPLES = int(os.environ.get("MEDPIPE_FUZZ_EXAMPLES", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 400,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SHAPE = (5, 4, 3)
MAX_BYTES = 1 << 20
TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    32: "c8",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
    1792: "c16",
}
# name → (offset, struct code) in NIfTI-1 and NIfTI-2
FIELDS_1 = {"dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "8f")}
FIELDS_1 |= {"offset": (108, "f"), "slope": (112, "f"), "inter": (116, "f"), "units": (123, "B")}
FIELDS_1 |= {"qcode": (252, "h"), "scode": (254, "h"), "quatern": (256, "3f")}
FIELDS_1 |= {"qoffset": (268, "3f"), "srow": (280, "12f")}
FIELDS_2 = {"dim": (16, "8q"), "datatype": (12, "h"), "bitpix": (14, "h"), "pixdim": (104, "8d")}
FIELDS_2 |= {"offset": (168, "q"), "slope": (176, "d"), "inter": (184, "d"), "units": (500, "i")}
FIELDS_2 |= {"qcode": (344, "i"), "scode": (348, "i"), "quatern": (352, "3d")}
FIELDS_2 |= {"qoffset": (376, "3d"), "srow": (400, "12d")}
# bytes that say nothing about the volume: texts, slice timing, display range, intent
IDLE_1 = [(4, 40), (56, 70), (74, 76), (92, 108), (120, 123), (124, 252), (328, 344)]
IDLE_2 = [(80, 104), (136, 168), (192, 344), (496, 500), (504, 540)]
OUTCOMES: Counter[str] = Counter()


def oracle(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels and affine (mm) as the bytes say, or raise anything at all."""
    order = "<" if content[0] in (0x5C, 0x1C) else ">"
    version = {348: 1, 540: 2}[struct.unpack_from(order + "i", content)[0]]
    fields = FIELDS_1 if version == 1 else FIELDS_2
    h = {k: struct.unpack_from(order + code, content, at) for k, (at, code) in fields.items()}
    shape = h["dim"][1 : 1 + h["dim"][0]]
    dtype = np.dtype(order + TYPES[h["datatype"][0]])
    data = np.frombuffer(content, dtype, math.prod(shape), int(h["offset"][0]))
    data = data.reshape(shape, order="F").astype(dtype.newbyteorder("="))
    slope, inter = h["slope"][0], h["inter"][0]
    stated = slope != 0 and math.isfinite(slope) and math.isfinite(inter)
    if stated and (slope, inter) != (1, 0):
        wide = data.astype(np.complex128 if data.dtype.kind == "c" else np.float64)
        data = (wide * slope + inter).astype("c8" if data.dtype.kind == "c" else "f4")
    affine = np.eye(4)
    if h["scode"][0] > 0:
        affine[:3] = np.reshape(h["srow"], (3, 4))
    elif h["qcode"][0] > 0:
        b, c, d = h["quatern"]
        a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        affine[:3, :3] = [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
        affine[:3, :3] *= h["pixdim"][1:4]
        affine[:3, 2] *= -1 if h["pixdim"][0] < 0 else 1
        affine[:3, 3] = h["qoffset"]
    else:
        raise ValueError("no orientation")
    affine[:3] *= {0: 1, 1: 1000, 2: 1, 3: 0.001}[h["units"][0] & 7]
    return data, affine


def base(version: int, order: str, dtype: str, form: str, scaled: bool) -> bytes:
    """A valid file, made by nibabel."""
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    c, s = math.cos(0.3), math.sin(0.3)
    affine = np.array([[2 * c, -s, 0, 5], [2 * s, c, 0, -6], [0, 0, 3, 7], [0, 0, 0, 1]])
    data = (np.arange(60).reshape(SHAPE) * 2 - 3).astype(dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(data.dtype)
    image = kind(data, None, header)
    image.set_sform(affine, code=1 if form in ("sform", "both") else 0)
    image.set_qform(affine, code=1 if form in ("qform", "both") else 0)
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    if scaled:
        at, code = (FIELDS_1 if version == 1 else FIELDS_2)["slope"]
        struct.pack_into(order + code * 2, content, at, 0.5, 10)
    return bytes(content)


BASES = st.builds(
    base,
    st.sampled_from([1, 2]),
    st.sampled_from("<>"),
    st.sampled_from(["int16", "uint8", "float32", "float64", "complex64"]),
    st.sampled_from(["sform", "qform", "both"]),
    st.booleans(),
)
SPECIAL = [0, 1, -1, 2, 3, 4, 7, 8, 16, 127, 128, 255, 352, 353, 512, 544, 30000, 32767, -32768]
SPECIAL += [2**31 - 1, 2**62, math.nan, math.inf, -math.inf, 1e-9, 1e9, 0.5, -0.0, 1e-38, 3e38]


@st.composite
def mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with one to four injuries, most of them in the header."""
    out = bytearray(content)
    version = 1 if 348 in (int.from_bytes(out[:4], o) for o in ("little", "big")) else 2
    fields = FIELDS_1 if version == 1 else FIELDS_2
    order = "<" if content[0] in (0x5C, 0x1C) else ">"
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["field", "field", "field", "byte", "byte", "cut", "grow"]))
        if kind == "field":
            at, code = fields[draw(st.sampled_from(sorted(fields)))]
            item = code[-1]
            size = struct.calcsize(order + item)
            at += size * draw(st.integers(0, int(code[:-1] or 1) - 1))
            value = draw(st.sampled_from(SPECIAL))
            try:
                packed = struct.pack(order + item, value if item in "fd" else int(value))
            except (struct.error, OverflowError, ValueError):
                continue
            out[at : at + size] = packed
        elif kind == "byte":
            last = min(len(out) - 1, draw(st.sampled_from([130, 351, len(content)])))
            out[draw(st.integers(0, max(last, 0)))] = draw(st.integers(0, 255))
        elif kind == "cut":
            del out[draw(st.integers(1, len(out))) :]
        else:
            at = draw(st.integers(0, len(out)))
            out[at:at] = draw(st.binary(max_size=40))
    return bytes(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read(path: Path, content: bytes, **options: Any) -> Volume | InputError:
    """Read with every warning an error; InputError is the only exception let through."""
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(InputError):
            assert detect_kind(path) in ("nifti", "dicom")
        try:
            return read_nifti(path, ndim=(3, 4), max_bytes=MAX_BYTES, **options)
        except InputError as error:
            return error


def assert_is_oracle(got: Volume | InputError, content: bytes) -> None:
    """A volume must be the oracle's; a refusal is always allowed."""
    OUTCOMES["refused" if isinstance(got, InputError) else "volume"] += 1
    if isinstance(got, InputError):
        assert "\n" not in str(got)
        return
    with np.errstate(all="ignore"):
        data, affine = oracle(content)
    assert got.data.dtype == data.dtype
    np.testing.assert_array_equal(got.data, data)
    np.testing.assert_allclose(got.affine, affine, rtol=2e-6, atol=2e-6 * np.abs(affine).max())


@FUZZ
@given(content=BASES.flatmap(mutations))
def test_damaged_plain_file(content: bytes, folder: Path) -> None:
    assert_is_oracle(read(folder / "a.nii", content), content)


@FUZZ
@given(content=BASES.flatmap(mutations))
def test_damaged_file_inside_intact_gzip(content: bytes, folder: Path) -> None:
    got = read(folder / "a.nii.gz", gzip.compress(content, 1, mtime=0))
    assert_is_oracle(got, content)


@FUZZ
@given(content=BASES.flatmap(mutations), assume=st.sampled_from(["RAS", "qform", "sform"]))
def test_repairs_lead_to_a_usable_volume_or_a_refusal(
    content: bytes, assume: str, folder: Path
) -> None:
    got = read(folder / "a.nii", content, fixes=list(REPAIRS), assume_orientation=assume)
    if isinstance(got, Volume):
        assert np.isfinite(got.data).all()
        assert affine_problem(got.affine) is None
        assert all(f.fixed for f in got.findings if f.severity >= Severity.ERROR)


@FUZZ
@given(data=st.data(), content=BASES)
def test_damaged_gzip(data: st.DataObject, content: bytes, folder: Path) -> None:
    packed = bytearray(gzip.compress(content, 6, mtime=0))
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["byte", "head", "cut", "grow"]))
        last = min(len(packed), 12 if kind == "head" else len(packed)) - 1
        at = data.draw(st.integers(0, max(last, 0)))
        if kind in ("byte", "head") and packed:
            packed[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del packed[at:]
        else:
            packed[at:at] = data.draw(st.binary(max_size=20))
    got = read(folder / "a.nii.gz", bytes(packed))
    if isinstance(got, Volume):
        plain = packed[:2] != b"\x1f\x8b"
        try:
            content = bytes(packed) if plain else gzip.decompress(bytes(packed))
        except (OSError, EOFError, zlib.error) as error:
            raise AssertionError("Python's gzip refuses what was read") from error
    assert_is_oracle(got, content)


@FUZZ
@given(content=BASES, idle=st.data())
def test_damage_that_does_not_matter_changes_nothing(
    content: bytes, idle: st.DataObject, folder: Path
) -> None:
    version = 1 if 348 in (int.from_bytes(content[:4], o) for o in ("little", "big")) else 2
    out = bytearray(content)
    for first, last in IDLE_1 if version == 1 else IDLE_2:
        out[first:last] = idle.draw(st.binary(min_size=last - first, max_size=last - first))
    got = read(folder / "a.nii", bytes(out))
    assert isinstance(got, Volume), str(got)
    assert_is_oracle(got, content)
    assert got.findings == []


@FUZZ
@given(content=st.binary(max_size=800))
@example(content=b"\x5c\x01\0\0" + bytes(340) + b"n+1\0" + bytes(400))
@example(content=b"\x1c\x02\0\0n+2\0\r\n\x1a\n" + bytes(800))
def test_any_bytes(content: bytes, folder: Path) -> None:
    assert isinstance(read(folder / "a.nii", content), InputError)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("form", ["sform", "qform", "both"])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_oracle_agrees_with_nibabel_on_valid_files(
    version: int, order: str, form: str, scaled: bool, folder: Path
) -> None:
    content = base(version, order, "int16", form, scaled)
    data, affine = oracle(content)
    (folder / "valid.nii").write_bytes(content)
    image = nib.load(folder / "valid.nii")
    np.testing.assert_array_equal(data, np.asanyarray(image.dataobj))
    np.testing.assert_allclose(affine, image.affine, atol=1e-6)


def test_the_fuzzer_reaches_both_outcomes() -> None:
    if not OUTCOMES:
        pytest.skip("the fuzz tests did not run")
    assert OUTCOMES["volume"] > sum(OUTCOMES.values()) / 20
    assert OUTCOMES["refused"] > sum(OUTCOMES.values()) / 20
