"""Seeds that depend on the run, the case and the step, and on nothing else."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(run_seed: int, *names: str) -> int:
    """Return a 31-bit seed for one place of one run.

    The order in which cases run, the worker they land on and the number of
    workers do not enter, so a rerun of a single case repeats its numbers.

    Parameters
    ----------
    run_seed : int
        The seed of the whole run (``--seed``).
    *names : str
        The place, e.g. case id and step id.
    """
    text = "\x1f".join((str(int(run_seed)), *names)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") & 0x7FFF_FFFF
