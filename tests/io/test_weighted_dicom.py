"""Sets of weighted images from DICOM: settings from headers, values on one scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from scipy import ndimage

from medpipe.errors import InputError
from medpipe.io.dicom_series import assemble_series, scan_series
from medpipe.io.weighted import LoadWeighted

ROWS, COLS, SLICES = 4, 6, 3


def header(path: Path, sop_class: str, series: int, syntax: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = syntax
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID = "MUSTERMANN^ERIKA", "HN-448812"
    ds.StudyInstanceUID = ds.FrameOfReferenceUID = generate_uid(entropy_srcs=["study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(series)])
    ds.Modality, ds.SeriesNumber = "MR", series
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    ds.Rows, ds.Columns = ROWS, COLS
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    return ds


def write(
    folder: Path, series: int, value: int, *, syntax: str = ExplicitVRLittleEndian, **tags: Any
) -> None:
    """Write one image of three slices; its voxels are `value` plus the slice."""
    folder.mkdir(parents=True, exist_ok=True)
    private = tags.pop("private", None)
    creator = tags.pop("creator", "Philips MR Imaging DD 001")
    slices = tags.pop("slices", SLICES)
    for k in range(slices):
        path = folder / f"{series:03d}_{value}_{k}.dcm"
        ds = header(path, MRImageStorage, series, syntax)
        ds.PixelSpacing, ds.SliceThickness = [1.0, 1.0], 2.0
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [tags.get("shift", 0), 0, 2.0 * k]
        for name, content in tags.items():
            if name != "shift":
                setattr(ds, name, content)
        if private is not None:
            block = ds.private_block(0x2005, creator, create=True)
            block.add_new(0x0E, "FL", private)
        ds.PixelData = np.full((ROWS, COLS), value + k, np.uint16).tobytes()
        ds.save_as(path)


def settings(image) -> list[dict[str, Any]]:
    return image.meta["medpipe"]["source"]["acquisitions"]


def checks(image) -> dict[str, str]:
    return {f["check"]: f["message"] for f in image.meta["medpipe"]["findings"]}


def test_series_of_inversion_times_are_ordered_by_them(tmp_path: Path):
    common = {"ScanningSequence": ["SE", "IR"], "EchoTime": 12, "FlipAngle": 90}
    write(tmp_path, 3, 30, InversionTime=50, RepetitionTime=1000, **common)
    write(tmp_path, 1, 10, InversionTime=800, RepetitionTime=2460, **common)
    write(tmp_path, 2, 20, InversionTime=200, RepetitionTime=1000, **common)
    image = LoadWeighted()(tmp_path)
    assert image.shape == (3, COLS, ROWS, SLICES)
    assert image[:, 0, 0, 0].tolist() == [30.0, 20.0, 10.0]
    assert image[0, 0, 0].tolist() == [30.0, 31.0, 32.0]
    assert settings(image)[2] == {
        "inversion_time_s": 0.8,
        "repetition_time_s": 2.46,
        "echo_time_s": 0.012,
        "flip_angle_deg": 90.0,
        "suffix": "IRT1",
        "complex_part": "magnitude",
    }
    text = json.dumps(image.meta["medpipe"])
    assert not any(word in text for word in ("MUSTER", "448812", str(tmp_path)))


def test_echoes_of_one_series_become_images(tmp_path: Path):
    for echo in (1, 2, 3):
        write(tmp_path, 8, 10 * echo, EchoTime=12.7 * echo, ScanningSequence="SE")
    image = LoadWeighted()(tmp_path)
    assert image[:, 0, 0, 0].tolist() == [10.0, 20.0, 30.0]
    assert [s["echo_time_s"] for s in settings(image)] == [0.0127, 0.0254, 0.0381]
    assert {s["suffix"] for s in settings(image)} == {"MESE"}


def test_images_that_are_certainly_of_another_kind_are_refused(tmp_path: Path):
    for echo in (1, 2):
        write(tmp_path, 8, 10 * echo, EchoTime=10 * echo, ScanningSequence="SE", InversionTime=50)
    with pytest.raises(InputError, match="expected IRT1 or VFA, got MESE"):
        LoadWeighted(suffix=["IRT1", "VFA"])(tmp_path)
    assert len(LoadWeighted(suffix=["VFA", "MESE"])(tmp_path)) == 2


def test_what_headers_leave_open_is_what_was_asked_for(tmp_path: Path):
    for number, time in enumerate((700, 2500), start=1):
        tags = {"InversionTime": time, "ScanningSequence": ["GR", "IR"], "FlipAngle": 4}
        write(tmp_path, number, number, **tags)
    assert "suffix" not in settings(LoadWeighted()(tmp_path))[0]
    image = LoadWeighted(suffix="MP2RAGE", settings="optional")(tmp_path)
    assert settings(image)[1]["suffix"] == "MP2RAGE"
    with pytest.raises(InputError, match="RepetitionTimePreparation, NumberShots is missing"):
        LoadWeighted(suffix="MP2RAGE")(tmp_path)


def test_flip_angles_of_a_gradient_echo_are_vfa_and_need_a_repetition_time(tmp_path: Path):
    for number, angle in enumerate((12, 2), start=1):
        write(tmp_path, number, angle, FlipAngle=angle, ScanningSequence="GR", RepetitionTime=5.4)
    image = LoadWeighted()(tmp_path)
    assert [s["flip_angle_deg"] for s in settings(image)] == [2.0, 12.0]
    assert {s["repetition_time_s"] for s in settings(image)} == {0.0054}
    write(tmp_path, 3, 20, FlipAngle=20, ScanningSequence="GR")
    with pytest.raises(InputError, match=r"image 3 of 3 \(VFA\): RepetitionTimeExcitation is mis"):
        LoadWeighted()(tmp_path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_philips_values_are_divided_by_both_slopes(tmp_path: Path, syntax: str):
    # (stored · slope + intercept) / (slope · scale slope)
    scales = {1: (1.25, 0.5), 2: (2.0, 0.125)}
    for number, (slope, private) in scales.items():
        tags = {"RescaleSlope": slope, "RescaleIntercept": 10, "private": private}
        write(tmp_path, number, 100, InversionTime=100 * number, syntax=syntax, **tags)
    image = LoadWeighted()(tmp_path)
    expected = [(100 * s + 10) / (s * p) for s, p in scales.values()]
    assert image[:, 0, 0, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert "scale slope of Philips" in checks(image)["weighted.philips_scale"]


def test_a_private_tag_of_another_maker_is_no_scale(tmp_path: Path):
    tags = {"RescaleSlope": 2, "RescaleIntercept": 0, "private": 0.5, "creator": "ACME"}
    write(tmp_path, 1, 100, InversionTime=100, **tags)
    write(tmp_path, 2, 100, InversionTime=200, RescaleSlope=3, RescaleIntercept=0)
    image = LoadWeighted()(tmp_path)
    assert image[:, 0, 0, 0].tolist() == [200.0, 300.0]
    assert "may be on different scales" in checks(image)["weighted.scale"]


def test_a_scale_slope_in_some_images_alone_is_refused(tmp_path: Path):
    write(tmp_path, 1, 100, InversionTime=100, private=0.5)
    write(tmp_path, 2, 100, InversionTime=200)
    with pytest.raises(InputError, match=r"only some images .* got 3 of 6 slices"):
        LoadWeighted()(tmp_path)


def test_phase_and_derived_images_are_left_and_said_so(tmp_path: Path):
    write(tmp_path, 1, 10, InversionTime=100)
    write(tmp_path, 2, 20, InversionTime=100, ImageType=["ORIGINAL", "PRIMARY", "P"])
    write(tmp_path, 3, 30, InversionTime=100, ImageType=["DERIVED", "PRIMARY", "M"])
    write(tmp_path, 4, 40, InversionTime=100, ImageType=["ORIGINAL", "PRIMARY", "R"])
    image = LoadWeighted()(tmp_path)
    assert image[:, 0, 0, 0].tolist() == [10.0]
    assert "3 series of phase or derived images" in checks(image)["weighted.part"]
    real = LoadWeighted(part="real")(tmp_path)
    assert real[:, 0, 0, 0].tolist() == [40.0]
    assert settings(real)[0]["complex_part"] == "real"
    assert "no phase" in checks(LoadWeighted(part="signed")(tmp_path))["weighted.sign"]


def test_images_that_settings_do_not_tell_apart_are_refused(tmp_path: Path):
    write(tmp_path, 1, 10, EchoTime=10)
    write(tmp_path, 1, 20, EchoTime=10)
    with pytest.raises(InputError, match="settings do not tell them apart"):
        LoadWeighted()(tmp_path)


def test_a_set_with_a_missing_slice_or_another_place_names_the_image(tmp_path: Path):
    write(tmp_path, 1, 10, InversionTime=100)
    write(tmp_path, 2, 20, InversionTime=200, slices=2)
    with pytest.raises(InputError, match=r"image 2 of 2: .*got 6 × 4 × 2 voxels"):
        LoadWeighted()(tmp_path)
    assert LoadWeighted(select={"series_number": 2})(tmp_path).shape == (1, COLS, ROWS, 2)
    write(tmp_path, 3, 30, InversionTime=50, shift=4)
    with pytest.raises(InputError, match=r"image 2 of 2: .*got another place"):
        LoadWeighted(select={"min_slices": 3})(tmp_path)


def test_a_folder_without_settings_is_refused_unless_they_are_optional(tmp_path: Path):
    write(tmp_path, 1, 10)
    with pytest.raises(InputError, match="image 1 of 1: no setting is given"):
        LoadWeighted()(tmp_path)
    assert settings(LoadWeighted(settings="optional")(tmp_path)) == [{"complex_part": "magnitude"}]


def test_another_modality_is_no_set(tmp_path: Path):
    write(tmp_path, 1, 10, Modality="CT", EchoTime=5)
    with pytest.raises(InputError, match="no MR series"):
        LoadWeighted()(tmp_path)


def one(**tags: Any) -> list[Dataset]:
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return [item]


def test_an_enhanced_object_gives_the_settings_and_scales_of_its_frames(tmp_path: Path):
    path = tmp_path / "enhanced.dcm"
    ds = header(path, EnhancedMRImageStorage, 5, ExplicitVRLittleEndian)
    shared = Dataset()
    shared.PixelMeasuresSequence = one(PixelSpacing=[1, 1], SliceThickness=2)
    shared.PlaneOrientationSequence = one(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.MRTimingAndRelatedParametersSequence = one(RepetitionTime=2000.0, FlipAngle=90.0)
    shared.MRModifierSequence = one(InversionTimes=[150.0])
    shared.PixelValueTransformationSequence = one(
        RescaleSlope=2.0, RescaleIntercept=0.0, RescaleType="US"
    )
    ds.SharedFunctionalGroupsSequence = [shared]
    frames, planes = [], []
    for echo in (20.0, 10.0):
        for k in range(SLICES):
            frame = Dataset()
            frame.FrameContentSequence = one(StackID="1", DimensionIndexValues=[k + 1])
            frame.PlanePositionSequence = one(ImagePositionPatient=[0, 0, 2.0 * k])
            frame.MREchoSequence = one(EffectiveEchoTime=echo)
            private = Dataset()
            private.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(
                0x0E, "FL", 0.25
            )
            outer = frame.private_block(0x2005, "Philips MR Imaging DD 005", create=True)
            assert outer.get_tag(0x0F) == (0x2005, 0x100F)
            frame.add_new((0x2005, 0x140F), "SQ", [private])
            frames.append(frame)
            planes.append(np.full((ROWS, COLS), echo + k, np.uint16))
    ds.PerFrameFunctionalGroupsSequence, ds.NumberOfFrames = frames, len(frames)
    ds.PixelData = np.stack(planes).tobytes()
    ds.save_as(path)
    image = LoadWeighted(suffix="MESE")(path)
    assert image[:, 0, 0, 0].tolist() == [40.0, 80.0]
    assert [s["echo_time_s"] for s in settings(image)] == [0.01, 0.02]
    assert {s["repetition_time_s"] for s in settings(image)} == {2.0}
    assert {s["inversion_time_s"] for s in settings(image)} == {0.15}
    assert "weighted.philips_scale" in checks(image)


REAL = {
    "T1/site1_20200218/plate5": ("IRT1", 6, 192),
    "T1/site3_ge/plate4": ("IRT1", 6, 256),
    "T1/site3_ge/plate5": ("IRT1", 6, 256),
    "T1/site4_philips/plate4": ("IRT1", 6, 192),
    "T1/site4_philips/plate5": ("IRT1", 6, 192),
    "T2/site1_20200218/plate4": ("MESE", 32, 192),
    "T2/site3_ge/plate4": ("MESE", 8, 256),
    "T2/site3_ge/plate5": ("MESE", 8, 256),
}


@pytest.mark.real_data
@pytest.mark.parametrize("folder", REAL)
def test_phantom_series_of_three_makers_load_with_their_settings(real_data: Path, folder: str):
    suffix, count, matrix = REAL[folder]
    image = LoadWeighted()(real_data / "qmri" / "phantom_relaxometry" / folder)
    assert image.shape == (count, matrix, matrix, 1)
    name = {"IRT1": "inversion_time_s", "MESE": "echo_time_s"}[suffix]
    values = [s[name] for s in settings(image)]
    assert values == sorted(set(values))
    assert {s["suffix"] for s in settings(image)} == {suffix}
    if suffix == "IRT1":
        assert values == [0.05, 0.1, 0.2, 0.4, 0.6, 0.8]
    else:  # an even train that starts at one spacing
        np.testing.assert_allclose(values, values[0] * np.arange(1, count + 1), rtol=1e-3)
    assert ("weighted.philips_scale" in checks(image)) == ("philips" in folder)


@pytest.mark.real_data
@pytest.mark.parametrize("folder", REAL)
def test_phantom_images_hold_the_pixels_of_the_file_with_their_settings(
    real_data: Path, folder: str
):
    place = real_data / "qmri" / "phantom_relaxometry" / folder
    image = LoadWeighted()(place)
    tag, name = {
        "IRT1": ("InversionTime", "inversion_time_s"),
        "MESE": ("EchoTime", "echo_time_s"),
    }[REAL[folder][0]]
    channels = {s[name]: channel for s, channel in zip(settings(image), image, strict=True)}
    for path in place.rglob("*"):
        if path.is_file():
            ds = dcmread(path)
            scale = float(ds[0x2005, 0x100E].value) if "philips" in folder else 1.0
            stored = ds.pixel_array.astype(np.float64)
            offset = float(ds.get("RescaleIntercept", 0)) / float(ds.get("RescaleSlope", 1))
            channel = channels.pop(round(float(ds[tag].value) / 1000, 7))
            expected = (stored + offset) / scale
            np.testing.assert_allclose(channel[..., 0].numpy().T, expected, rtol=1e-6)
    assert not channels


def residual(values: np.ndarray, times: np.ndarray) -> float:
    """Return the relative residual of the best |a + b·exp(-t/T1)| over T1 and the sign change."""
    best = np.inf
    for t1 in np.geomspace(0.02, 3, 120):
        basis = np.stack([np.ones_like(times), np.exp(-times / t1)], 1)
        for change in range(len(times) + 1):
            signs = np.where(np.arange(len(times)) < change, -1.0, 1.0)
            fit = basis @ np.linalg.lstsq(basis, signs * values, rcond=None)[0]
            best = min(best, float(np.linalg.norm(fit - signs * values)))
    return best / float(np.linalg.norm(values))


@pytest.mark.real_data
def test_the_scale_of_philips_makes_the_recovery_exponential(real_data: Path):
    folder = real_data / "qmri" / "phantom_relaxometry" / "T1" / "site4_philips" / "plate4"
    image = LoadWeighted()(folder)
    times = np.array([s["inversion_time_s"] for s in settings(image)])
    shown = {s.frames[0].settings["inversion_time_s"]: s for s in scan_series(folder)}
    displayed = np.stack([assemble_series(shown[t]).data[..., 0] for t in times])
    measured = image.numpy()[..., 0]
    mean = ndimage.uniform_filter(measured, (0, 5, 5))
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(measured**2, (0, 5, 5)) - mean**2, 0))
    flat, _ = ndimage.label(((spread / np.maximum(mean, 1)).max(0) < 0.05) & (mean.min(0) > 500))
    spheres = [flat == n for n in range(1, flat.max() + 1) if (flat == n).sum() >= 30]
    assert len(spheres) >= 5
    for sphere in spheres:
        assert residual(measured[:, sphere].mean(1), times) < 0.01
        assert residual(displayed[:, sphere].mean(1), times) > 0.03
