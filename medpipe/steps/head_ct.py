"""Masks of the head and of the brain in a CT, from Hounsfield units and anatomy in mm.

Both masks are found on an isotropic copy of 2 mm, where morphology in mm is
cheap and 5 mm slices are no special case, and are then brought to the grid of
the image, where the head's own surface is followed at full resolution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError
from medpipe.geometry import axis_codes
from medpipe.steps._balls import close_ball, dilate_ball, erode_ball, open_ball
from medpipe.steps._base import ArrayStep, DictStep, affine_of, as_image, rewrap
from medpipe.steps._components import fill_holes, keep_largest, touching
from medpipe.steps.spatial import Orient, Resample

__all__ = [
    "BrainMask",
    "BrainMaskD",
    "BrainMaskDict",
    "BrainMaskd",
    "HeadMask",
    "HeadMaskD",
    "HeadMaskDict",
    "HeadMaskd",
]

WORK_MM = 2.0
WORK = (WORK_MM, WORK_MM, WORK_MM)
AIR_HU = -1024.0
MIN_HEAD_ML = 100.0
MIN_BRAIN_ML = 50.0


def _work_copy(image: MetaTensor) -> MetaTensor:
    """Return channel 0 as HU of at least -1024 on a 2 mm RAS grid."""
    if image.is_complex() or image.shape[0] != 1:
        raise StepError("the image is no CT", expected="one channel of real values in HU")
    hu = torch.nan_to_num(image.as_tensor().float(), nan=AIR_HU, neginf=AIR_HU, posinf=3071.0)
    # padding of -1500 or -3024 HU would darken the skin when it is averaged
    clean = rewrap(image, hu.clamp_(AIR_HU, 3071.0))
    return Resample(WORK_MM, fill=AIR_HU)(Orient("RAS")(clean))


def _volume_ml(mask: torch.Tensor) -> float:
    """Return the volume of a mask on the working grid."""
    return float(mask.sum()) * WORK_MM**3 / 1000


def _to_grid(mask: torch.Tensor, work: MetaTensor, image: MetaTensor) -> torch.Tensor:
    """Return a working mask (I, J, K) at the voxels of `image`, as bool (I, J, K)."""
    soft = rewrap(work, mask[None].float())
    return Resample(fill=0.0, anti_alias=False)(soft, image).as_tensor()[0] >= 0.5


def _head(hu: torch.Tensor, threshold_hu: float, opening_mm: float) -> torch.Tensor:
    """Return the head on the working grid, from HU of shape (I, J, K)."""
    body = fill_holes(hu > threshold_hu, axis=2)
    # a head rest is a thin shell; the opening takes it off the head it touches
    core = keep_largest(open_ball(body, opening_mm, WORK))
    if _volume_ml(core) < MIN_HEAD_ML:
        raise StepError(
            "no head was found",
            expected=f"an object above {threshold_hu:g} HU of at least {MIN_HEAD_ML:g} ml",
            hint="check that the image is a CT in HU",
        )
    # nose and ears are thinner than the opening: take back what is close by
    near = body & dilate_ball(core, opening_mm / 2, WORK)
    return fill_holes(close_ball(near, 2 * WORK_MM, WORK), axis=2)


class HeadMask(ArrayStep):
    """Mask the head in a CT: skin and all inside it, without table and head rest.

    Voxels above a threshold, holes filled slice by slice (so that an airway
    open at the neck counts as inside), opening by a ball, largest component.

    Parameters
    ----------
    threshold_hu : float
        Between air and skin.
    opening_mm : float
        Radius of the ball; head rests thinner than its diameter are removed.
    """

    def __init__(self, threshold_hu: float = -300.0, opening_mm: float = 8.0) -> None:
        self.threshold_hu = threshold_hu
        self.opening_mm = opening_mm

    def __call__(self, img: Any) -> MetaTensor:
        """Return a uint8 mask (1, I, J, K) on the grid of the CT.

        Raises
        ------
        StepError
            If there are several channels or no head is found.
        """
        image = as_image(img)
        work = _work_copy(image)
        head = _head(work.as_tensor()[0], self.threshold_hu, self.opening_mm)
        # one working voxel wider, then cut at the surface that the image itself shows
        wide = _to_grid(dilate_ball(head, WORK_MM, WORK), work, image)
        inner = _to_grid(erode_ball(head, 2 * WORK_MM, WORK), work, image)
        mask = wide & ((image.as_tensor()[0] > self.threshold_hu) | inner)
        axis = next(a for a, c in enumerate(axis_codes(affine_of(image))) if c in "IS")
        return rewrap(image, fill_holes(mask, axis)[None].to(torch.uint8))


class HeadMaskd(DictStep):
    """Mask the head in CTs: skin and all inside it, without table and head rest.

    Parameters
    ----------
    keys : keys of the CTs, replaced by their masks
    threshold_hu : float
        Between air and skin, in HU.
    opening_mm : float
        Radius of the opening; head rests thinner than its diameter are removed.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        threshold_hu: float = -300.0,
        opening_mm: float = 8.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = HeadMask(threshold_hu, opening_mm)


def _brain(sharp: torch.Tensor, lower_hu: float, upper_hu: float, bone_hu: float) -> torch.Tensor:
    """Return the inside of the skull on the working grid, from HU of shape (I, J, K)."""
    head = _head(sharp, -300.0, 8.0)
    hu = _denoise(sharp)
    soft = (hu >= lower_hu) & (hu <= upper_hu) & head & ~(hu > bone_hu)
    # Radii in mm. 12 fits into the cranium but not into the spinal canal, the
    # orbits or between skull and skin; what it finds is the seed. 4 cuts the
    # fissures and foramina through which brain and scalp are connected.
    seed = keep_largest(erode_ball(soft, 12.0, WORK))
    if _volume_ml(dilate_ball(seed, 12.0, WORK)) < MIN_BRAIN_ML:
        raise StepError(
            "no brain was found",
            expected=f"soft tissue of {lower_hu:g}..{upper_hu:g} HU inside a skull",
            hint="check that the image is a head CT in HU",
        )
    parts = erode_ball(soft, 4.0, WORK)
    core = touching(parts, seed) & dilate_ball(seed, 16.0, WORK)
    brain = dilate_ball(core, 4.0 + WORK_MM / 2, WORK) & soft
    inside = fill_holes(close_ball(brain, 6.0, WORK) & ~(hu > 2 * bone_hu))
    # half-way between brain and bone is several hundred HU: the first voxel of
    # partial volume belongs to the inside
    return inside | (
        dilate_ball(inside, WORK_MM, WORK) & (sharp > lower_hu) & (sharp < 3 * bone_hu)
    )


class BrainMask(ArrayStep):
    """Mask the inside of the skull in a non-contrast head CT.

    Soft tissue by HU, cut off from scalp, orbits and neck by erosion, largest
    component, grown back, closed and filled: the thresholds of Muschelli et
    al. 2015 (doi 10.1016/j.neuroimage.2015.03.074) with morphology in mm in
    place of a deformable surface. Calcification and bleeding inside are filled
    as holes. Below the foramen magnum the mask ends within about 16 mm.

    Parameters
    ----------
    lower_hu, upper_hu : float
        Range of brain, blood and cerebrospinal fluid.
    bone_hu : float
        Skull, seen through the partial volume of 2 mm.
    """

    def __init__(
        self, lower_hu: float = -5.0, upper_hu: float = 100.0, bone_hu: float = 150.0
    ) -> None:
        self.lower_hu, self.upper_hu, self.bone_hu = lower_hu, upper_hu, bone_hu

    def __call__(self, img: Any) -> MetaTensor:
        """Return a uint8 mask (1, I, J, K) on the grid of the CT.

        Raises
        ------
        StepError
            If there are several channels, no head or no brain is found.
        """
        image = as_image(img)
        work = _work_copy(image)
        brain = _brain(work.as_tensor()[0], self.lower_hu, self.upper_hu, self.bone_hu)
        return rewrap(image, _to_grid(brain, work, image)[None].to(torch.uint8))


def _denoise(hu: torch.Tensor) -> torch.Tensor:
    """Return HU (I, J, K) averaged over 3 x 3 x 3 voxels, weighted to the middle."""
    out = hu
    for axis in range(3):
        n = out.shape[axis]
        index = np.clip(np.arange(n)[:, None] + [-1, 0, 1], 0, n - 1)
        before, after = (torch.from_numpy(index[:, t].copy()).to(hu.device) for t in (0, 2))
        out = (out.index_select(axis, before) + out.index_select(axis, after)) / 4 + out / 2
    return out


class BrainMaskd(DictStep):
    """Mask the inside of the skull in non-contrast head CTs.

    Parameters
    ----------
    keys : keys of the CTs, replaced by their masks
    lower_hu, upper_hu : float
        Range of brain, blood and cerebrospinal fluid, in HU.
    bone_hu : float
        Threshold of the skull, in HU.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        lower_hu: float = -5.0,
        upper_hu: float = 100.0,
        bone_hu: float = 150.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = BrainMask(lower_hu, upper_hu, bone_hu)


HeadMaskD = HeadMaskDict = HeadMaskd
BrainMaskD = BrainMaskDict = BrainMaskd
