"""A CT on the grid of a model, the probability of an outcome as a document and as a row."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from torch import nn

from medpipe.errors import StepError
from medpipe.outcome.bundle import OutcomeBundle, read_bundle
from medpipe.outcome.predict import OutcomePrediction, check_model_grid, predict_outcome
from medpipe.outcome.prepare import frame_matrix
from medpipe.outcome.transforms.prepare import HeadGrid
from medpipe.steps._base import ArrayStep, DictStep, as_image, facts_of, read_key, with_facts
from medpipe.types import Json

__all__ = [
    "DEFAULT_MODEL",
    "ModelGrid",
    "ModelGridD",
    "ModelGridDict",
    "ModelGridd",
    "ModelOnDevice",
    "PredictOutcome",
    "PredictOutcomeD",
    "PredictOutcomeDict",
    "PredictOutcomed",
    "PredictionTable",
    "PredictionTableD",
    "PredictionTableDict",
    "PredictionTabled",
    "prepared_image",
    "read_prediction",
]

DEFAULT_MODEL = "sah-mortality-demo"


class ModelOnDevice:
    """A model that is read once and stays on the device of the images.

    Parameters
    ----------
    model : str
        See `medpipe.outcome.bundle.read_bundle`.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._bundle: OutcomeBundle | None = None
        self._networks: list[nn.Module] = []

    def on(self, device: torch.device) -> tuple[OutcomeBundle, list[nn.Module]]:
        """Return the bundle and its networks on a device."""
        if self._bundle is None:
            self._bundle = read_bundle(self.model)
            self._networks = self._bundle.networks(device)
        self._networks = [network.to(device) for network in self._networks]
        return self._bundle, self._networks


def prepared_image(img: Any) -> MetaTensor:
    """Return a prepared CT with one channel of real values."""
    image = as_image(img)
    if image.shape[0] != 1 or image.is_complex():
        raise StepError("the image is no prepared CT", expected="one channel of HU")
    return image


def read_prediction(document: Any) -> OutcomePrediction:
    """Return what a document of the step ``predict_outcome`` says.

    Raises
    ------
    StepError
        If it is an image or a table.
    InputError
        If it is another document.
    """
    if not isinstance(document, bytes):
        raise StepError(
            "the step needs a prediction",
            expected="a document of the step predict_outcome",
            got="a table" if isinstance(document, dict) else "an image",
        )
    return OutcomePrediction.from_json(document)


class ModelGrid(ArrayStep):
    """Resample a CT once, through the frame of its head, onto the grid of a model.

    Parameters
    ----------
    model : str
        A packaged model, the folder of a trained one, or its file.
    """

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        self.model = model
        self._grid: HeadGrid | None = None
        self._whose: dict[str, Json] = {}

    @property
    def grid(self) -> HeadGrid:
        """The step ``head_grid`` with the settings of the model."""
        if self._grid is None:
            bundle = read_bundle(self.model)
            facts = bundle.facts
            self._whose = {"model": facts.name, "model_digest": bundle.digest}
            self._grid = HeadGrid(
                spacing_mm=list(facts.spacing_mm),
                size_voxels=list(facts.size_voxels),
                top_margin_mm=facts.top_margin_mm,
            )
        return self._grid

    def __call__(self, img: Any) -> MetaTensor:
        """Return whole HU (1, *size) in the frame of the head, -1000 outside the scan.

        The facts (``head_grid``) name the model.

        Raises
        ------
        StepError
            If the image knows no frame (see `medpipe.transforms.HeadFrame`).
        UsageError, InputError
            If there is no such model, or it cannot be used.
        """
        out = self.grid(img)
        return with_facts(out, {"head_grid": facts_of(out)["head_grid"] | self._whose})


class ModelGridd(DictStep):
    """Resample CTs once, through the frame of the head, onto the grid of a model.

    As ``head_grid`` with the settings that the model was trained with.

    Parameters
    ----------
    keys : keys of the CTs, each with its frame (`head_frame`)
    model : str
        A packaged model, the folder of a trained one, or its file.
    mask : str, optional
        Key of a mask of the head, on any grid.
    mask_out : str, optional
        Key that receives it on the grid of the model.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "2"
    reads = ("mask",)
    writes = ("mask_out",)
    files = ("model",)
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        model: str = "sah-mortality-demo",
        mask: str | None = None,
        mask_out: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask, self.mask_out = mask, mask_out
        self.step = ModelGrid(model)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key, and the mask, on the grid of the model."""
        out = dict(data)
        for key in self.key_iterator(out):
            matrix = frame_matrix(as_image(out[key]))
            out[key] = self.step(out[key])
            if self.mask is not None and self.mask_out is not None:
                head = read_key(data, self.mask, "mask of the head")
                out[self.mask_out] = self.step.grid.mask(head, matrix)
        return out


class PredictOutcome(ArrayStep):
    """Predict the outcome of a patient from a prepared head CT.

    Parameters
    ----------
    model : str
        A packaged model, the folder of a trained one, or its file.
    """

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        self.model = ModelOnDevice(model)

    def __call__(self, img: Any) -> bytes:
        """Return the prediction as JSON (`medpipe.outcome.predict.OutcomePrediction`).

        Parameters
        ----------
        img : MetaTensor (1, I, J, K)
            HU on the grid of the model, as the step ``model_grid`` makes it.

        Raises
        ------
        StepError
            If the image is on another grid.
        UsageError, InputError
            If there is no such model, or it cannot be used.
        """
        image = prepared_image(img)
        bundle, networks = self.model.on(image.device)
        check_model_grid(bundle, image)
        noticed = (image.meta.get("medpipe") or {}).get("findings") or []
        found = predict_outcome(bundle, networks, image.as_tensor(), findings=noticed)
        return found.to_json()


class PredictOutcomed(DictStep):
    """Replace prepared head CTs by predictions: probability, spread, calibration, notice (.json).

    Parameters
    ----------
    keys : keys of CTs in HU on the grid of the model, replaced by documents
    model : str
        A packaged model, the folder of a trained one, or its file.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ("model",)
    makes = "document"
    suffix = ".json"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        model: str = "sah-mortality-demo",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = PredictOutcome(model)


class PredictionTable(ArrayStep):
    """Make a row of a prediction."""

    def __call__(self, prediction: Any) -> dict[str, Json]:
        """Return the row; see `medpipe.outcome.predict.OutcomePrediction.row`."""
        return read_prediction(prediction).row()


class PredictionTabled(DictStep):
    """Replace predictions by tables: probability, members, operating point, notice.

    Parameters
    ----------
    keys : keys of documents of ``predict_outcome``, replaced by tables
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
        self.step = PredictionTable()


ModelGridD = ModelGridDict = ModelGridd
PredictOutcomeD = PredictOutcomeDict = PredictOutcomed
PredictionTableD = PredictionTableDict = PredictionTabled
