"""Smooth, invertible deformations of a head that are known everywhere.

A stationary velocity is drawn on a coarse lattice and integrated by scaling
and squaring (Arsigny 2006, doi:10.1007/11866565_113), so that the map has no
folds. Pressing on the midline is a velocity too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medpipe.phantoms.anatomy import endocranium
from medpipe.phantoms.shapes import Array, F
from medpipe.types import Affine

__all__ = ["Warp", "head_warp", "random_warp", "template_points"]

STEP_MM = 8.0
LOW_MM = (-120.0, -138.0, -120.0)
NODES = (31, 36, 32)
SQUARINGS = 5

SEPTUM_MM = (0.0, 14.0, 12.0)
"""The septum pellucidum in the template frame: where a midline shift is measured."""
_BULGE_MM = (27.0, 38.0, 26.0)
"""Spread of the shift around the septum."""
_ANCHOR_MM = 16.0
"""Depth below the skull at which tissue may move freely."""


@dataclass(frozen=True, eq=False, slots=True)
class Warp:
    """A map of RAS mm to RAS mm: where in the undeformed head a point of the image lies.

    Attributes
    ----------
    displacement : ndarray of float32, shape (3, I, J, K)
        In mm, at the nodes of the lattice; linear in between, constant beyond.
    """

    displacement: Array

    def __call__(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the mapped points, shape (..., 3) → (..., 3)."""
        points = np.asarray(points_mm, np.float64)
        at = np.moveaxis((points - np.array(LOW_MM)) / STEP_MM, -1, 0)
        moved = [ndimage.map_coordinates(d, at, order=1, mode="nearest") for d in self.displacement]
        return points + np.stack(moved, -1)

    def after(self, first: Warp) -> Warp:
        """Return the map that applies `first` and then this one."""
        nodes = lattice_mm()
        return Warp(np.moveaxis(self(first(nodes)) - nodes, -1, 0).astype(F))

    def inverse(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return the points that this map takes to `points_mm`, by fixed-point iteration."""
        wanted = np.asarray(points_mm, np.float64)
        out = wanted.copy()
        for _ in range(40):
            out = out + wanted - self(out)
        return out

    def jacobian(self) -> NDArray[np.float64]:
        """Return the determinant of the map's derivative in each cell, at each corner of it.

        Within a cell the map is trilinear; its determinant at the corners
        comes from the differences along the three edges that meet there.
        """
        world = np.moveaxis(lattice_mm(), -1, 0) + self.displacement
        sides = [np.diff(world, axis=a + 1) / STEP_MM for a in range(3)]
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


def lattice_mm() -> NDArray[np.float64]:
    """Return the nodes of the lattice, RAS mm, shape (I, J, K, 3)."""
    axes = [low + STEP_MM * np.arange(n) for low, n in zip(LOW_MM, NODES, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def integrate(velocity: Array) -> Warp:
    """Return the flow of a stationary velocity (3, I, J, K) over unit time."""
    flow = Warp(velocity.astype(F) / F(2**SQUARINGS))
    for _ in range(SQUARINGS):
        flow = flow.after(flow)
    return flow


def random_warp(seed: tuple[int, ...], amplitude_mm: float = 1.6, scale_mm: float = 26.0) -> Warp:
    """Return a smooth random map.

    Parameters
    ----------
    seed : tuple of int
        Chooses the map.
    amplitude_mm : float
        Standard deviation of each component of the velocity.
    scale_mm : float
        Standard deviation of the Gaussian that smooths it.
    """
    noise = np.random.default_rng(list(seed)).standard_normal((3, *NODES), dtype=F)
    for part in noise:
        part[:] = ndimage.gaussian_filter(part, scale_mm / STEP_MM, mode="wrap")
        part *= F(amplitude_mm) / part.std()
    return integrate(noise)


def _smooth(depth: Array) -> Array:
    u = np.clip(depth / F(_ANCHOR_MM), 0, 1)
    return u * u * (3 - 2 * u)


def head_warp(
    shape: Warp, to_template: Affine, shift_mm: float, ventricles: float = 1.0
) -> tuple[Warp, float]:
    """Return a warp of the head's shape followed by what happens inside the skull.

    Parameters
    ----------
    shape : Warp
        Deforms the whole head.
    to_template : ndarray, shape (4, 4)
        World RAS mm to the template frame of `HeadAnatomy`.
    shift_mm : float
        How far the septum pellucidum moves, to the right if positive. The
        skull stays.
    ventricles : float
        Factor by which the middle of the brain is spread around the lateral
        ventricles, for heads whose ventricles cannot be drawn larger.

    Returns
    -------
    warp : Warp
    shift_mm : float
        How far the septum lies in the image from where it would lie unpressed.
    """
    if not shift_mm and ventricles == 1.0:
        return shape, 0.0
    nodes = lattice_mm()
    x, y, z = template_points(to_template, nodes)
    depth = -endocranium((x.ravel(), y.ravel(), z.ravel())).reshape(x.shape)
    parts = zip((x, y, z), SEPTUM_MM, _BULGE_MM, strict=True)
    bump = _smooth(depth) * np.exp(-sum(((a - F(c)) / F(s)) ** 2 for a, c, s in parts) / 2)
    world = np.linalg.inv(to_template)
    right = world[:3, 0] / np.linalg.norm(world[:3, 0])
    septum = (world[:3, :3] @ SEPTUM_MM + world[:3, 3])[None]
    # A velocity of log(f) times the offset spreads by f in unit time.
    offset = np.moveaxis(nodes - septum, -1, 0) * np.log(ventricles)
    spread = integrate((-bump * offset).astype(F)) if ventricles != 1.0 else None

    def inside(amplitude: float) -> Warp:
        return integrate((-amplitude * bump * right[:, None, None, None]).astype(F))

    unpressed = shape.inverse(septum)

    def shifted(warp: Warp) -> float:
        return float((shape.inverse(warp.inverse(septum)) - unpressed)[0] @ right)

    amplitude = shift_mm
    press = inside(amplitude)
    for _ in range(2 if shift_mm else 0):
        amplitude *= shift_mm / shifted(press)
        press = inside(amplitude)
    within = press if spread is None else spread.after(press)
    return within.after(shape), shifted(press)


def template_points(
    to_template: Affine, points_mm: NDArray[np.float64]
) -> tuple[Array, Array, Array]:
    """Return x, y, z of world points (..., 3) in the template frame, each (...)."""
    q = (points_mm @ to_template[:3, :3].T + to_template[:3, 3]).astype(F)
    return q[..., 0], q[..., 1], q[..., 2]
