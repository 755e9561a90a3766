"""The network of features: it learns without outside weights, and its file."""

from __future__ import annotations

import pytest
import torch

from medpipe.errors import InputError, UsageError
from medpipe.models import pack_weights
from medpipe.synthesis.features import FeatureNetwork, read_features, train_features
from medpipe.train import LoopSettings


def balls(count):
    """Bright balls of two sizes on grey, with their label."""
    made = torch.Generator().manual_seed(0)
    axis = torch.arange(12.0)
    out = []
    for n in range(count):
        place = 4 + 4 * torch.rand(3, generator=made)
        i, j, k = ((axis - p).square() for p in place)
        inside = (i[:, None, None] + j[:, None] + k).sqrt() < (2 if n % 2 else 4)
        out.append((0.3 + 0.5 * inside[None] + 0.02 * torch.randn(1, 12, 12, 12, generator=made),
                    inside[None].byte()))  # fmt: skip
    return out


def test_features_learn_labels_and_tell_sizes_apart():
    samples = balls(6)
    settings = LoopSettings(iterations=90, batch_size=3, learning_rate=0.02, validate_every=15)
    losses = []
    network = train_features(
        samples, label_classes=2, widths=(4, 8), settings=settings, device="cpu",
        progress=lambda at: losses.append(at.loss),
    )  # fmt: skip
    share = float(torch.stack([s[1].float() for s in samples]).mean())
    entropy = -(share * torch.tensor(share).log() + (1 - share) * torch.tensor(1 - share).log())
    assert losses[-1] < 0.3 * float(entropy)  # far better than knowing how frequent they are
    with torch.no_grad():
        vectors = network.embed(torch.stack([s[0] for s in samples]))
    assert vectors.shape == (6, 8)
    small, large = vectors[1::2], vectors[::2]
    within = max(float(torch.cdist(v, v).max()) for v in (small, large))
    assert float(torch.cdist(small, large).min()) > within


def test_without_labels_blocks_are_filled_in():
    images = [s[0] for s in balls(4)]
    settings = LoopSettings(iterations=75, batch_size=4, learning_rate=0.02, validate_every=15)
    losses = []
    train_features(
        images, widths=(8, 8), settings=settings, device="cpu",
        progress=lambda at: losses.append(at.loss),
    )  # fmt: skip
    variance = float(torch.stack(images).var())
    assert losses[-1] < 0.7 * variance  # better than the mean everywhere


def test_the_file_is_the_network(tmp_path):
    torch.manual_seed(0)
    network = FeatureNetwork(2, (3, 5)).eval()
    file = tmp_path / "f.safetensors"
    file.write_bytes(network.to_bytes())
    again = read_features(file)
    x = torch.rand(1, 2, 8, 7, 6)
    assert all(torch.equal(a, b) for a, b in zip(network(x), again(x), strict=True))
    assert not again.training
    file.write_bytes(pack_weights(network.state_dict(), {"model": "tokeniser"}))
    with pytest.raises(InputError, match=r"f.safetensors: the model is not one of features"):
        read_features(file)


def test_what_is_missing_is_named():
    with pytest.raises(UsageError, match="nothing to train with"):
        train_features([], device="cpu")
    with pytest.raises(UsageError, match="no labels"):
        train_features([balls(1)[0][0]], label_classes=2, device="cpu")
