"""From a folder of images to a manifest: DICOM trees, BIDS datasets, NIfTI files.

Ids are made up (``p0001_s01``) or, with a key file, pseudonyms that stay the
same when the folder is scanned again. Nothing from a DICOM header that could
name a patient reaches the manifest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from medpipe.errors import InputError, UsageError
from medpipe.io.bids import BidsFile, bids_sessions, query, scan_bids
from medpipe.io.case import CASE_ID, Case
from medpipe.io.detect import is_dicom_file
from medpipe.io.manifest import write_manifest
from medpipe.io.pseudonyms import read_key, tag
from medpipe.types import Finding

__all__ = ["Kind", "ScanReport", "detect_tree", "scan_to_manifest"]

Kind = Literal["auto", "dicom", "bids", "nifti"]
Progress = Callable[[int, int], None]

_IMAGES: Final = (".nii", ".nii.gz")
_COLUMN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")


@dataclass(slots=True)
class ScanReport:
    """What a scan found.

    Attributes
    ----------
    kind : str
        ``"dicom"``, ``"bids"`` or ``"nifti"``.
    cases : list of Case
        The rows that were written.
    left_out : list of (str, str)
        What got no row: a name without patient data, and why.
    findings : list of Finding
        Objects that are no images.
    linked : int
        Series that shared a folder with others and got one of their own
        beside the manifest.
    """

    kind: str
    cases: list[Case] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    linked: int = 0


def scan_to_manifest(
    root: str | os.PathLike[str],
    out_csv: str | os.PathLike[str],
    *,
    kind: Kind = "auto",
    input_name: str = "image",
    rules: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    pseudonym_key: str | os.PathLike[str] | None = None,
    as_images: bool = False,
) -> ScanReport:
    """Write a manifest with one row per image below a folder.

    Parameters
    ----------
    root : path
        The folder to scan; links that lead out of it are not followed.
    out_csv : path
        The manifest to write, in a folder that exists.
    kind : {"auto", "dicom", "bids", "nifti"}
        What the folder holds.
    input_name : str
        Name of the column with the paths: the workflow's input.
    rules : dict, optional
        Which images to take. For DICOM as `medpipe.io.dicom_select.SeriesRules`,
        with ``most_slices`` per study; for BIDS keywords of
        `medpipe.io.bids.query`.
    progress : callable, optional
        Called with (files done, files in all) for DICOM.
    pseudonym_key : path, optional
        File with a secret of at least 16 bytes. Ids are then HMAC-SHA256
        pseudonyms, the same for the same patient and key.
    as_images : bool
        The input is a set of weighted images: one row per subject and session
        of a BIDS dataset, which names its folder ``anat``.

    Raises
    ------
    InputError
        If the folder holds no image that can be used.
    UsageError
        If an argument is wrong, or the folder holds images of several kinds.
    """
    root, out_csv = Path(root), Path(out_csv)
    if not _COLUMN.match(input_name) or input_name in ("case_id", "patient_id"):
        raise UsageError("the name of the input is no column name", expected="such as ct or t1")
    if not out_csv.parent.is_dir():
        raise UsageError("the folder of the manifest does not exist")
    key = read_key(pseudonym_key)
    found = detect_tree(root) if kind == "auto" else kind
    if as_images:
        report = _scan_sets(root, found, input_name, rules, key)
    elif found == "dicom":
        from medpipe.io.manifest_scan_dicom import scan_dicom

        report = scan_dicom(root, out_csv, input_name, rules, progress, key)
    elif found == "bids":
        report = _scan_bids(root, input_name, rules or {}, key)
    else:
        if rules:
            raise UsageError("NIfTI files carry nothing that rules could choose by")
        report = _scan_nifti(root, input_name, key)
    if not report.cases:
        why = f"{len(report.left_out)} left out" if report.left_out else "none of that kind"
        raise InputError("the folder holds no image for the manifest", got=why)
    write_manifest(out_csv, report.cases)
    return report


def detect_tree(root: Path) -> Literal["dicom", "bids", "nifti"]:
    """Tell what a folder holds, by names and by the first bytes of files.

    Raises
    ------
    InputError
        If it is no folder, or holds neither DICOM nor NIfTI files.
    UsageError
        If it holds both.
    """
    if not root.is_dir():
        raise InputError("there is no such folder to scan", expected="a folder")
    with os.scandir(root) as entries:
        if any(e.name.startswith("sub-") and e.is_dir() for e in entries):
            return "bids"
    nifti = dicom = False
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(_IMAGES):
                nifti = True
            elif not dicom:
                dicom = is_dicom_file(os.path.join(folder, name))
        if nifti and dicom:
            hint = "say which with --kind dicom or --kind nifti"
            raise UsageError("the folder holds both DICOM and NIfTI files", hint=hint)
    if not (nifti or dicom):
        raise InputError("the folder holds neither DICOM nor NIfTI files")
    return "nifti" if nifti else "dicom"


def _scan_bids(
    root: Path, input_name: str, rules: Mapping[str, Any], key: bytes | None
) -> ScanReport:
    report = ScanReport("bids")
    try:
        images = query(scan_bids(root), **{"extension": _IMAGES, **rules})
    except TypeError:
        hint = "labels by entity, suffix, extension, datatype"
        raise UsageError("the rules are wrong", expected=hint) from None
    entities = list(dict.fromkeys(k for image in images for k in image.entities if k != "sub"))
    for number, image in enumerate(images, start=1):
        case_id, patient_id = _bids_ids(image, key)
        if not CASE_ID.match(case_id):
            report.left_out.append((f"image {number}", "its name is no case id; pass a key file"))
            continue
        facts = {k: image.entities.get(k, "") for k in entities}
        facts |= {"suffix": image.suffix, "datatype": image.datatype}
        report.cases.append(Case(case_id, {input_name: image.path}, patient_id, facts))
    return report


def _scan_sets(
    root: Path, kind: str, input_name: str, rules: Mapping[str, Any] | None, key: bytes | None
) -> ScanReport:
    """Return one row per session for a workflow that takes sets of images."""
    if kind != "bids":
        raise UsageError(
            "only a BIDS dataset says which images belong to one set",
            got=kind,
            hint="write the manifest by hand: one row per examination, with its folder",
        )
    if rules:
        raise UsageError("rules choose single images", hint="the step load_weighted has suffix")
    cases, left_out = bids_sessions(root, input_name)
    if key is not None:
        cases = [_under_pseudonym(case, key) for case in cases]
    return ScanReport("bids", cases, list(left_out.items()))


def _under_pseudonym(case: Case, key: bytes) -> Case:
    patient = "p" + tag(key, "patient", str(case.patient_id).removeprefix("sub-"), digits=12)
    return Case(f"{patient}_s{tag(key, 'series', case.case_id, digits=8)}", case.inputs, patient)


def _bids_ids(image: BidsFile, key: bytes | None) -> tuple[str, str]:
    """Return case and patient id; the labels of BIDS are pseudonyms by its own rules."""
    subject = image.entities["sub"]
    if key is None:
        return image.stem, f"sub-{subject}"
    patient = "p" + tag(key, "patient", subject, digits=12)
    return f"{patient}_s{tag(key, 'series', image.stem, digits=8)}", patient


def _scan_nifti(root: Path, input_name: str, key: bytes | None) -> ScanReport:
    report = ScanReport("nifti")
    top = os.path.abspath(root)
    paths: list[str] = []
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        images = (n for n in sorted(names) if n.endswith(_IMAGES) and n[0] != ".")
        paths += [p for p in (os.path.join(folder, n) for n in images) if os.path.isfile(p)]
    width = max(4, len(str(len(paths))))
    for number, path in enumerate(paths, start=1):
        case_id = f"n{number:0{width}d}"
        if key is not None:
            case_id = "n" + tag(key, "file", os.path.relpath(path, top), digits=12)
        report.cases.append(Case(case_id, {input_name: path}))
    return report
