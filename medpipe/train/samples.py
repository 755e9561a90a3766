"""Samples in an order that only the seed decides, for any number of processes and workers."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, cast

import torch
from monai.transforms.transform import Randomizable
from torch.utils.data import DataLoader, Dataset, Sampler

from medpipe.errors import UsageError
from medpipe.seeds import derive_seed

__all__ = ["training_batches", "validation_batches"]


def training_batches(
    dataset: Dataset[Any], *, start: int, stop: int, batch_size: int, seed: int,
    rank: int = 0, world: int = 1, workers: int = 0,
) -> DataLoader[Any]:  # fmt: skip
    """Return the batches `start` to `stop` of an endless series, this process's part of each.

    Every epoch is a new permutation. A dataset (or its ``transform``) that is a MONAI
    `Randomizable` gets a seed of its own for every sample drawn, so that a run continues
    with the samples it would have had.

    Raises
    ------
    UsageError
        If the dataset is empty or the batch cannot be shared among the processes.
    """
    if batch_size % world:
        raise UsageError(
            "the batch cannot be shared among the processes",
            expected=f"a multiple of {world}",
            got=str(batch_size),
        )
    sampler = _Draws(_count(dataset), start, stop, batch_size, seed, rank, world)
    return DataLoader(
        _Seeded(dataset, seed),
        batch_sampler=cast(Any, sampler),
        num_workers=workers,
        generator=torch.Generator(),  # the loader draws from it, not from torch's own
    )


def validation_batches(
    dataset: Dataset[Any], *, batch_size: int, seed: int, rank: int = 0, world: int = 1,
    workers: int = 0,
) -> DataLoader[Any]:  # fmt: skip
    """Return every sample once, in order, this process's share; the same at every validation."""
    draws = [(n, -1 - n) for n in range(rank, _count(dataset), world)]
    size = max(1, batch_size // world)
    return DataLoader(
        _Seeded(dataset, seed),
        sampler=cast(Any, draws),
        batch_size=size,
        num_workers=workers,
        persistent_workers=workers > 0,  # what they keep serves the next validation
        generator=torch.Generator(),
    )


def _count(dataset: Dataset[Any]) -> int:
    count = len(cast(Sized, dataset))
    if count == 0:
        raise UsageError("nothing to train with", expected="at least one sample")
    return count


class _Seeded(Dataset[Any]):
    """Seeds what is random before a sample is made."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        parts = (dataset, getattr(dataset, "transform", None))
        self.random = [p for p in parts if isinstance(p, Randomizable)]

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        index, number = draw
        for part in self.random:
            part.set_random_state(seed=derive_seed(self.seed, "sample", str(number)))
        return self.dataset[index]


class _Draws(Sampler[list[tuple[int, int]]]):
    """Pairs of the index of a sample and the number of the draw, batch by batch."""

    def __init__(
        self, count: int, start: int, stop: int, size: int, seed: int, rank: int, world: int
    ) -> None:
        self.count, self.start, self.stop, self.size = count, start, stop, size
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, [0]
        share = self.size // self.world
        for batch in range(self.start, self.stop):
            first = batch * self.size + self.rank * share
            draws = []
            for number in range(first, first + share):
                if number // self.count != epoch:
                    epoch = number // self.count
                    order = self._order(epoch)
                draws.append((order[number % self.count], number))
            yield draws

    def _order(self, epoch: int) -> list[int]:
        made = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", str(epoch)))
        return torch.randperm(self.count, generator=made).tolist()
