"""Where the slices of a simulated series lie, in the terms of DICOM."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medpipe.geometry import LPS_TO_RAS
from medpipe.types import Affine

__all__ = ["SlicePlan", "decimal", "phantom_uid"]


def phantom_uid(*names: object) -> str:
    """Return a UID under 2.25. that depends on `names` alone."""
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big') >> 2}"


def decimal(value: float) -> str:
    """Return a DS text: at most 16 characters, as many digits as fit."""
    for digits in range(12, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    return text


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """The planes of one series.

    Attributes
    ----------
    positions_mm : tuple of three floats each
        ImagePositionPatient (LPS) of each slice: the centre of its first pixel.
    orientation : tuple of six floats
        ImageOrientationPatient: direction of a row, then of a column (LPS).
    shape : tuple of int
        Rows, Columns.
    pixel_mm : tuple of float
        PixelSpacing: between rows, between columns.
    thickness_mm : float
        SliceThickness.
    tilt_deg : float or None
        GantryDetectorTilt as written; None leaves the tag out.
    """

    positions_mm: tuple[tuple[float, float, float], ...]
    orientation: tuple[float, float, float, float, float, float]
    shape: tuple[int, int]
    pixel_mm: tuple[float, float]
    thickness_mm: float
    tilt_deg: float | None = None

    @classmethod
    def axial(
        cls,
        z_mm: Sequence[float],
        *,
        matrix: int = 128,
        field_mm: float = 240.0,
        tilt_deg: float = 0.0,
        tilt_tag: bool = True,
        thickness_mm: float | None = None,
        center_mm: tuple[float, float] = (0.0, 0.0),
    ) -> SlicePlan:
        """Plan head CT slices whose centres lie at table positions `z_mm`.

        Parameters
        ----------
        z_mm : sequence of float
            Where each slice crosses the axis of the scanner, in any order.
        matrix, field_mm
            Rows and Columns, and the width they cover.
        tilt_deg : float
            Gantry tilt: slices lean, the table still moves along z.
        tilt_tag : bool
            Whether GantryDetectorTilt is written.
        thickness_mm : float, optional
            Default: the median step.
        center_mm : tuple of float
            R, A position of the middle of the image.
        """
        pixel = field_mm / matrix
        lean = np.radians(tilt_deg)
        row = np.array([1.0, 0.0, 0.0])
        column = np.array([0.0, np.cos(lean), -np.sin(lean)])
        corner = np.array([-center_mm[0], -center_mm[1], 0.0])
        corner = corner - (matrix - 1) / 2 * pixel * (row + column)
        positions = tuple(
            tuple(float(v) for v in (corner[0], corner[1], corner[2] + z)) for z in z_mm
        )
        if thickness_mm is None:
            steps = np.abs(np.diff(np.sort(z_mm))) * np.cos(lean)
            thickness_mm = round(float(np.median(steps)), 3) if len(steps) else 5.0
        direction = tuple(float(v) for v in (*row, *column))
        return cls(
            positions,  # type: ignore[arg-type]
            direction,  # type: ignore[arg-type]
            (matrix, matrix),
            (pixel, pixel),
            thickness_mm,
            tilt_deg if tilt_tag else None,
        )

    def __len__(self) -> int:
        return len(self.positions_mm)

    def take(self, slices: Sequence[int]) -> SlicePlan:
        """Return the plan of some of the slices."""
        positions = tuple(self.positions_mm[i] for i in slices)
        return SlicePlan(
            positions,
            self.orientation,
            self.shape,
            self.pixel_mm,
            self.thickness_mm,
            self.tilt_deg,
        )

    def plane(self, index: int) -> Affine:
        """Return the (4, 4) map (column, row, 0) → RAS mm of one slice, normal in column 2."""
        out = np.eye(4)
        row, column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        out[:3, 0] = row * self.pixel_mm[1]
        out[:3, 1] = column * self.pixel_mm[0]
        out[:3, 2] = np.cross(row, column)
        out[:3, 3] = self.positions_mm[index]
        return LPS_TO_RAS @ out

    def points_mm(self, index: int) -> NDArray[np.float64]:
        """Return the RAS mm position of every pixel of one slice, shape (rows, columns, 3)."""
        plane = self.plane(index)
        j, i = np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij")
        return i[..., None] * plane[:3, 0] + j[..., None] * plane[:3, 1] + plane[:3, 3]

    def order(self) -> NDArray[np.intp]:
        """Return the slices sorted along their normal, foot to head for axial slices."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return np.argsort(np.asarray(self.positions_mm) @ normal, kind="stable")

    def affine(self) -> Affine:
        """Return voxel index (column, row, sorted slice) → RAS mm of an even stack.

        The step is the mean one, so for an uneven stack only the ends are right.
        """
        order = self.order()
        out = self.plane(int(order[0]))
        if len(self) > 1:
            ends = np.asarray(self.positions_mm)[order[[0, -1]]]
            step = (ends[1] - ends[0]) / (len(self) - 1)
            out[:3, 2] = LPS_TO_RAS[:3, :3] @ step
        else:
            out[:3, 2] *= self.thickness_mm
        return out
