"""Bias correction: a known field is taken out, a flat image stays, geometry is kept."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.phantoms.brain_mr import brain_mr
from medpipe.steps.bias import CorrectBias, CorrectBiasd

SHAPE, SPACING = (45, 57, 45), (4.0, 4.0, 4.0)
ITERATIONS = (50, 50)


@lru_cache(maxsize=2)
def phantom(bias: float):
    """Return a T1 image, a mask of its brain and its true bias field."""
    made = brain_mr(2, shape=SHAPE, spacing_mm=SPACING, bias=bias, noise=2.0)
    affine = torch.from_numpy(made.volume.affine)
    brain = sum(made.fractions.values()) > 0.5
    image = MetaTensor(torch.from_numpy(made.volume.data)[None], affine=affine)
    mask = MetaTensor(torch.from_numpy(brain)[None].to(torch.uint8), affine=affine)
    return image, mask, made


def unevenness(image: torch.Tensor, made) -> float:
    """Return the coefficient of variation within pure white matter."""
    white = image.numpy()[0][made.fractions["white"] > 0.99]
    return float(white.std() / white.mean())


def test_a_known_field_is_taken_out():
    image, mask, made = phantom(0.4)
    corrected = CorrectBias()(image, mask)
    found = (image / corrected).numpy()[0][mask.numpy()[0] > 0]
    true = made.bias[mask.numpy()[0] > 0]
    assert np.corrcoef(found, true)[0, 1] > 0.98
    assert unevenness(corrected, made) < 0.25 * unevenness(image, made)
    assert np.allclose(found.mean(), 1, atol=1e-4)


def test_an_even_image_stays_as_it_is():
    image, mask, _ = phantom(0.0)
    field = (image / CorrectBias(ITERATIONS)(image, mask)).numpy()[0][mask.numpy()[0] > 0]
    assert field.std() < 0.03


def test_without_a_mask_the_bright_voxels_are_fitted():
    image, _, made = phantom(0.4)
    assert unevenness(CorrectBias(ITERATIONS)(image), made) < 0.9 * unevenness(image, made)


def test_the_dictionary_step_reads_its_mask_and_keeps_geometry():
    image, mask, _ = phantom(0.4)
    few = (4, 3)  # the bits must be the same after any number
    out = CorrectBiasd("image", mask="brain", iterations=few)({"image": image, "brain": mask})[
        "image"
    ]
    assert torch.equal(out.affine, image.affine)
    assert out.dtype == torch.float32
    same = CorrectBias(few)(image, mask)
    assert not torch.equal(same.as_tensor(), image.as_tensor())
    assert not torch.equal(
        same.as_tensor(), CorrectBias(few)(image).as_tensor()
    )  # the mask is read
    assert torch.equal(out.as_tensor(), same.as_tensor())


def test_unusable_input_is_named():
    image = phantom(0.0)[0]
    with pytest.raises(StepError, match="no positive values"):
        CorrectBias(ITERATIONS)(image * 0)
    with pytest.raises(StepError, match="complex"):
        CorrectBias(ITERATIONS)(image.to(torch.complex64))
    for bad in ({"iterations": []}, {"control_points": 3}, {"working_mm": 0.0}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            CorrectBias(**bad)
