"""Baselines of synthesis: fitted with a folder of volumes, and what they say about themselves."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import InputError, StepError
from medpipe.steps._base import ArrayStep, DictStep, check_choice
from medpipe.synthesis.baseline_fit import BaselineName, fit_baseline
from medpipe.synthesis.baseline_route import BaselineRoute
from medpipe.synthesis.baselines import RegistrationSettings
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.training_files import read_training_set
from medpipe.types import Json

__all__ = [
    "BaselineAverage",
    "BaselineAverageD",
    "BaselineAverageDict",
    "BaselineAveraged",
    "BaselineTable",
    "BaselineTableD",
    "BaselineTableDict",
    "BaselineTabled",
    "FitBaseline",
    "FitBaselineD",
    "FitBaselineDict",
    "FitBaselined",
]


class FitBaseline(ArrayStep):
    """Fit a baseline to a folder of volumes.

    Parameters
    ----------
    As `FitBaselined`.
    """

    def __init__(
        self,
        method: BaselineName = "pca-gaussian",
        conditions: list[str] | None = None,
        components: int | float | str = 0.95,
        rounds: int = 2,
        iterations: int = 30,
        stiffness: float = 0.02,
        node_voxels: float = 4.0,
    ) -> None:
        names = ("pca-gaussian", "template-deformation")
        self.method = check_choice("method", method, names)
        self.conditions, self.components = conditions, components
        self.registration = RegistrationSettings(
            node_voxels=node_voxels, rounds=rounds, iterations=iterations, stiffness=stiffness
        )

    def __call__(self, folder: Any) -> bytes:
        """Return the baseline as the content of a ``.safetensors`` file.

        Parameters
        ----------
        folder : path
            See `medpipe.synthesis.read_training_set`.

        Raises
        ------
        StepError
            If it is no path.
        InputError, ManifestError
            If the manifest or a volume cannot be used.
        UsageError
            If there are too few volumes, or a condition is not known of all.
        """
        if not isinstance(folder, str | os.PathLike):
            raise StepError("the step needs volumes", expected="an input of kind folder")
        samples = read_training_set(os.fspath(folder), self.conditions)
        made = fit_baseline(
            samples, self.method, components=self.components, registration=self.registration
        )
        return made.to_bytes()


class FitBaselined(DictStep):
    """Replace folders of volumes by a baseline (.safetensors) for ``sample_volume``.

    What a trained generator must beat: a Gaussian of voxels, or one mean image that is
    deformed. Folders are those of ``train_synthesis``; each condition must be known of every
    volume.

    Parameters
    ----------
    keys : keys of inputs of kind folder, replaced by documents
    method : {"pca-gaussian", "template-deformation"}
        The second takes minutes, and draws shapes alone: intensities are those of the mean.
    conditions : list of str, optional
        Columns that volumes can be asked for by; by default all that are nothing else.
    components : int, float or "likelihood"
        Principal directions: a number, a share of the variance below 1, or as many as make
        volumes that were left out most likely (fewer; drawn volumes then vary too little).
    rounds, iterations : int
        Of a template: how often it is averaged anew, steps of a registration.
    stiffness : float
        Of a template: the larger, the less it is deformed.
    node_voxels : float
        Of a template: distance of the nodes of a deformation.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "document"
    suffix = ".safetensors"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        method: BaselineName = "pca-gaussian",
        conditions: list[str] | None = None,
        components: int | float | str = 0.95,
        rounds: int = 2,
        iterations: int = 30,
        stiffness: float = 0.02,
        node_voxels: float = 4.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = FitBaseline(
            method, conditions, components, rounds, iterations, stiffness, node_voxels
        )


class BaselineTable(ArrayStep):
    """Say what a baseline was fitted with and which volumes of its labels it draws."""

    def __call__(self, model: Any) -> dict[str, Json]:
        """Return the table; volumes of labels are in ml."""
        made, route = _baseline(model)
        facts = dict(made.facts)
        regions: Any = facts.pop("labels_ml", {})
        table: dict[str, Json] = {
            "baseline": route.kind,
            **facts,
            "shape": " x ".join(map(str, made.shape)),
            "conditions": ", ".join(made.conditions.names) or None,
        }
        for label, sides in regions.items():
            for side, numbers in sides.items():
                for name, value in numbers.items():
                    table[f"label_{label}_{side}_{name}_ml"] = value
        return table


class BaselineTabled(DictStep):
    """Replace baselines by tables: sizes, components, volumes of labels given and drawn.

    Parameters
    ----------
    keys : keys of baselines of ``fit_baseline``, replaced by tables
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "table"
    random = False

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = BaselineTable()


class BaselineAverage(ArrayStep):
    """Show the average of a baseline: the mean of the volumes, or the template."""

    def __call__(self, model: Any) -> MetaTensor:
        """Return the image (C, I, J, K) of `both`."""
        return self.both(model)[0]

    def both(self, model: Any) -> tuple[MetaTensor, MetaTensor]:
        """Return image (C, I, J, K) and labels (1, I, J, K), empty ones where there are none."""
        made, route = _baseline(model)
        image, labels = route.model.average()
        if labels is None:
            labels = torch.zeros_like(image[:, :1])
        affine = torch.as_tensor(made.affine, dtype=torch.float64)
        return (
            MetaTensor(image[0].clone(), affine=affine),
            MetaTensor(labels[0].to(torch.uint8), affine=affine),
        )


class BaselineAveraged(DictStep):
    """Replace baselines by their average volumes.

    Parameters
    ----------
    keys : keys of baselines of ``fit_baseline``, replaced by volumes
    labels_out : str, optional
        Key that receives the labels; with one key alone.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ("labels_out",)
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        labels_out: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels_out = labels_out
        self.step = BaselineAverage()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key as a volume."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key], labels = self.step.both(out[key])
            if self.labels_out is not None:
                out[self.labels_out] = labels
        return out


def _baseline(model: Any) -> tuple[Generator, BaselineRoute]:
    """Return a generator that is a baseline, and what it draws with."""
    if not isinstance(model, bytes):
        raise StepError("the step needs a baseline", expected="a document of fit_baseline")
    made = Generator.from_bytes(model)
    if not isinstance(made.route, BaselineRoute):
        raise InputError("the generator is no baseline", expected="a document of fit_baseline")
    return made, made.route


FitBaselineD = FitBaselineDict = FitBaselined
BaselineTableD = BaselineTableDict = BaselineTabled
BaselineAverageD = BaselineAverageDict = BaselineAveraged
