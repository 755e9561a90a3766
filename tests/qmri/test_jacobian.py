"""Slopes of every signal model against differences of the signals."""

from __future__ import annotations

import pytest
import torch

from medpipe.qmri.jacobian import signal_and_slopes
from medpipe.qmri.protocol import Acquisition, Protocol
from medpipe.qmri.signals import MODELS

SETTINGS = {
    "spgr": {"flip_angle_deg": (3, 15), "repetition_time_s": 0.01},
    "dess": {"flip_angle_deg": 30, "repetition_time_s": 0.0175, "echo_time_s": 0.00467},
    "gradient_echo": {"echo_time_s": (0.005, 0.02)},
    "inversion_recovery": {"inversion_time_s": (0.1, 0.6, 2), "repetition_time_s": 3},
    "inversion_recovery_fixed": {"inversion_time_s": (0.1, 0.6, 2), "repetition_time_s": 3},
    "spin_echo": {"echo_time_s": (0.02, 0.09)},
    "epg_spin_echo": {"echo_time_s": (0.01, 0.02, 0.03, 0.04), "refocusing_angle_deg": 140},
    "epg_spin_echo_b1": {"echo_time_s": (0.01, 0.02, 0.03, 0.04), "refocusing_angle_deg": 140},
    "mp2rage": {
        "inversion_time_s": (0.7, 2.5),
        "flip_angle_deg": (4, 5),
        "repetition_time_s": 0.0067,
        "repetition_time_preparation_s": 6.0,
        "number_shots": 160,
    },
}
VALUES = {
    "t1_s": (0.7, 1.9),
    "t2_s": (0.05, 0.12),
    "t2star_s": (0.02, 0.05),
    "inversion_efficiency": (0.9, 0.97),
    "kappa": (0.85, 1.1),
}


@pytest.mark.parametrize("model", SETTINGS)
def test_slopes_are_those_of_central_differences(model):
    protocol = Protocol((Acquisition(model, SETTINGS[model]),))
    names = protocol.latents[1:]
    x = torch.tensor([VALUES[n] for n in names], dtype=torch.float64)
    known = {n: torch.tensor(VALUES[n], dtype=torch.float64) for n in protocol.knowns}
    scale = x * 2

    def signal(rows):
        named = dict(zip(names, rows, strict=True))
        return protocol.signal({**known, **named}, magnitude=False).T

    unit, slopes = signal_and_slopes(protocol, names, x, scale, known)
    assert unit.shape == (protocol.count, 2)
    assert slopes.shape == (len(names), protocol.count, 2)
    torch.testing.assert_close(unit, signal(x))
    for i in range(len(names)):
        step = torch.zeros_like(x)
        step[i] = 1e-6 * x[i]
        difference = (signal(x + step) - signal(x - step)) / (2e-6 * x[i]) * scale[i]
        torch.testing.assert_close(slopes[i], difference, rtol=1e-6, atol=1e-8)


def test_every_model_is_tried():
    assert set(SETTINGS) == set(MODELS)
