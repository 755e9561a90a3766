"""Least squares against scipy, closed forms, Monte Carlo and the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from medpipe.errors import InputError, UsageError
from medpipe.qmri import least_squares
from medpipe.qmri.estimate import Flag
from medpipe.qmri.least_squares import NonlinearLeastSquares
from medpipe.qmri.protocol import Acquisition, Protocol
from medpipe.qmri.uncertainty import crlb

KNOWN_MODELS = {
    "vfa": (Acquisition("spgr", {"flip_angle_deg": (3, 9, 20), "repetition_time_s": 0.02}),),
    "dess": (
        Acquisition(
            "spgr",
            {"flip_angle_deg": (15, 5), "repetition_time_s": 0.0122, "echo_time_s": 0.00467},
        ),
        Acquisition(
            "dess", {"flip_angle_deg": 30, "repetition_time_s": 0.0175, "echo_time_s": 0.00467}
        ),
    ),
    "ir": (
        Acquisition(
            "inversion_recovery",
            {"inversion_time_s": (0.05, 0.2, 0.5, 1.1, 2.4), "repetition_time_s": 4.0},
        ),
    ),
    "mese": (Acquisition("spin_echo", {"echo_time_s": (0.01, 0.03, 0.06, 0.12)}),),
    "epg": (
        Acquisition(
            "epg_spin_echo",
            {"echo_time_s": tuple(0.01 * i for i in range(1, 9)), "refocusing_angle_deg": 150},
        ),
    ),
    "megre": (Acquisition("gradient_echo", {"echo_time_s": (0.005, 0.015, 0.03)}),),
    "mp2rage": (
        Acquisition(
            "mp2rage",
            {
                "inversion_time_s": (0.7, 2.5),
                "flip_angle_deg": (4, 5),
                "repetition_time_s": 0.0067,
                "repetition_time_preparation_s": 6.0,
                "number_shots": 160,
            },
            False,
        ),
    ),
}
RANGES = {
    "t1_s": (0.2, 4.0),
    "t2_s": (0.02, 0.4),
    "t2star_s": (0.01, 0.1),
    "inversion_efficiency": (0.8, 1.0),
    "kappa": (0.7, 1.3),
}


def protocol(name: str) -> Protocol:
    return Protocol(KNOWN_MODELS[name])


def truth(p: Protocol, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Return random values (count,) of all latents and knowns of a protocol."""
    rng = np.random.default_rng(seed)
    out = {"m0": torch.tensor(rng.uniform(200, 3000, count))}
    for name in (*p.latents[1:], *p.knowns):
        low, high = RANGES[name]
        out[name] = torch.tensor(np.exp(rng.uniform(np.log(low), np.log(high), count)))
    return out


def known_of(p: Protocol, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: values[n] for n in p.knowns}


def relative(found: torch.Tensor, true: torch.Tensor) -> float:
    return float(((found.double() - true) / true).abs().max())


@pytest.mark.parametrize("name", KNOWN_MODELS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-5), (torch.float32, 5e-3)])
def test_noiseless_signals_give_the_values_they_were_made_of(name, dtype, within):
    p = protocol(name)
    values = truth(p, 300, 1)
    found = NonlinearLeastSquares(p, dtype=dtype).estimate(p.signal(values), known_of(p, values))
    for latent in p.latents:
        assert relative(found.values[latent], values[latent]) < within, latent
    assert not found.quality.any()


def scipy_fit(p, signal, known, start, bounds):
    """Return M0 and latents of one voxel by scipy, all of them ordinary unknowns."""
    names = p.latents[1:]
    scale = float(np.abs(signal).max())

    def residual(x):
        rows = {n: torch.tensor(v, dtype=torch.float64) for n, v in zip(names, x[1:], strict=True)}
        model = p.signal({**rows, **known}).numpy()
        return x[0] * model - signal / scale

    begin = np.array([1.0, *start])
    lows, highs = zip(*bounds, strict=True)
    fit = optimize.least_squares(
        residual,
        begin,
        bounds=([0, *lows], [np.inf, *highs]),
        x_scale=begin,
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
    )
    return np.array([fit.x[0] * scale, *fit.x[1:]]), 2 * fit.cost * scale**2


@settings(max_examples=8, deadline=None)
@given(
    angles=st.lists(st.integers(2, 40), min_size=3, max_size=6, unique=True),
    tr=st.floats(0.004, 0.05),
    seed=st.integers(0, 10**6),
)
def test_flip_angles_agree_with_scipy(angles, tr, seed):
    p = Protocol((Acquisition("spgr", {"flip_angle_deg": angles, "repetition_time_s": tr}),))
    agree_with_scipy(p, seed)


@settings(max_examples=5, deadline=None)
@given(
    first=st.integers(8, 25),
    second=st.integers(2, 7),
    third=st.integers(15, 50),
    seed=st.integers(0, 10**6),
)
def test_t1_and_t2_agree_with_scipy(first, second, third, seed):
    spgr = {"flip_angle_deg": (first, second), "repetition_time_s": 0.0122, "echo_time_s": 0.0047}
    dess = {"flip_angle_deg": third, "repetition_time_s": 0.0175, "echo_time_s": 0.0047}
    agree_with_scipy(Protocol((Acquisition("spgr", spgr), Acquisition("dess", dess))), seed)


@settings(max_examples=3, deadline=None)
@given(spacing=st.floats(0.006, 0.02), angle=st.integers(120, 180), seed=st.integers(0, 10**6))
def test_echo_trains_agree_with_scipy(spacing, angle, seed):
    times = tuple(spacing * i for i in range(1, 6))
    train = {"echo_time_s": times, "refocusing_angle_deg": angle}
    agree_with_scipy(Protocol((Acquisition("epg_spin_echo", train),)), seed)


def agree_with_scipy(p: Protocol, seed: int) -> None:
    """The sum of squares is never above scipy's from the truth, and never far below."""
    values = truth(p, 3, seed)
    ideal = p.signal(values)
    rng = np.random.default_rng(seed)
    noise = 0.01 * float(ideal.max()) * torch.tensor(rng.standard_normal(ideal.shape))
    signal = (ideal + noise).abs()
    known = known_of(p, values)
    ls = NonlinearLeastSquares(p)
    fit = ls.search(signal, known)
    bounds = [ls.support[n] for n in ls.nonlinear]
    for i in range(len(signal)):
        start = [float(values[n][i]) for n in ls.nonlinear]
        own = {n: v[i] for n, v in known.items()}
        x, squares = scipy_fit(p, signal[i].numpy(), own, start, bounds)
        assert float(fit.squares[i]) <= squares * (1 + 1e-4) + 1e-12
        if float(fit.squares[i]) > squares * (1 - 1e-4):
            # the same minimum; where it is flat the values agree less than the squares
            spread = fit.spread[:, i].numpy() * np.sqrt(squares)
            assert np.all(np.abs(fit.values[:, i].numpy() - x) < 2e-3 * np.abs(x) + 1e-2 * spread)


def test_two_flip_angles_are_the_closed_form():
    p = Protocol((Acquisition("spgr", {"flip_angle_deg": (3, 15), "repetition_time_s": 0.01}),))
    signal = torch.tensor([[120.0, 90.0], [80.0, 95.0], [300.0, 150.0]], dtype=torch.float64)
    angles = np.deg2rad([3.0, 15.0])
    y = signal.numpy() / np.sin(angles)
    x = signal.numpy() / np.tan(angles)
    slope = (y[:, 1] - y[:, 0]) / (x[:, 1] - x[:, 0])
    m0 = (y[:, 0] - slope * x[:, 0]) / (1 - slope)
    found = NonlinearLeastSquares(p).estimate(signal)
    assert np.allclose(found.values["t1_s"], -0.01 / np.log(slope), rtol=1e-5)
    assert np.allclose(found.values["m0"], m0, rtol=1e-5)
    # no value is left to tell the noise by
    assert bool(found.errors["t1_s"].isnan().all())
    told = NonlinearLeastSquares(p, sigma=1.0).estimate(signal)
    bound = crlb(p, {n: v.double() for n, v in told.values.items()}, 1.0)
    assert np.allclose(told.errors["t1_s"], bound["t1_s"], rtol=1e-4)


def test_two_echoes_are_the_closed_form():
    p = Protocol((Acquisition("spin_echo", {"echo_time_s": (0.02, 0.1)}),))
    signal = torch.tensor([[100.0, 30.0], [50.0, 45.0]], dtype=torch.float64)
    found = NonlinearLeastSquares(p).estimate(signal)
    t2 = 0.08 / torch.log(signal[:, 0] / signal[:, 1])
    assert torch.allclose(found.values["t2_s"].double(), t2, rtol=1e-5)
    assert torch.allclose(
        found.values["m0"].double(), signal[:, 0] * torch.exp(0.02 / t2), rtol=1e-5
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_magnitude_recovery_is_the_best_of_all_polarities(seed):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0.03, 2.5, rng.integers(4, 8)))
    p = Protocol(
        (
            Acquisition(
                "inversion_recovery",
                {"inversion_time_s": times.tolist(), "repetition_time_s": 3.0},
            ),
        )
    )
    values = truth(p, 10, seed)
    values["m0"] = torch.ones(10, dtype=torch.float64)
    ideal = p.signal(values)
    noise = torch.tensor(rng.standard_normal(ideal.shape))
    signal = (ideal + 0.02 * noise).abs()
    fit = NonlinearLeastSquares(p).search(signal, {})
    for i in range(10):
        best = min(
            polarity_squares(times, signal[i].numpy() * np.where(np.arange(len(times)) < k, -1, 1))
            for k in range(len(times) + 1)
        )
        assert float(fit.squares[i]) <= best * (1 + 1e-4)
    plain = NonlinearLeastSquares(p).estimate(signal)
    assert not (plain.quality & int(Flag.NOT_CONVERGED)).any()


def polarity_squares(times, signed):
    """Return the least sum of squares of signed values, by scipy."""

    def residual(x):
        decay, rest = np.exp(-times / x[1]), np.exp(-3.0 / x[1])
        return x[0] * (1 - (1 + x[2]) * decay + x[2] * rest) - signed

    bounds = ([0, 0.005, 0], [10, 10, 1.2])
    return min(
        2 * optimize.least_squares(residual, [1, t1, 0.9], bounds=bounds, x_scale=[1, t1, 1]).cost
        for t1 in (0.1, 0.8)
    )


def test_recovery_with_the_null_on_an_inversion_time():
    t1 = 0.5 / np.log(2)
    p = Protocol((Acquisition("inversion_recovery", {"inversion_time_s": (0.1, 0.5, 0.9, 2)}),))
    values = {"t1_s": torch.tensor([t1]), "inversion_efficiency": torch.tensor([1.0])}
    found = NonlinearLeastSquares(p).estimate(p.signal(values) + torch.tensor([0, 0.01, 0, 0]))
    assert float(found.values["t1_s"][0]) == pytest.approx(t1, rel=0.02)


@pytest.mark.parametrize("name", ["vfa", "dess", "ir", "mese"])
@pytest.mark.parametrize("told", [True, False])
def test_standard_errors_are_the_spread_of_repeats_and_the_bound(name, told):
    p = protocol(name)
    count = 4000
    one = {k: v[:1] for k, v in truth(p, 1, 3).items()}
    one["inversion_efficiency"] = torch.tensor([0.95], dtype=torch.float64)
    values = {k: v.expand(count) for k, v in one.items()}
    signal = p.signal(values)
    sigma = float(signal.norm() / count**0.5) / 120
    g = torch.Generator().manual_seed(0)
    signal = signal + sigma * torch.randn(signal.shape, generator=g, dtype=signal.dtype)
    known = {n: values[n] for n in p.knowns}
    ls = NonlinearLeastSquares(p, sigma=sigma if told else None)
    found = ls.estimate(signal, known)
    bound = crlb(p, one, sigma, {n: one[n] for n in p.knowns})
    for latent in p.latents:
        spread = float(found.values[latent].double().std())
        assert 0.8 < float(found.errors[latent].double().median()) / spread < 1.25, latent
        assert 0.9 < float(bound[latent][0]) / spread < 1.1, latent


def test_the_size_of_batches_and_blocks_does_not_matter(monkeypatch):
    p = protocol("dess")
    values = truth(p, 700, 5)
    known = known_of(p, values)
    noise = torch.randn((700, 4), generator=torch.Generator().manual_seed(1)) * 0.5
    signal = (p.signal(values) + noise).abs()
    whole = NonlinearLeastSquares(p).estimate(signal, known)
    monkeypatch.setattr(least_squares, "BATCH_VALUES", 4 * 256)
    monkeypatch.setattr(least_squares, "BLOCK_VALUES", 4 * 300)
    parts = NonlinearLeastSquares(p).estimate(signal, known)
    for name in p.latents:
        torch.testing.assert_close(
            parts.values[name], whole.values[name], rtol=1e-4, atol=0, equal_nan=True
        )
    assert torch.equal(parts.quality, whole.quality)


def test_a_voxel_that_cannot_be_fitted_is_flagged_and_disturbs_no_other():
    p = protocol("vfa")
    values = {"m0": torch.full((40,), 1000.0), "t1_s": torch.linspace(0.5, 2, 40)}
    noise = torch.randn((40, 3), generator=torch.Generator().manual_seed(2))
    signal = p.signal({**values, "kappa": torch.ones(40)}) + 0.5 * noise
    kappa = torch.ones(40)
    good = NonlinearLeastSquares(p).estimate(signal, {"kappa": kappa})
    assert not good.quality.any()
    bad = signal.clone()
    bad[0] = 0
    bad[1, 1] = torch.nan
    bad[2, 0] = torch.inf
    kappa[3], kappa[4] = 0, torch.nan
    bad[5] = torch.tensor([100.0, 10.0, 100.0])
    bad[6] = torch.tensor([1.0, 30.0, 70.0])
    bad[7] = -bad[7]
    kappa[8] = 50.0
    found = NonlinearLeastSquares(p).estimate(bad, {"kappa": kappa})
    flags = [Flag(int(q)) for q in found.quality]
    assert flags[0] == Flag.NO_SIGNAL
    assert flags[1] == flags[2] == Flag.NOT_FINITE
    assert flags[3] == flags[4] == Flag.KAPPA_MISSING
    assert flags[5] & Flag.POOR_FIT
    assert flags[6] & Flag.AT_BOUND
    assert flags[7] & Flag.OUTSIDE_SUPPORT
    assert flags[8] & Flag.OUTSIDE_SUPPORT
    assert found.counts["not_finite"] == 2
    for name in p.latents:
        assert bool(found.values[name][[0, 1, 2, 7]].isnan().all())
        assert bool(found.errors[name][[0, 1, 2]].isnan().all())
        torch.testing.assert_close(found.values[name][9:], good.values[name][9:], rtol=1e-5, atol=0)
        kept = found.values[name][~found.values[name].isnan()]
        assert bool((kept > 0).all())


@pytest.mark.parametrize("name", KNOWN_MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_arbitrary_numbers_never_raise_and_no_time_is_negative(seed, name):
    p = protocol(name)
    rng = np.random.default_rng(seed)
    signal = torch.tensor(rng.standard_normal((30, p.count)) * 10 ** rng.uniform(-6, 6, (30, 1)))
    if seed:
        signal = signal.abs()
    found = NonlinearLeastSquares(p, iterations=12).estimate(signal)
    for name_, values in found.values.items():
        assert bool((values[~values.isnan()] > 0).all()), name_
        assert bool((found.quality[values.isnan()] != 0).all()), name_


def test_too_few_steps_are_flagged():
    p = protocol("dess")
    values = truth(p, 20, 4)
    ls = NonlinearLeastSquares(p, iterations=1)
    found = ls.estimate(p.signal(values), known_of(p, values))
    assert found.counts["not_converged"] > 15


def test_starts_that_are_given_lead_to_the_same_minimum():
    p = protocol("dess")
    values = truth(p, 50, 6)
    known = known_of(p, values)
    signal = p.signal(values) + torch.randn((50, 4), generator=torch.Generator().manual_seed(0))
    free = NonlinearLeastSquares(p).estimate(signal, known)
    near = {"t1_s": values["t1_s"] * 1.2, "t2_s": values["t2_s"] * 0.8}
    near["t1_s"][3] = torch.nan
    near["t2_s"][4] = -1.0
    given_ = NonlinearLeastSquares(p).estimate(signal, known, near)
    constant = NonlinearLeastSquares(p, start={"t1_s": 1.0, "t2_s": 0.08}).estimate(signal, known)
    for name in p.latents:
        torch.testing.assert_close(given_.values[name], free.values[name], rtol=1e-4, atol=0)
        torch.testing.assert_close(constant.values[name], free.values[name], rtol=1e-4, atol=0)


def test_a_latent_can_be_held():
    p = protocol("ir")
    values = truth(p, 30, 7)
    values["inversion_efficiency"] = torch.full((30,), 0.9, dtype=torch.float64)
    ls = NonlinearLeastSquares(p, fixed={"inversion_efficiency": 0.9})
    assert ls.latents == ("m0", "t1_s")
    found = ls.estimate(p.signal(values))
    assert relative(found.values["t1_s"], values["t1_s"]) < 1e-5


def test_no_voxels_are_no_error():
    p = protocol("vfa")
    found = NonlinearLeastSquares(p).estimate(torch.zeros((0, 3)))
    assert found.values["t1_s"].shape == (0,)


def test_what_cannot_be_fitted_is_refused_at_once():
    p = protocol("vfa")
    short = Protocol((Acquisition("inversion_recovery", {"inversion_time_s": (0.1, 0.5)}),))
    with pytest.raises(UsageError, match="fewer values than are unknown"):
        NonlinearLeastSquares(short)
    with pytest.raises(UsageError, match="t2_s is no latent"):
        NonlinearLeastSquares(p, bounds={"t2_s": (0.01, 1)})
    with pytest.raises(UsageError, match="unknown start"):
        NonlinearLeastSquares(p, start="random")
    with pytest.raises(UsageError, match="every latent is fixed"):
        NonlinearLeastSquares(p, fixed={"t1_s": 1.0})
    with pytest.raises(UsageError, match="no start for t1_s"):
        NonlinearLeastSquares(p).estimate(torch.ones((2, 3)), start={})
    with pytest.raises(UsageError, match="no start for t1_s"):
        NonlinearLeastSquares(p, start={"t2_s": 0.1})
    for wrong in ((0.0, 1.0), (2.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(UsageError, match="bounds of t1_s are wrong"):
            NonlinearLeastSquares(p, bounds={"t1_s": wrong})
    with pytest.raises(UsageError, match="float64 or float32"):
        NonlinearLeastSquares(p, dtype=torch.float16)
    with pytest.raises(InputError, match="do not fit the protocol"):
        NonlinearLeastSquares(p).estimate(torch.ones((2, 4)))


@pytest.mark.parametrize("angle", [180.0, 140.0])
def test_a_kappa_that_is_estimated_stays_on_one_side_of_180_degrees(angle):
    times = [0.01 * i for i in range(1, 17)]
    train = {"model": "epg_spin_echo_b1", "echo_time_s": times, "refocusing_angle_deg": angle}
    p = Protocol.from_dict({"acquisitions": [train]})
    kappa = torch.linspace(0.7, 0.9, 20, dtype=torch.float64) * 180 / angle
    t2 = torch.linspace(0.04, 0.2, 20, dtype=torch.float64)
    mirrored = 360 / angle - kappa
    both = [p.signal({"t2_s": t2, "kappa": k, "m0": torch.ones(20)}) for k in (kappa, mirrored)]
    for signal in (both[0], both[1] / both[1][:, :1] * both[0][:, :1]):
        found = NonlinearLeastSquares(p).estimate(signal)
        assert not found.quality.any()
        torch.testing.assert_close(found.values["kappa"].double(), kappa, rtol=2e-3, atol=0)
        torch.testing.assert_close(found.values["t2_s"].double(), t2, rtol=2e-3, atol=0)
