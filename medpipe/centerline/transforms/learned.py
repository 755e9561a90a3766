"""Learned maps of masks, and the training of what makes them, as transforms."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import Randomizable

from medpipe.centerline.example_files import read_examples
from medpipe.centerline.maps import learned_maps
from medpipe.centerline.network import CHANNELS, CenterlineNetwork, network_from
from medpipe.centerline.prepare import check_labels
from medpipe.centerline.training import TrainingSettings, train_centerline_maps
from medpipe.centerline.transforms._base import one_channel
from medpipe.errors import InputError, StepError, UsageError
from medpipe.figures.chart import loss_chart_svg
from medpipe.models import load_weights, unpack_weights
from medpipe.steps._base import ArrayStep, DictStep, affine_of, rewrap, with_facts
from medpipe.types import Json

__all__ = [
    "CenterlineMaps",
    "CenterlineMapsD",
    "CenterlineMapsDict",
    "CenterlineMapsd",
    "TrainCenterline",
    "TrainCenterlineD",
    "TrainCenterlineDict",
    "TrainCenterlined",
    "TrainingCurve",
    "TrainingCurveD",
    "TrainingCurveDict",
    "TrainingCurved",
    "TrainingTable",
    "TrainingTableD",
    "TrainingTableDict",
    "TrainingTabled",
]

CHANNEL_NAMES = ("q", "endpoint", "root")
VALIDATIONS = 10
"""Validations in a training that does not say after how many iterations they are."""

_NOTICE = logging.getLogger("medpipe.notice")


class CenterlineMaps(ArrayStep):
    """Compute the learned maps of a mask: its centerline, ends and roots.

    A choice: the classical path needs none. See US 11,069,078 B2 and US 11,748,902 B2.

    Parameters
    ----------
    weights : str
        Name of a packaged model, or a file that ``train_centerline`` made.
    overlap : float
        Of the windows that the network looks at, as a share of their size.
    """

    def __init__(self, weights: str = "centerline", overlap: float = 0.5) -> None:
        if not 0 <= overlap < 1:
            raise UsageError("overlap is wrong", expected="0 to below 1", got=str(overlap)[:20])
        self.weights, self.overlap = weights, overlap
        self._network: CenterlineNetwork | None = None

    def __call__(self, mask: Any) -> MetaTensor:
        """Return float32 maps (3, I, J, K): distance (0 on the centerline), ends, roots.

        Parameters
        ----------
        mask : MetaTensor (1, I, J, K)
            Whole numbers; each value above 0 is a structure of its own.

        Raises
        ------
        StepError
            If the mask is empty, a single slice or no label map.
        UsageError, InputError
            If there are no such weights, or they are of something else.
        """
        image, values = one_channel(mask, "mask")
        affine = affine_of(image)
        labels = check_labels(values, affine)
        if self._network is None:
            self._network = network_from(*load_weights(self.weights))
        maps = learned_maps(labels, affine, model=self._network, overlap=self.overlap)
        made = rewrap(image, torch.stack([maps.q, maps.endpoint, maps.root]))
        return with_facts(made, {"maps": list(CHANNEL_NAMES)})


class CenterlineMapsd(DictStep):
    """Replace masks by their learned maps: distance to the centerline, ends, roots.

    They are a choice: the step ``centerline`` needs none (``reference/centerline.md``).

    Parameters
    ----------
    keys : keys of masks or label maps, replaced by images of three channels
    weights : str
        "centerline", the packaged model, or a file that ``train_centerline`` made.
    overlap : float
        Of the windows that the network looks at, as a share of their size.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ("weights",)
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        weights: str = "centerline",
        overlap: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = CenterlineMaps(weights, overlap)


class TrainCenterline(ArrayStep, Randomizable):
    """Train the network of learned maps with a folder of masks and their centerlines.

    Parameters
    ----------
    iterations, batch_size, learning_rate, ema_decay
        See `medpipe.train.LoopSettings`.
    generated_trees : int
        Simulated trees to train with besides the examples.
    tree_voxels : int, optional
        Voxels along each axis of those; by default 192 and 128.
    patch_voxels : int
        Voxels along each axis of what the network is shown at a time.
    validation_trees : int
        Trees that validate: simulated ones where there are any, else the last examples,
        half of them at most.
    validate_every : int, optional
        Iterations between validations; by default a tenth of all.
    channels : list of int, optional
        Of the levels of the network.
    """

    def __init__(
        self,
        iterations: int = 4500,
        batch_size: int = 8,
        learning_rate: float = 4e-3,
        generated_trees: int = 0,
        tree_voxels: int | None = None,
        patch_voxels: int = 40,
        validation_trees: int = 6,
        validate_every: int | None = None,
        ema_decay: float | None = 0.995,
        channels: list[int] | None = None,
    ) -> None:
        self.device: str | torch.device = "auto"
        self.checkpoints: Path | None = None
        self.settings: dict[str, Any] = {
            "iterations": iterations,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "trees": generated_trees,
            "tree_voxels": tree_voxels,
            "patch_voxels": patch_voxels,
            "validation_trees": validation_trees,
            "validate_every": validate_every or max(1, iterations // VALIDATIONS),
            "ema_decay": ema_decay,
            "channels": tuple(channels or CHANNELS),
        }
        TrainingSettings(**self.settings)  # says what is wrong before examples are read

    def set_device(self, device: torch.device) -> None:
        """Choose where to train; otherwise a GPU if there is one."""
        self.device = device

    def set_checkpoints(self, folder: Path) -> None:
        """Continue from what is there, and keep there what was done."""
        self.checkpoints = folder

    def __call__(self, folder: Any) -> bytes:
        """Return the model as the content of a ``.safetensors`` file.

        Parameters
        ----------
        folder : path
            See `medpipe.centerline.example_files.read_examples`.

        Raises
        ------
        StepError
            If it is no path, or the loss is not a number any more.
        InputError
            If an example cannot be used.
        UsageError
            If there are too few examples, or pytorch-ignite is absent.
        """
        if not isinstance(folder, str | os.PathLike):
            raise StepError("the step needs examples", expected="an input of kind folder")
        samples = read_examples(os.fspath(folder))
        seed = int(self.R.randint(2**31 - 1))
        settings = TrainingSettings(**self.settings, seed=seed)
        trees = f" and {settings.trees} simulated trees" if settings.trees else ""
        _NOTICE.info("%d examples%s to train with", len(samples), trees)
        kept = None if self.checkpoints is None else self.checkpoints / "maps.pt"
        return train_centerline_maps(
            settings, samples=samples, device=self.device, checkpoint=kept
        )[0]


class TrainCenterlined(DictStep, Randomizable):
    """Replace folders of masks and centerlines by a trained model (.safetensors).

    An example is ``mask.nii.gz`` with ``centerline.swc`` in a folder of its own, or
    ``NAME.nii.gz`` with ``NAME.swc``; positions and radii in RAS+ mm. Needs pytorch-ignite
    (``medpipe[train]``).

    Parameters
    ----------
    keys : keys of inputs of kind folder, replaced by documents
    iterations : int
        Steps of the optimiser.
    batch_size : int
        Patches in a step.
    learning_rate : float
        The largest; it rises and falls over the iterations.
    generated_trees : int
        Simulated trees to train with besides the examples.
    tree_voxels : int, optional
        Voxels along each axis of those; by default 192 and 128.
    patch_voxels : int
        Voxels along each axis of what the network is shown at a time.
    validation_trees : int
        Trees that validate: simulated ones where there are any, else the last examples,
        half of them at most.
    validate_every : int, optional
        Iterations between validations; by default a tenth of all.
    ema_decay : float, optional
        Of the average of the weights that is the result.
    channels : list of int, optional
        Of the levels of the network.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "document"
    suffix = ".safetensors"
    random = True

    def __init__(
        self,
        keys: KeysCollection,
        iterations: int = 4500,
        batch_size: int = 8,
        learning_rate: float = 4e-3,
        generated_trees: int = 0,
        tree_voxels: int | None = None,
        patch_voxels: int = 40,
        validation_trees: int = 6,
        validate_every: int | None = None,
        ema_decay: float | None = 0.995,
        channels: list[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = TrainCenterline(
            iterations, batch_size, learning_rate, generated_trees, tree_voxels, patch_voxels,
            validation_trees, validate_every, ema_decay, channels,
        )  # fmt: skip

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> TrainCenterlined:
        """Seed the training."""
        self.step.set_random_state(seed, state)
        return self

    def set_device(self, device: torch.device) -> None:
        """Choose where to train."""
        self.step.set_device(device)

    def set_checkpoints(self, folder: Path) -> None:
        """Continue from what is there, and keep there what was done."""
        self.step.set_checkpoints(folder)


class TrainingCurve(ArrayStep):
    """Draw the loss of a training and of its validations against the iterations."""

    def __call__(self, model: Any) -> bytes:
        """Return an SVG document."""
        facts = _facts_of(model)
        title = f"Best validation: {facts['loss']:.4g} after {facts['iteration']} iterations"
        history: Any = facts["history"]
        return loss_chart_svg(history, title=title)


class TrainingCurved(DictStep):
    """Replace trained models by charts: loss against iteration (.svg).

    Parameters
    ----------
    keys : keys of models of ``train_centerline``, replaced by documents
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "2"
    reads = ()
    writes = ()
    files = ()
    makes = "document"
    suffix = ".svg"
    random = False

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = TrainingCurve()


class TrainingTable(ArrayStep):
    """Say how a model was trained and how well it finds the ends of what validated."""

    def __call__(self, model: Any) -> dict[str, Json]:
        """Return the table: settings, best loss, ends found of those held out."""
        facts: Any = _facts_of(model)
        settings, ends = facts["settings"], facts["ends"]
        return {
            "best_loss": facts["loss"],
            "best_iteration": facts["iteration"],
            "ends_precision": ends["precision"] if ends["found"] else None,
            "ends_recall": ends["recall"],
            **{f"ends_{name}": ends[name] for name in ("true", "found", "matched")},
            "examples_trained": facts["examples"]["trained"],
            "examples_held_out": facts["examples"]["held_out"],
            "generated_trees": settings["trees"],
            **{
                name: settings[name]
                for name in ("iterations", "batch_size", "learning_rate", "patch_voxels", "seed")
            },
            "channels": "-".join(map(str, settings["channels"])),
        }


class TrainingTabled(DictStep):
    """Replace trained models by tables: settings, best loss, precision and recall of ends.

    Parameters
    ----------
    keys : keys of models of ``train_centerline``, replaced by tables
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
        self.step = TrainingTable()


def _facts_of(model: Any) -> dict[str, Json]:
    """Return what the header of a model says about its training."""
    if not isinstance(model, bytes):
        raise StepError("the step needs a model", expected="a document of train_centerline")
    facts = unpack_weights(model)[1]
    if not {"history", "ends", "settings", "examples"} <= set(facts):
        raise InputError("the model does not say how it was trained", hint="train it again")
    return facts


CenterlineMapsD = CenterlineMapsDict = CenterlineMapsd
TrainCenterlineD = TrainCenterlineDict = TrainCenterlined
TrainingCurveD = TrainingCurveDict = TrainingCurved
TrainingTableD = TrainingTableDict = TrainingTabled
