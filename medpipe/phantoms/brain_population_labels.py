"""Heads as label maps: real ones of a folder, or drawn ones, in the same regions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import InputError
from medpipe.geometry import affine_from_parts
from medpipe.io.nifti import read_nifti
from medpipe.phantoms.anatomy import HeadAnatomy, HeadLabel
from medpipe.types import Affine, Volume

__all__ = [
    "BRAIN",
    "BrainRegion",
    "LabelHead",
    "drawn_head",
    "label_head",
    "label_head_files",
    "read_label_head",
]


class BrainRegion(IntEnum):
    """Values of the label maps of a population."""

    BACKGROUND = 0
    GREY = 1
    WHITE = 2
    LATERAL_VENTRICLE = 3
    CSF = 4
    DEEP_GREY = 5
    HIPPOCAMPUS_AMYGDALA = 6
    CEREBELLUM_GREY = 7
    CEREBELLUM_WHITE = 8
    BRAINSTEM = 9
    OUTSIDE = 10


R, H = BrainRegion, HeadLabel

BRAIN = (
    R.GREY,
    R.WHITE,
    R.DEEP_GREY,
    R.HIPPOCAMPUS_AMYGDALA,
    R.CEREBELLUM_GREY,
    R.CEREBELLUM_WHITE,
    R.BRAINSTEM,
)
"""What is counted as brain: tissue without fluid."""

# FreeSurfer's numbers: those of the left side, the middle, and which right side joins them.
_FREESURFER: dict[int, tuple[BrainRegion, HeadLabel]] = {
    2: (R.WHITE, H.WHITE),
    3: (R.GREY, H.GREY),
    4: (R.LATERAL_VENTRICLE, H.VENTRICLE),
    5: (R.LATERAL_VENTRICLE, H.VENTRICLE),
    7: (R.CEREBELLUM_WHITE, H.CEREBELLUM_WHITE),
    8: (R.CEREBELLUM_GREY, H.CEREBELLUM_GREY),
    10: (R.DEEP_GREY, H.THALAMUS),
    11: (R.DEEP_GREY, H.CAUDATE),
    12: (R.DEEP_GREY, H.PUTAMEN),
    13: (R.DEEP_GREY, H.PALLIDUM),
    14: (R.CSF, H.VENTRICLE),
    15: (R.CSF, H.VENTRICLE),
    16: (R.BRAINSTEM, H.BRAINSTEM),
    17: (R.HIPPOCAMPUS_AMYGDALA, H.GREY),
    18: (R.HIPPOCAMPUS_AMYGDALA, H.GREY),
    24: (R.CSF, H.CSF),
    25: (R.WHITE, H.WHITE),  # lesions
    26: (R.DEEP_GREY, H.CAUDATE),
    28: (R.BRAINSTEM, H.BRAINSTEM),
    30: (R.WHITE, H.WHITE),  # vessels
    72: (R.CSF, H.VENTRICLE),
    77: (R.WHITE, H.WHITE),
    80: (R.WHITE, H.WHITE),
    85: (R.WHITE, H.NERVE),
    136: (R.WHITE, H.WHITE),
    163: (R.WHITE, H.WHITE),
}
_LEFT = {41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17}
_LEFT |= {54: 18, 57: 25, 58: 26, 60: 28, 62: 30, 78: 77, 79: 77, 137: 136, 164: 163}
_LEFT |= dict.fromkeys(range(251, 256), 2)  # the corpus callosum
OUTSIDE_FROM = 500
"""Numbers from here on lie outside the brain; each has an intensity of its own."""

_DRAWN: dict[HeadLabel, BrainRegion] = {
    H.CSF: R.CSF,
    H.VENTRICLE: R.LATERAL_VENTRICLE,
    H.GREY: R.GREY,
    H.WHITE: R.WHITE,
    H.CAUDATE: R.DEEP_GREY,
    H.PUTAMEN: R.DEEP_GREY,
    H.PALLIDUM: R.DEEP_GREY,
    H.THALAMUS: R.DEEP_GREY,
    H.CEREBELLUM_GREY: R.CEREBELLUM_GREY,
    H.CEREBELLUM_WHITE: R.CEREBELLUM_WHITE,
    H.BRAINSTEM: R.BRAINSTEM,
    H.AIR: R.BACKGROUND,
}

LEAST_ML = {R.LATERAL_VENTRICLE: 1.0, R.GREY: 150.0, R.WHITE: 100.0}
"""A map with less of these is no head."""


@dataclass(frozen=True, eq=False)
class LabelHead:
    """One head whose tissues are known, with the middle of its brain at 0, 0, 0.

    Attributes
    ----------
    classes : ndarray of uint8, shape (I, J, K)
        Index of the tissue class; 0 is air.
    affine : ndarray, shape (4, 4)
        Voxel index to RAS mm from the middle of the brain.
    regions : ndarray of uint8, shape (classes,)
        `BrainRegion` of each class.
    tissues : tuple of HeadLabel or None
        What each class is made of; None: not known, its intensity is drawn.
    """

    classes: NDArray[np.uint8]
    affine: Affine
    regions: NDArray[np.uint8]
    tissues: tuple[HeadLabel | None, ...]

    @cached_property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def at(self, points_mm: ArrayLike) -> NDArray[np.uint8]:
        """Return the class at points, shape (..., 3) → (...): the nearest voxel, air beyond."""
        inverse = np.linalg.inv(self.affine)
        index = np.rint(np.asarray(points_mm) @ inverse[:3, :3].T + inverse[:3, 3])
        inside = ((index >= 0) & (index < self.classes.shape)).all(-1)
        safe = np.where(inside[..., None], index, 0).astype(np.intp)
        found = self.classes[safe[..., 0], safe[..., 1], safe[..., 2]]
        return np.where(inside, found, np.uint8(0))

    def points(self, regions: tuple[BrainRegion, ...]) -> NDArray[np.float64]:
        """Return the voxel centres of some regions, RAS mm, shape (N, 3)."""
        wanted = np.isin(self.regions, regions)[self.classes]
        return np.argwhere(wanted) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def volumes_ml(self) -> dict[str, float]:
        """Return the volume of each region but the background."""
        return {r.name.lower(): float(self._ml[r]) for r in BrainRegion if r}

    @cached_property
    def _ml(self) -> NDArray[np.float64]:
        classes = np.bincount(self.classes.ravel(), minlength=len(self.regions))
        counts = np.bincount(self.regions, classes, len(BrainRegion)).astype(np.float64)
        return counts * self.voxel_ml


def drawn_head(seed: int, spacing_mm: float = 2.0) -> LabelHead:
    """Return a procedural head (`HeadAnatomy`) as a label map of 216 mm along each axis.

    Parameters
    ----------
    seed : int
        Chooses the head.
    spacing_mm : float
        Size of a voxel.
    """
    n = round(216 / spacing_mm)
    affine = affine_from_parts(
        np.eye(3), np.full(3, spacing_mm), np.full(3, -(n - 1) / 2 * spacing_mm)
    )
    anatomy = HeadAnatomy(seed, table=False)
    labels, _ = anatomy.sample(affine, (n, n, n), np.zeros((len(HeadLabel), 1)))
    regions = np.array([_DRAWN.get(label, R.OUTSIDE) for label in HeadLabel], np.uint8)
    return _centred(labels, affine, regions, tuple(HeadLabel))


def label_head(volume: Volume, where: str = "label map") -> LabelHead:
    """Return a label map with FreeSurfer's numbers as a head; left and right are joined.

    Parameters
    ----------
    volume : Volume
        Numbers below 500 as FreeSurfer's; from 500 on, tissue outside the brain.
    where : str
        What a message calls it.

    Raises
    ------
    InputError
        If it holds other numbers, or too little brain or ventricle.
    """
    numbers = np.rint(volume.data).astype(np.int64)
    if not np.array_equal(numbers, volume.data):
        raise InputError("the label map holds fractions", where=where, expected="whole numbers")
    found = np.unique(numbers)
    joined = [_LEFT.get(int(n), int(n)) for n in found]
    strange = [n for n in joined if n and n < OUTSIDE_FROM and n not in _FREESURFER]
    if strange or found[0] < 0:
        raise InputError(
            "the label map holds numbers that are no regions of the brain", where=where,
            expected="FreeSurfer's numbers, from 500 on for what is outside the brain",
            got=", ".join(str(n) for n in (strange or found[:1])[:5]),
        )  # fmt: skip
    kept = sorted({0, *joined})
    table = np.array([kept.index(n) for n in joined], np.uint8)
    classes = table[np.searchsorted(found, numbers)]
    rows = [_FREESURFER.get(n, (R.OUTSIDE if n else R.BACKGROUND, None)) for n in kept]
    tissues = (HeadLabel.AIR, *(tissue for _, tissue in rows[1:]))
    regions = np.array([region for region, _ in rows], np.uint8)
    head = _centred(classes, volume.affine, regions, tissues)
    volumes = head.volumes_ml()
    for region, least in LEAST_ML.items():
        if volumes[region.name.lower()] < least:
            raise InputError(
                "the label map is no whole head", where=where,
                expected=f"{region.name.lower()}: {least:g} ml or more",
                got=f"{volumes[region.name.lower()]:.3g} ml",
            )  # fmt: skip
    return head


def label_head_files(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder in the order of their names.

    Raises
    ------
    InputError
        If there are none.
    """
    files = sorted(p for p in folder.glob("*") if p.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise InputError("the folder holds no label map", expected=".nii or .nii.gz files")
    return files


def read_label_head(folder: Path, number: int) -> LabelHead:
    """Return a label map of a folder, counted from 0 in the order of the names.

    Raises
    ------
    InputError
        If there are none, or it is not a whole head; it is named by its place.
    """
    path = label_head_files(folder)[number]
    return label_head(read_nifti(path), f"label map {number + 1}")


def _centred(
    classes: NDArray[np.uint8],
    affine: Affine,
    regions: NDArray[np.uint8],
    tissues: tuple[HeadLabel | None, ...],
) -> LabelHead:
    """Return the head with the middle of its brain's bounding box as origin."""
    brain = np.isin(regions, BRAIN)[classes]
    if not brain.any():
        return LabelHead(classes, affine, regions, tissues)
    sides = [np.flatnonzero(brain.any(tuple(b for b in range(3) if b != a))) for a in range(3)]
    middle = np.array([(side[0] + side[-1]) / 2 for side in sides])
    moved = np.array(affine, float)
    moved[:3, 3] = -moved[:3, :3] @ middle
    return LabelHead(classes, moved, regions, tissues)
