"""Read modules as source text, without running them.

`describe_step` needs the signature of a class whose import would cost seconds
(torch) or run a stranger's code. The finders of `sys.meta_path` locate a
module from its package's folder without importing the package, so each part
of a dotted name is located in turn and the text is parsed with `ast`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path

__all__ = ["SourceModule", "SourceNotFound", "find_module", "load_source", "package_folder"]

_MAX_HOPS = 5


class SourceNotFound(Exception):  # noqa: N818
    """A module or a name in it could not be found as source text."""


def _find(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        spec = find_spec(name, path) if find_spec else None
        if spec is not None:
            return spec
    return None


def find_module(name: str) -> ModuleSpec:
    """Locate a module by its dotted name without importing its packages."""
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        part = ".".join(parts[:depth])
        if not parts[depth - 1].isidentifier():
            raise SourceNotFound(f'"{name}" is not a module name')
        spec = _find(part, path)
        if spec is None:
            raise SourceNotFound(f"no module {part} is installed")
        if depth < len(parts):
            if spec.submodule_search_locations is None:
                raise SourceNotFound(f"{part} is not a package")
            # A namespace package's own path object asks sys.modules for its
            # parent; a plain list of what it holds now does not.
            path = _locations(spec)
    if spec is None:
        raise SourceNotFound(f'"{name}" is not a module name')
    return spec


def _locations(spec: ModuleSpec) -> list[str]:
    locations = spec.submodule_search_locations
    return list(getattr(locations, "_path", locations) or [])


def package_folder(name: str) -> Path:
    """Return the folder of a package without importing it."""
    folders = _locations(find_module(name))
    if not folders:
        raise SourceNotFound(f"{name} is not a package")
    return Path(folders[0])


class SourceModule:
    """One module's syntax tree and the names it binds at its top level."""

    def __init__(self, name: str, tree: ast.Module, *, package: bool) -> None:
        self.name = name
        self._package = package
        self._names: dict[str, ast.AST] = {}
        for node in _top_level(tree.body):
            self._bind(node)

    def _bind(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ClassDef):
            self._names[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if node.value is not None:
                self._names[node.target.id] = node.value
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    self._names[target.id] = node.value
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                self._names[alias.asname or alias.name] = node

    def lookup(self, name: str, hops: int = _MAX_HOPS) -> tuple[SourceModule, ast.AST] | None:
        """Return the class or value bound to `name`, and the module that defines it.

        Imports are followed within the same distribution and into medpipe:
        other packages' code is none of our business.
        """
        node = self._names.get(name)
        if not isinstance(node, ast.ImportFrom):
            return (self, node) if node is not None else None
        module = self._absolute(node)
        top = module.split(".")[0]
        if hops == 0 or top not in {self.name.split(".")[0], "medpipe"}:
            return None
        original = next(a.name for a in node.names if (a.asname or a.name) == name)
        try:
            return load_source(module).lookup(original, hops - 1)
        except SourceNotFound:
            return None

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        up = node.level - 1 if self._package else node.level
        base = parts[: len(parts) - up]
        return ".".join([*base, *([node.module] if node.module else [])])


def _top_level(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return statements of the module, those under ``if TYPE_CHECKING`` included."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If):
            found += _top_level(node.body)
        else:
            found.append(node)
    return found


def load_source(name: str) -> SourceModule:
    """Parse a module's source text.

    Raises
    ------
    SourceNotFound
        If it is not installed, has no source text, or does not parse.
    """
    spec = find_module(name)
    get_source = getattr(spec.loader, "get_source", None)
    try:
        text = get_source(name) if get_source else None
    except (ImportError, SyntaxError, UnicodeDecodeError, OSError):
        text = None
    if text is None:
        raise SourceNotFound(f"module {name} has no readable source text")
    return _parse(name, text, spec.submodule_search_locations is not None)


@lru_cache(maxsize=256)
def _parse(name: str, text: str, package: bool) -> SourceModule:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise SourceNotFound(f"module {name} does not parse") from None
    return SourceModule(name, tree, package=package)
