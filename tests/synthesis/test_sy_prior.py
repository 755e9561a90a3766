"""The prior: what it may see, what it learns, what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from medpipe.errors import UsageError
from medpipe.synthesis.prior import Prior, PriorSettings

SHAPES = [
    {"positions": "rotary"},
    {"positions": "relative", "order": "hilbert"},
    {"positions": "learned", "order": "s-curve", "blocks": "monai"},
    {"attention": "plane-column", "order": "s-curve"},
    {"attention": "strided", "positions": "relative"},
    {"attention": "fixed", "stride": 4, "summary": 2},
]


def small(conditions=2, seed=0, **more):
    torch.manual_seed(seed)
    settings = PriorSettings(
        7, (3, 2, 4), width=24, layers=2, heads=2, conditions=conditions, **more
    )
    prior = Prior(settings).double().eval()
    for parameter in prior.parameters():  # far from the start of a training
        torch.nn.init.normal_(parameter, std=0.3)
    return prior


def some(prior, cases=2):
    codes = torch.randint(7, (cases, 24), generator=torch.Generator().manual_seed(1))
    return codes, torch.tensor([[0.3, -1.0], [0.9, 0.2]][:cases], dtype=torch.float64)


@pytest.mark.parametrize("more", SHAPES, ids=str)
def test_a_code_is_predicted_from_those_before_it(more):
    prior = small(**more)
    codes, values = some(prior)
    before = prior(codes, values)
    assert before.shape == (2, 24, 7)
    for t in (0, 5, 11, 23):
        changed = codes.clone()
        changed[:, t] = (changed[:, t] + 1) % 7
        differs = (prior(changed, values) - before).abs().amax(dim=(0, 2)) > 0
        assert not differs[: t + 1].any()
        assert t == 23 or differs[t + 1 :].any()


def test_dense_attention_reaches_every_later_token():
    prior = small()
    codes, values = some(prior)
    changed = codes.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 7
    assert ((prior(changed, values) - prior(codes, values)).abs().amax(dim=(0, 2)) > 0)[4:].all()


def test_conditions_are_heard_and_what_is_absent_is_not():
    prior = small()
    codes, values = some(prior)
    present = torch.tensor([[True, False], [True, True]])
    logits = prior(codes, values, present)
    other = values.clone()
    other[0, 1] = torch.nan
    assert torch.equal(prior(codes, other, present), logits)
    assert not torch.allclose(prior(codes, values)[0], logits[0])
    nothing = prior(codes, values, torch.zeros_like(present))
    assert torch.equal(prior(codes), nothing)
    assert not torch.allclose(nothing, logits)


@pytest.mark.parametrize("more", SHAPES, ids=str)
def test_nll_is_the_mean_of_minus_the_log_probability(more):
    prior = small(**more)
    codes, values = some(prior)
    share = prior(codes, values).softmax(-1)
    for case in range(2):
        logs = [share[case, t, codes[case, t]].log() for t in range(24)]
        assert prior.nll(codes, values)[case].item() == pytest.approx(-sum(logs).item() / 24)


def test_it_learns_where_a_code_belongs_and_what_a_condition_asks_for():
    torch.manual_seed(0)
    prior = Prior(PriorSettings(6, (2, 3, 4), width=32, layers=2, heads=2, conditions=1))
    place = torch.arange(24) // 4 % 3
    values = torch.tensor([[-1.0], [1.0]])
    codes = torch.stack([place, place + 3])
    optimiser = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        prior.nll(codes, values).mean().backward()
        optimiser.step()
    with torch.no_grad():
        assert prior.nll(codes, values).max() < 0.05
        assert prior.nll(codes, -values).min() > 0.2


def test_codes_go_to_their_places_and_back():
    prior = small(order="hilbert")
    grid = torch.randint(7, (2, 3, 2, 4))
    sequence = prior.to_sequence(grid)
    assert torch.equal(sequence[:, 5], grid.flatten(1)[:, prior.order[5]])
    assert torch.equal(prior.to_grid(sequence), grid)


def test_settings_travel_as_json():
    settings = PriorSettings(7, (3, 2, 4), attention="fixed", stride=4)
    assert PriorSettings(**json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 25}, "width is not divisible by heads; expected a multiple of 2, got 25"),
        ({"codes": 0}, "codes of the prior is wrong"),
        ({"positions": "absolute"}, "unknown positions.*got absolute"),
        ({"blocks": "gpt"}, "unknown blocks.*got gpt"),
        ({"dropout": 1.0}, "conditions or dropout are wrong"),
        ({"conditions": 1, "context": True}, "not both"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, said):
    with pytest.raises(UsageError, match=said):
        PriorSettings(**({"codes": 7, "grid": (3, 2, 4), "heads": 2} | settings))


def test_inputs_of_the_wrong_shape_are_named():
    prior = small()
    codes, values = some(prior)
    with pytest.raises(UsageError, match=r"sequence of codes.*\(cases, 24\), got \(2, 23\)"):
        prior(codes[:, 1:], values)
    with pytest.raises(UsageError, match=r"values of the conditions.*\(2, 2\), got \(2, 1\)"):
        prior(codes, values[:, 1:])
    with pytest.raises(UsageError, match=r"grid of codes.*\(cases, 3, 2, 4\), got \(2, 2, 3, 4\)"):
        prior.to_sequence(torch.zeros(2, 2, 3, 4, dtype=torch.int64))
    with pytest.raises(UsageError, match="a context is given"):
        prior(codes, context=torch.zeros(2, 3, 24, dtype=torch.float64))
    with pytest.raises(UsageError, match="trained without conditions"):
        small(conditions=0)(codes, values)
    asked = small(conditions=0, context=True)
    with pytest.raises(UsageError, match="context is missing"):
        asked(codes)
    with pytest.raises(UsageError, match=r"the context has.*\(2, tokens, 24\), got \(1, 3, 24\)"):
        asked(codes, context=torch.zeros(1, 3, 24, dtype=torch.float64))
