"""Contrast-filled vessels in CT and MR angiography as a mask, without a trained model.

Three kinds of evidence are joined, all with thresholds from the image itself:

* *tubes*: `sato` times e is the contrast of the tube that would give that answer, so it
  is compared with the contrast of blood, at radii from a voxel to a few mm;
* *wide lumens*: regions as bright as blood that a ball fits in, whatever their shape;
* *edges*: a voxel belongs to a vessel if it is brighter than half-way between its
  surroundings and the brightest blood near by (full width at half maximum), so a thin
  branch that partial volume darkens keeps its width.

Voxels of a vessel by its edges are kept where they hang together with a tube or a wide
lumen (hysteresis). In CT, bone is what lies around large pieces brighter than blood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.segmentation import watershed
from torch.nn import functional

from medpipe.centerline.vesselness import CONTRAST, checked_volume, vesselness
from medpipe.errors import StepError, UsageError
from medpipe.steps._balls import close_ball, open_ball
from medpipe.steps._components import fill_holes, label_components, touching

__all__ = ["Levels", "Modality", "VesselMaskResult", "VesselMaskSettings", "vessel_mask"]

Modality: TypeAlias = Literal["cta", "mra"]
Spacing: TypeAlias = tuple[float, float, float]

SOFT_HU = (-50.0, 150.0)
"""Where the soft tissue of a CT lies, contrast of organs included."""

WINDOW_MM = 2.5
"""How far the brightest blood near by is looked for."""

WIDEST_MM = 8.0
"""Radius of the widest tubes that are looked for; wider ones are wide lumens."""

WIDE_MM = 2.5
"""Radius of the ball that fits into a wide lumen."""

LOW = 0.15
"""Share of the contrast of blood that every voxel of a vessel has at least."""

WEAK = 0.4
"""Share of the contrast to noise that every voxel of a vessel has at least."""

BONE_GAP_MM = 2.0
"""Radius of the gaps in the shell of a bone that are closed."""

BONE_MM3 = 50.0
"""Pieces brighter than blood that are smaller count as calcium, as part of the vessel."""

EVEN = 8.0
"""Range of neighbouring voxels of blood at most, in standard deviations of the noise."""

WINDOW_ABOVE_HU = 300.0
"""How far above tissue tubes are weighed in CT before blood is known."""

SAMPLE = 4_000_000
"""Voxels that statistics are taken of at most."""


@dataclass(frozen=True)
class VesselMaskSettings:
    """What is looked for.

    Attributes
    ----------
    modality : {"cta", "mra"}
        Values in HU with bone, or bright blood in arbitrary units without.
    radius_mm : tuple of float
        Radii of the tubes; by default from 0.7 voxels to 8 mm, each at most 1.8 times
        the one before.
    contrast : float
        Share of the contrast of blood that the strongest voxel of a vessel must show as
        a tube; lower finds thinner branches and more that is none.
    noise : float
        Contrast in standard deviations of the noise that anything found must have.
    bone_hu : float, optional
        What is brighter, in large pieces, is bone or metal; by default 250 HU above
        blood and at least 600 HU.
    min_volume_mm3 : float
        Smaller pieces are dropped.
    pieces : int
        How many of the largest pieces are kept; 0 keeps all. With seeds, the pieces
        that these touch are kept.
    """

    modality: Modality = "cta"
    radius_mm: tuple[float, ...] = ()
    contrast: float = 0.35
    noise: float = 4.0
    bone_hu: float | None = None
    min_volume_mm3: float = 100.0
    pieces: int = 0

    def __post_init__(self) -> None:
        if self.modality not in ("cta", "mra"):
            raise UsageError("unknown modality", expected="cta | mra", got=repr(self.modality)[:40])
        if not 0 < self.contrast < 1:
            raise UsageError("contrast is out of range", expected="a share between 0 and 1")
        if not self.noise > 0 or not self.min_volume_mm3 >= 0 or self.pieces < 0:
            raise UsageError(
                "noise, min_volume_mm3 or pieces is wrong", expected="numbers that are not negative"
            )


@dataclass(frozen=True)
class Levels:
    """What the image says about itself, in its units.

    Attributes
    ----------
    tissue, noise : float
        Median of the surroundings of vessels, and standard deviation of their noise.
    blood : float
        Median of contrast-filled blood.
    bone : float or None
        Beyond which large pieces are bone or metal; none in MR.
    """

    tissue: float
    noise: float
    blood: float
    bone: float | None


@dataclass(frozen=True, eq=False)
class VesselMaskResult:
    """A mask and what it rests on.

    Attributes
    ----------
    mask : Tensor of bool, shape (I, J, K)
    levels : Levels
    pieces, dropped : int
        How many pieces (26-connected) the mask has, and how many were left out.
    """

    mask: torch.Tensor
    levels: Levels
    pieces: int
    dropped: int


def _sample(values: torch.Tensor) -> torch.Tensor:
    """Return at most `SAMPLE` of the values, evenly taken."""
    flat = values.flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)]


def _spread(values: torch.Tensor, middle: float) -> float:
    """Return a robust standard deviation: 1.48 times the median distance to the middle."""
    return 1.4826 * float((values - middle).abs().median())


def _even(image: torch.Tensor, floor: float, noise: float | None, reach: int) -> torch.Tensor:
    """Return voxels whose neighbours up to `reach` are above `floor` and nearly alike."""
    size = 2 * reach + 1
    least = -functional.max_pool3d(-image[None, None], size, 1, reach)[0, 0]
    even = least > floor
    if noise is not None:
        most = functional.max_pool3d(image[None, None], size, 1, reach)[0, 0]
        even &= most - least < EVEN * noise
    return even


def _surroundings(image: torch.Tensor, modality: Modality) -> tuple[float, float]:
    """Return the level of tissue without contrast, and the standard deviation of its noise."""
    if modality == "mra":
        # what is textured but no vessel must not be found, so texture counts as noise
        values = _sample(image)
        values = values[values <= 3 * values.median()]
        tissue = float(values.median())
        return tissue, _spread(values, tissue)
    # of single voxels those with little noise would be chosen
    mean = functional.avg_pool3d(image[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    soft = (mean >= SOFT_HU[0]) & (mean <= SOFT_HU[1])
    values = image[soft]
    if values.numel() < 0.01 * image.numel():
        raise StepError(
            "the image does not look like a CT in HU",
            expected=f"soft tissue of {SOFT_HU[0]:g}..{SOFT_HU[1]:g} HU in 1 % of the voxels",
            got=f"{100 * values.numel() / image.numel():.2g} %",
            hint='for MR angiography set modality = "mra"',
        )
    steps = (image[1:] - image[:-1])[soft[1:] & soft[:-1]]
    return float(_sample(values).median()), _spread(_sample(steps), 0.0) / 2**0.5


def _evenly_bright(
    image: torch.Tensor, tubes: torch.Tensor, floor: float, noise: float | None
) -> torch.Tensor:
    """Return the values of blood: of wide lumens, else of narrower ones, else of axes."""
    for reach in (2, 1):  # the shell of a bone is thinner than five voxels
        inside = image[_even(image, floor, noise, reach)]
        if inside.numel() >= 50:
            return inside
    return image[(tubes >= tubes.max() / 2) & (image > floor)]


def _levels(
    image: torch.Tensor, tubes: torch.Tensor, seeds: torch.Tensor | None, s: VesselMaskSettings
) -> Levels:
    """Return the levels of tissue and blood; blood is what is evenly bright."""
    tissue, noise = _surroundings(image, s.modality)
    noise = max(noise, 1e-3 * float(image.max() - tissue))
    floor = tissue + max(s.noise * noise, 100.0 if s.modality == "cta" else 0.0)
    if seeds is not None:
        inside = image[seeds & (image > floor)]
    else:
        inside = _evenly_bright(image, tubes, floor, noise if s.modality == "cta" else None)
    if not inside.numel():
        raise StepError(
            "no blood with contrast was found",
            expected=f"voxels brighter than {floor:.4g} at the seeds or in even regions",
            hint="check modality, and that the image is an angiography",
        )
    blood = float(inside.median())
    bone = None
    if s.modality == "cta":
        bone = max(600.0, blood + 250.0) if s.bone_hu is None else s.bone_hu
    return Levels(tissue, noise, blood, bone)


def _near_top(image: torch.Tensor, spacing: Spacing, window_mm: float) -> torch.Tensor:
    """Return the largest value within a box of half width `window_mm`, a voxel at least."""
    top = image[None, None]
    for axis, step in enumerate(spacing):
        size, pad = [1, 1, 1], [0, 0, 0]
        pad[axis] = max(1, int(window_mm / step))
        size[axis] = 2 * pad[axis] + 1
        top = functional.max_pool3d(top, size, 1, pad)
    return top[0, 0]


def _candidates(
    image: torch.Tensor,
    tubes: torch.Tensor,
    spacing: Spacing,
    at: Levels,
    settings: VesselMaskSettings,
) -> torch.Tensor:
    """Return voxels that may be vessel by their edges.

    What is darker than half of blood must lie on a tube: else organs that take up some
    contrast would be found too.
    """
    half = (at.tissue + at.blood) / 2
    faint = LOW * (at.blood - at.tissue)
    floor = at.tissue + max(WEAK * settings.noise * at.noise, faint)
    top = _near_top(image.clamp(at.tissue, at.blood), spacing, WINDOW_MM)
    inside = (image > floor) & (image > (top + at.tissue) / 2)
    on_tube = _near_top(tubes, spacing, 0.0) >= max(WEAK * settings.noise * at.noise, faint)
    return inside.logical_and_((image >= half) | on_tube)


def _host(values: torch.Tensor) -> NDArray[np.int16]:
    """Return whole values on the host, where the watershed runs; two bytes a voxel."""
    return values.clamp(-32000, 32000).to("cpu", torch.int16).numpy()


def _without_bone(
    image: torch.Tensor, candidates: torch.Tensor, spacing: Spacing, at: Levels, bone_hu: float
) -> torch.Tensor:
    """Return the candidates that hang together with blood rather than with bone.

    Bone and wide lumens are the markers of a watershed that floods from bright to
    dark: a voxel goes to the marker that the brightest path leads to, so bone that
    touches a vessel is cut off at the darkest point between them.
    """
    labels, count = label_components(image > bone_hu, 1)
    size = np.bincount(labels.ravel(), minlength=count + 1) * float(np.prod(spacing))
    size[0] = 0
    bone = torch.from_numpy((size >= BONE_MM3)[labels]).to(image.device)
    if not bool(bone.any()):
        return candidates
    # marrow may be as bright and as even as blood
    whole = fill_holes(close_ball(bone, BONE_GAP_MM, spacing))
    bone |= whole
    lumens = _even(image, (at.tissue + at.blood) / 2, at.noise, 1)
    markers = (2 * bone.to(torch.int16)).masked_fill_(lumens & ~bone, 1)
    flooded = watershed(
        _host(-image), _host(markers), mask=_host((candidates | bone).to(torch.int16)) > 0
    )
    found = torch.from_numpy(flooded).to(image.device)
    # pieces that hold neither marker stay
    return candidates & (found != 2) & ~bone


def _radii(settings: VesselMaskSettings, spacing: Spacing) -> list[float]:
    """Return the radii of the tubes in mm."""
    if settings.radius_mm:
        return [float(r) for r in settings.radius_mm]
    low = 0.7 * float(np.prod(spacing)) ** (1 / 3)
    count = max(2, 1 + ceil(log(max(WIDEST_MM / low, 1.01)) / log(1.8)))
    return [float(r) for r in np.geomspace(low, max(WIDEST_MM, 1.01 * low), count)]


def _kept(
    mask: torch.Tensor, seeds: torch.Tensor | None, spacing: Spacing, s: VesselMaskSettings
) -> tuple[torch.Tensor, int, int]:
    """Return the pieces that are wanted, how many they are, and how many are not."""
    labels, count = label_components(mask, 3)
    size = np.bincount(labels.ravel(), minlength=count + 1)
    keep = size * float(np.prod(spacing)) >= s.min_volume_mm3
    if seeds is not None:
        numbers = torch.from_numpy(labels).to(mask.device)[seeds].unique().tolist()
        keep &= np.isin(np.arange(count + 1), numbers)
    elif s.pieces:
        order = np.argsort(-size[1:], kind="stable")[: s.pieces] + 1
        keep &= np.isin(np.arange(count + 1), order)
    keep[0] = False
    kept = int(keep.sum())
    if not kept:
        raise StepError(
            "no vessel was found" if seeds is None else "no vessel was found at the seeds",
            expected=f"a piece of at least {s.min_volume_mm3:g} mm³",
            hint="lower contrast or min_volume_mm3, or check modality and seeds",
        )
    return torch.from_numpy(keep[labels]).to(mask.device), kept, count - kept


def vessel_mask(
    image: torch.Tensor,
    spacing_mm: Sequence[float],
    settings: VesselMaskSettings | None = None,
    *,
    seeds: torch.Tensor | None = None,
) -> VesselMaskResult:
    """Mask contrast-filled vessels in CT or MR angiography.

    What this does not do: it does not tell arteries from veins or heart chambers, nor
    the contrast of a kidney from that of an artery, where both are as bright; seeds
    or `pieces` choose among what does not touch. Blood denser than `bone_hu` (veins
    that contrast flows in through) goes with the bone. Calcium in pieces below 50 mm³
    belongs to the vessel.

    Parameters
    ----------
    image : Tensor, shape (I, J, K)
        HU for ``"cta"``, any units for ``"mra"``.
    spacing_mm : sequence of 3 floats
    settings : VesselMaskSettings, optional
    seeds : Tensor of bool, shape (I, J, K), optional
        Blood of the vessels that are wanted; its level is measured there too.

    Returns
    -------
    VesselMaskResult

    Raises
    ------
    StepError
        If the image is no volume of finite values, is no CT in HU (``"cta"``), or no
        vessel is found.
    """
    s = settings or VesselMaskSettings()
    x, y, z = (float(v) for v in spacing_mm)
    spacing = (x, y, z)
    data = checked_volume(image).float()
    tissue, _ = _surroundings(data, s.modality)
    top = tissue + WINDOW_ABOVE_HU if s.modality == "cta" else float(data.max())
    if not float(data.max()) > tissue:
        raise StepError("nothing is brighter than tissue", expected="contrast in vessels")
    window = data.clamp(tissue, top)
    tubes = vesselness(window, spacing, _radii(s, spacing), method="sato").mul_(CONTRAST)
    del window
    at = _levels(data, tubes, seeds, s)
    mask = _candidates(data, tubes, spacing, at, s)
    if at.bone is not None:
        mask = _without_bone(data, mask, spacing, at, at.bone)
    rise = min(at.blood, top) - at.tissue
    strong = tubes >= max(s.contrast * rise, s.noise * at.noise)
    strong |= open_ball(data > (at.tissue + at.blood) / 2, WIDE_MM, spacing)
    mask = fill_holes(touching(mask, strong & mask))
    mask, pieces, dropped = _kept(mask, seeds, spacing, s)
    return VesselMaskResult(mask, at, pieces, dropped)
