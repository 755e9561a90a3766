"""Where the panels of a mosaic lie and which part of the patient each one shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from medpipe.figures.sampling import VIEW_AXES, Canonical, Plane

__all__ = ["Layout", "Panel", "foreground_box_mm", "plan_layout"]

WIDTH = 1560
MARGIN = 14
GAP = 6
HEADER = 40
STRIP_MAX = 470
ROW_MAX = 250
MIN_PX = 10
_SUB = 96


@dataclass(frozen=True, slots=True)
class Panel:
    """A plane and its top left corner on the canvas; `full` marks the full-FOV cuts."""

    plane: Plane
    x: int
    y: int
    full: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom on the canvas."""
        w, h = self.plane.size_px
        return self.x, self.y, self.x + w, self.y + h


@dataclass(frozen=True, slots=True)
class Layout:
    """Panels and the size of the canvas up to the legend."""

    panels: tuple[Panel, ...]
    width: int
    height: int

    def strip_box(self) -> tuple[int, int, int, int]:
        """Return the box around the full-FOV cuts."""
        boxes = np.array([p.box for p in self.panels if p.full])
        left, top = boxes[:, :2].min(0).tolist()
        right, bottom = boxes[:, 2:].max(0).tolist()
        return left, top, right, bottom


def foreground_box_mm(volume: Canonical, threshold: float, fov: np.ndarray) -> np.ndarray:
    """Return the box (3, 2) in mm around the voxels above a threshold, inside the FOV box.

    The outermost 0.2 % of the voxels along each axis are left out (tables,
    noise), and 3 % of the FOV is added on each side. Without such voxels it is
    the FOV.
    """
    import torch
    from torch.nn import functional

    strides = [max(1, math.ceil(n / _SUB)) for n in volume.data.shape]
    part = volume.data[:: strides[0], :: strides[1], :: strides[2]]
    mask = (part > threshold).float()[None]
    # Eroding once leaves out thin things: head holders, blankets, tubes.
    core = -functional.max_pool3d(-mask, 3, stride=1, padding=1)
    index = torch.nonzero(core[0] if float(core.sum()) >= 4 else mask[0]).double()
    if index.shape[0] < 4:
        return fov
    index *= torch.tensor(strides, dtype=torch.float64, device=index.device)
    affine = torch.as_tensor(volume.affine, dtype=torch.float64, device=index.device)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    ordered = torch.sort(mm, dim=0).values
    cut = int(0.002 * (ordered.shape[0] - 1))
    box = torch.stack([ordered[cut], ordered[-1 - cut]], 1).cpu().numpy()
    reach = np.abs(volume.affine[:3, :3]) @ np.array(strides, float) / 2
    margin = reach + 0.03 * (fov[:, 1] - fov[:, 0])
    box = box + np.stack([-margin, margin], 1)
    return np.stack([np.maximum(box[:, 0], fov[:, 0]), np.minimum(box[:, 1], fov[:, 1])], 1)


def _snap(volume: Canonical, axis: int, positions: np.ndarray) -> list[float]:
    """Move positions onto voxel planes where the grid has planes across this world axis."""
    affine = volume.affine
    step = affine[axis, axis]
    others = [a for a in range(3) if a != axis]
    if max(abs(affine[axis, o]) * volume.data.shape[o] for o in others) > 0.5 * abs(step):
        return [float(p) for p in positions]
    base = affine[axis, 3]
    index = np.clip(np.round((positions - base) / step), 0, volume.data.shape[axis] - 1)
    return [float(base + step * i) for i in dict.fromkeys(index.tolist())]


def _plane(view: str, position: float, box: np.ndarray, mm_per_px: float) -> Plane:
    _, col, row = VIEW_AXES[view]
    size = [max(1, round((box[a, 1] - box[a, 0]) / mm_per_px)) for a in (col, row)]
    centre = float(box[col].mean()), float(box[row].mean())
    return Plane(view, position, centre, (size[0], size[1]), mm_per_px)


def _extent(box: np.ndarray, view: str) -> tuple[float, float]:
    _, col, row = VIEW_AXES[view]
    return box[col, 1] - box[col, 0], box[row, 1] - box[row, 0]


def _visible(shape: tuple[int, ...], box: np.ndarray, mm_per_px: float) -> list[str]:
    """Drop views that would be slivers or show one voxel's thickness, as those of a slice do."""
    kept = [
        view
        for view, (_, col, row) in VIEW_AXES.items()
        if min(_extent(box, view)) / mm_per_px >= MIN_PX and min(shape[col], shape[row]) > 1
    ]
    return kept or [max(VIEW_AXES, key=lambda v: min(_extent(box, v)))]


def plan_layout(
    volume: Canonical,
    fov: np.ndarray,
    foreground: np.ndarray,
    slices_box: np.ndarray,
    centre_mm: np.ndarray,
    n_slices: int,
) -> Layout:
    """Lay out full-FOV cuts first, then one row of slices for each view.

    Parameters
    ----------
    volume : Canonical
    fov, foreground, slices_box : ndarray (3, 2)
        Boxes in mm: of the grid, of what the rows show, and of what the slice
        positions are spread over.
    centre_mm : ndarray (3,)
        Where the full-FOV cuts cross.
    n_slices : int
        Slices in a row.
    """
    views = list(VIEW_AXES)
    inner = WIDTH - 2 * MARGIN
    tallest = max(_extent(fov, v)[1] for v in views)
    scale = max(sum(_extent(fov, v)[0] for v in views) / (inner - 2 * GAP), tallest / STRIP_MAX)
    strip = _visible(tuple(volume.data.shape), fov, scale)
    if len(strip) < len(views):
        wide, tall = (max(_extent(fov, v)[d] for v in strip) for d in (0, 1))
        scale = max(wide * len(strip) / (inner - 2 * GAP), tall / STRIP_MAX)
    centre = [_snap(volume, a, centre_mm[a : a + 1])[0] for a in range(3)]
    lines = [([_plane(v, centre[VIEW_AXES[v][0]], fov, scale) for v in strip], True)]

    wide, tall = (max(_extent(foreground, v)[d] for v in strip) for d in (0, 1))
    whole = scale
    scale = max((wide * n_slices) / (inner - (n_slices - 1) * GAP), tall / ROW_MAX)
    if len(strip) == 1 and volume.data.shape[VIEW_AXES[strip[0]][0]] == 1:
        # a single slice: its foreground once more, as large as it gets, if that shows more
        scale = max(wide / inner, tall / STRIP_MAX)
        strip = strip if scale < 0.95 * whole else []
    for view in strip:
        axis = VIEW_AXES[view][0]
        low, high = slices_box[axis]
        spread = low + (np.arange(n_slices) + 0.5) / n_slices * (high - low)
        positions = _snap(volume, axis, spread)
        lines.append(([_plane(view, p, foreground, scale) for p in positions], False))
    return _place(lines)


def _place(lines: list[tuple[list[Plane], bool]]) -> Layout:
    widest = max(sum(p.size_px[0] for p in planes) + GAP * (len(planes) - 1) for planes, _ in lines)
    width = min(WIDTH, max(widest + 2 * MARGIN, 900))
    panels, y = [], HEADER
    for planes, full in lines:
        used = sum(p.size_px[0] for p in planes)
        room = width - 2 * MARGIN - used
        between = min(room / max(len(planes) - 1, 1), 40.0) if not full else GAP
        x = MARGIN + (room - between * (len(planes) - 1)) / 2
        tallest = max(p.size_px[1] for p in planes)
        for plane in planes:
            panels.append(Panel(plane, round(x), y + (tallest - plane.size_px[1]) // 2, full))
            x += plane.size_px[0] + between
        y += tallest + (3 * GAP if full else GAP)
    return Layout(tuple(panels), width, y)
