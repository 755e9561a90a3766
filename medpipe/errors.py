"""Errors that say what, where, expected, got and what to do next, in one line.

Every error medpipe raises on purpose is a `MedpipeError`. Its text is written
by medpipe and never quotes a header value, a path below the user's input
folder or any other text that could identify a patient: that is what lets the
engine log it. The text of any *other* exception may hold anything, so the
engine logs only its class and source line (see `medpipe.engine.case`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

__all__ = [
    "InputError",
    "ManifestError",
    "MedpipeError",
    "Problem",
    "ResourceError",
    "StepError",
    "StoreError",
    "UsageError",
    "WorkerDied",
    "WorkflowError",
    "error_from_dict",
]


class MedpipeError(Exception):
    """Base of every error medpipe raises on purpose.

    Parameters
    ----------
    what : str
        What went wrong, a short sentence without a full stop.
    where : str, optional
        The place: ``"case 0042 · step load · ct"`` or ``"cases.csv:12"``.
    expected, got : str, optional
        The contract and what was found instead.
    hint : str, optional
        The next action: an option to set, a command to run.
    """

    kind: ClassVar[str] = "error"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.hint = hint

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected:
            line += f"; expected {self.expected}"
        if self.got:
            line += f"{',' if self.expected else ';'} got {self.got}"
        if self.hint:
            line += f". Next: {self.hint}"
        return " ".join(line.split())

    def at(self, where: str) -> MedpipeError:
        """Return this same error with `where` put in front of its place."""
        self.where = f"{where} · {self.where}" if self.where else where
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that crosses process borders and lands in records."""
        return {
            "kind": self.kind,
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "got": self.got,
            "hint": self.hint,
            "message": str(self),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return (error_from_dict, (self.to_dict(),))


class UsageError(MedpipeError):
    """The command line or a call's arguments are wrong (exit code 2)."""

    kind = "usage"


class InputError(MedpipeError):
    """An input file, series or array is not what it claims, or not usable."""

    kind = "input"


class ResourceError(MedpipeError):
    """A case needs more memory, time or disk than it may have."""

    kind = "resource"


class StepError(MedpipeError):
    """A step failed for a reason of its own."""

    kind = "step"


class StoreError(MedpipeError):
    """A result could not be written, verified or read back."""

    kind = "store"


class WorkerDied(MedpipeError):  # noqa: N818 - it names what happened
    """The process that ran a case ended without an answer."""

    kind = "died"


class Problem:
    """One line of a file that cannot be used: where it is and what to do."""

    __slots__ = ("hint", "line", "what")

    def __init__(self, what: str, *, line: int | None = None, hint: str | None = None) -> None:
        self.what = what
        self.line = line
        self.hint = hint

    def __repr__(self) -> str:
        return f"Problem({self.what!r}, line={self.line!r}, hint={self.hint!r})"

    def render(self, file: str) -> str:
        """Return ``file:line: what. Next: hint`` in one line."""
        place = file if self.line is None else f"{file}:{self.line}"
        text = f"{place}: {self.what}"
        return f"{text}. Next: {self.hint}" if self.hint else text


class _FileError(MedpipeError):
    """An error of one text file that reports every problem found in it."""

    def __init__(self, file: str, problems: Sequence[Problem], **parts: Any) -> None:
        self.file = file
        self.problems = list(problems)
        n = len(self.problems)
        what = parts.pop("what", f"{n} problem{'s' if n != 1 else ''}")
        super().__init__(what, where=parts.pop("where", file), **parts)

    def lines(self) -> list[str]:
        """Return one line per problem, in the order of the file."""
        return [p.render(self.file) for p in self.problems]

    def __str__(self) -> str:
        return "\n".join(self.lines()) if self.problems else super().__str__()

    def to_dict(self) -> dict[str, Any]:
        problems = [{"what": p.what, "line": p.line, "hint": p.hint} for p in self.problems]
        return super().to_dict() | {"file": self.file, "problems": problems}


class ManifestError(_FileError):
    """A manifest cannot be used; all its problems are listed at once."""

    kind = "manifest"


class WorkflowError(_FileError):
    """A workflow file cannot be used; all its problems are listed at once."""

    kind = "workflow"


_PLAIN = (UsageError, InputError, ResourceError, StepError, StoreError, WorkerDied)
_BY_KIND: dict[str, type[MedpipeError]] = {cls.kind: cls for cls in (MedpipeError, *_PLAIN)}
_FILE_KINDS: dict[str, type[_FileError]] = {cls.kind: cls for cls in (ManifestError, WorkflowError)}


def error_from_dict(record: dict[str, Any]) -> MedpipeError:
    """Rebuild the error that `MedpipeError.to_dict` described."""
    parts = {k: record.get(k) for k in ("where", "expected", "got", "hint")}
    kind = record.get("kind", "error")
    if kind in _FILE_KINDS:
        problems = [
            Problem(p["what"], line=p.get("line"), hint=p.get("hint"))
            for p in record.get("problems", [])
        ]
        return _FILE_KINDS[kind](record["file"], problems, what=record["what"], **parts)
    return _BY_KIND.get(kind, MedpipeError)(record["what"], **parts)
