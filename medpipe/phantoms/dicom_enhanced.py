"""The functional groups of an Enhanced CT or MR multi-frame file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.sequence import Sequence as DicomSequence

from medpipe.phantoms.dicom_geometry import SlicePlan, decimal, phantom_uid

if TYPE_CHECKING:
    from medpipe.phantoms.dicom_writer import SeriesSpec

__all__ = ["enhanced_groups"]


def _item(**attributes: object) -> DicomSequence:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return DicomSequence([ds])


def enhanced_groups(ds: Dataset, plan: SlicePlan, spec: SeriesSpec) -> None:
    """Add the multi-frame dimension, shared and per-frame groups to `ds`."""
    ct = spec.modality == "CT"
    kind = (*spec.image_type[:2], "VOLUME", "NONE")
    ds.ImageType = list(kind)
    ds.PixelPresentation, ds.VolumetricProperties = "MONOCHROME", "VOLUME"
    ds.VolumeBasedCalculationTechnique = "NONE"
    ds.ContentQualification, ds.BurnedInAnnotation = "RESEARCH", "NO"
    ds.LossyImageCompression, ds.PresentationLUTShape = "00", "IDENTITY"
    ds.AcquisitionNumber, ds.AcquisitionDateTime = 1, f"{ds.StudyDate}101500"
    ds.AcquisitionDuration = 10.0
    organisation = phantom_uid("dimensions", ds.SOPInstanceUID)
    ds.DimensionOrganizationSequence = _item(DimensionOrganizationUID=organisation)
    ds.DimensionIndexSequence = _item(
        DimensionOrganizationUID=organisation,
        DimensionIndexPointer=0x00200032,
        FunctionalGroupPointer=0x00209113,
    )
    frame_type = _item(
        FrameType=list(kind),
        PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
    )
    shared = Dataset()
    if ct:
        shared.CTImageFrameTypeSequence = frame_type
        ds.MultienergyCTAcquisition = "NO"
    else:
        frame_type[0].ComplexImageComponent = ds.ComplexImageComponent = "MAGNITUDE"
        frame_type[0].AcquisitionContrast = ds.AcquisitionContrast = "T1"
        shared.MRImageFrameTypeSequence = frame_type
        ds.MagneticFieldStrength, ds.ResonantNucleus = 3.0, "1H"
        ds.ContentQualification, ds.ApplicableSafetyStandardAgency = "RESEARCH", "IEC"
    shared.PixelMeasuresSequence = _item(
        PixelSpacing=[decimal(v) for v in plan.pixel_mm], SliceThickness=decimal(plan.thickness_mm)
    )
    shared.PlaneOrientationSequence = _item(
        ImageOrientationPatient=[decimal(v) for v in plan.orientation]
    )
    shared.FrameAnatomySequence = _item(FrameLaterality="U", AnatomicRegionSequence=_head())
    ds.SharedFunctionalGroupsSequence = DicomSequence([shared])
    ds.PerFrameFunctionalGroupsSequence = DicomSequence(
        [_frame(plan, spec, i, f"{ds.StudyDate}101500") for i in range(len(plan))]
    )


def _frame(plan: SlicePlan, spec: SeriesSpec, index: int, time: str) -> Dataset:
    slope, intercept = spec.rescale(index)
    position = int(list(plan.order()).index(index)) + 1
    out = Dataset()
    out.FrameContentSequence = _item(
        FrameReferenceDateTime=time,
        FrameAcquisitionDateTime=time,
        FrameAcquisitionDuration=10.0,
        StackID="1",
        InStackPositionNumber=position,
        DimensionIndexValues=[position],
    )
    out.PlanePositionSequence = _item(
        ImagePositionPatient=[decimal(v) for v in plan.positions_mm[index]]
    )
    out.PixelValueTransformationSequence = _item(
        RescaleIntercept=decimal(intercept),
        RescaleSlope=decimal(slope),
        RescaleType="HU" if spec.modality == "CT" else "US",
    )
    return out


def _head() -> DicomSequence:
    return _item(CodeValue="69536005", CodingSchemeDesignator="SCT", CodeMeaning="Head")
