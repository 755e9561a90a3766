"""Samples of prepared volumes, their random changes, and who trains or validates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medpipe.errors import InputError, UsageError
from medpipe.io.nifti import write_nifti
from medpipe.outcome.augment import Augmentation, RandGrid, contrast_changes, shape_changes
from medpipe.outcome.channels import ct_channels
from medpipe.outcome.samples import Volumes, balanced_order, inner_split
from medpipe.train.samples import training_batches
from medpipe.types import Volume

ALL = Augmentation(probability=1.0, noise_sd=3.0)
STILL = {"rotate_deg": 0, "scale": (1, 1), "elastic_share": 0, "mirror_axes": (), "gamma": (1, 1)}


def head(shape=(20, 24, 16), seed=0):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.normal(40, 400, shape), 1.5).astype(np.int16)


def drawn(step, image, seed=0):
    step.set_random_state(seed=seed)
    return step(image)


def test_a_sample_is_the_channels_of_the_file(tmp_path):
    hu = head()
    write_nifti(tmp_path / "a.nii.gz", Volume(hu, np.diag([1.0, 1, 1, 1])))
    truth = ct_channels(torch.from_numpy(hu.astype(np.float32))[None])
    targets = torch.tensor([3, 4])
    samples = Volumes([tmp_path / "a.nii.gz", hu], targets)
    for n in range(2):
        channels, target = samples[n]
        assert torch.equal(channels, truth)
        assert int(target) == 3 + n
    assert samples.size == (20, 24, 16)
    # kept in memory as it is in the file, within the room there is
    assert samples.image(0) is samples.image(0)
    assert samples.image(0).dtype == torch.int16
    no_room = Volumes([tmp_path / "a.nii.gz"], cache_bytes=100)
    assert no_room.image(0) is not no_room.image(0)


def test_pictures_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    grey, colours = rng.integers(0, 256, (8, 9), np.uint8), rng.random((3, 8, 9))
    how = {"preset": "pictures", "spatial_dims": 2}
    assert torch.equal(Volumes([grey], **how)[0][0], torch.from_numpy(grey)[None] / 255)
    assert torch.equal(Volumes([colours], **how)[0][0], torch.from_numpy(colours).float())
    changed = Volumes([colours], augmentation=ALL, **how)
    changed.set_random_state(3)
    assert changed[0][0].shape == (3, 8, 9)


def test_a_seed_decides_a_sample_and_the_place_in_the_run_decides_the_seed():
    samples = Volumes([head(), head(seed=1)], augmentation=ALL)
    samples.set_random_state(5)
    first = samples[0][0]
    samples[1]
    samples.set_random_state(5)
    assert torch.equal(samples[0][0], first)
    samples.set_random_state(6)
    assert not torch.equal(samples[0][0], first)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert type(first) is torch.Tensor
    batches = [
        torch.cat([x for x, _ in training_batches(samples, start=s, stop=4, batch_size=1, seed=0)])
        for s in (0, 2)
    ]
    assert torch.equal(batches[0][2:], batches[1])
    assert not torch.equal(batches[0][0], batches[0][2])


def test_wrong_volumes_are_named(tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    broken = head().astype(np.float32)
    broken[0, 0, 0] = np.nan
    volumes = [head(), tmp_path / "bad.nii.gz", head((20, 24, 17)), broken, head((20, 24))]
    samples = Volumes(volumes, names=["p1", "p2", "p3", "p4", "p5"])
    samples[0]
    for n, said in ((1, "case p2"), (2, "case p3: the volume is not on the grid"),
                    (3, "case p4: the volume holds values"), (4, "case p5: ")):  # fmt: skip
        with pytest.raises(InputError, match=said) as caught:
            samples[n]
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(InputError, match="volume 1: the volume is not on the grid"):
        Volumes([head()], size=(24, 24, 24))[0]
    with pytest.raises(UsageError, match="unknown preset"):
        Volumes([head()], preset="bones")


def test_mirrors_are_exact_and_come_as_often_as_asked():
    image = torch.from_numpy(head())[None]
    mirror = shape_changes(Augmentation(**(STILL | {"mirror_axes": (0,)})), 3)
    found = [drawn(mirror, image, seed) for seed in range(200)]
    flipped = [torch.equal(f.as_tensor(), image.flip(1)) for f in found]
    same = [torch.equal(f.as_tensor(), image) for f in found]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 70 < sum(flipped) < 130


@pytest.mark.parametrize("dims", [2, 3])
def test_nothing_asked_for_is_nothing_done(dims):
    image = torch.from_numpy(head())[None] if dims == 3 else torch.from_numpy(head())[:1, :, :]
    for how in (Augmentation(probability=0, noise_sd=5), Augmentation(**STILL)):
        for seed in range(5):
            done = drawn(shape_changes(how, dims), image, seed)
            assert torch.equal(torch.as_tensor(done), image)


def test_rotation_and_scale_are_those_of_an_independent_resampling():
    """SciPy with the same matrix gives the same volume; voxels twice as long are respected."""
    image = head((24, 24, 12)).astype(np.float32)
    how = Augmentation(probability=1, elastic_share=0, rotate_deg=15)
    spacing = (1.0, 1.0, 2.0)
    step = RandGrid(how, spacing)
    got = drawn(step, torch.from_numpy(image)[None], 4)[0].numpy()
    step.set_random_state(seed=4)
    angles, size, _ = step._drawn(3)
    assert np.abs(angles).max() <= np.radians(15)
    a, b, c = angles
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    s = np.diag(spacing)
    matrix = np.linalg.inv(s) @ (rx @ ry @ rz) @ s / size
    middle = (np.array(image.shape) - 1) / 2
    truth = ndimage.affine_transform(
        image, matrix, middle - matrix @ middle, order=1, mode="nearest"
    )
    inner = (slice(2, -2),) * 3
    assert np.abs(got - truth)[inner].max() < 0.01 * np.ptp(image)


def test_sizes_and_gammas_stay_within_their_limits():
    step = RandGrid(Augmentation(probability=1, scale=(0.85, 1.25)))
    sizes = []
    for seed in range(300):
        step.set_random_state(seed=seed)
        sizes.append(step._drawn(3)[1])
    assert 0.85 <= min(sizes) < 0.87
    assert 1.22 < max(sizes) <= 1.25
    # larger is larger: a ball of radius 6 grows by the factor that was drawn
    step = RandGrid(Augmentation(probability=1, scale=(1.2, 1.2), rotate_deg=0, elastic_share=0))
    x = np.indices((32, 32, 32)) - 15.5
    ball = torch.from_numpy((np.sqrt((x**2).sum(0)) < 6).astype(np.float32))[None]
    ratio = float(drawn(step, ball).sum() / ball.sum())
    assert ratio == pytest.approx(1.2**3, rel=0.05)
    gamma = contrast_changes(Augmentation(probability=1, gamma=(2, 2)))
    ramp = torch.linspace(0, 1, 11).reshape(1, 11, 1, 1)
    assert torch.allclose(drawn(gamma, ramp).as_tensor(), ramp**2, atol=1e-5)


def test_deformations_are_small_smooth_and_still_at_the_border():
    how = Augmentation(probability=1, rotate_deg=0, scale=(1, 1), elastic_share=0.01)
    shape = (40, 48, 32)
    # an image that is its own coordinate shows where each voxel was read
    for axis in range(3):
        ramp = torch.from_numpy(np.indices(shape)[axis].astype(np.float32))[None]
        moved = torch.stack([drawn(RandGrid(how), ramp, s)[0] - ramp[0] for s in range(20)])
        inner = moved[:, 8:-8, 8:-8, 8:-8]
        assert 0.3 < float(inner.std()) / (0.01 * shape[axis]) < 1
        assert float(moved.diff(dim=axis + 1).abs().max()) < 0.8  # nothing folds
        assert float(moved[:, 0].abs().max()) < 1e-3


def test_noise_has_the_spread_that_was_asked_for():
    how = Augmentation(**(STILL | {"probability": 1, "noise_sd": 8.0}))
    image = torch.zeros(1, 20, 20, 20)
    spreads = [float(torch.as_tensor(drawn(shape_changes(how, 3), image, s)).std())
               for s in range(60)]  # fmt: skip
    assert max(spreads) < 8.5
    assert 3 < np.mean(spreads) < 5


def test_wrong_changes_are_refused():
    for bad in (
        {"probability": 2}, {"mirror_axes": (3,)}, {"scale": (1.2, 0.8)}, {"gamma": (0, 1)},
        {"rotate_deg": -1}, {"elastic_share": 0.5}, {"elastic_points": 2}, {"noise_sd": -1},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            Augmentation(**bad)


def test_balanced_order_draws_classes_as_often():
    places, classes = [3, 5, 8, 9, 11, 12, 20], [0, 0, 0, 1, 0, 1, 0]
    order = balanced_order(places, classes)
    assert sorted(order.tolist()) == [3, 5, 8, 9, 9, 9, 11, 12, 12, 20]


def test_no_patient_trains_and_validates_and_classes_are_shared_out():
    rng = np.random.default_rng(0)
    patients = [f"p{n}" for n in rng.integers(0, 60, 150)]
    events = {p: rng.random() < 0.3 for p in patients}
    classes = np.array([int(events[p]) for p in patients])
    trains, validates = inner_split(classes, patients, 0.2, 1)
    assert sorted([*trains, *validates]) == list(range(150))
    a, b = ({patients[n] for n in part} for part in (trains, validates))
    assert not a & b
    for kind in (0, 1):
        all_of_them = {p for p in events if events[p] == kind}
        assert len(b & all_of_them) == round(0.2 * len(all_of_them))
    again = inner_split(classes, patients, 0.2, 1)
    other = inner_split(classes, patients, 0.2, 2)
    assert np.array_equal(again[1], validates)
    assert not np.array_equal(other[1], validates)


def test_splits_at_the_edge():
    trains, validates = inner_split([0, 0, 1], None, 0.2, 0)
    assert len(validates) == 1  # one of the two; the only event stays to be trained with
    assert 2 in trains
    trains, validates = inner_split([0, 1], None, 0, 0)
    assert (len(trains), len(validates)) == (2, 0)
    with pytest.raises(UsageError, match="too few patients"):
        inner_split([0, 1], None, 0.2, 0)
    with pytest.raises(UsageError, match="too few patients"):
        inner_split([0, 0, 0], ["a"] * 3, 0.2, 0)
    with pytest.raises(UsageError, match="share"):
        inner_split([0, 1], None, 1.0, 0)
    with pytest.raises(UsageError, match="do not fit"):
        inner_split([0, 1], ["a"], 0.5, 0)
