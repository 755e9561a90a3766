"""Compiled functions, kept on disk where a folder for them can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

__all__ = ["compiled"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile `function` with numba, without the interpreter lock.

    The machine code is kept beside the module or in the user's cache folder, so
    only the first run waits for the compiler. Where neither can be written, every
    process compiles for itself.
    """
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)
