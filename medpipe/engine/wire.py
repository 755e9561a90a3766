"""Messages between driver and worker: one JSON value a line, with its length in front.

``<bytes of JSON> <JSON>\\n``. A process that is killed while it writes leaves
half a line, which the length gives away.
"""

from __future__ import annotations

import json
import os
from typing import Any

__all__ = ["MAX_MESSAGE", "LineReader", "send"]

MAX_MESSAGE = 64 << 20


def send(fd: int, message: Any) -> None:
    """Write one message to a pipe, whole.

    Raises
    ------
    BrokenPipeError
        If nobody reads the other end.
    """
    body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > MAX_MESSAGE:
        raise ValueError("message too long")
    left = memoryview(b"%d %s\n" % (len(body), body))
    while left:
        left = left[os.write(fd, left) :]


class LineReader:
    """Collects bytes from a pipe and gives the messages that are whole."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray()

    def next(self) -> Any | None:
        """Return the next whole message that was already read, None when there is none.

        Raises
        ------
        ValueError
            If the bytes are not messages.
        """
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > MAX_MESSAGE + 32:
                raise ValueError("message too long")
            return None
        length, _, body = bytes(self._buffer[:end]).partition(b" ")
        del self._buffer[: end + 1]
        if not length.isdigit() or int(length) != len(body):
            raise ValueError("length of a message does not match")
        return json.loads(body)

    def fill(self) -> bool:
        """Read what the pipe holds, waiting for at least one byte; False at its end."""
        chunk = os.read(self.fd, 1 << 16)
        self._buffer += chunk
        return bool(chunk)
