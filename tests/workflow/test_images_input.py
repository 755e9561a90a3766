"""Inputs of kind "images" and "folder" are loaded by one step each, and by no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from medpipe.cli.cases import find_cases
from medpipe.errors import WorkflowError
from medpipe.workflow.plan import compile_workflow
from medpipe.workflow.spec import parse_workflow

HEAD = 'name = "x"\nversion = "1"\nsummary = "s"\n'


def text(kind: str, loader: str, more: str = "") -> str:
    return f"""{HEAD}
[inputs.images]
kind = "{kind}"

[[step]]
id = "load"
use = "{loader}"
in = "images"
{more}
"""


def problems(workflow: str, tmp_path: Path) -> str:
    with pytest.raises(WorkflowError) as caught:
        compile_workflow(parse_workflow(workflow), base_dir=tmp_path)
    return str(caught.value)


def test_a_set_is_loaded_and_its_parameters_are_checked(tmp_path: Path):
    more = 'with = { suffix = ["VFA", "DESS"], entities = { run = "1" }, settings = "optional" }'
    spec = parse_workflow(text("images", "load_weighted", more))
    compiled = compile_workflow(spec, base_dir=tmp_path)
    assert compiled.inputs["images"].as_images
    (step,) = compiled.steps
    assert step.params["suffix"] == ["VFA", "DESS"]
    assert step.params["part"] == "mag"
    assert step.makes == "volume"
    wrong = text("images", "load_weighted", 'with = { part = "phase", colour = 1 }')
    found = problems(wrong, tmp_path)
    assert "part" in found
    assert "colour" in found


@pytest.mark.parametrize(
    ("kind", "loader", "right"),
    [
        ("images", "load_volume", "load_weighted"),
        ("volume", "load_weighted", "load_volume"),
        ("folder", "load_volume", "train_centerline"),
        ("folder", "load_weighted", "train_centerline"),
        ("images", "train_centerline", "load_weighted"),
        ("volume", "train_centerline", "load_volume"),
        ("table", "load_volume", "sample_volume"),
        ("table", "train_synthesis", "sample_volume"),
        ("volume", "sample_volume", "load_volume"),
    ],
)
def test_the_wrong_loader_is_named_with_the_right_one(
    tmp_path: Path, kind: str, loader: str, right: str
):
    found = problems(text(kind, loader), tmp_path)
    assert f'"{loader}" does not load this kind of input' in found
    assert f'use = "{right}"' in found


def test_a_set_has_to_be_loaded_first_and_once(tmp_path: Path):
    found = problems(text("images", "orient"), tmp_path)
    assert 'put a step with use = "load_weighted" above' in found
    again = '[[step]]\nid = "again"\nuse = "load_weighted"\nin = "images"'
    found = problems(text("images", "load_weighted", again), tmp_path)
    assert "loaded already" in found
    picture = '[[step]]\nid = "o"\nuse = "orient"\nin = "images"'
    compile_workflow(parse_workflow(text("images", "load_weighted", picture)), base_dir=tmp_path)


def test_other_kinds_are_as_before(tmp_path: Path):
    compiled = compile_workflow(parse_workflow(text("volume", "load_volume")), base_dir=tmp_path)
    assert not compiled.inputs["images"].as_images
    assert "expected" in problems(text("pictures", "load_volume"), tmp_path)


def test_a_folder_is_read_by_the_step_that_trains(tmp_path: Path):
    compiled = compile_workflow(
        parse_workflow(text("folder", "train_centerline")), base_dir=tmp_path
    )
    assert compiled.inputs["images"].as_images
    (step,) = compiled.steps
    assert (step.makes, step.random) == ("document", True)
    found = problems(text("folder", "orient"), tmp_path)
    loaders = '"train_centerline" or "train_synthesis" or "fit_baseline"'
    assert f"put a step with use = {loaders} above" in found
    again = '[[step]]\nid = "again"\nuse = "train_centerline"\nin = "images"'
    assert "loaded already" in problems(text("folder", "train_centerline", again), tmp_path)


def test_a_row_of_conditions_is_read_by_the_step_that_draws(tmp_path: Path):
    compiled = compile_workflow(parse_workflow(text("table", "sample_volume")), base_dir=tmp_path)
    (step,) = compiled.steps
    assert (step.makes, step.random) == ("volume", True)
    assert 'put a step with use = "sample_volume" above' in problems(
        text("table", "orient"), tmp_path
    )
    row = tmp_path / "patient.json"
    row.write_text("{}")
    (case,) = find_cases(row, compiled)
    assert case.inputs == {"images": str(row.resolve())}


@pytest.mark.parametrize("kind", ["folder", "images", "labels"])
def test_only_a_folder_of_examples_is_always_one_case(tmp_path: Path, kind: str):
    """A BIDS dataset is split for images, and a folder of masks for masks."""
    loader = {"folder": "train_centerline", "images": "load_weighted", "labels": "load_volume"}
    for name in ("sub-1", "sub-2"):
        (tmp_path / name / "anat").mkdir(parents=True)
        (tmp_path / name / "anat" / f"{name}_VFA.nii.gz").write_bytes(b"1")
    compiled = compile_workflow(parse_workflow(text(kind, loader[kind])), base_dir=tmp_path)
    cases = find_cases(tmp_path, compiled)
    assert len(cases) == (1 if kind == "folder" else 2)
    if kind == "folder":
        assert cases[0].inputs == {"images": str(tmp_path.resolve())}
        assert cases[0].case_id == "case0001"
