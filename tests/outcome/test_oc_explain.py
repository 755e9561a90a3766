"""Maps of where a network looked, against sums by hand, loops, and planted networks."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from oc_toy_models import CornerNetwork, members
from scipy import stats
from skimage.metrics import structural_similarity as reference_ssim
from torch import Tensor, nn
from torch.nn import functional

from medpipe.errors import UsageError
from medpipe.outcome.explain import (
    blood_overlap,
    grad_cam,
    occlusion_map,
    randomised_weights,
    spearman,
    structural_similarity,
)

SHAPE = (24, 28, 20)
LARGE = (36, 40, 36)
"""Leaves 2 × 2 × 2 features of the last layer."""


def odds(outputs: Tensor) -> Tensor:
    return outputs[:, 1] - outputs[:, 0]


def by_hand(network: nn.Module, x: Tensor) -> Tensor:
    """Return the gradient-weighted sum of the last features, from hooks of torch alone."""
    own = copy.deepcopy(network)
    seen: dict[str, Tensor] = {}
    layer = own.get_submodule("class_layers.relu")
    layer.inplace = False

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        seen["features"] = output

    layer.register_forward_hook(keep)
    odds(own(x)).sum().backward()
    features = seen["features"]
    weights = features.grad.mean((2, 3, 4), keepdim=True)
    return functional.relu((weights * features).sum(1, keepdim=True)).detach()


def test_grad_cam_is_the_sum_of_features_weighted_by_their_gradients() -> None:
    x = torch.rand(1, 3, *LARGE, generator=torch.Generator().manual_seed(1))
    # of weights that were never trained, some have no map for the outcome
    networks = [n for n in members(6) if float(by_hand(n, x).max()) > 0][:2]
    hands = [by_hand(n, x) for n in networks]
    assert len(hands) == 2
    grown = [
        functional.interpolate(h, size=LARGE, mode="trilinear", align_corners=False)[0, 0]
        for h in hands
    ]
    want = sum(g / g.max() for g in grown) / 2
    before = {n: v.clone() for n, v in networks[0].state_dict().items()}
    found = grad_cam(networks, x, odds)
    assert torch.allclose(found.values, want / want.max(), atol=1e-5)
    assert found.values.dtype == torch.float32
    assert math.isclose(found.largest, float(want.max()), rel_tol=1e-4)
    assert found.empty == ()
    # the networks are left as they were: no hooks, no gradients, same weights
    for network in networks:
        assert not any(m._forward_hooks or m._backward_hooks for m in network.modules())
        assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(v, networks[0].state_dict()[n]) for n, v in before.items())


def test_grad_cam_works_in_two_dimensions_and_where_gradients_are_off() -> None:
    from medpipe.outcome.network import OutcomeNetworkSettings, outcome_network

    torch.manual_seed(0)
    flat = outcome_network(OutcomeNetworkSettings(spatial_dims=2, architecture="small")).eval()
    flat.requires_grad_(False)
    with torch.no_grad():
        found = grad_cam([flat], torch.rand(1, 3, 40, 32), odds)
    assert found.values.shape == (40, 32)
    assert not any(p.requires_grad for p in flat.parameters())


def test_a_network_that_looks_at_a_corner_has_its_map_there() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, *SHAPE)
    values = grad_cam([CornerNetwork(SHAPE)], x, odds).values
    assert float(values.max()) == 1
    corner = torch.zeros(SHAPE, dtype=torch.bool)
    corner[:10, :10, :10] = True  # 8 voxels and the slope of the interpolation
    assert float(values[~corner].max()) == 0
    assert float(values[:8, :8, :8].sum() / values.sum()) > 0.8


def test_an_empty_map_is_empty_and_not_noise() -> None:
    """Features that speak against the outcome everywhere have no map for it."""
    network = CornerNetwork(SHAPE)
    with torch.no_grad():
        network.class_layers.out.weight.neg_()
    x = torch.rand(1, 3, *SHAPE)
    found = grad_cam([network], x, odds)
    assert found.empty == (0,)
    assert found.largest == 0
    assert not bool(found.values.any())
    both = grad_cam([network, CornerNetwork(SHAPE)], x, odds)
    assert both.empty == (0,)
    assert float(both.values.max()) == 1
    assert both.largest == pytest.approx(0.5)


def test_one_logit_alone_could_be_empty_where_the_odds_are_not() -> None:
    """Both logits fall with the features, the one against the outcome faster."""
    network = CornerNetwork(SHAPE)
    with torch.no_grad():
        network.class_layers.out.weight[0] = -2
        network.class_layers.out.weight[1] = -1
    x = torch.rand(1, 3, *SHAPE)
    assert float(grad_cam([network], x, odds).values.max()) == 1
    assert grad_cam([network], x, lambda o: o[:, 1]).empty == (0,)


class NoWayBack(torch.autograd.Function):
    """What it is given, with a gradient that must not be asked for."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_context: Any, *_gradients: Tensor) -> Tensor:
        raise AssertionError("the gradient went back through the features")


def test_no_gradient_goes_back_through_the_features() -> None:
    """Their graph would hold every activation of a network, gigabytes of DenseNet-121."""

    class Forward(CornerNetwork):
        def forward(self, x: Tensor) -> Tensor:
            features = self.features(x)
            assert not features.requires_grad
            return self.class_layers(NoWayBack.apply(features) * self.mask)

    torch.manual_seed(0)
    own, plain = Forward(SHAPE), CornerNetwork(SHAPE)
    plain.load_state_dict(own.state_dict())
    x = torch.rand(1, 3, *SHAPE)
    want = functional.interpolate(by_hand(plain, x), size=SHAPE, mode="trilinear")[0, 0]
    found = grad_cam([own], x, odds)
    assert torch.allclose(found.values, want / want.max(), atol=1e-5)


def test_a_layer_that_is_not_there_is_said() -> None:
    with pytest.raises(UsageError, match="no such layer"):
        grad_cam(members(1), torch.rand(1, 3, *SHAPE), odds, target_layer="nowhere")


def toy_probability(volumes: Tensor) -> Tensor:
    """A network of one weight per voxel, with a bend."""
    weights = torch.linspace(-1, 1, volumes[0].numel()).sin().reshape(volumes.shape[1:])
    return torch.sigmoid((volumes * weights).tanh().flatten(1).sum(1) / 5)


@pytest.mark.parametrize("batch", [1, 3])
def test_occlusion_is_a_loop_over_boxes(batch: int) -> None:
    generator = torch.Generator().manual_seed(2)
    hu = torch.randn(1, 7, 6, 5, generator=generator)
    within = torch.rand(1, 7, 6, 5, generator=generator) > 0.5
    within[:, :3, :2, :3] = False
    box, stride, fill = (3, 2, 3), (2, 2, 3), 0.25
    total, count = np.zeros((7, 6, 5)), np.zeros((7, 6, 5))
    base = float(toy_probability(hu[None])[0])
    for i in (0, 2, 4):
        for j in (0, 2, 4):
            for k in (0, 2):
                own = hu.clone()
                hidden = 0
                for a in range(i, i + 3):
                    for b in range(j, j + 2):
                        for c in range(k, k + 3):
                            if within[0, a, b, c]:
                                own[0, a, b, c] = fill
                                hidden += 1
                if hidden:
                    drop = base - float(toy_probability(own[None])[0])
                    total[i : i + 3, j : j + 2, k : k + 3] += drop
                    count[i : i + 3, j : j + 2, k : k + 3] += 1
    want = np.maximum(total / np.maximum(count, 1), 0) * within[0].numpy()
    found = occlusion_map(
        toy_probability, hu, within, box_voxels=box, stride_voxels=stride, fill=fill, batch=batch
    )
    assert found.largest == pytest.approx(want.max(), rel=1e-5)
    assert np.allclose(found.values.numpy(), want / want.max(), atol=1e-5)
    assert count[0, 0, 0] == 0  # a box without head is not asked


def test_occlusion_finds_the_corner_that_is_looked_at() -> None:
    def probability(volumes: Tensor) -> Tensor:
        return torch.sigmoid(volumes[:, 0, :4, :4, :4].mean((1, 2, 3)) / 10)

    hu = torch.full((1, 12, 12, 12), 60.0)
    asked = []

    def counted(volumes: Tensor) -> Tensor:
        asked.append(len(volumes))
        return probability(volumes)

    everywhere = torch.ones(1, 12, 12, 12, dtype=torch.bool)
    found = occlusion_map(
        counted, hu, everywhere, box_voxels=(4, 4, 4), stride_voxels=(4, 4, 4), batch=4
    )
    want = torch.zeros(12, 12, 12)
    want[:4, :4, :4] = 1
    assert torch.equal(found.values, want)
    assert sum(asked) == 28  # 27 boxes and the volume as it is
    drop = 1 / (1 + math.exp(-6)) - 1 / (1 + math.exp(-3.5))
    assert found.largest == pytest.approx(drop, rel=1e-5)
    blank = occlusion_map(
        lambda v: torch.zeros(len(v)), hu, everywhere, box_voxels=[4] * 3, stride_voxels=[4] * 3
    )
    assert blank.empty == (0,)
    assert not bool(blank.values.any())
    for box, stride in (((0, 4, 4), (4, 4, 4)), ((4, 4, 4), (5, 4, 4)), ((4, 4, 4), (0, 1, 1))):
        with pytest.raises(UsageError, match="boxes of occlusion"):
            occlusion_map(probability, hu, everywhere, box_voxels=box, stride_voxels=stride)


def test_random_weights_change_a_map_that_depends_on_them() -> None:
    x = torch.rand(1, 3, *LARGE, generator=torch.Generator().manual_seed(3))
    network = next(n for n in members(6) if float(by_hand(n, x).max()) > 0)

    def explain(one: nn.Module) -> Tensor:
        return grad_cam([one], x, odds).values

    before = {n: v.clone() for n, v in network.state_dict().items()}
    state = torch.get_rng_state()
    rows = randomised_weights(network, explain, stages=3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, network.state_dict()[n]) for n, v in before.items())
    total = sum(1 for m in network.modules() if hasattr(m, "reset_parameters"))
    assert [row["layers"] for row in rows] == [1, total // 2, total]
    assert all(row["of"] == total for row in rows)
    compared = [row for row in rows if not row["empty"]]
    assert len(compared) >= 2
    for row in compared:
        assert abs(row["rank_correlation"]) < 0.95
        assert row["ssim"] < 0.95
    assert all(row["rank_correlation"] is None for row in rows if row["empty"])
    assert rows == randomised_weights(network, explain, stages=3)
    assert randomised_weights(network, explain, stages=1)[0]["layers"] == total
    # the first stage is what comes of new weights in the last layer alone
    own = copy.deepcopy(network)
    torch.manual_seed(0)
    own.class_layers.out.reset_parameters()
    want = spearman(explain(network), explain(own))
    assert rows[0]["rank_correlation"] == pytest.approx(want, abs=1e-9)


def test_a_map_that_is_the_picture_itself_fails_the_check() -> None:
    x = torch.rand(8, 8, 8)
    rows = randomised_weights(members(1)[0], lambda _: x, stages=2)
    assert [row["rank_correlation"] for row in rows] == pytest.approx([1, 1])
    assert [row["ssim"] for row in rows] == pytest.approx([1, 1])
    nothing = randomised_weights(members(1)[0], lambda _: torch.zeros(4, 4, 4), stages=1)[0]
    assert nothing["rank_correlation"] is None
    assert nothing["ssim"] is None
    assert nothing["empty"] is True


def test_correlation_and_similarity_are_those_of_the_references() -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = torch.rand(2, 15, 14, 13, generator=generator)
    a, b = (a * 12).round() / 12, (0.5 * a + 0.5 * b).clamp(0, 1)  # ties in one
    want = stats.spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic
    assert spearman(a, b) == pytest.approx(want, abs=1e-9)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, torch.ones_like(a)) is None
    # the reference crops what its window reaches beyond the edges, as an unpadded one does
    want = reference_ssim(
        a.numpy(), b.numpy(), data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, win_size=11,
    )  # fmt: skip
    assert structural_similarity(a, b) == pytest.approx(want, abs=2e-3)
    assert structural_similarity(a, a) == pytest.approx(1, abs=1e-6)
    assert structural_similarity(torch.zeros(4, 4, 4), a[:4, :4, :4]) is None


def test_shares_of_blood_are_counted_within_the_head() -> None:
    hu = torch.full((4, 5, 6), 30.0)
    head = torch.zeros(4, 5, 6, dtype=torch.uint8)
    head[1:] = 1  # 90 voxels
    hu[1, 0, :3] = torch.tensor([45.0, 60.0, 90.0])
    hu[1, 1, :2] = torch.tensor([44.9, 90.1])
    hu[0] = 60.0  # outside the head
    values = torch.zeros(4, 5, 6)
    values[1, 0, 1] = 3.0
    values[2, 2, 2] = 1.0
    values[0] = 100.0
    found = blood_overlap(values, hu, head)
    assert found["energy_share"] == pytest.approx(0.75)
    assert found["volume_share"] == pytest.approx(3 / 90)
    assert found["ratio"] == pytest.approx(22.5)
    nothing = blood_overlap(torch.zeros(4, 5, 6), hu, head)
    assert nothing["energy_share"] is None
    assert nothing["ratio"] is None
    assert blood_overlap(values, hu, head * 0)["volume_share"] is None
