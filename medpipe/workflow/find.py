"""Where workflows are, and which there are.

Only `tomllib` is needed here: `medpipe ls` answers at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from medpipe.errors import UsageError, WorkflowError
from medpipe.workflow.source import SourceNotFound, package_folder
from medpipe.workflow.suggest import did_you_mean, shown
from medpipe.workflow.toml_lines import read_toml

__all__ = ["GROUP", "WorkflowInfo", "find_workflow", "list_workflows", "search_folders"]

GROUP = "medpipe.workflows"

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class WorkflowInfo:
    """One line of `medpipe ls`.

    Attributes
    ----------
    name : str
        The file's name without ``.toml``: what is typed to run it.
    where : str
        The place in the search order that it comes from.
    problem : str or None
        Why the file cannot be read; version, summary and inputs are empty then.
    """

    name: str
    version: str
    summary: str
    inputs: tuple[str, ...]
    where: str
    path: Path
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `medpipe ls --json` prints."""
        return asdict(self) | {"inputs": list(self.inputs), "path": str(self.path)}


def search_folders(workflow_paths: Sequence[str | Path] = ()) -> Iterator[tuple[str, Path]]:
    """Yield the places where a name is looked up, first to last, each with its label."""
    for path in workflow_paths:
        yield "--workflow-path", Path(path)
    yield "./workflows", Path.cwd() / "workflows"
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        try:
            yield f"package {point.value}", package_folder(point.value)
        except SourceNotFound:
            continue  # a broken package takes no other workflow away
    yield "medpipe", _PACKAGE / "_workflows"
    # In a checkout or an editable install the folder lies beside the package.
    # Beside an installed one, "workflows" would be somebody else's.
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        yield "medpipe", _PACKAGE.parent / "workflows"


def _files(folder: Path) -> list[Path]:
    try:
        found = [p for p in folder.iterdir() if p.suffix == ".toml" and _NAME.fullmatch(p.stem)]
    except OSError:
        return []
    return sorted(p for p in found if p.is_file())


def find_workflow(name_or_path: str | Path, *, workflow_paths: Sequence[str | Path] = ()) -> Path:
    """Return the file of a workflow.

    Parameters
    ----------
    name_or_path : str or Path
        A name to look up, or the path of a ``.toml`` file.
    workflow_paths : sequence of path
        Folders to look in before the usual ones.

    Raises
    ------
    UsageError
        If there is none, with the nearest name.
    """
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or os.sep in text:
        path = Path(text)
        if path.suffix != ".toml" or not path.is_file():
            raise UsageError(
                "there is no such workflow file", expected="a .toml file", got=shown(text)
            )
        return path
    if _NAME.fullmatch(text):
        for _, folder in search_folders(workflow_paths):
            path = folder / f"{text}.toml"
            if path.is_file():
                return path
    known = {p.stem for _, folder in search_folders(workflow_paths) for p in _files(folder)}
    raise UsageError(
        f"there is no workflow {shown(text)}",
        hint=did_you_mean(text, known) or "medpipe ls lists them",
    )


def list_workflows(workflow_paths: Sequence[str | Path] = ()) -> list[WorkflowInfo]:
    """Return every workflow that can be named, sorted by name.

    A name found twice is listed once, from the place that `find_workflow` takes.
    """
    found: dict[str, WorkflowInfo] = {}
    for where, folder in search_folders(workflow_paths):
        for path in _files(folder):
            if path.stem not in found:
                found[path.stem] = _info(path, where)
    return [found[name] for name in sorted(found)]


def _info(path: Path, where: str) -> WorkflowInfo:
    try:
        data = read_toml(path).data
    except WorkflowError as error:
        return WorkflowInfo(path.stem, "", "", (), where, path, str(error))
    inputs = data.get("inputs")
    return WorkflowInfo(
        name=path.stem,
        version=_one_line(data.get("version")),
        summary=_one_line(data.get("summary")),
        inputs=tuple(inputs) if isinstance(inputs, dict) else (),
        where=where,
        path=path,
    )


def _one_line(value: Any) -> str:
    """Return the text of a value, fit for a terminal."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return "".join(c for c in text if c.isprintable())[:200]
