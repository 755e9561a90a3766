"""Deformations: no folds, known inverse, and a shift of the midline of the size asked for."""

import numpy as np
import pytest

from medpipe.phantoms.anatomy import Subject
from medpipe.phantoms.diffeomorphism import Warp
from medpipe.phantoms.sah_warp import GRID, head_warp, random_warp, template_points


@pytest.fixture(scope="module")
def frame():
    subject = Subject((1.03, 0.98, 1.01), (5.0, 1.0, -2.0), (2.0, -3.0, 1.0), 1.0, 0.2, 6.5)
    out = np.eye(4)
    out[:3, :3] = subject.to_template()
    out[:3, 3] = -out[:3, :3] @ subject.shift_mm
    return out


def numeric_jacobian(warp, points, step=0.01):
    columns = []
    for axis in np.eye(3) * step:
        columns.append((warp(points + axis) - warp(points - axis)) / (2 * step))
    return np.linalg.det(np.stack(columns, -1))


@pytest.mark.parametrize("seed", range(3))
def test_a_random_map_has_no_folds_and_an_inverse(seed):
    warp = random_warp((seed, 22))
    assert warp.jacobian().min() > 0.3
    points = np.random.default_rng(seed).uniform(-85, 85, (3000, 3))
    assert numeric_jacobian(warp, points).min() > 0.3
    assert 2 < np.linalg.norm(warp(points) - points, axis=1).max() < 14
    np.testing.assert_allclose(warp(warp.inverse(points)), points, atol=0.01)


def test_the_jacobian_is_that_of_finite_differences():
    warp = random_warp((3, 22), amplitude_mm=3.0)
    corners = warp.jacobian()
    # the determinant of a trilinear map is no more extreme inside a cell than near its corners
    inside = numeric_jacobian(warp, np.random.default_rng(0).uniform(-110, 110, (4000, 3)))
    assert corners.min() - 0.02 < inside.min()
    assert inside.max() < corners.max() + 0.02


def test_a_fold_would_be_seen():
    folded = np.zeros_like(random_warp((0,)).displacement)
    folded[0, 16] = 9.0  # beyond the next node, 8 mm away
    assert Warp(folded, GRID).jacobian().min() < 0


@pytest.mark.parametrize("shift_mm", [-12.0, 4.0])
def test_the_septum_moves_by_the_shift_and_the_skull_stays(frame, shift_mm):
    still = Warp(np.zeros_like(random_warp((0,)).displacement), GRID)
    warp, measured = head_warp(still, frame, shift_mm)
    assert measured == pytest.approx(shift_mm, abs=0.02)
    world = np.linalg.inv(frame)
    # what the image shows at the shifted place is the septum
    right = world[:3, 0] / np.linalg.norm(world[:3, 0])
    septum = world[:3, :3] @ (0.0, 14.0, 12.0) + world[:3, 3]
    seen = warp((septum + shift_mm * right)[None])
    assert np.abs(np.array(template_points(frame, seen)).ravel() - (0, 14, 12)).max() < 0.1
    angle = np.linspace(0, 2 * np.pi, 50)
    skull = np.stack([73 * np.cos(angle), -4 + 90 * np.sin(angle), np.full(50, 10.0)], -1)
    there = skull @ world[:3, :3].T + world[:3, 3]
    assert np.linalg.norm(warp(there) - there, axis=1).max() < 0.4
    assert warp.jacobian().min() > 0.1


def test_shift_and_shape_together_stay_without_folds(frame):
    shape = random_warp((1, 22))
    warp, measured = head_warp(shape, frame, 12.0, ventricles=1.3)
    assert measured == pytest.approx(12.0, abs=0.1)
    assert warp.jacobian().min() > 0.05
    assert head_warp(shape, frame, 0.0) == (shape, 0.0)


def test_ventricles_are_spread_by_their_factor(frame):
    still = Warp(np.zeros_like(random_warp((0,)).displacement), GRID)
    warp, measured = head_warp(still, frame, 0.0, ventricles=1.25)
    assert measured == 0
    world = np.linalg.inv(frame)
    ends = np.array([(-4.0, 14.0, 12.0), (4.0, 14.0, 12.0)]) @ world[:3, :3].T + world[:3, 3]
    inside = warp(ends)
    narrowed = np.linalg.norm(ends[1] - ends[0]) / np.linalg.norm(inside[1] - inside[0])
    assert narrowed == pytest.approx(1.25, abs=0.02)
