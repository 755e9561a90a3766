"""What processes tell each other about their slabs, and how many bytes that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from medpipe.errors import UsageError
from medpipe.synthesis.parallel.moments import corrected, pooled

__all__ = ["Exchange", "Traffic", "group_size"]

Kind = Literal["halo", "statistics", "attention", "result"]


@dataclass
class Traffic:
    """Bytes that this process sent, by what they were for.

    Parameters
    ----------
    halo, statistics, attention, result : int
        Rims of slabs for convolutions, moments for group normalisation, keys and values, and
        the slabs that are put together in the end.
    messages : int
    """

    halo: int = 0
    statistics: int = 0
    attention: int = 0
    result: int = 0
    messages: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return self.halo + self.statistics + self.attention + self.result

    def count(self, kind: Kind, sent: Tensor) -> None:
        """Add a message."""
        setattr(self, kind, getattr(self, kind) + sent.numel() * sent.element_size())
        self.messages += 1

    def to_json(self) -> dict[str, int]:
        """Return the numbers and their total."""
        return asdict(self) | {"total": self.total}


class _Post:
    """Messages under way; what was sent is kept until they have arrived."""

    def __init__(self, works: list[Any], sent: list[Tensor], got: dict[int, Tensor]) -> None:
        self.works, self.sent, self.got = works, sent, got

    def wait(self) -> dict[int, Tensor]:
        """Return what came from each process."""
        for work in self.works:
            work.wait()
        self.works, self.sent = [], []
        return self.got


def group_size(group: Any) -> int:
    """Return how many processes a group has; 1 where nothing is distributed.

    Raises
    ------
    UsageError
        If this process is not one of them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    size = dist.get_world_size(group)
    if size < 1:
        raise UsageError("this process does not belong to the group")
    return size


class Exchange:
    """Fetches what lies beyond the slab of this process.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        All processes by default; without a process group there is one slab, the whole.
    shares : sequence of int
        How long the slab of each process is, in cells of the coarsest resolution.
    axis : int
        Spatial axis that is cut.
    displaced : bool
        After the warm-up, what the others sent in the step before is used, and what is sent
        now travels while the step goes on.
    warmup : int
        Steps in which all wait for each other, 1 or more.
    traffic : Traffic, optional
        To add to.

    Raises
    ------
    UsageError
        If the shares are not one for each process.
    """

    def __init__(
        self, group: Any, shares: Sequence[int], axis: int, *, displaced: bool = False,
        warmup: int = 4, traffic: Traffic | None = None,
    ) -> None:  # fmt: skip
        self.size = group_size(group)
        if len(shares) != self.size:
            raise UsageError(
                "the slabs are not one for each process", expected=str(self.size),
                got=str(len(shares)),
            )  # fmt: skip
        self.group: Any = group if group is not None or self.size == 1 else dist.group.WORLD
        self.rank = dist.get_rank(self.group) if self.size > 1 else 0
        self.shares, self.axis, self.dim = tuple(shares), axis, axis + 2
        self.displaced, self.warmup = displaced, max(1, warmup)
        self.traffic = Traffic() if traffic is None else traffic
        self.fresh, self.last = True, True
        self._kept: dict[int, _Post] = {}
        self._told: dict[int, Tensor] = {}

    def begin(self, step: int, steps: int) -> None:
        """Begin a step of sampling; `step` counts from 0."""
        self.fresh = not self.displaced or step < self.warmup
        self.last = not self.displaced or step == steps - 1

    def share_of(self, length: int, rank: int) -> int:
        """Return how long the slab of another is where one's own has `length`."""
        return length * self.shares[rank] // self.shares[self.rank]

    def halo(self, key: int, x: Tensor, before: int, after: int) -> Tensor:
        """Return a slab with cells of its neighbours, zeros where the volume ends.

        Parameters
        ----------
        key : int
            Of the layer that asks; the same in all processes.
        x : Tensor (B, C, ...)
        before, after : int
            Cells to add.

        Raises
        ------
        UsageError
            If a slab is thinner than what its neighbour needs of it.
        """
        lengths = [self.share_of(x.shape[self.dim], r) for r in range(self.size)]
        if self.size > 1 and min(lengths) < max(before, after):
            raise UsageError(
                "the slabs are too thin for a layer", expected=f"{max(before, after)} cells",
                got=str(min(lengths)), hint="take fewer processes, or a longer axis",
            )  # fmt: skip
        sends: dict[int, Tensor] = {}
        wants: dict[int, list[int]] = {}
        below, above = self.rank - 1, self.rank + 1
        if above < self.size:
            if before:
                sends[above] = _rows(x, self.dim, x.shape[self.dim] - before, before)
            if after:
                wants[above] = _shape(x, self.dim, after)
        if below >= 0:
            if after:
                sends[below] = _rows(x, self.dim, 0, after)
            if before:
                wants[below] = _shape(x, self.dim, before)
        got = self._swap(key, "halo", sends, wants, x)
        parts = [x]
        if before:
            parts.insert(0, got.get(below, _nothing(x, self.dim, before)))
        if after:
            parts.append(got.get(above, _nothing(x, self.dim, after)))
        return torch.cat(parts, self.dim)

    def gather(self, key: int, x: Tensor, dim: int) -> Tensor:
        """Return the tokens of all slabs, in the order of the processes, along `dim`."""
        wants = {
            r: _shape(x, dim, self.share_of(x.shape[dim], r))
            for r in range(self.size)
            if r != self.rank
        }
        got = self._swap(key, "attention", dict.fromkeys(wants, x.contiguous()), wants, x)
        return torch.cat([x if r == self.rank else got[r] for r in range(self.size)], dim)

    def moments(self, key: int, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the whole from the sums of this slab.

        See `medpipe.synthesis.parallel.moments`.
        """
        others = [r for r in range(self.size) if r != self.rank]
        stale = not self.fresh
        wants = {r: list(sums.shape) for r in others}
        got = self._swap(key, "statistics", dict.fromkeys(others, sums), wants, sums)
        before = self._told.pop(key, sums)
        if not self.last:
            self._told[key] = sums
        parts = [sums if r == self.rank else got[r] for r in range(self.size)]
        return corrected(parts, before, sums, self.rank) if stale else pooled(parts)

    def join(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Return the whole, from the slab of each process.

        Parameters
        ----------
        x : Tensor (B, C, ...)
        lengths : sequence of int, optional
            Of all slabs, where they are not in proportion to the shares.
        """
        wanted = lengths or [self.share_of(x.shape[self.dim], r) for r in range(self.size)]
        others = [r for r in range(self.size) if r != self.rank]
        wants = {r: _shape(x, self.dim, wanted[r]) for r in others}
        sent = dict.fromkeys(others, x.contiguous())
        got = self._send(0, "result", sent, wants, x).wait() if others else {}
        return torch.cat([x if r == self.rank else got[r] for r in range(self.size)], self.dim)

    def _swap(
        self, key: int, kind: Kind, sends: dict[int, Tensor], wants: dict[int, list[int]],
        like: Tensor,
    ) -> dict[int, Tensor]:  # fmt: skip
        """Send, and return what the others sent: now, or in the step before."""
        if not sends and not wants:
            return {}
        if self.fresh:
            post = self._send(key, kind, sends, wants, like)
            got = post.wait()
            if not self.last:
                self._kept[key] = post
            return got
        got = self._kept.pop(key).wait()
        if not self.last:
            self._kept[key] = self._send(key, kind, sends, wants, like)
        return got

    def _send(
        self, key: int, kind: Kind, sends: dict[int, Tensor], wants: dict[int, list[int]],
        like: Tensor,
    ) -> _Post:  # fmt: skip
        """Start the messages of one layer."""
        got = {r: like.new_empty(shape) for r, shape in wants.items()}
        operations = []
        for r in range(self.size):
            peer = dist.get_global_rank(self.group, r)
            if r in sends:
                self.traffic.count(kind, sends[r])
                operations.append(dist.P2POp(dist.isend, sends[r], peer, self.group, key))
            if r in got:
                operations.append(dist.P2POp(dist.irecv, got[r], peer, self.group, key))
        return _Post(dist.batch_isend_irecv(operations), list(sends.values()), got)


def _shape(x: Tensor, dim: int, length: int) -> list[int]:
    return [length if n == dim % x.ndim else size for n, size in enumerate(x.shape)]


def _rows(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Return a copy: the layer may go on to change what it gave."""
    return x.narrow(dim, start, length).clone(memory_format=torch.contiguous_format)


def _nothing(x: Tensor, dim: int, length: int) -> Tensor:
    return x.new_zeros(_shape(x, dim, length))
