"""An input of kind "images" is loaded by the step for sets, and by no other."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    [("images", "load_volume", "load_weighted"), ("volume", "load_weighted", "load_volume")],
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
