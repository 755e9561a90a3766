"""The edge cases of the simulated export, one function per patient."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, BasicTextSRStorage, SecondaryCaptureImageStorage

from medpipe.phantoms.brain_mr import BrainMR
from medpipe.phantoms.dicom_geometry import SlicePlan, phantom_uid
from medpipe.phantoms.dicom_writer import SeriesSpec, base_dataset, save_dataset
from medpipe.phantoms.hospital import Z_RANGE_MM, Ward

__all__ = ["EDGE_CASES", "changing_steps", "write_junk"]


def changing_steps(step_mm: float) -> NDArray[np.float64]:
    """Return table positions that are dense at the skull base, with one odd step between."""
    low, high = Z_RANGE_MM
    base = low + np.arange(6) * step_mm * 0.5
    odd = base[-1] + 0.21 * step_mm
    return np.concatenate([base, np.arange(odd, high, step_mm)])


def _sagittal(w: Ward, x_mm: Iterable[float], thickness_mm: float) -> SlicePlan:
    """Plan sagittal slices at LPS x positions: rows run to the back, columns to the feet."""
    n, pixel = w.matrix, 240.0 / w.matrix
    positions = tuple((float(x), -120.0, 120.0) for x in x_mm)
    return SlicePlan(positions, (0, 1, 0, 0, 0, -1), (n, n), (pixel, pixel), thickness_mm)


def _localizer_and_kernels(w: Ward, patient: int) -> None:
    """Patient 1: an orderly archive with localizer, thin bone kernel and DICOMDIR."""
    study = f"PAT{patient:03d}/ST0001"
    scout = _sagittal(w, [0.0], 240 / w.matrix)
    spec = SeriesSpec(1, "Topogram", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    head = w.head(patient)
    w.add(
        "localizer",
        patient,
        f"{study}/SE0001",
        scout,
        spec,
        head.hu,
        outcome="aside",
        reason="localizer",
    )
    bone = SeriesSpec(3, "Head 2.0 H70h", kernel="H70h", numbering="descending")
    sharp = w.head(patient, edge_mm=0.4)
    w.add(
        "thin_bone",
        patient,
        f"{study}/SE0003",
        w.axial(w.z_mm(w.step_mm * 0.6)),
        bone,
        sharp.hu,
        pattern="1.{}.dcm",
    )


def _tilts(w: Ward, patient: int) -> None:
    """Patient 2: a tilted gantry with and without the tag, and a changing step."""
    study, head = f"PAT{patient:03d}/ST0001", w.head(patient)
    tagged = w.axial(tilt_deg=18.5)
    w.add("tilt", patient, f"{study}/SE0003", tagged, SeriesSpec(3, "Head tilt"), head.hu)
    silent = w.axial(tilt_deg=-14.0, tilt_tag=False)
    w.add("tilt_no_tag", patient, f"{study}/SE0004", silent, SeriesSpec(4, "Head tilt"), head.hu)
    w.add(
        "variable_step",
        patient,
        f"{study}/SE0005",
        w.axial(changing_steps(w.step_mm), tilt_deg=18.5),
        SeriesSpec(5, "Head sequence", numbering="shuffled"),
        head.hu,
        outcome="error",
        reason="variable_step",
        options={"variable_step": "resample"},
    )


def _holes_and_copies(w: Ward, patient: int) -> None:
    """Patient 3: a missing slice, exact duplicates, contradicting duplicates."""
    study, head, plan = f"PAT{patient:03d}/ST0001", w.head(patient), w.axial()
    gone = len(plan) // 2
    w.add(
        "missing_slice",
        patient,
        f"{study}/SE0003",
        plan.take([i for i in range(len(plan)) if i != gone]),
        SeriesSpec(3, "Head gap"),
        head.hu,
        outcome="error",
        reason="missing_slices",
        options={"missing_slices": "interpolate"},
    )
    short = plan.take(range(4, 10))
    paths = w.add(
        "duplicates", patient, f"{study}/SE0004", short, SeriesSpec(4, "Head copies"), head.hu
    )
    for path in paths[:3]:
        shutil.copy(path, path.with_name(f"Copy of {path.name}"))
    w.amend("duplicates", files=len(paths) + 3)
    paths = w.add(
        "conflict",
        patient,
        f"{study}/SE0005",
        short,
        SeriesSpec(5, "Head conflict"),
        head.hu,
        outcome="error",
        reason="conflicting_slices",
    )
    other = w.head(patient, contrast=True)
    extra = SeriesSpec(5, "Head conflict", first_instance=101)
    w.add("", patient, f"{study}/SE0005", short.take([2]), extra, other.hu, record=False)
    w.amend("conflict", files=len(paths) + 1)


def _one_folder(w: Ward, patient: int) -> None:
    """Patient 4: everything in one folder, numbers shuffled, no extensions."""
    folder = f"PAT{patient:03d}/EXPORT"
    plan, plain = w.axial(w.z_mm(w.step_mm * 1.2)), w.head(patient)
    soft = SeriesSpec(11, "Head nativ", numbering="shuffled")
    w.add("mixed_plain", patient, folder, plan, soft, plain.hu, pattern="A{:06d}")
    dye = SeriesSpec(
        12, "Head post", contrast_agent="Iodine phantom", numbering="shuffled", first_instance=201
    )
    enhanced = w.head(patient, contrast=True)
    w.add("mixed_contrast", patient, folder, plan, dye, enhanced.hu, pattern="A{:06d}")
    scout = _sagittal(w, [0.0], 240 / w.matrix)
    spec = SeriesSpec(
        10, "Scout", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), first_instance=400
    )
    w.add(
        "mixed_localizer",
        patient,
        folder,
        scout,
        spec,
        plain.hu,
        outcome="aside",
        reason="localizer",
        pattern="A{:06d}",
    )


def _time_and_frames(w: Ward, patient: int) -> None:
    """Patient 5: perfusion, enhanced multi-frame, slopes of their own, padding."""
    study, head = f"PAT{patient:03d}/ST0001", w.head(patient)
    slab = w.axial(np.arange(0, 20, 5.0))
    bolus = w.head(patient, contrast=True)
    files = 0
    for time in range(3):
        spec = SeriesSpec(3, "Perfusion", time_point=time + 1, first_instance=1 + time * len(slab))
        now = _mixed(head.hu, bolus.hu, time / 2)
        paths = w.add(
            "perfusion",
            patient,
            f"{study}/SE0003",
            slab,
            spec,
            now,
            outcome="error",
            reason="time_points",
            options={"time_points": "stack"},
            record=time == 0,
        )
        files += len(paths)
    w.amend("perfusion", files=files)
    few = w.axial(w.z_mm(w.step_mm * 1.5))
    number = SeriesSpec(4, "Enhanced head")
    w.add("enhanced_ct", patient, f"{study}/SE0004", few, number, head.hu, enhanced=True)
    slopes = SeriesSpec(
        5,
        "Head slopes",
        slope=[1.0 + 0.25 * (i % 3) for i in range(len(few))],
        intercept=[-1024.0 - 8 * (i % 2) for i in range(len(few))],
    )
    w.add("rescale_per_slice", patient, f"{study}/SE0005", few, slopes, head.hu)
    circle = SeriesSpec(6, "Head circle", padding_circle=True)
    w.add("padding", patient, f"{study}/SE0006", few, circle, head.hu)


def _mixed(
    a: Callable[[NDArray[np.float64]], NDArray[np.floating]],
    b: Callable[[NDArray[np.float64]], NDArray[np.floating]],
    part: float,
) -> Callable[[NDArray[np.float64]], NDArray[np.floating]]:
    return lambda points: (1 - part) * a(points) + part * b(points)


def _mr_and_syntaxes(w: Ward, patient: int) -> None:
    """Patient 6: an MR, an enhanced MR, RLE, implicit VR, MONOCHROME1, truncated pixels."""
    study, head = f"PAT{patient:03d}/ST0001", w.head(patient)
    brain = BrainMR(w.seed * 1000 + patient).signal
    few = w.axial(w.z_mm(w.step_mm * 1.5))
    kind = ("ORIGINAL", "PRIMARY", "M", "NORM")
    sagittal = _sagittal(w, np.arange(-70, 70, w.step_mm * 1.5), w.step_mm * 1.5)
    mr = SeriesSpec(3, "t1 mprage", "MR", intercept=0.0, image_type=kind)
    w.add("mr_sagittal", patient, f"{study}/SE0003", sagittal, mr, brain)
    spec = replace(mr, number=4, description="t1 enhanced")
    w.add("enhanced_mr", patient, f"{study}/SE0004", few, spec, brain, enhanced=True)
    rle = SeriesSpec(5, "Head rle", syntax="rle")
    w.add("rle", patient, f"{study}/SE0005", few, rle, head.hu)
    old = SeriesSpec(6, "Head implicit", syntax="implicit")
    w.add("implicit_vr", patient, f"{study}/SE0006", few, old, head.hu)
    inverse = SeriesSpec(7, "Head inverse", monochrome1=True)
    w.add("monochrome1", patient, f"{study}/SE0007", few, inverse, head.hu)
    paths = w.add(
        "truncated",
        patient,
        f"{study}/SE0008",
        few,
        SeriesSpec(8, "Head broken"),
        head.hu,
        outcome="error",
        reason="truncated",
    )
    broken = paths[len(paths) // 2]
    broken.write_bytes(broken.read_bytes()[: -w.matrix * w.matrix])


EDGE_CASES: tuple[Callable[[Ward, int], None], ...] = (
    _localizer_and_kernels,
    _tilts,
    _holes_and_copies,
    _one_folder,
    _time_and_frames,
    _mr_and_syntaxes,
)


def write_junk(w: Ward) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write what is no image: reports, captures, viewer files, damaged files."""
    first = w.root / "PAT001"
    junk: list[Path] = []
    for path, content in (
        (w.root / "Thumbs.db", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 504),
        (w.root / "README.TXT", b"Insert the disc and start VIEWER.EXE\r\n"),
        (first / "ST0001" / "VERSION", b"1.0\n"),
        (first / "ST0001" / ".DS_Store", b"\0\0\0\1Bud1" + b"\0" * 64),
    ):
        path.write_bytes(content)
        junk.append(path)
    junk += [_dose_report(w, first / "ST0001" / "SE0099"), _capture(w, first / "ST0001" / "SE0098")]
    junk.append(_dicomdir(w))
    empty, cut = first / "ST0001" / "SE0097" / "IM00001.dcm", first / "ST0001" / "SE0097" / "IM2"
    empty.parent.mkdir(parents=True)
    empty.touch()
    whole = min((first / "ST0001" / "SE0002").iterdir())
    cut.write_bytes(whole.read_bytes()[:300])
    return (
        tuple(p.relative_to(w.root).as_posix() for p in junk),
        tuple(p.relative_to(w.root).as_posix() for p in (empty, cut)),
    )


def _dose_report(w: Ward, folder: Path) -> Path:
    """A structured report with one line of text."""
    ds = base_dataset(
        BasicTextSRStorage, "SR", w.identity(1), w.study(1), (99,), 1, 99, "Dose report"
    )
    ds.InstanceNumber = 1
    ds.CompletionFlag, ds.VerificationFlag = "COMPLETE", "UNVERIFIED"
    ds.PerformedProcedureCodeSequence = DicomSequence([])
    ds.ReferencedPerformedProcedureStepSequence = DicomSequence([])
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "121111", "DCM", "Summary"
    text = Dataset()
    text.RelationshipType, text.ValueType, text.TextValue = "CONTAINS", "TEXT", "CTDIvol 55 mGy"
    text.ConceptNameCodeSequence = DicomSequence([code])
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = DicomSequence([code])
    ds.ContentSequence = DicomSequence([text])
    path = folder / "IM00001.dcm"
    save_dataset(ds, path)
    return path


def _capture(w: Ward, folder: Path) -> Path:
    """A screen capture of a dose page: a picture that is no slice."""
    ds = base_dataset(
        SecondaryCaptureImageStorage, "CT", w.identity(1), w.study(1), (98,), 1, 98, "Protocol"
    )
    ds.ConversionType, ds.InstanceNumber, ds.PatientOrientation = "WSD", 1, ""
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 32, 64, 8, 8, 7
    ds.PixelRepresentation, ds.BurnedInAnnotation = 0, "YES"
    ds.PixelData = np.tile(np.arange(64, dtype=np.uint8) * 4, (32, 1)).tobytes()
    ds["PixelData"].VR = "OW"
    path = folder / "IM00001.dcm"
    save_dataset(ds, path)
    return path


def _dicomdir(w: Ward) -> Path:
    """A DICOMDIR whose references, as on many copied discs, lead nowhere."""
    one = dcmread(min((w.root / "PAT001" / "ST0001" / "SE0002").iterdir()))
    files = FileSet()
    files.UID = UID(phantom_uid("fileset", w.seed))
    files.add(one)
    path = w.root / "DICOMDIR"
    with tempfile.TemporaryDirectory() as folder:
        files.write(folder)
        shutil.copy(Path(folder) / "DICOMDIR", path)
    # pydicom leaves its staging folder to the garbage collector, which warns.
    files._stage["t"].cleanup()
    return path
