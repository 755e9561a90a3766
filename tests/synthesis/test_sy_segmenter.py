"""A segmenter learns regions that it can then measure; its file gives the same answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sy_labelled_sets import REGIONS, by_intensity, eggs

from medpipe.errors import InputError, UsageError
from medpipe.models import pack_weights
from medpipe.synthesis.segmenter import (
    Segmenter,
    SegmenterModel,
    SegmenterSettings,
    train_segmenter,
)
from medpipe.synthesis.segmenter_measures import dice_of_regions, measure_segmenter
from medpipe.train import LoopSettings

SMALL = SegmenterSettings(3, widths=(8, 16), residual_units=1)
LOOP = LoopSettings(iterations=60, batch_size=4, learning_rate=1e-2, validate_every=20)


def pairs(n, seed):
    images, labels = eggs(n, seed, shape=(18, 17, 16))
    return [(i[None], v[None]) for i, v in zip(images, labels, strict=True)]


@pytest.fixture(scope="module")
def model():
    return train_segmenter(pairs(12, 0), SMALL, LOOP, validation_share=0.25, device="cpu")


def test_it_finds_regions_of_cases_that_it_never_saw(model):
    images, labels = eggs(10, 99, shape=(18, 17, 16))
    found = model.labels(images)
    assert found.shape == images.shape
    for region, scores in dice_of_regions(found, labels, REGIONS).items():
        assert scores.mean() > 0.8, region
    ceiling = measure_segmenter(model.labels, images, labels, spacing_mm=(1, 1, 1), regions=REGIONS)
    assert ceiling["n"] == 10
    assert ceiling["volumes"]["shell"]["pearson"]["value"] > 0.9
    assert ceiling["dice"]["core"]["low"] < ceiling["dice"]["core"]["value"]
    assert model.facts["validated"] == 3
    assert model.facts["best_dice"] == max(row["metric"] for row in model.history)


def test_its_features_tell_sizes_apart(model):
    small, _ = eggs(6, 1, shape=(18, 17, 16), sizes=np.full((6, 2), 0.8))
    large, _ = eggs(6, 2, shape=(18, 17, 16), sizes=np.full((6, 2), 1.2))
    a, b = model.features(small), model.features(large)
    assert a.shape == (6, 2 * SMALL.widths[-1])
    between = torch.cdist(a, b).min()
    assert between > max(torch.pdist(a).max(), torch.pdist(b).max())


def test_features_do_not_depend_on_the_other_cases(model):
    images, _ = eggs(5, 3, shape=(18, 17, 16))
    whole = model.features(images)
    alone = torch.cat([model.features(images[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


def test_the_file_gives_the_same_answers(model, tmp_path):
    file = tmp_path / "segmenter.safetensors"
    file.write_bytes(model.to_bytes())
    images, _ = eggs(3, 4, shape=(18, 17, 16))
    for read in (SegmenterModel.read(file), SegmenterModel.from_bytes(model.to_bytes())):
        assert torch.equal(read.labels(images), model.labels(images))
        assert torch.equal(read.features(images), model.features(images))
        assert read.name == model.name
        assert read.digest == model.digest
    assert "9 real cases" in model.name
    file.write_bytes(pack_weights({"x": torch.zeros(1)}, {"model": "features"}))
    with pytest.raises(InputError, match=r"segmenter.safetensors: .*no segmenter of synthesis"):
        SegmenterModel.read(file)


def test_any_size_comes_out_as_it_went_in():
    network = Segmenter(SegmenterSettings(4, widths=(4, 8, 12))).eval()
    for shape in ((8, 8, 8), (9, 10, 11), (4, 7, 5)):
        assert network(torch.zeros(1, 1, *shape)).shape == (1, 4, *shape)
        assert network.embed(torch.zeros(2, 1, *shape)).shape == (2, 24)


def test_a_killed_training_continues_to_the_same_weights(tmp_path):
    data, loop = pairs(6, 5), LoopSettings(iterations=6, batch_size=2, checkpoint_every=2)
    whole = train_segmenter(data, SMALL, loop, device="cpu")

    def stop(at):
        if at.iteration == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_segmenter(
            data, SMALL, loop, device="cpu", checkpoint=tmp_path / "c.pt", progress=stop
        )
    again = train_segmenter(data, SMALL, loop, device="cpu", checkpoint=tmp_path / "c.pt")
    assert again.to_bytes() == whole.to_bytes()


def test_dice_is_that_of_counted_voxels():
    found, truth = torch.zeros(2, 4, 4, 4, dtype=torch.long), torch.zeros(2, 4, 4, 4)
    found[0, :2], truth[0, 1:3] = 1, 1
    found[1, 0], truth[1, 0, 0] = 2, 3
    scores = dice_of_regions(found, truth.long(), {"a": 1, "b": [2, 3], "c": 9})
    assert scores["a"][0] == pytest.approx(0.5)
    assert np.isnan(scores["a"][1])
    assert scores["b"][1] == pytest.approx(2 * 4 / (16 + 4))
    assert np.isnan(scores["c"]).all()
    with pytest.raises(InputError, match="do not compare"):
        dice_of_regions(found[:1], truth.long(), {"a": 1})


def test_the_ceiling_of_an_exact_segmenter_is_one():
    images, labels = eggs(8, 6)
    found = measure_segmenter(by_intensity, images, labels, spacing_mm=(1, 1, 2), regions=REGIONS)
    assert found["dice"]["core"]["value"] == 1
    assert found["volumes"]["core"]["pearson"]["value"] == pytest.approx(1)
    assert found["volumes"]["core"]["bias"]["value"] == 0


def test_what_is_wrong_is_said(model):
    with pytest.raises(UsageError, match="nothing to tell apart"):
        SegmenterSettings(1)
    with pytest.raises(UsageError, match="widths"):
        SegmenterSettings(widths=(6, 8))
    with pytest.raises(InputError, match="wrong shape"):
        model.labels(torch.zeros(2, 2, 8, 8, 8))
    with pytest.raises(InputError, match="common scale"):
        model.features(torch.full((2, 8, 8, 8), 900.0))
    with pytest.raises(InputError, match=r"sample 1: a label is wrong"):
        train_segmenter(
            [(torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 8, 8)),
             (torch.zeros(1, 8, 8, 8), torch.full((1, 8, 8, 8), 7.0))],
            SMALL, LoopSettings(iterations=2, batch_size=2), device="cpu", validation_share=0.0,
        )  # fmt: skip
    with pytest.raises(UsageError, match="nothing to train with"):
        train_segmenter([], SMALL)
