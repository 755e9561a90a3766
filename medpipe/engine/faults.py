"""Any exception of a step as an error that may be recorded.

Texts of foreign exceptions can quote a header or a path, so only their class
and the places they passed through are kept.
"""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import PurePath
from typing import Any

from medpipe.errors import MedpipeError, ResourceError, StepError

__all__ = ["describe_fault"]

_MAX_FRAMES = 12


def _chain(error: BaseException) -> list[BaseException]:
    """Return an exception and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or context
    return chain


def _frames(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    return [f"{PurePath(f.filename).name}:{f.lineno} {f.name}" for f in frames]


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch says so on the CPU with a plain RuntimeError.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _is_out_of_gpu_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _as_medpipe_error(chain: list[BaseException]) -> MedpipeError:
    for error in chain:  # MONAI wraps what a transform raises
        if isinstance(error, MedpipeError):
            return error
    if any(_is_out_of_gpu_memory(e) for e in chain):
        return ResourceError(
            "the GPU has not enough memory for this case",
            hint="run fewer cases per GPU (--per-gpu 1), choose a coarser spacing, or --device cpu",
        )
    if any(_is_out_of_memory(e) for e in chain):
        return ResourceError(
            "there is not enough memory for this case",
            hint="raise --memory-gb, run fewer --workers, or choose a coarser spacing",
        )
    return StepError(
        f"{type(chain[0]).__name__} was raised",
        hint="the frames in case.json say where; --debug prints its text, which may hold"
        " patient data",
    )


_ASSIGNMENT = re.compile(r"""(?:\bset )?(?<![\w.-])(\w+)=("[^"]*"|\[[^]]*\]|[\w.+-]+)""")


def _for_the_command_line(hint: str | None, step: str) -> str | None:
    """Turn ``name="value"``, as written in Python, into ``--set step.name=value``."""

    def option(match: re.Match[str]) -> str:
        name, value = match.groups()
        text = f"{step}.{name}={value.strip(chr(34))}"
        return f"--set '{text}'" if set(text) & set('[]" ') else f"--set {text}"

    return hint and _ASSIGNMENT.sub(option, hint)


def describe_fault(fault: BaseException, step: str | None) -> dict[str, Any]:
    """Return the record of an exception: see ``error`` in ``case.json``.

    Parameters
    ----------
    fault : BaseException
    step : str or None
        Id of the step it came from.
    """
    chain = _chain(fault)
    error = _as_medpipe_error(chain)
    root = error if error in chain else chain[0]
    if step is not None:
        error.hint = _for_the_command_line(error.hint, step)
        error = error.at(f"step {step}")
    record = error.to_dict()
    return {**record, "step": step, "type": type(root).__name__, "frames": _frames(root)}
