"""Small systems against numpy, and the search of a batch on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpipe.qmri.levenberg_marquardt import factorise, minimise, solve, unit_variances


def packed(matrices):
    """Return the lower triangles (p (p + 1) / 2, n) of matrices (n, p, p)."""
    p = matrices.shape[1]
    rows = [matrices[:, i, j] for i in range(p) for j in range(i + 1)]
    return torch.tensor(np.stack(rows))


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_systems_are_solved_as_numpy_solves_them(p):
    rng = np.random.default_rng(p)
    a = rng.standard_normal((50, 6, p))
    normal = np.einsum("nij,nik->njk", a, a)
    right = rng.standard_normal((p, 50))
    found = solve(factorise(packed(normal)), torch.tensor(right))
    assert np.allclose(found.T, np.linalg.solve(normal, right.T[:, :, None])[:, :, 0])


def test_a_singular_system_gives_numbers():
    ones = packed(np.ones((3, 2, 2)))
    assert bool(solve(factorise(ones), torch.ones(2, 3, dtype=torch.float64)).isfinite().all())
    none = packed(np.zeros((3, 2, 2)))
    zero = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(solve(factorise(none), zero), zero)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_variances_are_the_diagonal_of_the_inverse_of_the_full_matrix(p):
    rng = np.random.default_rng(p)
    s, slopes = rng.standard_normal((20, 7)), rng.standard_normal((20, 7, p))
    m0 = rng.uniform(1, 3, 20)
    full = np.concatenate([s[:, :, None], m0[:, None, None] * slopes], 2)
    want = np.linalg.inv(np.einsum("nij,nik->njk", full, full)).diagonal(axis1=1, axis2=2)
    power = (s**2).sum(1)
    mixed = m0[:, None] * np.einsum("nd,ndp->np", s, slopes)
    own = np.einsum("ndp,ndq->npq", slopes, slopes) * m0[:, None, None] ** 2
    reduced = own - np.einsum("np,nq->npq", mixed, mixed) / power[:, None, None]
    found = unit_variances(packed(reduced), torch.tensor(mixed.T), torch.tensor(power))
    assert np.allclose(found.T, want)


def exponential(x, known):
    """Signals exp(-t e^-x) at three times and their slopes; `known` shifts the times."""
    times = torch.tensor([0.3, 1.0, 2.0], dtype=x.dtype)[:, None] + known["shift"]
    rate = torch.exp(-x[0])
    signal = torch.exp(-times * rate)
    return signal, (signal * times * rate)[None]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_voxels_of_any_batch_reach_their_minimum(batch):
    g = torch.Generator().manual_seed(0)
    x = torch.rand((1, 60), generator=g, dtype=torch.float64) * 3 - 1.5
    shift = torch.rand(60, generator=g, dtype=torch.float64) * 0.2
    signal = exponential(x, {"shift": shift})[0] * 2.5
    bounds = torch.tensor([[-1.0]]).double(), torch.tensor([[2.0]]).double()
    done = minimise(
        exponential,
        signal,
        {"shift": shift},
        torch.zeros_like(x),
        bounds,
        iterations=40,
        tolerance=1e-9,
        damping=1e-3,
        batch=batch,
    )
    inside = x[0] > -1
    assert torch.allclose(done.x[0][inside], x[0][inside], atol=1e-7)
    assert torch.allclose(done.m0[inside], torch.full_like(done.m0[inside], 2.5), atol=1e-6)
    assert torch.equal(done.at_bound, ~inside)
    assert bool((done.x[0][~inside] == -1).all())
    assert bool(done.converged.all())
    assert int(done.steps.max()) < 15
