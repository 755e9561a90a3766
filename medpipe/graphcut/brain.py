"""White matter, grey matter and fluid of the brain in one minimum cut.

Two nested layers, white matter inside tissue (white and grey matter), tissue inside the
brain mask. A cut without shape prior (Boykov and Jolly 2001, doi
10.1109/ICCV.2001.937505, on nested layers) is the pre-segmentation; the gradient vector
flow of its layers gives the arcs of the shape prior of the second cut (Bai, Shah and Wu
2018, doi 10.1016/j.compmedimag.2018.08.001). The arcs are soft, and the noisier the image
the more they count, because a clean image knows the folds better than the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.layers import MultiObjectResult, multi_object_cut
from medpipe.graphcut.links import contrast_links, difference_sigma
from medpipe.graphcut.mixture import GaussianMixture
from medpipe.graphcut.relations import Contain, Layer
from medpipe.graphcut.shape_prior import prior_arcs
from medpipe.graphcut.solve import Solver
from medpipe.graphcut.unaries import nested_costs, tissue_costs
from medpipe.graphcut.vector_field import gradient_vector_flow
from medpipe.graphcut.voxels import Spacing, check_spacing, finite_image, pair
from medpipe.steps._base import quantiles

__all__ = [
    "CSF",
    "GM",
    "WM",
    "BrainTissueResult",
    "brain_tissue",
    "prior_weight_of",
    "tissue_notes",
]

CSF, GM, WM = 1, 2, 3
"""Labels of cerebrospinal fluid, grey matter and white matter."""

SMOOTHNESS = 1.5
"""Weight of the links in nats at 1 mm; without shape prior 1.5 to 2 serve best, of 0.7 to 3."""
FLOW_MM2 = 0.2
"""Smoothness of the gradient vector flow."""
SMOOTH_MM = 1.0
"""Smoothing of the pre-segmentation before its gradient is taken."""
CLEAN, NOISY = 0.18, 0.53
"""Noise over contrast up to which the prior counts nothing, and from which it counts fully."""
FULL_WEIGHT = 3.0
BRIGHTEST = 4.0
"""Vessels and contrast medium are brighter than the median by more than so many times the
distance of the 90th percentile from it; what is so bright teaches no density."""
PLAUSIBLE = (0.6, 3.0)
"""Grey over white matter of a whole brain; adults have between 1 and 1.6."""
SAMPLE = 2**22

Links = list[tuple[tuple[int, int, int], torch.Tensor]]


@dataclass(frozen=True, eq=False)
class BrainTissueResult:
    """Tissues of the brain and the proof of their optimality.

    Parameters
    ----------
    labels : Tensor
        uint8 (X, Y, Z): 0 outside the brain, 1 fluid, 2 grey and 3 white matter.
    mixture : GaussianMixture
        Densities of fluid, grey and white matter.
    noise_to_contrast : float
        Standard deviation of the noise over the difference of white and grey matter.
    prior_weight : float
        Price in nats of an arc of the shape prior; 0 where no prior was used.
    result : MultiObjectResult
        The cut the labels come from, on the box of the brain.
    presegmentation : MultiObjectResult
        The cut without shape prior.
    """

    labels: torch.Tensor
    mixture: GaussianMixture
    noise_to_contrast: float
    prior_weight: float
    result: MultiObjectResult
    presegmentation: MultiObjectResult


def brain_tissue(
    image: torch.Tensor,
    brain: torch.Tensor,
    spacing_mm: Sequence[float],
    *,
    smoothness: float = SMOOTHNESS,
    prior_weight: float | None = None,
    solver: Solver = "auto",
) -> BrainTissueResult:
    """Segment fluid, grey and white matter in a T1-weighted MR.

    Parameters
    ----------
    image : Tensor
        Intensities (X, Y, Z), bias corrected: fluid darker than grey matter, grey
        darker than white.
    brain : Tensor
        Mask (X, Y, Z) of brain and fluid; nothing outside is labelled. What is
        outside counts as fluid: tissue at the rim of the mask pays its surface.
    spacing_mm : sequence of 3 float
        Distance of voxel centres along each axis.
    smoothness : float
        Weight of the links between neighbours, nats at 1 mm.
    prior_weight : float, optional
        Price of each arc of the shape prior that is not obeyed, nats, 0 for no
        prior; by default `prior_weight_of` the noise.
    solver : str
        See `medpipe.graphcut.solve.min_cut`.

    Returns
    -------
    BrainTissueResult

    Raises
    ------
    StepError
        If the mask is empty or on another grid, or the image within it is not
        finite or holds fewer than three values.
    """
    spacing = check_spacing(spacing_mm)
    if prior_weight is not None and not 0 <= prior_weight < float("inf"):
        raise UsageError("prior_weight is wrong", expected="0 or more", got=f"{prior_weight:g}")
    box = _box(image, brain)
    mask = brain[box].to(torch.bool)
    # what lies outside the brain, perhaps not finite, is no business of the cut
    x = finite_image(image[box].masked_fill(~mask, 0))
    layers, mixture, noise = _layers(x, mask, spacing, smoothness)
    relations = [Contain("white matter", "tissue")]
    first = multi_object_cut(layers, relations, spacing, solver=solver)
    weight = prior_weight_of(noise) if prior_weight is None else float(prior_weight)
    result = first
    if weight > 0 and bool(first.masks.flatten(1).any(1).all()):
        shaped = [
            _with_prior(layer, mask, inside, spacing, weight)
            for layer, inside in zip(layers, first.masks, strict=True)
        ]
        result = multi_object_cut(shaped, relations, spacing, solver=solver)
    labels = torch.zeros(image.shape, dtype=torch.uint8, device=image.device)
    labels[box] = mask.to(torch.uint8) + result.masks.sum(0).to(torch.uint8)
    return BrainTissueResult(
        labels, mixture, noise, weight if result is not first else 0.0, result, first
    )


def prior_weight_of(noise_to_contrast: float) -> float:
    """Return the price of an arc of the shape prior in nats, from 0 in a clean image to 3.

    It grows linearly with the noise over the contrast of grey and white matter, from
    0 at 0.18 (3 % noise in a T1-weighted image has 0.15) over about 1.3 at 0.33 (9 %)
    to 3 at 0.53.
    """
    return FULL_WEIGHT * min(max((noise_to_contrast - CLEAN) / (NOISY - CLEAN), 0.0), 1.0)


def tissue_notes(labels: torch.Tensor) -> list[str]:
    """Return what is implausible about the volumes of grey and white matter.

    Where contrast is low (contrast medium, a lesion, a sequence that is not T1-weighted)
    a component of the mixture may fit something else than its tissue.
    """
    grey, white = (int((labels == t).sum()) for t in (GM, WM))
    low, high = PLAUSIBLE
    if low * white <= grey <= high * white:
        return []
    return [
        f"{grey} voxels of grey and {white} of white matter are implausible for a whole"
        " brain: they may not be told apart, look at the picture"
    ]


def _layers(
    x: torch.Tensor, mask: torch.Tensor, spacing: Spacing, smoothness: float
) -> tuple[list[Layer], GaussianMixture, float]:
    """Return tissue and white matter as layers, the densities, and noise over contrast."""
    values = x[mask]
    median, high = quantiles(values[:: -(-values.numel() // SAMPLE)], [50, 90])
    brightest = median + BRIGHTEST * (high - median)
    costs, mixture = tissue_costs(x, 3, mask & (x <= brightest))
    width = difference_sigma(x, mask)
    links = _within(contrast_links(x, spacing, 6, smoothness, width), mask)
    data = nested_costs(costs)
    layers = [
        Layer("tissue", data[0], _with_rim(links, mask, spacing, smoothness), outside=~mask),
        Layer("white matter", data[1], links, outside=~mask),
    ]
    contrast = float(mixture.means[2] - mixture.means[1])
    return layers, mixture, width / 2**0.5 / contrast


def _with_rim(links: Links, mask: torch.Tensor, spacing: Spacing, smoothness: float) -> Links:
    """Return the links, those across the border of the mask at their full price.

    Fluid surrounds the brain, so fluid is likelier at the rim. Nothing is known of the
    intensities outside, so there is no contrast that would make the link cheaper.
    """
    out = []
    for offset, weights in links:
        length = sum((o * s) ** 2 for o, s in zip(offset, spacing, strict=True)) ** 0.5
        tail, head = pair(mask, offset)
        rimmed = weights.clone()
        pair(rimmed, offset)[0].masked_fill_(tail ^ head, smoothness / length)
        out.append((offset, rimmed))
    return out


def _within(links: Links, mask: torch.Tensor) -> Links:
    """Return the links or arcs without those that cross the border of the mask."""
    for offset, weights in links:
        tail, head = pair(mask, offset)
        pair(weights, offset)[0].mul_(tail & head)
    return links


def _with_prior(
    layer: Layer, mask: torch.Tensor, inside: torch.Tensor, spacing: Spacing, weight: float
) -> Layer:
    """Return the layer with soft arcs along the gradient vector flow of its first mask."""
    field = gradient_vector_flow(inside, spacing, FLOW_MM2, smooth_mm=SMOOTH_MM)
    arcs = prior_arcs(field, spacing, weight=weight, min_length=1e-2).arcs
    return Layer(layer.name, layer.data_cost, layer.links, _within(arcs, mask), outside=~mask)


def _box(image: torch.Tensor, brain: torch.Tensor) -> tuple[slice, ...]:
    """Return the box of the brain, one voxel wider where the image is."""
    if brain.shape != image.shape:
        raise StepError(
            "the brain mask is on another grid",
            expected=f"shape {tuple(image.shape)}",
            got=f"shape {tuple(brain.shape)}",
        )
    where = torch.nonzero(brain)
    if where.shape[0] == 0:
        raise StepError("the brain mask is empty", expected="at least one voxel above 0")
    low, high = where.amin(0).tolist(), where.amax(0).tolist()
    return tuple(slice(max(a - 1, 0), b + 2) for a, b in zip(low, high, strict=True))
