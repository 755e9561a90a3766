"""The two ways to a volume: codes and their prior, latents and their denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medpipe.errors import UsageError
from medpipe.synthesis.autoencoder import LatentAutoencoder
from medpipe.synthesis.baseline_route import BaselineRoute
from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.denoiser import Denoiser
from medpipe.synthesis.flow import SchedulerName, sample_latents
from medpipe.synthesis.model_file import packed_parts, part_of
from medpipe.synthesis.prior_model import PriorModel
from medpipe.synthesis.sampling import sample_codes
from medpipe.synthesis.tokeniser_training import TokeniserModel
from medpipe.types import Json

__all__ = ["DrawSettings", "LatentRoute", "TokenRoute", "route_from"]

CORRECTIONS = 6
"""Of latents by default: each along the slopes leaves about a fifth of what was lacking, and
those by a gradient less."""


@dataclass(frozen=True)
class DrawSettings:
    """How volumes are drawn.

    Parameters
    ----------
    temperature, top_k, top_p
        Of a prior: see `sample_codes`.
    guidance : float
        1: as learned; above, conditions count more.
    steps : int
        Of a denoiser: see `sample_latents`.
    scheduler : str, optional
        Of a denoiser; by default "rflow" or "ddim", whichever fits.
    batch : int, optional
        Volumes whose codes or latents are drawn at a time; what is drawn does not depend
        on it.
    candidates : int
        Of so many volumes for each row the one is kept whose labels fit its conditions best,
        at so many times the cost; see `medpipe.synthesis.label_reading`.
    corrections : int, optional
        How often, at most, a latent is moved until the labels have what was asked for: as
        little as will do by what a labeller sees, or the way that patients differ. Each costs
        a decoding, and with a labeller the gradient of one. By default `CORRECTIONS` times,
        where the generator can.
    detail : float, optional
        Share of the fine detail that is put back; see `medpipe.synthesis.detail`. By default
        that of the training. What is left out has edges in it too, which noise does not give
        back: with all of it images are too noisy. 0: images as the networks draw them, whose
        intensities are not mapped either.

    Raises
    ------
    UsageError
        If there is no candidate, or less than no correction or detail.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    steps: int = 30
    scheduler: SchedulerName | None = None
    batch: int | None = None
    candidates: int = 1
    corrections: int | None = None
    detail: float | None = None

    def __post_init__(self) -> None:
        corrections, detail = self.corrections or 0, self.detail or 0.0
        if self.candidates < 1 or corrections < 0 or not detail >= 0:
            raise UsageError(
                "the settings of drawing are wrong",
                expected="candidates of 1 or more, corrections and detail of 0 or more",
                got=f"{self.candidates}, {corrections} and {detail:g}",
            )


@dataclass(frozen=True, eq=False)
class TokenRoute:
    """A tokeniser and the prior of its codes.

    Parameters
    ----------
    tokeniser : TokeniserModel
    prior : PriorModel
    """

    tokeniser: TokeniserModel
    prior: PriorModel
    name: ClassVar[str] = "tokens"

    @property
    def conditions(self) -> Conditions:
        """Those of the prior."""
        return self.prior.conditions

    @property
    def image_channels(self) -> int:
        """Channels of the image; those after them are of labels."""
        return self.tokeniser.settings.image_channels

    @property
    def label_classes(self) -> int:
        """Classes of the labels, background included; 0 for none."""
        return self.tokeniser.settings.label_classes

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All of them."""
        return self.tokeniser.tokeniser, self.prior.prior

    def check(self, shape: Sequence[int]) -> None:
        """Raise UsageError unless prior and tokeniser fit each other and a shape."""
        self.prior.check_tokeniser(self.tokeniser)
        grid = self.tokeniser.tokeniser.grid(shape)
        if grid != self.prior.settings.grid:
            raise UsageError(
                "the prior is of volumes of another size",
                expected=f"a grid of {grid}, that of the volumes",
                got=str(self.prior.settings.grid),
            )

    def draw(
        self, values: Tensor, present: Tensor, seeds: Sequence[int], shape: Sequence[int],
        settings: DrawSettings, progress: Callable[[Any], None] | None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield volumes (C, I, J, K); codes of all are drawn first, they are small."""
        prior = self.prior.prior
        where = prior.start.device
        told = (values.to(where), present.to(where)) if prior.conditions is not None else ()
        drawn = sample_codes(
            prior, *told, seeds=seeds, temperature=settings.temperature, top_k=settings.top_k,
            top_p=settings.top_p, guidance=settings.guidance, batch=settings.batch,
            progress=progress,
        )  # fmt: skip
        for codes in prior.to_grid(drawn):
            with torch.no_grad():
                yield self.tokeniser.tokeniser.decode(codes[None], shape)[0]

    def rebuilt(self, volume: Tensor) -> Tensor:
        """Return a volume (C, I, J, K), labels one-hot, as it comes back from its codes."""
        net = self.tokeniser.tokeniser
        x = volume[None].to(net.codebook.vectors.device)
        with torch.no_grad():
            return net.decode(net.encode(x), x.shape[2:])[0]

    def packed(self, half: bool) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Return tensors and headers of both, the names of the tensors prefixed."""
        prior = self.prior
        if half and prior.tokeniser:  # its codes belong to the tokeniser as it is rounded
            rounded = TokeniserModel.from_bytes(self.tokeniser.to_bytes(half=True))
            prior = replace(prior, tokeniser=rounded.digest)
        parts = {
            "tokeniser": self.tokeniser.to_bytes(half=half),
            "prior": prior.to_bytes(half=half),
        }
        return packed_parts(parts)


@dataclass(frozen=True, eq=False)
class LatentRoute:
    """An autoencoder and the denoiser of its latents.

    Parameters
    ----------
    autoencoder : LatentAutoencoder
    denoiser : Denoiser
    conditions : Conditions
        That the values which the denoiser was trained with are of.
    """

    autoencoder: LatentAutoencoder
    denoiser: Denoiser
    conditions: Conditions
    name: ClassVar[str] = "latents"

    @property
    def image_channels(self) -> int:
        """Channels of the image."""
        return self.autoencoder.settings.image_channels

    @property
    def label_classes(self) -> int:
        """Classes of the labels, background included; 0 for none."""
        return self.autoencoder.settings.label_classes

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """All of them."""
        return self.autoencoder, self.denoiser

    def check(self, shape: Sequence[int]) -> None:
        """Raise UsageError unless the networks fit each other."""
        self.denoiser.check_autoencoder(self.autoencoder)
        wanted = self.denoiser.settings.conditions
        if self.conditions.columns != wanted:
            raise UsageError(
                "the conditions are not those of the denoiser",
                expected=f"{wanted} columns", got=str(self.conditions.columns),
            )  # fmt: skip

    def draw(
        self, values: Tensor, present: Tensor, seeds: Sequence[int], shape: Sequence[int],
        settings: DrawSettings, progress: Callable[[Any], None] | None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield volumes (C, I, J, K); latents are drawn one batch at a time."""
        for latent in self.latents(values, present, seeds, shape, settings, progress):
            yield self.decoded(latent, shape)

    def latents(
        self, values: Tensor, present: Tensor, seeds: Sequence[int], shape: Sequence[int],
        settings: DrawSettings, progress: Callable[[Any], None] | None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield latents (latent_channels, h, w, d)."""
        own: SchedulerName = "rflow" if self.denoiser.settings.objective == "flow" else "ddim"
        grid, batch = self.autoencoder.grid(shape), settings.batch or 1
        where = self.autoencoder.scale.device
        for first in range(0, len(seeds), batch):
            part = slice(first, first + batch)
            yield from sample_latents(
                self.denoiser, grid, values[part].to(where), present[part].to(where),
                seeds=seeds[part], steps=settings.steps, scheduler=settings.scheduler or own,
                guidance=settings.guidance,
                progress=None if progress is None else lambda *at: progress(at),
            )  # fmt: skip

    def decoded(self, latent: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the volume (C, I, J, K) of a latent."""
        with torch.no_grad():
            return self.autoencoder.decode(latent[None], shape)[0]

    @property
    def slopes(self) -> Tensor | None:
        """By how much a latent changes with each condition, where the denoiser knows places."""
        return None if self.denoiser.settings.grid is None else self.denoiser.slopes

    @property
    def spread(self) -> Tensor:
        """Standard deviation of each number of a latent; of all, where places are not known."""
        own = self.denoiser
        return self.autoencoder.scale.new_ones(()) if own.settings.grid is None else own.spread

    def rebuilt(self, volume: Tensor) -> Tensor:
        """Return a volume (C, I, J, K), labels one-hot, as it comes back from its latent."""
        x = volume[None].to(self.autoencoder.scale.device)
        with torch.no_grad():
            return self.autoencoder.decode(self.autoencoder.encode(x)[0], x.shape[2:])[0]

    def packed(self, half: bool) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Return tensors and headers of both, the names of the tensors prefixed."""
        belongs = self.denoiser.autoencoder
        if half and belongs:  # its latents belong to the autoencoder as it is rounded
            belongs = LatentAutoencoder.from_bytes(self.autoencoder.to_bytes(half=True)).digest()
        parts = {
            "autoencoder": self.autoencoder.to_bytes(half=half),
            "denoiser": self.denoiser.to_bytes(half=half, autoencoder=belongs),
        }
        tensors, header = packed_parts(parts)
        return tensors, header | self.conditions.to_json()


def route_from(
    name: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> TokenRoute | LatentRoute | BaselineRoute:
    """Return the route that ``packed`` packed; KeyError or ValueError for anything else."""
    if name == TokenRoute.name:
        tokeniser = TokeniserModel.from_bytes(part_of("tokeniser", tensors, header))
        return TokenRoute(tokeniser, PriorModel.from_bytes(part_of("prior", tensors, header)))
    if name == LatentRoute.name:
        autoencoder = LatentAutoencoder.from_bytes(part_of("autoencoder", tensors, header))
        denoiser = Denoiser.from_bytes(part_of("denoiser", tensors, header))
        conditions = Conditions.from_json({"conditions": header["conditions"]})
        return LatentRoute(autoencoder, denoiser, conditions)
    if name == BaselineRoute.name:
        return BaselineRoute.unpacked(tensors, header)
    raise ValueError
