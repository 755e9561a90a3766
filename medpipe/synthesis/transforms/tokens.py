"""Volumes as grids of codes and back, as transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    check_same_grid,
    facts_of,
    read_key,
    rewrap,
    with_facts,
)
from medpipe.synthesis.tokeniser import join_labels, split_labels
from medpipe.synthesis.tokeniser_samples import check_intensities
from medpipe.synthesis.tokeniser_training import TokeniserModel
from medpipe.types import Affine, Json

__all__ = [
    "Detokenize",
    "DetokenizeD",
    "DetokenizeDict",
    "Detokenized",
    "Tokenize",
    "TokenizeD",
    "TokenizeDict",
    "Tokenized",
]


class _TokeniserStep(ArrayStep):
    """A step with a tokeniser that is read once and follows the device of the images."""

    def __init__(self, model: str) -> None:
        self.name = model
        self._model: TokeniserModel | None = None

    def model_on(self, device: torch.device) -> TokeniserModel:
        """Return the model on a device."""
        if self._model is None:
            self._model = TokeniserModel.read(self.name)
        self._model.tokeniser.to(device)
        return self._model


class Tokenize(_TokeniserStep):
    """Turn volumes into grids of codes.

    Parameters
    ----------
    model : str
        Name of a packaged tokeniser, or a file that training made.
    """

    @torch.no_grad()
    def __call__(self, img: Any, labels: Any = None) -> MetaTensor:
        """Return the codes (1, h, w, d) int32; each lies in the middle of its voxels.

        Parameters
        ----------
        img : MetaTensor (C, I, J, K)
            Intensities about 0 to 1, as the tokeniser was trained with.
        labels : MetaTensor (1, I, J, K), optional
            On its grid; needed by a tokeniser of image and labels, and only there.

        Raises
        ------
        StepError
            If channels or labels do not fit the tokeniser.
        InputError
            If the intensities were not normalised, or a label is none of its classes.
        UsageError, InputError
            If there is no such model, or it is no tokeniser.
        ResourceError
            If the volume does not fit in memory.
        """
        image = as_image(img)
        model = self.model_on(image.device)
        settings = model.settings
        x = image.as_tensor()
        if x.is_complex() or x.shape[0] != settings.image_channels:
            raise StepError(
                "the tokeniser does not read this image",
                expected=f"{settings.image_channels} channels of real values",
                got=f"shape {tuple(x.shape)}",
            )
        check_intensities(x)
        x = x.float()
        if (labels is not None) != bool(settings.label_classes):
            raise StepError(
                "labels and tokeniser do not fit",
                expected=f"labels of {settings.label_classes} classes"
                if settings.label_classes
                else "no labels",
            )
        if labels is not None:
            known = as_image(labels)
            check_same_grid(image, known, "label map")
            x = join_labels(x, known.as_tensor().to(x.device), settings.label_classes)
        codes = model.tokeniser.encode(x[None])[0]
        made = rewrap(image, codes[None].int(), affine_of(image) @ _middles(settings.stride))
        facts: dict[str, Json] = {
            "tokeniser": model.digest,
            "shape": [int(n) for n in image.shape[1:]],
            "codes": settings.codes,
        }
        return with_facts(made, {"tokens": facts})


class Tokenized(DictStep):
    """Replace volumes by grids of codes, one integer for a cube of voxels.

    Parameters
    ----------
    keys : keys of the images
    model : str
        Name of a packaged tokeniser, or a file that training made.
    labels : str, optional
        Key of a label map on the grid of the images, for a tokeniser of both.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("labels",)
    writes = ()
    files = ("model",)
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        model: str,
        labels: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = labels
        self.step = Tokenize(model)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key as codes."""
        out = dict(data)
        labels = None if self.labels is None else read_key(data, self.labels, "label map")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], labels)
        return out


class Detokenize(_TokeniserStep):
    """Turn grids of codes into volumes.

    Parameters
    ----------
    model : str
        Name of a packaged tokeniser, or a file that training made.
    """

    def __call__(self, img: Any) -> MetaTensor:
        """Return the image (C, I, J, K) float32 of codes; see `both`."""
        return self.both(img)[0]

    @torch.no_grad()
    def both(self, img: Any) -> tuple[MetaTensor, MetaTensor | None]:
        """Return the image (C, I, J, K) float32 and, where there are any, the labels uint8.

        Parameters
        ----------
        img : MetaTensor (1, h, w, d)
            Whole numbers. What `Tokenize` made knows the size of its volume; of other codes
            the whole grid is shown.

        Raises
        ------
        StepError
            If these are no codes, or codes of another tokeniser.
        UsageError, InputError
            If there is no such model, or it is no tokeniser.
        ResourceError
            If the volume does not fit in memory.
        """
        image = as_image(img)
        model = self.model_on(image.device)
        facts = facts_of(image).get("tokens") or {}
        if facts.get("tokeniser", model.digest) != model.digest:
            raise StepError(
                "the codes are of another tokeniser",
                expected=f"sha256 {model.digest[:12]}…",
                got=f"{str(facts['tokeniser'])[:12]}…",
                hint="give the model that made them",
            )
        codes = _whole(image.as_tensor())
        values = model.tokeniser.decode(codes, facts.get("shape"))[0]
        affine = affine_of(image) @ np.linalg.inv(_middles(model.settings.stride))
        picture, labels = split_labels(values, model.settings.image_channels)
        made = rewrap(image, picture.clone(), affine)
        return made, None if labels is None else rewrap(image, labels.clone(), affine)


class Detokenized(DictStep):
    """Replace grids of codes by the volumes they stand for.

    Parameters
    ----------
    keys : keys of the codes
    model : str
        Name of a packaged tokeniser, or a file that training made.
    labels_out : str, optional
        Key that receives the labels, of a tokeniser of image and labels; with one key alone.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ("labels_out",)
    files = ("model",)
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        model: str,
        labels_out: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels_out = labels_out
        self.step = Detokenize(model)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key as a volume.

        Raises
        ------
        StepError
            If labels are asked for and the tokeniser has none.
        """
        out = dict(data)
        for key in self.key_iterator(out):
            out[key], labels = self.step.both(out[key])
            if self.labels_out is not None:
                if labels is None:
                    raise StepError("the tokeniser has no labels", hint="leave out labels_out")
                out[self.labels_out] = labels
        return out


def _middles(stride: int) -> Affine:
    """Return the matrix from the index of a code to the voxel index of the middle of its cube."""
    matrix = np.diag([stride, stride, stride, 1.0])
    matrix[:3, 3] = (stride - 1) / 2
    return matrix


def _whole(values: torch.Tensor) -> torch.Tensor:
    """Return codes (1, h, w, d) as int64."""
    codes = values.long()
    if values.is_complex() or values.shape[0] != 1 or not bool((codes == values).all()):
        raise StepError(
            "these are no codes",
            expected="whole numbers (1, h, w, d)",
            got=f"shape {tuple(values.shape)}",
        )
    return codes


TokenizeD = TokenizeDict = Tokenized
DetokenizeD = DetokenizeDict = Detokenized
