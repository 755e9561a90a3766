"""Centerlines of tree-shaped structures: trees by construction, in millimetres.

The names below are loaded from their modules when they are first used; importing
this package imports nothing else. Functions that are called as their module is, such as
`medpipe.centerline.straighten.straighten`, stay there. Transforms are in
`medpipe.transforms`, like every step.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES: dict[str, tuple[str, ...]] = {
    "tree": ("Branch", "CenterlineTree"),
    "settings": ("ExtractionSettings",),
    "extract": ("extract_centerline",),
    "distance": ("distance_transform",),
    "graph": ("ForegroundGraph", "foreground_graph"),
    "solve": ("ShortestPaths", "shortest_paths"),
    "topology": ("betti_numbers",),
    "smoothing": ("smooth_positions",),
    "curves": (
        "SpaceCurve",
        "bishop_frames",
        "curvature_per_mm",
        "resample",
        "tangents",
        "torsion_per_mm",
        "tortuosity",
    ),
    "sections": ("Sections", "area_radius", "cross_sections"),
    "measures": (
        "bifurcations",
        "branch_table",
        "generations",
        "horsfield",
        "strahler",
        "summary",
    ),
    "branching": ("murray_exponent",),
    "straighten": ("StraightenedVolume",),
    "dense": ("dense_labels", "line_labels", "node_values"),
    "pictures": ("longest_paths", "profiles_svg", "tree_svg"),
    "strip": ("straightened_svg",),
    "swc": ("SwcNodes", "read_swc", "swc_bytes"),
    "polydata": ("CenterlineLines", "read_centerline_vtp", "vtp_bytes_of"),
    "graphml": ("graphml_bytes",),
    "vesselness": ("tube_response",),
    "vessel_mask": ("VesselMaskResult", "VesselMaskSettings"),
    "airway": ("AirwayMaskResult", "AirwayMaskSettings", "airway_mask", "find_trachea"),
    "maps": ("CenterlineMaps", "learned_maps"),
    "example_files": ("read_examples",),
    "training": ("TrainingSettings", "train_centerline_maps"),
    "transforms.extract": ("Centerline", "Centerlined"),
}

_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
