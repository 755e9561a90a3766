"""How an axis is cut into slabs, and how far a layer looks beyond a slab."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from monai.networks.nets.autoencoderkl import AsymmetricPad
from torch import nn

from medpipe.errors import UsageError

__all__ = ["Reach", "choose_axis", "cut_evenly", "layer_reach", "path_reach", "slab_bounds"]


@dataclass(frozen=True)
class Reach:
    """Cells of its input that a layer reads outside a slab.

    Parameters
    ----------
    before, after : int
        Cells below and above the slab.
    scale : Fraction
        Cells of the output for a cell of the input.
    """

    before: int
    after: int
    scale: Fraction = Fraction(1)


def choose_axis(shape: Sequence[int], axis: int | None) -> int:
    """Return the spatial axis to cut: `axis` (0, 1, 2), or the longest of `shape`.

    Raises
    ------
    UsageError
        If there is no such axis.
    """
    if axis is None:
        return max(range(len(shape)), key=lambda a: shape[a])
    if not 0 <= axis < len(shape):
        raise UsageError("no such axis", expected=f"0 to {len(shape) - 1}", got=str(axis))
    return axis


def cut_evenly(cells: int, parts: int) -> tuple[int, ...]:
    """Return how many cells each part gets; the first ones get what is left over.

    Raises
    ------
    UsageError
        If there are more parts than cells.
    """
    if not 1 <= parts <= cells:
        raise UsageError(
            "the volume cannot be cut into so many slabs",
            expected=f"1 to {cells}",
            got=str(parts),
            hint="take fewer processes, or another axis",
        )
    each, left = divmod(cells, parts)
    return tuple(each + (n < left) for n in range(parts))


def slab_bounds(shares: Sequence[int], stride: int = 1) -> list[tuple[int, int]]:
    """Return where each slab begins and ends, in cells of `stride` to a share."""
    ends = [stride * sum(shares[: n + 1]) for n in range(len(shares))]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def layer_reach(layer: nn.Module, axis: int, *, padded: int = 0) -> Reach:
    """Return how far a convolution looks, when slabs begin at multiples of its stride.

    Parameters
    ----------
    layer : torch.nn.Conv1d to Conv3d, or a transposed one
    axis : int
        Spatial axis.
    padded : int
        Cells of padding that were added above before.

    Raises
    ------
    UsageError
        If slabs of the input do not become slabs of the output.
    """
    conv: Any = layer
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise _unsuitable(layer, "numbers of zeros as padding")
    k, s, p, d = (
        int(v[axis]) for v in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    )
    if conv.transposed:
        more = int(conv.output_padding[axis])
        if d != 1 or k - 2 * p + more != s or more > p:
            raise _unsuitable(layer, "an output of the size of the input times the stride")
        return Reach((k - 1 - p) // s, max(0, (p - 1) // s + 1), Fraction(s))
    after = (k - 1) * d - s - p + 1
    if not 0 <= p + padded - after < s:
        raise _unsuitable(layer, "an output of the size of the input divided by the stride")
    return Reach(p, max(0, after), Fraction(1, s))


def _unsuitable(layer: nn.Module, expected: str) -> UsageError:
    return UsageError(
        "a layer cannot be computed in slabs", where=type(layer).__name__, expected=expected
    )


def path_reach(layers: Sequence[nn.Module], axis: int) -> Reach:
    """Return how far layers that follow one another look beyond a slab of the first input.

    Parameters
    ----------
    layers : sequence of torch.nn.Module
        In the order in which they compute. Side branches may be among them, which makes the
        answer too large, never too small.
    axis : int
        Spatial axis.
    """
    before = after = 0  # cells that are wrong where zeros stood for what lies beyond
    scale, padded = Fraction(1), 0
    for layer in layers:
        if isinstance(layer, AsymmetricPad):
            padded = layer.pad[1]
        elif isinstance(layer, nn.Upsample):
            factor = upsampling(layer, axis)
            before, after, scale = before * factor, after * factor, scale * factor
        elif isinstance(layer, nn.AvgPool3d | nn.AvgPool2d):
            factor = pooling(layer, axis)
            before, after = math.ceil(before / factor), math.ceil(after / factor)
            scale /= factor
        elif getattr(layer, "transposed", None) is not None:
            reach = layer_reach(layer, axis, padded=padded)
            conv: Any = layer
            padded = 0
            if conv.transposed:
                k, s, p = (int(v[axis]) for v in (conv.kernel_size, conv.stride, conv.padding))
                before, after = max(0, s * (before - 1) + k - p), after * s + p
            else:
                s = int(1 / reach.scale)
                before = math.ceil((before + reach.before) / s)
                after = math.ceil((after + reach.after) / s)
            scale *= reach.scale
    return Reach(math.ceil(before / scale), math.ceil(after / scale), scale)


def upsampling(layer: nn.Upsample, axis: int) -> int:
    """Return the factor of an upsampling that repeats cells.

    Raises
    ------
    UsageError
        If it interpolates, or the factor is no whole number.
    """
    factor: Any = layer.scale_factor
    value = factor if factor is None or isinstance(factor, int | float) else factor[axis]
    if layer.mode != "nearest" or value is None or value != int(value):
        raise _unsuitable(layer, "cells that are repeated a whole number of times")
    return int(value)


def pooling(layer: nn.AvgPool3d | nn.AvgPool2d, axis: int) -> int:
    """Return the factor of a pooling whose windows do not overlap.

    Raises
    ------
    UsageError
        If they do.
    """
    sizes = [
        int(v) if isinstance(v, int) else int(v[axis])
        for v in (layer.kernel_size, layer.stride, layer.padding)
    ]
    if sizes[0] != sizes[1] or sizes[2]:
        raise _unsuitable(layer, "windows that do not overlap")
    return sizes[0]
