"""Choosing a device by name."""

from __future__ import annotations

import pytest
import torch

from medpipe.device import choose_device, describe_device
from medpipe.errors import UsageError


def test_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert describe_device(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("name", ["gpu", "mps", "", "cuda:x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected auto, cpu, cuda"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_auto_is_cpu_and_cuda_is_refused() -> None:
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_device("cuda:0")


@pytest.mark.gpu
def test_with_a_gpu_auto_takes_it() -> None:
    assert choose_device("auto").type == "cuda"
    with pytest.raises(UsageError, match="no such CUDA device"):
        choose_device(f"cuda:{torch.cuda.device_count()}")
