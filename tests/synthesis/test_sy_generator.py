"""A generator is its two networks and no more: by hand, from a file, by name, in any batch."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from sy_tiny_models import AFFINE, GRID, SHAPE, conditions, prior, tokeniser

from medpipe.errors import InputError, UsageError
from medpipe.models import MODELS, PackagedModel, pack_weights
from medpipe.models import registry as models
from medpipe.seeds import derive_seed
from medpipe.synthesis.autoencoder import AutoencoderSettings, LatentAutoencoder
from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.denoiser import Denoiser, DenoiserSettings
from medpipe.synthesis.detail import FineDetail
from medpipe.synthesis.flow import sample_latents
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.label_reading import LabelReading
from medpipe.synthesis.quantile_mapping import QuantileMapping
from medpipe.synthesis.routes import LatentRoute, TokenRoute
from medpipe.synthesis.sampling import sample_codes
from medpipe.synthesis.segmenter import Segmenter, SegmenterModel, SegmenterSettings

ROWS = [{"age_years": 30, "sex": "F"}, {"age_years": 80.0, "sex": "M"}, {"sex": "M"}]
SEEDS = [5, 6, 7]


@pytest.fixture(scope="module")
def tokens():
    coder = tokeniser()
    return Generator(TokenRoute(coder, prior(coder)), AFFINE, SHAPE, {"name": "test"})


@pytest.fixture(scope="module")
def latents():
    torch.manual_seed(3)
    coder = LatentAutoencoder(AutoencoderSettings(1, 2, (8, 8), groups=4)).eval()
    how = DenoiserSettings(
        2, (8, 8), attention=(False, False), head_channels=4, groups=4, condition_width=8,
        conditions=conditions().columns, conditioning="embedding",
    )  # fmt: skip
    maker = Denoiser(how).eval()
    maker.autoencoder = coder.digest()
    return Generator(LatentRoute(coder, maker, conditions()), AFFINE, SHAPE)


def same(a, b):
    return torch.equal(a.image.as_tensor(), b.image.as_tensor()) and (
        a.labels is None or torch.equal(a.labels.as_tensor(), b.labels.as_tensor())
    )


def test_volumes_are_the_decoded_codes_of_the_prior(tokens):
    told = tokens.conditions.encode([row | {"shift": 0} for row in ROWS])
    codes = sample_codes(
        tokens.route.prior.prior, *told, seeds=SEEDS, temperature=0.8, top_k=20, guidance=1.5
    )
    grid = tokens.route.prior.prior.to_grid(codes)
    said = []
    made = tokens.sample(ROWS, SEEDS, temperature=0.8, top_k=20, guidance=1.5, progress=said.append)
    assert said[-1].tokens == said[-1].of_tokens == 3 * 18
    for n, volume in enumerate(made):
        values = tokens.route.tokeniser.tokeniser.decode(grid[n][None], SHAPE)[0]
        assert torch.equal(volume.image.as_tensor(), values[:1])
        assert torch.equal(volume.labels.as_tensor()[0].long(), values[1:].argmax(0))
        assert (volume.image.dtype, volume.labels.dtype) == (torch.float32, torch.uint8)
        assert np.allclose(volume.image.affine, AFFINE)
        assert np.allclose(volume.labels.affine, AFFINE)
        assert volume.seed == SEEDS[n]
    assert not same(made[0], made[1])


@pytest.mark.parametrize("kind", ["tokens", "latents"])
def test_seed_and_row_alone_decide(kind, request):
    generator = request.getfixturevalue(kind)
    together = generator.sample(ROWS, SEEDS, steps=3)
    alone = generator.sample(ROWS[1:2], SEEDS[1:2], steps=3, batch=1)[0]
    assert torch.allclose(alone.image.as_tensor(), together[1].image.as_tensor(), atol=1e-5)
    other = generator.sample(ROWS[1:2], [99], steps=3)[0]
    assert not same(other, alone)


def test_latents_are_decoded(latents):
    told = latents.conditions.encode(ROWS)
    route = latents.route
    drawn = sample_latents(
        route.denoiser, route.autoencoder.grid(SHAPE), *told, seeds=SEEDS, steps=3, guidance=2.0
    )
    with torch.no_grad():
        values = route.autoencoder.decode(drawn, SHAPE)
    made = latents.sample(ROWS, SEEDS, steps=3, guidance=2.0)
    for volume, want in zip(made, values, strict=True):
        assert volume.image.shape == (1, *SHAPE)
        assert torch.allclose(volume.image.as_tensor(), want, atol=1e-5)
        assert volume.labels is None


@pytest.mark.parametrize("kind", ["tokens", "latents"])
def test_one_file_holds_all_of_it(kind, request, tmp_path, monkeypatch):
    generator = request.getfixturevalue(kind)
    content = generator.to_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    back = Generator.read(path)
    assert back.to_bytes() == content
    assert back.digest == hashlib.sha256(content).hexdigest()
    assert back.facts == generator.facts
    assert back.conditions == generator.conditions
    a, b = (g.sample(ROWS[:1], [1], steps=2)[0] for g in (generator, back))
    assert same(a, b)
    assert np.allclose(b.image.affine, AFFINE)
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    pinned = PackagedModel(path.name, generator.digest, "synthesis")
    monkeypatch.setitem(MODELS, "toy-brain", pinned)
    assert same(Generator.read("toy-brain").sample(ROWS[:1], [1], steps=2)[0], a)


def detailed(generator):
    """Return a generator with detail, and with a reading that wants many voxels of label 1."""
    left = 0.1 * torch.randn(6, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
    weights, one = np.array([[0.0], [0.1], [0.0]]), np.array([1.0])
    reading = LabelReading(("age_years",), weights, one, 30 * one)
    return replace(generator, detail=FineDetail.fit(left, 0.6), reading=reading)


def test_detail_is_put_back_in_the_share_that_is_asked_for(tokens):
    fine = detailed(tokens)
    smooth, whole, usual = (
        fine.sample(ROWS[:1], [5], **d)[0] for d in ({"detail": 0}, {"detail": 1}, {})
    )
    assert same(smooth, tokens.sample(ROWS[:1], [5])[0])
    (full, some) = (v.image.as_tensor() - smooth.image.as_tensor() for v in (whole, usual))
    added = full - fine.detail.offset
    assert float(added.std()) == pytest.approx(0.1, rel=0.1)
    assert torch.allclose(some - fine.detail.offset, 0.6 * added, atol=1e-6)
    assert torch.equal(whole.labels.as_tensor(), smooth.labels.as_tensor())
    back = Generator.from_bytes(fine.to_bytes()).sample(ROWS[:1], [5])[0]
    assert torch.allclose(back.image.as_tensor(), usual.image.as_tensor(), atol=1e-3)


def test_of_several_candidates_the_nearest_is_kept(tokens):
    fine = detailed(tokens)
    rows = [{"age_years": 20}, {"age_years": 90}]
    assert same(fine.sample(rows, [1, 2], candidates=1)[1], fine.sample(rows, [1, 2])[1])
    sizes = {}
    for candidates in (1, 5):
        made = fine.sample(rows, [1, 2], candidates=candidates, detail=0, batch=3)
        sizes[candidates] = [int((v.labels == 1).sum()) for v in made]
    every = [
        [
            int((fine.sample([row], [s], detail=0)[0].labels == 1).sum())
            for s in (seed, *(derive_seed(seed, "candidate", str(k)) for k in range(1, 5)))
        ]
        for row, seed in zip(rows, [1, 2], strict=True)
    ]
    assert sizes[1] == [row[0] for row in every]
    for n, row in enumerate(rows):
        assert sizes[5][n] == min(every[n], key=lambda size: abs(0.1 * size - row["age_years"]))
    with pytest.raises(UsageError, match=r"cannot tell which candidate fits.*draw one candidate"):
        tokens.sample(ROWS, SEEDS, candidates=2)
    with pytest.raises(UsageError, match="candidates of 1 or more, corrections and detail of"):
        tokens.sample(ROWS, SEEDS, candidates=0)


def test_what_labels_images_replaces_the_labels_that_were_drawn(tokens):
    torch.manual_seed(5)
    network = Segmenter(SegmenterSettings(3, widths=(8, 8), residual_units=1)).eval()
    with torch.no_grad():
        network.head[1].weight *= 50  # so that all classes occur
    labelled = replace(tokens, labeller=SegmenterModel(network, [], 0, 0))
    drawn = labelled.sample(ROWS[:1], [5])[0]
    image = drawn.image.as_tensor()
    assert torch.equal(image, tokens.sample(ROWS[:1], [5])[0].image.as_tensor())
    with torch.no_grad():
        found = network(image[None].clamp(0, 1)).argmax(1)
    assert torch.equal(drawn.labels.as_tensor().long(), found)
    assert len(found.unique()) > 1
    back = Generator.from_bytes(labelled.to_bytes())
    assert same(back.sample(ROWS[:1], [5])[0], drawn)
    with pytest.raises(UsageError, match="cannot correct what it draws"):
        labelled.sample(ROWS[:1], [5], corrections=1)


def test_intensities_are_mapped_before_labels_are_seen(tokens):
    torch.manual_seed(1)
    network = Segmenter(SegmenterSettings(3, widths=(8, 16), residual_units=1)).eval()
    base = replace(tokens, labeller=SegmenterModel(network, [], 0, 0))
    plain = [v.image.as_tensor().clamp(0, 1) for v in base.sample(ROWS[:1] * 24, range(24))]
    mapping = QuantileMapping.fit(plain, [1 - x**2 for x in plain])
    mapped = replace(base, mapping=mapping)
    (made,) = mapped.sample(ROWS[:1], [3])
    image = made.image.as_tensor()
    assert torch.equal(image, mapping.applied_to(plain[3]))
    assert not torch.allclose(image, plain[3], atol=0.1)
    with torch.no_grad():
        found = network(image[None]).argmax(1)
    assert torch.equal(made.labels.as_tensor().long(), found)
    back = Generator.from_bytes(mapped.to_bytes())
    assert torch.allclose(back.sample(ROWS[:1], [3])[0].image.as_tensor(), image, atol=5e-3)
    (smooth,) = mapped.sample(ROWS[:1], [3], detail=0)
    assert same(smooth, base.sample(ROWS[:1], [3], detail=0)[0])


def test_corrections_bring_what_was_asked_for(monkeypatch):
    """A latent whose mean says how many voxels are labelled: 10 ml for all of them."""
    sizes = Conditions.fit({"size_ml": list(np.linspace(1, 9, 81))}, {"size_ml": "continuous"})
    coder = LatentAutoencoder(AutoencoderSettings(1, 1, (8, 8), groups=4, label_classes=2)).eval()
    how = DenoiserSettings(
        1, (8, 8), attention=(False, False), head_channels=4, groups=4, condition_width=8,
        conditions=1, conditioning="embedding", grid=coder.grid(SHAPE),
    )  # fmt: skip
    torch.manual_seed(0)
    maker = Denoiser(how).eval()
    maker.slopes.fill_(1.6)
    maker.spread.fill_(10.0)

    def decoded(self, latent, shape):
        inside = torch.zeros(int(np.prod(shape)))
        inside[: round(float(torch.sigmoid(latent.mean())) * len(inside))] = 1
        inside = inside.reshape(1, *shape)
        return torch.cat([inside, 1 - inside, inside])

    monkeypatch.setattr(LatentRoute, "decoded", decoded)
    ml = 10 / np.prod(SHAPE)
    spread = float(np.std(np.linspace(1, 9, 81)))
    reading = LabelReading(
        ("size_ml",), np.array([[0.0], [ml]]), np.array([0.05 * spread]), np.array([spread])
    )
    route = LatentRoute(coder, maker, sizes)
    generator = Generator(route, AFFINE, SHAPE, reading=reading)
    asked = np.linspace(3, 7, 8)

    def error(**settings):
        made = generator.sample([{"size_ml": a} for a in asked], range(8), steps=2, **settings)
        found = [float(v.labels.as_tensor().sum()) * ml for v in made]
        return np.abs(np.array(found) - asked)

    assert error(corrections=0).mean() > 0.4
    assert np.array_equal(error(), error(corrections=6))
    assert error(corrections=2).mean() < 0.5 * error(corrections=0).mean()
    assert error(corrections=6).max() < 0.1
    assert error(corrections=6, candidates=2, batch=3).max() < 0.1
    maker.slopes.fill_(-1.6)  # astray: the first is the best
    assert np.array_equal(error(corrections=3), error(corrections=0))
    maker.slopes.fill_(1.6)
    vague = replace(generator, reading=replace(reading, errors=np.array([0.6 * spread])))
    drawn, corrected = (vague.sample([{"size_ml": 7}], [1], steps=2, corrections=n) for n in (0, 3))
    assert same(drawn[0], corrected[0])  # what labels do not show is not corrected


def test_latents_may_be_moved_by_what_a_labeller_sees():
    sizes = Conditions.fit({"size_ml": list(np.linspace(1, 9, 81))}, {"size_ml": "continuous"})
    torch.manual_seed(3)
    coder = LatentAutoencoder(AutoencoderSettings(1, 2, (8, 8), groups=4, label_classes=2)).eval()
    how = DenoiserSettings(
        2, (8, 8), attention=(False, False), head_channels=4, groups=4, condition_width=8,
        conditions=1, conditioning="embedding",
    )  # fmt: skip
    network = Segmenter(SegmenterSettings(2, widths=(8, 8), residual_units=1)).eval()
    with torch.no_grad():
        network.head[1].weight *= 20
    ml = 10 / np.prod(SHAPE)
    reading = LabelReading(("size_ml",), np.array([[0.0], [ml]]), np.array([0.2]), np.array([2.4]))
    generator = Generator(
        LatentRoute(coder, Denoiser(how).eval(), sizes), AFFINE, SHAPE, reading=reading,
        labeller=SegmenterModel(network, [], 0, 0),
    )  # fmt: skip

    def sizes_of(model, rows, **settings):
        made = model.sample(rows, range(len(rows)), steps=2, **settings)
        return np.array([float(v.labels.as_tensor().sum()) * ml for v in made]), made

    plain, _ = sizes_of(generator, [{}] * 6, corrections=0)
    # each is asked for a little more or less than it has
    rows = [{"size_ml": float(x)} for x in plain + np.tile([0.4, -0.4], 3)]
    asked = np.array([row["size_ml"] for row in rows])
    before, _ = sizes_of(generator, rows, corrections=0)
    after, made = sizes_of(generator, rows)
    assert (np.abs(after - asked) <= np.abs(before - asked)).all()
    assert np.abs(after - asked).mean() < 0.5 * np.abs(before - asked).mean()
    assert np.array_equal(sizes_of(generator, rows, corrections=6)[0], after)
    back = Generator.from_bytes(generator.to_bytes())
    assert same(sizes_of(back, rows)[1][1], made[1])
    assert all(p.grad is None for net in generator.route.networks for p in net.parameters())
    with pytest.raises(UsageError, match="cannot correct what it draws"):
        sizes_of(replace(generator, labeller=None), rows, corrections=3)


def test_half_precision_is_a_model_of_its_own_that_fits_itself(tokens):
    half = Generator.from_bytes(tokens.to_bytes(half=True))
    assert len(tokens.to_bytes(half=True)) < 0.75 * len(tokens.to_bytes())
    assert half.digest != tokens.digest
    assert half.route.prior.tokeniser == half.route.tokeniser.digest
    assert half.sample(ROWS[:1], [1])[0].image.shape == (1, *SHAPE)


def test_half_precision_of_latents_is_rounded_and_fits_itself(latents):
    content = latents.to_bytes(half=True)
    half = Generator.from_bytes(content)
    assert len(content) < 0.75 * len(latents.to_bytes())
    assert half.route.denoiser.autoencoder == half.route.autoencoder.digest() != ""
    a, b = (g.sample(ROWS[:1], [1], steps=3)[0].image.as_tensor() for g in (latents, half))
    assert 0 < float((a - b).abs().max()) < 0.02 * float(a.std())


def test_conditions_that_are_not_said_are_found(tokens):
    assert [c.name for c in tokens.missing({"sex": "F"})] == ["age_years"]
    assert tokens.missing({"sex": "F", "age_years": 0}) == []
    with pytest.raises(UsageError, match=r"condition age_years: .*expected 20 to 90 years, got 95"):
        tokens.sample([{"age_years": 95}], [1])
    with pytest.raises(UsageError, match=r"no such condition; .*got height"):
        tokens.sample([{"height": 2}], [1])
    with pytest.raises(UsageError, match=r"one seed for each row.*expected 3 of both, got 3 and 1"):
        tokens.sample(ROWS, [1])


def test_networks_that_do_not_belong_together_are_refused(tokens, latents, tmp_path):
    coder = tokens.route.tokeniser
    other = tokeniser(seed=8)
    with pytest.raises(UsageError, match="codes of another tokeniser; expected sha256"):
        Generator(TokenRoute(other, tokens.route.prior), AFFINE, SHAPE)
    small = tokeniser(codes=20)
    unsaid = replace(tokens.route.prior, tokeniser="")
    with pytest.raises(UsageError, match="expected a codebook of 40, got 20"):
        Generator(TokenRoute(small, unsaid), AFFINE, SHAPE)
    with pytest.raises(UsageError, match=r"another size; expected a grid of \(3, 3, 2\)"):
        Generator(TokenRoute(coder, prior(coder, grid=(3, 3, 3))), AFFINE, SHAPE)
    assert GRID == (3, 3, 2)
    with pytest.raises(UsageError, match="not those of the denoiser; expected 3 columns, got 0"):
        Generator(replace(latents.route, conditions=Conditions()), AFFINE, SHAPE)
    path = tmp_path / "prior.safetensors"
    for content in (tokens.route.prior.to_bytes(), pack_weights({}, {"model": "generator"})):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"prior.safetensors.*no generator"):
            Generator.read(path)
