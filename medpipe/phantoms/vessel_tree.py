"""Random branching vessels whose curves, radii and tips are known exactly.

`vessel_tree` grows a tree by Murray's law and draws it into a grid; the mask may be as rough
as a segmentation of a real image, may have gaps, and vessels may touch each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medpipe.errors import UsageError
from medpipe.geometry import spacing_mm as spacing_of
from medpipe.phantoms.tubes import centred_affine, tube_distance
from medpipe.phantoms.vessel_growth import Growth, GrowthPlan
from medpipe.types import Affine

__all__ = ["NOISE_VOXELS", "TreeKind", "VesselTree", "assemble", "small_tree", "vessel_tree"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
TreeKind = Literal["clean", "rough", "very-rough", "kissing"]

NOISE_VOXELS: dict[str, float] = {"clean": 0.0, "rough": 0.45, "very-rough": 0.8, "kissing": 0.0}
"""Standard deviation of the surface of each kind of mask."""

NOISE_WIDTH = 1.0
"""Standard deviation in voxels of the Gaussian that smooths the noise of a surface."""

KISSING_OVERLAP = 0.7
"""How far vessels of the kind "kissing" may reach into each other, in voxels."""

MARGIN = 2.05
"""Room between the surfaces of vessels of the other kinds, in voxels."""

_ALL_NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True, eq=False)
class VesselTree:
    """A tree of tubes: the exact curve, and the mask drawn of it.

    Attributes
    ----------
    points_mm : ndarray, shape (M, 3)
        Nodes of the curves in RAS mm, half a voxel apart.
    radius_mm : ndarray, shape (M,)
        Radius at each node, linear between a node and its parent.
    parents : ndarray of int64, shape (M,)
        Node before each node; -1 at roots. ``parents[n] < n``.
    branch : ndarray of int64, shape (M,)
        Branch of each node. The node that two branches share belongs to the mother.
    leaves : ndarray of int64
        Nodes at the tips.
    roots : ndarray of int64
        Nodes without a parent.
    mask : ndarray of bool, shape (I, J, K)
        Voxels of the vessels.
    affine : ndarray, shape (4, 4)
        Voxel index to RAS mm.
    ostium : ndarray of bool, shape (I, J, K), or None
        Part of the vessel that the root leaves; no voxel of `mask` lies in it.
    closing : ndarray of int64, shape (E, 2)
        Joined nodes that are not parent and child: what closes a ring.
    facts : dict
        JSON facts: kind, seed, standard deviation of the surface, nodes of the gaps.
    """

    points_mm: Array
    radius_mm: Array
    parents: NDArray[np.int64]
    branch: NDArray[np.int64]
    mask: Mask
    affine: Affine
    ostium: Mask | None = None
    closing: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> int:
        """The first root."""
        return int(self.roots[0])

    @cached_property
    def roots(self) -> NDArray[np.int64]:
        """Nodes without a parent."""
        return np.flatnonzero(self.parents < 0)

    @cached_property
    def leaves(self) -> NDArray[np.int64]:
        """Nodes without a child that close no ring either, roots apart."""
        inner = np.zeros(len(self.parents), bool)
        inner[self.parents[self.parents >= 0]] = True
        inner[self.closing.ravel()] = True
        inner[self.roots] = True
        return np.flatnonzero(~inner)

    @cached_property
    def junctions(self) -> NDArray[np.int64]:
        """Nodes with two children or more."""
        count = np.bincount(self.parents[self.parents >= 0], minlength=len(self.parents))
        return np.flatnonzero(count > 1)

    @cached_property
    def branch_parents(self) -> NDArray[np.int64]:
        """Mother of each branch, -1 for those that start at a root."""
        first = np.unique(self.branch, return_index=True)[1]
        above = self.parents[first]
        return np.where(above < 0, -1, self.branch[above])

    @property
    def length_mm(self) -> float:
        """Length of all curves together."""
        child = np.flatnonzero(self.parents >= 0)
        steps = self.points_mm[child] - self.points_mm[self.parents[child]]
        closing = np.diff(self.points_mm[self.closing], axis=1)
        return float(np.linalg.norm(steps, axis=1).sum() + np.linalg.norm(closing, axis=-1).sum())

    def distance_mm(
        self, reach_mm: float, *, owners: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.int32] | None]:
        """Return the signed distance to the exact tubes; see `tube_distance`."""
        ends = self.closing[:, 1]
        field, owner = tube_distance(
            np.concatenate([self.points_mm, self.points_mm[ends]]),
            np.concatenate([self.radius_mm, self.radius_mm[ends]]),
            self.affine,
            self.mask.shape,
            parents=np.concatenate([self.parents, self.closing[:, 0]]),
            reach_mm=reach_mm,
            owners=owners,
        )
        if owner is not None and len(ends):
            beyond = owner >= len(self.parents)
            owner[beyond] = ends[owner[beyond] - len(self.parents)]
        return field, owner


def vessel_tree(
    seed: int,
    *,
    shape: tuple[int, int, int] = (256, 256, 256),
    spacing_mm: tuple[float, float, float] = (0.5, 0.5, 0.5),
    kind: TreeKind = "clean",
    root_radius_voxels: float = 9.0,
    leaf_radius_voxels: tuple[float, float] | None = None,
    branches: int | None = None,
    gaps: int = 0,
    ostium: bool = False,
) -> VesselTree:
    """Return a random tree of vessels that fills the grid.

    A mother of radius r at its end has two daughters with ``r³ = r₁³ + r₂³`` (Murray 1926);
    each branch narrows along its length and bends. Where the spacing differs between axes a
    voxel means the cube root of its volume.

    Parameters
    ----------
    seed : int
        The same seed gives the same tree and mask.
    shape : three int
        Voxels along each axis.
    spacing_mm : three float
        Voxel size.
    kind : {"clean", "rough", "very-rough", "kissing"}
        Smooth walls, walls with noise of 0.45 or 0.8 voxel, or smooth vessels that touch
        each other, some with an overlap of up to 0.7 voxel. Vessels of the other kinds keep
        clear of each other by 2 voxels.
    root_radius_voxels : float
        Radius at the root.
    leaf_radius_voxels : (float, float), optional
        Range of the radius at the tips: (1.15, 1.3), for "kissing" (1, 1).
    branches : int, optional
        How many branches are wanted at most: 53, that is 27 tips, for "kissing" 71. Fewer
        where there is no room.
    gaps : int
        How many thin vessels are cut through; the mask then has several components.
    ostium : bool
        Whether the root leaves a large vessel, which is returned apart.

    Returns
    -------
    VesselTree

    Raises
    ------
    UsageError
        If a setting is out of range, or the grid too small for the trunk.
    """
    if kind not in get_args(TreeKind):
        raise UsageError(
            "unknown kind of tree", expected=", ".join(get_args(TreeKind)), got=str(kind)
        )
    kissing = kind == "kissing"
    leaf = leaf_radius_voxels or ((1.0, 1.0) if kissing else (1.15, 1.3))
    wanted = branches if branches is not None else (71 if kissing else 53)
    unit = float(np.cbrt(np.prod(spacing_mm)))
    plan = GrowthPlan(
        extent=(np.asarray(shape) - 1) * np.asarray(spacing_mm, float) / unit,
        root_radius=float(root_radius_voxels),
        leaf_radius=(float(leaf[0]), float(leaf[1])),
        branches=int(wanted),
        margin=-KISSING_OVERLAP if kissing else MARGIN,
        touches=max(1, wanted // 14) if kissing else 0,
        inset=2.5 * root_radius_voxels if ostium else 0.0,
    )
    _check(plan, gaps, seed, spacing_mm)
    affine = centred_affine(shape, spacing_mm)
    growth = Growth(plan, np.random.default_rng([seed, 11]))
    growth.plant()
    blob = None
    if ostium:
        centres, radii = _aorta(growth, plan)
        growth.blocked.append((centres, radii))
        blob_mm = tube_distance(
            centres * unit + affine[:3, 3], radii * unit, affine, shape, reach_mm=0
        )
        blob = blob_mm[0] <= 0
    growth.grow()
    points, radius, parents, branch = assemble(growth)
    tree = VesselTree(
        points * unit + affine[:3, 3],
        radius * unit,
        parents,
        branch,
        np.zeros(shape, bool),
        affine,
        blob,
        facts={"kind": kind, "seed": seed, "surface_sd_voxels": NOISE_VOXELS[kind], "gaps": []},
    )
    _draw(tree, NOISE_VOXELS[kind] * unit, np.random.default_rng([seed, 12]))
    if gaps:
        tree.facts["gaps"] = _cut(tree, gaps, unit, np.random.default_rng([seed, 13]))
    return tree


def small_tree(
    seed: int,
    *,
    shape: tuple[int, int, int] = (96, 96, 96),
    spacing_mm: tuple[float, float, float] = (0.5, 0.5, 0.5),
    kind: TreeKind = "clean",
    gaps: int = 0,
    ostium: bool = False,
) -> VesselTree:
    """Return a tree of 5 to 21 branches with a trunk of 2.5 to 6.5 voxels, as for training.

    Of the kind "kissing" it has 17 to 33.

    Parameters are those of `vessel_tree`; the seed chooses radius and branches too.
    """
    rng = np.random.default_rng([seed, 14])
    few = (17, 34) if kind == "kissing" else (5, 22)  # strangers to touch are needed
    return vessel_tree(
        seed,
        shape=shape,
        spacing_mm=spacing_mm,
        kind=kind,
        root_radius_voxels=float(rng.uniform(2.5, 6.5)),
        branches=int(rng.integers(*few)),
        gaps=gaps,
        ostium=ostium,
    )


def _check(plan: GrowthPlan, gaps: int, seed: int, spacing_mm: tuple[float, float, float]) -> None:
    if seed < 0:
        raise UsageError("a seed is not negative", got=str(seed))
    if not min(spacing_mm) > 0:
        raise UsageError("the voxels have no size", got=" x ".join(f"{d:g}" for d in spacing_mm))
    low, high = plan.leaf_radius
    if not 0.5 <= low <= high <= plan.root_radius:
        raise UsageError(
            "the radii are out of order",
            expected="0.5 <= tip <= root",
            got=f"{low:g} to {high:g}, {plan.root_radius:g}",
        )
    if plan.branches < 1 or gaps < 0:
        raise UsageError("a tree has at least one branch", got=f"{plan.branches}, {gaps} gaps")
    if not plan.extent.min() > 6 * plan.root_radius:
        raise UsageError(
            "the grid is too small for the trunk",
            expected=f"more than {6 * plan.root_radius:.0f} voxels along each axis",
            got=f"{plan.extent.min():.0f}",
        )


def _aorta(growth: Growth, plan: GrowthPlan) -> tuple[Array, Array]:
    """Return the balls of a thick vessel that lies across the start of the trunk."""
    radius = 2.0 * plan.root_radius
    along = np.cross(growth.heading, np.eye(3)[np.argmin(np.abs(growth.heading))])
    along /= np.linalg.norm(along)
    # the wall meets the axis of the trunk at its first node
    centre = growth.start - growth.heading * radius
    offsets = np.arange(-2.0 * radius, 2.0 * radius + 0.5)
    return centre + offsets[:, None] * along, np.full(len(offsets), radius)


def assemble(growth: Growth) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]:
    """Return points, radii, parents and branch of all nodes, mothers first."""
    points, radius, parents, branch = [], [], [], []
    last: list[int] = []
    count = 0
    for number, one in enumerate(growth.branches):
        n = len(one.points)
        above = np.arange(count - 1, count + n - 1)
        above[0] = -1 if one.mother < 0 else last[one.mother]
        points.append(one.points)
        radius.append(one.radius)
        parents.append(above)
        branch.append(np.full(n, number))
        count += n
        last.append(count - 1)
    return (
        np.concatenate(points),
        np.concatenate(radius),
        np.concatenate(parents).astype(np.int64),
        np.concatenate(branch).astype(np.int64),
    )


def _draw(tree: VesselTree, noise_mm: float, rng: np.random.Generator) -> None:
    """Fill the mask of a tree; with noise its largest component is kept."""
    field, _ = tree.distance_mm(4 * noise_mm)
    if noise_mm:
        field += np.float32(noise_mm) * _surface_noise(field, rng)
    np.less_equal(field, 0, out=tree.mask)
    if noise_mm:
        # a segmentation may be rough, but its vessels go on to their tips
        index = (tree.points_mm - tree.affine[:3, 3]) / spacing_of(tree.affine)
        tree.mask[tuple(np.rint(index).astype(np.intp).T)] = True
    if tree.ostium is not None:
        tree.mask[tree.ostium] = False
    if noise_mm:
        _keep_largest(tree.mask)


def _surface_noise(field: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return noise of unit variance, correlated over about a voxel, near a tube."""
    noise = np.zeros_like(field)
    found = ndimage.find_objects(np.isfinite(field).view(np.uint8))
    if found:
        drawn = rng.standard_normal(field[found[0]].shape, dtype=np.float32)
        ndimage.gaussian_filter(drawn, NOISE_WIDTH, mode="wrap", output=drawn)
        noise[found[0]] = drawn / drawn.std()
    return noise


def _keep_largest(mask: Mask) -> None:
    """Remove all but the largest 26-connected component, in place."""
    found = ndimage.find_objects(mask.view(np.uint8))
    if not found:
        return
    part = mask[found[0]]
    pieces, count = ndimage.label(part, _ALL_NEIGHBOURS)
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        part &= pieces == sizes.argmax()


def _cut(tree: VesselTree, gaps: int, unit: float, rng: np.random.Generator) -> list[int]:
    """Cut through thin vessels away from their ends; return the nodes in the gaps' middles."""
    spacing = spacing_of(tree.affine)
    low = np.zeros(len(tree.parents), bool)
    count = np.bincount(tree.branch)
    place = np.arange(len(tree.branch)) - np.repeat(np.cumsum(count) - count, count)
    middle = np.abs(place / np.maximum(count[tree.branch] - 1, 1) - 0.5) < 0.25
    low[:] = middle & (tree.radius_mm < 2.5 * unit) & (tree.parents >= 0)
    cut: list[int] = []
    for node in rng.permutation(np.flatnonzero(low)):
        if len(cut) == gaps:
            break
        if tree.branch[node] in tree.branch[cut]:
            continue
        # a step between neighbours is up to √3 voxels long: what is thinner joins again
        width = (rng.uniform(1, 3) + 0.8) * unit
        centre = tree.points_mm[node]
        along = tree.points_mm[node] - tree.points_mm[tree.parents[node]]
        along /= np.linalg.norm(along)
        reach = tree.radius_mm[node] + 2.5 * unit
        index = (centre - tree.affine[:3, 3]) / spacing
        start = np.maximum(np.floor(index - reach / spacing), 0).astype(int)
        stop = np.ceil(index + reach / spacing).astype(int) + 1
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        inside = tree.mask[box]
        grid = np.stack(
            np.meshgrid(*map(np.arange, start, start + inside.shape), indexing="ij"), -1
        )
        offset = grid * spacing + tree.affine[:3, 3] - centre
        near = np.linalg.norm(offset, axis=-1) <= reach
        inside &= ~(near & (np.abs(offset @ along) <= width / 2))
        cut.append(int(node))
    return cut
