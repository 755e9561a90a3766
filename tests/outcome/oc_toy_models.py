"""Small models of outcomes for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medpipe.outcome.bundle import OutcomeFacts, write_bundle
from medpipe.outcome.network import OutcomeNetwork, OutcomeNetworkSettings, outcome_network

SIZE = (24, 28, 24)
FACTS = OutcomeFacts(
    name="tiny",
    outcome="death within 90 days",
    network={
        "spatial_dims": 3, "channels": 3, "outputs": 2, "architecture": "small", "dropout": 0.0,
    },
    preset="windows",
    spacing_mm=(8.0, 8.0, 8.0),
    size_voxels=SIZE,
    recalibration={
        "kind": "platt",
        "intercept": -0.5,
        "slope": 0.8,
        "covariance": [0.04, 0.0, 0.02],
        "n": 200,
        "events": 58,
    },
    threshold=0.3,
    threshold_rule="sensitivity 0.9 out of fold",
    calibration=(
        {"from": 0.1, "to": 0.4, "n": 40, "events": 8, "share": 0.2, "low": 0.1, "high": 0.35},
        {"from": 0.4, "to": 0.9, "n": 40, "events": 24, "share": 0.6, "low": 0.45, "high": 0.74},
    ),
    simulated=True,
    demonstration=True,
    training={"n": 200, "events": 58},
)  # fmt: skip


def members(count: int = 2) -> list[OutcomeNetwork]:
    """Return networks with weights of their own, ready to be asked."""
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(outcome_network(OutcomeNetworkSettings(architecture="small")).eval())
    return made


def written(folder: Path, facts: OutcomeFacts = FACTS, models: Sequence[Any] = ()) -> Path:
    """Write a bundle and return its folder."""
    write_bundle(folder, models or members(), facts)
    return folder


class CornerNetwork(nn.Module):
    """Looks at one corner: features are multiplied by a mask that is 0 everywhere else."""

    def __init__(self, shape: Sequence[int], channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Conv3d(channels, 4, 4, stride=4, bias=False)
        mask = torch.zeros(1, 1, *[n // 4 for n in shape])
        mask[..., :2, :2, :2] = 1
        self.register_buffer("mask", mask)
        self.class_layers = nn.Sequential()
        self.class_layers.add_module("relu", nn.ReLU(inplace=True))
        self.class_layers.add_module("pool", nn.AdaptiveAvgPool3d(1))
        self.class_layers.add_module("flatten", nn.Flatten(1))
        self.class_layers.add_module("out", nn.Linear(4, 2))
        with torch.no_grad():
            self.features.weight.abs_()
            self.class_layers.out.weight[0] = -1
            self.class_layers.out.weight[1] = 1

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 2)."""
        return self.class_layers(self.features(x) * self.mask)
