"""Which inputs a token attends to, and how little has to be computed for it.

Beside dense causal attention there are three sparse patterns. Each is defined by a mask and
computed without it: inputs are cut into blocks, every query meets the keys of its own block
(and of the block before it) and a few further keys, under one softmax.

``plane-column``
    The factorisation natural to volumes: the plane that is being drawn, as far as it is
    drawn, the column through the place that is drawn next in all former planes, and the
    start. ``L (P + L / P)`` pairs for planes of P tokens.
``strided``, ``fixed``
    As published for sequences (Child et al., arXiv 1904.10509), both factors under one
    softmax: the last `stride` inputs and every `stride`-th before; the block of `stride`
    inputs and the last `summary` inputs of every block before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from medpipe.errors import UsageError
from medpipe.synthesis.orders import OrderKind, inverse_order, token_order

__all__ = ["AttentionKind", "AttentionPattern", "Bias", "attend"]

AttentionKind = Literal["dense", "plane-column", "strided", "fixed"]
Bias = Callable[[Tensor, Tensor], Tensor]
"""Of queries and keys (inputs, broadcast) to what is added to their score, (heads, ...)."""
Take = Callable[[Tensor], Tensor]

CHUNK = 500_000
"""So many scores are computed at a time: 2 MB, which stay in the cache of a processor."""
KEPT = 16_000_000
"""More scores of a layer are not kept for the gradient, but computed again."""
ROWS = 64
"""So many queries of a block at a time: fewer scores are computed that nobody sees."""


@dataclass(frozen=True)
class AttentionPattern:
    """The inputs that every input of a sequence attends to.

    Parameters
    ----------
    grid : tuple of int
    order : {"raster", "s-curve", "hilbert"}
    kind : {"dense", "plane-column", "strided", "fixed"}
    stride : int, optional
        Of ``strided`` and ``fixed``; √L rounded up by default.
    summary : int
        Of ``fixed``; at most `stride`.
    """

    grid: tuple[int, ...]
    order: OrderKind = "raster"
    kind: AttentionKind = "dense"
    stride: int | None = None
    summary: int = 8

    def __post_init__(self) -> None:
        if self.kind not in ("dense", "plane-column", "strided", "fixed"):
            raise UsageError(
                "unknown attention",
                expected="dense, plane-column, strided or fixed",
                got=str(self.kind),
            )
        if self.kind == "plane-column" and self.order == "hilbert":
            raise UsageError(
                "a Hilbert curve does not pass plane by plane",
                expected="order raster or s-curve with attention plane-column",
                got="order hilbert",
            )
        if (self.stride is not None and self.stride < 1) or self.summary < 1:
            raise UsageError("stride and summary are wrong", expected="1 or more")

    @property
    def length(self) -> int:
        """How many inputs there are."""
        return math.prod(self.grid)

    @property
    def block(self) -> int:
        """Inputs in a block: a plane, or the stride."""
        if self.kind == "plane-column":
            return math.prod(self.grid[1:])
        return min(self.stride or math.isqrt(self.length - 1) + 1, self.length)

    @property
    def blocks(self) -> int:
        """Blocks that hold all inputs; the last may be shorter."""
        return -(-self.length // self.block)

    @property
    def last_of_block(self) -> int:
        """Inputs at the end of a block that ``fixed`` shows to all later blocks."""
        return min(self.summary, self.block)

    @cached_property
    def cells(self) -> Tensor:
        """Place in its plane of every position of the sequence, int64 (L,)."""
        return token_order(self.grid, self.order) % self.block

    def mask(self) -> Tensor:
        """Return which input (row) attends to which (column), bool (L, L)."""
        at = torch.arange(self.length)
        i, j = at[:, None], at[None, :]
        if self.kind == "dense":
            return j <= i
        if self.kind == "strided":
            return (j <= i) & ((i - j <= self.block) | ((i - j) % self.block == 0))
        if self.kind == "fixed":
            shown = j % self.block >= self.block - self.last_of_block
            return (j <= i) & ((j // self.block == i // self.block) | shown)
        held = (j - 1).clamp(min=0)  # the position whose code an input holds
        same = (held // self.block == i // self.block) | (self.cells[held] == self.cells[i])
        return (j == 0) | ((j <= i) & same)

    def local(self, i: int) -> int:
        """Return the first of the inputs, without gap up to `i`, that input `i` attends to."""
        if self.kind == "dense":
            return 0
        if self.kind == "strided":
            return max(i - self.block, 0)
        first = i // self.block * self.block
        if self.kind == "fixed" or first == 0 or self._turns(i):
            return first
        return first + 1

    def rest(self, i: int) -> tuple[int, int]:
        """Return a row of `rest_table` and how many of its columns input `i` attends to.

        They are all before `i`.
        """
        if self.kind == "plane-column":
            planes = i // self.block
            return self._cell_list[i], planes + 1 - self._turns(i) if planes else 0
        if self.kind == "strided":
            return i % self.block, max(i // self.block - 1, 0)
        return 0, i // self.block * self.last_of_block if self.kind == "fixed" else 0

    def _turns(self, i: int) -> bool:
        """Whether input `i`, the first of a plane, holds the code in the same column."""
        return i % self.block == 0 < i and self._cell_list[i] == self._cell_list[i - 1]

    @cached_property
    def _cell_list(self) -> list[int]:
        return self.cells.tolist()

    @cached_property
    def rest_table(self) -> Tensor:
        """The inputs beside those of `local`, int64; the first columns of a row at a time."""
        block, starts = self.block, torch.arange(self.blocks) * self.block
        if self.kind == "dense":
            return torch.zeros(1, 0, dtype=torch.int64)
        if self.kind == "plane-column":
            columns = inverse_order(token_order(self.grid, self.order)).view(-1, block).T + 1
            return torch.cat([torch.zeros(block, 1, dtype=torch.int64), columns], dim=1)
        if self.kind == "strided":
            return torch.arange(block)[:, None] + starts
        shown = torch.arange(block - self.last_of_block, block)
        return (starts[:, None] + shown).reshape(1, -1)

    @property
    def pairs(self) -> int:
        """How many pairs of inputs have a score."""
        return sum(i + 1 - self.local(i) + self.rest(i)[1] for i in range(self.length))


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern, bias: Bias | None) -> Tensor:
    """Return what every input takes from those that it attends to.

    Parameters
    ----------
    q, k, v : Tensor
        (B, heads, L, d).
    pattern : AttentionPattern
    bias : callable, optional
        What is added to the scores.

    Returns
    -------
    Tensor
        (B, heads, L, d); the same as attention with ``pattern.mask()``.
    """
    if pattern.kind != "dense":
        return _Blockwise(pattern, bias, q.device).attend(q, k, v)
    if bias is None:
        return scaled_dot_product_attention(q, k, v, is_causal=True)
    return _dense_with_bias(q, k, v, bias)


def _dense_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    length = q.shape[2]
    rows = max(KEPT // (q.shape[0] * q.shape[1] * length), 1)
    at = torch.arange(length, device=q.device)
    parts = []
    for first in range(0, length, rows):
        last = min(first + rows, length)

        def part(q: Tensor, k: Tensor, v: Tensor, first: int = first, last: int = last) -> Tensor:
            i, j = at[first:last, None], at[None, :last]
            scores = bias(i, j).masked_fill(j > i, -torch.inf).to(q.dtype)
            return scaled_dot_product_attention(q, k, v, attn_mask=scores)

        held = (q[:, :, first:last], k[:, :, :last], v[:, :, :last])
        parts.append(_recomputed(part, *held) if rows < length else part(*held))
    return torch.cat(parts, dim=2)


def _recomputed(part: Callable[..., Any], *held: Tensor) -> Any:
    """Call `part`; what it makes on the way is made again for the gradient, not kept."""
    if not torch.is_grad_enabled():
        return part(*held)
    return checkpoint(part, *held, use_reentrant=False, preserve_rng_state=False)


class _Blockwise:
    """Sparse attention by blocks.

    The scores of keys outside the block of a query are few: those are computed at once. The
    scores within blocks are computed for some blocks at a time.
    """

    def __init__(self, pattern: AttentionPattern, bias: Bias | None, device: torch.device) -> None:
        self.pattern, self.bias = pattern, bias
        self.block, self.blocks = pattern.block, pattern.blocks
        self.number = torch.arange(self.blocks, device=device)
        # the inputs of every block; those of the last may reach beyond the sequence
        self.inputs = self.number[:, None] * self.block + torch.arange(self.block, device=device)
        # a plane's keys are the inputs that hold its codes
        self.keys = self.inputs + (pattern.kind == "plane-column")
        if pattern.kind == "strided":
            self.keys = torch.cat([self.inputs - self.block, self.inputs], dim=1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return what every input takes, (B, heads, L, d)."""
        length, d = q.shape[2:]
        q = self._cut(q * d**-0.5)
        k_local, v_local = self._local(k), self._local(v)
        rest, take = self._rest(q, k, v)
        whole = q.shape[0] * q.shape[1] * self.blocks * self.block * self.keys.shape[1] <= KEPT
        parts, shares = [], []
        for first in range(0, self.block, ROWS):
            found = [
                within(*held) if whole else _recomputed(within, *held)
                for within, held in self._chunks(first, q, k_local, v_local, rest)
            ]
            parts.append(torch.cat([out for out, _ in found], dim=2))
            shares.append(torch.cat([share for _, share in found], dim=2))
        taken = torch.cat(parts, dim=3) + take(torch.cat(shares, dim=3))
        return taken.flatten(2, 3)[:, :, :length]

    def _chunks(
        self, first: int, q: Tensor, k: Tensor, v: Tensor, rest: Tensor
    ) -> Iterator[tuple[Callable[..., Any], tuple[Tensor, ...]]]:
        """Yield what to call, and with what, for queries `first` and on of some blocks."""
        last = min(first + ROWS, self.block)
        strided = self.pattern.kind == "strided"
        low, high = (first, self.block + last) if strided else (0, last)
        some = max(CHUNK // (q.shape[0] * q.shape[1] * (last - first) * (high - low)), 1)
        for block in range(0, self.blocks, some):
            at = slice(block, block + some)
            i, j = self.inputs[at, first:last, None], self.keys[at, None, low:high]
            # all queries see the keys of their block before the first of them
            within = partial(self._within, i, j, 0 if strided else first)
            queries, others = q[:, :, at, first:last], rest[:, :, at, first:last]
            yield within, (queries, k[:, :, at, low:high], v[:, :, at, low:high], others)

    def _within(
        self, i: Tensor, j: Tensor, seen: int, q: Tensor, k: Tensor, v: Tensor, rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what queries take from keys near them, and the shares of the other keys.

        The first `seen` keys are seen by all queries.
        """
        edge = j[..., seen:]
        hidden = edge > i
        if self.pattern.kind == "strided":
            hidden = hidden | (edge < 0) | (i - edge > self.block)
        scores = self._biased(q @ k.transpose(-1, -2), i, j)
        partly = scores[..., seen:].masked_fill(hidden, -torch.inf)
        shares = torch.cat([scores[..., :seen], partly, rest], dim=-1).softmax(dim=-1)
        return shares[..., : j.shape[-1]] @ v, shares[..., j.shape[-1] :]

    def _cut(self, x: Tensor) -> Tensor:
        """Return (B, heads, blocks, block, d), zeros after the end."""
        extra = self.blocks * self.block - x.shape[2]
        return pad(x, (0, 0, 0, extra)).unflatten(2, (self.blocks, self.block))

    def _local(self, x: Tensor) -> Tensor:
        """Return the keys or values of every block, (B, heads, blocks, keys, d)."""
        if self.pattern.kind == "plane-column":
            return self._cut(x[:, :, 1:])
        cut = self._cut(x)
        if self.pattern.kind == "fixed":
            return cut
        return torch.cat([pad(cut[:, :, :-1], (0, 0, 0, 0, 1, 0)), cut], dim=3)

    def _biased(self, scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if self.bias is None:
            return scores
        last = self.pattern.length - 1
        return scores + self.bias(i.clamp(max=last), j.clamp(0, last)).to(scores.dtype)

    def _rest(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Take]:
        """Return the scores of keys outside the block, (B, heads, blocks, block, keys).

        And a function from the share of each to what is taken from them.
        """
        if self.pattern.kind == "fixed":
            return self._summaries(q, k, v)
        if self.pattern.kind == "strided":
            return self._columns(q, self._cut(k), self._cut(v), self.inputs, self.inputs, 2)
        return self._planes(q, k, v)

    def _columns(
        self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor, before: int
    ) -> tuple[Tensor, Take]:
        """Keys at the place of the query in its block, `before` blocks earlier and more."""
        scores = (q.transpose(2, 3) @ k.permute(0, 1, 3, 4, 2)).transpose(2, 3)
        scores = self._biased(scores, i[:, :, None], j.T[None])
        hidden = self.number[:, None, None] - self.number < before
        values = v.transpose(2, 3)
        return (
            scores.masked_fill(hidden, -torch.inf),
            lambda shares: (shares.transpose(2, 3) @ values).transpose(2, 3),
        )

    def _summaries(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Take]:
        """Keys at the end of all blocks before that of the query."""
        shown = slice(self.block - self.pattern.last_of_block, None)
        k, v = (self._cut(x)[:, :, :, shown].flatten(2, 3)[:, :, None] for x in (k, v))
        j = self.inputs[:, shown].reshape(-1)
        scores = self._biased(q @ k.transpose(-1, -2), self.inputs[:, :, None], j[None, None])
        hidden = j // self.block >= self.number[:, None, None]
        return scores.masked_fill(hidden, -torch.inf), lambda shares: shares @ v

    def _planes(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Take]:
        """The start, and keys in the column of the query in all former planes."""
        order = token_order(self.pattern.grid, self.pattern.order).to(q.device)
        places = inverse_order(order)

        def by(x: Tensor, index: Tensor) -> Tensor:
            if self.pattern.order == "raster":
                return x
            return x.flatten(2, 3)[:, :, index].unflatten(2, (self.blocks, self.block))

        in_cells = places.view_as(self.inputs)
        k_cells, v_cells = (by(self._local(x), places) for x in (k, v))
        scores, take = self._columns(by(q, places), k_cells, v_cells, in_cells, in_cells + 1, 1)
        first = self._biased(
            q @ k[:, :, None, :1].transpose(-1, -2),
            self.inputs[:, :, None],
            torch.zeros_like(self.inputs[:1, :1, None]),
        )

        def take_both(shares: Tensor) -> Tensor:
            column = by(take(by(shares[..., 1:], places)), order)
            return column + shares[..., :1] * v[:, :, None, :1]

        return torch.cat([first, by(scores, order)], dim=-1), take_both
