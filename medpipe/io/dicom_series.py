"""DICOM series → volumes that are right or refused.

A slice is placed where its own ImagePositionPatient says. A series whose
slices do not form an even stack is refused with the numbers that show why and
the option that repairs it; a repair is one linear interpolation from the
measured planes and is recorded in `Volume.source` and `Volume.findings`.

    series = scan_series("export/")                   # headers only
    volume = assemble_series(select_series(series, {"modality": "CT", "most_slices": True}))
    volume = read_dicom_series("export/ct/", variable_step="resample", resample_spacing_mm=1.0)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from medpipe.errors import InputError
from medpipe.io.dicom_assemble import assemble
from medpipe.io.dicom_group import Series
from medpipe.io.dicom_options import (
    GantryTilt,
    MissingSlices,
    Options,
    ResampleGrid,
    TimePoints,
    VariableStep,
)
from medpipe.io.dicom_scan import Scan, scan_folder, scan_series
from medpipe.io.dicom_select import SeriesRules, select_series, series_table
from medpipe.types import Volume

__all__ = [
    "Scan",
    "Series",
    "SeriesRules",
    "assemble_series",
    "read_dicom_series",
    "scan_folder",
    "scan_series",
    "select_series",
    "series_table",
]

Progress = Callable[[int, int], None]


def assemble_series(
    series: Series,
    *,
    missing_slices: MissingSlices = "refuse",
    variable_step: VariableStep = "refuse",
    gantry_tilt: GantryTilt = "keep",
    time_points: TimePoints = "refuse",
    resample_spacing_mm: float | tuple[float, float, float] | None = None,
    resample_grid: ResampleGrid = "patient",
    max_gb: float = 8.0,
    progress: Progress | None = None,
) -> Volume:
    """Decode a series and place its voxels where its slices were measured.

    Parameters
    ----------
    series : Series
        As found by `scan_series`.
    missing_slices : {"refuse", "interpolate"}
        What to do with holes in an otherwise even stack. Interpolated slices
        are blended from their neighbours; the others stay as they are.
    variable_step : {"refuse", "resample"}
        What to do when the distance between slices varies.
    gantry_tilt : {"keep", "resample", "refuse"}
        What to do with a stack that leans: keep it as a shear of the affine
        (all positions right, no interpolation), or interpolate it upright.
    time_points : {"refuse", "stack"}
        What to do with several different images at every position.
    resample_spacing_mm : float or three floats, optional
        Voxel size of a resampled volume, along R, A, S for the patient grid
        and along row, column, normal for the slice grid. Default: the pixel
        spacing and the smallest step.
    resample_grid : {"patient", "slices"}
        Grid of a resampled volume: the RAS-aligned box around the stack, or
        the slices' own plane.
    max_gb : float
        Most memory of the volume, in GB; checked before anything is decoded.
    progress : callable, optional
        Called with (done, all): files, then slabs when resampling.

    Returns
    -------
    Volume
        (I, J, K[, T]) with I along a row, J along a column, K along the
        normal, or along R, A, S on the patient grid. int16 or int32 when
        rescaling keeps whole numbers and nothing is interpolated, else float32.
        Outside the slices: -1024 HU for CT, else 0.

    Raises
    ------
    InputError
        If the volume could not be right.
    UsageError
        If an option has no such value.
    """
    options = Options(
        missing_slices,
        variable_step,
        gantry_tilt,
        time_points,
        resample_spacing_mm,
        resample_grid,
        max_gb,
    )
    try:
        return assemble(series, options, progress)
    except InputError as error:
        raise error.at(series.label) from None


def read_dicom_series(
    path: str | os.PathLike[str],
    *,
    select: SeriesRules | dict[str, Any] | None = None,
    follow_symlinks: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Volume:
    """Read the one series that a DICOM folder or file holds.

    Parameters
    ----------
    path : path
        A folder (with subfolders), or one file.
    select : SeriesRules or dict, optional
        Which series to take when there are several.
    follow_symlinks : bool
        Whether links may lead out of the folder.
    progress : callable, optional
        Called with (done, all): headers, then pixel data.
    **options
        As in `assemble_series`.

    Raises
    ------
    InputError
        If there is no series, more than one meets the rules, or it cannot be
        assembled.
    """
    rules = SeriesRules.parse(select)
    scan = scan_folder(path, follow_symlinks=follow_symlinks, progress=progress)
    if not scan.series:
        got = "; ".join(f.message for f in scan.findings)
        if scan.damaged:
            got = "; ".join(filter(None, [f"{scan.damaged} damaged files", got]))
        raise InputError("there is no DICOM image series", got=got or "an empty folder")
    return assemble_series(select_series(scan.series, rules), progress=progress, **options)
