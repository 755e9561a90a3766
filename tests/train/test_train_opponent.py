"""Two networks against each other in one training: the steps, the warm-up, the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import TensorDataset
from two_ranks import with_an_opponent

from medpipe.errors import UsageError
from medpipe.train import LoopSettings, Opponent, train
from medpipe.train.samples import training_batches

SETTINGS = LoopSettings(
    iterations=9, batch_size=4, learning_rate=0.02, weight_decay=0.01, schedule="constant",
    clip_norm=None, validate_every=3, checkpoint_every=4, seed=5,
)  # fmt: skip


class Both(NamedTuple):
    """Predictions with something beside them, as a tokeniser has it."""

    values: Tensor
    penalty: Tensor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2))

    def forward(self, x):
        values = self.inside(x)
        return Both(values, values.square().mean())


def make(seed=0):
    torch.manual_seed(seed)
    return Net(), nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.LeakyReLU(), nn.Linear(6, 1))


def data():
    made = torch.Generator().manual_seed(2)
    x = torch.randn(10, 3, generator=made)
    return TensorDataset(x, torch.stack([x[:, 0] + 1, x[:, 1] * x[:, 2]], 1))


def against(network, predictions, targets):
    real, made = network(targets), network(predictions.values)
    return 0.5 * ((real - 1).square().mean() + made.square().mean())


def opposed(network, **how):
    return Opponent(network, against, learning_rate=0.05, **how)


def loss_with(opponent):
    def loss(predictions, targets):
        fit = (predictions.values - targets).square().mean() + 0.1 * predictions.penalty
        if opponent.weight:
            fooled = (opponent.judge(predictions.values) - 1).square().mean()
            fit = fit + 0.3 * opponent.weight * fooled
        return fit

    return loss


def bits(*modules):
    return [v.clone() for m in modules for v in m.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class StopError(Exception):
    pass


def stop_at(n):
    def tell(at):
        if at.iteration == n:
            raise StopError

    return tell


def by_hand(start, ramp):
    """Train both without the loop: what a reader of a paper on GANs would write."""
    net, other = make()
    for module in (net, other):
        module.train()
    mine = AdamW(net.parameters(), lr=0.02, weight_decay=0.01)
    theirs = AdamW(other.parameters(), lr=0.05, weight_decay=0.0, betas=(0.5, 0.999))
    torch.manual_seed(SETTINGS.seed)
    batches = training_batches(data(), start=0, stop=9, batch_size=4, seed=SETTINGS.seed)
    for n, (x, y) in enumerate(batches):
        made = net(x)
        loss = (made.values - y).square().mean() + 0.1 * made.penalty
        if n >= start:
            share = min(1.0, (n - start + 1) / (ramp + 1))
            loss = loss + 0.3 * share * (other(made.values) - 1).square().mean()
        mine.zero_grad()
        loss.backward()
        mine.step()
        if n >= start:
            theirs.zero_grad()
            real, fake = other(y), other(made.values.detach())
            (0.5 * ((real - 1).square().mean() + fake.square().mean())).backward()
            theirs.step()
    return net, other


@pytest.mark.parametrize(("start", "ramp"), [(0, 0), (4, 3)])
def test_both_make_the_steps_of_a_loop_written_by_hand(start, ramp):
    net, other = make()
    opponent = opposed(other, start=start, ramp=ramp)
    once = replace(SETTINGS, validate_every=9)  # the last weights are the only ones to choose
    train(net, loss_with(opponent), data(), once, opponent=opponent, device="cpu")
    truth, judge = by_hand(start, ramp)
    assert same(bits(other), bits(judge))
    assert same(bits(net), bits(truth))


@pytest.mark.parametrize("stop", [2, 7])
def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(tmp_path, stop):
    runs = []
    for _ in range(2):
        net, other = make()
        opponent = opposed(other, start=3, ramp=2)
        runs.append((net, other, opponent))
    net, other, opponent = runs[0]
    whole = train(net, loss_with(opponent), data(), SETTINGS, opponent=opponent, device="cpu")
    file = tmp_path / "run.pt"
    _, _, opponent = runs[1]
    with pytest.raises(StopError):
        train(
            runs[1][0], loss_with(opponent), data(), SETTINGS, opponent=opponent, device="cpu",
            checkpoint=file, progress=stop_at(stop),
        )  # fmt: skip
    assert file.is_file() == (stop > 4)
    net2, other2 = make(seed=0 if stop < 4 else 77)  # all of it comes from the checkpoint
    opponent = opposed(other2, start=3, ramp=2)
    result = train(
        net2, loss_with(opponent), data(), SETTINGS, opponent=opponent, device="cpu",
        checkpoint=file,
    )  # fmt: skip
    assert same(bits(net, other), bits(net2, other2))
    assert result.history == whole.history
    assert opponent.iteration == 9


def test_an_opponent_waits_and_its_weight_rises():
    net, other = make()
    before = bits(other)
    opponent = opposed(other, start=9)
    weights = []
    train(
        net, loss_with(opponent), data(), SETTINGS, opponent=opponent, device="cpu",
        progress=lambda _: weights.append(opponent.weight),
    )  # fmt: skip
    assert same(before, bits(other))
    assert weights == [0.0] * 8 + [1.0]  # after the last iteration, for the next one
    ramp = Opponent(other, against, start=2, ramp=3)
    seen = []
    for ramp.iteration in range(7):
        seen.append(ramp.weight)
    assert seen == [0, 0, 0.25, 0.5, 0.75, 1, 1]


def test_judging_leaves_no_gradient_in_the_opponent():
    net, other = make()
    opponent = opposed(other)
    made = net(torch.ones(4, 3))
    opponent.judge(made.values).sum().backward()
    assert all(p.grad is None for p in other.parameters())
    assert all(p.grad is not None for p in net.parameters())


def test_a_checkpoint_of_another_kind_of_run_is_named(tmp_path):
    net, other = make()
    opponent = opposed(other)
    file = tmp_path / "run.pt"
    how = {"device": "cpu", "checkpoint": file}
    train(
        net, loss_with(opponent), data(), SETTINGS, opponent=opponent, bound_to={"weight": 0.5},
        **how,
    )  # fmt: skip
    with pytest.raises(UsageError, match="other settings; got opponent, weight"):
        train(net, lambda p, t: (p.values - t).square().mean(), data(), SETTINGS, **how)
    with pytest.raises(UsageError, match="other settings; got weight"):
        train(
            net, loss_with(opponent), data(), SETTINGS, opponent=opponent,
            bound_to={"weight": 0.25}, **how,
        )  # fmt: skip
    for bad in ({"start": -1}, {"ramp": -1}):
        with pytest.raises(UsageError, match="settings of an opponent"):
            Opponent(other, against, **bad)


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one_on_both_sides(two):
    one, both = with_an_opponent(), two["with_an_opponent"]
    for side in ("net", "other"):
        for name, weights in one[side].items():
            assert torch.allclose(weights, both[side][name], atol=1e-6), name
