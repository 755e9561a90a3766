"""Organs from rough outlines: sharper than outlines and than a cut without shape prior."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from scipy import ndimage

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.organs import shape_prior_cut, signed_distance_mm
from medpipe.graphcut.transforms.grid import GraphCut, GraphCutd, ShapePriorGraphCutd
from medpipe.phantoms.pelvis_ct import pelvis_ct, rough_presegmentation
from medpipe.phantoms.pelvis_folder import ORGANS

SPACING = (4.0, 4.0, 4.0)
SHAPE = (48, 42, 27)


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@lru_cache(maxsize=1)
def pelvis() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return image, true organs and rough outlines."""
    phantom = pelvis_ct(1, shape=SHAPE, spacing_mm=SPACING)
    truth = torch.zeros(SHAPE, dtype=torch.int64)
    rough = torch.zeros(SHAPE, dtype=torch.int64)
    for label, organ in ORGANS:
        mask = phantom.mask(organ)
        truth[torch.from_numpy(mask)] = label
        outline = torch.from_numpy(rough_presegmentation(mask, SPACING, label))
        rough[outline & (rough == 0)] = label
    return torch.from_numpy(phantom.volume.data).float(), truth, rough


@lru_cache(maxsize=4)
def cut(prior_weight: float | None = None, distance_mm: float = 0.0):
    image, _, rough = pelvis()
    return shape_prior_cut(
        image, rough, SPACING, prior_weight=prior_weight, distance_mm=distance_mm
    )


def test_both_organs_are_better_than_their_outlines_and_than_without_a_prior():
    _, truth, rough = pelvis()
    with_prior, without = cut(), cut(prior_weight=0.0)
    assert with_prior.result.proved
    for label, _ in ORGANS:
        found, plain, drawn = (
            dice(x == label, truth == label) for x in (with_prior.labels, without.labels, rough)
        )
        assert found > drawn + 0.05
        assert found > plain
        assert found > 0.85


def test_a_distance_between_organs_is_kept():
    labels = cut(distance_mm=4.0).labels.numpy()
    for a, b in ((1, 2), (2, 1)):
        apart = ndimage.distance_transform_edt(labels != b, sampling=SPACING)
        assert apart[labels == a].min() > 4.0
    near = ndimage.distance_transform_edt(cut().labels.numpy() != 2, sampling=SPACING)
    assert near[cut().labels.numpy() == 1].min() <= 4.0


def test_only_the_surroundings_of_the_outlines_are_cut():
    image, _, _ = pelvis()
    region = cut().region
    assert np.prod([s.stop - s.start for s in region]) < 0.8 * image.numel()
    outside = torch.ones(SHAPE, dtype=torch.bool)
    outside[region] = False
    assert not bool(cut().labels[outside].any())


def test_the_signed_distance_is_that_of_scipy():
    mask = torch.zeros(9, 8, 7, dtype=torch.bool)
    mask[3:6, 2:6, 2:5] = True
    spacing = (1.0, 2.0, 0.5)
    out = ndimage.distance_transform_edt(~mask.numpy(), sampling=spacing)
    inside = ndimage.distance_transform_edt(mask.numpy(), sampling=spacing)
    assert np.allclose(signed_distance_mm(mask, spacing).numpy(), out - inside)


def test_a_nested_organ_stays_inside():
    z, y, x = torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij")
    radius = ((x - 12) ** 2 + (y - 12) ** 2 + (z - 12) ** 2).sqrt()
    noise = torch.randn(radius.shape, generator=torch.Generator().manual_seed(0))
    image = 50.0 * (radius < 8) + 50.0 * (radius < 5) + 12 * noise
    rough = (radius < 7).long() + (radius < 4).long()
    rough[rough == 2] = 5
    found = shape_prior_cut(
        image, rough, (1.0, 1.0, 1.0), contain=[(5, 1)], core_mm=2.0, outside_mm=4.0
    )
    inner, outer = (found.result.mask(name) for name in ("5", "1"))
    assert not bool((inner & ~outer).any())
    assert dice(found.labels == 5, radius < 5) > 0.9
    assert dice(found.labels > 0, radius < 8) > 0.9


def test_unusable_outlines_are_named():
    image, _, rough = pelvis()
    with pytest.raises(StepError, match="not on the grid"):
        shape_prior_cut(image, rough[1:], SPACING)
    with pytest.raises(StepError, match="are empty"):
        shape_prior_cut(image, rough * 0, SPACING)
    with pytest.raises(StepError, match="unusable labels"):
        shape_prior_cut(image, rough * 300, SPACING)
    with pytest.raises(UsageError, match="contain is wrong"):
        shape_prior_cut(image, rough, SPACING, contain=[(1, 9)])


def seeded_ball() -> tuple[MetaTensor, MetaTensor, torch.Tensor]:
    """Return a noisy ball on an anisotropic grid, seeds, and its truth."""
    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    z, y, x = torch.meshgrid(torch.arange(24), torch.arange(24), torch.arange(12), indexing="ij")
    radius = ((z - 12.0) ** 2 + (y - 12.0) ** 2 + (2 * x - 12.0) ** 2).sqrt()
    noise = torch.randn(radius.shape, generator=torch.Generator().manual_seed(1))
    seeds = (radius < 4).to(torch.uint8) + 2 * (radius > 10).to(torch.uint8)
    image = MetaTensor((100.0 * (radius < 7) + 45 * noise)[None], affine=affine)
    return image, MetaTensor(seeds[None], affine=affine), radius < 7


def test_graph_cut_finds_a_ball_and_carries_its_proof():
    image, seeds, truth = seeded_ball()
    mask = GraphCutd("image", seeds="seeds")({"image": image, "seeds": seeds})["image"]
    assert dice(mask[0] > 0, truth) > 0.9
    assert torch.equal(mask.affine, image.affine)
    record = mask.meta["medpipe"]
    proof = record["source"]["minimum_cut"]["graph_cut"]
    assert proof["proved"] is True
    assert proof["flow"] == proof["cut"]
    assert 0 <= proof["energy"] - proof["bound"] < 0.01 * abs(proof["energy"])
    assert "proved optimal" in record["findings"][-1]["message"]


def test_the_dictionary_step_gives_the_labels_of_the_function():
    image, _, rough = pelvis()
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    data = {
        "ct": MetaTensor(image[None], affine=affine),
        "r": MetaTensor(rough[None], affine=affine),
    }
    out = ShapePriorGraphCutd("ct", rough="r")(data)["ct"]
    assert torch.equal(out.as_tensor()[0], cut().labels)
    assert out.dtype == torch.uint8


def test_steps_name_what_does_not_fit():
    image, seeds, _ = seeded_ball()
    other = MetaTensor(seeds.as_tensor(), affine=torch.eye(4, dtype=torch.float64))
    with pytest.raises(StepError, match="seeds is not on the grid"):
        GraphCut()(image, other)
    with pytest.raises(StepError, match="no labels"):
        GraphCut()(image, MetaTensor(seeds.as_tensor() * 0.3, affine=image.affine))
    with pytest.raises(StepError, match="not scalar"):
        GraphCut()(MetaTensor(image.as_tensor().repeat(2, 1, 1, 1)), seeds)
    with pytest.raises(StepError, match="absent"):
        GraphCutd("image")({"image": image})
