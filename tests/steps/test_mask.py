"""Mask steps against brute force and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from scipy import ndimage

from medpipe.errors import StepError, UsageError
from medpipe.steps.mask import (
    ApplyMask,
    ApplyMaskd,
    FillHoles,
    FillHolesd,
    LargestComponent,
    LargestComponentd,
    Morphology,
    Morphologyd,
    Threshold,
    Thresholdd,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def image(data, spacing=(1, 1, 1), device="cpu", dtype=torch.uint8, affine=None):
    affine = np.diag([*spacing, 1.0]) if affine is None else affine
    meta = {"medpipe": {"source": {"kind": "test"}, "findings": []}}
    tensor = torch.as_tensor(np.asarray(data), dtype=dtype, device=device)[None]
    return MetaTensor(tensor, affine=torch.from_numpy(affine), meta=meta)


def brute_dilate(mask, radius, spacing):
    """Every voxel whose centre lies within the radius of a mask voxel's centre."""
    points = np.stack(np.indices(mask.shape), -1) * np.asarray(spacing)
    out = np.zeros(mask.shape, bool)
    for p in points[mask]:
        out |= ((points - p) ** 2).sum(-1) <= (radius * (1 + 1e-5)) ** 2
    return out


def brute(operation, mask, radius, spacing):
    def grow(m):
        return brute_dilate(m, radius, spacing)

    def shrink(m):
        return ~brute_dilate(~m, radius, spacing)

    if operation == "dilate":
        return grow(mask)
    if operation == "erode":
        return shrink(mask)
    if operation == "open":
        return grow(shrink(mask))
    pad = int(radius / min(spacing)) + 2
    return shrink(grow(np.pad(mask, pad)))[(slice(pad, -pad),) * 3]


masks = st.integers(0, 10**6).map(
    lambda seed: (
        ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(8, 7, 6)), 1)
        > np.random.default_rng(seed).uniform(-0.1, 0.25)
    )
)


@pytest.mark.parametrize("operation", ["dilate", "erode", "open", "close"])
@given(
    masks,
    st.floats(0, 3),
    st.tuples(*[st.sampled_from([0.7, 1.0, 1.3, 2.5])] * 3),
)
@settings(max_examples=8, deadline=None)
def test_morphology_is_an_exact_ball(operation, mask, radius, spacing):
    got = Morphology(operation, radius)(image(mask, spacing))[0].numpy() > 0
    np.testing.assert_array_equal(got, brute(operation, mask, radius, spacing))


@pytest.mark.parametrize("device", DEVICES)
def test_a_ball_in_mm(device):
    point = np.zeros((31, 31, 15))
    point[15, 15, 7] = 1
    out = Morphologyd("x", "dilate", 5.0)({"x": image(point, (0.5, 0.5, 2.5), device)})["x"]
    assert out.device.type == device
    assert out.dtype == torch.uint8
    where = (np.indices(point.shape).T - (15, 15, 7)) * (0.5, 0.5, 2.5)
    want = (np.linalg.norm(where, axis=-1) <= 5 + 1e-9).T
    np.testing.assert_array_equal(out[0].cpu().numpy() > 0, want)
    assert out.meta["medpipe"]["source"] == {"kind": "test"}


def test_erosion_does_not_start_at_the_border_and_closing_does_not_reach_it():
    neck = np.zeros((20, 20, 10))
    neck[6:14, 6:14] = 1
    out = Morphology("erode", 2)(image(neck))[0]
    assert bool((out.any(0).any(0) == 1).all())
    near = np.zeros((20, 5, 5))
    near[3:17] = 1
    assert torch.equal(Morphology("close", 4)(image(near))[0], image(near)[0].as_tensor())


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks(value):
    x = image(np.full((5, 5, 5), value))
    for operation in ("dilate", "erode", "open", "close"):
        assert torch.equal(Morphology(operation, 2)(x).as_tensor(), x.as_tensor())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_largest_components_against_scipy(connectivity, device):
    rng = np.random.default_rng(connectivity)
    labels = (rng.random((20, 18, 16)) < 0.2) * rng.integers(1, 4, (20, 18, 16))
    for n in (1, 3):
        step = LargestComponentd("x", connectivity=connectivity, n=n)
        out = step({"x": image(labels, device=device)})["x"]
        parts, count = ndimage.label(labels, ndimage.generate_binary_structure(3, connectivity))
        size = ndimage.sum_labels(labels > 0, parts, range(1, count + 1))
        got = out[0].cpu().numpy()
        assert (got > 0).sum() == np.sort(size)[-n:].sum()
        np.testing.assert_array_equal(got[got > 0], labels[got > 0])
        kept = np.unique(parts[got > 0])
        assert len(kept) == n
        assert out.device.type == device
    assert not LargestComponent()(image(np.zeros((3, 3, 3)))).any()


def test_fill_holes():
    shell = np.zeros((12, 12, 12))
    shell[2:10, 2:10, 2:10] = 1
    shell[4:8, 4:8, 4:8] = 0
    tube = shell.copy()
    tube[5, 5, :] = 0
    want = np.zeros(shell.shape)
    want[2:10, 2:10, 2:10] = 1
    np.testing.assert_array_equal(FillHoles()(image(shell))[0].numpy(), want)
    np.testing.assert_array_equal(FillHoles()(image(tube))[0].numpy(), tube)
    out = FillHolesd("x", plane="axial")({"x": image(tube)})["x"]
    np.testing.assert_array_equal(out[0].numpy(), want)
    # the plane is that of the world, whatever the order of the axes
    turned = np.eye(4)[[2, 0, 1, 3]]
    out = FillHoles("axial")(image(tube.transpose(2, 0, 1), affine=turned.T))
    np.testing.assert_array_equal(out[0].numpy(), want.transpose(2, 0, 1))
    noise = np.random.default_rng(0).random((15, 14, 13)) < 0.6
    np.testing.assert_array_equal(
        FillHoles()(image(noise))[0].numpy(), ndimage.binary_fill_holes(noise)
    )


def test_threshold():
    data = np.array([[[-5.0, 0, 40, 100, 101, np.nan]]])
    out = Thresholdd("x", lower=0, upper=100)({"x": image(data, dtype=torch.float32)})["x"]
    assert out.dtype == torch.uint8
    assert out.flatten().tolist() == [0, 1, 1, 1, 0, 0]
    assert Threshold(upper=0)(image(data, dtype=torch.float32)).flatten().tolist()[:2] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_threshold_of_integers_takes_limits_beyond_their_type(dtype):
    data = image(np.array([[[0, 1, 200, 255]]]) - (dtype != torch.uint8), dtype=dtype)
    assert Threshold(lower=-5)(data).flatten().tolist() == [1, 1, 1, 1]
    assert Threshold(upper=70_000)(data).flatten().tolist() == [1, 1, 1, 1]
    assert Threshold(lower=70_000)(data).flatten().tolist() == [0, 0, 0, 0]
    assert Threshold(lower=0.5)(data).flatten().tolist()[2:] == [1, 1]


def test_what_is_no_number_is_in_no_component():
    data = image([[[np.nan, 1, 1, 0, np.inf, -2]]], dtype=torch.float32)
    assert LargestComponent()(data).flatten().tolist() == [0, 1, 1, 0, 0, 0]


def test_apply_mask():
    data = np.random.default_rng(0).normal(size=(4, 5, 6))
    mask = data > 0
    both = {"x": image(data, dtype=torch.float32), "m": image(mask)}
    out = ApplyMaskd("x", mask="m", outside=-1024)(both)["x"][0].numpy()
    np.testing.assert_array_equal(out, np.where(mask, data, -1024).astype(np.float32))
    assert float(ApplyMask()(both["x"], both["m"]).min()) == np.float32(data.min())


def test_errors():
    x = image(np.ones((4, 4, 4)))
    shifted = np.eye(4)
    shifted[2, 3] = 0.5
    sheared = np.eye(4)
    sheared[1, 2] = 0.3
    for call, text in (
        (lambda: ApplyMask()(x, image(np.ones((4, 4, 4)), affine=shifted)), "another place"),
        (lambda: ApplyMask()(x, image(np.ones((4, 4, 5)))), "got shape"),
        (lambda: ApplyMask()(x, image(np.zeros((4, 4, 4)))), "empty"),
        (lambda: ApplyMaskd("x", mask="m")({"x": x}), "absent"),
        (lambda: Morphology("open", 1)(image(np.ones((3, 3, 3)), affine=sheared)), "sheared"),
    ):
        with pytest.raises(StepError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
    for call, text in (
        (lambda: Morphology("shrink", 1), "operation"),
        (lambda: Morphology("open", -1), "radius_mm"),
        (lambda: LargestComponent(4), "connectivity"),
        (lambda: LargestComponent(n=0), "n is wrong"),
        (lambda: FillHoles("oblique"), "plane"),
        (lambda: Threshold(), "limit"),
        (lambda: Threshold(2, 1), "limits"),
    ):
        with pytest.raises(UsageError, match=text):
            call()
