"""TOML with line numbers and limits.

`tomllib` keeps no positions, recurses as deep as the file says and takes
quadratic time on long dotted keys. So a linear scan walks the text first: it
notes the line of every key and refuses what is nested too deeply. Only the
part of the text that the scan understood is handed to `tomllib`, which stays
the judge of what is valid and the only source of values.
"""

from __future__ import annotations

import re
import stat
import tomllib
from bisect import bisect_right
from pathlib import Path
from typing import Any

from medpipe.errors import Problem, WorkflowError

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "TomlFile",
    "TomlPath",
    "file_label",
    "parse_toml",
    "read_toml",
]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 8

TomlPath = tuple[str | int, ...]

_BLANK = re.compile(r"[ \t]*")
_VOID = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART = re.compile(r"[A-Za-z0-9_-]+|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'")
_MULTILINE = re.compile(r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*"{3,5}' r"|'''(?:[^']|'(?!''))*'{3,5}")
_STRING = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'")
_BARE_VALUE = re.compile(r"[^,\]\}#\r\n]+")


class _Stop(Exception):  # noqa: N818 - not an error: the text is not TOML from here on
    pass


class _TooDeep(Exception):  # noqa: N818
    pass


class _Scanner:
    """Walk the text once and note where each key stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.places: dict[TomlPath, int] = {}
        self._tables: dict[TomlPath, int] = {}  # array of tables → how many so far

    def document(self) -> None:
        prefix: TomlPath = ()
        while True:
            self._skip(_VOID)
            if self.at >= len(self.text):
                return
            if self.text.startswith("[", self.at):
                prefix = self._header()
            else:
                self._pair(prefix, 0)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()

    def _take(self, literal: str) -> bool:
        if self.text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        return False

    def _need(self, literal: str) -> None:
        if not self._take(literal):
            raise _Stop

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            match = _KEY_PART.match(self.text, self.at)
            if not match:
                raise _Stop
            parts.append(_key_name(match.group()))
            if len(parts) > MAX_DEPTH:
                raise _TooDeep
            self.at = match.end()
            self._skip(_BLANK)
            if not self._take("."):
                return parts

    def _header(self) -> TomlPath:
        start = self.at
        many = self._take("[[")
        if not many:
            self._need("[")
        parts = self._key()
        self._need("]]" if many else "]")
        path: TomlPath = ()
        for depth, part in enumerate(parts):
            path = (*path, part)
            self.places.setdefault(path, start)
            if depth < len(parts) - 1 and path in self._tables:
                path = (*path, self._tables[path] - 1)
        if many:
            count = self._tables.get(path, 0)
            self._tables[path] = count + 1
            path = (*path, count)
            self.places[path] = start
        return path

    def _pair(self, prefix: TomlPath, depth: int) -> None:
        start = self.at
        path = prefix
        for part in self._key():
            path = (*path, part)
            self.places.setdefault(path, start)
        self._need("=")
        self._value(path, depth)

    def _value(self, path: TomlPath, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _TooDeep
        self._skip(_BLANK)
        if self._take("["):
            self._array(path, depth)
        elif self._take("{"):
            self._inline_table(path, depth)
        else:
            quoted = self.text.startswith(('"""', "'''"), self.at)
            for pattern in (_MULTILINE,) if quoted else (_STRING, _BARE_VALUE):
                match = pattern.match(self.text, self.at)
                if match:
                    self.at = match.end()
                    return
            raise _Stop

    def _array(self, path: TomlPath, depth: int) -> None:
        index = 0
        while True:
            self._skip(_VOID)
            if self._take("]"):
                return
            self.places[(*path, index)] = self.at
            self._value((*path, index), depth + 1)
            index += 1
            self._skip(_VOID)
            if not self._take(","):
                self._need("]")
                return

    def _inline_table(self, path: TomlPath, depth: int) -> None:
        # A line break inside is refused by tomllib; here it only has to be found.
        while True:
            self._skip(_VOID)
            if self._take("}"):
                return
            self._pair(path, depth + 1)
            self._skip(_VOID)
            if not self._take(","):
                self._need("}")
                return


def _key_name(part: str) -> str:
    if part.startswith("'"):
        return part[1:-1]
    if not part.startswith('"'):
        return part
    try:
        return str(tomllib.loads(f"k = {part}")["k"])
    except ValueError:
        raise _Stop from None


class TomlFile:
    """The values of a TOML text and the line on which each key stands.

    Attributes
    ----------
    label : str
        How messages name the file.
    data : dict
        What `tomllib` read.
    """

    def __init__(self, label: str, data: dict[str, Any], text: str, places: dict[TomlPath, int]):
        self.label = label
        self.data = data
        self._places = places
        self._breaks = [i for i, c in enumerate(text) if c == "\n"]

    def line(self, path: TomlPath) -> int | None:
        """Return the line (from 1) of `path`, else of the nearest table around it."""
        while path:
            if path in self._places:
                return bisect_right(self._breaks, self._places[path] - 1) + 1
            path = path[:-1]
        return None


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _refuse(label: str, what: str, line: int | None = None, hint: str | None = None) -> Exception:
    return WorkflowError(label, [Problem(what, line=line, hint=hint)])


def parse_toml(text: str, label: str) -> TomlFile:
    """Parse TOML within the limits.

    Raises
    ------
    WorkflowError
        With file and line, if the text is not TOML, too long or nested too deeply.
    """
    if len(text) > MAX_BYTES:
        raise _refuse(label, f"the file is longer than {MAX_BYTES // 1024} KiB")
    text = text.replace("\r\n", "\n")
    scanner = _Scanner(text)
    readable = text
    try:
        scanner.document()
    except _TooDeep:
        what = f"more than {MAX_DEPTH} levels of nesting"
        raise _refuse(label, what, _line_at(text, scanner.at)) from None
    except _Stop:
        end = text.find("\n", scanner.at)
        readable = text[: end + 1] if end >= 0 else text
    try:
        data = tomllib.loads(readable)
    except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
        found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        why = str(error)[: found.start()] if found else "a number has too many digits"
        line = int(found[1]) if found and found[1] else _line_at(text, scanner.at)
        raise _refuse(label, f"not TOML: {why}", line) from None
    except RecursionError:
        raise _refuse(label, f"more than {MAX_DEPTH} levels of nesting") from None
    if readable is not text:
        raise _refuse(label, "not TOML from here on", _line_at(text, scanner.at))
    return TomlFile(label, data, text, scanner.places)


def file_label(path: Path) -> str:
    """Return the path as messages show it: relative to the current folder if below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def read_toml(path: Path) -> TomlFile:
    """Read and parse a TOML file within the limits.

    Raises
    ------
    WorkflowError
        If it is no regular file, too large, not UTF-8 or not TOML.
    """
    label = file_label(path)
    try:
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise _refuse(label, "not a regular file")
        with open(path, "rb") as f:
            content = f.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refuse(label, f"cannot be read ({type(error).__name__})") from None
    if len(content) > MAX_BYTES:
        raise _refuse(label, f"the file is longer than {MAX_BYTES // 1024} KiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _refuse(label, "not UTF-8 text", line, "save the file as UTF-8") from None
    return parse_toml(text, label)
