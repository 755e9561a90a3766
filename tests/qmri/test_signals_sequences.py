"""Signal models against simulations of the pulses, published values and limits."""

from __future__ import annotations

import bloch_simulation as simulation
import numpy as np
import pytest
import torch

from medpipe.errors import UsageError
from medpipe.qmri.acquisition import Acquisition
from medpipe.qmri.signals.mp2rage import mp2rage_pair, mp2rage_signed, mp2rage_uni


def signal(model, settings, **values):
    a = Acquisition(model, settings)
    given = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in values.items()}
    return a.signal_model.signal(given, a.tensors)


DESS = {"flip_angle_deg": 30, "repetition_time_s": 0.0175, "echo_time_s": 0.00467}


def test_dess_has_the_published_values():
    out = signal("dess", DESS, t1_s=0.832, t2_s=0.0796, kappa=1.0)
    np.testing.assert_allclose(out, [0.112746855, 0.072775256], rtol=0, atol=1e-9)


def test_spgr_has_the_published_values():
    settings = {"flip_angle_deg": [15, 5], "repetition_time_s": 0.0122, "echo_time_s": 0.00467}
    out = 0.77 * signal("spgr", settings, t1_s=0.832, t2_s=0.0796)
    np.testing.assert_allclose(out, [0.0568, 0.0503], rtol=0, atol=5e-5)


CASES = [
    (30.0, 1.0, 0.0175, 0.00467, 0.832, 0.0796),
    (10.0, 0.7, 0.0280, 0.00467, 1.331, 0.110),
    (60.0, 1.3, 0.0100, 0.0030, 3.0, 1.5),
    (90.0, 1.1, 0.0300, 0.0060, 0.3, 0.020),
]


@pytest.mark.parametrize(("angle", "kappa", "tr", "te", "t1", "t2"), CASES)
def test_dess_is_the_steady_state_of_isochromats(angle, kappa, tr, te, t1, t2):
    settings = {"flip_angle_deg": angle, "repetition_time_s": tr, "echo_time_s": te}
    out = signal("dess", settings, t1_s=t1, t2_s=t2, kappa=kappa)
    truth = simulation.dess(angle * kappa, tr, te, t1, t2)
    np.testing.assert_allclose(out, truth, rtol=1e-9)


def test_dess_with_t2star_is_the_steady_state_of_isochromats_off_resonance():
    t2star = 1 / (1 / 0.0796 + 8.0)
    out = signal("dess", DESS, t1_s=0.832, t2_s=0.0796, t2star_s=t2star)
    truth = simulation.dess(30, 0.0175, 0.00467, 0.832, 0.0796, r2_prime=8.0)
    np.testing.assert_allclose(out, truth, rtol=3e-3)
    plain = signal("dess", DESS, t1_s=0.832, t2_s=0.0796)
    assert ((out - plain).abs() > 0.03 * plain).all()


@pytest.mark.parametrize(("angle", "kappa", "tr", "te", "t1", "t2"), CASES)
def test_spgr_is_the_steady_state_of_spoiled_pulses(angle, kappa, tr, te, t1, t2):
    settings = {"flip_angle_deg": angle, "repetition_time_s": tr, "echo_time_s": te}
    out = signal("spgr", settings, t1_s=t1, t2_s=t2, kappa=kappa)
    truth = simulation.spoiled(angle * kappa, tr, te, t1, t2, ideal=True)
    np.testing.assert_allclose(out, [truth], rtol=1e-3)


def test_spgr_is_near_isochromats_with_rf_spoiling():
    settings = {"flip_angle_deg": 15, "repetition_time_s": 0.03, "echo_time_s": 0.004}
    out = signal("spgr", settings, t1_s=0.8, t2_s=0.03)
    truth = simulation.spoiled(15, 0.03, 0.004, 0.8, 0.03, ideal=False)
    np.testing.assert_allclose(out, [truth], rtol=0.01)


def test_spgr_decays_with_t2star_where_there_is_one_and_not_at_all_without_t2():
    settings = {"flip_angle_deg": 15, "repetition_time_s": 0.03, "echo_time_s": 0.01}
    none = signal("spgr", settings, t1_s=0.8)
    both = signal("spgr", settings, t1_s=0.8, t2_s=0.08, t2star_s=0.04)
    np.testing.assert_allclose(both / none, [np.exp(-0.01 / 0.04)])


def test_a_long_repetition_leaves_the_sine_of_the_angle():
    settings = {k: torch.tensor(v, dtype=torch.float64) for k, v in DESS.items()}
    settings |= {"repetition_time_s": torch.tensor(1e3, dtype=torch.float64)}
    values = {k: torch.tensor(v, dtype=torch.float64) for k, v in (("t1_s", 1.0), ("t2_s", 0.1))}
    decay = np.exp(-0.00467 / 0.1)
    for model, expected in (("spgr", [0.5 * decay]), ("dess", [0.5 * decay, 0.0])):
        acquisition = Acquisition(model, DESS)
        out = acquisition.signal_model.signal(values, settings)
        np.testing.assert_allclose(out, expected, atol=1e-12)


def test_dess_without_transverse_memory_is_spgr():
    out = signal("dess", DESS, t1_s=0.8, t2_s=1e-3)
    spgr = signal("spgr", DESS, t1_s=0.8, t2_s=1e-3)
    np.testing.assert_allclose(out[0], spgr[0], rtol=1e-7)


TI = (0.05, 0.1, 0.4, 0.8)


@pytest.mark.parametrize("efficiency", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("tr", [0.9, 2.5, 8.0])
def test_inversion_recovery_is_the_repeated_experiment(efficiency, tr):
    settings = {"inversion_time_s": TI, "repetition_time_s": tr}
    truth = [simulation.inversion(ti, tr, 0.9, efficiency) for ti in TI]
    out = signal("inversion_recovery", settings, t1_s=0.9, inversion_efficiency=efficiency)
    np.testing.assert_allclose(out, truth, rtol=1e-12, atol=1e-15)
    fixed = settings | {"inversion_efficiency": efficiency}
    np.testing.assert_allclose(
        signal("inversion_recovery_fixed", fixed, t1_s=0.9), truth, rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("tr", [None, 2.0])
def test_inversion_recovery_holds_every_curve_of_three_parameters(tr):
    a, b, t1 = 800.0, -1450.0, 0.7
    settings = {"inversion_time_s": TI} | ({"repetition_time_s": tr} if tr else {})
    rest = np.exp(-tr / t1) if tr else 0.0
    ratio = -b / a
    efficiency = (ratio - 1) / (1 - ratio * rest)
    m0 = -b / (1 + efficiency)
    out = m0 * signal("inversion_recovery", settings, t1_s=t1, inversion_efficiency=efficiency)
    np.testing.assert_allclose(out, a + b * np.exp(-np.array(TI) / t1), rtol=1e-12)
    # the form with a factor of the inversion: s (1 - k exp(-TI/T1) + exp(-TR/T1))
    s = a / (1 + rest)
    k = -b / s
    np.testing.assert_allclose(out, s * (1 - k * np.exp(-np.array(TI) / t1) + rest), rtol=1e-12)


def test_inversion_recovery_ends_at_m0_and_starts_below_zero():
    settings = {"inversion_time_s": [0.0, 20.0]}
    out = signal("inversion_recovery", settings, t1_s=0.5, inversion_efficiency=0.95)
    np.testing.assert_allclose(out, [-0.95, 1.0], rtol=1e-12)


def test_the_derivative_of_an_inversion_without_repetition_is_finite():
    a = Acquisition("inversion_recovery_fixed", {"inversion_time_s": TI})
    t1 = torch.tensor(0.8, dtype=torch.float64)
    _, slope = torch.func.jvp(
        lambda t: a.signal_model.signal({"t1_s": t}, a.tensors), (t1,), (torch.ones_like(t1),)
    )
    assert torch.isfinite(slope).all()


ECHOES = tuple(0.01 * i for i in range(1, 33))


def test_spin_echo_is_one_exponential():
    out = signal("spin_echo", {"echo_time_s": ECHOES}, t2_s=0.08)
    np.testing.assert_allclose(out, np.exp(-np.array(ECHOES) / 0.08))


def test_gradient_echo_is_one_exponential():
    out = signal("gradient_echo", {"echo_time_s": [0.005, 0.02]}, t2star_s=0.02)
    np.testing.assert_allclose(out, np.exp([-0.25, -1.0]))


@pytest.mark.parametrize("kappa", [1.0, 0.85, 0.5, 1.3])
@pytest.mark.parametrize("angle", [180.0, 150.0, 60.0])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 32])
def test_echo_train_is_the_whole_phase_graph(kappa, angle, n):
    settings = {"echo_time_s": ECHOES[:n], "refocusing_angle_deg": angle, "assumed_t1_s": 0.6}
    out = signal("epg_spin_echo", settings, t2_s=0.12, kappa=kappa)
    truth = simulation.cpmg(90 * kappa, angle * kappa, 0.01, n, 0.6, 0.12)
    np.testing.assert_allclose(out, truth, rtol=0, atol=1e-14)


def test_echo_train_is_that_of_isochromats():
    settings = {"echo_time_s": ECHOES[:16], "refocusing_angle_deg": 130, "assumed_t1_s": 0.6}
    out = signal("epg_spin_echo", settings, t2_s=0.12, kappa=0.9)
    truth = simulation.cpmg_isochromats(81, 117, 0.01, 16, 0.6, 0.12)
    np.testing.assert_allclose(out, truth, rtol=0, atol=1e-12)


def test_echo_train_with_perfect_pulses_is_one_exponential():
    out = signal("epg_spin_echo", {"echo_time_s": ECHOES}, t2_s=0.08)
    np.testing.assert_allclose(out, np.exp(-np.array(ECHOES) / 0.08), rtol=1e-12)


def test_stimulated_echoes_look_like_a_longer_t2():
    settings = {"echo_time_s": ECHOES, "refocusing_angle_deg": 130}
    out = signal("epg_spin_echo", settings, t2_s=0.08).log()
    assert -1 / np.polyfit(ECHOES, out, 1)[0] > 0.085


def test_some_echoes_of_a_train_are_those_of_the_whole():
    settings = {"refocusing_angle_deg": 140}
    whole = signal("epg_spin_echo", settings | {"echo_time_s": ECHOES}, t2_s=0.08)
    part = settings | {"echo_time_s": [0.02, 0.05, 0.08], "echo_spacing_s": 0.01}
    np.testing.assert_allclose(
        signal("epg_spin_echo", part, t2_s=0.08), whole[[1, 4, 7]], rtol=1e-12
    )


def test_a_measured_t1_takes_the_place_of_the_assumed_one_and_hardly_matters():
    settings = {"echo_time_s": ECHOES, "refocusing_angle_deg": 140}
    assumed = signal("epg_spin_echo", settings, t2_s=0.08)
    measured = signal("epg_spin_echo", settings, t2_s=0.08, t1_s=0.7)
    same = signal("epg_spin_echo", settings | {"assumed_t1_s": 0.7}, t2_s=0.08)
    np.testing.assert_array_equal(measured, same)
    difference = (measured - assumed).abs()
    assert 0 < difference.max() < 0.01 * assumed[0]


MP2RAGE = {
    "inversion_time_s": [0.7, 2.5],
    "flip_angle_deg": [4, 5],
    "repetition_time_s": 0.0075,
    "repetition_time_preparation_s": 5.0,
    "number_shots": 160,
}


@pytest.mark.parametrize("t1", [0.4, 0.85, 1.35, 4.0])
@pytest.mark.parametrize("kappa", [1.0, 0.7])
def test_mp2rage_is_the_repeated_experiment(t1, kappa):
    out = signal("mp2rage", MP2RAGE | {"partial_fourier": 0.75}, t1_s=t1, kappa=kappa)
    angles = (4 * kappa, 5 * kappa)
    truth = simulation.mp2rage((0.7, 2.5), angles, 0.0075, 5.0, 40, 80, t1, 0.96)
    np.testing.assert_allclose(out, truth, rtol=1e-10)
    shots = {"number_shots": 120, "number_shots_before": 40, "inversion_efficiency": 0.8}
    truth = simulation.mp2rage((0.7, 2.5), angles, 0.0075, 5.0, 40, 80, t1, 0.8)
    np.testing.assert_allclose(
        signal("mp2rage", MP2RAGE | shots, t1_s=t1, kappa=kappa), truth, rtol=1e-10
    )


def test_the_uniform_image_is_that_of_the_readouts():
    t1 = torch.linspace(0.5, 3.5, 31, dtype=torch.float64)
    both = signal("mp2rage", MP2RAGE, t1_s=t1)
    uni = mp2rage_uni(both[:, 0], both[:, 1])
    assert (torch.diff(uni) < 0).all()
    assert uni.abs().max() < 0.5
    turned = both * torch.exp(torch.tensor(0.7j))
    np.testing.assert_allclose(mp2rage_uni(turned[:, 0], turned[:, 1]), uni, rtol=1e-6)
    assert mp2rage_uni(torch.zeros(2), torch.zeros(2)).tolist() == [0, 0]


def test_a_pair_with_the_uniform_image_has_the_direction_of_the_readouts():
    t1 = torch.linspace(0.8, 3.5, 28, dtype=torch.float64)
    both = signal("mp2rage", MP2RAGE, t1_s=t1)
    assert (both[:, 0].abs() < both[:, 1]).all()
    pair = mp2rage_pair(mp2rage_uni(both[:, 0], both[:, 1]))
    np.testing.assert_allclose(pair, both / both.norm(dim=1, keepdim=True), rtol=1e-6, atol=1e-9)
    with pytest.raises(UsageError, match=r"not scaled.*divide a 12-bit image by 4095"):
        mp2rage_pair(torch.tensor([0.0, 2048.0]))


def test_the_uniform_image_gives_magnitudes_their_sign():
    both = signal("mp2rage", MP2RAGE, t1_s=torch.tensor([0.5, 1.0, 2.0]))
    uni = mp2rage_uni(both[:, 0], both[:, 1])
    assert (both[:, 0] < 0).any()
    assert (both[:, 0] > 0).any()
    np.testing.assert_array_equal(mp2rage_signed(both[:, 0].abs(), both[:, 1], uni), both)
