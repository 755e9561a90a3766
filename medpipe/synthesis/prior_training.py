"""Training of a prior on codes, early stopped on patients it was not shown."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from monai.transforms.transform import Randomizable
from torch import Tensor, nn
from torch.utils.data import Dataset

from medpipe.errors import UsageError
from medpipe.models import pack_weights
from medpipe.synthesis.autoencoder import enough_memory
from medpipe.synthesis.conditions import ConditionKind, Conditions
from medpipe.synthesis.model_file import plain_json
from medpipe.synthesis.prior import Prior, PriorSettings
from medpipe.synthesis.prior_model import PriorModel, likelihoods
from medpipe.train import LoopSettings, train
from medpipe.train.settings import Tell
from medpipe.types import Json

__all__ = ["ConditionedCodes", "PriorTraining", "train_prior"]

_FREE = ("amp", "workers")
"""Settings that may change when a training continues."""


@dataclass(frozen=True)
class PriorTraining:
    """How a prior is trained.

    Parameters
    ----------
    iterations, learning_rate, weight_decay, schedule, warmup, clip_norm, ema_decay,
    validate_every, patience, amp, workers, seed
        See `medpipe.train.LoopSettings`; the metric is the negative log likelihood of what
        validates, in nats per token.
    batch_size : int
        Volumes in a batch.
    written_for_batch : int, optional
        The size of batch that iterations, learning_rate, warmup and validate_every are meant
        for: where it is not `batch_size` they follow LEGW (arXiv 1901.08256), see
        `medpipe.train.LoopSettings.with_batch`.
    hide : float
        Share of the samples whose conditions are all hidden; guidance needs some.
    hide_each : float
        Share in which each condition, augmentations apart, is hidden alone, so that volumes
        can be drawn for patients of whom not all is known.
    validation_share : float
        Of the subjects, where none are named to validate with.
    """

    iterations: int = 3000
    batch_size: int = 16
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    schedule: Literal["one-cycle", "cosine", "constant"] = "cosine"
    warmup: int = 100
    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    written_for_batch: int | None = None
    hide: float = 0.1
    hide_each: float = 0.1
    validation_share: float = 0.1
    validate_every: int = 100
    patience: int | None = 10
    amp: bool = True
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.hide, self.hide_each, self.validation_share)
        if not all(0 <= share < 1 for share in shares):
            raise UsageError(
                "the settings of the training of a prior are wrong",
                expected="hide, hide_each and validation_share from 0 to below 1",
            )
        self.loop()  # says what is wrong with its part

    def loop(self) -> LoopSettings:
        """Return the part of the settings that any training has, for its size of batch."""
        own = {f.name: getattr(self, f.name) for f in fields(LoopSettings) if hasattr(self, f.name)}
        own["batch_size"] = self.written_for_batch or self.batch_size
        own["checkpoint_every"] = self.validate_every
        return LoopSettings(**own).with_batch(self.batch_size)


class ConditionedCodes(Dataset[Any], Randomizable):
    """Codes in the order of a prior with what it is told of each; conditions hidden at random.

    Parameters
    ----------
    codes : Tensor
        int64 (N, L), see `Prior.to_sequence`.
    values, present : Tensor
        (N, C), as `Conditions.encode` returns them.
    conditions : Conditions
    hide, hide_each : float
        See `PriorTraining`; both are 0 for what validates.
    """

    def __init__(
        self, codes: Tensor, values: Tensor, present: Tensor, conditions: Conditions,
        *, hide: float = 0.0, hide_each: float = 0.0,
    ) -> None:  # fmt: skip
        self.codes, self.values, self.present = codes, values, present
        self.hide, self.hide_each = hide, hide_each
        self.columns = [c.columns for c in conditions.items]
        self.augments = [c.kind == "augmentation" for c in conditions.items]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        present = self.present[index] & self._shown()
        codes = self.codes[index]
        return {"codes": codes, "values": self.values[index], "present": present}, codes

    def _shown(self) -> Tensor:
        """Return which columns are not hidden this time, bool (C,)."""
        everything = self.R.uniform() < self.hide
        alone = self.R.uniform(size=len(self.columns)) < self.hide_each
        shown = [
            not everything and (augments or not hidden)
            for augments, hidden, columns in zip(self.augments, alone, self.columns, strict=True)
            for _ in range(columns)
        ]
        return torch.tensor(shown, dtype=torch.bool)


class _Likelihood(nn.Module):
    """A prior that is called with a dict and returns nats per token."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the negative log likelihood of each case, (B,)."""
        told = (inputs["values"], inputs["present"]) if self.prior.conditions is not None else ()
        return self.prior.nll(inputs["codes"], *told)


def _mean(nll: Tensor, _: Tensor) -> Tensor:
    return nll.mean()


def train_prior(
    codes: Tensor,
    table: Mapping[str, Sequence[Any]],
    kinds: Mapping[str, ConditionKind],
    settings: PriorSettings,
    training: PriorTraining,
    *,
    units: Mapping[str, str] | None = None,
    subjects: Sequence[int] | None = None,
    validation: Sequence[int] | None = None,
    tokeniser: str = "",
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    progress: Tell | None = None,
) -> PriorModel:
    """Train a prior on the codes of volumes.

    Parameters
    ----------
    codes : Tensor
        int64 (N, *grid), see `TokeniserModel.encode`. The same volume may be there several
        times, differently augmented (`medpipe.synthesis.coded.encode_moved`).
    table : mapping of str to sequence
        The conditions: for each a value per volume, None where it is not known.
    kinds : mapping of str to str
        Which columns of the table are conditions, and of which kind: see `Condition`.
        Ranges and distributions are those of all volumes, so that those which validate can
        be encoded too.
    settings : PriorSettings
        Its ``conditions`` are set to what the table needs.
    training : PriorTraining
    units : mapping, optional
        Of the conditions, by name.
    subjects : sequence of int, optional
        Whose volume each is; by default each has its own. All volumes of a subject are on
        one side.
    validation : sequence of int, optional
        Subjects to stop early by, and for the facts; by default a share, drawn from the seed.
        Only their volumes without augmentation count, where there are any.
    tokeniser : str
        `TokeniserModel.digest` of what made the codes: with another the prior is refused.
    device, progress
        See `medpipe.train.train`.
    checkpoint : path, optional
        File to continue from if it is there. On the CPU an interrupted run ends with the bits
        of one that was not.

    Returns
    -------
    PriorModel
        Its facts say the negative log likelihood of trained and held-out volumes, with their
        conditions and without.

    Raises
    ------
    UsageError
        If the codes are not those of the settings, the table does not fit them, or the
        checkpoint is of another run.
    ResourceError
        If a batch does not fit in memory.
    StepError, StoreError
        See `medpipe.train.train`.
    """
    _check(codes, table, kinds, settings)
    conditions = Conditions.fit({n: table[n] for n in kinds}, kinds, units=units)
    settings = replace(settings, conditions=conditions.columns)
    rows = [{name: table[name][n] for name in kinds} for n in range(len(codes))]
    values, present = conditions.encode(rows)
    whose = list(range(len(codes))) if subjects is None else list(subjects)
    held_out = _held_out(whose, validation, training)
    trained = [n for n, subject in enumerate(whose) if subject not in held_out]
    validates = _plain(rows, conditions, [n for n, s in enumerate(whose) if s in held_out])
    if not trained:
        raise UsageError("nothing to train with", expected="a subject that does not validate")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        prior = Prior(settings)
    sequences = prior.to_sequence(codes.to(prior.order.device))

    def part(of: list[int], **hiding: float) -> ConditionedCodes:
        return ConditionedCodes(sequences[of], values[of], present[of], conditions, **hiding)

    data = part(trained, hide=training.hide, hide_each=training.hide_each)
    measured = part(validates)
    bound_to = _bound(settings, training, conditions, tokeniser)
    bound_to["data"] = _digest(sequences, values, present, whose, sorted(held_out))
    with enough_memory("take a smaller batch, or a prior with sparse attention"):
        result = train(
            _Likelihood(prior), _mean, data, training.loop(),
            validation=measured if validates else None, device=device, checkpoint=checkpoint,
            progress=progress, bound_to=bound_to,
        )  # fmt: skip
        prior.eval()
        facts: dict[str, Json] = {
            "trained": _likelihood_facts(prior, part(trained)),
            "held_out": _likelihood_facts(prior, measured) if validates else None,
        }
    return PriorModel(
        prior, conditions, asdict(training), result.history, result.best_iteration,
        result.iterations, tokeniser, facts,
    )  # fmt: skip


def _check(
    codes: Tensor, table: Mapping[str, Sequence[Any]], kinds: Mapping[str, Any],
    settings: PriorSettings,
) -> None:  # fmt: skip
    if tuple(codes.shape[1:]) != settings.grid or not len(codes):
        raise UsageError(
            "the codes are not those of the prior",
            expected=f"a grid of {settings.grid}, of one volume or more",
            got=str(tuple(codes.shape)),
        )
    if int(codes.min()) < 0 or int(codes.max()) >= settings.codes:
        raise UsageError(
            "the codes are of another codebook",
            expected=f"0 to {settings.codes - 1}",
            got=f"{int(codes.min())} to {int(codes.max())}",
        )
    for name in kinds:
        if name not in table:
            raise UsageError(
                "the table lacks a condition", expected=name, got=", ".join(table) or "none"
            )
        if len(table[name]) != len(codes):
            raise UsageError(
                "the table does not have one row for each volume",
                where=f"condition {name}", expected=str(len(codes)), got=str(len(table[name])),
            )  # fmt: skip


def _held_out(
    whose: list[int], validation: Sequence[int] | None, training: PriorTraining
) -> set[int]:
    """Return the subjects that validate."""
    known = sorted(set(whose))
    if validation is not None:
        unknown = set(validation) - set(known)
        if unknown:
            raise UsageError("a subject to validate with is not there", got=str(min(unknown)))
        return set(validation)
    count = min(math.floor(training.validation_share * len(known) + 0.5), len(known) - 1)
    made = torch.Generator().manual_seed(training.seed)
    order = torch.randperm(len(known), generator=made).tolist()
    return {known[n] for n in order[:count]}


def _plain(rows: list[dict[str, Any]], conditions: Conditions, of: list[int]) -> list[int]:
    """Return those of some volumes that are not augmented, or all if every one is."""
    neutral = {c.name: c.neutral for c in conditions.items if c.kind == "augmentation"}
    kept = [n for n in of if all(rows[n][name] in (None, at) for name, at in neutral.items())]
    return kept or of


def _likelihood_facts(prior: Prior, data: ConditionedCodes) -> dict[str, Json]:
    """Return mean and standard error of what `likelihoods` finds, and of their difference."""
    told, untold = likelihoods(prior, data.codes, data.values, data.present)
    figures = {"conditional": told, "unconditional": untold, "gain": untold - told}
    return {"n": len(told)} | {name: _mean_and_error(each) for name, each in figures.items()}


def _mean_and_error(each: Tensor) -> dict[str, Json]:
    error = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else None
    return {"mean": float(each.mean()), "standard_error": error}


def _bound(
    settings: PriorSettings, training: PriorTraining, conditions: Conditions, tokeniser: str
) -> dict[str, Json]:
    """Return what a checkpoint belongs to besides the settings of the loop."""
    loop = {f.name for f in fields(LoopSettings)}
    own = {n: v for n, v in asdict(training).items() if n not in loop and n not in _FREE}
    return plain_json(
        {"prior": settings.to_json(), **own, **conditions.to_json(), "tokeniser": tokeniser}
    )


def _digest(codes: Tensor, values: Tensor, present: Tensor, whose: list[int], held: Any) -> str:
    tensors = {"codes": codes, "values": values, "present": present}
    content = pack_weights(tensors, {"subjects": list(whose), "held_out": list(held)})
    return hashlib.sha256(content).hexdigest()
