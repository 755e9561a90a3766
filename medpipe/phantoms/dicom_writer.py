"""Legal DICOM files of simulated subjects.

Everything a type 1 or 2 attribute asks for is there, UIDs are a hash of the
seed under 2.25., and the people in them do not exist. Identity texts can be
replaced by canaries, to see later where they turn up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)

from medpipe.errors import UsageError
from medpipe.phantoms.dicom_enhanced import enhanced_groups
from medpipe.phantoms.dicom_geometry import SlicePlan, decimal, phantom_uid

__all__ = [
    "Identity",
    "SeriesSpec",
    "SlicePlan",
    "base_dataset",
    "phantom_uid",
    "save_dataset",
    "write_ct_series",
    "write_enhanced",
    "write_mr_series",
    "write_series",
]

Sampler = Callable[[NDArray[np.float64]], NDArray[np.floating]]

PADDING = -2000
_SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "rle": RLELossless,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the files say this is: fictitious, or canaries."""

    name: str = "Phantom^One"
    patient_id: str = "PHANTOM-0001"
    birth_date: str = "19500101"
    sex: str = "O"
    accession: str = "PH0001"
    study_description: str = "Head phantom"
    institution: str = "Simulated Hospital"
    physician: str = "Phantom^Doctor"
    comments: str = ""
    private_tag: str = ""
    study_date: str = "20200101"


@dataclass(frozen=True, slots=True)
class SeriesSpec:
    """What one series is, apart from where its slices lie.

    Attributes
    ----------
    number : int
        SeriesNumber.
    description : str
        SeriesDescription.
    modality : {"CT", "MR"}
    kernel : str
        ConvolutionKernel of a CT.
    contrast_agent : str
        ContrastBolusAgent; empty for none.
    slope, intercept : float or sequence of float
        Rescale; a sequence gives each slice its own.
    monochrome1 : bool
        Whether PhotometricInterpretation is MONOCHROME1.
    padding_circle : bool
        Whether pixels outside the reconstruction circle hold PixelPaddingValue.
    syntax : {"explicit", "implicit", "rle"}
        Transfer syntax.
    numbering : {"ascending", "descending", "shuffled"}
        How InstanceNumber and file names go along the stack.
    image_type : tuple of str
        ImageType.
    time_point : int or None
        TemporalPositionIdentifier and a later AcquisitionTime.
    first_instance : int
        InstanceNumber of the first file.
    noise : callable, optional
        Given the noise-free slice and its index, returns what is added.
    """

    number: int = 2
    description: str = "Head 5.0 H31s"
    modality: str = "CT"
    kernel: str = "H31s"
    contrast_agent: str = ""
    slope: float | Sequence[float] = 1.0
    intercept: float | Sequence[float] = -1024.0
    monochrome1: bool = False
    padding_circle: bool = False
    syntax: str = "explicit"
    numbering: str = "ascending"
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")
    time_point: int | None = None
    first_instance: int = 1
    noise: Callable[[NDArray[np.floating], int], NDArray[np.floating]] | None = field(
        default=None, repr=False
    )

    def __post_init__(self) -> None:
        if self.syntax not in _SYNTAXES:
            raise UsageError(
                "unknown transfer syntax", expected=" | ".join(_SYNTAXES), got=repr(self.syntax)
            )
        if self.modality not in ("CT", "MR"):
            raise UsageError("unknown modality", expected="CT | MR", got=repr(self.modality))

    def rescale(self, index: int) -> tuple[float, float]:
        """Return slope and intercept of one slice."""
        slope = self.slope if isinstance(self.slope, int | float) else self.slope[index]
        shift = self.intercept if isinstance(self.intercept, int | float) else self.intercept[index]
        return float(slope), float(shift)


def stored_pixels(
    sampler: Sampler, plan: SlicePlan, spec: SeriesSpec, index: int
) -> NDArray[np.int16]:
    """Return the stored values of one slice, shape (rows, columns)."""
    values = np.asarray(sampler(plan.points_mm(index)), np.float64)
    if spec.noise is not None:
        values = values + spec.noise(values, index)
    slope, intercept = spec.rescale(index)
    low = -1024.0 if spec.modality == "CT" else 0.0
    stored = np.rint((np.maximum(values, low) - intercept) / slope)
    pixels = np.clip(stored, -1024 if spec.modality == "CT" else 0, 32767).astype(np.int16)
    if spec.padding_circle:
        pixels[outside_circle(plan)] = PADDING
    return pixels


def outside_circle(plan: SlicePlan) -> NDArray[np.bool_]:
    """Return which pixels lie outside the circle that touches the image's sides."""
    axes = [(np.arange(n) + 0.5) / n * 2 - 1 for n in plan.shape]
    return axes[0][:, None] ** 2 + axes[1][None] ** 2 > 1


def base_dataset(
    sop_class: str,
    modality: str,
    identity: Identity,
    study: Sequence[object],
    series: Sequence[object],
    instance: object,
    number: int,
    description: str,
) -> FileDataset:
    """Return patient, study, series and equipment of one file.

    `study` and `series` are the names their UIDs are hashed from (a series'
    within its study), `instance` the one of the file within the series.
    """
    uid = UID(phantom_uid("instance", *study, *series, instance))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(phantom_uid("implementation"))
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid
    ds.PatientName, ds.PatientID = identity.name, identity.patient_id
    ds.PatientBirthDate, ds.PatientSex = identity.birth_date, identity.sex
    if identity.comments:
        ds.PatientComments = identity.comments
    ds.StudyInstanceUID = phantom_uid("study", *study)
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = identity.study_date
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101500"
    ds.AccessionNumber, ds.StudyID = identity.accession, "1"
    ds.ReferringPhysicianName = identity.physician
    ds.StudyDescription = identity.study_description
    ds.SeriesInstanceUID = phantom_uid("series", *study, *series)
    ds.Modality, ds.SeriesNumber, ds.SeriesDescription = modality, number, description
    ds.Manufacturer, ds.ManufacturerModelName = "medpipe", "phantom"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1"
    ds.InstitutionName = identity.institution
    if identity.private_tag:
        ds.private_block(0x0019, "PHANTOM PRIVATE", create=True).add_new(
            0x01, "LO", identity.private_tag
        )
    return ds


def _image_plane(ds: Dataset, plan: SlicePlan, study: Sequence[object]) -> None:
    ds.FrameOfReferenceUID = phantom_uid("frame", *study)
    ds.PositionReferenceIndicator = ""
    ds.PatientPosition = "HFS"
    ds.ImageOrientationPatient = [decimal(v) for v in plan.orientation]
    ds.PixelSpacing = [decimal(v) for v in plan.pixel_mm]
    ds.SliceThickness = decimal(plan.thickness_mm)


def _pixel_module(ds: Dataset, plan: SlicePlan, spec: SeriesSpec) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if spec.monochrome1 else "MONOCHROME2"
    ds.Rows, ds.Columns = plan.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    if spec.padding_circle:
        ds.PixelPaddingValue = PADDING


def _modality_module(ds: Dataset, plan: SlicePlan, spec: SeriesSpec, index: int) -> None:
    ds.ImageType = list(spec.image_type)
    ds.AcquisitionNumber = spec.time_point or 1
    slope, intercept = spec.rescale(index)
    if spec.modality == "CT":
        ds.RescaleSlope, ds.RescaleIntercept = decimal(slope), decimal(intercept)
        ds.RescaleType = "HU"
        ds.KVP, ds.XRayTubeCurrent, ds.ExposureTime = "120", "300", "1000"
        ds.ConvolutionKernel, ds.FilterType = spec.kernel, "HEAD"
        if plan.tilt_deg is not None:
            ds.GantryDetectorTilt = decimal(plan.tilt_deg)
        if spec.contrast_agent:
            ds.ContrastBolusAgent = spec.contrast_agent
        return
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "GR", "SP", ""
    ds.MRAcquisitionType, ds.MagneticFieldStrength = "3D", "3"
    ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength, ds.FlipAngle = "2000", "3", "1", "9"
    if slope != 1 or intercept != 0:
        ds.RescaleSlope, ds.RescaleIntercept = decimal(slope), decimal(intercept)
        ds.RescaleType = "US"


def save_dataset(ds: FileDataset, path: Path, syntax: str = "explicit") -> None:
    """Write a dataset as a DICOM file in one of the transfer syntaxes of `SeriesSpec`."""
    if syntax == "rle":
        ds.compress(RLELossless, generate_instance_uid=False)
    else:
        ds.file_meta.TransferSyntaxUID = _SYNTAXES[syntax]
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True, implicit_vr=syntax == "implicit", little_endian=True)


def write_series(
    folder: Path,
    sampler: Sampler,
    plan: SlicePlan,
    spec: SeriesSpec,
    *,
    identity: Identity | None = None,
    study: Sequence[object] = ("phantom", 0),
    name: str = "IM{:05d}.dcm",
    copy: str = "",
) -> list[Path]:
    """Write one single-frame file per slice.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    sampler : callable
        RAS mm points (..., 3) → values (...), e.g. `HeadCT.hu`.
    plan : SlicePlan
        Where the slices lie.
    spec : SeriesSpec
        What the series is.
    identity : Identity, optional
        Who it is.
    study : sequence
        Names that the study's UID is a hash of; a series' UID adds its number.
    name : str
        Pattern of the file names; gets InstanceNumber.
    copy : str
        Added to the SOP instance UIDs, to write the same images a second time.

    Returns
    -------
    list of Path
        The files, in the order of `plan`.
    """
    who = identity or Identity()
    numbers = _numbers(spec, plan, study)
    sop_class = CTImageStorage if spec.modality == "CT" else MRImageStorage
    paths = []
    for index in range(len(plan)):
        number = int(numbers[index])
        ds = base_dataset(
            sop_class,
            spec.modality,
            who,
            study,
            (spec.number,),
            f"{number}{copy}",
            spec.number,
            spec.description,
        )
        _image_plane(ds, plan, study)
        _modality_module(ds, plan, spec, index)
        _pixel_module(ds, plan, spec)
        ds.InstanceNumber = number
        ds.ImagePositionPatient = [decimal(v) for v in plan.positions_mm[index]]
        ds.SliceLocation = decimal(plan.positions_mm[index][2])
        if spec.time_point is not None:
            ds.TemporalPositionIdentifier = spec.time_point
            ds.AcquisitionTime = f"1016{spec.time_point:02d}"
        ds.PixelData = stored_pixels(sampler, plan, spec, index).tobytes()
        ds["PixelData"].VR = "OW"
        path = folder / name.format(number)
        save_dataset(ds, path, spec.syntax)
        paths.append(path)
    return paths


def write_ct_series(
    folder: Path,
    sampler: Sampler,
    geometry: SlicePlan,
    spec: SeriesSpec | None = None,
    *,
    identity: Identity | None = None,
    study: Sequence[object] = ("phantom", 0),
) -> list[Path]:
    """Write a CT series: `write_series` with a CT's settings as default."""
    return write_series(
        folder, sampler, geometry, spec or SeriesSpec(), identity=identity, study=study
    )


def write_mr_series(
    folder: Path,
    sampler: Sampler,
    geometry: SlicePlan,
    spec: SeriesSpec | None = None,
    *,
    identity: Identity | None = None,
    study: Sequence[object] = ("phantom", 0),
) -> list[Path]:
    """Write an MR series: `write_series` with an MR's settings as default."""
    spec = spec or SeriesSpec(
        number=3, description="t1 mprage", modality="MR", intercept=0.0, image_type=_MR_TYPE
    )
    return write_series(folder, sampler, geometry, spec, identity=identity, study=study)


_MR_TYPE = ("ORIGINAL", "PRIMARY", "M", "NORM")


def write_enhanced(
    path: Path,
    sampler: Sampler,
    plan: SlicePlan,
    spec: SeriesSpec,
    *,
    identity: Identity | None = None,
    study: Sequence[object] = ("phantom", 0),
) -> Path:
    """Write the whole series as one Enhanced CT or MR multi-frame file."""
    ct = spec.modality == "CT"
    sop_class = EnhancedCTImageStorage if ct else EnhancedMRImageStorage
    ds = base_dataset(
        sop_class,
        spec.modality,
        identity or Identity(),
        study,
        (spec.number,),
        1,
        spec.number,
        spec.description,
    )
    ds.FrameOfReferenceUID = phantom_uid("frame", *study)
    ds.PositionReferenceIndicator = ""
    ds.PatientPosition = "HFS"
    _pixel_module(ds, plan, spec)
    ds.InstanceNumber = 1
    ds.NumberOfFrames = len(plan)
    enhanced_groups(ds, plan, spec)
    frames = [stored_pixels(sampler, plan, spec, i) for i in range(len(plan))]
    ds.PixelData = np.stack(frames).tobytes()
    ds["PixelData"].VR = "OW"
    save_dataset(ds, path, spec.syntax)
    return path


def _numbers(spec: SeriesSpec, plan: SlicePlan, study: Sequence[object]) -> NDArray[np.int64]:
    """Return InstanceNumber of each slice of the plan."""
    rank = np.empty(len(plan), np.int64)
    rank[plan.order()] = np.arange(len(plan))
    if spec.numbering == "descending":
        rank = len(plan) - 1 - rank
    elif spec.numbering == "shuffled":
        seed = int(phantom_uid("order", *study, spec.number)[5:]) % (1 << 32)
        rank = np.random.default_rng(seed).permutation(len(plan))[rank]
    return rank + spec.first_instance
