"""What a PERK model is trained for: samples, targets and scale of the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from medpipe.errors import UsageError
from medpipe.qmri.features import FourierFeatures, regressors
from medpipe.qmri.priors import Prior
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.quantities import QUANTITIES
from medpipe.qmri.samples import Samples, complete_priors, draw_samples, noise_levels
from medpipe.seeds import derive_seed

__all__ = ["Recipe", "TrainingSet", "make_recipe", "relative_score"]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Regressors with the values they come from.

    Parameters
    ----------
    samples : Samples
        What was simulated.
    q : Tensor
        float64 (N, Q), regressors.
    values : Tensor
        float64 (N, L), true values of the regressed latents.
    """

    samples: Samples
    q: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class Recipe:
    """Everything that training depends on except kernel scale, ridge and sizes.

    Parameters
    ----------
    protocol : Protocol
    priors : dict of str to Prior
        One for each latent and known regressor.
    noise_sigma : tuple of float
        Standard deviation of each measured value, in the unit in which M0 is drawn.
    normalize : bool
        Regress on the signal divided by its norm; M0 is then not regressed.
    logarithm : bool
        Regress the logarithms of the latents, so that errors count in relation to the
        value and no estimate is negative.
    seed : int
    """

    protocol: Protocol
    priors: Mapping[str, Prior]
    noise_sigma: tuple[float, ...]
    normalize: bool
    logarithm: bool
    seed: int

    @property
    def regressed(self) -> tuple[str, ...]:
        """The latents that the regression gives, in its order."""
        skip = ("m0",) if self.normalize else ()
        return tuple(name for name in self.protocol.latents if name not in skip)

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each regressed latent in the hold-out score: the times alone count."""
        times = [float(QUANTITIES[name].unit == "s") for name in self.regressed]
        return tuple(w / sum(times) for w in times)

    def draw(self, count: int, stream: str, device: torch.device | str = "cpu") -> TrainingSet:
        """Return `count` samples of the named stream of random numbers."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "perk", stream))
        made = draw_samples(self.protocol, self.priors, self.noise_sigma, count, generator)
        q = regressors(made.signal, made.known, self.protocol, self.normalize)
        values = torch.stack([made.values[name] for name in self.regressed], 1)
        return TrainingSet(made, q.to(device), values.to(device))

    def features(self, scale: torch.Tensor, length_scale: float, count: int) -> FourierFeatures:
        """Return the features; the draw is the same for every `length_scale`."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "perk", "features"))
        return FourierFeatures.draw(scale, length_scale, count, generator)

    def to_targets(self, values: torch.Tensor) -> torch.Tensor:
        """Return what is regressed for values of the latents."""
        return values.log() if self.logarithm else values

    def from_targets(self, targets: torch.Tensor) -> torch.Tensor:
        """Return values of the latents for what was regressed."""
        return targets.exp() if self.logarithm else targets


def make_recipe(
    protocol: Protocol,
    priors: Mapping[str, Prior] | None,
    noise_sigma: float | Sequence[float],
    *,
    normalize: bool = True,
    logarithm: bool = True,
    seed: int = 0,
) -> Recipe:
    """Return the recipe after a check of its parts; missing priors take their defaults.

    Raises
    ------
    UsageError
        For a noise level that is not above 0, a prior of nothing in the protocol, one
        of values that are not above 0 where their logarithm is regressed, or a
        normalised problem with nothing but M0 in it.
    """
    recipe = Recipe(
        protocol,
        complete_priors(protocol, priors),
        noise_levels(noise_sigma, protocol.count),
        normalize,
        logarithm,
        seed,
    )
    if not recipe.regressed:
        raise UsageError("the protocol has no unknown besides m0", where="training")
    for name in recipe.regressed:
        if logarithm and recipe.priors[name].support[0] <= 0:
            raise UsageError(
                f"the prior of {name} reaches values that have no logarithm",
                where="training",
                expected="a range above 0",
                hint="set its lower end above 0, or train with logarithm=False",
            )
    return recipe


def relative_score(
    found: torch.Tensor, truth: torch.Tensor, weights: Sequence[float]
) -> torch.Tensor:
    """Return √(mean Σ w_l ((found - truth)/truth)²), the score of the published hold-out.

    Parameters
    ----------
    found : Tensor
        (..., T, L) estimates.
    truth : Tensor
        (T, L).
    weights : sequence of float
        One per latent, summing to 1.

    Returns
    -------
    Tensor (...)
    """
    relative = (found - truth) / truth
    weight = torch.tensor(tuple(weights)).to(truth)
    return (relative.square() @ weight).mean(-1).sqrt()
