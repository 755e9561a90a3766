"""A simulated head CT with known truth.

`HeadCT` answers for any point in the world, so a tilted or unevenly spaced
slice is sampled at its true plane; `head_ct` fills a regular grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medpipe.geometry import affine_from_parts
from medpipe.phantoms.anatomy import HeadAnatomy, HeadLabel, Lesion, Subject
from medpipe.phantoms.shapes import Array, F
from medpipe.types import Affine, Volume

__all__ = ["HU", "HeadCT", "Phantom", "ct_noise", "head_ct"]

HU: dict[HeadLabel, float] = {
    HeadLabel.AIR: -1000,
    HeadLabel.SKIN: 45,
    HeadLabel.FAT: -95,
    HeadLabel.MUSCLE: 55,
    HeadLabel.CORTICAL_BONE: 1350,
    HeadLabel.DIPLOE: 560,
    HeadLabel.CAVITY_AIR: -980,
    HeadLabel.EYE: 10,
    HeadLabel.LENS: 75,
    HeadLabel.NERVE: 35,
    HeadLabel.CSF: 8,
    HeadLabel.VENTRICLE: 6,
    HeadLabel.GREY: 37,
    HeadLabel.WHITE: 28,
    HeadLabel.CAUDATE: 37,
    HeadLabel.PUTAMEN: 37,
    HeadLabel.PALLIDUM: 39,
    HeadLabel.THALAMUS: 36,
    HeadLabel.CEREBELLUM_GREY: 37,
    HeadLabel.CEREBELLUM_WHITE: 30,
    HeadLabel.BRAINSTEM: 29,
    HeadLabel.DURA: 55,
    HeadLabel.CALCIFICATION: 180,
    HeadLabel.BLOOD: 65,
    HeadLabel.TABLE: 120,
    HeadLabel.FOAM: -960,
}
"""HU of each tissue of a non-contrast head CT at 120 kV."""

CONTRAST_HU = {
    HeadLabel.DURA: 150.0,
    HeadLabel.GREY: 42.0,
    HeadLabel.WHITE: 30.5,
    HeadLabel.MUSCLE: 68.0,
    HeadLabel.SKIN: 60.0,
}
"""What changes after contrast medium."""


@dataclass(slots=True)
class Phantom:
    """A simulated image and the truth behind it.

    Attributes
    ----------
    volume : Volume
        The image, noise included.
    labels : ndarray of uint8, shape (I, J, K)
        `HeadLabel` at each voxel centre.
    facts : dict
        JSON facts: seed, subject, lesion, volumes in ml by label name.
    """

    volume: Volume
    labels: NDArray[np.uint8]
    facts: dict[str, Any] = field(default_factory=dict)


class HeadCT:
    """A head CT as a function of world points.

    Parameters
    ----------
    seed : int
        Chooses the head.
    lesion : Lesion, optional
        A haemorrhage of known volume.
    contrast : bool
        Whether contrast medium was given.
    edge_mm : float
        Width over which tissues blend: the scanner's sharpness.
    subject, table
        As for `HeadAnatomy`.
    """

    def __init__(
        self,
        seed: int,
        *,
        lesion: Lesion | None = None,
        contrast: bool = False,
        edge_mm: float = 0.8,
        subject: Subject | None = None,
        table: bool = True,
    ) -> None:
        self.anatomy = HeadAnatomy(seed, lesion=lesion, subject=subject, table=table)
        self.edge_mm = edge_mm
        values = HU | CONTRAST_HU if contrast else HU
        self._table = np.array([[values[label]] for label in HeadLabel], F)

    def hu(self, points_mm: ArrayLike) -> Array:
        """Return noise-free HU at RAS mm points, shape (..., 3) → (...)."""
        return self.anatomy.paint(points_mm, self._table, self.edge_mm)[1][..., 0]

    def labels(self, points_mm: ArrayLike) -> NDArray[np.uint8]:
        """Return the `HeadLabel` at RAS mm points, shape (..., 3) → (...)."""
        return self.anatomy.paint(points_mm, self._table, self.edge_mm)[0]

    def sample(
        self, affine: Affine, shape: tuple[int, int, int]
    ) -> tuple[NDArray[np.uint8], Array]:
        """Return labels and noise-free HU on a voxel grid, both (I, J, K)."""
        labels, values = self.anatomy.sample(affine, shape, self._table, self.edge_mm)
        return labels, values[..., 0]

    def facts(self) -> dict[str, Any]:
        """Return what is known about the subject, as JSON values."""
        s, lesion = self.anatomy.subject, self.anatomy.lesion
        return {
            "seed": self.anatomy.seed,
            "scale": list(s.scale),
            "tilt_deg": list(s.tilt_deg),
            "shift_mm": list(s.shift_mm),
            "ventricles": s.ventricles,
            "atrophy_mm": s.atrophy_mm,
            "skull_mm": s.skull_mm,
            "lesion": None
            if lesion is None
            else {"kind": lesion.kind, "volume_ml": lesion.volume_ml, "side": lesion.side},
        }


def head_ct(
    seed: int,
    *,
    shape: tuple[int, int, int] = (256, 256, 40),
    spacing_mm: tuple[float, float, float] = (0.9, 0.9, 4.0),
    lesion: Lesion | None = None,
    noise_hu: float = 3.5,
    streaks_hu: float = 0.0,
    contrast: bool = False,
) -> Phantom:
    """Return a simulated head CT on a regular RAS grid centred on the head.

    Parameters
    ----------
    seed : int
        Chooses head and noise; the same seed gives the same bytes.
    shape : tuple of int
        Voxels along x, y, z.
    spacing_mm : tuple of float
        Voxel size.
    lesion : Lesion, optional
        A haemorrhage of known volume.
    noise_hu : float
        Standard deviation of the noise in the middle of the head.
    streaks_hu : float
        Depth of the dark band between the petrous bones (beam hardening).
    contrast : bool
        Whether contrast medium was given.

    Returns
    -------
    Phantom
        Data is float32 HU.
    """
    spacing = np.asarray(spacing_mm, float)
    centre = np.array([0.0, 0.0, 8.0])
    affine = affine_from_parts(np.eye(3), spacing, centre - (np.array(shape) - 1) / 2 * spacing)
    sampler = HeadCT(seed, lesion=lesion, contrast=contrast)
    labels, hu = sampler.sample(affine, shape)
    if streaks_hu:
        hu += streaks_hu * _hardening(labels, float(spacing[0]))
    if noise_hu:
        for k in range(shape[2]):
            hu[:, :, k] += ct_noise(hu[:, :, k], noise_hu, (seed, k))
    np.maximum(hu, -1024, out=hu)
    voxel_ml = float(np.prod(spacing)) / 1000
    count = np.bincount(labels.ravel(), minlength=len(HeadLabel))
    facts = sampler.facts() | {
        "volumes_ml": {label.name.lower(): float(count[label] * voxel_ml) for label in HeadLabel}
    }
    source = {"kind": "phantom", "modality": "CT", "seed": seed}
    return Phantom(Volume(hu, affine, source), labels, facts)


def ct_noise(hu: Array, sigma_hu: float, seed: tuple[int, ...]) -> Array:
    """Return noise for one slice: correlated over about a pixel, stronger behind dense paths.

    Parameters
    ----------
    hu : ndarray, shape (I, J)
        The noise-free slice.
    sigma_hu : float
        Standard deviation in the middle of the head; it goes with one over
        the root of the dose.
    seed : tuple of int
        Seed of this slice.
    """
    rng = np.random.default_rng(list(seed))
    white = rng.standard_normal(hu.shape, dtype=F)
    smooth = ndimage.gaussian_filter(white, 0.7, mode="wrap")
    noise = smooth - 0.6 * ndimage.gaussian_filter(white, 2.0, mode="wrap")
    noise /= noise.std()
    # Fewer photons reach the detector behind more matter: variance follows exp(path).
    matter = np.clip(hu + 1000, 0, 2500) / 1000
    path = ndimage.gaussian_filter(matter, max(hu.shape) / 10)
    gain = np.exp(0.9 * (path - path.max())).astype(F)
    return F(sigma_hu) * noise * gain


def _hardening(labels: NDArray[np.uint8], pixel_mm: float) -> Array:
    """Return the relative depth (-1..0) of the shadow between dense bones, slice by slice."""
    dense = (labels == HeadLabel.CORTICAL_BONE).astype(F)
    soft = ndimage.gaussian_filter(dense, (28 / pixel_mm, 2.5 / pixel_mm, 0))
    inside = np.isin(labels, _SOFT)
    return -np.clip(soft * 4 - 0.35, 0, 1) * inside


_SOFT = [int(label) for label in HeadLabel if HeadLabel.CSF <= label <= HeadLabel.BLOOD]
