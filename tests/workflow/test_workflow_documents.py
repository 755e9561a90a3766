"""Steps that make documents, as a workflow file and `medpipe show` see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medpipe.cli.show import show
from medpipe.errors import StepError, WorkflowError
from medpipe.workflow.compiled import CompiledWorkflow, SaveSpec
from medpipe.workflow.describe import describe_step
from medpipe.workflow.plan import compile_workflow
from medpipe.workflow.spec import parse_workflow

Install = Callable[..., Path]

STEPS = '''
class Meshd:
    """Make a mesh."""

    version = "1"
    makes = "document"
    suffix = ".vtp"
    writes = ("rest",)

    def __init__(self, keys, rest: str | None = None, allow_missing_keys=False): ...


class Areasd:
    """Measure a mesh."""

    version = "1"
    reads = ("mesh",)
    makes = "table"

    def __init__(self, keys, mesh: str, allow_missing_keys=False): ...
'''

HEAD = """\
name = "w"
version = "1"
summary = "s"
[inputs.ct]
[[step]]
use = "load_volume"
in = "ct"
[[step]]
use = "mesh"
in = "ct"
out = "surface"
"""


@pytest.fixture
def meshes(install: Install) -> Path:
    """Install the steps `mesh`, which makes a document, and `areas`, which reads one."""
    steps = {"mesh": "meshes:Meshd", "areas": "meshes:Areasd"}
    return install("meshes", {"meshes.py": STEPS}, steps=steps)


def compiled(text: str) -> CompiledWorkflow:
    return compile_workflow(parse_workflow(HEAD + text, "w.toml", None))


def test_the_suffix_is_read_from_the_source(
    meshes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = describe_step("mesh")
    assert (step.makes, step.suffix) == ("document", ".vtp")
    assert step.to_dict()["suffix"] == ".vtp"
    show("mesh")
    assert "makes document (.vtp)" in capsys.readouterr().out
    assert describe_step("areas").suffix == ""


def test_a_document_is_saved_and_read_further_down(meshes: Path) -> None:
    workflow = compiled(
        'save = "surface.vtp"\n'
        '[[step]]\nuse = "areas"\nin = "ct"\nout = "areas"\nwith = { mesh = "surface" }\n'
    )
    mesh, areas = workflow.steps[1:]
    assert mesh.makes == "document"
    assert mesh.save == (SaveSpec("surface", "surface.vtp"),)
    assert areas.reads == {"mesh": "surface"}
    assert CompiledWorkflow.from_dict(workflow.to_dict()) == workflow


def test_every_key_that_the_step_writes_is_a_document(meshes: Path) -> None:
    workflow = compiled(
        'with = { rest = "other" }\nsave = [{ key = "other", file = "other.vtp" }]\n'
    )
    assert workflow.steps[1].save == (SaveSpec("other", "other.vtp"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('save = "surface.nii.gz" #!', "a document of this step is saved as .vtp, got"),
        ('save = "surface.json" #!', "a document of this step is saved as .vtp, got"),
        ('save = "surface.VTP" #!', "a document of this step is saved as .vtp, got"),
        ('save = "../surface.vtp" #!', "is not a safe file name"),
        ('save = { file = "s.vtp", dtype = "int16" } #!', "a document has no dtype"),
        ('qc = "mosaic" #!', 'key "surface" of the picture is a document'),
        ('qc = { key = "ct", overlay = "surface" } #!', 'overlay "surface" of the picture is a'),
        (
            '[[step]]\nuse = "orient"\nin = "ct"\nout = "c2"\nsave = "c2.vtp" #!',
            "a volume is saved as .nii.gz or .nii",
        ),
    ],
)
def test_mistakes_are_named_with_their_line(meshes: Path, text: str, message: str) -> None:
    lines = (HEAD + text).split("\n")
    line = next(i for i, s in enumerate(lines, 1) if s.endswith("#!"))
    with pytest.raises(WorkflowError) as caught:
        compiled(text)
    (found,) = caught.value.lines()
    assert found.startswith(f"w.toml:{line}: ")
    assert message in found


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("makes = 'document'", 'suffix of a document is missing, e.g. suffix = ".vtp"'),
        ("makes = 'document'; suffix = 'vtp'", "suffix of a document is missing"),
        ("makes = 'document'; suffix = '.v/p'", "suffix of a document is missing"),
        ("makes = 'document'; suffix = ('.vtp',)", "suffix of a document is missing"),
        ("makes = 'document'; suffix = str(1)", "class attribute suffix is not a literal"),
        ("makes = 'document'; suffix = '.nii.gz'", "suffix is one of images, tables and pictures"),
        ("makes = 'document'; suffix = '.mesh.csv'", "suffix is one of images, tables"),
        ("makes = 'table'; suffix = '.vtp'", "suffix is for steps that make a document"),
        ("suffix = '.vtp'", "suffix is for steps that make a document"),
    ],
)
def test_a_class_that_breaks_the_contract(install: Install, attributes: str, message: str) -> None:
    source = f"class Badd:\n    version = '1'; {attributes}\n    def __init__(self, keys): ...\n"
    install("bad", {"bad.py": source}, steps={"bad": "bad:Badd"})
    with pytest.raises(StepError) as caught:
        describe_step("bad")
    assert message in str(caught.value)


def test_a_document_may_be_json(install: Install) -> None:
    source = "class Treed:\n    version = '1'; makes = 'document'; suffix = '.json'\n"
    source += "    def __init__(self, keys, allow_missing_keys=False): ...\n"
    install("trees", {"trees.py": source}, steps={"mesh": "trees:Treed"})
    workflow = compiled('save = "tree.json"\n')
    assert workflow.steps[1].save == (SaveSpec("surface", "tree.json"),)
