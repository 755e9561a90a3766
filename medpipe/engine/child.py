"""The process that runs cases: ``python -m medpipe.engine.child JOBS REPLIES PARENT DEBUG``.

Started by `medpipe.engine.pool.worker` with the numbers of two inherited
pipes. It reads a `RunSpec`, then one `Job` after the other, and answers each
with events and an `Outcome`. It ends when the pipe of jobs ends: at once when
that happens in the middle of a case, because then the driver is dead.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from typing import Any

from medpipe.engine.limits import die_with_parent, forbid_core_dumps, limit_memory
from medpipe.engine.protocol import Job, RunSpec
from medpipe.engine.wire import LineReader, send

__all__ = ["main"]

_END = object()


class _Inbox:
    """Reads the pipe of jobs in a thread, so that its end is seen during a case too."""

    def __init__(self, fd: int) -> None:
        self._reader = LineReader(fd)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.busy = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while self._reader.fill():
            while (message := self._reader.next()) is not None:
                self._queue.put(message)
        if self.busy:
            os._exit(1)
        self._queue.put(_END)

    def get(self) -> Any:
        """Wait for the next message; `_END` when there will be none."""
        return self._queue.get()


def _silence() -> None:
    """Send whatever libraries print nowhere: it may quote headers."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _may_use_cuda(spec: RunSpec) -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return spec.device != "cpu" and not hidden and os.path.exists("/dev/nvidiactl")


def main(arguments: list[str]) -> int:
    """Serve jobs until the pipe ends; return the exit status."""
    jobs_fd, replies_fd, parent = (int(a) for a in arguments[:3])
    die_with_parent(parent)
    forbid_core_dumps()
    for fd in (jobs_fd, replies_fd):  # programs that a step starts must not hold them open
        os.set_inheritable(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides
    if arguments[3:] != ["debug"]:
        _silence()
    inbox = _Inbox(jobs_fd)
    first = inbox.get()
    if first is _END:
        return 0
    spec = RunSpec.from_dict(first)
    # CUDA maps far more memory than it uses; there only the driver watches the resident size.
    if spec.memory_gb is not None and not _may_use_cuda(spec):
        limit_memory(int(spec.memory_gb * 1e9))
    from medpipe.engine.case import CaseRunner

    def emit(event: Any) -> None:
        send(replies_fd, {"event": event})

    runner = CaseRunner(spec, emit)
    send(replies_fd, {"ready": os.getpid()})
    while (message := inbox.get()) is not _END:
        inbox.busy = True
        outcome = runner.run(Job.from_dict(message))
        inbox.busy = False
        send(replies_fd, {"outcome": outcome.to_dict()})
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the driver is gone
        sys.exit(main(sys.argv[1:]))
