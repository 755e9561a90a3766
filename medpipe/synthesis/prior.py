"""A transformer that predicts the codes of a grid one after another.

After SynthAnatomy (Tudosiu et al., Nature Machine Intelligence 2024, doi
10.1038/s42256-024-00864-0): decoder-only, conditioned by cross-attention.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from medpipe.errors import UsageError
from medpipe.synthesis.attention import AttentionKind, AttentionPattern, attend
from medpipe.synthesis.orders import OrderKind, check_grid, inverse_order, token_order
from medpipe.synthesis.positions import RelativeBias, coordinates, rotary_tables, rotate
from medpipe.types import Json

__all__ = ["Prior", "PriorSettings"]

_WAVES = 4


@dataclass(frozen=True)
class PriorSettings:
    """The shape of a prior.

    Parameters
    ----------
    codes : int
        Size of the codebook.
    grid : tuple of int
        Tokens along each axis.
    width, layers, heads, mlp_ratio : int
        Of the transformer.
    order : {"raster", "s-curve", "hilbert"}
        In which the tokens are drawn, see `token_order`.
    positions : {"rotary", "relative", "learned"}
        Queries and keys turned by their place along each axis; a learned number for each
        bucket of the offset; or only one learned vector for each position of the sequence.
        The first two also have a learned vector for each coordinate.
    attention : {"dense", "plane-column", "strided", "fixed"}
        See `AttentionPattern`.
    conditions : int
        Numbers that a patient becomes, ``Conditions.columns``; attended to in every layer.
    dropout : float
    stride, summary : int
        Of the attention.
    blocks : {"rms", "monai"}
        RMS normalisation without biases, and before the logits; or layer normalisation and
        biases as in MONAI's ``DecoderOnlyTransformer``, none before the logits.
    context : bool
        Whether layers attend to tokens that the caller gives, in place of conditions.
    """

    codes: int
    grid: tuple[int, ...]
    width: int = 256
    layers: int = 6
    heads: int = 8
    mlp_ratio: int = 4
    order: OrderKind = "raster"
    positions: Literal["rotary", "relative", "learned"] = "rotary"
    attention: AttentionKind = "dense"
    conditions: int = 0
    dropout: float = 0.0
    stride: int | None = None
    summary: int = 8
    blocks: Literal["rms", "monai"] = "rms"
    context: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", check_grid(self.grid))
        for name in ("codes", "width", "layers", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of the prior is wrong", expected="1 or more")
        if self.width % self.heads:
            raise UsageError(
                "width is not divisible by heads",
                expected=f"a multiple of {self.heads}",
                got=str(self.width),
            )
        if self.positions not in ("rotary", "relative", "learned"):
            raise UsageError(
                "unknown positions", expected="rotary, relative or learned", got=self.positions
            )
        if self.blocks not in ("rms", "monai"):
            raise UsageError("unknown blocks", expected="rms or monai", got=self.blocks)
        if self.conditions < 0 or not 0 <= self.dropout < 1:
            raise UsageError(
                "conditions or dropout are wrong", expected="conditions >= 0, 0 <= dropout < 1"
            )
        if self.context and self.conditions:
            raise UsageError("a prior has conditions of its own or a given context, not both")

    @property
    def length(self) -> int:
        """How many tokens a volume has."""
        return math.prod(self.grid)

    @property
    def pattern(self) -> AttentionPattern:
        """What every input attends to."""
        return AttentionPattern(self.grid, self.order, self.attention, self.stride, self.summary)

    def to_json(self) -> dict[str, Json]:
        """Return the settings as JSON values; ``PriorSettings(**record)`` reads them."""
        return asdict(self) | {"grid": list(self.grid)}


class Prior(nn.Module):
    """The probability of every code given those before it and the conditions.

    Parameters
    ----------
    settings : PriorSettings
    """

    order: Tensor
    queries_turn: Tensor
    keys_turn: Tensor
    places: Tensor

    def __init__(self, settings: PriorSettings) -> None:
        super().__init__()
        self.settings = settings
        self.pattern = settings.pattern
        order = token_order(settings.grid, settings.order)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("places", coordinates(settings.grid, order), persistent=False)
        self.embedding = nn.Embedding(settings.codes, settings.width)
        self.start = nn.Parameter(torch.empty(settings.width))
        sizes = (settings.length,) if settings.positions == "learned" else settings.grid
        self.position = nn.ParameterList(torch.empty(n, settings.width) for n in sizes)
        self.bias = None
        if settings.positions == "relative":
            self.bias = RelativeBias(settings.grid, order, settings.heads)
        if settings.positions == "rotary":
            tables = rotary_tables(self.places, settings.width // settings.heads)
            self.register_buffer("queries_turn", tables[0], persistent=False)
            self.register_buffer("keys_turn", tables[1], persistent=False)
        self.conditions = (
            ConditionTokens(settings.conditions, settings.width) if settings.conditions else None
        )
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        plain = settings.blocks == "monai"
        self.norm = nn.Identity() if plain else _norm(settings)
        self.to_logits = nn.Linear(settings.width, settings.codes, bias=plain)
        self.dropout = nn.Dropout(settings.dropout)
        self._initialise()

    def _initialise(self) -> None:
        ends = (".out.weight", ".down.weight")  # what is added up over the layers
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and name != "bias.table":
                depth = 2 * self.settings.layers if name.endswith(ends) else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(depth))
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
        nn.init.normal_(self.start, std=0.02)

    def forward(
        self,
        codes: Tensor,
        values: Tensor | None = None,
        present: Tensor | None = None,
        *,
        context: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of every code given those before it.

        Parameters
        ----------
        codes : Tensor
            int64 (B, L), in the order of the sequence, see `to_sequence`.
        values, present : Tensor, optional
            (B, C), as ``Conditions.encode`` returns them; without them nothing is known.
        context : Tensor, optional
            (B, S, width), for a prior with ``context``.

        Returns
        -------
        Tensor
            (B, L, codes).

        Raises
        ------
        UsageError
            If something is of the wrong shape.
        """
        self._check(codes)
        tokens = self.context_tokens(len(codes), values, present, context)
        start = self.start.expand(len(codes), 1, -1)
        x = torch.cat([start, self.embedding(codes[:, :-1])], dim=1) + self.positions()
        x = self.dropout(x)
        turn = None
        if self.settings.positions == "rotary":
            turn = (self.queries_turn, self.keys_turn)
        for block in self.blocks:
            x = block(x, self.pattern, self.bias, turn, tokens)
        return self.to_logits(self.norm(x))

    def nll(
        self,
        codes: Tensor,
        values: Tensor | None = None,
        present: Tensor | None = None,
        *,
        context: Tensor | None = None,
    ) -> Tensor:
        """Return the negative log likelihood of each case, (B,), in nats per token."""
        logits = self(codes, values, present, context=context)
        each = cross_entropy(logits.flatten(0, 1).float(), codes.flatten(), reduction="none")
        return each.view_as(codes).mean(dim=1)

    def positions(self) -> Tensor:
        """Return what is added to every input for the place that it predicts, (L, width)."""
        if self.settings.positions == "learned":
            return self.position[0]
        return sum(
            (table[self.places[:, axis]] for axis, table in enumerate(self.position)),
            start=torch.zeros((), device=self.start.device, dtype=self.start.dtype),
        )

    def context_tokens(
        self, cases: int, values: Tensor | None, present: Tensor | None, context: Tensor | None
    ) -> Tensor | None:
        """Return what the layers attend to beside the codes, (B, S, width), or None."""
        width = self.settings.width
        if (context is not None) != self.settings.context:
            raise UsageError(
                "a context is given" if context is not None else "the context is missing",
                expected="a context for a prior with context=True, and for no other",
            )
        if context is not None:
            if context.ndim != 3 or context.shape[0] != cases or context.shape[2] != width:
                raise _shape("the context", f"({cases}, tokens, {width})", context)
            return context
        if self.conditions is None:
            if values is not None:
                raise UsageError("the prior was trained without conditions")
            return None
        columns = self.settings.conditions
        if values is None:
            values = self.start.new_zeros(cases, columns)
            present = torch.zeros_like(values, dtype=torch.bool)
        if present is None:
            present = torch.ones_like(values, dtype=torch.bool)
        for what, tensor in (("values", values), ("present", present)):
            if tensor.shape != (cases, columns):
                raise _shape(f"{what} of the conditions", f"({cases}, {columns})", tensor)
        return self.conditions(values.to(self.start), present.to(self.start.device))

    def to_sequence(self, grid: Tensor) -> Tensor:
        """Return codes (B, *grid) in the order of the sequence, (B, L)."""
        if tuple(grid.shape[1:]) != self.settings.grid:
            raise _shape("the grid of codes", f"(cases, {str(self.settings.grid)[1:-1]})", grid)
        return grid.flatten(1)[:, self.order]

    def to_grid(self, codes: Tensor) -> Tensor:
        """Return codes (B, L) of a sequence at their places, (B, *grid)."""
        self._check(codes)
        return codes[:, inverse_order(self.order)].unflatten(1, self.settings.grid)

    def _check(self, codes: Tensor) -> None:
        if codes.ndim != 2 or codes.shape[1] != self.settings.length:
            raise _shape("the sequence of codes", f"(cases, {self.settings.length})", codes)


def _shape(what: str, expected: str, got: Tensor) -> UsageError:
    return UsageError(f"{what} has the wrong shape", expected=expected, got=str(tuple(got.shape)))


def _norm(settings: PriorSettings) -> nn.Module:
    if settings.blocks == "monai":
        return nn.LayerNorm(settings.width)
    # so small that the cached sampler may leave it out
    return nn.RMSNorm(settings.width, eps=1e-12)


class Block(nn.Module):
    """Attention to former codes, to the context, and two layers on every token."""

    def __init__(self, settings: PriorSettings) -> None:
        super().__init__()
        width, inner = settings.width, settings.width * settings.mlp_ratio
        plain = settings.blocks == "monai"
        self.heads = settings.heads
        self.norm = _norm(settings)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=plain)
        self.cross = CrossAttention(settings) if settings.conditions or settings.context else None
        self.norm_mlp = _norm(settings)
        self.up = nn.Linear(width, inner, bias=plain)
        self.down = nn.Linear(inner, width, bias=plain)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self,
        x: Tensor,
        pattern: AttentionPattern,
        bias: RelativeBias | None,
        turn: tuple[Tensor, Tensor] | None,
        context: Tensor | None,
    ) -> Tensor:
        """Return the tokens after this layer, (B, L, width)."""
        q, k, v = split_heads(self.qkv(self.norm(x)), self.heads, 3)
        if turn is not None:
            q, k = rotate(q, turn[0]), rotate(k, turn[1])
        x = x + self.dropout(self.out(join_heads(attend(q, k, v, pattern, bias))))
        if self.cross is not None:
            x = x + self.dropout(self.cross(x, context))
        return x + self.dropout(self.down(gelu(self.up(self.norm_mlp(x)))))


class CrossAttention(nn.Module):
    """Attention to the context; every token attends to all of it."""

    def __init__(self, settings: PriorSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.norm = _norm(settings)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=settings.blocks == "monai")

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return what the tokens take from the context, (B, L, width)."""
        (q,) = split_heads(self.query(self.norm(x)), self.heads, 1)
        k, v = split_heads(self.key_value(context), self.heads, 2)
        return self.out(join_heads(scaled_dot_product_attention(q, k, v)))


class ConditionTokens(nn.Module):
    """A token for every condition: a smooth function of its value, or one for unknown."""

    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(columns, 2 + _WAVES, width))
        self.unknown = nn.Parameter(torch.empty(columns, width))

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """Return the tokens of values from -1 to 1, (B, C, width)."""
        x = torch.where(present, values, 0)[..., None]
        rates = torch.arange(1, _WAVES + 1, device=x.device) * (math.pi / 2)
        waves = torch.cos((x + 1) * rates)
        features = torch.cat([torch.ones_like(x), x, waves], dim=-1)
        known = torch.einsum("bcf,cfw->bcw", features, self.weight)
        return torch.where(present[..., None], known, self.unknown)


def split_heads(x: Tensor, heads: int, parts: int) -> tuple[Tensor, ...]:
    """Return `parts` tensors (B, heads, L, d) of one (B, L, parts · heads · d)."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(x: Tensor) -> Tensor:
    """Return (B, L, heads · d) of (B, heads, L, d)."""
    return x.transpose(1, 2).flatten(2)
