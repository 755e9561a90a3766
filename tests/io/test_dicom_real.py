"""Real series: right against their own tags and an independent reference, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy.ndimage import map_coordinates

from medpipe.errors import InputError
from medpipe.io.dicom_series import read_dicom_series, scan_series

pytestmark = pytest.mark.real_data


@pytest.fixture
def head(real_data) -> Path:
    return real_data / "head_ct_ge_tilt_dicom"


@pytest.fixture
def edge(real_data) -> Path:
    return real_data / "dicom_edge_cases"


def tags(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(p) for p in sorted(folder.glob("*.dcm"))]


def slice_error_mm(volume, datasets) -> float:
    """Largest distance of a slice's first pixel in the volume from its tag; by pixel content.

    Each file's own pixels are looked up in the volume, so order and place are
    checked without trusting the reader's idea of either.
    """
    worst = 0.0
    for ds in datasets:
        pixels = ds.pixel_array.T.astype(float) * float(ds.get("RescaleSlope", 1))
        pixels += float(ds.get("RescaleIntercept", 0))
        errors = [np.abs(volume.data[..., k] - pixels).max() for k in range(volume.data.shape[2])]
        k = int(np.argmin(errors))
        assert errors[k] <= 0.51
        place = volume.affine[:3, 2] * k + volume.affine[:3, 3]
        wanted = np.array(ds.ImagePositionPatient, float) * (-1, -1, 1)
        worst = max(worst, float(np.linalg.norm(place - wanted)))
    return worst


def test_the_tilted_head_is_refused_by_default(head):
    with pytest.raises(InputError) as caught:
        read_dicom_series(head)
    text = str(caught.value)
    assert 'variable_step="resample"' in text
    assert "13 × 4.00, 13 × 7.00, 1 × 1.08 mm" in text
    assert "series 2 (CT, 28 slices, " in text


def test_the_tilted_head_agrees_with_the_reference(head):
    volume = read_dicom_series(head, variable_step="resample", resample_spacing_mm=1.0)
    datasets = tags(head)
    positions = sorted(
        tuple(np.array(d.ImagePositionPatient, float) * (-1, -1, 1)) for d in datasets
    )
    got = sorted(map(tuple, volume.source["slice_origins_ras_mm"]))
    assert np.abs(np.array(got) - positions).max() < 0.01
    normal = np.cross(*np.split(np.array(datasets[0].ImageOrientationPatient, float), 2))
    along = np.sort([np.array(d.ImagePositionPatient, float) @ normal for d in datasets])
    assert np.abs(volume.source["slice_positions_mm"] - (along - along[0])).max() < 0.01
    assert volume.source["tilt_deg"] == pytest.approx(18.5, abs=0.01)

    reference = nib.load(head / "derived_GE_head_tilt_corrected_1mm_HU.nii.gz")
    truth = np.asarray(reference.dataobj).astype(np.float32)
    to_ours = np.linalg.inv(volume.affine) @ reference.affine
    index = np.indices(truth.shape).reshape(3, -1)
    ours = map_coordinates(
        volume.data, to_ours[:3, :3] @ index + to_ours[:3, 3:], order=1, cval=-1024
    ).reshape(truth.shape)
    inside = (truth > -200) & (ours > -1024)
    difference = np.abs(ours - truth)[inside]
    assert inside.mean() > 0.2
    assert np.median(difference) <= 10
    # the reference blends along the tilted stacking direction, ours along the normal: they
    # differ where bone crosses between slices 7 mm apart, not in where things are
    assert np.percentile(difference, 75) <= 40
    assert best_shift(ours, truth) == (0, 0, 0)


def best_shift(a: np.ndarray, b: np.ndarray) -> tuple[int, ...]:
    """The whole-voxel shift of `a` that correlates best with `b`, by FFT."""
    a, b = (np.clip(x, -1000, 1000) - np.clip(x, -1000, 1000).mean() for x in (a, b))
    product = np.fft.rfftn(a).conj() * np.fft.rfftn(b)
    correlation = np.fft.irfftn(product, s=a.shape, axes=(0, 1, 2))
    peak = np.unravel_index(correlation.argmax(), a.shape)
    return tuple(int((p + n // 2) % n - n // 2) for p, n in zip(peak, a.shape, strict=True))


def test_the_measured_slices_are_in_the_resampled_head(head):
    """Voxels next to a measured pixel have its value, at the place its own tags give."""
    volume = read_dicom_series(
        head, variable_step="resample", resample_grid="slices", resample_spacing_mm=None
    )
    assert volume.data.dtype == np.float32
    ds = tags(head)[0]
    plane = volume.data[..., 0].T
    pixels = ds.pixel_array.astype(float)
    pixels[pixels == -1500] = -1024
    inside = plane > -1024
    assert np.abs(plane - pixels)[inside].max() < 1
    assert inside.mean() > 0.5


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("failing_notavolume_001", "all 4 images lie at one position"),
        ("failing_sliceincrement_001", "1 slice is missing, the first after slice 3 at 10.00 mm"),
        ("failing_sliceincrement_002", "1 slice is missing, the first after slice 3 at 1.50 mm"),
        ("failing_sliceorientation_001", "parts that are no single volume"),
    ],
)
def test_edge_cases_that_are_refused(edge, name, error):
    with pytest.raises(InputError) as caught:
        read_dicom_series(edge / name)
    assert error in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "failing_gantrytilting_001",
        "failing_slicecount_001",
        "generic_anatomical_001",
        "generic_compressed_rle_001",
    ],
)
def test_edge_cases_that_are_right(edge, name):
    volume = read_dicom_series(edge / name)
    datasets = tags(edge / name)
    assert volume.data.shape == (datasets[0].Columns, datasets[0].Rows, len(datasets))
    assert slice_error_mm(volume, datasets) < 0.01


@pytest.mark.parametrize("name", ["failing_sliceincrement_001", "failing_sliceincrement_002"])
def test_missing_slices_on_request(edge, name):
    volume = read_dicom_series(edge / name, missing_slices="interpolate")
    assert volume.data.shape[2] == 5
    assert slice_error_mm(volume, tags(edge / name)) < 0.01
    np.testing.assert_allclose(
        volume.data[..., 3], (volume.data[..., 2] + volume.data[..., 4]) / 2, atol=0.01
    )


@pytest.mark.parametrize("codec", ["j2k", "jpeg", "jpegls"])
def test_lossless_compressions_decode_to_the_same_voxels(edge, codec):
    """The folders hold the same noise; RLE is decoded by another library than the others."""
    run_length = read_dicom_series(edge / "generic_compressed_rle_001")
    coded = read_dicom_series(edge / f"generic_compressed_{codec}_001")
    np.testing.assert_array_equal(coded.data, run_length.data)
    np.testing.assert_allclose(coded.affine, run_length.affine)
    assert coded.source["transfer_syntax"] != run_length.source["transfer_syntax"]


@pytest.mark.parametrize("codec", ["j2k", "jpeg", "jpegls", "rle"])
def test_a_compressed_slice_that_is_cut_off_is_refused(edge, codec, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(edge / f"generic_compressed_{codec}_001", folder)
    path = sorted(folder.glob("*.dcm"))[1]
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * 0.7)])
    with pytest.raises(InputError, match=r"slice 3 of 4 at 2\.00 mm.*cannot be read"):
        read_dicom_series(folder)


@pytest.mark.parametrize("name", ["philips_enhanced_anatomical_001", "hyperfine_anatomical_001"])
def test_enhanced_files_match_their_frames(edge, name):
    volume = read_dicom_series(edge / name)
    (ds,) = tags(edge / name)
    shared = ds.SharedFunctionalGroupsSequence[0]
    pixels = ds.pixel_array
    for k in range(volume.data.shape[2]):
        place = volume.affine[:3, 2] * k + volume.affine[:3, 3]
        origins = [
            np.array(g.PlanePositionSequence[0].ImagePositionPatient, float) * (-1, -1, 1)
            for g in ds.PerFrameFunctionalGroupsSequence
        ]
        distances = np.linalg.norm(np.array(origins) - place, axis=1)
        i = int(np.argmin(distances))
        assert distances[i] < 0.01
        group = ds.PerFrameFunctionalGroupsSequence[i]
        rescale = (
            group if "PixelValueTransformationSequence" in group else shared
        ).PixelValueTransformationSequence[0]
        wanted = pixels[i].T * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
        np.testing.assert_allclose(volume.data[..., k], wanted, rtol=1e-6, atol=1e-3)


def test_the_whole_tree_of_edge_cases_is_listed(edge):
    series = scan_series(edge)
    frames = [
        int(pydicom.dcmread(p, stop_before_pixels=True).get("NumberOfFrames", 1))
        for p in edge.rglob("*.dcm")
    ]
    assert sum(s.n_slices for s in series) == sum(frames)
    assert not any(s.problems for s in series)
