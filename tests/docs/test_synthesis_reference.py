"""The pages on synthesis say what the code does, and their examples run."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from medpipe.cli import main as cli
from medpipe.io.case import Case
from medpipe.io.manifest import write_manifest
from medpipe.phantoms.brain_population_labels import BrainRegion
from medpipe.synthesis.autoencoder import PRESETS as AUTOENCODERS
from medpipe.synthesis.autoencoder import AutoencoderSettings
from medpipe.synthesis.tokeniser import PRESETS as TOKENISERS
from medpipe.synthesis.tokeniser import TokeniserSettings
from medpipe.synthesis.transforms.sample import read_conditions
from medpipe.workflow.describe import describe_step
from medpipe.workflow.plan import compile_workflow

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = DOCS / "reference" / "synthesis.md"
HOW_TO = DOCS / "how-to" / "synthesize-volumes.md"
DECISION = DOCS / "decisions" / "0011-synthesis.md"


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def test_python_examples_run_from_top_to_bottom() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    examples = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.M | re.S))
    assert len(examples) >= 5
    names: dict[str, object] = {}
    for example in examples:
        lines = "\n" * text.count("\n", 0, example.start(1))
        exec(compile(lines + example.group(1), REFERENCE.name, "exec"), names)  # noqa: S102


@pytest.mark.parametrize("step", ["train_synthesis", "sample_volume", "fit_baseline"])
def test_the_table_of_a_step_has_every_parameter_with_its_default(step: str) -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    _, _, rest = re.split(rf"((?:P|p)arameters? of `{step}`)", text, maxsplit=1)
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([^|]+) \|", rest.partition("\n## ")[0], flags=re.M)
    told: dict[str, str] = {}
    for names, defaults in rows:
        parts = re.findall(r"`(\w+)`", names)
        values = [v.strip().strip("`") for v in defaults.split(",")]
        told |= dict(zip(parts, values, strict=True))
    parameters = describe_step(step).parameters
    assert set(told) == {p.name for p in parameters}
    for parameter in parameters:
        default, shown = parameter.default, told[parameter.name]
        if default is None:
            assert shown == "none", parameter.name
        elif isinstance(default, bool):
            assert shown == str(default).lower()
        elif isinstance(default, str):
            assert shown == default
        else:
            assert float(shown) == default, parameter.name


def test_presets_have_the_edges_that_are_told() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    told = [
        {name: int(edge) for name, edge in re.findall(r"`([\w-]+)` (\d+)\b", line)}
        for line in re.findall(r"Presets: (.*)", text)
    ]
    assert told[0] == {name: TokeniserSettings.preset(name).stride for name in TOKENISERS}
    assert told[1] == {name: AutoencoderSettings.preset(name).stride for name in AUTOENCODERS}


def test_settings_of_the_how_to_are_those_of_the_workflows() -> None:
    text = HOW_TO.read_text(encoding="utf-8")
    known = ("synthesis-train", "synthesis-baseline", "synthesize-brain")
    steps = {s.id: s.use for name in known for s in compile_workflow(name).steps}
    named = re.findall(r"--set '?(\w+)\.(\w+)=", text)
    assert len(named) >= 8
    for step, parameter in named:
        assert parameter in {p.name for p in describe_step(steps[step]).parameters}
    for workflow in re.findall(r"medpipe run ([\w-]+)", text):
        assert workflow in known


def test_options_of_the_evaluation_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["synthesis-evaluate", "--help"]) == 0
    said = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    text = "".join(block for block in blocks(HOW_TO, "sh") if "synthesis-evaluate" in block)
    asked = set(re.findall(r"(?<= )--[a-z-]+", text)) - {"--set"}
    assert len(asked) >= 4
    assert asked <= said


def test_tables_of_the_how_to_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BRAINS").mkdir()
    cases = [
        Case(
            f"brain{n:04}", {"image": str(tmp_path / "BRAINS" / f"{n}.nii.gz")}, f"P{n:04}",
            {"age_years": 50 + n, "sex": "F", "ventricle_ml": 20},
        )
        for n in range(24)
    ]  # fmt: skip
    for case in cases:
        Path(str(case.inputs["image"])).write_bytes(b"")
    write_manifest("BRAINS/cases.csv", cases)
    names: dict[str, object] = {}
    for block in blocks(HOW_TO, "python"):
        exec(compile(block, HOW_TO.name, "exec"), names)  # noqa: S102
    train, test = (_rows(f"BRAINS/{table}.csv") for table in ("cases", "test"))
    patients = [{row["patient_id"] for row in rows} for rows in (train, test)]
    assert (len(train), len(test)) == (12, 12)
    assert not patients[0] & patients[1]
    asked, made = _rows("asked.csv"), _rows("synthetic.csv")
    assert [row["case_id"] for row in asked] == [row["case_id"] for row in made]
    for wanted, requested in zip(asked, made, strict=True):
        row = read_conditions(tmp_path / wanted["conditions"])
        assert row["ventricle_ml"] == float(requested["ventricle_ml"])
    told = dict(re.findall(r"--region (\w+)=(\d)", HOW_TO.read_text(encoding="utf-8")))
    regions = {"grey": "GREY", "white": "WHITE", "ventricles": "LATERAL_VENTRICLE"}
    assert told == {name: str(int(BrainRegion[there])) for name, there in regions.items()}


def _rows(table: str) -> list[dict[str, str]]:
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_conditions_of_the_how_to_can_be_read(tmp_path: Path) -> None:
    examples = blocks(HOW_TO, "json")
    assert examples
    for example in examples:
        (tmp_path / "case.json").write_text(example)
        assert read_conditions(tmp_path / "case.json") == json.loads(example)


@pytest.mark.parametrize("page", [REFERENCE, HOW_TO, DECISION], ids=lambda page: page.stem)
def test_links_and_files_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert targets or page == DECISION
    assert all((page.parent / target).exists() for target in targets)
    scripts = re.findall(r"`(benchmarks/\w+\.py)`", text)
    assert all((DOCS.parent / script).exists() for script in scripts)
