"""Networks of outcomes: what they are, frozen encoders, weights from elsewhere."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
from monai.networks.nets.densenet import DenseNet121
from safetensors.torch import save_file
from torch import nn

from medpipe.errors import InputError, UsageError
from medpipe.outcome.network import (
    TARGET_LAYER,
    OutcomeNetworkSettings,
    inflate_2d,
    load_encoder,
    outcome_network,
)


def network(dims=3, architecture="small", seed=0, **how):
    """A network with statistics that are not those of an unused one."""
    torch.manual_seed(seed)
    net = outcome_network(
        OutcomeNetworkSettings(spatial_dims=dims, architecture=architecture, **how)
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return net.eval()


def old_names(state, dotted):
    """Names as torchvision writes them: no ``layers``, a classifier of 1000 classes."""
    middle = r"\1.\2.\3." if dotted else r"\1.\2\3."
    out = {
        re.sub(r"(denselayer\d+)\.layers\.(norm|conv)([12])\.", middle, name): value
        for name, value in state.items()
        if name.startswith("features.")
    }
    return out | {"classifier.weight": torch.zeros(1000, 8), "classifier.bias": torch.zeros(1000)}


def pads_by_repeating(net):
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.padding_mode = "replicate"


@pytest.mark.parametrize("dims", [2, 3])
def test_the_large_network_is_the_densenet_121_of_monai(dims):
    net = outcome_network(OutcomeNetworkSettings(spatial_dims=dims))
    theirs = DenseNet121(dims, 3, 2)
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    theirs.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, *[32] * dims)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), theirs.eval()(x))
    assert dict(net.named_modules())[TARGET_LAYER] is net.head.relu
    if dims == 3:
        assert 11.2e6 < sum(p.numel() for p in net.parameters()) < 11.4e6


@pytest.mark.parametrize("dims", [2, 3])
def test_the_small_network_has_a_hundredth_of_the_weights(dims):
    net = network(dims, outputs=5, channels=2)
    assert sum(p.numel() for p in net.parameters()) < 0.011 * 11.3e6
    assert net(torch.rand(2, 2, *[16] * dims)).shape == (2, 5)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_local_network_sees_ten_voxels_and_counts_anywhere(dims):
    net = network(dims, "local").eval()
    features = net.encoder(torch.rand(1, 3, *[32] * dims))
    assert features.shape[2:] == (16,) * dims
    x = torch.rand(1, 3, *[32] * dims, requires_grad=True)
    net.encoder(x)[(0, slice(None), *[8] * dims)].sum().backward()
    seen = torch.nonzero(x.grad[0].abs().sum(0))
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [10] * dims
    # what is counted has one scale after training, however rare it is
    net.train()
    norm = net.head.norm
    with torch.no_grad():
        for _ in range(700):  # what it began with is forgotten by then: 0.98 ** 700
            net(torch.rand(8, 3, *[4] * dims))
        counted = []
        net.eval().head.norm.register_forward_hook(lambda _, __, out: counted.append(out))
        net(torch.rand(256, 3, *[4] * dims))
    assert norm.num_batches_tracked == 700
    assert torch.allclose(counted[0].std(0), torch.ones(16), atol=0.3)
    assert torch.allclose(counted[0].mean(0), torch.zeros(16), atol=0.4)


@pytest.mark.parametrize("architecture", ["small", "local", "densenet121"])
def test_the_extent_of_the_features_is_foreseen(architecture):
    net = network(2, architecture)
    for n in (net.least_voxels, 30, 33, 47):
        shape = (n, 64)
        assert tuple(net.encoder(torch.rand(1, 3, *shape)).shape[2:]) == net.last_voxels(shape)
    assert net.last_voxels((net.least_voxels - 1, 64))[0] == 0
    with pytest.raises(RuntimeError):
        net(torch.rand(1, 3, net.least_voxels - 1, 64))


def test_a_frozen_encoder_learns_nothing_and_keeps_its_statistics():
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.freeze_encoder()
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), 0.1)
    net(torch.rand(2, 3, 16, 16, 16)).square().sum().backward()
    optimizer.step()
    changed = [k for k, v in net.state_dict().items() if not torch.equal(v, before[k])]
    assert sorted(changed) == ["class_layers.out.bias", "class_layers.out.weight"]
    net.freeze_encoder(False)
    assert net.training
    net(torch.rand(2, 3, 16, 16, 16)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not torch.equal(net.features.norm0.running_mean, before["features.norm0.running_mean"])


@pytest.mark.parametrize(
    ("architecture", "dotted"),
    [("small", False), ("small", True), ("local", False), ("densenet121", False)],
)
def test_a_volume_constant_in_depth_gives_the_features_of_the_picture(architecture, dotted):
    flat, deep = network(2, architecture, seed=1), network(3, architecture, seed=2)
    head = {k: v.clone() for k, v in deep.state_dict().items() if k.startswith("class_layers")}
    told = inflate_2d(old_names(flat.state_dict(), dotted), deep)
    assert told.missing == ()
    assert set(told.unused) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(v, deep.state_dict()[k]) for k, v in head.items())
    # zeros beyond the ends of the axis are no part of a volume that is constant along it
    pads_by_repeating(flat)
    pads_by_repeating(deep)
    picture = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        wanted = flat.features(picture)
        got = deep.features(picture.unsqueeze(-1).expand(-1, -1, -1, -1, 35).contiguous())
    scale = float(wanted.abs().max())
    assert scale > 0.1
    assert float((got - wanted.unsqueeze(-1)).abs().max()) < 2e-5 * scale
    deep.head.out.load_state_dict(flat.head.out.state_dict())
    with torch.no_grad():
        pooled = deep(picture.unsqueeze(-1).expand(-1, -1, -1, -1, 35))
        assert torch.allclose(pooled, flat(picture), rtol=1e-4, atol=1e-5)


def test_the_stock_network_agrees_away_from_the_padded_ends():
    flat, deep = network(2, seed=1), network(3, seed=2)
    inflate_2d(flat.state_dict(), deep)
    picture = torch.rand(1, 3, 20, 20)
    with torch.no_grad():
        wanted = flat.features.conv0(picture)
        got = deep.features.conv0(picture.unsqueeze(-1).repeat(1, 1, 1, 1, 20))
    assert torch.allclose(got[..., 2:-2], wanted.unsqueeze(-1).expand_as(got[..., 2:-2]), atol=1e-5)
    assert not torch.allclose(got[..., 0], wanted, atol=1e-2)


def test_three_colours_become_one_grey():
    colours, grey = network(2, seed=1), network(2, seed=2, channels=1)
    assert inflate_2d(colours.state_dict(), grey).missing == ()
    x = torch.rand(2, 1, 24, 24)
    with torch.no_grad():
        assert torch.allclose(grey.features(x), colours.features(x.repeat(1, 3, 1, 1)), atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "module.features.", "student.backbone.", "encoder."])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_an_encoder_is_read_from_a_file_whatever_its_prefix(tmp_path, prefix, kind):
    source, net = network(seed=3), network(seed=4)
    state = {prefix + k: v.clone() for k, v in source.features.state_dict().items()}
    state["projector.weight"] = torch.ones(3)
    file = tmp_path / f"encoder.{kind}"
    if kind == "pth":
        torch.save({"epoch": 3, "state_dict": state}, file)
    else:
        save_file(state, file)
    told = load_encoder(net, file)
    assert told.missing == ()
    assert told.unused == ("projector.weight",)
    assert len(told.matched) == len(source.features.state_dict())
    assert (
        str(told) == f"{len(told.matched)} of {len(told.matched)} tensors of the encoder, 1 unused"
    )
    x = torch.rand(1, 3, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(net.features(x), source.features(x))


def test_what_did_not_match_is_told(tmp_path):
    source, net = network(seed=3), network(seed=4)
    state = dict(source.features.state_dict())
    kept = net.features.norm5.weight.detach().clone()
    del state["norm5.weight"]
    state["norm5.bias"] = torch.zeros(2)
    save_file(state, tmp_path / "part.safetensors")
    told = load_encoder(net, tmp_path / "part.safetensors")
    assert set(told.missing) == {"features.norm5.weight", "features.norm5.bias"}
    assert told.unused == ("norm5.bias",)
    assert torch.equal(net.features.norm5.weight, kept)


class Trap:
    def __reduce__(self):
        return (exit, (3,))


def test_files_that_cannot_be_used_are_refused(tmp_path):
    net = network()
    with pytest.raises(UsageError, match="no such file"):
        load_encoder(net, tmp_path / "absent.pth")
    other = tmp_path / "other.safetensors"
    save_file({"layer1.0.conv1.weight": torch.zeros(3)}, other)
    with pytest.raises(InputError, match=r"other.safetensors: the weights are of another network"):
        load_encoder(net, other)
    save_file(dict(network(3, "densenet121").state_dict()), other)
    with pytest.raises(InputError, match="another network"):
        load_encoder(net, other)
    for content in (b"", b"junk" * 100, pickle.dumps(Trap())):
        file = tmp_path / "bad.pth"
        file.write_bytes(content)
        with pytest.raises(InputError, match="not a file of weights"):
            load_encoder(net, file)
    torch.save(Trap(), tmp_path / "trap.pth")
    with pytest.raises(InputError, match="not a file of weights"):
        load_encoder(net, tmp_path / "trap.pth")
    bad = {k: v * float("nan") for k, v in net.state_dict().items() if v.is_floating_point()}
    with pytest.raises(InputError, match="another network"):
        inflate_2d(bad, net)


def test_wrong_settings_are_refused():
    for bad in (
        {"architecture": "resnet"}, {"spatial_dims": 4}, {"channels": 0}, {"outputs": 0},
        {"dropout": 1.0},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            OutcomeNetworkSettings(**bad)
