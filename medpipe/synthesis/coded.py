"""Codes of a set of volumes, each several times and moved, with what was done as conditions.

A prior that is trained with moved volumes and not told draws moved ones too, and a map of t
against real ones shows it. Told how far each was moved, it is asked for none (Tudosiu et al.,
doi 10.1038/s42256-024-00864-0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medpipe.synthesis.moved import SHIFTS, MovedVolumes, repeated
from medpipe.synthesis.tokeniser_samples import TokeniserSamples
from medpipe.synthesis.tokeniser_training import TokeniserModel

__all__ = ["SHIFTS", "CodedVolumes", "encode_moved"]


@dataclass(frozen=True, eq=False)
class CodedVolumes:
    """What a prior is trained with.

    Parameters
    ----------
    codes : Tensor
        int64 (N, h, w, d).
    subjects : list of int
        Which of the volumes each grid is of.
    shifts : dict of list
        By the names in `SHIFTS`: by how many voxels each was moved.
    shape : tuple of int
        Of the volumes, which `Tokeniser.decode` cuts to.
    """

    codes: Tensor
    subjects: list[int]
    shifts: dict[str, list[int]]
    shape: tuple[int, int, int]

    def table(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Return a table with a value for each volume as one with a value for each grid.

        The shifts, where there are any, are further columns.
        """
        return repeated(columns, self.subjects, self.shifts)


def encode_moved(
    model: TokeniserModel,
    samples: Sequence[Any],
    *,
    shift_voxels: int = 0,
    copies: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CodedVolumes:
    """Encode volumes, as they are and moved at random.

    Parameters
    ----------
    model : TokeniserModel
        Computes on its device.
    samples : sequence
        Volumes of one size, as `train_tokeniser` takes them; one is in memory at a time.
    shift_voxels : int
        The largest shift along each axis; edges are repeated.
    copies : int
        How often each is encoded; the first time it is not moved.
    seed : int
        Of the shifts: those of a volume do not depend on the others.
    progress : callable, optional
        Told how many volumes are encoded, and of how many.

    Raises
    ------
    UsageError
        If there are no volumes, or the settings cannot be.
    InputError
        If a sample cannot be used or is of another size; its number is named.
    ResourceError
        If one does not fit in memory.
    """
    known = model.settings
    data = TokeniserSamples(samples, known.image_channels, known.label_classes)
    volumes = MovedVolumes(data, shift_voxels=shift_voxels, copies=copies, seed=seed)
    where = model.tokeniser.codebook.vectors.device
    codes = []
    for number, x in enumerate(volumes, 1):
        codes.append(model.tokeniser.encode(x[None].to(where)))
        if progress is not None and number % copies == 0:
            progress(number // copies, len(data))
    i, j, k = x.shape[1:]
    return CodedVolumes(torch.cat(codes), volumes.subjects, volumes.shifts, (i, j, k))
