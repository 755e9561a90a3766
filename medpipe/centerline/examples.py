"""Patches of trees for training, drawn where a mask is hard to read.

A tree is kept as its foreground voxels alone, some hundred kilobytes; a patch is laid out
when it is drawn. A third of the patches lie around tips, a third where vessels touch that
are no neighbours in the tree, a third anywhere along the vessels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.spatial.dictionary import RandFlipd, RandRotate90d
from monai.transforms.transform import Randomizable
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from torch.utils.data import Dataset

from medpipe.centerline.distance import distance_transform
from medpipe.centerline.network import network_input
from medpipe.centerline.targets import heat_map, heat_sigma, normalised_distance
from medpipe.geometry import spacing_mm
from medpipe.phantoms.tubes import tube_distance
from medpipe.phantoms.vessel_tree import TreeKind, VesselTree, vessel_tree

__all__ = ["FIRST_SEED", "TreePatches", "TreeSample", "training_tree", "tree_sample"]

FIRST_SEED = 1000
"""Trees of smaller seeds are kept for measuring."""

KINDS: tuple[TreeKind, ...] = ("kissing", "clean", "kissing", "rough", "kissing", "very-rough")
"""Kinds of the trees, in turn."""

TOUCH = 1.5
"""Vessels whose surfaces are nearer than this, in voxels, touch."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TreeSample:
    """What is known about one tree, in voxels.

    Parameters
    ----------
    voxels : int64 array (N, 3)
        Of the mask.
    depth, q : float32 arrays (N,)
        Distance to the background and normalised distance of these voxels.
    tips, roots : int64 arrays (P, 3), (R, 3)
        Voxels of the mask nearest to the true ends.
    tip_radius, root_radius : float32 arrays (P,), (R,)
    touches : int64 array (T, 3)
        Voxels where vessels touch.
    shape : (int, int, int)
    """

    voxels: Ints
    depth: NDArray[np.float32]
    q: NDArray[np.float32]
    tips: Ints
    tip_radius: NDArray[np.float32]
    roots: Ints
    root_radius: NDArray[np.float32]
    touches: Ints
    shape: tuple[int, ...]


def training_tree(number: int, shape: tuple[int, int, int] | None = None) -> VesselTree:
    """Return tree `number` of the endless series for training.

    Parameters
    ----------
    number : int
        Its seed is this plus `FIRST_SEED`.
    shape : three int, optional
        Voxels; by default 192 and 128 along each axis in turn.
    """
    rng = np.random.default_rng([number, 15])
    kind = KINDS[number % len(KINDS)]
    large = (number // len(KINDS)) % 2 == 0
    extents = shape or ((192,) * 3 if large else (128,) * 3)
    room = min(extents)
    crowd = 0.6 if kind == "kissing" else 0.3
    leaf = float(rng.uniform(1.0, 1.3))
    return vessel_tree(
        FIRST_SEED + number,
        shape=extents,
        kind=kind,
        root_radius_voxels=float(rng.uniform(0.02, 0.05) * room),
        leaf_radius_voxels=(leaf, leaf + float(rng.choice([0.0, 0.2, 0.8]))),
        branches=max(5, int(crowd * room * rng.uniform(0.7, 1.2))),
        gaps=int(rng.integers(0, 3)) if kind != "kissing" else 0,
        ostium=bool(room >= 128 and rng.random() < 0.3),
    )


def tree_sample(tree: VesselTree) -> TreeSample:
    """Return the voxels of a tree with what the network should say about them.

    Parameters
    ----------
    tree : VesselTree
        With cubic voxels.
    """
    spacing = spacing_mm(tree.affine)
    mask = torch.from_numpy(tree.mask)
    inside = np.argwhere(tree.mask)
    rows = tuple(inside.T)
    depth = np.asarray(distance_transform(mask, spacing.tolist())[mask]) / float(spacing[0])
    reach = float(tree.radius_mm.max()) * 1.5 + 4 * float(spacing[0])
    # a tube without radius: the distance to the curve itself
    curve, _ = tube_distance(
        tree.points_mm, 0.0, tree.affine, tree.mask.shape, parents=tree.parents, reach_mm=reach
    )
    near = np.minimum(curve[rows], reach) / spacing[0]
    q = normalised_distance(torch.from_numpy(near), torch.from_numpy(depth))
    points = (tree.points_mm - tree.affine[:3, 3]) / spacing
    radius = tree.radius_mm / spacing[0]
    search = cKDTree(inside)

    def voxels_of(nodes: Ints) -> Ints:
        return inside[search.query(points[nodes])[1]]

    return TreeSample(
        inside.astype(np.int64),
        depth.astype(np.float32),
        np.asarray(q, np.float32),
        voxels_of(tree.leaves),
        radius[tree.leaves].astype(np.float32),
        voxels_of(tree.roots),
        radius[tree.roots].astype(np.float32),
        np.rint(_touches(tree, points, radius)).astype(np.int64),
        tree.mask.shape,
    )


def _touches(tree: VesselTree, points: NDArray[Any], radius: NDArray[Any]) -> NDArray[Any]:
    """Return points between vessels that touch and are neither mother, daughter nor sisters."""
    first, second = cKDTree(points).query_pairs(
        2 * float(radius.max()) + TOUCH, output_type="ndarray"
    ).T  # fmt: skip
    apart = np.linalg.norm(points[first] - points[second], axis=1)
    close = apart < radius[first] + radius[second] + TOUCH
    first, second = first[close], second[close]
    a, b = tree.branch[first], tree.branch[second]
    above = tree.branch_parents
    kin = (a == b) | (above[a] == b) | (above[b] == a) | (above[a] == above[b])
    middles = 0.5 * (points[first[~kin]] + points[second[~kin]])
    # long contacts count by their length in steps of some voxels
    kept = np.unique(middles // 6, axis=0, return_index=True)[1]
    return middles[kept]


class TreePatches(Dataset[tuple[Tensor, Tensor]], Randomizable):
    """Pairs (inputs, targets) of patches, turned and mirrored at random.

    Parameters
    ----------
    trees : int
        How many generated trees the patches come from; each is made when it is first
        drawn, and kept.
    samples : sequence of TreeSample
        Trees that are given, besides the generated ones.
    per_tree : int
        Patches per tree in an epoch.
    size : int
        Voxels along each axis of a patch.
    first : int
        Number of the first tree (see `training_tree`).
    shape : three int, optional
        Voxels of the trees.
    """

    def __init__(
        self, trees: int, *, per_tree: int = 24, size: int = 48, first: int = 0,
        shape: tuple[int, int, int] | None = None, samples: Sequence[TreeSample] = (),
    ) -> None:  # fmt: skip
        self.trees, self.per_tree, self.size = trees, per_tree, size
        self.first, self.shape = first, shape
        self._kept = dict(enumerate(samples, trees))
        self.count = trees + len(samples)
        keys = ["inputs", "targets"]
        turns = [RandRotate90d(keys, prob=0.75, spatial_axes=axes) for axes in ((0, 1), (1, 2))]
        self.turn = Compose(
            [*turns, *(RandFlipd(keys, prob=0.5, spatial_axis=a) for a in range(3))]
        )

    def __len__(self) -> int:
        return self.count * self.per_tree

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> TreePatches:
        """Seed the choice of places, the turns and the mirrors."""
        super().set_random_state(seed, state)
        self.turn.set_random_state(seed, state)
        return self

    def sample(self, number: int) -> TreeSample:
        """Return tree `number` of this set; those that were given come last."""
        if number not in self._kept:
            self._kept[number] = tree_sample(training_tree(self.first + number, self.shape))
        return self._kept[number]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return inputs (2, S, S, S) and targets (3, S, S, S) of a patch."""
        # neighbours in the list come from different trees, so that batches mix them
        sample = self.sample(index % self.count)
        places = (sample.tips, sample.touches, sample.voxels)[(index // self.count) % 3]
        if not len(places):
            places = sample.tips
        middle = places[self.R.randint(len(places))] + self.R.randint(-10, 11, size=3)
        inputs, targets = patch(sample, middle - self.size // 2, self.size)
        turned = self.turn({"inputs": inputs, "targets": targets})
        return _plain(turned["inputs"]), _plain(turned["targets"])


def patch(sample: TreeSample, corner: Ints, size: int) -> tuple[Tensor, Tensor]:
    """Return inputs (2, S, S, S) and targets (3, S, S, S) of the cube from `corner` on."""
    local = sample.voxels - corner
    here = ((local >= 0) & (local < size)).all(axis=1)
    where = tuple(torch.from_numpy(local[here].T.copy()))
    depth = torch.zeros((size,) * 3)
    depth[where] = torch.from_numpy(sample.depth[here])
    q = torch.ones((size,) * 3)
    q[where] = torch.from_numpy(sample.q[here])
    maps = [
        _ends(points - corner, radius, size)
        for points, radius in (
            (sample.tips, sample.tip_radius),
            (sample.roots, sample.root_radius),
        )
    ]
    return network_input(depth), torch.stack([q, *maps])


def _ends(points: Ints, radius: NDArray[np.float32], size: int) -> Tensor:
    """Return the heat map of the ends in or near a cube."""
    sigma = heat_sigma(torch.from_numpy(radius))
    reach = 4 * np.asarray(sigma)[:, None]
    near = ((points > -reach) & (points < size + reach)).all(axis=1)
    return heat_map(torch.from_numpy(points[near]), sigma[torch.from_numpy(near)], (size,) * 3)


def _plain(image: Any) -> Tensor:
    return image.as_tensor() if hasattr(image, "as_tensor") else image
