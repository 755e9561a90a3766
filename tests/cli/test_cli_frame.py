"""The command's frame: help for everything, exit codes, errors in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medpipe.cli import main as cli

VERBS = ("ls", "show", "plan", "validate", "run", "report", "doctor", "manifest", "data", "bids")


def medpipe(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "medpipe", *arguments],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"medpipe {verb}" in text
    assert len(text) > 200


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert verb in text


@pytest.mark.parametrize("arguments", [["frobnicate"], ["ls", "--no-such-option"], ["run"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(arguments) == cli.EXIT_USAGE
    assert "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_is_not_an_error() -> None:
    command = [sys.executable, "-m", "medpipe", "ls", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_listing_imports_nothing_heavy() -> None:
    script = (
        "import sys; from medpipe.cli.main import invoke; invoke(['ls']); invoke(['ls','--json']);"
        "print(sorted({'torch','monai','numpy','nibabel','pydicom','pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_step_without_parameters_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["show", "round_intensity"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("no parameters")
