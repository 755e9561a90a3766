"""The transforms of the brain: grids, metadata, errors, and real images."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError
from medpipe.phantoms.brain_mr import MRPhantom, brain_mr
from medpipe.transforms import BrainMaskMR, BrainMaskMRd, BrainTissue, BrainTissued


@pytest.fixture(scope="module")
def head() -> MRPhantom:
    return brain_mr(1, shape=(60, 76, 70), spacing_mm=(3, 3, 3), bias=0.0, noise=2.0)


def tensor(data: np.ndarray, affine: np.ndarray) -> MetaTensor:
    meta = {"medpipe": {"source": {"kind": "phantom"}, "findings": []}}
    return MetaTensor(
        torch.from_numpy(np.ascontiguousarray(data, np.float32))[None],
        affine=torch.from_numpy(np.array(affine)),
        meta=meta,
    )


def image_of(head: MRPhantom) -> MetaTensor:
    return tensor(head.volume.data, head.volume.affine)


def flipped(head: MRPhantom) -> MetaTensor:
    """The same head stored as (S, L, A), as a sagittal scan may be."""
    order = np.zeros((4, 4))
    n = head.volume.data.shape
    order[2, 0] = order[1, 2] = order[3, 3] = 1
    order[0, 1], order[0, 3] = -1, n[0] - 1
    data = head.volume.data[::-1].transpose(2, 0, 1)
    return tensor(data, head.volume.affine @ order)


def test_the_mask_follows_the_grid_of_the_image(head: MRPhantom) -> None:
    made = BrainMaskMRd(["image"])({"image": image_of(head)})["image"]
    assert made.shape == (1, *head.volume.data.shape)
    assert made.dtype == torch.uint8
    np.testing.assert_allclose(made.affine.numpy(), head.volume.affine)
    proof = made.meta["medpipe"]["source"]["minimum_cut"]["brain_surface"]
    assert proof["proved"]
    assert proof["flow"] == proof["cut"]
    assert any(f["check"] == "graphcut.optimal" for f in made.meta["medpipe"]["findings"])
    turned = BrainMaskMR()(flipped(head)).numpy()[0]
    straight = turned.transpose(1, 2, 0)[::-1] > 0
    same = made.numpy()[0] > 0
    assert 2 * (same & straight).sum() / (same.sum() + straight.sum()) > 0.999


def test_a_stripped_image_says_so(head: MRPhantom) -> None:
    inside = sum(head.fractions[n] for n in ("grey", "deep_grey", "white")) > 0.5
    made = BrainMaskMR()(tensor(np.where(inside, head.volume.data, 0), head.volume.affine))
    kept = made.numpy()[0] > 0
    assert (kept & inside).sum() / inside.sum() > 0.97
    findings = made.meta["medpipe"]["findings"]
    assert any("no skull" in f["message"] for f in findings)
    assert "minimum_cut" not in made.meta["medpipe"]["source"]


def test_tissue_is_labelled_and_proved(head: MRPhantom) -> None:
    fractions = head.fractions
    truth = np.argmax(
        [
            0.5 - 0 * fractions["csf"],
            fractions["csf"],
            fractions["grey"] + fractions["deep_grey"],
            fractions["white"],
        ],
        0,
    )
    image, brain = image_of(head), tensor(truth > 0, head.volume.affine)
    made = BrainTissued(["image"], mask="brain")({"image": image, "brain": brain})["image"]
    labels = made.numpy()[0]
    assert made.dtype == torch.uint8
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert not labels[truth == 0].any()
    for value in (2, 3):
        a, b = labels == value, truth == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85
    source = made.meta["medpipe"]["source"]
    assert source["kind"] == "phantom"
    assert source["minimum_cut"]["brain_tissue"]["proved"]
    assert source["brain_tissue"]["means"] == sorted(source["brain_tissue"]["means"])
    assert source["brain_tissue"]["noise_to_contrast"] > 0


def test_the_dictionary_form_needs_its_mask(head: MRPhantom) -> None:
    with pytest.raises(StepError, match="brain mask is absent"):
        BrainTissued(["image"], mask="brain")({"image": image_of(head)})
    other = tensor(np.ones((5, 5, 5)), np.eye(4))
    with pytest.raises(StepError, match="not on the grid"):
        BrainTissue()(image_of(head), other)


def test_an_image_of_several_channels_or_nan_is_refused(head: MRPhantom) -> None:
    two = torch.cat([image_of(head)] * 2)
    with pytest.raises(StepError, match="not scalar"):
        BrainMaskMR()(two)
    broken = image_of(head)
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(StepError, match="NaN"):
        BrainMaskMR()(broken)


@pytest.mark.real_data
def test_a_real_head_has_a_brain_of_plausible_volume(real_data: Path) -> None:
    file = nib.load(real_data / "brain_mr" / "chris_t1.nii.gz")
    image = tensor(np.asarray(file.dataobj), file.affine)
    made = BrainMaskMR()(image)
    litres = float(made.as_tensor().sum()) * abs(np.linalg.det(file.affine[:3, :3])) / 1e6
    assert 1.3 < litres < 1.75
    assert made.meta["medpipe"]["source"]["minimum_cut"]["brain_surface"]["proved"]


@pytest.mark.real_data
def test_a_real_stripped_brain_is_kept_whole(real_data: Path) -> None:
    file = nib.load(real_data / "brain_mr" / "MR_Gd.nii.gz")
    data = np.asarray(file.dataobj)
    made = BrainMaskMR()(tensor(data, file.affine)).numpy()[0] > 0
    assert (made & (data > 0)).sum() / (data > 0).sum() > 0.98
    assert made.sum() < 1.2 * (data > 0).sum()
