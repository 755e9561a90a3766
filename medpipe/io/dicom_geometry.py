"""Where the slices of a series lie, decided from position and orientation alone.

Slices are sorted along the normal of their planes. InstanceNumber,
SliceThickness, SpacingBetweenSlices and GantryDetectorTilt are not used: they
may be absent or wrong, ImagePositionPatient and ImageOrientationPatient are
what the scanner computed with. All vectors are DICOM's (LPS+ mm) until
`Stack.affine` turns them into RAS+.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError
from medpipe.geometry import LPS_TO_RAS, MAX_SPACING_MM, MIN_SPACING_MM
from medpipe.io.dicom_header import Frame
from medpipe.types import Affine

__all__ = ["Stack", "plane_axes", "stack_of", "step_tolerance_mm"]

Array = NDArray[np.float64]
SAME_PLACE_MM = 0.01
LINE_TOLERANCE_MM = 0.05
TILT_TOLERANCE_DEG = 0.1
UNIT_TOLERANCE = 1e-3


def step_tolerance_mm(step: float) -> float:
    """Return how far a slice may lie from an even grid of `step` mm: 1 % or 0.05 mm."""
    return min(max(LINE_TOLERANCE_MM, 0.01 * step), 0.1 * step)


@dataclass(frozen=True, slots=True)
class Stack:
    """Parallel planes of one size, sorted along their normal.

    Attributes
    ----------
    places : list of list of int
        For each position in ascending order, the indices of the frames there.
    along_mm : ndarray, shape (K,)
        Distance of each position along the normal.
    origins : ndarray, shape (K, 3)
        ImagePositionPatient of each position, LPS+ mm.
    row, col, normal : ndarray, shape (3,)
        Unit vectors: along a row, along a column, their cross product.
    spacing : (float, float)
        mm between rows and between columns, as in PixelSpacing.
    kind : str
        ``single``, ``uniform``, ``missing`` or ``variable``.
    step_mm : float
        Base step along the normal; 0 for a single position.
    ranks : ndarray of int, shape (K,)
        Index of each position on the grid of `step_mm` (uniform, missing).
    line : ndarray, shape (3,)
        Move of the origin per mm along the normal.
    """

    places: list[list[int]]
    along_mm: Array
    origins: Array
    row: Array
    col: Array
    normal: Array
    spacing: tuple[float, float]
    kind: Literal["single", "uniform", "missing", "variable"]
    step_mm: float
    ranks: NDArray[np.int64]
    line: Array

    @property
    def steps_mm(self) -> Array:
        """Distances between neighbouring positions along the normal, shape (K-1,)."""
        return np.diff(self.along_mm)

    @property
    def tilt_deg(self) -> float:
        """Angle between the direction of stacking and the normal, in degrees."""
        lateral = self.line - self.normal
        return float(np.degrees(np.arctan(np.linalg.norm(lateral))))

    @property
    def tilted(self) -> bool:
        """Whether the stack leans by more than rounding of the tags explains."""
        reach = np.ptp(self.along_mm) * np.tan(np.radians(self.tilt_deg))
        return self.tilt_deg > TILT_TOLERANCE_DEG and bool(reach > LINE_TOLERANCE_MM)

    @property
    def missing(self) -> list[int]:
        """Ranks on the even grid at which no slice was found."""
        return sorted(set(range(int(self.ranks[-1]) + 1)) - set(self.ranks.tolist()))

    @property
    def orientation(self) -> str:
        """``sagittal``, ``coronal`` or ``axial``: the plane the slices are nearest to."""
        return ("sagittal", "coronal", "axial")[int(np.abs(self.normal).argmax())]

    def affine(self, step_mm: float) -> Affine:
        """Return the affine (column, row, slice) → RAS+ mm of an even stack."""
        lps = np.eye(4)
        lps[:3, 0] = self.row * self.spacing[1]
        lps[:3, 1] = self.col * self.spacing[0]
        lps[:3, 2] = self.line * step_mm
        lps[:3, 3] = self.origins[0]
        return LPS_TO_RAS @ lps


def plane_axes(orientation: Sequence[float]) -> tuple[Array, Array, Array]:
    """Return the unit vectors along a row, along a column and along the normal.

    Raises
    ------
    InputError
        If ImageOrientationPatient is not two orthogonal unit vectors.
    """
    row, col = np.array(orientation[:3]), np.array(orientation[3:])
    sizes = np.array([np.linalg.norm(row), np.linalg.norm(col)])
    if np.abs(sizes - 1).max() > UNIT_TOLERANCE:
        raise InputError(
            "ImageOrientationPatient does not hold unit vectors",
            expected="length 1",
            got=f"lengths {sizes[0]:.4g} and {sizes[1]:.4g}",
        )
    row, col = row / sizes[0], col / sizes[1]
    if abs(row @ col) > UNIT_TOLERANCE:
        raise InputError(
            "the axes in ImageOrientationPatient are not at right angles",
            got=f"{np.degrees(np.arccos(row @ col)):.2f}°",
        )
    normal = np.cross(row, col)
    return row, col, normal / np.linalg.norm(normal)


def _spacing(frames: Sequence[Frame]) -> tuple[float, float]:
    spacing = np.mean([f.spacing for f in frames if f.spacing], axis=0)
    if (spacing < MIN_SPACING_MM).any() or (spacing > MAX_SPACING_MM).any():
        raise InputError(
            "PixelSpacing is not a possible distance",
            expected=f"{MIN_SPACING_MM:g}..{MAX_SPACING_MM:g} mm",
            got=f"{spacing[0]:g} × {spacing[1]:g} mm",
        )
    return float(spacing[0]), float(spacing[1])


def _places(along: Array, origins: Array) -> list[list[int]]:
    """Collect frames at the same position, in ascending order along the normal."""
    # ties are broken by the position itself, so that the order of the files does not matter
    order = np.lexsort((*origins.T, along))
    places: list[list[int]] = []
    for i in order:
        if places and along[i] - along[places[-1][0]] <= SAME_PLACE_MM:
            places[-1].append(int(i))
        else:
            places.append([int(i)])
    for rank, place in enumerate(places):
        apart = np.linalg.norm(origins[place] - origins[place[0]], axis=1).max()
        if apart > LINE_TOLERANCE_MM:
            raise InputError(
                f"{len(place)} slices lie in the same plane but {apart:.2f} mm apart in it",
                where=f"slice {rank + 1} at {along[place[0]] - along.min():.2f} mm",
            )
    return places


def _grid(
    along: Array,
) -> tuple[Literal["uniform", "missing", "variable"], float, NDArray[np.int64]]:
    """Decide whether positions lie on an even grid, with or without holes."""
    count = len(along)
    at = along - along[0]
    even = at[-1] / (count - 1)
    if np.abs(at - even * np.arange(count)).max() <= step_tolerance_mm(even):
        return "uniform", float(even), np.arange(count, dtype=np.int64)
    steps = np.diff(at)
    base = np.sort(steps)[(count - 2) // 2]  # the lower median is a step that occurs
    multiples = np.rint(steps / base).astype(np.int64)
    ranks = np.concatenate([np.zeros(1, np.int64), np.cumsum(multiples)])
    if multiples.min() >= 1:
        base = at @ ranks / (ranks @ ranks)
        if np.abs(at - base * ranks).max() <= step_tolerance_mm(base):
            return "missing", float(base), ranks
    return "variable", float(steps.min()), np.arange(count, dtype=np.int64)


def stack_of(frames: Sequence[Frame]) -> Stack:
    """Sort the planes of one series along their normal and measure the steps.

    Parameters
    ----------
    frames : sequence of Frame
        Planes of equal size, spacing and orientation (within 1e-4).

    Raises
    ------
    InputError
        If a position, orientation or spacing is absent or impossible, or the
        slices do not lie on one line.
    """
    for keyword, name in (
        ("position", "ImagePositionPatient"),
        ("orientation", "ImageOrientationPatient"),
        ("spacing", "PixelSpacing"),
    ):
        if absent := sum(getattr(f, keyword) is None for f in frames):
            raise InputError(
                f"{absent} of {len(frames)} slices have no {name}",
                hint="a volume cannot be placed without it: export the original series",
            )
    row, col, normal = plane_axes(np.mean([f.orientation for f in frames if f.orientation], axis=0))
    origins = np.array([f.position for f in frames], float)
    if np.abs(origins).max() > 1e5:
        raise InputError("ImagePositionPatient is more than 100 m from the origin")
    along = origins @ normal
    places = _places(along, origins)
    first = [place[0] for place in places]
    along, origins = along[first], origins[first]
    if len(places) == 1:
        none = np.zeros(1, np.int64)
        return Stack(
            places, along, origins, row, col, normal, _spacing(frames), "single", 0.0, none, normal
        )
    line = (origins[-1] - origins[0]) / (along[-1] - along[0])
    off = np.linalg.norm(origins - origins[0] - np.outer(along - along[0], line), axis=1)
    if off.max() > LINE_TOLERANCE_MM:
        rank = int(off.argmax())
        raise InputError(
            "the slices do not lie on one line",
            where=f"slice {rank + 1} at {along[rank] - along[0]:.2f} mm",
            expected=f"each within {LINE_TOLERANCE_MM:g} mm of it",
            got=f"{off[rank]:.2f} mm",
        )
    kind, step, ranks = _grid(along)
    return Stack(
        places,
        along,
        origins,
        row,
        col,
        normal,
        _spacing(frames),
        kind,
        step,
        ranks,
        line,
    )
