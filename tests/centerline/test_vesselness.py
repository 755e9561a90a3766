"""Tube filters against closed forms, scikit-image and their own symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage import filters

from medpipe.centerline import vesselness as module
from medpipe.centerline.vesselness import CONTRAST, tube_response, vesselness
from medpipe.errors import StepError, UsageError
from medpipe.phantoms.tubes import centred_affine, tube_distance

METHODS = ["frangi", "sato"]


def tubes(points, radius, shape, spacing=(1.0, 1.0, 1.0), parents=None):
    """Return the share of each voxel inside a tube."""
    affine = centred_affine(shape, spacing)
    field, _ = tube_distance(points, radius, affine, shape, parents=parents, reach_mm=3)
    return torch.from_numpy(np.clip(0.5 - field / np.mean(spacing), 0, 1).astype(np.float32))


def ring(shape, spacing=(1.0, 1.0, 1.0), large=12.0, small=2.0):
    turn = np.linspace(0, 2 * np.pi, 60)
    points = np.stack([large * np.cos(turn), large * np.sin(turn), 4 * np.sin(turn)], 1)
    return tubes(points, small, shape, spacing)


def test_a_gaussian_profile_answers_as_its_closed_form():
    # across the axis of exp(-d² / 2 w²): s² w² / (w² + s²)², largest at s = w
    x, y = torch.meshgrid(*[torch.arange(-24.0, 25.0)] * 2, indexing="ij")
    w = 3.0
    image = (100 * torch.exp(-(x**2 + y**2) / (2 * w**2)))[..., None].repeat(1, 1, 9)
    for s in (1.5, 3.0, 5.0):
        peak = vesselness(image, (1, 1, 1), [s * math.sqrt(2)], method="sato")[24, 24, 4]
        assert float(peak) == pytest.approx(100 * s**2 * w**2 / (w**2 + s**2) ** 2, rel=0.02)


@pytest.mark.parametrize("radius", [3.0, 6.0, 12.0])
def test_a_solid_tube_tells_its_radius_and_contrast(radius):
    image = 100 * tubes([[0, 0, -40], [0, 0, 40]], radius, (49, 49, 21))
    radii = [1.5, 3.0, 4.2, 6.0, 8.5, 12.0, 17.0]
    response, at = tube_response(image, (1, 1, 1), radii, method="sato")
    assert float(at[24, 24, 10]) == radius
    assert float(response[24, 24, 10]) * CONTRAST == pytest.approx(100, rel=0.08)
    assert float(tube_response(image, (1, 1, 1), radii)[1][24, 24, 10]) == radius


def test_frangi_is_that_of_scikit_image():
    image = ring((36, 36, 24)) + 0.02 * torch.randn(
        36, 36, 24, generator=torch.Generator().manual_seed(0)
    )
    theirs = filters.frangi(
        image.numpy().astype(float), sigmas=[1.5], black_ridges=False, mode="nearest"
    )
    ours = vesselness(image.double(), (1, 1, 1), [1.5 * math.sqrt(2)]).numpy()
    inner = (slice(7, -7),) * 3
    assert np.abs(ours - theirs)[inner].max() < 0.02
    assert ours.max() > 0.5


def test_sato_orders_voxels_as_scikit_image_and_is_never_above_it():
    # theirs is the geometric mean of the two eigenvalues across, ours the lesser of them
    image = ring((36, 36, 24)).double()
    theirs = filters.sato(image.numpy(), sigmas=[1.5], black_ridges=False, mode="nearest")
    ours = vesselness(image, (1, 1, 1), [1.5 * math.sqrt(2)], method="sato").numpy()
    assert (ours <= theirs * 1.01 + 2e-3).all()
    strong = theirs > 0.2 * theirs.max()
    assert spearmanr(ours[strong], theirs[strong]).statistic > 0.95
    assert ours.max() == pytest.approx(theirs.max(), rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_quarter_turns_and_flips_turn_and_flip_the_answer(method):
    image = ring((34, 34, 34)) + 0.1 * ring((34, 34, 34), large=7)
    plain = vesselness(image, (1, 1, 1), [1.5, 2.5], method=method)
    turned = vesselness(image.permute(2, 0, 1).flip(1), (1, 1, 1), [1.5, 2.5], method=method)
    assert torch.allclose(turned, plain.permute(2, 0, 1).flip(1), atol=2e-3 * float(plain.max()))


@pytest.mark.parametrize("method", METHODS)
def test_a_tube_answers_alike_on_grids_of_other_spacing(method):
    even = tubes([[-30, -12, -9], [30, 12, 9]], 3.0, (65, 49, 49))
    a = vesselness(even, (1, 1, 1), [3.0], method=method)[16:-16, 12:-12, 8:-8:2]
    b = vesselness(even[..., ::2], (1, 1, 2), [3.0], method=method)[16:-16, 12:-12, 4:-4]
    on_tube = a > 0.5 * a.max()
    assert float(((a - b).abs() / a)[on_tube].max()) < 0.04
    assert float((a - b).abs().max()) < 0.07 * float(a.max())


@pytest.mark.parametrize("method", METHODS)
def test_blobs_and_plates_answer_less_than_tubes(method):
    d = torch.meshgrid(*[torch.arange(-16.0, 17.0)] * 3, indexing="ij")
    shapes = {n: torch.exp(-sum(x**2 for x in d[:n]) / 18) for n in (1, 2, 3)}
    # one c for all, else each image is measured by its own strongest edge
    answer = {
        n: float(vesselness(x, (1, 1, 1), [3 * math.sqrt(2)], method=method, c=0.2)[16, 16, 16])
        for n, x in shapes.items()
    }
    assert answer[1] < 0.02 * answer[2]
    assert answer[3] < 0.25 * answer[2]


@pytest.mark.parametrize("method", METHODS)
def test_dark_tubes_are_bright_ones_upside_down(method):
    image = ring((32, 32, 20))
    dark = vesselness(-image, (1, 1, 1), [2.0], method=method, polarity="dark")
    assert torch.equal(dark, vesselness(image, (1, 1, 1), [2.0], method=method))
    wrong_way = vesselness(image, (1, 1, 1), [2.0], method=method, polarity="dark")
    assert float(wrong_way[28, 16, 10]) == 0 < float(dark[28, 16, 10])


def test_wide_scales_on_blocks_agree_with_the_whole_grid(monkeypatch):
    image = tubes([[-40, -5, -5], [40, 9, 6]], 11.0, (60, 60, 45))
    blocks = vesselness(image, (1, 1, 1), [11.0], method="sato")
    monkeypatch.setattr(module, "COARSE_SIGMA", 100.0)
    whole = vesselness(image, (1, 1, 1), [11.0], method="sato")
    off = (blocks - whole).abs()
    assert 0 < float(off[8:-8, 8:-8, 8:-8].max()) < 0.07 * float(whole.max())
    assert float(off.max()) < 0.1 * float(whole.max())


def test_many_radii_are_the_largest_of_each():
    image = ring((30, 30, 20)) + ring((30, 30, 20), large=5, small=1.0)
    each = [vesselness(image, (1, 1, 1), [r], method="sato") for r in (1.0, 2.0)]
    both, at = tube_response(image, (1, 1, 1), [1.0, 2.0], method="sato")
    assert torch.equal(both, torch.maximum(*each))
    assert torch.equal(at == 2.0, each[1] > each[0])


def test_an_even_image_holds_no_tube():
    for method in METHODS:
        response, at = tube_response(torch.full((8, 8, 8), 40.0), (1, 1, 1), [1, 4], method=method)
        assert float(response.max()) < 1e-3
        assert float(at[response == 0].sum()) == 0


@pytest.mark.parametrize(
    ("image", "options", "error", "text"),
    [
        (torch.zeros(8, 8), {}, StepError, "volumes"),
        (torch.zeros(8, 8, 1), {}, StepError, "volumes"),
        (torch.full((4, 4, 4), math.nan), {}, StepError, "NaN"),
        (torch.zeros(4, 4, 4), {"radius_mm": []}, UsageError, "radius_mm"),
        (torch.zeros(4, 4, 4), {"radius_mm": [1, -2]}, UsageError, "radius_mm"),
        (torch.zeros(4, 4, 4), {"method": "hough"}, UsageError, "method"),
        (torch.zeros(4, 4, 4), {"polarity": "grey"}, UsageError, "polarity"),
        (torch.zeros(4, 4, 4), {"alpha": 0.0}, UsageError, "alpha"),
    ],
)
def test_what_cannot_be_filtered_is_refused(image, options, error, text):
    with pytest.raises(error, match=text):
        vesselness(image, (1, 1, 1), **{"radius_mm": [1.0], **options})
