"""LoadVolume(d) and SaveVolume(d): files in, MetaTensors out, and back."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import dicom_inputs
import monai.transforms as mt
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medpipe.errors import InputError, StoreError, UsageError
from medpipe.io.detect import detect_kind
from medpipe.io.nifti import read_nifti
from medpipe.io.transforms import (
    LoadVolume,
    LoadVolumed,
    SaveVolume,
    SaveVolumed,
    metatensor_from_volume,
    volume_from_metatensor,
)
from medpipe.types import Finding, Severity, Volume

AFFINE = np.array([[-0.7, 0, 0, 90], [0, 0.7, 0.1, -110], [0, 0, 1.25, 40], [0, 0, 0, 1]])


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def rising(*shape: int, dtype: str = "int16") -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) - 11).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_load_three_axes(dtype: str, suffix: str, tmp_path: Path) -> None:
    data = rising(5, 4, 3, dtype=dtype)
    image = LoadVolume()(str(save(tmp_path / f"a{suffix}", data)))
    assert isinstance(image, MetaTensor)
    assert image.shape == (1, 5, 4, 3)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert image.affine.dtype == torch.float64
    np.testing.assert_array_equal(image.numpy()[0], data.astype(np.float32))
    np.testing.assert_allclose(image.affine.numpy(), AFFINE, atol=1e-5)
    assert image.meta["space"] == "RAS"


def test_load_four_axes_as_channels(tmp_path: Path) -> None:
    data = rising(5, 4, 3, 2)
    path = save(tmp_path / "a.nii.gz", data)
    with pytest.raises(InputError, match="4 axes"):
        LoadVolume()(path)
    image = LoadVolume(ndim=[3, 4])(path)
    assert image.shape == (2, 5, 4, 3)
    for t in range(2):
        np.testing.assert_array_equal(image[t].numpy(), data[..., t].astype(np.float32))


def test_load_keeps_complex(tmp_path: Path) -> None:
    data = (rising(5, 4, 3, dtype="float32") * (1 + 2j)).astype(np.complex128)
    image = LoadVolume()(save(tmp_path / "a.nii", data))
    assert image.dtype == torch.complex64
    np.testing.assert_array_equal(image.numpy()[0], data)


def test_meta_is_json_and_holds_the_findings(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    image = nib.Nifti1Image(rising(5, 4, 3), AFFINE)
    image.header["descrip"] = b"ZZCANARY"
    nib.save(image, path)
    meta = LoadVolume()(path).meta["medpipe"]
    assert json.loads(json.dumps(meta)) == meta
    assert set(meta) == {"source", "findings"}
    assert meta["source"]["kind"] == "nifti"
    assert [f["check"] for f in meta["findings"]] == ["nifti.units"]
    assert "CANARY" not in json.dumps(meta)


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 2), (1, 1, 1), (7, 1, 2)])
def test_volume_to_metatensor_and_back(shape: tuple[int, ...]) -> None:
    findings = [Finding("a.b", Severity.ERROR, "m", "a.b", True), Finding("c", Severity.INFO, "n")]
    given = Volume(rising(*shape, dtype="float32"), AFFINE, {"kind": "test"}, findings)
    tensor = metatensor_from_volume(given)
    assert tensor.shape == (shape[3] if len(shape) == 4 else 1, *shape[:3])
    back = volume_from_metatensor(tensor)
    np.testing.assert_array_equal(back.data, given.data)
    np.testing.assert_array_equal(back.affine, AFFINE)
    assert back.source == given.source
    assert back.findings == findings
    back.data[...] = 0
    assert tensor.abs().sum() > 0 or tensor.numel() == 1  # a copy


def test_integers_that_float32_cannot_hold_are_reported() -> None:
    exact = metatensor_from_volume(Volume(np.full((2, 2, 2), 2**24, np.int32), np.eye(4)))
    assert exact.meta["medpipe"]["findings"] == []
    rounded = metatensor_from_volume(Volume(np.full((2, 2, 2), -(2**24) - 1, np.int32), np.eye(4)))
    assert [f["check"] for f in rounded.meta["medpipe"]["findings"]] == ["volume.float32"]


def test_floats_beyond_float32_are_refused() -> None:
    with pytest.raises(InputError, match="float32"):
        metatensor_from_volume(Volume(np.full((2, 2, 2), 1e300), np.eye(4)))


def test_dictionary_form_touches_its_keys_only(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", rising(5, 4, 3))
    given = {"ct": str(path), "mr": path, "age": 7}
    out = LoadVolumed(["ct", "mr"])(given)
    assert out["age"] == 7
    assert given["ct"] == str(path)
    assert torch.equal(out["ct"].as_tensor(), out["mr"].as_tensor())
    assert "x" not in LoadVolumed(["ct", "x"], allow_missing_keys=True)(given)
    with pytest.raises(KeyError):
        LoadVolumed(["ct", "x"])(given)


def test_options_reach_the_reader(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", rising(5, 4, 3))
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # both form codes
    content[88:92] = bytes(4)  # pixdim[3]
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="orientation"):
        LoadVolumed("ct", fixes=["nifti.zero_pixdim"])({"ct": path})
    with pytest.raises(InputError, match="zero_pixdim"):
        LoadVolumed("ct", assume_orientation="RAS")({"ct": path})
    load = LoadVolumed("ct", fixes=["nifti.zero_pixdim"], assume_orientation="RAS")
    image = load({"ct": path})["ct"]
    np.testing.assert_allclose(image.affine.numpy().diagonal(), [0.7, 0.7069, 1, 1], atol=0.02)
    big = save(tmp_path / "b.nii", rising(64, 64, 64))
    with pytest.raises(InputError, match="GiB"):
        LoadVolume(max_gb=0.0005)(big)


@pytest.mark.parametrize("options", [{"max_gb": 0}, {"max_gb": -1}, {"fixes": ["x"]}])
def test_wrong_options_fail_before_any_file_is_touched(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LoadVolumed("ct", **options)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")  # of LoadImage
def test_monai_takes_the_loaded_image(tmp_path: Path) -> None:
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    data = rising(6, 5, 4)
    image = LoadVolume()(save(tmp_path / "a.nii.gz", data, affine))
    turned = mt.Orientation("RAS", labels=None)(image)
    np.testing.assert_array_equal(turned.numpy()[0], data[::-1, ::-1])
    reference = mt.LoadImage("NibabelReader", ensure_channel_first=True)(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(reference.affine.numpy(), image.affine.numpy())
    np.testing.assert_array_equal(reference.numpy(), image.numpy())
    assert mt.EnsureChannelFirst()(image).shape == image.shape


@pytest.mark.parametrize("dtype", [None, "int16", "float32"])
def test_save_and_load_again(dtype: str | None, tmp_path: Path) -> None:
    image = metatensor_from_volume(Volume(rising(5, 4, 3), AFFINE, {"kind": "test"}))
    out = SaveVolumed("ct", str(tmp_path), "ct.nii.gz", dtype=dtype)({"ct": image})
    again = LoadVolume()(tmp_path / "ct.nii.gz")
    assert torch.equal(out["ct"].as_tensor(), again.as_tensor())
    assert torch.equal(out["ct"].affine, again.affine)
    assert torch.equal(image.as_tensor(), again.as_tensor())
    assert out["ct"].meta["medpipe"]["source"] == {"kind": "test"}
    assert read_nifti(tmp_path / "ct.nii.gz").data.dtype == np.dtype(dtype or "float32")


def test_save_several_channels(tmp_path: Path) -> None:
    data = rising(5, 4, 3, 2)
    SaveVolume(str(tmp_path))(metatensor_from_volume(Volume(data, AFFINE)), "a.nii")
    np.testing.assert_array_equal(nib.load(tmp_path / "a.nii").get_fdata(), data)


def test_save_refuses_what_would_change(tmp_path: Path) -> None:
    image = metatensor_from_volume(Volume(rising(5, 4, 3) / 2, AFFINE))
    with pytest.raises(StoreError, match="int16"):
        SaveVolume(str(tmp_path), "int16")(image, "a.nii")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("names", [["a.nii"], ["a.nii", "a.nii"], ["../a.nii", "b.nii"]])
def test_save_refuses_wrong_names(names: list[str], tmp_path: Path) -> None:
    image = metatensor_from_volume(Volume(rising(5, 4, 3), AFFINE))
    with pytest.raises(UsageError):
        SaveVolumed(["a", "b"], str(tmp_path), names)({"a": image, "b": image})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("wrong", [torch.zeros(1, 2, 2, 2), MetaTensor(torch.zeros(2, 2, 2))])
def test_save_needs_an_image(wrong: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        SaveVolume(str(tmp_path))(wrong, "a.nii")  # type: ignore[arg-type]


def write_series(folder: Path, n: int = 4) -> np.ndarray:
    """A small axial CT, 2.5 mm apart; returns HU of shape (I, J, K)."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    hu = rising(6, 5, n) * 10
    for k in range(n):
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber, ds.SeriesNumber, ds.PatientID = n - k, 3, "ZZCANARY"
        ds.ImagePositionPatient = [-10, -20, 30 + 2.5 * k]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [0.8, 0.6], 2.5
        ds.Rows, ds.Columns, ds.SamplesPerPixel = 5, 6, 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1000
        ds.PixelData = (hu[..., k].T + 1000).astype("<i2").tobytes()
        ds.save_as(folder / f"{k}.dcm", enforce_file_format=True)
    return hu


def test_load_dicom_folder_and_file(tmp_path: Path) -> None:
    hu = write_series(tmp_path)
    image = LoadVolumed("ct")({"ct": tmp_path})["ct"]
    np.testing.assert_array_equal(image.numpy()[0], hu)
    want = np.array([[-0.6, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    np.testing.assert_allclose(image.affine.numpy(), want, atol=1e-6)
    meta = json.dumps(image.meta["medpipe"])
    assert "CANARY" not in meta
    one = LoadVolume()(tmp_path / "0.dcm")
    assert one.shape == (1, 6, 5, 1)


def test_dicom_options_reach_the_reader(tmp_path: Path) -> None:
    hu = write_series(tmp_path)
    (tmp_path / "1.dcm").unlink()
    with pytest.raises(InputError, match="missing"):
        LoadVolume()(tmp_path)
    image = LoadVolume(missing_slices="interpolate")(tmp_path)
    assert image.shape == (1, 6, 5, 4)
    np.testing.assert_array_equal(image.numpy()[0][..., [0, 2, 3]], hu[..., [0, 2, 3]])
    with pytest.raises(InputError):
        LoadVolume(select={"modality": "MR"})(tmp_path)
    with pytest.raises(InputError, match="axes"):
        LoadVolume(missing_slices="interpolate", ndim=4)(tmp_path)


def test_detect_kind(tmp_path: Path) -> None:
    write_series(tmp_path, 1)
    nifti = save(tmp_path / "a.nii", rising(5, 4, 3))
    packed = save(tmp_path / "a.nii.gz", rising(5, 4, 3))
    assert detect_kind(tmp_path) == detect_kind(tmp_path / "0.dcm") == "dicom"
    assert detect_kind(nifti) == detect_kind(str(packed)) == "nifti"
    nifti.rename(tmp_path / "looks_like.dcm")
    assert detect_kind(tmp_path / "looks_like.dcm") == "nifti"
    (tmp_path / "x.dcm.gz").write_bytes(gzip.compress((tmp_path / "0.dcm").read_bytes()))
    with pytest.raises(InputError, match="neither NIfTI nor DICOM"):
        detect_kind(tmp_path / "x.dcm.gz")
    with pytest.raises(InputError, match="cannot be opened"):
        detect_kind(tmp_path / "absent")


def test_detect_imports_no_reader() -> None:
    import subprocess
    import sys

    code = (
        "import sys, medpipe.io.detect\n"
        "heavy = {'numpy', 'nibabel', 'pydicom', 'torch', 'monai'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    [
        "brain_mr/MR_Gd.nii.gz",
        "brain_mr/chris_PD.nii.gz",
        "ct_template/scct.nii",
        "aorta_ct/aorta_ct_cropped.nii.gz",
        "glioma_mpmri_tcga/TCGA-FG-6692_fla.nii.gz",
    ],
)
def test_real_images_as_nibabel_reads_them(name: str, real_data: Path) -> None:
    image = nib.load(real_data / name)
    volume = read_nifti(real_data / name)
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-6)
    np.testing.assert_array_equal(
        volume.data, np.asanyarray(image.dataobj).astype(volume.data.dtype)
    )
    assert all(f.severity < Severity.ERROR for f in volume.findings)


def test_time_points_that_were_asked_for_become_channels(tmp_path: Path) -> None:
    origins = [(0.0, 0.0, 3.0 * k) for k in range(4)]
    for t in (1, 2, 3):

        def at_time(points: np.ndarray, t: int = t) -> np.ndarray:
            return dicom_inputs.ramp(points) + 100 * t

        dicom_inputs.write_series(
            tmp_path,
            origins,
            value=at_time,
            series="1.2.3.4",
            study="1.2.3",
            name=lambda k, t=t: f"{t}_{k}.dcm",
            edit=lambda ds, k, t=t: setattr(ds, "TemporalPositionIdentifier", t),
        )
    with pytest.raises(InputError, match="time points"):
        LoadVolume()(tmp_path)
    image = LoadVolume(time_points="stack")(tmp_path)
    assert image.shape == (3, 12, 14, 4)
    np.testing.assert_array_equal(image[1] - image[0], 100)
    np.testing.assert_array_equal(image[2] - image[0], 200)
