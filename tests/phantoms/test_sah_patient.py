"""One simulated patient: what the image holds against what was asked for."""

import json

import numpy as np
import pytest

from medpipe.errors import UsageError
from medpipe.phantoms.sah import SahLabel, SahScan, simulate_patient

BASE = {
    "age_years": 75.0,
    "sex": 1.0,
    "sah_ml": 0.0,
    "ivh_ml": 0.0,
    "ich_ml": 0.0,
    "shift_mm": 0.0,
    "wfns": 3.0,
}
VOXEL_ML = 4.0**3 / 1000


def simulate(*, noise_hu=0.0, site=0, repeat=0, **covariates):
    scan = SahScan((4.0, 4.0, 4.0), noise_hu=noise_hu, site=site)
    return simulate_patient(7, BASE | covariates, scan=scan, repeat=repeat)


@pytest.fixture(scope="module")
def empty():
    return simulate()


@pytest.fixture(scope="module")
def bled():
    return simulate(sah_ml=24.0)


@pytest.fixture(scope="module")
def settled():
    return simulate(sah_ml=5.9, ivh_ml=3.0)


@pytest.fixture(scope="module")
def full():
    return simulate(sah_ml=24.0, ivh_ml=8.0, ich_ml=18.0, shift_mm=9.0)


@pytest.fixture(scope="module")
def noisy():
    return simulate(noise_hu=8.0, sah_ml=3.0)


@pytest.mark.parametrize(
    ("name", "grade", "sah_ml", "ivh_ml", "ich_ml"),
    [
        ("empty", 0, 0.0, 0.0, 0.0),
        ("noisy", 1, 3.0, 0.0, 0.0),
        ("settled", 2, 5.9, 3.0, 0.0),
        ("bled", 3, 24.0, 0.0, 0.0),
        ("full", 4, 24.0, 8.0, 18.0),
    ],
)
def test_the_grade_follows_from_what_was_painted(request, name, grade, sah_ml, ivh_ml, ich_ml):
    facts = request.getfixturevalue(name).facts
    ml = facts["blood_ml"]
    assert ml["cisterns"] + ml["sulci"] == pytest.approx(sah_ml, rel=0.01)
    assert ml["ventricles"] == pytest.approx(ivh_ml, rel=0.01)
    assert ml["parenchyma"] == pytest.approx(ich_ml, rel=0.01)
    assert facts["modified_fisher"] == grade
    assert (facts["clot_thickness_mm"] > 1) == (grade >= 3)
    json.dumps(facts, allow_nan=False)


def test_without_blood_nothing_is_bright(empty):
    assert empty.labels.max() == SahLabel.VENTRICLE
    brain = empty.volume.data[empty.labels == SahLabel.BRAIN]
    assert np.median(brain) == pytest.approx(33, abs=6)


def test_settled_blood_lies_behind_the_fluid_that_is_left(settled):
    y = np.indices(settled.labels.shape)[1]
    blood = settled.labels == SahLabel.BLOOD_VENTRICLES
    assert y[blood].mean() < y[settled.labels == SahLabel.VENTRICLE].mean() - 3
    assert 40 <= np.median(settled.volume.data[blood]) <= 80


def test_volumes_are_those_of_the_image(empty, bled):
    """The blood of the image alone: what it is brighter than the same head without."""
    brighter = bled.volume.data.astype(float) - empty.volume.data
    assert brighter.min() > -1.1
    clot_hu = bled.facts["clot_hu"]
    assert brighter.sum() / (clot_hu - 8) * VOXEL_ML == pytest.approx(24.0, rel=0.05)
    fresh = np.isin(bled.labels, [SahLabel.BLOOD_CISTERNS, SahLabel.BLOOD_SULCI])
    assert brighter[fresh].sum() > 0.7 * brighter.sum()
    # where fluid filled the voxel, no bone beside it
    dense = (brighter > 0.75 * (clot_hu - 8)) & (empty.volume.data < 25)
    assert dense.sum() > 30
    assert (bled.volume.data[dense] <= 80).all()
    assert (bled.volume.data[dense] >= 40).all()


def test_a_haematoma_is_where_and_as_large_as_told(full):
    clot = full.labels == SahLabel.BLOOD_BRAIN
    assert clot.sum() * VOXEL_ML == pytest.approx(18.0, rel=0.15)
    assert 55 <= np.median(full.volume.data[clot]) <= 80
    x = np.argwhere(clot)[:, 0].mean() - (full.labels.shape[0] - 1) / 2
    assert (x > 0) == (full.facts["side"] == "right")


def test_ventricles_are_seen_to_move_away_from_the_side(empty, full):
    """Front horns of the labels: the shift as a reader would measure it."""

    def front(case):
        at = np.argwhere(np.isin(case.labels, [SahLabel.VENTRICLE, SahLabel.BLOOD_VENTRICLES]))
        mm = at @ case.volume.affine[:3, :3].T + case.volume.affine[:3, 3]
        return mm[(mm[:, 1] > 4) & (mm[:, 2] > 4), 0].mean()

    sign = -1 if full.facts["side"] == "right" else 1
    assert 0.6 * 9 < sign * (front(full) - front(empty)) < 1.15 * 9
    assert full.facts["shift_mm"] == pytest.approx(9.0, abs=0.05)
    assert full.facts["least_jacobian"] > 0.1


def test_ventricles_and_sulci_grow_with_age(empty):
    young, old = simulate(age_years=22.0).facts, empty.facts
    assert old["ventricles_ml"] > 1.25 * young["ventricles_ml"]
    assert old["fluid_ml"] > 1.15 * young["fluid_ml"]
    assert old["brain_ml"] < young["brain_ml"]


def test_a_second_ct_elsewhere_shows_the_same_patient_in_other_noise(noisy):
    second = simulate(noise_hu=8.0, sah_ml=3.0, repeat=1, site=1)
    assert (noisy.volume.data != second.volume.data).mean() > 0.5
    for name in ("artery", "side", "clot_hu", "ventricles"):
        assert noisy.facts[name] == second.facts[name]
    assert second.facts["covariates"]["sah_ml"] == pytest.approx(3.0, rel=0.01)
    a, b = (c.volume.data[c.labels == SahLabel.BRAIN].std() for c in (noisy, second))
    assert b > 1.2 * a


def test_thick_tilted_slices_show_the_same_blood(full):
    """Another grid, leaning, of thick slices: the clot stays where it was."""
    scan = SahScan((4.0, 4.0, 8.0), tilt_deg=15.0, noise_hu=0.0)
    case = simulate_patient(7, full.facts["covariates"], scan=scan)
    step = case.volume.affine[:3, :3]
    assert np.degrees(np.arctan2(step[2, 1], step[1, 1])) == pytest.approx(15.0)
    assert np.array_equal(step[:, 2] / 8.0, (0, 0, 1))
    voxel_ml = float(np.linalg.det(step)) / 1000
    ml = [
        (c.labels == SahLabel.BLOOD_BRAIN).sum() * v
        for c, v in ((case, voxel_ml), (full, VOXEL_ML))
    ]
    assert ml[0] == pytest.approx(ml[1], rel=0.15)
    centre = [
        (np.argwhere(c.labels == SahLabel.BLOOD_BRAIN) @ c.volume.affine[:3, :3].T).mean(0)
        + c.volume.affine[:3, 3]
        for c in (case, full)
    ]
    np.testing.assert_allclose(*centre, atol=1.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"spacing_mm": (0.1, 1, 1)},
        {"thickness_mm": 99},
        {"tilt_deg": 45},
        {"noise_hu": -1},
        {"site": 9},
    ],
)
def test_impossible_scans_are_refused(settings):
    with pytest.raises(UsageError):
        SahScan(**settings)
