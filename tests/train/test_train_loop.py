"""The training loop: it learns, continues with the same bits, stops early, and shares batches."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandGaussianNoise, Randomizable
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from two_ranks import least_squares

import medpipe
from medpipe.errors import InputError, StepError, UsageError
from medpipe.train import LoopSettings, Progress, loop, train
from medpipe.train.samples import training_batches

MSE = nn.functional.mse_loss


class Noisy(Dataset, Randomizable):
    """y = 2x − 1 with noise on x that only the seed of the sample decides."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        x = torch.tensor([float(index), 1.0]) / 7
        noise = float(self.R.normal(0, 0.01))
        return x + noise, (2 * x[:1] - 1)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1)
    )


def bits(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


class StopError(Exception):
    pass


def stop_at(n):
    def tell(at):
        if at.iteration == n:
            raise StopError

    return tell


def test_least_squares_reach_the_closed_form():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, generator=generator)
    y = (
        x @ torch.tensor([[1.0], [-2.0], [0.5]])
        + 0.25
        + 0.1 * torch.randn(64, 1, generator=generator)
    )
    ones = torch.cat([x, torch.ones(64, 1)], 1)
    truth = torch.linalg.lstsq(ones, y).solution[:, 0]
    net = nn.Linear(3, 1)
    settings = LoopSettings(
        iterations=600, batch_size=64, learning_rate=0.05, weight_decay=0, validate_every=100
    )
    result = train(net, MSE, TensorDataset(x, y), settings, device="cpu")
    found = torch.cat([net.weight[0], net.bias]).detach()
    assert torch.allclose(found, truth, atol=2e-3)
    assert result.network is net
    assert [row["iteration"] for row in result.history] == [100, 200, 300, 400, 500, 600]
    json.dumps(result.history, allow_nan=False)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(tmp_path, schedule, ema):
    settings = LoopSettings(
        iterations=10, batch_size=3, schedule=schedule, ema_decay=ema, validate_every=4,
        checkpoint_every=5, seed=3,
    )  # fmt: skip
    whole = train(network(), MSE, Noisy(), settings, validation=Noisy(), device="cpu")
    file = tmp_path / "run.pt"
    with pytest.raises(StopError):
        train(
            network(), MSE, Noisy(), settings, validation=Noisy(), device="cpu",
            checkpoint=file, progress=stop_at(7),
        )  # fmt: skip
    other = network(seed=99)  # all of it comes from the checkpoint
    seen = []
    again = train(
        other, MSE, Noisy(), settings, validation=Noisy(), device="cpu", checkpoint=file,
        progress=seen.append,
    )  # fmt: skip
    assert [p.iteration for p in seen] == [6, 7, 8, 9, 10]
    assert same(bits(whole.network), bits(again.network))
    assert whole.history == again.history
    assert (whole.best_metric, whole.best_iteration) == (again.best_metric, again.best_iteration)
    # a finished run is read back without a step
    done = train(network(5), MSE, Noisy(), settings, device="cpu", checkpoint=file)
    assert same(bits(whole.network), bits(done.network))


def test_the_callers_random_numbers_stay_as_they_were():
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    net = nn.Linear(2, 1)
    state = torch.get_rng_state()
    train(net, MSE, Noisy(), LoopSettings(iterations=2), device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(4)
    assert torch.equal(torch.rand(3), expected)


def test_samples_do_not_depend_on_workers_and_draws_are_permutations():
    class Indices(Noisy):
        def __getitem__(self, index):
            return index, float(self.R.rand())

    def draws(**how):
        loader = training_batches(Indices(), batch_size=2, seed=1, **how)
        return [pair for i, r in loader for pair in zip(i.tolist(), r.tolist(), strict=True)]

    all_of_them = draws(start=0, stop=14)
    assert draws(start=0, stop=14, workers=2) == all_of_them
    assert draws(start=5, stop=14) == all_of_them[10:]
    for epoch in range(4):
        assert sorted(i for i, _ in all_of_them[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert len({r for _, r in all_of_them}) == 28
    halves = [draws(start=0, stop=14, rank=r, world=2) for r in (0, 1)]
    joined = [p for pair in zip(*halves, strict=True) for p in pair]
    assert sorted(joined) == sorted(all_of_them)


def test_a_transform_of_monai_is_seeded_too():
    from monai.data import Dataset as MonaiDataset

    noise = Compose([RandGaussianNoise(prob=1.0)])
    data = MonaiDataset([np.zeros(3, np.float32)] * 4, noise)
    first = next(iter(training_batches(data, start=2, stop=3, batch_size=2, seed=0)))
    again = next(iter(training_batches(data, start=2, stop=3, batch_size=2, seed=0)))
    other = next(iter(training_batches(data, start=2, stop=3, batch_size=2, seed=1)))
    assert torch.equal(torch.as_tensor(first), torch.as_tensor(again))
    assert not torch.equal(torch.as_tensor(first), torch.as_tensor(other))


def test_the_best_weights_return_and_patience_ends_the_run():
    x, y = torch.ones(4, 1), torch.zeros(4, 1)
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.35)
    # the rate is too large: the weight goes through 0 and away from it
    settings = LoopSettings(
        iterations=100, batch_size=4, learning_rate=0.1, weight_decay=0, schedule="constant",
        clip_norm=None, validate_every=1, patience=2,
    )  # fmt: skip
    data = TensorDataset(x, y)

    def metric(p, t):
        return (p - t).abs().mean()

    result = train(net, MSE, data, settings, validation=data, metric=metric, device="cpu")
    values = [row["metric"] for row in result.history]
    best = int(np.argmin(values))
    assert result.iterations == best + 3 < 100
    assert result.best_iteration == best + 1
    assert abs(float(net.weight.detach())) == pytest.approx(min(values)) == result.best_metric


def test_averaged_weights_are_the_exponential_mean_of_the_steps():
    net = nn.Linear(2, 1)
    steps = []
    settings = LoopSettings(iterations=6, ema_decay=0.5, validate_every=6, schedule="constant")
    result = train(
        net, MSE, Noisy(), settings, device="cpu",
        progress=lambda _: steps.append(net.weight.detach().clone()),
    )  # fmt: skip
    mean = steps[0]
    for weight in steps[1:]:
        mean = 0.5 * mean + 0.5 * weight
    assert torch.allclose(result.network.weight, mean, atol=1e-7)


def test_gradients_are_shortened():
    x, y = torch.full((4, 1), 1e3), torch.zeros(4, 1)
    norms = []

    net = nn.Linear(1, 1)

    def tell(_):
        norms.append(torch.cat([p.grad.ravel() for p in net.parameters()]).norm())

    train(
        net, MSE, TensorDataset(x, y), LoopSettings(iterations=1, clip_norm=0.5), device="cpu",
        progress=tell,
    )  # fmt: skip
    assert float(norms[0]) == pytest.approx(0.5, rel=1e-4)


def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch):
    data = TensorDataset(torch.full((4, 1), float("nan")), torch.zeros(4, 1))
    with pytest.raises(StepError, match="not a number before iteration 2"):
        train(nn.Linear(1, 1), MSE, data, LoopSettings(iterations=2), device="cpu")
    file = tmp_path / "c.pt"
    train(nn.Linear(2, 1), MSE, Noisy(), LoopSettings(iterations=1), device="cpu", checkpoint=file)
    with pytest.raises(UsageError, match="other settings; got learning_rate"):
        train(
            nn.Linear(2, 1), MSE, Noisy(), LoopSettings(iterations=1, learning_rate=0.5),
            device="cpu", checkpoint=file,
        )  # fmt: skip
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match="not a checkpoint"):
        train(
            nn.Linear(2, 1), MSE, Noisy(), LoopSettings(iterations=1), device="cpu", checkpoint=file
        )
    for bad in ({"iterations": 0}, {"schedule": "steps"}, {"ema_decay": 1.0}, {"patience": 0}):
        with pytest.raises(UsageError):
            LoopSettings(**bad)
    empty = TensorDataset(torch.zeros(0, 1), torch.zeros(0, 1))
    with pytest.raises(UsageError, match="nothing to train with"):
        train(nn.Linear(1, 1), MSE, empty, LoopSettings(), device="cpu")
    monkeypatch.setitem(sys.modules, "ignite", None)
    monkeypatch.setitem(sys.modules, "ignite.distributed", None)
    with pytest.raises(UsageError, match=r"pip install medpipe\[train\]"):
        train(nn.Linear(2, 1), MSE, Noisy(), LoopSettings(), device="cpu")


def test_the_package_is_imported_without_ignite(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "ignite"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if f"{n}.".startswith("medpipe.train.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ignite", None)
    monkeypatch.setattr(medpipe, "train", None)  # the module of the other tests comes back
    again = importlib.import_module("medpipe.train")
    assert again.train is not train


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(two):
    one, both = least_squares(), two["least_squares"]
    for name, weights in one["net"].items():
        assert torch.allclose(weights, both["net"][name], atol=1e-6), name
    for a, b in zip(one["history"], both["history"], strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_a_notice_now_and_then_says_how_long_it_will_take(caplog):
    """At 3 s an iteration a sentence comes every 30 s, with the minutes that are left."""
    tell = loop._notice()
    with caplog.at_level("INFO", "medpipe.notice"):
        for n in range(1, 61):
            tell(Progress(100 + n, 1000, 0.25, 0.5 if n > 30 else None, 3.0 * n))
    assert caplog.messages[0] == (
        "training: 110 of 1000 iterations, loss 0.25, about 44 min left"
    )  # 890 x 3 s
    assert [m.split()[1] for m in caplog.messages] == [str(100 + n) for n in range(10, 61, 10)]
    assert "validation 0.5, about 42 min left" in caplog.messages[-1]
