"""A simulated brain MR with known tissue, relaxation times and bias field.

The head is the one of `HeadAnatomy`: the same seed gives the same person as
`head_ct`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import UsageError
from medpipe.geometry import affine_from_parts
from medpipe.phantoms.anatomy import HeadAnatomy, HeadLabel, Lesion, Subject
from medpipe.phantoms.shapes import Array, F
from medpipe.types import Volume

__all__ = [
    "TIMING",
    "TISSUES",
    "BrainMR",
    "MRPhantom",
    "Relaxation",
    "brain_mr",
    "relaxation",
    "signal",
]

Contrast = Literal["t1", "t2", "pd", "flair"]


class Relaxation(NamedTuple):
    """T1 and T2 in ms and the proton density relative to water."""

    t1_ms: float
    t2_ms: float
    pd: float


_AT_3T: dict[HeadLabel, Relaxation] = {
    HeadLabel.AIR: Relaxation(1000, 10, 0),
    HeadLabel.SKIN: Relaxation(700, 40, 0.65),
    HeadLabel.FAT: Relaxation(370, 80, 0.85),
    HeadLabel.MUSCLE: Relaxation(1400, 35, 0.75),
    HeadLabel.CORTICAL_BONE: Relaxation(500, 1, 0.08),
    HeadLabel.DIPLOE: Relaxation(420, 60, 0.50),
    HeadLabel.CAVITY_AIR: Relaxation(1000, 10, 0),
    HeadLabel.EYE: Relaxation(4000, 1200, 0.98),
    HeadLabel.LENS: Relaxation(1300, 30, 0.60),
    HeadLabel.NERVE: Relaxation(1000, 75, 0.72),
    HeadLabel.CSF: Relaxation(4200, 1900, 1.0),
    HeadLabel.VENTRICLE: Relaxation(4200, 1900, 1.0),
    HeadLabel.GREY: Relaxation(1350, 95, 0.82),
    HeadLabel.WHITE: Relaxation(850, 70, 0.70),
    HeadLabel.CAUDATE: Relaxation(1350, 85, 0.81),
    HeadLabel.PUTAMEN: Relaxation(1240, 76, 0.80),
    HeadLabel.PALLIDUM: Relaxation(1000, 60, 0.74),
    HeadLabel.THALAMUS: Relaxation(1120, 80, 0.77),
    HeadLabel.CEREBELLUM_GREY: Relaxation(1300, 92, 0.82),
    HeadLabel.CEREBELLUM_WHITE: Relaxation(880, 72, 0.71),
    HeadLabel.BRAINSTEM: Relaxation(930, 74, 0.72),
    HeadLabel.DURA: Relaxation(1400, 40, 0.60),
    HeadLabel.CALCIFICATION: Relaxation(800, 10, 0.20),
    HeadLabel.BLOOD: Relaxation(1500, 120, 0.85),
    HeadLabel.TABLE: Relaxation(1000, 10, 0),
    HeadLabel.FOAM: Relaxation(1000, 10, 0),
}

# T1 grows with the field, T2 falls a little; fluid and fat change least.
_T1_RATIO = {HeadLabel.CSF: 0.97, HeadLabel.VENTRICLE: 0.97, HeadLabel.EYE: 0.97} | {
    HeadLabel.FAT: 0.90,
    HeadLabel.DIPLOE: 0.90,
}

TISSUES: tuple[tuple[str, tuple[HeadLabel, ...]], ...] = (
    ("white", (HeadLabel.WHITE, HeadLabel.CEREBELLUM_WHITE, HeadLabel.BRAINSTEM)),
    ("grey", (HeadLabel.GREY, HeadLabel.CEREBELLUM_GREY)),
    (
        "deep_grey",
        (HeadLabel.CAUDATE, HeadLabel.PUTAMEN, HeadLabel.PALLIDUM, HeadLabel.THALAMUS),
    ),
    ("csf", (HeadLabel.CSF, HeadLabel.VENTRICLE)),
)
"""The tissues whose fractions `brain_mr` returns, and the labels each is made of."""

TIMING: dict[str, dict[str, float]] = {
    "t1": {"tr_ms": 2000, "te_ms": 3, "ti_ms": 900},
    "t2": {"tr_ms": 5000, "te_ms": 90},
    "pd": {"tr_ms": 3000, "te_ms": 15},
    "flair": {"tr_ms": 9000, "te_ms": 110, "ti_ms": 2500},
}
"""Repetition, echo and inversion time of each contrast."""


def relaxation(label: HeadLabel, field_t: float = 3.0) -> Relaxation:
    """Return T1, T2 and proton density of a tissue at 1.5 or 3 T.

    Typical values of the adult head (Stanisz 2005, doi:10.1002/mrm.20605;
    Wansapura 1999, doi:10.1002/(SICI)1522-2586(199904)9:4<531::AID-JMRI4>3.0.CO;2-L),
    rounded; those at 1.5 T are scaled from those at 3 T.
    """
    at_3t = _AT_3T[label]
    if field_t == 3.0:
        return at_3t
    if field_t != 1.5:
        raise UsageError("unknown field strength", expected="1.5 or 3.0 T", got=f"{field_t:g} T")
    return Relaxation(at_3t.t1_ms * _T1_RATIO.get(label, 0.76), at_3t.t2_ms * 1.06, at_3t.pd)


def signal(tissue: Relaxation, *, tr_ms: float, te_ms: float, ti_ms: float | None = None) -> float:
    """Return the signed signal of a spin echo, after an inversion if `ti_ms` is given.

    ``pd · (1 - e^(-TR/T1)) · e^(-TE/T2)``, or with inversion
    ``pd · (1 - 2 e^(-TI/T1) + e^(-TR/T1)) · e^(-TE/T2)``.
    """
    e1 = np.exp(-tr_ms / tissue.t1_ms)
    recovered = 1 - e1 if ti_ms is None else 1 - 2 * np.exp(-ti_ms / tissue.t1_ms) + e1
    return float(tissue.pd * recovered * np.exp(-te_ms / tissue.t2_ms))


@dataclass(slots=True)
class MRPhantom:
    """A simulated MR image and the truth behind it.

    Attributes
    ----------
    volume : Volume
        The image with bias and noise; grey matter of the ideal image is 100.
    labels : ndarray of uint8, shape (I, J, K)
        `HeadLabel` at each voxel centre.
    fractions : dict of str to ndarray of float32, shape (I, J, K)
        How much of each voxel is each tissue of `TISSUES`.
    ideal : ndarray of float32, shape (I, J, K)
        The image without bias and noise.
    bias : ndarray of float32, shape (I, J, K)
        The multiplicative field, 1 on average.
    facts : dict
        JSON facts.
    """

    volume: Volume
    labels: NDArray[np.uint8]
    fractions: dict[str, Array]
    ideal: Array
    bias: Array
    facts: dict[str, Any] = field(default_factory=dict)


class BrainMR:
    """A brain MR as a function of world points.

    Parameters
    ----------
    seed : int
        Chooses the head.
    contrast : {"t1", "t2", "pd", "flair"}
        Weighting.
    field_t : {1.5, 3.0}
        Field strength.
    lesion, subject
        As for `HeadAnatomy`.
    """

    def __init__(
        self,
        seed: int,
        *,
        contrast: Contrast = "t1",
        field_t: float = 3.0,
        lesion: Lesion | None = None,
        subject: Subject | None = None,
        edge_mm: float = 1.0,
    ) -> None:
        if contrast not in TIMING:
            raise UsageError("unknown contrast", expected=" | ".join(TIMING), got=repr(contrast))
        self.anatomy = HeadAnatomy(seed, lesion=lesion, subject=subject, table=False)
        self.edge_mm = edge_mm
        timing = TIMING[contrast]
        values = np.array([signal(relaxation(label, field_t), **timing) for label in HeadLabel])
        values *= 100 / abs(values[HeadLabel.GREY])
        names = [[label in members for _, members in TISSUES] for label in HeadLabel]
        self._table = np.column_stack([values, np.array(names)]).astype(F)
        rng = np.random.default_rng([seed, 2])
        self._bias = rng.normal(0, 1, 9)

    def signal(self, points_mm: ArrayLike) -> Array:
        """Return the ideal signal at RAS mm points, shape (..., 3) → (...)."""
        table = self._table[:, :1]
        return np.abs(self.anatomy.paint(points_mm, table, self.edge_mm)[1][..., 0])

    def labels(self, points_mm: ArrayLike) -> NDArray[np.uint8]:
        """Return the `HeadLabel` at RAS mm points, shape (..., 3) → (...)."""
        return self.anatomy.labels(points_mm)

    def bias(self, points_mm: ArrayLike, strength: float = 0.2) -> Array:
        """Return the bias field at RAS mm points: exp of a smooth quadratic of that spread."""
        p = np.asarray(points_mm, F) / F(100)
        x, y, z = p[..., 0], p[..., 1], p[..., 2]
        terms = (x, y, z, x * x - F(0.2), y * y - F(0.2), z * z - F(0.2), x * y, y * z, x * z)
        total = sum(F(w) * t for w, t in zip(self._bias, terms, strict=True))
        return np.exp(F(strength / 1.2) * np.asarray(total, F))


def brain_mr(
    seed: int,
    *,
    contrast: Contrast = "t1",
    field_t: float = 3.0,
    shape: tuple[int, int, int] = (176, 224, 176),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    lesion: Lesion | None = None,
    bias: float = 0.2,
    noise: float = 3.0,
) -> MRPhantom:
    """Return a simulated brain MR on a regular RAS grid centred on the head.

    Parameters
    ----------
    seed : int
        Chooses head, bias field and noise.
    contrast : {"t1", "t2", "pd", "flair"}
        Weighting.
    field_t : {1.5, 3.0}
        Field strength in tesla.
    shape, spacing_mm
        Voxels along x, y, z and their size in mm.
    lesion : Lesion, optional
        A haemorrhage of known volume.
    bias : float
        Strength of the bias field; 0 for none.
    noise : float
        Standard deviation of the noise of each channel, in percent of grey
        matter; the magnitude is Rician.

    Returns
    -------
    MRPhantom
    """
    spacing = np.asarray(spacing_mm, float)
    centre = np.array([0.0, -2.0, 0.0])
    affine = affine_from_parts(np.eye(3), spacing, centre - (np.array(shape) - 1) / 2 * spacing)
    sampler = BrainMR(seed, contrast=contrast, field_t=field_t, lesion=lesion)
    labels, values = sampler.anatomy.sample(affine, shape, sampler._table, sampler.edge_mm)
    ideal = np.abs(values[..., 0])
    field_map = np.ones(shape, F)
    if bias:
        axes = [affine[a, 3] + np.arange(n) * spacing[a] for a, n in enumerate(shape)]
        for k, z in enumerate(axes[2]):
            grid = np.meshgrid(axes[0], axes[1], z, indexing="ij")
            field_map[:, :, k] = sampler.bias(np.stack(grid, -1), bias)[:, :, 0]
        field_map /= field_map.mean(dtype=float)
    image = ideal * field_map
    if noise:
        rng = np.random.default_rng([seed, 3])
        real = image + F(noise) * rng.standard_normal(shape, dtype=F)
        image = np.hypot(real, F(noise) * rng.standard_normal(shape, dtype=F))
    fractions = {name: values[..., 1 + i].copy() for i, (name, _) in enumerate(TISSUES)}
    ml = float(np.prod(spacing)) / 1000
    facts = {
        "seed": seed,
        "contrast": contrast,
        "field_t": field_t,
        "noise": noise,
        "bias": bias,
        "volumes_ml": {name: float(f.sum(dtype=float) * ml) for name, f in fractions.items()},
    }
    source = {"kind": "phantom", "modality": "MR", "seed": seed, "contrast": contrast}
    return MRPhantom(Volume(image, affine, source), labels, fractions, ideal, field_map, facts)
