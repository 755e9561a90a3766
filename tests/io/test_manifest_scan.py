"""Manifests from folders: one row per image, each leading to that image alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from medpipe.errors import InputError, UsageError
from medpipe.io.manifest import read_manifest
from medpipe.io.manifest_scan import detect_tree, scan_to_manifest

PATIENTS = {"MUSTERMANN^ERIKA": "HN-448812", "DOE^JOHN": "HN-112233"}


def write_series(folder: Path, name: str, number: int, n: int, prefix: str = "", **more) -> None:
    """Write a small axial CT series whose voxels all have the value `number`."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    identity = more.pop("patient_id", PATIENTS[name])
    study = generate_uid(entropy_srcs=[name])
    series = generate_uid(entropy_srcs=[name, str(number)])
    for k in range(n):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(k)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{prefix}{name.partition('^')[0]}_{number}_{k}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.PatientName, ds.PatientID = name, identity
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.FrameOfReferenceUID = study
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", number, k + 1
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.SeriesDescription = f"head of {name}"
        ds.Rows = ds.Columns = 8
        ds.PixelSpacing, ds.SliceThickness = [1.0, 1.0], 2.0
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [0, 0, 2.0 * k]
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.RescaleSlope, ds.RescaleIntercept = 1, 0
        ds.PixelData = np.full((8, 8), number, np.int16).tobytes()
        ds.save_as(path)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    root = tmp_path / "export"
    first, second = PATIENTS
    write_series(root / "a", first, 3, 5)
    write_series(root / "b", first, 4, 4)
    write_series(root / "mixed", second, 5, 4)
    write_series(root / "mixed", second, 6, 6)
    (root / "README.txt").write_text("hello")
    return root


def values(path: str) -> set[float]:
    from medpipe.io.dicom_series import read_dicom_series

    return set(np.unique(read_dicom_series(path).data).tolist())


def test_each_row_leads_to_one_series(hospital: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = tmp_path / "cases.csv"
    report = scan_to_manifest(
        hospital, out, input_name="ct", progress=lambda *step: steps.append(step)
    )
    cases = read_manifest(out, inputs=["ct"], check_files=True)
    assert [c.case_id for c in cases] == [c.case_id for c in report.cases]
    assert {c.case_id for c in cases} == {"p0001_s01", "p0001_s02", "p0002_s01", "p0002_s02"}
    by_patient: dict[str | None, set[float]] = {}
    for case in cases:
        by_patient.setdefault(case.patient_id, set()).update(values(case.inputs["ct"]))
        assert len(values(case.inputs["ct"])) == 1
    assert sorted(by_patient.values(), key=min) == [{3, 4}, {5, 6}]
    assert [c.covariates["slices"] for c in cases if values(c.inputs["ct"]) == {6}] == ["6"]
    assert report.linked == 2
    assert steps[-1] == (20, 20)
    assert report.findings[0].check == "dicom.not_dicom"


def test_nothing_of_the_patient_reaches_the_manifest(hospital: Path, tmp_path: Path) -> None:
    out = tmp_path / "cases.csv"
    scan_to_manifest(hospital, out, input_name="ct")
    names = "\n".join(p.name for p in (tmp_path / "cases_series").rglob("*"))
    text = out.read_text() + names
    for planted in ("MUSTERMANN", "ERIKA", "DOE", "HN-", "448812", "1.2.826", "head of"):
        assert planted not in text


def test_links_take_no_space_and_follow_a_new_scan(hospital: Path, tmp_path: Path) -> None:
    out = tmp_path / "cases.csv"
    scan_to_manifest(hospital, out)
    linked = sorted((tmp_path / "cases_series").rglob("*.dcm"))
    sources = {os.stat(p).st_ino for p in (hospital / "mixed").iterdir()}
    assert {os.stat(p).st_ino for p in linked} == sources
    for path in (hospital / "mixed").glob("*_6_*"):
        path.unlink()
    write_series(hospital / "mixed", "DOE^JOHN", 2, 3)
    cases = {c.case_id: c for c in scan_to_manifest(hospital, out).cases}
    found = sorted(str(values(c.inputs["image"])) for c in cases.values())
    assert found == ["{2}", "{3}", "{4}", "{5}"]
    (tmp_path / "cases_series" / linked[0].parent.name / "mine.txt").touch()
    with pytest.raises(UsageError, match="other files"):
        scan_to_manifest(hospital, out)


def test_links_below_the_scanned_folder_are_refused(hospital: Path) -> None:
    with pytest.raises(UsageError, match="below the scanned folder"):
        scan_to_manifest(hospital, hospital / "cases.csv")
    assert not (hospital / "cases.csv").exists()


def test_rules_and_what_is_left_out(hospital: Path, tmp_path: Path) -> None:
    out = tmp_path / "cases.csv"
    report = scan_to_manifest(hospital, out, rules={"most_slices": True})
    assert sorted(values(c.inputs["image"]).pop() for c in report.cases) == [3, 6]
    assert len(report.left_out) == 2
    report = scan_to_manifest(hospital, out, rules={"series_number": 5})
    assert [values(c.inputs["image"]) for c in report.cases] == [{5}]
    with pytest.raises(InputError, match="4 left out"):
        scan_to_manifest(hospital, tmp_path / "no.csv", rules={"modality": "MR"})
    assert not (tmp_path / "no.csv").exists()
    with pytest.raises(UsageError):
        scan_to_manifest(hospital, out, rules={"colour": "red"})


def test_parts_of_a_series_need_a_rule(hospital: Path, tmp_path: Path) -> None:
    from pydicom import dcmread

    for path in sorted((hospital / "a").iterdir())[:2]:
        ds = dcmread(path)
        ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        ds.ImagePositionPatient = [0, ds.ImagePositionPatient[2], 0]
        ds.save_as(path)
    report = scan_to_manifest(hospital, tmp_path / "cases.csv")
    assert sorted(values(c.inputs["image"]).pop() for c in report.cases) == [4, 5, 6]
    assert [why for _, why in report.left_out] == ["it is one of several parts of a series"] * 2
    rules = {"orientation": "axial", "series_number": 3}
    (case,) = scan_to_manifest(hospital, tmp_path / "cases.csv", rules=rules).cases
    assert values(case.inputs["image"]) == {3}
    assert case.covariates["slices"] == "3"


def test_a_damaged_series_gets_no_row(hospital: Path, tmp_path: Path) -> None:
    victim = sorted((hospital / "a").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:200])
    report = scan_to_manifest(hospital, tmp_path / "cases.csv")
    assert sorted(values(c.inputs["image"]).pop() for c in report.cases) == [4, 5, 6]
    assert len(report.left_out) == 1
    assert "MUSTER" not in str(report.left_out)


def test_pseudonyms_survive_another_scan(hospital: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123")

    def ids(root: Path) -> dict[float, tuple[str, str | None]]:
        report = scan_to_manifest(root, tmp_path / "cases.csv", pseudonym_key=key)
        return {values(c.inputs["image"]).pop(): (c.case_id, c.patient_id) for c in report.cases}

    before = ids(hospital)
    assert before[3][1] == before[4][1] != before[5][1]
    write_series(hospital / "new", "DOE^JOHN", 1, 3)
    write_series(hospital / "new2", "MUSTERMANN^ERIKA", 9, 3, patient_id="HN-448812 ")
    after = ids(hospital)
    assert {k: after[k] for k in before} == before
    assert after[1][1] == before[5][1]
    assert after[9][1] == before[3][1]
    key.write_text("another key of 16 bytes")
    assert not {v[0] for v in ids(hospital).values()} & {v[0] for v in after.values()}
    key.write_text("short")
    with pytest.raises(UsageError, match="too short"):
        ids(hospital)


def test_missing_patient_ids_do_not_merge_patients(tmp_path: Path) -> None:
    root = tmp_path / "export"
    for folder, name in zip("ab", PATIENTS, strict=True):
        write_series(root / folder, name, 1, 3, patient_id="")
    report = scan_to_manifest(root, tmp_path / "cases.csv")
    assert len({c.patient_id for c in report.cases}) == 2


def test_nifti_folder(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in ("Mueller/b.nii.gz", "Mueller/a.nii", ".hidden/c.nii", "x.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    report = scan_to_manifest(root, root / "cases.csv", input_name="t1")
    assert [(c.case_id, Path(c.inputs["t1"]).name) for c in report.cases] == [
        ("n0001", "a.nii"),
        ("n0002", "b.nii.gz"),
    ]
    text = (root / "cases.csv").read_text()
    assert text == "case_id,t1\nn0001,Mueller/a.nii\nn0002,Mueller/b.nii.gz\n"
    assert read_manifest(root / "cases.csv", inputs=["t1"]) == report.cases
    with pytest.raises(UsageError, match="rules"):
        scan_to_manifest(root, root / "cases.csv", rules={"suffix": "T1w"})


def test_bids_dataset(tmp_path: Path) -> None:
    root = tmp_path / "ds"
    for name in ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    report = scan_to_manifest(root, tmp_path / "cases.csv", rules={"suffix": "T1w"})
    assert [(c.case_id, c.patient_id) for c in report.cases] == [
        ("sub-01_T1w", "sub-01"),
        ("sub-02_ses-1_T1w", "sub-02"),
    ]
    assert [c.covariates["ses"] for c in report.cases] == ["", "1"]
    (tmp_path / "key").write_text("k" * 16)
    report = scan_to_manifest(root, tmp_path / "cases.csv", pseudonym_key=tmp_path / "key")
    assert "sub-" not in "".join(c.case_id for c in report.cases)
    with pytest.raises(UsageError, match="rules are wrong"):
        scan_to_manifest(root, tmp_path / "cases.csv", rules={"sub": 1.5})


def test_kinds(hospital: Path, tmp_path: Path) -> None:
    assert detect_tree(hospital) == "dicom"
    os.mkfifo(hospital / "a" / "0pipe")
    (hospital / "a" / "derived.nii").write_bytes(b"x")
    with pytest.raises(UsageError, match="both"):
        detect_tree(hospital)
    assert len(scan_to_manifest(hospital, tmp_path / "c.csv", kind="dicom").cases) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither"):
        detect_tree(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder"):
        scan_to_manifest(tmp_path / "none", tmp_path / "c.csv")
    with pytest.raises(UsageError, match="column name"):
        scan_to_manifest(hospital, tmp_path / "c.csv", input_name="case_id")


@pytest.mark.real_data
def test_real_series(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "head_ct_ge_tilt_dicom"
    report = scan_to_manifest(root, tmp_path / "cases.csv", kind="dicom", input_name="ct")
    (case,) = report.cases
    assert case.inputs["ct"] == str(root)
    assert case.covariates["slices"] == "28"
    assert case.covariates["modality"] == "CT"
