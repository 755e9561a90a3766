"""One simulated patient: what the image holds against what was asked for."""

import json

import numpy as np
import pytest

from medpipe.errors import UsageError
from medpipe.phantoms.sah import SahLabel, SahScan, simulate_patient

BASE = {
    "age_years": 60.0,
    "sex": 1.0,
    "sah_ml": 0.0,
    "ivh_ml": 0.0,
    "ich_ml": 0.0,
    "shift_mm": 0.0,
    "wfns": 3.0,
}
NOISY = SahScan((3.2, 3.2, 3.2))
CLEAN = SahScan((3.2, 3.2, 3.2), noise_hu=0.0)
VOXEL_ML = 3.2**3 / 1000


@pytest.fixture(scope="module")
def empty():
    return simulate_patient(7, BASE, scan=CLEAN)


@pytest.fixture(scope="module")
def full():
    return simulate_patient(7, BASE | {"sah_ml": 24.0, "ich_ml": 18.0, "shift_mm": 6.0}, scan=CLEAN)


@pytest.fixture(scope="module")
def noisy():
    return simulate_patient(7, BASE | {"sah_ml": 15.0}, scan=NOISY)


@pytest.mark.parametrize(
    ("sah_ml", "ivh_ml", "grade"), [(3.0, 0.0, 1), (5.9, 3.0, 2), (6.0, 0.0, 3), (20.0, 8.0, 4)]
)
def test_the_grade_follows_from_what_was_painted(sah_ml, ivh_ml, grade):
    case = simulate_patient(11, BASE | {"sah_ml": sah_ml, "ivh_ml": ivh_ml}, scan=CLEAN)
    ml = case.facts["blood_ml"]
    assert ml["cisterns"] + ml["sulci"] == pytest.approx(sah_ml, rel=0.01)
    assert ml["ventricles"] == pytest.approx(ivh_ml, rel=0.01, abs=0.01)
    assert case.facts["modified_fisher"] == grade
    assert (case.facts["clot_thickness_mm"] > 1) == (grade >= 3)
    if ivh_ml:
        # the image itself: settled blood lies behind the fluid that is left
        y = np.arange(case.labels.shape[1])[None, :, None] + np.zeros(case.labels.shape)
        blood, left = case.labels == SahLabel.BLOOD_VENTRICLES, case.labels == SahLabel.VENTRICLE
        assert y[blood].mean() < y[left].mean() - 3
        assert 40 <= np.median(case.volume.data[blood]) <= 80


def test_without_blood_the_grade_is_zero_and_nothing_is_bright(empty):
    assert empty.facts["modified_fisher"] == 0
    assert sum(empty.facts["blood_ml"].values()) == 0
    assert empty.labels.max() == SahLabel.VENTRICLE
    assert np.median(empty.volume.data[empty.labels == SahLabel.BRAIN]) == pytest.approx(33, abs=6)
    json.dumps(empty.facts, allow_nan=False)


def test_volumes_are_those_of_the_image(empty):
    """The blood of the image alone: what it is brighter than the same head without."""
    bled = simulate_patient(7, BASE | {"sah_ml": 24.0}, scan=CLEAN)
    brighter = bled.volume.data.astype(float) - empty.volume.data
    assert brighter.min() > -1.1
    ml = brighter.sum() / (bled.facts["clot_hu"] - 8) * VOXEL_ML
    assert ml == pytest.approx(24.0, rel=0.05)
    fresh = np.isin(bled.labels, [SahLabel.BLOOD_CISTERNS, SahLabel.BLOOD_SULCI])
    assert brighter[fresh].sum() > 0.7 * brighter.sum()
    # where the fluid filled the voxel, no bone beside it
    dense = (brighter > 0.75 * (bled.facts["clot_hu"] - 8)) & (empty.volume.data < 25)
    assert dense.sum() > 60
    assert (bled.volume.data[dense] <= 80).all()
    assert (bled.volume.data[dense] >= 40).all()


def test_a_haematoma_and_a_shift_are_as_told(full):
    facts = full.facts
    assert facts["blood_ml"]["parenchyma"] == pytest.approx(18.0, rel=0.01)
    clot = full.labels == SahLabel.BLOOD_BRAIN
    assert clot.sum() * VOXEL_ML == pytest.approx(18.0, rel=0.15)
    assert 55 <= np.median(full.volume.data[clot]) <= 80
    x = np.argwhere(clot)[:, 0].mean() - (full.labels.shape[0] - 1) / 2
    assert (x > 0) == (facts["side"] == "right")
    assert facts["shift_mm"] == pytest.approx(6.0, abs=0.05)
    assert facts["least_jacobian"] > 0.1


def test_ventricles_are_seen_to_move_away_from_the_side(empty):
    """Front horns of the labels: the shift as a reader would measure it."""
    moved = simulate_patient(7, BASE | {"shift_mm": 9.0}, scan=CLEAN)

    def front(case):
        at = np.argwhere(np.isin(case.labels, [SahLabel.VENTRICLE, SahLabel.BLOOD_VENTRICLES]))
        mm = at @ case.volume.affine[:3, :3].T + case.volume.affine[:3, 3]
        horns = mm[(mm[:, 1] > 4) & (mm[:, 2] > 4)]
        return horns[:, 0].mean()

    sign = -1 if moved.facts["side"] == "right" else 1
    assert 0.6 * 9 < sign * (front(moved) - front(empty)) < 1.1 * 9


def test_ventricles_and_sulci_grow_with_age():
    young, old = (
        simulate_patient(3, BASE | {"age_years": age}, scan=CLEAN).facts for age in (25.0, 88.0)
    )
    assert old["ventricles_ml"] > 1.3 * young["ventricles_ml"]
    assert old["fluid_ml"] > 1.2 * young["fluid_ml"]
    assert old["brain_ml"] < young["brain_ml"]


def test_same_seed_same_bytes_and_a_second_ct_is_another_of_the_same_patient(noisy):
    covariates = BASE | {"sah_ml": 15.0}
    same, second = (simulate_patient(7, covariates, scan=NOISY, repeat=repeat) for repeat in (0, 1))
    one = noisy
    assert one.volume.data.tobytes() == same.volume.data.tobytes()
    assert one.facts == same.facts
    assert (one.volume.data != second.volume.data).mean() > 0.5
    for name in ("artery", "side", "clot_hu", "ventricles"):
        assert one.facts[name] == second.facts[name]
    assert second.facts["covariates"]["sah_ml"] == pytest.approx(15.0, rel=0.01)


def test_thick_tilted_slices_show_the_same_blood(full):
    """Another grid, leaning, of thick slices: brightness is kept where both look."""
    scan = SahScan((4.0, 4.0, 6.0), tilt_deg=15.0, noise_hu=0.0)
    case = simulate_patient(7, BASE | {"sah_ml": 24.0, "ich_ml": 18.0, "shift_mm": 6.0}, scan=scan)
    step = case.volume.affine[:3, :3]
    lean = np.degrees(np.arctan2(step[2, 1], step[1, 1]))
    assert lean == pytest.approx(15.0)
    assert np.array_equal(step[:, 2] / 6.0, (0, 0, 1))
    voxel_ml = float(np.linalg.det(step)) / 1000
    clot = (case.labels == SahLabel.BLOOD_BRAIN).sum() * voxel_ml
    assert clot == pytest.approx((full.labels == SahLabel.BLOOD_BRAIN).sum() * VOXEL_ML, rel=0.15)
    centre = [
        (np.argwhere(c.labels == SahLabel.BLOOD_BRAIN) @ c.volume.affine[:3, :3].T).mean(0)
        + c.volume.affine[:3, 3]
        for c in (case, full)
    ]
    np.testing.assert_allclose(*centre, atol=1.5)


def test_sites_differ_in_noise(noisy):
    scan = SahScan(NOISY.spacing_mm, site=1)
    other = simulate_patient(7, BASE | {"sah_ml": 15.0}, scan=scan)
    assert np.array_equal(other.labels, noisy.labels)
    a, b = (c.volume.data[c.labels == SahLabel.BRAIN].std() for c in (noisy, other))
    assert b > 1.2 * a


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
