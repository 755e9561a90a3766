"""Training pairs: one scale, one grid, volumes by counting, bad pairs named."""

import numpy as np
import pytest
import torch

from medpipe.errors import InputError, MedpipeError, UsageError
from medpipe.io.case import Case
from medpipe.io.nifti import write_nifti
from medpipe.synthesis.pairs import PairSettings, load_pair, load_pairs, stacked
from medpipe.types import Volume

SETTINGS = PairSettings((12, 16, 10), label_classes=3)
LAS = np.diag([-1.0, 1.0, 2.0, 1.0])


@pytest.fixture
def write(tmp_path):
    def writer(name, image, labels, affine=LAS, label_affine=None):
        paths = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}-labels.nii.gz"
        write_nifti(paths[0], Volume(image, affine))
        write_nifti(paths[1], Volume(labels, affine if label_affine is None else label_affine))
        return Case(name, {"image": str(paths[0]), "labels": str(paths[1])})

    return writer


@pytest.fixture
def subject():
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (11, 18, 9)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[2:5, 6:10, 3:6] = 1
    labels[7:9, 6:10, 3:6] = 2
    return image, labels


def test_scales_of_four_orders_of_magnitude_become_one(write, subject):
    image, labels = subject
    cases = [write(f"c{i}", image * s + o, labels) for i, (s, o) in enumerate([(1, 0), (2e4, 99)])]
    images, known = stacked(load_pairs(cases, SETTINGS))
    assert images.shape == known.shape == (2, 1, 12, 16, 10)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[0], images[1], atol=1e-4, rtol=0)
    low, high = np.percentile(image, [0.5, 99.5])
    wanted = np.clip((image - low) / (high - low), 0, 1)[::-1]  # to RAS
    # continued by one voxel along I and K, cut by one on both sides of J
    wanted = np.pad(wanted[:, 1:17], ((0, 1), (0, 0), (0, 1)), "edge")
    np.testing.assert_allclose(images[0, 0].numpy(), wanted, atol=1e-5)
    assert not known[0, 0, -1].any()
    assert not known[0, 0, ..., -1].any()


def test_volumes_are_those_of_counting_in_the_files(write, subject):
    pair = load_pairs([write("c0", *subject)], SETTINGS)[0]
    assert pair.volumes_ml == pytest.approx((3 * 4 * 3 * 2.0 / 1000, 2 * 4 * 3 * 2.0 / 1000))
    assert int((pair.labels == 1).sum()) == 36
    assert pair.spacing_mm == pytest.approx((1, 1, 2))
    # In RAS the label that lay at high I of a flipped axis lies at low I.
    first, second = (torch.nonzero(pair.labels[0] == n)[:, 0].max() for n in (1, 2))
    assert second < first


def test_image_and_labels_stay_on_each_other(write, subject):
    _, labels = subject
    pair = load_pairs([write("c0", labels.astype(np.float32) * 50, labels)], SETTINGS)[0]
    np.testing.assert_allclose(pair.image.numpy(), pair.labels.numpy() / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, k: (i, k * 2), "not those of the model"),
        (lambda i, k: (i, k * 0), "all background"),
        (lambda i, k: (i, k[1:]), "not on one grid"),
        (lambda i, k: (i * 0, k), "no spread"),
        (lambda i, k: (i, np.where(np.arange(18)[:, None] == 0, np.uint8(1), k)), "cuts labels"),
    ],
)
def test_a_bad_pair_is_named(write, subject, change, words):
    case = write("c7", *change(*subject))
    with pytest.raises(MedpipeError, match=rf"c7.*{words}"):
        load_pairs([case], SETTINGS)


def test_pairs_that_do_not_go_together_are_named(write, subject, tmp_path):
    image, labels = subject
    one = write("c0", image, labels)
    wide = write("c1", image, labels, np.diag([1.0, 1.5, 2.0, 1.0]))
    with pytest.raises(InputError, match=r"c1.*not of one size"):
        load_pairs([one, wide], SETTINGS)
    moved = write("c2", image, labels, label_affine=np.diag([-1.0, 1.0, 2.2, 1.0]))
    with pytest.raises(InputError, match=r"c2.*not on one grid"):
        load_pairs([moved], SETTINGS)
    with pytest.raises(InputError, match=r"c3.*labels are missing"):
        load_pair("c3", one.inputs["image"], None, SETTINGS)
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match="c4"):
        load_pair("c4", tmp_path / "broken.nii.gz", None, SETTINGS)
    with pytest.raises(UsageError, match="number of labels"):
        PairSettings((4, 4, 4), label_classes=1)


@pytest.mark.real_data
def test_real_hippocampi_come_to_one_scale(real_data):
    folder = real_data / "hippocampus"
    names = sorted(p.name for p in (folder / "images").glob("*.nii.gz"))[::26]
    settings = PairSettings((48, 64, 48), label_classes=3)
    pairs = [
        load_pair(n.removesuffix(".nii.gz"), folder / "images" / n, folder / "labels" / n, settings)
        for n in names
    ]
    images, labels = stacked(pairs)
    assert 0.05 < float(images.mean()) < 0.6
    front = np.array([pair.volumes_ml[0] for pair in pairs])
    assert 1.2 < front.mean() < 2.3  # 1.7 ml in the literature of this collection
    assert int((labels == 1).sum()) == pytest.approx(front.sum() * 1000, rel=1e-3)
