"""From the cell of a manifest to a path on this machine."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PathRules"]

Trouble = tuple[str, str | None]


@dataclass(slots=True)
class PathRules:
    """How the paths of one manifest are resolved and checked.

    Attributes
    ----------
    folder : Path
        The manifest's folder; relative paths start there.
    allow_outside : bool
        Whether a relative path may lead out of it, by ``..`` or a link.
        Absolute paths say what they mean and are always allowed.
    """

    folder: Path
    allow_outside: bool = False
    _base: str = field(init=False)
    _real: str = field(init=False)

    def __post_init__(self) -> None:
        self._base = os.path.abspath(self.folder)
        self._real = os.path.realpath(self.folder)

    def resolve(self, text: str) -> str | Trouble:
        """Return the absolute path that `text` names, or what is wrong with it."""
        if text[0] == "/":
            return os.path.normpath(text)
        if text[0] != "." and "/." not in text and "//" not in text and text[-1] != "/":
            return f"{self._base}/{text}"
        path = os.path.normpath(f"{self._base}/{text}")
        if not (self.allow_outside or _below(path, self._base)):
            return _OUTSIDE
        return path

    def check(self, path: str, text: str) -> Trouble | None:
        """Return what is wrong with the file or folder at `path`, or None.

        Parameters
        ----------
        path : str
            What `resolve` returned for `text`.
        """
        try:
            mode = os.stat(path).st_mode
        except OSError:
            link = os.path.islink(path)
            return ("is a link to nothing" if link else "does not exist"), None
        relative = text[0] != "/"
        if relative and not self.allow_outside and not _below(os.path.realpath(path), self._real):
            return "is a link that leads out of the manifest's folder", _OUTSIDE[1]
        return _usable(path, mode)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _usable(path: str, mode: int) -> Trouble | None:
    if stat.S_ISDIR(mode):
        if not os.access(path, os.R_OK | os.X_OK):
            return "is a folder that may not be read", "check its permissions"
        with os.scandir(path) as entries:
            return None if any(True for _ in entries) else ("is an empty folder", None)
    if not stat.S_ISREG(mode):
        return "is neither a file nor a folder", None
    if not os.access(path, os.R_OK):
        return "may not be read", "check its permissions"
    return None if os.stat(path).st_size else ("is an empty file", None)


_OUTSIDE: Trouble = (
    "leads out of the manifest's folder",
    "keep the manifest above its images, or write an absolute path",
)
