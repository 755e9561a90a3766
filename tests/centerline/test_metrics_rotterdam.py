"""The Rotterdam measures: hand-made vessels, all correspondences, and invariances."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpipe.centerline.metrics.rotterdam import (
    accuracy_score,
    clip_at_start,
    correspondence,
    overlap_score,
    resample_equidistant,
    rotterdam_scores,
)
from medpipe.errors import UsageError


def along_x(low, high, y=0.0):
    """The two ends of a straight line."""
    return np.array([[low, y, 0.0], [high, y, 0.0]])


def straight(result, radius=0.8, **settings_):
    """Compare with the line from x = 0 to 10 in steps of 1 mm: points 0 to 10."""
    radii = np.broadcast_to(radius, (2,))
    return rotterdam_scores(along_x(0, 10), radii, result, **({"step_mm": 1.0} | settings_))


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_no_correspondence_is_shorter(seed):
    rng = np.random.default_rng(seed)
    m, n = rng.integers(1, 7, 2)
    a, b = rng.normal(size=(m, 3)), rng.normal(size=(n, 3))
    found = correspondence(a, b)
    i, j = found.reference, found.result
    # valid: from both starts to both ends, one of both curves advances by one each time
    assert (i[0], j[0], i[-1], j[-1]) == (0, 0, m - 1, n - 1)
    assert np.array_equal(np.diff(i) + np.diff(j), np.ones(len(i) - 1))
    assert (np.diff(i) >= 0).all()
    assert (np.diff(j) >= 0).all()
    gap = np.linalg.norm(a[:, None] - b[None], axis=2)
    np.testing.assert_allclose(found.length_mm, gap[i, j])
    sums = []
    for steps in combinations(range(m + n - 2), m - 1):  # when the reference advances
        advance = np.zeros(m + n - 2, int)
        advance[list(steps)] = 1
        rows = np.append(0, np.cumsum(advance))
        sums.append(gap[rows, np.arange(m + n - 1) - rows].sum())
    assert found.length_mm.sum() == pytest.approx(min(sums))


def test_a_result_equal_to_its_reference():
    found = straight(along_x(0, 10))
    assert (found.ov, found.of, found.ot) == (1, 1, 1)
    # 21 connections: 11 of no length, and 10 of 1 mm where one curve is ahead; of these none
    # is inside the radius of 0.8
    assert found.ad_mm == pytest.approx(10 / 21)
    assert found.ai_mm == 0
    # at the published step of 0.03 mm that is half of it, 0.015 mm
    fine = straight(along_x(0, 10), step_mm=0.03)
    assert (fine.ov, fine.of, fine.ot) == (1, 1, 1)
    assert fine.ad_mm == pytest.approx(0.015, abs=1e-4)


def test_a_line_beside_the_reference():
    found = straight(along_x(0, 10, y=0.6), radius=1.2)
    # 11 connections of 0.6 and 10 of √(0.6² + 1) = 1.1662 mm, all inside the radius
    mean = (11 * 0.6 + 10 * np.hypot(0.6, 1)) / 21
    assert (found.ov, found.of, found.ot) == (1, 1, 1)
    assert (found.ad_mm, found.ai_mm, found.at_mm) == pytest.approx((mean, mean, mean))
    # one that is farther than the radius everywhere
    found = straight(along_x(0, 10, y=1.3), radius=1.2)
    assert (found.ov, found.of, found.ot) == (0, 0, 0)
    assert np.isnan(found.ai_mm)


def test_a_result_that_ends_early():
    found = straight(along_x(0, 6))
    # 7 points of both agree; 7, 8, 9, 10 of the reference are 1 to 4 mm from the last one
    assert found.ov == pytest.approx((7 + 7) / (7 + 7 + 4))
    assert found.of == pytest.approx(7 / 11)
    assert found.ot == pytest.approx(14 / 18)
    # 17 connections: 7 of 0, 6 of 1 where one is ahead, and 1 + 2 + 3 + 4
    assert found.ad_mm == pytest.approx(16 / 17)
    assert found.ai_mm == 0
    assert found.at_mm == pytest.approx(16 / 17)


def test_the_relevant_part_ends_where_the_vessel_is_thin():
    reference = np.stack([np.arange(11.0), np.zeros(11), np.zeros(11)], 1)
    radius = np.where(np.arange(11) <= 8, 0.8, 0.5)
    found = rotterdam_scores(reference, radius, along_x(0, 6), step_mm=1)
    # reference 0 to 8: 7 found, 2 not; all 7 of the result
    assert found.ot == pytest.approx(14 / 16)
    # connections up to there: 7 of 0, 6 of 1, then 1 + 2
    assert found.at_mm == pytest.approx(9 / 15)
    # thin in the middle alone, the part reaches to the end: 14 / 18 again
    radius = np.where(np.arange(11) == 5, 0.5, 0.8)
    assert rotterdam_scores(reference, radius, along_x(0, 6), step_mm=1).ot == pytest.approx(
        14 / 18
    )
    # thin everywhere there is none
    thin = straight(along_x(0, 6), radius=0.5)
    assert np.isnan(thin.ot)
    assert np.isnan(thin.at_mm)


def test_a_result_that_goes_on_past_the_end():
    found = straight(along_x(0, 14))
    assert found.ov == pytest.approx(22 / 26)  # 11 and 11 points agree, 4 more of the result
    assert (found.of, found.ot) == (1, 1)
    past = straight(along_x(0, 14), past_end=True)
    assert past.ot == pytest.approx(22 / 26)
    # 25 connections: 11 of 0, 10 of 1, and 1 + 2 + 3 + 4
    assert found.ad_mm == past.at_mm == pytest.approx(20 / 25)
    assert found.at_mm <= 10 / 20


def test_errors_near_the_start_are_no_first_error():
    # points 0, 1, 2 of the reference are 3, 2, 1 mm from the first one of the result
    found = straight(along_x(3, 10))
    assert found.ov == pytest.approx(16 / 19)
    assert found.of == pytest.approx(8 / 11)  # 8 found before the first error, which is none
    assert straight(along_x(3, 10), skip_mm=0).of == 0
    # 5 mm is not near any more: points 0 to 5 are missed
    assert straight(along_x(6, 10), skip_mm=5).of == 0
    assert straight(along_x(6, 10), skip_mm=5.5).of == pytest.approx(5 / 11)


def test_the_result_is_clipped_at_the_disc():
    # what lies before the reference begins does not count
    assert straight(along_x(-5, 10)).ov == 1
    # without clipping 5 points of 27 are wrong
    assert straight(along_x(-5, 10), clip=False).ov == pytest.approx(22 / 27)
    clipped = clip_at_start(along_x(-5, 10), along_x(0, 10), 1.0)
    np.testing.assert_allclose(clipped, along_x(0, 10), atol=1e-12)
    # the disc has twice the radius: a line 1.9 mm away crosses it, one at 2.1 does not
    near, far = along_x(-5, 10, y=1.9), along_x(-5, 10, y=2.1)
    clipped = clip_at_start(near, along_x(0, 10), 1.0)
    np.testing.assert_allclose(clipped, along_x(0, 10, y=1.9), atol=1e-12)
    assert clip_at_start(far, along_x(0, 10), 1.0) is far
    # the first crossing counts: there, back and there again
    weave = np.array([[-2, 0, 0], [1, 0, 0], [-1, 0, 0], [9, 0, 0.0]])
    clipped = clip_at_start(weave, along_x(0, 10), 1.0)
    np.testing.assert_allclose(clipped[:, 0], [0, 1, -1, 9], atol=1e-12)


def test_a_curve_that_runs_against_its_reference_is_an_error():
    # the k-th connection joins points with i + j = k, so its length is |k − 10| whatever the
    # choice: one pair of points agrees, 2 of 22
    found = straight(along_x(10, 0), clip=False)
    assert found.ov == pytest.approx(2 / 22)
    assert found.ad_mm == pytest.approx(110 / 21)
    assert found.ai_mm == 0


@pytest.mark.parametrize("result", [np.empty((0, 3)), [[0, 50.0, 0]]])
def test_a_result_without_a_curve_scores_nothing(result):
    found = straight(result)
    assert (found.ov, found.of, found.ot) == (0, 0, 0)
    assert np.isnan(found.ai_mm)
    assert found.ad_score is None


def test_scores_by_hand():
    assert overlap_score(0.9, 0.95) == pytest.approx(50 * 0.9 / 0.95)
    assert overlap_score(0.95, 0.95) == pytest.approx(50)
    assert overlap_score(0.98, 0.96) == pytest.approx(75)  # half way from 0.96 to 1
    assert overlap_score(0.9995, 1.0) == 100
    assert overlap_score(0.5, 1.0) == 25
    assert overlap_score(0.0, 0.0) == 50  # no worse than the observers
    assert overlap_score(float("nan"), 0.9) == 100
    assert accuracy_score([0, 0.1, 0.2, 0.4], 0.2).tolist() == [100, 75, 50, 25]
    assert accuracy_score([0, 0.1], 0).tolist() == [100, 0]


def test_scores_of_connections_by_hand():
    # connections of 0 score 100, those of 1 mm score 50 · 0.5 / 1 = 25
    found = straight(along_x(0, 10), radius=1.0, observer_mm=[0.5, 0.5])
    assert found.ad_score == pytest.approx((11 * 100 + 10 * 25) / 21)
    assert found.ai_score == found.ad_score
    found = straight(along_x(0, 10), radius=0.8, observer_mm=[0.5, 0.5])
    assert found.ai_score == 100


def test_resampling_by_hand():
    places, points = resample_equidistant(np.array([[0, 0, 0], [1.5, 0, 0], [1.5, 1, 0]]), 1.0)
    assert places.tolist() == [0, 1, 2, 2.5]
    assert points.tolist() == [[0, 0, 0], [1, 0, 0], [1.5, 0.5, 0], [1.5, 1, 0]]
    # 3 · 0.1 is more than 0.3 by rounding, and no point more
    assert len(resample_equidistant(along_x(0, 3 * 0.1), 0.1)[0]) == 4
    assert resample_equidistant(np.zeros((1, 3)), 1.0)[1].tolist() == [[0, 0, 0]]


@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 7.0]))
@settings(max_examples=30)
def test_size_and_place_change_nothing(seed, scale):
    rng = np.random.default_rng(seed)
    reference = np.cumsum(rng.normal([1, 0, 0], 0.3, (12, 3)), axis=0)
    result = reference + rng.normal(0, 0.3, (12, 3))
    radius = rng.uniform(0.3, 1.2, 12)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    before = rotterdam_scores(reference, radius, result, step_mm=0.2)
    after = rotterdam_scores(
        reference @ turn * scale + 30,
        radius * scale,
        result @ turn * scale + 30,
        step_mm=0.2 * scale,
        skip_mm=5 * scale,
        relevant_radius_mm=0.75 * scale,
    )
    shares = [(s.ov, s.of, s.ot) for s in (before, after)]
    np.testing.assert_allclose(*shares, atol=0.02)  # a point on the limit may change sides
    lengths = [(s.ad_mm, s.at_mm) for s in (before, after)]
    np.testing.assert_allclose(np.array(lengths[0]) * scale, lengths[1], rtol=0.02)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"reference_mm": [[0, 0, 0]], "radius_mm": [1]}, "no curve"),
        ({"reference_mm": [[0, 0, 0], [0, np.nan, 0]]}, "no curve"),
        ({"radius_mm": [1, 1, 1]}, "value per point"),
        ({"observer_mm": [1]}, "value per point"),
        ({"result_mm": [[0, 0, np.inf]]}, "not finite"),
        ({"step_mm": 0}, "no length"),
        ({"step_mm": 1e-4}, "larger step_mm"),
    ],
)
def test_what_cannot_be_compared(wrong, says):
    with pytest.raises(UsageError, match=says):
        rotterdam_scores(
            **(
                {
                    "reference_mm": along_x(0, 10),
                    "radius_mm": [1, 1],
                    "result_mm": along_x(0, 10),
                }
                | wrong
            )
        )
