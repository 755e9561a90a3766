"""What a step says while it works, such as that it waits for a compiler."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

__all__ = ["notices_to"]


class _Forward(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


@contextlib.contextmanager
def notices_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Hand what is logged to ``medpipe.notice`` to `tell`, for as long as the block lasts.

    Only medpipe logs there, sentences of its own about the machine, never about a case.
    """
    logger = logging.getLogger("medpipe.notice")
    handler, before = _Forward(tell), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
