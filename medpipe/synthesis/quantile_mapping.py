"""Intensities of drawn images mapped to those of real ones, place by place.

Where patients differ in shape, networks that learn from few of them draw what lies between: an
edge that is sharp in every real image, each time elsewhere, becomes a soft one with a halo
around it. At one voxel real images are then almost always dark and rarely bright, and drawn
ones are always a little too bright. Quantile mapping gives each voxel the distribution that it
has in real images: the intensity that a share of the drawn images stays below becomes the one
that the same share of real images stays below. What goes together in one image stays as it was
drawn. (In climatology a correction of bias: Cannon, Sobie and Murdock 2015,
doi 10.1175/JCLI-D-14-00754.1.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medpipe.errors import UsageError
from medpipe.seeds import derive_seed

__all__ = ["LEVELS", "QuantileMapping"]

LEVELS = (0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)
"""Shares whose intensities are kept; between them the mapping is linear."""
CELLS = 2**18
"""Places of one channel that have a mapping of their own: of larger volumes several voxels
share one, and it changes linearly from place to place."""
FEWEST = 20
"""Images of either kind from which a mapping is learned."""
COLUMNS = 2**23
"""Values whose quantiles are found at a time."""


@dataclass(frozen=True, eq=False)
class QuantileMapping:
    """A mapping of intensities from 0 to 1 for each place.

    Parameters
    ----------
    drawn, real : Tensor (levels, C, i, j, k)
        Intensities that `LEVELS` of the images stay below, on a grid over the volume.
    """

    drawn: Tensor
    real: Tensor

    @classmethod
    def fit(cls, drawn: Iterable[Tensor], real: Iterable[Tensor]) -> QuantileMapping:
        """Learn the mapping.

        Parameters
        ----------
        drawn, real : iterable of Tensor (C, I, J, K)
            Images of either kind, of one size; intensities are cut at 0 and 1. Which drawn
            image is beside which real one does not matter.

        Raises
        ------
        UsageError
            If there are too few of a kind, or they differ in size.
        """
        tables = [_quantiles(images) for images in (drawn, real)]
        if tables[0].shape != tables[1].shape:
            raise UsageError(
                "drawn images have another size than real ones",
                expected=str(tuple(tables[1].shape[1:])), got=str(tuple(tables[0].shape[1:])),
            )  # fmt: skip
        return cls(tables[0], tables[1].to(tables[0]))

    def applied_to(self, image: Tensor) -> Tensor:
        """Return a drawn image (C, I, J, K) as its quantiles would be real ones, from 0 to 1.

        Below the first of `LEVELS` and above the last, intensities move as these do. An
        intensity that several of `LEVELS` share becomes the middle of what they become.
        Differentiable.
        """
        x = image.clamp(0, 1)
        size = x.shape[1:]
        before, after = self._at(0, size, x)
        out = after + (x - before).clamp(max=0)
        for level in range(1, len(self.drawn)):
            drawn, real = self._at(level, size, x)
            width = drawn - before
            way = ((x - before) / width.clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
            way = torch.where(width > 0, way, 0.5 + 0.5 * (x - drawn).sign())
            out = out + way * (real - after)
            before, after = drawn, real
        return (out + (x - before).clamp(min=0)).clamp(0, 1)

    def _at(self, level: int, size: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the intensities of a level, drawn and real, at all voxels."""
        both = torch.stack([self.drawn[level], self.real[level]]).to(like)
        if both.shape[2:] != size:
            both = functional.interpolate(both, size=tuple(size), mode="trilinear")
        return both[0], both[1]

    def packed(self) -> dict[str, Tensor]:
        """Return its tensors in half precision, which `unpacked` reads."""
        return {"mapping.drawn": self.drawn.half(), "mapping.real": self.real.half()}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor]) -> QuantileMapping | None:
        """Return what `packed` packed, or None if there is none among the tensors."""
        if "mapping.drawn" not in tensors:
            return None
        return cls(tensors["mapping.drawn"].float(), tensors["mapping.real"].float())


def _quantiles(images: Iterable[Tensor]) -> Tensor:
    """Return the intensities (levels, C, i, j, k) that `LEVELS` of images stay below."""
    rows = [_voxels_of_cells(image, number) for number, image in enumerate(images)]
    if len(rows) < FEWEST or any(row.shape != rows[0].shape for row in rows):
        raise UsageError(
            "intensities cannot be mapped", expected=f"{FEWEST} images or more, of one size",
            got=str(len(rows)), hint="train without mapping_draws",
        )  # fmt: skip
    values = torch.stack(rows)
    flat = values.flatten(1)
    levels = torch.tensor(LEVELS, device=flat.device)
    parts = [
        torch.quantile(part.float(), levels, dim=0)
        for part in flat.split(max(1, COLUMNS // len(rows)), 1)
    ]
    return torch.cat(parts, 1).view(len(LEVELS), *values.shape[1:])


def _voxels_of_cells(image: Tensor, number: int) -> Tensor:
    """Return an image (C, I, J, K) on the grid of the mapping, in half precision.

    Of each cell one voxel is taken: a mean would have another distribution than voxels. Which
    one is drawn for each image.
    """
    step = math.ceil((math.prod(image.shape[1:]) / CELLS) ** (1 / 3) - 1e-9)
    made = torch.Generator().manual_seed(derive_seed(number, "cells"))
    out = image.clamp(0, 1).half()
    for axis, length in enumerate(image.shape[1:], 1):
        cells = math.ceil(length / step)
        first = torch.arange(cells) * length // cells
        ends = (torch.arange(cells) + 1) * length // cells
        drawn = torch.rand(cells, generator=made)
        chosen = first + (drawn * (ends - first)).long()
        out = out.index_select(axis, chosen.to(out.device))
    return out
