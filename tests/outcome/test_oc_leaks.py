"""Planted leaks: each is refused, with its cases and folds and without patients or digests."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from dicom_inputs import line, write_series

from medpipe.errors import UsageError
from medpipe.io.nifti import write_nifti
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.folds import Folds, make_folds
from medpipe.outcome.leaks import check_leaks, pixel_digest, study_digest, volume_digest
from medpipe.types import Volume

N = 20
COHORT = Cohort(
    tuple(f"c{i:02d}" for i in range(N)),
    tuple(f"Mustermann{i}" for i in range(N)),
    np.arange(N) % 2,
)
FOLDS = make_folds(COHORT, folds=4, seed=0)
SOUND = {case: f"digest{i}" for i, case in enumerate(COHORT.case_ids)}


def pair(same_fold: bool) -> tuple[int, int]:
    """Two cases with one outcome, in one fold or in two."""
    fold = FOLDS.fold_of
    return next(
        (i, j)
        for i in range(N)
        for j in range(i + 1, N)
        if (fold[i] == fold[j]) == same_fold and COHORT.outcome[i] == COHORT.outcome[j]
    )


def refusal(cohort: Cohort = COHORT, folds: Folds = FOLDS, **digests) -> str:
    with pytest.raises(UsageError) as caught:
        check_leaks(cohort, folds, **digests)
    text = str(caught.value)
    assert "Mustermann" not in text
    assert "digest" not in text
    return text


def named(i: int) -> str:
    return f"{COHORT.case_ids[i]} (fold {FOLDS.fold_of[i] + 1})"


def test_a_sound_split_passes():
    assert check_leaks(COHORT, FOLDS, study_digests=SOUND, pixel_digests=SOUND) == ()


def test_the_same_patient_in_two_folds_is_refused():
    i, j = pair(same_fold=False)
    patients = list(COHORT.patients)
    patients[j] = patients[i]
    text = refusal(replace(COHORT, patients=tuple(patients)))
    assert f"the same patient in {named(i)}, {named(j)}" in text


@pytest.mark.parametrize(
    ("kind", "what"), [("study_digests", "study"), ("pixel_digests", "voxels")]
)
def test_the_same_study_or_volume_in_two_folds_is_refused(kind, what):
    i, j = pair(same_fold=False)
    planted = SOUND | {COHORT.case_ids[j]: SOUND[COHORT.case_ids[i]]}
    text = refusal(**{kind: planted})
    assert f"the same {what} in {named(i)}, {named(j)}" in text


@pytest.mark.parametrize(
    ("kind", "what"), [("study_digests", "study"), ("pixel_digests", "voxels")]
)
def test_two_patients_with_one_volume_in_one_fold_are_told(kind, what):
    i, j = pair(same_fold=True)
    planted = SOUND | {COHORT.case_ids[j]: SOUND[COHORT.case_ids[i]]}
    (finding,) = check_leaks(COHORT, FOLDS, **{kind: planted})
    assert finding.message == f"two patients share the same {what}: {named(i)}, {named(j)}"


def test_two_cases_of_one_patient_may_share_a_study():
    i, j = pair(same_fold=True)
    patients = list(COHORT.patients)
    patients[j] = patients[i]
    planted = SOUND | {COHORT.case_ids[j]: SOUND[COHORT.case_ids[i]]}
    cohort = replace(COHORT, patients=tuple(patients))
    assert check_leaks(cohort, FOLDS, study_digests=planted) == ()


def test_every_kind_of_leak_is_told_at_once_and_long_lists_are_cut():
    i, j = pair(same_fold=False)
    planted = SOUND | {COHORT.case_ids[j]: SOUND[COHORT.case_ids[i]]}
    text = refusal(study_digests=planted, pixel_digests=planted)
    assert "same study" in text
    assert "same voxels" in text
    everywhere = dict.fromkeys(COHORT.case_ids, "digest")
    assert "and 15 more" in refusal(pixel_digests=everywhere)
    halves = {case: f"digest{i // 2}" for i, case in enumerate(COHORT.case_ids)}
    assert refusal(pixel_digests=halves).count("same voxels") == 5


def test_what_was_not_compared_is_told():
    some = dict(list(SOUND.items())[:15]) | {"c00": None}
    (finding,) = check_leaks(COHORT, FOLDS, pixel_digests=some)
    assert finding.message == "the voxels of 6 of 20 cases could not be compared"


def test_studies_are_not_missed_where_there_are_none():
    nowhere = dict.fromkeys(COHORT.case_ids)
    assert check_leaks(COHORT, FOLDS, study_digests=nowhere) == ()
    some = nowhere | {"c03": "digest"}
    (finding,) = check_leaks(COHORT, FOLDS, study_digests=some)
    assert finding.message == "the study of 19 of 20 cases could not be compared"


def test_the_digest_of_a_study_is_that_of_its_series_and_never_its_uid(tmp_path):
    uid, other = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
    for folder, study in (("a/one", uid), ("a/two", uid), ("b", other)):
        write_series(tmp_path / folder, line(3), study=study)
    digest = study_digest(tmp_path / "a" / "one")
    assert digest == hashlib.sha256(uid.encode()).hexdigest()
    assert study_digest(tmp_path / "a") == digest
    (first, *_) = sorted((tmp_path / "a" / "two").iterdir())
    assert study_digest(first) == digest
    assert study_digest(tmp_path / "b") == hashlib.sha256(other.encode()).hexdigest()


def test_files_that_say_no_study_are_passed_over(tmp_path):
    write_nifti(tmp_path / "ct.nii.gz", Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)))
    assert study_digest(tmp_path / "ct.nii.gz") is None
    assert study_digest(tmp_path / "nothing") is None
    folder = tmp_path / "series"
    paths = write_series(folder, line(3), study="1.2.3")
    paths[0].write_bytes(bytes(128) + b"DICM" + bytes(range(200)))  # damaged
    (folder / "000.txt").write_text("notes")
    assert study_digest(folder) == hashlib.sha256(b"1.2.3").hexdigest()
    for path in paths:
        path.write_bytes(paths[0].read_bytes())
    assert study_digest(folder) is None


def test_a_case_in_two_test_sets_or_in_none_is_refused():
    first, *others = FOLDS.test
    twice = replace(FOLDS, test=(np.append(first, others[0][0]), *others))
    assert f"cases are in two test sets; got {COHORT.case_ids[others[0][0]]}" in refusal(
        folds=twice
    )
    never = replace(FOLDS, test=(first[1:], *others))
    assert f"cases are in no test set; got {COHORT.case_ids[first[0]]}" in refusal(folds=never)
    assert "not of this cohort" in refusal(COHORT.select(range(10)), FOLDS)


def test_the_digest_of_voxels_follows_their_values_alone(tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 2000, (6, 5, 4)).astype(np.int16)
    digest = pixel_digest(hu)
    assert pixel_digest(hu.astype(np.float32)[None] + 0.2) == digest
    assert pixel_digest(np.asfortranarray(hu)) == digest
    assert pixel_digest(hu.astype(">i2")) == digest
    changed = hu.copy()
    changed[3, 2, 1] += 1
    assert pixel_digest(changed) != digest
    assert pixel_digest(hu.reshape(5, 6, 4)) != digest
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    write_nifti(tmp_path / "a.nii.gz", Volume(hu, affine), dtype="int16")
    write_nifti(tmp_path / "b.nii.gz", Volume(hu, np.eye(4)), dtype="int16")
    assert volume_digest(tmp_path / "a.nii.gz") == volume_digest(tmp_path / "b.nii.gz") == digest


@pytest.mark.parametrize("value", [np.nan, np.inf, 4e4])
def test_voxels_that_are_no_hu_have_no_digest(value):
    with pytest.raises(UsageError, match="no digest"):
        pixel_digest(np.array([0.0, value]))
