"""The how-to of quantitative MRI says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from medpipe.qmri import Protocol
from medpipe.qmri.transforms.maps import QUALITY_NAMES
from medpipe.workflow.describe import describe_step
from medpipe.workflow.plan import compile_workflow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "quantify-mri.md"
TEXT = PAGE.read_text(encoding="utf-8")
WORKFLOWS = sorted(p.stem for p in (ROOT / "workflows").glob("qmri-*.toml"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.M | re.S)


def test_the_example_runs() -> None:
    (example,) = blocks("python")
    exec(compile(example, PAGE.name, "exec"), {})  # noqa: S102


def test_the_protocol_file_is_one() -> None:
    (example,) = blocks("json")
    assert Protocol.from_dict(json.loads(example)).count == 4


def test_every_workflow_is_there_and_every_parameter_exists() -> None:
    assert len(WORKFLOWS) == 5
    assert all(f"`{name}`" in TEXT for name in WORKFLOWS)
    parameters = {p.name for p in describe_step("fit_relaxation").parameters}
    named = re.findall(r"--set fit\.(\w+)=", TEXT)
    assert len(named) >= 6
    assert set(named) <= parameters


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert targets
    assert all((PAGE.parent / target).exists() for target in targets)


def test_quality_has_the_same_numbers_everywhere() -> None:
    """In the how-to, in the description of each workflow and in the legend of its picture."""
    assert len(QUALITY_NAMES) == 8
    first = {label: name.split("_")[0] for label, name in enumerate(QUALITY_NAMES, 1)}
    words = first | {2: "B1", 5: "bound", 6: "support"}
    for name in WORKFLOWS:
        workflow = compile_workflow(name)
        (picture,) = [s.qc for s in workflow.steps if s.id == "quality"]
        assert picture is not None
        legend = picture.options["labels"]
        listed = dict(re.findall(r"(\d) ([^,;]+)", _line(workflow.description)))
        for label, word in words.items():
            assert word in str(legend[str(label)])  # type: ignore[index,call-overload]
            assert word in listed[str(label)]
    told = dict(
        re.findall(r"(\d) ([^;|]+)", next(r for r in TEXT.splitlines() if "quality.nii" in r))
    )
    assert all(word in told[str(label)] for label, word in words.items())


def _line(description: str) -> str:
    """Return the entry of quality.nii.gz in a description, its two lines joined."""
    lines = description.splitlines()
    at = next(i for i, line in enumerate(lines) if "quality.nii.gz" in line)
    joined = " ".join(lines[at : at + 2]).split("quality.nii.gz")[1]
    return " ".join(joined.split())
