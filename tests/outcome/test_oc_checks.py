"""What is refused, what is told, and that a plain head CT is neither."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import InputError
from medpipe.geometry import affine_from_parts
from medpipe.outcome.checks import check_skull, check_slices, check_values
from medpipe.outcome.transforms.prepare import CtCheck
from medpipe.phantoms.airway_ct import airway_ct
from medpipe.phantoms.anatomy import HeadLabel, Lesion
from medpipe.phantoms.brain_mr import brain_mr
from medpipe.phantoms.head_ct import CONTRAST_HU, HU, head_ct
from medpipe.phantoms.pelvis_ct import pelvis_ct
from medpipe.steps.head_ct import HeadMask

SHAPE, SPACING = (72, 84, 36), (3.0, 3.0, 5.0)


@cache
def phantom():
    return head_ct(7, shape=SHAPE, spacing_mm=SPACING, lesion=Lesion("ich", 45.0))


def image(data=None, affine=None, **source):
    volume = phantom().volume
    values = volume.data if data is None else data
    place = volume.affine if affine is None else affine
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None]
    out = MetaTensor(tensor, affine=torch.from_numpy(np.asarray(place, float)))
    out.meta["medpipe"] = {"source": source, "findings": []}
    return out


def told(checked):
    return [f["check"].removeprefix("outcome.") for f in checked.meta["medpipe"]["findings"]]


def facts(checked):
    return checked.meta["medpipe"]["source"]["ct_check"]


def test_a_plain_head_with_a_bleeding_passes():
    out = CtCheck()(image(modality="CT"))
    assert told(out) == []
    found = facts(out)
    assert found["air_hu"] == pytest.approx(-1000, abs=20)
    labels = phantom().labels
    truth_ml = ((labels > 0) & (labels < HeadLabel.TABLE)).sum() * np.prod(SPACING) / 1000
    assert found["head_ml"] == pytest.approx(truth_ml, rel=0.05)
    assert 700 < found["cranium_ml"] < 2000
    assert torch.equal(out.as_tensor(), image().as_tensor())


def test_padding_is_no_offset():
    data = phantom().volume.data.copy()
    data[:6] = -3024
    data[-6:] = -1024
    assert told(CtCheck()(image(data))) == []


@pytest.mark.parametrize("offset", [1024, 1000, -1024])
def test_an_offset_that_was_forgotten_or_applied_twice(offset):
    with pytest.raises(InputError, match=rf"HU shifted by about \{round(offset, -3):+d}"):
        CtCheck()(image(phantom().volume.data + offset))


def test_a_small_offset_is_told_and_a_larger_one_refused():
    values = phantom().volume.data
    _, findings = check_values(image(values + 70))
    assert [f.check for f in findings] == ["outcome.hu_offset"]
    with pytest.raises(InputError, match="air lies at -8"):
        check_values(image(values + 130))


def test_an_mr_given_as_ct():
    found = brain_mr(7, shape=(48, 56, 40), spacing_mm=(4.0, 4.0, 4.0)).volume
    with pytest.raises(InputError, match="no CT"):
        CtCheck()(image(found.data, found.affine))
    with pytest.raises(InputError, match=r"no CT; expected modality CT, got MR"):
        CtCheck()(image(modality="MR"))
    stored = np.asarray(found.data) / np.max(found.data) * 2000
    with pytest.raises(InputError, match="no CT"):
        CtCheck()(image(stored, found.affine))


def test_a_window_is_no_ct():
    with pytest.raises(InputError, match="nothing in it is air"):
        check_values(image(phantom().volume.data.clip(0, 80)))
    values = phantom().volume.data.copy()
    values[3, 3, 3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        check_values(image(values))


def test_a_trunk_is_no_head():
    pelvis = pelvis_ct(3, shape=(64, 48, 28), spacing_mm=(6.0, 6.0, 7.0)).volume
    with pytest.raises(InputError, match="shows no head"):
        CtCheck()(image(pelvis.data, pelvis.affine))
    chest = airway_ct(3, shape=(80, 64, 70), spacing_mm=(4.0, 4.0, 4.0), branches=5, vessels=3)
    with pytest.raises(InputError):
        CtCheck()(image(chest.volume.data, chest.volume.affine))


def test_bone_that_encloses_nothing_is_no_head():
    """A cylinder of soft tissue with a bar of bone: a limb, or a phantom for tests."""
    x, y, z = np.ogrid[-60:60:2, -60:60:2, -70:70:2]
    values = np.where(x**2 + y**2 + 0 * z < 50**2, 40.0, -1000.0)
    values[x**2 + y**2 + 0 * z < 16**2] = 1200
    small = image(values, np.diag([2.0, 2, 2, 1]))
    with pytest.raises(InputError, match="no skull encloses a brain"):
        check_skull(small, HeadMask()(small).as_tensor()[0] > 0, {})


def test_contrast_medium():
    labels, values = phantom().labels, phantom().volume.data.copy()
    for label, hu in CONTRAST_HU.items():
        values[labels == label] += hu - HU[label]
    # a vessel of 5 mm along the midline that is not in the plain scan
    brain = labels == HeadLabel.WHITE
    k = int(brain.sum((0, 1)).argmax())
    values[34:38, 20:62, k] = np.where(labels[34:38, 20:62, k] >= HeadLabel.CSF, 180, 40)
    out = CtCheck()(image(values))
    assert "contrast" in told(out)
    assert facts(out)["vessel_ml"] > 2
    assert "contrast" in told(CtCheck()(image(contrast=True)))


def test_a_head_that_is_cut_off():
    affine, data = phantom().volume.affine, phantom().volume.data
    labels = phantom().labels
    rows = np.flatnonzero(((labels > 0) & (labels < HeadLabel.TABLE)).any((0, 1)))
    vertex = int(rows[-1])
    with pytest.raises(InputError, match="cut off at the top"):
        CtCheck()(image(data[..., : vertex - 4]))
    upper = affine.copy()
    upper[:3, 3] += affine[:3, 2] * (vertex - 20)
    out = CtCheck()(image(data[..., vertex - 20 :], upper))
    assert "cut_off" in told(out)
    assert facts(out)["head_length_mm"] == pytest.approx(103, abs=6)
    upper = affine.copy()
    upper[:3, 3] += affine[:3, 2] * (vertex - 11)
    with pytest.raises(InputError, match="too little of the head"):
        CtCheck()(image(data[..., vertex - 11 :], upper))
    half = affine.copy()
    half[:3, 3] += affine[:3, 0] * 22
    with pytest.raises(InputError, match="cut off at the side"):
        CtCheck()(image(data[22:], half))


def test_slices():
    affine = affine_from_parts(np.eye(3), (0.5, 0.5, 5.0), np.zeros(3))
    assert check_slices(affine, (512, 512, 30), {})[1] == []
    with pytest.raises(InputError, match=r"too few slices; expected at least 10, got 9"):
        check_slices(affine, (512, 512, 9), {})
    coarse = affine_from_parts(np.eye(3), (0.5, 0.5, 8.0), np.zeros(3))
    found, findings = check_slices(coarse, (512, 512, 20), {})
    assert found == {"slices": 20, "step_mm": 8.0}
    assert [f.check for f in findings] == ["outcome.coarse_slices"]
    wide = affine_from_parts(np.eye(3), (0.5, 0.5, 14.0), np.zeros(3))
    with pytest.raises(InputError, match="too far apart"):
        check_slices(wide, (512, 512, 12), {})
    # of a repaired series the slices count as they were acquired
    acquired = {"slices": 28, "step_mm": {"min": 1.1, "median": 4.0, "max": 7.8}}
    found, findings = check_slices(np.eye(4), (250, 250, 200), acquired)
    assert found == {"slices": 28, "step_mm": 7.8}
    assert len(findings) == 1
