"""First segmentations from intensities, masks, atlases and networks."""

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.presegment import from_atlas, from_mask, from_probability, from_threshold
from medpipe.phantoms.pelvis_ct import PelvisLabel, pelvis_ct

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def image(values, affine=AFFINE):
    return MetaTensor(torch.as_tensor(values)[None], affine=torch.tensor(affine))


def brick(*ranges, shape=(12, 10, 8)):
    out = torch.zeros(shape, dtype=torch.bool)
    out[tuple(slice(*r) for r in ranges)] = True
    return out


BIG, SMALL = brick((1, 6), (2, 7), (1, 6)), brick((8, 11), (2, 5), (2, 5))


def dice(a, b):
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.fixture(scope="module")
def phantom():
    return pelvis_ct(4, shape=(56, 56, 54), spacing_mm=(2.0, 2.0, 2.0))


def test_threshold_keeps_the_largest_component_in_the_range():
    values = torch.zeros(12, 10, 8)
    values[BIG], values[SMALL] = 50.0, 50.0
    values[3, 3, 3] = 200.0
    found = from_threshold(image(values), 40, 60)
    assert found.dtype == torch.bool
    expected = BIG.clone()
    expected[3, 3, 3] = False
    assert torch.equal(found, expected)
    assert torch.equal(from_threshold(image(values), lower=40), BIG)
    assert torch.equal(from_threshold(image(-values), upper=-40), BIG)
    assert torch.equal(from_threshold(image(values), 40, within=image(SMALL)), SMALL)


def test_threshold_ignores_what_is_not_finite():
    values = torch.where(BIG, 50.0, 0.0)
    values[SMALL] = float("inf")
    values[0] = float("nan")
    assert torch.equal(from_threshold(image(values), lower=40), BIG & torch.isfinite(values))


def test_opening_cuts_a_bridge_in_mm():
    bridge = brick((6, 8), (4, 5), (3, 4))
    values = torch.where(BIG | SMALL | bridge, 50.0, 0.0)
    assert int(from_threshold(image(values), 40).sum()) == int((BIG | SMALL | bridge).sum())
    opened = from_threshold(image(values), 40, open_mm=2.0)
    assert not (opened & SMALL).any()
    assert int((opened & BIG).sum()) > 60
    with pytest.raises(StepError, match="nothing is left after opening"):
        from_threshold(image(values), 40, open_mm=30.0)


def test_threshold_finds_the_bladder_filled_with_contrast():
    p = pelvis_ct(4, shape=(56, 56, 54), spacing_mm=(2.0, 2.0, 2.0), contrast_hu=-300.0)
    found = from_threshold(image(p.volume.data, p.volume.affine), 200, 400)
    truth = torch.from_numpy(p.mask(PelvisLabel.BLADDER))
    assert dice(found, truth) > 0.95


def test_mask_and_label_come_back_as_bool():
    labels = BIG.float() * 3 + SMALL.float() * 7
    grid = image(torch.zeros(12, 10, 8))
    assert torch.equal(from_mask(grid, image(labels)), BIG | SMALL)
    assert torch.equal(from_mask(grid, image(labels), 7), SMALL)
    assert torch.equal(from_mask(grid, image(BIG)), BIG)


def test_probability_of_one_channel():
    output = torch.stack([torch.zeros(12, 10, 8), BIG * 0.9, SMALL * 0.6 + BIG * 0.55])
    grid = image(torch.zeros(12, 10, 8))
    network = MetaTensor(output, affine=torch.tensor(AFFINE))
    assert torch.equal(from_probability(grid, network, channel=1), BIG)
    assert torch.equal(from_probability(grid, network, channel=2), BIG)
    assert torch.equal(from_probability(grid, network, channel=2, largest=False), BIG | SMALL)
    assert torch.equal(from_probability(grid, network, 0.6, channel=2), SMALL)


def rigid(turn_deg, shift_mm):
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    out = np.eye(4)
    out[:2, :2] = [[c, -s], [s, c]]
    out[:3, 3] = shift_mm
    return out


def test_atlas_is_registered_and_its_labels_moved(phantom):
    move = rigid(9.0, (7.0, -5.0, 6.0))
    fixed = image(phantom.volume.data, phantom.volume.affine)
    elsewhere = move @ phantom.volume.affine
    # another noise, so that the noise cannot be matched
    again = pelvis_ct(4, shape=(56, 56, 54), spacing_mm=(2.0, 2.0, 2.0), noise_hu=0)
    atlas, labels = image(again.volume.data, elsewhere), image(again.labels, elsewhere)
    for label in (PelvisLabel.BLADDER, PelvisLabel.PROSTATE):
        truth = torch.from_numpy(phantom.mask(label))
        exact = from_atlas(fixed, atlas, labels, label, fixed_to_moving=move)
        assert torch.equal(exact, truth)
    truth = torch.from_numpy(phantom.mask(PelvisLabel.BLADDER))
    unmoved = from_atlas(fixed, atlas, labels, PelvisLabel.BLADDER, fixed_to_moving=np.eye(4))
    found = from_atlas(fixed, atlas, labels, PelvisLabel.BLADDER, transform="rigid")
    assert found.dtype == torch.bool
    assert found.shape == truth.shape
    assert dice(found, truth) > 0.97 > 0.9 > dice(unmoved, truth)


GRID = image(torch.zeros(12, 10, 8))
HALF = image(torch.full((12, 10, 8), 0.5))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: from_threshold(GRID, 5), "no voxel lies between"),
        (lambda: from_threshold(GRID, 0), "fills the whole image"),
        (lambda: from_threshold(GRID, 0, within=image(torch.zeros(12, 10, 8))), "mask is empty"),
        (lambda: from_threshold(torch.zeros(2, 4, 4, 4), 1), "several channels"),
        (lambda: from_mask(GRID, GRID), "mask is empty"),
        (lambda: from_mask(GRID, HALF), "fills the whole image"),
        (lambda: from_mask(GRID, image(BIG), 4), "label is absent"),
        (lambda: from_mask(GRID, image(BIG, np.eye(4))), "not on the grid"),
        (lambda: from_mask(GRID, image(BIG[1:])), "not on the grid"),
        (lambda: from_probability(GRID, HALF, 0.6), "no probability reaches"),
        (lambda: from_probability(GRID, HALF, 0.5), "fills the whole image"),
        (lambda: from_probability(GRID, HALF, channel=1), "absent from the probabilities"),
        (lambda: from_probability(GRID, image(BIG * 9.0)), "no probabilities"),
        (lambda: from_probability(GRID, image(BIG * float("nan"))), "no probabilities"),
        (lambda: from_probability(GRID, image(BIG * 1.0, np.eye(4))), "not on the grid"),
        (lambda: from_atlas(GRID, GRID, GRID), "label map of the atlas is empty"),
        (lambda: from_atlas(GRID, GRID, image(BIG), 9), "no such label"),
        (
            lambda: from_atlas(
                GRID, GRID, image(BIG), 1, fixed_to_moving=rigid(0.0, (500.0, 0.0, 0.0))
            ),
            "outside the image",
        ),
    ],
)
def test_useless_results_are_refused_in_one_line(call, text):
    with pytest.raises(StepError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: from_threshold(GRID),
        lambda: from_threshold(GRID, 5, 4),
        lambda: from_threshold(HALF, 0.4, within=image(BIG), open_mm=-1.0),
        lambda: from_probability(GRID, HALF, 0.0),
        lambda: from_probability(GRID, HALF, 1.5),
    ],
)
def test_wrong_parameters_are_refused(call):
    with pytest.raises(UsageError):
        call()
