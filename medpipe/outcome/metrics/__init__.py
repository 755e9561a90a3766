"""Figures of a prediction of two classes, each with its interval.

The names below are loaded from their modules when they are first used; importing this
package imports nothing else. `medpipe.outcome.metrics.bootstrap.bootstrap` is called as its
module is, and stays there.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES: dict[str, tuple[str, ...]] = {
    "ranking": ("auroc", "average_precision", "delong", "delong_test"),
    "curves": (
        "PrecisionRecallCurve",
        "RocBand",
        "RocCurve",
        "precision_recall_curve",
        "roc_band",
        "roc_curve",
    ),
    "proper": ("brier", "log_loss", "scaled_brier"),
    "calibration": (
        "CalibrationCurve",
        "CalibrationLine",
        "calibration_curve",
        "calibration_intercept",
        "calibration_slope",
        "calibration_slope_intercept",
        "expected_calibration_error",
        "integrated_calibration_index",
        "smooth_calibration",
        "to_logit",
    ),
    "threshold": (
        "Confusion",
        "accuracy",
        "balanced_accuracy",
        "confusion",
        "f1",
        "npv",
        "operating_point",
        "ppv",
        "sensitivity",
        "specificity",
        "threshold_at",
    ),
    "shares": ("proportion", "wilson"),
    "benefit": ("DecisionCurve", "decision_curve", "net_benefit", "net_benefit_all"),
    "survival": (
        "KaplanMeier",
        "auroc_at",
        "brier_ipcw",
        "concordance_ipcw",
        "integrated_brier",
        "kaplan_meier",
        "scaled_integrated_brier",
        "survival_at",
    ),
    "survival_calibration": (
        "LogRank",
        "calibration_slope_at",
        "logrank",
        "observed_over_expected",
    ),
    "bootstrap": ("resample_weights", "weight_blocks"),
}

_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
