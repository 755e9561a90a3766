"""Networks that are trained at the same time are those that are trained one after another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oc_jobs import refuse, vanish
from oc_pictures import SETTINGS, study

from medpipe.errors import ResourceError, UsageError
from medpipe.outcome import crossval, side_by_side
from medpipe.outcome.crossval import cross_validate
from medpipe.outcome.folds import make_folds
from medpipe.outcome.side_by_side import devices_of, train_side_by_side


def test_two_at_a_time_give_what_one_after_another_gives(tmp_path, monkeypatch):
    cohort, volumes = study()
    nested = replace(SETTINGS, nested=True)
    given = {"folds": make_folds(cohort, folds=3, seed=4), "device": "cpu"}
    alone = cross_validate(cohort, volumes, nested, **given)
    told = {}
    monkeypatch.setattr(crossval, "train_fold", None)  # nothing is trained in this process
    both = cross_validate(
        cohort, volumes, nested, folder=tmp_path, at_once=2,
        progress=lambda name, at: told.setdefault(name, []).append(at.iteration), **given,
    )  # fmt: skip
    np.testing.assert_allclose(both.logits, alone.logits, rtol=1e-5, atol=1e-6)
    for name, values in alone.probability.items():
        np.testing.assert_allclose(both.probability[name], values, rtol=1e-4)
    assert len(told) == 6  # three folds and three pairs of folds
    assert all(iterations == [1, 2, 3, 4, 5, 6] for iterations in told.values())
    with pytest.raises(UsageError, match="need a folder"):
        cross_validate(cohort, volumes, nested, at_once=2, **given)


def test_what_goes_wrong_in_a_process_is_told():
    with pytest.raises(UsageError, match="no such job; got 7 on cpu"):
        train_side_by_side(refuse, [7, 8], ["cpu"])
    with pytest.raises(ResourceError, match=r"ended without a word.*train fewer at once"):
        train_side_by_side(vanish, [7], ["cpu"])


def test_processes_take_the_gpus_in_turn(monkeypatch):
    assert devices_of("cpu", 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(side_by_side, "choose_device", torch.device)
    assert devices_of("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices_of("cuda:1", 2) == ["cuda:1", "cuda:1"]
    with pytest.raises(UsageError, match="1 or more"):
        devices_of("cpu", 0)
