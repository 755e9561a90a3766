"""Files written by the phantoms, read back by pydicom and SimpleITK."""

import dataclasses

import numpy as np
import pydicom
import pytest

from medpipe.errors import UsageError
from medpipe.geometry import to_mm
from medpipe.phantoms.dicom_writer import (
    PADDING,
    Identity,
    SeriesSpec,
    SlicePlan,
    phantom_uid,
    write_ct_series,
    write_enhanced,
    write_mr_series,
    write_series,
)


def ramp(points):
    """A function whose value tells where it was asked."""
    return points[..., 0] * 2 - points[..., 1] + points[..., 2] * 3


Z = [0.0, 5.0, 10.0, 15.0]


def test_simpleitk_sees_the_same_volume(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    plan = SlicePlan.axial(Z, matrix=16)
    paths = write_ct_series(tmp_path, ramp, plan, spec=SeriesSpec(numbering="descending"))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(p) for p in paths])
    image = reader.Execute()
    data = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    np.testing.assert_allclose(image.GetSpacing(), (15, 15, 5), rtol=1e-9)
    for index in ((0, 0, 0), (3, 7, 2), (15, 0, 3)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(to_mm(plan.affine(), index), lps * (-1, -1, 1), atol=1e-6)
        assert data[index] == pytest.approx(ramp(lps * (-1, -1, 1)), abs=0.51)


def test_tilt_leans_the_planes_and_keeps_the_table_straight(tmp_path):
    plan = SlicePlan.axial(Z, matrix=8, tilt_deg=18.5)
    first, second = (pydicom.dcmread(p) for p in write_ct_series(tmp_path, ramp, plan)[:2])
    step = np.subtract(second.ImagePositionPatient, first.ImagePositionPatient)
    np.testing.assert_allclose(step, (0, 0, 5), atol=1e-9)
    normal = np.cross(first.ImageOrientationPatient[:3], first.ImageOrientationPatient[3:])
    lean = np.degrees(np.arccos(step @ normal / 5))
    assert lean == pytest.approx(18.5, abs=1e-6)
    assert float(first.GantryDetectorTilt) == 18.5
    middle = plan.points_mm(2).mean((0, 1))
    np.testing.assert_allclose(middle, (0, 0, 10), atol=1e-9)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "rle"])
def test_pixels_survive_every_syntax(tmp_path, syntax):
    plan = SlicePlan.axial(Z, matrix=32)
    spec = SeriesSpec(
        syntax=syntax,
        slope=[1.0, 1.25, 1.5, 2.0],
        intercept=[-1024.0, -1030.0, -1024.0, -1000.0],
        padding_circle=True,
        monochrome1=syntax == "implicit",
    )
    for index, path in enumerate(write_ct_series(tmp_path, ramp, plan, spec=spec)):
        ds = pydicom.dcmread(path)
        assert ds.file_meta.TransferSyntaxUID.is_implicit_VR == (syntax == "implicit")
        assert ds.file_meta.TransferSyntaxUID.is_compressed == (syntax == "rle")
        pixels = ds.pixel_array
        assert pixels[0, 0] == ds.PixelPaddingValue == PADDING
        inside = pixels != PADDING
        assert inside.mean() == pytest.approx(np.pi / 4, abs=0.05)
        value = pixels * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        error = np.abs(value - ramp(plan.points_mm(index)))[inside]
        assert error.max() <= float(ds.RescaleSlope) / 2 + 1e-9


REQUIRED = """
PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime
ReferringPhysicianName StudyID AccessionNumber Modality SeriesInstanceUID SeriesNumber
FrameOfReferenceUID PositionReferenceIndicator Manufacturer InstanceNumber ImageType
PixelSpacing ImageOrientationPatient ImagePositionPatient SliceThickness SOPClassUID
SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit
PixelRepresentation PixelData AcquisitionNumber
"""


def test_files_are_legal(tmp_path, monkeypatch):
    plan = SlicePlan.axial(Z[:2], matrix=8)
    files = write_ct_series(tmp_path / "ct", ramp, plan)
    files += write_mr_series(tmp_path / "mr", lambda p: np.abs(ramp(p)), plan)
    for path in files:
        ds = pydicom.dcmread(path)
        extra = "RescaleSlope RescaleIntercept KVP" if ds.Modality == "CT" else "EchoTime"
        assert not [k for k in (REQUIRED + extra).split() if k not in ds]
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
        assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID
        uids = [e.value for e in ds.iterall() if e.VR == "UI"]
        assert all(pydicom.uid.UID(u).is_valid for u in uids)
        # Strict reading refuses a value that its VR does not allow.
        monkeypatch.setattr(
            pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE
        )
        assert len(list(pydicom.dcmread(path).iterall())) > 40


def test_enhanced_frames_are_where_they_were_planned(tmp_path):
    plan = SlicePlan.axial(Z[::-1], matrix=8, tilt_deg=5)
    path = write_enhanced(tmp_path / "e.dcm", ramp, plan, SeriesSpec(slope=0.5))
    ds = pydicom.dcmread(path)
    assert ds.NumberOfFrames == 4
    for index, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        place = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(place, plan.positions_mm[index], atol=1e-9)
        assert group.FrameContentSequence[0].DimensionIndexValues == 4 - index
        value = ds.pixel_array[index] * 0.5 - 1024
        np.testing.assert_allclose(value, ramp(plan.points_mm(index)), atol=0.26)


def test_highdicom_reads_the_stack(tmp_path):
    highdicom = pytest.importorskip("highdicom")
    plan = SlicePlan.axial(Z, matrix=16)
    data = [pydicom.dcmread(p) for p in write_ct_series(tmp_path, ramp, plan)]
    volume = highdicom.get_volume_from_series(data)
    index = np.array([2, 3, 5])
    lps = volume.affine @ [*index, 1]
    assert volume.array[tuple(index)] == pytest.approx(ramp(lps[:3] * (-1, -1, 1)), abs=0.51)


def test_canaries_are_exactly_where_they_were_planted(tmp_path):
    who = Identity(
        name="CANARYNAME^A",
        patient_id="CANARYID",
        accession="CANARYACC",
        study_description="CANARYSTUDY",
        comments="CANARYCOMMENT",
        private_tag="CANARYPRIVATE",
    )
    plan = SlicePlan.axial(Z[:1], matrix=8)
    (path,) = write_series(tmp_path, ramp, plan, SeriesSpec(), identity=who)
    ds = pydicom.dcmread(path)
    planted = {e.tag: str(e.value) for e in ds.iterall() if "CANARY" in str(e.value)}
    assert sorted(planted.values()) == sorted(
        text for text in dataclasses.astuple(who) if "CANARY" in text
    )
    assert b"CANARY" not in write_series(tmp_path / "b", ramp, plan, SeriesSpec())[0].read_bytes()
    assert "CANARY" not in path.name


def test_same_study_same_bytes_other_study_other_uids(tmp_path):
    plan = SlicePlan.axial(Z[:2], matrix=8)
    a, b, c = (
        write_ct_series(tmp_path / n, ramp, plan, study=("s", k))
        for n, k in (("a", 0), ("b", 0), ("c", 1))
    )
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]
    assert pydicom.dcmread(a[0]).StudyInstanceUID != pydicom.dcmread(c[0]).StudyInstanceUID
    assert phantom_uid("x", 1).startswith("2.25.")
    assert len(phantom_uid("x", 1)) <= 64


def test_unknown_choices_are_refused():
    for wrong in ({"syntax": "zip"}, {"modality": "US"}):
        with pytest.raises(UsageError, match="unknown"):
            SeriesSpec(**wrong)
