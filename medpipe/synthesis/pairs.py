"""Real images with labels, brought to one scale and one grid for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medpipe.errors import InputError, MedpipeError, UsageError
from medpipe.geometry import same_grid, spacing_mm
from medpipe.io.case import Case
from medpipe.io.nifti import read_nifti
from medpipe.io.transforms import metatensor_from_volume
from medpipe.steps._base import affine_of, rewrap
from medpipe.steps.intensity import NormalizeIntensity
from medpipe.steps.spatial import CropOrPad, Orient
from medpipe.types import Volume

__all__ = ["PairSettings", "TrainingPair", "load_pair", "load_pairs", "stacked"]


@dataclass(frozen=True)
class PairSettings:
    """How pairs are brought to one scale and grid.

    Attributes
    ----------
    size_voxels : tuple of int
        Grid (I, J, K) around the middle of each image; nothing is interpolated. Beyond an
        image its outermost voxels are continued: a black frame, of another width in each
        image, would be the sharpest thing there is to learn.
    label_classes : int
        Background included; 0 without labels.
    percentiles : tuple of float
        Of each image, mapped to 0 and 1 and clipped.
    spacing_tolerance : float
        By which share voxels may differ in size from those of the first pair.
    """

    size_voxels: tuple[int, int, int]
    label_classes: int = 0
    percentiles: tuple[float, float] = (0.5, 99.5)
    spacing_tolerance: float = 0.05

    def __post_init__(self) -> None:
        if min(self.size_voxels) < 1 or self.label_classes in (1,) or self.label_classes < 0:
            raise UsageError(
                "no such grid or number of labels", expected="1 voxel and 2 classes or more",
                got=f"{self.size_voxels}, {self.label_classes} classes",
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class TrainingPair:
    """An image and its labels.

    Attributes
    ----------
    case_id : str
    image : Tensor of float32 (1, I, J, K)
        From 0 to 1, axes RAS.
    labels : Tensor of uint8 (1, I, J, K), or None
    volumes_ml : tuple of float
        Of each label but 0, counted before anything was cut.
    spacing_mm : tuple of float
    """

    case_id: str
    image: Tensor
    labels: Tensor | None = None
    volumes_ml: tuple[float, ...] = field(default=())
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)


def load_pair(
    case_id: str, image: str | Path, labels: str | Path | None, settings: PairSettings
) -> TrainingPair:
    """Return the pair of two NIfTI files.

    Parameters
    ----------
    case_id : str
        What a message calls it.
    image, labels : path
    settings : PairSettings

    Raises
    ------
    InputError, StepError
        If a file cannot be read, the two are not on one grid, labels are missing, unknown,
        all background or cut by the grid, or the image is constant.
    """
    try:
        return _load_pair(case_id, Path(image), labels, settings)
    except MedpipeError as error:
        raise error.at(case_id) from None


def _load_pair(
    case_id: str, image: Path, labels: str | Path | None, settings: PairSettings
) -> TrainingPair:
    volume = read_nifti(image)
    orient, box = Orient("RAS"), CropOrPad(size_voxels=list(settings.size_voxels), fill=0.0)
    straight = orient(metatensor_from_volume(volume))
    scaled = NormalizeIntensity("minmax", settings.percentiles)(straight)
    spacing = tuple(float(s) for s in spacing_mm(affine_of(straight)))
    values = _continued(box(scaled).as_tensor(), box(rewrap(scaled, torch.ones_like(scaled))))
    if not settings.label_classes:
        return TrainingPair(case_id, values, None, (), spacing)
    if labels is None:
        raise InputError("the labels are missing", expected="a label map for each image")
    known = read_nifti(labels)
    counts = _counted(known, volume, settings.label_classes)
    whole = box(orient(metatensor_from_volume(known))).as_tensor()
    if int((whole > 0).sum()) != int(counts[1:].sum()):
        raise InputError(
            "the grid cuts labels", expected="all labelled voxels inside the grid",
            got=f"{tuple(volume.data.shape)} to {settings.size_voxels} voxels",
            hint="take a larger grid",
        )  # fmt: skip
    ml = counts[1:] * float(np.prod(spacing)) / 1000
    return TrainingPair(
        case_id, values, whole.to(torch.uint8), tuple(float(v) for v in ml), spacing
    )


def _continued(image: Tensor, inside: Tensor) -> Tensor:
    """Return an image (1, I, J, K) with its outermost voxels where it was padded."""
    for axis in (1, 2, 3):
        there = inside.as_subclass(Tensor).transpose(0, axis).flatten(1).any(1).nonzero()[:, 0]
        rows = torch.arange(image.shape[axis]).clamp(int(there[0]), int(there[-1]))
        image = image.index_select(axis, rows)
    return image.float()


def _counted(known: Volume, volume: Volume, classes: int) -> np.ndarray:
    """Return the voxels of each label, after checks."""
    if not same_grid(known.affine, known.data.shape, volume.affine, volume.data.shape):
        raise InputError(
            "image and labels are not on one grid",
            expected=f"shape {tuple(volume.data.shape)} at the same place",
            got=f"shape {tuple(known.data.shape)}",
        )  # fmt: skip
    found = np.unique(known.data)
    if found[0] < 0 or found[-1] >= classes or (found != np.rint(found)).any():
        raise InputError(
            "the labels are not those of the model", expected=f"0 to {classes - 1}",
            got=", ".join(f"{v:g}" for v in found[:5]),
        )  # fmt: skip
    if found[-1] == 0:
        raise InputError("the labels are all background")
    return np.bincount(known.data.astype(np.int64).ravel(), minlength=classes)


def load_pairs(
    cases: Sequence[Case], settings: PairSettings, *, image: str = "image", labels: str = "labels"
) -> list[TrainingPair]:
    """Return the pairs of cases, in their order.

    Parameters
    ----------
    cases : sequence of Case
    settings : PairSettings
    image, labels : str
        Names of the inputs.

    Raises
    ------
    InputError, StepError
        See `load_pair`; also if voxels are not of one size.
    """
    pairs: list[TrainingPair] = []
    for case in cases:
        path = case.inputs.get(image)
        if path is None:
            raise InputError("the image is missing", where=case.case_id, expected=f"input {image}")
        pair = load_pair(case.case_id, path, case.inputs.get(labels), settings)
        first = np.array((pairs or [pair])[0].spacing_mm)
        if (np.abs(np.array(pair.spacing_mm) / first - 1) > settings.spacing_tolerance).any():
            raise InputError(
                "the voxels are not of one size", where=case.case_id,
                expected=" × ".join(f"{s:.3g}" for s in first) + " mm",
                got=" × ".join(f"{s:.3g}" for s in pair.spacing_mm) + " mm",
                hint="resample the images first",
            )  # fmt: skip
        pairs.append(pair)
    return pairs


def stacked(pairs: Sequence[TrainingPair]) -> tuple[Tensor, Tensor | None]:
    """Return images (N, 1, I, J, K) and labels (N, 1, I, J, K) of pairs."""
    images = torch.stack([pair.image for pair in pairs])
    known = [pair.labels for pair in pairs if pair.labels is not None]
    return images, torch.stack(known) if len(known) == len(pairs) else None
