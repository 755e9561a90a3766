"""Warm-up of the learning rate, and what batches of another size change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from medpipe.errors import UsageError
from medpipe.train import LoopSettings, train


def rates(settings):
    x = torch.arange(6.0)[:, None]
    found = train(
        nn.Linear(1, 1), nn.functional.mse_loss, TensorDataset(x, x), settings, device="cpu"
    )
    return [row["learning_rate"] for row in found.history]


def test_a_warm_up_rises_in_a_line_and_the_cosine_follows():
    how = LoopSettings(
        iterations=12, batch_size=2, learning_rate=0.01, warmup=4, schedule="cosine",
        validate_every=1,
    )  # fmt: skip
    # a row holds the rate of the step that follows it
    want = [(n + 1) / 5 for n in range(1, 4)]
    want += [(1 + math.cos(math.pi * n / 8)) / 2 for n in range(9)]
    assert rates(how) == pytest.approx([0.01 * w for w in want], abs=1e-12)
    flat = LoopSettings(
        iterations=5, batch_size=2, learning_rate=0.01, warmup=2, schedule="constant",
        validate_every=1,
    )  # fmt: skip
    assert rates(flat) == pytest.approx([0.01 * 2 / 3, 0.01, 0.01, 0.01, 0.01])


def test_a_larger_batch_follows_the_published_rule():
    small = LoopSettings(
        iterations=4000, batch_size=8, learning_rate=1e-3, warmup=100, schedule="cosine",
        validate_every=200, checkpoint_every=200,
    )  # fmt: skip
    large = small.with_batch(128)
    k, samples = 16, 800
    assert large.learning_rate == pytest.approx(1e-3 * math.sqrt(k))

    def epochs(settings, iterations):
        return iterations * settings.batch_size / samples

    assert epochs(large, large.warmup) == pytest.approx(k * epochs(small, small.warmup))
    assert epochs(large, large.iterations) == epochs(small, small.iterations)
    assert epochs(large, large.validate_every) == pytest.approx(epochs(small, 200), rel=0.05)
    assert small.with_batch(8) == small
    assert small.with_batch(4).iterations == 8000


def test_what_cannot_be_is_said():
    with pytest.raises(UsageError, match="warmup is wrong"):
        LoopSettings(warmup=3)  # one-cycle has its own
    with pytest.raises(UsageError, match="warmup is wrong"):
        LoopSettings(iterations=3, warmup=3, schedule="constant")
    short = LoopSettings(iterations=100, batch_size=4, warmup=60, schedule="cosine")
    with pytest.raises(UsageError, match=r"too large for so short a training.*got 50"):
        short.with_batch(8)
    with pytest.raises(UsageError, match="batch_size is wrong"):
        short.with_batch(0)
