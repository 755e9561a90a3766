"""Every step as a MONAI transform, for notebooks and scripts.

``from medpipe.transforms import WindowIntensity, WindowIntensityd`` gives the
array and the dictionary class. A step's module (and torch with it) is
imported when one of its classes is first used.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import Any

__all__ = ["STEPS"]

STEPS: MappingProxyType[str, str] = MappingProxyType(
    {
        "load_volume": "medpipe.io.transforms:LoadVolumed",
        "load_weighted": "medpipe.io.weighted:LoadWeightedd",
        "orient": "medpipe.steps.spatial:Orientd",
        "resample": "medpipe.steps.spatial:Resampled",
        "crop_foreground": "medpipe.steps.spatial:CropForegroundd",
        "crop_or_pad": "medpipe.steps.spatial:CropOrPadd",
        "window_intensity": "medpipe.steps.intensity:WindowIntensityd",
        "normalize_intensity": "medpipe.steps.intensity:NormalizeIntensityd",
        "clip_intensity": "medpipe.steps.intensity:ClipIntensityd",
        "correct_bias": "medpipe.steps.bias:CorrectBiasd",
        "round_intensity": "medpipe.steps.intensity:RoundIntensityd",
        "threshold": "medpipe.steps.mask:Thresholdd",
        "largest_component": "medpipe.steps.mask:LargestComponentd",
        "fill_holes": "medpipe.steps.mask:FillHolesd",
        "morphology": "medpipe.steps.mask:Morphologyd",
        "apply_mask": "medpipe.steps.mask:ApplyMaskd",
        "register": "medpipe.steps.registration:Registerd",
        "statistics": "medpipe.steps.measure:Statisticsd",
        "head_mask": "medpipe.steps.head_ct:HeadMaskd",
        "brain_mask": "medpipe.steps.head_ct:BrainMaskd",
        "brain_mask_mr": "medpipe.graphcut.transforms.brain:BrainMaskMRd",
        "brain_tissue": "medpipe.graphcut.transforms.brain:BrainTissued",
        "graph_cut": "medpipe.graphcut.transforms.grid:GraphCutd",
        "shape_prior_graph_cut": "medpipe.graphcut.transforms.grid:ShapePriorGraphCutd",
        "optimal_surfaces": "medpipe.graphcut.transforms.surfaces:OptimalSurfacesd",
        "oct_layers": "medpipe.graphcut.transforms.retina:OctLayersd",
        "oct_view": "medpipe.graphcut.transforms.retina:OctViewd",
        "surface_labels": "medpipe.graphcut.transforms.surface_outputs:SurfaceLabelsd",
        "layer_thickness": "medpipe.graphcut.transforms.surface_outputs:LayerThicknessd",
        "surface_mesh": "medpipe.graphcut.transforms.surface_outputs:SurfaceMeshd",
        "octexplorer_xml": "medpipe.graphcut.transforms.surface_outputs:OctExplorerXmld",
        "lumen_media": "medpipe.graphcut.transforms.vessel_wall:LumenMediad",
        "vessel_wall_table": "medpipe.graphcut.transforms.vessel_wall:VesselWallTabled",
        "vessel_wall_mesh": "medpipe.graphcut.transforms.vessel_wall:VesselWallMeshd",
        "vesselness": "medpipe.centerline.transforms.images:Vesselnessd",
        "vessel_mask": "medpipe.centerline.transforms.images:VesselMaskd",
        "airway_mask": "medpipe.centerline.transforms.images:AirwayMaskd",
        "centerline": "medpipe.centerline.transforms.extract:Centerlined",
        "centerline_labels": "medpipe.centerline.transforms.outputs:CenterlineLabelsd",
        "centerline_table": "medpipe.centerline.transforms.outputs:CenterlineTabled",
        "centerline_swc": "medpipe.centerline.transforms.outputs:CenterlineSwcd",
        "centerline_vtp": "medpipe.centerline.transforms.outputs:CenterlineVtpd",
        "centerline_graphml": "medpipe.centerline.transforms.outputs:CenterlineGraphmld",
        "centerline_picture": "medpipe.centerline.transforms.pictures:CenterlinePictured",
        "radius_profiles": "medpipe.centerline.transforms.pictures:RadiusProfilesd",
        "straighten": "medpipe.centerline.transforms.straighten:Straightend",
        "straightened_picture": "medpipe.centerline.transforms.straighten:StraightenedPictured",
        "centerline_maps": "medpipe.centerline.transforms.learned:CenterlineMapsd",
        "train_centerline": "medpipe.centerline.transforms.learned:TrainCenterlined",
        "training_curve": "medpipe.centerline.transforms.learned:TrainingCurved",
        "training_table": "medpipe.centerline.transforms.learned:TrainingTabled",
        "model_grid": "medpipe.outcome.transforms.predict:ModelGridd",
        "predict_outcome": "medpipe.outcome.transforms.predict:PredictOutcomed",
        "prediction_table": "medpipe.outcome.transforms.predict:PredictionTabled",
        "outcome_saliency": "medpipe.outcome.transforms.saliency:OutcomeSaliencyd",
        "outcome_page": "medpipe.outcome.transforms.saliency:OutcomePaged",
        "fit_relaxation": "medpipe.qmri.transforms.fit:FitRelaxationd",
        "fit_perk": "medpipe.qmri.transforms.methods:FitPerkd",
        "fit_least_squares": "medpipe.qmri.transforms.methods:FitLeastSquaresd",
        "fit_dictionary": "medpipe.qmri.transforms.methods:FitDictionaryd",
        "relaxation_map": "medpipe.qmri.transforms.maps:RelaxationMapd",
        "quality_map": "medpipe.qmri.transforms.maps:QualityMapd",
        "relaxation_table": "medpipe.qmri.transforms.table:RelaxationTabled",
        "tokenize": "medpipe.synthesis.transforms.tokens:Tokenized",
        "detokenize": "medpipe.synthesis.transforms.tokens:Detokenized",
        "sample_volume": "medpipe.synthesis.transforms.sample:SampleVolumed",
        "train_synthesis": "medpipe.synthesis.transforms.train:TrainSynthesisd",
        "synthesis_curve": "medpipe.synthesis.transforms.training_facts:SynthesisCurved",
        "synthesis_table": "medpipe.synthesis.transforms.training_facts:SynthesisTabled",
        "fit_baseline": "medpipe.synthesis.transforms.baselines:FitBaselined",
        "baseline_table": "medpipe.synthesis.transforms.baselines:BaselineTabled",
        "baseline_average": "medpipe.synthesis.transforms.baselines:BaselineAveraged",
        "ct_check": "medpipe.outcome.transforms.prepare:CtCheckd",
        "head_frame": "medpipe.outcome.transforms.prepare:HeadFramed",
        "head_grid": "medpipe.outcome.transforms.prepare:HeadGridd",
        "ct_channels": "medpipe.outcome.transforms.prepare:CtChannelsd",
    }
)
"""Name of a step in a workflow → ``"module:Class"`` of its dictionary transform."""

_EXTRA = {"SaveVolume": "medpipe.io.transforms", "SaveVolumed": "medpipe.io.transforms"}


def _classes() -> dict[str, str]:
    """Return class name → module, each step's array class (the name without ``d``) included."""
    found = dict(_EXTRA)
    for target in STEPS.values():
        module, _, name = target.partition(":")
        found[name] = module
        found[name.removesuffix("d")] = module
    return found


_CLASSES = _classes()


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    raise AttributeError(f"module 'medpipe.transforms' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_CLASSES, *__all__])
