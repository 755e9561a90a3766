"""A simulated OCT scan of the retina with boundaries known below one sample.

Depth profiles are piecewise exponential (reflectivity and attenuation of each
layer). They are integrated in closed form over fractions of a sample, so the
truth is not tied to the sampling. A macular volume has a foveal pit; a ring scan
around the optic disc closes on itself and has the two humps of the nerve fibre
layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from medpipe.errors import UsageError
from medpipe.types import Volume

__all__ = [
    "RETINA_BOUNDARIES",
    "RETINA_LAYERS",
    "OCTPhantom",
    "RetinaLayer",
    "oct_profile",
    "retina_oct",
]

F64 = NDArray[np.float64]

RETINA_BOUNDARIES = (
    "ILM",
    "RNFL-GCL",
    "IPL-INL",
    "INL-OPL",
    "OPL-ONL",
    "IS-EZ",
    "EZ-OS",
    "OS-RPE",
    "BM",
)
"""The boundaries from the vitreous to the choroid."""


class RetinaLayer(NamedTuple):
    """The layer below one boundary.

    Thicknesses in µm around the disc and in the macula, the fraction of the
    macular one that is missing in the fovea (negative where the layer is thicker),
    reflectivity in the linear units of the image, attenuation in 1/mm.
    """

    name: str
    ring_um: float
    macula_um: float
    pit: float
    reflectivity: float
    attenuation: float


RETINA_LAYERS = (
    RetinaLayer("RNFL", 100, 32, 0.90, 0.150, 3.0),
    RetinaLayer("GCL+IPL", 46, 76, 0.92, 0.028, 1.5),
    RetinaLayer("INL", 26, 36, 0.85, 0.008, 1.0),
    RetinaLayer("OPL", 18, 28, 0.60, 0.018, 1.0),
    RetinaLayer("ONL+IS", 70, 92, -0.20, 0.0025, 1.0),
    RetinaLayer("EZ", 16, 16, 0.0, 0.060, 1.0),
    RetinaLayer("OS", 18, 22, -0.3, 0.022, 1.0),
    RetinaLayer("RPE", 20, 20, 0.0, 0.280, 4.0),
)
"""Typical layers of a healthy adult eye; reflectivities as a device stores them."""

VITREOUS = (0.0, 0.0)
CHOROID = (0.020, 4.0)
FINE = 4
"""Parts of a sample over which the profile is integrated before it is blurred."""


@dataclass(slots=True)
class OCTPhantom:
    """A simulated OCT scan and the truth behind it.

    Attributes
    ----------
    volume : Volume
        Image (A-scans, depth samples, B-scans), linear intensities from 0 to 1.
    surfaces_mm : ndarray, shape (9, A-scans, B-scans)
        Depth of each boundary of `RETINA_BOUNDARIES`, from the centre of the first
        sample; divided by the depth spacing it is a 0-based index.
    ideal : ndarray of float32
        The image without speckle and noise.
    shadow : ndarray of float32, shape (A-scans, B-scans)
        Fraction of the light that the vessels above take away.
    facts : dict
        JSON facts.
    """

    volume: Volume
    surfaces_mm: F64
    ideal: NDArray[np.float32]
    shadow: NDArray[np.float32]
    facts: dict[str, Any] = field(default_factory=dict)


def oct_profile(
    boundaries_mm: ArrayLike,
    reflectivity: ArrayLike,
    attenuation: ArrayLike,
    edges_mm: ArrayLike,
) -> F64:
    """Return the mean intensity between consecutive edges, in closed form.

    Inside layer l the intensity at depth z is
    ``R_l exp(-2 ∫ a dz')`` with the attenuation a of every layer above.

    Parameters
    ----------
    boundaries_mm : array, shape (S, ...)
        Depths of the boundaries, not decreasing along the first axis. The first
        layer starts above, at the first edge.
    reflectivity, attenuation : array, shape (S + 1,)
        R and a (1/mm) of the layers.
    edges_mm : array, shape (E,)
        Increasing depths.

    Returns
    -------
    ndarray, shape (..., E - 1)
    """
    edges = np.asarray(edges_mm, float)
    bounds = np.asarray(boundaries_mm, float)
    light = np.ones(bounds.shape[1:])
    total = np.zeros((*bounds.shape[1:], edges.size))
    top = np.full(bounds.shape[1:], edges[0])
    bottoms = [*bounds, np.full(bounds.shape[1:], edges[-1])]
    for r, a, bottom in zip(
        np.asarray(reflectivity, float), np.asarray(attenuation, float), bottoms, strict=True
    ):
        depth = np.clip(edges - top[..., None], 0, np.maximum(bottom - top, 0)[..., None])
        part = depth if a == 0 else -np.expm1(-2 * a * depth) / (2 * a)
        total += r * light[..., None] * part
        light = light * np.exp(-2 * a * np.maximum(bottom - top, 0))
        top = np.maximum(bottom, top)
    return np.diff(total, axis=-1) / np.diff(edges)


def retina_oct(
    seed: int,
    *,
    kind: Literal["macula", "ring"] = "macula",
    shape: tuple[int, int, int] | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    surfaces_mm: ArrayLike | None = None,
    tilt_mm: float | None = None,
    axial_psf_um: float = 5.0,
    looks: int = 5,
    noise: float = 4e-4,
    vessels: int = 6,
) -> OCTPhantom:
    """Return a simulated OCT scan.

    Parameters
    ----------
    seed : int
        Chooses the eye and the noise; equal seeds give equal scans.
    kind : {"macula", "ring"}
        A volume over the fovea, or one circular B-scan around the disc whose first
        axis wraps around.
    shape : (A-scans, depth samples, B-scans), optional
        Default (256, 496, 25) for a macula, (768, 496, 1) for a ring.
    spacing_mm : (float, float, float), optional
        Default 0.01424 × 0.00387 mm and B-scans 0.12 mm apart.
    surfaces_mm : array, shape (9, A-scans, B-scans), optional
        Boundaries to render instead of drawn ones (see `OCTPhantom`).
    tilt_mm : float, optional
        Height by which the retina rises and falls over the scan; default 0.25, less
        where the scan is not deep enough.
    axial_psf_um : float
        Full width at half maximum of the axial point spread function.
    looks : int
        Frames averaged: the speckle contrast is 1 / sqrt(looks).
    noise : float
        Mean of the background intensity of the detector.
    vessels : int
        Vessels in the nerve fibre layer, which shadow what is below.

    Raises
    ------
    UsageError
        If the retina does not fit into the depth of the scan or a value is out of
        range.
    """
    if kind not in ("macula", "ring"):
        raise UsageError("unknown kind of scan", expected="macula or ring", got=repr(kind))
    shape = shape or ((768, 496, 1) if kind == "ring" else (256, 496, 25))
    spacing = np.array(spacing_mm or (0.01424, 0.00387, 0.12))
    if min(shape) < 1 or not (spacing > 0).all() or looks < 1 or axial_psf_um <= 0:
        raise UsageError("a parameter of the scan is not positive", got=f"shape {shape}")
    geometry, speckle, vessel = (np.random.default_rng([seed, n]) for n in range(3))
    if surfaces_mm is None:
        tops = _boundaries(geometry, kind, shape, spacing, tilt_mm)
    else:
        tops = np.asarray(surfaces_mm, float)
    _check_fit(tops, shape, spacing[1])
    shadow = _shadows(vessel, kind, shape, spacing, vessels)
    ideal = np.empty(shape, np.float32)
    for b in range(shape[2]):
        ideal[..., b] = _render(tops[..., b], shadow[:, b], shape[1], spacing[1], axial_psf_um)
    grain = _speckle(speckle, shape, spacing, axial_psf_um, looks, kind == "ring")
    floor = speckle.gamma(looks, noise / looks, shape) if noise > 0 else 0.0
    image = np.clip(ideal * grain + floor, 0, 1).astype(np.float32)
    facts = {"kind": kind, "seed": seed, "looks": looks, "wraps": kind == "ring"}
    return OCTPhantom(
        Volume(image, np.diag([*spacing, 1.0])), tops, ideal, shadow.astype(np.float32), facts
    )


def _boundaries(
    rng: np.random.Generator,
    kind: str,
    shape: tuple[int, int, int],
    spacing: F64,
    tilt_mm: float | None,
) -> F64:
    """Return drawn depths (9, A, B) in mm."""
    n_a, n_d, n_b = shape
    ring = kind == "ring"
    x = np.arange(n_a)[:, None] * spacing[0]
    y = np.arange(n_b)[None, :] * spacing[2]
    extent = n_a * spacing[0]
    centre = (x.mean() + rng.normal(0, 0.1), y.mean() + rng.normal(0, 0.05))
    pit = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 0.42**2))
    # The nerve fibres are thickest above and below the disc, and towards it in the macula.
    turn = 2 * np.pi * x / extent
    humps = 1 + 0.75 * np.cos(2 * (turn - rng.uniform(0, np.pi)))
    fibres = humps if ring else 1 + 0.5 * np.tanh((x - centre[0]) / 1.5)
    thick = []
    for index, layer in enumerate(RETINA_LAYERS):
        t = (layer.ring_um if ring else layer.macula_um * (1 - layer.pit * pit)) / 1000
        t = t * (fibres if index == 0 else 1.0)
        waves = _waves(rng, x, y, extent, ring)
        thick.append(t * np.exp((0.12 if index < 5 else 0.03) * waves))
    retina = np.sum(thick, axis=0)
    room = (n_d - 1) * spacing[1] - retina.max() - 0.06
    tilt = min(0.25, 0.35 * room) if tilt_mm is None else tilt_mm
    bend = np.cos(turn - rng.uniform(0, 2 * np.pi)) if ring else ((x - x.mean()) / extent) ** 2 * 4
    bottom = tilt * bend + 0.05 * min(1.0, room) * _waves(rng, x, y, extent, ring)
    bottom = bottom - bottom.mean() + 0.03 + retina.max() + 0.5 * room
    below = np.cumsum([np.zeros_like(retina), *thick[::-1]], axis=0)
    return np.ascontiguousarray((bottom - below)[::-1])


def _waves(rng: np.random.Generator, x: F64, y: F64, extent: float, ring: bool) -> F64:
    """Return a smooth random field of about unit spread; it closes on itself on a ring."""
    n = 16
    along = rng.integers(1, 9, n) if ring else rng.normal(0, extent / 1.6, n)
    across = rng.normal(0, 1 / 1.6, n)
    phase = rng.uniform(0, 2 * np.pi, n)
    turns = along * (x / extent)[..., None] + across * y[..., None]
    return np.cos(2 * np.pi * turns + phase).sum(-1) * np.sqrt(2 / n)


def _check_fit(tops: F64, shape: tuple[int, int, int], spacing: float) -> None:
    if tops.shape != (len(RETINA_BOUNDARIES), shape[0], shape[2]):
        raise UsageError(
            "the boundaries do not fit the scan",
            expected=str((len(RETINA_BOUNDARIES), shape[0], shape[2])),
            got=str(tops.shape),
        )
    if not np.isfinite(tops).all() or (np.diff(tops, axis=0) < 0).any():
        raise UsageError("the boundaries are not finite or cross each other")
    if tops.min() < 0 or tops.max() > (shape[1] - 1) * spacing:
        raise UsageError(
            "the retina does not fit into the depth of the scan",
            expected=f"0 to {(shape[1] - 1) * spacing:.3f} mm",
            got=f"{tops.min():.3f} to {tops.max():.3f} mm",
            hint="take more depth samples or a smaller tilt",
        )


def _shadows(
    rng: np.random.Generator, kind: str, shape: tuple[int, int, int], spacing: F64, vessels: int
) -> F64:
    """Return the fraction of light taken away (A, B)."""
    extent = shape[0] * spacing[0]
    x = np.arange(shape[0])[:, None] * spacing[0]
    y = np.arange(shape[2])[None, :] * spacing[2]
    through = np.ones((shape[0], shape[2]))
    for _ in range(vessels):
        centre = rng.uniform(0, extent) + rng.uniform(-0.3, 0.3) * (y - y.mean())
        away = x - centre
        if kind == "ring":
            away = (away + extent / 2) % extent - extent / 2
        half, dark = rng.uniform(0.03, 0.075), rng.uniform(0.35, 0.85)
        through = through * (1 - dark / (1 + np.exp((np.abs(away) - half) / 0.008)))
    return 1 - through


def _render(tops: F64, shadow: F64, samples: int, spacing: float, psf_um: float) -> F64:
    """Return one ideal B-scan (A, samples)."""
    # Beyond the scan there is more of the same: a margin keeps the blur honest.
    margin = int(np.ceil(4 * psf_um / 2355 / spacing)) + 1
    edges = (np.arange(FINE * (samples + 2 * margin) + 1) / FINE - 0.5 - margin) * spacing
    r = [VITREOUS[0], *(layer.reflectivity for layer in RETINA_LAYERS), CHOROID[0]]
    a = [VITREOUS[1], *(layer.attenuation for layer in RETINA_LAYERS), CHOROID[1]]
    fine = oct_profile(tops, r, a, edges)
    middle = (edges[1:] + edges[:-1]) / 2
    depth = (middle - (0.5 * (tops[0] + tops[1]))[:, None]) / 0.004
    fine *= 1 - shadow[:, None] / (1 + np.exp(-np.clip(depth, -40, 40)))
    blurred = gaussian_filter1d(fine, psf_um / 2355 / spacing * FINE, axis=1, mode="nearest")
    means = blurred.reshape(len(fine), -1, FINE).mean(-1)
    return means[:, margin : margin + samples]


def _speckle(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing: F64,
    psf_um: float,
    looks: int,
    ring: bool,
) -> NDArray[np.float32]:
    """Return correlated speckle intensity of mean 1: averaged |complex Gaussian field|²."""
    # A scatterer is about 14 µm wide in focus; B-scans are independent.
    sigma = (0.006 / spacing[0], psf_um / 2355 / spacing[1], 0.0)
    mode = ("wrap" if ring else "reflect", "reflect", "reflect")
    impulse = np.zeros((33, 33))
    impulse[16, 16] = 1
    gain = float(np.sqrt((gaussian_filter(impulse, sigma[:2]) ** 2).sum()))
    total = np.zeros(shape, np.float32)
    for _ in range(2 * looks):
        part = rng.standard_normal(shape, np.float32)
        total += (gaussian_filter(part, sigma, mode=mode) / np.float32(gain)) ** 2
    return total / np.float32(2 * looks)
