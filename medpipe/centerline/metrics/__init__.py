"""Measures of a centerline, a tree or a mask against a reference.

The names below are loaded from their modules when they are first used; importing this
package imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES: dict[str, tuple[str, ...]] = {
    "line_graph": ("LineGraph", "Samples"),
    "distances": ("distance_to_lines_mm",),
    "leaves": ("LeafMatch", "bifurcation_errors_mm", "match_leaves", "match_points"),
    "curve_error": (
        "CurveError",
        "compare_trees",
        "coverage",
        "curve_errors",
        "hausdorff_mm",
        "path_length_ratios",
    ),
    "rotterdam": (
        "Correspondence",
        "RotterdamScores",
        "accuracy_score",
        "clip_at_start",
        "correspondence",
        "overlap_score",
        "rotterdam_scores",
    ),
    "tree_detection": (
        "BettiErrors",
        "ClDice",
        "TreeDetection",
        "betti_errors",
        "cl_dice",
        "tree_detection_scores",
    ),
    "voxel_facts": ("graph_cycles", "lee_skeleton", "loops", "removable_voxels"),
}

_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
