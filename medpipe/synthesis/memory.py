"""What is said where a network does not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medpipe.errors import ResourceError

__all__ = ["enough_memory"]


@contextmanager
def enough_memory(
    hint: str, *, what: str = "the memory of the device does not suffice", got: str | None = None
) -> Iterator[None]:
    """Say in one line that memory does not suffice, and what to do.

    Raises
    ------
    ResourceError
        In place of what a device, or the allocator of the host, raises.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        # the host's allocator has no exception of its own
        if not short and "allocat" not in str(error).lower():
            raise
        raise ResourceError(what, got=got, hint=hint) from None
