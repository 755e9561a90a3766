"""Derivatives and eigenvalues against polynomials, scikit-image and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.feature import hessian_matrix

from medpipe.centerline.hessian import (
    ORDERS,
    derivative_kernel,
    hessian,
    hessian_slabs,
    symmetric_eigenvalues,
)
from medpipe.errors import UsageError


def grid(shape, spacing):
    axes = [
        (torch.arange(n, dtype=torch.float64) - n // 2) * s
        for n, s in zip(shape, spacing, strict=True)
    ]
    return torch.meshgrid(*axes, indexing="ij")


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 2.5])
def test_a_polynomial_of_second_degree_has_its_own_derivatives(sigma):
    spacing = (0.5, 0.8, 1.5)
    x, y, z = grid((61, 41, 23), spacing)
    image = 3 * x**2 - y**2 + 0.5 * z**2 + 2 * x * y - x * z + 4 * y * z + 7 * x - 5
    found = hessian(image, spacing, sigma)[:, 30, 20, 11] / sigma**2
    assert torch.allclose(found, torch.tensor([6, -2, 1, 2, -1, 4.0]).double(), atol=1e-9)


def test_the_hessian_of_a_gaussian_is_known():
    # smoothing adds variances: the peak of a Gaussian of width w falls as (w² + s²)^(-5/2)
    spacing, w, s = (0.5, 0.7, 1.0), 3.0, 2.0
    x, y, z = grid((81, 61, 41), spacing)
    image = torch.exp(-(x**2 + y**2 + z**2) / (2 * w**2))
    found = hessian(image, spacing, s)[:, 40, 30, 20]
    peak = -(s**2) * (w**2 / (w**2 + s**2)) ** 1.5 / (w**2 + s**2)
    expected = torch.tensor([peak, peak, peak, 0, 0, 0]).double()
    assert torch.allclose(found, expected, atol=5e-3 * abs(peak))


def test_the_hessian_is_that_of_scikit_image():
    image = np.random.default_rng(1).normal(size=(30, 26, 24))
    theirs = hessian_matrix(image, sigma=2.0, mode="nearest", use_gaussian_derivatives=True)
    ours = hessian(torch.from_numpy(image), (1, 1, 1), 2.0) / 4
    names = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    inner = (slice(8, -8),) * 3
    for mine, order in zip(ours.numpy(), ORDERS, strict=True):
        axes = tuple(a for a in range(3) for _ in range(order[a]))
        other = theirs[names.index(axes)]
        assert np.abs(mine - other)[inner].max() < 0.01 * np.abs(other).max()


def test_slabs_are_parts_of_the_whole():
    image = torch.randn(17, 9, 8, generator=torch.Generator().manual_seed(2))
    whole = hessian(image, (1, 2, 1.5), 1.5)
    parts = list(hessian_slabs(image, (1, 2, 1.5), 1.5, slab_voxels=300))
    assert [(s.start, s.stop) for s, _ in parts] == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 17)]
    assert torch.equal(torch.cat([p for _, p in parts], 1), whole)


def test_a_kernel_below_the_grid_is_a_difference():
    assert derivative_kernel(1e-3, 1.0, 0) == pytest.approx([0, 1, 0])
    assert derivative_kernel(1e-3, 2.0, 1) == pytest.approx([-0.25, 0, 0.25])
    assert derivative_kernel(1e-3, 2.0, 2) == pytest.approx([0.25, -0.5, 0.25])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-3)])
def test_eigenvalues_are_those_of_lapack(dtype, tolerance):
    rng = np.random.default_rng(3)
    full = rng.normal(size=(4000, 3, 3))
    full = full + full.transpose(0, 2, 1)
    turn = np.linalg.qr(rng.normal(size=(4000, 3, 3)))[0]
    # equal and nearly equal eigenvalues, huge and tiny ones, a zero matrix
    pairs = turn @ (np.array([1, 1 + 1e-9, -2])[:, None] * turn.transpose(0, 2, 1))
    full = np.concatenate([full, pairs, full[:50] * 1e12, full[:50] * 1e-12, np.zeros((1, 3, 3))])
    stacked = np.stack([full[:, *ij] for ij in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]])
    found = np.stack(symmetric_eigenvalues(torch.tensor(stacked, dtype=dtype)), 1)
    expected = np.linalg.eigvalsh(full)[:, ::-1]
    size = np.linalg.norm(full, axis=(1, 2))[:, None] + 1e-300
    assert (np.abs(found - expected) / size).max() < tolerance
    assert (np.diff(found, axis=1) <= tolerance * size).all()


def test_a_scale_of_zero_is_refused():
    with pytest.raises(UsageError, match="sigma_mm"):
        hessian(torch.zeros(4, 4, 4), (1, 1, 1), 0.0)
