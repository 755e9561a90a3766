"""Affine algebra against nibabel and closed forms."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpipe import geometry as g


@given(st.integers(0, 2**31))
def test_spacing_and_codes_agree_with_nibabel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Within 30° of a signed permutation the assignment is not ambiguous.
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    angle = np.radians(rng.uniform(-30, 30))
    K = np.cross(np.eye(3), axis)
    rotation = np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K
    signed = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    spacing = rng.uniform(0.2, 6, 3)
    affine = g.affine_from_parts(rotation @ signed, spacing, rng.uniform(-200, 200, 3))
    assert np.allclose(g.spacing_mm(affine), spacing)
    assert g.axis_codes(affine) == "".join(nib.aff2axcodes(affine))
    assert np.allclose(
        g.to_mm(affine, [[1, 2, 3], [0.5, 0, 9]]),
        nib.affines.apply_affine(affine, [[1, 2, 3], [0.5, 0, 9]]),
    )


def test_axis_codes_of_all_48_orientations() -> None:
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, order] * signs
        assert g.axis_codes(affine) == "".join(nib.aff2axcodes(affine))


@pytest.mark.parametrize("angle", [0.0, 0.02, 5.0, 18.5, 30.0])
def test_shear_is_the_angle_of_the_tilt(angle: float) -> None:
    affine = np.diag([0.5, 0.5, 1.0, 1.0])
    affine[:3, 2] = 4 * np.array([0, np.sin(np.radians(angle)), np.cos(np.radians(angle))])
    assert g.shear_angle_deg(affine) == pytest.approx(angle, abs=1e-6)
    assert g.is_sheared(affine) is (angle > 0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.__setitem__((0, 0), np.nan), "NaN"),
        (lambda a: a.__setitem__((0, 3), np.inf), "infinity"),
        (lambda a: a.__setitem__((slice(None), 0), 0), "zero spacing"),
        (lambda a: a.__setitem__((slice(0, 3), 1), a[:3, 0] * 2), "one plane"),
        (lambda a: a.__setitem__((3, 0), 1), "last row"),
        (lambda a: a.__setitem__((2, 2), 1e-6), "outside"),
        (lambda a: a.__setitem__((2, 2), 1e5), "outside"),
    ],
)
def test_unusable_affines_are_named(change, words: str) -> None:
    affine = np.eye(4)
    change(affine)
    problem = g.affine_problem(affine)
    assert problem is not None
    assert words in problem


def test_usable_affines_pass() -> None:
    sheared = np.diag([0.5, 0.5, 1.0, 1.0])
    sheared[1, 2] = 0.33
    for affine in (np.eye(4), np.diag([-0.3, 0.3, 7.0, 1.0]), sheared):
        assert g.affine_problem(affine) is None


def test_same_grid_is_about_corners_in_mm_not_about_matrix_entries() -> None:
    a = np.eye(4)
    b = np.eye(4)
    b[0, 0] = 1 + 1e-4  # 1e-4 mm a voxel is 0.05 mm at voxel 500
    assert g.same_grid(a, (10, 10, 10), b, (10, 10, 10))
    assert not g.same_grid(a, (501, 10, 10), b, (501, 10, 10))
    assert not g.same_grid(a, (10, 10, 10), a, (10, 10, 11))
    assert not g.same_grid(a, (10, 10, 10), np.diag([-1.0, 1, 1, 1]), (10, 10, 10))


def test_center_and_corners() -> None:
    affine = g.affine_from_parts(np.eye(3), (1, 2, 3), (10, 20, 30))
    corners = g.corners_mm(affine, (3, 3, 3))
    assert corners.min(0).tolist() == [10, 20, 30]
    assert corners.max(0).tolist() == [12, 24, 36]
    assert g.center_mm(affine, (3, 3, 3)).tolist() == [11, 22, 33]
