"""A prior that remembers keys and values, so that a token costs one token.

What a step does not need to compute is computed before: gains and biases of the
normalisation are folded into the matrices after them, the scale of the scores into that of
the queries, keys and values of the context are kept. Weights lie as matrix products read
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from medpipe.synthesis.prior import Block, CrossAttention, Prior, split_heads

__all__ = ["CachedPrior", "cache_bytes"]


@dataclass(frozen=True)
class _Product:
    """A matrix (in, out) and what is added to the product with it."""

    matrix: Tensor
    added: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        if self.added is None:
            return torch.mm(x, self.matrix)
        return torch.addmm(self.added, x, self.matrix)

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write the product with `x` to `out`."""
        if self.added is None:
            torch.mm(x, self.matrix, out=out)
        else:
            torch.addmm(self.added, x, self.matrix, out=out)

    def add_to(self, x: Tensor, y: Tensor) -> None:
        """Add the product with `y` to `x`."""
        x.addmm_(y, self.matrix)
        if self.added is not None:
            x.add_(self.added)


@dataclass(frozen=True)
class _Cross:
    """Attention to a context that stays: its keys (cases · heads, d, S) and values."""

    query: _Product
    keys: Tensor
    values: Tensor
    out: _Product

    def add_to(self, x: Tensor, normed: Tensor) -> None:
        """Add what the tokens take from the context to them, (cases, width)."""
        q = self.query(normed).view(len(self.keys), 1, -1)
        shares = torch.bmm(q, self.keys).softmax(-1)
        self.out.add_to(x, torch.bmm(shares, self.values).view(x.shape))

    def of_one_case(self) -> _CrossOfOne:
        """Return the same for one case, with far smaller matrices."""
        heads, d, _ = self.keys.shape

        def keyed(x: Tensor) -> Tensor:
            """Return the product of queries (n, heads · d) with the keys, (n, heads · S)."""
            return torch.einsum("nhd,hds->nhs", x.view(-1, heads, d), self.keys).flatten(1)

        added = self.query.added
        query = _Product(keyed(self.query.matrix), None if added is None else keyed(added)[0])
        out = self.values @ self.out.matrix.view(heads, d, -1)
        return _CrossOfOne(query, _Product(out.flatten(0, 1), self.out.added), heads)


@dataclass(frozen=True)
class _CrossOfOne:
    """Attention of one case to its context: queries times keys is one matrix, and so on."""

    scores: _Product
    out: _Product
    heads: int

    def add_to(self, x: Tensor, normed: Tensor) -> None:
        """Add what the token takes from the context to it, (1, width)."""
        shares = self.scores(normed).view(self.heads, -1).softmax(-1)
        self.out.add_to(x, shares.view(1, -1))


@dataclass(frozen=True)
class _Layer:
    qkv: _Product
    out: _Product
    cross: _Cross | _CrossOfOne | None
    up: _Product
    down: _Product


@dataclass(frozen=True)
class _Seen:
    """Keys (cases · heads, d, n) and values (cases · heads, n, d) that a layer attends to.

    Those next to each other are views of what is kept, the others are copied.
    """

    keys: Tensor
    values: Tensor
    far_keys: Tensor | None = None
    far_values: Tensor | None = None


def cache_bytes(prior: Prior, cases: int) -> int:
    """Return how much memory keys and values of `cases` take."""
    s = prior.settings
    return 2 * s.layers * cases * s.length * s.width * prior.start.element_size()


class CachedPrior:
    """A prior that is given one code of every case at a time.

    Parameters
    ----------
    prior : Prior
    cases : int
        Rows of a step.
    context : Tensor, optional
        (cases, S, width), as ``Prior.context_tokens`` returns it.
    """

    def __init__(self, prior: Prior, cases: int, context: Tensor | None = None) -> None:
        s = prior.settings
        self.cases, self.heads, self.width = cases, s.heads, s.width
        self.head_width = s.width // s.heads
        self.monai = s.blocks == "monai"
        self.pattern = prior.pattern
        with torch.inference_mode():
            self.embedding, self.start = prior.embedding.weight, prior.start
            self.positions = prior.positions().clone()
            blocks = cast(Iterable[Block], prior.blocks)
            self.layers = [self._layer(block, context) for block in blocks]
            self.logits = _folded(prior.to_logits, prior.norm)
            self.turn = _turns(prior) if s.positions == "rotary" else None
            self.bias = prior.bias
            self.bias_table = None if prior.bias is None else prior.bias.expanded()
            self.rest_table = prior.pattern.rest_table.to(self.start.device)
            self._allocate()

    def _allocate(self) -> None:
        """Make room for keys and values, and for what every layer writes and reads again."""
        new, d = self.start.new_empty, self.head_width
        self.kept = new(len(self.layers), 2, self.cases, self.heads, self.pattern.length, d)
        self.keys = self.kept[:, 0].flatten(1, 2).transpose(2, 3)
        self.values = self.kept[:, 1].flatten(1, 2)
        # queries, keys and values of one token: as the product gives them, and turned
        self.qkv = new(self.cases, 3 * self.width)
        self.turned = new(3, self.cases, self.heads, d)
        self.parts = self.qkv.view(self.cases, 3, self.heads, d).transpose(0, 1)
        self.queries = self.turned[0].view(-1, 1, d)
        if self.turn is not None:
            self.pairs, self.turned_pairs = (
                torch.view_as_complex(x.unflatten(-1, (-1, 2))) for x in (self.parts, self.turned)
            )

    def _layer(self, block: Block, context: Tensor | None) -> _Layer:
        cross: _Cross | _CrossOfOne | None = None
        if block.cross is not None and context is not None:
            cross = several = self._cross(block.cross, context)
            if self.cases == 1 and self.heads * context.shape[1] < self.width:
                cross = several.of_one_case()
        return _Layer(
            qkv=_folded(block.qkv, block.norm, self.head_width**-0.5),
            out=_product(block.out),
            cross=cross,
            up=_folded(block.up, block.norm_mlp),
            down=_product(block.down),
        )

    def _cross(self, cross: CrossAttention, context: Tensor) -> _Cross:
        k, v = split_heads(cross.key_value(context), self.heads, 2)
        return _Cross(
            _folded(cross.query, cross.norm, self.head_width**-0.5),
            k.flatten(0, 1).transpose(1, 2).contiguous(),
            v.flatten(0, 1).contiguous(),
            _product(cross.out),
        )

    @torch.inference_mode()
    def step(self, codes: Tensor | None, i: int) -> Tensor:
        """Return the logits of the codes at position `i`, (cases, codes).

        Parameters
        ----------
        codes : Tensor, optional
            int64 (cases,), the codes at position ``i - 1``; None for the first.
        i : int
            Every position in turn.
        """
        held = self.start if codes is None else self.embedding.index_select(0, codes)
        x = (held + self.positions[i]).expand(self.cases, -1).contiguous()
        turn = None if self.turn is None else self.turn[i]
        bias = self._bias(i)
        slots = self.kept.select(4, i).unbind(0)
        for layer, slot, seen in zip(self.layers, slots, self._seen(i), strict=True):
            layer.qkv.into(self.qkv, self._normed(x))
            if turn is None:
                self.turned.copy_(self.parts)
            else:
                torch.mul(self.pairs, turn, out=self.turned_pairs)
            slot.copy_(self.turned[1:])
            layer.out.add_to(x, self._attend(seen, bias))
            if layer.cross is not None:
                layer.cross.add_to(x, self._normed(x))
            layer.down.add_to(x, gelu(layer.up(self._normed(x))))
        return self.logits(x if self.monai else self._normed(x))

    def _normed(self, x: Tensor) -> Tensor:
        if self.monai:
            return layer_norm(x, (self.width,))
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def _far(self, i: int) -> Tensor | None:
        """Return the inputs that are not next to each other, if there are any."""
        row, count = self.pattern.rest(i)
        return self.rest_table[row, :count] if count else None

    def _seen(self, i: int) -> list[_Seen]:
        """Return what every layer attends to at input `i`, whose own keys come later."""
        first = self.pattern.local(i)
        keys = self.keys.narrow(3, first, i + 1 - first).unbind(0)
        values = self.values.narrow(2, first, i + 1 - first).unbind(0)
        far = self._far(i)
        if far is None:
            return [_Seen(*both) for both in zip(keys, values, strict=True)]
        chosen = self.kept.index_select(4, far).flatten(2, 3)
        far_keys, far_values = chosen[:, 0].transpose(2, 3), chosen[:, 1]
        return [_Seen(*all_) for all_ in zip(keys, values, far_keys, far_values, strict=True)]

    def _bias(self, i: int) -> Tensor | None:
        """Return what is added to the scores, (cases · heads, 1, inputs)."""
        if self.bias is None or self.bias_table is None:
            return None
        inputs = torch.arange(self.pattern.local(i), i + 1, device=self.start.device)
        far = self._far(i)
        inputs = inputs if far is None else torch.cat([inputs, far])
        columns = self.bias.index(inputs.new_full((), i), inputs)
        return self.bias_table[:, columns].repeat(self.cases, 1)[:, None]

    def _attend(self, seen: _Seen, bias: Tensor | None) -> Tensor:
        """Return what the queries take, (cases, width)."""
        scores = torch.bmm(self.queries, seen.keys)
        if seen.far_keys is not None:
            scores = torch.cat([scores, torch.bmm(self.queries, seen.far_keys)], dim=-1)
        shares = (scores if bias is None else scores + bias).softmax(-1)
        if seen.far_values is None:
            return torch.bmm(shares, seen.values).view(self.cases, self.width)
        near = seen.values.shape[1]
        found = torch.bmm(shares[..., near:], seen.far_values)
        if near:
            found.baddbmm_(shares[..., :near], seen.values)
        return found.view(self.cases, self.width)


def _product(linear: nn.Linear) -> _Product:
    return _Product(linear.weight.T.contiguous(), linear.bias)


def _folded(linear: nn.Linear, norm: nn.Module, query_scale: float = 1.0) -> _Product:
    """Return the product that does not need the gain and bias of the norm before it.

    The queries, the first third of a product of three, are scaled.
    """
    weight: Tensor = linear.weight
    added: Tensor | None = linear.bias
    if isinstance(norm, nn.LayerNorm):
        shift = weight @ norm.bias
        added = shift if added is None else added + shift
        weight = weight * norm.weight
    elif isinstance(norm, nn.RMSNorm):
        weight = weight * (norm.weight * weight.shape[1] ** 0.5)
    if query_scale != 1.0:
        count = weight.shape[1]
        scale = weight.new_ones(len(weight))
        scale[:count] = query_scale
        weight = weight * scale[:, None]
        added = None if added is None else added * scale
    return _Product(weight.T.contiguous(), added)


def _turns(prior: Prior) -> Tensor:
    """Return what queries, keys and values are multiplied by, complex (L, 3, 1, 1, d / 2)."""
    unturned = torch.zeros_like(prior.queries_turn)
    unturned[..., 0] = 1
    tables = torch.stack([prior.queries_turn, prior.keys_turn, unturned], dim=1)
    return torch.view_as_complex(tables)[:, :, None, None]
