"""How a generator is trained: settings of both networks of either route, and presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from medpipe.errors import UsageError
from medpipe.synthesis.autoencoder import AutoencoderSettings
from medpipe.synthesis.autoencoder_training import AutoencoderTraining
from medpipe.synthesis.denoiser import DenoiserSettings
from medpipe.synthesis.denoiser_training import DenoiserTraining
from medpipe.synthesis.detail import DETAIL
from medpipe.synthesis.prior import PriorSettings
from medpipe.synthesis.prior_training import PriorTraining
from medpipe.synthesis.tokeniser import TokeniserSettings
from medpipe.synthesis.tokeniser_training import TokeniserTraining

__all__ = ["GeneratorTraining"]


@dataclass(frozen=True)
class GeneratorTraining:
    """How a generator is trained.

    Parameters
    ----------
    tokeniser : TokeniserSettings
        Its label classes are set to those of the volumes.
    tokeniser_training : TokeniserTraining
    prior : dict
        Settings of `PriorSettings`; codes, grid and conditions follow from the volumes.
    prior_training : PriorTraining
    route : {"tokens", "latents"}
        Whether a tokeniser and a prior are trained, or an autoencoder and a denoiser.
    autoencoder : AutoencoderSettings
        Its label classes are set to those of the volumes.
    autoencoder_training : AutoencoderTraining
    denoiser : dict
        Settings of `DenoiserSettings`; latent channels, grid and conditions follow.
    denoiser_training : DenoiserTraining
    shift_voxels, copies : int
        What draws learns from each volume as it is and moved, so often in all; see
        `medpipe.synthesis.moved.MovedVolumes`. The shifts become conditions.
    features : dict
        ``widths`` of the network of features (see `FeatureNetwork`) by which the first network
        compares images, if it does (``perceptual_weight`` of an autoencoder,
        ``weights.perceptual`` of a tokeniser); it is trained with the same volumes.
    feature_iterations : int
        Of the training of that network.
    labeller : dict
        Settings of `SegmenterSettings`; classes and image channels follow.
    labeller_iterations : int
        Of this segmenter that labels the images which are drawn: labels that fit their image,
        where those that are drawn with it may not. 0: none.
    labeller_sees : {"drawn", "real"}
        Whether it is trained with images as they would be drawn too, or with real ones alone:
        it is then stricter, and says no ventricle where a drawn one is faint.
    detail : float
        Share of the fine detail that is put back into what is drawn.
    mapping_draws : int
        Volumes that are drawn after the training to learn which intensities they have too
        often; see `medpipe.synthesis.quantile_mapping`. 0: none, nor with less than 20 volumes.
    validation_share : float
        Of the subjects: the same ones validate all trainings.
    seed : int
        Decides which these are.
    """

    tokeniser: TokeniserSettings = field(default_factory=TokeniserSettings)
    tokeniser_training: TokeniserTraining = field(default_factory=TokeniserTraining)
    prior: dict[str, Any] = field(default_factory=dict)
    prior_training: PriorTraining = field(default_factory=PriorTraining)
    route: Literal["tokens", "latents"] = "tokens"
    autoencoder: AutoencoderSettings = field(
        default_factory=lambda: AutoencoderSettings.preset("small")
    )
    autoencoder_training: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    denoiser: dict[str, Any] = field(default_factory=dict)
    denoiser_training: DenoiserTraining = field(default_factory=DenoiserTraining)
    shift_voxels: int = 0
    copies: int = 1
    features: dict[str, Any] = field(default_factory=dict)
    feature_iterations: int = 600
    labeller: dict[str, Any] = field(default_factory=dict)
    labeller_iterations: int = 0
    labeller_sees: Literal["drawn", "real"] = "drawn"
    detail: float = DETAIL
    mapping_draws: int = 200
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        least_1 = (self.copies, self.feature_iterations)
        counts = (
            self.shift_voxels, self.labeller_iterations, self.mapping_draws,
            *(n - 1 for n in least_1),
        )  # fmt: skip
        if not 0 <= self.validation_share < 1 or min(counts) < 0 or not self.detail >= 0:
            raise UsageError(
                "the settings of the training of a generator are wrong",
                expected="validation_share from 0 to below 1, shift_voxels, "
                "labeller_iterations, mapping_draws and detail of 0 or more, copies and "
                "feature_iterations of 1 or more",
            )
        if self.labeller_sees not in ("drawn", "real"):
            raise UsageError(
                "unknown images of a labeller", expected="drawn or real",
                got=str(self.labeller_sees),
            )  # fmt: skip
        # says what is wrong with them before anything is trained
        if self.route not in ("tokens", "latents"):
            raise UsageError("unknown route", expected="tokens or latents", got=str(self.route))
        self.prior_settings(self.tokeniser.codes, (1, 1, 1))
        self.denoiser_settings(1, 0, (1, 1, 1))

    @classmethod
    def preset(cls, name: str, *, seed: int = 0, **changes: Any) -> GeneratorTraining:
        """Return the settings of a preset with changes.

        "hippocampus": the route of latents for volumes of about 32 x 56 x 40 voxels with two
        labels and some 150 patients, on one thread.

        Raises
        ------
        UsageError
            If there is no such preset.
        """
        if name not in PRESETS:
            raise UsageError("no such preset", expected=" | ".join(PRESETS), got=repr(name)[:40])
        return cls(**(PRESETS[name](seed) | {"seed": seed} | changes))

    def prior_settings(self, codes: int, grid: tuple[int, ...]) -> PriorSettings:
        """Return the settings of the prior of so many codes on this grid.

        Raises
        ------
        UsageError
            If they are wrong.
        """
        known: dict[str, Any] = {"codes": codes, "grid": grid}
        return PriorSettings(**(known | self.prior))

    def denoiser_settings(
        self, channels: int, conditions: int, grid: tuple[int, ...]
    ) -> DenoiserSettings:
        """Return the settings of the denoiser of latents with so many channels on this grid.

        Raises
        ------
        UsageError
            If they are wrong.
        """
        known: dict[str, Any] = {"latent_channels": channels, "conditions": conditions}
        return DenoiserSettings(**(known | {"grid": grid} | self.denoiser))


def _hippocampus(seed: int) -> dict[str, Any]:
    return {
        "route": "latents",
        "autoencoder": AutoencoderSettings.preset("hippocampus"),
        "autoencoder_training": AutoencoderTraining(
            iterations=2600, batch_size=2, learning_rate=2.5e-3, validate_every=200,
            kl_weight=0.03, label_weight=0.7, perceptual_weight=0.2, seed=seed,
        ),
        "denoiser": HIPPOCAMPUS_DENOISER,
        "denoiser_training": DenoiserTraining(
            iterations=1200, batch_size=8, learning_rate=2e-3, warmup=50, validate_every=100,
            ema_decay=0.99, hide=0.15, seed=seed,
        ),
        "shift_voxels": 1,
        "copies": 3,
        "labeller_iterations": 1000,
        "detail": 0.6,
        "mapping_draws": 400,
    }  # fmt: skip


HIPPOCAMPUS_DENOISER: dict[str, Any] = {
    "channels": (64, 128), "attention": (False, True), "groups": 8, "conditioning": "embedding",
    "condition_width": 32, "directions": 160, "begin": 0.3,
}  # fmt: skip
PRESETS: dict[str, Callable[[int], dict[str, Any]]] = {"hippocampus": _hippocampus}
