"""A folder tree → the DICOM series in it, reading headers only.

No file is passed over in silence: what is not DICOM is counted, and a file
that is named like a slice but cannot be read makes the series beside it refuse.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medpipe.errors import InputError
from medpipe.io.dicom_group import Series, group_frames
from medpipe.io.dicom_header import Frame, read_frames
from medpipe.io.dicom_tags import BadHeader
from medpipe.types import Finding, Severity

__all__ = ["Scan", "scan_folder", "scan_series"]

Progress = Callable[[int, int], None]

_DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".ima"))
_PLAIN_NAMES = frozenset(
    [
        "DICOMDIR",
        "README",
        "LICENSE",
        "LICENCE",
        "COPYING",
        "NOTICE",
        "VERSION",
        "INDEX",
        "LOCKFILE",
        "MAKEFILE",
    ]
)


@dataclass
class Scan:
    """What a folder tree holds.

    Attributes
    ----------
    series : list of Series
        In an order that does not depend on file names.
    findings : list of Finding
        Objects set aside and files that are not DICOM, by count.
    damaged : int
        Files named like slices that cannot be read.
    """

    series: list[Series] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    damaged: int = 0


def _walk(root: Path, follow: bool) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=follow):
        info = os.stat(folder)
        if (info.st_dev, info.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders.sort()
        yield from (Path(folder, name) for name in sorted(files))


def _suffix(path: Path) -> str:
    """Return the suffix in small letters; names that are numbers or UIDs count as one kind."""
    if re.fullmatch(r"[\d.]+", path.name):
        return "#"
    return "#" if path.suffix[1:].isdigit() else path.suffix.lower()


def _readable(path: Path, root: Path, follow: bool) -> str | None:
    """Say why a file may not be opened, or return None."""
    try:
        if path.is_symlink() and not follow and not path.resolve().is_relative_to(root):
            return "it is a link that leads out of the folder"
        if not stat.S_ISREG(path.stat().st_mode):
            return "it is not a regular file"
        with open(path, "rb") as f:
            magic = f.read(132)[128:]
    except OSError:
        return "it cannot be opened"
    if magic == b"DICM":
        return None
    return "it is empty" if path.stat().st_size == 0 else "it is not DICOM"


class _Reader:
    """Collects frames and refusals of one scan."""

    def __init__(self, root: Path, follow: bool) -> None:
        self.root, self.follow = root, follow
        self.frames: list[Frame] = []
        self.suffixes: dict[Path, set[str]] = defaultdict(set)
        self.refused: list[tuple[Path, str, bool]] = []

    def add(self, path: Path) -> None:
        if path.name.upper() == "DICOMDIR":
            self.refused.append((path, "it is a media directory", False))
            return
        reason = _readable(path, self.root, self.follow)
        if reason is not None:
            self.refused.append((path, reason, False))
            return
        self.suffixes[path.parent].add(_suffix(path))
        try:
            self.frames += read_frames(path)
        except BadHeader as bad:
            self.refused.append((path, str(bad), True))

    def is_slice(self, path: Path, is_dicom: bool) -> bool:
        """Whether a file that cannot be read was meant to be a slice, by its name."""
        if is_dicom:
            return True
        if path.name.startswith(".") or path.name.upper() in _PLAIN_NAMES:
            return False
        return _suffix(path) in _DICOM_SUFFIXES | self.suffixes[path.parent]


def _attach_damage(reader: _Reader, series: list[Series]) -> int:
    """Make every series refuse that has files beside one that cannot be read."""
    damaged: dict[Path, list[str]] = defaultdict(list)
    for path, reason, is_dicom in reader.refused:
        if reader.is_slice(path, is_dicom):
            damaged[path.parent].append(reason)
    for one in series:
        for folder in {f.parent for f in one.files} & set(damaged):
            reasons = damaged[folder]
            n = len(reasons)
            one.problems.append(
                f"{n} file{'s' if n > 1 else ''} beside it cannot be read: {min(reasons)}"
            )
    return sum(map(len, damaged.values()))


def _findings(reader: _Reader, aside: list[tuple[Frame, str]], damaged: int) -> list[Finding]:
    out = []
    if aside:
        counts = Counter(name for _, name in aside)
        text = ", ".join(f"{n} × {name}" for name, n in sorted(counts.items()))
        out.append(Finding("dicom.set_aside", Severity.INFO, f"objects set aside: {text}"))
    if others := len(reader.refused) - damaged:
        text = f"{others} file{'s' if others > 1 else ''} in the folder are not DICOM images"
        out.append(Finding("dicom.not_dicom", Severity.INFO, text))
    return out


def scan_folder(
    root: str | os.PathLike[str],
    *,
    follow_symlinks: bool = False,
    progress: Progress | None = None,
) -> Scan:
    """Read the headers of every DICOM file below `root`.

    Parameters
    ----------
    root : path
        A folder, or one DICOM file.
    follow_symlinks : bool
        Whether links may lead out of the folder.
    progress : callable, optional
        Called with (files done, files in all).

    Raises
    ------
    InputError
        If `root` does not exist.
    """
    top = Path(root)
    if not top.exists():
        raise InputError("the DICOM folder or file does not exist")
    paths = list(_walk(top, follow_symlinks)) if top.is_dir() else [top]
    reader = _Reader(top.resolve() if top.is_dir() else top.resolve().parent, follow_symlinks)
    for done, path in enumerate(paths, 1):
        reader.add(path)
        if progress is not None:
            progress(done, len(paths))
    series, aside = group_frames(reader.frames)
    damaged = _attach_damage(reader, series)
    findings = _findings(reader, aside, damaged)
    for one in series:
        one.findings += findings
    return Scan(series, findings, damaged)


def scan_series(
    root: str | os.PathLike[str],
    *,
    follow_symlinks: bool = False,
    progress: Progress | None = None,
) -> list[Series]:
    """List the image series below `root` from their headers; see `scan_folder`."""
    return scan_folder(root, follow_symlinks=follow_symlinks, progress=progress).series
