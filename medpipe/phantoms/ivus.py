"""Simulated intravascular ultrasound with known lumen and media contours.

Frames are made as the catheter sees them, in angle and depth, and then drawn on a
Cartesian grid. The echo of a depth profile is integrated in closed form over each
depth sample, so the contours are true below one sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from medpipe.errors import UsageError
from medpipe.phantoms.retina_oct import oct_profile
from medpipe.types import Volume

__all__ = ["IVUSPhantom", "contour_radius", "ivus"]

F64 = NDArray[np.float64]

ANGLES = 512
DEPTH_STEP_MM = 0.01
CATHETER_MM = 0.5
MEDIA_MM = 0.12
# Echo power and attenuation (1/mm) of blood, intima and plaque, media, adventitia.
POWER = (0.012, 0.16, 0.010, 0.9)
ATTENUATION = (0.0, 0.06, 0.06, 0.35)


@dataclass(slots=True)
class IVUSPhantom:
    """Simulated frames and the truth behind them.

    Attributes
    ----------
    volume : Volume
        Image (I, J, frames) with values from 0 to 255, log-compressed.
    lumen_mm, media_mm : ndarray, shape (frames, angles)
        Distance of the inner wall and of the external elastic membrane from the
        catheter, at equal angles from the first towards the second image axis.
    shadow : ndarray of bool, shape (frames, angles)
        Where the guide wire or calcium hides the media.
    center_mm : ndarray, shape (frames, 3)
        The catheter in RAS+ mm.
    facts : dict
        JSON facts.
    """

    volume: Volume
    lumen_mm: F64
    media_mm: F64
    shadow: NDArray[np.bool_]
    center_mm: F64
    facts: dict[str, Any] = field(default_factory=dict)


def contour_radius(points_mm: ArrayLike, angles: int = ANGLES) -> F64:
    """Return the radius of a closed contour around the origin at equal angles.

    Parameters
    ----------
    points_mm : array, shape (P, 2)
        Points in order, in mm relative to the catheter; closed or not.
    angles : int
        Number of angles from 0 to 2π.

    Raises
    ------
    UsageError
        If a ray from the origin meets the contour more than once or never.
    """
    points = np.asarray(points_mm, float)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise UsageError("a contour is unusable", expected="finite points (P, 2) in mm")
    if np.allclose(points[0], points[-1]):
        points = points[:-1]
    turn = np.unwrap(np.arctan2(points[:, 1], points[:, 0]))
    if turn[-1] < turn[0]:
        points, turn = points[::-1], turn[::-1]
    closed = np.append(turn, turn[0] + 2 * np.pi)
    if len(points) < 8 or not (np.diff(closed) > 0).all() or abs(turn[-1] - turn[0]) > 2 * np.pi:
        raise UsageError(
            "a contour cannot be seen whole from the catheter",
            hint="each ray from the catheter must meet it once",
        )
    radius = np.hypot(points[:, 0], points[:, 1])
    at = np.arange(angles) * (2 * np.pi / angles)
    at = turn[0] + (at - turn[0]) % (2 * np.pi)
    return np.interp(at, closed, np.append(radius, radius[0]))


def ivus(
    seed: int,
    *,
    frames: int = 8,
    lumen_mm: ArrayLike | None = None,
    media_mm: ArrayLike | None = None,
    size: int = 400,
    spacing_mm: float = 0.025,
    frame_mm: float = 0.5,
    guide_wire: bool = True,
    calcium: bool = True,
    dynamic_range_db: float = 50.0,
) -> IVUSPhantom:
    """Return simulated frames of a pullback.

    Parameters
    ----------
    seed : int
        Chooses what is drawn and the speckle.
    frames : int
        Number of frames, unless contours are given.
    lumen_mm : array, shape (frames, P, 2), optional
        Contours in mm relative to the catheter; default smooth random ones.
    media_mm : array, shape (frames, P, 2), optional
        Contours of the external elastic membrane; default the lumen plus an eccentric
        plaque.
    size : int
        Pixels along each side; the catheter is in the middle.
    spacing_mm, frame_mm : float
        Pixel spacing and distance of the frames.
    guide_wire, calcium : bool
        Whether a guide wire and a calcified arc shadow the wall.
    dynamic_range_db : float
        Range of the logarithmic compression.

    Raises
    ------
    UsageError
        If the contours cross, reach the catheter or leave the image.
    """
    if min(size, frames) < 1 or min(spacing_mm, frame_mm, dynamic_range_db) <= 0:
        raise UsageError("a parameter of the frames is not positive")
    shapes, objects, speckle = (np.random.default_rng([seed, n]) for n in range(3))
    lumen = _radii(lumen_mm) if lumen_mm is not None else _lumen(shapes, frames)
    media = _radii(media_mm) if media_mm is not None else lumen + _plaque(shapes, len(lumen))
    _check(lumen, media, size, spacing_mm)
    count = int(np.ceil(size * spacing_mm / np.sqrt(2) / DEPTH_STEP_MM)) + 2
    edges = (np.arange(count + 1) - 0.5) * DEPTH_STEP_MM
    image = np.empty((size, size, len(lumen)), np.float32)
    hidden = np.zeros(lumen.shape, bool)
    wire = objects.uniform(0, 2 * np.pi), objects.uniform(0.1, 0.14)
    plate = objects.uniform(0, 2 * np.pi), objects.uniform(0.25, 0.45)
    for n, (inner, outer) in enumerate(zip(lumen, media, strict=True)):
        tops = np.stack([inner, np.maximum(outer - MEDIA_MM, inner), outer])
        power = oct_profile(tops, POWER, ATTENUATION, edges)
        if calcium and (len(lumen) == 1 or n > len(lumen) // 2):
            hidden[n] |= _plate(power, 0.5 * (inner + outer), *plate)
        if guide_wire:
            hidden[n] |= _wire(power, inner, wire[0] + 0.02 * n, wire[1])
        echo = _envelope(power, speckle) + _ring_down(count)
        image[..., n] = _draw(echo, size, spacing_mm, dynamic_range_db)
    middle = (size - 1) / 2 * spacing_mm
    center = np.stack([[middle, middle, n * frame_mm] for n in range(len(lumen))])
    affine = np.diag([spacing_mm, spacing_mm, frame_mm, 1.0])
    facts = {"seed": seed, "guide_wire": guide_wire, "calcium": calcium}
    return IVUSPhantom(Volume(image, affine), lumen, media, hidden, center, facts)


def _radii(contours: ArrayLike) -> F64:
    return np.stack([contour_radius(c) for c in np.asarray(contours, float)])


def _waves(rng: np.random.Generator, frames: int, orders: range) -> F64:
    """Return smooth functions of the angle that drift along the frames, (F, A)."""
    turn = np.arange(ANGLES) * (2 * np.pi / ANGLES)
    along = np.arange(frames)[:, None]
    total = np.zeros((frames, ANGLES))
    for m in orders:
        phase = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.06) * along
        total += rng.normal() / m * np.cos(m * turn + phase)
    return total


def _lumen(rng: np.random.Generator, frames: int) -> F64:
    return rng.uniform(1.5, 1.9) * np.exp(0.12 * _waves(rng, frames, range(1, 6)))


def _plaque(rng: np.random.Generator, frames: int) -> F64:
    """Return the distance from lumen to media: thin on one side, thick on the other."""
    return 0.22 + 0.55 / (1 + np.exp(-2.0 * _waves(rng, frames, range(1, 4))))


def _check(lumen: F64, media: F64, size: int, spacing_mm: float) -> None:
    if lumen.shape != media.shape:
        raise UsageError(
            "lumen and media differ in frames", expected=str(len(lumen)), got=str(len(media))
        )
    if lumen.min() <= CATHETER_MM:
        raise UsageError(
            "the lumen reaches the catheter", expected=f"radii above {CATHETER_MM:g} mm"
        )
    if (media - lumen).min() < 0:
        raise UsageError("lumen and media cross", expected="the lumen inside the media")
    if media.max() > (size - 1) / 2 * spacing_mm:
        raise UsageError("the vessel leaves the image", hint="take more pixels or larger ones")


def _apart(angle: float) -> F64:
    """Return the distance in radians of every ray from an angle."""
    turn = np.arange(ANGLES) * (2 * np.pi / ANGLES)
    return np.abs((turn - angle + np.pi) % (2 * np.pi) - np.pi)


def _plate(power: F64, depth_mm: F64, angle: float, half: float) -> NDArray[np.bool_]:
    """Put calcium and the shadow behind it into the echo; return the rays it hides."""
    inside = _apart(angle) < half
    r = np.arange(power.shape[1]) * DEPTH_STEP_MM
    behind = r - depth_mm[:, None]
    power[inside] *= np.where(behind[inside] > 0.08, 0.004, 1.0)
    bright = (np.abs(behind - 0.04) < 0.04) & inside[:, None]
    power[bright] = 4.0
    return inside


def _wire(power: F64, lumen: F64, angle: float, half: float) -> NDArray[np.bool_]:
    """Put a guide wire and its shadow into the echo; return the rays it hides."""
    inside = _apart(angle) < half
    r = np.arange(power.shape[1]) * DEPTH_STEP_MM
    place = min(CATHETER_MM + 0.25, 0.5 * (CATHETER_MM + float(lumen[inside].min())))
    power[inside] *= np.where(r > place, 0.004, 1.0)
    power[np.ix_(inside, np.abs(r - place) < 0.05)] = 6.0
    return inside


def _envelope(power: F64, rng: np.random.Generator) -> F64:
    """Return the Rayleigh-distributed amplitude of echoes of this mean power."""
    sigma = (1.6, 2.2)  # of the beam and of the pulse, in rays and samples
    impulse = np.zeros((25, 25))
    impulse[12, 12] = 1
    gain = np.sqrt(2 * (gaussian_filter(impulse, sigma) ** 2).sum())
    parts = []
    for _ in range(2):
        field_ = rng.standard_normal(power.shape) * np.sqrt(power)
        parts.append(gaussian_filter(field_, sigma, mode=("wrap", "nearest")) / gain)
    return np.hypot(*parts)


def _ring_down(count: int) -> F64:
    r = np.arange(count) * DEPTH_STEP_MM
    beyond = np.maximum(r - CATHETER_MM, 0)
    rings = np.exp(-beyond / 0.05) * (1 + 0.3 * np.cos(2 * np.pi * r / 0.06))
    return np.where(r < CATHETER_MM, 0.0, 1.2 * rings)[None]


def _draw(echo: F64, size: int, spacing_mm: float, range_db: float) -> NDArray[np.float32]:
    """Return a Cartesian frame (size, size), log-compressed to 0..255."""
    level = 1 + 20 * np.log10(np.maximum(echo, 1e-6)) / range_db
    across = (np.arange(size) - (size - 1) / 2) * spacing_mm
    x, y = np.meshgrid(across, across, indexing="ij")
    turn = np.arctan2(y, x) % (2 * np.pi) * (ANGLES / (2 * np.pi))
    places = np.stack([turn, np.hypot(x, y) / DEPTH_STEP_MM])
    wrapped = np.concatenate([level, level[:1]])
    drawn = map_coordinates(wrapped, places, order=1, mode="nearest")
    return (255 * np.clip(drawn, 0, 1)).astype(np.float32)
