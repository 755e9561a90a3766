"""The hybrid is least squares, whatever it starts from."""

from __future__ import annotations

import pytest
import torch
from perk_problem import (
    GREY,
    PRIORS,
    PROTOCOL,
    SIGMA,
    VIAL_T1_S,
    VIAL_T2_S,
    WHITE,
    flip_scaling,
    voxels,
)

from medpipe.errors import InputError
from medpipe.qmri.estimate import Estimate, Flag
from medpipe.qmri.hybrid import Hybrid
from medpipe.qmri.least_squares import NonlinearLeastSquares
from medpipe.qmri.perk import train_perk
from medpipe.qmri.protocol import Acquisition, Protocol


class Crude:
    """An estimator that is wrong by a factor, and by more in every seventh voxel."""

    def __init__(self, protocol, values, factor):
        self.protocol, self.values_, self.factor = protocol, values, factor

    def estimate(self, signal, known=None, *, errors=True):
        count = len(signal)
        quality = torch.zeros(count, dtype=torch.uint8)
        values = {n: torch.full((count,), v * self.factor) for n, v in self.values_.items()}
        values["t1_s"][::7] *= 4
        values["t1_s"][1::7] = torch.nan
        quality[2::7] = int(Flag.OUTSIDE_SUPPORT)
        return Estimate(values, {}, quality, {})


@pytest.fixture(scope="module")
def perk():
    priors = {n: p for n, p in PRIORS.items() if n != "m0"}
    return train_perk(
        PROTOCOL, priors, SIGMA / 0.8, features=300, samples=4000, length_scale=0.7, ridge=2.0**-28
    )


@pytest.mark.parametrize("factor", [0.8, 0.98, 1.3])
def test_a_crude_start_ends_in_the_same_minimum(factor):
    kappa = flip_scaling(700)
    signal = voxels(WHITE, kappa, 3)
    found = Hybrid(Crude(PROTOCOL, WHITE, factor)).estimate(signal, {"kappa": kappa})
    want = NonlinearLeastSquares(PROTOCOL).estimate(signal, {"kappa": kappa})
    for name in PROTOCOL.latents:
        torch.testing.assert_close(found.values[name], want.values[name], rtol=3e-4, atol=0)
        torch.testing.assert_close(found.errors[name], want.errors[name], rtol=2e-2, atol=0)
    assert not (found.quality & int(Flag.OUTSIDE_SUPPORT | Flag.NOT_CONVERGED)).any()


@pytest.mark.parametrize("tissue", [WHITE, GREY])
def test_the_bias_of_perk_is_gone(perk, tissue):
    kappa = flip_scaling(20000)
    signal = voxels(tissue, kappa, 1)
    found = Hybrid(perk).estimate(signal, {"kappa": kappa})
    for name, true in tissue.items():
        mean = float(found.values[name].double().mean())
        spread = float(found.values[name].double().std())
        # at most 0.1 % and what is left of the noise in the mean of these voxels
        assert abs(mean / true - 1) < 1e-3, name
        assert 0.8 < float(found.errors[name].double().mean()) / spread < 1.25
    want = NonlinearLeastSquares(PROTOCOL).estimate(signal, {"kappa": kappa})
    for name in PROTOCOL.latents:
        torch.testing.assert_close(found.values[name], want.values[name], rtol=3e-4, atol=0)


def test_vials_outside_of_the_training_are_least_squares_too(perk):
    t1 = torch.tensor(VIAL_T1_S, dtype=torch.float64)
    t2 = torch.tensor(VIAL_T2_S, dtype=torch.float64)
    signal = PROTOCOL.signal({"t1_s": t1, "t2_s": t2, "m0": torch.ones_like(t1)})
    assert (perk.estimate(signal).quality != 0).any()
    found = Hybrid(perk).estimate(signal)
    torch.testing.assert_close(found.values["t1_s"].double(), t1, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.values["t2_s"].double(), t2, rtol=1e-3, atol=0)
    assert not found.quality.any()


def test_recovery_starts_with_the_signs_of_its_start():
    times = (0.05, 0.3, 0.5, 0.8, 1.5)
    recovery = Acquisition("inversion_recovery", {"inversion_time_s": times})
    protocol = Protocol((recovery,))
    t1 = torch.linspace(0.2, 2.0, 80, dtype=torch.float64)
    values = {"t1_s": t1, "inversion_efficiency": torch.full_like(t1, 0.95)}
    noise = torch.randn((80, 5), generator=torch.Generator().manual_seed(0), dtype=t1.dtype)
    signal = (protocol.signal(values) + 0.01 * noise).abs()

    class Near(Crude):
        def estimate(self, signal, known=None, *, errors=True):
            near = {n: v * 1.08 for n, v in values.items()}
            return Estimate(near, {}, torch.zeros(len(signal), dtype=torch.uint8), {})

    found = Hybrid(Near(protocol, {}, 1.0)).estimate(signal)
    want = NonlinearLeastSquares(protocol).estimate(signal)
    torch.testing.assert_close(found.values["t1_s"], want.values["t1_s"], rtol=1e-3, atol=0)


def test_bad_voxels_and_input_are_treated_as_by_least_squares(perk):
    kappa = flip_scaling(30)
    signal = voxels(WHITE, kappa, 5)
    signal[0] = 0
    signal[1, 2] = torch.nan
    kappa[2] = 0
    found = Hybrid(perk).estimate(signal, {"kappa": kappa})
    assert [int(q) for q in found.quality[:3]] == [1, 2, 32]
    assert not found.quality[3:].any()
    assert found.counts["kappa_missing"] == 1
    with pytest.raises(InputError, match="no fraction"):
        Hybrid(perk).estimate(signal, {"kappa": kappa * 100})
    with pytest.raises(InputError, match="do not fit the protocol"):
        Hybrid(perk).estimate(signal[:, :3])
