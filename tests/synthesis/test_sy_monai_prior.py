"""Weights of MONAI's transformer give the same logits here."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DecoderOnlyTransformer

from medpipe.errors import InputError, UsageError
from medpipe.synthesis.monai_prior import prior_from_monai
from medpipe.synthesis.sampling import sample_codes

KINDS = [
    {},
    {"with_cross_attention": True},
    {"use_combined_linear": True, "use_flash_attention": True},
    {"include_fc": False, "with_cross_attention": True},
]


def network_of(**more):
    torch.manual_seed(1)
    network = DecoderOnlyTransformer(
        num_tokens=13, max_seq_len=30, attn_layers_dim=32, attn_layers_depth=2,
        attn_layers_heads=4, **more,
    )  # fmt: skip
    for parameter in network.parameters():  # gains and biases too
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.mark.parametrize("more", KINDS, ids=str)
def test_logits_are_those_of_monai(more):
    network = network_of(**more)
    prior = prior_from_monai(network, (2, 3, 4))
    codes = torch.randint(12, (2, 24), generator=torch.Generator().manual_seed(2))
    context = torch.randn(2, 5, 32) if more.get("with_cross_attention") else None
    started = torch.cat([torch.full((2, 1), 12), codes[:, :-1]], dim=1)
    with torch.no_grad():
        theirs = network(started, context=context)[..., :12]
        ours = prior(codes, context=context)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5


def test_a_draw_is_one_of_monais_distribution():
    network = network_of(with_cross_attention=True)
    prior = prior_from_monai(network.state_dict(), (2, 3, 4), heads=4)
    context = torch.randn(2, 5, 32)
    codes = sample_codes(prior, seeds=[1, 2], context=context, top_k=1)
    started = torch.full((2, 1), 12)
    with torch.no_grad():
        for t in range(24):  # the most probable code each time, with the whole network
            best = network(started, context=context)[:, -1, :12].argmax(-1)
            assert torch.equal(best, codes[:, t])
            started = torch.cat([started, best[:, None]], dim=1)


def test_type_and_order_are_kept():
    prior = prior_from_monai(network_of().double(), (2, 3, 4), order="hilbert")
    assert prior.start.dtype == torch.float64
    assert prior.settings.order == "hilbert"


def test_what_cannot_be_read_is_named():
    network = network_of()
    with pytest.raises(UsageError, match="30 tokens or fewer, got 64 tokens"):
        prior_from_monai(network, (4, 4, 4))
    with pytest.raises(UsageError, match="number of heads is not known"):
        prior_from_monai(network.state_dict(), (2, 3, 4))
    with pytest.raises(InputError, match="not of a DecoderOnlyTransformer"):
        prior_from_monai(torch.nn.Linear(3, 3).state_dict(), (2, 3, 4), heads=4)
    broken = network.state_dict() | {"blocks.1.mlp.linear1.weight": torch.zeros(3, 3)}
    with pytest.raises(InputError, match="not of a DecoderOnlyTransformer"):
        prior_from_monai(broken, (2, 3, 4), heads=4)
