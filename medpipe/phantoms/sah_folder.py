"""A folder with a simulated cohort of subarachnoid haemorrhages: images, manifest and truth."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import UsageError
from medpipe.io.atomic import write_json_atomic
from medpipe.io.case import Case
from medpipe.io.manifest import write_manifest
from medpipe.io.nifti import write_nifti
from medpipe.phantoms.dicom_geometry import SlicePlan
from medpipe.phantoms.dicom_writer import Identity, SeriesSpec, write_ct_series
from medpipe.phantoms.sah import SITES, SahCase, SahScan, simulate_patient
from medpipe.phantoms.sah_risk import (
    BAYES_AUC,
    COEFFICIENTS,
    PREVALENCE,
    ceilings,
    draw_covariates,
    draw_times,
    sample_auc,
    solved_risk,
)
from medpipe.phantoms.sah_template import Template, load_template
from medpipe.seeds import derive_seed
from medpipe.types import Volume

__all__ = ["Format", "SahCohort", "write_sah_cohort"]

Format = Literal["nifti", "dicom", "both"]


@dataclass(frozen=True, slots=True)
class SahCohort:
    """What a simulated cohort is.

    Attributes
    ----------
    patients : int
        How many.
    seed : int
        The same seed gives the same bytes; a patient depends on the seed and
        the patient's number alone.
    format : {"nifti", "dicom", "both"}
        How images are written.
    scan : SahScan
        Voxels, noise, tilt; each site changes it.
    sites : int
        Hospitals, drawn evenly.
    twice : int
        The first so many patients have two CTs.
    labels : bool
        Whether label maps are written.
    template : Path, optional
        A head CT or a stripped CT template, instead of the procedural head.
    prevalence, bayes_auc : float
        Of the risk model.
    deaths : int, optional
        Exactly so many of the patients die: patients are drawn on until there are that many
        and the rest survived, and who comes after is left out. By default it is as it falls.
    """

    patients: int
    seed: int = 0
    format: Format = "nifti"
    scan: SahScan = field(default_factory=SahScan)
    sites: int = 1
    twice: int = 0
    labels: bool = False
    template: Path | None = None
    prevalence: float = PREVALENCE
    bayes_auc: float = BAYES_AUC
    deaths: int | None = None

    def __post_init__(self) -> None:
        if self.patients < 1 or not 0 <= self.twice <= self.patients:
            raise UsageError(
                "no such cohort",
                expected="one patient or more, and no more with two CTs",
                got=f"{self.patients} patients, {self.twice} with two CTs",
            )
        if self.deaths is not None and (self.twice or not 0 <= self.deaths <= self.patients):
            raise UsageError(
                "no such number of deaths",
                expected=f"0 to {self.patients}, and one CT of each patient",
                got=f"{self.deaths} deaths, {self.twice} with two CTs",
            )
        if not 1 <= self.sites <= len(SITES):
            raise UsageError("unknown sites", expected=f"1..{len(SITES)}", got=str(self.sites))
        if self.format not in get_args(Format):
            raise UsageError(
                "unknown format", expected=", ".join(get_args(Format)), got=self.format
            )
        if self.scan.tilt_deg and self.format != "dicom":
            raise UsageError(
                "a tilted gantry goes with DICOM alone",
                hint="choose the format dicom, or no tilt",
            )


def write_sah_cohort(root: Path, cohort: SahCohort, *, workers: int = 1) -> list[Case]:
    """Write images, ``cases.csv`` and ``truth.json``.

    Parameters
    ----------
    root : Path
        Made if it is missing.
    cohort : SahCohort
        What to write.
    workers : int
        Processes; the files do not depend on their number.

    Returns
    -------
    list of Case
        The rows of the manifest.
    """
    root.mkdir(parents=True, exist_ok=True)
    if cohort.template is not None:
        load_template(cohort.template)  # refused here, before processes start
    rows = [row for patient in _patients(root, cohort, workers) for row in patient]
    cases = [case for case, _ in rows]
    write_manifest(root / "cases.csv", cases)
    write_json_atomic(root / "truth.json", _truth(cohort, rows))
    return cases


Rows = list[tuple[Case, dict[str, Any]]]


def _patients(root: Path, cohort: SahCohort, workers: int) -> Iterator[Rows]:
    """Write patients and yield their rows; those of an outcome that is full are taken back."""
    write = partial(_write_patient, root, cohort)
    if cohort.deaths is None:
        yield from _each(write, range(cohort.patients), workers)
        return
    wanted = {0: cohort.patients - cohort.deaths, 1: cohort.deaths}
    share = {0: 1 - cohort.prevalence, 1: cohort.prevalence}
    start = 0
    while any(wanted.values()):
        count = ceil(max(wanted[died] / share[died] for died in wanted))
        for rows in _each(write, range(start, start + count), workers):
            case, facts = rows[0]
            if wanted[facts["outcome"]]:
                wanted[facts["outcome"]] -= 1
                yield rows
            else:
                shutil.rmtree(root / "images" / case.case_id)
        start += count


def _each(write: Any, numbers: Iterable[int], workers: int) -> Iterator[Rows]:
    if workers <= 1:
        yield from map(write, numbers)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(write, numbers, chunksize=4)


def _write_patient(root: Path, cohort: SahCohort, number: int) -> Rows:
    """Write the one or two CTs of a patient; the outcome follows from what the first one shows."""
    seed = derive_seed(cohort.seed, "sah", str(number))
    rng = np.random.default_rng([seed, 30])
    drawn = draw_covariates(1, rng)
    site = int(rng.integers(cohort.sites))
    chance = float(rng.random())
    scan = replace(cohort.scan, site=site)
    risk = solved_risk(cohort.prevalence, cohort.bayes_auc)
    rows = []
    outcome: dict[str, Any] = {}
    for repeat in range(2 if number < cohort.twice else 1):
        made = simulate_patient(
            seed, drawn, scan=scan, repeat=repeat, template=_template(cohort.template)
        )
        if not outcome:
            painted = made.facts["covariates"]
            p = float(risk.probability(painted))
            died = int(chance < p)
            days, event = draw_times(np.array([p]), np.array([died]), rng)
            outcome = {
                "linear_predictor": float(risk.predictor(painted)),
                "probability": p,
                "outcome": died,
                "time_days": float(days[0]),
                "event": int(event[0]),
            }
        case_id = f"sah{number + 1:04d}" + ("b" if repeat else "")
        patient = f"P{number + 1:04d}"
        image = _write_case(root, cohort, made, case_id, patient)
        rows.append((_row(case_id, patient, image, made, outcome, site), made.facts | outcome))
    return rows


_LOADED: dict[Path, Template] = {}


def _template(path: Path | None) -> Template | None:
    """Return the template, read once per process."""
    if path is None:
        return None
    if path not in _LOADED:
        _LOADED[path] = load_template(path)
    return _LOADED[path]


def _row(
    case_id: str, patient: str, image: Path, made: SahCase, outcome: dict[str, Any], site: int
) -> Case:
    known = made.facts["covariates"]
    covariates = {
        "outcome": outcome["outcome"],
        "site": SITES[site].name,
        "age_years": int(known["age_years"]),
        "sex": "F" if known["sex"] else "M",
        "wfns": int(known["wfns"]),
        "modified_fisher": made.facts["modified_fisher"],
        "time_days": outcome["time_days"],
        "event": outcome["event"],
    }
    return Case(case_id, {"image": str(image)}, patient, covariates)


def _write_case(root: Path, cohort: SahCohort, made: SahCase, case_id: str, patient: str) -> Path:
    """Write the files of one CT; return the one that the manifest names."""
    folder = root / "images" / case_id
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "ct.nii.gz"
    if cohort.format != "dicom":
        write_nifti(image, made.volume, dtype="int16")
    if cohort.format != "nifti":
        image = folder / "dicom"
        _write_dicom(image, cohort, made, case_id, patient)
    if cohort.labels:
        write_nifti(
            folder / "labels.nii.gz", Volume(made.labels, made.volume.affine), dtype="uint8"
        )
    return image


def _write_dicom(
    folder: Path, cohort: SahCohort, made: SahCase, case_id: str, patient: str
) -> None:
    """Write the voxels as a CT series: rows run to the left, columns to the back."""
    data, affine = made.volume.data, made.volume.affine
    n_i, n_j, n_k = data.shape
    first = [affine @ (n_i - 1, n_j - 1, k, 1) for k in range(n_k)]
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    lean = affine[:3, 1] / spacing[1]
    plan = SlicePlan(
        tuple((float(-p[0]), float(-p[1]), float(p[2])) for p in first),
        (1.0, 0.0, 0.0, 0.0, float(lean[1]), float(-lean[2])),
        (n_j, n_i),
        (float(spacing[1]), float(spacing[0])),
        float(cohort.scan.thickness_mm or cohort.scan.spacing_mm[2]),
        cohort.scan.tilt_deg or None,
    )
    to_voxels = np.linalg.inv(affine)

    def stored(points_mm: NDArray[np.float64]) -> NDArray[np.floating]:
        at = np.rint(points_mm @ to_voxels[:3, :3].T + to_voxels[:3, 3]).astype(int)
        return data[tuple(np.moveaxis(at, -1, 0))].astype(np.float32)

    known = made.facts["covariates"]
    who = Identity(
        name=f"Phantom^{patient}",
        patient_id=patient,
        sex="F" if known["sex"] else "M",
        accession=case_id,
        study_description="Simulated head CT",
    )
    spec = SeriesSpec(description="Head simulated")
    study = ("sah", cohort.seed, case_id)
    write_ct_series(folder, stored, plan, spec, identity=who, study=study)


def _truth(cohort: SahCohort, rows: Rows) -> dict[str, Any]:
    risk = solved_risk(cohort.prevalence, cohort.bayes_auc)
    first = {case.patient_id: facts for case, facts in reversed(rows)}  # one CT of each patient
    outcome = [facts["outcome"] for facts in first.values()]
    probability = [facts["probability"] for facts in first.values()]
    return {
        "simulated": True,
        "seed": cohort.seed,
        "model": {
            "intercept": risk.intercept,
            "scale": risk.scale,
            "coefficients": COEFFICIENTS,
            "prevalence": cohort.prevalence,
            "bayes_auc": cohort.bayes_auc,
            "auc_ceilings": ceilings(risk),
        },
        "sample": {
            "patients": len(first),
            "deaths_wanted": cohort.deaths,
            "events": int(sum(outcome)),
            "expected_events": float(sum(probability)),
            "auc_of_true_probability": sample_auc(outcome, probability),
        },
        "cases": {case.case_id: facts for case, facts in rows},
    }
