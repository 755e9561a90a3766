"""The documented example package: what the page shows is what is run here."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "docs" / "examples" / "my_steps"
PAGE = (REPOSITORY / "docs" / "how-to" / "write-your-own-step.md").read_text()
SHOWN = dict(re.findall(r"\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)```\n", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the package as pip does: its folder and its metadata on the path."""
    site = tmp_path_factory.mktemp("site")
    (site / "my_steps").symlink_to(EXAMPLE / "my_steps")
    info = site / "my_steps-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-steps\nVersion: 0.1\n")
    groups = tomllib.loads(SHOWN["pyproject.toml"])["project"]["entry-points"]
    lines = []
    for group, points in groups.items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return {**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": ""}


def python(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_shows_the_files_as_they_are() -> None:
    assert {p for p in SHOWN if (EXAMPLE / p).read_text() == SHOWN[p]} == {
        "my_steps/smooth.py",
        "pyproject.toml",
        "my_steps/workflows/smooth-image.toml",
        "try_it.py",
    }


def test_the_step_works_in_a_notebook(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In an interpreter that has imported and done other things before."""
    monkeypatch.syspath_prepend(environment["PYTHONPATH"])
    try:
        runpy.run_path(str(EXAMPLE / "try_it.py"), run_name="__main__")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_steps"]:
            del sys.modules[name]
    assert capsys.readouterr().out == PAGE.split("It prints\n\n```\n")[1].split("```")[0]


def test_the_step_and_its_workflow_are_known_by_name(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = """
import json, sys
from medpipe.workflow.describe import describe_step
from medpipe.workflow.find import list_workflows
from medpipe.workflow.plan import compile_workflow
flow = compile_workflow("smooth-image", ["smooth.sigma_mm=4"])
step = flow.steps[1]
names = [w.name for w in list_workflows() if w.where == "package my_steps.workflows"]
imported = "my_steps" in sys.modules
print(json.dumps([names, step.target, step.params, describe_step("smooth").to_dict(), imported]))
"""
    names, target, params, info, imported = json.loads(python(environment, tmp_path, "-c", code))
    assert names == ["smooth-image"]
    assert target == "my_steps.smooth:Smoothd"
    assert params == {"sigma_mm": 4.0}
    assert info["summary"] == "Smooth images with a Gaussian."
    assert info["parameters"][0]["help"].startswith("Standard deviation of the Gaussian in mm")
    assert not imported


def test_a_wrong_parameter_of_the_step_is_named(
    environment: dict[str, str], tmp_path: Path
) -> None:
    text = SHOWN["my_steps/workflows/smooth-image.toml"].replace("2.0", '"wide"')
    (tmp_path / "mine.toml").write_text(text)
    code = """
from medpipe.errors import WorkflowError
from medpipe.workflow.plan import compile_workflow
try:
    compile_workflow("mine.toml")
except WorkflowError as error:
    print(error)
"""
    assert python(environment, tmp_path, "-c", code).splitlines() == [
        'mine.toml:18: parameter "sigma_mm": expected float, got "wide"'
    ]
