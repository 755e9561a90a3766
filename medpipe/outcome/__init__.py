"""Outcomes of patients from head CT: training, honest evaluation, explained prediction.

The names below are loaded from their modules when they are first used; importing this
package imports nothing else. The function `clinical_model` stays in its module
`medpipe.outcome.clinical`; transforms are in `medpipe.transforms`, like every step.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES: dict[str, tuple[str, ...]] = {
    "cohort": ("Cohort", "read_cohort"),
    "covariates": ("COVARIATES",),
    "folds": ("Folds", "make_folds", "read_folds", "write_folds"),
    "leaks": ("check_leaks", "pixel_digest", "study_digest", "volume_digest"),
    "clinical": (
        "ClinicalPrediction",
        "fit_clinical",
        "late_fusion",
        "nested_logits",
    ),
    "clinical_model": ("ClinicalModel",),
    "prepare": (
        "GRIDS",
        "GridSettings",
        "Prepared",
        "frame_matrix",
        "grid_settings",
        "prepare_volume",
        "to_input_space",
    ),
    "frame": ("HeadPose", "find_pose"),
    "channels": ("ct_channels",),
    "network": (
        "OutcomeNetwork",
        "OutcomeNetworkSettings",
        "inflate_2d",
        "load_encoder",
        "outcome_network",
    ),
    "training": ("FoldModel", "OutcomeTraining", "read_fold_model", "train_fold"),
    "ensemble": ("ensemble_probability", "event_logit", "predict_logits", "predict_volumes"),
    "recalibrate": ("Isotonic", "Platt", "Temperature", "fit_recalibration"),
    "interval": ("Interval", "PairedDifference"),
    "predictions": (
        "OperatingPoint",
        "Predictions",
        "SurvivalPredictions",
        "cross_fitted_thresholds",
    ),
    "evaluation": ("evaluate",),
    "crossval": ("CrossSettings", "CrossValidation", "cross_validate"),
    "plan": ("plan_study",),
    "study": ("StudyFacts", "StudyResult", "outcome_facts", "train_study"),
    "card": ("model_card",),
    "model_facts": ("OutcomeFacts",),
    "bundle": ("OutcomeBundle", "pack_bundle", "read_bundle", "write_bundle"),
    "predict": ("OutcomePrediction", "calibration_groups", "predict_outcome"),
    "explain": (
        "SaliencyMap",
        "blood_overlap",
        "grad_cam",
        "occlusion_map",
        "randomised_weights",
    ),
    "page": ("case_page_svg",),
}

_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
