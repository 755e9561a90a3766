"""A small DICOM export as a hospital gives it, with the truth about every series.

Nothing about the truth is written into the tree. It is returned: for each
series what an importer should do with it, and a function that gives the exact
value at any point, so that a whole import can be checked voxel by voxel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.phantoms.anatomy import Lesion
from medpipe.phantoms.dicom_geometry import SlicePlan, phantom_uid
from medpipe.phantoms.dicom_writer import (
    PADDING,
    Identity,
    SeriesSpec,
    outside_circle,
    stored_pixels,
    write_enhanced,
    write_series,
)
from medpipe.phantoms.head_ct import HeadCT, ct_noise
from medpipe.types import Affine

__all__ = ["HospitalTruth", "SeriesTruth", "write_demo", "write_hospital_tree"]

Outcome = Literal["ok", "error", "aside"]
IdentityOf = Callable[[int], Identity]

Z_RANGE_MM = (-46.0, 84.0)


@dataclass(frozen=True, slots=True)
class SeriesTruth:
    """What one series is and what an importer should make of it.

    Attributes
    ----------
    name : str
        Short name of the case, e.g. ``"missing_slice"``.
    patient : int
        From 1.
    folder : str
        Relative to the tree's root; several series may share one.
    files : int
        How many files it has.
    outcome : {"ok", "error", "aside"}
        What an importer should do with default options: a right volume, a
        refusal, or no volume because the series is none (localizer).
    reason : str
        Why it is refused or set aside; empty if it is not.
    options : dict
        The options with which it can be imported; empty if none are needed
        or none help.
    plan : SlicePlan
        Where the slices in the files lie (each position once).
    spec : SeriesSpec
        How they are written.
    series_uid : str
        SeriesInstanceUID.
    sampler : callable
        RAS mm points (..., 3) → noise-free values (...).
    """

    name: str
    patient: int
    folder: str
    files: int
    outcome: Outcome
    reason: str
    options: dict[str, Any]
    plan: SlicePlan
    spec: SeriesSpec
    series_uid: str
    sampler: Callable[[NDArray[np.float64]], NDArray[np.floating]] = field(repr=False)

    def values(self, points_mm: ArrayLike) -> NDArray[np.floating]:
        """Return the noise-free values (HU of a CT) at RAS mm points, shape (..., 3) → (...)."""
        return self.sampler(np.asarray(points_mm, float))

    def affine(self) -> Affine:
        """Return voxel index (column, row, sorted slice) → RAS mm; exact for an even stack."""
        return self.plan.affine()

    def stack(self) -> NDArray[np.float64]:
        """Return what the files hold after rescaling, shape (columns, rows, slices).

        Slices are sorted along their normal. Padding pixels are NaN.
        """
        planes = []
        for index in self.plan.order():
            stored = stored_pixels(self.sampler, self.plan, self.spec, int(index))
            slope, intercept = self.spec.rescale(int(index))
            values = stored * slope + intercept
            if self.spec.padding_circle:
                values[outside_circle(self.plan)] = np.nan
            planes.append(values.T)
        return np.stack(planes, axis=2)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return {
            "name": self.name,
            "patient": self.patient,
            "folder": self.folder,
            "files": self.files,
            "outcome": self.outcome,
            "reason": self.reason,
            "options": self.options,
            "modality": self.spec.modality,
            "series_number": self.spec.number,
            "series_uid": self.series_uid,
            "positions_mm": [list(p) for p in self.plan.positions_mm],
            "orientation": list(self.plan.orientation),
            "pixel_mm": list(self.plan.pixel_mm),
            "padding": PADDING if self.spec.padding_circle else None,
        }


@dataclass(frozen=True, slots=True)
class HospitalTruth:
    """Everything that is true of a simulated export.

    Attributes
    ----------
    root : Path
        The tree.
    series : tuple of SeriesTruth
        Every image series in it.
    junk : tuple of str
        Files, relative to the root, that belong to no image series.
    damaged : tuple of str
        Files of no series that begin like DICOM but cannot be read.
    """

    root: Path
    series: tuple[SeriesTruth, ...]
    junk: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> SeriesTruth:
        return next(s for s in self.series if s.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values, without the root's path."""
        return {
            "series": [s.to_dict() for s in self.series],
            "junk": list(self.junk),
            "damaged": list(self.damaged),
        }


class Ward:
    """Writes series and keeps their truth; one per tree.

    Parameters
    ----------
    root : Path
        The tree.
    seed : int
        Chooses patients and UIDs.
    matrix : int
        Rows and Columns.
    step_mm : float
        Distance between the slices of an ordinary series.
    noise_hu : float
        Noise of the CTs; 0 for exact values.
    identity : callable
        Patient number → `Identity`.
    """

    def __init__(
        self,
        root: Path,
        seed: int,
        matrix: int,
        step_mm: float,
        noise_hu: float,
        identity: IdentityOf,
    ) -> None:
        self.root = root
        self.seed = seed
        self.matrix = matrix
        self.step_mm = step_mm
        self.noise_hu = noise_hu
        self.identity = identity
        self.series: list[SeriesTruth] = []
        self._heads: dict[tuple[int, bool, float], HeadCT] = {}

    def study(self, patient: int) -> tuple[object, ...]:
        """Return the names the UIDs of a patient's study are a hash of."""
        return ("hospital", self.seed, patient)

    def head(self, patient: int, *, contrast: bool = False, edge_mm: float = 0.8) -> HeadCT:
        """Return a patient's head; every second one has a haemorrhage."""
        key = (patient, contrast, edge_mm)
        if key not in self._heads:
            kinds = {2: Lesion("ich", 20.0), 4: Lesion("ich", 8.0, "right")}
            seed = self.seed * 1000 + patient
            self._heads[key] = HeadCT(
                seed, lesion=kinds.get(patient % 6), contrast=contrast, edge_mm=edge_mm
            )
        return self._heads[key]

    def z_mm(self, step_mm: float | None = None) -> NDArray[np.float64]:
        """Return the table positions of an ordinary head scan."""
        return np.arange(*Z_RANGE_MM, step_mm or self.step_mm)

    def axial(self, z_mm: ArrayLike | None = None, **options: Any) -> SlicePlan:
        """Return an axial plan at this tree's matrix."""
        z = self.z_mm() if z_mm is None else np.asarray(z_mm, float)
        return SlicePlan.axial([float(v) for v in z], matrix=self.matrix, **options)

    def noise(self, patient: int, number: int) -> Callable[..., Any] | None:
        """Return the noise of one series as `SeriesSpec.noise` wants it."""
        if not self.noise_hu:
            return None
        return partial(_noise, sigma=self.noise_hu, seed=(self.seed, patient, number))

    def add(
        self,
        name: str,
        patient: int,
        folder: str,
        plan: SlicePlan,
        spec: SeriesSpec,
        sampler: Callable[[NDArray[np.float64]], NDArray[np.floating]],
        *,
        outcome: Outcome = "ok",
        reason: str = "",
        options: dict[str, Any] | None = None,
        pattern: str = "IM{:05d}.dcm",
        enhanced: bool = False,
        record: bool = True,
    ) -> list[Path]:
        """Write one series and record its truth; return its files in the plan's order."""
        if spec.modality == "CT":
            spec = replace(spec, noise=self.noise(patient, spec.number))
        who, study = self.identity(patient), self.study(patient)
        place = self.root / folder
        if enhanced:
            paths = [
                write_enhanced(
                    place / pattern.format(1), sampler, plan, spec, identity=who, study=study
                )
            ]
        else:
            paths = write_series(
                place, sampler, plan, spec, identity=who, study=study, name=pattern
            )
        if record:
            uid = phantom_uid("series", *study, spec.number)
            self.series.append(
                SeriesTruth(
                    name,
                    patient,
                    folder,
                    len(paths),
                    outcome,
                    reason,
                    options or {},
                    plan,
                    spec,
                    uid,
                    sampler,
                )
            )
        return paths

    def amend(self, name: str, **changes: Any) -> None:
        """Change the truth of a series that was damaged after writing."""
        at = next(i for i, s in enumerate(self.series) if s.name == name)
        self.series[at] = replace(self.series[at], **changes)


def _noise(
    values: NDArray[np.floating], index: int, *, sigma: float, seed: tuple[int, ...]
) -> NDArray[np.floating]:
    return ct_noise(values.astype(np.float32), sigma, (*seed, index))


def patient_identity(patient: int) -> Identity:
    """Return the fictitious person that patient number `patient` is."""
    words = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    word = words[patient - 1] if patient <= len(words) else f"Number{patient}"
    return Identity(
        name=f"Phantom^{word}",
        patient_id=f"PHANTOM-{patient:04d}",
        birth_date=f"{1940 + patient % 50}0101",
        sex="FMO"[patient % 3],
        accession=f"PH{patient:05d}",
    )


def write_hospital_tree(
    root: Path,
    *,
    patients: int = 6,
    seed: int = 0,
    edge_cases: bool = True,
    matrix: int = 128,
    step_mm: float = 10.0,
    noise_hu: float = 0.0,
    identity: Identity | IdentityOf | None = None,
) -> HospitalTruth:
    """Write a simulated hospital export and return the truth about it.

    Parameters
    ----------
    root : Path
        A folder that is made, or is empty.
    patients : int
        How many. The first six carry one group of edge cases each; the others
        have one ordinary head CT.
    seed : int
        The same seed gives the same bytes.
    edge_cases : bool
        Whether to write anything but ordinary head CTs.
    matrix : int
        Rows and Columns (512 for real size).
    step_mm : float
        Distance between slices (0.6 to 5 for real size).
    noise_hu : float
        Noise of the CTs; `SeriesTruth.stack` holds it too.
    identity : Identity or callable, optional
        Who the patients are: one identity for all, or a function of the
        patient's number. Default: ``Phantom^One``, ``Phantom^Two``, …

    Returns
    -------
    HospitalTruth
        Its series by name: see `docs/reference/phantoms.md`.
    """
    from medpipe.phantoms.hospital_cases import EDGE_CASES, write_junk

    if identity is None:
        who: IdentityOf = patient_identity
    elif isinstance(identity, Identity):
        fixed = identity
        who = lambda _: fixed  # noqa: E731 - a function of the patient's number
    else:
        who = identity
    ward = Ward(Path(root), seed, matrix, step_mm, noise_hu, who)
    for patient in range(1, patients + 1):
        folder = f"PAT{patient:03d}/ST0001/SE0002"
        name = f"axial_{patient}"
        ward.add(name, patient, folder, ward.axial(), SeriesSpec(), ward.head(patient).hu)
        if edge_cases and patient <= len(EDGE_CASES):
            EDGE_CASES[patient - 1](ward, patient)
    junk, damaged = write_junk(ward) if edge_cases else ((), ())
    return HospitalTruth(Path(root), tuple(ward.series), junk, damaged)


def write_demo(
    root: Path,
    *,
    seed: int = 0,
    matrix: int = 256,
    step_mm: float = 5.0,
    identity: Identity | IdentityOf | None = None,
) -> HospitalTruth:
    """Write the six head CTs of the demonstration, one folder ``case-0N`` each.

    ``case-03`` has a tilted gantry and a step that changes at the skull base
    and needs ``variable_step="resample"``; ``case-05`` lacks a slice and must
    be refused. The others are ordinary, two of them with a haemorrhage.

    Parameters
    ----------
    root : Path
        A folder that is made, or is empty.
    seed, matrix, step_mm, identity
        As for `write_hospital_tree`.
    """
    from medpipe.phantoms.hospital_cases import changing_steps

    who = identity or patient_identity
    one = (lambda _: who) if isinstance(who, Identity) else who
    ward = Ward(Path(root), seed, matrix, step_mm, 3.5, one)
    for patient in range(1, 7):
        folder, head, z = f"case-{patient:02d}", ward.head(patient), ward.z_mm()
        spec = SeriesSpec(numbering="descending" if patient == 4 else "ascending")
        plan = ward.axial(z)
        expected: dict[str, Any] = {}
        if patient == 3:
            plan = ward.axial(changing_steps(step_mm), tilt_deg=18.5)
            expected = {
                "outcome": "error",
                "reason": "variable_step",
                "options": {"variable_step": "resample"},
            }
        elif patient == 5:
            gone = len(z) // 2
            plan = plan.take([i for i in range(len(z)) if i != gone])
            expected = {
                "outcome": "error",
                "reason": "missing_slices",
                "options": {"missing_slices": "interpolate"},
            }
        ward.add(folder, patient, folder, plan, spec, head.hu, **expected)
    return HospitalTruth(Path(root), tuple(ward.series))
