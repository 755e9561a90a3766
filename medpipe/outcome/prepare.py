"""From a head CT in HU to a fixed grid in the frame of the head, by one interpolation.

The way back is kept: `to_input_space` takes a map on the prepared grid, a saliency map
for example, to the voxels of the scan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from torch.nn import functional

from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_from_parts, corners_mm, spacing_mm, to_mm
from medpipe.outcome.checks import (
    check_coverage,
    check_size,
    check_skull,
    check_slices,
    check_values,
)
from medpipe.outcome.frame import VERTEX_MM, Method, find_pose
from medpipe.steps._base import (
    affine_of,
    as_image,
    check_triple,
    facts_of,
    rewrap,
    with_facts,
)
from medpipe.steps._sampling import sample_grid
from medpipe.steps.head_ct import HeadMask
from medpipe.steps.spatial import MAX_VOXELS, Mode, Orient, Resample
from medpipe.types import Affine, Finding, Json

__all__ = [
    "GRIDS",
    "OUTSIDE_HU",
    "GridSettings",
    "Prepared",
    "checked",
    "frame_matrix",
    "grid_settings",
    "head_on_grid",
    "prepare_volume",
    "sample_prepared",
    "small_copy",
    "to_input_space",
]

OUTSIDE_HU = -1000.0
"""Value outside the scan, and the least value of a prepared volume: air."""
MOST_HU = 3071.0
SMALL_MM = 2.0


@dataclass(frozen=True)
class GridSettings:
    """The grid of prepared volumes; axes point to R, A and S of the head.

    Attributes
    ----------
    spacing_mm : tuple of three float
        Along x, y, z.
    size_voxels : tuple of three int
    top_margin_mm : float
        Air above the vertex. The grid hangs from the vertex, so that what is cut off in a
        long scan is the neck.
    method : {"symmetry", "none"}
        Whether the head is turned into its frame.
    """

    spacing_mm: tuple[float, float, float] = (1.18, 1.58, 1.10)
    size_voxels: tuple[int, int, int] = (128, 128, 160)
    top_margin_mm: float = 6.0
    method: Method = "symmetry"

    def __post_init__(self) -> None:
        check_triple("spacing_mm", self.spacing_mm)
        sizes = check_triple("size_voxels", self.size_voxels)
        if any(n % 1 for n in sizes) or np.prod(sizes) > MAX_VOXELS:
            raise UsageError(
                "size_voxels is wrong", expected=f"whole numbers, at most {MAX_VOXELS} voxels"
            )
        if not 0 <= self.top_margin_mm < VERTEX_MM:
            raise UsageError("top_margin_mm is wrong", expected=f"0..{VERTEX_MM:g}")

    def affine(self) -> Affine:
        """Return the affine of the grid: voxel index to RAS mm of the frame of the head."""
        spacing, size = np.array(self.spacing_mm), np.array(self.size_voxels)
        origin = -(size - 1) / 2 * spacing
        origin[2] = VERTEX_MM + self.top_margin_mm - (size[2] - 0.5) * spacing[2]
        return affine_from_parts(np.eye(3), spacing, origin)


GRIDS: dict[str, GridSettings] = {
    "paper": GridSettings(),
    "compact": GridSettings((2.5, 2.5, 2.5), (80, 96, 80)),
}
"""Named grids. ``paper`` is that of doi 10.3390/brainsci14010010 (151 × 202 × 176 mm);
``compact`` holds the whole head in 200 × 240 × 200 mm."""


def grid_settings(
    grid: str = "paper",
    spacing_mm: float | list[float] | None = None,
    size_voxels: int | list[int] | None = None,
    top_margin_mm: float | None = None,
    method: Method = "symmetry",
) -> GridSettings:
    """Return a named grid with the values that are given in place of its own.

    Raises
    ------
    UsageError
        If there is no such grid, or a value is wrong.
    """
    if grid not in GRIDS:
        raise UsageError("unknown grid", expected=" | ".join(GRIDS), got=repr(grid)[:40])
    own = GRIDS[grid]
    spacing = own.spacing_mm if spacing_mm is None else check_triple("spacing_mm", spacing_mm)
    size = own.size_voxels
    if size_voxels is not None:
        three = check_triple("size_voxels", size_voxels)
        if any(n % 1 for n in three):
            raise UsageError("size_voxels is wrong", expected="whole numbers")
        size = (int(three[0]), int(three[1]), int(three[2]))
    margin = own.top_margin_mm if top_margin_mm is None else top_margin_mm
    return GridSettings(spacing, size, margin, method)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared head CT.

    Attributes
    ----------
    hu : Tensor, shape (1, I, J, K), float32
        Whole HU in -1000..3071 on the fixed grid.
    head : Tensor, shape (1, I, J, K), uint8
        Mask of the head on the same grid.
    affine : ndarray, shape (4, 4)
        Voxel index to RAS mm of the frame; the same for every case.
    matrix : ndarray, shape (4, 4)
        RAS mm of the frame to RAS mm of the input.
    facts : dict
        What was measured on the way, as JSON values.
    findings : tuple of Finding
    """

    hu: torch.Tensor
    head: torch.Tensor
    affine: Affine
    matrix: Affine
    facts: dict[str, Json]
    findings: tuple[Finding, ...]


def small_copy(image: MetaTensor) -> MetaTensor:
    """Return a copy of 2 mm, axes near R, A, S: what checks and frame are found on."""
    data, affine = _block_means(image.as_tensor().float(), affine_of(image), np.full(3, SMALL_MM))
    return Orient("RAS")(Resample(SMALL_MM)(rewrap(image, data, affine)))


def _block_means(
    data: torch.Tensor, affine: Affine, target_mm: NDArray[np.float64]
) -> tuple[torch.Tensor, Affine]:
    """Return means of whole blocks of voxels no longer than a target, and their affine.

    That is the smoothing that a coarser grid needs, at a tenth of the cost of a Gaussian.
    """
    times = np.maximum(np.floor(target_mm / spacing_mm(affine) + 1e-3), 1).astype(int)
    times = np.minimum(times, data.shape[1:])
    if (times == 1).all():
        return data, affine
    kernel = (int(times[0]), int(times[1]), int(times[2]))
    place = affine.copy()
    place[:3, :3] *= times
    place[:3, 3] = to_mm(affine, (times - 1) / 2)
    return functional.avg_pool3d(data[None], kernel)[0], place


def sample_prepared(
    data: torch.Tensor, affine: Affine, matrix: Affine, settings: GridSettings
) -> torch.Tensor:
    """Return HU at the voxels of the prepared grid: the one interpolation there is.

    Parameters
    ----------
    data : Tensor, shape (1, I, J, K)
        HU as loaded.
    affine : ndarray, shape (4, 4)
        Of `data`; a shear (tilted gantry) is no matter.
    matrix : ndarray, shape (4, 4)
        Frame of the head to the space of `affine`.
    settings : GridSettings

    Returns
    -------
    Tensor, shape (1, *size_voxels), float32
        Averaged along axes that become coarser, rounded to whole HU, `OUTSIDE_HU` outside.
    """
    target: Affine = np.asarray(matrix @ settings.affine(), np.float64)
    part, place = _cropped(data, affine, target, settings.size_voxels)
    if 0 in part.shape:
        raise StepError("the prepared grid lies outside the image", hint="check the head mask")
    hu = torch.nan_to_num(part.float(), nan=OUTSIDE_HU).clamp_(OUTSIDE_HU, MOST_HU)
    # steps of the grid along the voxel axes: 1.58 mm of it may be 3 voxels of one axis
    steps_mm = np.abs(np.linalg.solve(place[:3, :3] / spacing_mm(place), target[:3, :3])).max(1)
    means, place = _block_means(hu, place, steps_mm)
    out = sample_grid(means, place, target, settings.size_voxels, "linear", OUTSIDE_HU, True)
    return out.round_()


def _cropped(
    data: torch.Tensor, affine: Affine, target: Affine, shape: tuple[int, int, int]
) -> tuple[torch.Tensor, Affine]:
    """Return the part of an image that a grid can see, and its affine.

    Half of a field of view is air; smoothing it would take as long as the rest.
    """
    back = np.linalg.solve(affine, target)
    corners = to_mm(back, corners_mm(np.eye(4), shape))
    reach = np.ceil(1.5 * np.maximum(np.linalg.norm(back[:3, :3], axis=1), 1)) + 2
    low = np.maximum(np.floor(corners.min(0) - reach), 0).astype(int)
    high = np.minimum(np.ceil(corners.max(0) + reach) + 1, data.shape[1:]).astype(int)
    view = tuple(slice(int(a), max(int(a), int(b))) for a, b in zip(low, high, strict=True))
    place = affine.copy()
    place[:3, 3] = to_mm(affine, low)
    return data[(slice(None), *view)], place


def prepare_volume(
    hu: torch.Tensor,
    affine: Affine,
    settings: GridSettings | None = None,
    source: Mapping[str, Any] | None = None,
) -> Prepared:
    """Check a head CT, find the frame of the head and bring it to the fixed grid.

    Parameters
    ----------
    hu : Tensor, shape (1, I, J, K)
        HU on any grid, on any device; a tilted gantry may be a shear of `affine`.
    affine : ndarray, shape (4, 4)
        Voxel index to RAS mm.
    settings : GridSettings, optional
        By default the grid of the paper.
    source : mapping, optional
        Facts of a reader: modality, contrast, slices as acquired.

    Returns
    -------
    Prepared

    Raises
    ------
    InputError
        If it is no CT of a head in HU, or too little of one (`medpipe.outcome.checks`).
    StepError
        If no head is found.
    """
    wanted = settings or GridSettings()
    known = dict(source or {})
    image = as_image(MetaTensor(hu, affine=torch.from_numpy(np.array(affine, float))))
    if image.shape[0] != 1 or image.is_complex():
        raise StepError("the image is no CT", expected="one channel of real values in HU")
    image = with_facts(image, known)
    small = small_copy(image)
    mask, facts, findings = checked(image, small)
    head = mask.as_tensor()[0] > 0
    fov = (affine_of(image), tuple(image.shape[1:]))
    pose = find_pose(small, head, wanted.method, fov)
    out = sample_prepared(image.as_tensor(), fov[0], pose.matrix, wanted)
    return Prepared(
        out,
        head_on_grid(mask, pose.matrix, wanted),
        wanted.affine(),
        pose.matrix,
        {"ct_check": facts, "head_frame": pose.facts()},
        (*findings, *pose.findings),
    )


def checked(
    image: MetaTensor, small: MetaTensor
) -> tuple[MetaTensor, dict[str, Json], list[Finding]]:
    """Return the mask of the head on the small copy, facts and findings of all checks.

    Raises
    ------
    InputError, StepError
        If it is no CT of a head in HU, or too little of one.
    """
    source = facts_of(image)
    fov = (affine_of(image), tuple(image.shape[1:]))
    facts, findings = check_values(small, source.get("modality"))
    slices, told = check_slices(*fov, source)
    mask = HeadMask()(small)
    head = mask.as_tensor()[0] > 0
    size = check_size(small, head)
    coverage, cuts = check_coverage(small, head, fov)
    skull, doubts = check_skull(small, head, source)
    return mask, facts | slices | size | coverage | skull, [*findings, *told, *cuts, *doubts]


def head_on_grid(mask: MetaTensor, matrix: Affine, settings: GridSettings) -> torch.Tensor:
    """Return a mask of the head, on any grid, at the voxels of the prepared grid, uint8."""
    target: Affine = np.asarray(matrix @ settings.affine(), np.float64)
    soft = mask.as_tensor().float()
    size = settings.size_voxels
    return (sample_grid(soft, affine_of(mask), target, size, "linear", 0.0, False) >= 0.5).to(
        torch.uint8
    )


def frame_matrix(image: MetaTensor) -> Affine:
    """Return the matrix in the facts of an image: frame of the head to input, RAS mm.

    Raises
    ------
    StepError
        If the image was not prepared.
    """
    frame = facts_of(image).get("head_frame") or {}
    if "frame_to_input_ras_mm" not in frame:
        raise StepError(
            "the image knows no frame of the head", hint="use head_frame before this step"
        )
    return np.array(frame["frame_to_input_ras_mm"], np.float64)


def to_input_space(
    values: MetaTensor, like: Any, matrix: Affine | None = None, mode: Mode = "linear"
) -> MetaTensor:
    """Bring a map on the prepared grid back to the voxels of the scan.

    Parameters
    ----------
    values : MetaTensor, shape (C, I, J, K)
        A map on the grid of a prepared volume, for example saliency.
    like : MetaTensor, shape (C, I, J, K)
        The scan as it was loaded; only its grid is used.
    matrix : ndarray, shape (4, 4), optional
        Frame of the head to scan; by default the one in the facts of `values`.
    mode : {"linear", "nearest", "cubic"}

    Returns
    -------
    MetaTensor
        On the grid of `like`, 0 where the prepared grid did not reach.
    """
    back = frame_matrix(values) if matrix is None else matrix
    scan = as_image(like)
    placed: Affine = np.asarray(back @ affine_of(values), np.float64)
    target, size = affine_of(scan), tuple(scan.shape[1:])
    data = values.as_tensor()
    return rewrap(values, sample_grid(data, placed, target, size, mode, 0.0, True), target)
