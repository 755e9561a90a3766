"""The surface of the hold-out against training and testing each pair for itself."""

from __future__ import annotations

import math

import pytest
import torch
from perk_problem import PRIORS, PROTOCOL, SIGMA

from medpipe.errors import UsageError
from medpipe.qmri.hold_out import _choose
from medpipe.qmri.perk import hold_out, train_perk
from medpipe.qmri.priors import Uniform
from medpipe.qmri.training import make_recipe, relative_score

SIZES = {"features": 60, "samples": 1500}
SCALES = (0.4, 1.0, 2.5)
RIDGES = (1e-12, 1e-8, 1e-4, 1.0)


@pytest.mark.parametrize(
    "kind", [{}, {"normalize": False, "logarithm": False}], ids=["default", "published"]
)
def test_every_pair_has_the_score_of_its_own_training(kind):
    priors = PRIORS | {"m0": Uniform(0.3, 1.0)}
    found = hold_out(
        PROTOCOL,
        priors,
        SIGMA,
        test_samples=700,
        length_scales=SCALES,
        ridges=RIDGES,
        seed=3,
        **SIZES,
        **kind,
    )
    recipe = make_recipe(PROTOCOL, priors, SIGMA, seed=3, **kind)
    test = recipe.draw(700, "test")
    scores = torch.zeros(3, 4, dtype=torch.float64)
    for i, length_scale in enumerate(SCALES):
        for j, ridge in enumerate(RIDGES):
            model = train_perk(
                PROTOCOL,
                priors,
                SIGMA,
                length_scale=length_scale,
                ridge=ridge,
                seed=3,
                **SIZES,
                **kind,
            )
            angles = test.q @ model.features.frequencies + model.features.phases
            values = recipe.from_targets(angles.cos() @ model.readout.T + model.offset)
            total = 0.0
            for name in ("t1_s", "t2_s"):
                truth = test.samples.values[name]
                column = values[:, recipe.regressed.index(name)]
                total = total + ((column - truth) / truth) ** 2 / 2
            scores[i, j] = total.mean().sqrt()
    assert torch.allclose(found.surface, scores, rtol=1e-5)
    i, j = divmod(int(scores.argmin()), 4)
    assert (found.length_scale, found.ridge) == (SCALES[i], RIDGES[j])
    assert found.score == pytest.approx(float(scores.min()), rel=1e-5)
    assert scores.max() > 1.3 * scores.min()


def test_of_equal_scores_the_largest_ridge_is_taken():
    ridges = (1e-12, 1e-9, 1e-6, 1e-3)
    near = torch.tensor([[0.1000, 0.1001, 0.2, 0.3], [0.2, 0.1004, 0.1003, 0.1006]])
    assert _choose(near, ridges) == (1, 2)
    assert _choose(near.flip(0), ridges) == (0, 2)
    assert _choose(torch.tensor([[math.nan, 0.3, math.inf, math.nan]]), ridges) == (0, 1)


def test_training_takes_what_the_hold_out_finds():
    model = train_perk(PROTOCOL, PRIORS, SIGMA, **SIZES)
    found = hold_out(
        PROTOCOL,
        PRIORS,
        SIGMA,
        test_samples=SIZES["samples"],
        length_scales=tuple(2.0 ** (i / 2) for i in range(-4, 4)),
        **SIZES,
    )
    assert (model.length_scale, model.ridge) == (found.length_scale, found.ridge)
    assert model.score == found.score
    given = train_perk(PROTOCOL, PRIORS, SIGMA, length_scale=0.7, **SIZES)
    assert given.length_scale == 0.7
    assert given.score is not None
    both = train_perk(PROTOCOL, PRIORS, SIGMA, length_scale=0.7, ridge=1e-5, **SIZES)
    assert both.score is None


def test_more_noise_is_a_worse_score():
    settings = {"length_scales": (0.7,), "ridges": (1e-9, 1e-6), "test_samples": 500, **SIZES}
    scores = [hold_out(PROTOCOL, PRIORS, s * SIGMA, **settings).score for s in (1, 4)]
    assert scores[1] > 2 * scores[0]


def test_the_score_is_the_relative_error_of_the_times():
    truth = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    found = truth * torch.tensor([[1.1, 1.0], [1.0, 0.7]])
    expected = math.sqrt((0.5 * 0.01 + 0.5 * 0.09) / 2)
    assert float(relative_score(found, truth, (0.5, 0.5))) == pytest.approx(expected, rel=1e-5)
    recipe = make_recipe(PROTOCOL, PRIORS, SIGMA, normalize=False)
    assert recipe.regressed == ("m0", "t1_s", "t2_s")
    assert recipe.weights == (0, 0.5, 0.5)


@pytest.mark.parametrize("grid", [{"length_scales": ()}, {"ridges": ()}, {"ridges": (0.0,)}])
def test_a_grid_that_is_none_is_refused(grid):
    with pytest.raises(UsageError, match="grid of the hold-out"):
        hold_out(PROTOCOL, PRIORS, SIGMA, test_samples=10, **SIZES, **grid)
