"""Simulated angiographies: a random vessel tree as CT and as MR show it.

A voxel at the wall holds what it averages: the signed distance to the exact tube, as a ramp
one voxel wide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medpipe.errors import UsageError
from medpipe.geometry import spacing_mm as spacing_of
from medpipe.phantoms.shapes import Array, F, ellipsoid, lattice
from medpipe.phantoms.vessel_growth import surface_gap
from medpipe.phantoms.vessel_tree import TreeKind, VesselTree, vessel_tree
from medpipe.types import Volume

__all__ = ["VesselPhantom", "grey_noise", "vessel_cta", "vessel_mra"]

SOFT_TISSUE_HU = 40.0
CALCIUM_HU = 1000.0
CORTEX_HU, MARROW_HU = 800.0, 260.0


@dataclass(frozen=True, eq=False)
class VesselPhantom:
    """A simulated image of a tree and the truth behind it.

    Attributes
    ----------
    volume : Volume
        The image, noise included.
    tree : VesselTree
        The exact tree; its mask is what a segmentation should find.
    other : ndarray of bool, shape (I, J, K)
        What looks like the tree and is not: bone in a CTA, vessels in the lungs.
    facts : dict
        JSON facts.
    """

    volume: Volume
    tree: VesselTree
    other: NDArray[np.bool_]
    facts: dict[str, Any] = field(default_factory=dict)


def vessel_cta(
    seed: int,
    *,
    shape: tuple[int, int, int] = (256, 256, 256),
    spacing_mm: tuple[float, float, float] = (0.5, 0.5, 0.5),
    kind: TreeKind = "clean",
    lumen_hu: float = 350.0,
    noise_hu: float = 25.0,
    calcifications: int = 8,
    bones: int = 3,
    root_radius_voxels: float = 9.0,
    branches: int | None = None,
) -> VesselPhantom:
    """Return a CT angiography of a tree of vessels.

    Parameters
    ----------
    seed : int
        Chooses tree, tissue and noise.
    shape, spacing_mm
        Voxels along x, y, z and their size in mm.
    kind : {"clean", "kissing"}
        Whether vessels touch; the walls of an image are smooth.
    lumen_hu : float
        At the root; 70 % of it are left at the farthest tip.
    noise_hu : float
        Standard deviation.
    calcifications : int
        Spots of 1000 HU in the walls.
    bones : int
        Ellipsoids with a dense shell and a marrow nearly as bright as the vessels.
    root_radius_voxels, branches
        As for `vessel_tree`.

    Returns
    -------
    VesselPhantom
        Data is float32 HU; `other` is bone.

    Raises
    ------
    UsageError
        As `vessel_tree`, and for a kind with rough walls.
    """
    tree = _smooth_tree(seed, shape, spacing_mm, kind, root_radius_voxels, branches)
    rng = np.random.default_rng([seed, 21])
    unit = float(np.cbrt(np.prod(spacing_mm)))
    axes = _axes(tree)
    hu = F(SOFT_TISSUE_HU) + F(12) * lattice(seed * 8 + 301, 40 * unit)(*axes)
    bone = np.zeros(shape, bool)
    for centre, radii, turn in _bones(tree, bones, unit, rng):
        _paint_bone(hu, bone, tree, centre, radii, turn, unit)
    cover, bright = _lumen(tree, 0.3)
    hu += cover * (F(lumen_hu) * bright - hu)
    for centre, size in _spots(tree, calcifications, unit, rng):
        box, p = _box(tree, centre, size + 2 * unit)
        part = np.clip(F(0.5) - ellipsoid(p, centre, [size] * 3) / F(unit), 0, 1)
        hu[box] += part * (F(CALCIUM_HU) - hu[box])
    if noise_hu:
        hu += grey_noise(shape, noise_hu, 0.6, np.random.default_rng([seed, 22]))
    facts = tree.facts | {"lumen_hu": lumen_hu, "noise_hu": noise_hu}
    source = {"kind": "phantom", "modality": "CT", "seed": seed}
    return VesselPhantom(Volume(hu, tree.affine, source), tree, bone, facts)


def vessel_mra(
    seed: int,
    *,
    shape: tuple[int, int, int] = (256, 256, 256),
    spacing_mm: tuple[float, float, float] = (0.5, 0.5, 0.5),
    kind: TreeKind = "clean",
    noise: float = 12.0,
    bias: float = 0.2,
    root_radius_voxels: float = 7.0,
    branches: int | None = None,
) -> VesselPhantom:
    """Return a time-of-flight MR angiography of a tree of vessels.

    Tissue is 100, vessels are 320 at the root and 60 % of it at the farthest tip.

    Parameters
    ----------
    seed : int
        Chooses tree, tissue, bias and noise.
    shape, spacing_mm
        Voxels along x, y, z and their size in mm.
    kind : {"clean", "kissing"}
        Whether vessels touch.
    noise : float
        Standard deviation of each channel; the magnitude is Rician.
    bias : float
        Standard deviation of the logarithm of the coil's sensitivity.
    root_radius_voxels, branches
        As for `vessel_tree`.

    Returns
    -------
    VesselPhantom
        Data is float32; `other` is empty.

    Raises
    ------
    UsageError
        As `vessel_tree`, and for a kind with rough walls.
    """
    tree = _smooth_tree(seed, shape, spacing_mm, kind, root_radius_voxels, branches)
    extent = float(np.max(np.asarray(shape) * spacing_mm))
    axes = _axes(tree)
    signal = F(100) * (1 + F(0.1) * lattice(seed * 8 + 302, extent / 8)(*axes))
    cover, bright = _lumen(tree, 0.4)
    signal += cover * (F(320) * bright - signal)
    if bias:
        signal *= np.exp(F(bias) * lattice(seed * 8 + 303, extent)(*axes))
    if noise:
        rng = np.random.default_rng([seed, 23])
        signal += F(noise) * rng.standard_normal(shape, dtype=F)
        signal = np.hypot(signal, F(noise) * rng.standard_normal(shape, dtype=F))
    facts = tree.facts | {"noise": noise, "bias": bias}
    source = {"kind": "phantom", "modality": "MR", "seed": seed}
    return VesselPhantom(Volume(signal, tree.affine, source), tree, np.zeros(shape, bool), facts)


def grey_noise(
    shape: tuple[int, ...], spread: float, width: float, rng: np.random.Generator
) -> Array:
    """Return Gaussian noise of standard deviation `spread`, smoothed over `width` voxels."""
    noise = rng.standard_normal(shape, dtype=F)
    ndimage.gaussian_filter(noise, width, mode="wrap", output=noise)
    return noise * F(spread / noise.std())


def _smooth_tree(
    seed: int,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    kind: TreeKind,
    root_radius_voxels: float,
    branches: int | None,
) -> VesselTree:
    if kind not in ("clean", "kissing"):
        raise UsageError("an image shows smooth walls", expected="clean, kissing", got=str(kind))
    return vessel_tree(
        seed,
        shape=shape,
        spacing_mm=spacing_mm,
        kind=kind,
        root_radius_voxels=root_radius_voxels,
        branches=branches,
    )


def _axes(tree: VesselTree) -> tuple[Array, Array, Array]:
    """Return world coordinates along each axis, to be broadcast."""
    spacing, origin = spacing_of(tree.affine), tree.affine[:3, 3]
    x, y, z = ((np.arange(n) * spacing[a] + origin[a]) for a, n in enumerate(tree.mask.shape))
    return x.astype(F)[:, None, None], y.astype(F)[None, :, None], z.astype(F)[None, None, :]


def _lumen(tree: VesselTree, loss: float) -> tuple[Array, Array]:
    """Return the share of lumen in each voxel, and the contrast: 1 at the root."""
    unit = float(np.cbrt(np.prod(spacing_of(tree.affine))))
    distance, owner = tree.distance_mm(unit, owners=True)
    cover = np.clip(F(0.5) - distance / F(unit), 0, 1)
    arc = np.zeros(len(tree.parents))
    for node in range(len(arc)):
        above = tree.parents[node]
        if above >= 0:
            step = tree.points_mm[node] - tree.points_mm[above]
            arc[node] = arc[above] + np.sqrt(step @ step)
    left = np.append(1 - loss * arc / max(arc.max(), 1e-9), 0.0).astype(F)
    return cover, left[owner]


def _box(
    tree: VesselTree, centre: NDArray[np.float64], reach_mm: float
) -> tuple[tuple[slice, ...], tuple[Array, Array, Array]]:
    """Return the part of the grid around a point, and its world coordinates."""
    spacing = spacing_of(tree.affine)
    index = (centre - tree.affine[:3, 3]) / spacing
    low = np.clip(np.floor(index - reach_mm / spacing), 0, None).astype(int)
    high = np.ceil(index + reach_mm / spacing).astype(int) + 1
    box = tuple(slice(a, max(b, a)) for a, b in zip(low, high, strict=True))
    x, y, z = _axes(tree)
    return box, (x[box[0]], y[:, box[1]], z[:, :, box[2]])


def _bones(
    tree: VesselTree, count: int, unit: float, rng: np.random.Generator
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], float]]:
    """Return centre, half axes and turn of ellipsoids that keep clear of the vessels."""
    half = np.asarray(tree.mask.shape) * spacing_of(tree.affine) / 2
    out: list[tuple[NDArray[np.float64], NDArray[np.float64], float]] = []
    for draw in range(400):
        if len(out) == count:
            break
        size = half.min() * rng.uniform(0.14, 0.3) * 0.995**draw
        centre = rng.uniform(-0.85, 0.85, 3) * half
        balls = [(c, r.max()) for c, r, _ in out]
        points = np.concatenate([tree.points_mm, *(c[None] for c, _ in balls)])
        radii = np.concatenate([tree.radius_mm, [r for _, r in balls]])
        if surface_gap(centre[None], np.array([size]), points, radii, 0.0) > 4 * unit:
            axes = size * np.array([1.0, rng.uniform(0.6, 0.9), rng.uniform(0.6, 0.9)])
            out.append((centre, axes, float(rng.uniform(0, 180))))
    return out


def _paint_bone(
    hu: Array,
    bone: NDArray[np.bool_],
    tree: VesselTree,
    centre: NDArray[np.float64],
    radii: NDArray[np.float64],
    turn_deg: float,
    unit: float,
) -> None:
    """Paint a shell of cortex around marrow."""
    box, p = _box(tree, centre, float(radii.max()) + 2 * unit)
    depth = ellipsoid(p, centre, radii, turn_deg)
    for offset, value in ((0.0, CORTEX_HU), (max(1.2, 2 * unit), MARROW_HU)):
        part = np.clip(F(0.5) - (depth + F(offset)) / F(unit), 0, 1)
        hu[box] += part * (F(value) - hu[box])
    bone[box] |= depth <= 0


def _spots(
    tree: VesselTree, count: int, unit: float, rng: np.random.Generator
) -> list[tuple[NDArray[np.float64], float]]:
    """Return centre and radius of spots in the walls of vessels that are not thin."""
    wide = np.flatnonzero((tree.radius_mm > 2 * unit) & (tree.parents >= 0))
    out = []
    for node in rng.choice(wide, min(count, len(wide)), replace=False):
        along = tree.points_mm[node] - tree.points_mm[tree.parents[node]]
        aside = np.cross(along, rng.standard_normal(3))
        aside *= 0.9 * tree.radius_mm[node] / np.linalg.norm(aside)
        size = float(tree.radius_mm[node] * rng.uniform(0.25, 0.45))
        out.append((tree.points_mm[node] + aside, size))
    return out
