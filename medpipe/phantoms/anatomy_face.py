"""Scalp, skull, face, orbits, sinuses and neck of the simulated head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medpipe.phantoms.shapes import Array, Canvas, F, capsule, ellipsoid, smin

if TYPE_CHECKING:
    from medpipe.phantoms.anatomy import HeadAnatomy

__all__ = ["outline", "paint"]


def outline(p: tuple[Array, Array, Array], inner: Array, skull_mm: float) -> Array:
    """Return the signed distance in mm to the skin."""
    x, y, z = p
    half = (np.abs(x), y, z)
    scalp = inner - F(skull_mm + 6.0)
    out = smin(scalp, ellipsoid(p, (0, 34, -66), (64, 58, 66)), 14.0)
    out = smin(out, capsule(p, (0, -38, -70), (0, -48, -230), 56.0), 18.0)
    out = smin(out, ellipsoid(p, (0, 94, -62), (13, 15, 24), pitch_deg=-20), 8.0)
    # The mastoids fill the waist between the middle and the posterior fossa.
    out = smin(out, ellipsoid(p, (0, -24, -46), (74, 62, 42)), 8.0)
    ear = ellipsoid(half, (79, -24, -44), (4, 15, 28), turn_deg=-25)
    return smin(out, ear, 3.0)


def paint(head: HeadAnatomy, c: Canvas, skin: Array, inner: Array) -> None:
    """Paint everything outside the endocranium."""
    from medpipe.phantoms.anatomy import HeadLabel as L

    lumps = head.lumps(*c.p)
    texture = head.texture(*c.p)
    c.paint(L.SKIN, skin)
    c.paint(L.FAT, skin + 1.4)
    _paint_muscle(c, skin, inner, lumps, texture)
    _paint_skull(head, c, inner, lumps, texture)
    _paint_facial_bone(c)
    _paint_air(head, c)
    _paint_orbits(c)


def _paint_muscle(c: Canvas, skin: Array, inner: Array, lumps: Array, texture: Array) -> None:
    from medpipe.phantoms.anatomy import HeadLabel as L

    z = c.p[2]
    # Over the vault the muscle is a thin sheet; below the skull base it fills the neck,
    # cut into bundles by fat.
    depth = np.where(z > -35, F(4.6), F(5.5)) + lumps * F(0.6)
    c.paint(L.MUSCLE, np.maximum(skin + depth, F(-2.2) * (texture + F(1.15))))
    if c.far((60, 22, -20), 45):
        return
    temporalis = ellipsoid(c.half, (61, 24, -22), (10, 26, 34), turn_deg=14)
    c.paint(L.MUSCLE, np.maximum(temporalis, skin + 3.5))


def _paint_skull(head: HeadAnatomy, c: Canvas, inner: Array, lumps: Array, texture: Array) -> None:
    from medpipe.phantoms.anatomy import HeadLabel as L

    x, y, z = c.p
    thick = F(head.subject.skull_mm) + F(0.7) * lumps
    thick = thick + F(3.5) * np.exp(-(((y + 88) / 16) ** 2 + ((z + 20) / 22) ** 2 + (x / 25) ** 2))
    thick = thick + F(2.0) * np.exp(-(((y - 84) / 16) ** 2 + (x / 20) ** 2))
    thick = thick - F(1.5) * np.exp(-(((np.abs(x) - 66) / 16) ** 2 + ((z + 15) / 18) ** 2))
    roof = (1 + np.tanh((y - 18) / 6)) * (1 + np.tanh((-16 - z) / 4)) * F(0.25)
    thick = thick - roof * F(0.6) * thick  # the orbital roof is thin
    # The canal of the spine is not skull.
    skull = np.where(z < -78, F(9), inner - thick)
    c.paint(L.CORTICAL_BONE, skull)
    plates = F(1.5) + F(0.3) * texture
    diploe = np.maximum(np.maximum(skull + plates, plates - inner), F(-20) - z)
    c.paint(L.DIPLOE, diploe)
    c.paint(L.CORTICAL_BONE, np.maximum(diploe, F(1.4) - texture))
    if c.far((0, -44, -100), 45):
        return
    ring = np.abs(inner - 4) - 3.5
    c.paint(L.CORTICAL_BONE, np.maximum(ring, np.abs(z + 96) - 7))
    c.paint(L.CORTICAL_BONE, np.maximum(ring, np.abs(z + 122) - 9))
    c.paint(L.CORTICAL_BONE, capsule(c.half, (20, -40, -96), (36, -38, -98), 5.0))


def _paint_facial_bone(c: Canvas) -> None:
    from medpipe.phantoms.anatomy import HeadLabel as L

    if c.far((0, 30, -62), 115):
        return
    c.ellipsoid(L.CORTICAL_BONE, (0, 4, -42), (17, 22, 17))  # body of the sphenoid
    c.capsule(L.CORTICAL_BONE, (0, -6, -40), (0, -24, -72), 6.5)  # clivus
    c.capsule(L.CORTICAL_BONE, (44, 62, -58), (67, 36, -56), 3.2)  # zygomatic arch
    c.capsule(L.CORTICAL_BONE, (67, 36, -56), (69, 2, -52), 2.6)
    c.capsule(L.CORTICAL_BONE, (47, 66, -56), (50, 64, -22), 4.2)  # lateral wall of the orbit
    c.capsule(L.CORTICAL_BONE, (50, 64, -22), (12, 82, -20), 3.0)  # upper rim
    c.capsule(L.CORTICAL_BONE, (20, 78, -56), (46, 67, -58), 2.6)  # lower rim
    c.capsule(L.CORTICAL_BONE, (7, 84, -28), (5, 92, -52), 2.0)  # nasal bones
    c.capsule(L.CORTICAL_BONE, (53, 4, -58), (51, 14, -125), 4.5)  # ramus of the mandible
    c.capsule(L.CORTICAL_BONE, (51, 14, -125), (8, 80, -138), 6.5)
    c.capsule(L.CORTICAL_BONE, (26, 14, -56), (24, 20, -92), 3.0)  # pterygoid
    c.ellipsoid(L.CORTICAL_BONE, (0, 58, -97), (24, 28, 3.5))  # hard palate
    c.ellipsoid(L.CORTICAL_BONE, (40, -20, -46), (33, 7.5, 12), turn_deg=-32)  # petrous ridge
    c.ellipsoid(L.CORTICAL_BONE, (56, -30, -56), (13, 16, 20))  # mastoid
    c.ellipsoid(L.DIPLOE, (0, 2, -44), (11, 12, 10))
    c.ellipsoid(L.DIPLOE, (36, -17, -46), (17, 4, 5), turn_deg=-32)


def _paint_air(head: HeadAnatomy, c: Canvas) -> None:
    from medpipe.phantoms.anatomy import HeadLabel as L

    if c.far((0, 30, -65), 100):
        return
    h = c.half
    x, y, z = h
    cells = np.abs(head.texture(x * F(1.5), y * F(1.5), z * F(1.5))) - F(0.35)
    for sinus in (
        ellipsoid(h, (31, 56, -76), (14, 17, 16)),  # maxillary
        ellipsoid(h, (9, 82, -14), (9, 3.2, 10)),  # frontal
    ):
        c.paint(L.CORTICAL_BONE, sinus - 1.8)
        c.paint(L.CAVITY_AIR, sinus)
    sphenoid = np.maximum(ellipsoid(h, (8, 22, -42), (8, 11, 9)), F(0.6) - x)
    c.paint(L.CORTICAL_BONE, sphenoid - F(1.6))
    c.paint(L.CAVITY_AIR, sphenoid)
    nose = ellipsoid(h, (0, 60, -70), (15, 36, 26))
    c.paint(L.SKIN, nose - 1.0)
    c.paint(L.CAVITY_AIR, np.maximum(nose, F(1.2) - x))
    turbinate = np.minimum(
        ellipsoid(h, (7.5, 60, -82), (3.2, 22, 6)), ellipsoid(h, (6.5, 56, -68), (2.4, 18, 5))
    )
    c.paint(L.MUSCLE, turbinate)
    ethmoid = ellipsoid(h, (7, 56, -42), (8, 22, 13))
    c.paint(L.CORTICAL_BONE, ethmoid - 1.2)
    c.paint(L.CAVITY_AIR, np.maximum(ethmoid, -2.0 * cells))
    c.paint(L.CAVITY_AIR, capsule(h, (0, 24, -78), (0, 8, -210), 8.0))
    mastoid = ellipsoid(h, (57, -30, -56), (9.5, 12, 16))
    c.paint(L.CAVITY_AIR, np.maximum(mastoid, -2.5 * cells))
    c.paint(L.CAVITY_AIR, capsule(h, (50, -16, -49), (84, -18, -50), 2.6))


def _paint_orbits(c: Canvas) -> None:
    from medpipe.phantoms.anatomy import HeadLabel as L

    if c.far((31, 60, -40), 45):
        return
    h = c.half
    y = h[1]
    orbit = ellipsoid(h, (31, 56, -40), (18.5, 30, 18), turn_deg=20)
    c.paint(L.CORTICAL_BONE, np.maximum(np.abs(orbit) - F(1.1), y - 74))
    c.paint(L.FAT, np.maximum(orbit + 0.5, y - 79))
    for a, b in (
        ((20, 34, -38), (25, 72, -40)),  # medial rectus
        ((20, 34, -38), (45, 66, -40)),  # lateral rectus
        ((20, 34, -36), (33, 70, -28)),  # superior rectus
        ((20, 34, -40), (33, 70, -52)),  # inferior rectus
    ):
        c.paint(L.MUSCLE, capsule(h, a, b, 1.9))
    c.paint(L.NERVE, capsule(h, (18, 30, -37), (32, 62, -40), 2.3))
    globe = ellipsoid(h, (33, 71, -40), (12.2, 12.2, 12.2))
    c.paint(L.SKIN, np.maximum(capsule(h, (20, 80, -40), (46, 74, -40), 7.0), globe - 4))
    c.paint(L.MUSCLE, globe)
    c.paint(L.EYE, globe + 1.2)
    c.paint(L.LENS, ellipsoid(h, (33.5, 79, -40), (4.6, 2.2, 4.6)))
