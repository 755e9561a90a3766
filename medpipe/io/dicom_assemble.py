"""A series whose stack is understood → its voxels on a grid."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError
from medpipe.geometry import affine_problem
from medpipe.io.dicom_facts import completeness, source_facts
from medpipe.io.dicom_geometry import Stack, stack_of
from medpipe.io.dicom_group import Series
from medpipe.io.dicom_header import Frame
from medpipe.io.dicom_options import (
    Options,
    check_repairs,
    position_names,
    removes_tilt,
    single_step,
)
from medpipe.io.dicom_pixels import (
    AIR_HU,
    check_form,
    check_hounsfield,
    output_dtype,
    padding_note,
    read_planes,
)
from medpipe.io.dicom_repeats import resolve_repeats
from medpipe.io.dicom_resample import Grid, fill_missing, patient_grid, resample_stack, slice_grid
from medpipe.types import Affine, Finding, Severity, Volume

__all__ = ["assemble"]

Progress = Callable[[int, int], None]


def _budget(n_bytes: float, options: Options, what: str) -> None:
    if n_bytes > options.max_gb * 1e9:
        raise InputError(
            f"{what} would take {n_bytes / 1e9:.1f} GB",
            expected=f"at most {options.max_gb:g} GB (max_gb)",
            hint="raise max_gb if the series really is that large",
        )


def _output_grid(stack: Stack, rows: int, cols: int, options: Options) -> Grid:
    dr, dc = stack.spacing
    step = stack.step_mm
    own = np.array([dc, dr, step])
    if options.resample_spacing_mm is not None:
        own = patient = np.broadcast_to(np.asarray(options.resample_spacing_mm, float), 3)
    else:
        axes = np.abs(np.stack([stack.row, stack.col, stack.normal], 1))
        best = max(permutations(range(3)), key=lambda p: sum(axes[w, v] for w, v in enumerate(p)))
        patient = own[list(best)]
    if options.resample_grid == "patient":
        return patient_grid(stack, rows, cols, patient)
    return slice_grid(stack, rows, cols, own, upright=options.gantry_tilt == "resample")


def _to_volume(
    planes: NDArray[Any], stack: Stack, fill: float, options: Options, progress: Progress | None
) -> tuple[NDArray[Any], Affine]:
    """Turn sorted planes (K, rows, cols) into data (I, J, K) and its affine."""
    if stack.kind == "variable" or removes_tilt(stack, options):
        grid = _output_grid(stack, planes.shape[1], planes.shape[2], options)
        _budget(4.0 * np.prod(grid.shape) + planes.nbytes, options, "the resampled volume")
        return resample_stack(planes, stack, grid, fill, progress), grid.affine
    if stack.kind == "missing":
        return fill_missing(planes, stack).transpose(2, 1, 0), stack.affine(stack.step_mm)
    return planes.transpose(2, 1, 0), stack.affine(stack.step_mm)


def _decode(
    frames: list[Frame], stack: Stack, options: Options, progress: Progress | None
) -> tuple[NDArray[Any], int]:
    """Decode all planes of a series into one array (N, rows, cols)."""
    check_form(frames)
    dtype = output_dtype(frames)
    shape = (len(frames), frames[0].rows, frames[0].cols)
    for size, what in (
        (float(np.prod(shape, dtype=float)) * dtype.itemsize, "the series"),
        (max(float(f.rows) * f.cols * f.frames * f.bits_allocated / 8 for f in frames), "a file"),
    ):
        _budget(size, options, what)
    place_names = position_names(stack)
    where = [""] * len(frames)
    for name, place in zip(place_names, stack.places, strict=True):
        for i in place:
            where[i] = name
    _check_file_sizes(frames, where)
    planes = np.empty(shape, dtype)
    return planes, read_planes(frames, planes, where, progress)


def _check_file_sizes(frames: list[Frame], where: list[str]) -> None:
    """Refuse a plane count that the files cannot hold, before memory is taken for it."""
    for frame, name in zip(frames, where, strict=True):
        # the best ratio of any transfer syntax on an empty image is far below 2000
        least = frame.rows * frame.cols * frame.frames * frame.bits_allocated // 8 / 2000
        if os.path.getsize(frame.path) < least:
            raise InputError("the file is too small for Rows × Columns", where=name)


def _repair_names(findings: list[Finding]) -> list[dict[str, Any]]:
    """Return the repairs that were made; resampling an uneven stack undoes its tilt as well."""
    out: list[dict[str, Any]] = []
    for finding in findings:
        if finding.fixed and finding.fix:
            name, _, value = finding.fix.partition("=")
            out.append({"option": name, "value": value.strip('"'), "check": finding.check})
    return out


def assemble(series: Series, options: Options, progress: Progress | None) -> Volume:
    """Decide, decode, place: see `medpipe.io.dicom_series.assemble_series`."""
    if series.problems:
        raise InputError(
            series.problems[0], hint="remove or replace what is damaged; no slice is skipped"
        )
    frames = series.frames
    stack = stack_of(frames)
    findings = list(series.findings) + check_repairs(stack, options)
    if stack.kind == "single":
        step, note = single_step(frames)
        stack = replace(stack, step_mm=step)
        findings.append(note)
    planes, padded = _decode(frames, stack, options, progress)
    places, notes, ordered_by = resolve_repeats(
        stack.places, planes, frames, position_names(stack), options.time_points
    )
    used = [frames[i] for place in places for i in place]
    findings += notes + completeness(series, used, stack)
    source = source_facts(series, used, stack)
    source["repairs"] = _repair_names(findings)
    if padded:
        findings.append(padding_note(padded, used))
    if frames[0].photometric == "MONOCHROME1" and series.modality != "CT":
        findings.append(Finding("dicom.monochrome1", Severity.INFO, "MONOCHROME1 inverted"))
        source["repairs"].append({"check": "dicom.monochrome1", "value": "inverted"})
    fill = AIR_HU if series.modality == "CT" else 0
    times = list(zip(*places, strict=True))
    sorted_planes = [_take(planes, list(order)) for order in times]
    parts = [_to_volume(p, stack, fill, options, progress) for p in sorted_planes]
    affine = parts[0][1]
    data = parts[0][0] if len(parts) == 1 else np.stack([d for d, _ in parts], axis=3)
    if ordered_by is not None:
        source |= {"time_points": len(parts), "time_points_ordered_by": ordered_by}
    if series.modality == "CT":
        findings += check_hounsfield(data)
    if problem := affine_problem(affine):
        raise InputError(problem)
    return Volume(data, affine, source, findings)


def _take(planes: NDArray[Any], order: list[int]) -> NDArray[Any]:
    """Return planes in `order`; no copy is made when they already are."""
    if order == list(range(len(planes))):
        return planes
    return planes[order]
