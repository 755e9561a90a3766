"""The distance transform against scipy, brute force and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from medpipe.centerline import distance as module
from medpipe.centerline.distance import distance_transform
from medpipe.errors import StepError, UsageError

METHODS = ["compiled", "windowed"]
SPACINGS = [(1.0, 1.0, 1.0), (0.3, 0.3, 3.0), (3.0, 0.3, 0.3), (0.684, 0.7, 0.5), (1e-3, 1e3, 1.0)]


def compute(mask, spacing_mm, method):
    return distance_transform(torch.from_numpy(mask), spacing_mm, method=method)


def random_mask(seed, shape, density):
    return np.random.default_rng(seed).random(shape) < density


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("density", [0.02, 0.5, 0.98, 0.9995])
def test_it_equals_scipy(method, spacing_mm, density):
    mask = random_mask(7, (23, 40, 31), density)
    got = compute(mask, spacing_mm, method)
    want = ndimage.distance_transform_edt(mask, spacing_mm)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing_mm=st.sampled_from(SPACINGS),
    density=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_it_is_the_least_distance_of_all_pairs_and_the_same_by_both_methods(
    shape, spacing_mm, density, seed
):
    mask = random_mask(seed, shape, density)
    got = [compute(mask, spacing_mm, m) for m in METHODS]
    assert torch.equal(*got)
    want = np.zeros(shape)
    if mask.all():
        want[:] = np.inf
    elif mask.any():
        inside, outside = (np.argwhere(m) * spacing_mm for m in (mask, ~mask))
        want[mask] = cdist(inside, outside).min(1)
    np.testing.assert_allclose(got[0].numpy(), want, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_ball_is_as_deep_as_its_radius(method):
    x = np.indices((65, 65, 65)) - 32
    radius = np.sqrt((x**2).sum(0))
    got = compute(radius < 30, 0.5, method).numpy()
    assert got[32, 32, 32] == 15
    inside = radius < 30
    assert np.abs(got - (15 - radius / 2))[inside].max() <= np.sqrt(3) / 2
    # the window grew: the ball is wider than the first one
    assert module.FIRST_REACH < 30


@pytest.mark.parametrize("method", METHODS)
def test_the_border_of_the_array_is_not_background(method):
    mask = np.ones((5, 6, 7), bool)
    mask[0, 0, 0] = False
    got = compute(mask, (1, 2, 3), method)
    assert got[4, 5, 6] == pytest.approx(np.sqrt(4**2 + 10**2 + 18**2))
    assert got[0, 0, 0] == 0


@pytest.mark.parametrize("method", METHODS)
def test_without_background_the_distance_is_infinite(method):
    mask = np.ones((2, 3, 4, 5), bool)
    mask[1, 0, 0, 0] = False
    got = compute(mask, (0.3, 0.3, 3), method)
    assert torch.isinf(got[0]).all()
    assert torch.isfinite(got[1]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_transformed_in_its_plane(method, axis):
    plane = random_mask(3, (30, 20), 0.9)
    mask = np.expand_dims(plane, axis)
    spacing_mm = np.insert([0.3, 3.0], axis, 50.0)
    want = ndimage.distance_transform_edt(plane, (0.3, 3.0))
    got = compute(mask, spacing_mm, method).numpy()
    np.testing.assert_allclose(got.squeeze(axis), want, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_leading_axes_are_a_batch(method):
    mask = random_mask(5, (2, 3, 8, 9, 10), 0.9)
    mask[1, 1] = False
    got = compute(mask, (1, 2, 3), method)
    for b in np.ndindex(2, 3):
        assert torch.equal(got[b], compute(mask[b], (1, 2, 3), method))
    assert compute(mask[:0], 1, method).shape == (0, 3, 8, 9, 10)
    assert compute(mask[..., :0], 1, method).shape == (2, 3, 8, 9, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_view_with_strides_is_read_and_left_as_it_is(method):
    mask = torch.from_numpy(random_mask(5, (8, 9, 10), 0.9))
    before = mask.clone()
    view = mask.permute(2, 0, 1)[::2]
    assert torch.equal(
        distance_transform(view, (1, 2, 3), method=method),
        distance_transform(view.contiguous(), (1, 2, 3), method=method),
    )
    assert torch.equal(mask, before)
    assert torch.equal(distance_transform(mask.to(torch.int16) * 4, 1), distance_transform(mask, 1))


def test_small_parts_give_the_same(monkeypatch):
    mask = random_mask(11, (20, 21, 22), 0.99)
    want = compute(mask, (0.3, 0.7, 2), "windowed")
    monkeypatch.setattr(module, "CHUNK_VOXELS", 500)
    assert torch.equal(compute(mask, (0.3, 0.7, 2), "windowed"), want)


def test_wrong_arguments_are_refused():
    with pytest.raises(StepError, match="too few axes"):
        distance_transform(torch.ones(3, 3), 1)
    with pytest.raises(UsageError, match="spacing_mm"):
        distance_transform(torch.ones(3, 3, 3), (1, 0, 1))
    with pytest.raises(UsageError, match="method"):
        distance_transform(torch.ones(3, 3, 3), 1, method="fast")
    with pytest.raises(UsageError, match="works on the host"):
        distance_transform(torch.ones(3, 3, 3, device="meta"), 1, method="compiled")


@pytest.mark.gpu
@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_the_device_gives_the_bits_of_the_host(spacing_mm):
    mask = torch.from_numpy(random_mask(7, (60, 70, 80), 0.97))
    got = distance_transform(mask.cuda(), spacing_mm)
    assert got.is_cuda
    assert torch.equal(got.cpu(), distance_transform(mask, spacing_mm))


@pytest.mark.real_data
def test_an_airway_has_the_distances_of_scipy(airway):
    labels, affine = airway
    mask = labels[150:400, 150:350, 250:400] > 0
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    want = ndimage.distance_transform_edt(mask, spacing_mm)
    got = [compute(mask, spacing_mm, m) for m in METHODS]
    assert torch.equal(*got)
    np.testing.assert_allclose(got[0].numpy(), want, rtol=1e-6)
