"""The brain and its tissues in T1-weighted MR, as transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError
from medpipe.graphcut.brain import brain_tissue, tissue_notes
from medpipe.graphcut.brain_mask import find_brain
from medpipe.graphcut.solve import Solver
from medpipe.graphcut.transforms.certificate import with_certificate
from medpipe.graphcut.transforms.grid import one_channel
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    mask_of,
    read_key,
    rewrap,
    with_facts,
)
from medpipe.steps._components import fill_holes, keep_largest
from medpipe.steps.spatial import Orient, Resample
from medpipe.types import Finding, Severity

__all__ = [
    "BrainMaskMR",
    "BrainMaskMRD",
    "BrainMaskMRDict",
    "BrainMaskMRd",
    "BrainTissue",
    "BrainTissueD",
    "BrainTissueDict",
    "BrainTissued",
]

WORK_MM = 2.0


class BrainMaskMR(ArrayStep):
    """Mask the brain in a T1-weighted MR of the head by an optimal surface.

    The surface is found on a copy of 2 mm, proved to be the best of its kind, and
    brought to the grid of the image (see `medpipe.graphcut.brain_mask`). An image
    stripped of its skull before, with zeros around the brain, is recognised: all
    that is above 0 is then kept.
    """

    def __call__(self, img: Any) -> MetaTensor:
        """Return a uint8 mask (1, I, J, K): brain with the fluid in sulci and ventricles.

        Raises
        ------
        StepError
            If there are several channels, values that are not finite, no head or
            no brain.
        """
        image = as_image(img)
        if image.shape[0] != 1 or image.is_complex():
            raise StepError("the image is not scalar", expected="one channel of real values")
        x = image.as_tensor().float()
        if not bool(torch.isfinite(x).all()):
            raise StepError("the image holds NaN or infinite values")
        work = Resample(WORK_MM, fill=0.0)(Orient("RAS")(rewrap(image, x)))
        found = find_brain(work.as_tensor()[0], affine_of(work))
        if found.surface is None:
            kept = fill_holes(keep_largest(x[0] > 0))
            text = "brain_mask_mr: the image has no skull, so all that is above 0 was kept"
            return with_facts(rewrap(image, kept[None].to(torch.uint8)), {}, _told(text))
        soft = rewrap(work, found.mask[None].float())
        mask = Resample(fill=0.0, anti_alias=False)(soft, image).as_tensor() >= 0.5
        out = rewrap(image, mask.to(torch.uint8))
        return with_certificate(out, "brain_surface", found.surface)


class BrainMaskMRd(DictStep):
    """Mask the brain in T1-weighted MR of the head by an optimal surface.

    Parameters
    ----------
    keys : keys of the images, replaced by their masks
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = BrainMaskMR()


class BrainTissue(ArrayStep):
    """Segment fluid, grey and white matter of the brain in one exact minimum cut.

    White matter lies inside tissue, tissue inside the brain; soft shape priors follow
    the gradient vector flow of a first cut (see `medpipe.graphcut.brain`).

    Parameters
    ----------
    smoothness : float
        Weight of the links between neighbouring voxels, in nats at 1 mm.
    prior_weight : float, optional
        Price of each arc of the shape prior that is not obeyed, in nats; by default
        it grows with the noise. 0 is no prior.
    solver : {"auto", "pseudoflow", "stencil", "ortools", "scipy"}
        See `medpipe.graphcut.solve.min_cut`.
    """

    def __init__(
        self,
        smoothness: float = 1.5,
        prior_weight: float | None = None,
        solver: Solver = "auto",
    ) -> None:
        self.smoothness, self.prior_weight = smoothness, prior_weight
        self.solver: Solver = solver

    def __call__(self, img: Any, mask: Any) -> MetaTensor:
        """Return a uint8 label map (1, I, J, K): 1 fluid, 2 grey, 3 white matter.

        Raises
        ------
        StepError
            If the mask is empty or on another grid, or the image within it is
            not finite or even.
        """
        image, x, spacing = one_channel(img)
        brain = mask_of(image, mask, "brain mask")[0]
        found = brain_tissue(
            x,
            brain,
            spacing,
            smoothness=self.smoothness,
            prior_weight=self.prior_weight,
            solver=self.solver,
        )
        out = rewrap(image, found.labels[None])
        notes = [*found.result.notes, *tissue_notes(found.labels)]
        out = with_certificate(out, "brain_tissue", found.result, *notes)
        facts = {
            "means": [round(float(m), 3) for m in found.mixture.means],
            "sigmas": [round(float(s), 3) for s in found.mixture.sigmas],
            "noise_to_contrast": round(found.noise_to_contrast, 4),
            "prior_weight": round(found.prior_weight, 4),
        }
        text = (
            f"brain_tissue: noise is {found.noise_to_contrast:.0%} of the contrast of grey and"
            f" white matter; an arc of the shape prior weighs {found.prior_weight:.2f} nats"
        )
        return with_facts(out, {"brain_tissue": facts}, _told(text))


class BrainTissued(DictStep):
    """Segment fluid, grey and white matter in T1-weighted MR in one exact minimum cut.

    Parameters
    ----------
    keys : keys of the images, bias corrected, replaced by label maps
    mask : str
        Key of the mask of the brain, on the grid of the images.
    smoothness : float
        Weight of the links between neighbouring voxels, in nats at 1 mm.
    prior_weight : float, optional
        Price of each arc of the shape prior that is not obeyed, in nats; by default
        it grows with the noise. 0 is no prior.
    solver : str
        auto, pseudoflow (CPU), stencil (torch, GPU), ortools or scipy.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "2"
    reads = ("mask",)
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        mask: str = "brain",
        smoothness: float = 1.5,
        prior_weight: float | None = None,
        solver: Literal["auto", "pseudoflow", "stencil", "ortools", "scipy"] = "auto",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask = mask
        self.step = BrainTissue(smoothness, prior_weight, solver)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key replaced by its label map."""
        out = dict(data)
        mask = read_key(data, self.mask, "brain mask")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], mask)
        return out


def _told(message: str) -> list[Finding]:
    return [Finding("graphcut.brain", Severity.INFO, message)]


BrainMaskMRD = BrainMaskMRDict = BrainMaskMRd
BrainTissueD = BrainTissueDict = BrainTissued
