"""Sets of an evaluation, read from tables of NIfTI files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.errors import InputError, MedpipeError
from medpipe.geometry import axis_codes, spacing_mm
from medpipe.io.case import Case
from medpipe.io.manifest import read_manifest
from medpipe.io.nifti import read_nifti
from medpipe.synthesis.evaluation_sets import SynthesisSet

__all__ = ["CaseTable", "read_cases"]

PERCENTILES = (0.5, 99.5)
"""Of an image, which become 0 and 1."""
TOLERANCE_MM = 1e-3


@dataclass(frozen=True, eq=False)
class CaseTable:
    """Cases of a table, all on grids of one size, spacing and orientation.

    Attributes
    ----------
    cases : SynthesisSet
    values : dict of name to array (n,)
        The columns that were asked for.
    case_ids, patients : tuple of str
        One for each case: the case itself where the table names no patient.
    rows : tuple of dict
        What else the table says of each case, as texts.
    spacing_mm : tuple of 3 floats
    """

    cases: SynthesisSet
    values: dict[str, NDArray[np.float64]]
    case_ids: tuple[str, ...]
    patients: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    spacing_mm: tuple[float, ...]


def read_cases(
    manifest: str | os.PathLike[str], *, values: Sequence[str] = (),
    known: Sequence[str] = (), need_labels: bool = False,
) -> CaseTable:  # fmt: skip
    """Read the images and labels of a table.

    Intensities are brought to about 0 to 1 by percentiles of each image.

    Parameters
    ----------
    manifest : path
        Columns case_id, image and, optionally, labels and patient_id (see
        ``docs/how-to/manifests.md``).
    values : sequence of str
        Columns of numbers that are needed too, such as what was requested.
    known : sequence of str
        Columns of numbers that are read where the table has them.
    need_labels : bool
        Whether each case must have labels; otherwise they are read if all have them.

    Raises
    ------
    ManifestError
        With every problem of the table.
    InputError
        If a file cannot be read or does not fit the others; its case is named.
    """
    rows = read_manifest(
        manifest, inputs=["image", "labels"], optional=() if need_labels else ["labels"]
    )
    with_labels = all(case.inputs.get("labels") for case in rows)
    images, labels, first = [], [], None
    for case in rows:
        try:
            image, grid = _image(case)
            first = first or grid
            _check_grid(first, grid)
            images.append(image)
            if with_labels:
                labels.append(_labels(case, grid))
        except MedpipeError as error:
            raise error.at(f"case {case.case_id}") from None
    if first is None:
        raise InputError("the table has no cases")
    made = SynthesisSet(torch.stack(images), torch.stack(labels) if with_labels else None)
    there = [name for name in known if name in rows[0].covariates]
    columns = {name: np.array([_number(case, name) for case in rows]) for name in [*values, *there]}
    return CaseTable(
        made, columns, tuple(case.case_id for case in rows),
        tuple(case.patient_id or case.case_id for case in rows),
        tuple(dict(case.covariates) for case in rows), first[1],
    )  # fmt: skip


Grid = tuple[tuple[int, ...], tuple[float, ...], str]


def _read(path: Any) -> tuple[NDArray[Any], Grid]:
    volume = read_nifti(Path(str(path)))
    spacing = tuple(float(s) for s in spacing_mm(volume.affine))
    return np.asarray(volume.data), (tuple(volume.data.shape), spacing, axis_codes(volume.affine))


def _image(case: Case) -> tuple[torch.Tensor, Grid]:
    data, grid = _read(case.inputs["image"])
    values = data.astype(np.float32)
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    if not high > low:
        raise InputError("the image is constant")
    return torch.from_numpy(((values - low) / (high - low)).clip(-1, 2)), grid


def _labels(case: Case, grid: Grid) -> torch.Tensor:
    data, own = _read(case.inputs["labels"])
    _check_grid(grid, own, "labels and image do not lie on one grid")
    whole = np.rint(data)
    if not np.array_equal(whole, data) or whole.min() < 0 or whole.max() > 32767:
        raise InputError("the labels are no whole numbers from 0")
    return torch.from_numpy(whole.astype(np.int16))


def _check_grid(first: Grid, own: Grid, what: str = "the case has another grid") -> None:
    """Raise InputError unless two grids have one size, spacing and orientation."""
    same = np.allclose(first[1], own[1], atol=TOLERANCE_MM)
    if first[0] == own[0] and same and first[2] == own[2]:
        return

    def said(grid: Grid) -> str:
        size = " x ".join(str(n) for n in grid[0])
        return f"{size} voxels of {' x '.join(f'{s:.3g}' for s in grid[1])} mm, {grid[2]}"

    hint = "bring all to one with the steps orient, resample and crop_or_pad"
    raise InputError(what, expected=said(first), got=said(own), hint=hint)


def _number(case: Case, name: str) -> float:
    value = case.covariates.get(name)
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = float("nan")
    if not np.isfinite(found):
        raise InputError(
            f"{name} is no number", where=f"case {case.case_id}", expected="a number in each row"
        )
    return found
