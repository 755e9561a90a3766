"""Choice of the device that the steps of a case run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medpipe.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["choose_device", "describe_device"]


def choose_device(name: str = "auto") -> torch.device:
    """Return the torch device for `name`.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "cuda:N"}
        ``"auto"`` takes the first CUDA device that is visible, else the CPU.

    Raises
    ------
    UsageError
        If a CUDA device is asked for and none can be used.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError("unknown device", expected="auto, cpu, cuda or cuda:N", got=name) from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise UsageError(
                "no CUDA device can be used",
                got=name,
                hint="use --device cpu, or see `medpipe doctor`",
            )
        if device.index is not None and device.index >= count:
            raise UsageError("no such CUDA device", expected=f"an index below {count}", got=name)
    elif device.type != "cpu":
        raise UsageError("unsupported device", expected="auto, cpu, cuda or cuda:N", got=name)
    return device


def describe_device(device: torch.device) -> str:
    """Return the device in words, e.g. ``"NVIDIA H200"`` or ``"cpu"``."""
    if device.type != "cuda":
        return device.type
    import torch

    return torch.cuda.get_device_name(device)
