"""The examples of the page on centerlines run as they stand, and its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

from medpipe.workflow.describe import describe_step

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "centerline.md"


def test_python_examples_run_from_top_to_bottom() -> None:
    text = PAGE.read_text(encoding="utf-8")
    examples = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.M | re.S))
    assert len(examples) >= 2
    names: dict[str, object] = {}
    for example in examples:
        lines = "\n" * text.count("\n", 0, example.start(1))
        exec(compile(lines + example.group(1), PAGE.name, "exec"), names)  # noqa: S102


def test_the_table_of_parameters_has_every_parameter_with_its_default() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([^|]+) \|", text, flags=re.M)
    told = {}
    for names, defaults in rows:
        parts = re.findall(r"`(\w+)`", names)
        values = [v.strip().strip("`") for v in defaults.split(",")]
        told |= dict(zip(parts, values, strict=False))
    for parameter in describe_step("centerline").parameters:
        if parameter.name == "maps":
            continue  # told in the text
        default = parameter.default
        shown = told[parameter.name]
        if default is None:
            assert shown in ("none", "all"), parameter.name
        elif isinstance(default, str):
            assert shown == default
        else:
            assert float(shown) == default, parameter.name


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", PAGE.read_text(encoding="utf-8"))
    assert targets
    assert all((PAGE.parent / target).exists() for target in targets)
