"""The simulated ultrasound frames keep their contours, speckle and shadows."""

import numpy as np
import pytest

from medpipe.errors import UsageError
from medpipe.phantoms.ivus import contour_radius, ivus

TURN = np.arange(512) * (2 * np.pi / 512)


def polar(image, spacing_mm, radius_mm):
    """Pixel values nearest to a contour of one frame."""
    middle = (image.shape[0] - 1) / 2
    x = np.round(middle + radius_mm * np.cos(TURN) / spacing_mm).astype(int)
    y = np.round(middle + radius_mm * np.sin(TURN) / spacing_mm).astype(int)
    return image[x, y]


def circle(radius_mm, centre=(0.0, 0.0), points=400, start=0.3):
    turn = start + np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(turn), np.sin(turn)], 1) * radius_mm + centre


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_radii_of_an_eccentric_circle_equal_the_closed_form(flip, closed):
    points = circle(2.0, (0.5, -0.3))[:: -1 if flip else 1]
    points = np.concatenate([points, points[:1]]) if closed else points
    along = 0.5 * np.cos(TURN) - 0.3 * np.sin(TURN)
    want = along + np.sqrt(along**2 + 4.0 - 0.5**2 - 0.3**2)
    np.testing.assert_allclose(contour_radius(points), want, atol=2e-3)


def test_contours_that_fold_or_miss_the_catheter_are_refused():
    with pytest.raises(UsageError, match="cannot be seen"):
        contour_radius(circle(1.0, (3.0, 0.0)))
    folded = circle(2.0)
    folded[100:140] = folded[100:140][::-1]
    with pytest.raises(UsageError, match="cannot be seen"):
        contour_radius(folded)
    with pytest.raises(UsageError, match="unusable"):
        contour_radius(np.full((20, 2), np.nan))


def test_tissues_lie_between_the_contours():
    p = ivus(1, frames=2, guide_wire=False, calcium=False)
    image = p.volume.data[..., 0]
    lumen, media = p.lumen_mm[0], p.media_mm[0]
    blood = polar(image, 0.025, 0.5 * (0.9 + lumen))
    wall = polar(image, 0.025, lumen + 0.3 * (media - lumen))
    dark = polar(image, 0.025, media - 0.06)
    outside = polar(image, 0.025, media + 0.15)
    assert blood.mean() + 25 < wall.mean() < outside.mean() - 15
    assert dark.mean() + 40 < outside.mean()
    assert not p.shadow.any()


def test_the_truth_is_where_the_echo_steps():
    lumen = np.stack([circle(1.5, (0.2, 0.0))] * 6)
    media = np.stack([circle(2.3)] * 6)
    p = ivus(4, lumen_mm=lumen, media_mm=media, guide_wire=False, calcium=False)
    np.testing.assert_allclose(p.media_mm, 2.3, atol=1e-3)
    offsets = np.arange(-0.2, 0.2, 0.0125)
    rows = [[polar(f, 0.025, p.media_mm[0] + d).mean() for d in offsets]
            for f in np.moveaxis(p.volume.data, -1, 0)]  # fmt: skip
    steepest = offsets[:-1][np.argmax(np.diff(np.mean(rows, 0)))] + 0.00625
    assert abs(steepest) < 0.03  # one pixel is 0.025 mm


def test_speckle_is_rayleigh_before_compression():
    lumen = np.stack([circle(1.2)] * 2)
    p = ivus(3, lumen_mm=lumen, guide_wire=False, calcium=False, spacing_mm=0.012, size=400)
    amplitude = 10 ** ((p.volume.data / 255 - 1) * 50 / 20)
    middle = np.stack([polar(amplitude[..., n], 0.012, np.full(512, 0.95)) for n in (0, 1)])
    assert middle.std() / middle.mean() == pytest.approx(np.sqrt(4 / np.pi - 1), abs=0.1)


def test_shadows_are_dark_and_marked():
    p = ivus(2, frames=4)
    assert p.shadow[0].any()  # the guide wire is in every frame
    assert p.shadow[-1].sum() > p.shadow[0].sum()  # calcium in the last ones
    beyond = polar(p.volume.data[..., -1], 0.025, p.media_mm[-1] + 0.3)
    inside = p.shadow[-1]
    assert beyond[inside].mean() < 0.65 * beyond[~inside].mean()


def test_equal_seeds_give_equal_frames():
    a, b, c = (ivus(s, frames=1, size=240, spacing_mm=0.04) for s in (4, 4, 5))
    np.testing.assert_array_equal(a.volume.data, b.volume.data)
    assert (a.volume.data != c.volume.data).any()
    assert a.volume.data.dtype == np.float32
    assert a.center_mm[0, 0] == pytest.approx(119.5 * 0.04)


def test_impossible_vessels_are_refused():
    small, large = (np.stack([circle(r)]) for r in (1.0, 2.0))
    with pytest.raises(UsageError, match="cross"):
        ivus(0, lumen_mm=large, media_mm=small)
    with pytest.raises(UsageError, match="catheter"):
        ivus(0, lumen_mm=small * 0.4)
    with pytest.raises(UsageError, match="leaves the image"):
        ivus(0, lumen_mm=small, media_mm=large, size=100)
    with pytest.raises(UsageError, match="differ in frames"):
        ivus(0, lumen_mm=small, media_mm=np.concatenate([large, large]))
    with pytest.raises(UsageError, match="not positive"):
        ivus(0, spacing_mm=0)


@pytest.mark.real_data
def test_real_contours_can_be_rendered(real_data):
    rows = np.loadtxt(real_data / "ivus_contours" / "diastolic_contours.csv", delimiter="\t")
    contour = rows[rows[:, 0] == rows[0, 0]][:, 1:3]
    p = ivus(1, lumen_mm=(contour - contour.mean(0))[None], size=240, spacing_mm=0.04)
    points = p.lumen_mm[0][:, None] * np.stack([np.cos(TURN), np.sin(TURN)], 1)
    ring = contour - contour.mean(0)
    away = np.hypot(*(points[:, None] - ring[None]).transpose(2, 0, 1)).min(1)
    assert away.max() < 0.03  # the points of the contour are 0.022 mm apart
