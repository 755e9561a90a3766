"""Training of a denoiser: draws undone by hand, a population in closed form, the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from medpipe.errors import UsageError
from medpipe.synthesis import denoiser_training
from medpipe.synthesis.conditions import Conditions
from medpipe.synthesis.denoiser import Denoiser, DenoiserSettings
from medpipe.synthesis.denoiser_training import (
    DenoiserTraining,
    LatentDraws,
    denoising_errors,
    train_denoiser,
)
from medpipe.synthesis.flow import NOISE_LEVELS, sample_latents
from medpipe.synthesis.latents import Latents
from medpipe.train import LoopSettings

LEVELS = DDPMScheduler(**NOISE_LEVELS).alphas_cumprod.double()


def draws(objective, **how):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 2, 8, 8, 8, generator=generator)
    latents = Latents(mean, torch.full_like(mean, 0.5), torch.ones(1, 1), torch.ones(1, 1) > 0)
    return LatentDraws(latents, objective, **how), mean[0]


@pytest.mark.parametrize("objective", ["flow", "velocity", "noise"])
def test_a_draw_is_a_mixture_and_its_target_undoes_it(objective):
    data, mean = draws(objective)
    own = []
    for seed in range(20):
        data.set_random_state(seed=seed)
        inputs, target = data[0]
        time, x = inputs["time"], inputs["latent"]
        if objective == "flow":
            clean = x + time / 1000 * target
        else:
            a, b = LEVELS[int(time)].sqrt().float(), (1 - LEVELS[int(time)]).sqrt().float()
            clean = (x - b * target) / a if objective == "noise" else a * x - b * target
        own.append((clean - mean).std())
    # what is left is the latent's own noise, drawn anew
    assert torch.stack(own).mean() == pytest.approx(0.5, abs=0.02)
    data.set_random_state(seed=19)
    again = data[0]
    assert torch.equal(again[0]["latent"], x)
    assert torch.equal(again[1], target)


def test_conditions_are_hidden_as_often_as_was_asked():
    data, _ = draws("flow", hide=0.3, times="logit-normal")
    data.set_random_state(seed=0)
    seen = [data[0][0] for _ in range(400)]
    hidden = sum(not bool(s["present"]) for s in seen) / 400
    assert hidden == pytest.approx(0.3, abs=4 * (0.21 / 400) ** 0.5)
    times = torch.stack([s["time"] for s in seen]) / 1000
    logits = torch.logit(times)
    assert float(logits.mean()) == pytest.approx(0, abs=0.2)
    assert float(logits.std()) == pytest.approx(1, abs=0.15)


def population(n, seed):
    """Latents whose mean is the condition: 0.8 times it, with a spread of 0.3."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, 1, generator=generator) * 2 - 1
    mean = 0.8 * values[:, :, None, None, None] + 0.3 * torch.randn(
        n, 1, 2, 2, 2, generator=generator
    )
    return Latents(mean, torch.full_like(mean, 0.01), values, torch.ones_like(values) > 0, "abc")


TRAINING = LoopSettings(
    iterations=150, batch_size=24, learning_rate=1e-2, ema_decay=0.97, validate_every=75,
    weight_decay=0.0,
)  # fmt: skip


def tiny():
    return DenoiserSettings(
        latent_channels=1, channels=(16,), attention=(False,), groups=4, head_channels=8,
        conditions=1, conditioning="embedding", condition_width=16,
    )  # fmt: skip


def test_training_learns_a_population_and_what_it_is_told():
    denoiser = train_denoiser(
        population(256, 0), tiny(), TRAINING, validation=population(48, 1), device="cpu"
    )
    assert denoiser.autoencoder == "abc"
    rows = denoiser.facts["history"]
    assert rows[-1]["metric"] < rows[0]["metric"] * 1.05
    values = torch.linspace(-0.9, 0.9, 60)[:, None]
    x = sample_latents(denoiser, (2, 2, 2), values, seeds=range(60), steps=15)
    means = x.mean((1, 2, 3, 4))
    slope = float((means * values[:, 0]).sum() / (values**2).sum())
    assert slope == pytest.approx(0.8, abs=0.12)
    rest = (x - 0.8 * values[:, :, None, None, None]).std()
    assert float(rest) == pytest.approx(0.3, abs=0.1)


def test_a_killed_training_ends_with_the_bits_of_a_whole_one(tmp_path):
    how = LoopSettings(iterations=8, batch_size=4, checkpoint_every=3, validate_every=4)

    class StopError(Exception):
        pass

    def stop(at):
        if at.iteration == 5:
            raise StopError

    data = population(16, 0)
    whole = train_denoiser(data, tiny(), how, validation=data, device="cpu")
    file = tmp_path / "run.pt"
    with pytest.raises(StopError):
        train_denoiser(
            data, tiny(), how, validation=data, device="cpu", checkpoint=file, progress=stop
        )
    again = train_denoiser(data, tiny(), how, validation=data, device="cpu", checkpoint=file)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_each_condition_is_hidden_alone_but_no_augmentation():
    told = Conditions.fit(
        {"age": [1, 2, 3], "kind": ["a", "b", "c"], "shift": [0, 1, -1]},
        {"age": "continuous", "kind": "category", "shift": "augmentation"},
    )
    mean = torch.zeros(1, 1, 2, 2, 2)
    latents = Latents(mean, mean + 1, torch.zeros(1, 5), torch.ones(1, 5) > 0)
    data = LatentDraws(latents, "flow", hide=0.0, hide_each=0.4, conditions=told)
    data.set_random_state(seed=0)
    seen = torch.stack([data[0][0]["present"] for _ in range(400)])
    assert bool(seen[:, 4].all())
    assert torch.equal(seen[:, 1], seen[:, 2])
    assert torch.equal(seen[:, 1], seen[:, 3])
    shares = 1 - seen[:, [0, 1]].float().mean(0)
    assert shares == pytest.approx(torch.tensor([0.4, 0.4]), abs=4 * (0.24 / 400) ** 0.5)
    assert float((~seen[:, 0] & ~seen[:, 1]).float().mean()) == pytest.approx(0.16, abs=0.08)


def test_what_validates_is_always_the_same_and_spread_over_all_times():
    data = LatentDraws(population(3, 0), "flow", hide=0.0, draws=5)
    assert len(data) == 15
    times = torch.stack([data[n][0]["time"] for n in range(15)])
    assert torch.equal((times / 200).long(), torch.arange(5).repeat(3))
    constant = replace(
        TRAINING, iterations=4, validate_every=1, ema_decay=None, learning_rate=1e-12
    )
    how = {"validation": population(8, 1), "validation_draws": 4, "device": "cpu"}
    rows = train_denoiser(population(16, 0), tiny(), constant, **how).facts["history"]
    assert len({round(row["metric"], 6) for row in rows}) == 1
    assert len({round(row["loss"], 6) for row in rows}) == 4  # what trains is drawn anew


@pytest.mark.parametrize("times", ["uniform", "logit-normal"])
def test_times_after_drawing_begins_are_not_learned(times):
    whole, early = (
        [inputs for inputs, _ in _seeded(draws("flow", times=times, until=until)[0])]
        for until in (1.0, 0.3)
    )
    assert max(one["time"] for one in whole) > 800
    for one, other in zip(whole, early, strict=True):
        assert float(other["time"]) == pytest.approx(0.3 * float(one["time"]))


def _seeded(data):
    for seed in range(60):
        data.set_random_state(seed=seed)
        yield data[0]


def test_a_denoiser_learns_and_is_measured_where_it_draws(monkeypatch):
    seen = []

    class Watched(LatentDraws):
        def __getitem__(self, index):
            made = super().__getitem__(index)
            seen.append(float(made[0]["time"]))
            return made

    monkeypatch.setattr(denoiser_training, "LatentDraws", Watched)
    settings = replace(tiny(), grid=(2, 2, 2), directions=2, begin=0.4)
    short = replace(TRAINING, iterations=4, validate_every=2)
    denoiser = train_denoiser(
        population(16, 0), settings, short, validation=population(4, 1), validation_draws=4,
        device="cpu",
    )  # fmt: skip
    assert 300 < max(seen) <= 400
    assert denoiser.facts["until"] == 0.4
    seen.clear()
    denoising_errors(denoiser, population(8, 2), draws=4)
    assert 300 < max(seen) <= 400


def test_the_error_of_a_denoiser_is_that_of_the_closed_form():
    """One that always says 0 errs by the variance of latent and noise; conditions do not help."""
    denoiser = train_denoiser(
        population(8, 0), tiny(), replace(TRAINING, iterations=1, validate_every=1), device="cpu"
    )
    with torch.no_grad():
        for value in denoiser.parameters():
            value.zero_()
    data = population(400, 2)
    told, untold = denoising_errors(denoiser, data, draws=2)
    assert torch.equal(told, untold)
    truth = (data.mean.square() + 0.01**2).mean((1, 2, 3, 4)) + 1
    assert float((told - truth).mean()) == pytest.approx(
        0, abs=4 * float((told - truth).std()) / 20
    )
    again = denoising_errors(denoiser, data, draws=2)[0]
    assert torch.equal(told, again)


def test_each_place_has_a_mean_and_a_spread_of_its_own():
    generator = torch.Generator().manual_seed(3)
    spread = torch.rand(1, 2, 2, 2, generator=generator) + 0.2
    center = 5 * torch.randn(1, 2, 2, 2, generator=generator)
    mean = center + spread * torch.randn(4000, 1, 2, 2, 2, generator=generator)
    nothing = torch.zeros(4000, 0)
    data = Latents(mean, torch.full_like(mean, 0.5), nothing, nothing > 0, "abc")
    settings = replace(tiny(), conditions=0, grid=(2, 2, 2))
    once = replace(TRAINING, iterations=1, validate_every=1)
    denoiser = train_denoiser(data, settings, once, device="cpu")
    wanted = (spread**2 + 0.25).sqrt()
    assert torch.allclose(denoiser.center, center, atol=0.1)
    assert torch.allclose(denoiser.spread, wanted, rtol=0.05)
    # what it errs by is measured with these taken out: noise and latent have variance 1
    with torch.no_grad():
        denoiser.unet.out[-1].conv.weight.zero_()
        denoiser.unet.out[-1].conv.bias.zero_()
    assert float(denoising_errors(denoiser, data.part(range(400)), draws=1)[0].mean()) == (
        pytest.approx(2, abs=0.1)
    )
    # a network that says 0 leaves the noise as it is: it is put in its place
    x = sample_latents(denoiser, (2, 2, 2), seeds=range(2000), steps=2)
    assert torch.allclose(x.mean(0), denoiser.center, atol=0.1)
    assert torch.allclose(x.std(0), denoiser.spread, rtol=0.1)
    assert torch.equal(Denoiser.from_bytes(denoiser.to_bytes()).spread, denoiser.spread)
    with pytest.raises(UsageError, match=r"latents of one size; expected \(2, 2, 2\)"):
        sample_latents(denoiser, (2, 2, 4), seeds=[1])
    with pytest.raises(UsageError, match="not on the grid of the settings"):
        train_denoiser(data, replace(settings, grid=(2, 2, 4)), once, device="cpu")


def test_what_is_linear_in_the_conditions_needs_no_network():
    data = population(4000, 5)
    settings = replace(tiny(), grid=(2, 2, 2))
    once = replace(TRAINING, iterations=1, validate_every=1)
    denoiser = train_denoiser(data, settings, once, device="cpu")
    # values are spread evenly from -1 to 1: their variance is a third, the ridge 0.01
    truth = 0.8 / (1 + 3 * 0.01)
    assert torch.allclose(denoiser.slopes, torch.tensor(truth), atol=0.04)
    with torch.no_grad():
        denoiser.unet.out[-1].conv.weight.zero_()
        denoiser.unet.out[-1].conv.bias.zero_()
    values, seeds = torch.linspace(-1, 1, 5)[:, None], [1] * 5
    told = sample_latents(denoiser, (2, 2, 2), values, seeds=seeds, steps=1)
    slopes = (told[1:] - told[:-1]) / 0.5
    assert torch.allclose(slopes, denoiser.slopes[0].expand(4, -1, -1, -1, -1), atol=1e-5)
    untold = sample_latents(denoiser, (2, 2, 2), values, values > 9, seeds=seeds, steps=1)
    ignored = sample_latents(denoiser, (2, 2, 2), values, seeds=seeds, steps=1, guidance=0.0)
    assert torch.allclose(untold, told[2:3].expand_as(untold), atol=1e-5)
    assert torch.allclose(ignored, untold, atol=1e-5)
    # told, what is left of the latent has the spread 0.3; untold it has all of it
    some = data.part(range(1000))
    one, two = denoising_errors(denoiser, some, draws=1)
    scale = denoiser.spread.square().mean()
    assert float(one.mean()) == pytest.approx(1 + float(0.09 / scale), abs=0.1)
    assert float(two.mean()) == pytest.approx(1 + float((0.09 + 0.64 / 3) / scale), abs=0.1)


def test_the_directions_are_those_that_latents_were_drawn_along(tmp_path):
    generator = torch.Generator().manual_seed(4)
    along = torch.randn(2, 8, generator=generator)
    moves = torch.randint(-1, 2, (3000, 1), generator=generator).float()
    left = torch.randn(3000, 2, generator=generator) @ along
    left = torch.where(moves != 0, 100 * left.flip(1), left)  # moved volumes say nothing
    mean = left.reshape(-1, 1, 2, 2, 2)
    data = Latents(mean, torch.zeros_like(mean), moves, moves < 9, "abc")
    kinds = {"shift_i_voxels": "augmentation"}
    conditions = Conditions.fit({"shift_i_voxels": moves[:, 0].tolist()}, kinds)
    settings = replace(tiny(), grid=(2, 2, 2), directions=4, begin=0.5)
    once = replace(TRAINING, iterations=2, validate_every=1)
    file = tmp_path / "run.pt"
    told = {"conditions": conditions, "device": "cpu", "checkpoint": file}
    denoiser = train_denoiser(data, settings, once, **told)
    found = (denoiser.directions * denoiser.spread).flatten(1)
    wanted = along.T @ along
    assert float((found.T @ found - wanted).abs().max()) < 0.1 * float(wanted.abs().max())
    lengths = found.square().sum(1)
    assert lengths[1] > 1e6 * lengths[2]  # there were two
    # directions are no matter of the training: a checkpoint goes on with more or less of them
    other = train_denoiser(data, replace(settings, directions=1), once, **told)
    weights = zip(denoiser.unet.parameters(), other.unet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    # when drawing begins is: later times are not learned
    with pytest.raises(UsageError, match="checkpoint"):
        train_denoiser(data, replace(settings, begin=0.3), once, **told)


def test_a_checkpoint_of_other_latents_is_refused(tmp_path):
    how = LoopSettings(iterations=2, batch_size=4)
    one, two = population(8, 0), population(8, 1)
    file = tmp_path / "run.pt"
    train_denoiser(one, tiny(), how, device="cpu", checkpoint=file)
    with pytest.raises(UsageError, match=r"other settings.*got latents"):
        train_denoiser(two, tiny(), how, device="cpu", checkpoint=file)
    with pytest.raises(UsageError, match=r"other settings.*got hide"):
        train_denoiser(one, tiny(), how, hide=0.3, device="cpu", checkpoint=file)


def test_what_does_not_fit_is_said_in_one_line():
    wide = replace(tiny(), latent_channels=2, conditions=0)
    with pytest.raises(UsageError, match="expected 2 channels, 0 conditions, got 1 and 1"):
        train_denoiser(population(4, 0), wide, TRAINING, device="cpu")
    with pytest.raises(UsageError, match="hide"):
        draws("flow", hide=1.5)
    with pytest.raises(UsageError, match="unknown times"):
        draws("flow", times="cubic")
    with pytest.raises(UsageError, match="hide_each needs to know"):
        draws("flow", hide_each=0.1)
    for bad in ({"hide": 1.0}, {"validation_draws": 0}, {"times": "cubic"}, {"iterations": 0}):
        with pytest.raises(UsageError):
            DenoiserTraining(**bad)
