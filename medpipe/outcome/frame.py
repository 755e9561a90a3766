"""A frame of the head for a CT, found without a template.

Three numbers come from symmetry: the midsagittal plane is the plane in which the head is
most like its mirror image (yaw, roll and place of the plane; as Liu et al. 2001,
doi 10.1109/42.918469, by correlation of the whole volume instead of slices). The fourth,
the pitch, comes from the inside of the skull: seen from the side it is longer than high,
and the direction of its long axis (second moments) hardly depends on what is inside. The
skin of the vertex and of forehead and occiput give the place. Bleeding, oedema and shift
inside the skull do not move the frame, which a registration of grey values would not
promise. Nothing is deformed and no voxel is resampled here: the result is a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from torch.nn import functional

from medpipe.errors import StepError
from medpipe.geometry import affine_from_parts
from medpipe.steps._base import affine_of, check_choice
from medpipe.steps._sampling import sample_grid
from medpipe.steps.head_ct import BrainMask
from medpipe.types import Affine, Finding, Json, Severity

__all__ = ["VERTEX_MM", "HeadPose", "Method", "face_areas_cm2", "find_pose", "points_mm"]

Method = Literal["symmetry", "none"]

VERTEX_MM = 85.0
"""Height of the vertex above the origin of the frame: about the level of the thalami."""

LEVEL_DEG = 19.0
"""Angle of the long axis of the inside of the skull above the horizontal of the frame, which
so runs about through orbits and ear canals; it differs by about 1° from head to head."""

MIN_SYMMETRY = 0.6
"""Least correlation of head and mirror image; below it the plane is not trusted."""

MAX_TURN_DEG = 50.0
MIN_ELONGATION = 1.08
MAX_CUT_CM2 = 20.0
"""Most area in which the inside of the skull may meet the end of the scan."""

MIRROR_MM = 4.0
MIRROR_SHAPE = (56, 64, 36)
BATCH = 64
LATTICE_EVERY = 3

Points = torch.Tensor
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadPose:
    """Where a head lies.

    Attributes
    ----------
    matrix : ndarray, shape (4, 4)
        RAS mm of the frame of the head (midsagittal plane x = 0, vertex at z = `VERTEX_MM`)
        to RAS mm of the image.
    symmetry : float or None
        Correlation of the head with its mirror image in the plane that was found.
    aligned, level : bool
        Whether the midsagittal plane, and whether the pitch was found.
    findings : tuple of Finding
        What could not be done.
    """

    matrix: Affine
    symmetry: float | None
    aligned: bool
    level: bool
    findings: tuple[Finding, ...] = ()

    @property
    def rotation_deg(self) -> dict[str, float]:
        """Pitch (chin up), roll (right ear down) and yaw (face to the left) of the head."""
        r = self.matrix[:3, :3]
        angles = {
            "pitch": np.arctan2(r[2, 1], r[2, 2]),
            "roll": -np.arcsin(np.clip(r[2, 0], -1, 1)),
            "yaw": np.arctan2(r[1, 0], r[0, 0]),
        }
        return {name: float(np.degrees(a)) for name, a in angles.items()}

    def facts(self) -> dict[str, Json]:
        """Return what is recorded of the pose, as JSON values."""
        return {
            "frame_to_input_ras_mm": self.matrix.tolist(),
            "rotation_deg": {k: round(v, 3) for k, v in self.rotation_deg.items()},
            "translation_mm": [round(float(t), 3) for t in self.matrix[:3, 3]],
            "symmetry": None if self.symmetry is None else round(self.symmetry, 4),
            "aligned": self.aligned,
            "level": self.level,
        }


def points_mm(mask: torch.Tensor, affine: Affine) -> Points:
    """Return the RAS mm of the voxels of a bool mask (I, J, K), float32 (n, 3)."""
    index = torch.nonzero(mask).to(torch.float32)
    linear = torch.tensor(affine[:3, :3].T, dtype=torch.float32, device=mask.device)
    return index @ linear + torch.tensor(affine[:3, 3], dtype=torch.float32, device=mask.device)


def face_areas_cm2(
    points: Points, voxel_mm3: float, affine: Affine, shape: Sequence[int], depth_mm: float = 4.0
) -> Array:
    """Return in what area an object meets each face of a field of view, shape (3, 2).

    Parameters
    ----------
    points : Tensor, shape (n, 3)
        RAS mm of the voxels of the object.
    voxel_mm3 : float
        Volume that each point stands for.
    affine, shape
        Grid of the field of view, sheared or not; its faces lie half a voxel beyond the
        outermost centres.
    depth_mm : float
        Thickness of the layer in which the object is measured.
    """
    inverse = np.linalg.inv(affine)
    plane_mm = 1 / np.linalg.norm(inverse[:3, :3], axis=1)
    rows = torch.tensor(inverse[:3], dtype=torch.float32, device=points.device)
    index = points @ rows[:, :3].T + rows[:, 3]
    areas = np.zeros((3, 2))
    for axis, n in enumerate(shape):
        limit = depth_mm / float(plane_mm[axis])
        ends = ((index[:, axis] + 0.5) < limit, (n - 0.5 - index[:, axis]) < limit)
        areas[axis] = [float(end.sum()) * voxel_mm3 / depth_mm / 100 for end in ends]
    return areas


def find_pose(
    small: MetaTensor,
    head: torch.Tensor,
    method: Method = "symmetry",
    fov: tuple[Affine, Sequence[int]] | None = None,
) -> HeadPose:
    """Find the frame of a head.

    Parameters
    ----------
    small : MetaTensor, shape (1, I, J, K)
        HU on an isotropic grid of about 2 mm, axes near R, A, S.
    head : Tensor of bool, shape (I, J, K)
        Mask of the head on that grid.
    method : {"symmetry", "none"}
        "none" finds the place alone and turns nothing.
    fov : affine and shape, optional
        Grid of the scan that `small` was made from, where it ends elsewhere.

    Returns
    -------
    HeadPose
        Turned only as far as could be found out; the findings say what could not.

    Raises
    ------
    StepError
        If the mask is empty.
    """
    check_choice("method", method, get_args(Method))
    if not bool(head.any()):
        raise StepError("the mask of the head is empty")
    affine = affine_of(small)
    points = points_mm(head, affine)
    if method == "none":
        return HeadPose(_placed(np.eye(3), points, None), None, False, False)
    scan = fov or (affine, small.shape[1:])
    copy, middle = _mirror_copy(small, head, points, scan)
    yaw, roll, offset, symmetry = _mirror_plane(copy)
    turned_far = max(abs(yaw), abs(roll)) > MAX_TURN_DEG
    if symmetry < MIN_SYMMETRY or turned_far:
        text = (
            "head_frame: no midsagittal plane was found"
            f" (symmetry {symmetry:.2f}, at least {MIN_SYMMETRY:g} is needed); nothing was turned"
        )
        refused = (Finding("outcome.head_frame", Severity.WARNING, text),)
        return HeadPose(_placed(np.eye(3), points, None), symmetry, False, False, refused)
    normal = _normal(yaw, roll)
    pitch, problem = _pitch(small, normal, scan)
    findings: tuple[Finding, ...] = ()
    if pitch is None:
        text = f"head_frame: the pitch was left as it is: {problem}"
        findings = (Finding("outcome.head_frame", Severity.WARNING, text),)
    axes = _axes(normal, pitch or 0.0)
    plane = float(normal @ middle) + offset
    matrix = _placed(axes, points, plane)
    return HeadPose(matrix, symmetry, True, pitch is not None, findings)


def _normal(yaw_deg: float, roll_deg: float) -> Array:
    """Return the direction to the right of a head, for its yaw and roll."""
    yaw, roll = np.radians((yaw_deg, roll_deg))
    return np.array([np.cos(yaw) * np.cos(roll), np.sin(yaw) * np.cos(roll), -np.sin(roll)])


def _axes(normal: Array, pitch_deg: float) -> Array:
    """Return the axes of the frame as columns: right, anterior, superior."""
    front = np.array([0.0, 1.0, 0.0]) - normal[1] * normal
    front /= np.linalg.norm(front)
    up = np.cross(normal, front)
    c, s = np.cos(np.radians(pitch_deg)), np.sin(np.radians(pitch_deg))
    return np.stack([normal, c * front + s * up, c * up - s * front], 1)


def _placed(axes: Array, points: Points, plane: float | None) -> Affine:
    """Return the matrix of a frame: its axes, and its origin from the skin.

    The vertex is the height above which 1 ml of the head lies; the middle between
    forehead and occiput is taken in the upper 90 mm, above the nose.
    """
    inside = points @ torch.tensor(axes, dtype=torch.float32, device=points.device)
    top = float(torch.topk(inside[:, 2], min(125, len(inside))).values[-1])
    upper = inside[inside[:, 2] > top - 90]
    ends = [_ends(upper[:, axis]) for axis in (0, 1)]
    x, y = (float(a + b) / 2 for a, b in ends)
    origin = np.array([x if plane is None else plane, y, top - VERTEX_MM])
    return affine_from_parts(axes, np.ones(3), axes @ origin)


def _ends(values: torch.Tensor) -> tuple[float, float]:
    """Return the lowest and highest value but 2 in a thousand."""
    n = max(1, round(0.002 * len(values)))
    low = torch.topk(values, n, largest=False).values[-1]
    return float(low), float(torch.topk(values, n).values[-1])


def _mirror_copy(
    small: MetaTensor, head: torch.Tensor, points: Points, fov: tuple[Affine, Sequence[int]]
) -> tuple[torch.Tensor, Array]:
    """Return the head on an upright 4 mm grid, shape (1, 2, I, J, K), and its middle.

    The first channel holds skin, soft tissue and bone, 0 outside the head; the second is 1
    within the scan. The grid begins at the vertex and ends above the neck, which turns on
    its own.
    """
    low, high = (np.array(p.tolist()) for p in torch.aminmax(points, dim=0))
    middle = (low + high) / 2
    extent = (np.array(MIRROR_SHAPE) - 1) * MIRROR_MM
    middle[2] = high[2] + 6 - extent[2] / 2
    grid = affine_from_parts(np.eye(3), np.full(3, MIRROR_MM), middle - extent / 2)
    hu = torch.nan_to_num(small.as_tensor()[0].float(), nan=-1000.0)
    shown = ((hu.clamp(-200, 800) + 200) / 1000 * head)[None]
    copy = sample_grid(shown, affine_of(small), grid, MIRROR_SHAPE, "linear", 0.0, True)
    inside = torch.ones(MIRROR_SHAPE, device=copy.device)
    index = points_mm(inside > 0, np.asarray(np.linalg.solve(fov[0], grid), np.float64))
    ends = torch.tensor([n - 0.5 for n in fov[1]], device=copy.device)
    within = ((index > -0.5) & (index < ends)).all(1).reshape(MIRROR_SHAPE)
    return torch.stack([copy[0] * within, within.float()])[None], middle


def _mirror_plane(copy: torch.Tensor) -> tuple[float, float, float, float]:
    """Return yaw and roll in degrees, offset in mm and symmetry of the plane of symmetry.

    A lattice of planes is looked at on 8 mm, and the best is followed on 8 and 4 mm by
    halving steps; a parabola through the last neighbours gives the fraction of a step.
    """
    coarse = functional.avg_pool3d(copy, 2)
    turns = np.arange(-48.0, 49.0, 8.0)
    planes = np.array(list(product(turns, turns[3:-3], np.arange(-16.0, 17.0, 8.0))))
    # which of planes 8 degrees apart is best shows in a part of the voxels
    lattice = _Symmetry(coarse, 2 * MIRROR_MM, every=LATTICE_EVERY)
    best = planes[int(np.argmax(lattice.of(planes)))]
    steps = np.array(list(product((-1.0, 0.0, 1.0), repeat=3)))
    middle = len(steps) // 2
    scores = np.zeros(len(steps))
    on_8_mm, on_4_mm = _Symmetry(coarse, 2 * MIRROR_MM), _Symmetry(copy, MIRROR_MM)
    for level, step in ((on_8_mm, 4.0), (on_8_mm, 2.0), (on_4_mm, 1.0)):
        for _ in range(6):
            scores = level.of(best + step * steps)
            at = int(np.argmax(scores))
            best = best + step * steps[at]
            if at == middle:
                break
    if int(np.argmax(scores)) == middle:
        best = best + _vertex_of_parabola(steps, scores)
    return float(best[0]), float(best[1]), float(best[2]), float(scores.max())


def _vertex_of_parabola(steps: Array, scores: Array) -> Array:
    """Return where a parabola through 27 neighbours is highest, within one step."""
    x, y, z = steps.T
    columns = [np.ones(len(steps)), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z]
    c = np.linalg.lstsq(np.stack(columns, 1), scores, rcond=None)[0]
    curve = np.array([[2 * c[4], c[7], c[8]], [c[7], 2 * c[5], c[9]], [c[8], c[9], 2 * c[6]]])
    if np.linalg.eigvalsh(curve).max() >= 0:
        return np.zeros(3)
    return np.clip(np.linalg.solve(curve, -c[1:4]), -1, 1)


class _Symmetry:
    """The correlation of a volume with its mirror image in planes, each computed once.

    What the scan does not hold on both sides counts on neither: the end of a scan is flat
    and would pull the plane upright.

    Parameters
    ----------
    volume : Tensor, shape (1, 2, I, J, K)
        Values, and 1 within the scan, on an isotropic grid along R, A, S.
    voxel_mm : float
    every : int
        Voxels of the head from one that is compared to the next.
    """

    def __init__(self, volume: torch.Tensor, voxel_mm: float, every: int = 1) -> None:
        self.volume, self.voxel_mm = volume, voxel_mm
        half = [(n - 1) / 2 for n in volume.shape[2:]]
        self.half = torch.tensor(half, device=volume.device)
        # where the head is not, its mirror image is not either, or is seen from there
        index = torch.nonzero(volume[0, 0] > 0)[::every]
        self.own, self.here = volume[0][:, index[:, 0], index[:, 1], index[:, 2]]
        self.at = index.float() - self.half
        self.known: dict[tuple[float, ...], float] = {}

    def of(self, planes: Array) -> Array:
        """Return the correlations (n,) in planes (n, 3).

        Parameters
        ----------
        planes : ndarray, shape (n, 3)
            Yaw and roll in degrees and distance from the middle of the grid in mm.
        """
        rows = [tuple(row) for row in planes.tolist()]
        new = [row for row in rows if row not in self.known]
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            self.known.update(zip(part, self._correlations(np.array(part)), strict=True))
        return np.array([self.known[row] for row in rows])

    def _correlations(self, planes: Array) -> list[float]:
        device = self.volume.device
        normals = np.stack([_normal(a, b) for a, b, _ in planes])
        mirror = np.eye(3) - 2 * normals[:, :, None] * normals[:, None, :]
        shift = 2 * planes[:, 2:] * normals / self.voxel_mm
        turned = self.at @ torch.tensor(mirror, dtype=torch.float32, device=device).mT
        turned = turned + torch.tensor(shift, dtype=torch.float32, device=device)[:, None]
        grid = (turned / self.half).flip(-1)[:, None, None]
        seen = functional.grid_sample(
            self.volume.expand(len(planes), -1, -1, -1, -1),
            grid,
            padding_mode="zeros",
            align_corners=True,
        ).flatten(2)
        return _correlation(self.own, seen[:, 0], self.here * seen[:, 1]).tolist()


def _correlation(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return weighted correlations of `a` (n) with each row of `b` (m, n)."""
    total = weight.sum(1, keepdim=True).clamp_min(1e-6)
    da = a - (weight @ a)[:, None] / total
    db = b - (weight * b).sum(1, keepdim=True) / total
    wa = weight * da
    norms = (wa * da).sum(1) * (weight * db * db).sum(1)
    return (wa * db).sum(1) / norms.sqrt().clamp_min(1e-6)


def _pitch(
    small: MetaTensor, normal: Array, fov: tuple[Affine, Sequence[int]]
) -> tuple[float | None, str]:
    """Return the pitch in degrees, or None and why it cannot be told."""
    try:
        brain = BrainMask()(small).as_tensor()[0] > 0
    except StepError:
        return None, "the inside of the skull was not found"
    affine = affine_of(small)
    points = points_mm(brain, affine)
    voxel_mm3 = float(abs(np.linalg.det(affine[:3, :3])))
    cut = float(face_areas_cm2(points, voxel_mm3, *fov).max())
    if cut > MAX_CUT_CM2:
        return None, f"the scan cuts the inside of the skull ({cut:.0f} cm² at its end)"
    axes = torch.tensor(_axes(normal, 0.0)[:, 1:], dtype=torch.float32, device=points.device)
    side = (points - points.mean(0)) @ axes
    spread = np.array((side.T @ side / len(side)).tolist())
    small_axis, large_axis = np.sqrt(np.linalg.eigvalsh(spread))
    if large_axis / small_axis < MIN_ELONGATION:
        return None, "the inside of the skull is as high as it is long"
    angle = 0.5 * np.degrees(np.arctan2(2 * spread[0, 1], spread[0, 0] - spread[1, 1]))
    pitch = float(angle) - LEVEL_DEG
    if abs(pitch) > MAX_TURN_DEG:
        return None, f"a pitch of {pitch:.0f}° is not believed (at most {MAX_TURN_DEG:g}°)"
    return pitch, ""
