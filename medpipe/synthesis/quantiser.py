"""The codebook of a tokeniser: vectors that follow the data by averages, without gradients.

As in van den Oord et al. (arXiv 1711.00937, appendix A), with what keeps every code in use:
the data decide where codes begin (k-means++, Arthur & Vassilvitskii 2007), a code that nobody
chooses any more moves to where the error is (Dhariwal et al., arXiv 2005.00341), and the
averages become slower as the encoder settles (Tudosiu et al., arXiv 2209.03177). All of it is
computed in single precision, also under autocast.

An encoder that has learned nothing says where it looks (convolutions pad with zeros) and
hardly what it sees. Codes of such outputs are codes of places, the decoder learns the mean
volume from them, nothing tells the encoder more, and all volumes get the same codes. So what
goes through is not quantised while the codebook warms up; the codes begin anew after it, from
the outputs of several batches (as in Łańcucki et al., arXiv 2005.08520). k-means++ draws by
squared distance, which gives codes to what is rare and far from the rest: structures, not
background.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from medpipe.errors import UsageError
from medpipe.seeds import derive_seed

__all__ = ["Codebook", "Quantised", "perplexity"]

TABLE = 1 << 26
"""Distances in memory at once (256 MB)."""

ENOUGH = 8
"""Vectors for each code that are looked at to begin with."""

POOL = 16
"""Batches whose outputs are looked at when codes begin after a warm-up."""

ROUNDS = 5
"""Of Lloyd's algorithm after that."""

FEWEST = 1e-6
"""A code whose average count is below this stays where it is."""


class Quantised(NamedTuple):
    """What a codebook makes of a batch.

    Attributes
    ----------
    values : Tensor (B, D, ...)
        The nearest codes; gradients pass through to the input (straight through).
    commitment : Tensor
        Mean squared distance of the input to its codes, a scalar with gradient; 0 while
        nothing is quantised.
    codes : Tensor of int64 (B, ...)
    perplexity : Tensor
        Of the codes of this batch, a scalar: 1 where all are the same.
    """

    values: Tensor
    commitment: Tensor
    codes: Tensor
    perplexity: Tensor


class Codebook(nn.Module):
    """Codes and how they follow the data; all of it is in buffers.

    Parameters
    ----------
    codes, width : int
        How many vectors, and how long they are.
    decay, final_decay : float
        Of the averages, in the first batch and from `decay_steps` on; linear between.
    decay_steps : int
        Batches until then.
    restart_after : float
        A code moves when it was not chosen while the codes were chosen so often on average.
    seed : int
        Of where codes begin and move to.

    Attributes
    ----------
    warmup : int
        Batches of training that go through as they are. The codes follow them meanwhile, so
        that what is asked in evaluation is quantised all the same, and begin anew after it.
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    idle: Tensor
    steps: Tensor

    def __init__(
        self, codes: int, width: int, *, decay: float = 0.5, final_decay: float = 0.99,
        decay_steps: int = 1000, restart_after: float = 50.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if codes < 2 or width < 1 or decay_steps < 0 or restart_after <= 0:
            raise UsageError(
                "the settings of a codebook are wrong",
                expected="2 codes, width 1, decay_steps 0 or more; restart_after above 0",
            )
        if not 0 <= decay <= final_decay < 1:
            raise UsageError(
                "the decay of a codebook is wrong", expected="0 <= decay <= final_decay < 1"
            )
        self.decay, self.final_decay, self.decay_steps = decay, final_decay, decay_steps
        self.restart_after, self.seed = restart_after, seed
        self.register_buffer("vectors", torch.zeros(codes, width))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("idle", torch.zeros(codes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.warmup = 0
        self._pool: Tensor | None = None  # outputs of the last batches of the warm-up
        self._step: int | None = 0  # of `steps`, on the host

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def width(self) -> int:
        """How long a vector is."""
        return self.vectors.shape[1]

    def nearest(self, inputs: Tensor) -> Tensor:
        """Return the code (B, ...) int64 nearest to each vector of inputs (B, D, ...)."""
        flat = _rows(inputs)
        return self._choose(flat)[0].view(inputs.shape[0], *inputs.shape[2:])

    def embed(self, codes: Tensor) -> Tensor:
        """Return the vectors (B, D, ...) of codes (B, ...)."""
        return functional.embedding(codes, self.vectors).movedim(-1, 1)

    def forward(self, inputs: Tensor) -> Quantised:
        """Quantise inputs (B, D, ...); in training the codes follow them."""
        flat = _rows(inputs)
        warm = self.training and self._now() < self.warmup
        with torch.no_grad():
            if self.training:
                self._prepare(flat.detach())
            chosen, errors = self._choose(flat.detach())
            counts = flat.new_zeros(len(self)).index_add_(0, chosen, torch.ones_like(errors))
            made = self.vectors[chosen]  # of before the update, as the decoder sees them
            if self.training:
                self._follow(flat.detach(), chosen, errors, counts)
        codes = chosen.view(inputs.shape[0], *inputs.shape[2:])
        if warm:
            return Quantised(inputs, flat.new_zeros(()), codes, perplexity(counts))
        commitment = functional.mse_loss(flat, made)
        # straight through: what is added to the codes is 0, and has the gradient of the input
        values = (made + (flat - flat.detach())).view(*codes.shape, -1).movedim(-1, 1)
        return Quantised(values.to(inputs.dtype), commitment, codes, perplexity(counts))

    @torch.no_grad()
    def _choose(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest code of each row (N,), and its squared distance."""
        squares = self.vectors.square().sum(1)
        chosen, errors = [], []
        with torch.autocast(flat.device.type, enabled=False):
            for part in flat.split(max(1, TABLE // len(self))):
                rest = torch.addmm(squares, part, self.vectors.T, alpha=-2)
                least = rest.min(1)
                chosen.append(least.indices)
                errors.append((least.values + part.square().sum(1)).clamp_min_(0))
        return torch.cat(chosen), torch.cat(errors)

    def _now(self) -> int:
        """Return how many batches were learned from; asks the device once after loading."""
        if self._step is None:
            self._step = int(self.steps)
        return self._step

    def _rate(self) -> float:
        """Return the decay of the next average."""
        done = max(0, self._now() - self.warmup)
        share = min(1.0, done / self.decay_steps) if self.decay_steps else 1.0
        return self.decay + share * (self.final_decay - self.decay)

    def _draw(self, name: str, count: int, device: torch.device) -> Tensor:
        """Return random numbers (count,) of this step, in [0, 1), float64."""
        made = torch.Generator().manual_seed(derive_seed(self.seed, name, str(self._now())))
        return torch.rand(count, generator=made, dtype=torch.float64).to(device)

    def _prepare(self, flat: Tensor) -> None:
        """Choose where codes begin: in the first batch, and anew after the warm-up."""
        now = self._now()
        if now == 0:
            self._begin(flat)
        if self.warmup - POOL <= now < self.warmup:
            taken = (self._draw("pool", len(self), flat.device) * len(flat)).long()
            kept = [] if self._pool is None else [self._pool.to(flat.device)]
            self._pool = torch.cat([*kept, flat[taken]])
        elif now == self.warmup and self._pool is not None:
            self._begin(self._pool.to(flat.device))
            for _ in range(ROUNDS):
                self._settle(self._pool.to(flat.device))
            share = len(flat) / len(self._pool)  # as if it had been one batch
            self.counts.mul_(share)
            self.sums.mul_(share)
            self.idle.zero_()
            self._pool = None

    def _begin(self, flat: Tensor) -> None:
        """Put each code where the ones before it serve worst (k-means++)."""
        rows = flat
        if len(flat) > ENOUGH * len(self):
            taken = self._draw("rows", ENOUGH * len(self), flat.device)
            rows = flat[(taken * len(flat)).long()]
        chance = self._draw("begin", len(self), flat.device)
        errors = torch.ones(len(rows), dtype=torch.float64, device=flat.device)
        for number in range(len(self)):
            place = _pick(errors, chance[number : number + 1])
            self.vectors[number] = rows[place[0]]
            distance = (rows - self.vectors[number]).square().sum(1).double()
            errors = distance if number == 0 else torch.minimum(errors, distance)
        _from_first(self.vectors)
        self._count(flat)

    def _count(self, flat: Tensor) -> None:
        """Set counts and sums to those of some outputs, over all processes."""
        chosen, _ = self._choose(flat)
        ones = torch.ones(len(flat), device=flat.device)
        counts = torch.zeros_like(self.counts).index_add_(0, chosen, ones)
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, flat)
        _add_over_processes(counts, sums)
        self.counts.copy_(counts)
        self.sums.copy_(sums)

    def _settle(self, flat: Tensor) -> None:
        """Move codes to the mean of what is nearest to each (Lloyd's algorithm)."""
        means = self.sums / self.counts.clamp_min(FEWEST)[:, None]
        self.vectors.copy_(torch.where((self.counts > FEWEST)[:, None], means, self.vectors))
        self._count(flat)

    def _follow(self, flat: Tensor, chosen: Tensor, errors: Tensor, counts: Tensor) -> None:
        """Average the vectors that chose each code; move codes that none chooses any more."""
        counts = counts.clone()
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, flat)
        _add_over_processes(counts, sums)
        rate = self._rate()
        self.counts.mul_(rate).add_(counts, alpha=1 - rate)
        self.sums.mul_(rate).add_(sums, alpha=1 - rate)
        alive = (self.counts > FEWEST)[:, None]
        means = self.sums / self.counts.clamp_min(FEWEST)[:, None]
        self.vectors.copy_(torch.where(alive, means, self.vectors))
        usual = counts.mean()
        self.idle.copy_(torch.where(counts > 0, 0.0, self.idle + usual))
        dead = self.idle > self.restart_after
        fresh = flat[_pick(errors.double(), self._draw("move", len(self), flat.device))]
        _from_first(fresh)
        self.vectors.copy_(torch.where(dead[:, None], fresh, self.vectors))
        self.counts.copy_(torch.where(dead, usual, self.counts))
        self.sums.copy_(torch.where(dead[:, None], fresh * usual, self.sums))
        self.idle.masked_fill_(dead, 0.0)
        self.steps += 1
        self._step = self._now() + 1

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._pool is not None and self._now() <= self.warmup:  # not in a finished model
            destination[prefix + "pool"] = self._pool

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._pool = state_dict.pop(prefix + "pool", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._step = None


def perplexity(counts: Tensor) -> Tensor:
    """Return how many codes would be used as evenly as these counts (K,) say: exp(entropy)."""
    shares = counts / counts.sum().clamp_min(1)
    return torch.exp(torch.special.entr(shares).sum())


def _rows(inputs: Tensor) -> Tensor:
    """Return inputs (B, D, ...) as rows (N, D) in single precision."""
    return inputs.movedim(1, -1).reshape(-1, inputs.shape[1]).float()


def _pick(weights: Tensor, chance: Tensor) -> Tensor:
    """Return indices drawn in proportion to weights (N,) float64, one for each chance."""
    edges = weights.cumsum(0)
    found = torch.searchsorted(edges, chance * edges[-1], right=True)
    return found.clamp_max_(len(weights) - 1)


def _many() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _add_over_processes(*values: Tensor) -> None:
    if _many():
        for value in values:
            torch.distributed.all_reduce(value)


def _from_first(value: Tensor) -> None:
    """Make all processes use the values of the first."""
    if _many():
        torch.distributed.broadcast(value, 0)
