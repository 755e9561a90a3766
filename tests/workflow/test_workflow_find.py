"""Where workflows are found, from a checkout, a wheel and other packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medpipe.errors import UsageError
from medpipe.workflow import find
from medpipe.workflow.find import find_workflow, list_workflows

REPOSITORY = Path(__file__).resolve().parents[2]


def write(folder: Path, name: str, summary: str = "s") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(f'name = "{name}"\nversion = "2"\nsummary = "{summary}"\n[inputs.a]\n')
    return path


@pytest.fixture
def places(
    install: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """Return every place of the search order, in that order."""
    site = install(
        "pack",
        {"pack/__init__.py": "raise RuntimeError", "pack/flows/__init__.py": "raise RuntimeError"},
        workflows={"any": "pack.flows", "gone": "absent.flows"},
    )
    package = tmp_path / "install" / "medpipe"
    monkeypatch.setattr(find, "_PACKAGE", package)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text("")
    return {
        "--workflow-path": tmp_path / "mine",
        "./workflows": here / "workflows",
        "package pack.flows": site / "pack" / "flows",
        "medpipe": package / "_workflows",
        "checkout": package.parent / "workflows",
    }


def test_the_search_order(places: dict[str, Path]) -> None:
    """Fill the places from the last to the first: each new one hides the others."""
    mine = [places["--workflow-path"]]
    for label, folder in reversed(places.items()):
        path = write(folder, "flow", label)
        assert find_workflow("flow", workflow_paths=mine) == path
        (info,) = list_workflows(mine)
        assert info.path == path
        assert info.summary == label
        assert info.where == {"checkout": "medpipe"}.get(label, label)
    assert "pack" not in sys.modules


def test_a_folder_beside_an_installed_package_is_not_ours(places: dict[str, Path]) -> None:
    write(places["checkout"], "flow")
    (places["checkout"].parent / "pyproject.toml").unlink()
    with pytest.raises(UsageError, match='there is no workflow "flow"'):
        find_workflow("flow")


def test_the_list(places: dict[str, Path]) -> None:
    write(places["medpipe"], "b-flow", "two")
    write(places["checkout"], "a-flow", "one\\n\\u001b[31mline")
    (places["medpipe"] / "broken.toml").write_text("a = 1\nname = \n")
    (places["medpipe"] / "README.md").write_text("")
    (places["medpipe"] / "Not A Name.toml").write_text("")
    (places["medpipe"] / "folder.toml").mkdir()
    found = list_workflows()
    assert [(w.name, w.version, w.summary, w.inputs) for w in found] == [
        ("a-flow", "2", "one [31mline", ("a",)),
        ("b-flow", "2", "two", ("a",)),
        ("broken", "", "", ()),
    ]
    assert "broken.toml:2: not TOML" in (found[2].problem or "")
    assert found[0].to_dict()["inputs"] == ["a"]


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "Any_Name")
    assert find_workflow(str(path)) == path
    assert find_workflow(path) == path
    for text in [str(tmp_path / "none.toml"), str(tmp_path), "../x", "none.toml", "/dev/null"]:
        with pytest.raises(UsageError, match="there is no such workflow file"):
            find_workflow(text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dicom-imprt", 'there is no workflow "dicom-imprt". Next: did you mean "dicom-import"?'),
        ("Head-CT-prepare", 'did you mean "head-ct-prepare"?'),
        ("", "there is no workflow"),
        ("..", "there is no workflow"),
        ("x\n", "there is no workflow"),
    ],
)
def test_an_unknown_name(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_workflow(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_workflows_of_the_checkout_are_found_from_anywhere(tmp_path: Path) -> None:
    code = "from medpipe.workflow.find import *; print(*(w.name for w in list_workflows()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    expected = {p.stem for p in (REPOSITORY / "workflows").glob("*.toml")}
    assert expected >= {"dicom-import", "head-ct-prepare", "nifti-check"}
    assert expected <= set(done.stdout.split())


def test_the_workflows_of_a_wheel_are_found(tmp_path: Path) -> None:
    """Lay the package out as the wheel does: workflows inside, no project file beside."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "medpipe").mkdir()
    for path in (REPOSITORY / "medpipe").rglob("*.py"):
        copy = site / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (site / "medpipe" / "_workflows").mkdir()
    for path in (REPOSITORY / "workflows").glob("*.toml"):
        (site / "medpipe" / "_workflows" / path.name).write_bytes(path.read_bytes())
    code = (
        "import medpipe; from medpipe.workflow.plan import compile_workflow as c; "
        "print(medpipe.__file__); print(c('dicom-import').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(site / "medpipe" / "__init__.py"), "dicom-import"]
