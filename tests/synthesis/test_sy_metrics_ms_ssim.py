"""Multi-scale similarity against MONAI, and the variance of pairs against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics.regression import MultiScaleSSIMMetric
from sy_metric_sets import blobs

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.metrics import SsimScales, ms_ssim_pairs, ssim_scales
from medpipe.synthesis.metrics.ms_ssim import WEIGHTS, _draw_pairs, _dyadic_error, ms_ssim


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((36, 40, 45), ssim_scales((36, 40, 45))),
        ((30, 34, 28), SsimScales(7, WEIGHTS[:3])),
        ((33, 40, 36), SsimScales(11, (0.4, 0.6))),
        ((64, 66, 65), SsimScales(3, WEIGHTS)),
    ],
)
def test_it_is_that_of_monai(shape, scales):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((3, *shape), generator=generator)
    y = (x + 0.3 * torch.rand((3, *shape), generator=generator)).clamp(0, 1)
    # unrelated volumes: the means of the finest scale are around 0
    y[2] = torch.rand(shape, generator=generator)
    found = ms_ssim(x, y, scales=scales)
    peer = MultiScaleSSIMMetric(
        spatial_dims=3, kernel_size=scales.kernel, weights=scales.weights, reduction="none"
    )
    exact = ms_ssim(x.double(), y.double(), scales=scales).numpy()
    assert found.numpy() == pytest.approx(exact, abs=2e-6)
    # the peer takes small differences of large numbers in float32
    assert peer(x[:, None], y[:, None])[:, 0].numpy() == pytest.approx(exact, abs=5e-5)


def test_identical_volumes_and_other_ranges():
    x = torch.rand(2, 20, 22, 24)
    assert ms_ssim(x, x).numpy() == pytest.approx(1.0, abs=1e-5)
    y = torch.rand(2, 20, 22, 24)
    assert ms_ssim(1000 * x, 1000 * y, data_range=1000.0).numpy() == pytest.approx(
        ms_ssim(x, y).numpy(), abs=1e-5
    )


@pytest.mark.parametrize(
    ("least", "kernel", "count"),
    [(5, 5, 1), (11, 5, 2), (20, 5, 3), (32, 7, 3), (64, 7, 4), (160, 9, 5), (200, 11, 5)],
)
def test_the_scales_fit_the_size(least, kernel, count):
    scales = ssim_scales((least, least + 30, least + 3))
    assert (scales.kernel, len(scales.weights)) == (kernel, count)
    assert sum(scales.weights) == pytest.approx(sum(WEIGHTS))
    assert ms_ssim(*torch.rand(2, 1, least, 5, 5)).shape == (1,) if least == 5 else True


def test_sizes_that_cannot_be_compared():
    with pytest.raises(InputError, match="4x9x9"):
        ssim_scales((4, 9, 9))
    with pytest.raises(InputError, match="two shapes"):
        ms_ssim(torch.rand(1, 9, 9, 9), torch.rand(1, 9, 9, 8))
    with pytest.raises(UsageError, match="range"):
        ms_ssim(torch.rand(1, 9, 9, 9), torch.rand(1, 9, 9, 9), data_range=0)


@pytest.mark.parametrize(("n", "pairs"), [(8, 13), (9, 36), (8, 27), (30, 45), (30, 1000)])
def test_pairs_are_distinct_and_spread(n, pairs):
    found = _draw_pairs(n, pairs, 0)
    assert len(found) == min(pairs, n * (n - 1) // 2)
    assert len({frozenset(p) for p in found.tolist()}) == len(found)
    assert (found[:, 0] != found[:, 1]).all()
    times = np.bincount(found.ravel(), minlength=n)
    assert times.max() - times.min() <= 2


def test_the_error_of_a_mean_of_pairs_is_the_spread_of_such_means():
    n, means, errors = 24, [], []
    pairs = _draw_pairs(n, 60, 0)
    for seed in range(400):
        rng = np.random.default_rng(seed)
        case = rng.normal(0, 1, n)
        values = case[pairs].sum(axis=1) + rng.normal(0, 1, len(pairs))
        means.append(values.mean())
        errors.append(_dyadic_error(values, pairs, n))
    # as if pairs were independent it would be sqrt(3 / 60) = 0.22
    assert np.std(means) == pytest.approx(0.43, rel=0.1)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.15)


def test_a_collapsed_set_is_more_alike_than_the_real_one():
    real, alike = blobs(14, 0, texture=0.3), blobs(14, 1, texture=0.3)
    fine = ms_ssim_pairs(real, alike, pairs=60)
    assert fine.figure.low <= fine.floor.high
    assert fine.floor.low <= fine.figure.high
    noise = torch.randn(14, 20, 24, 20, generator=torch.Generator().manual_seed(0))
    collapsed = blobs(2, 2, texture=0.3).repeat(7, 1, 1, 1) + 0.002 * noise
    found = ms_ssim_pairs(real, collapsed, pairs=60)
    assert found.figure.value > found.floor.high
    assert "60 pairs" in found.figure.method
    assert ms_ssim_pairs(real, alike, pairs=60).to_dict() == fine.to_dict()
