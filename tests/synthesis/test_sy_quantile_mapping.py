"""Quantile mapping: against numpy, by what it must keep, and on edges that move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpipe.errors import UsageError
from medpipe.synthesis import quantile_mapping
from medpipe.synthesis.quantile_mapping import LEVELS, QuantileMapping


def many(make, n=40):
    return [make(k).float() for k in range(n)]


@pytest.fixture(scope="module")
def two_kinds():
    rng = np.random.default_rng(0)
    drawn = many(lambda k: torch.from_numpy(rng.uniform(0.2, 0.6, (1, 3, 4, 5))))
    real = many(lambda k: torch.from_numpy(rng.beta(2, 5, (1, 3, 4, 5))), 60)
    return drawn, real


def test_between_the_levels_it_is_what_numpy_interpolates(two_kinds):
    drawn, real = two_kinds
    mapping = QuantileMapping.fit(drawn, real)
    image = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    found = mapping.applied_to(image)
    a, b = (
        np.quantile(torch.stack(images).half().float().numpy(), LEVELS, axis=0)
        for images in (drawn, real)
    )
    for at in np.ndindex(*image.shape):
        x, xs, ys = float(image[at]), a[:, *at], b[:, *at]
        # beyond the ends intensities move as the ends do
        wanted = np.interp(x, xs, ys) + min(x - xs[0], 0) + max(x - xs[-1], 0)
        assert float(found[at]) == pytest.approx(np.clip(wanted, 0, 1), abs=1e-5)


def test_the_images_it_was_learned_from_get_the_quantiles_of_real_ones(two_kinds):
    drawn, real = two_kinds
    mapped = torch.stack([QuantileMapping.fit(drawn, real).applied_to(x) for x in drawn])
    for level in (0.05, 0.3, 0.5, 0.85):
        wanted = torch.stack(real).quantile(level, dim=0)
        # of 40 images: a level lies between two of them
        assert torch.allclose(mapped.quantile(level, dim=0), wanted, atol=0.03)
    order = torch.stack(drawn)[:, 0, 1, 1, 1].argsort()
    assert bool((mapped[order, 0, 1, 1, 1].diff() >= 0).all())


def test_equal_sets_change_nothing(two_kinds):
    _, real = two_kinds
    mapping = QuantileMapping.fit(real, real)
    for image in real[:5]:
        assert torch.allclose(mapping.applied_to(image), image, atol=1e-3)


def test_what_many_images_share_becomes_the_middle():
    """Zeros, as of an empty background: not the darkest of what zeros can stand for."""
    flat = torch.ones(1, 1, 1, 1)
    drawn = [0.0 * flat] * 32 + [0.5 * flat] * 8
    real = [k / 40 * flat for k in range(40)]
    mapping = QuantileMapping.fit(drawn, real)
    assert float(mapping.drawn[5, 0, 0, 0, 0]) == 0.0 < float(mapping.drawn[6, 0, 0, 0, 0])
    middle = (0.01 + 0.7) / 2 * 39 / 40
    assert float(mapping.applied_to(0 * flat)) == pytest.approx(middle, abs=1e-3)


def heads(n, seed, halo):
    """Return balls with an edge at another place in each; soft ones have a halo."""
    rng = np.random.default_rng(seed)
    axes = torch.linspace(-1, 1, 16)
    r = torch.stack(torch.meshgrid(axes, axes, axes, indexing="ij")).square().sum(0).sqrt()
    radii = rng.normal(0.6, 0.08, n)
    return [0.8 * torch.sigmoid((float(size) - r) / halo)[None] for size in radii]


def test_a_halo_goes_and_edges_stay_where_they_are():
    real, soft = heads(120, 0, 0.01), heads(120, 1, 0.12)
    mapping = QuantileMapping.fit(soft, real)
    fresh, sharp = heads(40, 2, 0.12), heads(40, 2, 0.01)
    mapped = [mapping.applied_to(x) for x in fresh]
    a, b = (
        torch.stack([(x - y).square().mean() for x, y in zip(images, sharp, strict=True)]).mean()
        for images in (fresh, mapped)
    )
    assert float(b) < 0.25 * float(a)
    outside = torch.stack(sharp).amax(0) < 0.01
    assert float(torch.stack(fresh)[:, outside].mean()) > 0.02
    assert float(torch.stack(mapped)[:, outside].mean()) < 0.005


def test_large_volumes_share_a_mapping_among_voxels(monkeypatch):
    monkeypatch.setattr(quantile_mapping, "CELLS", 100)
    rng = np.random.default_rng(3)
    ramp = torch.linspace(0, 0.2, 12)[:, None, None]

    def noise(k):
        return torch.from_numpy(rng.uniform(0.3, 0.5, (1, 12, 9, 7)))

    mapping = QuantileMapping.fit(many(noise, 200), [x + ramp for x in many(noise, 200)])
    assert mapping.drawn.shape == (
        len(LEVELS),
        1,
        6,
        5,
        4,
    )  # two voxels share one, or one and a half
    found = mapping.applied_to(torch.full((1, 12, 9, 7), 0.4))
    assert found.shape == (1, 12, 9, 7)
    assert torch.allclose(found.mean((0, 2, 3)), 0.4 + ramp[:, 0, 0], atol=0.02)


def test_a_gradient_goes_through(two_kinds):
    mapping = QuantileMapping.fit(*two_kinds)
    x = torch.full((1, 3, 4, 5), 0.413, dtype=torch.float64, requires_grad=True)
    mapping.applied_to(x).sum().backward()
    step = 1e-5
    with torch.no_grad():
        slope = (mapping.applied_to(x + step) - mapping.applied_to(x - step)) / (2 * step)
    assert torch.allclose(x.grad, slope, rtol=1e-3)
    assert bool((slope > 0).all())


def test_it_is_read_as_it_was_packed(two_kinds):
    mapping = QuantileMapping.fit(*two_kinds)
    back = QuantileMapping.unpacked(mapping.packed())
    image = two_kinds[0][0]
    assert torch.allclose(back.applied_to(image), mapping.applied_to(image), atol=2e-3)
    assert QuantileMapping.unpacked({}) is None


def test_too_few_images_and_other_sizes_are_named(two_kinds):
    drawn, real = two_kinds
    with pytest.raises(UsageError, match=r"20 images or more, of one size, got 19"):
        QuantileMapping.fit(drawn[:19], real)
    with pytest.raises(UsageError, match="another size than real ones"):
        QuantileMapping.fit(drawn, [x[..., :4] for x in real])
