"""Is this a CT of a head, in HU, without contrast medium, and all of it?

What cannot be right is refused with `InputError`; what may be right is a finding. Every
limit is a constant of this module, with its unit and the reason for its height.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import InputError
from medpipe.geometry import axis_codes, spacing_mm
from medpipe.outcome.frame import face_areas_cm2, points_mm
from medpipe.steps._balls import close_ball, erode_ball
from medpipe.steps._base import affine_of
from medpipe.steps._components import fill_holes, keep_largest
from medpipe.types import Affine, Finding, Json, Severity

__all__ = ["check_coverage", "check_size", "check_skull", "check_slices", "check_values"]

AIR_HU = (-1100.0, -850.0)
SOFT_HU = (-150.0, 200.0)
BONE_HU = 300.0
MIN_AIR_SHARE = 0.05
"""Of all voxels: a field of view around a head holds far more air than this."""
MIN_SOFT_SHARE = 0.3
"""Of the voxels that are not air: soft tissue and fat. In MR units, few lie there."""
MAX_BETWEEN_SHARE = 0.25
"""Of the voxels that are not air, between air and fat, when an offset is suspected."""
MIN_BONE_SHARE = 0.02
AIR_OFFSET_HU = 50.0
"""Air may lie that far from -1000 HU; further off it is told, twice as far is refused."""
OFFSETS_HU = (1000.0, -1000.0)
"""RescaleIntercept is -1000 or -1024: not applied, or applied twice."""

MIN_SLICES = 10
MAX_STEP_MM = 12.0
COARSE_STEP_MM = 7.5

MAX_AREA_CM2 = 480.0
"""An axial slice of an adult head with ears has about 250 to 330 cm²; chests have more."""
MAX_LUNG_SHARE = 0.15
"""Of the object, below -400 HU: sinuses and airway of a head make up about 3 %."""
MIN_SKULL_SHARE = 0.04
"""Of the object, above 300 HU: 10 to 20 % of a head, 2 to 8 % of a trunk."""
MIN_CRANIUM_ML = 100.0
"""Enclosed by bone, slice by slice: 1,000 to 1,600 ml of a whole head."""
OPEN_CRANIUM_SHARE = 0.12

SHORT_MM = 120.0
SHORTEST_MM = 70.0
"""From the vertex down: brain and skull base take about 130 mm."""
CUT_TOP_CM2 = (10.0, 80.0)
CUT_SIDE_CM2 = (15.0, 100.0)
"""Area in which the head meets the end of the scan: told from the first, refused from the
second on. A cap of 80 cm² is 17 mm high."""

VESSEL_HU = (100.0, 300.0)
MAX_VESSEL_ML = 2.0
"""Inside the skull, 6 mm from bone: calcifications of plexus and pineal stay below."""

NO_HEAD_HINT = "check that the series is a CT of the head"


def _finding(check: str, message: str, severity: Severity = Severity.WARNING) -> Finding:
    return Finding(f"outcome.{check}", severity, f"ct_check: {message}")


def _shares(values: torch.Tensor, offset: float = 0.0) -> dict[str, float]:
    """Return shares of air of all, and of soft tissue, bone and what is between of the rest."""
    n = max(values.numel(), 1)
    air = float((values < AIR_HU[1] + offset).sum())
    rest = max(n - air, 1.0)
    soft = (values >= SOFT_HU[0] + offset) & (values <= SOFT_HU[1] + offset)
    between = (values >= AIR_HU[1] + offset) & (values < SOFT_HU[0] + offset)
    return {
        "air": air / n,
        "soft": float(soft.sum()) / rest,
        "bone": float((values > BONE_HU + offset).sum()) / rest,
        "between": float(between.sum()) / rest,
    }


def _is_ct(shares: Mapping[str, float]) -> bool:
    return shares["air"] >= MIN_AIR_SHARE and shares["soft"] >= MIN_SOFT_SHARE


def _air_hu(values: torch.Tensor) -> float | None:
    """Return the most frequent value of air, in bins of 10 HU, without flat padding."""
    near = values[(values > -1300) & (values < -700)]
    measured = near[(near + 1024).abs() > 0.5]
    if near.numel() == 0:
        return None
    if measured.numel() > 0.02 * values.numel():
        near = measured
    counts = torch.histc(near.float(), bins=60, min=-1300, max=-700)
    return -1295.0 + 10 * int(counts.argmax())


def check_values(small: MetaTensor, modality: Any = None) -> tuple[dict[str, Json], list[Finding]]:
    """Check that values are HU.

    Parameters
    ----------
    small : MetaTensor, shape (1, I, J, K)
        The image, or a coarser copy of it; not yet clipped.
    modality : str, optional
        As the header says.

    Returns
    -------
    facts : dict
        Shares of air, soft tissue and bone, most frequent value of air in HU.
    findings : list of Finding

    Raises
    ------
    InputError
        If it is no CT, or its values are no HU.
    """
    if modality not in (None, "CT"):
        known = modality if modality in ("MR", "PT", "NM", "US", "CR", "DX") else "another one"
        raise InputError("the image is no CT", expected="modality CT", got=str(known))
    values = small.as_tensor()[0].flatten()
    if not bool(torch.isfinite(values).all()):
        raise InputError("the image holds NaN or infinite values", expected="HU")
    low, high = (float(v) for v in torch.aminmax(values))
    shares = _shares(values)
    facts: dict[str, Json] = {f"{k}_share": round(v, 4) for k, v in shares.items()}
    if not _is_ct(shares):
        _refuse_values(values, low, high, shares)
    air = _air_hu(values)
    facts["air_hu"] = air
    findings = []
    if air is not None and abs(air + 1000) > AIR_OFFSET_HU:
        text = f"air lies at {air:g} HU, not at -1000"
        if abs(air + 1000) > 2 * AIR_OFFSET_HU:
            raise InputError(text, expected="HU", hint="check RescaleIntercept of the series")
        findings.append(_finding("hu_offset", f"{text}: check RescaleIntercept"))
    return facts, findings


def _refuse_values(
    values: torch.Tensor, low: float, high: float, shares: Mapping[str, float]
) -> None:
    """Raise the error that fits values which are no HU."""
    for offset in OFFSETS_HU:
        moved = _shares(values, offset)
        if (
            _is_ct(moved)
            and moved["between"] <= MAX_BETWEEN_SHARE
            and moved["bone"] >= MIN_BONE_SHARE
        ):
            raise InputError(
                f"the values are HU shifted by about {offset:+g}",
                expected="air at -1000 HU",
                hint="apply RescaleIntercept once",
            )
    if shares["air"] < MIN_AIR_SHARE:
        raise InputError(
            "the image is no CT in HU: nothing in it is air",
            expected=f"at least {MIN_AIR_SHARE:.0%} of the voxels below {AIR_HU[1]:g} HU",
            got=f"{shares['air']:.1%}, values from {low:g} to {high:g}",
            hint="an MR or a stripped or windowed image cannot be used",
        )
    raise InputError(
        "the image is no CT in HU: too little of it is soft tissue",
        expected=f"at least {MIN_SOFT_SHARE:.0%} of what is not air at "
        f"{SOFT_HU[0]:g}..{SOFT_HU[1]:g} HU",
        got=f"{shares['soft']:.1%}",
        hint=NO_HEAD_HINT,
    )


def check_slices(
    affine: Affine, shape: Sequence[int], source: Mapping[str, Any]
) -> tuple[dict[str, Json], list[Finding]]:
    """Check that the scan has slices enough.

    Parameters
    ----------
    affine, shape
        Grid of the image; its coarsest axis runs across the slices.
    source : mapping
        Facts of the image. Of a DICOM series they tell the slices as they were acquired,
        also after a repair.

    Raises
    ------
    InputError
        If there are fewer than `MIN_SLICES`, or the largest step is above `MAX_STEP_MM`.
    """
    spacing = spacing_mm(affine)
    axis = int(np.argmax(spacing))
    step = source.get("step_mm")
    slices = int(source.get("slices") or shape[axis])
    step_mm = float(step["max"]) if isinstance(step, Mapping) else float(spacing[axis])
    if slices < MIN_SLICES:
        raise InputError(
            "there are too few slices", expected=f"at least {MIN_SLICES}", got=str(slices)
        )
    if step_mm > MAX_STEP_MM:
        raise InputError(
            "the slices lie too far apart",
            expected=f"at most {MAX_STEP_MM:g} mm",
            got=f"{step_mm:.1f} mm",
        )
    facts: dict[str, Json] = {"slices": slices, "step_mm": round(step_mm, 3)}
    if step_mm <= COARSE_STEP_MM:
        return facts, []
    text = f"the slices lie up to {step_mm:.1f} mm apart (more than {COARSE_STEP_MM:g} mm)"
    return facts, [_finding("coarse_slices", text)]


def check_size(small: MetaTensor, head: torch.Tensor) -> dict[str, Json]:
    """Check that the object is of the size and stuff of a head.

    Parameters
    ----------
    small : MetaTensor, shape (1, I, J, K)
        HU on an isotropic grid of about 2 mm.
    head : Tensor of bool, shape (I, J, K)
        What was taken for the head.

    Raises
    ------
    InputError
        If it is too wide, holds lungs, or too little bone.
    """
    affine = affine_of(small)
    spacing = spacing_mm(affine)
    voxel_ml = float(np.prod(spacing)) / 1000
    hu = small.as_tensor()[0].float()
    up = _up(affine)
    areas = head.sum(tuple(a for a in range(3) if a != up)).float()
    areas *= voxel_ml * 10 / float(spacing[up])
    rows = torch.nonzero(areas).flatten()
    top = int(rows[-1]) if axis_codes(affine)[up] == "S" else int(rows[0])
    near = (rows - top).abs() * float(spacing[up]) <= SHORT_MM
    widest = float(areas[rows[near]].max())
    size = float(head.sum())
    lung = float((head & (hu < -400)).sum()) / size
    bone = float((head & (hu > BONE_HU)).sum()) / size
    _refuse_trunk(widest, lung, bone)
    return {
        "head_ml": round(size * voxel_ml, 1),
        "widest_slice_cm2": round(widest, 1),
        "air_in_head_share": round(lung, 4),
        "bone_in_head_share": round(bone, 4),
    }


def check_skull(
    small: MetaTensor, head: torch.Tensor, source: Mapping[str, Any]
) -> tuple[dict[str, Json], list[Finding]]:
    """Check that a skull encloses a brain, and whether contrast medium is seen in it.

    Parameters
    ----------
    small : MetaTensor, shape (1, I, J, K)
        HU on an isotropic grid of about 2 mm.
    head : Tensor of bool, shape (I, J, K)
    source : mapping
        Facts of the image.

    Raises
    ------
    InputError
        If no skull encloses anything.
    """
    affine = affine_of(small)
    a, b, c = (float(s) for s in spacing_mm(affine))
    voxel_ml = a * b * c / 1000
    hu = small.as_tensor()[0].float()
    bone = close_ball((hu > BONE_HU) & head, 4.0, (a, b, c))
    cranium = keep_largest(fill_holes(bone, _up(affine)) & ~bone & (hu > -200))
    cranium_ml = float(cranium.sum()) * voxel_ml
    if cranium_ml < MIN_CRANIUM_ML:
        raise InputError(
            "the image shows no head: no skull encloses a brain",
            expected=f"at least {MIN_CRANIUM_ML:g} ml within bone",
            got=f"{cranium_ml:.0f} ml",
            hint=NO_HEAD_HINT,
        )
    findings = []
    if cranium_ml < OPEN_CRANIUM_SHARE * float(head.sum()) * voxel_ml:
        text = f"only {cranium_ml:.0f} ml lie within bone: the skull is open, or not all is there"
        findings.append(_finding("open_skull", text))
    inside = erode_ball(cranium, 6.0, (a, b, c))
    bright = inside & (hu > VESSEL_HU[0]) & (hu < VESSEL_HU[1])
    vessel_ml = float(bright.sum()) * voxel_ml
    facts: dict[str, Json] = {
        "cranium_ml": round(cranium_ml, 1),
        "vessel_ml": round(vessel_ml, 2),
    }
    return facts, findings + _contrast(vessel_ml, source)


def _up(affine: Affine) -> int:
    """Return the voxel axis that runs along the body."""
    return next(a for a, c in enumerate(axis_codes(affine)) if c in "IS")


def _refuse_trunk(widest_cm2: float, lung: float, bone: float) -> None:
    """Raise InputError where size, air or bone are not those of a head."""
    for value, limit, what, expected in (
        (widest_cm2, MAX_AREA_CM2, f"{widest_cm2:.0f} cm²", f"at most {MAX_AREA_CM2:g} cm²"),
        (lung, MAX_LUNG_SHARE, f"{lung:.0%} of air", f"at most {MAX_LUNG_SHARE:.0%} of air"),
    ):
        if value > limit:
            raise InputError(
                "the image shows no head",
                expected=f"{expected} {'in a slice' if limit > 1 else 'in it'}",
                got=what,
                hint=NO_HEAD_HINT,
            )
    if bone < MIN_SKULL_SHARE:
        raise InputError(
            "the image shows no head: too little bone",
            expected=f"at least {MIN_SKULL_SHARE:.0%} above {BONE_HU:g} HU",
            got=f"{bone:.1%}",
            hint=NO_HEAD_HINT,
        )


def _contrast(vessel_ml: float, source: Mapping[str, Any]) -> list[Finding]:
    """Return what to say of contrast medium, by the header or by what is bright."""
    if source.get("contrast"):
        return [_finding("contrast", "the header names a contrast medium")]
    if vessel_ml <= MAX_VESSEL_ML:
        return []
    text = (
        f"{vessel_ml:.1f} ml inside the skull are as bright as vessels with contrast medium"
        f" ({VESSEL_HU[0]:g}..{VESSEL_HU[1]:g} HU; up to {MAX_VESSEL_ML:g} ml are usual without)"
    )
    return [_finding("contrast", text)]


def check_coverage(
    small: MetaTensor, head: torch.Tensor, fov: tuple[Affine, Sequence[int]]
) -> tuple[dict[str, Json], list[Finding]]:
    """Check that the head is not cut off.

    Parameters
    ----------
    small : MetaTensor, shape (1, I, J, K)
    head : Tensor of bool, shape (I, J, K)
        On the grid of `small`.
    fov : affine and shape
        Grid of the scan itself.

    Raises
    ------
    InputError
        If so much is missing that the scan cannot be used.
    """
    affine = affine_of(small)
    points = points_mm(head, affine)
    voxel_mm3 = float(abs(np.linalg.det(affine[:3, :3])))
    areas = face_areas_cm2(points, voxel_mm3, *fov)
    codes = axis_codes(fov[0])
    # the last face of an axis lies where its code points to, the first on the other side
    area = {c: float(areas[a, 1]) for a, c in enumerate(codes)}
    area |= {"RLAPSI"["LRPAIS".index(c)]: float(areas[a, 0]) for a, c in enumerate(codes)}
    low, high = (v.tolist()[2] for v in torch.aminmax(points, dim=0))
    length = high - low
    facts: dict[str, Json] = {
        "head_length_mm": round(length, 1),
        "cut_cm2": {c: round(area[c], 1) for c in "RLAPSI"},
    }
    findings: list[Finding] = []
    if length < SHORTEST_MM:
        raise InputError(
            "the scan holds too little of the head",
            expected=f"at least {SHORTEST_MM:g} mm from the vertex down",
            got=f"{length:.0f} mm",
        )
    if length < SHORT_MM:
        text = f"the scan holds {length:.0f} mm of the head: brain or skull base are cut off"
        findings.append(_finding("cut_off", text))
    sides = sum(area[c] for c in "RLAP")
    for cut, limits, where in ((area["S"], CUT_TOP_CM2, "top"), (sides, CUT_SIDE_CM2, "side")):
        if cut > limits[1]:
            raise InputError(
                f"the head is cut off at the {where} of the scan",
                expected=f"at most {limits[1]:g} cm²",
                got=f"{cut:.0f} cm²",
            )
        if cut > limits[0]:
            text = f"the head is cut off at the {where} of the scan ({cut:.0f} cm²)"
            findings.append(_finding("cut_off", text))
    return facts, findings
