"""An adult head as a function of world points.

`HeadAnatomy` knows where every tissue is; `head_ct` and `brain_mr` give it
the values of their modality. Everything is drawn in a template frame (RAS mm,
origin between the thalami), reached from the world by the subject's own affine
and a smooth displacement of 1 to 2 mm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medpipe.errors import UsageError
from medpipe.phantoms import anatomy_brain, anatomy_face
from medpipe.phantoms.shapes import Array, Canvas, F, capsule, ellipsoid, lattice, smax, smin
from medpipe.types import Affine

__all__ = ["HeadAnatomy", "HeadLabel", "Lesion", "Subject"]

CHUNK = 1 << 13
TILE = 64


class HeadLabel(IntEnum):
    """Values of the label maps."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    CORTICAL_BONE = 4
    DIPLOE = 5
    CAVITY_AIR = 6
    EYE = 7
    LENS = 8
    NERVE = 9
    CSF = 10
    VENTRICLE = 11
    GREY = 12
    WHITE = 13
    CAUDATE = 14
    PUTAMEN = 15
    PALLIDUM = 16
    THALAMUS = 17
    CEREBELLUM_GREY = 18
    CEREBELLUM_WHITE = 19
    BRAINSTEM = 20
    DURA = 21
    CALCIFICATION = 22
    BLOOD = 23
    TABLE = 24
    FOAM = 25


@dataclass(frozen=True, slots=True)
class Lesion:
    """A haemorrhage to put into the head.

    Attributes
    ----------
    kind : {"sah", "ich", "ivh", "sdh"}
        Subarachnoid, intracerebral, intraventricular or subdural.
    volume_ml : float
        Volume in the subject's own mm.
    side : {"left", "right"}
        Of an intracerebral or subdural haemorrhage.
    """

    kind: str
    volume_ml: float
    side: str = "left"

    def __post_init__(self) -> None:
        largest = {"sah": 60.0, "ich": 60.0, "ivh": 25.0, "sdh": 120.0}
        if self.kind not in largest:
            raise UsageError(
                "unknown kind of lesion", expected=" | ".join(largest), got=repr(self.kind)
            )
        if self.side not in ("left", "right"):
            raise UsageError("unknown side", expected="left | right", got=repr(self.side))
        if not 0.1 <= self.volume_ml <= largest[self.kind]:
            raise UsageError(
                "the lesion's volume does not fit into the head",
                expected=f"0.1..{largest[self.kind]:g} ml",
                got=f"{self.volume_ml:g} ml",
            )


@dataclass(frozen=True, slots=True)
class Subject:
    """What differs between two heads.

    Attributes
    ----------
    scale : tuple of float
        Size along x, y, z relative to the template.
    tilt_deg : tuple of float
        Pitch (chin up), roll and yaw of the head in the scanner.
    shift_mm : tuple of float
        Position of the template's origin in the world.
    ventricles : float
        Size of the ventricles relative to the template.
    atrophy_mm : float
        Widening of sulci and subarachnoid space.
    skull_mm : float
        Mean thickness of the vault.
    """

    scale: tuple[float, float, float]
    tilt_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    ventricles: float
    atrophy_mm: float
    skull_mm: float

    @classmethod
    def from_seed(cls, seed: int) -> Subject:
        """Draw a subject."""
        rng = np.random.default_rng([seed, 1])
        size = rng.normal(1.0, 0.025)
        scale = np.clip(size * rng.normal(1.0, 0.015, 3), 0.92, 1.08)
        tilt = np.clip(rng.normal(0, (4.0, 1.5, 2.0)), -8, 8)
        shift = np.clip(rng.normal(0, (2.0, 4.0, 4.0)), -9, 9)
        return cls(
            scale=_three(scale),
            tilt_deg=_three(tilt),
            shift_mm=_three(shift),
            ventricles=float(rng.uniform(0.85, 1.25)),
            atrophy_mm=float(rng.uniform(0.0, 0.5)),
            skull_mm=float(rng.uniform(5.5, 7.5)),
        )

    def to_template(self) -> NDArray[np.float64]:
        """Return the (3, 3) matrix that takes world mm, shift removed, to template mm."""
        pitch, roll, yaw = np.radians(self.tilt_deg)
        cx, sx, cy, sy, cz, sz = (f(a) for a in (pitch, roll, yaw) for f in (np.cos, np.sin))
        rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        return np.linalg.inv(rz @ ry @ rx @ np.diag(self.scale))


class HeadAnatomy:
    """Where each tissue of one simulated head is.

    Parameters
    ----------
    seed : int
        Chooses the subject and its folding; the same seed gives the same head.
    lesion : Lesion, optional
        A haemorrhage.
    subject : Subject, optional
        Replaces the one drawn from the seed.
    table : bool
        Whether the patient lies on a scanner's headrest.
    """

    def __init__(
        self,
        seed: int,
        *,
        lesion: Lesion | None = None,
        subject: Subject | None = None,
        table: bool = True,
    ) -> None:
        self.seed = seed
        self.subject = subject or Subject.from_seed(seed)
        self.lesion = lesion
        self.table = table
        self._matrix = self.subject.to_template()
        self._shift = np.asarray(self.subject.shift_mm)
        self._warp = [lattice(seed * 8 + 100 + axis, 70.0) for axis in range(3)]
        self.folds = anatomy_brain.Folds.from_seed(seed)
        self.texture = lattice(seed * 8 + 110, 9.0)
        self.lumps = lattice(seed * 8 + 111, 32.0)
        self.lesion_level = 0.0
        if lesion is not None:
            self.lesion_level = self._lesion_level(lesion)

    def labels(self, points_mm: ArrayLike) -> NDArray[np.uint8]:
        """Return the `HeadLabel` at RAS mm points, shape (..., 3) → (...)."""
        return self.paint(points_mm, np.zeros((len(HeadLabel), 1), F))[0]

    def paint(
        self, points_mm: ArrayLike, table: ArrayLike, edge_mm: float = 0.8
    ) -> tuple[NDArray[np.uint8], Array]:
        """Return labels and blended values at points.

        Parameters
        ----------
        points_mm : array_like, shape (..., 3)
            RAS mm.
        table : array_like, shape (labels, M)
            Value of each `HeadLabel`, row by row.
        edge_mm : float
            Width over which two tissues blend.

        Returns
        -------
        labels : ndarray of uint8, shape (...)
        values : ndarray of float32, shape (..., M)
        """
        points = np.asarray(points_mm)
        rows = np.asarray(table, F)
        shape = points.shape[:-1]
        if len(shape) == 1 and len(points) > CHUNK // 4:
            return self._paint_list(points, rows, edge_mm)
        labels = np.empty(shape, np.uint8)
        values = np.empty((*shape, rows.shape[1]), F)
        for at in _tiles(shape):
            block = points[at]
            canvas = self._canvas(block.reshape(-1, 3), rows, edge_mm)
            labels[at] = canvas.label.reshape(block.shape[:-1])
            values[at] = canvas.value.reshape(*block.shape[:-1], -1)
        return labels, values

    def _paint_list(
        self, points: NDArray[np.float64], rows: Array, edge_mm: float
    ) -> tuple[NDArray[np.uint8], Array]:
        """Paint a list of points, neighbours together: a compact block meets few shapes."""
        cell = np.floor(points / 24).astype(np.int64) + 512
        key = (cell[:, 0] << 20) + (cell[:, 1] << 10) + cell[:, 2]
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        labels = np.empty(len(points), np.uint8)
        values = np.empty((len(points), rows.shape[1]), F)
        for at in np.split(order, starts[1:]):
            canvas = self._canvas(points[at], rows, edge_mm)
            labels[at], values[at] = canvas.label, canvas.value
        return labels, values

    def sample(
        self, affine: Affine, shape: tuple[int, int, int], table: ArrayLike, edge_mm: float = 0.8
    ) -> tuple[NDArray[np.uint8], Array]:
        """Return `paint` on a whole voxel grid: labels (I, J, K) and values (I, J, K, M)."""
        rows = np.asarray(table, F)
        labels = np.empty(shape, np.uint8)
        values = np.empty((*shape, rows.shape[1]), F)
        a = np.asarray(affine, float)
        ij = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), -1)
        plane = ij @ a[:3, :2].T + a[:3, 3]
        for k in range(shape[2]):
            labels[:, :, k], values[:, :, k] = self.paint(plane + k * a[:3, 2], rows, edge_mm)
        return labels, values

    def _template(self, points: NDArray[np.float64]) -> tuple[Array, Array, Array]:
        q = ((points - self._shift) @ self._matrix.T).astype(F)
        return q[:, 0], q[:, 1], q[:, 2]

    def _bent(self, p: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, y, z = (a + F(0.9) * w(*p) for a, w in zip(p, self._warp, strict=True))
        return x, y, z

    def _canvas(self, points: NDArray[np.float64], rows: Array, edge_mm: float) -> Canvas:
        x, y, z = (points[:, i].astype(F) for i in range(3))
        whole = Canvas(x, y, z, rows, edge_mm)
        if self.table:
            _paint_table(whole)
        x, y, z = self._template(points)
        # Beyond these bounds there is air in every subject.
        wide = np.where(z > -20, F(104), F(120))
        near = (np.abs(x) < 100) & (np.abs(y) < wide) & (z < 100)
        at = np.flatnonzero(near)
        if at.size:
            straight = (x[at], y[at], z[at])
            part = whole.part(at)
            head = Canvas(*self._bent(straight), rows, edge_mm)
            head.label, head.value = part.label, part.value
            self._paint_head(head, straight)
            whole.put(at, head)
        return whole

    def _paint_head(self, head: Canvas, straight: tuple[Array, Array, Array]) -> None:
        inner = endocranium(head.p)
        outline = anatomy_face.outline(head.p, inner, self.subject.skull_mm)
        at = np.flatnonzero(outline < head.edge_mm)
        if not at.size:
            return
        body = head.part(at)
        inner = inner[at]
        # The fluid inside the skull covers whatever is painted there: paint only outside.
        outside = np.flatnonzero(inner > -body.edge_mm)
        if outside.size:
            shell = body.part(outside)
            anatomy_face.paint(self, shell, outline[at][outside], inner[outside])
            body.put(outside, shell)
        within = np.flatnonzero(inner < body.edge_mm)
        if within.size:
            brain = body.part(within)
            x, y, z = (a[at][within] for a in straight)
            anatomy_brain.paint(self, brain, inner[within], (x, y, z))
            body.put(within, brain)
        head.put(at, body)

    def _lesion_level(self, lesion: Lesion) -> float:
        """Return the level of the lesion's order field that encloses its volume."""
        if lesion.kind == "ich":
            return anatomy_brain.ich_scale(lesion.volume_ml, self.subject.scale)
        step = 1.6
        axes = [np.arange(-c, c, step) + step / 3 for c in (84.0, 104.0, 104.0)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1) + self._shift
        self.lesion_level = 1e6
        order = np.concatenate([self._lesion_order(plane) for plane in grid])
        wanted = round(lesion.volume_ml * 1000 / step**3)
        if order.size < wanted:
            raise UsageError(
                "the lesion's volume does not fit into the head",
                expected=f"at most {order.size * step**3 / 1000:.1f} ml in this subject",
                got=f"{lesion.volume_ml:g} ml",
            )
        return float(np.partition(order, wanted - 1)[wanted - 1])

    def _lesion_order(self, points: NDArray[np.float64]) -> Array:
        p = self._bent(self._template(points.reshape(-1, 3)))
        inner = endocranium(p)
        order = anatomy_brain.lesion_order(self, p, inner)
        near = np.flatnonzero((inner < 0) & (order < anatomy_brain.HIGHEST_LEVEL))
        labels = self.labels(points.reshape(-1, 3)[near])
        return order[near][labels == HeadLabel.BLOOD]


def _three(values: ArrayLike) -> tuple[float, float, float]:
    a, b, c = (float(v) for v in np.asarray(values))
    return a, b, c


def endocranium(p: tuple[Array, Array, Array]) -> Array:
    """Return the signed distance in mm to the inner table of the skull."""
    x, y, z = p
    ax = np.abs(x)
    # The vault: an egg, narrower in front, of a power between ellipse and box.
    u = ax * (F(1 / 69) * (1 + F(0.0016) * np.clip(y, -60, 90)))
    v = np.abs(y + 4) * F(1 / 86)
    w = np.abs(z) * np.where(z > 0, F(1 / 73), F(1 / 62))
    k = (u * u * np.sqrt(u) + v * v * np.sqrt(v) + w * w) ** F(0.42)
    r = np.sqrt(x * x + (y + 4) ** 2 + z * z)
    vault = F(0.96) * r * (1 - 1 / np.maximum(k, F(1e-3)))
    vault = np.where(k < 1e-3, F(-62), vault)
    floor = -(z + F(24) + F(0.12) * np.minimum(y - F(20), F(0)) - F(0.06) * ax)
    vault = smax(vault, floor, 10.0)
    half = (ax, y, z)
    temporal = ellipsoid(half, (37, 8, -28), (25, 36, 23), turn_deg=-8)
    fossa = ellipsoid(p, (0, -49, -34), (56, 42, 36))
    out = smin(smin(vault, temporal, 6.0), fossa, 9.0)
    petrous = ellipsoid(half, (40, -20, -46), (34, 8, 13), turn_deg=-32)
    out = smax(out, -petrous, 3.0)
    canal = capsule(p, (0, -40, -55), (0, -44, -230), 14.0, 10.0)
    return smin(out, canal, 5.0)


def _paint_table(canvas: Canvas) -> None:
    """A carbon headrest with foam: fixed to the scanner, not to the head."""
    mx, my, _ = canvas.middle
    if my - canvas.radius > -15 or math.hypot(mx, my) + canvas.radius < 85:
        return
    x, y, z = canvas.p
    cup = np.sqrt((x * F(1.1)) ** 2 + y * y) - F(118)
    beyond = np.maximum(y + F(15), np.abs(z) - F(400))
    canvas.paint(HeadLabel.FOAM, np.maximum(np.abs(cup + 5) - 4, beyond))
    canvas.paint(HeadLabel.TABLE, np.maximum(np.abs(cup) - F(1.3), beyond))


def _tiles(shape: tuple[int, ...]) -> list[Any]:
    """Return index tuples that cut an array into compact blocks of some thousand points."""
    if len(shape) == 0:
        return [(None,)]
    if len(shape) == 1:
        return [(slice(i, i + CHUNK),) for i in range(0, shape[0], CHUNK)]
    return [
        (*lead, slice(i, i + TILE), slice(j, j + TILE))
        for lead in np.ndindex(*shape[:-2])
        for i in range(0, shape[-2], TILE)
        for j in range(0, shape[-1], TILE)
    ]
