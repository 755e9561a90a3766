"""The brain in a T1-weighted MR of the head, as an optimal surface around its middle.

The brain extraction tool (Smith 2002, doi 10.1002/hbm.10062) blows up a balloon in the
middle of the head until it meets what is darker than the brain. Here the same evidence
is the cost of a star-shaped surface, and the best one is found by one minimum cut:
inside lies what is as bright as brain and hangs together with its core. Bridges to
dura and vessels are then cut by morphology.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from medpipe.errors import StepError
from medpipe.graphcut.columns import Columns, star_columns
from medpipe.graphcut.convex import ConvexPrior
from medpipe.graphcut.surfaces import SurfaceProblem, SurfaceResult, optimal_surfaces
from medpipe.steps._balls import close_ball, dilate_ball, erode_ball
from medpipe.steps._base import quantiles
from medpipe.steps._components import fill_holes, keep_largest, label_components, touching
from medpipe.types import Affine

__all__ = ["BrainMaskResult", "find_brain"]

HEAD_SHARE = 0.1
"""The head is brighter than this part of the 98th percentile."""
LEAST_HEAD_ML = 300.0
VERTEX_TO_MIDDLE_MM = 75.0
"""The middle of a brain lies about so far below the highest point of the head."""
BRAIN_HEIGHT_MM = 160.0
"""Nothing so far below the highest point of the head is brain."""
MIDDLE_MM = 45.0
"""Radius of a ball about the middle that holds hardly anything but brain."""
DARKEST, BRIGHTEST = 0.5, 1.25
"""Grey matter is brighter than this part of the median of that ball, white matter
darker than this multiple of its 90th percentile."""
SCALP_MM = 7.0
"""Scalp and skull together are thicker."""
CORE_MM = (4.0, 5.0, 6.0, 7.0, 8.0)
"""Erosions that sever the brain from muscles and dura, tried in this order."""
LARGEST_TISSUE_ML = 1600.0
"""Grey and white matter with the partial volume around them."""
MUSCLE = 0.9
"""Muscle is darker than this part of the median of the brain."""
GAP_MM = 8.0
"""Parts of the eroded brain, such as a temporal lobe, lie no further from the main part."""
MARGIN_MM = 4.0
"""How far cortex may reach beyond the core that is grown back."""
SURFACE_MM = (15.0, 120.0, 1.0)
"""First radius, last radius and node spacing of the columns."""
SMOOTHNESS = 0.3
"""Cost of 1 mm difference between neighbouring columns, in mm of tissue on one column."""
LARGEST_JUMP_MM = 12.0
SULCUS_MM = 10.0
"""Sulci narrower than twice this lie inside the mask."""
LARGEST_STRIPPED_ML = 2300.0
DARK_SHELL = 0.22
"""Under the surface of a head a larger share than this is as dark as skull."""
SKULL_MM = (3.0, 15.0)
"""The depth at which that is looked at."""

Spacing = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class BrainMaskResult:
    """A mask of the brain.

    Parameters
    ----------
    mask : Tensor
        Bool (X, Y, Z): brain and the cerebrospinal fluid in its sulci and ventricles.
    surface : SurfaceResult or None
        The optimal surface; None where the image was stripped of its skull before.
    middle_mm : tuple of float
        Where the columns start, RAS+ mm.
    """

    mask: torch.Tensor
    surface: SurfaceResult | None
    middle_mm: tuple[float, float, float]

    @property
    def stripped(self) -> bool:
        """Whether the image held no skull, so that all that is bright was kept."""
        return self.surface is None


def find_brain(image: torch.Tensor, affine: Affine) -> BrainMaskResult:
    """Return the brain in a T1-weighted MR of the head.

    Parameters
    ----------
    image : Tensor
        Intensities (X, Y, Z), bias corrected, with axes towards right, anterior
        and superior; voxels of about 2 mm suffice.
    affine : ndarray
        Voxel index to RAS+ mm, without shear.

    Returns
    -------
    BrainMaskResult
        The mask, on the grid of the image.

    Raises
    ------
    StepError
        If there is no head or no brain-like tissue in its middle.

    Notes
    -----
    The head must be upright in its coordinates within about 30°, as scanners store
    it, and its top must be in the image.
    """
    x = image.to(torch.float32)
    size = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = (float(size[0]), float(size[1]), float(size[2]))
    head = _head(x, spacing)
    middle, below = _middle(head, spacing)
    ball = head & (_distance(x.shape, middle, spacing, x.device) < MIDDLE_MM)
    if not bool(ball.any()):
        raise _no_brain()
    median, bright = quantiles(x[ball], [50, 90])
    if not median > 0:
        raise _no_brain()
    low, high = DARKEST * median, BRIGHTEST * bright
    at = affine[:3, :3] @ np.array(middle) + affine[:3, 3]
    place = (float(at[0]), float(at[1]), float(at[2]))
    if _is_stripped(x, head, low, spacing):
        return BrainMaskResult(fill_holes(head), None, place)
    tissue = (x > low) & (x < high) & head & ~below
    deep = erode_ball(head, SCALP_MM, spacing)
    near = _grown_core(x, tissue, deep, median, spacing)
    cost = torch.where(near & tissue, -1.0, 1.0)
    # as bright as fat next to the core: a vessel, contrast medium or noise
    cost[(tissue & ~near) | ((x >= high) & near)] = 0.3
    cost[below] = 3.0
    columns, surface = _surface(cost, place, affine)
    inside = columns.labels(surface.position_mm, tuple(x.shape), affine)[0] == 0
    return BrainMaskResult(_refine(inside, tissue, spacing), surface, place)


def _head(x: torch.Tensor, spacing: Spacing) -> torch.Tensor:
    """Return all that is brighter than air and hangs together, holes filled."""
    positive = x[x > 0]
    if positive.numel() == 0:
        raise StepError("the image has no positive values", expected="an MR magnitude image")
    bright = x > HEAD_SHARE * quantiles(positive, [98])[0]
    head = keep_largest(bright)
    if float(head.sum()) * _ml(spacing) < LEAST_HEAD_ML:
        raise StepError(
            "no head was found",
            expected=f"a bright object of at least {LEAST_HEAD_ML:g} ml",
            hint="check that the image is a T1-weighted MR of the whole head",
        )
    return fill_holes(close_ball(head, 6.0, spacing)) if not _zeros_around(x, head) else head


def _zeros_around(x: torch.Tensor, head: torch.Tensor) -> bool:
    """Return whether the image is 0 nearly everywhere outside."""
    outside = x[~head]
    return outside.numel() > 0 and float((outside == 0).float().mean()) > 0.9


def _middle(
    head: torch.Tensor, spacing: Spacing
) -> tuple[tuple[float, float, float], torch.Tensor]:
    """Return the index of the middle of the brain, and what is too low to be brain."""
    where = torch.nonzero(head)
    top = int(where[:, 2].max())
    lowest = top - BRAIN_HEIGHT_MM / spacing[2]
    upper = where[where[:, 2] > lowest].to(torch.float64).mean(0)
    height = max(top - VERTEX_TO_MIDDLE_MM / spacing[2], 0.0)
    level = torch.arange(head.shape[2], device=head.device)
    below = (level < lowest).expand(head.shape)
    return (float(upper[0]), float(upper[1]), height), below


def _distance(
    shape: torch.Size, middle: tuple[float, float, float], spacing: Spacing, device: torch.device
) -> torch.Tensor:
    """Return the distance of each voxel from an index, mm."""
    square = torch.zeros(shape, device=device)
    for axis, n in enumerate(shape):
        along = ((torch.arange(n, device=device) - middle[axis]) * spacing[axis]) ** 2
        square += along.view([-1 if a == axis else 1 for a in range(3)])
    return square.sqrt_()


def _is_stripped(x: torch.Tensor, head: torch.Tensor, low: float, spacing: Spacing) -> bool:
    """Return whether no dark skull lies under the surface of what is bright."""
    if float(head.sum()) * _ml(spacing) > LARGEST_STRIPPED_ML:
        return False
    filled = fill_holes(head)
    shell = erode_ball(filled, SKULL_MM[0], spacing) & ~erode_ball(filled, SKULL_MM[1], spacing)
    return bool(shell.any()) and float((x[shell] < low).float().mean()) < DARK_SHELL


def _grown_core(
    x: torch.Tensor, tissue: torch.Tensor, deep: torch.Tensor, median: float, spacing: Spacing
) -> torch.Tensor:
    """Return the core of the brain, grown back and `MARGIN_MM` wider.

    The erosion is the first that leaves no more than a brain: in some heads muscles
    of the neck hang on by a bridge that a smaller ball passes.
    """
    for erosion_mm in CORE_MM:
        core = _core(x, erode_ball(tissue & deep, erosion_mm, spacing), median, spacing)
        grown = dilate_ball(core, erosion_mm + MARGIN_MM, spacing)
        if float((grown & tissue).sum()) * _ml(spacing) < LARGEST_TISSUE_ML:
            break
    return grown


def _core(x: torch.Tensor, parts: torch.Tensor, median: float, spacing: Spacing) -> torch.Tensor:
    """Return the largest part of eroded tissue and those close to it that are as bright."""
    main = keep_largest(parts)
    if not bool(main.any()):
        raise _no_brain()
    labels, count = label_components(touching(parts, dilate_ball(main, GAP_MM, spacing)), 1)
    part = torch.from_numpy(labels).to(x.device, torch.int64)
    size = torch.bincount(part.reshape(-1), minlength=count + 1)
    total = torch.bincount(part.reshape(-1), x.reshape(-1), minlength=count + 1)
    chosen = total >= MUSCLE * median * size
    chosen[0] = False
    return chosen[part] | main


def _surface(
    cost: torch.Tensor, middle_mm: tuple[float, float, float], affine: Affine
) -> tuple[Columns, SurfaceResult]:
    """Return the columns and the surface with the least cost inside."""
    inner, outer, node = SURFACE_MM
    columns = star_columns(
        middle_mm, inner_mm=inner, outer_mm=outer, node_mm=node, device=cost.device
    )
    # beyond the image there is nothing to be inside
    inside = columns.sample(cost[None], affine, outside=1.0).to(torch.float64) * node
    problem = SurfaceProblem(
        torch.zeros_like(inside)[None],
        columns.positions_mm[None],
        ConvexPrior("linear", weight=SMOOTHNESS, max_jump_mm=LARGEST_JUMP_MM),
        region_costs=torch.stack([inside, torch.zeros_like(inside)]),
        links=columns.links,
    )
    return columns, optimal_surfaces(problem)


def _refine(inside: torch.Tensor, tissue: torch.Tensor, spacing: Spacing) -> torch.Tensor:
    """Return the tissue inside the surface without thin bridges, sulci closed."""
    wide = dilate_ball(inside, 2.0, spacing)
    candidates = tissue & wide
    kept = keep_largest(erode_ball(candidates, 2.0, spacing))
    brain = candidates & dilate_ball(kept, 4.0, spacing)
    return fill_holes(close_ball(brain, SULCUS_MM, spacing) & wide)


def _ml(spacing: Spacing) -> float:
    return float(np.prod(spacing)) / 1000


def _no_brain() -> StepError:
    return StepError(
        "no brain was found",
        expected="bright tissue in the middle of the head",
        hint="check that the image is an upright T1-weighted MR of the whole head",
    )
