"""Where a NIfTI image is in the world: the checks on pixdim, qform, sform and units.

NIfTI stores the place up to three times: spacings (`pixdim`), a rotation
(`qform`) and a free affine (`sform`), the last two with a code that says
whether they are set. Readers differ in which they believe; here the sform is
used where it is set, else the qform, and any damage to either is an error.

References
----------
Cox et al., "A (sort of) new image data format standard: NIfTI-1", NeuroImage
22 (2004) e1440; https://nifti.nimh.nih.gov/nifti-1
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import UsageError
from medpipe.geometry import affine_from_parts, affine_problem, corners_mm, spacing_mm
from medpipe.io.checks import Head, error, settle
from medpipe.types import Affine, Finding, Severity

__all__ = ["Place", "assumed_affine", "find_place", "orientation_choices", "same_place"]

_UNITS = {0: "unknown", 1: "m", 2: "mm", 3: "um"}
_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_DIRECTIONS = {
    "R": (1.0, 0.0, 0.0),
    "L": (-1.0, 0.0, 0.0),
    "A": (0.0, 1.0, 0.0),
    "P": (0.0, -1.0, 0.0),
    "S": (0.0, 0.0, 1.0),
    "I": (0.0, 0.0, -1.0),
}
_MAX_CODE = 5
_TOLERANCE = 0.1  # of a voxel, between sform and qform at the corners of the grid


@dataclass(frozen=True, slots=True)
class Place:
    """The affine found, what it was taken from, and what the checks saw."""

    affine: Affine
    origin: str
    units: str
    findings: list[Finding]


def orientation_choices() -> list[str]:
    """Return every value that `assume_orientation` takes."""
    pairs = ("RL", "AP", "SI")
    codes = [
        "".join(letters)
        for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        for letters in product(*(pairs[i] for i in order))
    ]
    return ["qform", "sform", *sorted(codes)]


def assumed_affine(codes: str, spacing: ArrayLike, shape: Sequence[int]) -> Affine:
    """Build the affine of a grid whose axes point along `codes`, its middle at 0 mm.

    Parameters
    ----------
    codes : str
        Where each voxel axis points to, e.g. ``"LAS"``.
    spacing : (3,) mm
    shape : (3,) voxels
    """
    affine = affine_from_parts(np.array([_DIRECTIONS[c] for c in codes]).T, spacing, (0, 0, 0))
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape, float) - 1) / 2)
    return affine


def same_place(a: Affine, b: Affine, shape: Sequence[int]) -> bool:
    """Return whether two affines put the corners of a grid within a tenth of a voxel."""
    apart = np.abs(corners_mm(a, shape) - corners_mm(b, shape)).max()
    return bool(apart <= _TOLERANCE * spacing_mm(a).min())


def _check_pixdim(head: Head) -> Iterator[Finding]:
    used = head.pixdim[1 : 1 + min(3, len(head.shape))]
    if not all(math.isfinite(p) for p in used):
        yield error("nifti.pixdim_finite", "a voxel spacing (pixdim) is NaN or infinite")
    if any(p == 0 for p in used):
        yield error("nifti.zero_pixdim", "a voxel spacing (pixdim) is zero")
    if any(p < 0 for p in used):
        yield error("nifti.negative_pixdim", "a voxel spacing (pixdim) is negative")


def _repaired_pixdim(head: Head, sform: Affine | None, factor: float) -> NDArray[np.float64]:
    """Return three positive spacings in mm, as the repairs of pixdim define them."""
    step = np.abs(np.array(head.pixdim[1:4])) * factor
    step[len(head.shape) :] = np.where(step[len(head.shape) :] > 0, step[len(head.shape) :], 1.0)
    bad = ~np.isfinite(step) | (step == 0)
    usable = sform is not None and affine_problem(sform) is None
    step[bad] = spacing_mm(sform)[bad] if usable and sform is not None else 1.0
    return step


def _codes(head: Head) -> tuple[int, int, Finding | None]:
    """Return sform code, qform code (0 where undefined) and what was wrong with them."""
    codes = [c if 0 <= c <= _MAX_CODE else 0 for c in (head.sform_code, head.qform_code)]
    if codes == [head.sform_code, head.qform_code]:
        return codes[0], codes[1], None
    message = f"sform code {head.sform_code} and qform code {head.qform_code} must lie in 0..5"
    return codes[0], codes[1], error("nifti.xform_code", message)


def _sform(head: Head, factor: float) -> Affine:
    rows = [np.asarray(head.nib[f"srow_{axis}"], float) for axis in "xyz"]
    return np.vstack([np.array(rows) * factor, [[0, 0, 0, 1]]])


def _qform(head: Head, step: NDArray[np.float64], factor: float) -> tuple[Affine, str | None]:
    """Return the qform affine and what is wrong with its quaternion, if anything."""
    from nibabel.quaternions import fillpositive, quat2mat

    fields = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    values = np.array([float(head.nib[f]) for f in fields])
    affine = np.full((4, 4), np.nan)
    affine[3] = (0, 0, 0, 1)
    if not np.isfinite(values).all():
        return affine, None  # affine_finite reports it
    qfac = head.pixdim[0]
    if qfac not in (-1, 0, 1):
        return affine, f"the qform handedness (pixdim[0]) is {qfac:g}, not 1 or -1"
    try:
        # float32 rounding: the threshold of nibabel itself
        quaternion = fillpositive(values[:3], np.finfo(np.float32).eps * -3)
    except ValueError:
        return affine, "the qform quaternion is longer than one"
    directions = quat2mat(quaternion) @ np.diag([1, 1, -1 if qfac < 0 else 1])
    return affine_from_parts(directions, step, values[3:] * factor), None


def _check_form(name: str, affine: Affine, wrong: str | None, other_usable: bool) -> Finding | None:
    """Report a form that is set but cannot be used."""
    if wrong is not None:
        return error("nifti.qform_quaternion", wrong, fixable=other_usable)
    problem = affine_problem(affine)
    if problem is None:
        return None
    kind = "spacing"
    if "NaN" in problem:
        kind = "finite"
    elif "singular" in problem:
        kind = "singular"
    message = f"the {name} is not usable: {problem}"
    return error(f"nifti.affine_{kind}", message, fixable=other_usable)


def _check_agreement(
    head: Head, sform: Affine, qform: Affine, shape: Sequence[int]
) -> Finding | None:
    """The two forms agree where both claim the same space (the same code)."""
    if same_place(sform, qform, shape):
        return None
    apart = float(np.abs(corners_mm(sform, shape) - corners_mm(qform, shape)).max())
    message = f"sform and qform are up to {apart:.3g} mm apart"
    if head.sform_code == head.qform_code:
        return error("nifti.sform_qform_disagree", f"{message} though both have one code")
    return Finding(
        "nifti.sform_qform_disagree",
        Severity.WARNING,
        f"{message}, with codes {head.sform_code} and {head.qform_code}; the sform was used",
    )


def _check_units(head: Head) -> tuple[str, float, Finding | None]:
    """Return the unit of length, its factor to mm and a finding unless it is mm."""
    code = head.xyzt_units & 7
    if code not in _UNITS:
        return "unknown", 1.0, error("nifti.units", f"the unit of length has no meaning ({code})")
    name, factor = _UNITS[code], _TO_MM[code]
    if code == 0:
        message = "the unit of length is not stated; millimetres were assumed"
        return name, factor, Finding("nifti.units", Severity.WARNING, message)
    if code != 2:
        message = f"lengths were converted from {name} to mm"
        return name, factor, Finding("nifti.units", Severity.INFO, message)
    return name, factor, None


def find_place(
    head: Head, shape: Sequence[int], fixes: Sequence[str], assume_orientation: str | None
) -> Place:
    """Run every check on the place of an image and return its affine in RAS+ mm.

    Parameters
    ----------
    head : Head
    shape : (3,) voxels
        The grid as it will be returned.
    fixes : sequence of str
        Repairs asked for, see `medpipe.io.checks.REPAIRS`.
    assume_orientation : str, optional
        What to do where both codes are 0: ``"qform"`` or ``"sform"`` takes that
        form as though its code were set; three axis codes such as ``"RAS"`` say
        where the voxel axes point, the middle of the grid is then 0 mm. Not
        used where the file states its orientation.

    Returns
    -------
    Place
        Its affine may be unusable where a finding is an ERROR that is not fixed.
    """
    if assume_orientation is not None and assume_orientation not in orientation_choices():
        raise UsageError(
            "assume_orientation is not a known orientation",
            expected='"qform", "sform" or three axis codes such as "RAS" or "LPS"',
            got=repr(assume_orientation),
        )
    with np.errstate(all="ignore"):
        return _find_place(head, shape, fixes, assume_orientation)


def _find_place(
    head: Head, shape: Sequence[int], fixes: Sequence[str], assume: str | None
) -> Place:
    units, factor, units_finding = _check_units(head)
    scode, qcode, code_finding = _codes(head)
    findings = [*_check_pixdim(head), code_finding, units_finding]
    unknown = scode == qcode == 0
    if unknown:
        if assume == "sform":
            scode = 1
        elif assume == "qform":
            qcode = 1
        findings.append(_orientation_unknown(assume))
    sform = _sform(head, factor) if scode else None
    step = _repaired_pixdim(head, sform, factor)
    qform, wrong = _qform(head, step, factor) if qcode else (None, None)

    usable = sform is not None and affine_problem(sform) is None
    findings += _check_forms(head, sform, qform, wrong, shape)

    affine, origin = assumed_affine("RAS", step, shape), "nothing"
    if sform is not None and (usable or qform is None):
        affine, origin = sform, "sform"
        if qform is None:
            findings.append(_check_spacing_used(sform, step, len(head.shape)))
    elif qform is not None:
        affine, origin = qform, "qform"
    elif assume is not None:
        affine = assumed_affine(assume, step, shape)
        findings.append(_check_form("voxel spacing (pixdim)", affine, None, False))
    if assume is not None and unknown:
        origin = f"assumed {assume}"
    # assume_orientation is an option of its own, so it is settled as a repair here
    asked = [*fixes, "assume_orientation"] if assume is not None else fixes
    return Place(affine, origin, units, settle(findings, asked))


def _check_forms(
    head: Head,
    sform: Affine | None,
    qform: Affine | None,
    wrong: str | None,
    shape: Sequence[int],
) -> list[Finding | None]:
    """Check each form that is set, and the two against each other where both are usable."""
    good_s = sform is not None and affine_problem(sform) is None
    good_q = qform is not None and affine_problem(qform) is None
    findings: list[Finding | None] = []
    if sform is not None:
        findings.append(_check_form("sform", sform, None, good_q))
    if qform is not None:
        findings.append(_check_form("qform", qform, wrong, good_s))
    if sform is not None and qform is not None and good_s and good_q:
        findings.append(_check_agreement(head, sform, qform, shape))
    return findings


def _orientation_unknown(assume: str | None) -> Finding:
    message = "the file does not say how the patient lies in it: both form codes are 0"
    if assume is not None:
        message += f"; {assume} was assumed"
    return Finding("nifti.orientation_unknown", Severity.ERROR, message, "assume_orientation")


def _check_spacing_used(sform: Affine, step: NDArray[np.float64], n_axes: int) -> Finding | None:
    """The sform is the only form, and pixdim contradicts it."""
    n = min(n_axes, 3)
    if affine_problem(sform) is not None or np.allclose(spacing_mm(sform)[:n], step[:n], rtol=1e-3):
        return None
    a, b = (" × ".join(f"{v:.4g}" for v in steps[:n]) for steps in (spacing_mm(sform), step))
    message = f"the spacing of the sform, {a} mm, was used; pixdim says {b} mm"
    return Finding("nifti.pixdim_disagrees", Severity.WARNING, message)
