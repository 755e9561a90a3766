"""Volumes as they are and moved at random, which tells a model what a shift does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from medpipe.errors import UsageError
from medpipe.seeds import derive_seed
from medpipe.synthesis.tokeniser_samples import TokeniserSamples

__all__ = ["SHIFTS", "MovedVolumes", "moved", "repeated"]

SHIFTS = ("shift_i_voxels", "shift_j_voxels", "shift_k_voxels")
"""Names of the conditions that say how far a volume was moved."""


class MovedVolumes(Sequence[Any]):
    """Each of some volumes as it is and, after that, moved copies of it.

    Parameters
    ----------
    data : TokeniserSamples
        Volumes of one size; read when they are asked for.
    shift_voxels : int
        The largest shift along each axis; edges are repeated.
    copies : int
        How often each volume is there; the first is not moved.
    seed : int
        Of the shifts: those of a volume do not depend on the others.

    Attributes
    ----------
    subjects : list of int
        Which of the volumes each is.
    moves : list of list of int
        By how many voxels along each axis it is moved.
    """

    def __init__(
        self, data: TokeniserSamples, *, shift_voxels: int = 0, copies: int = 1, seed: int = 0
    ) -> None:
        if not len(data) or copies < 1 or shift_voxels < 0:
            raise UsageError(
                "these volumes cannot be encoded",
                expected="one or more, copies of 1 or more, shift_voxels of 0 or more",
            )
        self.data, self.most, self.moving = data, shift_voxels, shift_voxels > 0 and copies > 1
        self.subjects = [number for number in range(len(data)) for _ in range(copies)]
        self.moves: list[list[int]] = []
        for number in range(len(data)):
            drawn = np.random.default_rng(derive_seed(seed, "shift", str(number)))
            for copy in range(copies):
                some = (
                    drawn.integers(-shift_voxels, shift_voxels + 1, 3) if copy else np.zeros(3, int)
                )
                self.moves.append(some.tolist())

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: Any) -> Any:
        return moved(self.data[self.subjects[index]][0], self.moves[index], self.most)

    @property
    def shifts(self) -> dict[str, list[int]]:
        """By the names in `SHIFTS`: by how much each is moved; nothing where none is."""
        return {n: [m[a] for m in self.moves] for a, n in enumerate(SHIFTS) if self.moving}


def repeated(
    columns: Mapping[str, Sequence[Any]], subjects: Sequence[int], shifts: Mapping[str, list[int]]
) -> dict[str, list[Any]]:
    """Return a table with a value for each volume as one with a value for each copy.

    The shifts, where there are any, are further columns.
    """
    wide: dict[str, list[Any]] = {
        name: [column[subject] for subject in subjects] for name, column in columns.items()
    }
    return wide | {name: list(each) for name, each in shifts.items()}


def moved(x: Tensor, move: Sequence[int], most: int) -> Tensor:
    """Return a volume (C, I, J, K) whose content lies `move` voxels further along each axis."""
    if not any(move):
        return x
    wide = functional.pad(x[None], (most,) * 6, mode="replicate")[0]
    for axis, (step, length) in enumerate(zip(move, x.shape[1:], strict=True), 1):
        wide = wide.narrow(axis, most - step, length)
    return wide
