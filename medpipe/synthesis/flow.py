"""From noise to latents: sampling with a trained denoiser.

The steps are those of MONAI's schedulers. A diffusion is sampled at some of the thousand
times it was trained at; the scheduler is given the noise levels of those times alone, so that
one of its steps leads from each to the next. (Left to itself, MONAI's `DDPMScheduler` goes
back by one time at every step, however far apart the times are: 50 steps for a population of
mean 0.7 and standard deviation 0.4 end at 0.1 and 0.9.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler, RFlowScheduler
from torch import Tensor, nn

from medpipe.errors import UsageError
from medpipe.seeds import derive_seed
from medpipe.synthesis.denoiser import Denoiser
from medpipe.synthesis.memory import enough_memory
from medpipe.synthesis.parallel.patches import PatchParallel, WholePart

__all__ = ["SchedulerName", "sample_latents"]

SchedulerName = Literal["rflow", "ddim", "ddpm", "pndm"]

TIMES = 1000
NOISE_LEVELS: dict[str, Any] = {
    "num_train_timesteps": TIMES, "schedule": "scaled_linear_beta", "beta_start": 0.0015,
    "beta_end": 0.0195,
}  # fmt: skip
"""Of diffusions of latents (Rombach et al., arXiv 2112.10752)."""


class _FlowSteps:
    """Euler's steps along the flow, at whole times.

    MONAI's times are kept in half precision and its step cuts them to whole numbers: with
    times that are not whole the steps would not add up to the whole way.
    """

    def __init__(self, steps: int) -> None:
        self.scheduler = RFlowScheduler(TIMES, use_discrete_timesteps=True)
        self.scheduler.set_timesteps(steps)
        self.times: list[int] = self.scheduler.timesteps.tolist()
        self.noisy = False

    def step(self, k: int, predicted: Tensor, x: Tensor, noise: Tensor | None) -> Tensor:
        """Return the latent after step `k`."""
        following = [*self.times, 0][k + 1]
        return self.scheduler.step(predicted, self.times[k], x, following)[0]


class _DiffusionSteps:
    """Steps of a diffusion backwards, over some of its times."""

    def __init__(self, name: str, steps: int, objective: str) -> None:
        levels = DDPMScheduler(**NOISE_LEVELS).alphas_cumprod
        kept = torch.linspace(TIMES - 1, 0, steps).round().long().flip(0)
        self.noisy, self.velocity = name == "ddpm", objective == "velocity"
        how: dict[str, Any] = {"num_train_timesteps": steps}  # all are given the noise
        if name == "pndm":
            self.scheduler: Any = PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True, **how)
        else:  # a latent is not between -1 and 1
            kind = DDIMScheduler if name == "ddim" else DDPMScheduler
            self.scheduler = kind(clip_sample=False, **how)
        s = self.scheduler
        s.alphas_cumprod = levels[kept]
        s.alphas = s.alphas_cumprod / torch.cat([torch.ones(1), s.alphas_cumprod[:-1]])
        s.betas = 1.0 - s.alphas
        s.set_timesteps(steps)
        self.places = list(range(steps - 1, -1, -1))
        if name == "pndm":
            # the first step is made twice: its second time is where both ends are known
            self.places.insert(1, self.places[1])
        self.times = [int(kept[place]) for place in self.places]

    def step(self, k: int, predicted: Tensor, x: Tensor, noise: Tensor | None) -> Tensor:
        """Return the latent after step `k`; `noise` is that of an ancestral step."""
        s, place = self.scheduler, self.places[k]
        level = s.alphas_cumprod[place]
        if self.velocity:  # several steps are combined: noises may be added up, velocities not
            predicted = level.sqrt() * predicted + (1 - level).sqrt() * x
        if noise is None:
            return s.step(predicted, place, x)[0]
        before = s.alphas_cumprod[place - 1] if place else torch.ones(())
        clean = (x - (1 - level).sqrt() * predicted) / level.sqrt()
        mean = (before.sqrt() * s.betas[place] * clean
                + s.alphas[place].sqrt() * (1 - before) * x) / (1 - level)  # fmt: skip
        return mean + ((1 - before) / (1 - level) * s.betas[place]).sqrt() * noise


def _steps(name: SchedulerName, steps: int, objective: str) -> _FlowSteps | _DiffusionSteps:
    if name not in get_args(SchedulerName):
        raise UsageError(
            "unknown scheduler", expected=", ".join(get_args(SchedulerName)), got=str(name)
        )
    fewest = 4 if name == "pndm" else 1  # it combines four predictions
    if not fewest <= steps <= TIMES:
        raise UsageError("steps is wrong", expected=f"{fewest} to {TIMES}", got=str(steps))
    if (name == "rflow") != (objective == "flow"):
        raise UsageError(
            "the scheduler does not fit the denoiser",
            expected="rflow" if objective == "flow" else "ddim, ddpm or pndm",
            got=name,
        )
    return _FlowSteps(steps) if name == "rflow" else _DiffusionSteps(name, steps, objective)


def sample_latents(
    denoiser: Denoiser,
    shape: Sequence[int],
    values: Tensor | None = None,
    present: Tensor | None = None,
    *,
    seeds: Sequence[int],
    steps: int = 30,
    scheduler: SchedulerName = "rflow",
    guidance: float = 1.0,
    parallel: PatchParallel | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw latents.

    Parameters
    ----------
    denoiser : Denoiser
        Its device is where the latents are made.
    shape : sequence of int
        Spatial shape of a latent; see `LatentAutoencoder.grid`.
    values, present : Tensor (B, conditions), optional
        What is asked for; see `Denoiser.forward`.
    seeds : sequence of int
        One for each latent. The noise is drawn on the host from the seed of each: a latent
        does not depend on the others of its batch, on the device, or on the processes.
    steps : int
        Of the scheduler; "pndm" takes 4 or more, and asks the denoiser once more.
    scheduler : {"rflow", "ddim", "ddpm", "pndm"}
        "rflow" for the objective "flow", the others for "velocity" and "noise".
    guidance : float
        1: as learned; above, conditions are exaggerated (each step costs two evaluations);
        0: conditions are ignored.
    parallel : PatchParallel, optional
        Share the work among processes.
    progress : callable, optional
        Told how many evaluations are done, and of how many.

    Returns
    -------
    Tensor (B, latent_channels, h, w, d)
        Scaled as the latents of the training; every process gets all of it.

    Raises
    ------
    UsageError
        If scheduler and denoiser do not fit, or there is not one seed for each condition.
    ResourceError
        If the memory of the device does not suffice.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise UsageError("the shape is wrong", expected="three extents", got=str(tuple(shape)))
    if not seeds or (values is not None and len(values) != len(seeds)):
        raise UsageError("there is not one seed for each latent", got=str(len(seeds)))
    way = _steps(scheduler, steps, denoiser.settings.objective)
    grid = denoiser.settings.grid
    if grid is not None and tuple(shape) != grid:
        raise UsageError(
            "the denoiser draws latents of one size", expected=str(grid), got=str(tuple(shape))
        )
    own = next(denoiser.parameters())
    noise = _Noise(seeds, (denoiser.settings.latent_channels, *shape))
    training = denoiser.training
    denoiser.eval()
    try:
        with (
            torch.no_grad(),
            enough_memory("draw fewer at once, or share the work among devices"),
        ):
            part = (
                WholePart(denoiser)
                if parallel is None
                else parallel.part(denoiser, shape, denoiser.stride)
            )
            guided = _Guided(part.module, values, present, guidance, own)
            x, begin = noise.draw(), denoiser.settings.begin * TIMES
            if begin < TIMES:
                begin = max((t for t in way.times if t <= begin), default=way.times[-1])
                x = begin / TIMES * x + (1 - begin / TIMES) * noise.along(denoiser.directions)
            x = part.cut(x).to(own)
            used = [k for k, time in enumerate(way.times) if time <= begin]
            for done, k in enumerate(used):
                part.begin(done, len(used))
                fresh = part.cut(noise.draw()).to(own) if way.noisy else None
                x = way.step(k, guided(x, way.times[k]), x, fresh)
                if progress is not None:
                    progress(done + 1, len(used))
            x = part.join(x)
            return x if grid is None else x * denoiser.spread + guided.expected(denoiser)
    finally:
        denoiser.train(training)


class _Noise:
    """Normal numbers of each case from its own seed, on the host."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.made = [torch.Generator().manual_seed(derive_seed(s, "latent")) for s in seeds]

    def draw(self) -> Tensor:
        """Return the next numbers of all cases (B, C, h, w, d)."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.made])

    def along(self, directions: Tensor) -> Tensor:
        """Return random sums of directions (n, C, h, w, d) for all cases (B, C, h, w, d)."""
        drawn = torch.stack([torch.randn(len(directions), generator=g) for g in self.made])
        return torch.tensordot(drawn, directions.to(drawn), 1)


class _Guided:
    """A denoiser with what it is told, and how much that counts."""

    def __init__(
        self, module: nn.Module, values: Tensor | None, present: Tensor | None, guidance: float,
        like: Tensor,
    ) -> None:  # fmt: skip
        self.module, self.guidance = module, guidance
        self.values = None if values is None else values.to(like)
        known = torch.ones(()) if values is None else torch.ones_like(values)
        self.present = (known if present is None else present).to(like.device).bool()

    def expected(self, denoiser: Denoiser) -> Tensor:
        """Return the mean of the latents, see `Denoiser.expected`."""
        if self.values is None or self.guidance == 0.0:
            return denoiser.center
        return denoiser.expected(self.values, self.present)

    def __call__(self, x: Tensor, time: float) -> Tensor:
        """Return the prediction at a time."""
        times = torch.full((len(x),), float(time), device=x.device, dtype=x.dtype)
        if self.values is None or self.guidance == 0.0:
            return self.module(x, times)
        if self.guidance == 1.0:
            return self.module(x, times, self.values, self.present)
        nothing = torch.zeros_like(self.present)
        both = self.module(
            torch.cat([x, x]), times.repeat(2), self.values.repeat(2, 1),
            torch.cat([self.present, nothing]),
        )  # fmt: skip
        told, untold = both.chunk(2)
        return untold + self.guidance * (told - untold)
