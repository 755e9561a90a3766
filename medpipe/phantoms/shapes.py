"""Building blocks of the phantoms: signed distances, smooth noise, soft painting.

A shape is a function of world points that returns a signed distance in mm,
negative inside. Shapes are painted one over another on a `Canvas`; the edge of
each is a linear ramp, which is what a voxel of that width would average, so
no supersampling is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Canvas", "Lattice", "capsule", "ellipsoid", "fold_lattice", "lattice", "smax", "smin"]

Array = NDArray[np.float32]
F = np.float32


def ellipsoid(
    p: tuple[Array, Array, Array],
    centre: ArrayLike,
    radii: ArrayLike,
    turn_deg: float = 0.0,
    pitch_deg: float = 0.0,
) -> Array:
    """Return the approximate signed distance in mm to an ellipsoid.

    Parameters
    ----------
    p : three arrays of one shape
        x, y, z in mm.
    centre, radii : length 3
        In mm.
    turn_deg, pitch_deg : float
        Rotation about z (x towards y), then about x (y towards z).

    Notes
    -----
    ``k (k - 1) / |p / r²|`` with ``k = |p / r|``: exact on the surface, first
    order right near it.
    """
    c = np.asarray(centre, F)
    r = np.asarray(radii, F)
    x, y, z = p[0] - c[0], p[1] - c[1], p[2] - c[2]
    if turn_deg:
        cs, sn = F(np.cos(np.radians(turn_deg))), F(np.sin(np.radians(turn_deg)))
        x, y = cs * x + sn * y, cs * y - sn * x
    if pitch_deg:
        cs, sn = F(np.cos(np.radians(pitch_deg))), F(np.sin(np.radians(pitch_deg)))
        y, z = cs * y + sn * z, cs * z - sn * y
    x, y, z = x / r[0], y / r[1], z / r[2]
    k0 = np.sqrt(x * x + y * y + z * z)
    x, y, z = x / r[0], y / r[1], z / r[2]
    k1 = np.sqrt(x * x + y * y + z * z)
    return np.where(k1 > 1e-6, k0 * (k0 - 1) / np.maximum(k1, F(1e-6)), -r.min())


def capsule(
    p: tuple[Array, Array, Array],
    a: ArrayLike,
    b: ArrayLike,
    radius: float,
    end: float | None = None,
) -> Array:
    """Return the signed distance in mm to the segment a-b thickened by `radius` (`end` at b)."""
    a, b = np.asarray(a, F), np.asarray(b, F)
    d = b - a
    x, y, z = p[0] - a[0], p[1] - a[1], p[2] - a[2]
    h = np.clip((x * d[0] + y * d[1] + z * d[2]) / F(d @ d), 0, 1)
    x, y, z = x - h * d[0], y - h * d[1], z - h * d[2]
    r = F(radius) if end is None else F(radius) + h * F(end - radius)
    return np.sqrt(x * x + y * y + z * z) - r


def smin(a: Array, b: Array, k: float) -> Array:
    """Return the union of two signed distances, rounded over `k` mm."""
    h = np.maximum(F(k) - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * F(0.25 / k)


def smax(a: Array, b: Array, k: float) -> Array:
    """Return the intersection of two signed distances, rounded over `k` mm."""
    return -smin(-a, -b, k)


class Lattice:
    """Periodic smooth noise: a cube of samples, linear in between.

    Parameters
    ----------
    values : ndarray, shape (N, N, N)
        One period; `N` a power of two.
    step_mm : float
        Distance between samples; the period is ``N * step_mm``.
    """

    def __init__(self, values: Array, step_mm: float) -> None:
        self.values = np.ascontiguousarray(values, F)
        self.step_mm = step_mm

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """Return the noise at the points x, y, z in mm, broadcast together."""
        n = self.values.shape[0]
        flat = self.values.ravel()
        lo, frac = [], []
        for axis in (x, y, z):
            u = axis * F(1 / self.step_mm)
            floor = np.floor(u)
            frac.append(u - floor)
            lo.append(floor.astype(np.int32) & (n - 1))
        (i, j, k), (fx, fy, fz) = lo, frac
        i, i1 = i * (n * n), ((i + 1) & (n - 1)) * (n * n)
        j, j1 = j * n, ((j + 1) & (n - 1)) * n
        k1 = (k + 1) & (n - 1)

        def row(base: NDArray[np.int32]) -> Array:
            a = flat[base + k]
            return a + fz * (flat[base + k1] - a)

        c00 = row(i + j)
        c0 = c00 + fy * (row(i + j1) - c00)
        c10 = row(i1 + j)
        c1 = c10 + fy * (row(i1 + j1) - c10)
        return c0 + fx * (c1 - c0)


def _band(seed: int, n: int, step_mm: float, wavelength_mm: float, width: float) -> Array:
    """Return periodic Gaussian noise (n, n, n) of unit variance around one wavelength."""
    rng = np.random.default_rng([seed, n, round(wavelength_mm * 10)])
    f = np.fft.fftfreq(n, step_mm).astype(F)
    fz = np.fft.rfftfreq(n, step_mm).astype(F)
    r = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + fz**2) * F(wavelength_mm)
    gain = np.exp(-0.5 * ((r - 1) / width) ** 2)
    gain[0, 0, 0] = 0
    spectrum = np.fft.rfftn(rng.standard_normal((n, n, n), dtype=F)) * gain
    noise = np.fft.irfftn(spectrum).astype(F)
    return noise / noise.std()


@lru_cache(maxsize=16)
def lattice(seed: int, wavelength_mm: float) -> Lattice:
    """Return noise of unit variance around one wavelength; period 8 wavelengths."""
    step = wavelength_mm / 8
    return Lattice(_band(seed, 64, step, wavelength_mm, 0.5), step)


@lru_cache(maxsize=4)
def fold_lattice(seed: int, wavelength_mm: float = 21.0) -> Lattice:
    """Return the signed distance in mm to a random labyrinth of sheets.

    The sheets are the zero set of band-limited noise; the distance is the
    noise over the length of its gradient, clipped to 8 mm. Sheets lie about
    half a wavelength apart. Period 192 mm.
    """
    step = 1.5
    noise = _band(seed, 128, step, wavelength_mm, 0.25)
    slope = np.zeros_like(noise)
    for axis in range(3):
        slope += ((np.roll(noise, -1, axis) - np.roll(noise, 1, axis)) / (2 * step)) ** 2
    return Lattice(np.clip(noise / np.sqrt(slope + 0.02**2), -8, 8), step)


class Canvas:
    """Points and what has been painted on them so far.

    Parameters
    ----------
    x, y, z : arrays of shape (N,)
        Points in mm.
    table : ndarray, shape (labels, M)
        The values each label stands for; painting blends rows of it.
    edge_mm : float
        Width of the ramp at a shape's edge.

    Attributes
    ----------
    label : ndarray of uint8, shape (N,)
    value : ndarray of float32, shape (N, M)
    half : three arrays
        The points mirrored to x >= 0, for paired structures.
    """

    def __init__(self, x: Array, y: Array, z: Array, table: Array, edge_mm: float) -> None:
        self._set(x, y, z)
        self.table = table
        self.edge_mm = edge_mm
        self.label = np.zeros(x.shape, np.uint8)
        self.value = np.broadcast_to(table[0], (*x.shape, table.shape[1])).copy()
        low = [float(a.min()) for a in self.p]
        high = [float(a.max()) for a in self.p]
        self.middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        self.radius = math.dist(low, high) / 2

    def _set(self, x: Array, y: Array, z: Array) -> None:
        self.p = (x, y, z)
        self.half = (np.abs(x), y, z)

    def far(self, centre: Sequence[float], reach_mm: float) -> bool:
        """Return whether no point lies within `reach_mm` of `centre` or its mirror at x = 0."""
        x, y, z = self.middle
        near = math.dist((abs(x), y, z), (abs(centre[0]), centre[1], centre[2]))
        return near > reach_mm + self.radius + 2 * self.edge_mm + 1

    def ellipsoid(
        self,
        label: int,
        centre: Sequence[float],
        radii: Sequence[float],
        turn_deg: float = 0.0,
        pitch_deg: float = 0.0,
    ) -> None:
        """Paint an ellipsoid and its mirror image at x = 0."""
        if not self.far(centre, max(radii)):
            self.paint(label, ellipsoid(self.half, centre, radii, turn_deg, pitch_deg))

    def capsule(self, label: int, a: Sequence[float], b: Sequence[float], radius: float) -> None:
        """Paint a thick segment and its mirror image at x = 0."""
        middle = [(u + v) / 2 for u, v in zip(a, b, strict=True)]
        if not self.far(middle, math.dist(a, b) / 2 + radius):
            self.paint(label, capsule(self.half, a, b, radius))

    def paint(self, label: int, distance: Array) -> None:
        """Paint `label` where `distance` (mm, shape (N,)) is negative."""
        cover = np.clip(F(0.5) - distance * F(1 / self.edge_mm), 0, 1)
        at = np.flatnonzero(cover)
        if not at.size:
            return
        self.value[at] += cover[at, None] * (self.table[label] - self.value[at])
        self.label[distance < 0] = label

    def part(self, at: NDArray[np.intp]) -> Canvas:
        """Return a canvas of the points `at` alone, to be put back with `put`."""
        out = copy(self)
        out._set(*(a[at] for a in self.p))
        out.label, out.value = self.label[at], self.value[at]
        return out

    def put(self, at: NDArray[np.intp], part: Canvas) -> None:
        """Put back what `part` painted."""
        self.label[at], self.value[at] = part.label, part.value
