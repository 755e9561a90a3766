"""What is recorded about a series: facts free of patient data, and doubts."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from medpipe.geometry import LPS_TO_RAS
from medpipe.io.dicom_geometry import Stack
from medpipe.io.dicom_group import Series
from medpipe.io.dicom_header import Frame
from medpipe.io.dicom_pixels import SYNTAXES
from medpipe.types import Finding, Severity

__all__ = ["completeness", "source_facts"]


def _range(values: list[float]) -> float | list[float]:
    low, high = min(values), max(values)
    return low if low == high else [low, high]


def _common(values: set[Any]) -> Any:
    return values.pop() if len(values) == 1 else None


def _settings(frames: list[Frame]) -> dict[str, float | list[float]]:
    """Return each setting of an MR series: one value, or all that occur."""
    names = dict.fromkeys(name for f in frames for name in f.settings)
    values = {n: sorted({f.settings[n] for f in frames if n in f.settings}) for n in names}
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}


def source_facts(series: Series, frames: list[Frame], stack: Stack) -> dict[str, Any]:
    """Collect the facts of the series that say nothing about the patient."""
    steps = stack.steps_mm
    rescale = None
    if frames[0].slope is not None:
        rescale = {
            "slope": _range([f.slope for f in frames if f.slope is not None]),
            "intercept": _range([f.intercept for f in frames if f.intercept is not None]),
        }
    thickness = [f.thickness for f in frames if f.thickness is not None]
    return {
        "kind": "dicom",
        "modality": series.modality,
        "series_number": series.number,
        "uid_hash8": series.hash8,
        "slices": len(stack.along_mm),
        "rows": series.rows,
        "cols": series.cols,
        "pixel_spacing_mm": list(stack.spacing),
        "orientation": stack.orientation,
        "slice_positions_mm": (stack.along_mm - stack.along_mm[0]).round(6).tolist(),
        "slice_origins_ras_mm": (stack.origins @ LPS_TO_RAS[:3, :3]).round(6).tolist(),
        "step_mm": {
            "min": float(steps.min()),
            "median": float(np.median(steps)),
            "max": float(steps.max()),
        }
        if len(steps)
        else None,
        "tilt_deg": round(stack.tilt_deg, 4),
        "kvp": _common({f.kvp for f in frames}),
        "kernel": _common({f.kernel for f in frames}),
        "slice_thickness_mm": _range(thickness) if thickness else None,
        "contrast": series.contrast,
        "transfer_syntax": " and ".join(sorted({SYNTAXES[f.syntax] for f in frames})),
        "rescale": rescale,
        **({"settings": _settings(frames)} if series.modality == "MR" else {}),
        "repairs": [],
    }


def _mixed(frames: list[Frame], stack: Stack) -> list[Finding]:
    """Look for slices of several acquisitions at positions between each other's.

    A tag that takes one value after the other along the stack is how a table
    moves; one that returns to an earlier value is how two stacks are mixed.
    """
    if len(frames) != len(stack.along_mm):
        return []  # time points: they have their own order
    for keyword in ("EchoTime", "AcquisitionNumber"):
        values = [f.order.get(keyword) for f in frames]
        runs = 1 + sum(a != b for a, b in pairwise(values))
        if None not in values and runs > len(set(values)):
            text = f"{keyword} changes to and fro along the stack: are these several stacks?"
            return [Finding("dicom.mixed_stacks", Severity.WARNING, text)]
    return []


def completeness(series: Series, frames: list[Frame], stack: Stack) -> list[Finding]:
    """Compare what is there with what the headers announce."""
    out = []
    expected = {f.images_in_acquisition for f in frames} - {None}
    if len({f.acquisition for f in frames}) == 1 and len(expected) == 1:
        announced = expected.pop()
        if announced is not None and announced > len(frames):
            text = f"ImagesInAcquisition announces {announced} images, {len(frames)} are there"
            out.append(Finding("dicom.incomplete", Severity.WARNING, text))
    names = Counter((f.instance, f.index) for f in frames)
    if names.most_common(1)[0][1] > 1:
        text = "different slices carry the same SOPInstanceUID"
        out.append(Finding("dicom.instance_uid", Severity.WARNING, text))
    out += _mixed(frames, stack)
    if series.modality == "MR" and any(f.slope not in (None, 1.0) for f in frames):
        text = "RescaleSlope is not 1: values of other series may be on another scale"
        out.append(Finding("dicom.mr_scale", Severity.INFO, text))
    if series.modality == "CT" and len({(f.slope, f.intercept) for f in frames}) > 1:
        text = "RescaleSlope or RescaleIntercept differs between the slices; each got its own"
        out.append(Finding("dicom.rescale_varies", Severity.WARNING, text))
    if series.modality == "CT" and not all(f.hounsfield for f in frames):
        text = "RescaleType is not HU: the values may not be Hounsfield units"
        out.append(Finding("dicom.rescale_type", Severity.WARNING, text))
    return out
