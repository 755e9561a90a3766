"""Sampling with remembered keys and values: the logits of the whole network, honest draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from medpipe.errors import ResourceError, UsageError
from medpipe.synthesis import sampling
from medpipe.synthesis.cache import CachedPrior, cache_bytes
from medpipe.synthesis.prior import Prior, PriorSettings
from medpipe.synthesis.sampling import draw, sample_codes, uniform_numbers


def prior_of(dtype=torch.float32, std=0.1, **more):
    torch.manual_seed(2)
    given = {"codes": 11, "grid": (3, 4, 3), "width": 24, "layers": 3, "heads": 2} | more
    prior = Prior(PriorSettings(**given))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return prior.to(dtype).eval()


PATTERNS = [
    {"attention": kind, "order": order}
    for kind, order in itertools.product(
        ("dense", "plane-column", "strided", "fixed"), ("raster", "s-curve", "hilbert")
    )
    if (kind, order) != ("plane-column", "hilbert")
]
SHAPES = [
    {"positions": positions, "conditions": 2, **pattern}
    for positions in ("rotary", "relative", "learned")
    for pattern in PATTERNS
] + [{"blocks": "monai", "positions": "learned"}, {"blocks": "monai", "context": True}, {}]


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("cases", [1, 3])
@pytest.mark.parametrize("more", SHAPES, ids=lambda m: "-".join(str(v) for v in m.values()))
def test_remembered_logits_are_those_of_the_whole_network(dtype, within, more, cases):
    prior = prior_of(dtype, std=0.2, **more)
    codes = torch.randint(11, (cases, 36), generator=torch.Generator().manual_seed(0))
    values = torch.tensor([[0.1, 0.9], [-1, 1], [0.5, 0]])[:cases] if prior.conditions else None
    present = torch.tensor([[True, False]]).expand(cases, -1) if prior.conditions else None
    context = torch.randn(cases, 4, 24).to(dtype) if prior.settings.context else None
    with torch.no_grad():
        whole = prior(codes, values, present, context=context)
        tokens = prior.context_tokens(cases, values, present, context)
        cached = CachedPrior(prior, cases, tokens)
        found = [cached.step(None if i == 0 else codes[:, i - 1], i) for i in range(36)]
    assert whole.std() > 0.1
    assert (torch.stack(found, dim=1) - whole).abs().max() <= within


def test_sequences_are_drawn_as_often_as_they_are_probable():
    prior = prior_of(codes=3, grid=(1, 1, 2), std=0.6)
    codes = torch.tensor(list(itertools.product(range(3), repeat=2)))
    with torch.no_grad():
        share = (-prior.nll(codes).double() * 2).exp()
    assert share.sum() == pytest.approx(1, abs=1e-5)
    drawn = sample_codes(prior, seeds=range(4000))
    counts = [int((drawn == c).all(1).sum()) for c in codes]
    expected = (share / share.sum() * 4000).numpy()
    assert chisquare(counts, expected).pvalue > 0.01
    assert share.max() / share.min() > 3


def test_a_case_has_the_same_codes_in_any_batch():
    prior = prior_of(conditions=2, positions="relative")
    seeds = [5, 11, 2, 99, 7]
    values = torch.rand(5, 2) * 2 - 1
    together = sample_codes(prior, values, seeds=seeds)
    assert torch.equal(sample_codes(prior, values, seeds=seeds, batch=2), together)
    for i in (0, 3):
        alone = sample_codes(prior, values[i : i + 1], seeds=[seeds[i]])
        assert torch.equal(alone[0], together[i])
    assert len({tuple(row) for row in together.tolist()}) == 5


def test_codes_can_be_trained_on():
    prior = prior_of()
    prior.nll(sample_codes(prior, seeds=[0])).sum().backward()


def test_uniform_numbers_belong_to_their_seed():
    drawn = uniform_numbers([3, 4], 1000)
    assert torch.equal(drawn[:, 1], uniform_numbers([4], 1000)[:, 0])
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
    assert drawn.min() >= 0
    assert drawn.max() < 1


@pytest.mark.parametrize(
    "limits",
    [{}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 0.5}, {"top_k": 4, "top_p": 0.3}],
    ids=str,
)
def test_draws_against_a_search_through_the_distribution(limits):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (200, 9))
    uniform = rng.random(200)
    found = draw(torch.from_numpy(logits), torch.from_numpy(uniform), **limits)
    for row, u, code in zip(logits, uniform, found.tolist(), strict=True):
        share = np.exp(row / limits.get("temperature", 1.0))
        ranked = np.argsort(-share)
        share[ranked[limits.get("top_k", 9) :]] = 0
        share /= share.sum()
        before = 0.0
        for place in ranked:
            before, weight = before + share[place], share[place]
            if before - weight >= limits.get("top_p", 1.1):
                share[place] = 0
        share /= share.sum()
        assert share[:code].sum() <= u < share[: code + 1].sum()


def test_extreme_uniform_numbers_draw_codes_that_are_possible():
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    last = 1 - 1e-12
    assert draw(logits, torch.tensor([0.0], dtype=torch.float64)).tolist() == [1]
    assert draw(logits, torch.tensor([last], dtype=torch.float64)).tolist() == [2]


def test_guidance_weighs_the_conditions():
    prior = prior_of(torch.float64, conditions=2, std=0.4)
    values = torch.tensor([[0.8, -0.9], [-0.3, 0.2]])
    seeds = [1, 2]
    found = sample_codes(prior, values, seeds=seeds, guidance=2.5)
    uniform = uniform_numbers(seeds, 36)
    with torch.no_grad():
        conditioned, unknown = prior(found, values), prior(found)
    for t in range(36):
        logits = unknown[:, t] + 2.5 * (conditioned[:, t] - unknown[:, t])
        assert torch.equal(draw(logits, uniform[t]), found[:, t])
    assert not torch.equal(found, sample_codes(prior, values, seeds=seeds))


def test_temperature_and_top_k_reach_the_draws():
    prior = prior_of(std=0.4)
    greedy = sample_codes(prior, seeds=[1, 2, 3], top_k=1)
    assert len({tuple(row) for row in greedy.tolist()}) == 1
    cold = sample_codes(prior, seeds=[1, 2, 3], temperature=1e-4)
    assert torch.equal(cold, greedy)
    assert not torch.equal(sample_codes(prior, seeds=[1, 2, 3]), greedy)
    assert torch.equal(sample_codes(prior, seeds=[1, 2, 3], top_p=1e-9), greedy)


def test_progress_counts_every_token(monkeypatch):
    monkeypatch.setattr(sampling, "_TELL_EVERY_S", 0.0)
    told = []
    sample_codes(prior_of(), seeds=range(5), batch=2, progress=told.append)
    assert [p.tokens for p in told[:2]] == [2, 4]
    assert (told[-1].tokens, told[-1].of_tokens) == (180, 180)
    assert told[-1].tokens_per_s == pytest.approx(180 / told[-1].seconds)


def test_the_batch_follows_from_the_memory(monkeypatch):
    prior = prior_of()
    assert cache_bytes(prior, 2) == 2 * (3 * 2 * 36 * 24 * 4)
    monkeypatch.setattr(sampling, "MEMORY", 2 * cache_bytes(prior, 1))
    rows = []
    monkeypatch.setattr(
        sampling, "CachedPrior", lambda p, cases, c: rows.append(cases) or CachedPrior(p, cases, c)
    )
    sample_codes(prior, seeds=range(5))
    assert rows == [2, 2, 1]


def test_lack_of_memory_is_named(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sampling, "CachedPrior", full)
    with pytest.raises(ResourceError, match=r"do not fit in memory; got 3 cases.*lower batch"):
        sample_codes(prior_of(), seeds=range(3), batch=3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seeds": []}, "seeds of the sampler is wrong"),
        ({"temperature": 0.0}, "temperature of the sampler is wrong; expected a number above 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p of the sampler is wrong; expected a number above 0, at most 1"),
        ({"batch": 0}, "batch"),
        ({"guidance": 2.0}, "guidance needs a prior with conditions"),
    ],
)
def test_arguments_that_cannot_be_are_named(wrong, said):
    with pytest.raises(UsageError, match=said):
        sample_codes(prior_of(), **({"seeds": [1]} | wrong))
