"""Small operations of torch on one thread, where threads would wait for each other.

torch divides each operation among its threads and waits for the slowest after each one.
Between the compiled sums, which have threads of their own, that waiting costs more than the
work: twice the processor time on an idle machine, ten times the time on a shared one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["undivided"]


@contextlib.contextmanager
def undivided(device: torch.device) -> Iterator[int]:
    """Make torch divide nothing on the host, and give the number of threads it had.

    Nothing changes where the tensors are on another device.
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        yield before
        return
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
