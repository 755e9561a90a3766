"""What to do with a series that is not an even, upright stack: refuse, or a named repair."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from medpipe.errors import InputError, UsageError
from medpipe.io.dicom_geometry import Stack
from medpipe.io.dicom_header import Frame
from medpipe.types import Finding, Severity

__all__ = [
    "GantryTilt",
    "MissingSlices",
    "Options",
    "ResampleGrid",
    "TimePoints",
    "VariableStep",
    "check_repairs",
    "position_names",
    "removes_tilt",
    "single_step",
]

MissingSlices = Literal["refuse", "interpolate"]
VariableStep = Literal["refuse", "resample"]
GantryTilt = Literal["keep", "resample", "refuse"]
TimePoints = Literal["refuse", "stack"]
ResampleGrid = Literal["patient", "slices"]


@dataclass(frozen=True)
class Options:
    """The options of `assemble_series`, checked."""

    missing_slices: MissingSlices = "refuse"
    variable_step: VariableStep = "refuse"
    gantry_tilt: GantryTilt = "keep"
    time_points: TimePoints = "refuse"
    resample_spacing_mm: float | tuple[float, float, float] | None = None
    resample_grid: ResampleGrid = "patient"
    max_gb: float = 8.0

    def __post_init__(self) -> None:
        for name, kind in (
            ("missing_slices", MissingSlices),
            ("variable_step", VariableStep),
            ("gantry_tilt", GantryTilt),
            ("time_points", TimePoints),
            ("resample_grid", ResampleGrid),
        ):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(
                    f"{name} has no such value",
                    expected=" or ".join(get_args(kind)),
                    got=repr(getattr(self, name)),
                )
        if self.resample_spacing_mm is not None:
            values = np.atleast_1d(np.asarray(self.resample_spacing_mm, float))
            if values.shape not in ((1,), (3,)) or not (values > 0).all():
                raise UsageError("resample_spacing_mm is one positive number of mm, or three")
        if not self.max_gb > 0:
            raise UsageError("max_gb is a positive number of GB")


def position_names(stack: Stack) -> list[str]:
    """Name each position by its rank and its distance from the first, in mm."""
    at = stack.along_mm - stack.along_mm[0]
    return [f"slice {k + 1} of {len(at)} at {mm:.2f} mm" for k, mm in enumerate(at)]


def step_text(stack: Stack) -> str:
    """Return the distances between slices, the most frequent first: ``23 × 5.00, 1 × 10.00 mm``."""
    counts = Counter(f"{s:.2f}" for s in stack.steps_mm)
    parts = [f"{n} × {s}" for s, n in counts.most_common(5)]
    return ", ".join(parts) + (" mm" if len(counts) <= 5 else " mm and others")


def check_repairs(stack: Stack, options: Options) -> list[Finding]:
    """Refuse a stack that is not even unless the option that repairs it is set."""
    out = []
    if stack.kind == "missing":
        holes = stack.missing
        after = int(np.searchsorted(stack.ranks, holes[0]))
        message = (
            f"{len(holes)} slice{'s are' if len(holes) > 1 else ' is'} missing, the first after "
            f"slice {after} at {stack.along_mm[after - 1] - stack.along_mm[0]:.2f} mm "
            f"(steps: {step_text(stack)})"
        )
        fix = 'missing_slices="interpolate"'
        if options.missing_slices == "refuse":
            raise InputError(message, hint=f"export the series again, or set {fix}")
        if len(holes) > len(stack.along_mm):
            raise InputError(message, hint="there are more holes than slices: not interpolated")
        out.append(Finding("dicom.missing_slices", Severity.WARNING, message, fix, True))
    if stack.kind == "variable":
        message = f"the distance between slices varies: {step_text(stack)}"
        fix = 'variable_step="resample"'
        if options.variable_step == "refuse":
            raise InputError(message, hint=f"set {fix}")
        out.append(Finding("dicom.variable_step", Severity.WARNING, message, fix, True))
    if stack.tilted:
        message = f"the stack is tilted by {stack.tilt_deg:.2f}° against the normal of its slices"
        fix = 'gantry_tilt="resample"'
        if options.gantry_tilt == "refuse":
            raise InputError(message, hint=f'set {fix}, or "keep" for a sheared affine')
        fixed = removes_tilt(stack, options)
        severity = Severity.WARNING if fixed else Severity.INFO
        note = message if fixed else f"{message}; the affine holds the shear"
        out.append(Finding("dicom.gantry_tilt", severity, note, fix, fixed))
    return out


def removes_tilt(stack: Stack, options: Options) -> bool:
    """Tell whether the options resample a tilted stack upright."""
    return stack.tilted and (
        options.gantry_tilt == "resample"
        or (stack.kind == "variable" and options.resample_grid == "patient")
    )


def single_step(frames: list[Frame]) -> tuple[float, Finding]:
    """Return the extent of a lone slice along its normal from the tags that give one."""
    for name, value in (
        ("SpacingBetweenSlices", frames[0].between),
        ("SliceThickness", frames[0].thickness),
    ):
        if value:
            text = f"a single slice: its extent of {value:g} mm is {name}"
            return value, Finding("dicom.single_slice", Severity.WARNING, text)
    if len(frames) > 1:
        raise InputError(
            f"all {len(frames)} images lie at one position, and no tag gives its extent",
            expected="two positions, or one with SpacingBetweenSlices or SliceThickness",
        )
    raise InputError(
        "there is only one slice position, and neither SpacingBetweenSlices nor SliceThickness",
        expected="two positions, or one with a thickness",
    )
