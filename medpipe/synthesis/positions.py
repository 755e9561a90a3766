"""Where tokens are, told to a transformer over a grid.

Input `i` of a prior holds the code at position `i - 1` of the sequence (input 0 holds the
start) and predicts the code at position `i`. So a query stands at the place that is drawn
next, and a key at the place of the code that it holds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medpipe.errors import UsageError

__all__ = ["RelativeBias", "coordinates", "rotary_tables", "rotate"]

_THETA = 100.0  # grids are tens of tokens wide: the slowest pair turns by a fraction of a circle
_NEAR = 2
"""Up to this distance along an axis every offset has a bucket of its own."""
_BUCKETS = 5
"""Distances along an axis: 0, 1, 2, 3 to 5, further."""


def coordinates(grid: tuple[int, ...], order: Tensor) -> Tensor:
    """Return the place of every token of the sequence, int64 (L, axes)."""
    return torch.stack(torch.unravel_index(order, grid), dim=-1)


def rotary_tables(places: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Return the rotation of every query and key.

    The pairs of a head are shared out among the axes of the grid; those of an axis turn by
    the coordinate along it times a frequency that falls from 1 to 1/100 (Su et al.,
    arXiv 2104.09864, by axis). The product of a query and a key then depends on the offset
    between their places.

    Parameters
    ----------
    places : Tensor
        (L, axes), by position in the sequence.
    head_width : int
        Even, and two or more for each axis.

    Returns
    -------
    queries, keys : Tensor
        (L, head_width / 2, 2), cosine and sine, by input. The start is not turned.
    """
    pairs, axes = head_width // 2, places.shape[1]
    if head_width % 2 or pairs < axes:
        raise UsageError(
            "rotary positions need wider heads",
            expected=f"an even width of {2 * axes} or more for each head",
            got=str(head_width),
            hint="raise width or lower heads",
        )
    angles = []
    for axis in range(axes):
        count = pairs // axes + (axis < pairs % axes)
        rates = _THETA ** -(torch.arange(count, dtype=torch.float64) / count)
        angles.append(places[:, axis, None].double() * rates)
    turns = torch.cat(angles, dim=1)
    queries = torch.stack([turns.cos(), turns.sin()], dim=-1)
    start = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, pairs, 2)
    return queries.float(), torch.cat([start, queries[:-1]]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the pairs of `x`, (..., L, d), as `table`, (L, d / 2, 2), says."""
    exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
    pairs = torch.view_as_complex(exact.unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.view_as_complex(table.to(exact.dtype)))
    return turned.flatten(-2).to(x.dtype)


class RelativeBias(nn.Module):
    """A learned number for each head and each bucket of the offset from query to key.

    The offset along every axis, with its sign, falls into one of nine buckets; every
    combination of buckets has a number, and the start has one.

    Parameters
    ----------
    grid : tuple of int
    order : Tensor
        int64 (L,), as `token_order` returns it.
    heads : int
    """

    queries: Tensor
    keys: Tensor
    bucket_of: Tensor

    def __init__(self, grid: tuple[int, ...], order: Tensor, heads: int) -> None:
        super().__init__()
        spans = [2 * n - 1 for n in grid]
        strides = torch.tensor([math.prod(spans[a + 1 :]) for a in range(len(grid))])
        flat = (coordinates(grid, order) * strides).sum(-1)
        centre = sum((n - 1) * int(s) for n, s in zip(grid, strides, strict=True))
        # a key and a query that meet give `queries[i] - keys[j]`, an index of `bucket_of`;
        # whatever meets the start gives the last one
        self.start = math.prod(spans)
        self.register_buffer("queries", flat + centre, persistent=False)
        self.register_buffer("keys", torch.cat([flat[:1], flat[:-1]]), persistent=False)
        per_axis = [_buckets(n) for n in grid]
        many = 2 * _BUCKETS - 1
        combined = torch.zeros(1, dtype=torch.int64)
        for buckets in per_axis:
            combined = (combined[:, None] * many + buckets).flatten()
        last = many ** len(grid)
        bucket_of = torch.cat([combined, torch.tensor([last])])
        self.register_buffer("bucket_of", bucket_of, persistent=False)
        self.table = nn.Parameter(torch.zeros(heads, last + 1))

    def expanded(self) -> Tensor:
        """Return the numbers by offset, (heads, offsets + 1), the start last."""
        return self.table[:, self.bucket_of]

    def index(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the column of `expanded` for inputs that broadcast against each other."""
        offset = self.queries[queries] - self.keys[keys]
        return torch.where(keys == 0, self.start, offset)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the numbers of pairs of inputs, (heads, ...)."""
        columns = self.index(queries, keys)
        flat = self.expanded().index_select(1, columns.flatten())
        return flat.unflatten(1, columns.shape)


def _buckets(n: int) -> Tensor:
    """Return the bucket of every offset from 1 - n to n - 1."""
    offsets = torch.arange(1 - n, n)
    far = offsets.abs()
    near = far.clamp(max=_NEAR)
    size = near + (far > _NEAR).long() + (far > 5).long()
    return offsets.sign() * size + _BUCKETS - 1
