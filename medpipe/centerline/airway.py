"""The lumen of the airways in a chest CT: from the trachea outwards, stopped before it leaks.

The trachea is the round tube of air in the upper part of the body. From it a region
grows through air connected by faces; its threshold is raised as far as the region does
not break into the lung, after Mori et al. 1996 (doi 10.1109/ICPR.1996.547277) and 2000
(doi 10.1109/42.836369). Branches too thin for any one threshold are then added piece by
piece, where a dark tube goes on from what was found.

No chest CT with a reference was at hand: this is tested on phantoms alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch.nn import functional

from medpipe.centerline.vesselness import CONTRAST, checked_volume, vesselness
from medpipe.errors import StepError, UsageError
from medpipe.geometry import axis_codes, spacing_mm
from medpipe.steps._balls import dilate_ball
from medpipe.steps._components import fill_holes, label_components, touching

__all__ = ["AirwayMaskResult", "AirwayMaskSettings", "airway_mask", "find_trachea"]

AIR_HU = -500.0
"""Half-way from air to soft tissue."""

TRACHEA_MM = (8.0, 30.0)
"""Diameter of the trachea, that of a disc of the same area."""

TRACHEA_LONG_MM = 15.0
"""Length that a tube of air must have to be the trachea."""

START_HU = 50.0
"""The lowest threshold lies this far above the air of the trachea."""

REFINE_HU = 4.0
"""How closely the threshold is found."""

BACK_HU = 8.0
"""Step in which the threshold is taken back from a leak, while the region still swells."""

SWELL = 1.12
"""Growth of the region in one such step beyond which it is about to leak."""

WALL_MM = 2.0
"""How far from the lumen its wall is looked for."""

THIN_MM = 2.5
"""Radius of the widest tubes that are added piece by piece."""


@dataclass(frozen=True)
class AirwayMaskSettings:
    """How far the region may grow.

    Attributes
    ----------
    highest_hu : float
        The threshold is not raised beyond this.
    leak_ml : float
        A region of this size has broken into the lung: the airways that a CT shows hold
        less.
    grow_branches : bool
        Whether thin branches are added piece by piece.
    branch_hu : float
        How much darker than what surrounds it such a branch must be, as a tube.
    branch_ml : float
        A piece of this size is a leak and is refused.
    """

    highest_hu: float = -700.0
    leak_ml: float = 300.0
    grow_branches: bool = True
    branch_hu: float = 100.0
    branch_ml: float = 2.0

    def __post_init__(self) -> None:
        if not -1000 < self.highest_hu < 0:
            raise UsageError("highest_hu is out of range", expected="-1000 to 0 HU")
        if not min(self.leak_ml, self.branch_hu, self.branch_ml) > 0:
            raise UsageError(
                "leak_ml, branch_hu or branch_ml is wrong", expected="positive numbers"
            )


@dataclass(frozen=True, eq=False)
class AirwayMaskResult:
    """A mask of the airways and how it came about.

    Attributes
    ----------
    mask : Tensor of bool, shape (I, J, K)
        Lumen, one piece by faces.
    threshold_hu : float
        Air below it was followed.
    leak_hu : float or None
        The threshold at which the region broke into the lung; None if it never did.
    volume_ml : float
        Of the mask.
    branches_ml : float
        What was added piece by piece.
    refused : int
        Pieces refused as leaks.
    trachea_mm : float
        Diameter of the trachea.
    """

    mask: torch.Tensor
    threshold_hu: float
    leak_hu: float | None
    volume_ml: float
    branches_ml: float
    refused: int
    trachea_mm: float


def _host(mask: torch.Tensor) -> NDArray[np.bool_]:
    """Return a mask on the host, where components are labelled; one byte a voxel."""
    return mask.to("cpu", torch.bool).numpy()


def _slices(air: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Return the components of air within each slice of the last axis, and how many."""
    structure = np.zeros((3, 3, 3), bool)
    structure[:, :, 1] = ndimage.generate_binary_structure(2, 1)
    return ndimage.label(air, structure)


def _round(labels: NDArray[np.int32], count: int, steps: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which components of slices are discs of the size of a trachea."""
    where = np.nonzero(labels)
    number = labels[where]
    pixels = np.maximum(np.bincount(number, minlength=count + 1), 1)
    x, y = where[0] * steps[0], where[1] * steps[1]

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(number, values, minlength=count + 1) / pixels

    mx, my = mean(x), mean(y)
    # a pixel has an extent of its own
    xx = mean((x - mx[number]) ** 2) + steps[0] ** 2 / 12
    yy = mean((y - my[number]) ** 2) + steps[1] ** 2 / 12
    xy = mean((x - mx[number]) * (y - my[number]))
    area = pixels * steps[0] * steps[1]
    half = np.hypot((xx - yy) / 2, xy)
    long, short = (xx + yy) / 2 + half, np.maximum((xx + yy) / 2 - half, 1e-9)
    filled = area / (4 * np.pi * np.sqrt(long * short))  # 1 for an ellipse
    wide = np.sqrt(4 * area / np.pi)
    good = (wide >= TRACHEA_MM[0]) & (wide <= TRACHEA_MM[1])
    return good & (filled > 0.85) & (short > 0.25 * long)


def _upright(affine: ArrayLike) -> tuple[tuple[int, int, int], bool]:
    """Return the order of axes that puts the superior one last, and whether it points down."""
    codes = axis_codes(affine)
    up = next(a for a in range(3) if codes[a] in "SI")
    a, b = (x for x in range(3) if x != up)
    return (a, b, up), codes[up] == "I"


def _outside(air: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int32], int]:
    """Return air that reaches the border of its slice, and the components of slices."""
    labels, count = _slices(air)
    is_open = np.zeros(count + 1, bool)
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        is_open[np.unique(side)] = True
    is_open[0] = False
    return is_open[labels], labels, count


def find_trachea(
    inside: ArrayLike, labels: NDArray[np.int32], count: int, steps_mm: ArrayLike
) -> tuple[NDArray[np.bool_], float]:
    """Return the trachea among the air of the body, and its diameter in mm.

    Parameters
    ----------
    inside : array of bool, shape (I, J, K)
        Air within the body; the last axis points upwards.
    labels : ndarray of int, shape (I, J, K)
        Components of it within each slice.
    count : int
        How many there are.
    steps_mm : array, shape (3,)
        Spacing.

    Returns
    -------
    mask : ndarray of bool, shape (I, J, K)
        Its slices that are round.
    diameter_mm : float
        Of a disc of the mean area.

    Raises
    ------
    StepError
        If no round tube of air is long enough.
    """
    steps = np.asarray(steps_mm, float)
    air = np.asarray(inside, bool)
    discs = air & _round(labels, count, steps)[labels]
    discs[:, :, : air.shape[2] // 2] = False  # stomach and bowel hold air too
    pieces, found = ndimage.label(discs)
    best, score = 0, -np.inf
    middle = (np.asarray(air.shape[:2]) - 1) / 2 * steps[:2]
    for number, box in enumerate(ndimage.find_objects(pieces), 1):
        long = (box[2].stop - box[2].start) * steps[2]
        centre = [(b.start + b.stop - 1) / 2 * s for b, s in zip(box[:2], steps[:2], strict=True)]
        value = long - 0.5 * float(np.hypot(*(centre - middle)))
        if long >= TRACHEA_LONG_MM and value > score:
            best, score = number, value
    if not found or not best:
        raise StepError(
            "no trachea was found",
            expected=f"a round tube of air of {TRACHEA_MM[0]:g}..{TRACHEA_MM[1]:g} mm, "
            f"{TRACHEA_LONG_MM:g} mm long, in the upper half of the image",
            hint="check that the image is a chest CT in HU that shows the trachea",
        )
    mask = pieces == best
    slices = mask.any((0, 1)).sum()
    return mask, float(np.sqrt(4 * mask.sum() * steps[0] * steps[1] / slices / np.pi))


class _Region:
    """Air connected with the trachea, by threshold."""

    def __init__(self, hu: torch.Tensor, seed: torch.Tensor, ml: float) -> None:
        self.hu, self.seed, self.ml = hu, seed, ml

    def mask(self, threshold: float) -> torch.Tensor:
        """Return the region below a threshold."""
        below = self.hu < threshold
        return touching(below, self.seed & below)

    def volume(self, threshold: float) -> float:
        """Return its volume in ml."""
        return float(self.mask(threshold).sum()) * self.ml

    def limit(self, low: float, s: AirwayMaskSettings) -> tuple[float, float | None]:
        """Return the highest threshold that does not leak, and where it does."""
        high = s.highest_hu
        if self.volume(high) <= s.leak_ml:
            return high, None
        if self.volume(low) > s.leak_ml:
            raise StepError(
                "the airways leak into the lung at the lowest threshold",
                expected=f"at most {s.leak_ml:g} ml of air below {low:.0f} HU",
                hint="check the scale of the image, or raise leak_ml",
            )
        first = low
        while high - low > REFINE_HU:
            middle = (low + high) / 2
            if self.volume(middle) > s.leak_ml:
                high = middle
            else:
                low = middle
        leak, size = high, self.volume(low)
        # small leaks come before the large one
        while low - BACK_HU > first:
            before = self.volume(low - BACK_HU)
            if size <= SWELL * before:
                break
            low, size = low - BACK_HU, before
        return low, leak


def _branches(
    hu: torch.Tensor,
    tree: torch.Tensor,
    spacing: tuple[float, float, float],
    ml: float,
    s: AirwayMaskSettings,
) -> tuple[torch.Tensor, int]:
    """Return dark tubes that go on from the tree, and how many leaks were refused."""
    low = 0.7 * float(np.prod(spacing)) ** (1 / 3)
    radii = [float(r) for r in np.geomspace(low, max(THIN_MM, 1.5 * low), 4)]
    window = hu.clamp(-1024.0, AIR_HU)
    dark = vesselness(window, spacing, radii, method="sato", polarity="dark").mul_(CONTRAST)
    tubes = (dark > s.branch_hu) & (hu < AIR_HU) & ~tree
    labels, count = label_components(tubes, 3)
    size = np.bincount(labels.ravel(), minlength=count + 1) * ml
    near = _host(dilate_ball(tree, 1.01 * max(spacing), spacing) & tubes)
    joined = np.zeros(count + 1, bool)
    joined[np.unique(labels[near])] = True
    joined[0] = False
    leaks = joined & (size > s.branch_ml)
    return torch.from_numpy((joined & ~leaks)[labels]).to(hu.device), int(leaks.sum())


def _with_rim(hu: torch.Tensor, tree: torch.Tensor, air_hu: float, mm: float) -> torch.Tensor:
    """Return a mask with the voxels beside it that are more air than wall.

    The wall is the brightest value near by: thin walls are darkened by partial volume.
    """
    reach = max(1, round(WALL_MM / mm))
    grey = hu[None, None]
    beside = tree.float()[None, None]
    for axis in range(3):
        size, pad = [1, 1, 1], [0, 0, 0]
        size[axis], pad[axis] = 2 * reach + 1, reach
        grey = functional.max_pool3d(grey, size, 1, pad)
    cross = torch.zeros((1, 1, 3, 3, 3), device=hu.device)
    for middle in ((1, 1, slice(None)), (1, slice(None), 1), (slice(None), 1, 1)):
        cross[(0, 0, *middle)] = 1
    touched = functional.conv3d(beside, cross, padding=1)[0, 0] > 0
    return tree | (touched & (hu < (grey[0, 0].clamp(max=0.0) + air_hu) / 2))


def airway_mask(
    image: torch.Tensor, affine: ArrayLike, settings: AirwayMaskSettings | None = None
) -> AirwayMaskResult:
    """Mask the lumen of trachea and bronchi in a chest CT.

    Parameters
    ----------
    image : Tensor, shape (I, J, K)
        HU.
    affine : array, shape (4, 4)
        Voxel index to RAS+ mm: says where up is.
    settings : AirwayMaskSettings, optional

    Returns
    -------
    AirwayMaskResult

    Raises
    ------
    StepError
        If the image is no volume of finite values, does not look like a CT in HU, shows
        no trachea, or leaks at the lowest threshold.
    """
    s = settings or AirwayMaskSettings()
    hu = checked_volume(image).float()
    order, down = _upright(affine)
    turned = hu.permute(order).flip(2) if down else hu.permute(order)
    steps = spacing_mm(affine)[list(order)]
    air = _host(turned < AIR_HU)
    if not 0.02 < air.mean() < 0.98 or not -1100 < float(hu[hu < AIR_HU].median()) < -700:
        raise StepError(
            "the image does not look like a CT of the chest in HU",
            expected="air near -1000 HU beside soft tissue",
            hint="rescale it to HU before",
        )
    border, labels, count = _outside(air)
    seed, wide = find_trachea(air & ~border, labels, count, steps)
    mask = torch.from_numpy(seed).to(hu.device)
    body = turned.masked_fill(torch.from_numpy(border).to(hu.device), 0.0)
    ml = float(np.prod(steps)) / 1000
    middle = float(body[mask].median())
    low = min(middle + START_HU, s.highest_hu)
    region = _Region(body, mask & (body < low), ml)
    threshold, leak = region.limit(low, s)
    x, y, z = (float(v) for v in steps)
    grown = fill_holes(region.mask(threshold))
    tree = fill_holes(_with_rim(body, grown, middle, (x * y * z) ** (1 / 3)))
    added, refused = torch.zeros_like(tree), 0
    if s.grow_branches:
        added, refused = _branches(body, tree, (x, y, z), ml, s)
    whole = touching(tree | added, region.seed)
    more = float((whole & ~tree).sum()) * ml
    back = whole.flip(2) if down else whole
    back = back.permute(*np.argsort(order).tolist()).contiguous()
    volume = float(back.sum()) * ml
    return AirwayMaskResult(back, threshold, leak, volume, more, refused, wide)
