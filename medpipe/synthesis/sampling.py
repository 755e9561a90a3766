"""Codes drawn from a prior.

Each token of a case is drawn with one uniform number, and those come from the seed of the
case alone, so a case has the same codes in any batch. (Matrix products of batches of other
sizes differ in their last digits; a code changes only if its uniform number falls on a
border between two codes to within such a difference.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from medpipe.errors import UsageError
from medpipe.synthesis.cache import CachedPrior, cache_bytes
from medpipe.synthesis.memory import enough_memory
from medpipe.synthesis.prior import Prior

__all__ = ["SamplingProgress", "draw", "sample_codes", "uniform_numbers"]

MEMORY = 2 << 30
"""Keys and values of a batch take at most so many bytes, where no batch size is given."""
_TELL_EVERY_S = 0.5


@dataclass(frozen=True)
class SamplingProgress:
    """Where sampling is.

    Parameters
    ----------
    tokens, of_tokens : int
        Drawn, and to draw in all, over all cases.
    seconds : float
        Since it began.
    """

    tokens: int
    of_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Mean speed."""
        return self.tokens / self.seconds if self.seconds else 0.0


Tell = Callable[[SamplingProgress], None]


def sample_codes(
    prior: Prior,
    values: Tensor | None = None,
    present: Tensor | None = None,
    *,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float = 1.0,
    batch: int | None = None,
    context: Tensor | None = None,
    progress: Tell | None = None,
) -> Tensor:
    """Draw the codes of one volume for each seed.

    Parameters
    ----------
    prior : Prior
        Computes on its device.
    values, present : Tensor, optional
        Conditions of every case, (B, C).
    seeds : sequence of int
        One for each case.
    temperature : float
        Logits are divided by it: below 1 volumes are more alike.
    top_k : int, optional
        Only so many of the most probable codes are drawn.
    top_p : float, optional
        Only the fewest most probable codes are drawn that together have this probability.
    guidance : float
        Logits are ``unknown + guidance · (conditioned - unknown)``: above 1 the conditions
        weigh more than they did in training, which doubles the cost.
    batch : int, optional
        Cases at a time; by default as many as 2 GiB hold.
    context : Tensor, optional
        (B, S, width), for a prior with ``context``.
    progress : callable, optional
        Told about twice a second.

    Returns
    -------
    Tensor
        int64 (B, L), in the order of the sequence; see ``Prior.to_grid``.

    Raises
    ------
    UsageError
        If an argument cannot be.
    ResourceError
        If keys and values do not fit in memory.
    """
    _check(seeds, temperature, top_k, top_p, batch)
    guided = guidance != 1.0
    if guided and prior.conditions is None:
        raise UsageError("guidance needs a prior with conditions", got=f"guidance {guidance:g}")
    if batch is None:
        batch = max(MEMORY // ((1 + guided) * cache_bytes(prior, 1)), 1)
    teller = _Teller(progress, len(seeds) * prior.settings.length)
    pick = partial(draw, temperature=temperature, top_k=top_k, top_p=top_p)
    parts = []
    with torch.no_grad():
        tokens = prior.context_tokens(len(seeds), values, present, context)
        for first in range(0, len(seeds), batch):
            given = None if tokens is None else tokens[first : first + batch]
            some = seeds[first : first + batch]
            unknown = prior.context_tokens(len(some), None, None, None) if guided else None
            if given is not None and unknown is not None:
                given = torch.cat([given, unknown])
            with enough_memory(
                "lower batch, or use a prior with sparse attention",
                what="keys and values of the prior do not fit in memory",
                got=f"{batch} cases at a time",
            ):
                parts.append(_sample_batch(prior, given, some, guidance, pick, teller))
    return torch.cat(parts)


def _sample_batch(
    prior: Prior,
    context: Tensor | None,
    seeds: Sequence[int],
    guidance: float,
    pick: Callable[[Tensor, Tensor], Tensor],
    teller: _Teller,
) -> Tensor:
    """Return the codes of cases that are drawn together, int64 (cases, L)."""
    cases, length = len(seeds), prior.settings.length
    guided = guidance != 1.0
    cached = CachedPrior(prior, cases * (1 + guided), context)
    uniform = uniform_numbers(seeds, length).to(prior.start.device)
    codes = torch.empty(length, cases, dtype=torch.int64, device=prior.start.device)
    last = None
    for i in range(length):
        logits = cached.step(last, i)
        if guided:
            conditioned, unknown = logits.chunk(2)
            logits = torch.lerp(unknown, conditioned, guidance)
        codes[i] = pick(logits, uniform[i])
        last = codes[i].repeat(2) if guided else codes[i]
        teller.tell(cases)
    return codes.T.contiguous()


def uniform_numbers(seeds: Sequence[int], count: int) -> Tensor:
    """Return numbers from 0 to below 1, float64 (count, cases), each column from its seed."""
    # below 1 by more than rounding, so that no product with a sum reaches the sum
    drawn = [np.random.default_rng(seed).random(count) * (1 - 1e-12) for seed in seeds]
    return torch.from_numpy(np.stack(drawn, axis=1))


def draw(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Return the codes at which the distribution function passes uniform numbers.

    Parameters
    ----------
    logits : Tensor
        (B, codes).
    uniform : Tensor
        float64 (B,), from 0 to below 1.
    temperature, top_k, top_p
        As of `sample_codes`.

    Returns
    -------
    Tensor
        int64 (B,).
    """
    logits = logits.double() if logits.dtype == torch.float64 else logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ranked, places = logits.sort(dim=-1, descending=True)
        share = ranked.softmax(-1)
        above = share.cumsum(-1) - share  # what the more probable codes have together
        dropped = torch.zeros_like(places, dtype=torch.bool).scatter(1, places, above >= top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    passed = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(passed, uniform[:, None] * passed[:, -1:], right=True)[:, 0]


class _Teller:
    """Tells a caller where sampling is, now and then."""

    def __init__(self, progress: Tell | None, total: int) -> None:
        self.progress, self.total = progress, total
        self.done = 0
        self.began = self.said = time.monotonic()

    def tell(self, tokens: int) -> None:
        """Count tokens."""
        self.done += tokens
        if self.progress is None:
            return
        now = time.monotonic()
        if now - self.said >= _TELL_EVERY_S or self.done == self.total:
            self.said = now
            self.progress(SamplingProgress(self.done, self.total, now - self.began))


def _check(
    seeds: Sequence[int],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    batch: int | None,
) -> None:
    wrong = {
        "seeds": ("one or more", len(seeds) < 1),
        "temperature": ("a number above 0", not (math.isfinite(temperature) and temperature > 0)),
        "top_k": ("1 or more", top_k is not None and top_k < 1),
        "top_p": ("a number above 0, at most 1", top_p is not None and not 0 < top_p <= 1),
        "batch": ("1 or more", batch is not None and batch < 1),
    }
    for name, (expected, is_wrong) in wrong.items():
        if is_wrong:
            raise UsageError(f"{name} of the sampler is wrong", expected=expected)
