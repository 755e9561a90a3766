"""Curves against circles and helices in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medpipe.centerline.curves import (
    SpaceCurve,
    bishop_frames,
    curvature_per_mm,
    resample,
    soam_rad_per_mm,
    tangents,
    torsion_per_mm,
    tortuosity,
)
from medpipe.errors import StepError, UsageError

RADIUS, PITCH = 8.0, 3.0  # of the helix (r cos t, r sin t, b t)
SPEED = np.hypot(RADIUS, PITCH)


def helix(t, hand=1):
    return np.stack([RADIUS * np.cos(t), hand * RADIUS * np.sin(t), PITCH * t], axis=-1)


def uneven(end, n, seed=0):
    """Return parameters whose steps differ by up to a factor of three."""
    steps = np.random.default_rng(seed).uniform(0.5, 1.5, n - 1)
    return np.append(0, steps.cumsum()) * end / steps.sum()


def test_the_length_and_the_spacing_are_those_of_the_curve():
    points = helix(uneven(12, 150))
    curve = SpaceCurve(points)
    assert curve.length_mm == pytest.approx(12 * SPEED, rel=1e-5)
    out = resample(points, 0.5)
    steps = np.linalg.norm(np.diff(out, axis=0), axis=1)
    assert len(out) == round(12 * SPEED / 0.5) + 1
    assert np.ptp(steps) < 1e-5
    np.testing.assert_allclose(out[[0, -1]], points[[0, -1]], atol=1e-12)
    truth = helix(np.linspace(0, 12, len(out)))
    assert np.abs(out - truth).max() < 2e-3


def test_places_are_found_by_their_distance():
    points = np.array([[0, 0, 0], [1, 0, 0], [10, 0, 0], [30, 0, 0.0]])
    curve = SpaceCurve(points)
    np.testing.assert_allclose(curve.at([0, 0.5, 7, 29.5, 30])[:, 0], [0, 0.5, 7, 29.5, 30])
    np.testing.assert_allclose(curve.at([-5, 99])[:, 0], [0, 30])


@pytest.mark.parametrize("hand", [1, -1])
def test_tangent_curvature_and_torsion_of_a_helix(hand):
    t = uneven(10, 400)
    points = helix(t, hand)
    inner = slice(5, -5)
    velocity = np.stack([-RADIUS * np.sin(t), hand * RADIUS * np.cos(t), PITCH + 0 * t], -1)
    np.testing.assert_allclose(tangents(points), velocity / SPEED, atol=2e-4)
    np.testing.assert_allclose(curvature_per_mm(points)[inner], RADIUS / SPEED**2, rtol=1e-3)
    torsion = torsion_per_mm(points)[inner]
    np.testing.assert_allclose(torsion, hand * PITCH / SPEED**2, rtol=2e-2)


def test_curvature_is_one_over_the_radius_in_any_direction_and_scale():
    t = np.linspace(0, 3, 120)
    circle = np.stack([np.cos(t), np.sin(t), 0 * t], -1)
    turn = Rotation.random(random_state=3).as_matrix()
    for radius in (0.5, 7, 300):
        found = curvature_per_mm(radius * circle @ turn.T + [100, -50, 20])
        np.testing.assert_allclose(found, 1 / radius, rtol=1e-3)
        np.testing.assert_allclose(torsion_per_mm(radius * circle @ turn.T), 0, atol=1e-6 / radius)


def test_a_straight_line_has_no_curvature_and_no_torsion():
    line = np.outer(np.linspace(0, 9, 20), [1, 2, -2]) / 3
    assert curvature_per_mm(line).max() < 1e-9
    assert np.isnan(torsion_per_mm(line)).all()
    assert tortuosity(line) == pytest.approx(0, abs=1e-12)
    assert soam_rad_per_mm(line) == pytest.approx(0, abs=1e-6)


def test_bishop_frames_turn_against_the_frenet_frame_by_the_torsion():
    """The Frenet normal turns about the tangent by the integral of the torsion."""
    t = np.linspace(0, 15, 600)
    points = helix(t)
    frames = bishop_frames(points)
    np.testing.assert_allclose(
        frames @ frames.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (600, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(frames), 1)
    normal = np.stack([-np.cos(t), -np.sin(t), 0 * t], -1)
    angle = np.arctan2((normal * frames[:, 2]).sum(1), (normal * frames[:, 1]).sum(1))
    turned = np.unwrap(angle) - angle[0]
    np.testing.assert_allclose(turned, PITCH / SPEED * t, atol=2e-3)


def test_the_error_of_the_frames_falls_with_the_fourth_power_of_the_step():
    errors = []
    for n in (40, 80, 160):
        t = np.linspace(0, 6, n + 1)
        velocity = np.stack([-RADIUS * np.sin(t), RADIUS * np.cos(t), PITCH + 0 * t], -1) / SPEED
        frames = bishop_frames(helix(t), velocity)
        normal = np.stack([-np.cos(t), -np.sin(t), 0 * t], -1)
        angle = np.unwrap(np.arctan2(*[(normal * frames[:, k]).sum(1) for k in (2, 1)]))
        errors.append(abs(angle[-1] - angle[0] - PITCH / SPEED * 6))
    ratios = np.array(errors[:-1]) / errors[1:]
    np.testing.assert_allclose(ratios, 16, rtol=0.15)


def test_frames_of_plane_curves_keep_the_normal_of_the_plane():
    t = np.linspace(0, 5, 50)
    arc = np.stack([np.cos(t), np.sin(t), 0 * t], -1)
    frames = bishop_frames(arc, start=[0, 0, 1])
    np.testing.assert_allclose(frames[:, 1], np.broadcast_to([0, 0, 1], (50, 3)), atol=1e-12)
    with pytest.raises(StepError, match="parallel"):
        bishop_frames(np.outer(np.arange(5), [0, 0, 1.0]), start=[0, 0, 2])


def test_tortuosity_of_arcs():
    t = np.linspace(0, np.pi, 2001)
    half = np.stack([np.cos(t), np.sin(t), 0 * t], -1)
    assert tortuosity(half) == pytest.approx(np.pi / 2 - 1, rel=1e-5)
    assert tortuosity(np.concatenate([half, -half])) is None
    assert tortuosity([[1, 1, 1], [1, 1, 1]]) is None


def test_soam_of_a_fine_helix_and_of_a_plane_wave():
    points = resample(helix(np.linspace(0, 30, 900)), 0.2)
    assert soam_rad_per_mm(points) == pytest.approx(1 / SPEED, rel=5e-3)
    # a zigzag of 60° turns: in the plane alone, inflections count no torsion
    zigzag = np.array([[n, (n % 2) * np.tan(np.pi / 6), 0] for n in range(41)])
    turns, length = 38, 40 / np.cos(np.pi / 6)
    assert soam_rad_per_mm(zigzag) == pytest.approx(turns * np.pi / 3 / length)
    assert soam_rad_per_mm(zigzag[:3]) is None


def test_few_points_and_wrong_points():
    pair = np.array([[0, 0, 0], [3, 0, 4.0]])
    np.testing.assert_allclose(tangents(pair), [[0.6, 0, 0.8]] * 2)
    assert len(resample(pair, 100)) == 2
    assert len(resample(pair, 1)) == 6
    three = np.array([[0, 0, 0], [1, 1, 0], [2, 0, 0.0]])
    assert curvature_per_mm(three)[1] > 0
    doubled = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0.0]])
    assert SpaceCurve(doubled).length_mm == pytest.approx(1)
    with pytest.raises(StepError, match="repeats"):
        tangents(doubled)
    with pytest.raises(StepError, match="two different"):
        resample(np.zeros((5, 3)), 1)
    with pytest.raises(StepError, match="finite"):
        resample([[0, 0, 0], [np.nan, 0, 0]], 1)
    with pytest.raises(UsageError, match="step"):
        resample(pair, 0)
