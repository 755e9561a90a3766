"""Head and brain masks on simulated heads with known truth, and on a real one."""

from __future__ import annotations

from functools import cache

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError
from medpipe.phantoms.anatomy import HeadLabel
from medpipe.phantoms.head_ct import head_ct
from medpipe.steps.head_ct import BrainMask, BrainMaskd, HeadMask, HeadMaskd
from medpipe.steps.spatial import Orient

INSIDE = [k for k in HeadLabel if HeadLabel.CSF <= k <= HeadLabel.BLOOD]


@cache
def case(seed, shape, spacing):
    found = head_ct(seed, shape=shape, spacing_mm=spacing)
    volume = found.volume
    data = torch.from_numpy(np.asarray(volume.data, np.float32))[None]
    image = MetaTensor(data, affine=torch.from_numpy(volume.affine))
    head = (found.labels > 0) & (found.labels < HeadLabel.TABLE)
    return image, head, np.isin(found.labels, INSIDE)


def dice(mask, truth):
    mask = mask.as_tensor()[0].cpu().numpy() > 0
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


CASES = [(1, (128, 128, 32), (1.8, 1.8, 5.0)), (2, (110, 128, 80), (1.8, 1.8, 2.0))]


@pytest.mark.parametrize("which", CASES)
def test_head(which):
    image, head, _ = case(*which)
    out = HeadMask()(image)
    assert out.dtype == torch.uint8
    assert dice(out, head) > 0.98
    padded = image.clone()
    padded[image < -900] = -3024
    assert dice(HeadMaskd("x")({"x": padded})["x"], head) > 0.98


@pytest.mark.parametrize("which", CASES)
def test_brain(which):
    image, _, inside = case(*which)
    out = BrainMaskd("x")({"x": image})["x"]
    assert dice(out, inside) > 0.95
    turned = Orient("PIR")(image)
    back = Orient("RAS")(BrainMask()(turned))
    assert dice(back, out[0].numpy() > 0) > 0.999


@pytest.mark.gpu
def test_the_masks_are_the_same_on_a_gpu():
    image, _, _ = case(*CASES[0])
    for step in (HeadMask(), BrainMask()):
        out = step(image.cuda())
        assert out.device.type == "cuda"
        assert dice(out, step(image)[0].numpy() > 0) > 0.9999


def test_errors():
    air = MetaTensor(torch.full((1, 40, 40, 40), -1000.0), affine=torch.eye(4))
    with pytest.raises(StepError, match="no head"):
        HeadMask()(air)
    water = MetaTensor(
        torch.full((1, 60, 60, 60), -1000.0), affine=torch.diag(torch.tensor([3.0, 3, 3, 1]))
    )
    water[0, 15:45, 15:45, 15:45] = 400
    with pytest.raises(StepError, match="no brain"):
        BrainMask()(water)
    with pytest.raises(StepError, match="no CT"):
        HeadMask()(torch.zeros(2, 9, 9, 9))


@pytest.mark.real_data
def test_a_real_head(real_data):
    file = real_data / "head_ct_ge_tilt_dicom" / "derived_GE_head_tilt_corrected_1mm_HU.nii.gz"
    found = nib.load(file)
    data = torch.from_numpy(found.get_fdata(dtype=np.float32))[None]
    image = MetaTensor(data, affine=torch.from_numpy(found.affine))
    head, brain = HeadMask()(image), BrainMask()(image)
    assert 2500 < float(head.sum()) / 1000 < 4500
    assert 1100 < float(brain.sum()) / 1000 < 1700
    assert float((brain.as_tensor() & head.as_tensor()).sum() / brain.sum()) > 0.999
    # symmetric objects: the middle of the brain is in the middle of the head
    middles = [torch.nonzero(m.as_tensor()[0]).double().mean(0) for m in (head, brain)]
    assert abs(float(middles[0][0] - middles[1][0])) < 10
