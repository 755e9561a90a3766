"""The network: its gradient reaches all of it, it learns a patch, and maps keep their grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpipe.centerline.distance import distance_transform
from medpipe.centerline.examples import TreePatches
from medpipe.centerline.maps import learned_maps, predict_maps
from medpipe.centerline.network import CenterlineNetwork, network_from, network_input
from medpipe.centerline.targets import maps_loss
from medpipe.centerline.training import (
    TrainingSettings,
    end_scores,
    train_centerline_maps,
)
from medpipe.errors import InputError, StepError, UsageError
from medpipe.models import load_weights, pack_weights

SMALL = (96, 96, 96)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CenterlineNetwork((4, 8, 8)).eval()


def test_the_input_is_the_mask_and_a_distance_below_one():
    depth = torch.tensor([0.0, 1.0, 4.0, 12.0, torch.inf]).reshape(1, 1, 5)
    mask, distance = network_input(depth)
    assert mask.ravel().tolist() == [0, 1, 1, 1, 1]
    assert distance.ravel().tolist() == pytest.approx([0, 0.2, 0.5, 0.75, 1.0])


def test_gradients_reach_every_weight():
    net = CenterlineNetwork()
    count = sum(p.numel() for p in net.parameters())
    assert 1e5 < count < 4e5
    x = torch.rand(2, 2, 32, 32, 32)
    target = torch.rand(2, 3, 32, 32, 32)
    out = net(x)
    assert out.shape == target.shape
    # before training the heat maps say hardly anything
    assert float(torch.sigmoid(out[:, 1:]).detach().mean()) < 0.1
    maps_loss(out, target).backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        if not ("conv.bias" in name and weight.grad.abs().max() < 1e-4):  # before a norm
            assert weight.grad.abs().max() > 0, name


def test_one_patch_is_learned():
    data = TreePatches(1, size=32, shape=SMALL)
    data.set_random_state(seed=1)
    inputs, targets = (t[None] for t in data[0])
    torch.manual_seed(0)
    net = CenterlineNetwork((4, 8, 16))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-2)
    for _ in range(90):
        optimizer.zero_grad()
        loss = maps_loss(net(inputs), targets)
        loss.backward()
        optimizer.step()
    maps = torch.sigmoid(net(inputs))[0].detach()
    inside = inputs[0, 0] > 0
    assert float((maps[0] - targets[0, 0])[inside].abs().mean()) < 0.2
    tips = targets[0, 1] >= 1
    assert float(maps[1][tips].min()) > 0.5
    assert float(maps[1][targets[0, 1] < 0.01].max()) < 0.3


def test_windows_without_vessels_are_not_computed(network):
    depth = torch.zeros(160, 64, 64)
    depth[20:40, 30:34, 30:34] = 1.0
    asked = []
    handle = network.register_forward_hook(lambda *_: asked.append(1))
    maps = predict_maps(network, depth)
    handle.remove()
    assert 0 < len(asked) < 4  # of the four windows that overlap by half
    assert torch.equal(
        maps[:, 140:], torch.tensor([1.0, 0, 0])[:, None, None, None].expand(3, 20, 64, 64)
    )
    assert (maps[0][depth <= 0] == 1).all()
    assert ((maps >= 0) & (maps <= 1)).all()


def test_a_small_volume_is_one_window(network):
    depth = torch.zeros(48, 48, 48)
    depth[10:30, 20:24, 20:24] = 1.0
    whole = torch.sigmoid(network(network_input(depth)[None]))[0].detach()
    maps = predict_maps(network, depth)
    assert maps.shape == (3, 48, 48, 48)
    core = (slice(None), slice(16, 26), slice(16, 28), slice(16, 28))
    assert torch.allclose(maps[1:][core], whole[1:][core], atol=1e-4)


def test_maps_lie_on_the_grid_of_the_mask(network):
    labels = torch.zeros(24, 40, 30, dtype=torch.uint8)
    labels[6:18, 10:14, 10:14] = 1
    labels[6:18, 26:30, 10:14] = 2
    maps = learned_maps(labels, np.diag([1.5, 0.5, 0.5, 1.0]), model=network)
    for each in (maps.q, maps.endpoint, maps.root):
        assert each.shape == labels.shape
        assert each.dtype == torch.float32
    assert (maps.q[labels == 0] == 1).all()
    assert maps.q[labels > 0].max() <= 1
    # each structure is looked at as if it were alone
    alone = learned_maps((labels == 1).int(), np.diag([1.5, 0.5, 0.5, 1.0]), model=network)
    assert torch.equal(alone.q[labels == 1], maps.q[labels == 1])
    empty = learned_maps(torch.zeros(5, 5, 5, dtype=torch.int16), np.eye(4), model=network)
    assert (empty.q == 1).all()
    assert not empty.endpoint.any()


def test_spacing_alone_does_not_matter(network):
    mask = torch.zeros(32, 32, 32, dtype=torch.bool)
    mask[6:26, 14:18, 14:18] = True
    one = learned_maps(mask, np.eye(4), model=network)
    half = learned_maps(mask, np.diag([-0.5, 0.5, 0.5, 1]), model=network)
    assert torch.equal(one.endpoint, half.endpoint)


def test_a_peak_between_two_slices_is_kept(network):
    """The maps of a mask with thick slices are the largest of the cubes in each voxel."""
    mask = torch.zeros(12, 32, 32, dtype=torch.bool)
    mask[3:9, 14:18, 14:18] = True
    maps = learned_maps(mask, np.diag([4.0, 1, 1, 1]), model=network)
    cubes = torch.nn.functional.interpolate(
        mask[None, None].float(), size=(48, 32, 32), mode="trilinear"
    )[0, 0]
    fine = predict_maps(network, distance_transform(cubes >= 0.5, 1.0))
    assert torch.allclose(maps.endpoint, fine[1].unflatten(0, (12, 4)).amax(1), atol=1e-6)


def test_training_runs_and_its_model_is_read_back(tmp_path):
    settings = TrainingSettings(
        iterations=6, batch_size=2, trees=2, tree_voxels=80, patch_voxels=16, validate_every=3,
        validation_trees=1, channels=(4, 8), ema_decay=0.5,
    )  # fmt: skip
    assert TrainingSettings.from_json(settings.to_json()) == settings
    content, history = train_centerline_maps(settings, device="cpu")
    assert [row["iteration"] for row in history] == [3, 6]
    assert train_centerline_maps(settings, device="cpu")[0] == content
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    tensors, facts = load_weights(file)
    assert facts["channels"] == [4, 8]
    mask = torch.zeros(20, 20, 20, dtype=torch.uint8)
    mask[4:16, 8:12, 8:12] = 1
    maps = learned_maps(mask, np.eye(4), model=file)
    again = learned_maps(mask, np.eye(4), model=network_from(tensors, facts))
    assert torch.equal(maps.endpoint, again.endpoint)
    scores = end_scores(network_from(tensors, facts), [TreePatches(1, shape=SMALL).sample(0)])
    assert scores["true"] == scores["matched"] + scores["missed"] > 0
    assert scores["found"] == scores["matched"] + scores["spurious"]


def test_what_is_wrong_is_said():
    with pytest.raises(InputError, match="not one of centerlines"):
        network_from({"a": torch.ones(1)}, {"channels": [4, 8]})
    with pytest.raises(InputError, match="not one of centerlines"):
        network_from({}, {})
    with pytest.raises(StepError, match="wrong axes"):
        learned_maps(torch.zeros(3, 3), np.eye(4), model=CenterlineNetwork((4, 8)))
    with pytest.raises(UsageError, match="no such model"):
        learned_maps(torch.ones(3, 3, 3), np.eye(4), model="nothing")
    with pytest.raises(UsageError):
        TrainingSettings(patch_voxels=20)
    with pytest.raises(UsageError, match="what to_json wrote"):
        TrainingSettings.from_json('{"speed": 1}')
    assert pack_weights({}, {})
