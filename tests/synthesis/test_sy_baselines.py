"""Baselines on balls of known size: means, conditions, files, bad input."""

import numpy as np
import pytest
import torch

from medpipe.errors import InputError, UsageError
from medpipe.models import pack_weights
from medpipe.synthesis.baselines import PcaGaussian, RegistrationSettings, TemplateDeformation

CASES, SIDE = 24, 14


@pytest.fixture(scope="module")
def balls():
    """Soft balls of two shells: images, labels and the volume of the inner one in voxels."""
    torch.manual_seed(0)
    at = torch.stack(torch.meshgrid(*[torch.arange(SIDE) - (SIDE - 1) / 2] * 3, indexing="ij"))
    middle = 0.4 * torch.randn(CASES, 3, 1, 1, 1)
    inner = 2.8 + 0.9 * torch.rand(CASES, 1, 1, 1)
    r = (at - middle).norm(dim=1)
    images = 0.5 * torch.sigmoid(3 * (inner - r)) + 0.4 * torch.sigmoid(3 * (5.0 - r))
    labels = (r < 5.0).long() + (r < inner).long()
    volumes = (labels == 2).sum((1, 2, 3)).double()
    return images[:, None], labels[:, None], volumes


@pytest.fixture(scope="module")
def template(balls):
    images, labels, volumes = balls
    quick = RegistrationSettings(rounds=2, iterations=20, stiffness=0.002, coarseness=1.0)
    return TemplateDeformation.fit(
        images,
        labels,
        label_classes=3,
        conditions={"inner_voxels": volumes},
        components=6,
        settings=quick,
    )


@pytest.fixture(scope="module")
def pca(balls):
    images, labels, volumes = balls
    return PcaGaussian.fit(
        images, labels, label_classes=3, conditions={"inner_voxels": volumes}, components=6
    )


@pytest.fixture(params=["pca", "template"])
def model(request):
    return request.getfixturevalue(request.param)


def test_samples_have_the_mean_volumes_of_the_cases(model, balls):
    images, labels, _ = balls
    drawn, segmented = model.sample(range(200))
    assert drawn.shape == (200, 1, SIDE, SIDE, SIDE)
    assert segmented.shape == drawn.shape
    for label in (1, 2):
        got = float((segmented == label).sum()) / 200
        assert got == pytest.approx(float((labels == label).sum()) / CASES, rel=0.1)
    assert float((drawn.mean(0) - images.mean(0)).abs().max()) < 0.1


def test_a_gaussian_draws_labels_as_large_and_as_different_as_given(pca, balls):
    _, labels, _ = balls
    _, drawn = pca.sample(range(300))
    for label in (1, 2):
        given = (labels == label).sum((1, 2, 3, 4)).double()
        got = (drawn == label).sum((1, 2, 3, 4)).double()
        error = 3 * float(given.std()) / 300**0.5
        assert float(got.mean()) == pytest.approx(float(given.mean()), abs=error)
        assert float(got.std()) == pytest.approx(float(given.std()), rel=0.2)


def test_the_average_is_the_mean_image(pca, template, balls):
    images, labels, _ = balls
    mean, known = pca.average()
    torch.testing.assert_close(mean[0], images.mean(0))
    assert abs(int((known == 2).sum()) - float((labels == 2).sum()) / CASES) <= 1
    assert template.average()[0].shape == mean.shape


def test_a_wanted_volume_is_met(model, balls):
    volumes = balls[2]
    wanted = np.quantile(volumes, [0.1, 0.3, 0.5, 0.7, 0.9]).repeat(20)
    _, labels = model.sample(range(100), [{"inner_voxels": float(v)} for v in wanted])
    got = (labels == 2).sum((1, 2, 3, 4)).numpy()
    assert np.corrcoef(wanted, got)[0, 1] > 0.9
    assert np.polyfit(wanted, got, 1)[0] == pytest.approx(1.0, abs=0.25)
    _, free = model.sample(range(100))
    free_voxels = (free == 2).sum((1, 2, 3, 4)).numpy()
    assert abs(np.corrcoef(wanted, free_voxels)[0, 1]) < 0.3  # conditions are what does it


def test_a_model_is_read_as_it_was_written(model):
    content = model.to_bytes()
    again = type(model).read(content)
    assert again.to_bytes() == content
    for one, other in zip(model.sample([3]), again.sample([3]), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match="those of another model"):
        type(model).read(pack_weights({}, {"kind": "prior"}))


def test_registration_explains_most_of_the_difference(template):
    assert template.facts["unexplained"] < 0.3


def test_unseen_cases_are_likelier_than_other_volumes(balls):
    images, labels, _ = balls
    model = PcaGaussian.fit(images[:20], labels[:20], label_classes=3)
    own = model.log_likelihood(images[20:], labels[20:])
    strange = model.log_likelihood(images[20:].flip(2) * 0.5, labels[20:])
    assert bool((own > strange).all())


def test_bad_input_is_named(balls):
    images, labels, volumes = balls
    with pytest.raises(InputError, match="common scale"):
        PcaGaussian.fit(images * 1000)
    with pytest.raises(InputError, match="as many label maps"):
        PcaGaussian.fit(images, labels[1:], label_classes=3)
    with pytest.raises(InputError, match="wrong shape"):
        PcaGaussian.fit(images[0])
    model = PcaGaussian.fit(images, conditions={"volume": volumes}, components=3)
    with pytest.raises(UsageError, match="outside what the model"):
        model.sample([0], [{"volume": 1e6}])
    with pytest.raises(InputError, match="not on the grid"):
        model.log_likelihood(images[..., 1:])
    with pytest.raises(UsageError, match="as many conditions as seeds"):
        model.sample([0, 1], [{}])
