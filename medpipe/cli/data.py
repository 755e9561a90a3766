"""`medpipe data`: simulated patients with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from cyclopts import App, Parameter

from medpipe.cli.output import console
from medpipe.errors import UsageError

__all__ = ["app"]

app = App(
    name="data",
    help="""Make simulated patients to try workflows on: no real image is needed.

The phantoms are closed-form heads, sampled at the true position of every
slice, so a wrong volume shows. The same seed gives the same bytes.""",
    help_format="markdown",
    default_parameter=Parameter(negative=()),
)


@app.command
def demo(folder: Path, /, *, seed: int = 0, matrix: int = 256) -> int:
    """Write six head CT patients as DICOM, and a manifest cases.csv beside them.

    One has a tilted gantry and a step that changes; one lacks a slice and must be refused.

    Parameters
    ----------
    folder : Path
        A folder that does not exist yet or is empty.
    seed : int
        Chooses the patients.
    matrix : int
        Rows and columns of a slice.
    """
    from medpipe.io.case import Case
    from medpipe.io.manifest import write_manifest
    from medpipe.phantoms.hospital import write_demo

    _must_be_empty(folder)
    with console(stderr=True).status("simulating six head CTs"):
        truth = write_demo(folder, seed=seed, matrix=matrix)
    cases = [
        Case(f"p{one.patient:02d}", {"image": str(folder / one.folder)}, f"p{one.patient:02d}")
        for one in truth.series
    ]
    write_manifest(folder / "cases.csv", cases)
    print(f"{folder / 'cases.csv'}: {len(cases)} cases")
    return 0


@app.command
def hospital(
    folder: Path, /, *, patients: int = 6, seed: int = 0, matrix: int = 128, step_mm: float = 10.0
) -> int:
    """Write a small DICOM export as hospitals give it, with its usual faults.

    Two series in one folder, localizers, tilted gantries with and without the tag, missing and
    doubled slices, time points, enhanced multi-frame, dose reports, damaged files, junk.

    Parameters
    ----------
    folder : Path
        A folder that does not exist yet or is empty.
    patients : int
        How many; the first six carry the faults.
    seed : int
        Chooses the patients.
    matrix : int
        Rows and columns of a slice.
    step_mm : float
        Distance between the slices of an ordinary series.
    """
    from rich.markup import escape
    from rich.table import Table

    from medpipe.phantoms.hospital import write_hospital_tree

    _must_be_empty(folder)
    with console(stderr=True).status("simulating a hospital export"):
        truth = write_hospital_tree(
            folder, patients=patients, seed=seed, matrix=matrix, step_mm=step_mm
        )
    table = Table("series", "folder", "files", "an importer should", box=None, pad_edge=False)
    for one in truth.series:
        what = {"ok": "import it", "error": "refuse it", "aside": "set it aside"}[one.outcome]
        why = f": {one.reason}" if one.reason else ""
        table.add_row(one.name, one.folder, str(one.files), escape(what + why))
    console().print(table)
    print(f"\n{folder}: {len(truth.series)} series, {len(truth.junk)} other files")
    return 0


@app.command
def head_ct(
    target: Path, /, *, seed: int = 0, matrix: int = 256, slices: int = 40, lesion_ml: float = 0
) -> int:
    """Write one head CT: a DICOM folder, or a NIfTI file if TARGET ends in .nii or .nii.gz.

    Parameters
    ----------
    target : Path
        The folder or file to write.
    seed : int
        Chooses the patient.
    matrix : int
        Rows and columns of a slice.
    slices : int
        Slices from the skull base to the vertex.
    lesion_ml : float
        Volume of an intracerebral haemorrhage in ml; 0 for none.
    """
    from medpipe.phantoms.anatomy import Lesion

    lesion = Lesion("ich", lesion_ml) if lesion_ml > 0 else None
    if target.name.endswith((".nii", ".nii.gz")):
        from dataclasses import replace

        from medpipe.io.nifti import write_nifti
        from medpipe.phantoms.head_ct import head_ct as simulate

        phantom = simulate(
            seed,
            shape=(matrix, matrix, slices),
            spacing_mm=(230 / matrix, 230 / matrix, 180 / slices),
            lesion=lesion,
        )
        whole_hu = replace(phantom.volume, data=phantom.volume.data.round())
        write_nifti(target, whole_hu, dtype="int16")
    else:
        import numpy as np

        from medpipe.phantoms.dicom_geometry import SlicePlan
        from medpipe.phantoms.dicom_writer import SeriesSpec, write_ct_series
        from medpipe.phantoms.head_ct import HeadCT
        from medpipe.phantoms.hospital import Z_RANGE_MM

        _must_be_empty(target)
        z = [float(v) for v in np.linspace(*Z_RANGE_MM, slices)]
        plan = SlicePlan.axial(z, matrix=matrix)
        write_ct_series(target, HeadCT(seed, lesion=lesion).hu, plan, SeriesSpec())
    print(target)
    return 0


@app.command
def brain_mr(
    target: Path,
    /,
    *,
    seed: int = 0,
    contrast: Literal["t1", "t2", "pd", "flair"] = "t1",
    matrix: int = 256,
    field_t: Literal["1.5", "3"] = "3",
) -> int:
    """Write one brain MR as NIfTI.

    Parameters
    ----------
    target : Path
        The .nii or .nii.gz file to write.
    seed : int
        Chooses the patient.
    contrast : {"t1", "t2", "pd", "flair"}
        Weighting.
    matrix : int
        Voxels along each axis of 240 mm.
    field_t : {"1.5", "3"}
        Field strength in tesla.
    """
    from medpipe.io.nifti import write_nifti
    from medpipe.phantoms.brain_mr import brain_mr as simulate

    phantom = simulate(
        seed,
        contrast=contrast,
        field_t=float(field_t),
        shape=(matrix,) * 3,
        spacing_mm=(240 / matrix,) * 3,
    )
    write_nifti(target, phantom.volume)
    print(target)
    return 0


@app.command
def pelvis_ct(folder: Path, /, *, patients: int = 2, seed: int = 0, spacing_mm: float = 2.0) -> int:
    """Write pelvic CTs, rough outlines of prostate and bladder, the truth, and cases.csv.

    Parameters
    ----------
    folder : Path
        A folder that does not exist yet or is empty.
    patients : int
        How many.
    seed : int
        Chooses the patients.
    spacing_mm : float
        Voxel size; the field of view is 256 x 256 x 108 mm.
    """
    from medpipe.io.case import Case
    from medpipe.io.manifest import write_manifest
    from medpipe.phantoms.pelvis_folder import write_pelvis_folder

    _must_be_empty(folder)
    with console(stderr=True).status("simulating pelvic CTs"):
        made = write_pelvis_folder(folder, patients=patients, seed=seed, spacing_mm=spacing_mm)
    cases = [Case(name, {"image": str(image), "rough": str(rough)}) for name, image, rough in made]
    write_manifest(folder / "cases.csv", cases)
    print(f"{folder / 'cases.csv'}: {len(cases)} cases")
    return 0


@app.command
def qmri(
    folder: Path,
    /,
    *,
    seed: int = 0,
    size: Literal["slab", "full"] = "slab",
    protocol: list[str] | None = None,
) -> int:
    """Write quantitative MR examinations of a head as BIDS datasets, and the true maps.

    One dataset per protocol: spgr-dess (with protocol.json), vfa, irt1, mese, mp2rage. Each has
    a manifest cases.csv with columns images, b1 and mask; truth holds T1, T2, M0, the
    flip-angle scaling and the tissues.

    Parameters
    ----------
    folder : Path
        A folder that does not exist yet or is empty.
    seed : int
        Chooses the head and the noise.
    size : {"slab", "full"}
        8 slices of 128 x 128, or the whole head in 256 x 256 x 160 voxels (minutes).
    protocol : list of str, optional
        Write these alone; may be repeated.
    """
    from medpipe.io.case import Case
    from medpipe.io.manifest import write_manifest
    from medpipe.phantoms.qmri import PROTOCOLS, qmri_phantom
    from medpipe.phantoms.qmri_folder import write_qmri_folder

    _must_be_empty(folder)
    grid: dict[str, Any] = {}
    if size == "full":
        grid = {"shape": (256, 256, 160), "spacing_mm": (0.9375, 0.9375, 1.2)}
    with console(stderr=True).status("simulating quantitative MR"):
        phantom = qmri_phantom(seed, **grid)
        made = write_qmri_folder(folder, phantom, tuple(dict.fromkeys(protocol or PROTOCOLS)))
    for one in made:
        paths = {"images": str(one.images), "b1": str(one.b1), "mask": str(one.mask)}
        write_manifest(one.dataset / "cases.csv", [Case("sub-01", paths, "sub-01")])
        print(one.dataset / "cases.csv")
    return 0


@app.command
def ivus(
    target: Path, /, *, seed: int = 0, frames: int = 8, matrix: int = 400, field_mm: float = 10.0
) -> int:
    """Write an intravascular ultrasound pullback as NIfTI, and lumen and wall beside it.

    Parameters
    ----------
    target : Path
        The .nii or .nii.gz file to write; the truth is named after it with -truth.
    seed : int
        Chooses the vessel and the speckle.
    frames : int
        Frames, 0.5 mm apart.
    matrix : int
        Pixels along each side of a frame.
    field_mm : float
        Field of view.
    """
    from medpipe.phantoms.ivus_file import write_ivus

    if not target.name.endswith((".nii", ".nii.gz")):
        raise UsageError("the file is no NIfTI file", expected=".nii or .nii.gz", got=target.name)
    with console(stderr=True).status("simulating a pullback"):
        image, truth = write_ivus(target, seed=seed, frames=frames, size=matrix, field_mm=field_mm)
    print(f"{image}\n{truth}")
    return 0


@app.command
def retina_oct(
    target: Path,
    /,
    *,
    seed: int = 0,
    kind: Literal["ring", "macula"] = "ring",
    a_scans: int = 0,
    b_scans: int = 0,
) -> int:
    """Write an OCT scan of the retina as NIfTI, and its nine true boundaries beside it.

    The truth is named after the scan with -truth: depths in mm from the first sample of
    each A-scan, nine volumes with one voxel along the depth, as oct-layers writes them.

    Parameters
    ----------
    target : Path
        The .nii or .nii.gz file to write.
    seed : int
        Chooses the eye and the speckle.
    kind : {"ring", "macula"}
        One circular B-scan around the optic disc, or a volume over the fovea.
    a_scans : int
        A-scans of a B-scan; 0 for 768 around the disc, 256 over the fovea.
    b_scans : int
        B-scans of a volume, 0.12 mm apart; 0 for 25.
    """
    from medpipe.io.nifti import write_nifti
    from medpipe.phantoms.retina_oct import retina_oct as simulate
    from medpipe.types import Volume

    suffix = next((s for s in (".nii.gz", ".nii") if target.name.endswith(s)), None)
    if suffix is None:
        raise UsageError("the file is no NIfTI file", expected=".nii or .nii.gz", got=target.name)
    ring = kind == "ring"
    if ring and b_scans > 1:
        raise UsageError("a ring scan has one B-scan", hint="--kind macula makes volumes")
    columns = a_scans or (768 if ring else 256)
    length_mm = 10.94 if ring else 3.65
    with console(stderr=True).status("simulating an OCT scan"):
        phantom = simulate(
            seed,
            kind=kind,
            shape=(columns, 496, 1 if ring else b_scans or 25),
            spacing_mm=(length_mm / columns, 0.00387, 0.12),
        )
    truth = target.with_name(target.name.removesuffix(suffix) + "-truth" + suffix)
    write_nifti(target, phantom.volume)
    depths = phantom.surfaces_mm.transpose(1, 2, 0)[:, None]
    write_nifti(truth, Volume(depths.astype("float32"), phantom.volume.affine))
    print(f"{target}\n{truth}")
    return 0


@app.command
def vessels(
    folder: Path,
    /,
    *,
    kind: Literal["mask", "cta", "mra", "airway"] = "mask",
    walls: Literal["clean", "rough", "very-rough", "kissing"] = "clean",
    cases: int = 2,
    seed: int = 0,
    size: int = 256,
    ostium: bool = False,
) -> int:
    """Write random vessel trees or airways as NIfTI, the true masks and centerlines, cases.csv.

    Each case has centerline.swc with the exact curve in RAS+ mm: a node a line, with its
    place, its radius and the number of its parent. Images have truth.nii.gz.

    Parameters
    ----------
    folder : Path
        A folder that does not exist yet or is empty.
    kind : {"mask", "cta", "mra", "airway"}
        Masks alone, CT or MR angiographies, or chest CTs.
    walls : {"clean", "rough", "very-rough", "kissing"}
        Smooth walls, noise of 0.45 or 0.8 voxel (masks alone), or vessels that touch.
    cases : int
        How many.
    seed : int
        Chooses the trees.
    size : int
        Voxels along the longest axis: 0.5 mm each, and 320 mm in all with airway.
    ostium : bool
        Let the trees of masks leave a large vessel, written as ostium.nii.gz.
    """
    from medpipe.io.case import Case
    from medpipe.io.manifest import write_manifest
    from medpipe.phantoms.vessel_folder import write_vessel_folder

    _must_be_empty(folder)
    with console(stderr=True).status("simulating trees"):
        made = write_vessel_folder(
            folder, kind=kind, walls=walls, cases=cases, seed=seed, size=size, ostium=ostium
        )
    rows = [
        Case(name, {role: str(path) for role, path in files.items() if role != "centerline"})
        for name, files in made
    ]
    write_manifest(folder / "cases.csv", rows)
    print(f"{folder / 'cases.csv'}: {len(rows)} cases")
    return 0


@app.command
def simulate_sah(
    folder: Path,
    /,
    *,
    patients: int = 20,
    seed: int = 0,
    format: Literal["nifti", "dicom", "both"] = "nifti",  # noqa: A002
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
    thickness_mm: float | None = None,
    tilt_deg: float = 0.0,
    noise_hu: float = 4.0,
    sites: int = 1,
    twice: int = 0,
    labels: bool = False,
    template: Path | None = None,
    prevalence: float = 0.288,
    bayes_auc: float = 0.90,
    deaths: int | None = None,
    workers: int = 1,
) -> int:
    """Write head CTs with subarachnoid haemorrhage, outcomes of a stated risk, and cases.csv.

    Whether a patient dies is drawn from a logistic model of blood, midline shift, age and WFNS
    grade. truth.json holds the model, the AUC that no classifier can beat, and for each case
    its probability and its millilitres of blood. Everything is simulated.

    Parameters
    ----------
    folder : Path
        A folder that does not exist yet or is empty.
    patients : int
        How many.
    seed : int
        Chooses the patients.
    format : {"nifti", "dicom", "both"}
        How images are written; the manifest names the DICOM series where there is one.
    spacing : tuple of float
        Voxel size in mm along x, y, z.
    thickness_mm : float, optional
        Thickness of a slice; default: its distance to the next.
    tilt_deg : float
        Gantry tilt; with DICOM alone.
    noise_hu : float
        Standard deviation of the noise in the middle of the head.
    sites : int
        Hospitals with scanners of their own, at most four.
    twice : int
        So many patients have two CTs: cases that must not be split.
    labels : bool
        Write label maps beside the images.
    template : Path, optional
        A head CT in HU or a stripped CT template as NIfTI, instead of the procedural head.
    prevalence : float
        Share of deaths of the risk model.
    bayes_auc : float
        AUC of its true probabilities.
    deaths : int, optional
        Draw patients on until exactly so many of them die; default: as it falls.
    workers : int
        Processes.
    """
    from medpipe.phantoms.sah import SahScan
    from medpipe.phantoms.sah_folder import SahCohort, write_sah_cohort

    scan = SahScan(spacing, thickness_mm, tilt_deg, noise_hu)
    cohort = SahCohort(
        patients, seed, format, scan, sites, twice, labels, template, prevalence, bayes_auc,
        deaths,
    )  # fmt: skip
    _must_be_empty(folder)
    with console(stderr=True).status("simulating head CTs"):
        cases = write_sah_cohort(folder, cohort, workers=workers)
    print(f"{folder / 'cases.csv'}: {len(cases)} simulated cases")
    return 0


@app.command
def brain_population(
    folder: Path,
    /,
    *,
    subjects: int = 20,
    seed: int = 0,
    label_maps: Path | None = None,
    anatomies: int | None = None,
    matrix: int = 64,
    spacing_mm: float = 3.0,
    contrast: Literal["t1", "t2", "pd", "flair", "random"] = "t1",
    deform_mm: float = 2.5,
    noise_percent: float = 2.0,
    bias: float = 0.1,
    tilt_deg: float = 0.0,
    shift_mm: float = 0.0,
    jacobian: bool = False,
    workers: int = 1,
) -> int:
    """Write brain MRs of known age, sex, ventricle and brain volume, and cases.csv.

    Each is a label map, aged, deformed and imaged; truth.json holds what was asked for, the
    volumes that came out in ml, and the deformation. The relation of age and sex to the brain
    is chosen, not measured. Subjects that were made from one head share a patient_id.

    Parameters
    ----------
    folder : Path
        A folder that does not exist yet or is empty.
    subjects : int
        How many.
    seed : int
        Chooses the subjects.
    label_maps : Path, optional
        A folder of whole-head label maps with FreeSurfer's numbers, instead of drawn heads.
    anatomies : int, optional
        How many heads are drawn where there are no label maps; one for each subject.
    matrix : int
        Voxels along each axis.
    spacing_mm : float
        Their size.
    contrast : {"t1", "t2", "pd", "flair", "random"}
        A signal model, or an intensity drawn for each tissue.
    deform_mm : float
        Standard deviation of the random velocity.
    noise_percent : float
        Noise, of the signal of white matter.
    bias : float
        Standard deviation of the logarithm of the bias field.
    tilt_deg : float
        Standard deviation of the turn of the head about each axis.
    shift_mm : float
        Standard deviation of its place along each axis.
    jacobian : bool
        Write growth.nii.gz too: how much larger each place is than in the label map.
    workers : int
        Processes.
    """
    from medpipe.phantoms.brain_population import BrainScan
    from medpipe.phantoms.brain_population_folder import BrainCohort, write_brain_population

    scan = BrainScan(
        (matrix,) * 3, spacing_mm, contrast, deform_mm, tilt_deg=tilt_deg, shift_mm=shift_mm,
        bias=bias, noise_percent=noise_percent,
    )  # fmt: skip
    cohort = BrainCohort(subjects, seed, scan, label_maps, anatomies, jacobian)
    _must_be_empty(folder)
    with console(stderr=True).status("simulating brain MRs"):
        cases = write_brain_population(folder, cohort, workers=workers)
    print(f"{folder / 'cases.csv'}: {len(cases)} simulated cases")
    return 0


@app.command
def nifti_folder(folder: Path, /, *, subjects: int = 3, seed: int = 0, matrix: int = 96) -> int:
    """Write a folder of NIfTI images, good ones and damaged ones, for nifti-check.

    Parameters
    ----------
    folder : Path
        A folder that does not exist yet or is empty.
    subjects : int
        Number of sound brain MRs.
    seed : int
        Chooses the patients.
    matrix : int
        Voxels along each axis of 240 mm.
    """
    from medpipe.phantoms.nifti_folder import write_nifti_folder

    _must_be_empty(folder)
    truth = write_nifti_folder(folder, subjects=subjects, seed=seed, matrix=matrix)
    for one in truth:
        print(f"{one.file}: {one.reason or 'sound'}")
    return 0


def _must_be_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            "the folder is not empty", got=str(folder), hint="name a new one; nothing was touched"
        )
