"""Tubes, vessels and airways in images as transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.centerline.airway import AirwayMaskResult, AirwayMaskSettings, airway_mask
from medpipe.centerline.vessel_mask import (
    Modality,
    VesselMaskResult,
    VesselMaskSettings,
    vessel_mask,
)
from medpipe.centerline.vesselness import Method, Polarity, vesselness
from medpipe.errors import StepError, UsageError
from medpipe.geometry import is_sheared, spacing_mm
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    check_choice,
    rewrap,
    with_facts,
)
from medpipe.types import Affine, Finding, Json, Severity

__all__ = [
    "AirwayMask",
    "AirwayMaskD",
    "AirwayMaskDict",
    "AirwayMaskd",
    "VesselMask",
    "VesselMaskD",
    "VesselMaskDict",
    "VesselMaskd",
    "Vesselness",
    "VesselnessD",
    "VesselnessDict",
    "Vesselnessd",
]

SEED_MM = 1.5
"""Radius of the ball around a seed that is taken for blood."""

Spacing = tuple[float, float, float]


def _scalar(img: Any) -> tuple[MetaTensor, torch.Tensor, Spacing]:
    """Return an image, its only channel as float (I, J, K), and its voxel size in mm."""
    image = as_image(img)
    if image.shape[0] != 1 or image.is_complex():
        raise StepError("the image is not scalar", expected="one channel of real values")
    affine = affine_of(image)
    if is_sheared(affine):
        raise StepError(
            "the grid is sheared", expected="perpendicular axes", hint="resample it first"
        )
    x, y, z = (float(s) for s in spacing_mm(affine))
    return image, image.as_tensor()[0].float(), (x, y, z)


class Vesselness(ArrayStep):
    """Filter an image for tubes: the largest response over several radii.

    See `medpipe.centerline.vesselness.tube_response`.

    Parameters
    ----------
    radius_mm : sequence of floats
        Radii of the tubes.
    method : {"frangi", "sato"}
        Frangi's response lies in 0..1; Sato's is in the units of the image.
    polarity : {"bright", "dark"}
        Tubes brighter or darker than their surroundings.
    alpha, beta : float
        Frangi's sensitivity to plates and to blobs.
    c : float, optional
        Frangi's sensitivity to the size of the Hessian; by default half of the largest.
    """

    def __init__(
        self,
        radius_mm: Sequence[float] = (1.0, 2.0, 4.0),
        method: Method = "frangi",
        polarity: Polarity = "bright",
        alpha: float = 0.5,
        beta: float = 0.5,
        c: float | None = None,
    ) -> None:
        self.radius_mm = [float(r) for r in radius_mm]
        if not self.radius_mm or not all(0 < r < float("inf") for r in self.radius_mm):
            raise UsageError("radius_mm is wrong", expected="one or more positive numbers")
        self.method: Method = check_choice("method", method, get_args(Method))
        self.polarity: Polarity = check_choice("polarity", polarity, get_args(Polarity))
        self.alpha, self.beta, self.c = alpha, beta, c

    def __call__(self, img: Any) -> MetaTensor:
        """Return the response as float32 (1, I, J, K).

        Raises
        ------
        StepError
            If the image has several channels, a sheared grid or values that are not
            finite.
        """
        image, data, spacing = _scalar(img)
        found = vesselness(
            data, spacing, self.radius_mm,
            method=self.method, polarity=self.polarity,
            alpha=self.alpha, beta=self.beta, c=self.c,
        )  # fmt: skip
        return rewrap(image, found[None])


class Vesselnessd(DictStep):
    """Filter images for tubes: the largest response over several radii.

    Parameters
    ----------
    keys : keys of the images
    radius_mm : list of floats, optional
        Radii of the tubes; by default 1, 2 and 4 mm.
    method : {"frangi", "sato"}
        Frangi's response lies in 0..1; Sato's is in the units of the image.
    polarity : {"bright", "dark"}
        Tubes brighter or darker than their surroundings.
    alpha, beta : float
        Frangi's sensitivity to plates and to blobs.
    c : float, optional
        Frangi's sensitivity to the size of the Hessian; by default half of the largest.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        radius_mm: list[float] | None = None,
        method: Literal["frangi", "sato"] = "frangi",
        polarity: Literal["bright", "dark"] = "bright",
        alpha: float = 0.5,
        beta: float = 0.5,
        c: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        radii = (1.0, 2.0, 4.0) if radius_mm is None else radius_mm
        self.step = Vesselness(radii, method, polarity, alpha, beta, c)


def _points(name: str, points_mm: Sequence[Sequence[float]] | None) -> list[list[float]]:
    """Return points in RAS+ mm, or say what is wrong with them."""
    points = [[float(v) for v in p] for p in points_mm or ()]
    if not all(len(p) == 3 and bool(np.isfinite(p).all()) for p in points):
        raise UsageError(f"{name} is wrong", expected="points of three numbers, RAS+ mm")
    return points


def _balls(
    points_mm: Sequence[Sequence[float]], affine: Affine, like: torch.Tensor
) -> torch.Tensor:
    """Return small balls around points as a mask (I, J, K).

    Raises
    ------
    StepError
        If a point lies outside the image.
    """
    mask = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
    steps = spacing_mm(affine)
    reach = np.ceil(SEED_MM / steps).astype(int)
    offsets = np.indices((2 * reach + 1).tolist()).reshape(3, -1).T - reach
    offsets = offsets[np.linalg.norm(offsets * steps, axis=1) <= SEED_MM]
    for number, point in enumerate(points_mm, 1):
        voxel = np.rint(np.linalg.solve(affine, [*point, 1.0])[:3]).astype(int)
        if (voxel < 0).any() or (voxel >= like.shape).any():
            raise StepError(f"seed {number} lies outside the image", expected="RAS+ mm")
        around = np.clip(voxel + offsets, 0, np.array(like.shape) - 1)
        mask[tuple(torch.from_numpy(around.T.copy()).to(like.device))] = True
    return mask


def _vessel_facts(found: VesselMaskResult, settings: VesselMaskSettings) -> dict[str, Json]:
    """Return the facts of a mask of vessels."""
    at = found.levels
    return {
        "modality": settings.modality,
        "tissue": round(at.tissue, 3),
        "noise": round(at.noise, 3),
        "blood": round(at.blood, 3),
        "bone_hu": None if at.bone is None else round(at.bone, 1),
        "pieces": found.pieces,
        "pieces_dropped": found.dropped,
    }


class VesselMask(ArrayStep):
    """Mask contrast-filled vessels in CT or MR angiography, without a trained model.

    The recipe and its limits are in `medpipe.centerline.vessel_mask.vessel_mask`. The
    levels that were used are in the metadata and in a finding.

    Parameters
    ----------
    modality : {"cta", "mra"}
        Values in HU with bone, or bright blood in arbitrary units without.
    seeds_mm : sequence of points, optional
        Blood of the vessels that are wanted, RAS+ mm; others are left out.
    pieces : int
        How many of the largest pieces are kept without seeds; 0 keeps all.
    radius_mm : sequence of floats, optional
        Radii of the tubes; by default from 0.7 voxels to 8 mm.
    contrast : float
        Share of the contrast of blood that a vessel must show as a tube somewhere.
    noise : float
        Contrast in standard deviations of the noise that a vessel must have.
    bone_hu : float, optional
        What is brighter, in large pieces, is bone or metal.
    min_volume_mm3 : float
        Smaller pieces are dropped.
    """

    def __init__(
        self,
        modality: Modality = "cta",
        seeds_mm: Sequence[Sequence[float]] | None = None,
        pieces: int = 0,
        radius_mm: Sequence[float] | None = None,
        contrast: float = 0.35,
        noise: float = 4.0,
        bone_hu: float | None = None,
        min_volume_mm3: float = 100.0,
    ) -> None:
        self.seeds_mm = _points("seeds_mm", seeds_mm)
        self.settings = VesselMaskSettings(
            modality=modality,
            radius_mm=tuple(float(r) for r in radius_mm or ()),
            contrast=contrast,
            noise=noise,
            bone_hu=bone_hu,
            min_volume_mm3=min_volume_mm3,
            pieces=pieces,
        )

    def __call__(self, img: Any) -> MetaTensor:
        """Return a uint8 mask (1, I, J, K).

        Raises
        ------
        StepError
            If the image has several channels, values that are not finite, is no CT in
            HU (``"cta"``), or no vessel is found.
        """
        image, data, spacing = _scalar(img)
        seeds = _balls(self.seeds_mm, affine_of(image), data) if self.seeds_mm else None
        found = vessel_mask(data, spacing, self.settings, seeds=seeds)
        facts = _vessel_facts(found, self.settings)
        at = found.levels
        bone = "" if at.bone is None else f", bone above {at.bone:.0f}"
        text = (
            f"tissue {at.tissue:.4g}, noise {at.noise:.3g}, blood {at.blood:.4g}{bone}; "
            f"{found.pieces} pieces kept, {found.dropped} dropped"
        )
        note = Finding("vessel_mask.levels", Severity.INFO, text)
        out = rewrap(image, found.mask[None].to(torch.uint8))
        return with_facts(out, {"vessel_mask": facts}, [note])


class VesselMaskd(DictStep):
    """Mask contrast-filled vessels in CT or MR angiographies, without a trained model.

    Parameters
    ----------
    keys : keys of the images, replaced by their masks
    modality : {"cta", "mra"}
        Values in HU with bone, or bright blood in arbitrary units without.
    seeds_mm : list of points, optional
        Blood of the vessels that are wanted, RAS+ mm; others are left out.
    pieces : int
        How many of the largest pieces are kept without seeds; 0 keeps all.
    radius_mm : list of floats, optional
        Radii of the tubes; by default from 0.7 voxels to 8 mm.
    contrast : float
        Share of the contrast of blood that a vessel must show as a tube somewhere.
    noise : float
        Contrast in standard deviations of the noise that a vessel must have.
    bone_hu : float, optional
        What is brighter, in large pieces, is bone or metal; by default 250 HU above
        blood and at least 600 HU.
    min_volume_mm3 : float
        Smaller pieces are dropped.
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
        modality: Literal["cta", "mra"] = "cta",
        seeds_mm: list[list[float]] | None = None,
        pieces: int = 0,
        radius_mm: list[float] | None = None,
        contrast: float = 0.35,
        noise: float = 4.0,
        bone_hu: float | None = None,
        min_volume_mm3: float = 100.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = VesselMask(
            modality, seeds_mm, pieces, radius_mm, contrast, noise, bone_hu, min_volume_mm3
        )


def _airway_findings(found: AirwayMaskResult) -> list[Finding]:
    """Return what a user should know about a mask of airways."""
    leak = (
        "no leak up to there"
        if found.leak_hu is None
        else f"a leak into the lung at {found.leak_hu:.0f} HU was refused"
    )
    text = f"air below {found.threshold_hu:.0f} HU, {found.volume_ml:.3g} ml; {leak}"
    notes = [Finding("airway_mask.threshold", Severity.INFO, text)]
    if found.refused:
        text = f"{found.refused} dark tubes were refused as leaks"
        notes.append(Finding("airway_mask.branches", Severity.WARNING, text))
    return notes


class AirwayMask(ArrayStep):
    """Mask the lumen of trachea and bronchi in a chest CT.

    A region grows from the trachea and is stopped before it leaks; see
    `medpipe.centerline.airway`. Threshold, volume and refused leaks are in the metadata
    and in findings. It was tested on phantoms alone: look at the mask.

    Parameters
    ----------
    highest_hu : float
        The threshold is not raised beyond this.
    leak_ml : float
        A region of this size has broken into the lung.
    grow_branches : bool
        Whether thin branches are added piece by piece.
    branch_hu : float
        How much darker than its surroundings such a branch must be.
    branch_ml : float
        A piece of this size is a leak and is refused.
    """

    def __init__(
        self,
        highest_hu: float = -700.0,
        leak_ml: float = 300.0,
        grow_branches: bool = True,
        branch_hu: float = 100.0,
        branch_ml: float = 2.0,
    ) -> None:
        self.settings = AirwayMaskSettings(highest_hu, leak_ml, grow_branches, branch_hu, branch_ml)

    def __call__(self, img: Any) -> MetaTensor:
        """Return a uint8 mask (1, I, J, K), one piece.

        Raises
        ------
        StepError
            If the image has several channels or values that are not finite, is no CT in
            HU, shows no trachea, or leaks at the lowest threshold.
        """
        image, data, _ = _scalar(img)
        found = airway_mask(data, affine_of(image), self.settings)
        facts: dict[str, Json] = {
            "threshold_hu": round(found.threshold_hu, 1),
            "leak_hu": None if found.leak_hu is None else round(found.leak_hu, 1),
            "volume_ml": round(found.volume_ml, 3),
            "branches_ml": round(found.branches_ml, 3),
            "refused": found.refused,
            "trachea_mm": round(found.trachea_mm, 2),
        }
        out = rewrap(image, found.mask[None].to(torch.uint8))
        return with_facts(out, {"airway_mask": facts}, _airway_findings(found))


class AirwayMaskd(DictStep):
    """Mask the lumen of trachea and bronchi in chest CTs.

    Parameters
    ----------
    keys : keys of the CTs, replaced by their masks
    highest_hu : float
        The threshold is not raised beyond this.
    leak_ml : float
        A region of this size has broken into the lung.
    grow_branches : bool
        Whether thin branches are added piece by piece.
    branch_hu : float
        How much darker than its surroundings such a branch must be.
    branch_ml : float
        A piece of this size is a leak and is refused.
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
        highest_hu: float = -700.0,
        leak_ml: float = 300.0,
        grow_branches: bool = True,
        branch_hu: float = 100.0,
        branch_ml: float = 2.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = AirwayMask(highest_hu, leak_ml, grow_branches, branch_hu, branch_ml)


VesselnessD = VesselnessDict = Vesselnessd
VesselMaskD = VesselMaskDict = VesselMaskd
AirwayMaskD = AirwayMaskDict = AirwayMaskd
