"""Smooth, invertible deformations that are known everywhere.

A stationary velocity lives on a coarse lattice. Its flow is a map without folds: as a
`Warp` by scaling and squaring (Arsigny 2006, doi:10.1007/11866565_113), or for single
points by Runge-Kutta steps that carry the volume change along.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medpipe.jit import compiled
from medpipe.phantoms.shapes import Array, F

__all__ = ["NodeGrid", "Velocity", "Warp", "random_velocity"]

SQUARINGS = 5


@compiled
def _trilinear(
    field: NDArray[np.floating], at: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Write a field (C, I, J, K) at indices (3, N) to (N, C): linear, constant beyond."""
    last_i, last_j, last_k = field.shape[1] - 1, field.shape[2] - 1, field.shape[3] - 1
    for n in range(at.shape[1]):
        x = min(max(at[0, n], 0.0), float(last_i))
        y = min(max(at[1, n], 0.0), float(last_j))
        z = min(max(at[2, n], 0.0), float(last_k))
        i, j, k = int(x), int(y), int(z)
        u, v, w = x - i, y - j, z - k
        i1, j1, k1 = min(i + 1, last_i), min(j + 1, last_j), min(k + 1, last_k)
        for c in range(field.shape[0]):
            f = field[c]
            low = (1 - v) * ((1 - w) * f[i, j, k] + w * f[i, j, k1]) + v * (
                (1 - w) * f[i, j1, k] + w * f[i, j1, k1]
            )
            high = (1 - v) * ((1 - w) * f[i1, j, k] + w * f[i1, j, k1]) + v * (
                (1 - w) * f[i1, j1, k] + w * f[i1, j1, k1]
            )
            out[n, c] = (1 - u) * low + u * high


def _linear(field: Array, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a field (C, I, J, K) at indices (3, ...), shape (..., C)."""
    flat = np.ascontiguousarray(at.reshape(3, -1))
    out = np.empty((flat.shape[1], len(field)))
    _trilinear(np.ascontiguousarray(field), flat, out)
    return out.reshape(*at.shape[1:], len(field))


@dataclass(frozen=True)
class NodeGrid:
    """A lattice of nodes in world space.

    Parameters
    ----------
    low_mm : tuple of float
        RAS mm of the first node.
    step_mm : float
        Distance of neighbours along each axis.
    nodes : tuple of int
        How many along each axis.
    """

    low_mm: tuple[float, float, float]
    step_mm: float
    nodes: tuple[int, int, int]

    @cached_property
    def points_mm(self) -> NDArray[np.float64]:
        """The nodes, RAS mm, shape (I, J, K, 3)."""
        axes = [
            low + self.step_mm * np.arange(n)
            for low, n in zip(self.low_mm, self.nodes, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1)

    def index(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return where points (..., 3) lie among the nodes, shape (3, ...)."""
        points = np.asarray(points_mm, np.float64)
        return np.moveaxis((points - np.array(self.low_mm)) / self.step_mm, -1, 0)

    def linear(self, field: Array, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return a field (C, I, J, K) at points (..., 3): linear, constant beyond, (..., C)."""
        return _linear(field, self.index(points_mm))

    def gradient(self, field: Array, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the derivative of `linear` by x, y, z per mm, shape (..., C, 3).

        Within a cell it is exact; beyond the lattice the field is constant.
        """
        at = self.index(points_mm)
        columns = []
        for axis in range(3):
            inside = (at[axis] >= 0) & (at[axis] <= self.nodes[axis] - 1)
            slopes = np.diff(field, axis=axis + 1) / F(self.step_mm)
            cell = at.copy()
            # Along the axis the slope is that of the cell; across it, linear like the field.
            cell[axis] = np.clip(np.floor(at[axis]), 0, self.nodes[axis] - 2)
            columns.append(_linear(slopes, cell) * inside[..., None])
        return np.stack(columns, -1)


@dataclass(frozen=True, eq=False)
class Warp:
    """A map of RAS mm to RAS mm: where in the undeformed head a point of the image lies.

    Attributes
    ----------
    displacement : ndarray of float32, shape (3, I, J, K)
        In mm, at the nodes of the lattice; linear in between, constant beyond.
    grid : NodeGrid
    """

    displacement: Array
    grid: NodeGrid

    def __call__(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the mapped points, shape (..., 3) → (..., 3)."""
        points = np.asarray(points_mm, np.float64)
        return points + _linear(self.displacement, self.grid.index(points)).astype(
            self.displacement.dtype
        )

    def after(self, first: Warp) -> Warp:
        """Return the map that applies `first` and then this one, on the lattice of `first`."""
        nodes = first.grid.points_mm
        return Warp(np.moveaxis(self(first(nodes)) - nodes, -1, 0).astype(F), first.grid)

    def inverse(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the points that this map takes to `points_mm`, by fixed-point iteration."""
        wanted = np.asarray(points_mm, np.float64)
        out = wanted.copy()
        for _ in range(40):
            out = out + wanted - self(out)
        return out

    def determinant(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the determinant of the map's derivative at points, shape (..., 3) → (...)."""
        slope = self.grid.gradient(self.displacement, points_mm) + np.eye(3)
        rows = np.moveaxis(slope, -2, 0)
        return (rows[0] * np.cross(rows[1], rows[2])).sum(-1)

    def jacobian(self) -> NDArray[np.float64]:
        """Return the determinant of the map's derivative in each cell, at each corner of it.

        Within a cell the map is trilinear; its determinant at the corners
        comes from the differences along the three edges that meet there.
        """
        world = np.moveaxis(self.grid.points_mm, -1, 0) + self.displacement
        sides = [np.diff(world, axis=a + 1) / self.grid.step_mm for a in range(3)]
        out = []
        for i, j, k in np.ndindex(2, 2, 2):
            rows = [
                sides[0][:, :, j : _end(j), k : _end(k)],
                sides[1][:, i : _end(i), :, k : _end(k)],
                sides[2][:, i : _end(i), j : _end(j), :],
            ]
            out.append((rows[0] * np.cross(rows[1], rows[2], axis=0)).sum(0))
        return np.stack(out)


def _end(start: int) -> int | None:
    return None if start else -1


@dataclass(frozen=True, eq=False)
class Velocity:
    """A stationary velocity: mm per unit of time at the nodes of a lattice.

    Attributes
    ----------
    field : ndarray of float32, shape (3, I, J, K)
    grid : NodeGrid
    """

    field: Array
    grid: NodeGrid

    def warp(self, time: float = 1.0) -> Warp:
        """Return its flow over `time`, by scaling and squaring; a negative time goes back."""
        small = self.field.astype(F) * F(time) / F(2**SQUARINGS)
        flow = Warp(small, self.grid)
        for _ in range(SQUARINGS):
            flow = flow.after(flow)
        return flow

    def follow(
        self, points_mm: ArrayLike, times: ArrayLike, *, step: float = 0.1
    ) -> NDArray[np.float64]:
        """Return by which factor volume around each point has grown after each time.

        Points are followed by the classical Runge-Kutta method; the logarithm of the
        Jacobian grows by the divergence that a point meets.

        Parameters
        ----------
        points_mm : array_like, shape (N, 3)
        times : array_like, shape (T,)
            Ascending from 0 or descending from 0.
        step : float
            Longest step of the integration.

        Returns
        -------
        ndarray, shape (T, N)
        """
        points = np.asarray(points_mm, float)
        state = np.concatenate([points, np.zeros((len(points), 1))], 1)
        now, out = 0.0, []
        for time in np.asarray(times, float):
            pieces = max(1, int(np.ceil(abs(time - now) / step)))
            h = (time - now) / pieces
            for _ in range(pieces if h else 0):
                a = self._rate(state)
                b = self._rate(state + h / 2 * a)
                c = self._rate(state + h / 2 * b)
                d = self._rate(state + h * c)
                state = state + h / 6 * (a + 2 * b + 2 * c + d)
            now = float(time)
            out.append(np.exp(state[:, 3]))
        return np.stack(out)

    def plus(self, other: Velocity, mine: float = 1.0, its: float = 1.0) -> Velocity:
        """Return the weighted sum of this velocity and another on the same lattice.

        Divergences add like velocities: neither is differentiated again.
        """
        whole = F(mine) * self._with_divergence + F(its) * other._with_divergence
        made = Velocity(whole[:3], self.grid)
        made.__dict__["_with_divergence"] = whole  # where cached_property looks
        return made

    @cached_property
    def _with_divergence(self) -> Array:
        """The velocity and its divergence at the nodes."""
        slopes = [np.gradient(part, self.grid.step_mm, axis=a) for a, part in enumerate(self.field)]
        return np.concatenate([self.field, sum(slopes)[None]]).astype(F)

    def _rate(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.grid.linear(self._with_divergence, state[:, :3])


def random_velocity(
    rng: np.random.Generator, grid: NodeGrid, amplitude_mm: float, scale_mm: float
) -> Velocity:
    """Return a smooth random velocity.

    Parameters
    ----------
    rng : numpy Generator
        Chooses it.
    grid : NodeGrid
    amplitude_mm : float
        Standard deviation of each component.
    scale_mm : float
        Standard deviation of the Gaussian that smooths it.
    """
    noise = rng.standard_normal((3, *grid.nodes), dtype=F)
    for part in noise:
        part[:] = ndimage.gaussian_filter(part, scale_mm / grid.step_mm, mode="wrap")
        part *= F(amplitude_mm) / part.std()
    return Velocity(noise, grid)
