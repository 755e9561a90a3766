"""Volumes to train a generator with: a folder with a manifest, checked and read when asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, MedpipeError, UsageError
from medpipe.io.manifest import read_manifest
from medpipe.io.nifti import read_nifti
from medpipe.synthesis.conditions import ConditionKind
from medpipe.types import Affine

__all__ = ["TrainingSet", "TrainingVolumes", "read_training_set"]

MANIFEST = "cases.csv"
KEPT_BYTES = 4 << 30
"""Volumes that were read stay in memory up to so much."""
MOST_CLASSES = 20
_SPACING = 1e-3
"""Relative difference of voxel axes that is rounding."""


class TrainingVolumes(Sequence[Any]):
    """Images about 0 to 1, with labels where there are any; read when they are asked for.

    Parameters
    ----------
    pairs : sequence of pairs of str
        Files of the image and of its labels, or None.
    percentiles : pair of float
        Of the values of an image that become 0 and 1; what lies outside is clipped.
    """

    def __init__(
        self, pairs: Sequence[tuple[str, str | None]], percentiles: tuple[float, float]
    ) -> None:
        self.pairs, self.percentiles = pairs, percentiles
        self.shape: tuple[int, ...] = ()
        self.affine: Affine = np.eye(4)
        self._kept: dict[int, Any] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        if index in self._kept:
            return self._kept[index]
        try:
            made = self._read(index)
        except MedpipeError as error:
            raise error.at(f"volume {index + 1} of {len(self)}") from None
        size = sum(part.nbytes for part in made) if isinstance(made, tuple) else made.nbytes
        if self._bytes + size <= KEPT_BYTES:
            self._kept[index] = made
            self._bytes += size
        return made

    def _read(self, index: int) -> Any:
        image, labels = self.pairs[index]
        volume = read_nifti(image)
        self._check_grid(volume.data, volume.affine, "image")
        scaled = self._scaled(volume.data)
        if labels is None:
            return scaled[None]
        known = read_nifti(labels)
        if known.data.shape != volume.data.shape or not _same_axes(known.affine, volume.affine):
            raise InputError("the labels are not on the grid of their image")
        return scaled[None], _whole(known.data)[None]

    def _check_grid(self, data: NDArray[Any], affine: Affine, role: str) -> None:
        """Raise InputError unless the volume has size and voxels of the first."""
        if not self.shape:
            self.shape, self.affine = data.shape, affine
        if data.shape != self.shape or not _same_axes(affine, self.affine):
            spacings = [np.linalg.norm(a[:3, :3], axis=0).round(3) for a in (self.affine, affine)]
            raise InputError(
                f"the {role} is not like the first",
                expected=f"{self.shape} voxels of {spacings[0].tolist()} mm, axes as there",
                got=f"{data.shape} of {spacings[1].tolist()} mm",
                hint="orient, resample and crop_or_pad bring volumes to one grid",
            )

    def _scaled(self, data: NDArray[Any]) -> NDArray[np.float32]:
        values = np.asarray(data, np.float32)
        if data.dtype.kind == "c" or not np.isfinite(values).all():
            raise InputError("the image holds what is no intensity", expected="finite numbers")
        low, high = np.percentile(values, self.percentiles)
        if not high > low:
            raise InputError("the image has one value everywhere")
        return np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a generator is trained with.

    Parameters
    ----------
    volumes : TrainingVolumes
    subjects : list of int
        Whose volume each is, numbered as they occur in the manifest.
    table : dict of list
        Conditions: for each a value per volume, None where it is not known.
    kinds : dict of str
        Of the conditions, see `Condition`.
    label_classes : int
        Background included; 0 without labels.
    """

    volumes: TrainingVolumes
    subjects: list[int]
    table: dict[str, list[Any]]
    kinds: dict[str, ConditionKind]
    label_classes: int


def read_training_set(
    folder: str | Path,
    conditions: Sequence[str] | None = None,
    *,
    percentiles: tuple[float, float] = (0.5, 99.5),
) -> TrainingSet:
    """Return the volumes of a folder and what its manifest says about them.

    Parameters
    ----------
    folder : path
        With ``cases.csv``, a manifest: case_id, patient_id if patients have several volumes,
        image, labels if there are any, and conditions. Images are NIfTI files of one size,
        spacing and orientation.
    conditions : sequence of str, optional
        Which columns are conditions; by default all that are nothing else. Two values make
        a binary one, numbers a continuous one, other texts a category.
    percentiles : pair of float
        See `TrainingVolumes`.

    Raises
    ------
    UsageError
        If a condition is no column, or has too many values.
    InputError, ManifestError
        If there is no manifest, it is wrong, or volumes do not fit each other. A volume is
        named by its number, never by its file.
    """
    manifest = Path(folder) / MANIFEST
    if not manifest.is_file():
        raise InputError(
            "the folder holds no manifest", expected=f"{MANIFEST} with case_id and image",
            hint="medpipe manifest scan FOLDER FOLDER/cases.csv writes one",
        )  # fmt: skip
    cases = read_manifest(manifest, inputs=["image", "labels"], optional=["labels"])
    pairs = [(str(case.inputs["image"]), case.inputs.get("labels")) for case in cases]
    labelled = sum(labels is not None for _, labels in pairs)
    if labelled not in (0, len(pairs)):
        raise InputError(
            "some of the volumes have no labels", expected="labels for all, or for none",
            got=f"{len(pairs) - labelled} of {len(pairs)} without",
        )  # fmt: skip
    table, kinds = _conditions([case.covariates for case in cases], conditions)
    volumes = TrainingVolumes(pairs, percentiles)
    most = max((int(_labels_of(volumes[n]).max()) for n in range(len(pairs))), default=0)
    patients = [case.patient_id or case.case_id for case in cases]
    numbers = {name: n for n, name in enumerate(dict.fromkeys(patients))}
    if labelled and not most:
        raise InputError("the labels are empty", expected="whole numbers above 0 somewhere")
    return TrainingSet(
        volumes, [numbers[p] for p in patients], table, kinds, most + 1 if labelled else 0
    )


def _labels_of(sample: Any) -> NDArray[Any]:
    return sample[1] if isinstance(sample, tuple) else np.zeros(1, np.uint8)


def _whole(data: NDArray[Any]) -> NDArray[np.uint8]:
    """Return labels as bytes."""
    rounded = np.asarray(data).astype(np.uint8)
    if data.dtype.kind == "c" or not np.array_equal(rounded, data):
        raise InputError("the labels cannot be used", expected="whole numbers from 0 to 255")
    return rounded


def _same_axes(a: Affine, b: Affine) -> bool:
    size = np.abs(b[:3, :3]).max()
    return bool(np.abs(a[:3, :3] - b[:3, :3]).max() <= _SPACING * size)


def _conditions(
    rows: Sequence[Mapping[str, Any]], wanted: Sequence[str] | None
) -> tuple[dict[str, list[Any]], dict[str, ConditionKind]]:
    """Return the conditions of a manifest, whose cells are texts, and their kinds."""
    known = list(rows[0]) if rows else []
    for name in wanted or ():
        if name not in known:
            raise UsageError(
                "a condition is no column of the manifest", expected=", ".join(known) or "none",
                got=name,
            )  # fmt: skip
    table: dict[str, list[Any]] = {}
    kinds: dict[str, ConditionKind] = {}
    for name in known if wanted is None else wanted:
        table[name], kinds[name] = _column(name, [str(row[name]).strip() for row in rows])
    return table, kinds


def _column(name: str, cells: list[str]) -> tuple[list[Any], ConditionKind]:
    values: list[Any] = [_number(cell) for cell in cells]
    if any(cell and value is None for cell, value in zip(cells, values, strict=True)):
        values = [cell or None for cell in cells]
    distinct = {value for value in values if value is not None}
    if len(distinct) == 2:
        return values, "binary"
    if not any(isinstance(value, str) for value in distinct):
        return values, "continuous"
    if len(distinct) > MOST_CLASSES:
        raise UsageError(
            "a column of the manifest is no condition", where=f"column {name}",
            expected=f"numbers, or at most {MOST_CLASSES} different texts", got=str(len(distinct)),
            hint="name the columns that are: conditions = [...]",
        )  # fmt: skip
    return values, "category"


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
