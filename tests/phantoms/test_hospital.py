"""The simulated export: what is in it agrees with what is said about it."""

import hashlib
import json

import numpy as np
import pydicom
import pytest

from medpipe.errors import InputError
from medpipe.io.dicom_series import assemble_series, scan_series
from medpipe.phantoms.dicom_writer import Identity
from medpipe.phantoms.hospital import write_demo, write_hospital_tree
from medpipe.phantoms.nifti_folder import write_nifti_folder

SMALL = {"matrix": 32, "step_mm": 10.0}


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return write_hospital_tree(tmp_path_factory.mktemp("hospital"), **SMALL)


def _headers(truth):
    skip = {truth.root / name for name in (*truth.junk, *truth.damaged)}
    for path in sorted(truth.root.rglob("*")):
        if path.is_file() and path not in skip:
            yield path, pydicom.dcmread(path, stop_before_pixels=True)


def test_every_file_belongs_to_one_series_of_the_truth(truth):
    count: dict[str, int] = {}
    for path, ds in _headers(truth):
        count[ds.SeriesInstanceUID] = count.get(ds.SeriesInstanceUID, 0) + 1
        series = next(s for s in truth.series if s.series_uid == ds.SeriesInstanceUID)
        assert path.parent == truth.root / series.folder
        assert ds.SeriesNumber == series.spec.number
    assert count == {s.series_uid: s.files for s in truth.series}
    assert len({s.name for s in truth.series}) == len(truth.series)
    for name in (*truth.junk, *truth.damaged):
        assert (truth.root / name).is_file()


def test_positions_are_those_of_the_plan(truth):
    for path, ds in _headers(truth):
        if "ImagePositionPatient" not in ds:
            continue
        series = next(s for s in truth.series if s.series_uid == ds.SeriesInstanceUID)
        off = np.abs(np.subtract(series.plan.positions_mm, ds.ImagePositionPatient)).max(1)
        assert off.min() < 1e-9, path.name


def test_an_importer_gets_what_the_truth_promises(truth):
    for series in truth.series:
        found = [
            s for s in scan_series(truth.root / series.folder) if s.number == series.spec.number
        ]
        if series.outcome == "aside":
            assert not found, series.name
        elif series.outcome == "error":
            with pytest.raises(InputError):
                assemble_series(found[0])
            if series.options:
                assert assemble_series(found[0], **series.options).data.size
        else:
            volume = assemble_series(found[0])
            np.testing.assert_allclose(volume.affine, series.affine(), atol=1e-6)
            expected = series.stack()
            known = np.isfinite(expected)
            np.testing.assert_allclose(volume.data[known], expected[known], atol=1e-3)


def test_stack_is_the_closed_form_to_half_a_step(truth):
    series = truth["tilt"]
    index = np.array([[3, 20, 5], [16, 16, 7], [30, 9, 2]])
    affine = series.affine()
    hu = series.values(index @ affine[:3, :3].T + affine[:3, 3])
    np.testing.assert_allclose(series.stack()[tuple(index.T)], hu, atol=0.51)


def test_truth_is_json_and_names_no_path_of_this_machine(truth):
    text = json.dumps(truth.to_dict())
    assert str(truth.root) not in text
    assert not list(truth.root.rglob("truth*"))


def test_same_seed_same_bytes(tmp_path):
    def digest(name: str, seed: int) -> list[str]:
        root = tmp_path / name
        write_hospital_tree(root, patients=1, seed=seed, matrix=16, step_mm=40)
        files = sorted(p for p in root.rglob("*") if p.is_file())
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]

    first = digest("a", 1)
    assert first == digest("b", 1)
    assert first != digest("c", 2)


def test_identity_is_planted_in_every_file(tmp_path):
    who = Identity(name="CANARY^X", patient_id="CANARYID")
    truth = write_hospital_tree(
        tmp_path, patients=1, matrix=16, step_mm=40, edge_cases=False, identity=who
    )
    assert {str(ds.PatientName) for _, ds in _headers(truth)} == {"CANARY^X"}
    assert not list(tmp_path.rglob("*CANARY*"))


def test_demo_has_one_case_that_must_fail(tmp_path):
    truth = write_demo(tmp_path, matrix=16, step_mm=20)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"case-{i:02d}" for i in range(1, 7)]
    reasons = {s.name: s.reason for s in truth.series if s.outcome == "error"}
    assert reasons == {"case-03": "variable_step", "case-05": "missing_slices"}


def test_nifti_folder_holds_what_it_says(tmp_path):
    nib = pytest.importorskip("nibabel")
    from medpipe.io.nifti import read_nifti

    truth = write_nifti_folder(tmp_path, subjects=1, matrix=16)
    assert sorted(t.file for t in truth) == sorted(p.name for p in tmp_path.iterdir())
    for item in truth:
        if item.outcome == "ok":
            image = nib.load(tmp_path / item.file)
            np.testing.assert_array_equal(np.asarray(image.dataobj), item.volume.data)
            np.testing.assert_allclose(image.affine, item.volume.affine, atol=1e-4)
        else:
            with pytest.raises(InputError) as caught:
                read_nifti(tmp_path / item.file)
            assert "nifti." not in item.reason or item.reason in str(caught.value)
