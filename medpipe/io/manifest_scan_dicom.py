"""The rows of a manifest for a DICOM tree: one per series.

A row must lead to one series and to nothing else, whatever reads it later.
Where a folder holds just that series, the row names the folder. Where several
series share a folder, each gets one of its own beside the manifest, with hard
links named by number: no voxel is copied, and names of files are gone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medpipe.errors import UsageError
from medpipe.io.bids_derivative import place_file
from medpipe.io.case import Case
from medpipe.io.dicom_header import quiet_pydicom
from medpipe.io.dicom_series import Series, SeriesRules, scan_folder
from medpipe.io.manifest_scan import ScanReport
from medpipe.io.pseudonyms import tag
from medpipe.types import Json

__all__ = ["scan_dicom"]


def scan_dicom(
    root: Path,
    out_csv: Path,
    input_name: str,
    rules: Mapping[str, Any] | None,
    progress: Callable[[int, int], None] | None,
    key: bytes | None,
) -> ScanReport:
    """Return the rows for the series below `root`; see `scan_to_manifest`."""
    wanted = SeriesRules.parse(dict(rules or {}))
    root = Path(os.path.abspath(root))
    scan = scan_folder(root, progress=progress)
    report = ScanReport("dicom", findings=list(scan.findings))
    chosen = _choose(scan.series, wanted, report)
    places = _Places(root, scan.series, out_csv)
    for case_id, patient_id, series in _name(chosen, key):
        path = places.place(series, case_id)
        report.cases.append(Case(case_id, {input_name: str(path)}, patient_id, _facts(series)))
    report.linked = places.linked
    return report


def _choose(all_series: Sequence[Series], rules: SeriesRules, report: ScanReport) -> list[Series]:
    """Return the series that meet the rules and can be assembled; report the others."""
    in_file = Counter(path for series in all_series for path in series.files)
    chosen = []
    for series in all_series:
        if series.problems:
            report.left_out.append((series.label, series.problems[0]))
        elif any(in_file[path] > 1 for path in series.files):
            report.left_out.append((series.label, "its file holds other volumes too"))
        elif not rules.accept(series):
            report.left_out.append((series.label, "it does not meet the rules"))
        else:
            chosen.append(series)
    # Parts of one series are no single volume, unless the rules single one out.
    uids = Counter(series.frames[0].series for series in chosen)
    for series in [s for s in chosen if uids[s.frames[0].series] > 1]:
        chosen.remove(series)
        report.left_out.append((series.label, "it is one of several parts of a series"))
    if not rules.most_slices:
        return chosen
    most: dict[str, int] = defaultdict(int)
    for series in chosen:
        study = series.frames[0].study
        most[study] = max(most[study], series.n_slices)
    kept = []
    for series in chosen:
        if series.n_slices == most[series.frames[0].study]:
            kept.append(series)
        else:
            report.left_out.append((series.label, "another series of the study has more slices"))
    return kept


def _name(chosen: Sequence[Series], key: bytes | None) -> list[tuple[str, str, Series]]:
    """Return (case id, patient id, series), patients in an order that says nothing of them."""
    by_patient: dict[str, list[Series]] = defaultdict(list)
    for series in chosen:
        by_patient[_identity(series)].append(series)
    # Sorted by a hash: numbers must not follow the alphabet of names or the dates of ids.
    order = sorted(by_patient, key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    width = max(4, len(str(len(order))))
    named = []
    for number, identity in enumerate(order, start=1):
        patient = f"p{number:0{width}d}"
        if key is not None:
            patient = "p" + tag(key, "patient", identity, digits=12)
        for rank, series in enumerate(by_patient[identity], start=1):
            end = f"{rank:02d}"
            if key is not None:
                end = tag(key, "series", series.frames[0].series, digits=8)
            named.append((f"{patient}_s{end}", patient, series))
    return named


def _identity(series: Series) -> str:
    """Return what tells this patient from others; it is hashed or numbered, never written."""
    from pydicom import dcmread

    tags = ["PatientID", "IssuerOfPatientID"]
    with quiet_pydicom():
        header = dcmread(series.files[0], stop_before_pixels=True, specific_tags=tags, force=True)
        found = [str(header.get(name) or "").strip() for name in tags]
    if found[0]:
        return "\0".join(["id", *found])
    return f"study\0{series.frames[0].study}"


def _facts(series: Series) -> dict[str, Json]:
    """Return the covariates of a row: acquisition facts without patient data."""
    facts = {
        "modality": series.modality,
        "slices": series.n_slices,
        "thickness_mm": series.thickness_mm,
        "orientation": series.orientation,
        "series": series.hash8,
    }
    return {name: "" if value is None else str(value) for name, value in facts.items()}


class _Places:
    """Finds or makes a path that leads to one series alone."""

    def __init__(self, root: Path, all_series: Sequence[Series], out_csv: Path) -> None:
        self.root = root
        self.linked = 0
        self.shared = Path(os.path.abspath(out_csv.parent)) / f"{out_csv.stem}_series"
        self._holds: Counter[Path] = Counter()
        for series in all_series:
            folders = {path.parent for path in series.files}
            self._holds.update({up for f in folders for up in (f, *f.parents)})

    def place(self, series: Series, case_id: str) -> Path:
        """Return a folder or file with this series only."""
        if len(series.files) == 1:
            return series.files[0]
        folder = Path(os.path.commonpath([path.parent for path in series.files]))
        if self._holds[folder] == 1:
            return folder
        return self._link(series, case_id)

    def _link(self, series: Series, case_id: str) -> Path:
        if self.shared.is_relative_to(self.root):
            raise UsageError(
                "several series share a folder, and the manifest lies below the scanned folder",
                hint="write the manifest elsewhere: links beside it would be scanned again",
            )
        target = self.shared / case_id
        if target.exists() and not all(
            re.fullmatch(r"\d{6}\.dcm", name) for name in os.listdir(target)
        ):
            raise UsageError(
                "the folder for links to single series holds other files",
                hint="write the manifest elsewhere, or move that folder away",
            )
        self.shared.mkdir(exist_ok=True)
        fresh = self.shared / f".tmp-{uuid.uuid4().hex[:8]}"
        fresh.mkdir()
        try:
            for number, path in enumerate(series.files, start=1):
                place_file(path, fresh / f"{number:06d}.dcm", durable=False)
            if target.exists():  # of an earlier scan; it may be another series
                shutil.rmtree(target)
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        self.linked += 1
        return target
