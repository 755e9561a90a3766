"""Named places at which a test can kill the process, as a power cut would.

In production the environment variable is absent and `reach` compares one
string. ``MEDPIPE_CRASH_AT="before_rename"`` or ``"before_rename:case7"``
kills with SIGKILL at that point; with ``MEDPIPE_CRASH_ONCE=FILE`` only the
first process to create FILE dies, so that a retry gets through.
"""

from __future__ import annotations

import os
import signal
from typing import Final

__all__ = ["POINTS", "reach", "set_case"]

POINTS: Final = (
    "after_receive",
    "after_load",
    "after_step",
    "before_write",
    "after_tmp_write",
    "before_rename",
    "after_rename",
    "before_record",
    "after_record",
    "before_reply",
)
_case_id: str = ""


def set_case(case_id: str) -> None:
    """Tell which case this process works on, for points of the form ``point:case``."""
    global _case_id
    _case_id = case_id


def reach(point: str) -> None:
    """Kill this process with SIGKILL if it was told to die at `point`."""
    wanted = os.environ.get("MEDPIPE_CRASH_AT")
    if not wanted:
        return
    name, _, case_id = wanted.partition(":")
    if name != point or (case_id and case_id != _case_id):
        return
    token = os.environ.get("MEDPIPE_CRASH_ONCE")
    if token:
        try:
            os.close(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
