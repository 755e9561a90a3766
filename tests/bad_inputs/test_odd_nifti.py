"""Odd but valid NIfTI files give the right volume."""

from __future__ import annotations

import math
import os
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nifti_inputs import AFFINE, NAN, SFORM, Nifti, gradient, gz, shaped, typed

from medpipe.errors import UsageError
from medpipe.io.detect import detect_kind
from medpipe.io.nifti import read_nifti
from medpipe.types import Volume

DATATYPES = {
    "uint8": 2,
    "int16": 4,
    "int32": 8,
    "float32": 16,
    "complex64": 32,
    "float64": 64,
    "int8": 256,
    "uint16": 512,
    "uint32": 768,
    "int64": 1024,
    "uint64": 1280,
    "complex128": 1792,
}


def checks(volume: Volume) -> list[str]:
    return [f.check for f in volume.findings]


def assert_is_nibabel(path: Path, volume: Volume) -> None:
    """The same voxels and the same place as nibabel, for files nibabel reads."""
    image = nib.load(path)
    np.testing.assert_array_equal(volume.data, np.asanyarray(image.dataobj))
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-6)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", DATATYPES)
def test_every_type_and_byte_order(
    dtype: str, order: str, version: int, suffix: str, tmp_path: Path
) -> None:
    data = gradient(dtype=dtype)
    if dtype.startswith("complex"):
        data = (data * (1 + 2j)).astype(dtype)
    fields = {**typed(dtype, DATATYPES[dtype]), "data": data}
    nifti = Nifti(version=version, order=order, **fields)
    path = nifti.write(tmp_path / f"a{suffix}")
    volume = read_nifti(path)
    assert volume.data.dtype == np.dtype(dtype)
    assert volume.data.dtype.isnative
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.findings == []
    assert volume.source["dtype"] == dtype
    assert volume.source["version"] == version
    assert_is_nibabel(path, volume)
    assert detect_kind(path) == "nifti"


ODD_NAMES = [
    "ü한.nii",
    unicodedata.normalize("NFD", "é.nii.gz"),
    "line\nbreak.nii.gz",
    "$(touch x).nii",
    "`id`; rm -rf .nii.gz",
    "-rf.nii",
    " blank .nii",
    "x" * 248 + ".nii.gz",
    "no_suffix",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(name: str, tmp_path: Path) -> None:
    volume = read_nifti(Nifti().write(tmp_path / name))
    np.testing.assert_array_equal(volume.data, gradient())
    assert os.listdir(tmp_path) == [name]


def test_links_to_files(tmp_path: Path) -> None:
    Nifti().write(tmp_path / "a.nii")
    (tmp_path / "b.nii").symlink_to("a.nii")
    (tmp_path / "c.nii").symlink_to("b.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "c.nii").data, gradient())


@pytest.mark.parametrize(("name", "packed"), [("a.nii", True), ("a.nii.gz", False)])
def test_content_decides_about_compression(name: str, packed: bool, tmp_path: Path) -> None:
    content = Nifti().bytes()
    (tmp_path / name).write_bytes(gz(content) if packed else content)
    volume = read_nifti(tmp_path / name)
    np.testing.assert_array_equal(volume.data, gradient())
    assert checks(volume) == ["nifti.name"]


@pytest.mark.parametrize("cut", [0, 1, 100, 347, 348, 352, 400, 471])
def test_gzip_of_several_members(cut: int, tmp_path: Path) -> None:
    content = Nifti().bytes()
    packed = gz(content[:cut]) + gz(content[cut:]) + gz(b"") + bytes(512)
    (tmp_path / "a.nii.gz").write_bytes(packed)
    volume = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.data, gradient())
    assert volume.findings == []


@pytest.mark.parametrize(("code", "factor"), [(1, 1000), (2, 1), (3, 0.001), (0, 1), (10, 1)])
def test_units_are_converted_to_mm(code: int, factor: float, tmp_path: Path) -> None:
    scaled = np.array(SFORM) / factor
    step = [p / factor for p in (0.75, 0.5, 2.0)]
    origin = tuple(np.array((-10.0, 20.0, 30.0)) / factor)
    fields: dict[str, Any] = {"units": code, "pixdim": (1, *step, 0, 0, 0, 0), "qoffset": origin}
    for form in ("sform_code", "qform_code"):
        nifti = Nifti(**fields, srow=tuple(scaled), **{form: 0})
        volume = read_nifti(nifti.write(tmp_path / "a.nii"))
        np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-6)
        assert checks(volume) == ([] if factor == 1 and code else ["nifti.units"])


@pytest.mark.parametrize(
    ("slope", "inter", "scaled"),
    [
        (1, 0, False),
        (0, 0, False),
        (NAN, NAN, False),
        (NAN, 0, False),
        (2.5, -3, True),
        (1, 5, True),
    ],
)
def test_scaling_only_where_it_is_stated(
    slope: float, inter: float, scaled: bool, tmp_path: Path
) -> None:
    volume = read_nifti(Nifti(slope=slope, inter=inter).write(tmp_path / "a.nii"))
    assert volume.source["scaled"] is scaled
    if scaled:
        assert volume.data.dtype == np.float32
        np.testing.assert_array_equal(volume.data, gradient() * slope + inter)
    else:
        assert volume.data.dtype == np.int16
        np.testing.assert_array_equal(volume.data, gradient())


def test_scaling_is_computed_in_double_precision(tmp_path: Path) -> None:
    data = np.array([2**31 - 1, 2**31 - 2, -(2**31)] * 20, np.int32).reshape(5, 4, 3)
    fields = typed("int32", 8) | {"data": data}
    path = Nifti(slope=0.1, inter=1e6, **fields).write(tmp_path / "a.nii")
    slope = float(np.float32(0.1))
    want = (data.astype(np.float64) * slope + 1e6).astype(np.float32)
    np.testing.assert_array_equal(read_nifti(path).data, want)


def test_scaled_complex_stays_complex(tmp_path: Path) -> None:
    data = (gradient(dtype="float32") * (1 - 2j)).astype(np.complex64)
    nifti = Nifti(slope=2, inter=1, **(typed("complex64", 32) | {"data": data}))
    volume = read_nifti(nifti.write(tmp_path / "a.nii"))
    assert volume.data.dtype == np.complex64
    np.testing.assert_array_equal(volume.data, data * 2 + 1)


OBLIQUE = (0.18257419, 0.36514837, 0.5477226)  # with a = sqrt(1 - b² - c² - d²)


@pytest.mark.parametrize("qfac", [1, -1, 0])
@pytest.mark.parametrize("order", ["<", ">"])
def test_oblique_qform_is_that_of_the_standard(qfac: int, order: str, tmp_path: Path) -> None:
    b, c, d = OBLIQUE
    a = math.sqrt(1 - b * b - c * c - d * d)
    rotation = np.array(
        [  # nifti1.h, method 2
            [a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
            [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
            [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - c * c - b * b],
        ]
    )
    want = rotation @ np.diag([0.75, 0.5, 2.0 * (-1 if qfac < 0 else 1)])
    nifti = Nifti(
        order=order, sform_code=0, quatern=OBLIQUE, pixdim=(qfac, 0.75, 0.5, 2, 0, 0, 0, 0)
    )
    volume = read_nifti(nifti.write(tmp_path / "a.nii"))
    np.testing.assert_allclose(volume.affine[:3, :3], want, atol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], (-10, 20, 30))
    assert volume.source["affine_from"] == "qform"


@pytest.mark.parametrize(
    "rows",
    [
        (-0.75, 0, 0, 1, 0, 0.5, 0, 2, 0, 0, 2, 3),  # left-handed
        (0.75, 0, 1.2, 1, 0, 0.5, 0, 2, 0, 0, 1.6, 3),  # sheared
        (0, 0, 2, 1, 0.75, 0, 0, 2, 0, -0.5, 0, 3),  # axes exchanged
    ],
)
def test_any_usable_sform_is_kept(rows: tuple[float, ...], tmp_path: Path) -> None:
    path = Nifti(srow=rows, qform_code=0).write(tmp_path / "a.nii.gz")
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.affine[:3].ravel(), np.float32(rows))
    assert_is_nibabel(path, volume)
    assert volume.findings == []


def test_sform_wins_over_a_qform_of_another_space(tmp_path: Path) -> None:
    path = Nifti(qoffset=(99, 0, 0), sform_code=4).write(tmp_path / "a.nii")
    volume = read_nifti(path)
    assert_is_nibabel(path, volume)
    assert checks(volume) == ["nifti.sform_qform_disagree"]
    assert "sform was used" in volume.findings[0].message


def test_pixdim_that_contradicts_the_only_form_is_reported(tmp_path: Path) -> None:
    path = Nifti(qform_code=0, pixdim=(1, 1, 1, 1, 0, 0, 0, 0)).write(tmp_path / "a.nii")
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert checks(volume) == ["nifti.pixdim_disagrees"]


def test_damage_in_a_form_that_is_not_set_does_not_matter(tmp_path: Path) -> None:
    path = Nifti(qform_code=0, quatern=(NAN, 9, 9), qoffset=(NAN, 0, 0)).write(tmp_path / "a.nii")
    np.testing.assert_array_equal(read_nifti(path).affine, AFFINE)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("padding", [0, 16])
def test_extensions_are_skipped(order: str, padding: int, tmp_path: Path) -> None:
    word = "little" if order == "<" else "big"
    one = (32).to_bytes(4, word) + (6).to_bytes(4, word) + b"x" * 24  # type: ignore[arg-type]
    nifti = Nifti(order=order, extender=b"\x01\0\0\0", extensions=one * 2 + bytes(padding))
    volume = read_nifti(nifti.write(tmp_path / "a.nii"))
    np.testing.assert_array_equal(volume.data, gradient())
    assert "2 header extension(s)" in volume.findings[0].message


@pytest.mark.parametrize("shape", [(5, 4, 1), (1, 1, 1), (1, 7, 2)])
def test_thin_volumes(shape: tuple[int, ...], tmp_path: Path) -> None:
    volume = read_nifti(Nifti(**shaped(*shape)).write(tmp_path / "a.nii"))
    np.testing.assert_array_equal(volume.data, gradient(shape))


@pytest.mark.parametrize("ndim", [4, (3, 4), [4]])
def test_four_axes_where_asked_for(ndim: Any, tmp_path: Path) -> None:
    volume = read_nifti(Nifti(**shaped(5, 4, 3, 2)).write(tmp_path / "a.nii"), ndim=ndim)
    np.testing.assert_array_equal(volume.data, gradient((5, 4, 3, 2)))


def test_lengths_behind_the_last_axis_mean_nothing(tmp_path: Path) -> None:
    nifti = replace(Nifti(), dim=(3, 5, 4, 3, 0, -1, 99, 0))
    np.testing.assert_array_equal(read_nifti(nifti.write(tmp_path / "a.nii")).data, gradient())


def test_a_constant_image_is_reported(tmp_path: Path) -> None:
    nifti = Nifti(data=np.full((5, 4, 3), -1024, np.int16))
    assert checks(read_nifti(nifti.write(tmp_path / "a.nii"))) == ["nifti.constant"]


@pytest.mark.parametrize(
    "options",
    [
        {"fixes": ["nifti.zero_pixdin"]},
        {"fixes": "nifti.zero_pixdim"},
        {"ndim": 2},
        {"ndim": ()},
        {"assume_orientation": "RAX"},
        {"assume_orientation": "RLA"},
    ],
)
def test_wrong_options_are_usage_errors(options: dict[str, Any], tmp_path: Path) -> None:
    path = Nifti(qform_code=0, sform_code=0).write(tmp_path / "a.nii")
    with pytest.raises(UsageError):
        read_nifti(path, **options)


def test_a_misspelt_repair_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'nifti\.zero_pixdim'"):
        read_nifti(tmp_path / "a.nii", fixes=["nifti.zero_pixdin"])
