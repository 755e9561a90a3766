"""Fixtures shared by all tests."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Workers of xdist share the cores already: threads of one would wait for those of another.
# Said before torch, SciPy and SimpleITK are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    for _name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        os.environ.setdefault(f"{_name}_NUM_THREADS", "1")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

# How long an example takes says how busy the machine is. A commit is tested with the same
# examples everywhere; with MEDPIPE_FUZZ_EXAMPLES set, every run looks at new ones.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize="MEDPIPE_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parent.parent


def real_data_folder() -> Path:
    """Where the real images are: MEDPIPE_REAL_DATA, else shared/data beside the checkout."""
    return Path(os.environ.get("MEDPIPE_REAL_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that use it are marked ``real_data``."""
    folder = real_data_folder()
    if not folder.is_dir():
        pytest.skip("the folder of real images is absent (set MEDPIPE_REAL_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _gpu_only_when_present(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@contextlib.contextmanager
def _cases_in_this_process() -> Iterator[None]:
    """Let the local executor run cases one after the other, here.

    For tests that ask what a workflow makes of its inputs. That a process is started for
    cases, and what becomes of them when it dies, is tested in `engine`, `crash` and `cli`.
    A job and its outcome are JSON here too, and what a library warns of goes nowhere.
    """
    from medpipe.engine.case import CaseRunner
    from medpipe.engine.pool.local import LocalExecutor
    from medpipe.engine.protocol import Job, Outcome, RunSpec

    def run(
        self: LocalExecutor, jobs: Iterable[Job], spec: RunSpec, on_event: Any = None
    ) -> Iterator[Outcome]:
        runner = CaseRunner(RunSpec.from_dict(_piped(spec)), on_event or (lambda _: None))
        for job in jobs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = runner.run(Job.from_dict(_piped(job)))
            yield Outcome.from_dict(_piped(outcome))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalExecutor, "run", run)
        yield


def _piped(message: Any) -> dict[str, Any]:
    """Return a message as the other end of a pipe has it."""
    made: dict[str, Any] = json.loads(json.dumps(message.to_dict(), allow_nan=False))
    return made


@pytest.fixture
def cases_here() -> Iterator[None]:
    """Run the cases of `medpipe run` in the process of the test."""
    with _cases_in_this_process():
        yield


Medpipe = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def medpipe_here() -> Medpipe:
    """Return a function that runs `medpipe` in a folder, all of it in the process of the test."""
    from medpipe.cli.main import invoke

    def medpipe(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
        told, wrong = io.StringIO(), io.StringIO()
        with (
            _cases_in_this_process(),
            contextlib.chdir(folder),
            contextlib.redirect_stdout(told),
            contextlib.redirect_stderr(wrong),
        ):
            code = invoke([str(word) for word in words])
        return subprocess.CompletedProcess(words, code, told.getvalue(), wrong.getvalue())

    return medpipe
