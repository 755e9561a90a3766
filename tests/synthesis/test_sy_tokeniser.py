"""The tokeniser: MONAI's network on its weights, any size and back, labels, what is refused."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.vqvae import VQVAE
from torch.nn import functional

from medpipe.errors import InputError, ResourceError, StepError, UsageError
from medpipe.synthesis.tokeniser import (
    Tokeniser,
    TokeniserSettings,
    join_labels,
    split_labels,
)

TINY = TokeniserSettings(widths=(4, 6), residual_units=1, codes=16, code_width=5)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(settings=TINY, seed=0, **how):
    torch.manual_seed(seed)
    net = Tokeniser(settings, **how)
    net.codebook.vectors.copy_(0.1 * noise(settings.codes, settings.code_width, seed=seed))
    return net.eval()


def peer(settings, seed=0):
    torch.manual_seed(seed)
    return VQVAE(
        3, settings.channels, settings.channels, channels=settings.widths,
        num_res_layers=settings.residual_units, num_res_channels=settings.widths,
        downsample_parameters=((2, 4, 1, 1),) * settings.levels,
        upsample_parameters=((2, 4, 1, 1, 0),) * settings.levels,
        num_embeddings=settings.codes, embedding_dim=settings.code_width,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    other = peer(TINY)
    other.quantizer.quantizer.embedding.weight.data.mul_(0.1)  # so that many are chosen
    mine = make(seed=8)
    mine.load_monai(other.state_dict())
    return mine, other


def test_codes_and_volumes_are_those_of_monai(pair):
    mine, other = pair
    x = noise(2, 1, 12, 8, 16)
    with torch.no_grad():
        codes = mine.encode(x)
        assert torch.equal(codes, other.index_quantize(x))
        assert len(codes.unique()) > 4
        assert torch.allclose(mine.decode(codes), other.decode_samples(codes), atol=1e-5)
        made = mine(x)
        values, loss = other(x)
    assert torch.allclose(made.values, values, atol=1e-5)
    assert torch.allclose(made.commitment, loss, rtol=1e-4)


def test_every_size_comes_back_where_monai_drops_voxels(pair):
    mine, other = pair
    x = noise(1, 1, 9, 13, 10)
    with torch.no_grad():
        assert other(x)[0].shape[2:] == (8, 12, 8)
        made = mine(x)
        padded = functional.pad(x, (0, 2, 0, 3, 0, 3), mode="replicate")
        truth = other(padded)[0][..., :9, :13, :10]
        assert made.values.shape == x.shape
        assert torch.allclose(made.values, truth, atol=1e-5)
        codes = mine.encode(x)
        assert codes.shape == (1, *mine.grid((9, 13, 10))) == (1, 3, 4, 3)
        assert torch.equal(codes, made.codes)
        assert torch.equal(mine.decode(codes, (9, 13, 10)), made.values)
        assert mine.decode(codes).shape == (1, 1, 12, 16, 12)


def test_the_published_preset_is_the_published_network():
    settings = TokeniserSettings.preset("synthanatomy")
    with torch.device("meta"):
        net, other = Tokeniser(settings), peer(settings)
    counts = [sum(p.numel() for p in n.parameters()) for n in (net, other)]
    assert counts[0] == counts[1] - 2048 * 32  # the codebook holds no parameters
    assert round(counts[1] / 1e6, 1) == 46.1
    assert net.stride == 16
    assert net.grid((160, 224, 160)) == (10, 14, 10)
    hippocampus = Tokeniser(TokeniserSettings.preset("hippocampus", codes=8))
    assert hippocampus.grid((32, 48, 32)) == (8, 12, 8)  # 768 codes
    assert hippocampus.settings.channels == 4
    assert TokeniserSettings.preset("small").stride == 8


def test_volumes_survive_the_layers_of_a_network_that_has_learned_nothing():
    """Where MONAI's weights shrink them until padding is all that reaches the codebook."""
    settings = TokeniserSettings(widths=(8, 8, 16), residual_units=2, codes=8, code_width=6)
    x = noise(6, 1, 16, 16, 16)
    torch.manual_seed(0)
    net, other = Tokeniser(settings), peer(settings)

    def between(values):
        return float(values.var(0).mean().sqrt())

    with torch.no_grad():
        assert between(other.encoder(x)) < 0.01
        assert between(net.encoder(x)) > 0.2
        z = noise(6, 6, 2, 2, 2)
        assert between(other.decoder(z)) < 0.01
        assert between(net.decoder(z)) > 0.03
        assert float(net.decoder(z).abs().max()) < 5


def test_recomputing_gives_the_same_gradients():
    x = noise(1, 1, 8, 8, 8)
    grads = []
    for recompute in (False, True):
        net = make(recompute=recompute)
        net(x).values.square().mean().backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) > 10
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))


def test_labels_go_in_as_channels_and_come_out():
    image, labels = noise(2, 1, 4, 5, 6), torch.randint(0, 3, (2, 1, 4, 5, 6))
    joined = join_labels(image, labels, 3)
    assert joined.shape == (2, 4, 4, 5, 6)
    for c in range(3):
        assert torch.equal(joined[:, 1 + c] == 1, labels[:, 0] == c)
    back, known = split_labels(joined, 1)
    assert torch.equal(back, image)
    assert torch.equal(known.long(), labels)
    assert split_labels(image, 1)[1] is None
    for wrong in (labels + 1, labels - 1, labels + 0.5):
        with pytest.raises(InputError, match="whole numbers from 0 to 2"):
            join_labels(image, wrong, 3)
    with pytest.raises(InputError, match="do not fit"):
        join_labels(image, labels[..., 1:], 3)


def test_what_does_not_fit_is_named(pair):
    mine, _ = pair
    with pytest.raises(StepError, match=r"expected \(batch, 1, I, J, K\), got shape \(1, 2, 8"):
        mine.encode(noise(1, 2, 8, 8, 8))
    codes = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    with pytest.raises(StepError, match=r"grid of the codes is wrong; expected \(3, 2, 2\)"):
        mine.decode(codes, (9, 8, 8))
    for wrong in (16, -1):
        with pytest.raises(StepError, match=f"not in the codebook; expected 0 to 15, got {wrong}"):
            mine.decode(codes + wrong)
    with pytest.raises(StepError, match="no codes"):
        mine.decode(codes.float())
    with pytest.raises(InputError, match="not those of such a VQVAE"):
        mine.load_monai(
            peer(TokeniserSettings(widths=(4, 8), residual_units=1, codes=16)).state_dict()
        )
    with pytest.raises(UsageError, match="no such preset"):
        TokeniserSettings.preset("large")
    for bad in ({"widths": ()}, {"label_classes": 1}, {"commitment": -1}, {"codes": 1}):
        with pytest.raises(UsageError):
            Tokeniser(TokeniserSettings(**bad))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("[..] DefaultCPUAllocator: no")]
)
def test_too_little_memory_is_said_with_the_size(monkeypatch, error):
    net = make()

    def fail(*_):
        raise error

    monkeypatch.setattr(net, "_blocks", fail)
    for ask in (net.encode, net):
        with pytest.raises(ResourceError, match=r"not enough memory.*8 x 12 x 8 voxels"):
            ask(noise(1, 1, 8, 12, 8))
    with pytest.raises(ResourceError, match="8 x 12 x 8"):
        net.decode(torch.zeros(1, 2, 3, 2, dtype=torch.int64))
    monkeypatch.setattr(net, "_blocks", lambda *_: torch.zeros(1) @ torch.zeros(2))
    with pytest.raises(RuntimeError, match="size"):
        net.encode(noise(1, 1, 8, 8, 8))  # other errors stay what they are
