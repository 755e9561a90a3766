"""Priors: draws against the closed form, supports, records."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpipe.errors import UsageError
from medpipe.qmri.priors import (
    Empirical,
    Fixed,
    LogUniform,
    Prior,
    TruncatedLogNormal,
    TruncatedNormal,
    Uniform,
    default_priors,
    prior_from_dict,
)
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.quantities import QUANTITIES
from medpipe.qmri.signals import MODELS

N = 200_000
KAPPA = (1.0, 0.2, 0.5, 1.3)
PEERS = {
    Uniform(0.3, 2.0): scipy.stats.uniform(0.3, 1.7),
    LogUniform(0.3, 4.5): scipy.stats.loguniform(0.3, 4.5),
    TruncatedNormal(*KAPPA): scipy.stats.truncnorm(-2.5, 1.5, 1.0, 0.2),
    TruncatedNormal(0.2, 0.1, 0.5, 1.0): scipy.stats.truncnorm(3, 8, 0.2, 0.1),
}
ALL = (*PEERS, TruncatedLogNormal(*KAPPA), Fixed(0.9), Empirical((0.7, 1.0, 1.1)))


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("prior", PEERS)
def test_quantiles_are_those_of_the_distribution(prior):
    p = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    np.testing.assert_allclose(prior.quantile(p), PEERS[prior].ppf(p.numpy()), rtol=1e-9)


def test_quantiles_of_the_log_normal_are_those_of_its_logarithm():
    p = torch.linspace(0, 1, 11, dtype=torch.float64)
    peer = scipy.stats.truncnorm(math.log(0.5) / 0.2, math.log(1.3) / 0.2, 0.0, 0.2)
    out = TruncatedLogNormal(*KAPPA).quantile(p)
    np.testing.assert_allclose(out, np.exp(peer.ppf(p.numpy())), rtol=1e-9)


@pytest.mark.parametrize("prior", PEERS)
def test_draws_follow_the_distribution(prior):
    drawn = prior.sample(N, generator())
    assert scipy.stats.kstest(drawn.numpy(), PEERS[prior].cdf).pvalue > 1e-3
    np.testing.assert_allclose(drawn.mean(), PEERS[prior].mean(), rtol=5e-3)


@pytest.mark.parametrize("prior", ALL, ids=lambda p: p.kind)
def test_draws_depend_on_the_generator_alone(prior):
    one = prior.sample(1000, generator())
    assert one.dtype == torch.float64
    assert one.shape == (1000,)
    torch.rand(7)
    assert torch.equal(prior.sample(1000, generator()), one)
    if prior.support[0] < prior.support[1]:
        assert not torch.equal(prior.sample(1000, generator(4)), one)


@pytest.mark.parametrize("prior", ALL, ids=lambda p: p.kind)
def test_draws_stay_in_the_support(prior):
    low, high = prior.support
    drawn = prior.sample(20_000, generator())
    assert low <= drawn.min() <= drawn.max() <= high
    ends = prior.quantile(torch.tensor([0.0, 1.0], dtype=torch.float64))
    np.testing.assert_allclose(ends, [low, high], rtol=1e-7)
    assert low <= ends.min() <= ends.max() <= high


@pytest.mark.parametrize("prior", ALL, ids=lambda p: p.kind)
def test_a_record_gives_the_prior_back(prior):
    record = json.loads(json.dumps(prior.to_dict()))
    assert prior_from_dict(record) == prior
    assert Prior.from_dict(record) == prior


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e6))
def test_any_range_is_kept(low, factor):
    p = torch.linspace(0, 1, 33, dtype=torch.float64)
    for prior in (Uniform(low, low * factor), LogUniform(low, low * factor)):
        drawn = prior.quantile(p)
        assert (torch.diff(drawn) >= 0).all()
        assert low <= drawn.min() <= drawn.max() <= low * factor
        assert prior_from_dict(json.loads(json.dumps(prior.to_dict()))) == prior


def test_the_draws_of_a_map_have_its_distribution():
    rng = np.random.default_rng(0)
    measured = rng.gamma(60, 1 / 60, (40, 50, 30))
    measured[:20] = 0
    measured[20, 0] = np.nan
    kept = measured[np.isfinite(measured) & (measured > 0)]
    prior = Empirical.of(torch.from_numpy(measured.astype(np.float32)))
    assert len(prior.values) == 129
    np.testing.assert_allclose(prior.support, [kept.min(), kept.max()], rtol=1e-6)
    np.testing.assert_allclose(prior.values, np.quantile(kept, np.linspace(0, 1, 129)), rtol=1e-6)
    drawn = prior.sample(N, generator()).numpy()
    assert scipy.stats.ks_2samp(drawn, kept).statistic < 0.008
    np.testing.assert_allclose(drawn.mean(), kept.mean(), rtol=5e-3)


def test_few_measured_values_are_interpolated():
    prior = Empirical((1.2, 0.8, 1.0))
    p = torch.tensor([0, 0.25, 0.5, 0.9, 1.0])
    np.testing.assert_allclose(prior.quantile(p), [0.8, 0.9, 1.0, 1.16, 1.2], rtol=1e-6)
    assert Empirical((0.9,)).quantile(p).tolist() == [0.9] * 5
    assert Empirical.of(torch.tensor([0.5, 0.0])).support == (0.5, 0.5)
    with pytest.raises(UsageError, match="the map has no value above 0"):
        Empirical.of(torch.zeros(5))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Uniform(2.0, 1.0),
        lambda: Uniform(0.0, math.inf),
        lambda: Uniform(math.nan, 1.0),
        lambda: LogUniform(0.0, 1.0),
        lambda: TruncatedNormal(1.0, 0.0, 0.5, 1.5),
        lambda: TruncatedNormal(1.0, 0.01, 1.5, 2.0),
        lambda: TruncatedLogNormal(1.0, 0.2, -0.5, 1.5),
        lambda: TruncatedLogNormal(1.0, 0.2, 1.5, 0.5),
        lambda: Fixed(math.nan),
        lambda: Empirical(()),
        lambda: Empirical((1.0, math.inf)),
    ],
)
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(UsageError, match="the numbers of the prior are wrong"):
        wrong()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "normal"}, r"prior: unknown kind of prior; expected uniform \| log_uniform"),
        ([], "unknown kind"),
        ({"kind": ["uniform"]}, "unknown kind"),
        ({"kind": "uniform", "low": 1}, r"\(uniform\): the fields .* expected high, low"),
        ({"kind": "uniform", "low": 1, "high": 2, "mid": 3}, "the fields of the prior"),
        ({"kind": "uniform", "low": "1", "high": 2}, "a field is not a number"),
        ({"kind": "uniform", "low": [1], "high": 2}, "a field is not a number"),
        ({"kind": "empirical", "values": 1.0}, "a field is not a number"),
        ({"kind": "empirical", "values": [True]}, "a field is not a number"),
        ({"kind": "uniform", "low": 2, "high": 1}, "low below high"),
    ],
)
def test_wrong_records_are_refused(record, message):
    with pytest.raises(UsageError, match=message):
        prior_from_dict(record)


def test_a_generator_of_another_device_is_refused():
    class Elsewhere:
        device = torch.device("meta")

    with pytest.raises(UsageError, match="the generator is on another device"):
        Uniform(0, 1).sample(3, Elsewhere())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_default_priors_within_what_is_plausible(name):
    times = {"echo_time_s": 0.01, "flip_angle_deg": 10, "repetition_time_s": 0.03}
    times |= {"inversion_time_s": 0.5, "repetition_time_preparation_s": 5.0, "number_shots": 20}
    if name == "mp2rage":
        times["inversion_time_s"] = [0.7, 2.5]
    record = {k: times[k] for k in MODELS[name].required}
    protocol = Protocol.from_dict({"acquisitions": [{"model": name} | record]})
    priors = default_priors(protocol)
    assert tuple(priors) == (*protocol.latents, *protocol.knowns)
    for n, prior in priors.items():
        low, high = QUANTITIES[n].plausible
        assert low <= prior.support[0] < prior.support[1] <= high
    if "kappa" in protocol.latents:
        assert priors["kappa"].support[1] == 1.0
