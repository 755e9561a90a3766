"""Windows of Hounsfield units as channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medpipe.errors import StepError, UsageError
from medpipe.outcome.channels import ct_channels


def test_windows_are_those_of_radiology():
    """Level and width: brain W80 L40, blood W200 L80, bone W2800 L600."""
    rng = np.random.default_rng(0)
    hu = rng.integers(-1024, 3072, (2, 1, 4, 5, 6)).astype(np.int16)
    got = ct_channels(torch.from_numpy(hu))
    assert got.shape == (2, 3, 4, 5, 6)
    for channel, (width, level) in enumerate([(80, 40), (200, 80), (2800, 600)]):
        truth = np.clip((hu[:, 0].astype(float) - (level - width / 2)) / width, 0, 1)
        np.testing.assert_allclose(got[:, channel].numpy(), truth, atol=1e-6)


def test_the_preset_of_the_paper_is_one_window_three_times():
    hu = torch.tensor([-1000.0, 0, 25, 100, 3000]).reshape(1, 5, 1, 1)
    got = ct_channels(hu, "paper")
    assert got.shape == (3, 5, 1, 1)
    for channel in got:
        assert channel.ravel().tolist() == [0, 0, 0.25, 1, 1]


def test_slices_and_precision():
    hu = torch.full((7, 1, 3, 3), 40.0, dtype=torch.float64)
    got = ct_channels(hu, spatial_dims=2)
    assert got.shape == (7, 3, 3, 3)
    assert got.dtype == torch.float64
    assert torch.equal(got[:, 0], torch.full((7, 3, 3), 0.5, dtype=torch.float64))


def test_what_is_wrong_is_said():
    with pytest.raises(UsageError, match="unknown preset"):
        ct_channels(torch.zeros(1, 2, 2, 2), "bone")
    with pytest.raises(StepError, match="one channel"):
        ct_channels(torch.zeros(2, 2, 2, 2))
    with pytest.raises(StepError, match="one channel"):
        ct_channels(torch.zeros(2, 2, 2))
