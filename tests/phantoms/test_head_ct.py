"""The head CT against closed forms, Monte-Carlo integration and a real scan."""

import json

import numpy as np
import pytest
from scipy import ndimage

from medpipe.errors import UsageError
from medpipe.geometry import to_mm
from medpipe.phantoms.anatomy import HeadAnatomy, HeadLabel, Lesion, Subject
from medpipe.phantoms.dicom_geometry import SlicePlan
from medpipe.phantoms.head_ct import HU, HeadCT, head_ct


@pytest.fixture(scope="module")
def phantom():
    return head_ct(7, shape=(120, 120, 66), spacing_mm=(2, 2, 2.5), noise_hu=0)


def test_same_seed_same_bytes_other_seed_other_head():
    a, b, c = (head_ct(s, shape=(48, 48, 6), spacing_mm=(5, 5, 20)) for s in (1, 1, 2))
    assert a.volume.data.tobytes() == b.volume.data.tobytes()
    assert a.labels.tobytes() == b.labels.tobytes()
    assert (a.labels != c.labels).mean() > 0.02
    json.dumps(a.facts)


def test_points_do_not_depend_on_how_they_are_asked_for():
    head = HeadCT(3)
    points = np.random.default_rng(0).uniform((-90, -110, -80), (90, 110, 95), (64, 70, 3))
    whole = head.hu(points)
    one_by_one = np.array([head.hu(p) for p in points[::13, ::17].reshape(-1, 3)])
    np.testing.assert_allclose(whole[::13, ::17].ravel(), one_by_one, atol=0.05)
    np.testing.assert_allclose(whole.ravel(), head.hu(points.reshape(-1, 3)), atol=0.05)


def test_tilted_and_straight_slices_agree_where_they_meet():
    head = HeadCT(3)
    tilted = SlicePlan.axial([10.0], matrix=96, tilt_deg=18.5)
    points = tilted.points_mm(0)
    plane = head.hu(points)
    sagittal = points[:, 40]  # the same line in a plane of another orientation
    fan = sagittal[:, None] + np.array([[0, 0, 0], [0.0, 0, 3]])
    np.testing.assert_allclose(head.hu(fan)[:, 0], plane[:, 40], atol=0.05)


def test_moving_the_patient_moves_the_image():
    subject = Subject.from_seed(3)
    moved = Subject(
        subject.scale,
        subject.tilt_deg,
        tuple(s + d for s, d in zip(subject.shift_mm, (3, -4, 5), strict=True)),
        subject.ventricles,
        subject.atrophy_mm,
        subject.skull_mm,
    )
    points = np.random.default_rng(1).uniform(-70, 70, (3000, 3))
    a = HeadCT(3, subject=subject, table=False).hu(points)
    b = HeadCT(3, subject=moved, table=False).hu(points + np.array([3, -4, 5]))
    assert np.median(np.abs(a - b)) < 0.01
    assert (np.abs(a - b) > 5).mean() < 0.002  # rounding at sharp edges


def test_anatomy_is_that_of_an_adult(phantom):
    ml = phantom.facts["volumes_ml"]
    brain = sum(
        ml[k] for k in ("grey", "white", "cerebellum_grey", "cerebellum_white", "brainstem")
    ) + sum(ml[k] for k in ("caudate", "putamen", "pallidum", "thalamus"))
    assert 1050 < brain < 1750
    assert 12 < ml["ventricle"] < 45
    assert 100 < ml["cerebellum_grey"] + ml["cerebellum_white"] < 230
    assert 4 < ml["putamen"] < 14
    skull = np.isin(phantom.labels, (HeadLabel.CORTICAL_BONE, HeadLabel.DIPLOE))
    pieces = np.bincount(ndimage.label(skull, np.ones((3, 3, 3)))[0].ravel())[1:]
    assert pieces.max() > 0.95 * pieces.sum()  # one skull


def test_hu_well_inside_each_tissue_is_the_table_value(phantom):
    for label in (HeadLabel.WHITE, HeadLabel.VENTRICLE, HeadLabel.EYE, HeadLabel.BRAINSTEM):
        points = to_mm(phantom.volume.affine, np.argwhere(phantom.labels == label))
        head = HeadCT(7, edge_mm=0.01)
        hu = head.hu(points)
        assert np.median(hu) == pytest.approx(HU[label], abs=0.5)
        assert phantom.volume.data[phantom.labels == label].mean() == pytest.approx(
            HU[label], abs=6
        )
    assert phantom.volume.data[0, -1].max() == pytest.approx(-1000)


def test_head_is_nearly_but_not_exactly_symmetric():
    anatomy = HeadAnatomy(5, subject=Subject((1, 1, 1), (0, 0, 0), (0, 0, 0), 1, 0.2, 6.5))
    points = np.random.default_rng(2).uniform((5, -90, -40), (70, 80, 70), (20000, 3))
    a, b = anatomy.labels(points), anatomy.labels(points * (-1, 1, 1))
    assert 0.6 < (a == b).mean() < 0.97


_BOX = {
    "ich": ((-50, -50, -40), (50, 55, 50)),
    "ivh": ((-45, -75, -50), (45, 0, 25)),
    "sah": ((-56, -36, -46), (62, 58, 14)),
    "sdh": ((-10, -95, -55), (85, 95, 95)),
}
"""Holds the whole lesion, and little else."""


@pytest.mark.parametrize(
    "lesion",
    [
        Lesion("ich", 30.0),
        Lesion("ich", 8.0, "right"),
        Lesion("sah", 25.0),
        Lesion("ivh", 8.0),
        Lesion("sdh", 50.0, "right"),
    ],
    ids=lambda x: f"{x.kind}-{x.side}",
)
def test_lesion_volume_by_monte_carlo(lesion):
    anatomy = HeadAnatomy(11, lesion=lesion)
    low, high = np.array(_BOX[lesion.kind], float)
    step = (np.prod(high - low) / 150_000) ** (1 / 3)
    cells = np.stack(np.meshgrid(*map(np.arange, low, high, [step] * 3), indexing="ij"), -1)
    points = cells.reshape(-1, 3) + np.random.default_rng(3).uniform(0, step, (cells.size // 3, 3))
    inside = anatomy.labels(points) == HeadLabel.BLOOD
    ml = inside.sum() * step**3 / 1000
    assert ml == pytest.approx(lesion.volume_ml, rel=0.05)
    if lesion.kind in ("ich", "sdh"):
        assert np.sign(np.median(points[inside, 0])) == (1 if lesion.side == "right" else -1)


def test_lesions_that_cannot_be_are_refused():
    for bad in (("tumour", 3.0, "left"), ("ich", 500.0, "left"), ("ich", 3.0, "middle")):
        with pytest.raises(UsageError):
            Lesion(*bad)
    with pytest.raises(UsageError, match="does not fit"):
        HeadAnatomy(11, lesion=Lesion("ivh", 25.0), subject=_small_ventricles())


def _small_ventricles() -> Subject:
    return Subject((0.95, 0.95, 0.95), (0, 0, 0), (0, 0, 0), 0.5, 0.1, 6.0)


def test_noise_is_zero_mean_correlated_and_of_the_asked_strength():
    size = {"shape": (256, 256, 1), "spacing_mm": (0.9, 0.9, 5)}
    clean, noisy = head_ct(2, noise_hu=0, **size), head_ct(2, noise_hu=5, **size)
    rest = (noisy.volume.data - clean.volume.data)[128 - 25 : 128 + 25, 128 - 25 : 128 + 25, 0]
    assert abs(rest.mean()) < 0.5
    assert 3 < rest.std() < 5.5
    assert np.corrcoef(rest[1:].ravel(), rest[:-1].ravel())[0, 1] > 0.15
    streaky = head_ct(2, noise_hu=0, streaks_hu=20, **size)
    assert streaky.volume.data.min() >= -1024


@pytest.mark.real_data
def test_histogram_has_the_peaks_of_a_real_scan(real_data):
    nib = pytest.importorskip("nibabel")
    image = nib.load(
        real_data / "head_ct_ge_tilt_dicom" / "derived_GE_head_tilt_corrected_1mm_HU.nii.gz"
    )
    real = np.asarray(image.dataobj, np.float32)[::2, ::2, ::2]
    ours = head_ct(7, shape=(120, 120, 60), spacing_mm=(2, 2, 2.5)).volume.data
    assert abs(_peak(real, 15, 60) - _peak(ours, 15, 60)) <= 6  # brain
    assert abs(_peak(real, -1100, -900) - _peak(ours, -1100, -900)) <= 30  # air
    # How much of the head is brain-like, fat-like and bone-like, in a band both scans cover.
    for low, high, factor in ((0, 80, 1.6), (-150, -50, 2.2), (300, 2000, 1.8)):
        a, b = _share(real, low, high), _share(ours, low, high)
        assert 1 / factor < a / b < factor, (low, high, a, b)


def _peak(hu: np.ndarray, low: float, high: float) -> float:
    count, edge = np.histogram(hu, bins=np.arange(low, high + 1, 2.0))
    return float(edge[np.argmax(ndimage.gaussian_filter1d(count.astype(float), 2))] + 1)


def _share(hu: np.ndarray, low: float, high: float) -> float:
    head = (hu > -200) & (hu < 2500)
    return float(((hu >= low) & (hu < high)).sum() / head.sum())
