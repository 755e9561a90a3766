"""A baseline as a generator: the same file, conditions and callers as a trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from medpipe.errors import UsageError
from medpipe.models import pack_weights, unpack_weights
from medpipe.synthesis.baselines import PcaGaussian, TemplateDeformation
from medpipe.synthesis.conditions import Condition, Conditions
from medpipe.types import Json

__all__ = ["BASELINES", "BaselineRoute", "columns_of", "names_of"]

BASELINES: dict[str, type[PcaGaussian] | type[TemplateDeformation]] = {
    "pca-gaussian": PcaGaussian,
    "template-deformation": TemplateDeformation,
}


@dataclass(frozen=True, eq=False)
class BaselineRoute:
    """A baseline and the conditions it was fitted with.

    Parameters
    ----------
    model : PcaGaussian or TemplateDeformation
    conditions : Conditions
    image_channels : int
        Channels of the image; those after them are of labels.
    networks : tuple
        None: a baseline stays where it was read.
    """

    model: PcaGaussian | TemplateDeformation
    conditions: Conditions
    image_channels: int = 1
    networks: tuple[nn.Module, ...] = field(default=(), init=False)
    name: ClassVar[str] = "baseline"

    @property
    def kind(self) -> str:
        """Which baseline."""
        return next(name for name, made in BASELINES.items() if isinstance(self.model, made))

    @property
    def label_classes(self) -> int:
        """Classes of the labels, background included; 0 for none."""
        return self.model.label_classes

    def rebuilt(self, volume: Tensor) -> Tensor:
        """Refuse: a baseline keeps no cases, it only draws.

        Raises
        ------
        UsageError
            Always.
        """
        raise UsageError("a baseline keeps no cases", hint="look at what it draws instead")

    def check(self, shape: Sequence[int]) -> None:
        """Raise UsageError unless the baseline draws volumes of a shape, told its conditions."""
        own = self.model.volume_shape
        if own != tuple(shape):
            raise UsageError(
                "the baseline is of volumes of another size", expected=str(own), got=str(shape)
            )
        if self.model.gaussian.known.names != columns_of(self.conditions):
            raise UsageError("the conditions are not those of the baseline")

    def draw(
        self, values: Tensor, present: Tensor, seeds: Sequence[int], shape: Sequence[int],
        settings: Any, progress: Callable[[Any], None] | None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield volumes (C, I, J, K) with a channel for each label, one after the other.

        Raises
        ------
        UsageError
            If temperature, guidance and the like are not what they are by default: a Gaussian
            has none.
        """
        asked = (settings.temperature, settings.guidance, settings.top_k, settings.top_p)
        if asked != (1.0, 1.0, None, None):
            raise UsageError(
                "a baseline is drawn as it was fitted",
                hint="leave out temperature, guidance, top_k and top_p",
            )
        for row, known, seed in zip(values, present, seeds, strict=True):
            told = self._numbers(row.tolist(), known.tolist())
            images, labels = self.model.sample([int(seed)], [told])
            yield images[0] if labels is None else torch.cat([images[0], self._channels(labels[0])])

    def _channels(self, labels: Tensor) -> Tensor:
        classes = torch.arange(self.model.label_classes, device=labels.device)
        return (labels == classes.reshape(-1, 1, 1, 1)).float()

    def _numbers(self, values: Sequence[float], known: Sequence[bool]) -> dict[str, float]:
        """Return what the Gaussian is told, from the encoding of a row."""
        told: dict[str, float] = {}
        first = 0
        for condition in self.conditions.items:
            last = first + condition.columns
            if known[first]:
                told |= dict(
                    zip(names_of(condition), _raw(condition, values[first:last]), strict=True)
                )
            first = last
        return told

    def packed(self, half: bool) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Return tensors and header."""
        if half:
            raise UsageError("baselines are kept in single precision", hint="leave out half")
        tensors, said = unpack_weights(self.model.to_bytes())
        header: dict[str, Json] = {
            "baseline": self.kind, "said": said, "image_channels": self.image_channels,
        }  # fmt: skip
        return tensors, header | self.conditions.to_json()

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> BaselineRoute:
        """Return what `packed` packed; KeyError, ValueError or InputError for anything else."""
        content = pack_weights(dict(tensors), header["said"])
        model = BASELINES[header["baseline"]].read(content)
        conditions = Conditions.from_json({"conditions": header["conditions"]})
        return cls(model, conditions, int(header["image_channels"]))


def columns_of(conditions: Conditions) -> tuple[str, ...]:
    """Return the names of the numbers that a Gaussian is told."""
    return tuple(name for condition in conditions.items for name in names_of(condition))


def names_of(condition: Condition) -> list[str]:
    """Return the columns of a condition: of a category one less, the last follows from them."""
    if condition.kind == "category":
        return [f"{condition.name}={value}" for value in condition.values[:-1]]
    return [condition.name]


def _raw(condition: Condition, encoded: Sequence[float]) -> list[float]:
    """Return the numbers of a condition as the Gaussian was told them."""
    if condition.values:
        return list(encoded)[: len(names_of(condition))]
    value = float(np.interp(encoded[0], condition.levels, condition.quantiles))
    return [float(np.clip(value, condition.low, condition.high))]
