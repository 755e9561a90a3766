"""The examples and tables of the documentation of quantitative MRI are those of the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import medpipe.qmri
from medpipe.qmri import MODELS, QUANTITIES, SETTINGS, Protocol
from medpipe.qmri.signals import _model

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "qmri.md"
TEXT = PAGE.read_text(encoding="utf-8")


def examples(language: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.M | re.S))


def test_python_examples_run_from_top_to_bottom() -> None:
    assert len(examples("python")) >= 2
    before, names = dict(MODELS), {}
    try:
        for example in examples("python"):
            # empty lines in front make a traceback name the line of the page
            lines = "\n" * TEXT.count("\n", 0, example.start(1))
            exec(compile(lines + example.group(1), PAGE.name, "exec"), names)  # noqa: S102
        assert len(MODELS) == len(before) + 1  # the page registers one
    finally:
        for name in set(MODELS) - set(before):
            del _model._MODELS[name]


def test_the_protocol_file_is_one() -> None:
    example = examples("json")[0].group(1)
    assert Protocol.from_dict(json.loads(example)).count == 4


def test_every_model_setting_and_quantity_is_described() -> None:
    for name, model in MODELS.items():
        assert f"| `{name}` |" in TEXT
        assert model.reference in TEXT
    for name in (*SETTINGS, *QUANTITIES):
        assert f"`{name}`" in TEXT


def test_the_package_is_free_to_import_and_its_names_are_there() -> None:
    script = "import sys, medpipe.qmri; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    for name in medpipe.qmri.__all__:
        assert getattr(medpipe.qmri, name) is not None
