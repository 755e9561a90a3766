"""Whose folder it is: a process that lives, or one that died and left something behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from pathlib import Path

from medpipe.engine.limits import process_start

__all__ = ["Owner"]

_FOREIGN_LEFTOVER_S = 24 * 3600


class Owner:
    """This process, as the names of its folders say it: host, pid, and when it began."""

    def __init__(self) -> None:
        self._host = _host_tag()
        pid = os.getpid()
        self.name = f"{self._host}-{pid}-{process_start(pid) or 0}"

    def left(self, entry: os.DirEntry[str]) -> bool:
        """Tell whether a folder, whose name begins with its owner, belongs to nobody now."""
        alive = self.lives(entry.name)
        if alive is not None:
            return not alive
        # Another machine on a shared disk, or this one before a reboot: go by age.
        try:
            return time.time() - entry.stat().st_mtime > _FOREIGN_LEFTOVER_S
        except OSError:
            return False

    def lives(self, name: str) -> bool | None:
        """Tell whether the process that a name begins with lives; None if that is unknown."""
        host, _, rest = name.partition("-")
        pid, _, rest = rest.partition("-")
        start = rest.partition("-")[0]
        if host == self._host and pid.isdigit() and start.isdigit():
            return process_start(int(pid)) == int(start)
        return None


def _host_tag() -> str:
    """Name this machine, boot and process namespace: where a pid means something."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
