"""Steps from images to masks: metadata, findings, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.centerline.transforms.images import (
    AirwayMask,
    VesselMask,
    VesselMaskd,
    Vesselness,
    Vesselnessd,
)
from medpipe.centerline.vesselness import vesselness
from medpipe.errors import StepError, UsageError
from medpipe.phantoms.tubes import centred_affine, tube_distance

SPACING = (1.0, 1.0, 1.5)


def two_vessels():
    """Return a CTA of two straight vessels at x = -12 and 12 mm, and their affine."""
    affine = centred_affine((48, 32, 32), SPACING)
    image = np.full((48, 32, 32), 50, np.float32)
    for x in (-12, 12):
        field, _ = tube_distance([[x, 0, -40], [x, 0, 40]], 4.0, affine, image.shape, reach_mm=2)
        image += 300 * np.clip(0.5 - field, 0, 1)
    image += 20 * np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
    return MetaTensor(torch.from_numpy(image[None]), affine=torch.from_numpy(affine))


def test_vesselness_keeps_the_grid_and_is_the_function():
    image = two_vessels()
    out = Vesselness([4.0], "sato")(image)
    assert torch.equal(out.as_tensor()[0], vesselness(image[0].as_tensor(), SPACING, [4.0],
                                                      method="sato"))  # fmt: skip
    assert torch.equal(out.affine, image.affine)
    assert out.dtype == torch.float32
    assert torch.equal(Vesselnessd("a", [4.0], "sato")({"a": image})["a"], out)


def test_a_seed_in_mm_chooses_a_vessel():
    image = two_vessels()
    both = VesselMask()(image)
    left = VesselMaskd("ct", seeds_mm=[[-12, 0, 5]])({"ct": image})["ct"]
    assert both.dtype == torch.uint8
    assert both.meta["medpipe"]["source"]["vessel_mask"]["pieces"] == 2
    # blood is measured at the seed, so a few voxels of the wall may differ
    assert int((left[0, :24] != both[0, :24]).sum()) < 0.03 * int(both[0, :24].sum())
    assert int(left[0, 24:].sum()) == 0 < int(both[0, 24:].sum())
    # the world decides, not the array: the same seed in a flipped image
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = 47
    flipped = MetaTensor(
        image.as_tensor().flip(1), affine=torch.from_numpy(image.affine.numpy() @ turn)
    )
    again = VesselMask(seeds_mm=[[-12, 0, 5]])(flipped)
    assert int((again.as_tensor().flip(1) != left.as_tensor()).sum()) < 5


def test_the_levels_are_facts_and_a_finding():
    out = VesselMask(pieces=1)(two_vessels())
    facts = out.meta["medpipe"]["source"]["vessel_mask"]
    assert facts["blood"] == pytest.approx(350, abs=15)
    assert facts["tissue"] == pytest.approx(50, abs=5)
    assert (facts["pieces"], facts["pieces_dropped"]) == (1, 1)
    (note,) = out.meta["medpipe"]["findings"]
    assert note["severity"] == "info"
    assert f"blood {facts['blood']:.4g}" in note["message"]


def test_wrong_images_and_settings_are_refused_in_one_line():
    image = two_vessels()
    for step in (Vesselness(), VesselMask(), AirwayMask()):
        with pytest.raises(StepError, match="scalar"):
            step(torch.cat([image.as_tensor()] * 2))
        with pytest.raises(StepError, match="axes"):
            step(image.as_tensor()[0, 0])
        sheared = image.affine.clone()
        sheared[0, 1] = 0.3
        with pytest.raises(StepError, match="sheared"):
            step(MetaTensor(image.as_tensor(), affine=sheared))
    with pytest.raises(StepError, match="outside the image"):
        VesselMask(seeds_mm=[[500, 0, 0]])(image)
    with pytest.raises(StepError, match="at the seeds"):
        VesselMask(seeds_mm=[[0, 12, 0]])(image)
    for wrong in (
        lambda: Vesselness([]),
        lambda: Vesselness(method="hough"),
        lambda: Vesselness(polarity="grey"),
        lambda: VesselMask(seeds_mm=[[1, 2]]),
        lambda: VesselMask("us"),
        lambda: AirwayMask(highest_hu=100),
        lambda: AirwayMask(leak_ml=0),
    ):
        with pytest.raises(UsageError):
            wrong()
