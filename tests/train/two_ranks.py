"""Trainings of a few iterations, for one process or for two that share each batch.

``python two_ranks.py MEETING`` is the second of two processes; the test is the first.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn
from torch.utils.data import TensorDataset

from medpipe.train import LoopSettings, Opponent, train

Work = Callable[[], dict[str, Any]]


def _network(inputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, 1))


def _data() -> TensorDataset:
    made = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(10, 3, generator=made), torch.randn(10, 1, generator=made))


def _settings(validate_every: int) -> LoopSettings:
    return LoopSettings(
        iterations=12, batch_size=4, clip_norm=None, validate_every=validate_every, seed=2
    )


def least_squares() -> dict[str, Any]:
    """Train one network; return its weights and the course of the training."""
    torch.manual_seed(0)
    net = _network()
    result = train(
        net, nn.functional.mse_loss, _data(), _settings(6), validation=_data(), device="cpu"
    )
    return {"net": net.state_dict(), "history": result.history}


def with_an_opponent() -> dict[str, Any]:
    """Train two networks against each other; return the weights of both."""
    torch.manual_seed(0)
    net, other = _network(), _network(1)
    if idist.get_rank():
        nn.init.zeros_(other[0].weight)  # the first process decides how the opponent begins
    opponent = Opponent(other, _against, learning_rate=0.01)

    def loss(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (made - wanted).square().mean() + (opponent.judge(made) - 1).square().mean()

    train(net, loss, _data(), _settings(12), opponent=opponent, device="cpu")
    return {"net": net.state_dict(), "other": other.state_dict()}


def _against(network: nn.Module, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return (network(real) - 1).square().mean() + network(made).square().mean()


ALL: tuple[Work, ...] = (least_squares, with_an_opponent)


def run_as(rank: int, meeting: Path) -> dict[str, dict[str, Any]]:
    """Be one of two processes that do all the work together; return what this one has then."""
    idist.initialize(
        "gloo", init_method=meeting.as_uri(), rank=rank, world_size=2,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    try:
        assert idist.get_world_size() == 2
        made = {work.__name__: work() for work in ALL}
        idist.barrier()  # nobody leaves while the other still talks to it
        return made
    finally:
        idist.finalize()


def shared(folder: Path) -> dict[str, dict[str, Any]]:
    """Do all the work in this process and one more; return what this one has then."""
    command = [sys.executable, __file__, str(folder / "meeting")]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as other:
        try:
            made = run_as(0, folder / "meeting")
            assert other.wait(timeout=60) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                other.kill()
    return made


if __name__ == "__main__":
    run_as(1, Path(sys.argv[1]))
    os._exit(0)  # threads of gloo may outlive the interpreter, which then aborts
