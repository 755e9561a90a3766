"""The training loop: what happens around a step of the optimiser.

MONAI's `SupervisedTrainer` and `SupervisedEvaluator` make the steps, pytorch-ignite calls
what hangs on them. Started in several processes (``torchrun``, `ignite.distributed`), each
takes its share of every batch and gradients are averaged.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from medpipe.device import choose_device
from medpipe.errors import StepError, UsageError
from medpipe.train.checkpoint import read_checkpoint, write_checkpoint
from medpipe.train.opponent import Opponent
from medpipe.train.samples import training_batches, validation_batches
from medpipe.train.settings import LoopSettings, Progress, Tell, TrainResult
from medpipe.types import Json

__all__ = ["train"]

Loss = Callable[[Any, Any], Tensor]

_NOTICE = logging.getLogger("medpipe.notice")
_NOTICE_EVERY_S = 30.0


def train(
    network: nn.Module,
    loss: Loss,
    dataset: Dataset[Any],
    settings: LoopSettings,
    *,
    validation: Dataset[Any] | None = None,
    metric: Any = None,
    opponent: Opponent | None = None,
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    bound_to: dict[str, Json] | None = None,
    progress: Tell | None = None,
) -> TrainResult:
    """Train `network` in place.

    Parameters
    ----------
    network : torch.nn.Module
        Ends with the best weights, on `device`.
    loss : callable
        Of predictions and targets to a scalar tensor.
    dataset : torch.utils.data.Dataset
        Of pairs (inputs, targets) of tensors, or of dicts and tuples of tensors. MONAI's
        datasets and `Randomizable` ones are seeded for every sample.
    settings : LoopSettings
    validation : Dataset, optional
        Samples to validate with; by default the metric is the mean loss of training.
    metric : callable or ignite Metric, optional
        Of predictions and targets to a scalar, averaged over the samples; the loss by default.
    opponent : Opponent, optional
        A network that makes a step after each of `network`, against it; in the checkpoint too.
    device : str or torch.device
        In several processes, the device that ignite gives each.
    checkpoint : path, optional
        File to continue from if it is there; written every ``checkpoint_every`` iterations.
        On the CPU an interrupted run ends with the bits of one that was not.
    bound_to : dict of JSON values, optional
        What the loss and the samples depend on besides: a checkpoint of a run where they
        differ is refused, and the names of those that differ are said.
    progress : callable, optional
        Told at every iteration; by default a notice is logged now and then.

    Returns
    -------
    TrainResult

    Raises
    ------
    UsageError
        If pytorch-ignite is absent, or the checkpoint is of other settings.
    StepError
        If the loss is not a number any more.
    StoreError
        If the checkpoint cannot be written.
    """
    idist = _ignite().distributed
    many = idist.get_world_size() > 1
    where = idist.device() if many else torch.device(device) if device != "auto" else None
    where = choose_device(str(where or "auto"))
    network.to(where)
    with _own_random_numbers(where, settings.seed + idist.get_rank()):
        file = Path(checkpoint) if checkpoint else None
        run = _Run(network, loss, settings, where, file, opponent, bound_to)
        run.tell = (progress or _notice()) if idist.get_rank() == 0 else None
        return run.go(dataset, validation, metric)


def _ignite() -> Any:
    try:
        import ignite.distributed
        import ignite.metrics
    except ImportError:
        raise UsageError(
            "training needs pytorch-ignite", hint="pip install medpipe[train]"
        ) from None
    return ignite


@contextmanager
def _own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch inside the block and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _notice() -> Tell:
    """Return what logs a sentence at most every `_NOTICE_EVERY_S` seconds."""
    said = 0.0
    first: Progress | None = None

    def tell(at: Progress) -> None:
        nonlocal said, first
        first = first or at
        if at.seconds - said < _NOTICE_EVERY_S or at.iteration == first.iteration:
            return
        said = at.seconds
        each = (at.seconds - first.seconds) / (at.iteration - first.iteration)
        _NOTICE.info(
            "training: %d of %d iterations, loss %.4g%s, about %.0f min left",
            at.iteration,
            at.iterations,
            at.loss,
            "" if at.metric is None else f", validation {at.metric:.4g}",
            each * (at.iterations - at.iteration) / 60,
        )

    return tell


class _Run:
    """The state of one training run; all that a checkpoint holds."""

    tell: Tell | None

    def __init__(
        self, network: nn.Module, loss: Loss, settings: LoopSettings, device: torch.device,
        checkpoint: Path | None, opponent: Opponent | None, bound_to: dict[str, Json] | None,
    ) -> None:  # fmt: skip
        self.network, self.loss, self.settings = network, loss, settings
        self.device, self.checkpoint = device, checkpoint
        self.opponent, self.bound_to = opponent, bound_to or {}
        self.idist = _ignite().distributed
        self.parallel = network
        rate, decay = settings.learning_rate, settings.weight_decay
        self.optimizer: Any = AdamW(network.parameters(), lr=rate, weight_decay=decay)
        self.schedule = _schedule(self.optimizer, settings)
        self.average: AveragedModel | None = None
        if settings.ema_decay is not None:
            step = get_ema_multi_avg_fn(settings.ema_decay)
            self.average = AveragedModel(network, multi_avg_fn=step, use_buffers=True)
        self.iteration, self.losses, self.since = 0, torch.zeros((), device=device), 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_metric, self.best_iteration, self.stale = float("nan"), 0, 0
        self.scaler_state: dict[str, Any] | None = None
        self.trainer: Any = None
        self.began = time.monotonic()

    def go(
        self, dataset: Dataset[Any], validation: Dataset[Any] | None, metric: Any
    ) -> TrainResult:
        """Continue where the checkpoint ends, if there is one, and finish."""
        if self.opponent is not None:
            self.opponent.network.to(self.device)
        if self.checkpoint is not None and self.checkpoint.is_file():
            file, bound_to = self.checkpoint, self._bound()
            self._load(read_checkpoint(file, self.settings, self.device, bound_to))
            if 0 < self.iteration < self.settings.iterations:
                done, stop = self.iteration, self.settings.iterations
                _NOTICE.info("training goes on after %d of %d iterations", done, stop)
        if self.idist.get_world_size() > 1:
            self.parallel = self.idist.auto_model(self.network)
            if self.opponent is not None:
                for value in self.opponent.network.state_dict().values():
                    value.copy_(self.idist.broadcast(value))
        if self.iteration < self.settings.iterations and not self._tired():
            self._make_trainer(dataset, self._evaluate(validation, metric))
            self.trainer.run()
            self._save()
        self.network.load_state_dict(self.best)
        return TrainResult(
            self.network, self.history, self.best_metric, self.best_iteration, self.iteration
        )

    def _share(self) -> dict[str, int]:
        s = self.settings
        return {
            "batch_size": s.batch_size,
            "seed": s.seed,
            "rank": self.idist.get_rank(),
            "world": self.idist.get_world_size(),
            "workers": s.workers,
        }

    def _make_trainer(self, dataset: Dataset[Any], evaluate: Callable[[], float] | None) -> None:
        from ignite.engine import Events
        from monai.engines.trainer import SupervisedTrainer
        from monai.engines.utils import IterationEvents

        stop = self.settings.iterations
        self.trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=1,
            train_data_loader=training_batches(
                dataset, start=self.iteration, stop=stop, **self._share()
            ),
            epoch_length=stop - self.iteration,
            network=self.parallel,
            optimizer=self.optimizer,
            loss_function=self.loss,
            prepare_batch=_to_device,
            amp=self._amp(),
            decollate=False,
            optim_set_to_none=True,
        )
        self.trainer.add_event_handler(Events.STARTED, self._started)
        self.trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stepped, evaluate)

    def _amp(self) -> bool:
        return self.settings.amp and self.device.type == "cuda"

    def _evaluate(self, validation: Dataset[Any] | None, metric: Any) -> Any:
        """Return a function that gives the metric of the present weights."""
        if validation is None:
            return None
        from ignite.metrics import Loss as Mean
        from ignite.metrics import Metric
        from monai.engines.evaluator import SupervisedEvaluator

        def pair(output: dict[str, Any]) -> tuple[Any, Any]:
            return output["pred"], output["label"]

        if not isinstance(metric, Metric):
            metric = Mean(
                metric or self.loss, output_transform=pair, batch_size=_size, device=self.device
            )
        engine = SupervisedEvaluator(
            device=self.device,
            val_data_loader=validation_batches(validation, **self._share()),
            network=self._result(),
            prepare_batch=_to_device,
            key_val_metric={"metric": metric},
            amp=self._amp(),
            decollate=False,
        )

        def evaluate() -> float:
            engine.run()
            return float(engine.state.metrics["metric"])

        return evaluate

    def _result(self) -> nn.Module:
        """Return the network whose weights are the result."""
        return self.network if self.average is None else self.average.module

    def _started(self, engine: Any) -> None:
        if self.scaler_state is not None and engine.scaler is not None:
            engine.scaler.load_state_dict(self.scaler_state)

    def _clip(self, engine: Any) -> None:
        if self.settings.clip_norm is not None:
            if engine.scaler is not None:
                engine.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)

    def _stepped(self, engine: Any, evaluate: Callable[[], float] | None) -> None:
        """After a step of the optimiser: averages, schedule, validation, checkpoint."""
        self.iteration += 1
        self.since += 1
        self.losses += engine.state.output["loss"].detach()
        self.schedule.step()
        if self.opponent is not None:
            self.opponent.step(engine.state.output["pred"], engine.state.output["label"])
        if self.average is not None:
            self.average.update_parameters(self.network)
        last = self.iteration == self.settings.iterations
        if self.iteration % self.settings.validate_every == 0 or last:
            self._validate(evaluate)
        self._progress()
        if self._tired():
            engine.terminate()
        elif not last and self.iteration % self.settings.checkpoint_every == 0:
            self._save()

    def _validate(self, evaluate: Callable[[], float] | None) -> None:
        loss = float(self.idist.all_reduce(self.losses / self.since)) / self.idist.get_world_size()
        if loss != loss:
            raise StepError(
                f"the loss is not a number before iteration {self.iteration}",
                hint="lower the learning rate, or look at the samples",
            )
        value = loss if evaluate is None else evaluate()
        rate = float(self.schedule.get_last_lr()[0])
        row = {"iteration": self.iteration, "loss": loss, "metric": value, "learning_rate": rate}
        self.history.append(row)
        sign = 1 if self.settings.higher_is_better else -1
        self.stale += 1
        if not self.best or sign * value > sign * self.best_metric:
            self.best = copy.deepcopy(self._result().state_dict())
            self.best_metric, self.best_iteration, self.stale = value, self.iteration, 0
        self.losses.zero_()
        self.since = 0

    def _progress(self) -> None:
        if self.tell is not None:
            last = self.history[-1] if self.history else None
            loss = float(self.losses) / self.since if self.since else self.history[-1]["loss"]
            seconds = time.monotonic() - self.began
            metric = last["metric"] if last else None
            total = self.settings.iterations
            self.tell(Progress(self.iteration, total, loss, metric, seconds))

    def _tired(self) -> bool:
        return self.settings.patience is not None and self.stale >= self.settings.patience

    def _parts(self) -> dict[str, Any]:
        parts = {"network": self.network, "optimizer": self.optimizer, "schedule": self.schedule}
        beside = {"average": self.average, "opponent": self.opponent}
        return parts | {name: part for name, part in beside.items() if part is not None}

    def _bound(self) -> dict[str, Json]:
        """Return what a checkpoint belongs to besides the settings."""
        return self.bound_to if self.opponent is None else {"opponent": True, **self.bound_to}

    _NUMBERS = ("iteration", "losses", "since", "best_metric", "best_iteration", "stale")

    def _save(self) -> None:
        """Write the checkpoint; only the first process does."""
        if self.checkpoint is None or self.idist.get_rank() != 0:
            return
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {name: getattr(self, name) for name in (*self._NUMBERS, "history", "best")}
        state["scaler"] = self.trainer.scaler.state_dict() if self.trainer.scaler else None
        state["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        write_checkpoint(self.checkpoint, state, self.settings, self._bound())

    def _load(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for name in (*self._NUMBERS, "history", "best"):
            setattr(self, name, state[name])
        self.scaler_state = state["scaler"]
        if self.idist.get_rank() == 0:
            torch.set_rng_state(state["random"].to("cpu"))
            if "random_cuda" in state and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"].to("cpu"), self.device)


def _schedule(optimizer: AdamW, settings: LoopSettings) -> LRScheduler:
    if settings.schedule == "one-cycle":
        return OneCycleLR(optimizer, settings.learning_rate, settings.iterations)
    if settings.schedule == "cosine" and not settings.warmup:
        return CosineAnnealingLR(optimizer, settings.iterations)

    def share(done: int) -> float:
        """Return the learning rate after so many steps, as a share of the largest."""
        if done < settings.warmup:
            return (done + 1) / (settings.warmup + 1)
        if settings.schedule == "constant":
            return 1.0
        rest = (done - settings.warmup) / (settings.iterations - settings.warmup)
        return 0.5 * (1 + math.cos(math.pi * rest))

    return LambdaLR(optimizer, share)


def _to_device(batch: Any, device: torch.device, non_blocking: bool, **_: Any) -> tuple[Any, Any]:
    from ignite.utils import convert_tensor

    inputs, targets = batch
    return (
        convert_tensor(inputs, device=device, non_blocking=non_blocking),
        convert_tensor(targets, device=device, non_blocking=non_blocking),
    )


def _size(value: Any) -> int:
    """Return how many samples a batch of predictions holds."""
    while not isinstance(value, Tensor):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return len(value)
