"""The pelvic CT: known organs that touch, their HU, and the rough masks made of them."""

import json

import numpy as np
import pytest
from scipy import ndimage

from medpipe.errors import StepError, UsageError
from medpipe.geometry import to_mm
from medpipe.phantoms.pelvis_ct import (
    HU,
    PelvisCT,
    PelvisLabel,
    pelvis_ct,
    rough_presegmentation,
)

SHAPE, SPACING = (64, 64, 60), (2.0, 2.0, 2.0)
ORGANS = (PelvisLabel.BLADDER, PelvisLabel.PROSTATE)


@pytest.fixture(scope="module")
def phantom():
    return pelvis_ct(3, shape=SHAPE, spacing_mm=SPACING, noise_hu=0)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_same_seed_same_bytes_other_seed_other_pelvis():
    a, b, c = (pelvis_ct(s, shape=(40, 40, 30), spacing_mm=(3, 3, 4)) for s in (1, 1, 2))
    assert a.volume.data.tobytes() == b.volume.data.tobytes()
    assert a.labels.tobytes() == b.labels.tobytes()
    assert (a.labels != c.labels).mean() > 0.02
    json.dumps(a.facts)


def test_grid_and_points_agree(phantom):
    index = np.random.default_rng(0).integers(0, SHAPE, (500, 3))
    points = to_mm(phantom.volume.affine, index)
    pelvis = PelvisCT(3)
    assert (pelvis.labels(points) == phantom.labels[tuple(index.T)]).mean() > 0.99
    np.testing.assert_allclose(pelvis.hu(points), phantom.volume.data[tuple(index.T)], atol=2)


@pytest.mark.parametrize("seed", range(6))
def test_every_subject_has_two_whole_organs_that_touch(seed):
    p = pelvis_ct(seed, shape=SHAPE, spacing_mm=SPACING, noise_hu=0)
    ml = p.facts["volumes_ml"]
    assert 60 < ml["bladder"] < 260
    assert 25 < ml["prostate"] < 80
    assert 500 < p.facts["contact_mm2"] < 2500
    for label in ORGANS:
        mask = p.mask(label)
        pieces = np.bincount(ndimage.label(mask)[0].ravel())[1:]
        assert pieces.max() > 0.995 * mask.sum()
        border = [np.take(mask, end, axis).any() for axis in range(3) for end in (0, -1)]
        assert not any(border)
    # and the prostate also touches what looks like it
    near = ndimage.binary_dilation(p.mask(PelvisLabel.PROSTATE), iterations=2)
    assert p.mask(PelvisLabel.RECTUM)[near].any() or p.mask(PelvisLabel.MUSCLE)[near].any()


def test_hu_well_inside_each_organ_is_the_table_value(phantom):
    for label in (*ORGANS, PelvisLabel.FAT, PelvisLabel.MUSCLE):
        core = ndimage.binary_erosion(phantom.mask(label), iterations=2)
        assert np.median(phantom.volume.data[core]) == pytest.approx(HU[label], abs=0.5)


def test_contrast_between_the_organs_is_the_one_asked_for():
    p = pelvis_ct(3, shape=SHAPE, spacing_mm=SPACING, contrast_hu=9.0, noise_hu=0)
    inner = [
        p.volume.data[ndimage.binary_erosion(p.mask(label), iterations=2)].mean()
        for label in ORGANS
    ]
    assert inner[1] - inner[0] == pytest.approx(9, abs=0.3)


def test_noise_has_the_standard_deviation_asked_for(phantom):
    noisy = pelvis_ct(3, shape=SHAPE, spacing_mm=SPACING, noise_hu=15.0)
    assert (noisy.labels == phantom.labels).all()
    noise = (noisy.volume.data - phantom.volume.data)[24:40, 24:40]
    assert noise.std() == pytest.approx(15, rel=0.25)
    assert abs(noise.mean()) < 1


def test_volume_does_not_depend_on_the_grid(phantom):
    other = pelvis_ct(3, shape=(50, 56, 100), spacing_mm=(2.5, 2.3, 1.2), noise_hu=0)
    for name in ("bladder", "prostate"):
        a, b = (p.facts["volumes_ml"][name] for p in (phantom, other))
        assert a == pytest.approx(b, rel=0.02)


def test_contact_is_the_area_of_the_faces_between_the_organs(phantom):
    bladder, prostate = (phantom.mask(label) for label in ORGANS)
    touching = sum(
        int((np.roll(bladder, s, axis) & prostate).sum()) for axis in range(3) for s in (1, -1)
    )
    assert phantom.facts["contact_mm2"] == touching * 4.0


def test_whole_pelvis_lies_in_air():
    p = pelvis_ct(1, shape=(128, 96, 6), spacing_mm=(3.2, 3.2, 20), noise_hu=0)
    assert (p.labels[[0, -1]] == PelvisLabel.AIR).all()
    assert (p.labels[:, [0, -1]] == PelvisLabel.AIR).all()
    body = ndimage.binary_fill_holes(p.labels[:, :, 3] > 0)
    assert 60_000 < body.sum() * 3.2**2 < 100_000  # mm²


@pytest.mark.parametrize("label", ORGANS)
def test_rough_mask_is_smaller_moved_and_bumpy(phantom, label):
    truth = phantom.mask(label)
    rough = rough_presegmentation(truth, SPACING, 5)
    assert 0.7 < dice(rough, truth) < 0.93
    assert ndimage.label(rough)[1] == 1
    moved = to_mm(phantom.volume.affine, np.argwhere(rough)).mean(0) - to_mm(
        phantom.volume.affine, np.argwhere(truth)
    ).mean(0)
    assert 1.5 < np.linalg.norm(moved) < 5
    again, other = (rough_presegmentation(truth, SPACING, s) for s in (5, 6))
    assert (again == rough).all()
    assert (other != rough).any()


def test_rough_mask_follows_its_parameters(phantom):
    truth = phantom.mask(PelvisLabel.BLADDER)
    same = rough_presegmentation(truth, SPACING, 1, erode_mm=0, shift_mm=0, bumps_mm=0)
    assert dice(same, truth) > 0.995
    eroded = rough_presegmentation(truth, SPACING, 1, erode_mm=4, shift_mm=0, bumps_mm=0)
    expected = ndimage.distance_transform_edt(truth, SPACING) > 4
    assert dice(eroded, expected) > 0.999
    grown = rough_presegmentation(truth, SPACING, 1, erode_mm=-4, shift_mm=0, bumps_mm=0)
    assert dice(grown, ndimage.distance_transform_edt(~truth, SPACING) < 4) > 0.999
    moved = rough_presegmentation(truth, SPACING, 1, erode_mm=0, shift_mm=8, bumps_mm=0)
    distance = np.linalg.norm(np.argwhere(moved).mean(0) - np.argwhere(truth).mean(0)) * 2
    assert distance == pytest.approx(8, abs=0.6)


def test_rough_mask_of_nothing_is_refused(phantom):
    with pytest.raises(StepError, match="empty"):
        rough_presegmentation(np.zeros(SHAPE, bool), SPACING, 0)
    with pytest.raises(StepError, match="nothing is left"):
        rough_presegmentation(phantom.mask(ORGANS[1]), SPACING, 0, erode_mm=90)
    with pytest.raises(UsageError, match="finite"):
        rough_presegmentation(phantom.mask(ORGANS[1]), SPACING, 0, erode_mm=float("nan"))
