"""Measures of what was generated, each with its interval and what real cases reach.

The names below are loaded from their modules when they are first used; importing this
package imports nothing else. Functions that are called as their module is, such as
`medpipe.synthesis.metrics.frechet.frechet`, stay there.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES: dict[str, tuple[str, ...]] = {
    "agreement": ("Agreement", "agreement_table", "condition_agreement"),
    "distances": ("expected_nearest", "rms_distances"),
    "floor": ("WithFloor",),
    "frechet": ("frechet_of_moments",),
    "kernel": ("kid", "kid_subsets", "polynomial_mmd"),
    "manifold": ("neighbour_scores", "precision_recall"),
    "ms_ssim": ("SsimScales", "ms_ssim_pairs", "ssim_scales"),
    "privacy": ("Privacy", "membership_auc", "nll_gap", "privacy_of_distances"),
    "regions": ("RegionComparison", "label_volumes", "regional_volumes"),
    "repeats": ("Repeats", "repeats_of_distances"),
    "t_maps": ("Realigned", "TMapShare", "realign", "t_map", "t_map_share"),
    "utility": ("UtilityRow", "utility_table"),
}

_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
