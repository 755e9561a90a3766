"""Fine detail: noise as strong, and as coarse, as what was left out."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medpipe.errors import UsageError
from medpipe.synthesis.detail import FineDetail

SHAPE = (24, 20, 18)


def coloured(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noise blurred by 1.2 voxels along the first axis alone, and its known strength."""
    rng = np.random.default_rng(seed)
    made = ndimage.gaussian_filter1d(rng.standard_normal((n, 1, *SHAPE)), 1.2, 2, mode="wrap")
    made /= made.std()
    ramp = np.linspace(0.02, 0.2, SHAPE[1])[None, :, None] * np.ones(SHAPE)
    return (made * ramp).astype(np.float32), ramp


def drawn(detail: FineDetail, n: int) -> np.ndarray:
    """Return so many draws (n, I, J, K)."""
    return torch.stack([detail.draw(seed)[0] for seed in range(n)]).numpy()


def neighbours(x: np.ndarray, axis: int) -> float:
    """Return the correlation of voxels that are next to each other along an axis."""
    a, b = np.take(x, range(1, x.shape[axis]), axis), np.take(x, range(x.shape[axis] - 1), axis)
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_noise_is_as_strong_and_as_coarse_as_what_it_was_measured_on():
    left, ramp = coloured(40, 0)
    made = drawn(FineDetail.fit(torch.from_numpy(left)), 200)
    cubes = np.sqrt(ndimage.uniform_filter(ramp**2, 5, mode="nearest"))  # it is measured in these
    assert made.std(0).mean((0, 2)) == pytest.approx(cubes[0, :, 0], rel=0.03)
    assert made.mean() == pytest.approx(0, abs=0.002)
    plain = made / made.std(0)
    truth = coloured(200, 1)[0][:, 0] / ramp
    for axis, known in ((1, neighbours(truth, 1)), (2, 0.0), (3, 0.0)):
        assert neighbours(plain, axis) == pytest.approx(known, abs=0.03)
    assert neighbours(plain, 1) > 0.7


def test_what_is_too_dark_in_all_images_is_put_back():
    left, _ = coloured(30, 6)
    bias = ndimage.gaussian_filter(np.random.default_rng(7).normal(0, 8, SHAPE), 4)
    assert bias.std() > 0.1
    detail = FineDetail.fit(torch.from_numpy(left + bias.astype(np.float32)), 0.5)
    off = detail.offset[0].numpy() - ndimage.uniform_filter(bias, 5, mode="nearest")
    assert off.std() < 0.2 * bias.std()
    # the bias is no noise, but for what of it is finer than the cubes
    plain = FineDetail.fit(torch.from_numpy(left))
    strong = plain.strength > 0.1
    assert detail.strength[strong].numpy() == pytest.approx(plain.strength[strong], rel=0.2)
    image = torch.full((1, *SHAPE), 0.3)
    put_back = image + detail.offset + 0.5 * detail.draw(1)
    assert torch.allclose(detail.added_to(image, 1), put_back, atol=1e-6)
    assert torch.allclose(detail.added_to(image, 1, 0.5), put_back, atol=1e-6)
    assert torch.equal(detail.added_to(image, 1, 0), image)


def test_a_mean_that_may_be_chance_is_not_put_back():
    left, _ = coloured(6, 8)
    mean = torch.from_numpy(left).mean(0)
    assert float(FineDetail.fit(torch.from_numpy(left)).offset.std()) < 0.2 * float(mean.std())
    assert not FineDetail.fit(torch.from_numpy(left[:1])).offset.any()


def test_odd_sizes_have_the_right_strength_too():
    left = torch.randn(30, 2, 9, 11, 7, generator=torch.Generator().manual_seed(3))
    left[:, 1] *= 0.1
    detail = FineDetail.fit(left)
    made = torch.stack([detail.draw(seed) for seed in range(60)])
    assert made.std((0, 2, 3, 4)).tolist() == pytest.approx([1.0, 0.1], rel=0.02)


def test_what_is_the_same_everywhere_stays_as_it_is():
    left, _ = coloured(10, 4)
    left[..., :9] = 0
    made = drawn(FineDetail.fit(torch.from_numpy(left)), 5)
    assert (made[..., :5] == 0).all()
    assert made[..., 11:].std() > 0.05
    assert not drawn(FineDetail.fit(torch.zeros(2, 1, *SHAPE)), 2).any()


def test_a_seed_decides_and_a_file_keeps_it():
    detail = FineDetail.fit(torch.from_numpy(coloured(8, 5)[0] + np.float32(0.1)))
    assert torch.equal(detail.draw(7), detail.draw(7))
    assert not torch.equal(detail.draw(7), detail.draw(8))
    again = FineDetail.unpacked(detail.packed())
    assert torch.allclose(again.draw(7), detail.draw(7), atol=1e-3)
    assert torch.allclose(again.offset, detail.offset, atol=1e-3)
    assert detail.offset.abs().max() > 0.01
    assert FineDetail.unpacked({}) is None


def test_no_images_are_named():
    with pytest.raises(UsageError, match=r"measured on images.*N of 1 or more"):
        FineDetail.fit(torch.zeros(0, 1, 4, 4, 4))
