"""One thread for small operations, several for the compiled sums, the same result."""

from __future__ import annotations

import pytest
import torch
from perk_problem import PRIORS, PROTOCOL, SIGMA, WHITE, flip_scaling, voxels

from medpipe.qmri import perk_kernel
from medpipe.qmri.perk import train_perk
from medpipe.qmri.threads import undivided


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_the_number_of_threads_comes_back(threads):
    with undivided(torch.device("cpu")) as count:
        assert count == threads
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="five"), undivided(torch.device("cpu")):
        raise ValueError("five")
    assert torch.get_num_threads() == threads
    with undivided(torch.device("meta")):
        assert torch.get_num_threads() == threads


def test_an_estimate_does_not_depend_on_the_threads(monkeypatch):
    model = train_perk(
        PROTOCOL, PRIORS, SIGMA, features=50, samples=500, length_scale=0.5, ridge=1e-9
    )
    kappa = flip_scaling(3000)
    y = voxels(WHITE, kappa, 1).requires_grad_()
    monkeypatch.setattr(perk_kernel, "THREAD_ROWS", 100)
    used = []
    real = perk_kernel._host
    monkeypatch.setattr(perk_kernel, "_host", lambda *a: used.append(a[-1]) or real(*a))
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(model.estimate(y, {"kappa": kappa}))
    finally:
        torch.set_num_threads(before)
    assert used == [1, 4]
    one, four = found
    for name in one.values:
        assert torch.equal(one.values[name], four.values[name])
        assert torch.equal(one.errors[name], four.errors[name])
    assert torch.equal(one.quality, four.quality)
