"""Checks that nothing of a test set is known from training.

The same patient, study or voxels in two folds make any figure of a model too good. Such a
leak is refused. Pictures that were changed (turned, resampled, cropped) have other voxels:
only the study and the patient show those.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import UsageError
from medpipe.io.detect import is_dicom_file
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.folds import Folds
from medpipe.types import Finding, Severity

__all__ = ["check_leaks", "pixel_digest", "study_digest", "volume_digest"]

_SHOWN: Final = 5
"""At most so many leaks are named, and so many cases of each."""


def check_leaks(
    cohort: Cohort,
    folds: Folds,
    *,
    study_digests: Mapping[str, str | None] | None = None,
    pixel_digests: Mapping[str, str | None] | None = None,
) -> tuple[Finding, ...]:
    """Refuse folds in which a test case is known from training.

    Parameters
    ----------
    cohort : Cohort
    folds : Folds
    study_digests : dict, optional
        Case id → digest of its study (`study_digest`); None or no entry where it is not
        known. Where none is known, as in a cohort of NIfTI files, nothing is said of it.
    pixel_digests : dict, optional
        Case id → digest of the voxels of its prepared volume (`volume_digest`).

    Returns
    -------
    tuple of Finding
        Studies or voxels that two patients share within one fold, and how many cases
        were not compared.

    Raises
    ------
    UsageError
        If a case is in two folds or in none, or if a patient, study or volume is in two;
        cases and folds are named, patients and digests are not.
    """
    _check_partition(cohort, folds)
    by_kind: dict[str, list[str | None]] = {"patient": list(cohort.patients)}
    findings = []
    for kind, digests in (("study", study_digests), ("voxels", pixel_digests)):
        if digests is None:
            continue
        by_kind[kind] = [digests.get(case) for case in cohort.case_ids]
        unknown = sum(not digest for digest in by_kind[kind])
        if unknown and not (kind == "study" and unknown == len(cohort)):
            text = f"the {kind} of {unknown} of {len(cohort)} cases could not be compared"
            findings.append(Finding("leaks.not_compared", Severity.WARNING, text))
    fold_of = folds.fold_of
    leaks = []
    for kind, values in by_kind.items():
        for cases in _groups(values):
            if len({int(fold_of[i]) for i in cases}) > 1:
                leaks.append(f"the same {kind} in {_named(cohort, folds, cases)}")
            elif len({cohort.patients[i] for i in cases}) > 1:
                text = f"two patients share the same {kind}: {_named(cohort, folds, cases)}"
                findings.append(Finding("leaks.shared", Severity.WARNING, text))
    if leaks:
        more = f" and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else ""
        raise UsageError(
            "a test set is known from training",
            got="; ".join(leaks[:_SHOWN]) + more,
            hint="give these cases one patient_id, or leave out the copies, and make new folds",
        )
    return tuple(findings)


def _check_partition(cohort: Cohort, folds: Folds) -> None:
    n = len(cohort)
    places = np.concatenate(folds.test) if folds.test else np.zeros(0, np.int64)
    if len(places) and not (int(places.min()) >= 0 and int(places.max()) < n):
        raise UsageError("the folds are not of this cohort")
    times = np.bincount(places, minlength=n)
    for wrong, what in ((times > 1, "in two test sets"), (times == 0, "in no test set")):
        cases = [cohort.case_ids[i] for i in np.flatnonzero(wrong)]
        if cases:
            more = f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else ""
            raise UsageError(f"cases are {what}", got=", ".join(cases[:_SHOWN]) + more)


def _groups(values: list[str | None]) -> list[list[int]]:
    """Return the places of each value that is there more than once."""
    groups: dict[str, list[int]] = {}
    for i, value in enumerate(values):
        if value:
            groups.setdefault(value, []).append(i)
    return [places for places in groups.values() if len(places) > 1]


def _named(cohort: Cohort, folds: Folds, cases: list[int]) -> str:
    fold_of = folds.fold_of
    shown = [f"{cohort.case_ids[i]} (fold {int(fold_of[i]) + 1})" for i in cases[:_SHOWN]]
    more = f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else ""
    return ", ".join(shown) + more


def study_digest(image: Path) -> str | None:
    """Return the sha256 of the study that a DICOM folder or file says it is of.

    Parameters
    ----------
    image : Path
        Of its files the first one speaks that can be read and holds an image.

    Returns
    -------
    str or None
        None for NIfTI, and where no file names a study.
    """
    from medpipe.io.dicom_header import read_frames
    from medpipe.io.dicom_tags import BadHeader

    for path in _files(image):
        if not is_dicom_file(path):
            continue
        try:
            first = read_frames(path)[0]
        except BadHeader:
            continue
        if first.study and first.rows:
            return hashlib.sha256(first.study.encode()).hexdigest()
    return None


def _files(image: Path) -> Iterator[Path]:
    """Yield a file, or the files of a folder tree in an order of their names."""
    if not image.is_dir():
        yield image
        return
    for folder, folders, names in os.walk(image):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def pixel_digest(voxels: NDArray[Any]) -> str:
    """Return the sha256 of the shape and the values of a volume in HU.

    Parameters
    ----------
    voxels : ndarray, shape (I, J, K) or (1, I, J, K)
        Rounded to whole HU, so that a volume and its saved copy agree.

    Raises
    ------
    UsageError
        If a value is not finite or does not fit 16 bits.
    """
    voxels = np.asarray(voxels)
    shape = voxels.shape[1:] if voxels.ndim == 4 and voxels.shape[0] == 1 else voxels.shape
    if voxels.dtype != np.int16:
        voxels = np.rint(voxels)
        low, high = float(voxels.min(initial=0)), float(voxels.max(initial=0))
        if not (low >= -32768.0 and high <= 32767.0):
            raise UsageError("voxels have no digest", expected="finite HU within 16 bits")
    content = np.ascontiguousarray(voxels, dtype="<i2")
    hasher = hashlib.sha256(repr(tuple(int(s) for s in shape)).encode())
    hasher.update(content.data)
    return hasher.hexdigest()


def volume_digest(path: Path) -> str:
    """Return the `pixel_digest` of a prepared volume in a NIfTI file.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    from medpipe.io.nifti import read_nifti

    return pixel_digest(read_nifti(path).data)
