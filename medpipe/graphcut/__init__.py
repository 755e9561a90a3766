"""Segmentation with a guarantee: minimum s-t cuts on grids and columns, CPU and GPU.

The names below are loaded from their modules when they are first used; importing
this package imports nothing else. Transforms for single anatomies are in
`medpipe.transforms`, like every step.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES: dict[str, tuple[str, ...]] = {
    "problem": ("INFINITE", "ArcFamily", "CutProblem", "CutResult", "cut_value", "quantise"),
    "solve": ("min_cut",),
    "incremental": ("IncrementalCut",),
    "bounds": ("limited", "min_marginal_interval", "surface_bound", "surface_energy"),
    "unaries": (
        "class_probability_costs",
        "gaussian_mixture_costs",
        "histogram_costs",
        "nested_costs",
        "probability_costs",
        "tissue_costs",
    ),
    "links": ("contrast_links", "difference_sigma"),
    "layers": (
        "Contain",
        "Exclude",
        "Layer",
        "MultiObjectResult",
        "boykov_jolly",
        "multi_object_cut",
        "multi_object_energy",
    ),
    "vector_field": ("VectorField", "gradient_vector_flow"),
    "shape_prior": ("CycleReport", "PriorArcs", "prior_arcs"),
    "organs": ("OrganCut", "shape_prior_cut"),
    "presegment": ("from_atlas", "from_mask", "from_probability", "from_threshold"),
    "surfaces": (
        "ConvexPrior",
        "Separation",
        "SurfaceProblem",
        "SurfaceResult",
        "arc_weights",
        "optimal_surfaces",
    ),
    "surface_session": ("SurfaceSession",),
    "surface_costs": (
        "boundary_cost",
        "gaussian_cost",
        "gradient_cost",
        "log_likelihood_cost",
        "probability_cost",
        "robust_unit",
    ),
    "displacement": (
        "Displacement",
        "displace",
        "edge_displacement",
        "gradient_displacement",
        "parabola_displacement",
        "resample_costs",
    ),
    "columns": (
        "Columns",
        "cylindrical_columns",
        "field_columns",
        "flat_columns",
        "flattened_columns",
        "icosphere",
        "mesh_columns",
        "polar_columns",
        "star_columns",
    ),
    "retina": ("retina_surfaces",),
    "thickness": ("column_thickness_mm", "nearest_thickness_mm", "thickness_table"),
    "meshes": ("surface_mesh",),
    "octexplorer": ("OctSurfaces", "octexplorer_bytes", "read_octexplorer"),
    "transforms.certificate": ("certificate", "with_certificate"),
    "transforms.grid": ("GraphCut", "GraphCutd", "ShapePriorGraphCut", "ShapePriorGraphCutd"),
    "transforms.surfaces": ("OptimalSurfaces", "OptimalSurfacesd"),
}

_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
