"""A simulated pelvic CT with two organs that touch: bladder and prostate.

Prostate, bladder, rectal wall and the muscles of the pelvic floor have nearly the same HU,
so that intensities alone do not tell where one ends. `PelvisCT` answers for any point in
the world; `pelvis_ct` fills a regular grid; `rough_presegmentation` spoils a known mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_from_parts
from medpipe.phantoms.head_ct import ct_noise
from medpipe.phantoms.shapes import Array, Canvas, F, capsule, ellipsoid, lattice, smax, smin
from medpipe.types import Affine, Volume

__all__ = ["HU", "PelvisCT", "PelvisLabel", "PelvisPhantom", "pelvis_ct", "rough_presegmentation"]

TILE = 64
"""Grids are painted in tiles of so many pixels a side: most shapes are far from most tiles."""


class PelvisLabel(IntEnum):
    """Values of the label maps."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    BONE = 4
    RECTUM = 5
    RECTAL_GAS = 6
    BLADDER = 7
    PROSTATE = 8


HU: dict[PelvisLabel, float] = {
    PelvisLabel.AIR: -1000,
    PelvisLabel.SKIN: 35,
    PelvisLabel.FAT: -95,
    PelvisLabel.MUSCLE: 52,
    PelvisLabel.BONE: 420,
    PelvisLabel.RECTUM: 42,
    PelvisLabel.RECTAL_GAS: -850,
    PelvisLabel.BLADDER: 18,
    PelvisLabel.PROSTATE: 40,
}
"""HU of each tissue of a non-contrast pelvic CT at 120 kV."""


@dataclass(slots=True)
class PelvisPhantom:
    """A simulated image and the truth behind it.

    Attributes
    ----------
    volume : Volume
        The image, noise included.
    labels : ndarray of uint8, shape (I, J, K)
        `PelvisLabel` at each voxel centre.
    facts : dict
        JSON facts: seed, volumes in ml by label name, area of contact of the two
        organs in mm² (sum of the voxel faces between them).
    """

    volume: Volume
    labels: NDArray[np.uint8]
    facts: dict[str, Any] = field(default_factory=dict)

    def mask(self, label: PelvisLabel) -> NDArray[np.bool_]:
        """Return the true mask (I, J, K) of one label."""
        return self.labels == label


class PelvisCT:
    """A pelvic CT as a function of world points; the organs meet near the origin.

    Parameters
    ----------
    seed : int
        Chooses the subject: sizes, positions and the bumps of every surface.
    contrast_hu : float
        HU of the prostate minus that of the bladder.
    edge_mm : float
        Width over which tissues blend: the scanner's sharpness.
    """

    def __init__(self, seed: int, *, contrast_hu: float = 22.0, edge_mm: float = 1.0) -> None:
        self.seed = seed
        self.edge_mm = edge_mm
        values = HU | {PelvisLabel.BLADDER: HU[PelvisLabel.PROSTATE] - contrast_hu}
        self._table = np.array([[values[label]] for label in PelvisLabel], F)
        rng = np.random.default_rng([seed, 2])
        self.bladder_scale = float(rng.uniform(0.85, 1.15))
        self.prostate_scale = float(rng.uniform(0.9, 1.1))
        self.tilt_deg = float(rng.uniform(-12, 12))
        self.shift_mm = rng.normal(0, (2.0, 2.0, 1.5)).clip(-4, 4)
        self._warp = [lattice(seed * 8 + 200 + axis, 55.0) for axis in range(3)]
        self._bumps = lattice(seed * 8 + 203, 24.0)

    def hu(self, points_mm: ArrayLike) -> Array:
        """Return noise-free HU at RAS mm points, shape (..., 3) → (...)."""
        return self._paint(points_mm)[1]

    def labels(self, points_mm: ArrayLike) -> NDArray[np.uint8]:
        """Return the `PelvisLabel` at RAS mm points, shape (..., 3) → (...)."""
        return self._paint(points_mm)[0]

    def sample(
        self, affine: Affine, shape: tuple[int, int, int]
    ) -> tuple[NDArray[np.uint8], Array]:
        """Return labels and noise-free HU on a voxel grid, both (I, J, K)."""
        labels, hu = np.empty(shape, np.uint8), np.empty(shape, F)
        a = np.asarray(affine, float)
        ij = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), -1)
        plane = ij @ a[:3, :2].T + a[:3, 3]
        for k in range(shape[2]):
            for i in range(0, shape[0], TILE):
                for j in range(0, shape[1], TILE):
                    at = (slice(i, i + TILE), slice(j, j + TILE), k)
                    labels[at], hu[at] = self._paint(plane[at[:2]] + k * a[:3, 2])
        return labels, hu

    def _paint(self, points_mm: ArrayLike) -> tuple[NDArray[np.uint8], Array]:
        points = np.asarray(points_mm, float)
        flat = (points.reshape(-1, 3) - self.shift_mm).astype(F)
        x, y, z = flat[:, 0], flat[:, 1], flat[:, 2]
        x, y, z = (a + F(1.3) * w(x, y, z) for a, w in zip((x, y, z), self._warp, strict=True))
        canvas = Canvas(x, y, z, self._table, self.edge_mm)
        self._paint_body(canvas)
        self._paint_organs(canvas)
        shape = points.shape[:-1]
        return canvas.label.reshape(shape), canvas.value[:, 0].reshape(shape)

    def _paint_body(self, canvas: Canvas) -> None:
        x, y, _ = canvas.p
        k = np.sqrt(np.sqrt((x / F(178)) ** 4 + ((y + 8) / F(118)) ** 4))
        outline = F(118) * (k - 1)
        canvas.paint(PelvisLabel.SKIN, outline)
        canvas.paint(PelvisLabel.FAT, outline + 2)
        canvas.ellipsoid(PelvisLabel.MUSCLE, (85, -62, 5), (68, 34, 95), turn_deg=-18)
        canvas.ellipsoid(PelvisLabel.MUSCLE, (75, 62, -30), (40, 26, 90))
        canvas.capsule(PelvisLabel.BONE, (90, 4, 6), (136, -8, -46), 19)  # femur
        canvas.ellipsoid(PelvisLabel.BONE, (92, 6, 36), (30, 32, 30))  # acetabulum
        canvas.capsule(PelvisLabel.BONE, (0, 54, -22), (62, 38, 8), 10)  # pubis
        canvas.ellipsoid(PelvisLabel.BONE, (0, -82, 34), (42, 14, 34))  # sacrum
        canvas.capsule(PelvisLabel.MUSCLE, (54, 34, 6), (52, -40, 8), 9)  # obturator internus
        canvas.capsule(PelvisLabel.MUSCLE, (27, 20, -28), (22, -42, -32), 6)  # levator ani
        canvas.ellipsoid(PelvisLabel.MUSCLE, (0, 6, -58), (34, 46, 16))  # pelvic floor

    def _paint_organs(self, canvas: Canvas) -> None:
        if canvas.far((0, 0, 0), 100):
            return
        p = canvas.p
        bumps = F(0.9) * self._bumps(*p)
        wall = capsule(p, (0, -34, -60), (0, -44, 60), 15.0, 18.0)
        canvas.paint(PelvisLabel.RECTUM, wall + bumps)
        gas = ellipsoid(p, (0, -37, -4), (14, 14, 34))
        canvas.paint(PelvisLabel.RECTAL_GAS, smax(wall + 6, gas, 3.0))
        b, q = self.bladder_scale, self.prostate_scale
        dome = ellipsoid(p, (0, 6, 25 * b), (40 * b, 30 * b, 25 * b), pitch_deg=self.tilt_deg)
        neck = ellipsoid(p, (0, 0, 4), (18, 16, 12))
        canvas.paint(PelvisLabel.BLADDER, smin(dome, neck, 8.0) + bumps)
        left = ellipsoid(canvas.half, (9 * q, -4, -18 * q), (17 * q, 17 * q, 20 * q))
        canvas.paint(PelvisLabel.PROSTATE, left + bumps)


def pelvis_ct(
    seed: int,
    *,
    shape: tuple[int, int, int] = (128, 128, 96),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.25),
    contrast_hu: float = 22.0,
    noise_hu: float = 15.0,
) -> PelvisPhantom:
    """Return a simulated pelvic CT on a regular RAS grid centred between the two organs.

    Parameters
    ----------
    seed : int
        Chooses subject and noise; the same seed gives the same bytes.
    shape : tuple of int
        Voxels along x, y, z; (512, 512, 120) with 0.8 × 0.8 × 1.25 mm holds the
        whole pelvis, the default only the organs and what surrounds them.
    spacing_mm : tuple of float
        Voxel size.
    contrast_hu : float
        HU of the prostate minus that of the bladder.
    noise_hu : float
        Standard deviation of the noise in the middle of the pelvis.

    Returns
    -------
    PelvisPhantom
        Data is float32 HU.
    """
    spacing = np.asarray(spacing_mm, float)
    affine = affine_from_parts(np.eye(3), spacing, [0, 0, 6] - (np.array(shape) - 1) / 2 * spacing)
    labels, hu = PelvisCT(seed, contrast_hu=contrast_hu).sample(affine, shape)
    if noise_hu:
        for k in range(shape[2]):
            hu[:, :, k] += ct_noise(hu[:, :, k], noise_hu, (seed, k, 3))
    np.maximum(hu, -1024, out=hu)
    count = np.bincount(labels.ravel(), minlength=len(PelvisLabel))
    voxel_ml = float(np.prod(spacing)) / 1000
    facts = {
        "seed": seed,
        "contrast_hu": contrast_hu,
        "noise_hu": noise_hu,
        "volumes_ml": {label.name.lower(): float(count[label] * voxel_ml) for label in PelvisLabel},
        "contact_mm2": _contact_mm2(labels, spacing),
    }
    source = {"kind": "phantom", "modality": "CT", "seed": seed}
    return PelvisPhantom(Volume(hu, affine, source), labels, facts)


def _contact_mm2(labels: NDArray[np.uint8], spacing: NDArray[np.float64]) -> float:
    """Return the area of the voxel faces between bladder and prostate."""
    bladder, prostate = labels == PelvisLabel.BLADDER, labels == PelvisLabel.PROSTATE
    total = 0.0
    for axis in range(3):
        ends = (slice(None),) * axis
        low, high = (*ends, slice(None, -1)), (*ends, slice(1, None))
        faces = (bladder[low] & prostate[high]) | (prostate[low] & bladder[high])
        total += float(faces.sum()) * float(np.prod(spacing) / spacing[axis])
    return total


def rough_presegmentation(
    mask: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    seed: int,
    *,
    erode_mm: float = 3.0,
    shift_mm: float = 3.0,
    bumps_mm: float = 1.5,
) -> NDArray[np.bool_]:
    """Return a mask as a hasty reader or an atlas would draw it.

    Parameters
    ----------
    mask : ndarray of bool, shape (I, J, K)
        The truth.
    spacing_mm : tuple of float
        Voxel size.
    seed : int
        Chooses the direction of the shift and the bumps.
    erode_mm : float
        How much smaller the result is on every side; negative is larger.
    shift_mm : float
        Length of its displacement.
    bumps_mm : float
        Standard deviation of its surface along the normal.

    Returns
    -------
    ndarray of bool, shape (I, J, K)
        The largest component.

    Raises
    ------
    StepError
        If the mask is empty, or nothing is left of it.
    """
    if not np.isfinite([erode_mm, shift_mm, bumps_mm]).all():
        raise UsageError("a size of the rough mask is not finite")
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        raise StepError("the mask is empty")
    spacing = np.asarray(spacing_mm, float)
    margin = np.ceil((abs(erode_mm) + abs(shift_mm) + 4 * abs(bumps_mm)) / spacing).astype(int) + 2
    box = tuple(
        slice(max(s.start - m, 0), min(s.stop + m, n))
        for s, m, n in zip(found[0], margin, mask.shape, strict=True)
    )
    inside = mask[box]
    distance = ndimage.distance_transform_edt(~inside, spacing)
    distance -= ndimage.distance_transform_edt(inside, spacing)
    direction = np.random.default_rng([seed, 4]).standard_normal(3)
    step = direction / np.linalg.norm(direction) * shift_mm / spacing
    distance = ndimage.shift(distance, step, order=1, mode="nearest")
    axes = [(np.arange(s.start, s.stop) * d).astype(F) for s, d in zip(box, spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    rough = distance + erode_mm + bumps_mm * lattice(seed * 8 + 205, 18.0)(x, y, z) < 0
    pieces, count = ndimage.label(rough)
    if not count:
        raise StepError("nothing is left of the mask", hint="use a smaller erode_mm")
    size = np.bincount(pieces.ravel())
    size[0] = 0
    out = np.zeros_like(mask)
    out[box] = pieces == size.argmax()
    return out
