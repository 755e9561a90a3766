"""write_nifti: what is on the disk was read back, or nothing is there."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpipe.errors import StoreError, UsageError
from medpipe.io import nifti_write
from medpipe.io.nifti import read_nifti, write_nifti
from medpipe.types import Finding, Severity, Volume

AFFINE = np.array([[-0.7, 0, 0, 90], [0, 0.7, 0, -110], [0, 0, 1.25, 40], [0, 0, 0, 1]])

REAL_TYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
REAL_TYPES += ["float32", "float64"]


def volume(data: Any = None, affine: np.ndarray = AFFINE) -> Volume:
    data = np.arange(60, dtype=np.int16).reshape(5, 4, 3) - 9 if data is None else np.asarray(data)
    return Volume(data, affine.copy(), {"kind": "test"}, [Finding("x", Severity.INFO, "seen")])


def random_affine(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation * rng.uniform(0.2, 8, 3)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "dtype",
    [
        "uint8",
        "int8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float32",
        "float64",
    ],
)
def test_nibabel_reads_what_was_written(dtype: str, suffix: str, tmp_path: Path) -> None:
    data = np.arange(120).reshape(5, 4, 3, 2).astype(dtype)
    path = tmp_path / f"a{suffix}"
    back = write_nifti(path, volume(data))
    image = nib.load(path)
    got = np.asanyarray(image.dataobj)
    assert got.dtype == data.dtype == back.data.dtype
    np.testing.assert_array_equal(got, data)
    np.testing.assert_array_equal(back.data, data)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 2
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-4)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex(dtype: str, tmp_path: Path) -> None:
    data = (np.arange(60).reshape(5, 4, 3) * (1 - 2j)).astype(dtype)
    write_nifti(tmp_path / "a.nii", volume(data))
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "a.nii").dataobj), data)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), order=st.sampled_from("CF"))
def test_round_trip_of_any_rotation(seed: int, order: str, tmp_path_factory: Any) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, rng.integers(3, 5)))
    data = np.asarray(rng.normal(size=shape).astype(np.float32), order=order)  # type: ignore[call-overload]
    affine = random_affine(seed)
    path = tmp_path_factory.mktemp("w") / "a.nii"
    back = write_nifti(path, volume(data, affine))
    np.testing.assert_array_equal(back.data, data)
    np.testing.assert_allclose(back.affine, affine, rtol=1e-6, atol=1e-4)
    again = read_nifti(path, ndim=data.ndim)
    assert [f for f in again.findings if f.check != "nifti.constant"] == []
    np.testing.assert_array_equal(again.affine, back.affine)
    np.testing.assert_allclose(nib.load(path).get_qform(), affine, atol=1e-3)


def test_returned_volume_is_what_a_reader_gets_with_the_history_of_the_given_one(
    tmp_path: Path,
) -> None:
    given_volume = volume(affine=random_affine(1))
    back = write_nifti(tmp_path / "a.nii.gz", given_volume)
    read = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back.affine, read.affine)
    np.testing.assert_array_equal(back.data, read.data)
    assert back.source == given_volume.source
    assert back.findings == given_volume.findings
    # A second trip changes nothing any more.
    twice = write_nifti(tmp_path / "b.nii.gz", back)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    np.testing.assert_array_equal(twice.affine, back.affine)


def test_bytes_depend_on_nothing_but_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti(tmp_path / "one.nii.gz", volume())
    monkeypatch.setattr("time.time", lambda: 2e9)
    folder = tmp_path / "other"
    folder.mkdir()
    other = volume(np.asfortranarray(volume().data))
    write_nifti(folder / "two.nii.gz", other)
    content = (tmp_path / "one.nii.gz").read_bytes()
    assert content == (folder / "two.nii.gz").read_bytes()
    assert content[3] == 0  # no name, no comment, no extra field
    assert content[4:8] == bytes(4)  # no time
    header = gzip.decompress(content)[:352]
    assert not header[148:252].strip(b"\0")  # descrip and aux_file
    assert not header[4:32].strip(b"\0")  # data_type and db_name
    assert header[328:344] == bytes(16)  # intent_name


def test_shear_goes_into_the_sform_alone(tmp_path: Path) -> None:
    tilted = AFFINE.copy()
    tilted[1, 2] = 0.4
    back = write_nifti(tmp_path / "a.nii", volume(affine=tilted))
    image = nib.load(tmp_path / "a.nii")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 0)
    np.testing.assert_allclose(image.affine, tilted, atol=1e-5)
    assert list(read_nifti(tmp_path / "a.nii").findings) == []
    np.testing.assert_allclose(back.affine, tilted, atol=1e-5)


def test_a_long_axis_needs_nifti_2(tmp_path: Path) -> None:
    data = np.arange(40000, dtype=np.uint16).reshape(40000, 1, 1)
    write_nifti(tmp_path / "a.nii", volume(data))
    image = nib.load(tmp_path / "a.nii")
    assert isinstance(image, nib.Nifti2Image)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), data)


@pytest.mark.parametrize(
    ("given_dtype", "stored"), [("bool", "uint8"), ("float16", "float32"), (">i2", "int16")]
)
def test_types_nifti_lacks_are_widened(given_dtype: str, stored: str, tmp_path: Path) -> None:
    data = (np.arange(60).reshape(5, 4, 3) % 2).astype(given_dtype)
    back = write_nifti(tmp_path / "a.nii", volume(data))
    assert back.data.dtype == np.dtype(stored)
    np.testing.assert_array_equal(back.data, data)


def _ramp(*values: float, dtype: str = "float32") -> np.ndarray:
    return np.resize(np.array(values, dtype), (5, 4, 3))


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (_ramp(-1024, 3071), "int16"),
        (_ramp(0, 255, dtype="int64"), "uint8"),
        (_ramp(0.1, 2.5, dtype="float64"), "float32"),
        (_ramp(0, 2**24, dtype="int32"), "float32"),
        (_ramp(1, 2), "complex64"),
    ],
)
def test_values_that_fit_are_converted(data: np.ndarray, dtype: str, tmp_path: Path) -> None:
    back = write_nifti(tmp_path / "a.nii.gz", volume(data), dtype=dtype)
    assert back.data.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back.data, data.astype(dtype))


@pytest.mark.parametrize(
    ("data", "dtype", "says"),
    [
        (_ramp(0, 40000), "int16", "values from 0 to 40000"),
        (_ramp(-1, 5, dtype="int16"), "uint8", "values from -1 to 5"),
        (_ramp(0, 256, dtype="int16"), "uint8", "values from 0 to 256"),
        (_ramp(0, 2**63, dtype="uint64"), "int64", "values from 0"),
        (_ramp(0, 9.3e18, dtype="float64"), "int64", "values from 0"),
        (_ramp(0, 1.5), "int16", "not whole numbers"),
        (_ramp(0, np.nan), None, "NaN or infinite"),
        (_ramp(0, np.nan), "int16", "NaN or infinite"),
        (_ramp(0, -np.inf), "float64", "NaN or infinite"),
        (_ramp(0, 1e300, dtype="float64"), "float32", "beyond its range"),
        (_ramp(0, 2**24 + 1, dtype="int32"), "float32", "cannot hold exactly"),
        (_ramp(2**64 - 1, dtype="uint64"), "float32", "cannot hold exactly"),
        (_ramp(1, 2, dtype="complex64"), "float32", "complex numbers"),
    ],
)
def test_values_that_do_not_fit_are_refused(
    data: np.ndarray, dtype: str | None, says: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=says) as info:
        write_nifti(tmp_path / "a.nii.gz", volume(data), dtype=dtype)
    assert info.value.hint
    assert os.listdir(tmp_path) == []


def test_a_value_that_does_not_fit_is_found_anywhere(tmp_path: Path) -> None:
    data = np.zeros((128, 128, 100), np.float32)
    data[-1, -1, -1] = 0.5
    with pytest.raises(StoreError, match="not whole numbers"):
        write_nifti(tmp_path / "a.nii", volume(data), dtype="int16")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"path": "a.img"}, UsageError),
        ({"path": "a.nii.bz2"}, UsageError),
        ({"dtype": "int12"}, UsageError),
        ({"dtype": "float128"}, UsageError),
        ({"data": np.zeros((4, 4), np.int16)}, StoreError),
        ({"data": np.zeros((4, 0, 4), np.int16)}, StoreError),
        ({"data": np.full((2, 2, 2), "x")}, UsageError),
        ({"affine": np.zeros((4, 4))}, StoreError),
        ({"affine": np.full((4, 4), np.nan)}, StoreError),
        ({"path": "missing/a.nii"}, StoreError),
    ],
)
def test_what_cannot_be_written_is_refused(
    options: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error) as info:
        write_nifti(
            tmp_path / options.get("path", "a.nii"),
            volume(options.get("data"), options.get("affine", AFFINE)),
            dtype=options.get("dtype"),
        )
    assert str(tmp_path) not in str(info.value)
    assert os.listdir(tmp_path) == []


CHILD = """
import resource, sys
from pathlib import Path
import numpy as np
from medpipe.errors import StoreError
from medpipe.io.nifti import write_nifti
from medpipe.types import Volume
data = np.random.default_rng(0).integers(-999, 999, (64, 64, 64)).astype(np.int16)
path = Path(sys.argv[1])
write_nifti(path, Volume(data // 2, np.eye(4)))
old = path.read_bytes()
for limit in (0, 300, 4096, 200_000, 300_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_nifti(path, Volume(data, np.eye(4)))
    except StoreError as error:
        assert "File too large" in str(error), str(error)
    else:
        raise SystemExit(f"written in spite of a limit of {limit} bytes")
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == old
"""


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_full_disk_leaves_the_old_file_and_nothing_else(suffix: str, tmp_path: Path) -> None:
    done = subprocess.run(
        # B: Python would keep the first part of a compiled module
        [sys.executable, "-B", "-c", CHILD, str(tmp_path / f"a{suffix}")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("damage", ["voxel", "short", "affine", "gone"])
def test_a_file_that_does_not_read_back_is_refused(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = nifti_write._verified

    def damaged(tmp: Path, *args: Any) -> Volume:
        content = bytearray(tmp.read_bytes())
        if damage == "voxel":
            content[-1] ^= 1
        elif damage == "short":
            del content[-1]
        elif damage == "affine":
            content[292] ^= 1  # lowest bits of an offset
        tmp.write_bytes(bytes(content) if damage != "gone" else b"")
        return real(tmp, *args)

    monkeypatch.setattr(nifti_write, "_verified", damaged)
    with pytest.raises(StoreError, match="read"):
        write_nifti(tmp_path / "a.nii", volume())
    assert os.listdir(tmp_path) == []
