"""Windows, normalisation and limits against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.steps.intensity import (
    ClipIntensity,
    ClipIntensityd,
    NormalizeIntensity,
    NormalizeIntensityd,
    RoundIntensityd,
    WindowIntensity,
    WindowIntensityd,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def image(data, device="cpu", dtype=torch.float32):
    meta = {"medpipe": {"source": {"kind": "test"}, "findings": []}}
    tensor = torch.as_tensor(np.asarray(data), dtype=dtype, device=device)
    return MetaTensor(tensor, affine=torch.diag(torch.tensor([2.0, 1, 3, 1])), meta=meta)


@pytest.fixture
def values():
    return np.random.default_rng(3).normal(40, 300, (2, 7, 6, 5)).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_window(values, device):
    out = WindowIntensity(40, 80, (-1, 3))(image(values, device))
    want = np.interp(values, [0, 80], [-1, 3])
    np.testing.assert_allclose(out.as_tensor().cpu(), want, atol=1e-5)
    assert out.device.type == device
    assert out.dtype == torch.float32
    assert out.meta["medpipe"]["source"] == {"kind": "test"}
    assert out.affine[2, 2] == 3


def test_window_keeps_float64_and_nan(values):
    values[0, 0, 0, 0] = np.nan
    out = WindowIntensityd("x", 600, 2800)({"x": image(values, dtype=torch.float64)})["x"]
    assert out.dtype == torch.float64
    assert torch.isnan(out[0, 0, 0, 0])
    assert float(torch.nan_to_num(out.as_tensor()).max()) <= 1
    ints = WindowIntensity(0, 1)(image(np.zeros((1, 2, 2, 2)), dtype=torch.int16))
    assert float(ints.max()) == 0.5


@pytest.mark.parametrize("device", DEVICES)
def test_zscore_over_a_mask_and_per_channel(values, device):
    mask = np.zeros((1, 7, 6, 5))
    mask[:, 2:6, 1:4] = 1
    values[1] += 1e5
    data = {"x": image(values, device), "m": image(mask, device, torch.uint8)}
    out = NormalizeIntensityd("x", mask="m")(data)["x"].as_tensor().cpu().numpy()
    for c in range(2):
        v = values[c][mask[0] > 0].astype(float)
        np.testing.assert_allclose(out[c], (values[c] - v.mean()) / v.std(), rtol=1e-3, atol=1e-4)


def test_robust_and_minmax_ignore_what_is_not_finite(values):
    values[0, 0, 0, :2] = np.nan, np.inf
    finite = values[0][np.isfinite(values[0])]
    out = NormalizeIntensity("robust")(image(values[:1]))[0].numpy()
    q1, median, q3 = np.percentile(finite, (25, 50, 75))
    np.testing.assert_allclose(out[1:], (values[0, 1:] - median) / (q3 - q1) * 1.34898, rtol=1e-4)
    low, high = np.percentile(finite, (2, 98))
    out = NormalizeIntensity("minmax", percentiles=(2, 98))(image(values[:1]))[0].numpy()
    np.testing.assert_allclose(out[1:], np.interp(values[0, 1:], [low, high], [0, 1]), atol=1e-5)


def test_round_is_to_even_and_keeps_dtype_and_nan():
    values = np.array([-1.5, -0.5, 0.5, 1.5, 2.49, np.nan], np.float32).reshape(1, 1, 1, 6)
    out = RoundIntensityd("x")({"x": image(values)})["x"]
    np.testing.assert_array_equal(out.numpy().ravel(), [-2, 0, 0, 2, 2, np.nan])
    assert out.dtype == torch.float32


def test_clip(values):
    out = ClipIntensityd("x", lower=-100, upper=50)({"x": image(values)})["x"]
    np.testing.assert_array_equal(out.numpy(), values.clip(-100, 50))
    ints = ClipIntensity(upper=50)(image(values, dtype=torch.int16))
    assert ints.dtype == torch.int16
    assert int(ints.max()) == 50


def test_errors(values):
    x = image(values)
    flat = image(np.full((1, 3, 3, 3), 7.0))
    for call, text in (
        (lambda: WindowIntensity(40, 0), "width_hu"),
        (lambda: WindowIntensity(40, -1), "width_hu"),
        (lambda: WindowIntensity(40, 80, (1, 0)), "out_range"),
        (lambda: NormalizeIntensity("z"), "method"),
        (lambda: NormalizeIntensity("minmax", (5, 5)), "percentiles"),
        (lambda: ClipIntensity(), "limit"),
        (lambda: ClipIntensity(3, 2), "limits"),
    ):
        with pytest.raises(UsageError, match=text):
            call()
    for call, text in (
        (lambda: NormalizeIntensity()(flat), "no spread"),
        (lambda: NormalizeIntensity()(x, image(np.zeros((1, 7, 6, 5)))), "empty"),
        (lambda: NormalizeIntensity()(x, flat), "not on the grid"),
        (lambda: NormalizeIntensity()(image(values * np.nan)), "finite"),
        (lambda: WindowIntensity(0, 1)(x.as_tensor().to(torch.complex64)), "complex"),
    ):
        with pytest.raises(StepError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
