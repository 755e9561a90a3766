"""Which voxels are fitted, and the flip-angle scaling on their grid."""

from __future__ import annotations

from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError
from medpipe.geometry import same_grid
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.transforms.provenance import percent
from medpipe.steps._base import (
    affine_of,
    as_image,
    facts_of,
    mask_of,
    quantiles,
    rewrap,
    with_facts,
)
from medpipe.steps.spatial import Resample
from medpipe.types import Finding, Severity

__all__ = ["kappa_on", "region_of", "signal_level", "weighted_images", "without_images"]

NOISE_MARGIN = 4.0
"""A voxel has a signal where its mean square is so many standard deviations above that of noise."""

WEAKEST = 0.03
"""Least root mean square of tissue, as a share of the brightest: ghosts lie below it."""

CHECK = "qmri.region"


def weighted_images(img: Any, protocol: Protocol) -> tuple[MetaTensor, list[Finding]]:
    """Return the images (D, I, J, K) as real values in the order of `protocol`.

    Raises
    ------
    StepError
        If there are more or fewer images than the protocol has values, all are
        zero, or one of them is.
    """
    image = as_image(img)
    notes = []
    if image.is_complex():
        image = rewrap(image, image.as_tensor().abs())
        notes.append(Finding(CHECK, Severity.INFO, "complex images: their magnitude was fitted"))
    if image.shape[0] != protocol.count:
        last = image.shape[-1] == protocol.count
        raise StepError(
            "the number of images does not fit the protocol",
            expected=f"{protocol.count}: {', '.join(protocol.labels)}",
            got=str(image.shape[0]),
            hint="the images lie along the last axis, move it to the front" if last else None,
        )
    data = image.as_tensor()
    empty = [i for i, one in enumerate(data) if not bool((one.nan_to_num() != 0).any())]
    if len(empty) == len(data):
        raise StepError("the images hold nothing but zeros", expected="weighted images")
    if empty:
        raise StepError(
            "an image holds nothing but zeros",
            where=f"image {empty[0] + 1} ({protocol.labels[empty[0]]})",
            expected="a weighted image",
        )
    return image, notes


def without_images(
    image: MetaTensor, leave_out: frozenset[int]
) -> tuple[MetaTensor, list[Finding]]:
    """Return the images (D, I, J, K) and their settings without those of some numbers, from 1.

    Raises
    ------
    StepError
        If there is no such image, or none is left.
    """
    if not leave_out:
        return image, []
    kept = [i for i in range(len(image)) if i + 1 not in leave_out]
    if max(leave_out) > len(image) or not kept:
        raise StepError(
            "an image to leave out is not there, or none is left",
            expected=f"some of 1 to {len(image)}",
            got=", ".join(map(str, sorted(leave_out))),
        )
    out = rewrap(image, image.as_tensor()[kept])
    settings = facts_of(image).get("acquisitions")
    if settings and len(settings) == len(image):
        out = with_facts(out, {"acquisitions": [settings[i] for i in kept]})
    numbers = ", ".join(map(str, sorted(leave_out)))
    text = f"of {len(image)} images {len(leave_out)} was left out: number {numbers}"
    if len(leave_out) > 1:
        text = f"of {len(image)} images {len(leave_out)} were left out: numbers {numbers}"
    return out, [Finding(CHECK, Severity.INFO, text)]


def signal_level(images: torch.Tensor) -> torch.Tensor:
    """Return the root mean square (I, J, K) of images (D, I, J, K); what is not finite is 0."""
    total = torch.zeros_like(images[0], dtype=torch.float32)
    for one in images:
        total += one.to(torch.float32).nan_to_num(0.0, 0.0, 0.0).square_()
    return (total / len(images)).sqrt_()


def region_of(
    image: MetaTensor, mask: Any, sigma: float | None
) -> tuple[torch.Tensor, list[Finding]]:
    """Return the voxels to fit as bool (I, J, K): those of the mask, else those with signal.

    Parameters
    ----------
    image : MetaTensor
        (D, I, J, K).
    mask : MetaTensor or None
        Label map on the grid of the images; voxels above 0 are fitted.
    sigma : float or None
        Standard deviation of the noise in units of the images.

    Raises
    ------
    StepError
        If the mask is empty or on another grid, or no voxel has a signal.
    """
    if mask is not None:
        chosen = mask_of(image, mask)
        if chosen.shape[0] != 1:
            raise StepError("the mask has several channels", expected="one mask or label map")
        return chosen[0], [_say(chosen[0], "within the mask")]
    level = signal_level(image.as_tensor())
    there = level[level > 0]
    if not there.numel():
        raise StepError("no voxel has a finite signal", expected="weighted images")
    least = WEAKEST * quantiles(there, (98.0,))[0]
    if sigma is not None:
        # the mean square of D magnitudes of noise is 2 σ² (1 ± 1/√D)
        least = max(least, sigma * (2 + 2 * NOISE_MARGIN / len(image) ** 0.5) ** 0.5)
    chosen = level > least
    if not bool(chosen.any()):
        raise StepError("no voxel has a signal above the noise", hint="give a mask")
    return chosen, [_say(chosen, "with a signal; give a mask to choose others")]


def _say(chosen: torch.Tensor, what: str) -> Finding:
    count = int(chosen.sum())
    text = f"fitted {count} voxels ({percent(count, chosen.numel())}), those {what};"
    text += " maps are 0 elsewhere and where there is no answer"
    return Finding(CHECK, Severity.INFO, text)


def kappa_on(image: MetaTensor, b1: Any) -> torch.Tensor:
    """Return the flip-angle scaling (I, J, K) on the grid of `image`, 0 where it is not known.

    Zeros and values that are not finite count as missing and do not bleed into their
    neighbours: the mean of the known values around a voxel is taken, and a voxel whose
    surroundings are mostly unknown stays unknown.

    Raises
    ------
    StepError
        If the map is not one channel of real values.
    """
    scaling = as_image(b1)
    if scaling.shape[0] != 1 or scaling.is_complex():
        raise StepError("the B1 map is not scalar", expected="one channel of real values")
    values = scaling.as_tensor().to(image.device, torch.float32)
    known = values.isfinite() & (values > 0)
    values = values.masked_fill(~known, 0.0)
    if not same_grid(affine_of(image), image.shape[1:], affine_of(scaling), scaling.shape[1:]):
        move = Resample(fill=0.0)
        weight = move(rewrap(scaling, known.float()), image).as_tensor()
        moved = move(rewrap(scaling, values), image).as_tensor()
        values = torch.where(weight > 0.5, moved / weight.clamp_min(0.5), 0.0)
    return values[0]
