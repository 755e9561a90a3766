"""A tubular structure as lists of voxels on the host, ready for its paths to be traced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.geometry import to_mm
from medpipe.types import Affine

__all__ = ["Lumen", "Paths"]

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Lumen:
    """The voxels of one structure, by ascending linear index of its box.

    Parameters
    ----------
    value : int
        Label value.
    voxels : int32 array (N, 3)
        Indices in the box.
    neighbours : int32 array (N, 26)
        Numbers of the voxels around each, -1 for none.
    steps_mm : float64 array (26,)
        Lengths to the neighbours.
    depth_mm : float64 array (N,)
        Distance to the nearest voxel that is not of the structure.
    component : int32 array (N,)
        Number of the 26-connected component.
    origin : int64 array (3,)
        First voxel of the box in the volume.
    affine : float64 array (4, 4)
        Index in the box to RAS+ mm.
    shape : (int, int, int)
        Of the box.
    """

    value: int
    voxels: Ints
    neighbours: Ints
    steps_mm: Floats
    depth_mm: Floats
    component: Ints
    origin: NDArray[np.int64]
    affine: Affine
    shape: tuple[int, int, int]

    @property
    def voxel_mm(self) -> float:
        """Cube root of the volume of a voxel in mm."""
        return float(np.cbrt(abs(np.linalg.det(self.affine[:3, :3]))))

    def positions_mm(self, members: ArrayLike) -> Floats:
        """Return the centres of voxels in RAS+ mm, (..., 3)."""
        return to_mm(self.affine, self.voxels[np.asarray(members)])

    def radius_mm(self, members: NDArray[np.int64]) -> Floats:
        """Return the radius of the largest ball inside around voxels, (M,).

        The centre of that ball is seldom the centre of a voxel, so the largest depth of
        the voxel and of its neighbours is taken: on tubes of one to nine voxels this is
        right to a tenth of a voxel, where the depth alone is up to 0.2 voxels too small.
        """
        near = self.neighbours[members]
        depth = np.where(near >= 0, self.depth_mm[np.maximum(near, 0)], 0.0)
        own: Floats = np.maximum(self.depth_mm[members], depth.max(axis=1, initial=0.0))
        return own

    def find(self, index: ArrayLike) -> NDArray[np.int64]:
        """Return the numbers of the voxels at indices (..., 3) of the box, -1 for none."""
        where = np.asarray(index, np.int64)
        inside = ((where >= 0) & (where < np.array(self.shape))).all(axis=-1)
        flat = np.ravel_multi_index(tuple(np.moveaxis(where, -1, 0)), self.shape, mode="clip")
        at = np.searchsorted(self._linear, flat)
        found = np.minimum(at, len(self._linear) - 1)
        return np.where(inside & (self._linear[found] == flat), found, -1)

    @cached_property
    def marks(self) -> tuple[Ints, Ints]:
        """Two lists of -1, (N,), for functions that write into them and put -1 back."""
        return np.full(len(self.voxels), -1, np.int32), np.full(len(self.voxels), -1, np.int32)

    @cached_property
    def _linear(self) -> NDArray[np.int64]:
        i, j, k = self.voxels.T.astype(np.int64)
        return (i * self.shape[1] + j) * self.shape[2] + k


@dataclass(frozen=True, eq=False)
class Paths:
    """Cheapest paths from the roots through a `Lumen`.

    Parameters
    ----------
    predecessor : int32 array (N,)
        Next voxel towards the root, -1 at roots and where no path leads.
    source : int32 array (N,)
        Number of the root, -1 where no path leads.
    cost : float64 array (N,)
        Per mm, of each voxel.
    total : float64 array (N,)
        Cost from the root.
    """

    predecessor: Ints
    source: Ints
    cost: Floats
    total: Floats
