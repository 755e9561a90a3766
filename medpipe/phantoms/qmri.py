"""A simulated head with known T1, T2, M0 and flip-angle scaling, and MR images of it.

Every voxel is one tissue, so the truth of a voxel is one number. The signals are
closed forms of their own, written apart from `medpipe.qmri` so that either can
check the other; noise is complex, then the magnitude is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import UsageError
from medpipe.geometry import affine_from_parts
from medpipe.phantoms.anatomy import HeadAnatomy, HeadLabel
from medpipe.types import Affine

__all__ = [
    "PROTOCOLS",
    "TISSUES_3T",
    "QmriPhantom",
    "Sequence",
    "Tissue",
    "WeightedImages",
    "dess",
    "find_protocol",
    "inversion_recovery",
    "measure",
    "mp2rage",
    "qmri_phantom",
    "spin_echoes",
    "spoiled_gradient_echo",
]

Map = NDArray[np.float64]


class Tissue(NamedTuple):
    """T1 and T2 in s and M0 relative to water."""

    t1_s: float
    t2_s: float
    m0: float


TISSUES_3T: Mapping[str, Tissue] = MappingProxyType(
    {
        "white": Tissue(0.832, 0.0796, 0.77),
        "grey": Tissue(1.331, 0.110, 0.86),
        "fluid": Tissue(3.0, 0.350, 1.0),
        "muscle": Tissue(1.412, 0.050, 1.0),
        "fat": Tissue(0.350 * 2**0.5, 0.070 * 2**0.5, 1.0),
    }
)
"""Tissues at 3 T as in the simulations of Nataraj 2018, doi:10.1109/TMI.2018.2817547.

The label of a tissue is its rank from 1; 0 has no signal.
"""

_L = HeadLabel
_MEMBERS: Mapping[str, tuple[HeadLabel, ...]] = {
    "white": (_L.WHITE, _L.CEREBELLUM_WHITE, _L.BRAINSTEM, _L.NERVE),
    "grey": (
        *(_L.GREY, _L.CEREBELLUM_GREY, _L.CAUDATE, _L.PUTAMEN, _L.PALLIDUM, _L.THALAMUS),
        _L.BLOOD,
    ),
    "fluid": (_L.CSF, _L.VENTRICLE, _L.EYE),
    "muscle": (_L.MUSCLE, _L.DURA, _L.LENS, _L.SKIN),
    "fat": (_L.FAT, _L.DIPLOE),
}


@dataclass(frozen=True, slots=True)
class QmriPhantom:
    """The truth.

    Attributes
    ----------
    affine : ndarray, shape (4, 4)
        Voxel index to RAS mm.
    tissue : ndarray of uint8, shape (I, J, K)
        Rank in `TISSUES_3T` from 1; 0 where there is no signal.
    t1_s, t2_s, m0 : ndarray of float64, shape (I, J, K)
        0 where there is no signal.
    kappa : ndarray of float64, shape (I, J, K)
        True over nominal flip angle: 1.1 - 0.2 (x² + y²), x and y from -1 to 1
        over the field of view.
    seed : int
    """

    affine: Affine
    tissue: NDArray[np.uint8]
    t1_s: Map
    t2_s: Map
    m0: Map
    kappa: Map
    seed: int

    @property
    def brain(self) -> NDArray[np.uint8]:
        """White and grey matter and fluid, as a mask."""
        return ((self.tissue > 0) & (self.tissue <= 3)).astype(np.uint8)


def qmri_phantom(
    seed: int = 0,
    *,
    shape: tuple[int, int, int] = (128, 128, 8),
    spacing_mm: tuple[float, float, float] = (1.875, 1.875, 5.0),
) -> QmriPhantom:
    """Return a head, or a slab of one around the lateral ventricles.

    Parameters
    ----------
    seed : int
        Chooses the head; the same seed gives the one of `head_ct` and `brain_mr`.
    shape, spacing_mm
        Voxels along x, y, z and their size in mm.

    Raises
    ------
    UsageError
        If the grid is empty.
    """
    if min(shape) < 1 or min(spacing_mm) <= 0:
        raise UsageError("the grid of the phantom is empty", expected="positive sizes")
    centre = np.array([0.0, -2.0, 12.0])
    spacing = np.asarray(spacing_mm, float)
    affine = affine_from_parts(np.eye(3), spacing, centre - (np.array(shape) - 1) / 2 * spacing)
    members = {label: rank for rank, name in enumerate(TISSUES_3T, 1) for label in _MEMBERS[name]}
    ranks = np.array([members.get(label, 0) for label in HeadLabel], np.uint8)
    anatomy = HeadAnatomy(seed, table=False)
    labels, _ = anatomy.sample(affine, shape, np.zeros((len(HeadLabel), 1)))
    tissue = ranks[labels]
    values = np.array([(0.0, 0.0, 0.0), *TISSUES_3T.values()])
    x, y = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape[:2])
    kappa = 1.1 - 0.2 * (x[:, None, None] ** 2 + y[None, :, None] ** 2)
    t1, t2, m0 = (values[tissue, column] for column in range(3))
    return QmriPhantom(affine, tissue, t1, t2, m0, np.broadcast_to(kappa, shape).copy(), seed)


def spoiled_gradient_echo(
    p: QmriPhantom, *, flip_angle_deg: float, repetition_time_s: float, echo_time_s: float
) -> Map:
    """Return the signal of a spoiled gradient echo in the steady state (Ernst's equation)."""
    angle = np.radians(p.kappa * flip_angle_deg)
    e1 = _decay(repetition_time_s, p.t1_s)
    steady = np.sin(angle) * (1 - e1) / (1 - e1 * np.cos(angle))
    return p.m0 * steady * _decay(echo_time_s, p.t2_s)


def dess(
    p: QmriPhantom,
    *,
    flip_angle_deg: float,
    repetition_time_s: float,
    echo_time_s: float,
    echo: int,
) -> Map:
    """Return the magnitude of one echo of a double-echo steady state, as in Nataraj 2018."""
    angle = np.radians(p.kappa * flip_angle_deg)
    e1, e2 = _decay(repetition_time_s, p.t1_s), _decay(repetition_time_s, p.t2_s)
    xi = (e1 - np.cos(angle)) / (1 - e1 * np.cos(angle))
    eta = np.sqrt((1 - e2**2) / (1 - e2**2 * xi**2))
    if echo == 1:
        return p.m0 * np.tan(angle / 2) * (1 - eta * xi) * _decay(echo_time_s, p.t2_s)
    grown = np.where(p.t2_s > 0, 1 / np.maximum(_decay(echo_time_s, p.t2_s), 1e-30), 0)
    return p.m0 * np.tan(angle / 2) * (1 - eta) * grown


def inversion_recovery(
    p: QmriPhantom, *, inversion_time_s: float, repetition_time_s: float, echo_time_s: float
) -> Map:
    """Return the signed signal after a perfect inversion, read by a perfect spin echo."""
    recovered = 1 - 2 * _decay(inversion_time_s, p.t1_s) + _decay(repetition_time_s, p.t1_s)
    return p.m0 * recovered * _decay(echo_time_s, p.t2_s)


def spin_echoes(p: QmriPhantom, *, echo_time_s: float, repetition_time_s: float) -> Map:
    """Return one echo of a train with perfect refocusing."""
    return p.m0 * (1 - _decay(repetition_time_s, p.t1_s)) * _decay(echo_time_s, p.t2_s)


def mp2rage(
    p: QmriPhantom,
    *,
    readout: int,
    inversion_time_s: tuple[float, float],
    flip_angle_deg: tuple[float, float],
    repetition_time_s: float,
    repetition_time_preparation_s: float,
    number_shots: tuple[int, int],
    inversion_efficiency: float = 0.96,
) -> Map:
    """Return the signed signal of one readout of MP2RAGE, followed pulse by pulse.

    `number_shots` are the excitations before the centre of k-space and from it
    on; the signal is that of the excitation at the inversion time. What one
    cycle does to Mz is linear, so two cycles give the steady state.
    """
    before, after = number_shots
    first, second = inversion_time_s
    gaps = (
        first - before * repetition_time_s,
        second - first - (before + after) * repetition_time_s,
        repetition_time_preparation_s - second - after * repetition_time_s,
    )
    lost = _decay(repetition_time_s, p.t1_s)

    def cycle(z: Map) -> tuple[list[Map], Map]:
        z = -inversion_efficiency * z
        centres = []
        for gap, degrees in zip(gaps, flip_angle_deg, strict=False):
            z = 1 + (z - 1) * _decay(gap, p.t1_s)
            angle = np.radians(p.kappa * degrees)
            for pulse in range(before + after):
                if pulse == before:
                    centres.append(z * np.sin(angle))
                z = 1 + (z * np.cos(angle) - 1) * lost
        return centres, 1 + (z - 1) * _decay(gaps[2], p.t1_s)

    gained = cycle(np.zeros_like(p.t1_s))[1]
    kept = cycle(np.ones_like(p.t1_s))[1] - gained
    centres, _ = cycle(gained / (1 - kept))
    return p.m0 * centres[readout - 1]


def _decay(time_s: float, constant_s: Map) -> Map:
    """Return exp(-time / constant), 0 where the constant is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.exp(-time_s / constant_s)


class Sequence(NamedTuple):
    """One image of a protocol: its name in BIDS, its signal and its settings in SI units."""

    entities: Mapping[str, str]
    suffix: str
    signal: Callable[..., Map]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WeightedImages:
    """A protocol.

    Attributes
    ----------
    sequences : tuple of Sequence
    noise : float
        Standard deviation of each channel, for M0 = 1.
    phase : bool
        Whether the images come with their phase.
    """

    sequences: tuple[Sequence, ...]
    noise: float
    phase: bool = False


_SHORT = {"repetition_time_s": 0.0122, "echo_time_s": 0.00467}
_DESS = {"flip_angle_deg": 30.0, "repetition_time_s": 0.0175, "echo_time_s": 0.00467}
_MP2RAGE = {
    "inversion_time_s": (0.7, 2.5),
    "flip_angle_deg": (4.0, 5.0),
    "repetition_time_s": 0.0071,
    "repetition_time_preparation_s": 5.0,
    "number_shots": (88, 88),
}

PROTOCOLS: Mapping[str, WeightedImages] = MappingProxyType(
    {
        "spgr-dess": WeightedImages(
            (
                *(
                    Sequence(
                        {"flip": str(n)},
                        "VFA",
                        spoiled_gradient_echo,
                        {"flip_angle_deg": angle, **_SHORT},
                    )
                    for n, angle in enumerate((15.0, 5.0), start=1)
                ),
                *(Sequence({"echo": str(n)}, "DESS", dess, {**_DESS, "echo": n}) for n in (1, 2)),
            ),
            3.8607e-4,
        ),
        "vfa": WeightedImages(
            tuple(
                Sequence(
                    {"flip": str(n)},
                    "VFA",
                    spoiled_gradient_echo,
                    {"flip_angle_deg": angle, "repetition_time_s": 0.015, "echo_time_s": 0.002},
                )
                for n, angle in enumerate((3.0, 8.0, 20.0), start=1)
            ),
            5e-4,
        ),
        "irt1": WeightedImages(
            tuple(
                Sequence(
                    {"inv": str(n)},
                    "IRT1",
                    inversion_recovery,
                    {"inversion_time_s": ti, "repetition_time_s": 2.55, "echo_time_s": 0.012},
                )
                for n, ti in enumerate((0.05, 0.4, 1.1, 2.5), start=1)
            ),
            5e-3,
        ),
        "mese": WeightedImages(
            tuple(
                Sequence(
                    {"echo": str(n)},
                    "MESE",
                    spin_echoes,
                    {"echo_time_s": round(0.012 * n, 6), "repetition_time_s": 2.5},
                )
                for n in range(1, 11)
            ),
            5e-3,
        ),
        "mp2rage": WeightedImages(
            tuple(
                Sequence({"inv": str(n)}, "MP2RAGE", mp2rage, {**_MP2RAGE, "readout": n})
                for n in (1, 2)
            ),
            5e-4,
            phase=True,
        ),
    }
)
"""Protocols by name; ``spgr-dess`` is that of Nataraj 2018."""


def find_protocol(name: str) -> WeightedImages:
    """Return a protocol by its name.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    if name not in PROTOCOLS:
        raise UsageError("no such protocol", expected=" or ".join(PROTOCOLS), got=repr(name))
    return PROTOCOLS[name]


def measure(
    phantom: QmriPhantom, protocol: str, *, noise: float | None = None
) -> NDArray[np.complex128]:
    """Return the complex images of a protocol, shape (D, I, J, K).

    Parameters
    ----------
    phantom : QmriPhantom
    protocol : str
        A name in `PROTOCOLS`.
    noise : float, optional
        Standard deviation of each channel; by default that of the protocol.

    Raises
    ------
    UsageError
        If there is no such protocol.
    """
    images = find_protocol(protocol)
    sigma = images.noise if noise is None else noise
    shape = phantom.t1_s.shape
    # the phase that coils and field give every image, which no sequence here changes
    place = [np.linspace(-1, 1, n) for n in shape[:2]]
    coil = np.exp(1j * (0.9 * place[0][:, None, None] + 0.6 * place[1][None, :, None]))
    rng = np.random.default_rng([phantom.seed, 7, list(PROTOCOLS).index(protocol)])
    head = phantom.tissue > 0
    maps = {
        name: getattr(phantom, name)[head] for name in ("tissue", "t1_s", "t2_s", "m0", "kappa")
    }
    tissue = replace(phantom, **maps)  # signals are voxel by voxel
    out = np.zeros((len(images.sequences), *shape), np.complex128)
    for image, sequence in zip(out, images.sequences, strict=True):
        image[head] = sequence.signal(tissue, **sequence.settings)
        image *= coil
        image += sigma * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    return out
