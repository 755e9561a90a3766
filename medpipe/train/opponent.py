"""A network that is trained against the one that is trained, as in a GAN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from medpipe.errors import UsageError

__all__ = ["Opponent", "OpponentLoss"]

OpponentLoss = Callable[[nn.Module, Any, Any], Tensor]
"""Of the opponent, predictions (without gradient) and targets to a scalar."""


class Opponent:
    """A discriminator with an optimiser of its own; `medpipe.train.train` calls it.

    The loss of the network that is trained asks it with `judge` and multiplies what it
    says by `weight`. After every step of the network the opponent makes one, from the
    same predictions.

    Parameters
    ----------
    network : torch.nn.Module
    loss : callable
        Of the network, predictions and targets to the scalar that it is trained with.
    learning_rate, weight_decay, betas
        Of AdamW.
    start : int
        Iterations of the training before the opponent begins to learn.
    ramp : int
        Iterations in which its weight rises from 0 to 1 after that.
    """

    def __init__(
        self, network: nn.Module, loss: OpponentLoss, *, learning_rate: float = 5e-5,
        weight_decay: float = 0.0, betas: tuple[float, float] = (0.5, 0.999), start: int = 0,
        ramp: int = 0,
    ) -> None:  # fmt: skip
        if start < 0 or ramp < 0 or learning_rate <= 0:
            raise UsageError(
                "the settings of an opponent are wrong",
                expected="start and ramp of 0 or more, learning_rate above 0",
            )
        self.network, self.loss = network, loss
        self.start, self.ramp = start, ramp
        self.iteration = 0
        self.optimizer = AdamW(
            network.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=betas
        )

    @property
    def weight(self) -> float:
        """What its judgement counts in this iteration, 0 to 1."""
        since = self.iteration - self.start
        if since < 0:
            return 0.0
        return min(1.0, (since + 1) / (self.ramp + 1))

    def judge(self, inputs: Tensor) -> Any:
        """Return what the network says; gradients go to `inputs`, not to its weights."""
        self.network.requires_grad_(False)
        return self.network(inputs)

    def step(self, predictions: Any, targets: Any) -> None:
        """Count an iteration; from `start` on make a step, averaged over all processes."""
        if self.iteration >= self.start:
            import ignite.distributed as idist

            self.network.requires_grad_(True)
            self.network.train()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                self.loss(self.network, _detached(predictions), targets).backward()
            if idist.get_world_size() > 1:
                for parameter in self.network.parameters():
                    if parameter.grad is not None:
                        total = idist.all_reduce(parameter.grad)
                        parameter.grad = total / idist.get_world_size()
            self.optimizer.step()
        self.iteration += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to continue."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = int(state["iteration"])


def _detached(value: Any) -> Any:
    """Return tensors, or tuples, lists and dicts of them, without their graph, in single."""
    if isinstance(value, Tensor):
        plain = value.detach()
        return plain.float() if plain.dtype in (torch.float16, torch.bfloat16) else plain
    if isinstance(value, dict):
        return {name: _detached(part) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_detached, value))
    return type(value)(map(_detached, value))
