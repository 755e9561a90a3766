"""The brain and its tissues against truth that was drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.brain import CSF, GM, WM, brain_tissue, prior_weight_of, tissue_notes
from medpipe.graphcut.brain_mask import find_brain
from medpipe.phantoms.brain_mr import brain_mr

LEVELS = torch.tensor([0.0, 30.0, 100.0, 160.0])


def folded(n: int = 40) -> torch.Tensor:
    """Return labels (n, n, n): a ball of white matter with folds, a cortex, fluid around."""
    axis = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    radius = torch.sqrt(x**2 + y**2 + z**2) / (n / 40)
    angle = torch.atan2(y, x)
    fold = 1.5 * torch.cos(8 * angle) * torch.sin(torch.acos(z / radius.clamp_min(1) / (n / 40)))
    depth = radius + torch.nan_to_num(fold)
    labels = torch.zeros((n, n, n), dtype=torch.uint8)
    for label, limit in ((CSF, 18.0), (GM, 15.0), (WM, 11.0)):
        labels[(radius if label == CSF else depth) < limit] = label
    return labels


def noisy(labels: torch.Tensor, noise: float, seed: int = 0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return LEVELS[labels.long()] + noise * torch.randn(labels.shape, generator=made)


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def score(labels: torch.Tensor, truth: torch.Tensor) -> float:
    return sum(dice(labels == t, truth == t) for t in (GM, WM)) / 2


def test_clean_tissue_is_found_exactly_and_proved() -> None:
    truth = folded()
    found = brain_tissue(noisy(truth, 3.0), truth > 0, (1, 1, 1))
    assert torch.equal(found.labels, truth)
    assert found.labels.dtype == torch.uint8
    assert found.result.proved
    assert found.result.gap <= found.result.step * truth.numel() * 8
    assert [round(float(m), -1) for m in found.mixture.means] == [30, 100, 160]
    assert found.noise_to_contrast == pytest.approx(3 / 60, abs=0.01)
    assert found.prior_weight == 0
    assert found.result is found.presegmentation


def test_the_cut_beats_the_mixture_in_noise_and_the_prior_the_cut() -> None:
    truth = folded()
    image = noisy(truth, 30.0)
    plain = brain_tissue(image, truth > 0, (1, 1, 1), prior_weight=0)
    shaped = brain_tissue(image, truth > 0, (1, 1, 1))
    costs = plain.mixture.component_costs(image)
    voxelwise = torch.where(truth > 0, costs.argmin(0) + 1, 0)
    assert shaped.prior_weight == pytest.approx(prior_weight_of(shaped.noise_to_contrast))
    assert shaped.prior_weight > 0.5
    assert score(plain.labels, truth) > score(voxelwise, truth) + 0.1
    assert score(shaped.labels, truth) > score(plain.labels, truth) + 0.005
    assert shaped.result.proved
    assert torch.equal(shaped.presegmentation.masks, plain.result.masks)


def test_without_smoothness_each_voxel_takes_its_likeliest_tissue() -> None:
    truth = folded(32)
    image = noisy(truth, 20.0)
    alone = brain_tissue(image, truth > 0, (1, 1, 1), smoothness=0.0, prior_weight=0)
    x = image[truth > 0]
    likeliest = alone.mixture.component_costs(x).argmin(0) + 1
    # a voxel far from all means goes by the uniform density of outliers
    agree = (alone.labels[truth > 0] == likeliest).double().mean()
    assert float(agree) > 0.999
    assert alone.result.energy == pytest.approx(alone.result.bound, rel=1e-6)


def test_what_lies_outside_the_mask_changes_nothing() -> None:
    truth = folded(32)
    image = noisy(truth, 15.0)
    first = brain_tissue(image, truth > 0, (1, 1, 1)).labels
    other = torch.where(truth > 0, image, torch.nan)
    assert torch.equal(brain_tissue(other, truth > 0, (1, 1, 1)).labels, first)
    padded = torch.nn.functional.pad(image, (3, 5, 0, 7, 2, 0), value=900.0)
    wide = torch.nn.functional.pad(truth, (3, 5, 0, 7, 2, 0))
    moved = brain_tissue(padded, wide > 0, (1, 1, 1)).labels
    assert torch.equal(moved[2:, :-7, 3:-5], first)
    assert not bool(moved[wide == 0].any())


def test_the_rim_of_the_mask_stays_fluid_in_noise() -> None:
    truth = folded(32)
    brain = truth > 0
    inner = ndimage.binary_erosion(brain.numpy(), border_value=0)
    rim = brain & ~torch.from_numpy(inner)
    found = brain_tissue(noisy(truth, 40.0), brain, (1, 1, 1), prior_weight=0)
    wrong = int((found.labels[rim] != CSF).sum())
    # 113 of 2088 without the links to the outside
    assert wrong < 0.01 * int(rim.sum())
    # and not at the cost of grey matter: 141 voxels without them
    assert int(((truth == GM) & (found.labels == CSF)).sum()) < 160


def test_bright_vessels_leave_the_densities_alone() -> None:
    truth = folded()
    image = noisy(truth, 10.0)
    vessels = torch.rand(truth.shape, generator=torch.Generator().manual_seed(1)) < 0.008
    found = brain_tissue(torch.where(vessels, 700.0, image), truth > 0, (1, 1, 1))
    assert [round(float(m), -1) for m in found.mixture.means] == [30, 100, 160]
    # a vessel is labelled as its surroundings are
    assert score(found.labels, truth) > 0.97


def test_tissues_that_are_not_told_apart_are_reported() -> None:
    labels = torch.tensor([GM] * 10 + [WM] * 10 + [CSF] * 5)
    assert tissue_notes(labels) == []
    labels[:5] = WM
    (note,) = tissue_notes(labels)
    assert "5 voxels of grey and 15 of white" in note


def test_the_weight_of_the_prior_grows_with_noise() -> None:
    weights = [prior_weight_of(n) for n in (0.0, 0.18, 0.355, 0.53, 2.0)]
    assert weights == pytest.approx([0, 0, 1.5, 3, 3])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, m: (x, m[1:]), "another grid"),
        (lambda x, m: (x, torch.zeros_like(m)), "empty"),
        (lambda x, m: (torch.where(m, torch.nan, x), m), "not finite"),
        (lambda x, m: (torch.ones_like(x), m), "fewer distinct values"),
    ],
)
def test_bad_input_is_named(change, words: str) -> None:
    truth = folded(20)
    with pytest.raises(StepError, match=words):
        brain_tissue(*change(noisy(truth, 5.0), truth > 0), (1, 1, 1))


def test_a_negative_prior_is_refused() -> None:
    truth = folded(20)
    with pytest.raises(UsageError, match="prior_weight"):
        brain_tissue(noisy(truth, 5.0), truth > 0, (1, 1, 1), prior_weight=-1)


@pytest.fixture(scope="module")
def head():
    return brain_mr(1, shape=(60, 76, 70), spacing_mm=(3, 3, 3), bias=0.0, noise=2.0)


def test_the_brain_of_a_head_is_found(head) -> None:
    image = torch.from_numpy(head.volume.data.astype(np.float32))
    found = find_brain(image, head.volume.affine)
    inside = sum(head.fractions.values()) > 0.5
    tissue = sum(head.fractions[n] for n in ("grey", "deep_grey", "white")) > 0.5
    mask = found.mask.numpy()
    assert not found.stripped
    assert found.surface is not None
    assert found.surface.proved
    assert (mask & tissue).sum() / tissue.sum() > 0.9
    assert (mask & ~inside).sum() / mask.sum() < 0.03


def test_a_stripped_brain_is_kept(head) -> None:
    inside = sum(head.fractions[n] for n in ("grey", "deep_grey", "white")) > 0.5
    image = torch.from_numpy(np.where(inside, head.volume.data, 0).astype(np.float32))
    found = find_brain(image, head.volume.affine)
    assert found.stripped
    kept = found.mask.numpy()
    assert (kept & inside).sum() / inside.sum() > 0.95
    assert kept.sum() < 1.35 * inside.sum()


def test_no_head_is_named() -> None:
    with pytest.raises(StepError, match="no positive values"):
        find_brain(torch.zeros(20, 20, 20), np.diag([2.0, 2, 2, 1]))
    speck = torch.zeros(40, 40, 40)
    speck[10:14, 10:14, 10:14] = 100
    with pytest.raises(StepError, match="no head"):
        find_brain(speck, np.diag([2.0, 2, 2, 1]))
