"""What a tokeniser is trained with: pixels, spectrum, features, labels, and an opponent.

The sum of Tudosiu et al. (arXiv 2209.03177): squared error, error of the amplitudes of the
Fourier transform, distance of features, and least-squares GAN (arXiv 1611.04076) with a
discriminator of patches. No weights are downloaded: features come from a network that is
given, see `medpipe.synthesis.features`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional

from medpipe.errors import UsageError
from medpipe.synthesis.tokeniser import Reconstruction
from medpipe.train import Opponent

__all__ = [
    "LossWeights",
    "PerceptualLoss",
    "TokeniserLoss",
    "check_patches",
    "discriminator_loss",
    "label_loss",
    "least_squares_opponent",
    "spectral_loss",
]

Pixel = Literal["l1", "mse"]


@dataclass(frozen=True)
class LossWeights:
    """What each part of the loss counts.

    Parameters
    ----------
    pixel : {"l1", "mse"}
        Absolute or squared error of intensities, which counts 1.
    spectral : float
        Of `spectral_loss`.
    perceptual : float
        Of `PerceptualLoss`; needs a network of features.
    labels : float
        Of `label_loss`; all classes alike: weights of classes inflate small structures.
    adversarial : float
        Of the opponent's judgement, once it counts in full.
    """

    pixel: Pixel = "mse"
    spectral: float = 1.0
    perceptual: float = 0.0
    labels: float = 0.2
    adversarial: float = 0.0

    def __post_init__(self) -> None:
        if self.pixel not in ("l1", "mse"):
            raise UsageError("unknown pixel loss", expected="l1 | mse")
        if min(self.spectral, self.perceptual, self.labels, self.adversarial) < 0:
            raise UsageError("a weight of a loss is wrong", expected="0 or more")


def spectral_loss(made: Tensor, real: Tensor) -> Tensor:
    """Return the mean squared difference of Fourier amplitudes (arXiv 2005.00341, eq. 5).

    Over channels and space, with orthonormal scale. Half of the spectrum of real volumes
    is the mirror of the other half and is not computed. Where an amplitude is 0 the
    gradient is 0; the square root in MONAI's `JukeboxLoss` makes it NaN.

    Parameters
    ----------
    made, real : Tensor (B, C, I, J, K)
    """
    axes = (1, 2, 3, 4)
    with torch.autocast(made.device.type, enabled=False):
        size = made.shape[-1]
        mine, other = (
            torch.fft.rfftn(values.float(), dim=axes, norm="ortho").abs() for values in (made, real)
        )
        errors = (mine - other).square().mean(axes[:-1])
        twice = torch.full((errors.shape[-1],), 2.0, device=made.device)
        twice[0] = 1
        if size % 2 == 0:
            twice[-1] = 1
        return (errors * twice).sum(-1).mean() / size


def label_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (B, L, ...) and one-hot channels (B, L, ...)."""
    return functional.cross_entropy(logits.float(), wanted.argmax(1))


class PerceptualLoss:
    """Distance of volumes as a network sees them (Zhang et al., arXiv 1801.03924, unweighted).

    Features are brought to length 1 in each place; the squared differences are averaged
    over places, maps and, of slices, the three axes.

    Parameters
    ----------
    network : torch.nn.Module
        Of volumes or slices to a tensor of features (B, F, ...) or a list of them. It is
        used as it is: frozen, in evaluation mode.
    spatial_dims : {2, 3}
        Whether it reads slices (2.5-D) or volumes.
    share : float
        Of the slices along each axis, drawn anew every time.
    """

    def __init__(self, network: nn.Module, spatial_dims: int = 3, share: float = 0.5) -> None:
        if spatial_dims not in (2, 3) or not 0 < share <= 1:
            raise UsageError(
                "the settings of a perceptual loss are wrong",
                expected="2 or 3 spatial_dims, a share above 0 up to 1",
            )
        self.network = network.eval().requires_grad_(False)
        self.spatial_dims, self.share = spatial_dims, share

    def __call__(self, made: Tensor, real: Tensor) -> Tensor:
        """Return the distance of volumes (B, C, I, J, K), a scalar."""
        self.network.to(made.device)
        if self.spatial_dims == 3:
            return self._distance(made, real)
        parts = []
        for axis in (2, 3, 4):
            size = made.shape[axis]
            count = max(1, round(self.share * size))
            taken = torch.randperm(size)[:count].to(made.device)
            slices = (
                v.index_select(axis, taken).movedim(axis, 1).flatten(0, 1) for v in (made, real)
            )
            parts.append(self._distance(*slices))
        return torch.stack(parts).mean()

    def _distance(self, made: Tensor, real: Tensor) -> Tensor:
        mine = _maps(self.network(made))
        with torch.no_grad():
            theirs = _maps(self.network(real))
        each = [
            (_unit(a) - _unit(b)).square().sum(1).mean() for a, b in zip(mine, theirs, strict=True)
        ]
        return torch.stack(each).mean()


def discriminator_loss(network: nn.Module, made: Tensor, real: Tensor) -> Tensor:
    """Return what a discriminator learns by: real patches are 1, made ones 0 (least squares)."""
    of_real, of_made = _scores(network(real)), _scores(network(made))
    return 0.5 * ((of_real - 1).square().mean() + of_made.square().mean())


def least_squares_opponent(
    image_channels: int = 1, *, width: int = 64, layers: int = 3, learning_rate: float = 5e-5,
    start: int = 0, ramp: int = 0, seed: int = 0,
) -> Opponent:  # fmt: skip
    """Return a discriminator of patches that trains beside a tokeniser, on its intensities.

    Parameters
    ----------
    image_channels : int
    width : int
        Channels of its first layer.
    layers : int
        Of the discriminator, each but the last halving the resolution.
    learning_rate, start, ramp
        See `medpipe.train.Opponent`.
    seed : int
        Of its weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PatchDiscriminator(
            spatial_dims=3, channels=width, in_channels=image_channels, num_layers_d=layers
        )

    def loss(judge: nn.Module, made: Reconstruction, target: Tensor) -> Tensor:
        return discriminator_loss(
            judge, made.values[:, :image_channels], target[:, :image_channels]
        )

    return Opponent(network, loss, learning_rate=learning_rate, start=start, ramp=ramp)


def check_patches(shape: Sequence[int], layers: int) -> None:
    """Raise UsageError if volumes (I, J, K) hold no patch of a discriminator of so many layers."""
    least = 1
    for stride in [1, 1] + [2] * layers:  # from the last layer to the first
        least = (least - 1) * stride + 2
    if min(shape) < least:
        raise UsageError(
            "the volumes are too small for the discriminator",
            expected=f"{least} voxels or more along each axis",
            got=f"shape {tuple(shape)}",
            hint="give it fewer layers (discriminator_layers)",
        )


class TokeniserLoss:
    """The weighted sum that a tokeniser is trained with.

    Parameters
    ----------
    image_channels : int
        Channels of intensities; the rest are labels.
    weights : LossWeights
    features : PerceptualLoss, optional
    opponent : Opponent, optional
        That trains beside the tokeniser, for the adversarial part.
    """

    def __init__(
        self, image_channels: int, weights: LossWeights, *, features: PerceptualLoss | None = None,
        opponent: Opponent | None = None,
    ) -> None:  # fmt: skip
        if weights.perceptual and features is None:
            raise UsageError(
                "a perceptual loss needs a network of features",
                hint="train one with train_features, or set its weight to 0",
            )
        self.image_channels, self.weights = image_channels, weights
        self.features, self.opponent = features, opponent

    def parts(self, made: Reconstruction, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted parts by name, without the opponent's."""
        w, n = self.weights, self.image_channels
        image, real = made.values[:, :n], target[:, :n]
        pixel = functional.l1_loss if w.pixel == "l1" else functional.mse_loss
        parts = {"pixel": pixel(image.float(), real), "commitment": made.commitment}
        if w.spectral:
            parts["spectral"] = w.spectral * spectral_loss(image, real)
        if w.perceptual and self.features is not None:
            parts["perceptual"] = w.perceptual * self.features(image, real)
        if w.labels and target.shape[1] > n:
            parts["labels"] = w.labels * label_loss(made.values[:, n:], target[:, n:])
        return parts

    def fit(self, made: Reconstruction, target: Tensor) -> Tensor:
        """Return the sum without the opponent's part, which compares between iterations."""
        return torch.stack(list(self.parts(made, target).values())).sum()

    def __call__(self, made: Reconstruction, target: Tensor) -> Tensor:
        """Return the whole sum, a scalar."""
        total = self.fit(made, target)
        weight = self.weights.adversarial * (self.opponent.weight if self.opponent else 0.0)
        if weight and self.opponent is not None:
            scores = _scores(self.opponent.judge(made.values[:, : self.image_channels]))
            total = total + weight * (scores - 1).square().mean()
        return total


def _maps(features: Any) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features)


def _unit(values: Tensor) -> Tensor:
    """Return features of length 1 in each place; a place without any stays 0."""
    values = values.float()
    return values * torch.rsqrt(values.square().sum(1, keepdim=True) + 1e-10)


def _scores(output: Any) -> Tensor:
    """Return the last map of a discriminator, which is its judgement."""
    return _maps(output)[-1].float()
