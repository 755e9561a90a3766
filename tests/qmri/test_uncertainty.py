"""Noise from residuals, quantiles, and the Cramér–Rao bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from medpipe.errors import UsageError
from medpipe.qmri.protocol import Acquisition, Protocol
from medpipe.qmri.uncertainty import chi_square, crlb, noise_variance, poor_fit


@pytest.mark.parametrize("freedom", [1, 2, 5, 30])
def test_quantiles_of_chi_square(freedom):
    for z, within in ((0.0, 0.05), (2.0, 0.02), (4.0, 0.1)):
        want = stats.chi2.ppf(stats.norm.cdf(z), freedom)
        assert chi_square(freedom, z) == pytest.approx(want, rel=within)


@pytest.mark.parametrize("freedom", [1, 3, 20])
def test_the_variance_of_the_noise_comes_from_the_residuals(freedom):
    rng = np.random.default_rng(freedom)
    squares = torch.tensor(4.0 * rng.chisquare(freedom, 20000))
    squares[::10] *= 1000
    there = torch.ones(20000, dtype=torch.bool)
    own, pooled = noise_variance(squares, freedom, there, None)
    assert float(pooled[0]) == pytest.approx(4.0, rel=0.3)
    assert float(own[1::10].median()) == pytest.approx(4.0, rel=0.3)
    poor = poor_fit(squares, squares * 10, freedom, pooled)
    assert float(poor[::10].double().mean()) > 0.85
    assert float(poor[1::10].double().mean()) < 1e-3


def test_nothing_is_said_without_degrees_of_freedom():
    squares, there = torch.ones(3), torch.ones(3, dtype=torch.bool)
    own, judged = noise_variance(squares, 0, there, None)
    assert bool(own.isnan().all())
    assert not poor_fit(squares, squares, 1, judged).any()
    told, _ = noise_variance(squares, 0, there, torch.tensor(2.0))
    assert told.tolist() == [4.0, 4.0, 4.0]
    none, _ = noise_variance(squares, 2, ~there, None)
    assert bool(none.isnan().all())


def test_rounding_is_no_poor_fit():
    squares, power = torch.tensor([1e-9, 1.0, 1e-4]), torch.tensor([1.0, 1e5, 1.0])
    assert not poor_fit(squares, power, 2, torch.full((3,), 1e-12)).any()


def test_the_bound_is_the_inverse_of_the_fisher_matrix():
    settings = {"flip_angle_deg": (2, 8, 20), "repetition_time_s": 0.01}
    protocol = Protocol((Acquisition("spgr", settings),))
    m0, t1, kappa = 800.0, 1.2, 0.9
    a = np.deg2rad([2, 8, 20]) * kappa

    def signal(m0, t1):
        e = np.exp(-0.01 / t1)
        return m0 * np.sin(a) * (1 - e) / (1 - e * np.cos(a))

    slopes = np.stack(
        [
            (signal(m0 + 1, t1) - signal(m0 - 1, t1)) / 2,
            (signal(m0, t1 + 1e-5) - signal(m0, t1 - 1e-5)) / 2e-5,
        ],
        1,
    )
    want = 3.0 * np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes)))
    values = {"m0": torch.tensor([m0]), "t1_s": torch.tensor([t1])}
    found = crlb(protocol, values, 3.0, {"kappa": torch.tensor([kappa])})
    assert [float(found["m0"][0]), float(found["t1_s"][0])] == pytest.approx(want, rel=1e-5)
    with pytest.raises(UsageError, match="no value for m0"):
        crlb(protocol, {"t1_s": torch.tensor([t1])}, 3.0)
