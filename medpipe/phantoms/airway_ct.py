"""A simulated chest CT with airways of known curve and radius.

Trachea and main bronchi lie between the lungs, their branches fill them; arteries run beside
in the lungs. Walls thin out towards the tips, as a voxel shows them: a region that grows from
the trachea leaks there.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import UsageError
from medpipe.phantoms.shapes import Array, F, ellipsoid, lattice
from medpipe.phantoms.tubes import centred_affine, tube_distance
from medpipe.phantoms.vessel_growth import Branch, Growth, GrowthPlan, evenly
from medpipe.phantoms.vessel_images import VesselPhantom, grey_noise
from medpipe.phantoms.vessel_tree import VesselTree, assemble
from medpipe.types import Volume

__all__ = ["airway_ct"]

Points: TypeAlias = NDArray[np.float64]

AIR_HU, LUNG_HU, SOFT_HU, FAT_HU, BONE_HU, WALL_HU = -1000.0, -850.0, 40.0, -90.0, 500.0, -100.0

FIELD_MM = np.array([320.0, 240.0, 280.0])
"""What the shapes below are made for; another field of view scales them."""

LUNGS = (
    ((-76.0, 0.0, -12.0), (62.0, 86.0, 112.0)),
    ((78.0, 0.0, -12.0), (58.0, 86.0, 112.0)),
)
"""Centre and half axes in mm."""

HEART = ((-22.0, 34.0, -45.0), (52.0, 46.0, 52.0))
CARINA = (0.0, -8.0, 44.0)
HILA = ((-48.0, -6.0, 16.0), (46.0, -6.0, 20.0))
SLAB = 32
"""Slices painted at a time."""


def airway_ct(
    seed: int,
    *,
    shape: tuple[int, int, int] = (256, 192, 224),
    spacing_mm: tuple[float, float, float] = (1.25, 1.25, 1.25),
    branches: int = 63,
    vessels: int = 35,
    noise_hu: float = 30.0,
) -> VesselPhantom:
    """Return a chest CT with the tree of its airways.

    Parameters
    ----------
    seed : int
        Chooses airways, vessels, tissue and noise.
    shape, spacing_mm
        Voxels along x, y, z and their size in mm. The chest fills the grid, whatever its
        size: the default is 320 × 240 × 280 mm.
    branches : int
        Branches of the airways at most, trachea included.
    vessels : int
        Branches of the arteries in each lung at most.
    noise_hu : float
        Standard deviation.

    Returns
    -------
    VesselPhantom
        Data is float32 HU; the mask of the tree is the lumen of the airways, which the
        trachea enters from above; `other` are the arteries.

    Raises
    ------
    UsageError
        If the grid is too small for the airways.
    """
    if seed < 0 or not min(spacing_mm) > 0:
        raise UsageError("a seed is not negative, and voxels have a size")
    unit = float(np.cbrt(np.prod(spacing_mm)))
    field_mm = np.asarray(shape) * np.asarray(spacing_mm, float)
    scale = float((field_mm / FIELD_MM).min())
    if min(shape) < 64 or branches < 3:
        raise UsageError("the grid is too small for airways", expected="64 voxels along each axis")
    affine = centred_affine(shape, spacing_mm)
    chest = _Chest(scale, unit, affine[:3, 3].copy(), (np.asarray(shape) - 1) * spacing_mm / unit)
    airways = chest.airways(branches, np.random.default_rng([seed, 31]))
    points, radius, parents, branch = assemble(airways)
    tree = VesselTree(
        chest.to_mm(points),
        radius * unit,
        parents,
        branch,
        np.zeros(shape, bool),
        affine,
        facts={"kind": "airway", "seed": seed, "noise_hu": noise_hu},
    )
    wall = _wall_mm(tree, scale)
    reach = float(wall.max() + 2 * unit)
    distance, owner = tree.distance_mm(reach, owners=True)
    np.less_equal(distance, 0, out=tree.mask)
    hu = np.empty(shape, F)
    chest.paint(hu, affine, seed)
    other = _paint_vessels(hu, chest, airways, vessels, affine, seed)
    outer = np.clip(F(0.5) - (distance - np.append(wall, 0).astype(F)[owner]) / F(unit), 0, 1)
    hu += outer * (F(WALL_HU) - hu)
    hu += np.clip(F(0.5) - distance / F(unit), 0, 1) * (F(AIR_HU) - hu)
    if noise_hu:
        hu += grey_noise(shape, noise_hu, 0.6, np.random.default_rng([seed, 33]))
    np.maximum(hu, -1024, out=hu)
    source = {"kind": "phantom", "modality": "CT", "seed": seed}
    return VesselPhantom(Volume(hu, affine, source), tree, other & ~tree.mask, dict(tree.facts))


def _wall_mm(tree: VesselTree, scale: float) -> Points:
    """Return the thickness of the wall at each node; at the tips hardly any is left."""
    wall = 0.45 * scale + 0.13 * tree.radius_mm
    for leaf in tree.leaves:
        nodes = np.flatnonzero(tree.branch == tree.branch[leaf])
        wall[nodes] *= np.linspace(1, 0.1, len(nodes))
    return wall


class _Chest:
    """The shapes of the chest at one scale; growth counts in voxels from the first one.

    Parameters
    ----------
    scale : float
        Size compared with the chest the numbers are for.
    unit : float
        Size of a voxel in mm.
    origin : ndarray, shape (3,)
        World position of the first voxel.
    extent : ndarray, shape (3,)
        Of the grid in voxels.
    """

    def __init__(self, scale: float, unit: float, origin: Points, extent: Points) -> None:
        self.scale, self.unit, self.origin, self.extent = scale, unit, origin, extent

    def to_mm(self, points: Points) -> Points:
        """Return the world position of points in voxels."""
        return points * self.unit + self.origin

    def _voxels(self, template_mm: tuple[float, ...]) -> Points:
        return (np.asarray(template_mm) * self.scale - self.origin) / self.unit

    def in_lungs(self, points: Points) -> NDArray[np.bool_]:
        """Whether points in voxels lie in a lung, and not in its outermost shell."""
        p = self.to_mm(points).T.astype(F)
        rim = F(-5 * self.scale)
        heart = ellipsoid((p[0], p[1], p[2]), *self._scaled(HEART))
        inside = [ellipsoid((p[0], p[1], p[2]), *self._scaled(one)) < rim for one in LUNGS]
        return (inside[0] | inside[1]) & (heart > -rim)

    def _scaled(self, shape: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[Points, Points]:
        return np.asarray(shape[0]) * self.scale, np.asarray(shape[1]) * self.scale

    def _plan(self, radius: float, branches: int) -> GrowthPlan:
        return GrowthPlan(
            extent=self.extent,
            root_radius=radius,
            leaf_radius=(0.95, 1.15),
            branches=branches,
            margin=2.05,
            length=0.65,
        )

    def airways(self, branches: int, rng: np.random.Generator) -> Growth:
        """Return the tree: trachea from above, two main bronchi, then what finds room."""
        radius = 8.0 * self.scale / self.unit
        growth = Growth(self._plan(radius, branches), rng, allowed=self.in_lungs)
        carina = self._voxels(CARINA)
        top = carina.copy()
        top[2] = self.extent[2]  # the trachea leaves the grid
        top[:2] += rng.normal(0, 2, 2)
        path = evenly(np.linspace(top, carina, 9))
        growth.branches.append(
            Branch(-1, path, np.linspace(radius, 0.95 * radius, len(path)), (1, 2))
        )
        share = rng.uniform(0.5, 0.58)  # the right one is wider
        for hilum, part in zip(HILA[::-1], (share, 1 - share), strict=True):
            end = self._voxels(hilum) + rng.normal(0, 1.5, 3)
            t = np.linspace(0, 1, 33)[:, None]
            bend = carina + np.array([0.35, 0.5, 0.6]) * (end - carina)
            curve = (1 - t) ** 2 * carina + 2 * t * (1 - t) * bend + t**2 * end
            path = evenly(curve)[1:]
            first = 0.95 * radius * np.cbrt(part)
            growth.branches.append(Branch(0, path, np.linspace(first, 0.95 * first, len(path))))
        growth.grow()
        return growth

    def vessels(
        self, side: int, airways: Growth, branches: int, rng: np.random.Generator
    ) -> Growth:
        """Return the arteries of one lung; they keep clear of the airways."""
        radius = 5.0 * self.scale / self.unit
        growth = Growth(self._plan(radius, branches), rng, allowed=self.in_lungs)
        growth.blocked = [(b.points, 1.15 * b.radius + 0.5) for b in airways.branches]
        sign = -1.0 if side == 0 else 1.0
        start = self._voxels((sign * 20.0, 14.0, 14.0))
        end = self._voxels((sign * 52.0, 18.0, 2.0))
        path = evenly(np.linspace(start, end, 9))
        growth.branches.append(Branch(-1, path, np.linspace(radius, 0.9 * radius, len(path))))
        growth.grow()
        return growth

    def paint(self, hu: Array, affine: NDArray[np.float64], seed: int) -> None:
        """Fill a grid with body, ribs, spine, heart and lungs."""
        steps = np.diag(affine)[:3]
        x, y = (
            ((np.arange(n) * steps[a] + affine[a, 3]) / self.scale).astype(F)
            for a, n in enumerate(hu.shape[:2])
        )
        texture = lattice(seed * 8 + 304, 30.0)
        for k in range(0, hu.shape[2], SLAB):
            part = hu[:, :, k : k + SLAB]
            z = ((np.arange(k, k + part.shape[2]) * steps[2] + affine[2, 3]) / self.scale).astype(F)
            p = (x[:, None, None], y[None, :, None], z[None, None, :])
            self._paint_slab(part, p, texture(*p))

    def _paint_slab(self, hu: Array, p: tuple[Array, Array, Array], texture: Array) -> None:
        x, y, z = p
        hu[...] = AIR_HU
        k = np.sqrt(np.sqrt((x / F(150)) ** 4 + (y / F(108)) ** 4))
        outline = F(108) * (k - 1) + 0 * z
        lungs = [ellipsoid(p, *one) for one in LUNGS]
        lung = np.minimum(lungs[0], lungs[1])
        # ribs slant downwards around the lungs
        slant = np.sin((z + F(0.35) * y) * F(2 * np.pi / 26))
        ribs = np.maximum(np.abs(lung - 7) - F(3.5), F(-6) * (slant - F(0.35)))
        spine = np.hypot(x / F(1.2), y + F(72)) - F(17) + 0 * z
        layers = (
            (outline, FAT_HU, 0.0),
            (outline + 12, SOFT_HU, 10.0),
            (ribs, BONE_HU, 0.0),
            (spine, 0.6 * BONE_HU, 40.0),
            (lung, LUNG_HU, 18.0),
            (ellipsoid(p, *HEART), SOFT_HU, 8.0),
        )
        edge = F(self.unit / self.scale)
        for distance, value, spread in layers:
            cover = np.clip(F(0.5) - distance / edge, 0, 1)
            hu += cover * (F(value) + F(spread) * texture - hu)


def _paint_vessels(
    hu: Array,
    chest: _Chest,
    airways: Growth,
    branches: int,
    affine: NDArray[np.float64],
    seed: int,
) -> NDArray[np.bool_]:
    """Paint the arteries of both lungs; return their mask."""
    mask = np.zeros(hu.shape, bool)
    for side in range(2 if branches else 0):
        rng = np.random.default_rng([seed, 32, side])
        points, radius, parents, _ = assemble(chest.vessels(side, airways, branches, rng))
        distance, _ = tube_distance(
            chest.to_mm(points),
            radius * chest.unit,
            affine,
            hu.shape,
            parents=parents,
            reach_mm=chest.unit,
        )
        hu += np.clip(F(0.5) - distance / F(chest.unit), 0, 1) * (F(SOFT_HU) - hu)
        mask |= distance <= 0
    return mask
