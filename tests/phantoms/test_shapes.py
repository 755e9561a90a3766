"""Signed distances against brute force, and the canvas against hand-made blends."""

import numpy as np
import pytest

from medpipe.phantoms.shapes import Canvas, capsule, ellipsoid, fold_lattice, lattice, smax, smin


def _grid(step: float, half: float) -> tuple[np.ndarray, ...]:
    axis = np.arange(-half, half, step, dtype=np.float32) + step / 2
    return tuple(a.ravel() for a in np.meshgrid(axis, axis, axis, indexing="ij"))


def test_ellipsoid_volume_and_axes():
    p = _grid(0.5, 16)
    inside = ellipsoid(p, (1, 2, -1), (5, 12, 8), turn_deg=30, pitch_deg=-20) < 0
    assert inside.sum() * 0.125 == pytest.approx(4 / 3 * np.pi * 5 * 12 * 8, rel=0.01)
    # Turned by 90° about z, the long axis points along x.
    tip = tuple(np.array([v], np.float32) for v in (-11.0, 0.0, 0.0))
    assert ellipsoid(tip, (0, 0, 0), (5, 12, 8), turn_deg=90)[0] < 0
    assert ellipsoid(tip, (0, 0, 0), (5, 12, 8))[0] > 0


def test_ellipsoid_distance_is_metric_at_the_surface():
    direction = np.random.default_rng(0).normal(size=(200, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radii = np.array([5.0, 12.0, 8.0])
    surface = direction * radii
    normal = surface / radii**2
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    for off in (-0.3, 0.0, 0.3):
        p = tuple((surface + off * normal).astype(np.float32).T)
        np.testing.assert_allclose(ellipsoid(p, (0, 0, 0), radii), off, atol=0.04)


def test_capsule_is_the_distance_to_a_segment():
    rng = np.random.default_rng(1)
    points = rng.uniform(-10, 10, (300, 3))
    a, b = np.array([-3.0, 0, 1]), np.array([4.0, 2, -1])
    along = a + np.linspace(0, 1, 4001)[:, None] * (b - a)
    brute = np.array([np.linalg.norm(along - q, axis=1).min() for q in points]) - 1.5
    got = capsule(tuple(points.astype(np.float32).T), a, b, 1.5)
    np.testing.assert_allclose(got, brute, atol=1e-3)


def test_smooth_union_equals_the_sharp_one_far_away():
    a, b = np.float32([-5, 5, 1]), np.float32([5, -5, 1])
    np.testing.assert_allclose(smin(a, b, 4.0), [-5, -5, 0])
    np.testing.assert_allclose(smax(a, b, 4.0), [5, 5, 2])


def test_lattice_is_periodic_deterministic_and_continuous():
    noise = lattice(3, 16.0)
    x = np.linspace(0, 300, 2000, dtype=np.float32)
    zero = np.zeros_like(x)
    period = np.float32(8 * 16.0)
    np.testing.assert_allclose(
        noise(x, zero, zero), noise(x + period, zero, zero - period), atol=1e-3
    )
    assert np.abs(np.diff(noise(x, zero, zero))).max() < 0.2
    assert noise.values.std() == pytest.approx(1, rel=1e-3)
    assert not np.array_equal(noise.values, lattice(4, 16.0).values)


def test_fold_field_measures_distance_to_its_sheets():
    field = fold_lattice(5)
    rng = np.random.default_rng(2)
    p = rng.uniform(0, 190, (20000, 3)).astype(np.float32)
    d = field(*p.T)
    near = p[np.abs(d) < 0.3]
    # Moving 1 mm across a sheet changes the field by about 1 mm somewhere around the point.
    step = np.stack([field(*(near + e).T) for e in np.eye(3, dtype=np.float32)])
    slope = np.sqrt(((step - d[np.abs(d) < 0.3]) ** 2).sum(0))
    assert np.median(slope) == pytest.approx(1, abs=0.15)


def test_canvas_blends_linearly_over_the_edge():
    x = np.linspace(-2, 2, 41, dtype=np.float32)
    table = np.float32([[0], [100]])
    canvas = Canvas(x, x * 0, x * 0, table, edge_mm=1.0)
    canvas.paint(1, x)
    np.testing.assert_allclose(canvas.value[:, 0], 100 * np.clip(0.5 - x, 0, 1), atol=1e-3)
    np.testing.assert_array_equal(canvas.label, (x < 0).astype(np.uint8))
