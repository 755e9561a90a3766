"""Three-dimensional generative synthesis: tokens, priors, latents, and what they are worth.

The names below are loaded from their modules when they are first used; importing this
package imports nothing else. Transforms are in `medpipe.transforms`, like every step.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES: dict[str, tuple[str, ...]] = {
    "orders": ("inverse_order", "token_order"),
    "conditions": ("Condition", "Conditions"),
    "attention": ("AttentionPattern", "attend"),
    "prior": ("Prior", "PriorSettings"),
    "cache": ("CachedPrior", "cache_bytes"),
    "sampling": ("SamplingProgress", "sample_codes"),
    "monai_prior": ("prior_from_monai",),
    "quantiser": ("Codebook", "Quantised", "perplexity"),
    "tokeniser": ("Reconstruction", "Tokeniser", "TokeniserSettings"),
    "tokeniser_losses": ("LossWeights", "TokeniserLoss", "spectral_loss"),
    "features": ("FeatureNetwork", "read_features", "train_features"),
    "tokeniser_training": ("TokeniserModel", "TokeniserTraining", "train_tokeniser"),
    "prior_model": ("PriorModel",),
    "prior_training": ("PriorTraining", "train_prior"),
    "coded": ("CodedVolumes", "encode_moved"),
    "routes": ("DrawSettings", "LatentRoute", "TokenRoute"),
    "detail": ("FineDetail",),
    "quantile_mapping": ("QuantileMapping",),
    "label_reading": ("LabelReading", "label_sizes"),
    "generator": ("DrawnVolume", "Generator"),
    "generator_settings": ("GeneratorTraining",),
    "generator_training": ("train_generator",),
    "training_files": ("TrainingSet", "read_training_set"),
    "autoencoder": ("AutoencoderSettings", "LatentAutoencoder"),
    "autoencoder_training": (
        "AutoencoderTraining",
        "measure_autoencoder",
        "train_autoencoder",
    ),
    "segmenter": ("Segmenter", "SegmenterModel", "SegmenterSettings", "train_segmenter"),
    "segmenter_measures": ("dice_of_regions", "measure_segmenter"),
    "evaluation": ("evaluate_synthesis",),
    "evaluation_sets": ("EvaluationSettings", "Measured", "SynthesisSet", "UtilityPlan"),
    "evaluation_controls": ("require_controls",),
    "generator_facts": ("likelihoods_of", "reconstructions_of"),
    "cost": ("sampling_cost",),
    "latents": ("Latents", "encode_latents"),
    "gaussian": ("Gaussian",),
    "baseline_fit": ("fit_baseline",),
    "baseline_route": ("BaselineRoute",),
    "baselines": ("PcaGaussian", "RegistrationSettings", "TemplateDeformation"),
    "pairs": ("PairSettings", "TrainingPair", "load_pair", "load_pairs", "stacked"),
    "split": ("PatientSplit", "read_split", "split_patients", "write_split"),
    "denoiser": ("Denoiser", "DenoiserSettings"),
    "denoiser_training": ("DenoiserTraining", "denoising_errors", "train_denoiser"),
    "flow": ("sample_latents",),
    "moved": ("MovedVolumes",),
    "parallel.patches": ("PatchParallel",),
    "parallel.decode": ("decode_slabs", "halo_decode"),
}

_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
