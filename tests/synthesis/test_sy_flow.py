"""Sampling: what each scheduler must give for a population that is known in closed form."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import nn

from medpipe.errors import UsageError
from medpipe.seeds import derive_seed
from medpipe.synthesis.denoiser import Denoiser, DenoiserSettings
from medpipe.synthesis.flow import (
    NOISE_LEVELS,
    _DiffusionSteps,
    sample_latents,
)

MEAN, SD = 0.7, 0.4
LEVELS = DDPMScheduler(**NOISE_LEVELS).alphas_cumprod.double()


class Exact(nn.Module):
    """The best denoiser that there can be for numbers of a normal distribution."""

    stride = 1

    def __init__(self, objective):
        super().__init__()
        self.settings = DenoiserSettings(latent_channels=1, objective=objective)
        self.own = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x, time):
        if self.settings.objective == "flow":
            a, b = 1 - time[0] / 1000, time[0] / 1000
        else:
            a, b = LEVELS[int(time[0])].sqrt(), (1 - LEVELS[int(time[0])]).sqrt()
        rest = (x - a * MEAN) / (a**2 * SD**2 + b**2)
        noise, clean = b * rest, MEAN + SD**2 * a * rest
        return {"flow": clean - noise, "velocity": a * noise - b * clean, "noise": noise}[
            self.settings.objective
        ]


def noise_of(seed, shape):
    made = torch.Generator().manual_seed(derive_seed(seed, "latent"))
    return torch.randn((1, *shape), generator=made).double()


def test_a_flow_goes_where_the_closed_form_says():
    """The flow of a normal distribution carries noise z to mean + sd z."""
    truth = MEAN + SD * noise_of(5, (6, 6, 6))
    errors = []
    for steps in (25, 50, 100):
        x = sample_latents(Exact("flow"), (6, 6, 6), seeds=[5], steps=steps)[0]
        errors.append(float((x - truth).abs().max()))
    assert errors[-1] < 0.02
    # Euler's method is of first order
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("objective", ["velocity", "noise"])
@pytest.mark.parametrize(("scheduler", "steps", "bound"), [("ddim", 100, 0.07), ("pndm", 50, 0.01)])
def test_a_diffusion_goes_backwards_where_the_closed_form_says(objective, scheduler, steps, bound):
    noise = noise_of(5, (6, 6, 6))
    a, v = LEVELS[-1].sqrt(), LEVELS[-1] * SD**2 + 1 - LEVELS[-1]
    truth = MEAN + SD * (noise - a * MEAN) / v.sqrt()
    errors = [
        float(
            (
                sample_latents(
                    Exact(objective), (6, 6, 6), seeds=[5], steps=n, scheduler=scheduler
                )[0]
                - truth
            )
            .abs()
            .max()
        )
        for n in (steps // 2, steps)
    ]
    assert errors[1] < bound
    assert errors[1] < 0.65 * errors[0]


@pytest.mark.parametrize("objective", ["velocity", "noise"])
def test_ancestral_samples_have_the_distribution_of_the_population(objective):
    """4,096 independent numbers: the mean within 4 standard errors; the spread comes near."""
    short = []
    for steps in (25, 100):
        x = sample_latents(Exact(objective), (16, 16, 16), seeds=[1], steps=steps, scheduler="ddpm")
        assert float(x.mean()) == pytest.approx(MEAN, abs=4 * SD / 64)
        short.append(1 - float(x.std()) / SD)
    # the smaller of the two variances that a step may have is too small when steps are long
    assert 0 < short[1] < 0.12
    assert short[1] < short[0] / 2


@pytest.mark.parametrize("objective", ["velocity", "noise"])
def test_an_ancestral_step_is_that_of_monai(objective):
    way = _DiffusionSteps("ddpm", 10, objective)
    way.scheduler.prediction_type = {"velocity": "v_prediction", "noise": "epsilon"}[objective]
    x, predicted = torch.randn(2, 1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for k in (0, 4, 9):
        noise = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(k))
        theirs = way.scheduler.step(
            predicted[None], way.places[k], x[None], generator=torch.Generator().manual_seed(k)
        )[0]
        ours = way.step(k, predicted[None], x[None], noise)
        assert torch.allclose(theirs, ours, atol=1e-5)


def settings(**how):
    base = {
        "latent_channels": 2, "channels": (8, 16), "attention": (False, True), "groups": 4,
        "head_channels": 8, "condition_width": 8,
    }  # fmt: skip
    return DenoiserSettings(**(base | how))


def lively(denoiser, seed=0):
    """Give all weights values: MONAI begins with zeros in the last layers."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in denoiser.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=made) / p[0].numel() ** 0.5)
    return denoiser.eval()


@pytest.mark.parametrize(("scheduler", "objective"), [("rflow", "flow"), ("ddpm", "noise")])
def test_a_latent_does_not_depend_on_the_others_of_its_batch(scheduler, objective):
    denoiser = lively(Denoiser(settings(conditions=1, objective=objective)))
    values = torch.tensor([[0.3], [-0.8], [0.1]])
    how = {"steps": 3, "scheduler": scheduler, "guidance": 1.5}
    told = []
    together = sample_latents(
        denoiser, (4, 3, 5), values, seeds=[4, 9, 4], progress=lambda *at: told.append(at), **how
    )
    alone = sample_latents(denoiser, (4, 3, 5), values[1:2], seeds=[9], **how)
    assert torch.allclose(together[1:2], alone, atol=1e-5 * float(alone.abs().max()))
    assert not torch.allclose(together[0], together[2], atol=1e-3)  # the same noise, told apart
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert not denoiser.training


def test_guidance_exaggerates_what_the_condition_changes():
    denoiser = lively(Denoiser(settings(conditions=1)))
    values, hidden = torch.tensor([[0.9]]), torch.tensor([[False]])
    one = {"seeds": [2], "steps": 1}
    told = sample_latents(denoiser, (4, 4, 4), values, **one)
    untold = sample_latents(denoiser, (4, 4, 4), values, hidden, **one)
    # one step is linear in the prediction
    for guidance in (0.0, 0.5, 3.0):
        made = sample_latents(denoiser, (4, 4, 4), values, guidance=guidance, **one)
        assert torch.allclose(made, untold + guidance * (told - untold), atol=1e-4)


def test_what_does_not_fit_is_said_in_one_line():
    flow, noise = Denoiser(settings()), Denoiser(settings(objective="noise"))
    wrong = [
        (flow, {"scheduler": "ddim"}, "does not fit the denoiser; expected rflow, got ddim"),
        (noise, {}, "expected ddim, ddpm or pndm, got rflow"),
        (flow, {"scheduler": "euler"}, "unknown scheduler"),
        (flow, {"steps": 0}, "1 to 1000"),
        (noise, {"steps": 3, "scheduler": "pndm"}, "4 to 1000"),
        (flow, {"seeds": []}, "one seed for each latent"),
        (flow, {"values": torch.zeros(2, 0)}, "one seed for each latent"),
    ]
    for denoiser, how, text in wrong:
        with pytest.raises(UsageError, match=text):
            sample_latents(denoiser, (4, 4, 4), **({"seeds": [1]} | how))
    with pytest.raises(UsageError, match="three extents"):
        sample_latents(flow, (4, 4), seeds=[1])


def test_a_flow_may_begin_with_a_gaussian_of_the_trained_latents():
    torch.manual_seed(0)
    denoiser = Denoiser(settings(grid=(2, 2, 2), conditions=0, directions=3, begin=0.3)).eval()
    along = torch.randn(denoiser.directions.shape)
    denoiser.directions.copy_(along)
    denoiser.spread.fill_(2.0)
    denoiser.center.fill_(5.0)
    drawn = sample_latents(denoiser, (2, 2, 2), seeds=range(4000), steps=10)
    # MONAI's last layer begins with zeros: nothing moves, and the Gaussian is seen as it is
    found = torch.cov(((drawn - 5.0) / 2.0).flatten(1).T)
    flat = along.flatten(1)
    wanted = 0.7**2 * flat.T @ flat + 0.3**2 * torch.eye(flat.shape[1])
    assert float((found - wanted).abs().max()) < 0.12 * float(wanted.abs().max())
    assert float((drawn.mean(0) - 5.0).abs().max()) < 0.2
    told = []
    sample_latents(denoiser, (2, 2, 2), seeds=[1], steps=10, progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]  # what the Gaussian saves is not evaluated
