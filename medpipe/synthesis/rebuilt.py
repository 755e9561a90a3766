"""Volumes as the first network of a generator brings them back, and as they would be drawn."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medpipe.synthesis.detail import FineDetail
from medpipe.synthesis.routes import LatentRoute, TokenRoute
from medpipe.synthesis.tokeniser_samples import Some, TokeniserSamples

__all__ = ["AsDrawn", "Rebuilt", "fit_detail"]

FEWEST_DETAILED = 6
"""Volumes that validate, if their fine detail shall be measured on them alone."""
MOST_DETAILED = 24
"""Volumes that it is measured on: they are in memory together."""
REBUILT_BYTES = 2**31
"""Memory for volumes that were rebuilt for a labeller; of more, each is rebuilt when needed."""


class Rebuilt:
    """Images as they come back from the first network; as many as `REBUILT_BYTES` are kept."""

    def __init__(self, volumes: Some, route: TokenRoute | LatentRoute) -> None:
        self.volumes, self.route = volumes, route
        self.samples = TokeniserSamples(volumes, route.image_channels, route.label_classes)
        one = 4 * self.samples.volume(0)[: route.image_channels].numel() if len(volumes) else 1
        self.image = functools.lru_cache(max(1, REBUILT_BYTES // one))(self._made)

    def __len__(self) -> int:
        return len(self.volumes)

    def _made(self, number: int) -> Tensor:
        whole = self.samples.volume(number)
        return self.route.rebuilt(whole)[: self.route.image_channels].to(whole)

    def left_out(self, number: int) -> Tensor:
        """Return an image minus what came back."""
        return self.samples.volume(number)[: self.route.image_channels] - self.image(number)


class AsDrawn(Sequence[Any]):
    """Each volume as it is, and twice as it would be drawn: rebuilt, with fine detail."""

    def __init__(self, rebuilt: Rebuilt, detail: FineDetail) -> None:
        self.rebuilt, self.detail = rebuilt, detail

    def __len__(self) -> int:
        return 3 * len(self.rebuilt)

    def __getitem__(self, index: Any) -> Any:
        number, version = divmod(index, 3)
        image, labels = self.rebuilt.volumes[number]
        if version:
            image = self.detail.added_to(self.rebuilt.image(number), index).clamp(0, 1)
        return image, labels


def fit_detail(trains: Rebuilt, validates: Rebuilt, share: float) -> FineDetail:
    """Return what the first network leaves out of volumes that did not train it, if there are."""
    some = validates if len(validates) >= FEWEST_DETAILED else trains
    left = [some.left_out(number) for number in range(min(len(some), MOST_DETAILED))]
    return FineDetail.fit(torch.stack(left), share)
