"""The examples of the documentation of minimum cuts run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("reference/graphcut.md", "how-to/segment-with-cuts.md")


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_run_from_top_to_bottom(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    examples = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.M | re.S))
    assert len(examples) >= 2
    names: dict[str, object] = {}
    for example in examples:
        # empty lines in front make a traceback name the line of the page
        lines = "\n" * text.count("\n", 0, example.start(1))
        exec(compile(lines + example.group(1), page, "exec"), names)  # noqa: S102


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        here = DOCS / page
        targets = re.findall(r"\]\((?!http)([^)#]+)", here.read_text(encoding="utf-8"))
        assert targets
        for target in targets:
            assert (here.parent / target).exists(), f"{page}: {target}"
