"""Flows on voxels against closed forms and SciPy; registration of known maps."""

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from medpipe.synthesis.deformation import determinant, flow, register, spread_out, warped

SHAPE = (14, 12, 16)


def test_volumes_are_taken_from_where_the_displacement_leads():
    rng = np.random.default_rng(0)
    volume = rng.standard_normal(SHAPE)
    moved = rng.uniform(-3, 3, (3, *SHAPE))
    found = warped(torch.from_numpy(volume)[None, None], torch.from_numpy(moved)[None])
    wanted = ndimage.map_coordinates(volume, np.indices(SHAPE) + moved, order=1, mode="nearest")
    np.testing.assert_allclose(found[0, 0], wanted, atol=1e-10)


def test_a_linear_velocity_flows_by_the_matrix_exponential():
    matrix = np.array([[0.1, 0.05, 0.0], [-0.08, -0.05, 0.03], [0.0, 0.02, 0.06]])
    at = np.indices(SHAPE) - (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2
    velocity = np.einsum("ab,b...->a...", matrix, at)
    moved = flow(torch.from_numpy(velocity)[None])
    wanted = np.einsum("ab,b...->a...", linalg.expm(matrix) - np.eye(3), at)
    inside = (slice(None), slice(4, -4), slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(moved[0].numpy()[inside], wanted[inside], atol=0.01)
    volume = determinant(moved)[0].numpy()[inside[1:]]
    np.testing.assert_allclose(volume, np.exp(np.trace(matrix)), rtol=0.01)


def test_going_back_undoes_a_random_flow():
    torch.manual_seed(1)
    velocity = spread_out(torch.randn(1, 3, 4, 4, 4).double(), (20, 20, 20))
    there, back = flow(velocity), flow(-velocity)
    off = back + warped(there, back)
    assert float(there.abs().max()) > 1.0
    assert float(off[..., 4:-4, 4:-4, 4:-4].abs().max()) < 0.15
    assert float(determinant(there).min()) > 0


@pytest.mark.parametrize("seed", [2, 3])
def test_registration_finds_the_shape_of_a_deformed_ball(seed):
    torch.manual_seed(seed)
    at = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij"))
    ball = torch.sigmoid((0.55 - at.norm(dim=0)) * 12)[None]
    true = spread_out(0.9 * torch.randn(1, 3, 4, 4, 4), (16, 16, 16))
    target = warped(ball[None], flow(true))
    found = register(ball, target, (4, 4, 4), iterations=60, stiffness=0.002)
    got = warped(ball[None], flow(spread_out(found, (16, 16, 16))))
    before = float((ball[None] - target).square().mean())
    assert float((got - target).square().mean()) < 0.05 * before
    assert float(determinant(flow(spread_out(found, (16, 16, 16)))).min()) > 0
