"""What a sample costs: seconds and memory, measured where it is drawn."""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medpipe.errors import UsageError
from medpipe.types import Json

__all__ = ["sampling_cost"]

_PROCESS = Path("/proc/self")


def sampling_cost(
    draw: Callable[[int], Any], n: int = 3, *, device: str | torch.device = "cpu"
) -> dict[str, Json]:
    """Draw a sample to warm up and `n` more, and measure them.

    Parameters
    ----------
    draw : callable
        Draws the sample of a seed, 0 to n; what it returns is dropped.
    n : int
        Samples that are measured.
    device : str or torch.device
        That draws.

    Returns
    -------
    dict of JSON values
        ``seconds_per_sample`` (median), ``seconds`` (each), ``samples``, ``peak_bytes``: the
        largest memory of the process while it draws, on a CUDA device that of the tensors
        there; ``added_bytes``: by how much that is above what was held before the first (at
        least: an allocator may have kept some free); ``device`` and ``threads``. Where the
        system does not measure a peak anew (Linux does), that of the process since its start
        is given, and nothing added.

    Raises
    ------
    UsageError
        If nothing is to be measured.
    """
    if n < 1:
        raise UsageError("no samples are to be measured", expected="1 or more", got=str(n))
    where = torch.device(device)
    gpu = where.type == "cuda"
    before = _begin(where)  # a host keeps what the first sample needed
    draw(0)
    seconds = []
    for seed in range(1, n + 1):
        start = time.perf_counter()
        draw(seed)
        if gpu:
            torch.cuda.synchronize(where)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(where) if gpu else _peak()
    return {
        "seconds_per_sample": statistics.median(seconds),
        "seconds": list(seconds),
        "samples": n,
        "peak_bytes": peak,
        "added_bytes": max(0, peak - before),
        "device": torch.cuda.get_device_name(where) if gpu else "CPU",
        "threads": torch.get_num_threads(),
    }


def _begin(where: torch.device) -> int:
    """Start measuring a peak anew; return the bytes that are held now."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
        torch.cuda.reset_peak_memory_stats(where)
        return torch.cuda.memory_allocated(where)
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")
    return _status("VmRSS:") or _peak()


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int:
    """Return a size of this process in bytes, 0 where it is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0
