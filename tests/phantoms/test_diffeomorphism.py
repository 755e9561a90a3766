"""Flows of smooth velocities: their inverse, and their Jacobian by other ways."""

import numpy as np
import pytest

from medpipe.phantoms.diffeomorphism import NodeGrid, Velocity, Warp, random_velocity

GRID = NodeGrid((-40.0, -36.0, -44.0), 4.0, (21, 19, 23))


@pytest.fixture(scope="module")
def velocity() -> Velocity:
    return random_velocity(np.random.default_rng(3), GRID, 2.0, 12.0)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return np.random.default_rng(1).uniform(-25, 25, (400, 3))


def test_going_back_undoes_the_map(velocity, points):
    there = velocity.warp(1.0)(points)
    assert np.abs(there - points).max() > 2.0
    assert np.abs(velocity.warp(-1.0)(there) - points).max() < 0.15


def test_the_determinant_is_that_of_finite_differences(velocity, points):
    warp = Warp(velocity.warp().displacement.astype(float), GRID)
    step = 1e-4
    columns = [
        (warp(points + step * axis) - warp(points - step * axis)) / (2 * step) for axis in np.eye(3)
    ]
    wanted = np.linalg.det(np.stack(columns, -1))
    # Two of the points may lie so near to a face of a cell that the step crosses it.
    assert np.sort(np.abs(warp.determinant(points) - wanted))[:-2].max() < 1e-7
    assert wanted.std() > 0.05


def test_volume_grows_exponentially_where_a_velocity_spreads(points):
    rate = 0.05
    spread = Velocity(np.moveaxis(GRID.points_mm, -1, 0).astype("float32") * rate, GRID)
    growth = spread.follow(points[:20] / 4, [0.5, 1.0, 2.0])
    np.testing.assert_allclose(growth, np.exp(3 * rate * np.array([[0.5], [1], [2]])).repeat(20, 1))


def test_points_carry_the_volume_that_the_map_gives_them(velocity, points):
    growth = velocity.follow(points, [1.0])[0]
    determinant = velocity.warp().determinant(points)
    assert np.corrcoef(growth, determinant)[0, 1] > 0.99
    assert np.abs(growth - determinant).mean() < 0.02
