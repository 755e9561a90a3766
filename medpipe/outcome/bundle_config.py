"""The texts of a MONAI bundle: metadata, what its parser can make, and a card."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from medpipe.outcome.model_facts import OutcomeFacts

__all__ = ["BUNDLE_FORMAT", "bundle_card", "bundle_inference", "bundle_metadata"]

BUNDLE_FORMAT = "medpipe-outcome-1"


def bundle_metadata(facts: OutcomeFacts, weights: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return metadata in the form of MONAI's model zoo, with medpipe's own part."""
    have = _versions()
    channels = int(str(facts.network.get("channels", 3)))
    return {
        "version": facts.version,
        "changelog": {facts.version: "trained"},
        "monai_version": have["monai"],
        "pytorch_version": have["torch"],
        "numpy_version": have["numpy"],
        "required_packages_version": {"medpipe": have["medpipe"]},
        "name": facts.name,
        "task": f"probability of {facts.outcome} from a head CT",
        "description": facts.summary or f"Probability of {facts.outcome} from a head CT.",
        "authors": "those who trained the model",
        "copyright": "those who trained the model",
        "intended_use": facts.notice or "research",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": channels,
                    "spatial_shape": list(facts.size_voxels),
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(n): f"{facts.preset} {n}" for n in range(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "num_channels": facts.network.get("outputs", 2),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": _outputs(facts),
                }
            },
        },
        "python_version": platform.python_version(),
        "medpipe": {"format": BUNDLE_FORMAT, "facts": facts.to_json(), "weights": list(weights)},
    }


def bundle_inference(facts: OutcomeFacts, weights: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the parts that MONAI's ConfigParser can make; no expression to evaluate."""
    settings = {"_target_": "medpipe.outcome.network.OutcomeNetworkSettings", **facts.network}
    return {
        "network_def": {
            "_target_": "medpipe.outcome.network.outcome_network",
            "settings": settings,
        },
        "weights": [w["file"] for w in weights],
        "inferer": {"_target_": "monai.inferers.SimpleInferer"},
        "postprocessing": {
            "_target_": "monai.transforms.Activationsd",
            "keys": "pred",
            "sigmoid" if facts.interval_ends_days else "softmax": True,
        },
    }


def bundle_card(facts: OutcomeFacts, members: int) -> str:
    """Return a short card for a model that has none of its own."""
    notice = f"**{facts.notice}**\n\n" if facts.notice else ""
    grid = " × ".join(str(n) for n in facts.size_voxels)
    step = " × ".join(f"{s:g}" for s in facts.spacing_mm)
    threshold = "none" if facts.threshold is None else f"{facts.threshold:.3g}"
    return (
        f"# {facts.name}\n\n{notice}Probability of {facts.outcome} from a non-contrast head CT. "
        f"{facts.summary}\n\n"
        f"- members of the ensemble: {members}\n"
        f'- input: {grid} voxels of {step} mm, channels "{facts.preset}"\n'
        f"- operating point: {threshold} {facts.threshold_rule}\n\n"
        "Use: `medpipe run outcome-predict CASES OUT --set grid.model=FOLDER "
        "--set predict.model=FOLDER --set saliency.model=FOLDER`.\n"
    )


def _outputs(facts: OutcomeFacts) -> dict[str, str]:
    """Return what each output is: a class, or the hazard of an interval."""
    ends = facts.interval_ends_days
    if not ends:
        return {"0": "without the outcome", "1": facts.outcome}
    starts = (0.0, *ends)
    return {
        str(n): f"hazard of {facts.outcome} from day {starts[n]:g} to {end:g}"
        for n, end in enumerate(ends)
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in ("monai", "torch", "numpy", "medpipe"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
