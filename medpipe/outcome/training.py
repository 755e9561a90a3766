"""Training of one fold: the head on an encoder that was given, then all; and its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medpipe.device import choose_device
from medpipe.errors import InputError, UsageError
from medpipe.io.atomic import canonical_json, sha256_file, write_json_atomic
from medpipe.models import load_weights, pack_weights
from medpipe.outcome.ensemble import event_logit, predict_volumes
from medpipe.outcome.losses import (
    Loss,
    bias_to_share,
    class_weights,
    cross_entropy_loss,
    discrete_survival_loss,
    focal_loss,
    life_table_logits,
    survival_targets,
)
from medpipe.outcome.network import (
    LoadedEncoder,
    OutcomeNetwork,
    OutcomeNetworkSettings,
    load_encoder,
    outcome_network,
)
from medpipe.outcome.samples import (
    Picture,
    Volumes,
    balanced_order,
    inner_split,
    network_channels,
)
from medpipe.outcome.training_settings import OutcomeTraining
from medpipe.train import train
from medpipe.train.settings import Progress, Tell
from medpipe.types import Json

__all__ = ["FoldModel", "OutcomeTraining", "read_fold_model", "train_fold"]

_FREE = ("folds", "tta_flips", "amp")
"""Settings that may change when a fold continues."""


@dataclass(frozen=True, eq=False)
class FoldModel:
    """A network that was trained, and how.

    Parameters
    ----------
    network : OutcomeNetwork
        Ready to be asked (``eval``).
    settings : OutcomeTraining
    history : list of dict
        A row per validation, with its phase, ``"head"`` or ``"all"``.
    best_metric : float
        Loss of the weights that were kept, on what validated.
    best_iteration, iterations : int
        Of the last phase.
    size_voxels : tuple of int
        Of the volumes.
    counts : dict
        Samples that ``trained`` and ``validated``, and in how many the ``events`` were.
    encoder : dict, optional
        What was taken from a given file: ``matched``, ``missing`` and ``unused`` names.
    facts : dict
        What the header of a file said besides.
    """

    network: OutcomeNetwork
    settings: OutcomeTraining
    history: list[dict[str, Json]]
    best_metric: float
    best_iteration: int
    iterations: int
    size_voxels: tuple[int, ...]
    counts: dict[str, Json]
    encoder: dict[str, Json] | None = None
    facts: dict[str, Json] = field(default_factory=dict)

    def to_bytes(self, facts: dict[str, Json] | None = None, *, half: bool = False) -> bytes:
        """Return the content of a safetensors file, with all settings in its header.

        Parameters
        ----------
        facts : dict of JSON values, optional
            Said in the header besides.
        half : bool
            Weights in half precision; statistics of the data stay in single.
        """
        weights = {
            name: value.half()
            if half and value.is_floating_point() and "running" not in name
            else value
            for name, value in self.network.state_dict().items()
        }
        names = ("history", "best_metric", "best_iteration", "iterations", "counts", "encoder")
        metadata = {
            "model": "outcome",
            "network": asdict(self.network.settings),
            "training": asdict(self.settings),
            "size_voxels": self.size_voxels,
            **{name: getattr(self, name) for name in names},
            "facts": {**self.facts, **(facts or {})},
        }
        return pack_weights(weights, json.loads(json.dumps(metadata)))


def read_fold_model(name_or_path: str | Path) -> FoldModel:
    """Return what `FoldModel.to_bytes` wrote, on the CPU.

    Raises
    ------
    UsageError
        If there is no such model or file.
    InputError
        If it is not a model of outcomes.
    """
    tensors, header = load_weights(name_or_path)
    said = cast(dict[str, Any], header)
    try:
        if said.pop("model") != "outcome":
            raise ValueError
        network = outcome_network(OutcomeNetworkSettings(**said.pop("network")))
        network.load_state_dict({name: _single(value) for name, value in tensors.items()})
        settings = OutcomeTraining(**said.pop("training"))
        said["size_voxels"] = tuple(said["size_voxels"])
        return FoldModel(network.eval(), settings, **said)
    except (KeyError, TypeError, ValueError, RuntimeError, UsageError):
        raise InputError(
            "the model is not one of outcomes",
            where=Path(name_or_path).name,
            hint="use a file written by training",
        ) from None


def train_fold(
    volumes: Sequence[Picture], outcome: ArrayLike, settings: OutcomeTraining, *,
    network_settings: OutcomeNetworkSettings | None = None,
    patients: Sequence[str] | None = None, names: Sequence[str] | None = None,
    time_days: ArrayLike | None = None, encoder: str | Path | None = None,
    device: str | torch.device = "auto", checkpoint: str | Path | None = None,
    progress: Tell | None = None, workers: int = 0,
) -> FoldModel:  # fmt: skip
    """Train a network with the training part of a fold.

    Parameters
    ----------
    volumes : sequence of path, array or Tensor
        Prepared volumes, see `medpipe.outcome.samples.Volumes`.
    outcome : array-like of int (n,)
        Classes 0 to ``outputs`` - 1; of the survival loss, 1 where the event was observed.
    settings : OutcomeTraining
    network_settings : OutcomeNetworkSettings, optional
        By default a DenseNet-121 with the outputs that the loss needs.
    patients : sequence of str, optional
        Of the samples, so that none both trains and validates.
    names : sequence of str, optional
        Of the samples, for messages.
    time_days : array-like (n,), optional
        Time to the event or to the end of observation; for the survival loss.
    encoder : path, optional
        Weights of an encoder, see `medpipe.outcome.network.load_encoder`.
    device, progress, workers
        See `medpipe.train.train`. Progress counts both phases.
    checkpoint : path, optional
        ``K.pt`` to continue from; ``K.head.pt`` and ``K.run.json`` lie beside it. On the
        CPU an interrupted run ends with the bits of one that was not.

    Returns
    -------
    FoldModel

    Raises
    ------
    UsageError
        If outcomes, network and loss do not fit, a class is absent, the volumes are too
        small for the network, or the checkpoint is of another run.
    InputError
        If a volume or the encoder cannot be used.
    StepError, StoreError
        See `medpipe.train.train`.
    """
    wanted = network_settings or OutcomeNetworkSettings(outputs=_outputs(settings))
    targets = _targets(outcome, time_days, settings, wanted.outputs)
    if len(targets) != len(volumes):
        raise UsageError("volumes and outcomes do not fit", expected="one of each for a sample")
    data = _shared_out(
        volumes, targets, np.asarray(outcome), settings, wanted.spatial_dims, patients, names,
        _sample_device(device, workers),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = outcome_network(wanted)
    if settings.loss == "survival":
        seen = targets[torch.tensor(sorted(set(data.samples.order)))]
        start = life_table_logits(seen, wanted.outputs)
        with torch.no_grad():
            network.get_parameter("class_layers.out.bias").copy_(start)
    _check_size(network, data.samples, settings)
    given = None if encoder is None else load_encoder(network, encoder)
    files = {} if checkpoint is None else _files(Path(checkpoint), {
        "training": {k: v for k, v in asdict(settings).items() if k not in _FREE},
        "network": asdict(wanted), "targets": targets.tolist(), "names": names and list(names),
        "trains": data.samples.order, "encoder": encoder and sha256_file(Path(encoder)),
    })  # fmt: skip
    loss = _loss(settings, data.classes, wanted.outputs)
    phases = ["head", "all"] if given is not None and settings.head_iterations else ["all"]
    loops = [settings.loop(head=phase == "head", workers=workers) for phase in phases]
    history: list[dict[str, Json]] = []
    for phase, loop in zip(phases, loops, strict=True):
        network.freeze_encoder(phase == "head")
        result = train(
            network, loss, data.samples, loop, validation=data.measured, device=device,
            checkpoint=files.get(phase), progress=_counted(progress, phase, loops),
        )  # fmt: skip
        history += [{"phase": phase, **row} for row in result.history]
    if wanted.outputs == 2 and settings.loss != "survival":
        _set_bias(network, data, settings)
    return FoldModel(
        network.eval(), settings, history, result.best_metric, result.best_iteration,
        result.iterations, cast(tuple[int, ...], data.samples.size), data.counts, _told(given),
    )  # fmt: skip


def _set_bias(network: OutcomeNetwork, data: _Data, settings: OutcomeTraining) -> None:
    """Bring the mean probability of the samples that trained to the share of events in them.

    So it is at the end of a training by likelihood, but for statistics that normalise: of a
    batch while a network learns, of many when it is asked. The log odds then move by what
    differs from network to network, and patients of several folds could not be ranked together.
    """
    places = sorted(set(data.samples.order))
    said = predict_volumes(
        [network], [data.samples.volumes[n] for n in places], preset=settings.preset,
        spatial_dims=data.samples.dims, size=data.samples.size, batch_size=settings.batch_size,
        device=next(network.parameters()).device,
    )  # fmt: skip
    share = float((data.samples.targets[places] > 0).double().mean())
    bias = network.get_parameter("class_layers.out.bias")
    with torch.no_grad():
        bias[1] += bias_to_share(event_logit(said[0]), share).to(bias)


@dataclass(frozen=True)
class _Data:
    """Samples of a fold; `classes` are those of the samples in their order."""

    samples: Volumes
    measured: Volumes | None
    classes: NDArray[Any]
    counts: dict[str, Json]


def _shared_out(
    volumes: Sequence[Picture], targets: Tensor, found: NDArray[Any], settings: OutcomeTraining,
    spatial_dims: int, patients: Sequence[str] | None, names: Sequence[str] | None,
    device: torch.device,
) -> _Data:  # fmt: skip
    trains, validates = inner_split(found, patients, settings.validation_share, settings.seed)
    order = balanced_order(trains, found[trains]) if settings.balanced else trains
    common: dict[str, Any] = {
        "preset": settings.preset, "spatial_dims": spatial_dims, "names": names,
        "size": settings.size_voxels, "device": device,
    }  # fmt: skip
    samples = Volumes(
        volumes, targets, order=order.tolist(), augmentation=settings.augmentation,
        spacing=settings.spacing_mm, **common,
    )  # fmt: skip
    samples.image(int(trains[0]))  # from here on the size is known
    common["size"] = samples.size
    measured = Volumes(volumes, targets, order=validates.tolist(), **common)
    counts: dict[str, Json] = {
        "trained": len(trains),
        "validated": len(validates),
        "events": [int((found[part] > 0).sum()) for part in (trains, validates)],
    }
    return _Data(samples, measured if len(validates) else None, found[order], counts)


def _outputs(settings: OutcomeTraining) -> int:
    return len(settings.interval_days) if settings.loss == "survival" else 2


def _targets(
    outcome: ArrayLike, time_days: ArrayLike | None, settings: OutcomeTraining, outputs: int
) -> Tensor:
    """Return classes (n,), or intervals and events (n, 2)."""
    found = np.asarray(outcome)
    if settings.loss == "survival":
        if time_days is None or outputs != _outputs(settings):
            raise UsageError(
                "survival needs a time of every sample and an output for every interval",
                expected=f"time_days, and {_outputs(settings)} outputs",
            )
        return torch.from_numpy(survival_targets(time_days, found, settings.interval_days))
    numbers = found.ndim == 1 and np.isin(found, np.arange(outputs)).all()
    if outputs < 2 or not numbers:
        raise UsageError("an outcome is wrong", expected=f"0 to {outputs - 1}, for every sample")
    return torch.from_numpy(found.astype(np.int64))


def _loss(settings: OutcomeTraining, classes: NDArray[Any], outputs: int) -> Loss:
    if settings.loss == "survival":
        if not (classes == 1).any():
            raise UsageError("no event among the samples to train with", expected="some")
        return discrete_survival_loss
    weights = class_weights(classes, outputs)  # says where a class is absent
    if settings.loss == "cross-entropy":
        return cross_entropy_loss()
    if settings.loss == "weighted":
        return cross_entropy_loss(weights)
    return focal_loss(settings.focal_gamma, weights)


def _sample_device(device: str | torch.device, workers: int) -> torch.device:
    """Return where samples are made: processes beside the training have no GPU."""
    if workers:
        return torch.device("cpu")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        import ignite.distributed

        return torch.device(ignite.distributed.device())
    return choose_device(str(device))


def _check_size(network: OutcomeNetwork, samples: Volumes, settings: OutcomeTraining) -> None:
    """Raise UsageError unless the network can read the samples."""
    channels, wanted = network_channels(samples), network.settings.channels
    if channels != wanted:
        raise UsageError(
            "the network does not read these channels", expected=str(channels), got=str(wanted)
        )
    last = network.last_voxels(cast(tuple[int, ...], samples.size))
    if min(last) < 1:
        raise UsageError(
            "the volumes are too small for the network",
            expected=f"{network.least_voxels} voxels or more along each axis",
            got=f"shape {samples.size}",
        )
    if settings.batch_size == 1 and (max(last) == 1 or network.needs_batches):
        what = "this network needs" if network.needs_batches else "volumes this small need"
        raise UsageError(f"{what} batches", expected="a batch_size of 2 or more")


def _files(checkpoint: Path, run: dict[str, Any]) -> dict[str, Path]:
    """Return the file of each phase; raise UsageError if they belong to another run."""
    digest = hashlib.sha256(canonical_json(json.loads(json.dumps(run)))).hexdigest()
    stem = checkpoint.stem
    record = checkpoint.with_name(f"{stem}.run.json")
    files = {"head": checkpoint.with_name(f"{stem}.head.pt"), "all": checkpoint}
    if not any(file.is_file() for file in files.values()):
        write_json_atomic(record, {"digest": digest})
        return files
    try:
        found = json.loads(record.read_text("utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != digest:
        raise UsageError(
            "the checkpoint is of another training",
            where=checkpoint.name,
            expected="the same samples, outcomes, settings and encoder",
            hint="give the settings of the run to continue, or another file",
        )
    return files


def _counted(progress: Tell | None, phase: str, loops: Sequence[Any]) -> Tell | None:
    """Return what tells `progress` the iterations of all phases."""
    if progress is None:
        return None
    before = 0 if phase == "head" else sum(loop.iterations for loop in loops[:-1])
    total = sum(loop.iterations for loop in loops)

    def tell(at: Progress) -> None:
        progress(replace(at, iteration=before + at.iteration, iterations=total))

    return tell


def _told(given: LoadedEncoder | None) -> dict[str, Json] | None:
    return None if given is None else {k: list(v) for k, v in asdict(given).items()}


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
