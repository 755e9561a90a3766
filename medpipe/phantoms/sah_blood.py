"""Where the blood of a subarachnoid haemorrhage lies.

Blood is painted as the share of each voxel's fluid (or brain) that it takes
the place of. A layer has a thickness: in a space narrower than that the blood
fills it, in a wider one it stains a part of the fluid. From the source it
spreads along the cisterns first, then the fissures, then the sulci, as far as
its volume reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from medpipe.phantoms.shapes import Array, F, Lattice, capsule, ellipsoid, smin

__all__ = [
    "SOURCES",
    "Blood",
    "cistern_mm",
    "clot_thickness_mm",
    "compartments_ml",
    "fissure_mm",
    "layer_mm",
    "paint_parenchyma",
    "paint_subarachnoid",
    "paint_ventricles",
    "spread_mm",
]

Points = tuple[Array, Array, Array]

SOURCES: Mapping[str, tuple[float, float, float]] = {
    "acom": (0.0, 20.0, -16.0),
    "ica": (10.0, 8.0, -19.0),
    "mca": (30.0, 14.0, -15.0),
    "basilar": (0.0, -8.0, -21.0),
}
"""Aneurysms by artery in the template frame; paired ones on the right."""

_HAEMATOMAS: Mapping[str, tuple[float, float, float]] = {
    "acom": (10.0, 38.0, -4.0),
    "ica": (36.0, -6.0, -16.0),
    "mca": (42.0, 2.0, -4.0),
    "basilar": (24.0, 0.0, 6.0),
}
"""Where the brain next to the aneurysm bleeds."""

BALL_MM = 2.5
"""Standard deviation of the Gaussian that tells how thick a layer is."""
SOFT_MM = 3.0
LEAST_ML = 0.5
"""The thickness of a clot is that exceeded by this much of it."""


@dataclass(slots=True)
class Blood:
    """Shares of fluid and brain replaced by blood on one grid, each (I, J, K) in 0..1.

    Attributes
    ----------
    subarachnoid, ventricular : ndarray
        Share of the fluid outside and inside the ventricles.
    parenchymal : ndarray
        Share of the brain.
    oedema : ndarray
        Strength of the swelling around the latter.
    """

    subarachnoid: Array
    ventricular: Array
    parenchymal: Array
    oedema: Array


def layer_mm(share: Array, spacing_mm: tuple[float, float, float]) -> Array:
    """Return the thickness of the layer that a share of voxels, shape (I, J, K), makes up.

    A slab of thickness t through the middle of a Gaussian of standard
    deviation s holds erf(t / (2 sqrt(2) s)) of it: the inverse of that, in
    mm, with s = 2.5 mm. It saturates at 16 mm.
    """
    sigma = [BALL_MM / s for s in spacing_mm]
    mean = ndimage.gaussian_filter(share, sigma, mode="constant", truncate=3.0)
    held = special.erfinv(np.clip(mean, 0, 0.999))
    return (2 * np.sqrt(2) * BALL_MM * held).astype(F)


def clot_thickness_mm(blood: Array, spacing_mm: tuple[float, float, float]) -> float:
    """Return how thick the thickest half millilitre of blood is.

    Parameters
    ----------
    blood : ndarray, shape (I, J, K)
        Share of each voxel that is blood outside brain and ventricles.
    spacing_mm : tuple of float
        Voxel size; at most about 2.5 mm.
    """
    thickness = layer_mm(blood, spacing_mm).ravel()
    order = np.argsort(-thickness, kind="stable")
    ml = np.cumsum(blood.ravel()[order], dtype=float) * float(np.prod(spacing_mm)) / 1000
    if ml[-1] < 0.05:
        return 0.0
    return float(thickness[order[np.searchsorted(ml, min(LEAST_ML, 0.5 * ml[-1]))]])


def cistern_mm(q: Points) -> Array:
    """Return the signed distance to the basal cisterns in the template frame."""
    x, y, z = q
    h = (np.abs(x), y, z)
    out = smin(
        ellipsoid(h, (0, 10, -21), (13, 10, 7)),  # suprasellar
        capsule(h, (8, 13, -19), (30, 19, -15), 3.0),  # stem of the Sylvian fissure
        4.0,
    )
    out = smin(out, ellipsoid(h, (0, -7, -21), (7, 10, 7)), 3.0)  # interpeduncular
    out = np.minimum(out, capsule(h, (0, -8, -28), (0, -18, -52), 5.0))  # prepontine
    ring = np.abs(ellipsoid((h[0], y, np.zeros_like(z)), (0, -22, 0), (21, 18, 1e3))) - F(3.0)
    ring = np.maximum(np.maximum(ring, np.abs(z + 12) - 10), y + 8)
    out = np.minimum(out, ring)  # ambient
    return np.minimum(out, ellipsoid(h, (0, -43, -3), (13, 6, 8)))  # quadrigeminal


def fissure_mm(q: Points) -> Array:
    """Return the signed distance to the Sylvian and the front interhemispheric fissures."""
    h = (np.abs(q[0]), q[1], q[2])
    out = capsule(h, (30, 19, -15), (40, 8, -2), 4.0)
    out = np.minimum(out, capsule(h, (40, 8, -2), (44, -24, 12), 4.5))
    out = np.minimum(out, capsule(h, (0, 26, -14), (0, 48, 0), 4.0))
    return np.minimum(out, capsule(h, (0, 48, 0), (0, 44, 30), 4.0))


def spread_mm(q: Points, artery: str, side: float, lumps: Lattice) -> Array:
    """Return the field along whose levels the blood spreads, in mm.

    Parameters
    ----------
    q : three arrays
        Template frame.
    artery : str
        Key of `SOURCES`.
    side : {1.0, -1.0}
        Right or left, for paired arteries.
    lumps : Lattice
        Unit noise.
    """
    x, y, z = (a.astype(F) for a in q)
    at = SOURCES[artery]
    away = np.sqrt((x - F(side * at[0])) ** 2 + (y - F(at[1])) ** 2 + (z - F(at[2])) ** 2)
    beside = np.maximum(cistern_mm((x, y, z)), 0)
    fissure = np.maximum(fissure_mm((x, y, z)), 0) + F(4)
    order = F(0.36) * away + F(0.8) * np.minimum(beside, fissure) + F(4) * lumps(x, y, z)
    # Little of it runs down the spinal canal of a lying patient.
    return order + F(3) * np.maximum(-58 - z, 0)


def ramp(level: float, order: Array, soft_mm: float = SOFT_MM) -> Array:
    """Return 1 well below a level of `order`, 0 above it, linear over `soft_mm`."""
    return np.clip((F(level) - order) / F(soft_mm) + F(0.5), 0, 1)


def solve_level(order: Array, ml: Array, wanted_ml: float, soft_mm: float = SOFT_MM) -> float:
    """Return the level of `order` below which lie `wanted_ml`, or all if there is less.

    Parameters
    ----------
    order : ndarray
        Field in mm.
    ml : ndarray, same shape
        What each voxel can take up.
    """
    at = np.flatnonzero(ml.ravel() > 0)
    if not at.size:
        return -1e3
    o, m = order.ravel()[at], ml.ravel()[at].astype(np.float64)
    low, high = float(o.min()) - soft_mm, float(o.max()) + soft_mm
    for _ in range(32):
        middle = (low + high) / 2
        if float(ramp(middle, o, soft_mm) @ m) < wanted_ml:
            low = middle
        else:
            high = middle
    return high


def paint_subarachnoid(
    order: Array,
    fluid: Array,
    volume_ml: float,
    thickness_mm: float,
    spacing_mm: tuple[float, float, float],
) -> Array:
    """Return the share of the fluid that is blood, for a volume and a thickness of layer.

    Parameters
    ----------
    order : ndarray, shape (I, J, K)
        `spread_mm`.
    fluid : ndarray, shape (I, J, K)
        Share of each voxel that is fluid outside the ventricles.
    volume_ml : float
        Volume to reach; less where the fluid does not hold it.
    thickness_mm : float
        Thickness at the source; a layer over 1 mm thins out to a third
        where it ends.
    """
    if volume_ml <= 0:
        return np.zeros_like(fluid)
    width = np.maximum(layer_mm(fluid, spacing_mm), F(0.3))
    ml = fluid * F(np.prod(spacing_mm) / 1000)
    for _ in range(6):
        layer = np.full_like(fluid, thickness_mm)
        if thickness_mm > 1:
            layer *= F(1) - F(2 / 3) * np.clip((order - F(10)) / F(35), 0, 1)
        full = np.clip(layer / width, 0, 1)
        level = solve_level(order, full * ml, volume_ml)
        share = full * ramp(level, order)
        if float((share * ml).sum(dtype=float)) > 0.99 * volume_ml or thickness_mm <= 1:
            break
        thickness_mm *= 1.5  # all that fluid is not enough for a layer so thin
    return np.asarray(share, F)


def paint_ventricles(height_mm: Array, fluid: Array, volume_ml: float, voxel_ml: float) -> Array:
    """Return the share of ventricular fluid that is blood: settled, with a level.

    Parameters
    ----------
    height_mm : ndarray, shape (I, J, K)
        Height above the table.
    fluid : ndarray, shape (I, J, K)
        Share of each voxel that is ventricle.
    """
    if volume_ml <= 0:
        return np.zeros_like(fluid)
    ml = fluid * F(voxel_ml)
    return ramp(solve_level(height_mm, ml, volume_ml, 2.0), height_mm, 2.0)


def paint_parenchyma(
    q: Points,
    brain: Array,
    volume_ml: float,
    voxel_ml: float,
    artery: str,
    side: float,
    lumps: Lattice,
) -> tuple[Array, Array]:
    """Return the share of the brain that is blood, and the oedema around it.

    A lobulated ellipsoid beside the aneurysm, with a rim of some mm.
    """
    if volume_ml <= 0:
        return np.zeros_like(brain), np.zeros_like(brain)
    x, y, z = (a.astype(F) for a in q)
    cx, cy, cz = _HAEMATOMAS[artery]
    r = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    order = ellipsoid((x, y, z), (side * cx, cy, cz), (0.85 * r, 1.25 * r, 0.95 * r))
    order = order + F(0.09 * r) * lumps(F(1.7) * y, F(1.7) * z, F(1.7) * x)
    level = solve_level(order, brain * F(voxel_ml), volume_ml, 1.5)
    share = ramp(level, order, 1.5)
    rim = F(4) + F(0.15 * r)
    oedema = np.clip((F(level) + rim - order) / rim, 0, 1) * (1 - share)
    return share, oedema * brain


def compartments_ml(
    q: Points, fluid: Array, ventricle: Array, brain: Array, blood: Blood, voxel_ml: float
) -> dict[str, float]:
    """Return millilitres of blood in basal cisterns, fissures and sulci, ventricles and brain."""
    basal = cistern_mm(q) < 3
    outside: NDArray[np.float32] = fluid * blood.subarachnoid
    amounts = {
        "cisterns": outside[basal],
        "sulci": outside[~basal],
        "ventricles": ventricle * blood.ventricular,
        "parenchyma": brain * blood.parenchymal,
    }
    return {name: float(a.sum(dtype=float) * voxel_ml) for name, a in amounts.items()}
