"""Steps of learned maps: their weights are part of what a result is, and training repeats."""

from __future__ import annotations

import hashlib
import json
import logging
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.centerline.maps import learned_maps
from medpipe.centerline.network import CenterlineNetwork
from medpipe.centerline.training import TrainingSettings, train_centerline_maps
from medpipe.centerline.transforms.extract import Centerline, Centerlined
from medpipe.centerline.transforms.learned import (
    CenterlineMaps,
    CenterlineMapsd,
    TrainCenterline,
    TrainCenterlined,
    TrainingCurve,
    TrainingTable,
)
from medpipe.centerline.tree import CenterlineTree
from medpipe.engine.steps import StepRunner
from medpipe.errors import InputError, MedpipeError, StepError, UsageError
from medpipe.models import MODELS, PackagedModel, pack_weights, unpack_weights
from medpipe.models import registry as models
from medpipe.phantoms.vessel_folder import write_vessel_folder
from medpipe.phantoms.vessel_tree import small_tree
from medpipe.workflow.compiled import step_keys
from medpipe.workflow.plan import compile_workflow

TINY: dict[str, Any] = {
    "iterations": 4, "batch_size": 2, "patch_voxels": 16, "channels": [4, 8], "ema_decay": 0.5,
}  # fmt: skip


def tiny_model(seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    network = CenterlineNetwork((4, 8))
    return pack_weights(network.state_dict(), {"channels": [4, 8]})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    path.write_bytes(tiny_model())
    return path


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    write_vessel_folder(folder, cases=3, size=40)
    return folder


@pytest.fixture(scope="module")
def model(examples: Path) -> bytes:
    return TrainCenterline(**TINY).set_random_state(seed=3)(str(examples))


def mask_image(spacing: tuple[float, float, float] = (0.7, 0.7, 0.7)) -> MetaTensor:
    data = torch.zeros(1, 24, 20, 30)
    data[0, 8:13, 7:12, 3:27] = 1
    data[0, 8:13, 14:18, 5:20] = 2
    return MetaTensor(data, affine=torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)))


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 0.7), (1.4, 0.7, 0.7)])
def test_the_step_gives_the_maps_on_the_grid_of_the_mask(
    weights: Path, spacing: tuple[float, float, float]
) -> None:
    image = mask_image(spacing)
    made = CenterlineMapsd(["maps"], weights=str(weights))({"maps": image, "other": 1})
    maps = made["maps"]
    assert made["other"] == 1
    assert maps.shape == (3, 24, 20, 30)
    assert maps.dtype == torch.float32
    assert torch.equal(maps.affine, image.affine)
    assert maps.meta["medpipe"]["source"]["maps"] == ["q", "endpoint", "root"]
    want = learned_maps(image.as_tensor()[0].to(torch.uint8), image.affine, model=weights)
    for channel, each in zip(maps.as_tensor(), (want.q, want.endpoint, want.root), strict=True):
        assert torch.equal(channel, each)


def test_a_tree_from_the_step_is_one_from_the_weights(weights: Path) -> None:
    """Through the maps of one step or within one step, ends are those of the same network."""
    phantom = small_tree(3)
    mask = MetaTensor(torch.from_numpy(phantom.mask)[None].float(), affine=phantom.affine)
    maps = CenterlineMaps(str(weights))(mask)
    data = {"tree": mask, "maps": maps}
    one = Centerlined(["tree"], maps="maps", endpoints="learned")(data)["tree"]
    assert one == Centerline(endpoints="learned", weights=str(weights))(mask)
    tree = CenterlineTree.from_json(one)
    assert tree.facts["settings"]["endpoints"] == "learned"
    # the map decides which ends of the mask are ends
    plain = CenterlineTree.from_json(Centerline()(mask))
    assert len(plain.leaves) > 1
    voxel = tuple(plain.voxels[plain.leaves[0]])
    loud = maps.clone()
    loud[1:] = 0
    loud[(1, *voxel)] = 1
    only = Centerlined(["tree"], maps="maps", endpoints="learned")({"tree": mask, "maps": loud})
    found = CenterlineTree.from_json(only["tree"])
    assert len(found.leaves) == 1
    assert np.abs(found.voxels[found.leaves[0]] - np.array(voxel)).max() <= 3


def test_the_digest_of_packaged_weights_is_part_of_the_key(
    monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    keys = []
    for digest in (None, "a" * 64, "b" * 64):
        monkeypatch.delitem(MODELS, "centerline", raising=False)
        if digest:
            monkeypatch.setitem(MODELS, "centerline", PackagedModel("c.safetensors", digest))
        compiled = compile_workflow("centerline-learned")
        step = next(s for s in compiled.steps if s.use == "centerline_maps")
        assert dict(step.files) == ({"weights": digest} if digest else {})
        assert step.arguments()["weights"] == "centerline"
        inputs = dict.fromkeys(compiled.inputs, "0")
        at = compiled.steps.index(step)
        keys.append(step_keys(compiled, inputs, {})[at])
    assert len(set(keys)) == 3
    own = compile_workflow("centerline-learned", [f"centerline_maps.weights={weights}"])
    step = next(s for s in own.steps if s.use == "centerline_maps")
    assert step.files["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert step.arguments()["weights"] == str(weights)


def test_a_packaged_name_is_read_and_an_absent_one_said(
    monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    content = weights.read_bytes()
    pinned = PackagedModel(weights.name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(models, "FOLDER", weights.parent)
    monkeypatch.setitem(MODELS, "centerline", pinned)
    image = mask_image()
    assert torch.equal(CenterlineMaps()(image), CenterlineMaps(str(weights))(image))
    monkeypatch.delitem(MODELS, "centerline")
    for step in (CenterlineMaps(), Centerline(endpoints="learned")):
        with pytest.raises(UsageError, match="no such model") as caught:
            step(image)
        assert "\n" not in str(caught.value)
    # nothing learned is touched where it is not asked for
    assert CenterlineTree.from_json(Centerline()(image))


def test_masks_and_settings_that_cannot_be_used(weights: Path) -> None:
    with pytest.raises(UsageError, match="overlap"):
        CenterlineMaps(overlap=1.0)
    with pytest.raises(StepError, match="empty"):
        CenterlineMaps(str(weights))(mask_image() * 0)
    with pytest.raises(StepError, match="use threshold first"):
        CenterlineMaps(str(weights))(mask_image() * 0.4)
    for wrong in ({"iterations": 0}, {"patch_voxels": 8}, {"validation_trees": 0}):
        with pytest.raises(UsageError):
            TrainCenterline(**(TINY | wrong))


def test_a_training_repeats_with_its_seed_and_only_then(examples: Path, model: bytes) -> None:
    step = TrainCenterlined(["model"], **TINY)
    step.set_random_state(seed=3)
    step.set_device(torch.device("cpu"))
    assert step({"model": str(examples)})["model"] == model
    step.set_random_state(seed=4)
    other = step({"model": str(examples)})["model"]
    ours, theirs = unpack_weights(model)[0], unpack_weights(other)[0]
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_header_of_a_model_says_how_it_was_trained(model: bytes) -> None:
    _, facts = unpack_weights(model)
    facts = json.loads(json.dumps(facts))
    assert facts["examples"] == {"trained": 2, "held_out": 1}
    # a validation at every tenth of the iterations, or at each where there are fewer
    assert [row["iteration"] for row in facts["history"]] == [1, 2, 3, 4]
    assert facts["loss"] == min(row["metric"] for row in facts["history"])
    table = TrainingTable()(model)
    assert table["best_loss"] == facts["loss"]
    assert table["ends_true"] == facts["ends"]["matched"] + facts["ends"]["missed"] > 0
    assert (table["iterations"], table["channels"], table["generated_trees"]) == (4, "4-8", 0)
    root = ET.fromstring(TrainingCurve()(model))  # noqa: S314 - our own document
    curves = [e for e in root.iter() if e.tag.endswith("path")]
    assert len(curves) == 2
    assert all(e.attrib["d"].count("L") == 3 for e in curves)


def test_the_last_examples_validate_and_are_not_trained_with(examples: Path) -> None:
    from medpipe.centerline.example_files import read_examples

    a, b, c = read_examples(examples)
    settings = TrainingSettings(**TINY, trees=0, validation_trees=1, validate_every=4)
    weights = [
        unpack_weights(train_centerline_maps(settings, samples=s, device="cpu")[0])
        for s in ([a, b, c], [a, b, a])
    ]
    first, second = (w[0] for w in weights)
    assert all(torch.equal(first[n], second[n]) for n in first)  # what trains is the same
    assert weights[0][1]["history"][-1]["metric"] != weights[1][1]["history"][-1]["metric"]
    more = TrainingSettings(**TINY, trees=1, tree_voxels=80, validation_trees=1, validate_every=4)
    facts = unpack_weights(train_centerline_maps(more, samples=[a], device="cpu")[0])[1]
    assert facts["examples"] == {"trained": 1, "held_out": 0}


def test_what_is_no_folder_of_examples_or_no_trained_model(tmp_path: Path, model: bytes) -> None:
    with pytest.raises(StepError, match="needs examples"):
        TrainCenterline(**TINY)(mask_image())
    with pytest.raises(MedpipeError, match="no example"):
        TrainCenterline(**TINY)(tmp_path)
    write_vessel_folder(tmp_path, cases=1, size=40)
    with pytest.raises(UsageError, match="too few examples"):
        TrainCenterline(**TINY)(tmp_path)
    for step in (TrainingCurve(), TrainingTable()):
        with pytest.raises(StepError, match="needs a model"):
            step({"a": 1})
        with pytest.raises(InputError, match="does not say how"):
            step(tiny_model())
        with pytest.raises(InputError, match="damaged"):
            step(model[:50])


def test_the_user_is_told_how_many_examples_there_are(
    examples: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "medpipe.notice"):
        TrainCenterline(**(TINY | {"iterations": 1}))(examples)
    assert "3 examples to train with" in caplog.messages


def test_a_run_decides_where_a_training_runs() -> None:
    (step, *_) = compile_workflow("centerline-train").steps
    made = StepRunner("cpu")._transform(step, ("model",))
    assert isinstance(made, TrainCenterlined)
    assert made.step.device == torch.device("cpu")
