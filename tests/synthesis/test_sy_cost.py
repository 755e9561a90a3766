"""Seconds and memory of a sample are those that it takes."""

from __future__ import annotations

import mmap
import sys
import time

import pytest
import torch

from medpipe.errors import UsageError
from medpipe.synthesis.cost import sampling_cost


def test_time_and_memory_are_those_of_a_draw():
    seeds = []
    held = torch.ones(20_000_000)  # 80 MB that are there before

    def draw(seed):
        seeds.append(seed)
        time.sleep(0.05 if seed else 0.2)  # the first is not counted
        with mmap.mmap(-1, 40_000_000) as fresh:  # none that the allocator kept
            fresh[::4096] = b"1" * len(range(0, len(fresh), 4096))

    found = sampling_cost(draw, 3)
    assert seeds == [0, 1, 2, 3]
    assert found["samples"] == len(found["seconds"]) == 3
    assert found["seconds_per_sample"] == sorted(found["seconds"])[1]
    assert found["seconds_per_sample"] >= 0.05
    assert found["device"] == "CPU"
    assert found["threads"] == torch.get_num_threads()
    assert found["peak_bytes"] > held.nbytes
    if sys.platform == "linux":
        assert 35e6 < found["added_bytes"] < 60e6


def test_nothing_to_measure_is_refused():
    with pytest.raises(UsageError, match="no samples are to be measured"):
        sampling_cost(lambda seed: None, 0)
