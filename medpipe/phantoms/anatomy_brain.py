"""Brain, ventricles, cisterns and haemorrhages of the simulated head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medpipe.phantoms.shapes import (
    Array,
    Canvas,
    F,
    Lattice,
    capsule,
    ellipsoid,
    fold_lattice,
    lattice,
    smin,
)

if TYPE_CHECKING:
    from medpipe.phantoms.anatomy import HeadAnatomy

__all__ = ["Folds", "ich_scale", "lesion_order", "paint"]

Points = tuple[Array, Array, Array]

ICH_CENTRE_MM = (25.0, 2.0, 6.0)
ICH_RADII = (0.8, 1.5, 1.05)
GREY_MM = 3.0
HIGHEST_LEVEL = 14.0
"""A lesion that would have to grow beyond this level does not fit."""


@dataclass(frozen=True, slots=True)
class Folds:
    """The subject's cortical folding.

    Attributes
    ----------
    sulci : Lattice
        Signed distance in mm to the sheets along which the cortex folds in.
    depth : Lattice
        Unit noise that makes some sulci deeper than others.
    """

    sulci: Lattice
    depth: Lattice

    @classmethod
    def from_seed(cls, seed: int) -> Folds:
        """Return the folding of one subject."""
        return cls(fold_lattice(seed), lattice(seed * 8 + 120, 26.0))


def paint(head: HeadAnatomy, c: Canvas, inner: Array, straight: Points) -> None:
    """Paint the inside of the skull.

    Parameters
    ----------
    inner : ndarray, shape (N,)
        Signed distance to the inner table, negative inside.
    straight : three ndarrays, shape (N,)
        Template points before the smooth displacement: an intracerebral
        haemorrhage is an exact ellipsoid there.
    """
    from medpipe.phantoms.anatomy import HeadLabel as L

    kind = head.lesion.kind if head.lesion else ""
    c.paint(L.CSF, inner)
    order = lesion_order(head, c.p, inner) - F(head.lesion_level)
    if kind in ("sah", "sdh"):
        scale = F(1.0) if kind == "sah" else np.maximum(_sdh_profile(head, c.p), F(0.05))
        c.paint(L.BLOOD, np.maximum(order * scale, inner))
    press: Array | np.float32 = F(0)
    if kind == "sdh":
        press = F(head.lesion_level) * _sdh_profile(head, c.p)
    tent = _tentorium(c.p)
    depth = -inner - press
    _paint_cerebrum(head, c, depth, tent)
    _paint_deep(c)
    _paint_cerebellum(head, c, depth, tent)
    _paint_ventricles(head, c, order if kind == "ivh" else None)
    _paint_dura(c, inner, tent)
    _paint_calcifications(c)
    if kind == "ich":
        c.paint(L.BLOOD, _ich(head, straight))


def _tentorium(p: Points) -> Array:
    """Return > 0 above and in front of the tentorium, < 0 in the posterior fossa, about mm."""
    x, y, z = p
    ax = np.abs(x)
    roof = F(4) - F(0.45) * ax - F(0.34) * np.maximum(-y - 30, 0)
    roof = np.where(ax < 12, roof - F(0.3) * (12 - ax), roof)
    front = F(-18) - F(0.10) * ax
    return F(0.88) * np.maximum(z - roof, y - front)


def _central(p: Points) -> Array:
    """Return the signed distance to the block where the hemispheres are joined."""
    _, y, z = p
    return ellipsoid((np.zeros_like(y), y, z), (0, -4, 3), (1e3, 36, 25), pitch_deg=4)


def _pial(head: HeadAnatomy, p: Points, depth: Array) -> Array:
    """Return the depth in mm below the surface of the cerebrum, sulci included; < 0 is CSF."""
    x, y, z = p
    ax = np.abs(x)
    atrophy = F(head.subject.atrophy_mm)
    base = depth - (F(1.3) + atrophy)
    fissure = np.maximum(ax - (F(0.9) + atrophy), -_central(p))
    # The Sylvian fissure: a sheet rising backwards from the temporal pole, and the
    # cleft over the insula at its bottom.
    rise = F(0.92) * (z + 5 + F(0.42) * y + F(0.9) * head.folds.depth(x, y, z))
    sheet = np.maximum(np.abs(rise) - (F(0.9) + atrophy), 37 - ax)
    cleft = np.maximum(np.abs(ax - (37 + F(0.002) * y * y)) - (F(0.9) + atrophy), np.abs(rise) - 9)
    sylvian = np.maximum(np.minimum(sheet, cleft), np.maximum(y - 24, F(-28) - y))
    base = np.minimum(np.minimum(base, fissure), sylvian)
    near = np.flatnonzero((base < 27) & (base > -1))
    if not near.size:
        return base
    q = tuple(a[near] for a in p)
    r = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    # Pulling the points towards one sphere turns the sheets radial.
    pull = (F(66) / np.maximum(r, 20)) ** F(0.45)
    side = np.where(q[0] < 0, F(61.0), F(0))  # the hemispheres fold differently
    sheets = np.abs(head.folds.sulci(q[0] * pull + side, q[1] * pull, q[2] * pull)) / pull
    bottom = F(13) + F(4.0) * head.folds.depth(*q)
    b = base[near]
    width = (F(0.30) + F(0.8) * atrophy) * np.clip(F(1.25) - b / np.maximum(bottom, 6), F(0.35), 1)
    sulci = np.maximum(sheets - width, F(0.9) * (b - bottom))
    base[near] = np.minimum(b, sulci)
    return base


def _cisterns(p: Points) -> Array:
    """Return the signed distance to the cisterns around the brain stem and above the sella."""
    x, y, z = p
    h = (np.abs(x), y, z)
    out = smin(
        ellipsoid(h, (0, 10, -21), (12, 9, 6)),  # suprasellar
        capsule(h, (8, 13, -19), (30, 19, -15), 2.4),  # stem of the Sylvian fissure
        4.0,
    )
    out = smin(out, ellipsoid(h, (0, -7, -21), (6, 9, 6)), 3.0)  # interpeduncular
    ring = np.abs(ellipsoid((h[0], y, np.zeros_like(z)), (0, -22, 0), (21, 18, 1e3))) - F(1.3)
    ring = np.maximum(np.maximum(ring, np.abs(z + 12) - 9), y + 10)
    out = np.minimum(out, ring)  # ambient
    return np.minimum(out, ellipsoid(h, (0, -43, -3), (12, 4, 7)))  # quadrigeminal


def _paint_cerebrum(head: HeadAnatomy, c: Canvas, depth: Array, tent: Array) -> None:
    from medpipe.phantoms.anatomy import HeadLabel as L

    at = np.flatnonzero(tent > -1)
    if not at.size:
        return
    part = c.part(at)
    pial = np.minimum(_pial(head, part.p, depth[at]), tent[at] - F(0.8))
    if not c.far((0, 0, -12), 50):
        pial = np.minimum(pial, _cisterns(part.p))
    grey = F(GREY_MM) + F(0.35) * head.folds.depth(part.p[1], part.p[2], part.p[0])
    part.paint(L.GREY, -pial)
    part.paint(L.WHITE, grey - pial)
    c.put(at, part)


def _paint_deep(c: Canvas) -> None:
    """Paint corpus callosum, basal ganglia, thalami, hippocampi and the brain stem."""
    from medpipe.phantoms.anatomy import HeadLabel as L

    if c.far((0, -10, -10), 75):
        return
    x, y, z = c.p
    h = (np.abs(x), y, z)
    flat = (np.zeros_like(y), y, z)
    arch = np.abs(ellipsoid(flat, (0, -4, 3), (1e3, 34, 22), pitch_deg=4)) - F(3.0)
    c.paint(L.WHITE, np.maximum(np.maximum(arch, h[0] - 24), F(2) - z))
    c.ellipsoid(L.WHITE, (20, 0, 6), (17, 34, 19))  # capsules and corona radiata
    c.ellipsoid(L.THALAMUS, (10.5, -13, 5), (7.5, 15, 9), turn_deg=22)
    c.ellipsoid(L.PUTAMEN, (25.5, 3, 2), (5, 16, 10), turn_deg=-14)
    c.ellipsoid(L.PALLIDUM, (18.5, 0, 0), (4.2, 9, 6.5), turn_deg=-18)
    caudate = smin(
        ellipsoid(h, (13.5, 17, 8), (5.5, 10, 10), turn_deg=8),
        capsule(h, (15, 10, 15), (20, -22, 20), 4.2, 2.2),
        4.0,
    )
    c.paint(L.CAUDATE, caudate)
    c.paint(L.GREY, capsule(h, (23, -8, -21), (27, -28, -10), 5.5, 3.5))  # hippocampus
    stem = smin(
        smin(
            ellipsoid(h, (9, -15, -13), (9, 9, 14), turn_deg=35),  # cerebral peduncle
            ellipsoid(h, (0, -24, -12), (15, 11, 13)),  # midbrain
            5.0,
        ),
        ellipsoid(h, (0, -24, -32), (16, 13, 14)),  # pons
        5.0,
    )
    stem = smin(stem, capsule(h, (0, -30, -44), (0, -41, -75), 8.5, 6.0), 5.0)
    c.paint(L.BRAINSTEM, smin(stem, capsule(h, (0, -41, -75), (0, -44, -240), 6.0, 5.0), 3.0))


def _paint_cerebellum(head: HeadAnatomy, c: Canvas, depth: Array, tent: Array) -> None:
    from medpipe.phantoms.anatomy import HeadLabel as L

    at = np.flatnonzero((tent < 1) & (c.p[1] < -22))
    if not at.size:
        return
    part = c.part(at)
    x, y, z = part.p
    h = (np.abs(x), y, z)
    lobes = smin(
        ellipsoid(h, (25, -54, -33), (32, 34, 28)), ellipsoid(h, (0, -54, -28), (14, 30, 28)), 5.0
    )
    surface = np.minimum(np.minimum(depth[at] - F(2.2), -tent[at] - F(1.6)), -lobes)
    # Folia: shells around the peduncles, wavy by the subject's noise.
    shell = np.sqrt((y + 34) ** 2 + (1.3 * (z + 34)) ** 2 + (0.45 * x) ** 2)
    shell = shell + F(1.2) * head.folds.depth(x, y, z)
    ridge = np.abs((shell / F(4.6)) % 1 - F(0.5)) * F(4.6)
    folia = np.maximum(ridge - F(0.45), surface - 7)
    part.paint(L.CEREBELLUM_GREY, -surface)
    part.paint(L.CSF, np.maximum(folia, -surface))
    core = np.minimum(surface - F(8), F(1.1) * np.maximum(surface - F(3), 0) - ridge * F(1.2) - 2)
    part.paint(L.CEREBELLUM_WHITE, np.minimum(-core, F(9) - surface))
    part.paint(L.CEREBELLUM_WHITE, capsule(h, (9, -34, -36), (26, -52, -38), 6.0, 7.5))
    # The brain stem lies before the cerebellum.
    keep = np.flatnonzero(c.label[at] == L.BRAINSTEM)
    part.label[keep], part.value[keep] = c.label[at][keep], c.value[at][keep]
    c.put(at, part)


def _ventricles(head: HeadAnatomy, p: Points) -> Array:
    """Return the signed distance in mm to the ventricular system."""
    x, y, z = p
    h = (np.abs(x), y, z)
    f = head.subject.ventricles
    lateral = smin(
        ellipsoid(h, (8.5, 24, 10), (4.2 * f, 13, 8.5 * f), turn_deg=-22, pitch_deg=12),
        capsule(h, (9, 14, 15), (13, -20, 19), 4.6 * f, 4.8 * f),  # body
        5.0,
    )
    lateral = smin(lateral, capsule(h, (14, -22, 17), (25, -40, 5), 5.0 * f, 6.2 * f), 4.0)
    lateral = smin(lateral, capsule(h, (25, -42, 4), (24, -64, 3), 4.0 * f, 1.8 * f), 4.0)
    lateral = smin(lateral, capsule(h, (27, -38, 0), (30, -8, -22), 3.0 * f, 2.2 * f), 3.0)
    third = ellipsoid(h, (0, -6, 0), (2.4 * f, 16, 11))
    monro = capsule(h, (0, 9, 8), (7, 12, 12), 1.4)
    aqueduct = capsule(h, (0, -22, -4), (0, -34, -24), 1.2)
    fourth = ellipsoid(h, (0, -38, -33), (7.0 * f, 5.0, 9), pitch_deg=15)
    out = np.minimum(np.minimum(lateral, third), np.minimum(monro, aqueduct))
    return np.minimum(out, fourth)


def _paint_ventricles(head: HeadAnatomy, c: Canvas, order: Array | None) -> None:
    from medpipe.phantoms.anatomy import HeadLabel as L

    if c.far((0, -15, -5), 75):
        return
    d = np.maximum(_ventricles(head, c.p), F(0.45) - np.abs(c.p[0]) - np.where(c.p[2] > 9, 0, 9))
    c.paint(L.VENTRICLE, d)
    if order is not None:
        c.paint(L.BLOOD, np.maximum(d, order))


def _paint_dura(c: Canvas, inner: Array, tent: Array) -> None:
    """Paint falx, tentorium and the superior sagittal and transverse sinuses."""
    from medpipe.phantoms.anatomy import HeadLabel as L

    x, y, z = c.p
    free = ellipsoid((np.zeros_like(y), y, z), (0, -10, -4), (1e3, 52, 42), pitch_deg=6)
    falx = np.maximum(np.maximum(np.abs(x) - F(0.55), -free), inner)
    c.paint(L.DURA, np.maximum(falx, F(-1) - tent))
    edge = ellipsoid((np.abs(x), y, np.zeros_like(z)), (0, -24, 0), (23, 28, 1e3))
    sheet = np.maximum(np.maximum(np.abs(tent) - F(0.5), inner), F(-1) * edge)
    c.paint(L.DURA, np.maximum(sheet, y + 12))
    sinus = np.maximum(np.abs(x) + F(0.9) * (-inner) - F(4), inner)
    above = np.maximum(F(8) - z, F(0)) * np.where(y < -60, F(0), F(1))
    c.paint(L.DURA, np.maximum(sinus, np.maximum(above - 1, np.where(z < -22, F(5), F(-5)))))


def _paint_calcifications(c: Canvas) -> None:
    from medpipe.phantoms.anatomy import HeadLabel as L

    if c.far((0, -32, 4), 45):
        return
    c.ellipsoid(L.CALCIFICATION, (0, -31, 3), (2.2, 2.8, 2.4))  # pineal gland
    c.ellipsoid(L.CALCIFICATION, (23, -37, 8), (2.0, 4.0, 2.6))  # choroid plexus


def ich_scale(volume_ml: float, scale: tuple[float, float, float]) -> float:
    """Return the size in template mm of the ellipsoid that has this volume in the world."""
    template_mm3 = volume_ml * 1000 / float(np.prod(scale))
    return float((template_mm3 / (4 / 3 * np.pi * np.prod(ICH_RADII))) ** (1 / 3))


def _side(head: HeadAnatomy) -> float:
    return 1.0 if head.lesion is not None and head.lesion.side == "right" else -1.0


def _ich(head: HeadAnatomy, straight: Points) -> Array:
    centre = np.array(ICH_CENTRE_MM) * (_side(head), 1, 1)
    return ellipsoid(straight, centre, np.array(ICH_RADII) * head.lesion_level)


def _sdh_profile(head: HeadAnatomy, p: Points) -> Array:
    """Return 0..1: the relative thickness of a subdural crescent, over the convexity."""
    x, y, z = p
    r = np.sqrt(x * x + y * y + z * z) + F(1e-3)
    cosine = (F(_side(head) * 0.86) * x + F(0.08) * y + F(0.50) * z) / r
    return np.clip((cosine - F(0.45)) / F(0.55), 0, 1) ** F(0.6)


def lesion_order(head: HeadAnatomy, p: Points, inner: Array) -> Array:
    """Return the field whose sublevel sets are the lesion's extent as it grows."""
    x, y, z = p
    kind = head.lesion.kind if head.lesion else ""
    if kind == "sah":
        # From the suprasellar cistern into the Sylvian fissures, least over the convexity.
        near = ellipsoid(p, (0, 4, -14), (44, 30, 18))
        return near + F(3) * head.folds.depth(y, z, x)
    if kind == "sdh":
        profile = _sdh_profile(head, p)
        return np.where(profile > 0.02, -inner / np.maximum(profile, F(0.02)), F(1e4))
    if kind == "ivh":
        # Blood settles at the back of a lying patient.
        level = F(0.25) * (y + F(0.3) * z + 75)
        return np.where(_ventricles(head, p) < 1, level, F(1e4))
    return np.full_like(x, 1e4)
