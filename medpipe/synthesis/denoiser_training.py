"""Training of a denoiser on latents, stopped early on patients it was not shown."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler
from monai.transforms.transform import Randomizable
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from medpipe.errors import UsageError
from medpipe.seeds import derive_seed
from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.denoiser import Denoiser, DenoiserSettings, expected_latents
from medpipe.synthesis.flow import NOISE_LEVELS, TIMES
from medpipe.synthesis.latents import Latents
from medpipe.synthesis.memory import enough_memory
from medpipe.synthesis.model_file import plain_json
from medpipe.train import LoopSettings, train
from medpipe.train.settings import Tell
from medpipe.types import Json

__all__ = ["DenoiserTraining", "LatentDraws", "denoising_errors", "train_denoiser"]

Times = Literal["uniform", "logit-normal"]
LEAST_SPREAD = 0.05
"""Of a number of a latent: what hardly varies is not blown up."""
RIDGE = 0.01
"""Of the regression on conditions, relative to one of variance 1."""
BATCH = 16
"""Latents that are measured together."""


@dataclass(frozen=True)
class DenoiserTraining:
    """How a denoiser is trained.

    Parameters
    ----------
    iterations, batch_size, learning_rate, weight_decay, schedule, warmup, clip_norm, ema_decay,
    validate_every, patience, amp, workers, seed
        See `medpipe.train.LoopSettings`; the metric is the mean squared error on what
        validates, with noise and times that are always the same.
    hide : float
        Share of the samples whose conditions are all hidden; guidance needs some.
    hide_each : float
        Share in which each condition, augmentations apart, is hidden alone, so that volumes
        can be drawn for patients of whom not all is known.
    times : {"uniform", "logit-normal"}
        See `LatentDraws`.
    validation_draws : int
        Times and noises for each volume that validates.
    """

    iterations: int = 3000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["one-cycle", "cosine", "constant"] = "cosine"
    warmup: int = 100
    clip_norm: float | None = 1.0
    ema_decay: float | None = 0.995
    hide: float = 0.1
    hide_each: float = 0.1
    times: Times = "uniform"
    validation_draws: int = 8
    validate_every: int = 100
    patience: int | None = 10
    amp: bool = True
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.hide < 1 and 0 <= self.hide_each < 1 and self.validation_draws >= 1):
            raise UsageError(
                "the settings of the training of a denoiser are wrong",
                expected="hide and hide_each from 0 to below 1, validation_draws of 1 or more",
            )
        if self.times not in ("uniform", "logit-normal"):
            raise UsageError("unknown times", expected="uniform or logit-normal")
        self.loop()  # says what is wrong with its part

    def loop(self) -> LoopSettings:
        """Return the part of the settings that any training has."""
        own = {f.name: getattr(self, f.name) for f in fields(LoopSettings) if hasattr(self, f.name)}
        return LoopSettings(**own, checkpoint_every=self.validate_every)


class LatentDraws(Dataset[Any], Randomizable):
    """Noisy latents and what a denoiser shall predict from them.

    Each time a latent is used, its own noise, the noise of the diffusion, the time and
    which conditions are hidden are drawn on the host, from the seed of the sample alone.

    Parameters
    ----------
    latents : Latents
    objective : {"flow", "velocity", "noise"}
        See `DenoiserSettings`.
    hide, hide_each : float
        See `DenoiserTraining`; the second needs `conditions`.
    times : {"uniform", "logit-normal"}
        How times are drawn: evenly, or more often in the middle (Esser et al., arXiv
        2403.03206).
    draws : int
        How often each latent is there. The times of its draws are spread: one in each of so
        many equal parts.
    conditions : Conditions, optional
        That the values are of.
    expected : Denoiser, optional
        One with a grid: what it expects of the conditions that are shown is taken out of the
        latents, which are divided by its spread.
    until : float
        Share of the times that is drawn: no later ones, which a denoiser that begins there
        (`DenoiserSettings.begin`) is never asked for.
    """

    def __init__(
        self, latents: Latents, objective: str, *, hide: float = 0.1, times: Times = "uniform",
        hide_each: float = 0.0, draws: int = 1, conditions: Conditions | None = None,
        expected: Denoiser | None = None, until: float = 1.0,
    ) -> None:  # fmt: skip
        if not 0.0 <= hide <= 1.0:
            raise UsageError("hide is wrong", expected="a share, 0 to 1", got=str(hide))
        if times not in ("uniform", "logit-normal"):
            raise UsageError("unknown times", expected="uniform or logit-normal", got=str(times))
        if hide_each and conditions is None:
            raise UsageError("hide_each needs to know the conditions", hint="give conditions")
        self.latents, self.objective, self.times, self.draws = latents, objective, times, draws
        self.hide, self.hide_each, self.until = hide, hide_each, until
        self.places: tuple[Tensor, ...] = ()
        if expected is not None and expected.settings.grid is not None:
            # copies: the denoiser moves to the device it is trained on
            known = (expected.center, expected.slopes, expected.spread)
            self.places = tuple(each.to(latents.mean.device, copy=True) for each in known)
        items = conditions.items if conditions is not None else ()
        self.columns = [(c.columns, c.kind == "augmentation") for c in items]
        self.scheduler: Any = (
            RFlowScheduler(TIMES) if objective == "flow" else DDPMScheduler(**NOISE_LEVELS)
        )

    def __len__(self) -> int:
        return len(self.latents) * self.draws

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        s, (number, draw) = self.latents, divmod(index, self.draws)
        share = (draw + float(self.R.uniform())) / self.draws
        if self.times == "logit-normal":
            share = 1.0 / (1.0 + math.exp(-float(self.R.standard_normal())))
        share *= self.until
        time = torch.tensor([share * TIMES if self.objective == "flow" else int(share * TIMES)])
        shown = self._shown(s.present[number])
        own, noise = (self._normal(s.mean[number]) for _ in range(2))
        latent = (s.mean[number] + s.sigma[number] * own)[None]
        if self.places:
            center, slopes, spread = self.places
            told = (s.values[number][None], shown[None])
            latent = (latent - expected_latents(center, slopes, *told)) / spread
        noisy = self.scheduler.add_noise(latent, noise[None], time)[0]
        target = {
            "flow": lambda: latent - noise,
            "velocity": lambda: self.scheduler.get_velocity(latent, noise[None], time),
            "noise": lambda: noise[None],
        }[self.objective]()[0]
        inputs = {"latent": noisy, "time": time[0].float(), "values": s.values[number]}
        return inputs | {"present": shown}, target

    def _shown(self, present: Tensor) -> Tensor:
        """Return which columns are known and not hidden this time, bool (conditions,)."""
        shown = present & bool(self.R.uniform() >= self.hide)
        if self.hide_each:
            alone = self.R.uniform(size=len(self.columns)) >= self.hide_each
            marks = [
                bool(kept) or augments
                for kept, (columns, augments) in zip(alone, self.columns, strict=True)
                for _ in range(columns)
            ]
            shown = shown & torch.tensor(marks, dtype=torch.bool)
        return shown

    def _normal(self, like: Tensor) -> Tensor:
        return torch.from_numpy(self.R.standard_normal(tuple(like.shape))).to(like)


class _Told(nn.Module):
    """A denoiser that is called with a dict."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the prediction."""
        return self.denoiser(**inputs)


def train_denoiser(
    latents: Latents,
    settings: DenoiserSettings,
    training: LoopSettings,
    *,
    validation: Latents | None = None,
    hide: float = 0.1,
    times: Times = "uniform",
    hide_each: float = 0.0,
    validation_draws: int = 1,
    conditions: Conditions | None = None,
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    progress: Tell | None = None,
) -> Denoiser:
    """Train a denoiser on latents.

    Parameters
    ----------
    latents : Latents
        On the host; see `encode_latents`.
    settings : DenoiserSettings
    training : LoopSettings
        An average of the weights (``ema_decay``) makes better samples.
    validation : Latents, optional
        To choose the best weights by; its metric is the mean squared error at times and with
        noise that are the same at every validation.
    hide, times, hide_each, conditions
        See `LatentDraws`.
    validation_draws : int
        Times and noises for each latent that validates.
    device, checkpoint, progress
        See `medpipe.train.train`.

    Returns
    -------
    Denoiser
        In evaluation mode, on `device`, with `facts`.

    Raises
    ------
    UsageError
        If the latents do not have the channels and conditions of `settings`.
    UsageError, StepError, StoreError
        See `medpipe.train.train`.
    """
    for some in (latents, validation or latents):
        found = (some.mean.shape[1], some.values.shape[1])
        if found != (settings.latent_channels, settings.conditions):
            raise UsageError(
                "the latents are not those of the settings",
                expected=f"{settings.latent_channels} channels, {settings.conditions} conditions",
                got=f"{found[0]} and {found[1]}",
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        # directions are no matter of the network that is trained, nor of its checkpoints
        trained = replace(settings, directions=0, begin=1.0)
        denoiser = Denoiser(trained)
    how: dict[str, Any] = {
        "hide": hide, "times": times, "hide_each": hide_each, "until": settings.begin,
    }  # fmt: skip
    bound = _bound(latents, trained, {**how, "draws": validation_draws})
    if settings.grid is not None:
        _measure_places(denoiser, latents)
    measured = None
    if validation is not None:
        measured = LatentDraws(
            validation, settings.objective, hide=0.0, draws=validation_draws, expected=denoiser,
            until=settings.begin,
        )  # fmt: skip
    with enough_memory("take a smaller batch"):
        result = train(
            _Told(denoiser), functional.mse_loss,
            LatentDraws(
                latents, settings.objective, conditions=conditions, expected=denoiser, **how
            ), training,
            validation=measured, device=device, checkpoint=checkpoint, progress=progress,
            bound_to=bound,
        )  # fmt: skip
    if settings.directions:
        still = latents.part(_unmoved(latents, conditions))
        denoiser = _with_directions(denoiser, settings, still)
    denoiser.autoencoder = latents.autoencoder
    denoiser.facts = {
        "training": asdict(training),
        **how,
        "history": list(result.history),
        "best": result.best_metric if math.isfinite(result.best_metric) else None,
        "best_iteration": result.best_iteration,
    }
    return denoiser.eval()


@torch.no_grad()
def denoising_errors(
    denoiser: Denoiser, latents: Latents, *, draws: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the squared error of a denoiser for each latent, told its conditions and not.

    Times are spread over all that the denoiser is asked for; both errors are those of the same
    noise, which only `seed` and the place of the latent decide.

    Parameters
    ----------
    denoiser : Denoiser
    latents : Latents
    draws : int
        Times and noises for each.
    seed : int

    Returns
    -------
    told, untold : Tensor (N,)
    """
    both = [
        LatentDraws(
            latents,
            denoiser.settings.objective,
            hide=h,
            draws=draws,
            expected=denoiser,
            until=denoiser.settings.begin,
        )
        for h in (0.0, 1.0)
    ]
    where = next(denoiser.parameters())
    errors: list[list[Tensor]] = [[], []]
    for found, data in zip(errors, both, strict=True):
        for first in range(0, len(data), BATCH):
            rows = []
            for number in range(first, min(first + BATCH, len(data))):
                data.set_random_state(seed=derive_seed(seed, "denoising", str(number)))
                rows.append(data[number])
            inputs = {n: torch.stack([r[0][n] for r in rows]).to(where.device) for n in rows[0][0]}
            wanted = torch.stack([row[1] for row in rows]).to(where)
            found.append((denoiser(**inputs) - wanted).square().flatten(1).mean(1))
    one, two = (torch.cat(found).reshape(-1, draws).mean(1) for found in errors)
    return one, two


def _measure_places(denoiser: Denoiser, latents: Latents) -> None:
    """Set mean, standard deviation (noise included) and slopes of each number of a latent."""
    grid = tuple(latents.mean.shape[2:])
    if grid != denoiser.settings.grid:
        raise UsageError(
            "the latents are not on the grid of the settings",
            expected=str(denoiser.settings.grid), got=str(grid),
        )  # fmt: skip
    center = latents.mean.mean(0)
    variance = latents.mean.var(0, correction=0) + latents.sigma.square().mean(0)
    denoiser.center.copy_(center)
    denoiser.spread.copy_(variance.sqrt().clamp_min(LEAST_SPREAD))
    known = torch.where(latents.present, latents.values, torch.zeros_like(latents.values))
    # a little shrinkage, for conditions that hardly vary or go together
    gram = known.T @ known + RIDGE * len(known) * torch.eye(known.shape[1])
    found = torch.linalg.solve(gram, known.T @ (latents.mean - center).flatten(1))
    denoiser.slopes.copy_(found.reshape(denoiser.slopes.shape))


def _unmoved(latents: Latents, conditions: Conditions | None) -> list[int]:
    """Return which latents are of volumes as they are: those are what is drawn."""
    moved = torch.zeros(len(latents), dtype=torch.bool)
    if conditions is not None:
        for condition in conditions.items:
            if condition.kind == "augmentation":
                moved |= latents.values[:, conditions.first_columns[condition.name]] != 0
    still = (~moved).nonzero()[:, 0].tolist()
    return still if len(still) > 1 else list(range(len(latents)))


def _with_directions(denoiser: Denoiser, settings: DenoiserSettings, latents: Latents) -> Denoiser:
    """Return a denoiser with principal directions of latents, 0 where there are no more."""
    made = Denoiser(settings).to(denoiser.center.device)
    made.load_state_dict(denoiser.state_dict(), strict=False)
    where = latents.mean.device
    center, slopes, spread = (x.to(where) for x in (made.center, made.slopes, made.spread))
    left = latents.mean - expected_latents(center, slopes, latents.values, latents.present)
    left = (left / spread).flatten(1)
    left = (left - left.mean(0)) / math.sqrt(max(1, len(left) - 1))
    _, lengths, found = torch.linalg.svd(left.double(), full_matrices=False)
    scaled = (lengths[:, None] * found)[: settings.directions].float()
    made.directions[: len(scaled)] = scaled.reshape(-1, *made.directions.shape[1:])
    return made


def _bound(latents: Latents, settings: DenoiserSettings, how: dict[str, Any]) -> dict[str, Json]:
    """Return what a checkpoint belongs to besides the settings of the loop."""
    data = hashlib.sha256(latents.to_bytes()).hexdigest()
    said: dict[str, Json] = plain_json({"denoiser": asdict(settings), **how})
    return said | {"latents": data}
