"""What a worker process may take, and how its memory is measured."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

__all__ = [
    "die_with_parent",
    "forbid_core_dumps",
    "limit_memory",
    "peak_rss_bytes",
    "process_start",
    "reset_peak_rss",
    "rss_bytes",
]

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux).

    Elsewhere the worker notices the end of its pipe.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the request was made
        os._exit(1)


def forbid_core_dumps() -> None:
    """Never let a crash write the memory of a process, with the images in it, to the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_memory(n_bytes: int) -> None:
    """Make allocations beyond `n_bytes` fail with MemoryError.

    RLIMIT_DATA counts private writable memory, which follows the resident
    size; RLIMIT_AS also counts mapped libraries, 370 MB more with torch alone.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        n_bytes = min(n_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, hard))


def _status_kib(pid: int | str, field: str) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    return 0


def rss_bytes(pid: int | str = "self") -> int:
    """Return the resident memory of a process, 0 when it cannot be known."""
    return _status_kib(pid, "VmRSS:") * 1024


def peak_rss_bytes(pid: int | str = "self") -> int:
    """Return the peak resident memory of a process since `reset_peak_rss`, 0 when unknown."""
    peak = _status_kib(pid, "VmHWM:") * 1024
    if peak == 0 and pid == "self":
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak


def reset_peak_rss() -> None:
    """Start measuring the peak of this process anew (Linux; elsewhere it is since the start)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it is not there.

    Two processes that had the same pid one after the other differ in it. 0
    stands for "it is there, but the system does not tell".
    """
    if sys.platform == "linux":
        try:
            # The command name in parentheses may hold blanks; field 22 counts from behind it.
            text = Path(f"/proc/{pid}/stat").read_text()
            return int(text.rsplit(")", 1)[1].split()[19])
        except (OSError, IndexError, ValueError):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0
