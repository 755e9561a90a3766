"""Random features against the kernel, moments and ridge against dense linear algebra."""

from __future__ import annotations

import math

import pytest
import torch
from perk_problem import PROTOCOL

from medpipe.qmri import ridge as ridge_module
from medpipe.qmri.features import FourierFeatures, regressor_scale, regressors
from medpipe.qmri.perk_kernel import cosine_sums
from medpipe.qmri.ridge import Spectrum, moments


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(size, generator=generator(seed), dtype=torch.float64)


@pytest.fixture
def features() -> FourierFeatures:
    return FourierFeatures.draw(torch.tensor([0.5, 2.0]), 1.5, 64, generator())


def test_products_of_features_are_the_gaussian_kernel():
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    f = FourierFeatures.draw(scale, 1.5, 200_000, generator())
    q = random(6, 2) * scale
    kernel = f(q) @ f(q).T
    gap = (q[:, None] - q[None]) / (1.5 * scale)
    expected = torch.exp(-0.5 * gap.square().sum(-1))
    # the mean of Z products has a standard error below 1/sqrt(Z)
    assert (kernel - expected).abs().max() < 4 / math.sqrt(200_000)
    assert expected.min() < 0.5  # far points are among them


def test_a_longer_kernel_has_the_same_draw():
    a = FourierFeatures.draw(torch.tensor([0.5, 2.0]), 1.0, 10, generator())
    b = FourierFeatures.draw(torch.tensor([0.5, 2.0]), 4.0, 10, generator())
    assert torch.allclose(a.frequencies, 4 * b.frequencies)
    assert torch.equal(a.phases, b.phases)


def test_a_constant_regressor_is_dropped():
    q = torch.cat([random(50, 1).abs(), torch.full((50, 1), 3e-14, dtype=torch.float64)], 1)
    scale = regressor_scale(q)
    assert scale[0] > 0
    assert scale[1] == 0
    f = FourierFeatures.draw(scale, 1.0, 8, generator())
    assert f.frequencies.isfinite().all()
    moved = q + torch.tensor([0.0, 5.0])
    assert torch.equal(f(q), f(moved))


def test_normalised_regressors_do_not_depend_on_the_gain():
    y = random(20, 4).abs().float()
    known = {"kappa": torch.linspace(0.8, 1.2, 20)}
    base = regressors(y, known, PROTOCOL, True)
    assert torch.allclose(base[:, :4].norm(dim=1), torch.ones(20))
    assert torch.equal(base[:, 4], known["kappa"])
    for gain in (1e-30, 1e30):
        assert torch.allclose(regressors(y * gain, known, PROTOCOL, True), base, rtol=1e-6)
    plain = regressors(y, known, PROTOCOL, False)
    assert torch.equal(plain[:, :4], y)


def test_moments_in_chunks_are_those_of_all(features, monkeypatch):
    monkeypatch.setattr(ridge_module, "CHUNK", 37)
    q, x = random(200, 2), random(200, 3, seed=2) + 7
    found = moments(features, q, x)
    z = features(q)
    assert torch.allclose(found.mean_z, z.mean(0), atol=1e-14)
    assert torch.allclose(found.mean_x, x.mean(0))
    assert torch.allclose(found.cov_zz, torch.cov(z.T, correction=0), atol=1e-14)
    both = torch.cov(torch.cat([x, z], 1).T, correction=0)
    assert torch.allclose(found.cov_xz, both[:3, 3:], atol=1e-13)


def test_the_spectrum_solves_the_ridge_of_every_size(features):
    q, x = random(300, 2), random(300, 2, seed=2)
    found = moments(features, q, x)
    ridges = (1e-9, 1e-6, 1e-2, 10.0)
    solved = Spectrum.of(found).readout(ridges)
    identity = torch.eye(64, dtype=torch.float64)
    for w, rho in zip(solved, ridges, strict=True):
        direct = torch.linalg.solve(found.cov_zz + rho * identity, found.cov_xz.T).T
        assert torch.allclose(w, direct, rtol=1e-6, atol=1e-9 * float(direct.abs().max()))


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_sums_are_those_of_products(threads):
    omega, phase = random(5, 70) * 4, random(70, seed=3) * 10
    cosines, sines = random(3, 70, seed=4), random(6, 70, seed=5)
    q = random(5000, 5, seed=6)
    angles = q @ omega + phase
    expected = torch.cat([angles.cos() @ cosines.T, angles.sin() @ sines.T], 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = cosine_sums(q.float(), omega, phase, cosines, sines)
    finally:
        torch.set_num_threads(before)
    exact = cosine_sums(q, omega, phase, cosines, sines)
    assert fast.dtype == torch.float32
    assert torch.allclose(exact, expected, atol=1e-12)
    # angles of up to 60 rad carry 4e-6 of rounding each
    assert (fast - expected).abs().max() < 2e-4
    assert cosine_sums(q[:0].float(), omega, phase, cosines, sines).shape == (0, 9)
    assert cosine_sums(q.float(), omega, phase, cosines).shape == (5000, 3)
