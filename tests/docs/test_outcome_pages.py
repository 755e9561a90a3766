"""The pages on models of outcomes say what the code does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from medpipe.cli.data import simulate_sah
from medpipe.cli.outcome import outcome_train
from medpipe.outcome.training_settings import OutcomeTraining
from medpipe.report.outcome_tables import METRICS
from medpipe.workflow.describe import describe_step
from medpipe.workflow.plan import compile_workflow

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = DOCS / "reference" / "outcome-evaluation.md"
HOW_TO = DOCS / "how-to" / "predict-an-outcome.md"
DECISION = DOCS / "decisions" / "0010-outcomes-out-of-fold.md"
COMMANDS = {"data simulate-sah": simulate_sah, "outcome-train": outcome_train}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands() -> list[str]:
    """Return the commands of the how-to, each on one line."""
    fences = re.findall(r"^```sh\n(.*?)^```$", text_of(HOW_TO), flags=re.M | re.S)
    return [line for fence in fences for line in fence.replace("\\\n", " ").splitlines()]


def test_the_example_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", text_of(REFERENCE), flags=re.M | re.S)
    exec(compile(example, REFERENCE.name, "exec"), {})  # noqa: S102


def test_every_figure_of_the_report_is_described() -> None:
    text = text_of(REFERENCE).lower()
    same = {"AUPRC, average precision": "AUPRC", "F1, event": "F1", "F1, no event": "of each class",
            "positive predictive value": "predictive values TP / (TP + FP)",
            "negative predictive value": "TN / (TN + FN)"}  # fmt: skip
    for _, name, _ in METRICS:
        assert same.get(name, name).lower() in text, name
    for name in ("concordance", "auroc at the horizon", "integrated brier score",
                 "scaled integrated score", "observed / expected",
                 "calibration slope at the horizon", "log-rank p", "median follow-up"):  # fmt: skip
        assert name in text, name


def test_defaults_are_those_of_the_code() -> None:
    text = text_of(HOW_TO)
    ends = [f"{d:g}" for d in OutcomeTraining().interval_days]
    assert f"days {', '.join(ends[:-1])} and {ends[-1]}" in text
    assert f"({100 * OutcomeTraining().validation_share:g} %)" in text_of(REFERENCE)


@pytest.mark.parametrize("page", [REFERENCE, HOW_TO, DECISION], ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!http)([^)]+)\)", text_of(page))
    assert targets or page == DECISION
    for target in targets:
        path, _, anchor = target.partition("#")
        there = page.parent / path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", text_of(there), flags=re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target


def test_commands_and_their_options_exist() -> None:
    seen = set()
    for line in commands():
        words = line.split()
        assert words[0] == "medpipe"
        name = next((c for c in COMMANDS if line.startswith(f"medpipe {c} ")), "")
        if not name:
            assert words[1:3] == ["run", "outcome-predict"]
            continue
        seen.add(name)
        known = inspect.signature(COMMANDS[name]).parameters
        for option in re.findall(r"--([a-z-]+)", line):
            assert option.replace("-", "_") in known, option
    assert seen == set(COMMANDS)
    # and those that the text names
    known = inspect.signature(outcome_train).parameters
    told = set(re.findall(r"`--([a-z-]+)", text_of(HOW_TO))) - {"set"}
    assert {"by-site", "nested", "encoder", "covariates", "interval-days"} <= told
    assert all(option.replace("-", "_") in known for option in told)


def test_the_model_is_named_to_each_step_that_asks_one() -> None:
    steps = {s.id: s.use for s in compile_workflow("outcome-predict").steps}
    asking = {
        i for i, use in steps.items() if "model" in {p.name for p in describe_step(use).parameters}
    }
    for line in commands():
        named = re.findall(r"--set (\w+)\.model=(\S+)", line)
        if named:
            assert {step for step, _ in named} == asking
            assert {model for _, model in named} == {"study/model"}
