"""The workflows that come with medpipe, and that looking at them costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from medpipe.workflow.compiled import CompiledWorkflow
from medpipe.workflow.plan import compile_workflow

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "workflows").glob("*.toml"))
NAMES = [path.stem for path in FILES]


@pytest.fixture(params=NAMES)
def shipped(request: pytest.FixtureRequest) -> CompiledWorkflow:
    return compile_workflow(REPOSITORY / "workflows" / f"{request.param}.toml")


def test_each_compiles_and_speaks_to_a_clinician(shipped: CompiledWorkflow) -> None:
    assert shipped.name in NAMES
    assert len(shipped.summary) <= 80
    assert len(shipped.description.split()) >= 40
    assert all(spec.help for spec in shipped.inputs.values())
    # What the description names exists: files that are saved, options that can be set.
    files = {save.file for step in shipped.steps for save in step.save}
    assert files
    assert any(step.qc for step in shipped.steps) or any(f.endswith(".svg") for f in files)
    # a file after "=" is one that the user names
    for file in re.findall(r"(?<![\w=-])[\w-]+\.(?:nii\.gz|json)", shipped.description):
        assert file in files
    parameters = {(step.id, name) for step in shipped.steps for name in step.params}
    for step, name in re.findall(r"--set '?(\w+)\.(\w+)", shipped.description):
        assert (step, name) in parameters


def test_the_readme_lists_them_all() -> None:
    readme = (REPOSITORY / "workflows" / "README.md").read_text()
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", readme, re.MULTILINE) == NAMES


def test_the_overrides_that_descriptions_offer_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("protocol.json").write_text("{}")
    Path("model.safetensors").write_text("a file of the user")
    for name in NAMES:
        workflow = compile_workflow(REPOSITORY / "workflows" / f"{name}.toml")
        offered = re.findall(r"--set (?:'([^']+)'|([^\s;.]+\.[^\s;]+))", workflow.description)
        assert offered
        for quoted, plain in offered:
            override = quoted or plain.rstrip(".,)")
            changed = compile_workflow(REPOSITORY / "workflows" / f"{name}.toml", [override])
            assert changed.digest() != workflow.digest()


def test_head_ct_windows() -> None:
    workflow = compile_workflow(REPOSITORY / "workflows" / "head-ct-prepare.toml")
    windows = {
        step.id: (step.params["width_hu"], step.params["level_hu"], step.params["out_range"])
        for step in workflow.steps
        if step.use == "window_intensity"
    }
    assert windows == {
        "brain": (80.0, 40.0, [0.0, 1.0]),
        "blood": (200.0, 80.0, [0.0, 1.0]),
        "bone": (2800.0, 600.0, [0.0, 1.0]),
    }
    load = workflow.steps[0].params
    assert (load["gantry_tilt"], load["variable_step"]) == ("resample", "resample")
    assert load["missing_slices"] == "refuse"
    strict = compile_workflow(REPOSITORY / "workflows" / "dicom-import.toml").steps[0].params
    assert (strict["missing_slices"], strict["variable_step"]) == ("refuse", "refuse")
    assert strict["gantry_tilt"] == "keep"


LIGHT = """
import resource, sys
from medpipe.workflow.find import list_workflows
found = list_workflows()
assert "pydantic" not in sys.modules, "the list needs no models"
from medpipe.workflow.describe import describe_step
from medpipe.workflow.plan import compile_workflow
from medpipe.workflow.registry import step_names
for info in found:
    compile_workflow(info.name)
for name in step_names():
    describe_step(name)
import medpipe.transforms
dir(medpipe.transforms)
heavy = {"torch", "monai", "nibabel", "pydicom", "numpy", "pandas", "scipy", "SimpleITK",
         "skimage", "PIL", "matplotlib", "gdcm"}
print(sorted(heavy & set(sys.modules)), len(found))
"""


def test_looking_at_workflows_imports_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    heavy, _, count = done.stdout.strip().rpartition(" ")
    assert heavy == "[]"
    assert int(count) >= len(NAMES)
