"""Deformations of a whole head and of what lies inside the skull.

Pressing on the midline is a velocity that is integrated like any other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medpipe.phantoms.anatomy import endocranium
from medpipe.phantoms.diffeomorphism import NodeGrid, Velocity, Warp, random_velocity
from medpipe.phantoms.shapes import Array, F
from medpipe.types import Affine

__all__ = ["head_warp", "random_warp", "template_points"]

STEP_MM = 8.0
LOW_MM = (-120.0, -138.0, -120.0)
NODES = (31, 36, 32)

SEPTUM_MM = (0.0, 14.0, 12.0)
"""The septum pellucidum in the template frame: where a midline shift is measured."""
_BULGE_MM = (27.0, 38.0, 26.0)
"""Spread of the shift around the septum."""
_ANCHOR_MM = 16.0
"""Depth below the skull at which tissue may move freely."""


GRID = NodeGrid(LOW_MM, STEP_MM, NODES)


def integrate(velocity: Array) -> Warp:
    """Return the flow of a stationary velocity (3, I, J, K) over unit time."""
    return Velocity(velocity, GRID).warp()


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
    rng = np.random.default_rng(list(seed))
    return random_velocity(rng, GRID, amplitude_mm, scale_mm).warp()


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
    nodes = GRID.points_mm
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
