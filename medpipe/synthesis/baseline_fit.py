"""Baselines fitted to the volumes of a folder, as generators."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medpipe.errors import UsageError
from medpipe.synthesis.baseline_route import BaselineRoute, columns_of, names_of
from medpipe.synthesis.baselines import PcaGaussian, RegistrationSettings, TemplateDeformation
from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.training_files import TrainingSet
from medpipe.types import Json

__all__ = ["BaselineName", "fit_baseline"]

BaselineName = Literal["pca-gaussian", "template-deformation"]
DRAWN = 32
"""Volumes whose labels are measured, as a first look at what the baseline draws."""


def fit_baseline(
    samples: TrainingSet,
    name: BaselineName = "pca-gaussian",
    *,
    components: int | float | str = 0.95,
    registration: RegistrationSettings | None = None,
    seed: int = 0,
) -> Generator:
    """Return a generator that is a baseline, fitted to the volumes of a folder.

    Parameters
    ----------
    samples : TrainingSet
        See `read_training_set`.
    name : {"pca-gaussian", "template-deformation"}
    components, seed
        See `medpipe.synthesis.Gaussian.fit`.
    registration : RegistrationSettings, optional
        Of a template.

    Raises
    ------
    UsageError
        If there are too few volumes, or a condition is constant or not known of all.
    InputError
        If a volume cannot be used.
    """
    conditions = Conditions.fit(samples.table, samples.kinds)
    known = _table(samples, conditions)
    images, labels = _stacked(samples)
    told: dict[str, Any] = {
        "label_classes": samples.label_classes, "conditions": known, "components": components,
        "seed": seed,
    }  # fmt: skip
    model: PcaGaussian | TemplateDeformation
    if name == "pca-gaussian":
        model = PcaGaussian.fit(images, labels, **told)
    else:
        model = TemplateDeformation.fit(images, labels, **told, settings=registration)
    route = BaselineRoute(model, conditions, images.shape[1])
    facts: dict[str, Json] = {
        "subjects": len(set(samples.subjects)),
        "volumes": len(images),
        "components": len(model.gaussian.variances),
        "seed": seed,
    }
    if isinstance(model, TemplateDeformation):
        facts |= model.facts
    if labels is not None:
        drawn = model.sample(range(DRAWN))[1]
        facts["labels_ml"] = _volumes(labels, drawn, samples)
    affine = np.array(samples.volumes.affine, np.float64)
    return Generator(route, affine, model.volume_shape, facts)


def _stacked(samples: TrainingSet) -> tuple[Tensor, Tensor | None]:
    """Return images (N, 1, I, J, K) and labels of all volumes."""
    read = [samples.volumes[n] for n in range(len(samples.volumes))]
    if not samples.label_classes:
        return torch.stack([torch.as_tensor(image) for image in read]), None
    images, labels = ([torch.as_tensor(part) for part in side] for side in zip(*read, strict=True))
    return torch.stack(images), torch.stack(labels)


def _table(samples: TrainingSet, conditions: Conditions) -> dict[str, list[float]]:
    """Return the columns that the Gaussian is told of; each volume must have them."""
    made: dict[str, list[float]] = {name: [] for name in columns_of(conditions)}
    for condition in conditions.items:
        for value in samples.table[condition.name]:
            if value is None or value == "":
                raise UsageError(
                    "a condition is not known of all volumes", where=f"condition {condition.name}",
                    hint="a baseline needs all: leave out the condition, or those volumes",
                )  # fmt: skip
            number = condition.encode(value) if condition.values else [float(value)]
            for name, one in zip(names_of(condition), number, strict=False):
                made[name].append(one)
    return made


def _volumes(labels: Tensor, drawn: Tensor | None, samples: TrainingSet) -> dict[str, Json]:
    """Return mean and standard deviation of each label in ml, of those given and those drawn."""
    voxel_ml = abs(float(np.linalg.det(samples.volumes.affine[:3, :3]))) / 1000
    made: dict[str, Json] = {}
    for label in range(1, samples.label_classes):
        row: dict[str, Json] = {}
        for name, maps in (("given", labels), ("drawn", drawn)):
            if maps is not None:
                ml = (maps == label).flatten(1).sum(1).double() * voxel_ml
                row[name] = {"mean": float(ml.mean()), "sd": float(ml.std())}
        made[str(label)] = row
    return made
