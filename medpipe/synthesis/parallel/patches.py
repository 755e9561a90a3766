"""Sampling on several devices at once: each process denoises one slab of the latent.

After DistriFusion (Li et al., CVPR 2024, arXiv 2402.19481), for volumes: slabs along one
axis, any number of processes, slabs of unequal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from medpipe.errors import UsageError
from medpipe.synthesis.parallel.exchange import Exchange, Traffic, group_size
from medpipe.synthesis.parallel.modules import split_module
from medpipe.synthesis.parallel.slabs import choose_axis, cut_evenly, slab_bounds

__all__ = ["PatchParallel", "PatchPart", "WholePart"]


class PatchParallel:
    """How several processes share the sampling of one latent.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        All processes by default. Each calls the same functions with the same arguments.
    axis : int, optional
        Spatial axis that is cut; the longest by default.
    mode : {"synchronous", "displaced"}
        In "synchronous" mode every layer waits for what it needs of the others, and the
        result is that of one device. In "displaced" mode, after the warm-up, it takes what
        they sent in the step before, while new messages travel: faster where the network
        between the devices is slow, and an approximation.
    warmup : int
        Synchronous steps at the beginning of displaced sampling, 1 or more.

    Attributes
    ----------
    traffic : Traffic
        Bytes sent by this process so far.
    """

    def __init__(
        self,
        group: Any = None,
        *,
        axis: int | None = None,
        mode: Literal["synchronous", "displaced"] = "synchronous",
        warmup: int = 4,
    ) -> None:
        if mode not in ("synchronous", "displaced"):
            raise UsageError("unknown mode", expected="synchronous or displaced", got=str(mode))
        if warmup < 1:
            raise UsageError("warmup is wrong", expected="1 or more", got=str(warmup))
        self.group, self.axis, self.mode, self.warmup = group, axis, mode, warmup
        self.traffic = Traffic()

    def part(self, module: nn.Module, shape: Sequence[int], stride: int) -> PatchPart:
        """Return the part of this process.

        Parameters
        ----------
        module : torch.nn.Module
            Of latents (B, C, ...) to latents of the same size.
        shape : sequence of int
            Spatial shape of the whole latent.
        stride : int
            What slabs begin at multiples of; the latent may end between two.

        Raises
        ------
        UsageError
            If the latent cannot be cut into so many slabs, or a layer of the module cannot
            be computed in slabs.
        """
        axis = choose_axis(shape, self.axis)
        shares = cut_evenly(-(-shape[axis] // stride), group_size(self.group))
        exchange = Exchange(
            self.group, shares, axis, displaced=self.mode == "displaced", warmup=self.warmup,
            traffic=self.traffic,
        )  # fmt: skip
        bounds = [(a, min(b, shape[axis])) for a, b in slab_bounds(shares, stride)]
        return PatchPart(split_module(module, exchange), exchange, bounds)


class PatchPart:
    """One process's slab of a latent that is being sampled.

    Attributes
    ----------
    module : torch.nn.Module
        Of the slab; shares the weights of the whole.
    """

    def __init__(
        self, module: nn.Module, exchange: Exchange, bounds: list[tuple[int, int]]
    ) -> None:
        self.module, self.exchange, self.bounds = module, exchange, bounds

    def begin(self, step: int, steps: int) -> None:
        """Begin a step, counted from 0."""
        self.exchange.begin(step, steps)

    def cut(self, whole: Tensor) -> Tensor:
        """Return the slab of a whole (B, C, ...)."""
        start, stop = self.bounds[self.exchange.rank]
        return whole.narrow(self.exchange.dim, start, stop - start)

    def join(self, slab: Tensor) -> Tensor:
        """Return the whole; every process gets it."""
        return self.exchange.join(slab, [b - a for a, b in self.bounds])


class WholePart:
    """The part of a process that works alone: all of it.

    Attributes
    ----------
    module : torch.nn.Module
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def begin(self, step: int, steps: int) -> None:
        """Begin a step, counted from 0."""

    def cut(self, whole: Tensor) -> Tensor:
        """Return the whole."""
        return whole

    def join(self, slab: Tensor) -> Tensor:
        """Return the whole."""
        return slab
